//! What this process keeps in memory of the store, and may serve.
//!
//! On SQLite this is the only process: whoever changes something drops it here at once. On PostgreSQL other replicas
//! change things too, so memory is good only within a lease, which each reading of the coherence log renews, and a
//! change that takes something away waits until every lease that may have missed it has run out.

mod follow;
mod shelf;

use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use tokio_util::task::TaskTracker;

use crate::clock::Clock;
use crate::store::{Engine, Stale, Store, StoreError};

pub use shelf::{Concern, Kind, Shelf};

/// For so long after the log was asked for, memory may be served.
const LEASE: Duration = Duration::from_secs(1);

/// For so long after a commit somebody may serve what it took away: a lease and the difference of two clocks' rates.
const SETTLED_AFTER: Duration = Duration::from_millis(1_100);

/// Memory of the store, on shelves, one a kind. Cheap to clone.
#[derive(Clone)]
pub struct Cache(Arc<Inner>);

struct Inner {
    store: Store,
    clock: Clock,
    /// What all shelves may hold together; 0 holds nothing.
    max_bytes: u64,
    /// Milliseconds of the boot clock at which the lease ends; unused on `SQLite`, whose lease does not end.
    lease_until: AtomicU64,
    /// Counts what was dropped. Held for writing while dropping, for reading while filling.
    drops: RwLock<u64>,
    shelves: Mutex<Vec<Arc<dyn shelf::Forgets>>>,
    tasks: TaskTracker,
}

impl Cache {
    /// Over the store, bounded by `max_bytes` in all; 0 keeps nothing. Changes run in `tasks`.
    pub fn new(store: Store, clock: Clock, max_bytes: u64, tasks: TaskTracker) -> Self {
        Self(Arc::new(Inner {
            store,
            clock,
            max_bytes,
            lease_until: AtomicU64::new(0),
            drops: RwLock::new(0),
            shelves: Mutex::default(),
            tasks,
        }))
    }

    /// Makes a change that takes away or re-points what memory holds. It runs in a task of its own, so that it and the
    /// dropping happen together, also when the caller leaves. When this returns, this process serves the old no more;
    /// others may until [`Self::settled`].
    pub async fn change<T: Send + 'static>(
        &self,
        stale: Stale,
        change: impl Future<Output = Result<T, StoreError>> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.change_all(vec![stale], change).await
    }

    /// The same with several things that become stale.
    pub async fn change_all<T: Send + 'static>(
        &self,
        stale: Vec<Stale>,
        change: impl Future<Output = Result<T, StoreError>> + Send + 'static,
    ) -> Result<T, StoreError> {
        let cache = self.clone();
        let work = self.0.tasks.spawn(async move {
            let result = change.await;
            // After an error too: the commit's answer may be all that was lost.
            for stale in &stale {
                cache.forget(stale);
            }
            result
        });
        work.await.unwrap_or_else(|_| Err(StoreError::Other("a change broke off".to_owned())))
    }

    /// Waits until no replica serves what was changed before.
    pub async fn settled(&self) {
        if self.0.store.engine() == Engine::Postgres {
            // Real time: the others' leases run on clocks of their own.
            tokio::time::sleep(SETTLED_AFTER).await;
        }
    }

    /// Drops what became stale. What is being read from the store meanwhile is not kept.
    pub fn forget(&self, stale: &Stale) {
        self.drop_from_shelves(Some(stale));
    }

    /// `None` drops everything.
    fn drop_from_shelves(&self, stale: Option<&Stale>) {
        // The count is whole, whoever panicked.
        let mut drops = self.0.drops.write().unwrap_or_else(PoisonError::into_inner);
        *drops += 1;
        self.0.shelves.lock().unwrap_or_else(PoisonError::into_inner).iter().for_each(|shelf| shelf.forget(stale));
    }

    /// Whether memory may be served now.
    fn is_leased(&self) -> bool {
        self.0.store.engine() == Engine::Sqlite
            || millis(self.0.clock.boot()) < self.0.lease_until.load(Ordering::Acquire)
    }

    /// The log was read up to now, as of `asked_at` on the boot clock.
    fn renew_lease(&self, asked_at: Duration) {
        self.0.lease_until.store(millis(asked_at + LEASE), Ordering::Release);
    }
}

fn millis(since_boot: Duration) -> u64 {
    u64::try_from(since_boot.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
