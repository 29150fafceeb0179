//! Misbehaviour on demand: the one place where an answer is changed before it is sent. `PUT /_sandbox/faults` replaces
//! all switches, `DELETE` clears them, `POST /_sandbox/faults/release` ends only the holds.
//!
//! ```json
//! { "exchange": {}, "refresh": { "refresh_token": "omit", "expires_in": { "raw": "\"3600\"" },
//!   "error": { "status": 400, "error": "invalid_grant", "times": 1 }, "hold": "after" },
//!   "userinfo": { "error": { "status": 503, "error": "server_error" } } }
//! ```

use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::answer::Answer;

/// All switches; the default misbehaves in no way. As JSON each field may be left out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Faults {
    /// For `/token` with `grant_type=authorization_code`.
    pub exchange: TokenFaults,
    /// For `/token` with `grant_type=refresh_token`.
    pub refresh: TokenFaults,
    /// For `/userinfo`.
    pub userinfo: UserinfoFaults,
}

/// What can be wrong at the token endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TokenFaults {
    /// Give no usable refresh token. The one that was presented is not rotated; at an exchange none is made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refresh_token: Option<RefreshTokenFault>,
    /// Tell another `expires_in`; the token lives as long as ever.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_in: Option<ExpiresInFault>,
    /// Refuse instead of doing anything.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<ErrorFault>,
    /// Make requests wait.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hold: Option<Hold>,
}

/// What can be wrong at the userinfo endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct UserinfoFaults {
    /// Refuse instead of answering.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<ErrorFault>,
    /// Make requests wait.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hold: Option<Hold>,
}

/// What stands in place of the refresh token; as JSON `"omit"`, `"empty"` or `"null"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefreshTokenFault {
    /// No field.
    Omit,
    /// `""`.
    Empty,
    /// `null`.
    Null,
}

/// What stands in place of the lifetime; as JSON `"omit"` or `{"raw": "<text>"}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExpiresInFault {
    /// No field.
    Omit,
    /// This text, put into the answer as it is: `0`, `"3600"` with its quotes, `1e400`, `null`.
    Raw(String),
}

/// An OAuth error instead of an answer. Nothing is redeemed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ErrorFault {
    /// The HTTP status; anything outside 200 to 599 counts as 500.
    pub status: u16,
    /// The error code, such as `invalid_grant`.
    pub error: String,
    /// For how many requests; left out, until it is cleared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub times: Option<u32>,
}

/// Where requests wait until the hold is released, cleared or replaced; as JSON `"before"` or `"after"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Hold {
    /// Before anything is done or recorded.
    Before,
    /// After it was done and recorded, before the answer is sent.
    After,
}

/// The operations that faults are scoped by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    Exchange,
    Refresh,
    Userinfo,
}

/// The switches of a running sandbox and how many requests wait.
#[derive(Default)]
pub(super) struct FaultBoard {
    faults: watch::Sender<Faults>,
    held: watch::Sender<usize>,
}

/// One waiting request; dropping it counts it out.
struct Waiting<'a>(&'a watch::Sender<usize>);

impl Faults {
    fn hold(&self, operation: Operation) -> Option<Hold> {
        match operation {
            Operation::Exchange => self.exchange.hold,
            Operation::Refresh => self.refresh.hold,
            Operation::Userinfo => self.userinfo.hold,
        }
    }

    fn error(&mut self, operation: Operation) -> &mut Option<ErrorFault> {
        match operation {
            Operation::Exchange => &mut self.exchange.error,
            Operation::Refresh => &mut self.refresh.error,
            Operation::Userinfo => &mut self.userinfo.error,
        }
    }

    fn token(&self, operation: Operation) -> Option<&TokenFaults> {
        match operation {
            Operation::Exchange => Some(&self.exchange),
            Operation::Refresh => Some(&self.refresh),
            Operation::Userinfo => None,
        }
    }
}

impl FaultBoard {
    /// Takes one request through its faults. `work` does what was asked, told whether to withhold a refresh token;
    /// `record` sees the answer as it will be sent.
    pub(super) async fn around(
        &self,
        operation: Operation,
        work: impl FnOnce(bool) -> Answer,
        record: impl FnOnce(&Answer),
    ) -> Answer {
        self.pass(operation, Hold::Before).await;
        let answer = if let Some(fault) = self.take_error(operation) {
            fault.answer()
        } else {
            let faults = self.faults.borrow().token(operation).cloned().unwrap_or_default();
            let mut answer = work(faults.refresh_token.is_some());
            faults.shape(&mut answer);
            answer
        };
        record(&answer);
        self.pass(operation, Hold::After).await;
        answer
    }

    pub(super) fn set(&self, faults: Faults) {
        self.faults.send_replace(faults);
    }

    pub(super) fn get(&self) -> Faults {
        self.faults.borrow().clone()
    }

    /// Lets all go that wait, and holds no more.
    pub(super) fn release(&self) {
        self.faults.send_modify(|faults| {
            faults.exchange.hold = None;
            faults.refresh.hold = None;
            faults.userinfo.hold = None;
        });
    }

    pub(super) fn held(&self) -> usize {
        *self.held.borrow()
    }

    /// Returns once at least this many requests wait.
    pub(super) async fn wait_held(&self, at_least: usize) {
        // An error would mean that the sender, which is `self`, is gone.
        let _ = self.held.subscribe().wait_for(|held| *held >= at_least).await;
    }

    async fn pass(&self, operation: Operation, place: Hold) {
        let mut faults = self.faults.subscribe();
        if faults.borrow().hold(operation) != Some(place) {
            return;
        }
        let _waiting = Waiting::enter(&self.held);
        let _ = faults.wait_for(|faults| faults.hold(operation) != Some(place)).await;
    }

    fn take_error(&self, operation: Operation) -> Option<ErrorFault> {
        let mut taken = None;
        self.faults.send_if_modified(|faults| {
            let switch = faults.error(operation);
            taken = switch.clone().filter(|fault| fault.times != Some(0));
            if let Some(times) = switch.as_mut().and_then(|fault| fault.times.as_mut()) {
                *times = times.saturating_sub(1);
                if *times == 0 {
                    *switch = None;
                }
            }
            false
        });
        taken
    }
}

impl TokenFaults {
    fn shape(&self, answer: &mut Answer) {
        if !answer.status.is_success() {
            return;
        }
        match self.refresh_token {
            None => {}
            Some(RefreshTokenFault::Omit) => answer.drop_field("refresh_token"),
            Some(RefreshTokenFault::Empty) => answer.put_raw("refresh_token", "\"\""),
            Some(RefreshTokenFault::Null) => answer.put_raw("refresh_token", "null"),
        }
        match &self.expires_in {
            None => {}
            Some(ExpiresInFault::Omit) => answer.drop_field("expires_in"),
            Some(ExpiresInFault::Raw(text)) => answer.put_raw("expires_in", text.as_str()),
        }
    }
}

impl ErrorFault {
    fn answer(self) -> Answer {
        let status = StatusCode::from_u16(self.status).ok().filter(|status| (200..600).contains(&status.as_u16()));
        Answer::error(status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), self.error)
    }
}

impl<'a> Waiting<'a> {
    fn enter(held: &'a watch::Sender<usize>) -> Self {
        held.send_modify(|held| *held += 1);
        Self(held)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|held| *held -= 1);
    }
}
