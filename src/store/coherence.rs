//! Coherence: what replicas must drop from memory, logged by each change in its own transaction.
//!
//! The one `coherence` row counts such changes; its lock, taken last, puts them in the order of their commits. A store
//! of one process writes no log: that process drops directly.

use super::db::{Db, Tx};
use super::error::StoreError;
use super::sql::{Row, args, statements};
use super::{BATCH, Store};
use crate::clock::Timestamp;
use crate::domain::event::Event;
use crate::domain::ids::ProviderId;
use crate::domain::user::UserId;

/// What a replica may have in memory and must not serve any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stale {
    /// A user's accounts at a provider, with their grants.
    Account {
        /// Where.
        provider: ProviderId,
        /// Whose.
        user: UserId,
    },
    /// The configured providers: few, and seldom changed.
    Providers,
    /// The API clients and their keys: the same.
    ApiClients,
}

/// How far a replica has read the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The newest sequence.
    pub sequence: i64,
    /// What stood there. After a failover that lost the log's end the same sequence may stand for another change.
    pub mark: Option<String>,
}

/// What became stale since a replica read the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changes {
    /// How far it has been read now.
    pub place: Place,
    /// What to drop, the oldest change first.
    pub stale: Vec<Stale>,
    /// Not all of it is known: drop everything.
    pub gap: bool,
}

/// A replica that is further behind than this drops everything.
const FAR_BEHIND: u32 = 1_000;

statements! {
    BUMP { "UPDATE coherence SET sequence = sequence + 1 WHERE singleton = 1 RETURNING sequence" }
    LOG { "INSERT INTO coherence_log (sequence, kind, subject, at) VALUES ($1, $2, $3, $4)" }
    SINCE {
        "SELECT c.sequence, l.sequence AS place, l.kind, l.subject, l.at FROM coherence c
         LEFT JOIN coherence_log l ON l.sequence >= COALESCE(CAST($1 AS BIGINT), c.sequence)
         WHERE c.singleton = 1 ORDER BY l.sequence LIMIT $2"
    }
    // The newest row stays: by it a reader knows the log again.
    TIDY {
        "DELETE FROM coherence_log WHERE sequence IN
            (SELECT sequence FROM coherence_log WHERE at < $1 AND sequence < (SELECT c.sequence FROM coherence c)
             ORDER BY sequence LIMIT $2)"
    }
}

impl Stale {
    /// What an event tells of: a user's accounts, or a provider.
    pub fn of(event: &Event) -> Self {
        match &event.user {
            Some(user) => Self::Account { provider: event.provider, user: user.clone() },
            None => Self::Providers,
        }
    }

    fn kind(&self) -> &'static str {
        match self {
            Self::Account { .. } => "account",
            Self::Providers => "providers",
            Self::ApiClients => "api_clients",
        }
    }

    fn subject(&self) -> String {
        match self {
            Self::Account { provider, user } => format!("{provider} {user}"),
            Self::Providers | Self::ApiClients => String::new(),
        }
    }

    fn parse(kind: &str, subject: &str) -> Option<Self> {
        match kind {
            "account" => {
                let (provider, user) = subject.split_once(' ')?;
                Some(Self::Account { provider: provider.parse().ok()?, user: UserId::parse(user).ok()? })
            }
            "providers" => Some(Self::Providers),
            "api_clients" => Some(Self::ApiClients),
            _ => None,
        }
    }
}

impl Store {
    /// What became stale after the place `known`; `None` knows nothing.
    pub async fn coherence_since(&self, known: Option<&Place>) -> Result<Changes, StoreError> {
        // And the row of that place.
        let rows = self.db.all(&SINCE, args![known.map(|known| known.sequence), FAR_BEHIND + 1]).await?;
        changes(known, &rows)
    }

    /// Removes log rows from before `before`: whoever has not read them drops everything.
    pub async fn tidy_coherence(&self, before: Timestamp) -> Result<(), StoreError> {
        if matches!(*self.db, Db::Sqlite { .. }) {
            return Ok(());
        }
        self.in_batches(&TIDY, args![before, BATCH]).await.map(drop)
    }
}

/// Tells other replicas what this transaction makes stale. Its last statement: from here to the commit all others wait.
pub(super) async fn tell(tx: &mut Tx, stale: &Stale, at: Timestamp) -> Result<(), StoreError> {
    if matches!(tx, Tx::Sqlite { .. }) {
        return Ok(());
    }
    let row = tx.one(&BUMP, &[]).await?;
    let row = row.ok_or_else(|| StoreError::Other("the table coherence has no row".to_owned()))?;
    let sequence: i64 = row.get("sequence")?;
    tx.execute(&LOG, args![sequence, stale.kind(), stale.subject(), at]).await.map(drop)
}

fn changes(known: Option<&Place>, rows: &[Row]) -> Result<Changes, StoreError> {
    let newest = rows.first().ok_or_else(|| StoreError::Other("the table coherence has no row".to_owned()))?;
    let mut place = Place { sequence: newest.get("sequence")?, mark: None };
    let (mut stale, mut was_there) = (Vec::new(), None);
    for row in rows {
        let Some(sequence) = row.get::<Option<i64>>("place")? else { continue };
        let (kind, subject) = (row.get::<String>("kind")?, row.get::<String>("subject")?);
        let mark = Some(format!("{kind} {subject} {}", row.get::<i64>("at")?));
        if sequence == place.sequence {
            place.mark.clone_from(&mark);
        }
        if known.is_some_and(|known| sequence == known.sequence) {
            was_there = mark;
            continue;
        }
        // A word that this program does not know: a newer one runs beside it.
        stale.extend(Stale::parse(&kind, &subject));
    }
    // Sequences have no holes, so a step back, a removed row, an unknown word and a cut list all miscount.
    let told = i64::try_from(stale.len()).unwrap_or(i64::MAX);
    let gap = known.is_none_or(|known| {
        place.sequence.saturating_sub(known.sequence) != told || known.mark.is_some() && known.mark != was_there
    });
    Ok(Changes { place, stale, gap })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_logged_reads_back() {
        let now = Timestamp::from_millis(1_700_000_000_000);
        for stale in [
            Stale::Account { provider: ProviderId::new(now), user: UserId::parse("a user, with spaces").unwrap() },
            Stale::Providers,
            Stale::ApiClients,
        ] {
            assert_eq!(Stale::parse(stale.kind(), &stale.subject()), Some(stale));
        }
        assert_eq!(Stale::parse("cellar", "prv_1"), None);
        assert_eq!(Stale::parse("account", "prv_1"), None);
    }
}
