//! Time that a wallet in a process of its own shares with the sandbox in this one, moved by the test.

use std::path::PathBuf;
use std::time::Duration;

use tempfile::TempDir;
use token_wallet::clock::{Clock, Hand, Timestamp};

/// Moves a clock of this process and the file that another process reads the same time from.
pub struct FileHand {
    pub clock: Clock,
    hand: Hand,
    folder: TempDir,
}

impl FileHand {
    /// A clock that stands at `at`.
    pub fn new(at: Timestamp) -> Self {
        let (clock, hand) = Clock::moved(at);
        let file_hand = Self { clock, hand, folder: tempfile::tempdir().unwrap() };
        file_hand.write();
        file_hand
    }

    /// What `TOKEN_WALLET_CLOCK` must name.
    pub fn path(&self) -> PathBuf {
        self.folder.path().join("clock")
    }

    /// Moves both clocks forward.
    pub fn advance(&self, by: Duration) {
        self.hand.advance(by);
        self.write();
    }

    fn write(&self) {
        let next = self.folder.path().join("next");
        std::fs::write(&next, format!("{} {}\n", self.clock.wall().millis(), self.clock.boot().as_millis())).unwrap();
        // As a whole: a reader sees the old time or the new one.
        std::fs::rename(next, self.path()).unwrap();
    }
}

#[tokio::test]
async fn a_clock_in_a_file_shows_what_its_hand_shows_and_can_be_waited_for() {
    let hand = FileHand::new(Timestamp::from_millis(1_000));
    let clock = Clock::from_file(hand.path()).unwrap();
    assert_eq!((clock.now(), clock.boot()), (hand.clock.now(), hand.clock.boot()));
    let waiting = tokio::spawn({
        let clock = clock.clone();
        async move { clock.until(Timestamp::from_millis(6_000)).await }
    });
    hand.advance(Duration::from_millis(4_999));
    tokio::time::sleep(Duration::from_millis(30)).await;
    assert!(!waiting.is_finished());
    hand.advance(Duration::from_millis(1));
    waiting.await.unwrap();
    assert_eq!((clock.now(), clock.boot()), (hand.clock.now(), hand.clock.boot()));
    assert!(Clock::from_file("/nowhere/clock".into()).is_err());
}
