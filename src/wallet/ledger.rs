//! Group commit: whatever results are there when the last commit is done are committed together, at once. And what the
//! store does not take is offered again, for as long as this process lives.

use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::store::{GrantChange, Recorded, Store, StoreError};
use crate::telemetry::metrics;

/// A transaction records no more results than this.
const MOST: usize = 100;

/// How often what the store does not take is offered again, and how long the pauses grow: once the store is back, it has
/// everything within a second. On PostgreSQL half of that may pass in a try to connect that began before.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LAST_PAUSE: Duration = Duration::from_millis(250);

/// An attempt at the store is given up after this, for it may hang: longer than two waits for a busy one.
const ATTEMPT: Duration = Duration::from_secs(12);

/// Takes what refreshes came to, and does not let go of it before the store has it.
pub(super) struct Ledger {
    postings: mpsc::UnboundedSender<Posting>,
    offers: Offers,
}

/// A result on its way into the store.
struct Posting {
    change: GrantChange,
    told: oneshot::Sender<Result<Recorded, StoreError>>,
}

/// Offers answers to the store, and remembers whether it took the last one.
#[derive(Clone)]
struct Offers {
    away: watch::Sender<bool>,
    closing: CancellationToken,
}

impl Ledger {
    /// Commits in a task of its own, until `closing`.
    pub(super) fn new(store: Store, closing: CancellationToken) -> Self {
        let (postings, queue) = mpsc::unbounded_channel();
        let offers = Offers { away: watch::Sender::new(false), closing };
        tokio::spawn(keep(store, offers.clone(), queue));
        Self { postings, offers }
    }

    /// Commits a change, however long the store is away; it is on its way before this is awaited, and goes on if it is
    /// not.
    ///
    /// # Errors
    ///
    /// If the store cannot take this change, now or later; or this process is stopping.
    pub(super) fn commit(&self, change: GrantChange) -> impl Future<Output = Result<Recorded, StoreError>> + use<> {
        let (told, committed) = oneshot::channel();
        // If nobody takes it any more, the answer says so.
        let _ = self.postings.send(Posting { change, told });
        async { committed.await.unwrap_or_else(|_| Err(stopping())) }
    }

    /// Has the store take something else, however long it is away.
    ///
    /// # Errors
    ///
    /// If the store cannot take it, now or later; or this process is stopping.
    pub(super) async fn offer<T, F>(&self, attempt: impl FnMut() -> F) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, StoreError>>,
    {
        self.offers.offer(attempt).await
    }

    /// Waits until the store is known not to take what it is offered.
    pub(super) async fn away(&self) {
        // The sender is here.
        let _ = self.offers.away.subscribe().wait_for(|away| *away).await;
    }
}

impl Offers {
    /// See [`Ledger::offer`]. What became of an attempt that was cut off is not known; trying again is harmless.
    async fn offer<T, F>(&self, mut attempt: impl FnMut() -> F) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, StoreError>>,
    {
        let offering = async {
            let mut pause = FIRST_PAUSE;
            loop {
                let taken = tokio::time::timeout(ATTEMPT, attempt()).await;
                match taken.unwrap_or_else(|_| Err(StoreError::Unavailable("no answer in time".to_owned()))) {
                    Err(error) if error.is_transient() => {
                        tracing::warn!(%error, "the store does not take what a provider answered; trying again");
                        self.away.send_replace(true);
                        tokio::time::sleep(pause).await;
                        pause = (pause * 2).min(LAST_PAUSE);
                    }
                    Err(error) => return Err(error),
                    Ok(taken) => {
                        self.away.send_replace(false);
                        return Ok(taken);
                    }
                }
            }
        };
        self.closing.run_until_cancelled(offering).await.unwrap_or_else(|| Err(stopping()))
    }
}

async fn keep(store: Store, offers: Offers, mut queue: mpsc::UnboundedReceiver<Posting>) {
    let (mut changes, mut told) = (Vec::new(), Vec::new());
    loop {
        if changes.is_empty() {
            let Some(Some(first)) = offers.closing.run_until_cancelled(queue.recv()).await else { return };
            changes.push(first.change);
            told.push(first.told);
        }
        while changes.len() < MOST
            && let Ok(next) = queue.try_recv()
        {
            changes.push(next.change);
            told.push(next.told);
        }
        // Nothing comes back at the end.
        let Ok(recorded) = offers.offer(|| store.record_all(&changes)).await else { return };
        metrics::committed(changes.len());
        let postings = std::mem::take(&mut changes).into_iter().zip(std::mem::take(&mut told));
        for (recorded, (change, its)) in recorded.into_iter().zip(postings) {
            if recorded.as_ref().is_err_and(StoreError::is_transient) {
                // The store went away between two rows that are stored one by one.
                changes.push(change);
                told.push(its);
            } else {
                // Its flight may be over.
                let _ = its.send(recorded);
            }
        }
    }
}

fn stopping() -> StoreError {
    StoreError::Unavailable("this process is stopping".to_owned())
}
