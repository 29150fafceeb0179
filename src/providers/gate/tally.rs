//! How often something happened lately, counted by the second.

use std::collections::VecDeque;
use std::time::Duration;

use crate::clock::Timestamp;

/// Counts what happened within a span that ends now. Holds one number a second, however much happens.
#[derive(Debug)]
pub(super) struct Tally {
    seconds: i64,
    counts: VecDeque<(i64, u32)>,
}

impl Tally {
    /// Over the last `span`, in whole seconds.
    pub(super) fn over(span: Duration) -> Self {
        Self { seconds: i64::try_from(span.as_secs()).unwrap_or(i64::MAX), counts: VecDeque::new() }
    }

    /// It happened once more.
    pub(super) fn add(&mut self, now: Timestamp) {
        let second = self.forget(now);
        match self.counts.back_mut() {
            Some((latest, count)) if *latest == second => *count = count.saturating_add(1),
            _ => self.counts.push_back((second, 1)),
        }
    }

    /// How often it happened.
    pub(super) fn count(&mut self, now: Timestamp) -> u32 {
        self.forget(now);
        self.counts.iter().fold(0, |sum, (_, count)| sum.saturating_add(*count))
    }

    /// Starts anew.
    pub(super) fn clear(&mut self) {
        self.counts.clear();
    }

    /// Drops what is older than the span; answers the second that `now` is in.
    fn forget(&mut self, now: Timestamp) -> i64 {
        let second = now.millis().div_euclid(1000);
        while self.counts.front().is_some_and(|(old, _)| second.saturating_sub(*old) >= self.seconds) {
            self.counts.pop_front();
        }
        second
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_older_than_the_span_is_forgotten() {
        let at = |secs: i64| Timestamp::from_millis(secs * 1000);
        let mut tally = Tally::over(Duration::from_secs(30));
        for (now, count) in [(0, 1), (0, 2), (10, 3), (29, 4), (30, 3), (39, 4), (40, 4), (1_000, 1)] {
            tally.add(at(now));
            assert_eq!(tally.count(at(now)), count, "at {now}");
        }
        assert_eq!(tally.count(at(1_030)), 0);
        assert!(tally.counts.len() <= 30);
    }
}
