//! What was asked of the sandbox, and what it answered: `GET /_sandbox/requests`. Secrets appear as fingerprints only,
//! the first 16 hex characters of their SHA-256.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use super::answer::Answer;

/// How many requests are kept; older ones are dropped.
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
    /// The HTTP status of the answer.
    pub status: u16,
    /// The OAuth error of the answer.
    pub error: Option<String>,
    /// Fingerprints of what the caller presented.
    pub presented: Secrets,
    /// Fingerprints of what was issued.
    pub issued: Secrets,
    /// The consent it was about: all tokens that descend from one approval share it.
    pub family: Option<String>,
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
        }
    }

    /// The same request with its answer.
    pub(super) fn decided(mut self, answer: &Answer) -> Self {
        self.status = answer.status.as_u16();
        self.error.clone_from(&answer.error);
        self.issued = answer.issued.clone();
        if answer.family.is_some() {
            self.family.clone_from(&answer.family);
        }
        self
    }
}

impl Recorder {
    /// Adds a decided request.
    pub(super) fn add(&self, mut request: Request) {
        let mut log = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        log.last += 1;
        request.sequence = log.last;
        if log.requests.len() == KEPT_REQUESTS {
            log.requests.pop_front();
        }
        log.requests.push_back(request);
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
        for _ in 0..KEPT_REQUESTS + 2 {
            recorder.add(Request::arrived(Endpoint::Token, "POST", 0));
        }
        let (kept, last) = recorder.since(0);
        assert_eq!((kept.len(), kept[0].sequence, last), (KEPT_REQUESTS, 3, KEPT_REQUESTS as u64 + 2));
        recorder.clear();
        recorder.add(Request::arrived(Endpoint::Token, "POST", 0));
        assert_eq!(recorder.since(0).0[0].sequence, last + 1);
        assert!(recorder.since(last + 1).0.is_empty());
    }
}
