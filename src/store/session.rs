//! Connections to PostgreSQL while statements run on them.

use std::time::Duration;

use sqlx::Connection as _;
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgArguments, PgConnection, PgPool, PgRow, Postgres};
use sqlx::query::Query;

use super::error::StoreError;

/// How long a statement may take. A network that has lost its memory of a connection never says so.
pub(super) const ANSWER: Duration = Duration::from_secs(10);

/// How long a connection whose statement was given up may take to come back.
const RETURN: Duration = Duration::from_secs(5);

/// A connection of a pool. The pool itself would wait without end for one whose statement was given up in the middle,
/// and keep its place for it: it goes back once the server answers, or is closed.
pub(super) struct Session {
    connection: Option<PoolConnection<Postgres>>,
    /// How long a statement may take.
    answer: Duration,
    state: State,
}

#[derive(Clone, Copy)]
struct State {
    /// A transaction is open.
    open: bool,
    /// A statement runs, or was given up.
    busy: bool,
}

/// A connection on which a statement runs.
struct Busy<'a> {
    connection: &'a mut PgConnection,
    state: &'a mut State,
}

impl Session {
    /// Waits for a connection, for as long as its pool allows.
    pub(super) async fn of(pool: &PgPool, answer: Duration) -> sqlx::Result<Self> {
        let connection = Some(pool.acquire().await?);
        Ok(Self { connection, answer, state: State { open: false, busy: false } })
    }

    /// The same with an open transaction, which `begin` opens; it is rolled back unless committed.
    pub(super) async fn begin(pool: &PgPool, begin: &'static str, answer: Duration) -> Result<Self, StoreError> {
        let mut session = Self::of(pool, answer).await?;
        session.state.open = true;
        in_time(ANSWER, session.script(begin)).await??;
        Ok(session)
    }

    /// Ends the transaction well.
    pub(super) async fn commit(mut self) -> Result<(), StoreError> {
        in_time(ANSWER, self.script("COMMIT")).await??;
        self.state.open = false;
        Ok(())
    }

    /// Lets the open transaction wait and work as long as it takes.
    pub(super) async fn take_your_time(&mut self) -> sqlx::Result<()> {
        self.answer = Duration::MAX;
        self.script("SET LOCAL lock_timeout = 0; SET LOCAL statement_timeout = 0").await
    }

    /// The rows that a statement returns.
    pub(super) async fn rows(&mut self, query: Query<'_, Postgres, PgArguments>) -> sqlx::Result<Vec<PgRow>> {
        let answer = self.answer;
        let busy = self.busy()?;
        let rows = in_time(answer, query.fetch_all(&mut *busy.connection)).await?;
        busy.end();
        rows
    }

    /// How many rows a statement hits.
    pub(super) async fn hits(&mut self, query: Query<'_, Postgres, PgArguments>) -> sqlx::Result<u64> {
        let answer = self.answer;
        let busy = self.busy()?;
        let done = in_time(answer, query.execute(&mut *busy.connection)).await?;
        busy.end();
        Ok(done?.rows_affected())
    }

    /// Runs a script of several statements, however long it takes.
    pub(super) async fn script(&mut self, script: &'static str) -> sqlx::Result<()> {
        let busy = self.busy()?;
        let done = sqlx::raw_sql(script).execute(&mut *busy.connection).await;
        busy.end();
        done.map(drop)
    }

    fn busy(&mut self) -> sqlx::Result<Busy<'_>> {
        let connection = self.connection.as_mut().ok_or(sqlx::Error::PoolClosed)?;
        self.state.busy = true;
        Ok(Busy { connection, state: &mut self.state })
    }
}

impl Busy<'_> {
    /// The statement has ended, well or not.
    fn end(self) {
        self.state.busy = false;
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let State { open, busy } = self.state;
        let Some(mut connection) = self.connection.take().filter(|_| open || busy) else { return };
        tokio::spawn(async move {
            let ended = if open {
                in_time(RETURN, sqlx::raw_sql("ROLLBACK").execute(&mut *connection)).await.map(|done| done.map(drop))
            } else {
                in_time(RETURN, connection.ping()).await
            };
            if !matches!(ended, Ok(Ok(()))) {
                drop(connection.detach());
            }
        });
    }
}

/// Gives a statement up after this.
async fn in_time<T>(limit: Duration, statement: impl Future<Output = T>) -> sqlx::Result<T> {
    let done = tokio::time::timeout(limit, statement).await;
    done.map_err(|_| sqlx::Error::Io(std::io::ErrorKind::TimedOut.into()))
}
