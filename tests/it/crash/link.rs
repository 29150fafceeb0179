//! Killed during a link.

use std::time::Duration;

use reqwest::Url;
use token_wallet::proto::v1;
use tonic::Code;

use super::life::{Chance, Life};
use super::oracle::{self, User};
use crate::support::browser;
use crate::support::harness::{APP_URL, reason, until};

/// How long after its claim a code without an answer is given up, and more.
const GIVEN_UP: Duration = Duration::from_secs(90);

/// Shorter than an ended flow tells its outcome.
const TICK: Duration = Duration::from_secs(5);

/// What the browser and the app had in hand when the wallet died.
#[derive(Default)]
struct Left {
    callback: Option<Url>,
    ticket: Option<String>,
}

/// One life: a link begun, killed at the step, started again.
pub async fn run(mut chance: Chance) {
    // A link that goes before would be spooled too if the machine is slow.
    let beside = !chance.is_the_spools() && chance.flip();
    let mut life = Life::until(&chance, if beside { 2 } else { 1 }).await;
    let mut users = Vec::new();
    if beside {
        users.push(User::linked(&life, "v", "alice").await);
        // Refreshed by the sweep while the link goes on, or not yet due.
        life.hand.advance(chance.seconds(40 * 60, 58 * 60));
    }
    let before = codes(&life);
    let (left, away) = tokio::join!(begin(&life), life.store_away(&mut chance));
    life.death().await;
    oracle::doubt(&life, &mut users).await;
    life.hand.advance(chance.absence());
    life.rebirth(away, &mut chance).await;
    let linked = match &left.ticket {
        Some(ticket) => outcome(&life, ticket).await,
        None => false,
    };
    if let Some(callback) = left.callback {
        // The next process listens elsewhere.
        let there = format!("{}?{}", callback.path(), callback.query().unwrap());
        let again = life.wallet.http.get(life.wallet.web(&there)).send().await.unwrap();
        assert_eq!(again.status(), 400, "a callback counts once");
    }
    let kept = ["link.spooled", "link.parked", "link.committed"].contains(&chance.step);
    assert_eq!(linked, kept, "linked: {linked}");
    let sent = codes(&life) - before;
    assert_eq!(sent, usize::from(kept || chance.step == "link.exchanged"), "a code is never sent twice");
    if !linked {
        // It can be begun again.
        life.wallet.link("u", "demo").await;
    }
    assert!(life.wallet.is_accepted(&life.wallet.get("u", "sandbox").await.unwrap().access_token).await);
    if beside {
        oracle::judge(&life, &mut users).await;
    }
}

/// Takes a link as far as the wallet lives.
async fn begin(life: &Life) -> Left {
    let wallet = &life.wallet;
    let request = v1::StartLinkRequest {
        user_id: "u".into(),
        provider: "sandbox".into(),
        redirect_url: APP_URL.into(),
        ..Default::default()
    };
    let Ok(started) = wallet.accounts().start_link(request).await else { return Left::default() };
    let callback = wallet.approve(started.into_inner().authorization_url.parse().unwrap(), "demo").await;
    let Ok(answer) = wallet.http.get(callback.clone()).send().await else {
        return Left { callback: Some(callback), ticket: None };
    };
    let ticket = browser::parameter(&browser::location(&answer), "ticket").unwrap();
    let cut_off = wallet.complete("u", &ticket).await.unwrap_err();
    assert!(matches!(cut_off.code(), Code::Unavailable | Code::Unknown), "{cut_off:?}");
    Left { callback: Some(callback), ticket: Some(ticket) }
}

/// Asks for the outcome until there is one: true if the account is linked, false if the link must be begun again.
async fn outcome(life: &Life, ticket: &str) -> bool {
    let (mut passed, mut linked) = (Duration::ZERO, None);
    until("the link has an outcome", async || {
        linked = match life.wallet.complete("u", ticket).await {
            Ok(_) => Some(true),
            Err(status) => match reason(&status).as_str() {
                "FLOW_OUTCOME_UNKNOWN" => Some(false),
                "FLOW_IN_PROGRESS" => None,
                other => panic!("{other}: {status:?}"),
            },
        };
        if passed < GIVEN_UP {
            passed += TICK;
            life.hand.advance(TICK);
        }
        linked.is_some()
    })
    .await;
    linked.unwrap()
}

fn codes(life: &Life) -> usize {
    life.wallet.token_requests("authorization_code").len()
}
