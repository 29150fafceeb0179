//! Time, handed in. Business time (expiry, due, leases) comes from a [`Clock`], so that tests move it instead of sleeping.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

/// A moment in UTC, in whole milliseconds since the Unix epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(i64);

impl Timestamp {
    /// The moment `millis` milliseconds after the Unix epoch.
    pub const fn from_millis(millis: i64) -> Self {
        Self(millis)
    }

    /// Milliseconds since the Unix epoch.
    pub const fn millis(self) -> i64 {
        self.0
    }

    /// This moment moved forward; it stops at the end of time instead of overflowing.
    #[must_use]
    pub fn plus(self, span: Duration) -> Self {
        Self(self.0.saturating_add(millis(span)))
    }

    /// This moment moved back; it stops at the beginning of time instead of overflowing.
    #[must_use]
    pub fn minus(self, span: Duration) -> Self {
        Self(self.0.saturating_sub(millis(span)))
    }

    /// How much later this moment is than `earlier`; zero if it is not later.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }
}

/// A span in whole milliseconds, capped instead of overflowing.
fn millis(span: Duration) -> i64 {
    i64::try_from(span.as_millis()).unwrap_or(i64::MAX)
}

/// The one source of time. Cheap to clone; all clones tell the same time.
#[derive(Clone, Debug)]
pub struct Clock(Kind);

#[derive(Clone, Debug)]
enum Kind {
    System,
    Moved(Arc<AtomicI64>),
}

/// Moves the clock it was made with; see [`Clock::moved`].
#[derive(Clone, Debug)]
pub struct Hand(Arc<AtomicI64>);

impl Clock {
    /// The machine's own clock.
    pub const fn system() -> Self {
        Self(Kind::System)
    }

    /// A clock that stands at `at` until its [`Hand`] moves it.
    pub fn moved(at: Timestamp) -> (Self, Hand) {
        let millis = Arc::new(AtomicI64::new(at.millis()));
        (Self(Kind::Moved(Arc::clone(&millis))), Hand(millis))
    }

    /// The wall clock: UTC, may step when the machine's clock is set.
    pub fn now(&self) -> Timestamp {
        match &self.0 {
            Kind::System => read(rustix::time::ClockId::Realtime),
            Kind::Moved(at) => Timestamp(at.load(Ordering::SeqCst)),
        }
    }

    /// Time since an arbitrary start that never steps and counts while the machine sleeps (`CLOCK_BOOTTIME`).
    pub fn boot(&self) -> Duration {
        let now = match &self.0 {
            #[cfg(any(target_os = "linux", target_os = "android"))]
            Kind::System => read(rustix::time::ClockId::Boottime),
            #[cfg(not(any(target_os = "linux", target_os = "android")))]
            Kind::System => read(rustix::time::ClockId::Monotonic),
            Kind::Moved(at) => Timestamp(at.load(Ordering::SeqCst)),
        };
        now.since(Timestamp(0))
    }
}

impl Hand {
    /// Moves the clock forward.
    pub fn advance(&self, by: Duration) {
        self.0.fetch_add(millis(by), Ordering::SeqCst);
    }

    /// Sets the clock, back in time too.
    pub fn set(&self, at: Timestamp) {
        self.0.store(at.millis(), Ordering::SeqCst);
    }
}

fn read(clock: rustix::time::ClockId) -> Timestamp {
    let at = rustix::time::clock_gettime(clock);
    Timestamp(at.tv_sec.saturating_mul(1000).saturating_add(at.tv_nsec / 1_000_000))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moved_clock_stands_until_its_hand_moves_it() {
        let (clock, hand) = Clock::moved(Timestamp::from_millis(1_000));
        let twin = clock.clone();
        hand.advance(Duration::from_secs(2));
        assert_eq!(twin.now(), Timestamp::from_millis(3_000));
        hand.set(Timestamp::from_millis(10));
        assert_eq!(clock.now().millis(), 10);
        assert_eq!(clock.boot(), Duration::from_millis(10));
    }

    #[test]
    fn arithmetic_stops_at_the_ends_of_time() {
        let end = Timestamp::from_millis(i64::MAX);
        assert_eq!(end.plus(Duration::MAX), end);
        assert_eq!(Timestamp::from_millis(5).since(end), Duration::ZERO);
        assert_eq!(Timestamp::from_millis(i64::MIN).minus(Duration::MAX).millis(), i64::MIN);
    }
}
