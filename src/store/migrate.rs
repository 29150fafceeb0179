//! The schema and its versions. Forward only: what is released is never edited, only followed.

use std::cmp::Ordering;

use super::Store;
use super::db::{Db, Tx};
use super::error::StoreError;
use super::sql::{args, statements};

/// A step of the schema, the same on both engines but for the types' names.
struct Migration {
    version: i64,
    name: &'static str,
    sqlite: &'static str,
    postgres: &'static str,
}

macro_rules! migrations {
    ($($version:literal $name:literal,)+) => {
        &[$(Migration {
            version: $version,
            name: $name,
            sqlite: include_str!(concat!("../../migrations/sqlite/", $name, ".sql")),
            postgres: include_str!(concat!("../../migrations/postgres/", $name, ".sql")),
        }),+]
    };
}

/// All of them, in order.
const MIGRATIONS: &[Migration] = migrations! {
    1 "0001_begin",
};

/// How a store's schema compares with this program's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Schema {
    /// None yet.
    Empty,
    /// The one that this program knows.
    Current,
    /// An older one: migrate first.
    Older,
    /// A newer one: this program must leave it alone.
    Newer,
}

/// Any number that nothing else in the database takes its advisory locks by.
const LOCK: i64 = 0x746f_6b65_6e77; // "tokenw"

/// Of the bookkeeping itself, which comes before every version.
const BOOKKEEPING: &str =
    "CREATE TABLE IF NOT EXISTS schema_migrations (version BIGINT PRIMARY KEY, name TEXT NOT NULL)";

statements! {
    TABLE_EXISTS {
        "SELECT COUNT(*) AS n FROM "
        [lite "sqlite_schema WHERE type = 'table' AND name = 'schema_migrations'"]
        [pg "pg_catalog.pg_tables WHERE schemaname = current_schema() AND tablename = 'schema_migrations'"]
    }
    VERSION { "SELECT COALESCE(MAX(version), 0) AS version FROM schema_migrations" }
    APPLIED { "INSERT INTO schema_migrations (version, name) VALUES ($1, $2)" }
    // Held until the transaction ends. On SQLite BEGIN IMMEDIATE is the lock.
    TAKE_LOCK { "SELECT 1 AS locked" [pg " FROM (SELECT pg_advisory_xact_lock($1)) AS taken"] [lite " WHERE $1 <> 0"] }
}

impl Store {
    /// How the schema compares with this program's.
    pub async fn schema(&self) -> Result<Schema, StoreError> {
        let tables: i64 = match self.db.one(&TABLE_EXISTS, &[]).await? {
            Some(row) => row.get("n")?,
            None => 0,
        };
        if tables == 0 {
            return Ok(Schema::Empty);
        }
        let found: i64 = match self.db.one(&VERSION, &[]).await? {
            Some(row) => row.get("version")?,
            None => 0,
        };
        Ok(compare(found, newest(MIGRATIONS)))
    }

    /// Brings the schema to this program's version: all of it or, if it fails, nothing. Two that migrate at once wait
    /// for each other. A newer schema is refused.
    pub async fn migrate(&self) -> Result<(), StoreError> {
        run(&self.db, MIGRATIONS).await
    }
}

async fn run(db: &Db, migrations: &[Migration]) -> Result<(), StoreError> {
    let mut tx = db.begin().await?;
    tx.take_your_time().await?;
    tx.execute(&TAKE_LOCK, args![LOCK]).await?;
    tx.script(BOOKKEEPING).await?;
    let found: i64 = match tx.one(&VERSION, &[]).await? {
        Some(row) => row.get("version")?,
        None => 0,
    };
    let known = newest(migrations);
    if found > known {
        return Err(StoreError::Newer { found, known });
    }
    for migration in migrations.iter().filter(|migration| migration.version > found) {
        let script = match &tx {
            Tx::Sqlite { .. } => migration.sqlite,
            Tx::Postgres { .. } => migration.postgres,
        };
        tx.script(script).await?;
        tx.execute(&APPLIED, args![migration.version, migration.name]).await?;
        tracing::info!(version = migration.version, name = migration.name, "schema migrated");
    }
    tx.commit().await
}

fn compare(found: i64, known: i64) -> Schema {
    match found.cmp(&known) {
        // The bookkeeping alone is no schema yet.
        _ if found == 0 => Schema::Empty,
        Ordering::Less => Schema::Older,
        Ordering::Equal => Schema::Current,
        Ordering::Greater => Schema::Newer,
    }
}

fn newest(migrations: &[Migration]) -> i64 {
    migrations.last().map_or(0, |migration| migration.version)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One space between words; the types' names as SQLite's.
    fn plain(script: &str) -> String {
        let mut script = script.split_whitespace().collect::<Vec<_>>().join(" ");
        for (postgres, sqlite) in [
            ("TEXT COLLATE \"C\"", "TEXT"),
            // What SQLite does with every INTEGER PRIMARY KEY.
            ("GENERATED ALWAYS AS IDENTITY ", ""),
            ("BIGINT", "INTEGER"),
            ("BYTEA", "BLOB"),
            ("BOOLEAN", "INTEGER"),
            (") STRICT;", ");"),
        ] {
            script = script.replace(postgres, sqlite);
        }
        script
    }

    #[test]
    fn both_engines_have_the_same_schema_but_for_the_names_of_types() {
        for migration in MIGRATIONS {
            let head = |script: &str| script.split_once("\nCREATE ").unwrap().1.to_owned();
            assert_eq!(plain(&head(migration.sqlite)), plain(&head(migration.postgres)), "{}", migration.name);
        }
    }

    #[test]
    fn a_schema_is_judged_by_its_version() {
        let judged = [0, 1, 2, 3].map(|found| compare(found, 2));
        assert_eq!(judged, [Schema::Empty, Schema::Older, Schema::Current, Schema::Newer]);
    }

    #[test]
    fn every_migration_file_is_known_and_numbered_by_its_name() {
        for engine in ["sqlite", "postgres"] {
            let directory = format!("{}/migrations/{engine}", env!("CARGO_MANIFEST_DIR"));
            let mut files: Vec<String> = std::fs::read_dir(directory)
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            files.sort();
            let known: Vec<String> = MIGRATIONS.iter().map(|migration| format!("{}.sql", migration.name)).collect();
            assert_eq!(files, known, "{engine}");
        }
        for (index, migration) in (1..).zip(MIGRATIONS) {
            assert!(migration.version == index && migration.name.starts_with(&format!("{index:04}_")));
        }
    }

    #[tokio::test]
    async fn a_migration_that_fails_leaves_nothing_behind() {
        let directory = tempfile::tempdir().unwrap();
        let db = Db::open_sqlite(&directory.path().join("store.db"), 2).await.unwrap();
        let whole = Migration { version: 1, name: "whole", sqlite: "CREATE TABLE a (b INTEGER)", postgres: "" };
        let broken = Migration { version: 2, name: "broken", sqlite: "CREATE TABLE c (d); nonsense", postgres: "" };
        assert!(run(&db, &[whole, broken]).await.is_err());
        let row = db.one(&TABLE_EXISTS, &[]).await.unwrap().unwrap();
        assert_eq!(row.get::<i64>("n").unwrap(), 0);
    }
}
