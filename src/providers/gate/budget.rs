//! The budget: how many requests a provider is sent a second, and how many at once. Whole numbers, so that a wait ends
//! at a known millisecond.

use crate::clock::Timestamp;
use crate::domain::provider::Limits;

/// A request in the parts that buckets count: a rate of r fills 10 r parts a millisecond, and any tenth of it whole
/// parts too.
const REQUEST: u64 = 10_000;

/// Of ten parts of the rate, how many background work gets: the rest is kept for callers who wait.
const BACKGROUND_TENTHS: u64 = 7;

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Urgency {
    /// Nobody waits for this revocation, and it may take a day. At most 70 % of the rate and 30 % of the places.
    Revocation,
    /// Nobody waits for this refresh: the sweep. With the revocations at most 70 % of the rate and of the places.
    Background,
    /// Callers wait for this refresh. Together with the background at most 85 % of the places: refreshes of a provider
    /// that hangs would take all of them, and no user could be linked there any more.
    Waiting,
    /// A person waits: a code's exchange, a profile. All places.
    Link,
}

/// What this replica may send a provider: its share of the limits, at least one of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Share {
    per_second: u64,
    in_flight: u64,
}

/// Why there is no budget now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Spent {
    /// The rate is used up until then.
    Rate(Timestamp),
    /// All places are taken, until a request ends.
    Places,
}

/// What is left of one provider's budget.
#[derive(Debug)]
pub(super) struct Budget {
    all: Bucket,
    background: Bucket,
    /// In flight, by urgency.
    in_flight: [u64; 4],
}

/// Fills at a rate, holds a second's worth.
#[derive(Debug)]
struct Bucket {
    parts: u64,
    at: Timestamp,
}

impl Urgency {
    /// All of them, the most patient first.
    const ALL: [Self; 4] = [Self::Revocation, Self::Background, Self::Waiting, Self::Link];

    /// Whether nobody waits.
    const fn is_patient(self) -> bool {
        matches!(self, Self::Revocation | Self::Background)
    }

    /// How many of `most` places this urgency and the more patient ones may take together.
    fn places(self, most: u64) -> u64 {
        let percent = match self {
            Self::Revocation => 30,
            Self::Background => 70,
            Self::Waiting => 85,
            Self::Link => 100,
        };
        (most * percent / 100).max(1)
    }
}

impl Share {
    /// Of `limits`, for one of `replicas`.
    pub(super) fn of(limits: Limits, replicas: u32) -> Self {
        let share = |all: u32| u64::from((all / replicas.max(1)).max(1));
        Self { per_second: share(limits.requests_per_second()), in_flight: share(limits.max_in_flight()) }
    }

    /// Parts that fill each millisecond: of all, and of what the background gets.
    const fn rates(self) -> (u64, u64) {
        (self.per_second * 10, self.per_second * BACKGROUND_TENTHS)
    }
}

impl Budget {
    /// All of it.
    pub(super) const fn new(now: Timestamp) -> Self {
        Self { all: Bucket::full(now), background: Bucket::full(now), in_flight: [0; 4] }
    }

    /// Takes one request's worth, if it is there.
    pub(super) fn take(&mut self, share: Share, urgency: Urgency, now: Timestamp) -> Result<(), Spent> {
        let mut taken = 0;
        for (patient, in_flight) in Urgency::ALL.into_iter().zip(self.in_flight) {
            taken += in_flight;
            if patient as usize >= urgency as usize && taken >= patient.places(share.in_flight) {
                return Err(Spent::Places);
            }
        }
        let (all, background) = share.rates();
        self.all.fill(all, now);
        self.background.fill(background, now);
        let mut ready = self.all.ready(all);
        if urgency.is_patient() {
            ready = ready.max(self.background.ready(background));
        }
        if now < ready {
            return Err(Spent::Rate(ready));
        }
        self.all.parts -= REQUEST;
        if urgency.is_patient() {
            self.background.parts -= REQUEST;
        }
        self.in_flight[urgency as usize] += 1;
        Ok(())
    }

    /// A request ended; one that was never sent gives back what it took.
    pub(super) fn end(&mut self, urgency: Urgency, sent: bool) {
        self.in_flight[urgency as usize] -= 1;
        if sent {
            return;
        }
        // What is too much runs over at the next filling.
        self.all.parts += REQUEST;
        if urgency.is_patient() {
            self.background.parts += REQUEST;
        }
    }
}

impl Bucket {
    /// Full, at whatever rate it will be filled.
    const fn full(now: Timestamp) -> Self {
        Self { parts: u64::MAX / 2, at: now }
    }

    fn fill(&mut self, rate: u64, now: Timestamp) {
        let millis = u64::try_from(now.since(self.at).as_millis()).unwrap_or(u64::MAX);
        let most = (rate * 1000).max(REQUEST);
        self.parts = self.parts.saturating_add(rate.saturating_mul(millis)).min(most);
        self.at = self.at.max(now);
    }

    /// When it holds a request's worth.
    fn ready(&self, rate: u64) -> Timestamp {
        let missing = REQUEST.saturating_sub(self.parts);
        self.at.plus(std::time::Duration::from_millis(missing.div_ceil(rate)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_millis(5_000);

    fn share(per_second: u64, in_flight: u64) -> Share {
        Share { per_second, in_flight }
    }

    fn after(millis: i64) -> Timestamp {
        Timestamp::from_millis(NOW.millis() + millis)
    }

    /// How many requests are let through at `now`, each ended at once.
    fn burst(budget: &mut Budget, share: Share, urgency: Urgency, now: Timestamp) -> u64 {
        let mut count = 0;
        while budget.take(share, urgency, now).is_ok() {
            budget.end(urgency, true);
            count += 1;
        }
        count
    }

    #[test]
    fn a_share_is_at_least_one_of_each() {
        let limits = |rate, places| Limits { requests_per_second: rate, max_in_flight: places };
        for (limits, replicas, expected) in [
            (limits(None, None), 1, share(50, 16)),
            (limits(None, None), 3, share(16, 5)),
            (limits(None, None), 0, share(50, 16)),
            (limits(Some(2), Some(1)), 3, share(1, 1)),
            (limits(Some(100), Some(40)), 4, share(25, 10)),
        ] {
            assert_eq!(Share::of(limits, replicas), expected);
        }
    }

    #[test]
    fn a_second_lets_a_second_s_worth_through_and_the_background_seven_tenths_of_it() {
        for (rate, urgency, expected) in [
            (50, Urgency::Link, 50),
            (50, Urgency::Waiting, 50),
            (50, Urgency::Background, 35),
            (10, Urgency::Background, 7),
            (1, Urgency::Waiting, 1),
            (1, Urgency::Background, 1),
        ] {
            let (mut budget, share) = (Budget::new(NOW), share(rate, 16));
            assert_eq!(burst(&mut budget, share, urgency, NOW), expected, "{rate} {urgency:?}");
            let next = budget.take(share, urgency, NOW);
            assert!(matches!(next, Err(Spent::Rate(at)) if at > NOW), "{next:?}");
            // However long it was quiet: a second's worth, no more.
            assert_eq!(burst(&mut budget, share, urgency, after(86_400_000)), expected, "{rate} {urgency:?}");
        }
    }

    #[test]
    fn the_rate_holds_over_ten_seconds_and_what_the_background_leaves_is_there_for_others() {
        let (mut budget, share) = (Budget::new(NOW), share(50, 16));
        let (mut background, mut waiting) = (0, 0);
        for millis in 0..=10_000 {
            background += burst(&mut budget, share, Urgency::Background, after(millis));
            waiting += burst(&mut budget, share, Urgency::Waiting, after(millis));
        }
        assert_eq!((background, background + waiting), (35 * 11, 50 * 11));
    }

    #[test]
    fn a_wait_ends_at_the_millisecond_it_was_told() {
        for rate in [1, 3, 7, 50, 999] {
            let (mut budget, share) = (Budget::new(NOW), share(rate, 16));
            for urgency in [Urgency::Background, Urgency::Waiting] {
                burst(&mut budget, share, urgency, NOW);
                let Err(Spent::Rate(at)) = budget.take(share, urgency, NOW) else { panic!("{rate}") };
                let before = Timestamp::from_millis(at.millis() - 1);
                assert_eq!(budget.take(share, urgency, before), Err(Spent::Rate(at)));
                assert_eq!(budget.take(share, urgency, at), Ok(()));
                budget.end(urgency, false);
            }
        }
    }

    #[test]
    fn places_are_kept_for_the_less_patient() {
        use Urgency::{Background, Link, Waiting};
        // (places, who comes in turn, and how many of each get in)
        for (most, turns) in [
            (16, &[(Background, 11), (Waiting, 2), (Link, 3)][..]),
            (16, &[(Waiting, 13), (Background, 0), (Link, 3)]),
            (16, &[(Link, 16), (Waiting, 0), (Background, 0)]),
            (10, &[(Background, 7), (Waiting, 1), (Link, 2)]),
            (2, &[(Background, 1), (Waiting, 0), (Link, 1)]),
            (1, &[(Background, 1), (Waiting, 0), (Link, 0)]),
            (1, &[(Link, 1), (Background, 0)]),
        ] {
            let (mut budget, share) = (Budget::new(NOW), share(1_000, most));
            for (urgency, gets_in) in turns {
                let count = std::iter::from_fn(|| budget.take(share, *urgency, NOW).ok()).count();
                assert_eq!(count, *gets_in, "{most} {turns:?}");
                assert_eq!(budget.take(share, *urgency, NOW), Err(Spent::Places));
            }
        }
    }

    #[test]
    fn what_was_not_sent_costs_nothing() {
        let (mut budget, share) = (Budget::new(NOW), share(10, 16));
        for urgency in [Urgency::Background, Urgency::Waiting] {
            for _ in 0..100 {
                assert_eq!(budget.take(share, urgency, NOW), Ok(()));
                budget.end(urgency, false);
            }
        }
        assert_eq!(burst(&mut budget, share, Urgency::Waiting, NOW), 10, "and gives no more than there was");
    }
}
