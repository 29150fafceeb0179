//! The numbers of freshness, for all lifetimes from a second to 400 days, all loads, spreads and ages.

use std::time::Duration;

use proptest::prelude::*;

use super::grant::tests::hour;
use super::grant::{Freshness, Grant, Need, Serve};
use super::policy;
use super::provider::Lifetime;
use crate::clock::Timestamp;

const NOW: Timestamp = Timestamp::from_millis(1_800_000_000_000);

/// Moments are in whole milliseconds, so spans that are added up lose less than this each.
const ROUNDING: Duration = Duration::from_millis(2);

/// Short ones as often as long ones.
fn lifetimes() -> impl Strategy<Value = Duration> {
    let longest = u64::try_from(policy::LONGEST_LIFETIME.as_millis()).unwrap();
    let millis = prop_oneof![1_000..60_000u64, 60_000..600_000u64, 600_000..86_400_000u64, 86_400_000..=longest];
    millis.prop_map(Duration::from_millis)
}

/// Also what is no number from 0 to 1.
fn shares() -> impl Strategy<Value = f64> {
    prop_oneof![8 => 0.0..=1.0, 1 => Just(0.0), 1 => Just(1.0), 1 => any::<f64>()]
}

fn min_ttls() -> impl Strategy<Value = Option<Duration>> {
    prop_oneof![
        Just(None),
        lifetimes().prop_map(Some),
        (0..5_000u64).prop_map(|millis| Some(Duration::from_millis(millis))),
        Just(Some(Duration::MAX)),
    ]
}

/// A grant whose token of this lifetime was asked for at `issued_at`.
fn grant(lifetime: Duration, issued_at: Timestamp, load: f64, spread: f64) -> Grant {
    Grant {
        freshness: Freshness {
            issued_at,
            lifetime: Lifetime::Stated(lifetime),
            due_at: Some(policy::due_at(issued_at, lifetime, load, spread)),
            keep_alive_at: None,
        },
        ..hour(0)
    }
}

proptest! {
    #[test]
    fn a_token_is_due_after_its_issue_and_before_its_floor_and_never_in_a_hot_loop(
        lifetime in lifetimes(), load in shares(), spread in shares(),
    ) {
        let due = policy::due_at(NOW, lifetime, load, spread).since(NOW);
        prop_assert!(due + ROUNDING >= lifetime / 5, "{due:?}");
        prop_assert!(due + policy::hard_margin(lifetime) <= lifetime, "{due:?}");
        prop_assert!(policy::hard_margin(lifetime) > policy::floor(lifetime));
    }

    #[test]
    fn who_asks_for_nothing_is_served_until_the_token_is_due_and_a_new_one_always_does(
        lifetime in lifetimes(), load in shares(), spread in shares(), min_ttl in min_ttls(),
    ) {
        let wanted = policy::wanted_life(lifetime, min_ttl);
        prop_assert!(wanted >= policy::floor(lifetime), "{wanted:?}");
        prop_assert!(wanted <= lifetime / 2, "{wanted:?}");
        let need = Need { min_ttl, ..Need::default() };
        prop_assert_eq!(grant(lifetime, NOW, load, spread).serve(&need, NOW), Serve::Now);
        let unset = policy::wanted_life(lifetime, None);
        prop_assert_eq!(unset, policy::hard_margin(lifetime).min(Duration::from_mins(1)));
        let due = policy::due_at(NOW, lifetime, load, spread);
        let served = grant(lifetime, NOW, load, spread).serve(&Need::default(), due.minus(Duration::from_millis(1)));
        prop_assert_eq!(served, Serve::Now);
    }

    #[test]
    fn nothing_is_served_below_its_floor_at_whatever_age(
        lifetime in lifetimes(), load in shares(), spread in shares(), min_ttl in min_ttls(), aged in 0.0..2.0f64,
        attempts in 0..3u32, waits in any::<bool>(), from_the_future in any::<bool>(),
    ) {
        let age = lifetime.mul_f64(aged);
        let issued_at = if from_the_future { NOW.plus(age) } else { NOW.minus(age) };
        let mut grant = grant(lifetime, issued_at, load, spread);
        (grant.attempts, grant.attempted_at) = (attempts, (attempts > 0).then_some(NOW));
        grant.retry_not_before = waits.then(|| NOW.plus(Duration::from_secs(9)));
        let served = grant.serve(&Need { min_ttl, ..Need::default() }, NOW);
        let left = issued_at.plus(lifetime).since(NOW);
        let stale = matches!(served, Serve::AfterRefresh { stale_will_do: true });
        if stale || matches!(served, Serve::Now | Serve::NowThenRefresh) {
            prop_assert!(left >= policy::floor(lifetime), "{left:?} of {lifetime:?}: {served:?}");
            prop_assert!(left <= lifetime + policy::CLOCK_TOLERANCE, "{left:?} of {lifetime:?}: {served:?}");
        }
        if matches!(served, Serve::Now | Serve::NowThenRefresh) {
            // With less than was asked for only if nothing was, and no refresh is to be had.
            let excused = min_ttl.is_none() && grant.wait_until(NOW).is_some();
            prop_assert!(excused || left >= policy::wanted_life(lifetime, min_ttl), "{left:?} of {lifetime:?}");
        }
        prop_assert!(grant.lives(NOW) == (left >= policy::floor(lifetime) && issued_at <= NOW.plus(policy::CLOCK_TOLERANCE)));
    }

    #[test]
    fn a_failed_attempt_is_repeated_later_and_later_and_never_at_once(
        lifetime in lifetimes(), lives in any::<bool>(), attempts in any::<u32>(), spread in shares(),
    ) {
        let first = Duration::from_secs(5).min(lifetime / 10);
        let wait = |attempts, spread| policy::retry_at(NOW, lifetime, lives, attempts, spread).since(NOW);
        let told = wait(attempts, spread);
        prop_assert!(told + ROUNDING >= first / 4, "{told:?}");
        let cap = if lives { Duration::from_mins(1) } else { Duration::from_mins(15) };
        prop_assert!(told <= cap, "{told:?}");
        prop_assert!(wait(attempts.saturating_add(1), 1.0) >= wait(attempts, 1.0));
        prop_assert_eq!(wait(u32::MAX, 1.0), cap.min(first.saturating_mul(1 << 16)));
        let waiting = policy::retry_for_waiting(lifetime);
        prop_assert!(waiting >= Duration::from_millis(500) && waiting <= Duration::from_secs(5), "{waiting:?}");
    }

    #[test]
    fn a_rejected_token_is_not_replaced_in_a_loop(lifetime in lifetimes(), aged in 0.0..1.0f64) {
        let age = lifetime.mul_f64(aged);
        let served = grant(lifetime, NOW.minus(age), 0.0, 0.0).serve_rejected(&Need::default(), NOW);
        let new = age + ROUNDING < policy::too_new(lifetime);
        prop_assert!(!new || matches!(served, Serve::Refuse(_)), "{served:?}");
        prop_assert!(!matches!(served, Serve::Now | Serve::NowThenRefresh));
        prop_assert!(policy::too_new(lifetime) >= Duration::from_secs(30).min(lifetime / 4));
    }

    #[test]
    fn a_grant_is_used_well_before_its_provider_forgets_it_and_its_end_is_told_ahead(
        idle in lifetimes(), spread in shares(),
    ) {
        let used = policy::keep_alive_at(NOW, idle, spread).since(NOW);
        prop_assert!(used + ROUNDING >= idle.mul_f64(0.6) && used <= idle.mul_f64(0.8), "{used:?}");
        let warned = NOW.plus(idle).since(policy::warn_at(NOW, idle));
        prop_assert!(warned <= Duration::from_hours(24 * 7) + ROUNDING && warned + ROUNDING >= (idle / 10).min(Duration::from_hours(24 * 7)));
    }

    #[test]
    fn a_pause_is_never_shorter_than_asked_for_and_never_long(asked in proptest::option::of(any::<u64>()), spread in shares()) {
        let asked = asked.map(Duration::from_millis);
        let paused = policy::paused_until(NOW, asked, spread).since(NOW);
        prop_assert!(paused + ROUNDING >= asked.unwrap_or(policy::LIMITED_FOR).min(policy::LONGEST_PAUSE));
        prop_assert!(paused >= Duration::from_secs(1) && paused <= policy::LONGEST_PAUSE);
    }
}
