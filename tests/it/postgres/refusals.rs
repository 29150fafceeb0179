//! PostgreSQL answers, and takes nothing (faults S1 and S2): it is read-only, or its disk is full.

use std::time::Duration;

use futures_util::future::join_all;
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _};
use token_wallet::proto::v1;
use token_wallet::sandbox::{Effect, Options, Rule};
use tonic::Status;

use crate::support::cluster::{Cluster, people};
use crate::support::harness::{APP_URL, Engine, reason, until};
use crate::support::oracle::wait;
use crate::support::outage::Outage;
use crate::support::postgres;
use crate::support::real_time::{say, time_until};
use crate::support::server::Server;
use crate::support::service::Wallet;

/// Whose tokens are good; whose tokens have run out; whose refresh was answered when it began.
const GOOD: std::ops::Range<usize> = 0..6;
const EXPIRED: std::ops::Range<usize> = 6..12;
const ANSWERED: std::ops::Range<usize> = 12..18;
const USERS: usize = 18;

/// How soon replicas must serve again; measured: some 100 ms.
const BACK_BY: Duration = Duration::from_secs(5);

fn options() -> Options {
    Options { people: people(USERS), reuse_revokes_family: true, ..Options::default() }
}

fn user(n: usize) -> String {
    format!("u{n}")
}

#[tokio::test]
async fn s1_a_read_only_database_spends_no_refresh_token_loses_none_and_good_tokens_are_served() {
    let first = Wallet::new(Engine::Postgres, options(), &[]).await;
    let cluster = Cluster::of(first, None, 3, |_| None).await.with_users(USERS).await;
    let replicas = &cluster.replicas;
    cluster.sandbox().set_faults([Rule::refresh(Effect::Hold).after()]);
    for n in EXPIRED.chain(ANSWERED) {
        cluster.expire(&user(n)).await;
    }
    let answered = ANSWERED.map(|n| async move { replicas[n % 3].get(&user(n), "sandbox").await });
    let refused = async {
        cluster.sandbox().wait_held(ANSWERED.len()).await;
        let outage = Outage::begin(cluster.first().store()).await;
        cluster.sandbox().release();
        cluster.sandbox().clear_faults();
        until("all are in the spools", async || replicas.iter().map(Wallet::spooled).sum::<usize>() == ANSWERED.len())
            .await;
        for _ in 0..3 {
            for n in GOOD {
                for replica in replicas {
                    let got = replica.get(&user(n), "sandbox").await.unwrap();
                    assert!(cluster.sandbox().accepts(&got.access_token));
                }
            }
            for n in EXPIRED {
                let told = replicas[n % 3].get(&user(n), "sandbox").await.unwrap_err();
                assert_eq!(reason(&told), "STORE_UNAVAILABLE");
                wait(&told);
            }
        }
        outage.end().await;
        all_are_served(&cluster).await
    };
    let (answered, took) = tokio::join!(join_all(answered), refused);
    for told in answered.into_iter().filter_map(Result::err) {
        assert_eq!(reason(&told), "STORE_UNAVAILABLE");
    }
    say(format_args!("all users are served {took:?} after the database took changes again"));
    assert!(took < BACK_BY, "{took:?}");
    assert_eq!(cluster.sandbox().totals().redemptions, (EXPIRED.len() + ANSWERED.len()) as u64);
    nothing_is_lost(&cluster).await;
}

#[tokio::test]
async fn s1_a_full_disk_of_postgresql_loses_no_refresh_token_and_serves_again_when_there_is_room() {
    let server = tokio::task::spawn_blocking(|| Server::with_small_disk(64)).await.unwrap();
    let mut filler = PgConnection::connect(&server.url).await.unwrap();
    let small = format!("{}/own", server.small.as_ref().unwrap().path().display());
    // Its owner must be the server's user, who alone can see it.
    filler.execute(AssertSqlSafe(format!("COPY (SELECT) TO PROGRAM 'mkdir {small}'"))).await.unwrap();
    filler.execute(AssertSqlSafe(format!("CREATE TABLESPACE small LOCATION '{small}'"))).await.unwrap();
    let database = postgres::database_on(&server.url).await;
    let name = database.url.split('?').next().unwrap().rsplit('/').next().unwrap();
    filler.execute(AssertSqlSafe(format!("ALTER DATABASE {name} SET TABLESPACE small"))).await.unwrap();
    let first = Wallet::on(Some(database), options(), &[]).await;
    let cluster = Cluster::of(first, Some(server), 3, |_| None).await.with_users(USERS).await;
    let replicas = &cluster.replicas;
    for n in EXPIRED {
        cluster.expire(&user(n)).await;
    }
    cluster.sandbox().set_faults([Rule::refresh(Effect::Hold).after()]);
    let asked = EXPIRED.map(|n| async move { replicas[n % 3].get(&user(n), "sandbox").await });
    let full = async {
        cluster.sandbox().wait_held(EXPIRED.len()).await;
        filler.execute("CREATE TABLE filler (bytes TEXT) TABLESPACE small").await.unwrap();
        filler.execute("ALTER TABLE filler ALTER bytes SET STORAGE PLAIN").await.unwrap();
        fill(&mut filler).await;
        cluster.sandbox().release();
        cluster.sandbox().clear_faults();
        for n in GOOD {
            for replica in replicas {
                let got = replica.get(&user(n), "sandbox").await.unwrap();
                assert!(cluster.sandbox().accepts(&got.access_token));
            }
        }
        let mut users = USERS..;
        // What has room in its page is taken still; and what is vacuumed has room again.
        until("somebody hears that it is full", async || {
            fill(&mut filler).await;
            let flows = users.by_ref().take(6).map(|n| start_flow(&replicas[n % 3], n));
            let mut told = join_all(flows).await.into_iter().filter_map(Result::err);
            told.next().is_some_and(|told| {
                assert_eq!(reason(&told), "STORE_UNAVAILABLE");
                wait(&told) > Duration::ZERO
            })
        })
        .await;
        filler.execute("DROP TABLE filler").await.unwrap();
        all_are_served(&cluster).await
    };
    let (asked, took) = tokio::join!(join_all(asked), full);
    for told in asked.into_iter().filter_map(Result::err) {
        assert_eq!(reason(&told), "STORE_UNAVAILABLE");
    }
    say(format_args!("all users are served {took:?} after there was room again"));
    assert!(took < BACK_BY, "{took:?}");
    nothing_is_lost(&cluster).await;
}

/// How long it takes until each user is served.
async fn all_are_served(cluster: &Cluster) -> Duration {
    let get = |n: usize| async move { cluster.replicas[n % 3].get(&user(n), "sandbox").await };
    let all = async || join_all((0..USERS).map(get)).await.iter().all(Result::is_ok);
    time_until("all are served again", all).await
}

/// Starts a flow, which writes.
async fn start_flow(replica: &Wallet, n: usize) -> Result<(), Status> {
    let (user_id, provider, redirect_url) = (user(n), "sandbox".into(), APP_URL.into());
    let request = v1::StartLinkRequest { user_id, provider, redirect_url, ..Default::default() };
    replica.accounts().start_link(request).await.map(drop)
}

/// Fills its disk to the last page.
async fn fill(connection: &mut PgConnection) {
    for size in [1_000_000, 8_000, 100] {
        let rows = size / 100;
        let insert = format!("INSERT INTO filler SELECT repeat('x', 100) FROM generate_series(1, {rows})");
        let full = loop {
            if let Err(full) = connection.execute(AssertSqlSafe(insert.clone())).await {
                break full;
            }
        };
        let code = full.as_database_error().and_then(sqlx::error::DatabaseError::code);
        assert_eq!(code.as_deref(), Some("53100"), "{full}");
    }
}

/// All answers are stored: the newest refresh token of each grant is at hand.
async fn nothing_is_lost(cluster: &Cluster) {
    until("the spools are empty", async || cluster.replicas.iter().all(|replica| replica.spooled() == 0)).await;
    // Memory does not notice this; a replica that starts anew has none.
    cluster.expire("%").await;
    let mut fresh = cluster.first().beside();
    fresh.start().await;
    for n in 0..USERS {
        let got = fresh.get(&user(n), "sandbox").await.unwrap();
        assert!(cluster.sandbox().accepts(&got.access_token));
    }
    cluster.assert_each_redeemed_once();
    assert!(cluster.sandbox().grants().iter().all(|grant| grant.ended.is_none()));
}
