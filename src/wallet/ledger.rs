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

/// Where results are recorded.
pub(super) trait Books: Clone + Send + Sync + 'static {
    /// [`Store::record_all`].
    fn record_all(
        &self,
        changes: &[GrantChange],
    ) -> impl Future<Output = Result<Vec<Result<Recorded, StoreError>>, StoreError>> + Send;
}

/// Offers answers to the store, and remembers whether it took the last one.
#[derive(Clone)]
struct Offers {
    away: watch::Sender<bool>,
    closing: CancellationToken,
}

impl Ledger {
    /// Commits in tasks of its own, until `closing`.
    pub(super) fn new(books: impl Books, closing: CancellationToken) -> Self {
        let (postings, queue) = mpsc::unbounded_channel();
        let offers = Offers { away: watch::Sender::new(false), closing };
        let (held, held_queue) = mpsc::unbounded_channel();
        tokio::spawn(keep(books.clone(), offers.clone(), queue, held));
        tokio::spawn(keep_held(books, offers.clone(), held_queue));
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

    /// Has the books take it, and tells who waits what became of theirs. Answers what the books do not take for now
    /// though they are there; `None` at the end.
    async fn commit(self, books: &impl Books, offers: &Offers) -> Option<Vec<(Posting, StoreError)>> {
        let recorded = offers.offer(|| books.record_all(&self.changes)).await.ok()?;
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

impl Books for Store {
    async fn record_all(&self, changes: &[GrantChange]) -> Result<Vec<Result<Recorded, StoreError>>, StoreError> {
        Self::record_all(self, changes).await
    }
}

async fn keep(
    books: impl Books,
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
        let Some(left) = batch.commit(&books, &offers).await else { return };
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
async fn keep_held(books: impl Books, offers: Offers, mut queue: mpsc::UnboundedReceiver<Posting>) {
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
        let Some(left) = batch.commit(&books, &offers).await else { return };
        held.extend(left.into_iter().map(|(posting, _)| posting));
    }
}

fn stopping() -> StoreError {
    StoreError::Unavailable("this process is stopping".to_owned())
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::clock::Timestamp;
    use crate::domain::grant::GrantState;
    use crate::domain::ids::{AccountId, GrantId};
    use crate::store::Outcome;

    const NOW: Timestamp = Timestamp::from_millis(1_800_000_000_000);

    /// Books with rows that somebody holds.
    #[derive(Clone, Default)]
    struct Held {
        rows: Arc<Mutex<HashSet<GrantId>>>,
        /// How often each of them was asked for in vain.
        tries: Arc<Mutex<Vec<GrantId>>>,
    }

    impl Books for Held {
        async fn record_all(&self, changes: &[GrantChange]) -> Result<Vec<Result<Recorded, StoreError>>, StoreError> {
            let rows = self.rows.lock().unwrap();
            let record = |change: &GrantChange| {
                if rows.contains(&change.grant) {
                    self.tries.lock().unwrap().push(change.grant);
                    return Err(StoreError::Busy("held".to_owned()));
                }
                Ok(Recorded::Stored(GrantState::Active))
            };
            Ok(changes.iter().map(record).collect())
        }
    }

    fn change() -> GrantChange {
        GrantChange {
            grant: GrantId::new(NOW),
            account: AccountId::new(NOW),
            fence: 1,
            outcome: Outcome::Verdict {
                state: GrantState::Active,
                due_at: None,
                retry_not_before: None,
                reason: None,
                committed_fence: 0,
            },
            event: None,
            announce: None,
            at: NOW,
        }
    }

    #[tokio::test]
    async fn n7_rows_that_somebody_holds_keep_no_other_result_waiting_and_are_asked_for_with_pauses() {
        const ROWS: usize = MOST + 50;
        let books = Held::default();
        let held: Vec<_> = (0..ROWS).map(|_| change()).collect();
        books.rows.lock().unwrap().extend(held.iter().map(|change| change.grant));
        let closing = CancellationToken::new();
        let ledger = Ledger::new(books.clone(), closing.clone());
        let waiting: Vec<_> = held.into_iter().map(|change| tokio::spawn(ledger.commit(change))).collect();
        for _ in 0..100 {
            let stored = tokio::time::timeout(Duration::from_secs(5), ledger.commit(change())).await;
            assert_eq!(stored.unwrap().unwrap(), Recorded::Stored(GrantState::Active));
        }
        tokio::time::sleep(FIRST_PAUSE * 2).await;
        let tries = books.tries.lock().unwrap().len();
        // Once with the others, and then a batch of them after each pause.
        assert!(tries <= ROWS + 3 * MOST, "{tries}");
        books.rows.lock().unwrap().clear();
        for stored in waiting {
            let stored = tokio::time::timeout(Duration::from_secs(5), stored).await;
            assert_eq!(stored.unwrap().unwrap().unwrap(), Recorded::Stored(GrantState::Active));
        }
        closing.cancel();
        assert!(ledger.commit(change()).await.is_err());
    }
}
