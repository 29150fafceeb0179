//! Failures on the wire: one code, reason and fixed sentence each, with `google.rpc` details.

use std::collections::HashMap;

use prost::Message as _;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use super::door::REQUEST_ID;
use crate::domain::error::Failure;
use crate::domain::reason::{Detail, Kind};
use crate::proto::v1;

/// The domain of our reasons in `google.rpc.ErrorInfo`.
const DOMAIN: &str = "tokenwallet";

/// What a caller sent that its error may name again. Empty where it sent nothing.
#[derive(Clone, Copy, Default)]
pub(super) struct Sent<'a> {
    /// The provider's slug.
    pub(super) provider: &'a str,
    /// The account's id.
    pub(super) account: &'a str,
}

/// The status of a failure.
#[expect(clippy::needless_pass_by_value, reason = "errors are handed over by `map_err`")]
pub(super) fn of(failure: Failure) -> Status {
    naming(&failure, Sent::default())
}

/// The status of a failure, naming what it is about as the caller did.
pub(super) fn naming(failure: &Failure, sent: Sent<'_>) -> Status {
    let meaning = failure.meaning();
    let metadata = meaning.metadata.iter();
    let metadata: HashMap<_, _> =
        metadata.filter_map(|detail| Some((detail.as_str().to_owned(), known(*detail, failure, sent)?))).collect();
    let mut details = ErrorDetails::with_error_info(meaning.reason, DOMAIN, metadata);
    if let Some((field, why)) = failure.violation() {
        details.add_bad_request_violation(field, why);
    }
    if let Some(after) = failure.retry_after() {
        details.set_retry_info(Some(after));
    }
    Status::with_error_details(code(meaning.kind), failure.to_string(), details)
}

/// The same, with what cures it if a consent does.
pub(super) fn with(failure: &Failure, sent: Sent<'_>, consent: Option<v1::AuthorizationRequired>) -> Status {
    let status = naming(failure, sent);
    let Some(consent) = consent else { return status };
    let mut rich = rich(&status);
    rich.details.push(prost_types::Any {
        type_url: "type.googleapis.com/tokenwallet.v1.AuthorizationRequired".to_owned(),
        value: consent.encode_to_vec(),
    });
    Status::with_details(status.code(), status.message(), rich.encode_to_vec().into())
}

/// A status with its details as a message. Those of ours are one themselves.
pub(super) fn rich(status: &Status) -> tonic_types::Status {
    tonic_types::Status::decode(status.details()).unwrap_or_else(|_| tonic_types::Status {
        code: status.code().into(),
        message: status.message().to_owned(),
        details: Vec::new(),
    })
}

/// The code's name in metrics and logs.
pub(super) const fn name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

const fn code(kind: Kind) -> Code {
    match kind {
        Kind::InvalidArgument => Code::InvalidArgument,
        Kind::Unauthenticated => Code::Unauthenticated,
        Kind::PermissionDenied => Code::PermissionDenied,
        Kind::NotFound => Code::NotFound,
        Kind::AlreadyExists => Code::AlreadyExists,
        Kind::FailedPrecondition => Code::FailedPrecondition,
        Kind::Aborted => Code::Aborted,
        Kind::ResourceExhausted => Code::ResourceExhausted,
        Kind::Unavailable => Code::Unavailable,
        Kind::DeadlineExceeded => Code::DeadlineExceeded,
        Kind::DataLoss => Code::DataLoss,
        Kind::Internal => Code::Internal,
    }
}

fn known(detail: Detail, failure: &Failure, sent: Sent<'_>) -> Option<String> {
    let sent_text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    match (detail, failure) {
        (Detail::Provider, _) => sent_text(sent.provider),
        (Detail::ExternalAccountId, _) => sent_text(sent.account),
        (Detail::Scopes, Failure::MissingScopes { scopes }) => Some(scopes.join(" ")),
        (Detail::Scopes, _) => None,
        (Detail::RequestId, _) => REQUEST_ID.try_with(Clone::clone).ok(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_failure_carries_its_reason_and_details() {
        let status = of(Failure::ProviderUnavailable { retry_after: Duration::from_secs(7) });
        let details = status.get_error_details();
        assert_eq!(status.code(), Code::Unavailable);
        assert_eq!(details.error_info().map(|info| info.reason.as_str()), Some("PROVIDER_UNAVAILABLE"));
        assert_eq!(details.retry_info().and_then(|info| info.retry_delay), Some(Duration::from_secs(7)));

        let lacks = Failure::MissingScopes { scopes: vec!["a".into(), "b".into()] };
        let status = naming(&lacks, Sent { provider: "acme", account: "" });
        let info = status.get_error_details().error_info().unwrap().metadata.clone();
        let told = [("scopes", "a b"), ("provider", "acme")].map(|(key, value)| (key.to_owned(), value.to_owned()));
        assert_eq!(info, told.into(), "and no account, for the caller named none");

        let status = of(Failure::field("user_id", "must not be empty"));
        let details = status.get_error_details();
        assert_eq!(details.bad_request().map(|bad| bad.field_violations[0].field.clone()), Some("user_id".into()));
    }

    #[tokio::test]
    async fn an_internal_failure_names_the_request_and_nothing_else() {
        let status = REQUEST_ID.scope("ab12".into(), async { of(Failure::Internal) }).await;
        assert_eq!(status.message(), "internal error");
        assert_eq!(
            status.get_error_details().error_info().map(|info| info.metadata["request_id"].clone()),
            Some("ab12".into())
        );
    }

    #[test]
    fn each_kind_has_the_code_of_its_name() {
        for meaning in Failure::MEANINGS {
            assert_eq!(name(code(meaning.kind)), meaning.kind.code());
        }
    }
}
