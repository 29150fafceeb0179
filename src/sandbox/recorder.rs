//! What was asked of the sandbox, and what it answered: `GET /_sandbox/requests`. Secrets appear as fingerprints only,
//! the first 16 hex characters of their SHA-256.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use super::answer::Answer;

/// How many requests are kept if [`Settings::log_limit`](super::Settings::log_limit) does not say otherwise.
pub const KEPT_REQUESTS: usize = 100_000;

/// Longest text of a caller that is kept, in characters.
const LONGEST: usize = 128;

/// One request that was decided. A request that a fault holds back is recorded once it is decided, which may be before
/// its answer is sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Its number, from 1, in the order of decision; never used twice, also after the log was cleared.
    pub sequence: u64,
    /// When it arrived, in Unix milliseconds by the sandbox's clock.
    pub time: i64,
    /// Which endpoint.
    pub endpoint: Endpoint,
    /// The HTTP method.
    pub method: String,
    /// The `grant_type` as sent, cut at 128 characters.
    pub grant_type: Option<String>,
    /// The `client_id` as sent, cut at 128 characters; it is not proof of who called.
    pub client_id: Option<String>,
    /// The HTTP status of the answer; 0 if the connection was cut instead.
    pub status: u16,
    /// The OAuth error of the answer.
    pub error: Option<String>,
    /// Fingerprints of what the caller presented.
    pub presented: Secrets,
    /// Fingerprints of what was issued, also if a fault kept it from being told.
    pub issued: Secrets,
    /// The consent it was about: all tokens that descend from one approval share it. The same as [`Grant::id`].
    ///
    /// [`Grant::id`]: super::Grant::id
    pub family: Option<String>,
    /// The person whose grant it was about, by username.
    pub person: Option<String>,
    /// The ids of the rules it met, those before it was decided first.
    pub rules: Vec<u64>,
    /// Whether the refresh token it presented was redeemed for a successor.
    pub rotated: bool,
    /// Set if the refresh token it presented had been redeemed for a successor before.
    pub reuse: Option<Reuse>,
    /// How many refreshes of this grant were under way when it arrived, itself included; 0 if it is no refresh of a
    /// known grant. A refresh whose caller has gone away is under way no more.
    pub overlap: u32,
}

/// What it means that a refresh token came again after it had been redeemed for a successor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reuse {
    /// It still answers: [`Rotation::Grace`](super::Rotation::Grace).
    InGrace,
    /// It is dead.
    Dead,
}

/// The endpoints that are recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Endpoint {
    /// Both metadata documents.
    Discovery,
    /// `/jwks`.
    Jwks,
    /// `/authorize`: GET shows the page, POST decides.
    Authorize,
    /// `/token`.
    Token,
    /// `/revoke`.
    Revoke,
    /// `/userinfo`.
    Userinfo,
}

/// Fingerprints of codes and tokens, 16 hex characters each.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Secrets {
    /// An authorization code.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// An access token; at `/revoke` any token is shown here or as a refresh token, by what it is known as.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access_token: Option<String>,
    /// A refresh token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refresh_token: Option<String>,
}

/// The newest requests.
#[derive(Default)]
pub(super) struct Recorder(Mutex<Log>);

#[derive(Default)]
struct Log {
    last: u64,
    requests: VecDeque<Request>,
}

impl Request {
    /// A request that has arrived and is not decided.
    pub(super) fn arrived(endpoint: Endpoint, method: &str, time: i64) -> Self {
        Self {
            sequence: 0,
            time,
            endpoint,
            method: method.into(),
            grant_type: None,
            client_id: None,
            status: 0,
            error: None,
            presented: Secrets::default(),
            issued: Secrets::default(),
            family: None,
            person: None,
            rules: Vec::new(),
            rotated: false,
            reuse: None,
            overlap: 0,
        }
    }

    /// The same request with its answer.
    pub(super) fn decided(mut self, answer: &Answer) -> Self {
        self.status = answer.sent_status();
        self.error.clone_from(&answer.error);
        self.issued = answer.issued.clone();
        if answer.family.is_some() {
            self.family.clone_from(&answer.family);
        }
        self.rules.clone_from(&answer.rules);
        self.rotated = answer.rotated;
        self.reuse = answer.reuse;
        self
    }
}

impl Recorder {
    /// Adds a decided request and drops the oldest ones beyond `limit`.
    pub(super) fn add(&self, mut request: Request, limit: usize) {
        let mut log = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        log.last += 1;
        request.sequence = log.last;
        log.requests.push_back(request);
        let extra = log.requests.len().saturating_sub(limit);
        log.requests.drain(..extra);
    }

    /// The kept requests numbered above `since`, oldest first, and the number of the last one ever.
    pub(super) fn since(&self, since: u64) -> (Vec<Request>, u64) {
        let log = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let from = log.requests.partition_point(|request| request.sequence <= since);
        (log.requests.range(from..).cloned().collect(), log.last)
    }

    /// Drops all; numbers go on.
    pub(super) fn clear(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).requests.clear();
    }
}

/// Text of a caller, cut.
pub(super) fn cut(text: &str) -> String {
    text.chars().take(LONGEST).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_is_bounded_and_its_numbers_go_on() {
        let recorder = Recorder::default();
        let add = |limit| recorder.add(Request::arrived(Endpoint::Token, "POST", 0), limit);
        (0..12).for_each(|_| add(10));
        let (kept, last) = recorder.since(0);
        assert_eq!((kept.len(), kept[0].sequence, last), (10, 3, 12));
        add(2);
        assert_eq!(recorder.since(0).0.len(), 2, "a lower limit holds at once");
        recorder.clear();
        add(2);
        let last = last + 1;
        assert_eq!(recorder.since(0).0[0].sequence, last + 1);
        assert!(recorder.since(last + 1).0.is_empty());
    }
}
