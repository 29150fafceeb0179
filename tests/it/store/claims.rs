//! Claims: one redemption in flight a grant.

use token_wallet::domain::event::EventKind;
use token_wallet::domain::grant::GrantState;
use token_wallet::domain::ids::{GrantId, ReplicaId};
use token_wallet::store::{Claim, GrantChange, Outcome, Recorded};

use super::{Fixture, NOW, at, event, new_grant, on_both_engines, sealed, user};

on_both_engines! {
    fifty_claims_at_once_have_one_winner
    a_claim_shows_the_grant_as_it_is_after_it
    a_claim_needs_the_judged_token_and_no_live_lease
    who_judged_before_another_attempt_must_judge_again
    a_released_claim_can_be_taken_at_once_under_a_new_fence
    leases_are_voided_without_touching_fences
    due_grants_are_claimed_oldest_first_up_to_the_limit
    sweeps_at_once_share_what_is_due
    grants_that_nobody_asks_for_are_left_alone
    asking_extends_how_long_a_grant_is_refreshed_ahead
}

async fn ann(store: &Fixture) -> GrantId {
    let provider = store.configured("acme").await;
    store.linked(&user("ann"), provider, "s").await.1
}

fn me() -> ReplicaId {
    ReplicaId::new(NOW)
}

async fn fifty_claims_at_once_have_one_winner(store: &Fixture) {
    let grant = ann(store).await;
    let mut claims = tokio::task::JoinSet::new();
    for _ in 0..50 {
        let store = (*store).clone();
        claims.spawn(async move { store.claim(grant, 0, 0, me(), NOW, at(20)).await.unwrap() });
    }
    assert_eq!(claims.join_all().await.into_iter().flatten().count(), 1);
    assert_eq!(store.holding(grant).await.unwrap().unwrap().grant.fence, 1);
}

async fn a_claim_shows_the_grant_as_it_is_after_it(store: &Fixture) {
    let grant = ann(store).await;
    let before = store.holding(grant).await.unwrap().unwrap().grant;
    let Claim { grant: after, refresh_token } = store.claim(grant, 0, 0, me(), at(5), at(25)).await.unwrap().unwrap();
    assert_eq!(refresh_token, sealed(11));
    let holding = store.holding(grant).await.unwrap().unwrap();
    assert_eq!((&holding.grant, holding.lease_until), (&after, Some(at(25))));
    assert_eq!((after.fence, after.attempted_at), (1, Some(at(5))));
    assert_eq!(token_wallet::domain::grant::Grant { fence: 0, attempted_at: None, ..after }, before);
}

async fn a_claim_needs_the_judged_token_and_no_live_lease(store: &Fixture) {
    let grant = ann(store).await;
    assert!(store.claim(grant, 1, 0, me(), NOW, at(20)).await.unwrap().is_none());
    assert!(store.claim(GrantId::new(NOW), 0, 0, me(), NOW, at(20)).await.unwrap().is_none());
    assert!(store.claim(grant, 0, 0, me(), NOW, at(20)).await.unwrap().is_some());
    assert!(store.claim(grant, 0, 1, me(), at(19), at(39)).await.unwrap().is_none());
    assert_eq!(store.claim(grant, 0, 1, me(), at(20), at(40)).await.unwrap().unwrap().grant.fence, 2);

    store.tamper("UPDATE grants SET refresh_token = NULL, refresh_generation = NULL").await;
    assert!(store.claim(grant, 0, 2, me(), at(90), at(99)).await.unwrap().is_none());
}

/// Else a get that was read before a refusal would confirm it at once, and one that was read before a silence would send
/// the token again.
async fn who_judged_before_another_attempt_must_judge_again(store: &Fixture) {
    let grant = ann(store).await;
    let judged = store.holding(grant).await.unwrap().unwrap().grant;
    let claim = store.claim(grant, 0, judged.fence, me(), NOW, at(20)).await.unwrap().unwrap();
    let outcome = Outcome::Verdict {
        state: GrantState::Suspect,
        due_at: Some(at(60)),
        retry_not_before: None,
        reason: None,
        committed_fence: 0,
    };
    let change = GrantChange {
        grant,
        account: claim.grant.account,
        fence: claim.grant.fence,
        outcome,
        event: None,
        announce: None,
        at: NOW,
    };
    assert_eq!(store.record(&change).await.unwrap(), Recorded::Stored(GrantState::Suspect));
    assert_eq!(store.claim(grant, 0, judged.fence, me(), NOW, at(20)).await.unwrap(), None);
    assert!(store.claim(grant, 0, claim.grant.fence, me(), at(60), at(80)).await.unwrap().is_some());
}

async fn a_released_claim_can_be_taken_at_once_under_a_new_fence(store: &Fixture) {
    let grant = ann(store).await;
    assert!(store.claim(grant, 0, 0, me(), NOW, at(20)).await.unwrap().is_some());
    assert!(!store.release(grant, 2).await.unwrap());
    assert!(!store.release(grant, 0).await.unwrap());
    assert!(store.release(grant, 1).await.unwrap());
    assert!(!store.release(grant, 1).await.unwrap());
    let holding = store.holding(grant).await.unwrap().unwrap();
    assert_eq!((holding.grant.attempted_at, holding.lease_until), (None, None));
    assert_eq!(store.claim(grant, 0, 1, me(), NOW, at(20)).await.unwrap().unwrap().grant.fence, 2);
    assert!(!store.release(grant, 1).await.unwrap());
}

async fn leases_are_voided_without_touching_fences(store: &Fixture) {
    let grant = ann(store).await;
    assert_eq!(store.void_leases().await.unwrap(), 0);
    assert!(store.claim(grant, 0, 0, me(), NOW, at(20)).await.unwrap().is_some());
    assert_eq!(store.void_leases().await.unwrap(), 1);
    let holding = store.holding(grant).await.unwrap().unwrap();
    assert_eq!((holding.lease_until, holding.grant.fence, holding.grant.attempted_at), (None, 1, Some(NOW)));
    assert_eq!(store.claim(grant, 0, 1, me(), NOW, at(20)).await.unwrap().unwrap().grant.fence, 2);
}

async fn due_grants_are_claimed_oldest_first_up_to_the_limit(store: &Fixture) {
    let provider = store.configured("acme").await;
    let other = store.configured("zeta").await;
    let mut due = Vec::new();
    for (second, subject) in [30, 10, 50, 20, 40].into_iter().zip('a'..) {
        due.push((second, link_due(store, provider, &subject.to_string(), second).await));
    }
    due.sort_unstable();
    let due: Vec<GrantId> = due.into_iter().map(|(_, grant)| grant).collect();
    link_due(store, other, "s", 10).await;

    assert_eq!(store.providers_due(at(9)).await.unwrap(), []);
    assert_eq!(store.claim_due(provider, me(), 10, at(9), at(29)).await.unwrap(), []);
    let mut both = [provider, other];
    both.sort_unstable();
    assert_eq!(store.providers_due(at(10)).await.unwrap(), both);
    let claimed = async |limit| {
        let claims = store.claim_due(provider, me(), limit, at(45), at(65)).await.unwrap();
        assert!(claims.iter().all(|claim| claim.grant.fence == 1 && claim.grant.attempted_at == Some(at(45))));
        claims.into_iter().map(|claim| claim.grant.id).collect::<Vec<_>>()
    };
    assert_eq!(claimed(3).await, due[..3]);
    assert_eq!(claimed(3).await, due[3..4]);
    assert_eq!(claimed(3).await, []);
    assert_eq!(store.providers_due(at(45)).await.unwrap(), [other]);
}

/// A grant of a user of its own that is due so many seconds from now.
async fn link_due(
    store: &Fixture,
    provider: token_wallet::domain::ids::ProviderId,
    subject: &str,
    second: i64,
) -> GrantId {
    let mut deposit = store.new_deposit(&user(subject), provider, subject).await;
    deposit.grant.freshness.due_at = Some(at(second));
    store.deposit(&deposit).await.unwrap();
    deposit.grant.id
}

async fn sweeps_at_once_share_what_is_due(store: &Fixture) {
    let provider = store.configured("acme").await;
    for number in 0..20 {
        link_due(store, provider, &format!("s{number}"), 10).await;
    }
    let mut sweeps = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let store = (*store).clone();
        sweeps.spawn(async move { store.claim_due(provider, me(), 4, at(10), at(30)).await.unwrap() });
    }
    let mut claimed: Vec<_> = sweeps.join_all().await.into_iter().flatten().map(|claim| claim.grant.id).collect();
    let claims = claimed.len();
    claimed.sort_unstable();
    claimed.dedup();
    assert_eq!((claims, claimed.len()), (20, 20));
}

async fn grants_that_nobody_asks_for_are_left_alone(store: &Fixture) {
    let provider = store.configured("acme").await;
    let mut deposit = store.new_deposit(&user("ann"), provider, "s").await;
    (deposit.grant.freshness.due_at, deposit.grant.ahead_until) = (Some(at(10)), at(100));
    store.deposit(&deposit).await.unwrap();
    let mut never = store.new_deposit(&user("bob"), provider, "bob").await;
    never.grant.freshness.due_at = None;
    store.deposit(&never).await.unwrap();
    assert_eq!(store.providers_due(at(99)).await.unwrap(), [provider]);
    assert_eq!(store.providers_due(at(100)).await.unwrap(), []);
    assert_eq!(store.claim_due(provider, me(), 9, at(100), at(120)).await.unwrap(), []);

    let grant = deposit.grant.id;
    assert!(store.extend_ahead(grant, at(200)).await.unwrap());
    assert_eq!(store.claim_due(provider, me(), 9, at(100), at(120)).await.unwrap().len(), 1);
    let account = deposit.account;
    let unlinked = event(EventKind::AccountUnlinked, &user("ann"), provider);
    assert!(store.unlink(account, &unlinked, at(121)).await.unwrap());
    assert_eq!(store.claim_due(provider, me(), 9, at(130), at(150)).await.unwrap(), []);
}

async fn asking_extends_how_long_a_grant_is_refreshed_ahead(store: &Fixture) {
    let grant = ann(store).await;
    let until = new_grant().ahead_until;
    assert!(!store.extend_ahead(grant, until).await.unwrap());
    assert!(store.extend_ahead(grant, at(90_000)).await.unwrap());
    assert!(!store.extend_ahead(grant, at(86_401)).await.unwrap());
    assert_eq!(store.holding(grant).await.unwrap().unwrap().grant.ahead_until, at(90_000));
}
