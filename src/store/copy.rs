//! A whole `SQLite` store, copied row by row into an empty PostgreSQL one. Rows go as they are: what is sealed stays
//! sealed, and opens under the same root key.

use sqlx::postgres::{PgArguments, Postgres};
use sqlx::query::Query;
use sqlx::sqlite::SqliteRow;
use sqlx::{AssertSqlSafe, Row as _};

use super::Store;
use super::db::{Db, Tx};
use super::error::StoreError;
use super::sql::{args, statements};

/// How many rows one transaction copies.
const BATCH: i64 = 500;

/// Each after those that its rows refer to. The keyring is the last: without it nobody can start on the copy.
const TABLES: [&str; 13] = [
    "providers",
    "provider_secrets",
    "users",
    "external_accounts",
    "grants",
    "flows",
    "api_clients",
    "api_keys",
    "redirect_urls",
    "request_ids",
    "events",
    "data_keys",
    "keyring",
];

/// What a copy is told while it goes on: the table, its rows there so far, its rows in all.
pub type Progress<'a> = &'a mut (dyn FnMut(&str, u64, u64) + Send);

/// What a copy came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Copied {
    /// It is whole now, or was already.
    Whole,
    /// The target holds something else: another instance, or rows that were there before.
    Foreign,
}

/// A column by its name, and how its values travel.
struct Column {
    name: String,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Text,
    Int,
    Bytes,
    Flag,
}

statements! {
    LEAVE { "UPDATE instance SET left_for = $1 WHERE left_for IS NULL" }
    STAY { "UPDATE instance SET left_for = NULL WHERE left_for = $1" }
    // Empty but for what the schema begins with, which is the source's from now on.
    INSTANCE_THERE { "SELECT id FROM instance" }
    ARRIVE {
        "INSERT INTO instance (singleton, id, kind, replica_id, created_at, high_water) VALUES (1, $1, $2, $3, $4, $5)"
    }
    INSTANCE_HERE { "SELECT id, kind, replica_id, created_at, high_water FROM instance" }
    LOG_HERE { "SELECT sequence, removed FROM event_log" }
    LOG_THERE { "UPDATE event_log SET sequence = $1, removed = $2" }
    // The next event is written after all that were copied.
    GO_ON_WRITING {
        [pg "SELECT setval(pg_get_serial_sequence('events', 'written'), GREATEST(MAX(written), 1)) AS written FROM events"]
        [lite "SELECT MAX(written) AS written FROM events"]
    }
    COLUMNS {
        [pg "SELECT column_name::text AS name, udt_name::text AS kind FROM information_schema.columns
             WHERE table_schema = current_schema() AND table_name = $1 ORDER BY ordinal_position"]
        [lite "SELECT name, type AS kind FROM pragma_table_info($1)"]
    }
}

impl Store {
    /// Says that this store is being left for another one, by its place: from now on no wallet starts on it. False if it
    /// is being left already.
    pub async fn leave(&self, place: &str) -> Result<bool, StoreError> {
        Ok(self.db.execute(&LEAVE, args![place]).await? == 1)
    }

    /// Takes that back. False if it is not being left for that place.
    pub async fn stay(&self, place: &str) -> Result<bool, StoreError> {
        Ok(self.db.execute(&STAY, args![place]).await? == 1)
    }

    /// Copies this store, a `SQLite` one that nobody changes, into `target`, a PostgreSQL one with the same schema. What
    /// an earlier try of the same instance copied is not copied again. The target can be started on once this is whole,
    /// and not before.
    ///
    /// Left out is what each wallet makes anew: signs of life, and what to drop from memory.
    pub async fn copy_into(&self, target: &Self, progress: Progress<'_>) -> Result<Copied, StoreError> {
        let Some(here) = self.db.one(&INSTANCE_HERE, &[]).await? else {
            return Err(StoreError::Other("the store to copy has no instance".to_owned()));
        };
        let id: String = here.get("id")?;
        match target.db.one(&INSTANCE_THERE, &[]).await? {
            Some(there) if there.get::<String>("id")? != id => return Ok(Copied::Foreign),
            Some(_) => {}
            None if target.has_rows().await? => return Ok(Copied::Foreign),
            None => {
                let (kind, replica): (String, String) = (here.get("kind")?, here.get("replica_id")?);
                let (created_at, high_water): (i64, i64) = (here.get("created_at")?, here.get("high_water")?);
                let values = args![&*id, &*kind, &*replica, created_at, high_water];
                target.db.execute(&ARRIVE, values).await?;
            }
        }
        if let Some(log) = self.db.one(&LOG_HERE, &[]).await? {
            let (sequence, removed): (i64, i64) = (log.get("sequence")?, log.get("removed")?);
            target.db.execute(&LOG_THERE, args![sequence, removed]).await?;
        }
        for table in TABLES {
            if table == "data_keys" {
                target.db.one(&GO_ON_WRITING, &[]).await?;
            }
            self.copy_table(target, table, progress).await?;
        }
        Ok(Copied::Whole)
    }

    async fn copy_table(&self, target: &Self, table: &str, progress: Progress<'_>) -> Result<(), StoreError> {
        let Db::Sqlite { read, .. } = &*self.db else {
            return Err(StoreError::Url("sqlite:PATH is expected to copy from"));
        };
        let columns = target.columns(table).await?;
        let count = format!("SELECT COUNT(*) AS n FROM {table}");
        let all: i64 = sqlx::query(AssertSqlSafe(count.clone())).fetch_one(read).await?.try_get("n")?;
        let mut done: i64 = one(target, sqlx::query(AssertSqlSafe(count))).await?;
        // Nobody changes the source, so its rows keep their places.
        let last = format!("SELECT rowid AS place FROM {table} ORDER BY rowid LIMIT 1 OFFSET {}", done.max(1) - 1);
        let mut place = match sqlx::query(AssertSqlSafe(last)).fetch_optional(read).await? {
            Some(row) if done > 0 => row.try_get("place")?,
            _ => i64::MIN,
        };
        let names: Vec<_> = columns.iter().map(|column| column.name.as_str()).collect();
        let names = names.join(", ");
        let page = format!("SELECT rowid AS place, {names} FROM {table} WHERE rowid > $1 ORDER BY rowid LIMIT {BATCH}");
        let arrays: Vec<_> =
            (1..).zip(&columns).map(|(n, column)| format!("${n}::{}[]", column.kind.of_postgres())).collect();
        let insert = format!(
            "INSERT INTO {table} ({names}) OVERRIDING SYSTEM VALUE SELECT * FROM UNNEST({})",
            arrays.join(", ")
        );
        progress(table, count_of(done), count_of(all));
        loop {
            let rows = sqlx::query(AssertSqlSafe(page.clone())).bind(place).fetch_all(read).await?;
            let Some(last) = rows.last() else { break };
            place = last.try_get("place")?;
            let query = columns
                .iter()
                .try_fold(sqlx::query(AssertSqlSafe(insert.clone())), |query, column| column.bind(query, &rows))?;
            let mut tx = target.db.begin().await?;
            if let Tx::Postgres { session, .. } = &mut tx {
                session.hits(query.persistent(false)).await?;
            }
            tx.commit().await?;
            done += i64::try_from(rows.len()).unwrap_or(i64::MAX);
            progress(table, count_of(done), count_of(all));
        }
        if done == all {
            return Ok(());
        }
        Err(StoreError::Other(format!("{table} has {all} rows here and {done} there")))
    }

    async fn columns(&self, table: &str) -> Result<Vec<Column>, StoreError> {
        let rows = self.db.all(&COLUMNS, args![table]).await?;
        let column = |row: &super::sql::Row| {
            let (name, kind): (String, String) = (row.get("name")?, row.get("kind")?);
            let kind = match kind.as_str() {
                "text" => Kind::Text,
                "int8" => Kind::Int,
                "bytea" => Kind::Bytes,
                "bool" => Kind::Flag,
                other => return Err(StoreError::Other(format!("{table}.{name} is of type {other}"))),
            };
            Ok(Column { name, kind })
        };
        rows.iter().map(column).collect()
    }
}

impl Kind {
    const fn of_postgres(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Int => "bigint",
            Self::Bytes => "bytea",
            Self::Flag => "boolean",
        }
    }
}

impl Column {
    /// Binds the column's value of each row as one array.
    fn bind<'q>(
        &self,
        query: Query<'q, Postgres, PgArguments>,
        rows: &[SqliteRow],
    ) -> Result<Query<'q, Postgres, PgArguments>, StoreError> {
        fn values<'r, T>(rows: &'r [SqliteRow], name: &str) -> sqlx::Result<Vec<Option<T>>>
        where
            T: sqlx::Decode<'r, sqlx::Sqlite> + sqlx::Type<sqlx::Sqlite>,
        {
            rows.iter().map(|row| row.try_get(name)).collect()
        }
        let name = self.name.as_str();
        Ok(match self.kind {
            Kind::Text => query.bind(values::<String>(rows, name)?),
            Kind::Int => query.bind(values::<i64>(rows, name)?),
            Kind::Bytes => query.bind(values::<Vec<u8>>(rows, name)?),
            Kind::Flag => query.bind(values::<bool>(rows, name)?),
        })
    }
}

/// The number `n` that a query on PostgreSQL answers.
async fn one(target: &Store, query: Query<'_, Postgres, PgArguments>) -> Result<i64, StoreError> {
    let mut tx = target.db.begin().await?;
    let Tx::Postgres { session, .. } = &mut tx else {
        return Err(StoreError::Url("postgres://… is expected to copy to"));
    };
    let rows = session.rows(query.persistent(false)).await?;
    tx.commit().await?;
    Ok(rows.first().map_or(Ok(0), |row| row.try_get("n"))?)
}

fn count_of(rows: i64) -> u64 {
    u64::try_from(rows).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_table_is_copied_or_made_anew() {
        let script = include_str!("../../migrations/sqlite/0001_begin.sql");
        let tables = script.lines().filter_map(|line| line.strip_prefix("CREATE TABLE ")?.split(' ').next());
        let mut copied = TABLES.to_vec();
        copied.extend(["instance", "event_log", "replicas", "coherence", "coherence_log"]);
        let mut tables: Vec<_> = tables.collect();
        tables.sort_unstable();
        copied.sort_unstable();
        assert_eq!(tables, copied);
    }
}
