//! The numbers of freshness: when a token is due, how much life an answer must have, when to try again. All pure.
//!
//! `L` is a token's lifetime, counted from before the request for it was sent.

use std::time::Duration;

use crate::clock::Timestamp;

/// Lifetimes are cut to this: a provider that says more means "very long".
pub const LONGEST_LIFETIME: Duration = Duration::from_hours(24 * 400);

/// What a token without a stated lifetime is taken to live.
pub const ASSUMED_LIFETIME: Duration = Duration::from_hours(1);

/// Tokens that live shorter than this are refreshed ahead only while somebody asks for them.
pub const SHORT_LIFETIME: Duration = Duration::from_mins(2);

/// As good as for ever, and far from where arithmetic stops.
const ALWAYS: Duration = Duration::from_hours(24 * 365 * 100);

/// How far a stored time may lie on the wrong side of now before the clock is taken to be at fault.
pub const CLOCK_TOLERANCE: Duration = Duration::from_secs(5);

/// How long a claim keeps others from redeeming the same grant.
pub const LEASE: Duration = Duration::from_secs(20);

/// While a provider refuses our credentials: how long after one try the next one is made, by any replica.
pub const PROBE_EVERY: Duration = Duration::from_mins(1);

/// How long a provider that limits us is left alone, if it does not say.
pub const LIMITED_FOR: Duration = Duration::from_secs(30);

/// No provider makes us wait longer than this.
pub const LONGEST_PAUSE: Duration = Duration::from_mins(15);

/// While a provider refuses too many grants at once none is ended, until this long after the last wave.
pub const FREEZE: Duration = Duration::from_mins(30);

/// How long deleted rows are kept, so that a repeated deletion succeeds and one can look into it.
pub const KEEP_DELETED: Duration = Duration::from_hours(24 * 30);

/// For how long after a grant's end its revocation is tried.
pub const REVOKE_FOR: Duration = Duration::from_hours(24);

/// The bound of the first wait between two tries of a revocation.
const FIRST_REVOKE_RETRY: Duration = Duration::from_secs(5);

/// The bound of all later ones.
pub const LONGEST_REVOKE_RETRY: Duration = Duration::from_hours(1);

/// How long after its claim a revocation's request may be under way, and nobody else makes one.
pub const REVOKE_LEASE: Duration = Duration::from_secs(20);

/// How long after a first refusal the provider is asked to confirm it.
const CONFIRM_AFTER: Duration = Duration::from_mins(1);

/// The same, once the access token is dead.
const CONFIRM_AFTER_DEATH: Duration = Duration::from_secs(5);

/// No clock that is about right has written a time of a claim, or of a sign of life, that lies further ahead than this.
/// Generous: whoever takes a running lease for a mistake sends beside its holder.
pub fn latest_written(now: Timestamp) -> Timestamp {
    now.plus(Duration::from_mins(15))
}

/// Until when a provider that limits us (429) is sent nothing: what it asked for, never less, and up to half of that
/// more by `spread` in 0..=1, since others were told to come back at the same moment.
pub fn paused_until(now: Timestamp, asked: Option<Duration>, spread: f64) -> Timestamp {
    let asked = asked.unwrap_or(LIMITED_FOR).clamp(Duration::from_secs(1), LONGEST_PAUSE);
    now.plus((asked + asked.mul_f64(unit(spread) / 2.0)).min(LONGEST_PAUSE))
}

/// The latest moment that a clock which is about right names when it means "in `span` at most". What lies further ahead
/// was written by one that is wrong.
pub fn latest(now: Timestamp, span: Duration) -> Timestamp {
    now.plus(span + span / 2)
}

/// The floor F: no token with less life left is ever handed out.
pub fn floor(lifetime: Duration) -> Duration {
    Duration::from_secs(30).min(lifetime / 3)
}

/// The hard margin H: a refresh is due at least this long before the end.
pub fn hard_margin(lifetime: Duration) -> Duration {
    let wanted = (floor(lifetime) + Duration::from_secs(10)).max(lifetime / 10);
    Duration::from_mins(5).min(wanted).min(lifetime / 2)
}

/// When a token issued at `issued_at` is due for its refresh. `spread` in 0..=1 spreads grants that were issued
/// together; `load` in 0..=1 widens the spread when many are due at once.
pub fn due_at(issued_at: Timestamp, lifetime: Duration, load: f64, spread: f64) -> Timestamp {
    let margin = hard_margin(lifetime);
    let quiet = lifetime.mul_f64(0.15);
    let busy = lifetime.saturating_sub(margin).mul_f64(0.6);
    let window = quiet + busy.saturating_sub(quiet).mul_f64(unit(load));
    issued_at.plus(lifetime.saturating_sub(margin).saturating_sub(window.mul_f64(unit(spread))))
}

/// The least life an answer must have: what the caller asked for, up to half of what is issued; unasked, a minute or
/// the hard margin, as best effort.
pub fn wanted_life(lifetime: Duration, min_ttl: Option<Duration>) -> Duration {
    match min_ttl {
        Some(asked) => asked.min(lifetime / 2).max(floor(lifetime)),
        None => Duration::from_mins(1).min(hard_margin(lifetime)),
    }
}

/// When the `attempts`-th attempt in a row that failed transiently may be repeated by the sweep: full jitter below a
/// doubling bound, capped by a minute while the token lives and by 15 minutes after.
pub fn retry_at(now: Timestamp, lifetime: Duration, lives: bool, attempts: u32, spread: f64) -> Timestamp {
    let cap = if lives { Duration::from_mins(1) } else { Duration::from_mins(15) };
    let first = first_retry(lifetime);
    let bound = first.saturating_mul(1 << attempts.saturating_sub(1).min(16)).min(cap);
    // Never at once: a provider that is down must not be asked in a loop.
    now.plus(bound.mul_f64(unit(spread)).max(first / 4))
}

/// How soon after a failed attempt a waiting caller may cause the next one.
pub fn retry_for_waiting(lifetime: Duration) -> Duration {
    Duration::from_secs(5).min(lifetime / 2)
}

/// When a first refusal is put to the provider again: after a minute, or five seconds after the token's death.
pub fn confirm_at(now: Timestamp, expires_at: Option<Timestamp>) -> Timestamp {
    let soon = now.plus(CONFIRM_AFTER);
    expires_at.map_or(soon, |end| soon.min(now.max(end).plus(CONFIRM_AFTER_DEATH)))
}

/// How long after a get its grant is refreshed ahead: `ahead` for ordinary tokens (0 = always), ten lifetimes for
/// short ones.
pub fn ahead_for(lifetime: Option<Duration>, ahead: Duration) -> Duration {
    match lifetime {
        Some(lifetime) if lifetime < SHORT_LIFETIME => lifetime * 10,
        _ if ahead.is_zero() => ALWAYS,
        _ => ahead,
    }
}

/// When a revocation that failed for the `attempts`-th time is tried again: full jitter below a bound that doubles, not
/// before a quarter of it, and no later than the last try, [`REVOKE_FOR`] after the grant's end.
pub fn revoke_again_at(now: Timestamp, ending_at: Timestamp, attempts: u32, spread: f64) -> Timestamp {
    let bound = FIRST_REVOKE_RETRY.saturating_mul(1 << attempts.saturating_sub(1).min(16)).min(LONGEST_REVOKE_RETRY);
    let last = ending_at.plus(REVOKE_FOR);
    let again = now.plus(bound.mul_f64(unit(spread)).max(bound / 4));
    if now < last { again.min(last) } else { again }
}

/// A token younger than this is not refreshed because somebody wants a longer life or reports it as rejected.
pub fn too_new(lifetime: Duration) -> Duration {
    Duration::from_secs(30).min(lifetime / 4)
}

/// When a refresh token that was last used at `used_at`, and is forgotten after `idle` without use, is used again
/// though nobody asks: after 60 to 80 % of that, spread.
pub fn keep_alive_at(used_at: Timestamp, idle: Duration, spread: f64) -> Timestamp {
    used_at.plus(idle.mul_f64(0.2f64.mul_add(-unit(spread), 0.8)))
}

/// When to warn that a consent given at `given_at` runs out after `life`: a week ahead, or a tenth of its life.
pub fn warn_at(given_at: Timestamp, life: Duration) -> Timestamp {
    given_at.plus(life.saturating_sub(Duration::from_hours(24 * 7).min(life / 10)))
}

fn first_retry(lifetime: Duration) -> Duration {
    Duration::from_secs(5).min(lifetime / 10)
}

fn unit(value: f64) -> f64 {
    if value.is_finite() { value.clamp(0.0, 1.0) } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    #[test]
    fn p9_a_provider_that_limits_us_is_left_alone_as_long_as_it_asked_and_never_for_ever() {
        let now = Timestamp::from_millis(0);
        for (asked, spread, paused) in [
            (None, 0.0, secs(30)),
            (None, 1.0, secs(45)),
            (Some(secs(60)), 0.0, secs(60)),
            (Some(secs(60)), 0.5, secs(75)),
            (Some(Duration::ZERO), 0.0, secs(1)),
            (Some(Duration::MAX), 1.0, secs(900)),
            (Some(secs(899)), 1.0, secs(900)),
        ] {
            assert_eq!(paused_until(now, asked, spread), now.plus(paused), "{asked:?} {spread}");
        }
    }

    #[test]
    fn the_margins_of_usual_lifetimes() {
        for (lifetime, floor_is, margin_is) in [
            (secs(1), Duration::from_micros(333_333), Duration::from_millis(500)),
            (secs(20), Duration::from_nanos(6_666_666_666), secs(10)),
            (secs(60), secs(20), secs(30)),
            (secs(300), secs(30), secs(40)),
            (secs(3_600), secs(30), secs(300)),
            (secs(86_400), secs(30), secs(300)),
        ] {
            assert!(floor(lifetime).abs_diff(floor_is) < Duration::from_micros(1), "floor of {lifetime:?}");
            assert_eq!(hard_margin(lifetime), margin_is, "margin of {lifetime:?}");
        }
    }

    #[test]
    fn an_hours_token_is_due_between_minute_46_and_55_when_quiet() {
        let at = |load, spread| due_at(Timestamp::from_millis(0), secs(3_600), load, spread).millis() / 60_000;
        assert_eq!((at(0.0, 1.0), at(0.0, 0.0)), (46, 55));
        assert_eq!((at(1.0, 1.0), at(f64::NAN, f64::NAN)), (22, 55));
    }

    #[test]
    fn for_all_lifetimes_a_token_is_due_after_issue_and_never_in_a_hot_loop() {
        let lifetimes = (1..=300).chain((1..=400).map(|days| days * 86_400)).chain([3_599, 3_600, 7_200]);
        for lifetime in lifetimes.map(secs) {
            for load in [0.0, 0.3, 1.0] {
                for spread in [0.0, 0.5, 1.0] {
                    let due =
                        due_at(Timestamp::from_millis(0), lifetime, load, spread).since(Timestamp::from_millis(0));
                    assert!(due >= lifetime / 5, "{lifetime:?} is due after {due:?}");
                    assert!(
                        lifetime.checked_sub(due).unwrap() > floor(lifetime),
                        "{lifetime:?} is due below its floor"
                    );
                }
            }
            assert!(wanted_life(lifetime, None) >= floor(lifetime));
            assert!(wanted_life(lifetime, Some(Duration::MAX)) <= lifetime / 2);
            assert!(wanted_life(lifetime, Some(Duration::ZERO)) >= floor(lifetime));
        }
    }

    #[test]
    fn retries_wait_longer_and_longer_up_to_a_cap() {
        let wait = |lives, attempts, spread| {
            retry_at(Timestamp::from_millis(0), secs(3_600), lives, attempts, spread).since(Timestamp::from_millis(0))
        };
        assert_eq!(wait(true, 1, 1.0), secs(5));
        assert_eq!(wait(true, 3, 1.0), secs(20));
        assert_eq!(wait(true, u32::MAX, 1.0), secs(60));
        assert_eq!(wait(false, u32::MAX, 1.0), secs(900));
        assert!(wait(true, 9, 0.0) >= secs(1));
    }

    #[test]
    fn short_tokens_are_kept_ahead_for_ten_lives_and_zero_means_always() {
        let fortnight = Duration::from_hours(24 * 14);
        assert_eq!(ahead_for(Some(secs(20)), fortnight), secs(200));
        assert_eq!(ahead_for(Some(secs(3_600)), fortnight), fortnight);
        assert_eq!(ahead_for(None, fortnight), fortnight);
        assert!(ahead_for(Some(secs(3_600)), Duration::ZERO) > Duration::from_hours(24 * 365 * 50));
        assert_eq!(ahead_for(Some(secs(20)), Duration::ZERO), secs(200));
    }

    #[test]
    fn a_refusal_is_confirmed_sooner_once_the_token_is_dead() {
        let now = Timestamp::from_millis(100_000);
        let confirm = |end: i64| confirm_at(now, Some(Timestamp::from_millis(end))).since(now);
        assert_eq!(confirm(900_000), secs(60));
        assert_eq!(confirm(110_000), secs(15));
        assert_eq!(confirm(50_000), secs(5));
        assert_eq!(confirm_at(now, None).since(now), secs(60));
    }
}
