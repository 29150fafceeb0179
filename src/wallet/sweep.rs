//! The sweep: claims what is due and redeems it ahead of being asked for.

use std::sync::Arc;

use tokio::task::JoinHandle;

use super::{Inner, Wallet};
use crate::domain::error::Failure;
use crate::domain::ids::ProviderId;
use crate::domain::policy;
use crate::failpoint::failpoint;
use crate::providers::{Target, Urgency};
use crate::store::StoreError;

/// One run plans at most so many anew that nobody asks for: they are in nobody's way.
const RETIRED_AT_ONCE: u32 = 250;

impl Wallet {
    /// Starts refreshing what is due, provider by provider, each in a task of its own so that a slow provider does
    /// not keep the others waiting. A provider whose last sweep is still at work is left to it.
    pub async fn sweep(&self) -> Result<Vec<JoinHandle<()>>, StoreError> {
        self.0.registry.gate().show();
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
    async fn claim_all(&self) -> Result<(), Failure> {
        let inner = &self.inner;
        inner.store.retire_unwanted(self.provider, inner.clock.now(), RETIRED_AT_ONCE).await?;
        loop {
            let first = inner.registry.permit(self.provider, Target::Token, Urgency::Background).await;
            let (provider, first) = match first {
                Ok(first) => first,
                // What is closed now is asked again by the next sweep.
                Err(Failure::ProviderUnavailable { .. } | Failure::ProviderMisconfigured) => return Ok(()),
                Err(failure) => return Err(failure),
            };
            let mut permits = vec![first];
            permits.extend(inner.registry.gate().try_permits(&provider));
            if inner.tasks.is_closed() {
                // Shutting down: what is begun now might be cut off with its answer on the way.
                return Ok(());
            }
            failpoint!("refresh.claiming");
            let claiming_at = inner.clock.boot();
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
                    inner.redeem_claimed(&provider, claim, claiming_at, permit).await;
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
