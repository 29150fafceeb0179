//! Event rows: written in the transaction of the change that they tell of, numbered after it, read by their numbers.
//!
//! A number is given once its row is committed, and whoever gives numbers holds the one `event_log` row until they are
//! committed: numbers become visible in their order and without holes, so nobody who reads on from one misses another.

use std::sync::Arc;

use tokio::sync::Notify;

use super::db::Tx;
use super::error::StoreError;
use super::sql::{Cells, args, statements};
use super::{BATCH, Store};
use crate::clock::Timestamp;
use crate::domain::event::{Event, EventKind};
use crate::domain::ids::{AccountId, EventId, FlowId};
use crate::domain::provider::Slug;
use crate::domain::user::UserId;
use crate::telemetry::metrics;

/// So many numbers one reading looks at where a filter may skip all of them.
const WINDOW: i64 = 1_000;

/// More numbers than there will be.
const ALL_NUMBERS: i64 = i64::MAX / 2;

/// So many rows that wait for a number are counted at most.
const COUNTED: u32 = 1_000;

/// What a transaction writes of events, and who is told of it once it is committed.
pub(super) struct News {
    kinds: Vec<EventKind>,
    written: Arc<Notify>,
}

/// How far numbering is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventLog {
    /// The newest number; 0 if there is none.
    pub newest: i64,
    /// How many rows wait for theirs.
    pub unnumbered: u32,
}

/// What one batch of numbering has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Numbered {
    /// How many rows got a number.
    pub count: u32,
    /// The newest number now.
    pub newest: i64,
    /// Whether none waited any more.
    pub all: bool,
}

/// An event as the log has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventRow {
    /// Its number.
    pub sequence: i64,
    /// Its id.
    pub id: EventId,
    /// When it happened.
    pub at: Timestamp,
    /// What happened; `None` if a newer program wrote it.
    pub kind: Option<EventKind>,
    /// To whom, if to somebody.
    pub user: Option<UserId>,
    /// At which provider, by the name it has or had.
    pub provider_slug: String,
    /// To which account, if there is one.
    pub account: Option<AccountId>,
    /// In which flow, if in one.
    pub flow: Option<FlowId>,
    /// Why.
    pub reason: Option<String>,
}

/// Which events to read. Unset filters match all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EventFilter {
    /// Of this user.
    pub user: Option<UserId>,
    /// At this provider.
    pub provider: Option<Slug>,
    /// Of these kinds; empty: of all.
    pub kinds: Vec<EventKind>,
}

/// A part of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventPage {
    /// What matched, the oldest first.
    pub events: Vec<EventRow>,
    /// The number up to which all that match are here or were before.
    pub upto: i64,
    /// The id of the event at the number behind which this begins, if it is there.
    pub begin_id: Option<String>,
    /// The id of the event at `upto`, if it is there.
    pub upto_id: Option<String>,
    /// The newest number.
    pub newest: i64,
}

/// Why a part of the log cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum EventsError {
    /// What follows the number was removed for its age, or some of it.
    #[error("the events after this number are removed")]
    Gone,
    /// The log has not come to the number.
    #[error("the log has no such number yet")]
    Ahead,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

macro_rules! page {
    () => {
        "SELECT l.sequence AS l_sequence, l.removed AS l_removed,
            (SELECT b.id FROM events b WHERE b.sequence = CAST($1 AS BIGINT)) AS l_begin_id,
            (SELECT u.id FROM events u WHERE u.sequence = CASE
                WHEN l.sequence < COALESCE(CAST($1 AS BIGINT), l.removed) + CAST($5 AS BIGINT) THEN l.sequence
                ELSE COALESCE(CAST($1 AS BIGINT), l.removed) + CAST($5 AS BIGINT) END) AS l_upto_id, e.sequence AS e_sequence, e.id AS e_id, e.at AS e_at,
            e.kind AS e_kind, e.user_id AS e_user_id, e.account_id AS e_account_id, e.flow_id AS e_flow_id,
            e.reason AS e_reason, p.slug AS e_provider_slug
         FROM event_log l LEFT JOIN events e ON e.sequence > COALESCE(CAST($1 AS BIGINT), l.removed)
            AND (CAST($2 AS TEXT) IS NULL OR e.provider_id IN (SELECT id FROM providers WHERE slug = $2)) "
    };
}

macro_rules! ordered {
    () => {
        " LEFT JOIN providers p ON p.id = e.provider_id WHERE l.singleton = 1 ORDER BY e.sequence LIMIT $4"
    };
}

statements! {
    INSERT {
        "INSERT INTO events (id, at, kind, user_id, provider_id, account_id, grant_id, flow_id, reason)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)"
    }
    LOOK {
        "SELECT sequence, (SELECT COUNT(*) FROM (SELECT 1 AS one FROM events WHERE sequence IS NULL LIMIT $1) AS waiting)
            AS unnumbered FROM event_log WHERE singleton = 1"
    }
    // Takes the row's lock: what follows sees all that others have numbered.
    LOCK { "UPDATE event_log SET sequence = sequence WHERE singleton = 1 RETURNING sequence" }
    NUMBER {
        "UPDATE events SET sequence = numbered.sequence FROM (
            SELECT written, CAST($1 AS BIGINT) + ROW_NUMBER() OVER (ORDER BY written) AS sequence FROM (
                SELECT written FROM events WHERE sequence IS NULL ORDER BY written LIMIT $2) AS waiting) AS numbered
         WHERE events.written = numbered.written AND events.sequence IS NULL"
    }
    ADVANCE { "UPDATE event_log SET sequence = $1 WHERE singleton = 1 AND sequence < $1" }
    PAGE {
        page!() " AND e.sequence <= COALESCE(CAST($1 AS BIGINT), l.removed) + CAST($5 AS BIGINT)
            AND (CAST($3 AS TEXT) IS NULL OR " [lite "instr"] [pg "strpos"] "($3, ' ' || e.kind || ' ') > 0)" ordered!()
    }
    PAGE_OF_USER {
        page!() " AND e.user_id = $6
            AND (CAST($3 AS TEXT) IS NULL OR " [lite "instr"] [pg "strpos"] "($3, ' ' || e.kind || ' ') > 0)" ordered!()
    }
    OLDEST {
        "SELECT e.sequence, e.at FROM event_log l JOIN events e ON e.sequence > l.removed
         WHERE l.singleton = 1 ORDER BY e.sequence LIMIT $1"
    }
    FORGET { "UPDATE event_log SET removed = $1 WHERE singleton = 1 AND removed < $1 AND sequence >= $1" }
    REMOVE { "DELETE FROM events WHERE sequence <= $1" }
}

impl News {
    pub(super) fn new(written: &Arc<Notify>) -> Self {
        Self { kinds: Vec::new(), written: Arc::clone(written) }
    }

    /// The transaction is committed.
    pub(super) fn publish(self) {
        if self.kinds.is_empty() {
            return;
        }
        for kind in &self.kinds {
            metrics::event(kind.as_str());
        }
        self.written.notify_one();
    }
}

impl Store {
    /// Writes an event that tells of no change.
    pub async fn tell(&self, event: &Event) -> Result<(), StoreError> {
        let mut tx = self.db.begin().await?;
        insert(&mut tx, event).await?;
        tx.commit().await
    }

    /// Returns once this process has committed events since this was last asked. For one listener.
    pub async fn events_written(&self) {
        self.db.written().notified().await;
    }

    /// How far numbering is.
    pub async fn event_log(&self) -> Result<EventLog, StoreError> {
        let row = self.db.one(&LOOK, args![COUNTED]).await?.ok_or_else(no_log)?;
        let unnumbered: i64 = row.get("unnumbered")?;
        Ok(EventLog { newest: row.get("sequence")?, unnumbered: u32::try_from(unnumbered).unwrap_or(u32::MAX) })
    }

    /// Numbers committed events that have no number yet, up to 250 of them in the order of their writing.
    ///
    /// # Errors
    ///
    /// [`StoreError::Busy`] if somebody else holds the log.
    pub async fn number_events(&self) -> Result<Numbered, StoreError> {
        let mut tx = self.db.begin().await?;
        // Whoever holds it is numbering.
        tx.hurry().await?;
        let row = tx.one(&LOCK, &[]).await?.ok_or_else(no_log)?;
        let before: i64 = row.get("sequence")?;
        let count = u32::try_from(tx.execute(&NUMBER, args![before, BATCH]).await?).unwrap_or(BATCH);
        let newest = before + i64::from(count);
        if count > 0 {
            tx.execute(&ADVANCE, args![newest]).await?;
            tx.commit().await?;
        }
        Ok(Numbered { count, newest, all: count < BATCH })
    }

    /// Up to `limit` events after a number, `None` for the oldest ones there are, in the order of their numbers.
    pub async fn events_after(
        &self,
        after: Option<i64>,
        filter: &EventFilter,
        limit: u32,
    ) -> Result<EventPage, EventsError> {
        // Nothing has such a number, and the window behind it would be beyond all numbers.
        if after.is_some_and(|after| after > ALL_NUMBERS) {
            return Err(EventsError::Ahead);
        }
        let provider = filter.provider.as_ref().map(Slug::as_str);
        let kinds: Vec<_> = filter.kinds.iter().map(|kind| kind.as_str()).collect();
        let kinds = Some(format!(" {} ", kinds.join(" "))).filter(|_| !kinds.is_empty());
        let kinds = kinds.as_deref();
        // An index leads to one user's: whatever else there is need not be looked at.
        let window = if filter.user.is_some() { ALL_NUMBERS } else { WINDOW };
        let rows = match &filter.user {
            Some(user) => self.db.all(&PAGE_OF_USER, args![after, provider, kinds, limit, window, user]).await?,
            None => self.db.all(&PAGE, args![after, provider, kinds, limit, window]).await?,
        };
        let log = rows.first().ok_or_else(no_log)?;
        let (newest, removed): (i64, i64) = (log.get("l_sequence")?, log.get("l_removed")?);
        let (begin_id, seen_id): (Option<String>, Option<String>) = (log.get("l_begin_id")?, log.get("l_upto_id")?);
        let after = after.unwrap_or(removed);
        if after < removed {
            return Err(EventsError::Gone);
        }
        if after > newest {
            return Err(EventsError::Ahead);
        }
        let mut events = Vec::with_capacity(rows.len());
        for row in &rows {
            if row.get::<Option<i64>>("e_sequence")?.is_some() {
                events.push(event(&row.of("events", "e_", "id")?)?);
            }
        }
        let full = events.len() >= limit as usize;
        let seen = newest.min(after.saturating_add(window));
        let (upto, upto_id) = match events.last().filter(|_| full) {
            Some(last) => (last.sequence, Some(last.id.to_string())),
            None => (seen, seen_id),
        };
        Ok(EventPage { events, upto, begin_id, upto_id, newest })
    }

    /// Removes numbered events from before `before`, the oldest first and never one whose elder stays. Answers how many.
    pub async fn forget_events(&self, before: Timestamp) -> Result<u64, StoreError> {
        let mut removed = 0;
        loop {
            let batch = self.forget_batch(before).await?;
            removed += batch;
            if batch < u64::from(BATCH) {
                return Ok(removed);
            }
        }
    }

    async fn forget_batch(&self, before: Timestamp) -> Result<u64, StoreError> {
        let mut last = None;
        for row in self.db.all(&OLDEST, args![BATCH]).await? {
            if row.get::<i64>("at")? >= before.millis() {
                break;
            }
            last = Some(row.get::<i64>("sequence")?);
        }
        let Some(last) = last else { return Ok(0) };
        let mut tx = self.db.begin().await?;
        if tx.execute(&FORGET, args![last]).await? == 0 {
            return Ok(0);
        }
        let removed = tx.execute(&REMOVE, args![last]).await?;
        tx.commit().await?;
        Ok(removed)
    }
}

/// Writes an event.
pub(super) async fn insert(tx: &mut Tx, event: &Event) -> Result<(), StoreError> {
    let values = args![
        event.id,
        event.at,
        event.kind.as_str(),
        event.user.as_ref().map(UserId::as_str),
        event.provider,
        event.account,
        event.grant,
        event.flow,
        event.reason.as_deref(),
    ];
    tx.execute(&INSERT, values).await?;
    tx.news().kinds.push(event.kind);
    Ok(())
}

fn event(cells: &Cells<'_>) -> Result<EventRow, StoreError> {
    Ok(EventRow {
        sequence: cells.get("sequence")?,
        id: cells.parse("id")?,
        at: cells.time("at")?,
        kind: EventKind::parse(&cells.get::<String>("kind")?),
        user: cells.read_opt("user_id", |user| UserId::parse(user).ok())?,
        provider_slug: cells.get::<Option<String>>("provider_slug")?.unwrap_or_default(),
        account: cells.parse_opt("account_id")?,
        flow: cells.parse_opt("flow_id")?,
        reason: cells.get("reason")?,
    })
}

fn no_log() -> StoreError {
    StoreError::Other("the table event_log has no row".to_owned())
}
