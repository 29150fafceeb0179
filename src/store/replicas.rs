//! Replicas: who runs on this store, and when each was last heard of. And the latest time that any of them saw.

use std::collections::BTreeMap;

use super::error::StoreError;
use super::sql::{args, statements, to_json};
use super::{BATCH, Store};
use crate::clock::{Clock, Reading, Timestamp};
use crate::domain::ids::{ProviderId, ReplicaId};

/// A replica's sign of life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Beat {
    /// The replica.
    pub replica: ReplicaId,
    /// When it began to run.
    pub started_at: Timestamp,
    /// When it gave this sign.
    pub at: Timestamp,
    /// Refreshes that it attempted in the last minute.
    pub attempts: BTreeMap<ProviderId, u32>,
}

/// What time it is to others.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// The latest that any replica saw.
    pub high_water: Timestamp,
    /// The database's clock; none on `SQLite`.
    pub database: Option<Reading>,
}

statements! {
    BEAT {
        "INSERT INTO replicas (id, started_at, beat_at, attempts) VALUES ($1, $2, $3, $4)
         ON CONFLICT (id) DO UPDATE SET started_at = excluded.started_at, beat_at = excluded.beat_at,
            attempts = excluded.attempts"
    }
    RAISE_HIGH_WATER { "UPDATE instance SET high_water = $1 WHERE high_water < $1" }
    LOWER_HIGH_WATER { "UPDATE instance SET high_water = $1" }
    // The one statement that asks for the time: what replicas have in common, for their clocks to follow.
    TIMES {
        "SELECT id, high_water, "
        [lite "NULL"] [pg "CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000 AS BIGINT)"] " AS database_time FROM instance"
    }
    LIVE { "SELECT id, started_at, beat_at, attempts FROM replicas WHERE beat_at > $1 ORDER BY id" }
    LAST_HEARD { "SELECT id, beat_at FROM replicas WHERE id = $1" }
    FORGET { "DELETE FROM replicas WHERE beat_at < $1" }
    // As if it had just run out. One that cannot be refreshed is served as long as its time says. By id: each is looked
    // at once, however many there are.
    DISTRUST {
        "WITH dated AS MATERIALIZED (SELECT id FROM grants
            WHERE id > $2 AND is_current AND lifetime IS NOT NULL AND refresh_token IS NOT NULL AND state IN ('active', 'suspect')
            ORDER BY id LIMIT $3" [pg " FOR UPDATE"] ")
         UPDATE grants SET issued_at = CAST($1 AS BIGINT) - lifetime, due_at = CAST($1 AS BIGINT), sweep_at = CASE WHEN sweep_at IS NOT NULL THEN CAST($1 AS BIGINT) END
         FROM dated WHERE grants.id = dated.id RETURNING grants.id AS id"
    }
}

impl Store {
    /// Gives a sign of life, and notes the time.
    pub async fn beat(&self, beat: &Beat) -> Result<(), StoreError> {
        let attempts: BTreeMap<String, u32> =
            beat.attempts.iter().map(|(provider, count)| (provider.to_string(), *count)).collect();
        let mut tx = self.db.begin().await?;
        tx.execute(&BEAT, args![beat.replica, beat.started_at, beat.at, to_json(&attempts)?]).await?;
        tx.execute(&RAISE_HIGH_WATER, args![beat.at]).await?;
        tx.commit().await
    }

    /// The replicas heard of after `since`.
    pub async fn replicas(&self, since: Timestamp) -> Result<Vec<Beat>, StoreError> {
        let rows = self.db.all(&LIVE, args![since]).await?;
        let beat = |row: &super::sql::Row| {
            let cells = row.of("replicas", "", "id")?;
            let attempts: BTreeMap<String, u32> = cells.json("attempts")?;
            let attempts = attempts.into_iter().filter_map(|(id, count)| Some((id.parse().ok()?, count)));
            Ok(Beat {
                replica: cells.parse("id")?,
                started_at: cells.time("started_at")?,
                at: cells.time("beat_at")?,
                attempts: attempts.collect(),
            })
        };
        rows.iter().map(beat).collect()
    }

    /// When a replica was last heard of; `None` if never, or not for long.
    pub async fn last_heard(&self, replica: ReplicaId) -> Result<Option<Timestamp>, StoreError> {
        let row = self.db.one(&LAST_HEARD, args![replica]).await?;
        row.map(|row| row.of("replicas", "", "id")?.time("beat_at")).transpose()
    }

    /// Forgets replicas that were not heard of since `before`.
    pub async fn forget_replicas(&self, before: Timestamp) -> Result<u64, StoreError> {
        self.db.execute(&FORGET, args![before]).await
    }

    /// What time it is to others; by `clock` only how long it took to ask.
    pub async fn times(&self, clock: &Clock) -> Result<Times, StoreError> {
        let asked = clock.boot();
        let row = self.db.one(&TIMES, &[]).await?;
        let answered = clock.boot();
        let row = row.ok_or_else(|| StoreError::Other("the table instance has no row".to_owned()))?;
        let cells = row.of("instance", "", "id")?;
        let reading = |at| Reading { at, asked, answered };
        Ok(Times { high_water: cells.time("high_water")?, database: cells.time_opt("database_time")?.map(reading) })
    }

    /// The clock was set back: how old tokens are cannot be told. All that can be refreshed count as run out, and the
    /// time begins anew at `now`: last, so that who is cut off before does all of it again. Answers how many those are.
    pub async fn distrust_tokens(&self, now: Timestamp) -> Result<usize, StoreError> {
        let (mut distrusted, mut last) = (0, String::new());
        loop {
            let batch = self.db.change(&DISTRUST, args![now, last.as_str(), BATCH]).await?;
            distrusted += batch.len();
            // RETURNING has no order.
            for row in &batch {
                last = last.max(row.get("id")?);
            }
            if batch.len() < BATCH as usize {
                break;
            }
        }
        self.db.execute(&LOWER_HIGH_WATER, args![now]).await?;
        Ok(distrusted)
    }
}
