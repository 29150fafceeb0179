//! The census: how many grants there are and how they stand, for the metrics, and how crowded each provider's next hour
//! is, for the spreading of what will be due.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Wallet;
use crate::domain::error::Failure;
use crate::domain::grant::GrantState;
use crate::telemetry::metrics;

/// What is due within this is due soon.
const SOON: Duration = Duration::from_hours(1);

impl Wallet {
    /// Counts.
    pub async fn census(&self) -> Result<(), Failure> {
        let inner = &self.0;
        let now = inner.clock.now();
        let by_state = inner.store.grants_by_state().await?;
        for state in [GrantState::Active, GrantState::Suspect, GrantState::Dead, GrantState::Quarantined] {
            let count = by_state.iter().find(|(counted, _)| *counted == state).map_or(0, |(_, count)| *count);
            metrics::grants(state.as_str(), count);
        }
        metrics::grants_in_doubt(inner.store.count_in_doubt(now).await?);
        let (waiting, oldest) = inner.store.revocations_waiting().await?;
        metrics::revocations_waiting(waiting, oldest.map_or(Duration::ZERO, |oldest| now.since(oldest)));
        let mut loads = BTreeMap::new();
        for census in inner.store.census(now, now.plus(SOON)).await? {
            metrics::provider(census.slug.as_str());
            metrics::backlog(
                census.slug.as_str(),
                census.due,
                census.oldest_due.map_or(Duration::ZERO, |oldest| now.since(oldest)),
                census.first_end.map(|end| end.since(now)),
            );
            // One that cannot be used is told of where it is read; nothing is planned there either.
            if let Ok(provider) = inner.registry.by_id(census.provider).await {
                let capacity = f64::from(provider.limits.requests_per_second()) * SOON.as_secs_f64();
                loads.insert(census.provider, f64::from(census.due_soon) / capacity);
            }
        }
        inner.pulse().loads = loads;
        Ok(())
    }
}
