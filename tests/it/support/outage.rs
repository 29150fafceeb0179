//! The store taken away from the wallet, and given back, by another who uses it.

use std::path::Path;

use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use token_wallet::config::StoreUrl;

use super::proxy::Proxy;
use super::writer::{HeldWriter, hold_writer};

/// Nobody can write to the store.
pub enum Outage {
    /// Somebody else has the file's write lock. It can still be read.
    Sqlite(HeldWriter),
    /// The database is read-only, and every connection that does not know it is gone.
    Postgres(PgConnection),
    /// Who comes through this proxy cannot reach it.
    Network(Proxy),
}

const ENDED: &str = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                     WHERE datname = current_database() AND pid <> pg_backend_pid()";

impl Outage {
    pub async fn begin(url: &StoreUrl) -> Self {
        if let Some(path) = url.sqlite_path() {
            return Self::Sqlite(hold_writer(path).await);
        }
        let mut connection = PgConnection::connect(url.expose()).await.unwrap();
        read_only(&mut connection, true).await;
        Self::Postgres(connection)
    }

    /// The network is as `weather` makes it: cut, or silent.
    pub fn of_network(proxy: &Proxy, weather: fn(&Proxy)) -> Self {
        weather(proxy);
        Self::Network(proxy.clone())
    }

    /// The store is back when this returns.
    pub async fn end(self) {
        match self {
            Self::Sqlite(held) => drop(held),
            Self::Postgres(mut connection) => {
                read_only(&mut connection, false).await;
                connection.close().await.unwrap();
            }
            Self::Network(proxy) => proxy.heal(),
        }
    }
}

async fn read_only(connection: &mut PgConnection, on: bool) {
    let name: String = sqlx::query_scalar("SELECT current_database()").fetch_one(&mut *connection).await.unwrap();
    let alter = format!("ALTER DATABASE {name} SET default_transaction_read_only = {on}");
    sqlx::raw_sql(AssertSqlSafe(alter)).execute(&mut *connection).await.unwrap();
    sqlx::raw_sql(ENDED).execute(connection).await.unwrap();
}

/// How many answers are on disk in the spools below `directory`.
pub fn spooled(directory: &Path) -> usize {
    tagged(directory, *b"TWS1")
}

/// How many answers are set aside there.
pub fn aside(directory: &Path) -> usize {
    tagged(directory, *b"TWS-")
}

fn tagged(directory: &Path, tag: [u8; 4]) -> usize {
    let Ok(folders) = std::fs::read_dir(directory) else { return 0 };
    let files = folders.map(|folder| folder.unwrap().path().join("answers"));
    files.filter_map(|file| std::fs::read(file).ok()).map(|bytes| slots(&bytes, tag).len()).sum()
}

/// Where records begin in a spool's file.
pub fn records(bytes: &[u8]) -> Vec<usize> {
    slots(bytes, *b"TWS1")
}

fn slots(bytes: &[u8], tag: [u8; 4]) -> Vec<usize> {
    (0..bytes.len()).step_by(2048).filter(|offset| bytes[*offset..].starts_with(&tag)).collect()
}
