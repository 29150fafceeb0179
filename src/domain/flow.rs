//! Flows: one authorization in progress, from the first URL to the outcome.

use std::collections::BTreeMap;
use std::time::Duration;

use super::error::Failure;
use super::ids::{AccountId, ApiClientId, FlowId, ProviderId};
use super::redirect::RedirectUrl;
use super::scopes::Scopes;
use super::user::UserId;
use crate::clock::Timestamp;

/// How long a person has between the first URL and the callback.
pub const FLOW_LIFE: Duration = Duration::from_mins(10);

/// How long a ticket lives at most; shorter where the provider's code does.
pub const TICKET_LIFE: Duration = Duration::from_mins(1);

/// How many flows a user may have open at a provider.
pub const MOST_OPEN: u32 = 5;

/// How long the outcome is told again to the same caller.
pub const OUTCOME_LIFE: Duration = Duration::from_mins(10);

/// Where a flow stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FlowState {
    /// The browser was sent to the provider.
    Started,
    /// The provider sent it back with a code, which nobody has redeemed yet.
    Returned,
    /// The code is being redeemed: it is sent once.
    Claimed,
    /// The provider's answer is parked; the account is not there yet.
    Exchanged,
    /// Ended well.
    Done(Outcome),
    /// Ended otherwise.
    Failed(FlowFailure),
}

/// What a flow that ended well led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The account.
    pub account: AccountId,
    /// False if the user had linked it before.
    pub created: bool,
    /// Whether the account kept the grant that it had, because that is the better one.
    pub kept: bool,
}

/// Why a flow ended without an account.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlowFailure {
    /// The person said no (RFC 6749 section 4.1.2.1: `access_denied`).
    Cancelled,
    /// The provider came back with another error, or with neither code nor error, or with both.
    ProviderError,
    /// The callback belonged to another provider or issuer (RFC 9700 section 4.4).
    ProviderMismatch,
    /// It ran out of time.
    Expired,
    /// It was brought back by somebody else than its starter.
    SessionMismatch,
    /// The provider did not accept the code.
    CodeRefused,
    /// The provider did not accept us.
    Misconfigured,
    /// The code was sent and no answer is known.
    OutcomeUnknown,
    /// The account belongs to another user.
    LinkedToAnotherUser,
    /// The person chose another account than the one to reauthorize.
    AccountMismatch,
    /// The account to reauthorize was unlinked meanwhile.
    AccountUnlinked,
    /// Its redirect URL was taken off the allow-list.
    RedirectUrlNotAllowed,
    /// Its user was deleted meanwhile.
    UserDeleted,
}

impl FlowFailure {
    const ALL: [Self; 13] = [
        Self::Cancelled,
        Self::ProviderError,
        Self::ProviderMismatch,
        Self::Expired,
        Self::SessionMismatch,
        Self::CodeRefused,
        Self::Misconfigured,
        Self::OutcomeUnknown,
        Self::LinkedToAnotherUser,
        Self::AccountMismatch,
        Self::AccountUnlinked,
        Self::RedirectUrlNotAllowed,
        Self::UserDeleted,
    ];

    /// Its name in the store, in events, and in the `error` parameter that the app gets.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Cancelled => "cancelled",
            Self::ProviderError => "provider_error",
            Self::ProviderMismatch => "provider_mismatch",
            Self::Expired => "expired",
            Self::SessionMismatch => "session_mismatch",
            Self::CodeRefused => "code_refused",
            Self::Misconfigured => "misconfigured",
            Self::OutcomeUnknown => "outcome_unknown",
            Self::LinkedToAnotherUser => "linked_to_another_user",
            Self::AccountMismatch => "account_mismatch",
            Self::AccountUnlinked => "account_unlinked",
            Self::RedirectUrlNotAllowed => "redirect_url_not_allowed",
            Self::UserDeleted => "user_deleted",
        }
    }

    /// Reads its name.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|failure| failure.as_str() == text)
    }
}

impl From<FlowFailure> for Failure {
    /// What the flow's starter is told.
    fn from(failure: FlowFailure) -> Self {
        match failure {
            FlowFailure::Cancelled | FlowFailure::ProviderError => Self::FlowCancelled,
            FlowFailure::ProviderMismatch | FlowFailure::SessionMismatch => Self::FlowSessionMismatch { stolen: true },
            FlowFailure::Expired | FlowFailure::CodeRefused => Self::FlowExpired,
            FlowFailure::Misconfigured => Self::ProviderMisconfigured,
            FlowFailure::OutcomeUnknown => Self::FlowOutcomeUnknown,
            FlowFailure::LinkedToAnotherUser => Self::AccountLinkedToAnotherUser,
            FlowFailure::AccountMismatch => Self::AccountMismatch,
            FlowFailure::AccountUnlinked => Self::AccountNotFound,
            FlowFailure::RedirectUrlNotAllowed => Self::RedirectUrlNotAllowed,
            FlowFailure::UserDeleted => Self::UserNotFound,
        }
    }
}

/// A flow without its secrets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flow {
    /// Its id.
    pub id: FlowId,
    /// Where it stands.
    pub state: FlowState,
    /// Who started it.
    pub client: ApiClientId,
    /// For whom.
    pub user: UserId,
    /// At which provider.
    pub provider: ProviderId,
    /// Where it ends; `None` is the wallet's own page (development only).
    pub redirect_url: Option<RedirectUrl>,
    /// The redirect URI that the provider was given; the exchange must repeat it (RFC 6749 section 4.1.3).
    pub redirect_uri: String,
    /// What was asked for.
    pub scopes: Scopes,
    /// The account whose grant it renews; `None`: whichever account the person chooses.
    pub reauthorizes: Option<AccountId>,
    /// The per-user parts of the provider's URLs.
    pub params: BTreeMap<String, String>,
    /// When it was started.
    pub created_at: Timestamp,
    /// When it fails by itself: first the flow's end, then the ticket's.
    pub expires_at: Timestamp,
    /// When it ended, one way or the other.
    pub ended_at: Option<Timestamp>,
}

/// What a Complete call finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Completion {
    /// The code may be redeemed.
    Redeem,
    /// Redeemed before; the deposit may be finished.
    Finish,
    /// Another call is at it.
    InProgress,
    /// It ended well, a moment ago.
    Done(Outcome),
    /// It ended otherwise.
    Failed(FlowFailure),
    /// It must be failed with this first: somebody else brought the ticket, or it is late.
    Burn(FlowFailure),
    /// Somebody else asks for the outcome: told nothing, nothing to burn.
    NotTheirs,
    /// The outcome is told no more.
    Forgotten,
}

impl Flow {
    /// What `client`, on behalf of `user`, may do with this flow's ticket at `now`.
    pub fn completion(&self, client: ApiClientId, user: &UserId, now: Timestamp) -> Completion {
        let theirs = self.client == client && self.user == *user;
        match self.state {
            FlowState::Returned if !theirs => Completion::Burn(FlowFailure::SessionMismatch),
            FlowState::Returned if self.expires_at <= now => Completion::Burn(FlowFailure::Expired),
            FlowState::Returned => Completion::Redeem,
            _ if !theirs => Completion::NotTheirs,
            FlowState::Started | FlowState::Claimed => Completion::InProgress,
            FlowState::Exchanged => Completion::Finish,
            FlowState::Done(_) if self.forgotten(now) => Completion::Forgotten,
            FlowState::Done(outcome) => Completion::Done(outcome),
            FlowState::Failed(failure) => Completion::Failed(failure),
        }
    }

    /// Whether the callback may still move it on.
    pub fn awaits_callback(&self, now: Timestamp) -> bool {
        self.state == FlowState::Started && self.expires_at > now
    }

    fn forgotten(&self, now: Timestamp) -> bool {
        self.ended_at.is_some_and(|ended_at| ended_at.plus(OUTCOME_LIFE) <= now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_millis(1_000_000_000);

    fn flow(state: FlowState) -> Flow {
        Flow {
            id: FlowId::new(NOW),
            state,
            client: ApiClientId::new(NOW),
            user: UserId::parse("alice").unwrap(),
            provider: ProviderId::new(NOW),
            redirect_url: None,
            redirect_uri: "https://wallet.example.com/oauth/callback/sandbox".into(),
            scopes: Scopes::default(),
            reauthorizes: None,
            params: BTreeMap::new(),
            created_at: NOW,
            expires_at: NOW.plus(TICKET_LIFE),
            ended_at: Some(NOW),
        }
    }

    #[test]
    fn only_the_starter_redeems_and_only_in_time() {
        let flow = flow(FlowState::Returned);
        let (alice, mallory) = (flow.user.clone(), UserId::parse("mallory").unwrap());
        assert_eq!(flow.completion(flow.client, &alice, NOW), Completion::Redeem);
        assert_eq!(flow.completion(flow.client, &mallory, NOW), Completion::Burn(FlowFailure::SessionMismatch));
        let other = ApiClientId::new(NOW);
        assert_eq!(flow.completion(other, &alice, NOW), Completion::Burn(FlowFailure::SessionMismatch));
        let late = NOW.plus(TICKET_LIFE);
        assert_eq!(flow.completion(flow.client, &alice, late), Completion::Burn(FlowFailure::Expired));
    }

    #[test]
    fn the_outcome_is_told_again_for_ten_minutes_to_its_owner_alone() {
        let outcome = Outcome { account: AccountId::new(NOW), created: true, kept: false };
        let flow = flow(FlowState::Done(outcome));
        let mallory = UserId::parse("mallory").unwrap();
        assert_eq!(flow.completion(flow.client, &flow.user, NOW), Completion::Done(outcome));
        assert_eq!(flow.completion(flow.client, &mallory, NOW), Completion::NotTheirs);
        assert_eq!(flow.completion(flow.client, &flow.user, NOW.plus(OUTCOME_LIFE)), Completion::Forgotten);
    }

    #[test]
    fn a_code_is_never_redeemed_twice() {
        for state in [FlowState::Claimed, FlowState::Exchanged, FlowState::Failed(FlowFailure::Cancelled)] {
            let flow = flow(state);
            assert_ne!(flow.completion(flow.client, &flow.user, NOW), Completion::Redeem);
        }
    }
}
