//! Revocations that end all consents: what keeps them from being made, and for how long.

use token_wallet::domain::event::EventKind;
use token_wallet::domain::flow::FlowState;
use token_wallet::domain::ids::{AccountId, GrantId, ProviderId};
use token_wallet::domain::policy::REVOKE_LEASE;
use token_wallet::store::{Revocation, RevocationClaim, StartFlow};

use super::{Fixture, NOW, at, event, new_flow, on_both_engines, sealed, unique_hash, user};

on_both_engines! {
    a_lapsed_flow_keeps_no_revocation_waiting
    a_flow_that_nobody_has_consented_to_fails_when_it_was_waited_for_long_enough
    a_revocation_that_waits_for_a_day_is_given_up
    a_flow_that_begins_between_two_requests_keeps_the_second_from_being_sent
}

/// The user's account at the provider, unlinked, and its grant.
async fn unlinked(store: &Fixture, name: &str, provider: ProviderId, subject: &str) -> (AccountId, GrantId) {
    let (account, grant) = store.linked(&user(name), provider, subject).await;
    let told = event(EventKind::AccountUnlinked, &user(name), provider).account(account);
    assert!(store.unlink(account, &told, NOW).await.unwrap());
    (account, grant)
}

/// What a claim comes to so many seconds after the grant's end.
async fn claim(store: &Fixture, grant: GrantId, provider: ProviderId, seconds: i64) -> RevocationClaim {
    let now = at(seconds);
    store.claim_revocation(grant, provider, true, now, now.plus(REVOKE_LEASE)).await.unwrap()
}

async fn claimed(store: &Fixture, grant: GrantId, provider: ProviderId, seconds: i64) -> Revocation {
    match claim(store, grant, provider, seconds).await {
        RevocationClaim::Claimed(claimed) => *claimed,
        other => panic!("{other:?}"),
    }
}

async fn a_lapsed_flow_keeps_no_revocation_waiting(store: &Fixture) {
    let provider = store.configured("acme").await;
    let flow = new_flow(&user("ann"), provider);
    assert_eq!(store.start_flow(&flow, &unique_hash(flow.id), None).await.unwrap(), StartFlow::Started);
    let (_, grant) = unlinked(store, "ann", provider, "s").await;
    assert_eq!(claim(store, grant, provider, 0).await, RevocationClaim::NotNow);
    assert_eq!(claim(store, grant, provider, 599).await, RevocationClaim::NotNow);
    // Nobody has ended it yet.
    assert_eq!(claimed(store, grant, provider, 601).await.grant, grant);
}

async fn a_flow_that_nobody_has_consented_to_fails_when_it_was_waited_for_long_enough(store: &Fixture) {
    let provider = store.configured("acme").await;
    let (_, grant) = unlinked(store, "ann", provider, "s").await;
    let mut flows = Vec::new();
    for name in ["ann", "ann", "bob"] {
        let flow = token_wallet::domain::flow::Flow { expires_at: at(1_700), ..new_flow(&user(name), provider) };
        assert_eq!(store.start_flow(&flow, &unique_hash(flow.id), None).await.unwrap(), StartFlow::Started);
        flows.push(flow.id);
    }
    assert!(store.return_flow(flows[0], &sealed(2), &unique_hash(flows[0]), at(1_250), at(1_190)).await.unwrap());
    let state = async |index: usize| store.flow(flows[index]).await.unwrap().unwrap().state;
    assert_eq!(claim(store, grant, provider, 1_199).await, RevocationClaim::NotNow);
    // A code is here: its account may stand in a moment.
    assert_eq!(claim(store, grant, provider, 1_210).await, RevocationClaim::NotNow);
    assert_eq!(state(1).await, FlowState::Started);
    claimed(store, grant, provider, 1_260).await;
    assert!(matches!(state(1).await, FlowState::Failed(_)));
    assert_eq!(state(2).await, FlowState::Started, "somebody else's");
}

async fn a_revocation_that_waits_for_a_day_is_given_up(store: &Fixture) {
    let provider = store.configured("acme").await;
    let (_, grant) = unlinked(store, "ann", provider, "s").await;
    store.exchanged(&user("ann"), provider).await;
    let day = 24 * 60 * 60;
    assert_eq!(claim(store, grant, provider, day - 3).await, RevocationClaim::NotNow);
    assert_eq!(claim(store, grant, provider, day).await, RevocationClaim::Dropped(EventKind::GrantRevocationFailed));
    assert_eq!(store.events(EventKind::GrantRevocationFailed).await, 1);
    assert_eq!(store.number("SELECT COUNT(*) FROM grants WHERE access_token IS NOT NULL").await, 0);
}

async fn a_flow_that_begins_between_two_requests_keeps_the_second_from_being_sent(store: &Fixture) {
    let provider = store.configured("acme").await;
    let (_, grant) = unlinked(store, "ann", provider, "s").await;
    let claimed = claimed(store, grant, provider, 0).await;
    assert!(store.renew_revocation(&claimed, true, at(5), at(25)).await.unwrap());
    let flow = new_flow(&user("ann"), provider);
    assert_eq!(store.start_flow(&flow, &unique_hash(flow.id), None).await.unwrap(), StartFlow::Started);
    let pending = store.pending_revocations(&user("ann"), provider).await.unwrap();
    assert_eq!(pending.iter().map(|pending| pending.until).collect::<Vec<_>>(), [Some(at(25))]);
    assert!(!store.renew_revocation(&claimed, true, at(6), at(26)).await.unwrap());
    // One that ends nothing else is in nobody's way.
    assert!(store.renew_revocation(&claimed, false, at(6), at(26)).await.unwrap());
    let pending = store.pending_revocations(&user("ann"), provider).await.unwrap();
    assert_eq!(pending.iter().map(|pending| pending.until).collect::<Vec<_>>(), [None]);
}
