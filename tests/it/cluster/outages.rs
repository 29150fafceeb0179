//! PostgreSQL crashes, is cut off or ends sessions while three replicas work (fault S4).

use std::time::Duration;

use token_wallet::sandbox::{Effect, Options, Rule};
use tonic::Code;
use tonic_types::StatusExt as _;

use super::load::{Answer, Load};
use crate::support::cluster::{Cluster, people};
use crate::support::harness::{reason, until};
use crate::support::proxy::Proxy;
use crate::support::real_time::{now, say, time_until};
use crate::support::service::Wallet;

const STORED: &str = "SELECT COUNT(*) FROM grants WHERE state = 'active' AND committed_fence = fence
    AND access_generation = fence AND refresh_generation = fence AND lease_until IS NULL AND fence =";

/// Tokens in memory may be served for so long, and somebody may have to wait for a processor.
const READ_LEASE: Duration = Duration::from_millis(1_500);

/// How long a call may take, and its way to the test.
const DEADLINE: Duration = Duration::from_secs(11);

/// Of the store's return.
const SERVED_BY: Duration = Duration::from_secs(2);

/// How many seconds PostgreSQL is away under load; long enough for callers to hear that.
const AWAY: &str = "TOKEN_WALLET_OUTAGE_SECONDS";

fn strict(users: usize) -> Options {
    Options { people: people(users), reuse_revokes_family: true, ..Options::default() }
}

/// What happens when the provider has rotated the refresh tokens and the answers are on their way.
#[derive(Clone, Copy, Debug)]
enum Failure {
    Crash,
    SessionsEnd,
    BeforeCommits,
    AfterCommits,
}

#[tokio::test]
async fn s4_whatever_happens_to_postgresql_when_the_answers_come_three_replicas_lose_none_and_ask_for_none_twice() {
    const USERS: usize = 24;
    let cold = ("TOKEN_WALLET__CACHE__MAX_BYTES", "0");
    let cluster = Cluster::on_a_server(3, strict(USERS), &[cold]).await.with_users(USERS).await;
    let failures = [Failure::Crash, Failure::SessionsEnd, Failure::BeforeCommits, Failure::AfterCommits];
    for (round, failure) in failures.into_iter().enumerate() {
        cluster.sandbox().set_faults([Rule::refresh(Effect::Hold).after()]);
        cluster.expire("%").await;
        let replicas = &cluster.replicas;
        let gets = (0..USERS).map(|n| async move { replicas[n % 3].get(&format!("u{n}"), "sandbox").await });
        let failing = async {
            cluster.sandbox().wait_held(USERS).await;
            fail(&cluster, failure, USERS).await
        };
        let (got, back) = tokio::join!(futures_util::future::join_all(gets), failing);
        for got in got {
            match got {
                Ok(got) => assert!(cluster.sandbox().accepts(&got.access_token), "{failure:?}"),
                Err(told) => assert_eq!(reason(&told), "STORE_UNAVAILABLE", "{failure:?}: {told:?}"),
            }
        }
        let database = cluster.first().database().await;
        let all = i64::try_from(USERS).unwrap();
        until("all are stored", async || database.number(&format!("{STORED} {}", round + 1)).await == all).await;
        say(format_args!("{failure:?}: all answers stored {:?} after PostgreSQL's return", back.elapsed()));
        for n in 0..USERS {
            cluster.assert_served(&format!("u{n}")).await;
        }
        let totals = cluster.sandbox().totals();
        assert_eq!(totals.redemptions, u64::try_from((round + 1) * USERS).unwrap(), "{failure:?}: {totals:?}");
        cluster.assert_each_redeemed_once();
    }
}

/// When PostgreSQL is back again.
async fn fail(cluster: &Cluster, failure: Failure, users: usize) -> std::time::Instant {
    let release = || cluster.sandbox().release();
    match failure {
        Failure::Crash => {
            let server = cluster.server.as_ref().unwrap();
            server.crash().await;
            release();
            let spooled = || cluster.replicas.iter().map(Wallet::spooled).sum::<usize>();
            until("all are spooled", async || spooled() == users).await;
            server.restart().await;
        }
        Failure::SessionsEnd => {
            release();
            for _ in 0..10 {
                cluster.end_sessions().await;
            }
        }
        Failure::BeforeCommits | Failure::AfterCommits => {
            let cut = if matches!(failure, Failure::BeforeCommits) {
                Proxy::cut_before_commit
            } else {
                Proxy::cut_after_commit
            };
            cluster.proxies.iter().for_each(|proxy| cut(proxy, "UPDATE grants"));
            release();
        }
    }
    now()
}

#[tokio::test]
async fn s4_postgresql_is_cut_off_under_load_and_served_again_within_two_seconds_of_its_return() {
    away_under_load(Proxy::cut).await;
}

#[tokio::test]
async fn s4_postgresql_falls_silent_under_load_and_served_again_within_two_seconds_of_its_return() {
    away_under_load(Proxy::hold).await;
}

async fn away_under_load(weather: fn(&Proxy)) {
    const HOT: usize = 12;
    const REFRESHED: usize = 6;
    let cluster = Cluster::behind_proxies(3, strict(HOT + REFRESHED), &[]).await.with_users(HOT + REFRESHED).await;
    cluster.sandbox().set_faults([Rule::refresh(Effect::Hold).after()]);
    for n in HOT..HOT + REFRESHED {
        cluster.expire(&format!("u{n}")).await;
    }
    let replicas = &cluster.replicas;
    let gets = (HOT..HOT + REFRESHED).map(|n| async move { replicas[n % 3].get(&format!("u{n}"), "sandbox").await });
    let gets = futures_util::future::join_all(gets);
    let outage = async {
        cluster.sandbox().wait_held(REFRESHED).await;
        let load = Load::start(&cluster, HOT, 4);
        tokio::time::sleep(Duration::from_millis(100)).await;
        let gone = now();
        cluster.proxies.iter().for_each(weather);
        cluster.sandbox().release();
        #[expect(clippy::disallowed_methods, reason = "how a person asks for a longer outage")]
        let seconds = std::env::var(AWAY).map_or(13, |text| text.parse().unwrap());
        while gone.elapsed() < Duration::from_secs(seconds) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let back = now();
        cluster.proxies.iter().for_each(Proxy::heal);
        let all = async || {
            let gets = cluster.replicas.iter().map(|replica| replica.get("u0", "sandbox"));
            futures_util::future::join_all(gets).await.iter().all(Result::is_ok)
        };
        let served = time_until("all serve again", all).await;
        (load.end().await, gone, back, served)
    };
    let (refreshed, (answers, gone, back, served)) = tokio::join!(gets, outage);
    for told in refreshed {
        assert_eq!(reason(&told.unwrap_err()), "STORE_UNAVAILABLE");
    }
    let before = answers.iter().filter(|answer| answer.ended < gone);
    assert!(before.clone().count() > 0 && before.into_iter().all(|answer| answer.told.is_ok()));
    let meanwhile: Vec<_> = answers.iter().filter(|a| a.begun > gone + READ_LEASE && a.ended < back).collect();
    assert!(meanwhile.len() >= 6, "callers have heard it: {}", meanwhile.len());
    meanwhile.into_iter().for_each(assert_told);
    assert!(
        answers
            .iter()
            .all(|answer| answer.told.as_ref().is_ok_and(|token| token.accepted && !token.expired)
                || answer.told.is_err())
    );
    for n in 0..HOT + REFRESHED {
        cluster.assert_served(&format!("u{n}")).await;
    }
    assert_eq!(cluster.sandbox().totals().redemptions, REFRESHED as u64);
    cluster.assert_each_redeemed_once();
    say(format_args!("{} gets; all replicas serve {served:?} after PostgreSQL's return", answers.len()));
    assert!(served <= SERVED_BY, "{served:?}");
}

/// The store is away, said in time and with when to come again.
fn assert_told(answer: &Answer) {
    let took = answer.ended - answer.begun;
    let told = answer.told.as_ref().err().unwrap_or_else(|| panic!("a token of u{} was served", answer.user));
    assert_eq!((told.code(), reason(told).as_str()), (Code::Unavailable, "STORE_UNAVAILABLE"), "{told:?}");
    assert!(told.get_error_details().retry_info().is_some(), "{told:?}");
    assert!(took < DEADLINE, "{took:?}");
}
