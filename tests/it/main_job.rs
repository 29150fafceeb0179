//! The main job, in real time, on the built binary: always a token that the provider takes, and no more refreshes than
//! that needs. The one test that waits for the wall clock.

use std::collections::HashSet;
use std::path::Path;
use std::time::Duration;

use reqwest::Client as Http;
use rustix::process::Signal;
use serde_json::Value;
use token_wallet::sandbox::{Endpoint, Request};
use tokio::process::Command;
use tokio::time::{MissedTickBehavior, interval};

use super::support::browser;
use super::support::child::Running;

/// A running `dev` and what is asked of it from outside.
struct Dev {
    child: Running,
    ready: Value,
    http: Http,
}

impl Dev {
    fn start(data_dir: &Path) -> Self {
        // Not its own folder: nothing but the arguments may say where things are.
        let elsewhere = data_dir.parent().unwrap();
        let more = ["--data-dir", data_dir.to_str().unwrap(), "--token-ttl", "20s"];
        let (child, ready) = Running::dev(elsewhere, &more);
        Self { child, ready, http: browser::new() }
    }

    fn said(&self, key: &str) -> &str {
        self.ready[key].as_str().unwrap()
    }

    /// What a stock client gets, which knows the contract by reflection alone.
    async fn token(&self) -> String {
        let output = Command::new("grpcurl")
            .args(["-plaintext", "-H", &format!("authorization: Bearer {}", self.said("api_key"))])
            .args(["-d", r#"{"user_id": "demo", "provider": "sandbox"}"#, self.said("grpc")])
            .arg("tokenwallet.v1.WalletService/GetAccessToken")
            .output()
            .await
            .expect("grpcurl is missing: scripts/test installs it");
        let told = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{told}{}", String::from_utf8_lossy(&output.stderr));
        let answer: Value = serde_json::from_str(&told).unwrap();
        answer["accessToken"].as_str().unwrap().to_owned()
    }

    /// Gets a token and shows it to the provider.
    async fn use_token(&self) {
        let token = self.token().await;
        let answer = self.http.get(format!("{}/userinfo", self.said("sandbox"))).bearer_auth(token).send().await;
        assert_eq!(answer.unwrap().status(), 200, "the provider takes the token");
    }

    /// All that the provider was asked since it started.
    async fn requests(&self) -> Vec<Request> {
        let log = self.http.get(format!("{}/_sandbox/requests", self.said("sandbox"))).send().await.unwrap();
        let log: Value = serde_json::from_slice(&log.bytes().await.unwrap()).unwrap();
        serde_json::from_value(log["requests"].clone()).unwrap()
    }
}

fn redemptions(requests: &[Request]) -> Vec<&Request> {
    requests.iter().filter(|request| request.grant_type.as_deref() == Some("refresh_token")).collect()
}

/// Each refresh token was presented once, and taken.
fn assert_once(redemptions: &[&Request]) {
    let mut seen = HashSet::new();
    for redemption in redemptions {
        assert!(seen.insert(&redemption.presented.refresh_token), "a refresh token came twice: {redemption:?}");
        assert_eq!(redemption.status, 200, "{redemption:?}");
    }
}

#[tokio::test]
async fn for_a_minute_and_past_a_kill_each_token_is_good_and_each_refresh_token_is_spent_once() {
    let folder = tempfile::tempdir().unwrap();
    let data_dir = folder.path().join("data");
    let first = Dev::start(&data_dir);
    let mut keys: Vec<_> = first.ready.as_object().unwrap().keys().map(String::as_str).collect();
    keys.sort_unstable();
    assert_eq!(keys, ["api_key", "grpc", "ops", "sandbox", "web"]);

    let mut second = interval(Duration::from_secs(1));
    second.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for _ in 0..60 {
        second.tick().await;
        first.use_token().await;
    }
    let requests = first.requests().await;
    let redeemed = redemptions(&requests);
    assert_once(&redeemed);
    // Design: a token of L = 20 s has a hard margin of H = min(300, max(F + 10, L/10), L/2) = 10 s with F = L/3, and is
    // due at L - H - U*W after its request was sent, U in 0..=1 and W = 0.15 L = 3 s when few are due: after 7 to 10 s,
    // so in t seconds at most t/7 times (one more, as the code's own answer was the first). It must be refreshed before
    // it ends: at least every 20 s.
    let exchanged = requests.iter().find(|request| request.endpoint == Endpoint::Token).unwrap().time;
    let lasted = usize::try_from((requests.last().unwrap().time - exchanged) / 1000).unwrap();
    assert!((lasted / 20..=1 + lasted / 7).contains(&redeemed.len()), "{} in {lasted} s", redeemed.len());

    assert_eq!(first.child.end_by(Signal::KILL), None);
    let again = Dev::start(&data_dir);
    // Its next refresh proves that the newest refresh token survived.
    loop {
        again.use_token().await;
        let requests = again.requests().await;
        let redeemed = redemptions(&requests);
        assert_once(&redeemed);
        if !redeemed.is_empty() {
            break;
        }
        second.tick().await;
    }
    again.use_token().await;
    again.child.end();
}
