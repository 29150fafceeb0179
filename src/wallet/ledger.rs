//! Group commit: whatever results are there when the last commit is done are committed together, at once.

use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::store::{GrantChange, Recorded, Store, StoreError};
use crate::telemetry::metrics;

/// A transaction records no more results than this.
const MOST: usize = 100;

/// How often what the store does not take is offered again, and how long the pauses grow: once the store is back, it has
/// everything within a second. On PostgreSQL half of that may pass in a try to connect that began before.
pub(super) const FIRST_PAUSE: Duration = Duration::from_millis(50);
pub(super) const LAST_PAUSE: Duration = Duration::from_millis(250);

/// An attempt at the store is given up after this, for it may hang: longer than two waits for a busy one.
const ATTEMPT: Duration = Duration::from_secs(12);

/// Takes what refreshes came to, and does not let go of it before the store has it.
pub(super) struct Ledger(mpsc::UnboundedSender<Posting>);

/// A result on its way into the store.
struct Posting {
    change: GrantChange,
    told: oneshot::Sender<Result<Recorded, StoreError>>,
}

impl Ledger {
    /// Commits in a task of its own, until `closing`.
    pub(super) fn new(store: Store, closing: CancellationToken) -> Self {
        let (postings, queue) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            let keeping = Box::pin(keep(&store, queue));
            closing.run_until_cancelled(keeping).await;
        });
        Self(postings)
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
        let _ = self.0.send(Posting { change, told });
        async { committed.await.unwrap_or_else(|_| Err(stopping())) }
    }
}

async fn keep(store: &Store, mut queue: mpsc::UnboundedReceiver<Posting>) {
    let (mut changes, mut told) = (Vec::new(), Vec::new());
    let mut pause = FIRST_PAUSE;
    loop {
        if changes.is_empty() {
            let Some(first) = queue.recv().await else { return };
            changes.push(first.change);
            told.push(first.told);
        }
        while changes.len() < MOST
            && let Ok(next) = queue.try_recv()
        {
            changes.push(next.change);
            told.push(next.told);
        }
        match attempt(store.record_all(&changes)).await {
            Ok(recorded) => {
                metrics::committed(changes.len());
                pause = FIRST_PAUSE;
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
            Err(error) => {
                tracing::warn!(waiting = changes.len(), %error, "the store does not take what providers answered; trying again");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LAST_PAUSE);
            }
        }
    }
}

/// Bounds an attempt at the store. What became of one that was cut off is not known; trying again is harmless.
pub(super) async fn attempt<T>(storing: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
    let done = tokio::time::timeout(ATTEMPT, storing).await;
    done.unwrap_or_else(|_| Err(StoreError::Unavailable("no answer in time".to_owned())))
}

fn stopping() -> StoreError {
    StoreError::Unavailable("this process is stopping".to_owned())
}
