//! What happened, for callers to list and to watch: the log of events, numbered after their commit.

mod cursor;
mod watch;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::access::Access;
use crate::access::permit::{Permit, ReadEvents};
use crate::clock::Clock;
use crate::domain::error::Failure;
use crate::domain::ids::InstanceId;
use crate::store::{Engine, EventFilter, EventLog, EventPage, EventsError, Store, StoreError};
use crate::telemetry::metrics;

use cursor::Cursors;
pub use watch::{Message, Watch};

/// Events that are committed within so short a time are numbered together.
const GATHER: Duration = Duration::from_millis(20);

/// How often a process with watchers looks for what other replicas have written.
const PACE: Duration = Duration::from_millis(250);

/// How much of the log one call looks at for a page, in readings: a filter may skip nearly everything.
const READINGS: usize = 10;

/// What the log is made of.
pub struct Parts {
    /// Where it is.
    pub store: Store,
    /// Asked again while a stream goes on.
    pub access: Access,
    /// For streams' ends and the events' age.
    pub clock: Clock,
    /// Whose cursors are taken.
    pub instance: InstanceId,
    /// Events older than this are removed.
    pub retention: Duration,
    /// Ends streams.
    pub closing: CancellationToken,
}

/// The log of events. Cheap to clone.
#[derive(Clone)]
pub struct Events(Arc<Inner>);

struct Inner {
    parts: Parts,
    cursors: Cursors,
    /// The newest number that this process knows.
    newest: tokio::sync::watch::Sender<i64>,
    watchers: AtomicUsize,
}

impl Events {
    /// Numbers nothing yet: see [`Self::follow`].
    pub fn new(parts: Parts) -> Self {
        let (cursors, newest) = (Cursors::of(parts.instance), tokio::sync::watch::Sender::new(0));
        Self(Arc::new(Inner { parts, cursors, newest, watchers: AtomicUsize::new(0) }))
    }

    /// Reads events after a cursor's place, `None` for the oldest ones there are, up to what was committed before. A page that is not full may be the
    /// last one or not: see [`EventPage::upto`].
    pub async fn list(
        &self,
        _permit: &Permit<ReadEvents>,
        after: Option<i64>,
        filter: &EventFilter,
        limit: u32,
    ) -> Result<EventPage, Failure> {
        self.try_to_number().await?;
        let mut page = self.read(after, filter, limit).await?;
        for _ in 1..READINGS {
            let left = limit.saturating_sub(u32::try_from(page.events.len()).unwrap_or(limit));
            if left == 0 || page.upto >= page.newest {
                break;
            }
            let next = self.read(Some(page.upto), filter, left).await?;
            page.events.extend(next.events);
            (page.upto, page.newest) = (next.upto, next.newest);
        }
        Ok(page)
    }

    /// The place in the log that a cursor stands for.
    pub fn place(&self, cursor: &str) -> Result<i64, Failure> {
        self.0.cursors.read(cursor).ok_or_else(foreign)
    }

    /// The cursor of a place in the log.
    pub fn cursor(&self, place: i64) -> String {
        self.0.cursors.write(place)
    }

    /// Numbers what was committed without a number. Any replica may, several at once too.
    pub async fn number(&self) -> Result<(), Failure> {
        self.try_to_number().await?;
        Ok(())
    }

    /// Removes events that are older than they are kept.
    pub async fn forget(&self) -> Result<(), Failure> {
        let before = self.0.parts.clock.now().minus(self.0.parts.retention);
        let removed = self.0.parts.store.forget_events(before).await?;
        if removed > 0 {
            tracing::info!(removed, "removed old events");
        }
        Ok(())
    }

    /// While somebody watches here, numbers events soon after this process has committed them, and looks for those of
    /// other replicas; until the process closes. What nobody waits for is left to the job of each second.
    pub async fn follow(self) {
        let Parts { store, closing, .. } = &self.0.parts;
        let alone = store.engine() == Engine::Sqlite;
        loop {
            tokio::select! {
                () = closing.cancelled() => return,
                () = store.events_written() => tokio::time::sleep(GATHER).await,
                () = tokio::time::sleep(PACE), if !alone => {}
            }
            if self.0.watchers.load(Ordering::Relaxed) == 0 {
                continue;
            }
            if let Err(error) = self.try_to_number().await {
                // The job of each second says so where people look.
                tracing::debug!(%error, "events could not be numbered at once");
            }
        }
    }

    /// Answers the newest number.
    async fn try_to_number(&self) -> Result<i64, StoreError> {
        let store = &self.0.parts.store;
        let EventLog { mut newest, mut unnumbered } = store.event_log().await?;
        self.learn(newest);
        metrics::events_unnumbered(unnumbered);
        while unnumbered > 0 {
            let numbered = match store.number_events().await {
                Ok(numbered) => numbered,
                // Somebody else is numbering.
                Err(StoreError::Busy(_)) => break,
                Err(error) => return Err(error),
            };
            newest = numbered.newest;
            self.learn(newest);
            unnumbered = if numbered.all { 0 } else { unnumbered.saturating_sub(numbered.count).max(1) };
            metrics::events_unnumbered(unnumbered);
        }
        Ok(newest)
    }

    /// Also downwards: an older copy of the database was put back, or this comes late and the next word mends it. A
    /// watcher at the log's end that took it for longer would read and read.
    fn learn(&self, newest: i64) {
        self.0.newest.send_if_modified(|known| std::mem::replace(known, newest) != newest);
    }

    async fn read(&self, after: Option<i64>, filter: &EventFilter, limit: u32) -> Result<EventPage, Failure> {
        let read = self.0.parts.store.events_after(after, filter, limit).await;
        read.map_err(|error| match error {
            EventsError::Gone => Failure::EventsGone,
            EventsError::Ahead => foreign(),
            EventsError::Store(error) => error.into(),
        })
    }
}

fn foreign() -> Failure {
    Failure::field("cursor", "must be a cursor of this wallet's events")
}

#[cfg(test)]
mod tests {
    use tokio_util::task::TaskTracker;

    use super::*;
    use crate::cache::Cache;
    use crate::clock::Timestamp;

    #[tokio::test]
    async fn what_is_known_of_the_log_follows_it_downwards_too() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&format!("sqlite:{}", folder.path().join("wallet.db").display()), 1).await.unwrap();
        let begin = Timestamp::from_millis(1_800_000_000_000);
        let (clock, instance) = (Clock::moved(begin).0, InstanceId::new(begin));
        let cache = Cache::new(store.clone(), clock.clone(), 0, TaskTracker::new());
        let access = Access::new(store.clone(), cache, clock.clone(), instance);
        let (retention, closing) = (Duration::from_hours(1), CancellationToken::new());
        let events = Events::new(Parts { store, access, clock, instance, retention, closing });
        let mut known = events.0.newest.subscribe();
        let mut learn = |newest| {
            events.learn(newest);
            (known.has_changed().unwrap(), *known.borrow_and_update())
        };
        assert_eq!(learn(7), (true, 7));
        assert_eq!(learn(7), (false, 7), "nobody is woken for what they know");
        assert_eq!(learn(3), (true, 3));
    }
}
