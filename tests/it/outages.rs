//! The store goes away right after a provider's answer and stays away for a minute (faults S2, S4): the new refresh
//! token is in the spool within 200 ms, and in the store within a second of its return, also if the process was killed
//! in between.

use std::time::Duration;

use token_wallet::config::StoreUrl;
use token_wallet::proto::v1::{GetAccessTokenResponse, StartLinkRequest};
use token_wallet::sandbox::{DEFAULT_CLIENT_SECRET, Effect, Options, Request, Rule, Sandbox};
use tonic::{Code, Status};

use crate::support::database::Database;
use crate::support::harness::{APP_URL, Engine, Harness, on_both_engines, reason, until};
use crate::support::outage::{Outage, spooled};
use crate::support::proxy::Proxy;
use crate::support::real_time::{SPOOLED_BY, STORED_BY, now, say, time_until};
use crate::support::service::Wallet;

const STORED: &str = "SELECT COUNT(*) FROM grants WHERE state = 'active' AND committed_fence > 0
    AND access_generation = committed_fence AND refresh_generation = committed_fence AND lease_until IS NULL";

/// How the store is away.
#[derive(Clone, Copy, Debug)]
enum Weather {
    /// It takes nothing.
    ReadOnly,
    /// Connections break, and new ones are closed.
    Cut,
    /// Connections stand, and nothing comes through.
    Silent,
}

/// Those that an engine knows.
const fn weathers(engine: Engine) -> &'static [Weather] {
    match engine {
        Engine::Sqlite => &[Weather::ReadOnly],
        Engine::Postgres => &[Weather::ReadOnly, Weather::Cut, Weather::Silent],
    }
}

impl Weather {
    async fn begin(self, store: &StoreUrl, proxy: Option<&Proxy>) -> Outage {
        match self {
            Self::ReadOnly => Outage::begin(store).await,
            Self::Cut => Outage::of_network(proxy.unwrap(), Proxy::cut),
            Self::Silent => Outage::of_network(proxy.unwrap(), Proxy::hold),
        }
    }
}

on_both_engines! {
    async fn s2_a_store_that_is_away_for_a_minute_after_an_answer_has_it_within_a_second_of_its_return(engine) {
        for weather in weathers(engine) {
            away_for_a_minute(engine, *weather).await;
        }
    }

    async fn s2_killed_while_the_store_is_away_the_next_process_has_the_answer_stored_within_a_second_of_its_return(engine) {
        for weather in weathers(engine) {
            killed(engine, *weather, Restart::WhileAway).await;
        }
    }

    async fn s2_killed_while_the_store_was_away_the_next_process_stores_the_answer_within_a_second(engine) {
        for weather in weathers(engine) {
            killed(engine, *weather, Restart::Afterwards).await;
        }
    }
}

/// Pools, time-outs and pauses between tries know real time alone.
#[tokio::test]
async fn s4_postgresql_is_unreachable_for_a_real_minute_after_an_answer_and_has_it_within_a_second_of_its_return() {
    let mut wallet = Wallet::new(Engine::Postgres, Options::default(), &[]).await;
    let proxy = wallet.behind_a_proxy();
    wallet.start().await;
    wallet.configure(DEFAULT_CLIENT_SECRET).await;
    wallet.link("u", "demo").await;
    wallet.sandbox.set_faults([answers_held()]);
    wallet.age("u").await;
    wallet.sandbox.wait_held(1).await;
    proxy.hold();
    wallet.sandbox.release();
    let in_spool = time_until("it is spooled", async || wallet.spooled() == 1).await;
    for _ in 0..6 {
        let seconds = async {
            for _ in 0..100 {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        // Within the ten seconds that a call may take.
        let (told, ()) = tokio::join!(wallet.get("u", "sandbox"), seconds);
        assert_eq!(reason(&told.unwrap_err()), "STORE_UNAVAILABLE");
    }
    let database = wallet.database().await;
    assert_eq!(database.number(STORED).await, 0);
    // Not even the connections come back.
    let in_store = time_until_stored(&database, async { proxy.forget() }).await;
    let served = time_until("it is served", async || wallet.get("u", "sandbox").await.is_ok()).await;
    say(format_args!(
        "a minute: in the spool after {in_spool:?}, in the store {in_store:?} after its return, served {served:?} later"
    ));
    assert!(in_spool <= SPOOLED_BY && in_store <= STORED_BY, "{in_spool:?} {in_store:?}");
    wallet.age("u").await;
    until("it is refreshed again", async || wallet.token_requests("refresh_token").len() == 2).await;
    newest_was_kept(&wallet.token_requests("refresh_token"));
}

/// Statements run on every connection when the network falls silent, and its end leaves them silent.
#[tokio::test]
async fn s4_connections_that_fell_silent_in_the_middle_keep_no_place_in_the_pool() {
    let (harness, store, proxy) = harness(Engine::Postgres).await;
    let (proxy, database) = (proxy.unwrap(), Database::open(&store).await);
    let Database::Postgres(pool) = &database else { panic!("not PostgreSQL") };
    let mut lock = pool.begin().await.unwrap();
    sqlx::raw_sql("LOCK TABLE flows").execute(&mut *lock).await.unwrap();
    let calls = 2 * harness.config.store.max_connections;
    let starts = futures_util::future::join_all((0..calls).map(|_| {
        let request = StartLinkRequest {
            user_id: "u".into(),
            provider: "sandbox".into(),
            redirect_url: APP_URL.into(),
            ..Default::default()
        };
        async { harness.accounts().start_link(request).await }
    }));
    let silent = async {
        let waiting = "SELECT COUNT(*) FROM pg_stat_activity
            WHERE datname = current_database() AND wait_event_type = 'Lock'";
        let most = i64::from(harness.config.store.max_connections);
        until("every connection is in the middle of a statement", async || database.number(waiting).await == most)
            .await;
        proxy.hold();
        lock.rollback().await.unwrap();
    };
    let (told, ()) = tokio::join!(starts, silent);
    assert!(told.iter().all(Result::is_err));
    proxy.forget();
    let back =
        time_until("it works again", async || harness.get("u").await.is_err_and(|told| told.code() == Code::NotFound));
    say(format_args!("the store is used again {:?} after its return", back.await));
}

/// The minute passes on the wallet's clock; in real time the store is away for longer than anybody waits for it.
async fn away_for_a_minute(engine: Engine, weather: Weather) {
    let (harness, store, proxy) = harness(engine).await;
    harness.link("u", "demo").await;
    harness.sandbox.set_faults([answers_held()]);
    harness.pass(Duration::from_hours(2));
    let failing = async {
        harness.sandbox.wait_held(1).await;
        let outage = weather.begin(&store, proxy.as_ref()).await;
        harness.sandbox.release();
        let after = time_until("it is spooled", async || spooled(&harness.config.spool_dir) == 1).await;
        (outage, after)
    };
    let (told, (outage, in_spool)) = tokio::join!(harness.get("u"), failing);
    let [refresh] = <[Request; 1]>::try_from(harness.refreshes()).unwrap();
    told_meanwhile(engine, told, &refresh);
    let minute = async {
        for _ in 0..60 {
            harness.pass(Duration::from_secs(1));
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let (told, ()) = tokio::join!(harness.get("u"), minute);
    told_meanwhile(engine, told, &refresh);
    let database = Database::open(&store).await;
    assert_eq!(database.number(STORED).await, 0);
    assert_eq!(spooled(&harness.config.spool_dir), 1);
    let in_store = time_until_stored(&database, outage.end()).await;
    say(format_args!(
        "{engine:?}, {weather:?}: in the spool after {in_spool:?}, in the store {in_store:?} after its return"
    ));
    assert!(in_spool <= SPOOLED_BY && in_store <= STORED_BY, "{in_spool:?} {in_store:?}");
    until("the spool is empty", async || spooled(&harness.config.spool_dir) == 0).await;
    until("it is served", async || harness.get("u").await.is_ok_and(|got| is_of(&got, &refresh))).await;
    harness.pass(Duration::from_hours(2));
    until("it is refreshed again", async || harness.get("u").await.is_ok()).await;
    newest_was_kept(&harness.refreshes());
}

/// When the next process starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Restart {
    WhileAway,
    Afterwards,
}

async fn killed(engine: Engine, weather: Weather, restart: Restart) {
    let mut wallet = Wallet::new(engine, Options::default(), &[]).await;
    let proxy = (engine == Engine::Postgres).then(|| wallet.behind_a_proxy());
    wallet.start().await;
    wallet.configure(DEFAULT_CLIENT_SECRET).await;
    wallet.link("u", "demo").await;
    wallet.sandbox.set_faults([answers_held()]);
    wallet.age("u").await;
    wallet.sandbox.wait_held(1).await;
    let outage = weather.begin(wallet.store(), proxy.as_ref()).await;
    wallet.sandbox.release();
    let in_spool = time_until("it is spooled", async || wallet.spooled() == 1).await;
    wallet.kill();
    wallet.end().await;
    let database = wallet.database().await;
    assert_eq!(database.number(STORED).await, 0);
    let in_store = match restart {
        Restart::WhileAway => {
            let log = wallet.folder().join("logs/2.stderr");
            let waits = async || std::fs::read_to_string(&log).is_ok_and(|told| told.contains("waiting for the store"));
            let back = async {
                until("it waits for the store", waits).await;
                time_until_stored(&database, outage.end()).await
            };
            tokio::join!(wallet.start(), back).1
        }
        Restart::Afterwards => {
            outage.end().await;
            time_until_stored(&database, wallet.start()).await
        }
    };
    say(format_args!(
        "{engine:?}, {weather:?}, killed: in the spool after {in_spool:?}, in the store after {in_store:?}"
    ));
    assert!(in_spool <= SPOOLED_BY && in_store <= STORED_BY, "{in_spool:?} {in_store:?}");
    until("the spool is empty", async || wallet.spooled() == 0).await;
    let [refresh] = <[Request; 1]>::try_from(wallet.token_requests("refresh_token")).unwrap();
    assert!(is_of(&wallet.get("u", "sandbox").await.unwrap(), &refresh));
    wallet.age("u").await;
    until("it is refreshed again", async || wallet.token_requests("refresh_token").len() == 2).await;
    newest_was_kept(&wallet.token_requests("refresh_token"));
}

/// A wallet; on PostgreSQL behind a proxy. The URL leads to the store directly.
async fn harness(engine: Engine) -> (Harness, StoreUrl, Option<Proxy>) {
    match engine {
        Engine::Sqlite => {
            let harness = Harness::start(engine).await;
            let store = harness.config.store.url.clone();
            (harness, store, None)
        }
        Engine::Postgres => {
            let (harness, proxy) = Harness::through_proxy(Options::default()).await;
            let store = StoreUrl::parse(proxy.direct_url().to_owned()).unwrap();
            (harness, store, Some(proxy))
        }
    }
}

/// The provider has rotated the refresh token, and its answer waits.
fn answers_held() -> Rule {
    Rule::refresh(Effect::Hold).after()
}

/// What a caller hears while the spool alone has the answer: on SQLite, where no other process could have taken the
/// grant away, the new token.
fn told_meanwhile(engine: Engine, told: Result<GetAccessTokenResponse, Status>, refresh: &Request) {
    match engine {
        Engine::Sqlite => assert!(is_of(&told.unwrap(), refresh)),
        Engine::Postgres => {
            let told = told.unwrap_err();
            assert_eq!((told.code(), reason(&told).as_str()), (Code::Unavailable, "STORE_UNAVAILABLE"));
        }
    }
}

/// Whether this is the access token that the refresh brought.
fn is_of(got: &GetAccessTokenResponse, refresh: &Request) -> bool {
    Some(Sandbox::fingerprint(&got.access_token)) == refresh.issued.access_token
}

/// There were two refreshes, and the second one spent what the first one brought.
fn newest_was_kept(refreshes: &[Request]) {
    let [first, second] = refreshes else { panic!("{refreshes:?}") };
    assert_eq!((first.status, second.status), (200, 200));
    assert_eq!(second.presented.refresh_token, first.issued.refresh_token);
}

/// How long after `event` has begun the store is seen to have the answer, once `event` is over.
async fn time_until_stored(database: &Database, event: impl Future) -> Duration {
    let began = now();
    event.await;
    time_until("it is stored", async || database.number(STORED).await == 1).await;
    began.elapsed()
}
