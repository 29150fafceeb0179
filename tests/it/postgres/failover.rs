//! The primary dies, and a standby is promoted in its place (fault S4). The wallet's URL leads to whichever is primary.

use std::collections::BTreeSet;
use std::os::unix::fs::symlink;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgPool, Row as _};
use tempfile::TempDir;
use token_wallet::proto::v1;
use token_wallet::sandbox::{Ending, Options, Rotation};
use tokio_util::sync::CancellationToken;

use crate::support::cluster::{Cluster, people};
use crate::support::harness::{reason, until};
use crate::support::postgres;
use crate::support::real_time::{now, say, time_until};
use crate::support::server::{Server, Standby, home};
use crate::support::service::Wallet;

/// What a server must be told before others may follow it.
const LEADING: [&str; 3] = [
    "ALTER SYSTEM SET wal_level = 'replica'",
    "ALTER SYSTEM SET max_wal_senders = 4",
    "ALTER SYSTEM SET full_page_writes = on",
];

#[tokio::test]
async fn s4_a_synchronous_standby_takes_over_under_load_and_nothing_is_lost() {
    const USERS: usize = 24;
    let options = Options { people: people(USERS), reuse_revokes_family: true, ..Options::default() };
    let pair = Pair::start(options, USERS).await;
    pair.have_standby_confirm().await;
    let stop = CancellationToken::new();
    let pool = PgPool::connect(pair.cluster.first().store().expose()).await.unwrap();
    let served: Vec<_> = (0..USERS).map(|_| AtomicUsize::new(0)).collect();
    let count = || -> Vec<_> { served.iter().map(|count| count.load(Ordering::Relaxed)).collect() };
    let churns = (0..USERS).map(|n| churn(&pair.cluster, &pool, n, &served[n], &stop));
    let failing = async {
        until("all are refreshed again and again", async || count().iter().all(|count| *count >= 3)).await;
        pair.fail_over().await;
        let (began, before) = (now(), count());
        let again = || count().iter().zip(&before).filter(|(count, before)| *count > *before).count();
        let first = time_until("one is served", async || again() > 0).await;
        // A claim whose commit was never told holds its grant for a lease.
        while again() < USERS && began.elapsed() < Duration::from_mins(1) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let last = began.elapsed();
        assert_eq!(again(), USERS);
        stop.cancel();
        (first, last)
    };
    let (_, (first, last)) = tokio::join!(join_all(churns), failing);

    pair.cluster.expire("%").await;
    for n in 0..USERS {
        pair.cluster.assert_served(&format!("u{n}")).await;
    }
    pair.cluster.assert_each_redeemed_once();
    assert!(pair.cluster.sandbox().grants().iter().all(|grant| grant.ended.is_none()));
    let events = pair.cluster.first().database().await.events().await;
    assert_eq!(events.len(), USERS, "nothing but links: {events:?}");
    let gets = count().iter().sum::<usize>();
    say(format_args!(
        "{gets} gets of expired tokens; the first was served {first:?} after the failover, and all {last:?} after it"
    ));
}

#[tokio::test]
async fn s4_what_an_asynchronous_standby_had_not_received_is_lost_and_no_more_and_its_users_consent_again() {
    let pair = fail_over_behind(Options { reuse_revokes_family: true, ..Options::default() }).await;
    for user in REFRESHED {
        pair.assert_needs_consent(user).await;
        assert_eq!(pair.cluster.sandbox().grants_of(person(user))[0].ended, Some(Ending::Reuse));
    }
    for user in REFRESHED.into_iter().chain([UNLINKED, LINKED]) {
        pair.cluster.first().link(user, person(user)).await;
        pair.cluster.assert_served(user).await;
    }
}

#[tokio::test]
async fn s4_refreshes_that_an_asynchronous_standby_had_not_received_are_made_up_for_within_a_grace() {
    let grace = Rotation::Grace(Duration::from_mins(10));
    let pair = fail_over_behind(Options { rotation: grace, ..Options::default() }).await;
    for user in REFRESHED {
        pair.cluster.assert_served(user).await;
    }
    assert_eq!(pair.cluster.sandbox().totals().grace_repeats, REFRESHED.len() as u64);
}

/// What happens while the standby receives nothing.
const REFRESHED: [&str; 2] = ["u0", "u1"];
const UNLINKED: &str = "u2";
const LINKED: &str = "u12";

/// Three replicas whose standby stops to receive; what happens then is lost with the primary. All tokens have run out
/// when this returns.
async fn fail_over_behind(options: Options) -> Pair {
    const USERS: usize = 12;
    let pair = Pair::start(Options { people: people(USERS + 1), ..options }, USERS).await;
    let [first, second, third] = &pair.cluster.replicas[..] else { panic!("not three") };
    pair.stall().await;
    let received = generations(first).await;
    for user in REFRESHED {
        pair.cluster.expire(user).await;
        second.get(user, "sandbox").await.unwrap();
    }
    first.link(LINKED, person(LINKED)).await;
    let request = v1::ListExternalAccountsRequest { user_id: UNLINKED.into(), ..Default::default() };
    let listed = third.accounts().list_external_accounts(request).await.unwrap().into_inner();
    let external_account_id = listed.external_accounts.into_iter().next().unwrap().id;
    third.accounts().delete_external_account(v1::DeleteExternalAccountRequest { external_account_id }).await.unwrap();
    let sandbox = pair.cluster.sandbox();
    until("it is revoked", async || sandbox.grants_of(person(UNLINKED))[0].ended == Some(Ending::Revoked)).await;
    let written = generations(first).await;

    pair.fail_over().await;
    let left = generations(first).await;
    assert_eq!(left, received, "what had been received is there");
    let lost: BTreeSet<_> = written.symmetric_difference(&left).map(|row| row.split(' ').next().unwrap()).collect();
    say(format_args!("the loss window: what was done for {lost:?}"));
    assert_eq!(lost, REFRESHED.into_iter().chain([UNLINKED, LINKED]).collect());

    for replica in &pair.cluster.replicas {
        let told = async || replica.get(LINKED, "sandbox").await.err().map(|told| reason(&told));
        until("the store is back", async || told().await.as_deref() == Some("ACCOUNT_NOT_LINKED")).await;
        for user in REFRESHED {
            // The older token, which is good still.
            assert!(sandbox.accepts(&replica.get(user, "sandbox").await.unwrap().access_token));
        }
    }
    pair.cluster.expire("%").await;
    for n in 3..USERS {
        pair.cluster.assert_served(&format!("u{n}")).await;
    }
    pair.assert_needs_consent(UNLINKED).await;
    pair
}

/// Each linked user, and which of the grant's tokens the store has.
async fn generations(wallet: &Wallet) -> BTreeSet<String> {
    let sql = "SELECT user_id || ' ' || refresh_generation FROM grants WHERE is_current";
    wallet.database().await.texts(sql).await.into_iter().collect()
}

fn person(user: &str) -> &'static str {
    match user {
        "u0" => "p0",
        "u1" => "p1",
        UNLINKED => "p2",
        LINKED => "p12",
        _ => panic!("{user}"),
    }
}

/// Each get asks the store.
const COLD: (&str, &str) = ("TOKEN_WALLET__CACHE__MAX_BYTES", "0");

/// Three replicas, the primary that their URL leads to, and a standby.
struct Pair {
    cluster: Cluster,
    standby: Standby,
    primary: Server,
    /// With the link to the primary's socket.
    folder: TempDir,
}

impl Pair {
    async fn start(options: Options, users: usize) -> Self {
        let primary = tokio::task::spawn_blocking(Server::start).await.unwrap();
        let mut connection = PgConnection::connect(&primary.url).await.unwrap();
        for setting in LEADING {
            connection.execute(setting).await.unwrap();
        }
        connection.close().await.unwrap();
        primary.crash().await;
        primary.restart().await;
        let standby = primary.standby().await;
        let folder = tempfile::Builder::new().prefix("pair").tempdir_in("/tmp").unwrap();
        let front = folder.path().join("front");
        symlink(home(&primary.url), &front).unwrap();
        let url = format!("postgres://postgres@localhost/postgres?host={}", front.display());
        let first = Wallet::on(Some(postgres::database_on(&url).await), options, &[COLD]).await;
        let cluster = Cluster::of(first, None, 3, |_| None).await.with_users(users).await;
        Self { cluster, standby, primary, folder }
    }

    /// From now on no commit is told before the standby has it.
    async fn have_standby_confirm(&self) {
        let mut connection = PgConnection::connect(&self.primary.url).await.unwrap();
        connection.execute("ALTER SYSTEM SET synchronous_standby_names = '*'").await.unwrap();
        connection.execute("SELECT pg_reload_conf()").await.unwrap();
        let state = "SELECT COALESCE(MIN(sync_state), '') FROM pg_stat_replication";
        until("it confirms", async || {
            let state: String = connection.fetch_one(state).await.unwrap().get(0);
            state == "sync"
        })
        .await;
    }

    /// From now on the standby, which has all up to here, receives nothing.
    async fn stall(&self) {
        let mut primary = PgConnection::connect(&self.primary.url).await.unwrap();
        let here: String = primary.fetch_one("SELECT pg_current_wal_lsn()::TEXT").await.unwrap().get(0);
        let mut standby = PgConnection::connect(&self.standby.url).await.unwrap();
        let replayed = format!("SELECT pg_last_wal_replay_lsn() >= '{here}'");
        until("the standby has it", async || {
            standby.fetch_one(AssertSqlSafe(replayed.clone())).await.unwrap().get::<bool, _>(0)
        })
        .await;
        standby.execute("ALTER SYSTEM SET primary_conninfo = ''").await.unwrap();
        standby.execute("SELECT pg_reload_conf()").await.unwrap();
        let receivers = "SELECT COUNT(*) FROM pg_stat_wal_receiver";
        until("it receives nothing", async || standby.fetch_one(receivers).await.unwrap().get::<i64, _>(0) == 0).await;
    }

    /// The primary crashes, and the standby takes its place.
    async fn fail_over(&self) {
        self.primary.crash().await;
        self.standby.promote().await;
        let (link, front) = (self.folder.path().join("next"), self.folder.path().join("front"));
        symlink(home(&self.standby.url), &link).unwrap();
        std::fs::rename(link, front).unwrap();
    }

    /// The provider refuses the user's grant for good.
    async fn assert_needs_consent(&self, user: &str) {
        let told = async || self.cluster.first().get(user, "sandbox").await.err().map(|told| reason(&told));
        // A refusal is confirmed five seconds later.
        let told = async {
            while told().await.as_deref() != Some("REAUTHORIZATION_REQUIRED") {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(Duration::from_mins(1), told).await.unwrap_or_else(|_| panic!("{user} is never told"));
    }
}

/// Lets the user's token run out and asks for it again and again; counts how often one was served.
async fn churn(cluster: &Cluster, pool: &PgPool, n: usize, served: &AtomicUsize, stop: &CancellationToken) {
    let sql = "UPDATE grants SET issued_at = issued_at - 7200000, due_at = 0, sweep_at = NULL WHERE user_id = $1";
    let user = format!("u{n}");
    for replica in cluster.replicas.iter().cycle().skip(n) {
        if stop.is_cancelled() {
            break;
        }
        // The store may be away.
        let _ = sqlx::query(sql).bind(&user).execute(pool).await;
        match replica.get(&user, "sandbox").await {
            Ok(got) => {
                assert!(cluster.sandbox().accepts(&got.access_token), "{user}");
                served.fetch_add(1, Ordering::Relaxed);
            }
            Err(told) => {
                let told = reason(&told);
                assert!(["STORE_UNAVAILABLE", "DEADLINE_EXCEEDED"].contains(&told.as_str()), "{user}: {told}");
            }
        }
    }
}
