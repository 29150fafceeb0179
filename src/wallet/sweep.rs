//! The sweep: claims what is due and redeems it ahead of being asked for.

use std::sync::Arc;

use tokio::task::JoinHandle;

use super::{Inner, Wallet};
use crate::domain::ids::ProviderId;
use crate::domain::policy;
use crate::store::StoreError;

impl Wallet {
    /// Starts refreshing what is due, provider by provider, each in a task of its own so that a slow provider does
    /// not keep the others waiting. A provider whose last sweep is still at work is left to it.
    pub async fn sweep(&self) -> Result<Vec<JoinHandle<()>>, StoreError> {
        let due = self.0.store.providers_due(self.0.clock.now()).await?;
        let mine = due.into_iter().filter(|provider| self.0.sweeping().insert(*provider)).collect::<Vec<_>>();
        Ok(mine
            .into_iter()
            .map(|provider| self.0.tasks.spawn(Sweep { inner: Arc::clone(&self.0), provider }.run()))
            .collect())
    }
}

/// One provider's sweep; while it stands, no second one of the provider starts.
struct Sweep {
    inner: Arc<Inner>,
    provider: ProviderId,
}

impl Sweep {
    async fn run(self) {
        if let Err(failure) = self.claim_all().await {
            tracing::warn!(provider = %self.provider, %failure, "a sweep was cut short; the next one goes on");
        }
    }

    /// Claims while there is something due, never more than the provider may be sent at once.
    async fn claim_all(&self) -> Result<(), crate::domain::error::Failure> {
        let inner = &self.inner;
        let provider = inner.registry.by_id(self.provider).await?;
        loop {
            let first = inner.registry.gate().permit(self.provider).await;
            let mut permits = vec![first];
            permits.extend(inner.registry.gate().try_permits(self.provider, usize::MAX));
            if inner.tasks.is_closed() {
                // Shutting down: what is begun now might be cut off with its answer on the way.
                return Ok(());
            }
            let now = inner.clock.now();
            let limit = u32::try_from(permits.len()).unwrap_or(u32::MAX);
            let claims =
                inner.store.claim_due(self.provider, inner.replica, limit, now, now.plus(policy::LEASE)).await?;
            if claims.is_empty() {
                return Ok(());
            }
            for (claim, permit) in claims.into_iter().zip(permits) {
                let (inner, provider) = (Arc::clone(inner), Arc::clone(&provider));
                inner.clone().tasks.spawn(async move {
                    inner.redeem_claimed(&provider, claim, permit).await;
                });
            }
        }
    }
}

impl Drop for Sweep {
    fn drop(&mut self) {
        self.inner.sweeping().remove(&self.provider);
    }
}
