//! What must hold for users who were linked before the wallet died, whatever it was doing.

use std::collections::BTreeMap;
use std::time::Duration;

use token_wallet::sandbox::{Endpoint, Request, Sandbox};
use tonic::Status;

use super::life::{Life, Manner};
use crate::support::harness::{reason, until};

/// How far time moves between two looks at a grant, how often at most, and how long a look may take in real time.
const TICK: Duration = Duration::from_secs(10);
const TICKS: usize = 6 * 60;
const LOOK: Duration = Duration::from_millis(700);

/// The least life of an hour's token that is handed out, in seconds.
const FLOOR: i64 = 30;

/// A user and what they had before.
pub struct User {
    pub name: &'static str,
    /// The sandbox's id of the consent.
    family: String,
    token: String,
    /// Whether the provider has redeemed the refresh token and the store does not have the answer.
    in_doubt: bool,
    /// The refresh whose answer is in the spool.
    spooled: Option<Request>,
    over: bool,
}

impl User {
    /// Links a user and notes what they have.
    pub async fn linked(life: &Life, name: &'static str, person: &str) -> Self {
        life.wallet.link(name, person).await;
        let family = life.wallet.token_requests("authorization_code").last().unwrap().family.clone().unwrap();
        let token = life.wallet.get(name, "sandbox").await.unwrap().access_token;
        Self { name, family, token, in_doubt: false, spooled: None, over: false }
    }
}

/// To be called between two processes: who is in doubt.
pub async fn doubt(life: &Life, users: &mut [User]) {
    let stored = life.wallet.database().await.texts("SELECT user_id FROM grants WHERE committed_fence > 0").await;
    for user in users {
        let redeemed = refreshes(life, user).iter().any(|request| request.status == 200);
        user.in_doubt = redeemed && !stored.iter().any(|stored| stored == user.name);
    }
}

/// To be called between two processes, the first of which has spooled the answer to each user's one refresh: nobody is
/// in doubt.
pub async fn spooled(life: &Life, users: &mut [User]) {
    assert_eq!(life.wallet.spooled(), users.len(), "answers in the spool");
    let stored = "SELECT COUNT(*) FROM grants WHERE committed_fence > 0";
    assert_eq!(life.wallet.database().await.number(stored).await, 0, "the store was away");
    for user in users {
        let [refresh] = <[Request; 1]>::try_from(refreshes(life, user)).unwrap();
        user.spooled = Some(refresh);
    }
}

/// Has time pass until each user has a new token, or the truth that there will be none; then judges what was done.
pub async fn judge(life: &Life, users: &mut [User]) {
    settle(life, users).await;
    let kept = users.iter().filter(|user| !user.over).map(|user| user.name).collect::<Vec<_>>();
    let lost = users.iter().filter(|user| user.over).count();
    for user in users.iter() {
        let ended = user.in_doubt && life.manner != Manner::Grace;
        assert!(ended || !user.over, "{} must authorize again for no reason", user.name);
        verdict_is_fair(life, user);
        if let Some(refresh) = &user.spooled {
            assert_eq!(refreshes(life, user), std::slice::from_ref(refresh), "{} is refreshed again", user.name);
            assert_eq!(Some(Sandbox::fingerprint(&user.token)), refresh.issued.access_token);
        }
    }
    assert_eq!(lost_by_its_own_count(life).await, lost, "what was lost is counted");
    // The newest refresh token is the one at hand: it gives another token, an hour later.
    life.hand.advance(Duration::from_mins(58));
    settle(life, users).await;
    assert_eq!(users.iter().filter(|user| !user.over).map(|user| user.name).collect::<Vec<_>>(), kept);
    for user in users.iter() {
        redeemed_once(life, user);
        if let Some(refresh) = &user.spooled {
            let next = &refreshes(life, user)[1];
            assert_eq!(next.presented.refresh_token, refresh.issued.refresh_token, "{}: the newest is lost", user.name);
        }
    }
    until("no lease is left", async || {
        let leases = "SELECT COUNT(*) FROM grants WHERE lease_until IS NOT NULL";
        life.wallet.database().await.number(leases).await == 0
    })
    .await;
}

/// Asks for each user's token, as time passes, until there is another one or the user must authorize again. Whatever is
/// handed out meanwhile must be good.
async fn settle(life: &Life, users: &mut [User]) {
    let mut waiting: Vec<_> = users.iter_mut().filter(|user| !user.over).collect();
    for _ in 0..TICKS {
        let mut left = Vec::new();
        for user in waiting {
            // One that waits for another process's lease waits for a clock that stands meanwhile.
            let Ok(told) = tokio::time::timeout(LOOK, life.wallet.get(user.name, "sandbox")).await else {
                left.push(user);
                continue;
            };
            match told {
                Ok(told) => {
                    assert!(life.wallet.is_accepted(&told.access_token).await, "{} was given a dead token", user.name);
                    let life_left = told.expire_time.unwrap().seconds - life.hand.clock.now().millis() / 1000;
                    assert!(life_left >= FLOOR, "{} was given a token with {life_left} s to live", user.name);
                    if told.access_token == user.token {
                        left.push(user);
                    } else {
                        user.token = told.access_token;
                    }
                }
                Err(status) if reason(&status) == "REAUTHORIZATION_REQUIRED" => user.over = true,
                Err(status) => {
                    assert!(passes(&status), "{}: {status:?}", user.name);
                    left.push(user);
                }
            }
        }
        if left.is_empty() {
            return;
        }
        waiting = left;
        life.hand.advance(TICK);
    }
    panic!("{:?} had neither a new token nor a reason", waiting.iter().map(|user| user.name).collect::<Vec<_>>());
}

/// Whether an error tells to wait.
fn passes(status: &Status) -> bool {
    ["PROVIDER_UNAVAILABLE", "STORE_UNAVAILABLE"].contains(&reason(status).as_str())
}

/// Only two answers of the provider end a grant.
fn verdict_is_fair(life: &Life, user: &User) {
    let refreshes = refreshes(life, user);
    let refused = refreshes.iter().filter(|request| request.error.as_deref() == Some("invalid_grant")).count();
    assert!(!user.over || refused >= 2, "{}: the provider did not confirm it", user.name);
}

/// No refresh token is presented twice, except the one whose answer was lost: once more, and once to confirm a refusal.
fn redeemed_once(life: &Life, user: &User) {
    let mut presented = BTreeMap::<_, Vec<Request>>::new();
    for request in refreshes(life, user) {
        presented.entry(request.presented.refresh_token.clone()).or_default().push(request);
    }
    let again = presented.values().filter(|requests| requests.len() > 1).collect::<Vec<_>>();
    assert!(again.len() <= usize::from(user.in_doubt), "{}: presented again: {again:?}", user.name);
    for requests in again {
        let given = requests.iter().filter(|request| request.status == 200).count();
        let (most, most_given) = if life.manner == Manner::Grace { (2, 2) } else { (3, 1) };
        assert!(requests.len() <= most && given <= most_given, "{}: {requests:?}", user.name);
    }
}

/// The refreshes of a user that the sandbox has decided.
fn refreshes(life: &Life, user: &User) -> Vec<Request> {
    let mut requests = life.wallet.sandbox.requests();
    requests.retain(|request| {
        request.endpoint == Endpoint::Token
            && request.grant_type.as_deref() == Some("refresh_token")
            && request.family.as_ref() == Some(&user.family)
    });
    requests
}

/// How many refresh tokens the wallet says it has lost.
async fn lost_by_its_own_count(life: &Life) -> usize {
    let metrics = life.wallet.http.get(life.wallet.ops("/metrics")).send().await.unwrap().text().await.unwrap();
    let counts = metrics.lines().filter(|line| line.starts_with("token_wallet_rotation_outcome_lost_total"));
    counts.map(|line| line.rsplit(' ').next().unwrap().parse::<usize>().unwrap()).sum()
}
