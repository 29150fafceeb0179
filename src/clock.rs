//! Time, handed in. Business time (expiry, due, leases) comes from a [`Clock`], so that tests move it instead of sleeping.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use tokio::sync::watch;

/// How long a wait for the machine's clock sleeps at most before it looks again.
const LONGEST_NAP: Duration = Duration::from_secs(1);

/// How often a file is looked at for the time.
#[cfg(feature = "failpoints")]
const POLL: Duration = Duration::from_millis(3);

/// A moment in UTC, in whole milliseconds since the Unix epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(i64);

/// RFC 3339, to the second.
impl std::fmt::Display for Timestamp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let since = Duration::from_millis(u64::try_from(self.millis()).unwrap_or(0));
        humantime::format_rfc3339_seconds(std::time::SystemTime::UNIX_EPOCH + since).fmt(f)
    }
}

impl Timestamp {
    /// Later than any other.
    pub const END: Self = Self(i64::MAX);

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
///
/// Business time never goes back while the process runs: a wall clock that is set back is outrun by the boot clock, one
/// that is set forward is believed, since taking a token for older than it is harms nobody.
#[derive(Clone, Debug)]
pub struct Clock {
    source: Source,
    /// The greatest lead of the wall clock over the boot clock seen so far, in milliseconds.
    lead: Arc<AtomicI64>,
}

#[derive(Clone, Debug)]
enum Source {
    System,
    Moved(Arc<watch::Sender<Face>>),
    #[cfg(feature = "failpoints")]
    File(Arc<std::path::PathBuf>),
}

/// What a moved clock shows.
#[derive(Clone, Copy, Debug)]
struct Face {
    wall: Timestamp,
    boot: Duration,
}

/// Moves the clock it was made with; see [`Clock::moved`].
#[derive(Clone, Debug)]
pub struct Hand(Arc<watch::Sender<Face>>);

impl Clock {
    /// The machine's own clock.
    pub fn system() -> Self {
        Self::of(Source::System)
    }

    /// A clock that stands at `at` until its [`Hand`] moves it.
    pub fn moved(at: Timestamp) -> (Self, Hand) {
        let face = Arc::new(watch::Sender::new(Face { wall: at, boot: at.since(Timestamp(0)) }));
        (Self::of(Source::Moved(Arc::clone(&face))), Hand(face))
    }

    /// A clock that another process moves: `path` holds its wall and its boot time, in milliseconds, with a space between
    /// them, and is replaced as a whole. For crash tests.
    ///
    /// # Errors
    ///
    /// If the file cannot be read, now.
    #[cfg(feature = "failpoints")]
    pub fn from_file(path: std::path::PathBuf) -> std::io::Result<Self> {
        read_face(&path).map(|_| Self::of(Source::File(Arc::new(path))))
    }

    /// The same clock as another process would read it: nothing is known of what it showed before.
    #[must_use]
    pub fn afresh(&self) -> Self {
        Self::of(self.source.clone())
    }

    fn of(source: Source) -> Self {
        Self { source, lead: Arc::new(AtomicI64::new(i64::MIN)) }
    }

    /// UTC as far as the wall clock can be believed; never earlier than at the last call.
    pub fn now(&self) -> Timestamp {
        // The wall first: what passes between the two readings must not make the lead greater.
        let wall = self.wall();
        let boot = millis(self.boot());
        let lead = wall.0.saturating_sub(boot);
        Timestamp(boot.saturating_add(self.lead.fetch_max(lead, Ordering::SeqCst).max(lead)))
    }

    /// The wall clock as it is: for what other machines compare with their own.
    pub fn wall(&self) -> Timestamp {
        match &self.source {
            Source::System => read(rustix::time::ClockId::Realtime),
            Source::Moved(face) => face.borrow().wall,
            #[cfg(feature = "failpoints")]
            Source::File(path) => face_of(path).wall,
        }
    }

    /// Time since an arbitrary start that never steps and counts while the machine sleeps (`CLOCK_BOOTTIME`).
    pub fn boot(&self) -> Duration {
        match &self.source {
            #[cfg(any(target_os = "linux", target_os = "android"))]
            Source::System => read(rustix::time::ClockId::Boottime).since(Timestamp(0)),
            #[cfg(not(any(target_os = "linux", target_os = "android")))]
            Source::System => read(rustix::time::ClockId::Monotonic).since(Timestamp(0)),
            Source::Moved(face) => face.borrow().boot,
            #[cfg(feature = "failpoints")]
            Source::File(path) => face_of(path).boot,
        }
    }

    /// Waits until it is `at`. A moved clock is waited for however long nobody moves it.
    pub async fn until(&self, at: Timestamp) {
        match &self.source {
            Source::System => {
                // In steps: the machine may sleep meanwhile, which timers do not count.
                while let Some(left) = Some(at.since(self.now())).filter(|left| !left.is_zero()) {
                    tokio::time::sleep(left.min(LONGEST_NAP)).await;
                }
            }
            Source::Moved(face) => {
                // An error would mean that the sender, which is held here, is gone.
                let _ = face.subscribe().wait_for(|_| self.now() >= at).await;
            }
            #[cfg(feature = "failpoints")]
            Source::File(_) => {
                while self.now() < at {
                    tokio::time::sleep(POLL).await;
                }
            }
        }
    }
}

impl Hand {
    /// Moves the clock forward.
    pub fn advance(&self, by: Duration) {
        self.0.send_modify(|face| {
            face.wall = face.wall.plus(by);
            face.boot = face.boot.saturating_add(by);
        });
    }

    /// Sets the wall clock, back in time too; the boot clock does not notice.
    pub fn set(&self, at: Timestamp) {
        self.0.send_modify(|face| face.wall = at);
    }
}

#[cfg(feature = "failpoints")]
fn read_face(path: &std::path::Path) -> std::io::Result<Face> {
    let text = std::fs::read_to_string(path)?;
    let face = text.split_once(' ').and_then(|(wall, boot)| {
        let boot = Duration::from_millis(boot.trim_end().parse().ok()?);
        Some(Face { wall: Timestamp(wall.parse().ok()?), boot })
    });
    face.ok_or_else(|| std::io::Error::new(std::io::ErrorKind::InvalidData, "expected: WALL BOOT, in milliseconds"))
}

/// Without its file the clock is no clock.
#[cfg(feature = "failpoints")]
fn face_of(path: &std::path::Path) -> Face {
    read_face(path).unwrap_or_else(|error| panic!("the clock {} cannot be read: {error}", path.display()))
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
        assert_eq!(clock.boot(), Duration::from_secs(3));
    }

    #[test]
    fn s9_a_wall_clock_that_is_set_back_does_not_turn_back_business_time() {
        let (clock, hand) = Clock::moved(Timestamp::from_millis(100_000));
        let before = clock.now();
        hand.set(Timestamp::from_millis(10));
        assert_eq!((clock.now(), clock.wall()), (before, Timestamp::from_millis(10)));
        hand.advance(Duration::from_secs(7));
        assert_eq!(clock.now(), before.plus(Duration::from_secs(7)));
        assert_eq!(clock.afresh().now(), Timestamp::from_millis(7_010), "another process knows nothing of it");
        hand.set(Timestamp::from_millis(900_000));
        assert_eq!(clock.now(), Timestamp::from_millis(900_000), "forward is believed");
    }

    #[test]
    fn the_machines_clock_does_not_run_ahead_by_being_read() {
        let clock = Clock::system();
        for _ in 0..10_000 {
            clock.now();
        }
        assert!(clock.now().since(clock.wall()) < Duration::from_millis(50));
    }

    #[tokio::test]
    async fn a_wait_ends_when_the_clock_gets_there() {
        let (clock, hand) = Clock::moved(Timestamp::from_millis(0));
        let waiting = tokio::spawn({
            let clock = clock.clone();
            async move { clock.until(Timestamp::from_millis(5_000)).await }
        });
        hand.advance(Duration::from_secs(4));
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        hand.advance(Duration::from_secs(1));
        waiting.await.unwrap();
        let system = Clock::system();
        let at = system.now().plus(Duration::from_millis(20));
        system.until(at).await;
        assert!(system.now() >= at);
    }

    #[test]
    fn arithmetic_stops_at_the_ends_of_time() {
        let end = Timestamp::from_millis(i64::MAX);
        assert_eq!(end.plus(Duration::MAX), end);
        assert_eq!(Timestamp::from_millis(5).since(end), Duration::ZERO);
        assert_eq!(Timestamp::from_millis(i64::MIN).minus(Duration::MAX).millis(), i64::MIN);
    }
}
