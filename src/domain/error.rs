//! Failures: why a use case gave no answer. Each is one row of one table, from which everybody who tells of it reads:
//! `api/status.rs`, `web/page.rs`, the command line, the log, and docs/errors.md.

use std::fmt;
use std::time::Duration;

use super::reason::{Detail, Kind, Meaning, Page, Retry};

/// How soon it is worth another try where nobody knows better.
const SOON: Duration = Duration::from_secs(1);

/// Declares the failures with what they mean. A row has in this order: `sentence`, `cure`; then, where it has them,
/// `violation` (the field to blame), `metadata`, `retry` (a field that tells the time) or `retry_after` (the time), and
/// `page` (title, sentence, what next).
macro_rules! failures {
    ($(
        $(#[$doc:meta])*
        $name:ident $({ $($(#[$field_doc:meta])* $field:ident: $type:ty),+ $(,)? })? = $reason:literal $kind:ident {
            sentence: $sentence:literal,
            cure: $cure:literal,
            $(violation: $violation:expr,)?
            $(metadata: [$($detail:ident),+],)?
            $(retry: $told:ident,)?
            $(retry_after: $after:expr,)?
            $(page: ($title:literal, $page:literal, $next:literal),)?
        }
    )+) => {
        /// Why there is no answer. What callers are told is fixed for each; details go to the log.
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub enum Failure {
            $($(#[$doc])* $name $({ $($(#[$field_doc])* $field: $type),+ })?,)+
        }

        impl Failure {
            /// Every reason there is.
            pub const MEANINGS: &[Meaning] = &[$(Meaning {
                reason: $reason,
                kind: Kind::$kind,
                sentence: $sentence,
                cure: $cure,
                violation: or!($($violation)?),
                metadata: &[$($(Detail::$detail),+)?],
                retry: retry!($($told)? $(= $after)?),
                page: page!($kind $(($title, $page, $next))?),
            },)+];

            /// What it means.
            pub fn meaning(&self) -> &'static Meaning {
                &Self::MEANINGS[Row::of(self) as usize]
            }

            /// When another call may help, if it may.
            pub fn retry_after(&self) -> Option<Duration> {
                $($(if let Self::$name { $told, .. } = self {
                    return Some(*$told);
                })?)+
                match self.meaning().retry {
                    Retry::After(after) => Some(after),
                    Retry::No | Retry::Told => None,
                }
            }
        }

        #[derive(Clone, Copy)]
        enum Row {
            $($name,)+
        }

        impl Row {
            const fn of(failure: &Failure) -> Self {
                match failure {
                    $(Failure::$name { .. } => Self::$name,)+
                }
            }
        }
    };
}

macro_rules! or {
    () => {
        None
    };
    ($given:expr) => {
        Some($given)
    };
}

macro_rules! retry {
    () => {
        Retry::No
    };
    ($told:ident) => {
        Retry::Told
    };
    (= $after:expr) => {
        Retry::After($after)
    };
}

macro_rules! page {
    ($kind:ident) => {
        Kind::$kind.page()
    };
    ($kind:ident ($title:literal, $sentence:literal, $next:literal)) => {
        Page { title: $title, sentence: $sentence, next: $next }
    };
}

failures! {
    /// A field of the request cannot be used; never says its value.
    InvalidField {
        /// The field's path, such as `user_id`.
        field: &'static str,
        /// What it must be.
        why: String,
    } = "INVALID_FIELD" InvalidArgument {
        sentence: "a field of the request cannot be used",
        cure: "correct the field that BadRequest names",
    }
    /// The redirect URL is not on the allow-list.
    RedirectUrlNotAllowed = "REDIRECT_URL_NOT_ALLOWED" InvalidArgument {
        sentence: "the redirect URL is not allowed",
        cure: "allow it: CreateRedirectUrl, or `token-wallet redirect-urls create URL`",
        violation: ("redirect_url", "must be on the allow-list"),
        page: (
            "Not connected",
            "The application that sent you here may not be returned to any more.",
            "Nothing was connected. Tell the people who run the application."
        ),
    }
    /// The call carries no API key.
    CredentialsMissing = "CREDENTIALS_MISSING" Unauthenticated {
        sentence: "an API key is required",
        cure: "send `authorization: Bearer twk_…`; commands take a key by --api-key-file or TOKEN_WALLET_API_KEY",
    }
    /// The API key is malformed, unknown, wrong, expired, revoked or of another instance.
    ApiKeyInvalid = "API_KEY_INVALID" Unauthenticated {
        sentence: "the API key is not valid",
        cure: "use a live key of this deployment; `token-wallet clients create` makes one",
    }
    /// The flow was brought back by somebody else than its starter.
    FlowSessionMismatch {
        /// Whether this is told to its starter: somebody else was here before.
        stolen: bool,
    } = "FLOW_SESSION_MISMATCH" PermissionDenied {
        sentence: "the flow was started by somebody else",
        cure: "complete a flow from the session of the user it was started for; start again",
    }
    /// The user has no account at the provider.
    AccountNotLinked = "ACCOUNT_NOT_LINKED" NotFound {
        sentence: "the user has no account at this provider",
        cure: "link one: StartLink, or `token-wallet accounts link USER PROVIDER`",
        metadata: [Provider],
    }
    /// No such account.
    AccountNotFound = "ACCOUNT_NOT_FOUND" NotFound {
        sentence: "there is no such external account",
        cure: "ListExternalAccounts or `token-wallet accounts list` shows the accounts there are",
        metadata: [ExternalAccountId],
    }
    /// No such user.
    UserNotFound = "USER_NOT_FOUND" NotFound {
        sentence: "there is no such user",
        cure: "a user exists from its first account: ListUsers or `token-wallet users list` shows them",
    }
    /// No such provider.
    ProviderNotFound = "PROVIDER_NOT_FOUND" NotFound {
        sentence: "there is no such provider",
        cure: "`token-wallet providers list` shows them, `token-wallet providers create` adds one",
        metadata: [Provider],
    }
    /// No such API client.
    ApiClientNotFound = "API_CLIENT_NOT_FOUND" NotFound {
        sentence: "there is no such API client",
        cure: "`token-wallet clients list` shows them",
    }
    /// No such entry of the allow-list.
    RedirectUrlNotFound = "REDIRECT_URL_NOT_FOUND" NotFound {
        sentence: "there is no such redirect URL",
        cure: "`token-wallet redirect-urls list` shows them",
    }
    /// The slug is taken.
    ProviderExists = "PROVIDER_EXISTS" AlreadyExists {
        sentence: "a provider of this name exists",
        cure: "`token-wallet providers get PROVIDER` shows it; choose another slug, or update it",
    }
    /// Accounts use the provider.
    ProviderInUse = "PROVIDER_IN_USE" FailedPrecondition {
        sentence: "accounts are linked at this provider, or are being linked",
        cure: "`token-wallet accounts list --provider PROVIDER` shows them; a link that was begun ends by itself",
    }
    /// The provider has as many client secrets as it may have.
    TooManyProviderSecrets = "TOO_MANY_PROVIDER_SECRETS" FailedPrecondition {
        sentence: "the provider has as many client secrets as it may have; delete one that is not used any more",
        cure: "`token-wallet providers get PROVIDER` shows when each was last used",
    }
    /// The client secret is the provider's only one.
    LastProviderSecret = "LAST_PROVIDER_SECRET" FailedPrecondition {
        sentence: "the provider's last client secret cannot be deleted; add another one first",
        cure: "CreateProviderSecret, or `token-wallet providers secrets add PROVIDER`",
    }
    /// The sandbox, or shared credentials, in a production instance.
    SharedCredentialsInProduction = "SHARED_CREDENTIALS_IN_PRODUCTION" FailedPrecondition {
        sentence: "shared credentials and the sandbox are for development instances",
        cure: "configure a client of your own at the provider; try the sandbox with `token-wallet dev`",
    }
    /// The user must consent again.
    ReauthorizationRequired = "REAUTHORIZATION_REQUIRED" FailedPrecondition {
        sentence: "the user must authorize again at the provider",
        cure: "send the user to the URL in AuthorizationRequired (ask with redirect_url), StartReauthorization, or \
               `token-wallet accounts reauthorize ACCOUNT`",
        metadata: [Provider, ExternalAccountId],
    }
    /// These scopes were not granted.
    MissingScopes {
        /// Which.
        scopes: Vec<String>,
    } = "MISSING_SCOPES" FailedPrecondition {
        sentence: "the grant lacks required scopes",
        cure: "send the user to the URL in AuthorizationRequired (ask with redirect_url), StartReauthorization, or \
               `token-wallet accounts reauthorize ACCOUNT --scope SCOPE`",
        metadata: [Provider, ExternalAccountId, Scopes],
    }
    /// The token has run out and the provider gave no refresh token.
    NoRefreshToken = "NO_REFRESH_TOKEN" FailedPrecondition {
        sentence: "the token has expired and the provider gave no refresh token",
        cure: "the provider was not asked for offline access, or does not give it; many want the scope offline_access: \
               `token-wallet accounts link USER PROVIDER --scope offline_access`",
        metadata: [Provider, ExternalAccountId],
    }
    /// The provider does not accept our client credentials, or what they may ask for.
    ProviderMisconfigured = "PROVIDER_MISCONFIGURED" FailedPrecondition {
        sentence: "the provider does not accept how the wallet is configured for it",
        cure: "an operator compares client id, secret and scopes with what the provider's console shows; the wallet's \
               log has the provider's error code",
        metadata: [Provider],
        page: (
            "Not connected",
            "The provider does not accept how this service is configured.",
            "Nothing was connected. Tell the people who run the application."
        ),
    }
    /// Several accounts and none is the default.
    DefaultAccountUnset = "DEFAULT_ACCOUNT_UNSET" FailedPrecondition {
        sentence: "the user has several accounts at this provider and none is the default",
        cure: "name one (external_account_id, --account), or make one the default: UpdateExternalAccount, \
               `token-wallet accounts update ACCOUNT --default`; `token-wallet accounts list --user USER` shows them",
        metadata: [Provider],
    }
    /// The flow ran out of time.
    FlowExpired = "FLOW_EXPIRED" FailedPrecondition {
        sentence: "the flow has expired; start again",
        cure: "start again; complete a flow as soon as the browser is back, within the minute that a ticket lives",
    }
    /// The person said no, or the provider did.
    FlowCancelled = "FLOW_CANCELLED" FailedPrecondition {
        sentence: "the authorization was not given",
        cure: "start again if the user wants to",
        page: (
            "Not connected",
            "The authorization was not given. Nothing was connected.",
            "If you did not mean that, go back to the application and start again."
        ),
    }
    /// The code cannot be sent again, and no token is known to have come of it.
    FlowOutcomeUnknown = "FLOW_OUTCOME_UNKNOWN" FailedPrecondition {
        sentence: "the provider gave no usable answer to the code, which cannot be sent again; start again",
        cure: "start again; if it happens again, compare the token URL in `token-wallet providers get PROVIDER` with \
               the provider's documentation; the wallet's log says what came of the request",
    }
    /// The ticket is unknown or its outcome is told no more.
    TicketSpent = "TICKET_SPENT" FailedPrecondition {
        sentence: "the ticket is unknown or spent",
        cure: "start again; a ticket is good once, and its outcome is told to the same caller for 10 minutes",
    }
    /// The `request_id` was used for another request.
    RequestIdReused = "REQUEST_ID_REUSED" FailedPrecondition {
        sentence: "the request_id was used with another request",
        cure: "make a new request_id for each new request, and repeat one only with the very same request",
    }
    /// The `request_id` was answered, and the answer is told no more.
    RequestAnswerGone = "REQUEST_ANSWER_GONE" FailedPrecondition {
        sentence: "the call with this request_id was answered, and its answer is told no more",
        cure: "nothing was made twice; make a new request_id to begin anew. A flow's URL is told again until its browser \
               is back, its 10 minutes are over or its user is deleted, an API key for 15 minutes",
    }
    /// The account belongs to another user.
    AccountLinkedToAnotherUser = "ACCOUNT_LINKED_TO_ANOTHER_USER" AlreadyExists {
        sentence: "the account is linked to another user",
        cure: "the user chooses another account at the provider, or the other user's is unlinked first",
        page: (
            "Not connected",
            "That account is connected already, by another user.",
            "Go back to the application and start again with another account."
        ),
    }
    /// The user chose another account than the one to reauthorize.
    AccountMismatch = "ACCOUNT_MISMATCH" FailedPrecondition {
        sentence: "the user authorized another account than the one to reauthorize; nothing was changed",
        cure: "start again, and have the user choose the account; StartLink adds the other one as an account of its own",
    }
    /// The user has as many open flows at the provider as may be.
    TooManyFlows {
        /// When the first of them ends.
        retry_after: Duration,
    } = "RATE_LIMITED" ResourceExhausted {
        sentence: "too many flows of this user are open at this provider",
        cure: "finish one of them, or try again after the time that RetryInfo says",
        retry: retry_after,
    }
    /// What was to be changed is not any more as the caller saw it.
    Conflict = "CONFLICT" Aborted {
        sentence: "it was changed since it was read",
        cure: "read it again, and send the new etag if the change is still wanted",
    }
    /// The provider cannot be reached or asks to wait.
    ProviderUnavailable {
        /// When another call may help.
        retry_after: Duration,
    } = "PROVIDER_UNAVAILABLE" Unavailable {
        sentence: "the provider is not available",
        cure: "try again after the time that RetryInfo says; nobody needs to authorize again",
        metadata: [Provider],
        retry: retry_after,
    }
    /// The provider does not take the access token at hand, says the caller, and there is no other yet.
    AccessTokenRejected {
        /// When another call may help.
        retry_after: Duration,
    } = "ACCESS_TOKEN_REJECTED" Unavailable {
        sentence: "the access token was rejected and there is no newer one yet",
        cure: "try again after the time that RetryInfo says",
        metadata: [Provider, ExternalAccountId],
        retry: retry_after,
    }
    /// The store cannot be reached or written.
    StoreUnavailable = "STORE_UNAVAILABLE" Unavailable {
        sentence: "the store is not available",
        cure: "try again after the time that RetryInfo says; an operator looks at the database",
        retry_after: SOON,
    }
    /// Another call is completing the flow.
    FlowInProgress = "FLOW_IN_PROGRESS" Unavailable {
        sentence: "the flow is being completed",
        cure: "make the same call again after the time that RetryInfo says: it tells the outcome",
        retry_after: SOON,
    }
    /// Another call with this `request_id` is under way.
    RequestInProgress = "REQUEST_IN_PROGRESS" Unavailable {
        sentence: "another call with this request_id is under way",
        cure: "make the same call again after the time that RetryInfo says: it gets that call's answer",
        retry_after: SOON,
    }
    /// A stored token does not open.
    GrantQuarantined = "GRANT_QUARANTINED" DataLoss {
        sentence: "the stored grant cannot be opened; an operator must look",
        cure: "the wallet's log names the cell; an operator checks with `token-wallet keys status`; linking again \
               replaces the grant",
        metadata: [Provider, ExternalAccountId],
    }
    /// What the cursor asks for was removed for its age.
    EventsGone = "EVENTS_GONE" FailedPrecondition {
        sentence: "the events after the cursor are not kept any more",
        cure: "list again without a cursor, and compare with ListExternalAccounts; `token-wallet events list` shows what \
               is kept",
    }
    /// The process has as many watchers as it may have.
    TooManyWatchers = "TOO_MANY_WATCHERS" ResourceExhausted {
        sentence: "this replica has as many watchers as it may have",
        cure: "watch once for many readers, or at another replica; try again after the time that RetryInfo says",
        retry_after: SOON,
    }
    /// The call took longer than it may.
    DeadlineExceeded = "DEADLINE_EXCEEDED" DeadlineExceeded {
        sentence: "the deadline has passed",
        cure: "try again; what was begun goes on, so that a repeated call is often answered at once",
    }
    /// A fault of ours. What it was stands in the log.
    Internal = "INTERNAL" Internal {
        sentence: "internal error",
        cure: "the wallet's log says what happened, under the request's id",
        metadata: [RequestId],
    }
}

impl Failure {
    /// A request field that cannot be used.
    pub fn field(field: &'static str, why: impl fmt::Display) -> Self {
        Self::InvalidField { field, why: format!("{why}") }
    }

    /// The field to blame and what it must be, if the request cannot be right.
    pub fn violation(&self) -> Option<(&'static str, &str)> {
        match self {
            Self::InvalidField { field, why } => Some((field, why)),
            other => other.meaning().violation,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InvalidField { field, why } => write!(f, "{field} {why}"),
            Self::FlowSessionMismatch { stolen: true } => {
                f.write_str("somebody else brought this flow back, so nothing was linked; start again")
            }
            other => f.write_str(other.meaning().sentence),
        }
    }
}

impl std::error::Error for Failure {}

impl Meaning {
    /// The meaning of a reason, if this program knows it.
    pub fn of(reason: &str) -> Option<&'static Self> {
        Failure::MEANINGS.iter().find(|meaning| meaning.reason == reason)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn a_failure_has_the_meaning_of_its_row() {
        let waits = Failure::AccessTokenRejected { retry_after: Duration::from_secs(7) };
        assert_eq!(
            (waits.meaning().reason, waits.retry_after()),
            ("ACCESS_TOKEN_REJECTED", Some(Duration::from_secs(7)))
        );
        assert_eq!(Failure::FlowInProgress.retry_after(), Some(SOON));
        assert_eq!(Failure::Internal.meaning().reason, "INTERNAL");
        assert_eq!(Failure::Internal.retry_after(), None);
        assert_eq!(Failure::field("user_id", "must not be empty").to_string(), "user_id must not be empty");
        assert_eq!(Failure::RedirectUrlNotAllowed.violation(), Some(("redirect_url", "must be on the allow-list")));
    }

    #[test]
    fn every_reason_is_one_and_has_what_its_kind_needs() {
        let mut reasons = HashSet::new();
        for meaning in Failure::MEANINGS {
            assert!(reasons.insert(meaning.reason), "{} stands twice", meaning.reason);
            assert_eq!(Meaning::of(meaning.reason), Some(meaning));
            let screaming = meaning.reason.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_');
            assert!(screaming, "{}", meaning.reason);
            // Waiting helps where something is not there for now, and nowhere else.
            let passes = matches!(meaning.kind, Kind::Unavailable | Kind::ResourceExhausted);
            assert_eq!(passes, meaning.retry != Retry::No, "{}", meaning.reason);
            let blames = meaning.violation.is_some() || meaning.reason == "INVALID_FIELD";
            assert_eq!(meaning.kind == Kind::InvalidArgument, blames, "{}", meaning.reason);
            for text in [meaning.sentence, meaning.cure] {
                assert!(!text.is_empty() && !text.contains(['|', '\n']) && !text.ends_with('.'), "{text}");
            }
        }
    }
}
