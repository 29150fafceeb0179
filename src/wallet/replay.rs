//! What former lives left in the spool, on its way into the store.

use std::sync::Arc;

use tokio::task::JoinHandle;

use super::Wallet;
use super::spool::SpoolRecord;
use crate::domain::error::Failure;
use crate::domain::spool::Entry;

impl Wallet {
    /// Goes on with what a former life left in the spool. Before anything else of this life: until the store has an
    /// answer, its grant is not refreshed and its flow is not given up by this process.
    pub fn replay(&self, leftovers: Vec<SpoolRecord>) -> Vec<JoinHandle<()>> {
        if !leftovers.is_empty() {
            tracing::warn!(answers = leftovers.len(), "storing answers that were left in the spool");
        }
        leftovers.into_iter().map(|record| self.store_leftover(record)).collect()
    }

    /// The same with what others left in folders that nobody holds any more: a replica that is gone for good, or starts
    /// on another folder now.
    pub async fn adopt(&self) -> Result<(), Failure> {
        let inner = Arc::clone(&self.0);
        let left = tokio::task::spawn_blocking(move || inner.answers.spool.left_behind()).await;
        for (spool, leftovers) in left.unwrap_or_default() {
            let storing = self.replay(leftovers);
            self.0.tasks.spawn(async move {
                futures_util::future::join_all(storing).await;
                spool.close().await;
            });
        }
        Ok(())
    }

    fn store_leftover(&self, SpoolRecord { replica, entry, slip }: SpoolRecord) -> JoinHandle<()> {
        let inner = Arc::clone(&self.0);
        match entry {
            Entry::Refresh(answer) => {
                // Without a flight of its own it leaves the grant's to another answer, or to a refresh under way.
                let (_, flight) = inner.flights.board(answer.grant);
                self.0.tasks.spawn(async move {
                    // Announced, if perhaps in vain: its provider is not known here.
                    let landing = inner.store_refresh(answer, true, false, Some(slip), flight.as_ref()).await;
                    if let Some(flight) = flight {
                        flight.land(landing);
                    }
                })
            }
            Entry::Exchange(answer) => {
                let here = inner.answers.here(answer.flow);
                self.0.tasks.spawn(async move {
                    // Logged where it fails.
                    let _ = inner.park(replica, answer, Some(slip)).await;
                    drop(here);
                })
            }
        }
    }
}
