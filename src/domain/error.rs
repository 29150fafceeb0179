//! Failures: why a use case gave no answer. One meaning gives the gRPC code, the HTTP status and the log level.

use std::time::Duration;

/// Why there is no answer. What callers are told is fixed for each; details go to the log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// A field of the request cannot be used; never says its value.
    #[error("{field} {why}")]
    InvalidField {
        /// The field's path, such as `user_id`.
        field: &'static str,
        /// What it must be.
        why: String,
    },
    /// The redirect URL is not on the allow-list.
    #[error("the redirect URL is not allowed")]
    RedirectUrlNotAllowed,
    /// The call carries no API key.
    #[error("an API key is required")]
    CredentialsMissing,
    /// The API key is malformed, unknown, wrong, expired, revoked or of another instance.
    #[error("the API key is not valid")]
    ApiKeyInvalid,
    /// The ticket was brought by somebody else than the flow's starter.
    #[error("the flow was started by somebody else")]
    FlowSessionMismatch,
    /// Somebody else brought the flow back before its starter did: it is burned.
    #[error("somebody else brought this flow back, so nothing was linked; start again")]
    FlowStolen,
    /// The user has no account at the provider.
    #[error("the user has no account at this provider")]
    AccountNotLinked,
    /// No such account.
    #[error("there is no such external account")]
    AccountNotFound,
    /// No such provider.
    #[error("there is no such provider")]
    ProviderNotFound,
    /// No such API client.
    #[error("there is no such API client")]
    ApiClientNotFound,
    /// No such entry of the allow-list.
    #[error("there is no such redirect URL")]
    RedirectUrlNotFound,
    /// The slug is taken.
    #[error("a provider of this name exists")]
    ProviderExists,
    /// Accounts use the provider.
    #[error("accounts are linked at this provider, or are being linked")]
    ProviderInUse,
    /// The provider has as many client secrets as it may have.
    #[error("the provider has as many client secrets as it may have; delete one that is not used any more")]
    TooManyProviderSecrets,
    /// The client secret is the provider's only one.
    #[error("the provider's last client secret cannot be deleted; add another one first")]
    LastProviderSecret,
    /// The sandbox, or shared credentials, in a production instance.
    #[error("shared credentials and the sandbox are for development instances")]
    SharedCredentialsInProduction,
    /// The user must consent again.
    #[error("the user must authorize again at the provider")]
    ReauthorizationRequired,
    /// These scopes were not granted.
    #[error("the grant lacks required scopes")]
    MissingScopes(Vec<String>),
    /// The token has run out and the provider gave no refresh token.
    #[error("the token has expired and the provider gave no refresh token")]
    NoRefreshToken,
    /// The provider does not accept our client credentials, or what they may ask for.
    #[error("the provider does not accept how the wallet is configured for it")]
    ProviderMisconfigured,
    /// Several accounts and none is the default.
    #[error("the user has several accounts at this provider and none is the default")]
    DefaultAccountUnset,
    /// The flow ran out of time.
    #[error("the flow has expired; start again")]
    FlowExpired,
    /// The person said no, or the provider did.
    #[error("the authorization was not given")]
    FlowCancelled,
    /// The code cannot be sent again, and no token is known to have come of it.
    #[error("the provider gave no usable answer to the code, which cannot be sent again; start again")]
    FlowOutcomeUnknown,
    /// The ticket is unknown or its outcome is told no more.
    #[error("the ticket is unknown or spent")]
    TicketSpent,
    /// The account belongs to another user.
    #[error("the account is linked to another user")]
    AccountLinkedToAnotherUser,
    /// The user chose another account than the one to reauthorize.
    #[error("the user authorized another account than the one to reauthorize; nothing was changed")]
    AccountMismatch,
    /// The caller asks for more than it may.
    #[error("too many requests; try again later")]
    RateLimited {
        /// When another call may help.
        retry_after: Duration,
    },
    /// The provider cannot be reached or asks to wait.
    #[error("the provider is not available")]
    ProviderUnavailable {
        /// When another call may help.
        retry_after: Duration,
    },
    /// The provider does not take the access token at hand, says the caller, and there is no other yet.
    #[error("the access token was rejected and there is no newer one yet")]
    AccessTokenRejected {
        /// When another call may help.
        retry_after: Duration,
    },
    /// The store cannot be reached or written.
    #[error("the store is not available")]
    StoreUnavailable,
    /// Another call is completing the flow.
    #[error("the flow is being completed")]
    FlowInProgress,
    /// A stored token does not open.
    #[error("the stored grant cannot be opened; an operator must look")]
    GrantQuarantined,
    /// The call took longer than it may.
    #[error("the deadline has passed")]
    DeadlineExceeded,
    /// A fault of ours. What it was stands in the log.
    #[error("internal error")]
    Internal,
}

impl Failure {
    /// A request field that cannot be used.
    pub fn field(field: &'static str, why: impl std::fmt::Display) -> Self {
        Self::InvalidField { field, why: format!("{why}") }
    }
}
