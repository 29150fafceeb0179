//! PostgreSQL commits and the wallet is not told (faults S3), at each change of a link and a refresh in turn.

use std::time::Duration;

use token_wallet::proto::v1;
use token_wallet::sandbox::{Endpoint, Options};

use crate::support::harness::{APP_URL, Harness, reason};
use crate::support::proxy::Proxy;

async fn harness() -> (Harness, Proxy) {
    Harness::through_proxy(Options::default()).await
}

/// Past due and past its end.
const DEAD: Duration = Duration::from_hours(2);

/// So long that the sweep leaves it to the next get.
const FORGOTTEN: Duration = Duration::from_hours(15 * 24);

/// Past the end of a claim's lease.
const LEASE: Duration = Duration::from_secs(21);

/// Each refresh token and each code was presented once.
fn presented_once(harness: &Harness) {
    let mut requests = harness.sandbox.requests();
    requests.retain(|request| request.endpoint == Endpoint::Token);
    let presented: std::collections::BTreeSet<_> =
        requests.iter().map(|request| (&request.presented.code, &request.presented.refresh_token)).collect();
    assert_eq!(presented.len(), requests.len(), "{requests:?}");
    assert!(requests.iter().all(|request| request.status == 200), "{requests:?}");
}

#[tokio::test]
async fn s3_the_answer_to_a_refreshs_commit_is_lost_and_its_token_is_served() {
    let (harness, proxy) = harness().await;
    harness.link("u", "demo").await;
    harness.pass(DEAD);
    proxy.cut_after_commit("UPDATE grants SET access_token");
    let token = harness.get("u").await.unwrap();
    proxy.commits_lost(1).await;
    assert!(harness.is_accepted(&token.access_token).await);
    assert_eq!(harness.refreshes().len(), 1);
    // The newest refresh token is at hand.
    harness.pass(DEAD);
    assert!(harness.is_accepted(&harness.get("u").await.unwrap().access_token).await);
    presented_once(&harness);
}

#[tokio::test]
async fn s3_the_answer_to_a_claims_commit_is_lost_and_nothing_is_sent_by_it() {
    let (harness, proxy) = harness().await;
    harness.link("u", "demo").await;
    harness.pass(FORGOTTEN);
    proxy.cut_after_commit("SET fence = fence + 1");
    let told = harness.get("u").await;
    proxy.commits_lost(1).await;
    assert!(told.is_err_and(|status| reason(&status) == "STORE_UNAVAILABLE"));
    assert_eq!(harness.refreshes().len(), 0);
    harness.pass(LEASE);
    assert!(harness.is_accepted(&harness.get("u").await.unwrap().access_token).await);
    presented_once(&harness);
}

#[tokio::test]
async fn s3_the_answer_to_a_parked_codes_or_a_deposits_commit_is_lost_and_the_link_stands() {
    for statement in ["SET state = 'exchanged'", "INSERT INTO grants"] {
        let (harness, proxy) = harness().await;
        let ticket = harness.ticket("u", "demo").await;
        proxy.cut_after_commit(statement);
        // Told at once, or when asked again.
        let told = harness.complete("u", &ticket).await;
        proxy.commits_lost(1).await;
        assert!(told.is_ok_and(|told| told.created) || harness.complete("u", &ticket).await.unwrap().created);
        assert!(harness.is_accepted(&harness.get("u").await.unwrap().access_token).await, "{statement}");
        presented_once(&harness);
    }
}

#[tokio::test]
async fn s3_a_code_whose_claims_answer_was_lost_is_never_sent() {
    let (harness, proxy) = harness().await;
    let ticket = harness.ticket("u", "demo").await;
    proxy.cut_after_commit("SET state = 'claimed'");
    let told = harness.complete("u", &ticket).await.unwrap_err();
    proxy.commits_lost(1).await;
    assert_eq!(reason(&told), "STORE_UNAVAILABLE");
    assert_eq!(reason(&harness.complete("u", &ticket).await.unwrap_err()), "FLOW_IN_PROGRESS");
    assert_eq!(harness.exchanges().len(), 0);
    // It can be begun again.
    harness.link("u", "demo").await;
    assert!(harness.is_accepted(&harness.get("u").await.unwrap().access_token).await);
}

#[tokio::test]
async fn s3_a_link_whose_first_answers_are_lost_can_be_begun_again() {
    let (harness, proxy) = harness().await;
    proxy.cut_after_commit("INSERT INTO flows");
    let request = v1::StartLinkRequest {
        user_id: "u".into(),
        provider: "sandbox".into(),
        redirect_url: APP_URL.into(),
        ..Default::default()
    };
    let told = harness.accounts().start_link(request).await.unwrap_err();
    proxy.commits_lost(1).await;
    assert_eq!(reason(&told), "STORE_UNAVAILABLE");
    let started = harness.start_link("u").await;
    let callback = harness.decide(&started.authorization_url, "demo", "approve").await;
    proxy.cut_after_commit("SET state = 'returned'");
    let page = harness.http.get(callback.clone()).send().await.unwrap();
    proxy.commits_lost(2).await;
    assert_eq!(page.status(), 503);
    assert_eq!(harness.http.get(callback).send().await.unwrap().status(), 400, "a callback counts once");
    let ticket = harness.ticket("u", "demo").await;
    assert!(harness.complete("u", &ticket).await.unwrap().created);
    presented_once(&harness);
}
