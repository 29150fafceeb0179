//! Single fields: read strictly, never echoed.

use std::str::FromStr;
use std::time::Duration;

use crate::clock::Timestamp;
use crate::domain::error::Failure;
use crate::domain::provider::Slug;
use crate::domain::scopes::Scopes;
use crate::domain::user::UserId;

/// A required user.
pub(in crate::api) fn user(text: String) -> Result<UserId, Failure> {
    UserId::parse(text).map_err(|why| Failure::field("user_id", why))
}

/// A required provider.
pub(in crate::api) fn provider(text: String) -> Result<Slug, Failure> {
    Slug::parse(text).map_err(|why| Failure::field("provider", why))
}

/// A required id.
pub(in crate::api) fn id<T: FromStr<Err: std::fmt::Display>>(field: &'static str, text: &str) -> Result<T, Failure> {
    text.parse().map_err(|why: T::Err| Failure::field(field, why))
}

/// An id that may be unset.
pub(in crate::api) fn optional_id<T: FromStr<Err: std::fmt::Display>>(
    field: &'static str,
    text: &str,
) -> Result<Option<T>, Failure> {
    if text.is_empty() { Ok(None) } else { id(field, text).map(Some) }
}

/// A text that may be unset.
pub(in crate::api) fn optional(text: String) -> Option<String> {
    if text.is_empty() { None } else { Some(text) }
}

/// The revision that an etag names, if there is one. What is no revision of ours was never an etag of ours.
pub(in crate::api) fn revision(etag: String) -> Result<Option<i64>, Failure> {
    optional(etag).map(|etag| etag.parse().map_err(|_| Failure::Conflict)).transpose()
}

/// A list of scopes, at most 100.
pub(in crate::api) fn scopes(field: &'static str, scopes: Vec<String>) -> Result<Scopes, Failure> {
    if scopes.len() > 100 {
        return Err(Failure::field(field, "must be at most 100 scopes"));
    }
    Scopes::parse(scopes).map_err(|why| Failure::field(field, why))
}

/// A count that must not be negative.
pub(in crate::api) fn count(field: &'static str, count: i32) -> Result<u32, Failure> {
    u32::try_from(count).map_err(|_| Failure::field(field, "must not be negative"))
}

/// A duration that may be unset and must not be negative. What is too long to count is the longest there is.
pub(in crate::api) fn duration(
    field: &'static str,
    duration: Option<prost_types::Duration>,
) -> Result<Option<Duration>, Failure> {
    let Some(duration) = duration else { return Ok(None) };
    let whole = u64::try_from(duration.seconds).ok();
    let rest = u32::try_from(duration.nanos).ok().filter(|nanos| *nanos < 1_000_000_000);
    match (whole, rest) {
        (Some(seconds), Some(nanos)) => Ok(Some(Duration::new(seconds, nanos))),
        _ => Err(Failure::field(field, "must be a duration that is not negative")),
    }
}

/// A moment on the wire.
pub(in crate::api) fn moment(at: Timestamp) -> prost_types::Timestamp {
    let nanos = i32::try_from(at.millis().rem_euclid(1000) * 1_000_000).unwrap_or(0);
    prost_types::Timestamp { seconds: at.millis().div_euclid(1000), nanos }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_without_overflow() {
        let read = |seconds, nanos| duration("min_ttl", Some(prost_types::Duration { seconds, nanos }));
        assert_eq!(read(5, 500_000_000), Ok(Some(Duration::from_millis(5_500))));
        assert!(read(i64::MAX, 999_999_999).is_ok());
        for (seconds, nanos) in [(-1, 0), (0, -1), (i64::MIN, 0), (1, 1_000_000_000)] {
            assert!(read(seconds, nanos).is_err());
        }
        assert_eq!(duration("min_ttl", None), Ok(None));
    }

    #[test]
    fn moments_keep_their_milliseconds_before_the_epoch_too() {
        assert_eq!(moment(Timestamp::from_millis(1_500)), prost_types::Timestamp { seconds: 1, nanos: 500_000_000 });
        assert_eq!(moment(Timestamp::from_millis(-1)), prost_types::Timestamp { seconds: -1, nanos: 999_000_000 });
    }
}
