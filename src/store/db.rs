//! The database: connections to either engine, statements run on them, transactions.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::str::FromStr as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgConnection, PgPool, PgPoolOptions};
use sqlx::sqlite::{Sqlite, SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{Connection as _, Executor as _, Row as _, SqlSafeStr as _, Transaction};
use tokio::sync::Notify;

use super::error::StoreError;
use super::events::News;
use super::lanes::{Lane, Lanes, Turn};
use super::session::{ANSWER, Session};
use super::sql::{Row, Sql, Value};

/// How long a statement waits for a connection, and on SQLite for another process's lock.
const PATIENCE: Duration = Duration::from_secs(5);

/// Connections for results on PostgreSQL: one that works and one that may hang. A try to connect that is given up soon
/// is made anew soon.
const RESULT_CONNECTIONS: u32 = 2;
const PROMPTNESS: Duration = Duration::from_millis(500);

/// How often a connection is looked at before it is taken for a session of its own.
const POOLER_PROBES: u32 = 3;

/// Connections to one of the two engines.
pub(super) enum Db {
    /// One connection writes, whoever's turn it is, and several read. The lock file is held for as long as this value
    /// lives.
    Sqlite { write: SqlitePool, lanes: Lanes, read: SqlitePool, lock: File, written: Arc<Notify> },
    /// Results have connections of their own: nobody keeps them waiting, and whether the server is there is soon known.
    /// `pooled`: statements of a connection may reach different sessions of the server.
    Postgres { pool: PgPool, results: PgPool, pooled: AtomicBool, written: Arc<Notify> },
}

/// A database as a writer of one lane sees it.
pub(super) struct Writer<'a> {
    db: &'a Db,
    lane: Lane,
}

/// A transaction; rolled back unless committed.
pub(super) enum Tx {
    /// The turn ends after the transaction.
    Sqlite {
        tx: Transaction<'static, Sqlite>,
        _turn: Turn,
        news: News,
    },
    Postgres {
        session: Session,
        pooled: bool,
        news: News,
    },
}

impl Db {
    /// Opens the `SQLite` file at `path`, making it if it is not there. No other process can open it meanwhile.
    pub(super) async fn open_sqlite(path: &Path, max_connections: u32) -> Result<Self, StoreError> {
        let lock = lock_file(path)?;
        let options = SqliteConnectOptions::new()
            .filename(path)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(PATIENCE);
        let write = sqlite_pool(1).connect_with(options).await;
        let write = write.map_err(|error| match error.into() {
            StoreError::Unavailable(why) => StoreError::Unavailable(format!("{}: {why}", path.display())),
            other => other,
        })?;
        let options = SqliteConnectOptions::new().filename(path).read_only(true).busy_timeout(PATIENCE);
        let read = sqlite_pool(max_connections.max(1)).connect_lazy_with(options);
        Ok(Self::Sqlite { write, lanes: Lanes::default(), read, lock, written: Arc::default() })
    }

    /// Connects to PostgreSQL. No session state is used: no `SET` but within a transaction, no `LISTEN`, no session
    /// locks, and named statements only where a connection is a session of its own.
    pub(super) async fn open_postgres(url: &str, max_connections: u32) -> Result<Self, StoreError> {
        let options = PgConnectOptions::from_str(url)
            .map_err(|_| StoreError::Url("postgres://user:password@host/database is expected"))?
            .application_name("token-wallet")
            // A start-up parameter that poolers refuse.
            .extra_float_digits(None);
        // A pool says only that it has waited for too long.
        let first = tokio::time::timeout(PATIENCE, PgConnection::connect_with(&options)).await;
        let first = first.map_err(|_| StoreError::Unavailable("no connection in time".to_owned()))?;
        first.map_err(|error| of_host(options.get_host(), error))?.close().await?;
        let pool = PgPoolOptions::new()
            .max_connections(max_connections.max(2))
            .acquire_timeout(PATIENCE)
            .connect_lazy_with(options.clone());
        let results = PgPoolOptions::new()
            .max_connections(RESULT_CONNECTIONS)
            .acquire_timeout(PROMPTNESS)
            .connect_lazy_with(options);
        let pooled = goes_through_a_pooler(&pool).await?;
        Ok(Self::Postgres { pool, results, pooled: AtomicBool::new(pooled), written: Arc::default() })
    }

    /// Closes all connections, after the statements that run on them.
    pub(super) async fn close(&self) {
        match self {
            Self::Sqlite { write, read, lock, .. } => {
                read.close().await;
                // The last one to close: it takes the write-ahead log back into the file.
                write.close().await;
                // Not when the last clone of the store is dropped, which is whenever a task ends.
                if let Err(error) = lock.unlock() {
                    tracing::warn!(%error, "the store's lock stays until this process ends");
                }
            }
            Self::Postgres { pool, results, .. } => {
                pool.close().await;
                results.close().await;
            }
        }
    }

    /// Is told whenever a transaction that wrote events was committed.
    pub(super) const fn written(&self) -> &Arc<Notify> {
        match self {
            Self::Sqlite { written, .. } | Self::Postgres { written, .. } => written,
        }
    }

    /// To write with this urgency.
    pub(super) const fn lane(&self, lane: Lane) -> Writer<'_> {
        Writer { db: self, lane }
    }

    /// Begins a transaction that may write, in the last lane.
    pub(super) async fn begin(&self) -> Result<Tx, StoreError> {
        self.lane(Lane::Rest).begin().await
    }

    /// The rows of a statement that only reads.
    pub(super) async fn all(&self, sql: &Sql, values: &[Value<'_>]) -> Result<Vec<Row>, StoreError> {
        match self {
            Self::Sqlite { read, .. } => {
                let rows = sql.on_sqlite(values).fetch_all(read).await?;
                Ok(rows.into_iter().map(Row::Sqlite).collect())
            }
            Self::Postgres { pool, pooled, .. } if !pooled.load(Ordering::Relaxed) => {
                let mut session = Session::of(pool, ANSWER).await?;
                let rows = session.rows(sql.on_postgres(values)).await;
                let rows = rows.inspect_err(|error| note_pooler(pooled, error))?;
                Ok(rows.into_iter().map(Row::Postgres).collect())
            }
            Self::Postgres { .. } => self.change(sql, values).await,
        }
    }

    /// The one row of a statement that only reads, if there is one.
    pub(super) async fn one(&self, sql: &Sql, values: &[Value<'_>]) -> Result<Option<Row>, StoreError> {
        Ok(self.all(sql, values).await?.into_iter().next())
    }

    /// [`Writer::change`] in the last lane.
    pub(super) async fn change(&self, sql: &Sql, values: &[Value<'_>]) -> Result<Vec<Row>, StoreError> {
        self.lane(Lane::Rest).change(sql, values).await
    }

    /// [`Writer::execute`] in the last lane.
    pub(super) async fn execute(&self, sql: &Sql, values: &[Value<'_>]) -> Result<u64, StoreError> {
        self.lane(Lane::Rest).execute(sql, values).await
    }

    /// Has the engine check a statement against the schema, without running it.
    pub(super) async fn prepare(&self, sql: &Sql) -> Result<(), StoreError> {
        match self {
            Self::Sqlite { write, .. } => write.prepare(sql.sqlite.into_sql_str()).await.map(drop)?,
            Self::Postgres { pool, .. } => pool.prepare(sql.postgres.into_sql_str()).await.map(drop)?,
        }
        Ok(())
    }
}

impl Writer<'_> {
    /// Begins a transaction that may write.
    pub(super) async fn begin(&self) -> Result<Tx, StoreError> {
        let news = News::new(self.db.written());
        Ok(match self.db {
            Db::Sqlite { write, lanes, .. } => {
                let turn = self.turn(lanes).await?;
                Tx::Sqlite { tx: write.begin_with("BEGIN IMMEDIATE").await?, _turn: turn, news }
            }
            Db::Postgres { pool, results, pooled, .. } => Tx::Postgres {
                session: Session::begin(self.lane.pool(pool, results), self.lane.begin(), self.lane.answer()).await?,
                pooled: pooled.load(Ordering::Relaxed),
                news,
            },
        })
    }

    /// The rows that a writing statement returns; a transaction of its own.
    pub(super) async fn change(&self, sql: &Sql, values: &[Value<'_>]) -> Result<Vec<Row>, StoreError> {
        match self.db {
            Db::Sqlite { write, lanes, .. } => {
                let _turn = self.turn(lanes).await?;
                let rows = sql.on_sqlite(values).fetch_all(write).await?;
                Ok(rows.into_iter().map(Row::Sqlite).collect())
            }
            // With the bounds of a transaction.
            Db::Postgres { .. } => {
                let mut tx = self.begin().await?;
                let rows = tx.all(sql, values).await?;
                tx.commit().await?;
                Ok(rows)
            }
        }
    }

    /// How many rows a writing statement hit; a transaction of its own.
    pub(super) async fn execute(&self, sql: &Sql, values: &[Value<'_>]) -> Result<u64, StoreError> {
        match self.db {
            Db::Sqlite { write, lanes, .. } => {
                let _turn = self.turn(lanes).await?;
                Ok(sql.on_sqlite(values).execute(write).await?.rows_affected())
            }
            Db::Postgres { .. } => {
                let mut tx = self.begin().await?;
                let hit = tx.execute(sql, values).await?;
                tx.commit().await?;
                Ok(hit)
            }
        }
    }

    /// Waits for this lane's turn at the one writer of `SQLite`.
    async fn turn(&self, lanes: &Lanes) -> Result<Turn, StoreError> {
        let turn = tokio::time::timeout(PATIENCE, lanes.turn(self.lane)).await;
        turn.map_err(|_| StoreError::Unavailable("others have been writing for too long".to_owned()))
    }
}

/// Begins a transaction on PostgreSQL that waits for a lock, works on a statement, and waits for our next one no longer
/// than so many milliseconds. One message, and gone with the transaction: a pooler gives the session to others.
macro_rules! begin {
    ($lock:literal, $statement:literal, $idle:literal) => {
        concat!(
            "BEGIN; SET LOCAL lock_timeout = ",
            $lock,
            "; SET LOCAL statement_timeout = ",
            $statement,
            "; SET LOCAL idle_in_transaction_session_timeout = ",
            $idle
        )
    };
}

impl Lane {
    /// How a transaction of this lane begins on PostgreSQL. Whoever holds a row for ever then keeps only those waiting
    /// who need it, and no session of ours holds one for ever.
    const fn begin(self) -> &'static str {
        match self {
            // A batch that meets a locked row goes row by row: soon enough for those who wait for the others.
            Self::Results => begin!(500, 5_000, 10_000),
            // A lease has room for both.
            Self::Claims => begin!(2_000, 5_000, 10_000),
            // Housekeeping too: statements that change many rows.
            Self::Rest => begin!(5_000, 60_000, 10_000),
        }
    }

    /// How long a statement of this lane may take on PostgreSQL, if the server does not say that it took too long.
    const fn answer(self) -> Duration {
        match self {
            Self::Results | Self::Claims => ANSWER,
            Self::Rest => Duration::from_secs(65),
        }
    }

    /// The connections of this lane.
    const fn pool<'a>(self, pool: &'a PgPool, results: &'a PgPool) -> &'a PgPool {
        match self {
            Self::Results => results,
            Self::Claims | Self::Rest => pool,
        }
    }
}

impl Tx {
    /// The rows of a statement.
    pub(super) async fn all(&mut self, sql: &Sql, values: &[Value<'_>]) -> Result<Vec<Row>, StoreError> {
        Ok(match self {
            Self::Sqlite { tx, .. } => {
                sql.on_sqlite(values).fetch_all(&mut **tx).await?.into_iter().map(Row::Sqlite).collect()
            }
            Self::Postgres { session, pooled, .. } => {
                let rows = session.rows(sql.on_postgres(values).persistent(!*pooled)).await?;
                rows.into_iter().map(Row::Postgres).collect()
            }
        })
    }

    /// The one row of a statement, if there is one.
    pub(super) async fn one(&mut self, sql: &Sql, values: &[Value<'_>]) -> Result<Option<Row>, StoreError> {
        Ok(self.all(sql, values).await?.into_iter().next())
    }

    /// How many rows a statement hit.
    pub(super) async fn execute(&mut self, sql: &Sql, values: &[Value<'_>]) -> Result<u64, StoreError> {
        Ok(match self {
            Self::Sqlite { tx, .. } => sql.on_sqlite(values).execute(&mut **tx).await?.rows_affected(),
            Self::Postgres { session, pooled, .. } => {
                session.hits(sql.on_postgres(values).persistent(!*pooled)).await?
            }
        })
    }

    /// Lets this transaction wait and work as long as it takes: a migration.
    pub(super) async fn take_your_time(&mut self) -> Result<(), StoreError> {
        match self {
            // Nothing bounds it.
            Self::Sqlite { .. } => Ok(()),
            Self::Postgres { session, .. } => Ok(session.take_your_time().await?),
        }
    }

    /// Has it wait hardly any longer for a lock: somebody has waited for it in vain just before.
    pub(super) async fn hurry(&mut self) -> Result<(), StoreError> {
        match self {
            // One writer: nobody else holds a lock.
            Self::Sqlite { .. } => Ok(()),
            Self::Postgres { .. } => self.script("SET LOCAL lock_timeout = 50").await,
        }
    }

    /// Runs a script of several statements: a migration.
    pub(super) async fn script(&mut self, script: &'static str) -> Result<(), StoreError> {
        match self {
            Self::Sqlite { tx, .. } => sqlx::raw_sql(script).execute(&mut **tx).await.map(drop)?,
            Self::Postgres { session, .. } => session.script(script).await?,
        }
        Ok(())
    }

    /// What is told once this is committed.
    pub(super) const fn news(&mut self) -> &mut News {
        match self {
            Self::Sqlite { news, .. } | Self::Postgres { news, .. } => news,
        }
    }

    /// Makes what was done visible and lasting.
    pub(super) async fn commit(self) -> Result<(), StoreError> {
        let news = match self {
            // With the turn, which ends when this has been done.
            Self::Sqlite { tx, _turn, news } => {
                tx.commit().await?;
                news
            }
            Self::Postgres { session, news, .. } => {
                session.commit().await?;
                news
            }
        };
        news.publish();
        Ok(())
    }
}

fn sqlite_pool(connections: u32) -> SqlitePoolOptions {
    // Connections to a file do not go stale.
    SqlitePoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(PATIENCE)
        .idle_timeout(None)
        .max_lifetime(None)
        .test_before_acquire(false)
        // A full disk ends a transaction by itself; the ROLLBACK of it then fails, and the connection would be taken to be
        // within a transaction for ever.
        .after_release(|connection, _| {
            Box::pin(async move {
                if connection.is_in_transaction() {
                    // Behind a rollback that is under way.
                    connection.ping().await?;
                }
                Ok(!connection.is_in_transaction())
            })
        })
}

/// Whether something between us and the server, such as `PgBouncer`, gives each transaction whatever session is free:
/// two connections of ours meet in one session, or one connection meets two. Statements then run unnamed, each within
/// a transaction.
async fn goes_through_a_pooler(pool: &PgPool) -> Result<bool, StoreError> {
    let (mut one, mut other) = (pool.acquire().await?, pool.acquire().await?);
    // Nothing is held while a session is waited for: a pooler may have only one.
    let (of_one, of_other) = (session(&mut one).await?, session(&mut other).await?);
    let mut pooled = of_one == of_other;
    for _ in 0..POOLER_PROBES {
        // Not in turns: a pooler that goes round its sessions would look like two of our own.
        pooled = pooled || session(&mut other).await? != of_other || session(&mut one).await? != of_one;
    }
    Ok(pooled)
}

/// Learns late of a pooler: a named statement was not there, or was there already.
fn note_pooler(pooled: &AtomicBool, error: &sqlx::Error) {
    let code = error.as_database_error().and_then(sqlx::error::DatabaseError::code);
    if code.is_some_and(|code| code == "26000" || code == "42P05") && !pooled.swap(true, Ordering::Relaxed) {
        tracing::warn!("a pooler in transaction mode is between us and PostgreSQL: statements run unnamed from now on");
    }
}

/// The process that serves this session; asked for in the simple protocol, which leaves nothing behind.
async fn session(connection: &mut PgConnection) -> Result<i32, StoreError> {
    Ok(sqlx::raw_sql("SELECT pg_backend_pid()").fetch_one(connection).await?.try_get(0)?)
}

/// Why there is no connection to this host.
fn of_host(host: &str, error: sqlx::Error) -> StoreError {
    match error {
        // A name that nobody has, too: whoever has it may be about to start.
        sqlx::Error::Io(error) => StoreError::Unavailable(format!("{host}: {error}")),
        error => error.into(),
    }
}

/// Takes the lock beside the database file and makes both if they are not there, readable by nobody else. A directory
/// that is not there is more likely a mistake.
fn lock_file(path: &Path) -> Result<File, StoreError> {
    let failed = |error: io::Error| {
        let why = match error.kind() {
            io::ErrorKind::NotFound => "its directory does not exist".to_owned(),
            _ => error.to_string(),
        };
        StoreError::File(path.display().to_string(), why)
    };
    let open = |path: &Path| OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path);
    let mut lock_path = path.as_os_str().to_owned();
    lock_path.push(".lock");
    let lock = open(Path::new(&lock_path)).map_err(failed)?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(StoreError::Locked(path.display().to_string())),
        Err(TryLockError::Error(error)) => return Err(failed(error)),
    }
    open(path).map_err(failed)?;
    Ok(lock)
}
