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

/// What became stale since a sequence that a replica knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changes {
    /// The newest sequence.
    pub sequence: i64,
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
        "SELECT c.sequence, l.kind, l.subject FROM coherence c LEFT JOIN coherence_log l ON l.sequence > $1
         WHERE c.singleton = 1 ORDER BY l.sequence LIMIT $2"
    }
    TIDY {
        "DELETE FROM coherence_log WHERE sequence IN
            (SELECT sequence FROM coherence_log WHERE at < $1 ORDER BY sequence LIMIT $2)"
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
    /// What became stale after the sequence `known`; `None` knows nothing.
    pub async fn coherence_since(&self, known: Option<i64>) -> Result<Changes, StoreError> {
        let rows = self.db.all(&SINCE, args![known.unwrap_or(i64::MAX), FAR_BEHIND]).await?;
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

fn changes(known: Option<i64>, rows: &[Row]) -> Result<Changes, StoreError> {
    let newest = rows.first().ok_or_else(|| StoreError::Other("the table coherence has no row".to_owned()))?;
    let sequence: i64 = newest.get("sequence")?;
    let mut stale = Vec::new();
    for row in rows {
        let Some(kind) = row.get::<Option<String>>("kind")? else { continue };
        // A word that this program does not know: a newer one runs beside it.
        let Some(read) = Stale::parse(&kind, &row.get::<String>("subject")?) else { continue };
        stale.push(read);
    }
    // Sequences have no holes, so a step back, a removed row, an unknown word and a cut list all miscount.
    let told = i64::try_from(stale.len()).unwrap_or(i64::MAX);
    let gap = known.is_none_or(|known| sequence.saturating_sub(known) != told);
    Ok(Changes { sequence, stale, gap })
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
