//! What is done to grants by the clock besides refreshing them.

use super::Store;
use super::error::StoreError;
use super::events;
use super::sql::{args, statements};
use crate::clock::Timestamp;
use crate::domain::event::{Event, EventKind};
use crate::domain::ids::ProviderId;

statements! {
    WARN {
        "UPDATE grants SET warn_at = NULL WHERE id IN (
            SELECT id FROM grants WHERE warn_at <= $1 ORDER BY warn_at LIMIT $2" [pg " FOR UPDATE SKIP LOCKED"] ")
         RETURNING id, account_id, user_id, provider_id, is_current, state"
    }
    PULL_FORWARD {
        "UPDATE grants SET due_at = $2, sweep_at = $2
         WHERE provider_id = $1 AND is_current AND state = 'active' AND sweep_at > $2 AND attempts > 0
            AND lease_until IS NULL AND (retry_not_before IS NULL OR retry_not_before <= $2)"
    }
    DUE_BETWEEN {
        "SELECT COUNT(*) AS due FROM grants WHERE provider_id = $1 AND is_current AND sweep_at > $2 AND sweep_at <= $3"
    }
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
        self.db.execute(&PULL_FORWARD, args![provider, now]).await
    }

    /// How many of a provider's grants the sweep will claim between these times.
    pub async fn due_between(&self, provider: ProviderId, from: Timestamp, to: Timestamp) -> Result<u32, StoreError> {
        let row = self.db.one(&DUE_BETWEEN, args![provider, from, to]).await?;
        let count: i64 = row.map_or(Ok(0), |row| row.get("due"))?;
        Ok(u32::try_from(count).unwrap_or(u32::MAX))
    }
}
