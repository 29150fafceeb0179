//! Claims: one redemption in flight a grant.

use std::collections::BTreeMap;

use token_wallet::clock::Timestamp;
use token_wallet::domain::doubt::Recovery;
use token_wallet::domain::event::EventKind;
use token_wallet::domain::grant::{Grant, GrantState, Lease};
use token_wallet::domain::ids::{GrantId, ReplicaId};
use token_wallet::store::{Beat, Claim, GrantChange, Outcome, Recorded};

use super::records::refreshed;
use super::{Fixture, NOW, at, event, new_grant, on_both_engines, sealed, user};

on_both_engines! {
    fifty_claims_at_once_have_one_winner
    a_claim_shows_the_grant_as_it_is_after_it
    a_claim_needs_the_judged_token_and_no_live_lease
    who_judged_before_another_attempt_must_judge_again
    a_claim_that_stands_is_renewed_by_its_owner_alone
    a_released_claim_can_be_taken_at_once_under_a_new_fence
    a_retry_given_back_leaves_the_doubt_as_it_was
    a_retry_given_back_leaves_no_doubt_that_was_settled_since
    a_claim_given_back_that_is_to_confirm_a_retrys_refusal_leaves_no_doubt
    a_grant_in_doubt_is_not_claimed_if_its_sender_was_heard_of
    what_is_in_doubt_is_not_swept_but_looked_at
    s9_a_lease_that_no_right_clock_has_set_is_over
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
    let judged = store.judged(grant).await;
    let mut claims = tokio::task::JoinSet::new();
    for _ in 0..50 {
        let store = (*store).clone();
        let judged = judged.clone();
        claims.spawn(async move { store.claim(&judged, None, false, me(), NOW, at(20)).await.unwrap() });
    }
    assert_eq!(claims.join_all().await.into_iter().flatten().count(), 1);
    assert_eq!(store.holding(grant).await.unwrap().unwrap().grant.fence, 1);
}

async fn a_claim_shows_the_grant_as_it_is_after_it(store: &Fixture) {
    let grant = ann(store).await;
    let before = store.judged(grant).await;
    let owner = me();
    let claim = store.claim(&before, None, false, owner, at(5), at(25)).await.unwrap().unwrap();
    let Claim { grant: after, refresh_token } = claim;
    assert_eq!(refresh_token, sealed(11));
    assert_eq!(store.judged(grant).await, after);
    assert_eq!((after.fence, after.attempted_at), (1, Some(at(5))));
    assert_eq!(after.lease, Some(Lease { owner, until: at(25) }));
    assert_eq!(Grant { fence: 0, attempted_at: None, lease: None, ..after }, before);
}

async fn a_claim_needs_the_judged_token_and_no_live_lease(store: &Fixture) {
    let grant = ann(store).await;
    let judged = store.judged(grant).await;
    let claim = async |judged: Grant, second| {
        store.claim(&judged, None, false, me(), at(second), at(second + 20)).await.unwrap()
    };
    assert!(claim(Grant { access_generation: 1, ..judged.clone() }, 0).await.is_none());
    assert!(claim(Grant { id: GrantId::new(NOW), ..judged.clone() }, 0).await.is_none());
    assert!(claim(judged.clone(), 0).await.is_some());
    assert!(claim(Grant { fence: 1, ..judged }, 19).await.is_none(), "judged without its lease");
    let leased = store.judged(grant).await;
    assert!(claim(leased.clone(), 19).await.is_none(), "in flight");
    let again = claim(leased, 20).await.unwrap().grant;
    assert_eq!((again.fence, again.doubted_fence), (2, Some(1)));

    store.tamper("UPDATE grants SET refresh_token = NULL, refresh_generation = NULL").await;
    assert!(store.claim_now(grant, at(90)).await.is_none());
    let probed = store.claim_for_probe(&store.judged(grant).await, me(), at(90), at(110)).await.unwrap().unwrap();
    assert_eq!((probed.fence, probed.lease.map(|lease| lease.until)), (3, Some(at(110))));
}

/// A second secret is tried under a claim of its own.
async fn a_claim_that_stands_is_renewed_by_its_owner_alone(store: &Fixture) {
    let grant = ann(store).await;
    let owner = me();
    store.claim(&store.judged(grant).await, None, false, owner, NOW, at(20)).await.unwrap().unwrap();
    let claimed = store.judged(grant).await;
    let renew =
        async |claimed: &Grant, by, second| store.renew_claim(claimed, by, at(second), at(second + 20)).await.unwrap();
    assert!(renew(&claimed, me(), 5).await.is_none(), "somebody else");
    assert!(renew(&Grant { fence: 0, ..claimed.clone() }, owner, 5).await.is_none(), "another fence");
    assert!(renew(&Grant { committed_fence: -1, ..claimed.clone() }, owner, 5).await.is_none(), "an answer came since");
    assert!(renew(&claimed, owner, 20).await.is_none(), "too late");
    let renewed = renew(&claimed, owner, 5).await.unwrap();
    assert_eq!((renewed.grant.fence, renewed.refresh_token), (2, sealed(11)));
    assert_eq!((renewed.grant.doubted_fence, store.judged(grant).await), (None, renewed.grant.clone()));
}

/// Else a get that was read before a refusal would confirm it at once, and one that was read before a silence would send
/// the token again.
async fn who_judged_before_another_attempt_must_judge_again(store: &Fixture) {
    let grant = ann(store).await;
    let judged = store.judged(grant).await;
    let claim = store.claim(&judged, None, false, me(), NOW, at(20)).await.unwrap().unwrap();
    assert_eq!(
        store.record(&change(&claim.grant, suspect(), NOW)).await.unwrap(),
        Recorded::Stored(GrantState::Suspect)
    );
    assert_eq!(store.claim(&judged, None, false, me(), NOW, at(20)).await.unwrap(), None);
    assert!(store.claim_now(grant, at(60)).await.is_some());
}

async fn a_released_claim_can_be_taken_at_once_under_a_new_fence(store: &Fixture) {
    let grant = ann(store).await;
    let claimed = store.claim_now(grant, NOW).await.unwrap().grant;
    let me = claimed.lease.unwrap().owner;
    let release = async |fence, by| store.release(&Grant { fence, ..claimed.clone() }, None, by).await.unwrap();
    assert!(!release(1, ReplicaId::new(NOW)).await);
    assert!(!release(2, me).await);
    assert!(!release(0, me).await);
    assert!(release(1, me).await);
    assert!(!release(1, me).await);
    let released = store.judged(grant).await;
    assert_eq!((released.attempted_at, released.lease), (None, None));
    let again = store.claim_now(grant, at(1)).await.unwrap().grant;
    assert_eq!(again.fence, 2);
    assert!(!release(1, me).await);
    // Its lease is over, and nobody has claimed it since: what was not sent leaves no doubt.
    assert!(release(2, again.lease.unwrap().owner).await);
    let released = store.judged(grant).await;
    assert_eq!((released.attempted_at, released.lease, released.doubted_fence), (None, None, None));
}

/// The first claim's request may have been heard: giving the second claim back does not make that untrue.
async fn a_retry_given_back_leaves_the_doubt_as_it_was(store: &Fixture) {
    let grant = ann(store).await;
    let mut before = store.claim_now(grant, NOW).await.unwrap().grant;
    // Also of a retry that was sent and not answered.
    for (fence, doubted) in [(2, 1), (4, 2)] {
        let retry = store.claim_now(grant, at(20 * fence)).await.unwrap().grant;
        assert_eq!((retry.fence, retry.doubted_fence), (fence, Some(doubted)));
        assert!(store.release(&retry, Some(&before), retry.lease.unwrap().owner).await.unwrap());
        assert_eq!(store.judged(grant).await, Grant { fence, ..before });
        before = store.claim_now(grant, at(20 * fence)).await.unwrap().grant;
    }

    // Where a refresh token may be sent again there is none.
    let other = store.linked(&user("bob"), before.provider, "bob").await.1;
    store.claim_now(other, NOW).await.unwrap();
    let harmless =
        store.claim(&store.judged(other).await, None, true, me(), at(20), at(40)).await.unwrap().unwrap().grant;
    assert_eq!(harmless.doubted_fence, None);
}

async fn a_retry_given_back_leaves_no_doubt_that_was_settled_since(store: &Fixture) {
    let grant = ann(store).await;
    let before = store.claim_now(grant, NOW).await.unwrap().grant;
    let retry = store.claim_now(grant, at(20)).await.unwrap().grant;
    let answered = change(&before, refreshed(1), at(21));
    assert_eq!(store.record(&answered).await.unwrap(), Recorded::Stored(GrantState::Active));
    assert!(store.release(&retry, Some(&before), retry.lease.unwrap().owner).await.unwrap());
    let released = store.judged(grant).await;
    assert_eq!((released.attempted_at, released.lease, released.doubted_fence), (None, None, None));
}

/// Nothing is in doubt: the retry was refused. What was doubted is remembered, for the reason that an end would have.
async fn a_claim_given_back_that_is_to_confirm_a_retrys_refusal_leaves_no_doubt(store: &Fixture) {
    let grant = ann(store).await;
    store.claim_now(grant, NOW).await.unwrap();
    let retry = store.claim_now(grant, at(20)).await.unwrap().grant;
    let refused = change(&retry, suspect(), at(21));
    assert_eq!(store.record(&refused).await.unwrap(), Recorded::Stored(GrantState::Suspect));
    let confirming = store.claim_due(retry.provider, me(), 9, at(81), at(101)).await.unwrap().remove(0).grant;
    assert!(store.release(&confirming, None, confirming.lease.unwrap().owner).await.unwrap());
    let released = store.judged(grant).await;
    assert_eq!((released.attempted_at, released.lease, released.doubted_fence), (None, None, Some(1)));
    assert_eq!(store.count_in_doubt(at(200)).await.unwrap(), 0);
}

fn suspect() -> Outcome {
    Outcome::Verdict {
        state: GrantState::Suspect,
        due_at: Some(at(60)),
        retry_not_before: None,
        reason: None,
        committed_fence: 0,
    }
}

fn change(claimed: &Grant, outcome: Outcome, at: Timestamp) -> GrantChange {
    let Grant { id, account, fence, .. } = *claimed;
    GrantChange { grant: id, account, fence, outcome, event: None, scopes_changed: None, announce: None, at }
}

/// The sender may have come back between the judgement and the claim, with the answer in its spool.
async fn a_grant_in_doubt_is_not_claimed_if_its_sender_was_heard_of(store: &Fixture) {
    let grant = ann(store).await;
    let sender = me();
    store.claim(&store.judged(grant).await, None, false, sender, NOW, at(20)).await.unwrap().unwrap();
    let judged = store.judged(grant).await;
    let beat = |at| Beat { replica: sender, started_at: NOW, at, attempts: BTreeMap::new() };
    let recovery = Some(Recovery { sender_silent_since: Some(at(30)), send_by: None });
    store.beat(&beat(at(31))).await.unwrap();
    assert_eq!(store.claim(&judged, recovery, false, me(), at(60), at(80)).await.unwrap(), None);
    // Itself it may: it knows what it knows.
    let mine = store.claim(&judged, recovery, false, sender, at(60), at(80)).await.unwrap();
    assert_eq!(mine.unwrap().grant.fence, 2);
    let judged = store.judged(grant).await;
    let silent = Some(Recovery { sender_silent_since: Some(at(31)), send_by: None });
    assert!(store.claim(&judged, silent, false, me(), at(90), at(110)).await.unwrap().is_some());
}

async fn what_is_in_doubt_is_not_swept_but_looked_at(store: &Fixture) {
    let provider = store.configured("acme").await;
    let grant = link_due(store, provider, "a", 10).await;
    store.claim_due(provider, me(), 9, at(10), at(30)).await.unwrap();
    assert_eq!(store.grants_in_doubt(provider, at(29), 9).await.unwrap(), []);
    assert_eq!(store.providers_in_doubt(at(29)).await.unwrap(), []);
    assert_eq!(store.providers_due(at(30)).await.unwrap(), []);
    assert_eq!(store.claim_due(provider, me(), 9, at(30), at(50)).await.unwrap(), []);
    let doubtful = store.grants_in_doubt(provider, at(30), 9).await.unwrap();
    assert_eq!(doubtful, [store.judged(grant).await]);
    assert_eq!(store.providers_in_doubt(at(30)).await.unwrap(), [provider]);
    assert_eq!((store.count_in_doubt(at(29)).await.unwrap(), store.count_in_doubt(at(30)).await.unwrap()), (0, 1));
    assert_eq!(store.grants_in_doubt(store.configured("zeta").await, at(30), 9).await.unwrap(), []);
    assert!(store.postpone_doubt(&doubtful[0], at(70), at(30)).await.unwrap());
    assert!(!store.postpone_doubt(&doubtful[0], at(90), at(31)).await.unwrap());
    assert_eq!(store.grants_in_doubt(provider, at(69), 9).await.unwrap(), []);
    assert_eq!(store.grants_in_doubt(provider, at(70), 9).await.unwrap().len(), 1);
    assert_eq!(store.count_in_doubt(at(40)).await.unwrap(), 1, "put off it is in doubt all the same");

    // What nobody can refresh is not in doubt, though its lease is over.
    store.tamper(format!("UPDATE grants SET state = 'quarantined' WHERE id = '{grant}'")).await;
    let probed = link_due(store, provider, "b", 10).await;
    let probe = "UPDATE grants SET refresh_token = NULL, refresh_generation = NULL";
    store.tamper(format!("{probe} WHERE id = '{probed}'")).await;
    store.claim_for_probe(&store.judged(probed).await, me(), at(90), at(110)).await.unwrap().unwrap();
    assert_eq!(store.count_in_doubt(at(200)).await.unwrap(), 0);
}

async fn s9_a_lease_that_no_right_clock_has_set_is_over(store: &Fixture) {
    let provider = store.configured("acme").await;
    let grant = link_due(store, provider, "a", 10).await;
    let (ahead, sender) = (86_400, me());
    store.claim(&store.judged(grant).await, None, false, sender, at(ahead), at(ahead + 20)).await.unwrap().unwrap();
    let beat = Beat { replica: sender, started_at: NOW, at: at(ahead), attempts: BTreeMap::new() };
    store.beat(&beat).await.unwrap();
    let doubtful = store.grants_in_doubt(provider, at(10), 9).await.unwrap();
    assert_eq!(doubtful, [store.judged(grant).await]);
    assert_eq!(store.count_in_doubt(at(10)).await.unwrap(), 1);
    assert!(store.postpone_doubt(&doubtful[0], at(70), at(10)).await.unwrap());
    assert_eq!(store.grants_in_doubt(provider, at(69), 9).await.unwrap(), []);
    // As far ahead as clocks that are right may differ it is believed.
    let judged = store.judged(grant).await;
    let near = ahead - 5;
    assert_eq!(store.grants_in_doubt(provider, at(near), 9).await.unwrap(), []);
    assert!(!store.postpone_doubt(&judged, at(ahead), at(near)).await.unwrap());
    assert_eq!(store.claim(&judged, None, false, me(), at(near), at(near + 20)).await.unwrap(), None);
    assert_eq!(store.claim_for_probe(&judged, me(), at(near), at(near + 20)).await.unwrap(), None);
    // Its sender's sign of life, of the same clock, tells nothing.
    let recovery = Some(Recovery { sender_silent_since: Some(at(40)), send_by: None });
    let claimed = store.claim(&judged, recovery, false, me(), at(70), at(90)).await.unwrap().unwrap().grant;
    assert_eq!((claimed.fence, claimed.doubted_fence), (2, Some(1)));
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
    (deposit.grant.freshness.due_at, deposit.grant.ahead_until) = (Some(at(10)), at(10));
    store.deposit(&deposit).await.unwrap();
    let mut never = store.new_deposit(&user("bob"), provider, "bob").await;
    never.grant.freshness.due_at = None;
    store.deposit(&never).await.unwrap();
    assert_eq!(store.providers_due(at(10)).await.unwrap(), []);
    assert_eq!(store.claim_due(provider, me(), 9, at(100), at(120)).await.unwrap(), []);
    assert_eq!(store.retire_unwanted(provider, at(100), 9).await.unwrap(), 0, "it was never planned");

    let grant = deposit.grant.id;
    assert!(store.extend_ahead(grant, at(200)).await.unwrap());
    let sweeper = me();
    let claimed = store.claim_due(provider, sweeper, 9, at(100), at(120)).await.unwrap();
    assert_eq!(claimed.len(), 1);
    assert!(store.release(&claimed[0].grant, None, sweeper).await.unwrap());
    // Planned while it was asked for, found when nobody asks any more.
    assert_eq!(store.claim_due(provider, me(), 9, at(200), at(220)).await.unwrap(), []);
    assert_eq!(store.retire_unwanted(provider, at(200), 9).await.unwrap(), 1);
    assert_eq!(store.providers_due(at(200)).await.unwrap(), []);
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
