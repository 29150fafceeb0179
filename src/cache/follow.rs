//! Following the coherence log of a store that other replicas change too.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::Cache;
use crate::store::{Changes, Place, StoreError};

/// How often the log is read. Real time: it is what the other replicas wait by.
const PACE: Duration = Duration::from_millis(250);

impl Cache {
    /// Reads the log until `closing`, drops what it names and so keeps the lease. Without this nothing is served from
    /// memory on PostgreSQL.
    pub async fn follow(self, closing: CancellationToken) {
        // Nothing of a reading that is cut off counts.
        closing
            .run_until_cancelled(async {
                let (mut known, mut reads) = (None, true);
                loop {
                    let result = self.read_log(known.as_ref()).await;
                    if let Err(error) = &result
                        && reads
                    {
                        tracing::warn!(%error, "the coherence log cannot be read; nothing is served from memory meanwhile");
                    }
                    reads = result.is_ok();
                    known = result.ok().or(known);
                    tokio::time::sleep(PACE).await;
                }
            })
            .await;
    }

    /// Reads what happened after `known`; how far that is.
    async fn read_log(&self, known: Option<&Place>) -> Result<Place, StoreError> {
        let asked_at = self.0.clock.boot();
        let Changes { place, stale, gap } = self.0.store.coherence_since(known).await?;
        if gap {
            self.drop_from_shelves(None);
        } else {
            for stale in &stale {
                self.forget(stale);
            }
        }
        self.renew_lease(asked_at);
        Ok(place)
    }
}
