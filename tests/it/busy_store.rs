//! Refreshes while the store is busy, full, or refuses one of them, and after the spool was damaged (faults N7, S1,
//! S4, S6): what callers are told, and what was sent.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::future::join_all;
use sqlx::Connection as _;
use token_wallet::proto::v1;
use token_wallet::sandbox::{Effect, Options, Person, Rule};
use tonic::Code;

use crate::support::database::Database;
use crate::support::harness::{Engine, Harness, on_both_engines, reason, until};
use crate::support::oracle::counts;
use crate::support::outage::{Outage, records, spooled};
use crate::support::real_time::{now, say};
use crate::support::service::Wallet;

/// It is dead.
const DEAD: Duration = Duration::from_hours(2);

/// A result that is stored later than this is in doubt.
const LEASE: Duration = Duration::from_secs(20);

on_both_engines! {
    async fn n7_refreshes_are_served_and_stored_while_housekeeping_removes_many_rows(engine) {
        const USERS: usize = 20;
        const ROWS: u32 = 60_000;
        let harness = Harness::with_users(engine, USERS, Options::default()).await;
        let database = harness.database().await;
        bury(engine, &database, ROWS).await;
        harness.pass(Duration::from_hours(25));
        let refreshing = async {
            let (began, mut rounds, mut slowest) = (now(), 0, Duration::ZERO);
            while rounds == 0 || left(&database).await > 0 {
                for took in join_all((0..USERS).map(|n| timed(&harness, n))).await {
                    slowest = slowest.max(took);
                }
                rounds += 1;
                harness.pass(DEAD);
            }
            (rounds, slowest, began.elapsed())
        };
        // At once: a housekeeping that gave up would be waited for without end.
        let housekeeping = async { harness.turn().await.unwrap() };
        let ((), (rounds, slowest, whole)) = tokio::join!(housekeeping, refreshing);
        say(format_args!("{engine:?}: {rounds} times {USERS} refreshes in the {whole:.1?} that {ROWS} rows took, the slowest {slowest:.1?}"));
        assert!(rounds > 1, "nothing was refreshed while rows were removed");
        assert!(slowest < LEASE / 2, "{slowest:?}");
        assert!(slowest < whole / 3, "{slowest:?} of {whole:?}: it has waited for the housekeeping");
        assert_eq!(harness.all_told(USERS).await, counts([("OK", USERS)]));
        assert_eq!(harness.refreshes().len(), (rounds + 1) * USERS, "one request each");
        let newest = "SELECT COUNT(*) FROM grants WHERE access_generation = committed_fence AND lease_until IS NULL";
        assert_eq!(database.number(newest).await, i64::try_from(USERS).unwrap());
        assert_eq!(harness.counted("refreshes_in_doubt_total").await, 0);
        assert_eq!(harness.events().await, counts([("account.linked", USERS)]));
        harness.assert_each_redeemed_once();
    }

    async fn n7_a_result_that_the_store_refuses_keeps_no_other_of_its_batch(engine) {
        // As many as the provider's gate lets pass at once.
        const USERS: usize = 13;
        let mut harness = Harness::with_users(engine, USERS, Options::default()).await;
        let database = harness.database().await;
        refuse_results_of(engine, &database, "u7").await;
        harness.sandbox.set_faults([Rule::refresh(Effect::Hold).after()]);
        harness.pass(DEAD);
        let gets = (0..USERS).map(|n| {
            let (harness, user) = (&harness, format!("u{n}"));
            async move { harness.told(&user).await }
        });
        let releasing = async {
            harness.sandbox.wait_held(USERS).await;
            harness.sandbox.clear_faults();
        };
        let (told, ()) = tokio::join!(join_all(gets), releasing);
        for (n, told) in told.iter().enumerate() {
            assert_eq!(told, if n == 7 { "INTERNAL" } else { "OK" }, "u{n}");
        }
        assert_eq!(harness.refreshes().len(), USERS);
        harness.live(Duration::from_secs(40), Duration::from_secs(4)).await;
        assert_eq!(harness.refreshes().len(), USERS, "what it redeemed is not sent again while it has the answer");
        // It is not lost: it waits where somebody can look at it, and is stored once the store takes it.
        assert_eq!(spooled(&harness.config.spool_dir), 1);
        harness.stop().await;
        let on = if engine == Engine::Sqlite { "" } else { " ON grants" };
        database.execute(&format!("DROP TRIGGER bad{on}")).await;
        harness.restart().await;
        assert_eq!(harness.all_told(USERS).await, counts([("OK", USERS)]));
        assert_eq!(harness.refreshes().len(), USERS, "for one request each");
        assert_eq!(harness.events().await, counts([("account.linked", USERS)]));
        harness.assert_each_redeemed_once();
    }

    async fn s6_a_damaged_record_costs_its_own_grant_alone(engine) {
        const USERS: [&str; 3] = ["p0", "p1", "p2"];
        let people = USERS.map(Person::named).into();
        let mut wallet = Wallet::running(engine, Options { people, ..Options::default() }).await;
        for user in USERS {
            wallet.link(user, user).await;
        }
        wallet.sandbox.set_faults([Rule::refresh(Effect::Hold).after()]);
        wallet.age("%").await;
        wallet.sandbox.wait_held(3).await;
        let outage = Outage::begin(wallet.store()).await;
        wallet.sandbox.release();
        let spool = match wallet.store().sqlite_path() {
            Some(path) => format!("{}.spool", path.display()).into(),
            None => wallet.folder().join("token-wallet.spool"),
        };
        until("all are spooled", async || spooled(&spool) == 3).await;
        wallet.kill();
        wallet.end().await;
        outage.end().await;
        let file = spool.join("0/answers");
        let mut bytes = std::fs::read(&file).unwrap();
        let damaged = records(&bytes)[1] + 300;
        bytes[damaged] ^= 4;
        std::fs::write(&file, &bytes).unwrap();
        wallet.start().await;
        let mut told = BTreeMap::new();
        for user in USERS {
            let answer = tokio::time::timeout(Duration::from_secs(10), wallet.get(user, "sandbox")).await.unwrap();
            let heard = match answer {
                Ok(token) if wallet.is_accepted(&token.access_token).await => "OK".into(),
                Ok(_) => "a dead token".into(),
                Err(refused) => reason(&refused),
            };
            *told.entry(heard).or_default() += 1;
        }
        // Its answer is lost: what was sent is not sent again while it may be heard.
        assert_eq!(told, counts([("OK", 2), ("PROVIDER_UNAVAILABLE", 1)]));
        assert_eq!(wallet.token_requests("refresh_token").len(), 3);
        let metrics = wallet.http.get(wallet.ops("/metrics")).send().await.unwrap().text().await.unwrap();
        assert!(metrics.contains("token_wallet_spool_unreadable_total 1"), "{metrics}");
    }
}

#[tokio::test]
async fn n7_a_row_that_somebody_holds_keeps_no_other_result_waiting() {
    const USERS: usize = 13;
    let harness = Harness::with_users(Engine::Postgres, USERS, Options::default()).await;
    let database = harness.database().await;
    harness.sandbox.set_faults([Rule::refresh(Effect::Hold).after()]);
    harness.pass(DEAD);
    let mut holding = sqlx::PgConnection::connect(harness.config.store.url.expose()).await.unwrap();
    let gets = (0..USERS).map(|n| {
        let (harness, user) = (&harness, format!("u{n}"));
        async move { harness.told(&user).await }
    });
    let releasing = async {
        harness.sandbox.wait_held(USERS).await;
        let hold = "BEGIN; SELECT id FROM grants WHERE user_id = 'u0' FOR UPDATE";
        sqlx::raw_sql(hold).execute(&mut holding).await.unwrap();
        harness.sandbox.clear_faults();
    };
    let (told, ()) = tokio::join!(join_all(gets), releasing);
    for (n, told) in told.iter().enumerate() {
        assert_eq!(told, if n == 0 { "STORE_UNAVAILABLE" } else { "OK" }, "u{n}");
    }
    // Later ones do not even wait for their lock: it is asked for apart from them.
    harness.pass(DEAD);
    let mut waited = Vec::new();
    for n in 1..USERS {
        waited.push(timed(&harness, n).await);
    }
    waited.sort_unstable();
    assert!(waited[USERS / 2] < Duration::from_millis(400), "{waited:?}");
    let stored = "SELECT COUNT(*) FROM grants WHERE committed_fence > 0";
    assert_eq!(database.number(stored).await, 12);
    holding.close().await.unwrap();
    until("it is stored", async || database.number(stored).await == 13).await;
    until("u0 is served", async || harness.told("u0").await == "OK").await;
    harness.assert_each_redeemed_once();
}

#[tokio::test]
async fn n7_who_waits_for_a_token_does_not_wait_until_it_is_noted_that_the_provider_works() {
    let harness = Harness::with_users(Engine::Postgres, 1, Options::default()).await;
    // It is long ago that a client secret was noted to work.
    harness.pass(Duration::from_hours(24 * 8));
    let mut holding = sqlx::PgConnection::connect(harness.config.store.url.expose()).await.unwrap();
    sqlx::raw_sql("BEGIN; SELECT id FROM provider_secrets FOR UPDATE").execute(&mut holding).await.unwrap();
    // Who would change that row gives up after 5 s.
    let took = timed(&harness, 0).await;
    assert!(took < Duration::from_secs(4), "{took:?}");
    assert_eq!(harness.refreshes().len(), 1);
    holding.close().await.unwrap();
}

#[tokio::test]
async fn s2_who_comes_when_the_spooled_token_is_dead_is_told_that_the_store_is_away() {
    let harness = Harness::with_users(Engine::Sqlite, 1, Options::default()).await;
    harness.sandbox.set_faults([Rule::refresh(Effect::Hold).after()]);
    harness.pass(DEAD);
    let cutting = async {
        harness.sandbox.wait_held(1).await;
        let outage = Outage::begin(&harness.config.store.url).await;
        harness.sandbox.clear_faults();
        outage
    };
    let (waited, outage) = tokio::join!(harness.get("u0"), cutting);
    assert!(harness.is_accepted(&waited.unwrap().access_token).await);
    harness.pass(DEAD);
    let refused = harness.get("u0").await.unwrap_err();
    assert_eq!((refused.code(), reason(&refused).as_str()), (Code::Unavailable, "STORE_UNAVAILABLE"));
    outage.end().await;
    until("it is served", async || harness.get("u0").await.is_ok()).await;
    assert_eq!((harness.told("u0").await.as_str(), harness.refreshes().len()), ("OK", 2));
    harness.assert_each_redeemed_once();
}

#[tokio::test]
async fn s1_a_full_store_spends_no_refresh_token_and_serves_what_lives() {
    // What SQLite says of a full disk, nobody but a disk can make it say.
    let harness = Harness::with_users(Engine::Postgres, 2, Options::default()).await;
    let database = harness.database().await;
    harness.pass(Duration::from_mins(40));
    harness.link("u1", "p1").await;
    let living = harness.get("u1").await.unwrap().access_token;
    let body = "BEGIN RAISE EXCEPTION 'could not extend file' USING ERRCODE = '53100'; END";
    database.execute(&format!("CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS $${body}$$")).await;
    for table in ["grants", "events", "flows", "providers", "replicas"] {
        let begin = format!("CREATE TRIGGER full_disk BEFORE INSERT OR UPDATE ON {table}");
        database.execute(&format!("{begin} EXECUTE FUNCTION full_disk()")).await;
    }
    harness.pass(Duration::from_mins(30));
    let refused = harness.get("u0").await.unwrap_err();
    assert_eq!((refused.code(), reason(&refused).as_str()), (Code::Unavailable, "STORE_UNAVAILABLE"));
    assert_eq!(harness.get("u1").await.unwrap().access_token, living);
    assert_eq!(harness.refreshes().len(), 0);
    for table in ["grants", "events", "flows", "providers", "replicas"] {
        database.execute(&format!("DROP TRIGGER full_disk ON {table}")).await;
    }
    until("it is refreshed", async || harness.get("u0").await.is_ok()).await;
    assert_eq!(harness.told("u0").await, "OK");
    assert_eq!(harness.refreshes().len(), 1);
    harness.assert_each_redeemed_once();
}

#[tokio::test]
async fn s4_while_the_pool_is_exhausted_results_are_stored_and_nothing_new_is_sent() {
    let harness = Harness::with_users(Engine::Postgres, 2, Options::default()).await;
    let database = harness.database().await;
    harness.sandbox.set_faults([Rule::refresh(Effect::Hold).after().person("p0")]);
    harness.pass(DEAD);
    // Nobody sweeps u1 meanwhile.
    database.execute("UPDATE grants SET sweep_at = NULL WHERE user_id = 'u1'").await;
    let exhausting = async {
        harness.sandbox.wait_held(1).await;
        let mut locked = sqlx::PgConnection::connect(harness.config.store.url.expose()).await.unwrap();
        sqlx::raw_sql("BEGIN; LOCK TABLE redirect_urls IN ACCESS EXCLUSIVE MODE").execute(&mut locked).await.unwrap();
        let waiting: Vec<_> = (0..20)
            .map(|_| {
                let mut urls = harness.redirect_urls();
                tokio::spawn(async move { urls.list_redirect_urls(v1::ListRedirectUrlsRequest::default()).await })
            })
            .collect();
        let busy = "SELECT COUNT(*) FROM pg_stat_activity
                    WHERE datname = current_database() AND wait_event_type = 'Lock'";
        let all = i64::from(harness.config.store.max_connections);
        until("the pool is exhausted", async || database.number(busy).await == all).await;
        let refused = harness.get("u1").await.unwrap_err();
        assert_eq!((refused.code(), reason(&refused).as_str()), (Code::Unavailable, "STORE_UNAVAILABLE"));
        assert_eq!(harness.refreshes().len(), 1);
        harness.sandbox.release();
        let stored = "SELECT COUNT(*) FROM grants WHERE user_id = 'u0' AND committed_fence = 1";
        until("it is stored", async || database.number(stored).await == 1).await;
        assert_eq!(database.number(busy).await, all, "by connections of its own");
        locked.close().await.unwrap();
        join_all(waiting).await;
    };
    let (waited, ()) = tokio::join!(harness.get("u0"), exhausting);
    assert!(harness.is_accepted(&waited.unwrap().access_token).await, "who waited is served");
    for user in ["u0", "u1"] {
        until("it is served", async || harness.get(user).await.is_ok()).await;
        assert_eq!(harness.told(user).await, "OK");
    }
    assert_eq!(harness.refreshes().len(), 2, "one request each");
    harness.assert_each_redeemed_once();
}

#[tokio::test]
async fn s4_a_database_that_is_gone_for_half_a_minute_costs_nothing() {
    let harness = Harness::with_users(Engine::Postgres, 2, Options::default()).await;
    let database = harness.database().await;
    harness.sandbox.set_faults([Rule::refresh(Effect::Hold).after().person("p0")]);
    harness.pass(DEAD);
    database.execute("UPDATE grants SET sweep_at = NULL WHERE user_id = 'u1'").await;
    let cutting = async {
        harness.sandbox.wait_held(1).await;
        harness.cut_database().await;
        harness.sandbox.clear_faults();
        until("it is spooled", async || spooled(&harness.config.spool_dir) == 1).await;
    };
    let (waited, ()) = tokio::join!(harness.get("u0"), cutting);
    assert_eq!(reason(&waited.unwrap_err()), "STORE_UNAVAILABLE");
    // Its lease runs out meanwhile.
    for _ in 0..2 {
        harness.pass(Duration::from_secs(15));
        for user in ["u0", "u1"] {
            let refused = harness.get(user).await.unwrap_err();
            assert_eq!((refused.code(), reason(&refused).as_str()), (Code::Unavailable, "STORE_UNAVAILABLE"), "{user}");
        }
    }
    assert_eq!(harness.refreshes().len(), 1);
    harness.mend_database().await;
    for user in ["u0", "u1"] {
        until("it is served", async || harness.get(user).await.is_ok()).await;
        assert_eq!(harness.told(user).await, "OK");
    }
    assert_eq!((harness.refreshes().len(), spooled(&harness.config.spool_dir)), (2, 0), "one request each");
    assert_eq!(harness.events().await, counts([("account.linked", 2)]));
    harness.assert_each_redeemed_once();
}

/// So many flows that have ended, a copy each of one that is there.
async fn bury(engine: Engine, database: &Database, rows: u32) {
    let (number, hash) = match engine {
        Engine::Sqlite => (
            format!(
                "(WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {rows}) SELECT i FROM n)"
            ),
            "CAST(n.i AS BLOB)",
        ),
        Engine::Postgres => (format!("(SELECT generate_series(1, {rows}) AS i)"), "CAST(CAST(n.i AS TEXT) AS BYTEA)"),
    };
    let copied = "client_id, user_id, provider_id, redirect_uri, scopes, created_at, expires_at, ended_at";
    let buried = database
        .execute(&format!(
            "INSERT INTO flows (id, state, state_hash, failure, {copied})
             SELECT CAST(n.i AS TEXT), 'failed', {hash}, 'expired', {copied}
             FROM (SELECT * FROM flows LIMIT 1) AS one, {number} AS n"
        ))
        .await;
    assert_eq!(buried, u64::from(rows));
}

/// Flows that are not removed yet: one stands for all.
async fn left(database: &Database) -> i64 {
    database.number("SELECT COUNT(*) FROM (SELECT 1 FROM flows LIMIT 1) AS one").await
}

/// Has the database refuse every new access token of this user.
async fn refuse_results_of(engine: Engine, database: &Database, user: &str) {
    let is_bad = format!("NEW.user_id = '{user}' AND NEW.access_generation <> OLD.access_generation");
    let begin = "CREATE TRIGGER bad BEFORE UPDATE ON grants FOR EACH ROW";
    match engine {
        Engine::Sqlite => {
            database.execute(&format!("{begin} WHEN {is_bad} BEGIN SELECT RAISE(ABORT, 'no'); END")).await;
        }
        Engine::Postgres => {
            let body = "BEGIN RAISE 'no'; END";
            database.execute(&format!("CREATE FUNCTION bad() RETURNS trigger LANGUAGE plpgsql AS $${body}$$")).await;
            database.execute(&format!("{begin} WHEN ({is_bad}) EXECUTE FUNCTION bad()")).await;
        }
    }
}

/// How long the `n`th user waits for a token that the provider accepts.
async fn timed(harness: &Harness, n: usize) -> Duration {
    let began = now();
    let token = harness.get(&format!("u{n}")).await.unwrap_or_else(|refused| panic!("{}", reason(&refused)));
    let took = began.elapsed();
    assert!(harness.is_accepted(&token.access_token).await);
    took
}
