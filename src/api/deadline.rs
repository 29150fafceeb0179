//! How long a call may take.

use std::time::Duration;

use http::HeaderMap;

/// The longest that any unary call may take.
const LONGEST: Duration = Duration::from_secs(10);

/// The caller's own limit (`grpc-timeout`) or ours, whichever ends first. We answer a little before the caller's
/// patience ends, so that it hears why; a limit that cannot be read counts as none.
pub(super) fn of(headers: &HeaderMap) -> Duration {
    let asked = headers.get("grpc-timeout").and_then(|value| value.to_str().ok()).and_then(read);
    asked.map_or(LONGEST, |asked| asked.saturating_sub((asked / 10).min(Duration::from_millis(10))).min(LONGEST))
}

/// At most eight digits and a unit, as the gRPC protocol has it.
fn read(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let value: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(value * 3_600)),
        "M" => Some(Duration::from_secs(value * 60)),
        "S" => Some(Duration::from_secs(value)),
        "m" => Some(Duration::from_millis(value)),
        "u" => Some(Duration::from_micros(value)),
        "n" => Some(Duration::from_nanos(value)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_callers_limit_is_kept_and_ours_is_the_longest() {
        let limit = |value: &str| {
            of(&[(http::HeaderName::from_static("grpc-timeout"), value.parse().unwrap())].into_iter().collect())
        };
        assert_eq!(limit("50m"), Duration::from_millis(45));
        assert_eq!(limit("2S"), Duration::from_millis(1_990));
        assert_eq!(limit("1H"), LONGEST);
        for unreadable in ["", "S", "5", "-5S", "123456789S", "5x", "ü"] {
            assert_eq!(
                unreadable.parse::<http::HeaderValue>().map_or(LONGEST, |_| limit(unreadable)),
                LONGEST,
                "{unreadable}"
            );
        }
        assert_eq!(of(&HeaderMap::new()), LONGEST);
    }
}
