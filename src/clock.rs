//! Time, handed in. Business time (expiry, due, leases) comes from a [`Clock`], so that tests move it instead of sleeping.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use tokio::sync::watch;

/// How long a wait for the machine's clock sleeps at most before it looks again.
const LONGEST_NAP: Duration = Duration::from_secs(1);

/// A clock that is followed and less than this behind is waited for; one that is further behind was set back, and what
/// was dated before would seem younger than it is.
const WAITS_FOR: Duration = Duration::from_secs(5);

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
/// that is set forward is believed, since taking a token for older than it is harms nobody. Where several machines work
/// together, all [follow](Self::follow) one clock, and their own wall clocks say nothing.
#[derive(Clone, Debug)]
pub struct Clock {
    source: Source,
    course: Arc<Course>,
}

/// How business time runs beside the boot clock.
#[derive(Debug)]
struct Course {
    /// Its lead over the boot clock, in milliseconds: that of the clock that is followed, or the greatest of the wall
    /// clock seen so far.
    lead: AtomicI64,
    /// Another clock is followed.
    follows: AtomicBool,
    /// The latest time that was told since then, in milliseconds.
    told: AtomicI64,
}

/// What another clock showed.
#[derive(Clone, Copy, Debug)]
pub struct Reading {
    /// What it showed.
    pub at: Timestamp,
    /// The boot clock before it was asked.
    pub asked: Duration,
    /// The boot clock when its answer was here.
    pub answered: Duration,
}

/// How this machine stands to the clock that it follows, in milliseconds; negative: it is behind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drift {
    /// How far ahead of it business time stays: it was set back by more than can be waited for.
    pub business: i64,
    /// How far ahead of it the machine's wall clock is.
    pub wall: i64,
    /// How far it has jumped ahead of where it was followed to.
    pub jumped: i64,
}

#[derive(Clone, Debug)]
enum Source {
    System,
    Moved {
        face: Arc<watch::Sender<Face>>,
        /// Of one machine among others; else it is the time of the whole world.
        machine: bool,
    },
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
        Self::with_face(at, false)
    }

    /// The same as the clock of one machine, which follows others where [`Self::system`] does.
    pub fn moved_machine(at: Timestamp) -> (Self, Hand) {
        Self::with_face(at, true)
    }

    fn with_face(at: Timestamp, machine: bool) -> (Self, Hand) {
        let face = Arc::new(watch::Sender::new(Face { wall: at, boot: at.since(Timestamp(0)) }));
        (Self::of(Source::Moved { face: Arc::clone(&face), machine }), Hand(face))
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
        let course = Course { lead: i64::MIN.into(), follows: false.into(), told: i64::MIN.into() };
        Self { source, course: Arc::new(course) }
    }

    /// UTC as far as it can be believed; never earlier than at the last call.
    pub fn now(&self) -> Timestamp {
        let course = &self.course;
        if course.follows.load(Ordering::SeqCst) {
            let at = millis(self.boot()).saturating_add(course.lead.load(Ordering::SeqCst));
            return Timestamp(course.told.fetch_max(at, Ordering::SeqCst).max(at));
        }
        // The wall first: what passes between the two readings must not make the lead greater.
        let wall = self.wall();
        let boot = millis(self.boot());
        let lead = wall.0.saturating_sub(boot);
        Timestamp(boot.saturating_add(course.lead.fetch_max(lead, Ordering::SeqCst).max(lead)))
    }

    /// Whether this is one machine's clock, and not the time of a whole test.
    pub const fn is_a_machines(&self) -> bool {
        match self.source {
            Source::System => true,
            Source::Moved { machine, .. } => machine,
            #[cfg(feature = "failpoints")]
            Source::File(_) => false,
        }
    }

    /// Whether it follows another.
    pub fn follows(&self) -> bool {
        self.course.follows.load(Ordering::SeqCst)
    }

    /// Follows another clock from its first reading on, which comes before anything is dated. Business time is then
    /// never behind that clock, and ahead of it by less than the shortest way to it and back. If it jumps ahead it is
    /// believed; if it was set back a little, business time stands until it is caught up with; if by more, it is left.
    pub fn follow(&self, reading: &Reading) -> Drift {
        let course = &self.course;
        // It showed this at some moment between the two of ours.
        let earliest = reading.at.0.saturating_sub(millis(reading.answered));
        let latest = reading.at.0.saturating_sub(millis(reading.asked));
        let mut drift = Drift {
            wall: self.wall().0.saturating_sub(millis(self.boot()).saturating_add(latest)),
            ..Drift::default()
        };
        if course.follows.load(Ordering::SeqCst) {
            let lead = course.lead.load(Ordering::SeqCst);
            drift.jumped = earliest.saturating_sub(lead).max(0);
            drift.business = Some(lead.saturating_sub(latest)).filter(|ahead| *ahead > millis(WAITS_FOR)).unwrap_or(0);
            if drift.business == 0 {
                course.lead.store(lead.clamp(earliest, latest), Ordering::SeqCst);
            }
        } else {
            course.lead.store(latest, Ordering::SeqCst);
            course.follows.store(true, Ordering::SeqCst);
        }
        self.notify();
        drift
    }

    /// It was at least this late already when the boot clock showed `boot`: others hold on to a time that the followed
    /// clock was set back from.
    pub fn catch_up(&self, at: Timestamp, boot: Duration) {
        self.course.lead.fetch_max(at.0.saturating_sub(millis(boot)), Ordering::SeqCst);
        self.notify();
    }

    /// Whoever waits for a moved clock looks again.
    fn notify(&self) {
        if let Source::Moved { face, .. } = &self.source {
            face.send_modify(|_| {});
        }
    }

    /// The wall clock as it is: for what other machines compare with their own.
    pub fn wall(&self) -> Timestamp {
        match &self.source {
            Source::System => read(rustix::time::ClockId::Realtime),
            Source::Moved { face, .. } => face.borrow().wall,
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
            Source::Moved { face, .. } => face.borrow().boot,
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
            Source::Moved { face, .. } => {
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

    fn reading(at: i64, asked: i64, answered: i64) -> Reading {
        let boot = |at| Timestamp(at).since(Timestamp(0));
        Reading { at: Timestamp(at), asked: boot(asked), answered: boot(answered) }
    }

    #[test]
    fn s9_a_clock_that_follows_another_is_never_behind_it_and_its_own_wall_says_nothing() {
        let (clock, hand) = Clock::moved_machine(Timestamp(900_000));
        assert_eq!(clock.now(), Timestamp(900_000));
        // Asked at 900 000, answered 400 ms later: somewhere in between it was 100 000.
        hand.advance(Duration::from_millis(400));
        let drift = clock.follow(&reading(100_000, 900_000, 900_400));
        assert_eq!(drift, Drift { wall: 800_000, ..Drift::default() });
        assert_eq!(clock.now(), Timestamp(100_400), "as late as it can be, also if that is earlier than before");
        hand.set(Timestamp(5));
        assert_eq!(clock.clone().now(), Timestamp(100_400));
        // A closer look: 100 ms too late. It stands until it is as late as that.
        hand.advance(Duration::from_millis(50));
        assert_eq!(clock.now(), Timestamp(100_450));
        assert_eq!(clock.follow(&reading(100_350, 900_450, 900_460)).business, 0);
        assert_eq!(clock.now(), Timestamp(100_450));
        hand.advance(Duration::from_millis(100));
        assert_eq!(clock.now(), Timestamp(100_450));
        hand.advance(Duration::from_millis(7));
        assert_eq!(clock.now(), Timestamp(100_457));
        // A reading that leaves room for where it is changes nothing.
        clock.follow(&reading(100_400, 900_400, 900_557));
        assert_eq!(clock.now(), Timestamp(100_457));
    }

    #[test]
    fn s9_a_followed_clock_that_jumps_ahead_is_believed_and_one_that_is_set_back_is_left() {
        let (clock, hand) = Clock::moved_machine(Timestamp(0));
        clock.follow(&reading(1_000, 0, 0));
        assert_eq!(clock.follow(&reading(91_000, 0, 0)), Drift { jumped: 90_000, wall: -91_000, business: 0 });
        assert_eq!(clock.now(), Timestamp(91_000));
        assert_eq!(clock.follow(&reading(1_000, 0, 0)).business, 90_000);
        hand.advance(Duration::from_secs(1));
        assert_eq!(clock.now(), Timestamp(92_000), "it goes on alone");
        // It was put right.
        assert_eq!(clock.follow(&reading(90_000, 1_000, 1_000)).business, 0);
        hand.advance(Duration::from_secs(3));
        assert_eq!(clock.now(), Timestamp(93_000));
        let (late, _) = Clock::moved_machine(Timestamp(0));
        late.follow(&reading(1_000, 0, 0));
        late.catch_up(Timestamp(500), Duration::ZERO);
        assert_eq!(late.now(), Timestamp(1_000));
        late.catch_up(Timestamp(93_000), Duration::ZERO);
        assert_eq!(late.now(), Timestamp(93_000));
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
