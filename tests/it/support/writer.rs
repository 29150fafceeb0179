//! Somebody else who writes to the wallet's `SQLite` file and takes their time.

use std::path::Path;

use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{ConnectOptions as _, Executor as _};

/// The only writer of a file, until it is dropped. It writes nothing.
pub struct HeldWriter(#[expect(dead_code, reason = "its drop rolls back")] SqliteConnection);

/// Waits for its turn to write, up to 5 s, and keeps it. Readers read on.
pub async fn hold_writer(path: &Path) -> HeldWriter {
    let mut connection = SqliteConnectOptions::new().filename(path).connect().await.unwrap();
    connection.execute("BEGIN IMMEDIATE").await.unwrap();
    HeldWriter(connection)
}

#[tokio::test]
async fn nobody_writes_while_the_writer_is_held_and_everybody_reads() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("t.db");
    let options = SqliteConnectOptions::new().filename(&path).create_if_missing(true);
    let options = options.journal_mode(sqlx::sqlite::SqliteJournalMode::Wal);
    let mut other = options.busy_timeout(std::time::Duration::ZERO).connect().await.unwrap();
    other.execute("CREATE TABLE t (n INTEGER)").await.unwrap();
    let held = hold_writer(&path).await;
    assert!(other.execute("INSERT INTO t VALUES (1)").await.is_err());
    assert_eq!(other.fetch_all("SELECT n FROM t").await.unwrap().len(), 0);
    drop(held);
    super::harness::until("the writer is gone", async || other.execute("INSERT INTO t VALUES (1)").await.is_ok()).await;
}
