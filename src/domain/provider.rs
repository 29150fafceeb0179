//! What providers say: token answers, profiles, verdicts.

use std::collections::BTreeMap;
use std::time::Duration;

use super::ids::GrantId;
use super::policy;
use super::scopes::Scopes;
use super::secret::{AccessToken, RefreshToken};
use crate::clock::Timestamp;

/// A provider's name in every call: 1 to 63 lower-case letters, digits, `-` and `_`, beginning with a letter.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slug(String);

/// The text is not a slug.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be 1 to 63 lower-case letters, digits, - and _, beginning with a letter")]
pub struct SlugError;

impl Slug {
    /// Checks and takes over a slug.
    pub fn parse(text: impl Into<String>) -> Result<Self, SlugError> {
        let text = text.into();
        let rest_is_fine = text.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_'));
        let starts_with_letter = text.as_bytes().first().is_some_and(u8::is_ascii_lowercase);
        if rest_is_fine && starts_with_letter && text.len() <= 63 { Ok(Self(text)) } else { Err(SlugError) }
    }

    /// The slug as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::str::FromStr for Slug {
    type Err = SlugError;

    fn from_str(text: &str) -> Result<Self, SlugError> {
        Self::parse(text)
    }
}

impl std::fmt::Display for Slug {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a provider may be sent, by all replicas together. Unset: the default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Requests a second, at least 1.
    pub requests_per_second: Option<u32>,
    /// Requests in flight, at least 1.
    pub max_in_flight: Option<u32>,
}

impl Limits {
    /// Requests a second, if nobody says.
    pub const REQUESTS_PER_SECOND: u32 = 50;
    /// Requests in flight, if nobody says.
    pub const MAX_IN_FLIGHT: u32 = 16;

    /// Requests a second.
    pub fn requests_per_second(self) -> u32 {
        self.requests_per_second.unwrap_or(Self::REQUESTS_PER_SECOND)
    }

    /// Requests in flight.
    pub fn max_in_flight(self) -> u32 {
        self.max_in_flight.unwrap_or(Self::MAX_IN_FLIGHT)
    }
}

/// How we stand with a provider. All replicas read it from its row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// It asked (429) to be sent nothing before.
    pub paused_until: Option<Timestamp>,
    /// Since when it refuses our credentials, certainly.
    pub misconfigured_at: Option<Timestamp>,
    /// While it does: when one request may try them again; `None` is now.
    pub probe_at: Option<Timestamp>,
    /// The latest grant whose refresh blamed our credentials, if none has succeeded since.
    pub blamed_by: Option<GrantId>,
    /// Too many grants were refused at once: until then none is ended.
    pub frozen_until: Option<Timestamp>,
}

/// How a provider fares, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// Nothing is known against it.
    Ok,
    /// It asked to be sent nothing for a while.
    Paused,
    /// It refuses our credentials.
    Misconfigured,
    /// It refused too many grants at once; none is ended for now.
    Frozen,
}

impl Standing {
    /// How the provider fares; of several troubles the one that an operator must see first.
    pub fn health(&self, now: Timestamp) -> Health {
        let lasts = |until: Option<Timestamp>| until.is_some_and(|until| now < until);
        if self.misconfigured_at.is_some() {
            Health::Misconfigured
        } else if lasts(self.frozen_until) {
            Health::Frozen
        } else if lasts(self.paused_until) {
            Health::Paused
        } else {
            Health::Ok
        }
    }

    /// Without what only a replica whose clock is far ahead can have written: a pause that no provider may ask for, a
    /// try of our credentials that comes too late. Such a freeze stays: the clock that is wrong may be our own, and none
    /// may end a grant.
    #[must_use]
    pub fn credible(self, now: Timestamp) -> Self {
        let within = |at: Option<Timestamp>, span| at.filter(|at| *at <= policy::latest(now, span));
        Self {
            paused_until: within(self.paused_until, policy::LONGEST_PAUSE),
            probe_at: within(self.probe_at, policy::PROBE_EVERY),
            ..self
        }
    }

    /// Whether a success is news: something blames our credentials.
    pub const fn is_blamed(&self) -> bool {
        self.misconfigured_at.is_some() || self.blamed_by.is_some()
    }
}

/// How long an access token lives, from what the provider said and the catalog knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lifetime {
    /// Said by the provider, or known from the catalog.
    Stated(Duration),
    /// Nobody said; taken to be [`policy::ASSUMED_LIFETIME`].
    Assumed(Duration),
    /// It does not expire.
    Endless,
}

impl Lifetime {
    /// Reads an `expires_in` of seconds (RFC 6749 section 5.1) as providers write it: a number, a float, a text.
    /// What is missing, not above zero or not a number falls back to the catalog's `usual` lifetime, else to the
    /// assumed one: a token that is dead on arrival is not something a provider means.
    pub fn read(expires_in: Option<&serde_json::Value>, usual: Option<Self>) -> Self {
        let seconds = match expires_in {
            Some(serde_json::Value::Number(number)) => number.as_f64(),
            Some(serde_json::Value::String(text)) => text.trim().parse().ok(),
            _ => None,
        };
        match seconds {
            Some(seconds) if seconds.is_finite() && seconds >= 1.0 => {
                Self::Stated(Duration::from_secs_f64(seconds.trunc().min(policy::LONGEST_LIFETIME.as_secs_f64())))
            }
            _ => usual.unwrap_or(Self::Assumed(policy::ASSUMED_LIFETIME)),
        }
    }

    /// The span, unless it is endless.
    pub const fn span(self) -> Option<Duration> {
        match self {
            Self::Stated(span) | Self::Assumed(span) => Some(span),
            Self::Endless => None,
        }
    }
}

/// A token endpoint's answer (RFC 6749 section 5.1), after the catalog's reading rules.
#[derive(Clone, PartialEq, Eq)]
pub struct TokenAnswer {
    /// The new access token.
    pub access_token: AccessToken,
    /// The new refresh token; `None` means that the one at hand stays (section 6).
    pub refresh_token: Option<RefreshToken>,
    /// How to send the access token, normally `Bearer`.
    pub token_type: String,
    /// How long it lives, counted from before the request was sent.
    pub lifetime: Lifetime,
    /// What was granted; `None` means as asked for (section 5.1).
    pub scopes: Option<Scopes>,
    /// What an API call needs besides the token, by the provider's names. Never secret.
    pub metadata: BTreeMap<String, String>,
}

/// Who an account belongs to, as its provider tells it.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Profile {
    /// The provider's own id of the account: stable, unique there, at most 255 bytes.
    pub subject: String,
    /// A name for people.
    pub name: Option<String>,
    /// The login name.
    pub username: Option<String>,
    /// The e-mail address, verified or not.
    pub email: Option<String>,
    /// A picture's URL.
    pub avatar_url: Option<String>,
}

/// What a request to a provider came to, if not to an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The provider refuses this grant, code or token, with this error code (RFC 6749 section 5.2: `invalid_grant`).
    Refused(String),
    /// The provider refuses us, with this error code (`invalid_client` and friends): the grant is not at fault.
    Misconfigured(String),
    /// Not now: an outage, a request that was never sent, or an error that says nothing of the grant. `after` is what the
    /// provider asked to wait.
    Later {
        /// The provider's Retry-After.
        after: Option<Duration>,
        /// It said why, in an error code, and does not call it an outage: whatever is wrong, it works.
        answered: bool,
    },
    /// The provider limits us (429): whatever it is asked, by whichever replica, it wants to be left alone for a while.
    Limited {
        /// The provider's Retry-After.
        after: Option<Duration>,
    },
    /// An outage whose answer does not say whether the provider acted first. `after` is what it asked to wait.
    Unclear {
        /// The provider's Retry-After.
        after: Option<Duration>,
    },
    /// Nothing was sent: whoever took the connection did not prove that it is the provider (TLS).
    Untrusted,
    /// Sent, and no readable answer came back: the provider may or may not have acted.
    Unknown,
}

impl Verdict {
    /// Its name in metrics, logs and events.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Refused(_) => "refused",
            Self::Misconfigured(_) => "misconfigured",
            Self::Later { .. } => "later",
            Self::Limited { .. } => "limited",
            Self::Unclear { .. } => "unclear",
            Self::Untrusted => "untrusted",
            Self::Unknown => "unknown",
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_spelling_of_a_lifetime_is_read() {
        let stated = |secs| Lifetime::Stated(Duration::from_secs(secs));
        let assumed = Lifetime::Assumed(Duration::from_hours(1));
        for (said, meant) in [
            (json!(3600), stated(3_600)),
            (json!("3600"), stated(3_600)),
            (json!(" 90 "), stated(90)),
            (json!(59.9), stated(59)),
            (json!("59.9"), stated(59)),
            (json!(1), stated(1)),
            (json!(0), assumed),
            (json!(0.4), assumed),
            (json!(-5), assumed),
            (json!("soon"), assumed),
            (json!("NaN"), assumed),
            (json!("inf"), assumed),
            (json!(null), assumed),
            (json!([3600]), assumed),
            (json!(1_000_000_000_000_000_000_u64), stated(400 * 86_400)),
            (json!("1e18"), stated(400 * 86_400)),
        ] {
            assert_eq!(Lifetime::read(Some(&said), None), meant, "{said}");
        }
        assert_eq!(Lifetime::read(None, None), assumed);
        assert_eq!(Lifetime::read(Some(&json!(0)), Some(Lifetime::Endless)), Lifetime::Endless);
    }

    #[test]
    fn of_several_troubles_the_worst_is_shown_and_none_outlasts_its_time() {
        let at = |secs: i64| Some(Timestamp::from_millis(secs * 1000));
        let now = Timestamp::from_millis(10_000);
        let standing = |misconfigured_at, frozen_until, paused_until| Standing {
            paused_until,
            misconfigured_at,
            frozen_until,
            ..Standing::default()
        };
        for (standing, health) in [
            (standing(None, None, None), Health::Ok),
            (standing(None, at(10), at(10)), Health::Ok),
            (standing(None, None, at(11)), Health::Paused),
            (standing(None, at(11), at(11)), Health::Frozen),
            (standing(at(1), at(11), at(11)), Health::Misconfigured),
        ] {
            assert_eq!(standing.health(now), health, "{standing:?}");
        }
    }

    #[test]
    fn s9_what_only_a_clock_far_ahead_can_have_written_does_not_count() {
        let now = Timestamp::from_millis(1_000_000);
        let standing = |secs: u64| Standing {
            paused_until: Some(now.plus(Duration::from_secs(secs))),
            probe_at: Some(now.plus(Duration::from_secs(secs))),
            frozen_until: Some(now.plus(Duration::from_secs(secs))),
            misconfigured_at: Some(now),
            ..Standing::default()
        };
        for (secs, paused, probe) in
            [(60, true, true), (90, true, true), (91, true, false), (1_350, true, false), (1_351, false, false)]
        {
            let written = standing(secs);
            let credible = written.credible(now);
            assert_eq!((credible.paused_until.is_some(), credible.probe_at.is_some()), (paused, probe), "{secs}");
            let (paused_until, probe_at) = (written.paused_until, written.probe_at);
            assert_eq!(Standing { paused_until, probe_at, ..credible }, written);
        }
    }

    #[test]
    fn a_slug_is_short_and_plain() {
        assert!(Slug::parse("github_app-2").is_ok());
        for bad in ["", "2fa", "-a", "GitHub", "a b", "a/b", &"a".repeat(64)] {
            assert_eq!(Slug::parse(bad), Err(SlugError), "{bad}");
        }
    }
}
