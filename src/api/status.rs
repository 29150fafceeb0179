//! Failures on the wire: one code, reason and fixed sentence each, with `google.rpc` details.

use std::collections::HashMap;
use std::time::Duration;

use prost::Message as _;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use super::door::REQUEST_ID;
use crate::domain::error::Failure;
use crate::proto::v1;

/// The domain of our reasons in `google.rpc.ErrorInfo`.
const DOMAIN: &str = "tokenwallet";

/// How soon the store is worth another try.
const STORE_RETRY: Duration = Duration::from_secs(1);

/// The status of a failure.
#[expect(clippy::needless_pass_by_value, reason = "errors are handed over by `map_err`")]
pub(super) fn of(failure: Failure) -> Status {
    let (code, reason) = meaning(&failure);
    let mut details = ErrorDetails::with_error_info(reason, DOMAIN, metadata(&failure));
    if let Failure::InvalidField { field, why } = &failure {
        details.add_bad_request_violation(*field, why.as_str());
    }
    if failure == Failure::RedirectUrlNotAllowed {
        details.add_bad_request_violation("redirect_url", "must be on the allow-list");
    }
    if let Some(after) = retry_after(&failure) {
        details.set_retry_info(Some(after));
    }
    Status::with_error_details(code, failure.to_string(), details)
}

/// The status of a failure that a consent cures.
pub(super) fn with(failure: Failure, consent: Option<v1::AuthorizationRequired>) -> Status {
    let status = of(failure);
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

const fn meaning(failure: &Failure) -> (Code, &'static str) {
    match failure {
        Failure::InvalidField { .. } => (Code::InvalidArgument, "INVALID_FIELD"),
        Failure::RedirectUrlNotAllowed => (Code::InvalidArgument, "REDIRECT_URL_NOT_ALLOWED"),
        Failure::CredentialsMissing => (Code::Unauthenticated, "CREDENTIALS_MISSING"),
        Failure::ApiKeyInvalid => (Code::Unauthenticated, "API_KEY_INVALID"),
        Failure::FlowSessionMismatch => (Code::PermissionDenied, "FLOW_SESSION_MISMATCH"),
        Failure::FlowStolen => (Code::PermissionDenied, "FLOW_SESSION_MISMATCH"),
        Failure::AccountNotLinked => (Code::NotFound, "ACCOUNT_NOT_LINKED"),
        Failure::AccountNotFound => (Code::NotFound, "ACCOUNT_NOT_FOUND"),
        Failure::ProviderNotFound => (Code::NotFound, "PROVIDER_NOT_FOUND"),
        Failure::ApiClientNotFound => (Code::NotFound, "API_CLIENT_NOT_FOUND"),
        Failure::RedirectUrlNotFound => (Code::NotFound, "REDIRECT_URL_NOT_FOUND"),
        Failure::ProviderExists => (Code::AlreadyExists, "PROVIDER_EXISTS"),
        Failure::ProviderInUse => (Code::FailedPrecondition, "PROVIDER_IN_USE"),
        Failure::TooManyProviderSecrets => (Code::FailedPrecondition, "TOO_MANY_PROVIDER_SECRETS"),
        Failure::LastProviderSecret => (Code::FailedPrecondition, "LAST_PROVIDER_SECRET"),
        Failure::SharedCredentialsInProduction => (Code::FailedPrecondition, "SHARED_CREDENTIALS_IN_PRODUCTION"),
        Failure::ReauthorizationRequired => (Code::FailedPrecondition, "REAUTHORIZATION_REQUIRED"),
        Failure::MissingScopes(_) => (Code::FailedPrecondition, "MISSING_SCOPES"),
        Failure::NoRefreshToken => (Code::FailedPrecondition, "NO_REFRESH_TOKEN"),
        Failure::ProviderMisconfigured => (Code::FailedPrecondition, "PROVIDER_MISCONFIGURED"),
        Failure::DefaultAccountUnset => (Code::FailedPrecondition, "DEFAULT_ACCOUNT_UNSET"),
        Failure::FlowExpired => (Code::FailedPrecondition, "FLOW_EXPIRED"),
        Failure::FlowCancelled => (Code::FailedPrecondition, "FLOW_CANCELLED"),
        Failure::FlowOutcomeUnknown => (Code::FailedPrecondition, "FLOW_OUTCOME_UNKNOWN"),
        Failure::TicketSpent => (Code::FailedPrecondition, "TICKET_SPENT"),
        Failure::AccountLinkedToAnotherUser => (Code::AlreadyExists, "ACCOUNT_LINKED_TO_ANOTHER_USER"),
        Failure::AccountMismatch => (Code::FailedPrecondition, "ACCOUNT_MISMATCH"),
        Failure::RateLimited { .. } => (Code::ResourceExhausted, "RATE_LIMITED"),
        Failure::ProviderUnavailable { .. } => (Code::Unavailable, "PROVIDER_UNAVAILABLE"),
        Failure::AccessTokenRejected { .. } => (Code::Unavailable, "ACCESS_TOKEN_REJECTED"),
        Failure::StoreUnavailable => (Code::Unavailable, "STORE_UNAVAILABLE"),
        Failure::FlowInProgress => (Code::Unavailable, "FLOW_IN_PROGRESS"),
        Failure::GrantQuarantined => (Code::DataLoss, "GRANT_QUARANTINED"),
        Failure::DeadlineExceeded => (Code::DeadlineExceeded, "DEADLINE_EXCEEDED"),
        Failure::Internal => (Code::Internal, "INTERNAL"),
    }
}

fn metadata(failure: &Failure) -> HashMap<String, String> {
    match failure {
        Failure::MissingScopes(scopes) => [("scopes".to_owned(), scopes.join(" "))].into(),
        Failure::Internal => {
            REQUEST_ID.try_with(|id| [("request_id".to_owned(), id.clone())].into()).unwrap_or_default()
        }
        _ => HashMap::new(),
    }
}

const fn retry_after(failure: &Failure) -> Option<Duration> {
    match failure {
        Failure::ProviderUnavailable { retry_after }
        | Failure::AccessTokenRejected { retry_after }
        | Failure::RateLimited { retry_after } => Some(*retry_after),
        Failure::StoreUnavailable | Failure::FlowInProgress => Some(STORE_RETRY),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_carries_its_reason_and_details() {
        let status = of(Failure::ProviderUnavailable { retry_after: Duration::from_secs(7) });
        let details = status.get_error_details();
        assert_eq!(status.code(), Code::Unavailable);
        assert_eq!(details.error_info().map(|info| info.reason.as_str()), Some("PROVIDER_UNAVAILABLE"));
        assert_eq!(details.retry_info().and_then(|info| info.retry_delay), Some(Duration::from_secs(7)));

        let status = of(Failure::MissingScopes(vec!["a".into(), "b".into()]));
        assert_eq!(
            status.get_error_details().error_info().map(|info| info.metadata["scopes"].clone()),
            Some("a b".into())
        );

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
}
