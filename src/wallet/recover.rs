//! Grants in doubt: a refresh token was sent, or may have been, and no answer is known.

use std::time::Duration;

use super::flights::Landing;
use super::refresh::Errand;
use super::{Inner, Wallet};
use crate::clock::Timestamp;
use crate::domain::doubt::{self, Doubt, Recovery, Sender};
use crate::domain::error::Failure;
use crate::domain::grant::{Grant, Lease};
use crate::domain::policy;
use crate::providers::{Closed, ClosedBy, Provider, Target};
use crate::store::StoreError;

/// How many of a provider are looked at in one run.
const BATCH: u32 = 100;

/// How often a grant is looked at whose answer the store has refused.
const LOOK_AGAIN: Duration = Duration::from_secs(30);

/// Another replica gets this long, from when the store can be reached again, to bring an answer that it holds.
pub(super) const SETTLED: Duration = Duration::from_secs(10);

impl Wallet {
    /// Looks at grants in doubt that are due, and redeems again what may be redeemed again.
    pub async fn recover(&self) -> Result<(), StoreError> {
        let (inner, now) = (&self.0, self.0.clock.now());
        for provider in inner.store.providers_in_doubt(now).await? {
            // Why not was logged. The next one is asked about all the same.
            let Ok(provider) = inner.registry.by_id(provider).await else { continue };
            let limit = match inner.registry.gate().closed(&provider, Target::Token) {
                None => BATCH,
                // A probe, if there is nothing else to probe with.
                Some(Closed { until, why: ClosedBy::Misconfigured }) if until <= now => 1,
                // They can wait until it opens.
                Some(_) => continue,
            };
            for grant in inner.store.grants_in_doubt(provider.id, now, limit).await? {
                drop(self.fly(&grant, Errand::Ahead));
            }
        }
        Ok(())
    }

    /// Tells of consents that will soon run out by themselves.
    pub async fn warn_of_ends(&self) -> Result<(), StoreError> {
        self.0.store.warn_of_ends(self.0.clock.now(), BATCH).await.map(drop)
    }
}

impl Inner {
    /// What the lease of a judged grant says: how the grant may be claimed, or what its flight comes to.
    pub(super) async fn doubt(
        &self,
        provider: &Provider,
        judged: &Grant,
        errand: Errand,
    ) -> Result<Result<Option<Recovery>, Landing>, Failure> {
        let now = self.clock.now();
        let Some(lease) = judged.lease else { return Ok(Ok(None)) };
        let wait = |until: Timestamp| Landing::Failed(Failure::ProviderUnavailable { retry_after: until.since(now) });
        if !doubt::is_over(lease, now) {
            // This replica's own of a former life: its request may still be at the provider, and nobody brings an answer.
            // One of this life is a sweep's whose flight begins just now, or has landed since the grant was read.
            let former = lease.owner == self.replica && lease.until.minus(policy::LEASE) <= self.started_at;
            return Ok(Err(if former { wait(lease.until) } else { Landing::Elsewhere }));
        }
        let planned = [judged.freshness.due_at, judged.freshness.keep_alive_at];
        let due = planned.into_iter().flatten().any(|at| at <= now);
        if errand == Errand::Ahead && !due {
            // An older answer came in late: there is nothing to recover for now.
            return Ok(Err(Landing::Elsewhere));
        }
        if self.answers.has_refused(judged.id, judged.committed_fence) {
            let at = now.plus(LOOK_AGAIN);
            self.store.postpone_doubt(judged, at, now).await?;
            return Ok(Err(wait(at)));
        }
        let sender = self.sender(lease).await?;
        let rejected = matches!(errand, Errand::Rejected | Errand::Probe);
        match self.wait_for_the_store(sender, doubt::judge(judged, provider.entry.reuse(), sender, rejected, now), now)
        {
            Doubt::SendAgain(recovery) => Ok(Ok(Some(recovery))),
            Doubt::WaitUntil(at) => {
                self.store.postpone_doubt(judged, at, now).await?;
                Ok(Err(wait(at)))
            }
        }
    }

    /// What is known of who sent it. A flight of this process outranks its lease, so that what is judged here is what
    /// nobody flies.
    async fn sender(&self, lease: Lease) -> Result<Sender, StoreError> {
        if lease.owner == self.replica {
            return Ok(Sender::KnowsNothing);
        }
        Ok(Sender::LastHeard(self.store.last_heard(lease.owner).await?))
    }

    fn wait_for_the_store(&self, sender: Sender, doubt: Doubt, now: Timestamp) -> Doubt {
        let settled_at = self.pulse().reachable_since(now).unwrap_or(now).plus(SETTLED);
        match (sender, doubt) {
            (Sender::LastHeard(_), Doubt::SendAgain(_)) if settled_at > now => Doubt::WaitUntil(settled_at),
            _ => doubt,
        }
    }
}
