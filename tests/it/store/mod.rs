//! The store's contract: each case runs on a SQLite file and on a PostgreSQL database of its own.

mod batches;
mod callers;
mod claims;
mod coherence;
mod deposits;
mod events;
mod files;
mod flows;
mod grants;
mod lists;
mod providers;
mod records;
mod schema;
mod standing;
mod upkeep;

use std::collections::BTreeMap;
use std::ops::Deref;
use std::time::Duration;

use sqlx::{AssertSqlSafe, Connection as _, Row as _};
use tempfile::TempDir;
use token_wallet::clock::Timestamp;
use token_wallet::domain::event::{Event, EventKind};
use token_wallet::domain::flow::{Flow, FlowState};
use token_wallet::domain::grant::{Freshness, Grant};
use token_wallet::domain::ids::{
    AccountId, ApiClientId, EventId, FlowId, GrantId, ProviderId, ProviderSecretId, ReplicaId,
};
use token_wallet::domain::policy::LEASE;
use token_wallet::domain::provider::{Lifetime, Slug};
use token_wallet::domain::scopes::Scopes;
use token_wallet::domain::user::UserId;
use token_wallet::store::{Claim, Deposit, Deposited, NewGrant, NewProvider, StartFlow, Store};
use token_wallet::vault::{Cell, Sealed};

use crate::support::postgres::{self, TestDatabase};

/// A case as two tests, `case::on_sqlite` and `case::on_postgres`.
macro_rules! on_both_engines {
    ($($case:ident)+) => {$(
        mod $case {
            #[tokio::test]
            async fn on_sqlite() {
                super::$case(&crate::store::Fixture::on_sqlite().await).await;
            }

            #[tokio::test]
            async fn on_postgres() {
                super::$case(&crate::store::Fixture::on_postgres().await).await;
            }
        }
    )+};
}

pub(crate) use on_both_engines;

/// When the cases play.
pub const NOW: Timestamp = Timestamp::from_millis(1_800_000_000_000);

/// So many seconds from [`NOW`].
pub fn at(seconds: i64) -> Timestamp {
    Timestamp::from_millis(NOW.millis() + seconds * 1000)
}

/// A store of the current schema, and the database that it is in.
pub struct Fixture {
    store: Store,
    /// For another look at the same database.
    pub url: String,
    _home: (Option<TempDir>, Option<TestDatabase>),
}

impl Deref for Fixture {
    type Target = Store;

    fn deref(&self) -> &Store {
        &self.store
    }
}

impl Fixture {
    pub async fn on_sqlite() -> Self {
        let fixture = Self::empty_on_sqlite().await;
        fixture.migrate().await.unwrap();
        fixture
    }

    pub async fn on_postgres() -> Self {
        let fixture = Self::empty_on_postgres().await;
        fixture.migrate().await.unwrap();
        fixture
    }

    pub async fn empty_on_sqlite() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}", directory.path().join("wallet.db").display());
        let store = Store::open(&url, 4).await.unwrap();
        Self { store, url, _home: (Some(directory), None) }
    }

    pub async fn empty_on_postgres() -> Self {
        let database = postgres::database().await;
        let store = Store::open(&database.url, 8).await.unwrap();
        Self { store, url: database.url.clone(), _home: (None, Some(database)) }
    }

    /// Does to the database what the store would not.
    pub async fn tamper(&self, statement: impl Into<String>) {
        self.try_to_tamper(statement).await.unwrap();
    }

    pub async fn try_to_tamper(&self, statement: impl Into<String>) -> sqlx::Result<()> {
        let statement = sqlx::raw_sql(AssertSqlSafe(statement.into()));
        if self.url.starts_with("sqlite:") {
            statement.execute(&mut sqlx::SqliteConnection::connect(&self.url).await?).await.map(drop)
        } else {
            statement.execute(&mut sqlx::PgConnection::connect(&self.url).await?).await.map(drop)
        }
    }

    /// One number that the store does not tell.
    pub async fn number(&self, query: &str) -> i64 {
        let query = sqlx::raw_sql(AssertSqlSafe(query.to_owned()));
        if self.url.starts_with("sqlite:") {
            let mut connection = sqlx::SqliteConnection::connect(&self.url).await.unwrap();
            query.fetch_one(&mut connection).await.unwrap().get(0)
        } else {
            let mut connection = sqlx::PgConnection::connect(&self.url).await.unwrap();
            query.fetch_one(&mut connection).await.unwrap().get(0)
        }
    }

    /// How many events of a kind there are.
    pub async fn events(&self, kind: EventKind) -> i64 {
        self.number(&format!("SELECT COUNT(*) FROM events WHERE kind = '{}'", kind.as_str())).await
    }

    /// A grant as a claimer judges it.
    pub async fn judged(&self, grant: GrantId) -> Grant {
        self.holding(grant).await.unwrap().unwrap().grant
    }

    /// Claims a grant as it is now.
    pub async fn claim_now(&self, grant: GrantId, now: Timestamp) -> Option<Claim> {
        self.claim(&self.judged(grant).await, None, false, ReplicaId::new(NOW), now, now.plus(LEASE)).await.unwrap()
    }

    /// A configured provider.
    pub async fn configured(&self, slug: &str) -> ProviderId {
        let provider = new_provider(slug);
        assert!(self.create_provider(&provider, None).await.unwrap());
        provider.id
    }

    /// A flow whose answer is parked.
    pub async fn exchanged(&self, user: &UserId, provider: ProviderId) -> FlowId {
        let flow = new_flow(user, provider);
        let replica = ReplicaId::new(NOW);
        let hash = unique_hash(flow.id);
        assert_eq!(self.start_flow(&flow, &hash, Some(&sealed(1)), None).await.unwrap(), StartFlow::Started);
        assert!(self.return_flow(flow.id, &sealed(2), &hash, at(60), NOW).await.unwrap());
        assert!(self.claim_flow(flow.id, replica, NOW).await.unwrap().is_some());
        assert!(self.park_answer(flow.id, replica, &sealed(3)).await.unwrap());
        flow.id
    }

    /// A deposit of a new account, ready to be made.
    pub async fn new_deposit(&self, user: &UserId, provider: ProviderId, subject: &str) -> Deposit {
        Deposit {
            flow: self.exchanged(user, provider).await,
            account: AccountId::new(NOW),
            existing: false,
            astray: None,
            user: user.clone(),
            provider,
            subject: subject.to_owned(),
            profile: sealed(4),
            grant: new_grant(),
            events: vec![Event::new(EventKind::AccountLinked, NOW, user.clone(), provider)],
            kept: Event::new(EventKind::AccountGrantKept, NOW, user.clone(), provider),
            now: NOW,
        }
    }

    /// A linked account with its current grant, due in 50 minutes and refreshed ahead for a day.
    pub async fn linked(&self, user: &UserId, provider: ProviderId, subject: &str) -> (AccountId, GrantId) {
        let deposit = self.new_deposit(user, provider, subject).await;
        assert_eq!(self.deposit(&deposit).await.unwrap(), Deposited::Done);
        (deposit.account, deposit.grant.id)
    }
}

pub fn user(name: &str) -> UserId {
    UserId::parse(name).unwrap()
}

pub fn slug(text: &str) -> Slug {
    Slug::parse(text).unwrap()
}

pub fn scopes(text: &str) -> Scopes {
    Scopes::split(text, " ")
}

/// Bytes of a sealed value's form; nothing opens them.
pub fn sealed<T: Cell>(mark: u8) -> Sealed<T> {
    let mut bytes = vec![mark; 64];
    bytes[..5].copy_from_slice(&[1, 0, 0, 0, 1]);
    Sealed::from_stored(bytes).unwrap()
}

/// A hash that no other id has.
pub fn unique_hash(id: FlowId) -> [u8; 32] {
    let mut hash = [0; 32];
    hash[..30].copy_from_slice(id.to_string().as_bytes());
    hash
}

pub fn new_provider(name: &str) -> NewProvider {
    NewProvider {
        id: ProviderId::new(NOW),
        slug: slug(name),
        catalog_entry: "oauth2".to_owned(),
        display_name: Some("Acme".to_owned()),
        client_id: "client".to_owned(),
        additional_scopes: scopes("extra more"),
        endpoints: Some(serde_json::json!({ "token": "https://acme.example/token" })),
        created_at: NOW,
        secret: Some((ProviderSecretId::new(NOW), sealed(9))),
    }
}

pub fn new_flow(user: &UserId, provider: ProviderId) -> Flow {
    Flow {
        id: FlowId::new(NOW),
        state: FlowState::Started,
        client: ApiClientId::new(NOW),
        user: user.clone(),
        provider,
        redirect_url: None,
        redirect_uri: "http://127.0.0.1/oauth/callback/acme".to_owned(),
        scopes: scopes("read write"),
        reauthorizes: None,
        params: BTreeMap::new(),
        created_at: NOW,
        expires_at: at(600),
        ended_at: None,
    }
}

/// An hour's grant.
pub fn new_grant() -> NewGrant {
    NewGrant {
        id: GrantId::new(NOW),
        access_token: sealed(10),
        refresh_token: Some(sealed(11)),
        token_type: "Bearer".to_owned(),
        scopes: scopes("read"),
        requested_scopes: scopes("read write"),
        metadata: BTreeMap::from([("shop".to_owned(), "acme".to_owned())]),
        params: BTreeMap::new(),
        freshness: Freshness {
            issued_at: NOW,
            lifetime: Lifetime::Stated(Duration::from_hours(1)),
            due_at: Some(at(3_000)),
            keep_alive_at: None,
        },
        ahead_until: at(86_400),
        warn_at: None,
    }
}

pub fn event(kind: EventKind, user: &UserId, provider: ProviderId) -> Event {
    Event { id: EventId::new(NOW), ..Event::new(kind, NOW, user.clone(), provider) }
}
