//! A replica is killed or stopped while others run (fault S5, promises P2 and P3).

use std::time::Duration;

use token_wallet::sandbox::{Effect, Options, Rotation, Rule};

use crate::support::cluster::Cluster;
use crate::support::harness::{reason, until};

fn graceful() -> Options {
    Options { rotation: Rotation::Grace(Duration::from_mins(2)), ..Options::default() }
}

/// Has the first replica refresh, up to the provider's answer, and does `meanwhile` before that is sent.
async fn refreshing(cluster: &Cluster, meanwhile: impl AsyncFnOnce()) {
    cluster.sandbox().set_faults([Rule::refresh(Effect::Hold).after()]);
    cluster.expire("u").await;
    let failing = async {
        cluster.sandbox().wait_held(1).await;
        meanwhile().await;
    };
    let _ = tokio::join!(cluster.first().get("u", "sandbox"), failing);
}

/// The token that the second replica has refreshed: it must have been there for ten seconds to know that nobody else
/// brings it.
async fn served_by_another(cluster: &Cluster) -> String {
    for _ in 0..600 {
        if let Ok(got) = cluster.replicas[1].get("u", "sandbox").await {
            assert!(cluster.sandbox().accepts(&got.access_token));
            return got.access_token;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("no other replica asks again")
}

#[tokio::test]
async fn s5_killed_while_a_refresh_is_at_the_provider_another_replica_asks_again_within_the_grace() {
    let mut cluster = Cluster::start(3, graceful(), &[]).await;
    cluster.first().link("u", "demo").await;
    refreshing(&cluster, async || cluster.first().kill()).await;
    cluster.replicas[0].end().await;
    cluster.sandbox().release();
    cluster.end_leases().await;
    served_by_another(&cluster).await;
    cluster.replicas[0].start().await;
    cluster.assert_served("u").await;
    let totals = cluster.sandbox().totals();
    assert_eq!((totals.grace_repeats, totals.reuses), (1, 0), "{totals:?}");
}

#[tokio::test]
async fn s5_killed_with_an_answer_in_its_spool_nobody_asks_again_and_its_next_process_stores_it() {
    let options = Options { reuse_revokes_family: true, ..Options::default() };
    let mut cluster = Cluster::behind_proxies(3, options, &[]).await;
    cluster.first().link("u", "demo").await;
    refreshing(&cluster, async || {
        cluster.proxies[0].cut();
        cluster.sandbox().release();
        until("it is spooled", async || cluster.first().spooled() == 1).await;
        cluster.first().kill();
    })
    .await;
    cluster.replicas[0].end().await;
    cluster.end_leases().await;
    for replica in &cluster.replicas[1..] {
        assert_eq!(reason(&replica.get("u", "sandbox").await.unwrap_err()), "PROVIDER_UNAVAILABLE");
    }
    cluster.proxies[0].heal();
    cluster.replicas[0].start().await;
    cluster.assert_served("u").await;
    assert_eq!(cluster.first().token_requests("refresh_token").len(), 1);
    cluster.expire("u").await;
    until("it is refreshed with what the dead process received", async || {
        cluster.gets("u", 3).await;
        cluster.first().token_requests("refresh_token").len() == 2
    })
    .await;
    cluster.assert_each_redeemed_once();
}

#[tokio::test]
async fn p2_a_replica_that_is_stopped_beyond_its_lease_overlaps_once_and_its_late_answer_overwrites_nothing() {
    let cluster = Cluster::start(3, graceful(), &[]).await;
    cluster.first().link("u", "demo").await;
    let newer = &mut None;
    refreshing(&cluster, async || {
        cluster.first().pause();
        cluster.sandbox().release();
        cluster.end_leases().await;
        *newer = Some(served_by_another(&cluster).await);
        cluster.first().resume();
    })
    .await;
    until("the late answer was dropped, and the newer one is served", async || {
        let got = cluster.first().get("u", "sandbox").await;
        got.is_ok_and(|got| Some(got.access_token) == *newer)
    })
    .await;
    cluster.assert_served("u").await;
    cluster.expire("u").await;
    assert!(cluster.replicas[2].get("u", "sandbox").await.is_ok(), "the newer refresh token is what was kept");
    let totals = cluster.sandbox().totals();
    assert_eq!((totals.grace_repeats, totals.reuses), (1, 0), "{totals:?}");
}
