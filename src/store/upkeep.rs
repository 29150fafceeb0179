//! What is done to grants by the clock besides refreshing them.

use super::claims::{in_doubt, refreshable};
use super::error::StoreError;
use super::events;
use super::sql::{args, statements};
use super::{BATCH, Store};
use crate::clock::Timestamp;
use crate::domain::event::{Event, EventKind};
use crate::domain::grant::GrantState;
use crate::domain::ids::ProviderId;
use crate::domain::policy;
use crate::domain::provider::Slug;

/// How one provider's grants stand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Census {
    /// The provider.
    pub provider: ProviderId,
    /// Its name.
    pub slug: Slug,
    /// How many the sweep would claim now.
    pub due: u32,
    /// Since when the longest of them waits.
    pub oldest_due: Option<Timestamp>,
    /// How many the sweep will claim soon.
    pub due_soon: u32,
    /// When the first access token ends, among those that are refreshed ahead.
    pub first_end: Option<Timestamp>,
}

statements! {
    WARN {
        "UPDATE grants SET warn_at = NULL WHERE id IN (
            SELECT id FROM grants WHERE warn_at <= $1 ORDER BY warn_at LIMIT $2" [pg " FOR UPDATE SKIP LOCKED"] ")
         RETURNING id, account_id, user_id, provider_id, is_current, state"
    }
    // What somebody holds is being refreshed.
    PULL_FORWARD {
        "WITH waiting AS MATERIALIZED (SELECT id FROM grants
            WHERE provider_id = $1 AND is_current AND state = 'active' AND sweep_at > $2 AND attempts > 0
                AND lease_until IS NULL AND (retry_not_before IS NULL OR retry_not_before <= $2)
            ORDER BY sweep_at LIMIT $3" [pg " FOR UPDATE SKIP LOCKED"] ")
         UPDATE grants SET due_at = $2, sweep_at = $2 FROM waiting WHERE grants.id = waiting.id"
    }
    // Bounded looks at an index: a provider may have a million grants.
    CENSUS {
        "SELECT p.id, p.slug,
            (SELECT COUNT(*) FROM grants WHERE provider_id = p.id AND is_current AND sweep_at <= $1) AS due,
            (SELECT MIN(sweep_at) FROM grants WHERE provider_id = p.id AND is_current AND sweep_at <= $1) AS oldest_due,
            (SELECT COUNT(*) FROM (SELECT 1 AS one FROM grants WHERE provider_id = p.id AND is_current AND sweep_at > $1
                AND sweep_at <= $2 LIMIT 1000000) AS soon) AS due_soon,
            (SELECT MIN(expires_at) FROM (SELECT issued_at + lifetime AS expires_at FROM grants WHERE provider_id = p.id
                AND is_current AND sweep_at IS NOT NULL ORDER BY sweep_at LIMIT 1000) AS next) AS first_end
         FROM providers p WHERE p.deleted_at IS NULL"
    }
    BY_STATE { "SELECT state, COUNT(*) AS grants FROM grants WHERE is_current GROUP BY state" }
    COUNT_IN_DOUBT { "SELECT COUNT(*) AS grants FROM grants WHERE " in_doubt!() }
}

impl Store {
    /// Tells of up to `limit` consents that will soon run out by themselves, each once. Answers how many were looked at.
    pub async fn warn_of_ends(&self, now: Timestamp, limit: u32) -> Result<usize, StoreError> {
        let mut tx = self.db.begin().await?;
        let rows = tx.all(&WARN, args![now, limit]).await?;
        for row in &rows {
            let cells = row.of("grants", "", "id")?;
            let state: String = cells.get("state")?;
            if cells.get("is_current")? && state != "dead" {
                let event =
                    Event::new(EventKind::AccountExpiresSoon, now, cells.user("user_id")?, cells.parse("provider_id")?);
                let event = event.account(cells.parse("account_id")?).grant(cells.parse("id")?);
                events::insert(&mut tx, &event).await?;
            }
        }
        tx.commit().await?;
        Ok(rows.len())
    }

    /// Has what failed at a provider tried again now: it is back. Answers how many those are.
    pub async fn pull_retries_forward(&self, provider: ProviderId, now: Timestamp) -> Result<u64, StoreError> {
        self.in_batches(&PULL_FORWARD, args![provider, now, BATCH]).await
    }

    /// How each provider's grants stand at `now`; what is due until `soon` counts as due soon.
    pub async fn census(&self, now: Timestamp, soon: Timestamp) -> Result<Vec<Census>, StoreError> {
        let census = |row: &super::sql::Row| {
            let cells = row.of("providers", "", "id")?;
            Ok(Census {
                provider: cells.parse("id")?,
                slug: cells.read("slug", |slug| Slug::parse(slug).ok())?,
                due: cells.count("due")?,
                oldest_due: cells.time_opt("oldest_due")?,
                due_soon: cells.count("due_soon")?,
                first_end: cells.time_opt("first_end")?,
            })
        };
        self.db.all(&CENSUS, args![now, soon]).await?.iter().map(census).collect()
    }

    /// How many current grants there are in each state.
    pub async fn grants_by_state(&self) -> Result<Vec<(GrantState, u32)>, StoreError> {
        let count = |row: &super::sql::Row| {
            let cells = row.of("grants", "", "state")?;
            Ok((cells.read("state", GrantState::parse)?, cells.count("grants")?))
        };
        self.db.all(&BY_STATE, &[]).await?.iter().map(count).collect()
    }

    /// How many current grants are in doubt.
    pub async fn count_in_doubt(&self, now: Timestamp) -> Result<u32, StoreError> {
        let row = self.db.one(&COUNT_IN_DOUBT, args![now, policy::latest_written(now)]).await?;
        let count: i64 = row.map_or(Ok(0), |row| row.get("grants"))?;
        Ok(u32::try_from(count).unwrap_or(u32::MAX))
    }
}
