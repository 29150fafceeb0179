//! Revocations that end all consents: what keeps them from being made, and for how long.

use std::collections::BTreeMap;

use token_wallet::domain::event::EventKind;
use token_wallet::domain::flow::{FlowFailure, FlowState};
use token_wallet::domain::ids::{AccountId, GrantId, ProviderId, ReplicaId};
use token_wallet::domain::policy::REVOKE_LEASE;
use token_wallet::domain::provider::Lifetime;
use token_wallet::store::{
    Deposited, FlowStep, NewProvider, Revocation, RevocationClaim, RevocationEnd, StartFlow, Stray,
};

use super::{Fixture, NOW, at, event, new_flow, new_provider, on_both_engines, sealed, unique_hash, user};

on_both_engines! {
    a_lapsed_flow_keeps_no_revocation_waiting
    a_flow_that_nobody_has_consented_to_fails_when_it_was_waited_for_long_enough
    a_revocation_that_waits_for_a_day_is_given_up
    a_flow_that_begins_between_two_requests_keeps_the_second_from_being_sent
    an_identity_is_one_with_its_server_and_the_parts_of_its_urls
    what_is_nobody_known_keeps_out_of_the_way_of_everybody
    a_deposit_waits_for_the_revocation_of_its_identity_whoever_had_it
    one_provider_does_not_keep_anothers_revocations_waiting
    a_stray_is_kept_once_and_an_answer_that_was_parked_is_no_other_one
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
    assert_eq!(store.start_flow(&flow, &unique_hash(flow.id), None, None).await.unwrap(), StartFlow::Started);
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
        assert_eq!(store.start_flow(&flow, &unique_hash(flow.id), None, None).await.unwrap(), StartFlow::Started);
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

async fn an_identity_is_one_with_its_server_and_the_parts_of_its_urls(store: &Fixture) {
    let (here, beside) = (store.configured("here").await, store.configured("beside").await);
    let elsewhere = NewProvider { server: "https://other.example".to_owned(), ..new_provider("elsewhere") };
    assert!(store.create_provider(&elsewhere, None).await.unwrap());
    let (_, grant) = unlinked(store, "ann", here, "s").await;
    let (other, _) = store.linked(&user("bob"), beside, "s").await;
    assert_eq!(claim(store, grant, here, 0).await, RevocationClaim::Dropped(EventKind::GrantNotRevoked));
    let told = event(EventKind::AccountUnlinked, &user("bob"), beside);
    assert!(store.unlink(other, &told, NOW).await.unwrap());
    // Another server's, and another tenant's of this provider.
    store.linked(&user("ann"), elsewhere.id, "s").await;
    let flow = new_flow(&user("ann"), elsewhere.id);
    assert_eq!(store.start_flow(&flow, &unique_hash(flow.id), None, None).await.unwrap(), StartFlow::Started);
    let (account, grant) = store.linked(&user("ann"), here, "s").await;
    let mut deposit = store.new_deposit(&user("cid"), here, "s").await;
    deposit.grant.params = BTreeMap::from([("tenant".to_owned(), "acme".to_owned())]);
    assert_eq!(store.deposit(&deposit).await.unwrap(), Deposited::Done);
    let found = store.account_by_subject(here, "s", &deposit.grant.params).await.unwrap();
    assert_eq!(found, Some((deposit.account, user("cid"))));
    assert_eq!(store.account(deposit.account).await.unwrap().unwrap().params, deposit.grant.params);
    let told = event(EventKind::AccountUnlinked, &user("ann"), here);
    assert!(store.unlink(account, &told, NOW).await.unwrap());
    claimed(store, grant, here, 0).await;
}

/// What a consent of the user gave, of an identity that is not known.
fn nameless(name: &str, provider: ProviderId) -> Stray {
    Stray {
        grant: GrantId::new(NOW),
        account: AccountId::new(NOW),
        user: user(name),
        provider,
        subject: String::new(),
        params: BTreeMap::new(),
        access_token: sealed(10),
        refresh_token: None,
        token_type: "Bearer".to_owned(),
        lifetime: Lifetime::Endless,
    }
}

async fn what_is_nobody_known_keeps_out_of_the_way_of_everybody(store: &Fixture) {
    let provider = store.configured("acme").await;
    let stray = nameless("ann", provider);
    assert!(store.keep_stray(&stray, None, NOW).await.unwrap());
    store.linked(&user("bob"), provider, "s").await;
    assert_eq!(claim(store, stray.grant, provider, 0).await, RevocationClaim::Dropped(EventKind::GrantNotRevoked));
}

async fn a_deposit_waits_for_the_revocation_of_its_identity_whoever_had_it(store: &Fixture) {
    let provider = store.configured("acme").await;
    let (_, grant) = unlinked(store, "ann", provider, "s").await;
    let (moved, other) =
        (store.new_deposit(&user("bob"), provider, "s").await, store.new_deposit(&user("cid"), provider, "t").await);
    let sent = claimed(store, grant, provider, 0).await;
    assert_eq!(store.deposit(&moved).await.unwrap(), Deposited::Revoking(at(20)));
    assert_eq!(store.deposit(&other).await.unwrap(), Deposited::Done);
    let again = RevocationEnd::Again(at(60));
    assert!(store.end_revocation(&sent, again, NOW).await.unwrap());
    assert_eq!(store.deposit(&moved).await.unwrap(), Deposited::Done);
    // From then on it is in use.
    let dropped = RevocationClaim::Dropped(EventKind::GrantNotRevoked);
    assert_eq!(claim(store, grant, provider, 60).await, dropped);
}

async fn one_provider_does_not_keep_anothers_revocations_waiting(store: &Fixture) {
    let (slow, other) = (store.configured("slow").await, store.configured("other").await);
    for number in 0..5 {
        unlinked(store, "ann", slow, &format!("s{number}")).await;
    }
    let (_, last) = unlinked(store, "ann", other, "s").await;
    store.tamper(format!("UPDATE grants SET revoke_at = revoke_at + 1 WHERE id = '{last}'")).await;
    let due = store.revocations_due(at(1), 2).await.unwrap();
    assert_eq!(due.iter().map(|(_, provider)| *provider).collect::<Vec<_>>(), [slow, other]);
    assert_eq!(store.revocations_due(at(1), 100).await.unwrap().len(), 6);
}

async fn a_stray_is_kept_once_and_an_answer_that_was_parked_is_no_other_one(store: &Fixture) {
    let provider = store.configured("acme").await;
    let by = ReplicaId::new(NOW);
    let (parked, late) = (new_flow(&user("ann"), provider), new_flow(&user("ann"), provider));
    for flow in [&parked, &late] {
        assert_eq!(store.start_flow(flow, &unique_hash(flow.id), None, None).await.unwrap(), StartFlow::Started);
        assert!(store.return_flow(flow.id, &sealed(2), &unique_hash(flow.id), at(60), NOW).await.unwrap());
        assert!(store.claim_flow(flow.id, by, NOW).await.unwrap().is_some());
    }
    assert!(store.park_answer(parked.id, by, &sealed(3)).await.unwrap());
    let stray = nameless("ann", provider);
    assert!(store.keep_stray(&stray, Some((parked.id, FlowFailure::OutcomeUnknown)), NOW).await.unwrap());
    assert!(store.keep_stray(&stray, None, NOW).await.unwrap());
    assert_eq!(store.number("SELECT COUNT(*) FROM grants").await, 1);
    assert!(store.park_answer(parked.id, by, &sealed(3)).await.unwrap(), "the word of it was lost");
    assert!(store.fail_flow(late.id, FlowStep::Claimed, FlowFailure::OutcomeUnknown, None, NOW).await.unwrap());
    assert!(!store.park_answer(late.id, by, &sealed(3)).await.unwrap(), "nobody has this one");
}

async fn a_flow_that_begins_between_two_requests_keeps_the_second_from_being_sent(store: &Fixture) {
    let provider = store.configured("acme").await;
    let (_, grant) = unlinked(store, "ann", provider, "s").await;
    let claimed = claimed(store, grant, provider, 0).await;
    assert!(store.renew_revocation(&claimed, true, at(5), at(25)).await.unwrap());
    let flow = new_flow(&user("ann"), provider);
    assert_eq!(store.start_flow(&flow, &unique_hash(flow.id), None, None).await.unwrap(), StartFlow::Started);
    let pending = store.pending_revocations(&user("ann"), provider).await.unwrap();
    assert_eq!(pending.iter().map(|pending| pending.until).collect::<Vec<_>>(), [Some(at(25))]);
    assert!(!store.renew_revocation(&claimed, true, at(6), at(26)).await.unwrap());
    // One that ends nothing else is in nobody's way.
    assert!(store.renew_revocation(&claimed, false, at(6), at(26)).await.unwrap());
    let pending = store.pending_revocations(&user("ann"), provider).await.unwrap();
    assert_eq!(pending.iter().map(|pending| pending.until).collect::<Vec<_>>(), [None]);
}
