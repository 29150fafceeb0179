//! Events: what happened to accounts, grants and flows. Written in the change's own transaction.

use super::ids::{AccountId, EventId, FlowId, GrantId, ProviderId};
use super::user::UserId;
use crate::clock::Timestamp;

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// A user linked a new account.
    AccountLinked,
    /// A user linked an account again: it has a new grant.
    AccountRelinked,
    /// An account was unlinked.
    AccountUnlinked,
    /// The provider ended an account's grant, confirmed: the user must consent again.
    AccountReauthorizationRequired,
    /// An account whose grant was taken for ended works again.
    AccountRecovered,
    /// A cell of an account's grant does not open.
    AccountQuarantined,
    /// An account's consent will soon run out by itself.
    AccountExpiresSoon,
    /// An account became its user's default at the provider, or ceased to be.
    AccountDefaultChanged,
    /// The provider gave no refresh token though one was asked for.
    AccountNotRefreshable,
    /// A provider refuses our credentials, certainly; its grants wait.
    ProviderMisconfigured,
    /// Security: whoever answers at a provider's address does not prove that it is the provider (TLS).
    ProviderUntrusted,
    /// A provider takes our credentials again.
    ProviderRecovered,
    /// Security: a flow was brought back by somebody else than its starter.
    FlowSessionMismatch,
    /// Security: a callback came for another provider or issuer than the flow's.
    FlowProviderMismatch,
}

impl EventKind {
    /// Its name in the store.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::AccountLinked => "account.linked",
            Self::AccountRelinked => "account.relinked",
            Self::AccountUnlinked => "account.unlinked",
            Self::AccountReauthorizationRequired => "account.reauthorization_required",
            Self::AccountRecovered => "account.recovered",
            Self::AccountQuarantined => "account.quarantined",
            Self::AccountExpiresSoon => "account.expires_soon",
            Self::AccountDefaultChanged => "account.default_changed",
            Self::AccountNotRefreshable => "account.not_refreshable",
            Self::ProviderMisconfigured => "provider.misconfigured",
            Self::ProviderUntrusted => "provider.untrusted",
            Self::ProviderRecovered => "provider.recovered",
            Self::FlowSessionMismatch => "flow.session_mismatch",
            Self::FlowProviderMismatch => "flow.provider_mismatch",
        }
    }
}

/// One event. It names rows and never holds a secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Its id.
    pub id: EventId,
    /// When it happened.
    pub at: Timestamp,
    /// What happened.
    pub kind: EventKind,
    /// To whom; `None` where it concerns a provider and nobody in particular.
    pub user: Option<UserId>,
    /// At which provider.
    pub provider: ProviderId,
    /// To which account, if there is one.
    pub account: Option<AccountId>,
    /// To which grant, if there is one.
    pub grant: Option<GrantId>,
    /// In which flow, if in one.
    pub flow: Option<FlowId>,
    /// Why: a fixed word or a provider's error code, at most 64 bytes.
    pub reason: Option<String>,
}

impl Event {
    /// An event that names nothing yet but whom and where.
    pub fn new(kind: EventKind, at: Timestamp, user: UserId, provider: ProviderId) -> Self {
        Self { user: Some(user), ..Self::of_provider(kind, at, provider) }
    }

    /// An event that concerns a provider and nobody in particular.
    pub fn of_provider(kind: EventKind, at: Timestamp, provider: ProviderId) -> Self {
        Self {
            id: EventId::new(at),
            at,
            kind,
            user: None,
            provider,
            account: None,
            grant: None,
            flow: None,
            reason: None,
        }
    }

    /// Names the account.
    #[must_use]
    pub fn account(self, account: AccountId) -> Self {
        Self { account: Some(account), ..self }
    }

    /// Names the grant.
    #[must_use]
    pub fn grant(self, grant: GrantId) -> Self {
        Self { grant: Some(grant), ..self }
    }

    /// Names the flow.
    #[must_use]
    pub fn flow(self, flow: FlowId) -> Self {
        Self { flow: Some(flow), ..self }
    }

    /// Says why.
    #[must_use]
    pub fn because(self, reason: &str) -> Self {
        let reason = reason.chars().filter(char::is_ascii_graphic).take(64).collect();
        Self { reason: Some(reason), ..self }
    }
}
