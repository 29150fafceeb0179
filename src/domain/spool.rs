//! Providers' answers that are not in the store yet. What such an answer brought may be the only copy there is.

use super::ids::{AccountId, FlowId, GrantId, ProviderId};
use super::provider::TokenAnswer;
use super::user::UserId;
use crate::clock::Timestamp;

/// An answer with all that storing it takes.
#[derive(Clone, PartialEq, Eq)]
pub enum Entry {
    /// To a refresh.
    Refresh(RefreshAnswer),
    /// To a code.
    Exchange(ExchangeAnswer),
}

/// The answer to a refresh.
#[derive(Clone, PartialEq, Eq)]
pub struct RefreshAnswer {
    /// The grant.
    pub grant: GrantId,
    /// Its account.
    pub account: AccountId,
    /// That account's user.
    pub user: UserId,
    /// That account's provider.
    pub provider: ProviderId,
    /// The claim's fence: the generation of what the answer brought.
    pub fence: i64,
    /// When the request was about to be sent.
    pub sent_at: Timestamp,
    /// When the next refresh is due; `None` if never.
    pub due_at: Option<Timestamp>,
    /// When it is refreshed though nobody asks for it; `None` if never.
    pub keep_alive_at: Option<Timestamp>,
    /// What the provider said.
    pub answer: TokenAnswer,
}

/// The answer to a code.
#[derive(Clone, PartialEq, Eq)]
pub struct ExchangeAnswer {
    /// The flow whose code it was.
    pub flow: FlowId,
    /// What the provider said.
    pub answer: TokenAnswer,
}
