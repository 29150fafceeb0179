//! Events: what happened to accounts, grants and flows. Written in the change's own transaction.

use std::fmt::Write as _;

use super::ids::{AccountId, EventId, FlowId, GrantId, ProviderId};
use super::user::UserId;
use crate::clock::Timestamp;

/// What an event is to whoever watches over the wallet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Part of the wallet's life.
    Ordinary,
    /// Somebody may be attacking.
    Security,
}

/// Declares what can happen: each kind once, with its name in the store and on the wire, the ids that its events carry,
/// and what a watcher may do about it. Its comment is what docs/events.md says of when it happens.
macro_rules! kinds {
    ($($(#[doc = $when:literal])+ $kind:ident = $name:literal, $class:ident, $carries:literal, $then:literal;)+) => {
        /// What happened.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum EventKind {
            $($(#[doc = $when])+ $kind,)+
        }

        impl EventKind {
            /// All there are, in the order in which they are explained.
            pub const ALL: &[Self] = &[$(Self::$kind),+];

            /// Its name in the store.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$kind => $name,)+
                }
            }

            /// Whether it is worth an alarm.
            pub const fn class(self) -> Class {
                match self {
                    $(Self::$kind => Class::$class,)+
                }
            }

            /// When it happens, which ids its events carry, and what a watcher may do, as Markdown.
            const fn explained(self) -> [&'static str; 3] {
                match self {
                    $(Self::$kind => [concat!($($when),+), $carries, $then],)+
                }
            }
        }
    };
}

kinds! {
    /// A user linked a new account.
    AccountLinked = "account.linked", Ordinary, "user, account, flow", "Its tokens can be had.";
    /// A user linked an account again: it has a new grant.
    AccountRelinked = "account.relinked", Ordinary, "user, account, flow", "Its tokens can be had, also if they could not before.";
    /// A user consented again, and the account kept the grant that it had: the new one has no refresh token, or fewer scopes.
    AccountGrantKept = "account.grant_kept", Ordinary, "user, account, flow", "Nothing: its tokens can be had as before.";
    /// A refresh brought other scopes than the account's grant had.
    AccountScopesChanged = "account.scopes_changed", Ordinary, "user, account",
        "Compare with what you need; the user can grant more in a reauthorization.";
    /// An account was unlinked.
    AccountUnlinked = "account.unlinked", Ordinary, "user, account", "Stop using it; forget what was derived from it.";
    /// The provider ended an account's grant, confirmed: the user must consent again.
    AccountReauthorizationRequired = "account.reauthorization_required", Ordinary, "user, account, reason",
        "Ask the user to link the account again.";
    /// An account whose grant was taken for ended works again.
    AccountRecovered = "account.recovered", Ordinary, "user, account, reason", "Take back what you asked of the user.";
    /// A cell of an account's grant does not open.
    AccountQuarantined = "account.quarantined", Ordinary, "user, account, reason (the cell)",
        "An operator must look: a damaged store, or a wrong key.";
    /// An account's consent will soon run out by itself.
    AccountExpiresSoon = "account.expires_soon", Ordinary, "user, account", "Ask the user to link the account again, in time.";
    /// An account became its user's default at the provider (`set`), or ceased to be without a successor (`unset`).
    AccountDefaultChanged = "account.default_changed", Ordinary, "user, account, reason",
        "Nothing: a get that names no account follows the default.";
    /// The provider gave no refresh token though one was asked for.
    AccountNotRefreshable = "account.not_refreshable", Ordinary, "user, account, flow",
        "The account ends with its access token: look at the provider's scopes and at its application's settings.";
    /// The tokens of a grant that ended were taken back at the provider. The reason `in_doubt`: those that are known.
    GrantRevoked = "grant.revoked", Ordinary, "user, account, reason", "Nothing.";
    /// They could not be, for a day or for good; the reason is the last word of it.
    GrantRevocationFailed = "grant.revocation_failed", Ordinary, "user, account, reason",
        "Tell the user to end the application's access in their settings at the provider.";
    /// They were not tried: the provider takes nothing back, or would take back a newer consent with them.
    GrantNotRevoked = "grant.not_revoked", Ordinary, "user, account, reason",
        "If the account is unlinked: as for `grant.revocation_failed`.";
    /// A provider refuses our credentials, certainly; its grants wait.
    ProviderMisconfigured = "provider.misconfigured", Ordinary, "none",
        "An operator must mend client id or secret; no user can.";
    /// Security: whoever answers at a provider's address does not prove that it is the provider (TLS).
    ProviderUntrusted = "provider.untrusted", Security, "none", "An operator must look: nothing is sent there meanwhile.";
    /// A provider takes our credentials again.
    ProviderRecovered = "provider.recovered", Ordinary, "none", "Nothing: its grants are refreshed again.";
    /// Security: a flow was brought back by somebody else than its starter.
    FlowSessionMismatch = "flow.session_mismatch", Security, "user (who started it), flow",
        "The flow is burned. Often: somebody was sent another one's link.";
    /// Security: a callback came for another provider or issuer than the flow's.
    FlowProviderMismatch = "flow.provider_mismatch", Security, "user (who started it), flow",
        "The flow is burned. Often: a provider that mixes users up, or is made to.";
}

impl EventKind {
    /// The kind of this name; `None` for one of a newer program.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|kind| kind.as_str() == name)
    }
}

/// All kinds as a Markdown table. Every event has a time and a provider besides.
pub fn table() -> String {
    let mut table = "| type | when | carries | what to do |\n|---|---|---|---|\n".to_owned();
    for kind in EventKind::ALL {
        let [when, carries, then] = kind.explained();
        // Writing to a text does not fail.
        let _ = writeln!(table, "| `{}` |{when} | {carries} | {then} |", kind.as_str());
    }
    table
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
