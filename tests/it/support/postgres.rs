//! A PostgreSQL database of one's own for each test.
//!
//! scripts/test and scripts/with-postgres name the server in `TOKEN_WALLET_TEST_POSTGRES_URL`. Without it a test that
//! asks for a database fails: a test that skipped itself would pass where it proves nothing.

use std::str::FromStr as _;

use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _};

/// Names the server: a PostgreSQL URL whose user may create databases.
pub const SERVER: &str = "TOKEN_WALLET_TEST_POSTGRES_URL";

/// An empty database; dropped, with whatever is still connected to it, when this value is.
#[derive(Debug)]
pub struct TestDatabase {
    /// The URL to connect with.
    pub url: String,
    name: String,
    server: PgConnectOptions,
}

impl TestDatabase {
    /// Takes the database away from whoever uses it: connections end, and no new one is made.
    pub async fn cut(&self) {
        let name = &self.name;
        // Somebody may connect again in between.
        for _ in 0..100 {
            let end = format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'");
            run(&self.server, end).await.expect("a server");
            if run(&self.server, format!("ALTER DATABASE {name} RENAME TO {name}_away")).await.is_ok() {
                return;
            }
        }
        panic!("{name} is connected to again and again");
    }

    /// Gives it back.
    pub async fn mend(&self) {
        let name = &self.name;
        run(&self.server, format!("ALTER DATABASE {name}_away RENAME TO {name}"))
            .await
            .expect("a database that is cut");
    }
}

/// Makes a fresh, uniquely named database.
///
/// # Panics
///
/// If no server is named, or it cannot be reached.
pub async fn database() -> TestDatabase {
    #[expect(clippy::disallowed_methods, reason = "how scripts/with-postgres tells the tests where the server is")]
    let server_url = std::env::var(SERVER).unwrap_or_else(|_| {
        panic!("{SERVER} is not set: run the tests with scripts/test, or this command behind scripts/with-postgres")
    });
    database_on(&server_url).await
}

/// The same on another server.
pub async fn database_on(server_url: &str) -> TestDatabase {
    #[expect(clippy::disallowed_methods, reason = "unique among the runs of real time, whatever a test's clock says")]
    let name = format!("token_wallet_test_{}", uuid::Uuid::now_v7().simple());
    let server = PgConnectOptions::from_str(server_url).expect("a PostgreSQL URL");
    // template0 holds nothing that someone may have left in template1.
    run(&server, format!("CREATE DATABASE {name} TEMPLATE template0")).await.expect("a server that makes databases");
    let mut url = url::Url::parse(server_url).expect("a URL");
    url.set_path(&name);
    TestDatabase { url: url.into(), name, server }
}

/// Runs one statement on a connection of its own.
async fn run(server: &PgConnectOptions, statement: String) -> sqlx::Result<()> {
    let mut connection: PgConnection = server.connect().await?;
    sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut connection).await?;
    connection.close().await
}

impl Drop for TestDatabase {
    fn drop(&mut self) {
        let statement = format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", self.name);
        let server = self.server.clone();
        // A thread with a runtime of its own: the test's may be the one that is going down.
        let dropped = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(run(&server, statement)).map_err(std::io::Error::other)
        })
        .join();
        // Not while the test fails for a reason of its own: a second panic would abort before it is told.
        if !std::thread::panicking() {
            assert!(matches!(dropped, Ok(Ok(()))), "{} could not be dropped: {dropped:?}", self.name);
        }
    }
}

#[tokio::test]
async fn each_database_is_its_own_and_gone_when_dropped_even_while_in_use() {
    let (one, other) = (database().await, database().await);
    assert!(exists(&other.url, &one.name).await);

    let name = one.name.clone();
    let connected = PgConnection::connect(&one.url).await.unwrap();
    drop(one);
    drop(connected);
    assert!(!exists(&other.url, &name).await);
}

/// Whether the server of `url` has a database called `name`.
async fn exists(url: &str, name: &str) -> bool {
    let mut connection = PgConnection::connect(url).await.unwrap();
    let query = "SELECT EXISTS (SELECT 1 FROM pg_database WHERE datname = $1)";
    sqlx::query_scalar(query).bind(name).fetch_one(&mut connection).await.unwrap()
}
