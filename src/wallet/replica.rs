//! This replica among others: its signs of life, what it learns from theirs, and its start.

use std::collections::BTreeMap;
use std::sync::{MutexGuard, PoisonError};
use std::time::Duration;

use super::recover::SETTLED;
use super::{Inner, Wallet};
use crate::clock::{Drift, Timestamp};
use crate::domain::doubt::SILENT_FOR_GOOD;
use crate::domain::ids::ProviderId;
use crate::domain::policy::CLOCK_TOLERANCE;
use crate::providers::Provider;
use crate::store::{Beat, StoreError};

/// A replica that was not heard of for this long does not count.
const LIVE: Duration = Duration::from_secs(30);

/// Whoever has not given a sign of life for this long, three beats, may have slept, and others with it.
const MISSED: Duration = Duration::from_secs(15);

/// How often a replica that starts looks for signs of others.
const LOOK: Duration = Duration::from_millis(250);

/// Forgotten after this, when nothing of it can be in doubt any more.
const FORGOTTEN: Duration = Duration::from_hours(24 * 30);

/// What the latest sign of life taught.
#[derive(Default)]
pub(super) struct Pulse {
    /// Since when each beat was stored in time.
    beating_since: Option<Timestamp>,
    /// When this replica last gave a sign of life.
    beat_at: Option<Timestamp>,
    /// Refreshes that the other replicas attempted in the last minute.
    elsewhere: BTreeMap<ProviderId, u32>,
    /// How crowded each provider's next hour is, 0 to 1.
    pub(super) loads: BTreeMap<ProviderId, f64>,
    /// How the database's clock was found at the latest look.
    pub(super) drift: Drift,
}

impl Wallet {
    /// Before anything is claimed. A clock that was set back makes every token's age unknown. Leases of a former life run
    /// out by themselves: its requests may still be at the provider.
    pub async fn arrive(&self) -> Result<(), StoreError> {
        let (store, now) = (&self.0.store, self.0.clock.now());
        let seen = store.times(&self.0.clock).await?.high_water;
        if now.plus(CLOCK_TOLERANCE) < seen {
            if self.others_hold_on_to(seen).await? {
                tracing::error!(
                    ?now,
                    ?seen,
                    "the database's clock was set back; the other replicas hold on to the time of before"
                );
            } else {
                let tokens = store.distrust_tokens(now).await?;
                tracing::error!(
                    tokens,
                    ?now,
                    ?seen,
                    "the clock was set back: all tokens are refreshed before they are served"
                );
            }
        }
        self.beat().await
    }

    /// Whether others run whose time goes on from `seen`. Their last signs of life may be all that is left of them.
    async fn others_hold_on_to(&self, seen: Timestamp) -> Result<bool, StoreError> {
        let inner = &self.0;
        let others = inner.store.replicas(seen.minus(LIVE)).await?;
        if others.iter().all(|beat| beat.replica == inner.replica) {
            return Ok(false);
        }
        // Real time: theirs.
        let moved = tokio::time::timeout(MISSED, async {
            while inner.store.times(&inner.clock).await?.high_water <= seen {
                tokio::time::sleep(LOOK).await;
            }
            Ok(())
        });
        moved.await.map_or(Ok(false), |moved| moved.map(|()| true))
    }

    /// Since when the store answers without a fault in between; `None` if it does not, or if this replica was not awake
    /// to ask: others that slept with it may not have given their signs of life yet.
    pub fn reachable_since(&self) -> Option<Timestamp> {
        self.0.pulse().reachable_since(self.0.clock.now())
    }

    /// A replica that was not heard of after this will not come back with an answer. `None` while the store has not been
    /// there for long enough to tell.
    pub fn silence(&self) -> Option<Timestamp> {
        let now = self.0.clock.now();
        self.reachable_since().filter(|since| since.plus(SETTLED) <= now).map(|_| now.minus(SILENT_FOR_GOOD))
    }

    /// Gives a sign of life and learns of the others.
    pub async fn beat(&self) -> Result<(), StoreError> {
        let inner = &self.0;
        let attempts = inner.registry.gate().attempts();
        let others = async {
            inner.follow_the_database().await?;
            let now = inner.clock.now();
            let beat = Beat { replica: inner.replica, started_at: inner.started_at, at: now, attempts };
            inner.store.beat(&beat).await?;
            inner.store.forget_replicas(now.minus(FORGOTTEN)).await?;
            Ok((now, inner.store.replicas(now.minus(LIVE)).await?))
        };
        let (now, others) = others.await.inspect_err(|_: &StoreError| inner.pulse().beating_since = None)?;
        let mut elsewhere = BTreeMap::new();
        for beat in others.iter().filter(|beat| beat.replica != inner.replica) {
            for (provider, count) in &beat.attempts {
                *elsewhere.entry(*provider).or_default() += count;
            }
        }
        inner.registry.gate().set_replicas(u32::try_from(others.len()).unwrap_or(u32::MAX));
        let mut pulse = inner.pulse();
        pulse.beaten(now);
        pulse.elsewhere = elsewhere;
        Ok(())
    }
}

impl Pulse {
    /// See [`Wallet::reachable_since`].
    pub(super) fn reachable_since(&self, now: Timestamp) -> Option<Timestamp> {
        self.beating_since.filter(|_| self.beat_at.is_some_and(|at| now.since(at) < MISSED))
    }

    fn beaten(&mut self, now: Timestamp) {
        self.beating_since = self.reachable_since(now).or(Some(now));
        self.beat_at = Some(now);
    }
}

impl Inner {
    pub(super) fn pulse(&self) -> MutexGuard<'_, Pulse> {
        // Whole between any two statements.
        self.pulse.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Refreshes attempted in the last minute by all replicas.
    pub(super) fn attempts_everywhere(&self, provider: &Provider) -> u32 {
        let elsewhere = self.pulse().elsewhere.get(&provider.id).copied().unwrap_or_default();
        self.registry.gate().attempts_last_minute(provider.id).saturating_add(elsewhere)
    }

    /// How crowded the provider's next hour is, 0 to 1.
    pub(super) fn load(&self, provider: ProviderId) -> f64 {
        self.pulse().loads.get(&provider).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(seconds: i64) -> Timestamp {
        Timestamp::from_millis(seconds * 1_000)
    }

    #[test]
    fn s9_who_has_slept_knows_nothing_of_others_before_it_has_beaten_again() {
        let mut pulse = Pulse::default();
        assert_eq!(pulse.reachable_since(at(0)), None);
        for beat in [0, 5, 10, 24] {
            pulse.beaten(at(beat));
            assert_eq!(pulse.reachable_since(at(beat + 14)), Some(at(0)), "{beat}");
        }
        assert_eq!(pulse.reachable_since(at(39)), None);
        pulse.beaten(at(100));
        assert_eq!(pulse.reachable_since(at(100)), Some(at(100)), "the time begins anew");
        // The store failed.
        pulse.beating_since = None;
        assert_eq!(pulse.reachable_since(at(101)), None);
        pulse.beaten(at(105));
        assert_eq!(pulse.reachable_since(at(110)), Some(at(105)));
    }
}
