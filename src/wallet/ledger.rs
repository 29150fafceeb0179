//! Group commit: whatever results are there when the last commit is done are committed together, at once. And what the
//! store does not take is offered again, for as long as this process lives.

use std::collections::VecDeque;
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

/// Results that are recorded together.
#[derive(Default)]
struct Batch {
    changes: Vec<GrantChange>,
    told: Vec<oneshot::Sender<Result<Recorded, StoreError>>>,
}

/// Offers answers to the store, and remembers whether it took the last one.
#[derive(Clone)]
struct Offers {
    away: watch::Sender<bool>,
    closing: CancellationToken,
}

impl Ledger {
    /// Commits in tasks of its own, until `closing`.
    pub(super) fn new(store: Store, closing: CancellationToken) -> Self {
        let (postings, queue) = mpsc::unbounded_channel();
        let offers = Offers { away: watch::Sender::new(false), closing };
        let (held, held_queue) = mpsc::unbounded_channel();
        tokio::spawn(keep(store.clone(), offers.clone(), queue, held));
        tokio::spawn(keep_held(store, offers.clone(), held_queue));
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

impl Batch {
    fn push(&mut self, Posting { change, told }: Posting) {
        self.changes.push(change);
        self.told.push(told);
    }

    /// Has the store take it, and tells who waits what became of theirs. Answers what the store does not take for now
    /// though it is there; `None` at the end.
    async fn commit(self, store: &Store, offers: &Offers) -> Option<Vec<(Posting, StoreError)>> {
        let recorded = offers.offer(|| store.record_all(&self.changes)).await.ok()?;
        let mut left = Vec::new();
        let results = recorded.len();
        for (recorded, (change, told)) in recorded.into_iter().zip(self.changes.into_iter().zip(self.told)) {
            match recorded {
                Err(error) if error.is_transient() => left.push((Posting { change, told }, error)),
                recorded => {
                    // Its flight may be over.
                    let _ = told.send(recorded);
                }
            }
        }
        if left.len() < results {
            metrics::committed(results - left.len());
        }
        Some(left)
    }
}

async fn keep(
    store: Store,
    offers: Offers,
    mut queue: mpsc::UnboundedReceiver<Posting>,
    held: mpsc::UnboundedSender<Posting>,
) {
    while let Some(Some(first)) = offers.closing.run_until_cancelled(queue.recv()).await {
        let mut batch = Batch::default();
        batch.push(first);
        while batch.changes.len() < MOST
            && let Ok(next) = queue.try_recv()
        {
            batch.push(next);
        }
        let Some(left) = batch.commit(&store, &offers).await else { return };
        for (posting, error) in left {
            let GrantChange { grant, fence, .. } = posting.change;
            tracing::warn!(%grant, fence, %error, "the store does not take a result for now; trying it again and again");
            // If nobody takes it any more, whoever waits is told so.
            let _ = held.send(posting);
        }
    }
}

/// Offers again what somebody holds in the store, apart from the rest and after a pause, those that were not tried for
/// longest first.
async fn keep_held(store: Store, offers: Offers, mut queue: mpsc::UnboundedReceiver<Posting>) {
    let (mut held, mut pause) = (VecDeque::new(), FIRST_PAUSE);
    loop {
        if held.is_empty() {
            let Some(Some(first)) = offers.closing.run_until_cancelled(queue.recv()).await else { return };
            held.push_back(first);
            pause = FIRST_PAUSE;
        }
        if offers.closing.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
            return;
        }
        pause = (pause * 2).min(LAST_PAUSE);
        while let Ok(next) = queue.try_recv() {
            held.push_back(next);
        }
        let mut batch = Batch::default();
        for posting in held.drain(..held.len().min(MOST)) {
            batch.push(posting);
        }
        let Some(left) = batch.commit(&store, &offers).await else { return };
        held.extend(left.into_iter().map(|(posting, _)| posting));
    }
}

fn stopping() -> StoreError {
    StoreError::Unavailable("this process is stopping".to_owned())
}
