//! The store: SQL on SQLite and PostgreSQL. The only room that knows sqlx.
//!
//! One text an operation on both engines. Every change of a state is guarded in its `WHERE` and counts the rows it
//! hit; a transaction never leaves this room, an event is written in its change's own. Secrets come and go sealed.

mod accounts;
mod api_clients;
mod claims;
mod coherence;
mod copy;
mod db;
mod error;
mod events;
mod flows;
mod freeze;
mod grants;
mod keyring;
mod lanes;
mod migrate;
mod moves;
mod provider_secrets;
mod providers;
mod record;
mod redirect_urls;
mod replicas;
mod request_ids;
mod revocations;
mod session;
mod sql;
mod standing;
mod strays;
mod upkeep;
mod users;

use std::path::Path;
use std::sync::Arc;

pub use accounts::{AccountChange, AccountFilter, AccountRow, UpdateAccount};
pub use api_clients::{ApiClientRow, ApiKeyRow, StoredApiKey};
pub use claims::Claim;
pub use coherence::{Changes, Place, Stale};
pub use copy::{Copied, Progress};
pub use error::StoreError;
pub use events::{EventFilter, EventLog, EventPage, EventRow, EventsError, Numbered};
pub use flows::{ClaimedFlow, FlowStep, StartFlow};
pub use grants::Holding;
pub use keyring::Instance;
pub use migrate::Schema;
pub use moves::{Deposit, Deposited, NewGrant};
pub use provider_secrets::{AddSecret, MOST_SECRETS, ProviderSecretRow, RemoveSecret, USE_NOTED_EVERY};
pub use providers::{DeleteProvider, NewProvider, ProviderChange, ProviderRow, UpdateProvider};
pub use record::{GrantChange, Outcome, Recorded};
pub use redirect_urls::RedirectUrlRow;
pub use replicas::{Beat, Times};
pub use request_ids::{Note, RequestRow};
pub use revocations::{Pending, Revocation, RevocationClaim, RevocationEnd};
pub use standing::Blame;
pub use strays::Stray;
pub use upkeep::Census;
pub use users::{DeletedUser, UserRow};

use db::Db;
use sql::{Sql, Value, statements};

/// Which database a store is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// A file, used by this process alone.
    Sqlite,
    /// A server, shared by any number of replicas.
    Postgres,
}

/// How many rows one transaction of housekeeping changes: the writer is free again within some 50 ms.
const BATCH: u32 = 250;

/// What the wallet keeps. Cheap to clone; all clones share their connections.
#[derive(Clone)]
pub struct Store {
    db: Arc<Db>,
}

statements! {
    PING { "SELECT 1 AS pong" }
}

/// Every statement of this room.
const STATEMENTS: &[&[Sql]] = &[
    ALL,
    accounts::ALL,
    api_clients::ALL,
    claims::ALL,
    coherence::ALL,
    copy::ALL,
    events::ALL,
    flows::ALL,
    freeze::ALL,
    grants::ALL,
    keyring::ALL,
    migrate::ALL,
    moves::ALL,
    provider_secrets::ALL,
    providers::ALL,
    record::ALL,
    redirect_urls::ALL,
    replicas::ALL,
    request_ids::ALL,
    revocations::ALL,
    upkeep::ALL,
    standing::ALL,
    strays::ALL,
    users::ALL,
];

impl Store {
    /// Opens a store: `sqlite:PATH`, which is made if it is not there and its directory is, or `postgres://…`, with up to
    /// `max_connections` connections (readers, on `SQLite`). The schema is left as it is: see [`Self::schema`].
    ///
    /// # Errors
    ///
    /// [`StoreError::Locked`] if another process has the `SQLite` file open, [`StoreError::File`] if it cannot be used,
    /// [`StoreError::Refused`] if the server lets nobody in like this.
    pub async fn open(url: &str, max_connections: u32) -> Result<Self, StoreError> {
        let db = match url.split_once(':') {
            Some(("sqlite", path)) if !path.is_empty() => Db::open_sqlite(Path::new(path), max_connections).await?,
            Some(("postgres" | "postgresql", _)) => Db::open_postgres(url, max_connections).await?,
            _ => return Err(StoreError::Url("sqlite:PATH or postgres://user:password@host/database is expected")),
        };
        Ok(Self { db: Arc::new(db) })
    }

    /// Which database this is.
    pub fn engine(&self) -> Engine {
        match *self.db {
            Db::Sqlite { .. } => Engine::Sqlite,
            Db::Postgres { .. } => Engine::Postgres,
        }
    }

    /// Whether it can be read.
    pub async fn ping(&self) -> Result<(), StoreError> {
        self.db.one(&PING, &[]).await.map(drop)
    }

    /// Closes all connections, after what runs on them.
    pub async fn close(&self) {
        self.db.close().await;
    }

    /// Runs a statement that changes up to [`BATCH`] rows, each in a transaction of its own, until it finds no more. In
    /// between, others write. Answers how many rows were changed.
    async fn in_batches(&self, sql: &Sql, values: &[Value<'_>]) -> Result<u64, StoreError> {
        let mut changed = 0;
        loop {
            let batch = self.db.execute(sql, values).await?;
            changed += batch;
            if batch < u64::from(BATCH) {
                return Ok(changed);
            }
        }
    }

    /// Has the engine check every statement against the schema; answers how many there are. Not through a pooler.
    pub async fn prepare_all(&self) -> Result<usize, StoreError> {
        for sql in STATEMENTS.iter().copied().flatten() {
            let checked = self.db.prepare(sql).await;
            checked.map_err(|error| StoreError::Other(format!("{}: {error}", sql.name)))?;
        }
        Ok(STATEMENTS.iter().map(|statements| statements.len()).sum())
    }

    /// The text for PostgreSQL of the statement `file::NAME`, to look at its plan.
    #[doc(hidden)]
    pub fn text_of(name: &str) -> Option<&'static str> {
        let mut all = STATEMENTS.iter().copied().flatten();
        all.find(|sql| sql.name.strip_prefix("token_wallet::store::") == Some(name)).map(|sql| sql.postgres)
    }
}
