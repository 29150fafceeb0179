//! Deposits and their end: one live account an identity, one current grant an account.

use std::time::Duration;

use token_wallet::domain::account::AccountState;
use token_wallet::domain::event::EventKind;
use token_wallet::domain::flow::{FlowFailure, FlowState, Outcome};
use token_wallet::domain::grant::GrantState;
use token_wallet::domain::ids::{AccountId, ReplicaId};
use token_wallet::store::{Deposit, Deposited, FlowStep};

use super::{Fixture, NOW, at, event, new_grant, on_both_engines, scopes, sealed, user};

on_both_engines! {
    a_deposit_makes_user_account_grant_and_event_and_ends_the_flow
    linking_again_makes_the_old_grant_ending
    two_users_who_link_one_identity_at_once_have_one_winner
    one_user_who_links_twice_at_once_has_one_account
    two_deposits_over_one_account_leave_one_current_grant
    a_deposit_that_cannot_be_made_leaves_nothing
    an_account_unlinked_meanwhile_is_not_linked_again_by_its_id
    unlinking_while_it_is_linked_again_leaves_no_grant_in_use
    unlinking_happens_once_and_frees_the_identity
    quarantine_takes_a_grant_out_of_use_once
}

/// The deposit of a second flow of the same user for the same identity.
async fn again(store: &Fixture, first: &Deposit, existing: bool) -> Deposit {
    let flow = store.exchanged(&first.user, first.provider).await;
    let account = if existing { first.account } else { AccountId::new(NOW) };
    let events = vec![event(EventKind::AccountRelinked, &first.user, first.provider)];
    Deposit { flow, account, existing, grant: new_grant(), events, profile: sealed(5), now: at(9), ..first.clone() }
}

async fn a_deposit_makes_user_account_grant_and_event_and_ends_the_flow(store: &Fixture) {
    let provider = store.configured("acme").await;
    let deposit = store.new_deposit(&user("ann"), provider, "s").await;
    assert_eq!(store.deposit(&deposit).await.unwrap(), Deposited::Done);
    let flow = store.flow(deposit.flow).await.unwrap().unwrap();
    assert_eq!(flow.state, FlowState::Done(Outcome { account: deposit.account, created: true, kept: false }));
    assert_eq!(store.events(EventKind::AccountLinked).await, 1);
    assert_eq!(store.number("SELECT COUNT(*) FROM users").await, 1);
    assert_eq!(
        store.account_by_subject(provider, "s", &[].into()).await.unwrap(),
        Some((deposit.account, user("ann")))
    );
    let row = store.account(deposit.account).await.unwrap().unwrap();
    assert_eq!((row.state, row.subject.as_str(), row.provider_slug.as_str()), (AccountState::Active, "s", "acme"));
    assert_eq!((&row.granted_scopes, &row.requested_scopes), (&scopes("read"), &scopes("read write")));
    assert_eq!((row.expires_at, row.issued_at, row.refreshable), (Some(at(3_600)), Some(NOW), true));
    assert_eq!(row.profile, Some(deposit.profile.clone()));

    let holdings = store.holdings(&user("ann"), provider).await.unwrap();
    let [holding] = &holdings[..] else { panic!("{holdings:?}") };
    assert_eq!(holding.grant.freshness, deposit.grant.freshness);
    assert_eq!((holding.grant.account, holding.grant.state), (deposit.account, GrantState::Active));
    assert_eq!((holding.grant.fence, holding.grant.access_generation), (0, 0));
    assert_eq!(holding.grant.refresh_generation, Some(0));
    assert_eq!((&holding.access_token, &holding.metadata), (&deposit.grant.access_token, &deposit.grant.metadata));
    assert_eq!((holding.subject.as_str(), holding.is_default, holding.grant.lease), ("s", false, None));

    assert_eq!(store.deposit(&deposit).await.unwrap(), Deposited::FlowGone);
}

async fn linking_again_makes_the_old_grant_ending(store: &Fixture) {
    let provider = store.configured("acme").await;
    let first = store.new_deposit(&user("ann"), provider, "s").await;
    assert_eq!(store.deposit(&first).await.unwrap(), Deposited::Done);
    let second = again(store, &first, true).await;
    assert_eq!(store.deposit(&second).await.unwrap(), Deposited::Done);
    let flow = store.flow(second.flow).await.unwrap().unwrap();
    assert_eq!(flow.state, FlowState::Done(Outcome { account: first.account, created: false, kept: false }));
    assert!(store.holding(first.grant.id).await.unwrap().is_none());
    assert!(store.holding(second.grant.id).await.unwrap().is_some());
    let ending = format!("SELECT COUNT(*) FROM grants WHERE id = '{}' AND state = 'ending'", first.grant.id);
    assert_eq!(store.number(&ending).await, 1);
    assert_eq!(store.account(first.account).await.unwrap().unwrap().profile, Some(sealed(5)));
}

async fn two_users_who_link_one_identity_at_once_have_one_winner(store: &Fixture) {
    let provider = store.configured("acme").await;
    let mut deposits = tokio::task::JoinSet::new();
    for number in 0..10 {
        let deposit = store.new_deposit(&user(&format!("user{number}")), provider, "s").await;
        let store = (*store).clone();
        deposits.spawn(async move { store.deposit(&deposit).await.unwrap() });
    }
    let outcomes = deposits.join_all().await;
    assert_eq!(outcomes.iter().filter(|outcome| **outcome == Deposited::Done).count(), 1);
    assert_eq!(outcomes.iter().filter(|outcome| **outcome == Deposited::LinkedToAnotherUser).count(), 9);
    // The losers left no user behind.
    assert_eq!(store.number("SELECT COUNT(*) FROM users").await, 1);
    assert_eq!(store.number("SELECT COUNT(*) FROM grants").await, 1);
    assert_eq!(store.events(EventKind::AccountLinked).await, 1);
    assert_eq!(store.parked_flows(at(600), 100).await.unwrap().len(), 9);
}

async fn one_user_who_links_twice_at_once_has_one_account(store: &Fixture) {
    let provider = store.configured("acme").await;
    let mut deposits = tokio::task::JoinSet::new();
    for _ in 0..10 {
        let deposit = store.new_deposit(&user("ann"), provider, "s").await;
        let store = (*store).clone();
        deposits.spawn(async move { store.deposit(&deposit).await.unwrap() });
    }
    let outcomes = deposits.join_all().await;
    assert_eq!(outcomes.iter().filter(|outcome| **outcome == Deposited::Done).count(), 1);
    assert_eq!(outcomes.iter().filter(|outcome| **outcome == Deposited::Changed).count(), 9);
    assert_eq!(store.holdings(&user("ann"), provider).await.unwrap().len(), 1);
}

async fn two_deposits_over_one_account_leave_one_current_grant(store: &Fixture) {
    let provider = store.configured("acme").await;
    let first = store.new_deposit(&user("ann"), provider, "s").await;
    assert_eq!(store.deposit(&first).await.unwrap(), Deposited::Done);
    let mut deposits = tokio::task::JoinSet::new();
    for _ in 0..10 {
        let deposit = again(store, &first, true).await;
        let store = (*store).clone();
        // Whoever loses looks again, as the wallet does.
        deposits.spawn(async move {
            for _ in 0..20 {
                match store.deposit(&deposit).await.unwrap() {
                    Deposited::Changed => {}
                    outcome => return outcome,
                }
            }
            Deposited::Changed
        });
    }
    assert_eq!(deposits.join_all().await, [Deposited::Done; 10]);
    assert_eq!(store.holdings(&user("ann"), provider).await.unwrap().len(), 1);
    assert_eq!(store.number("SELECT COUNT(*) FROM grants WHERE state = 'ending' AND NOT is_current").await, 10);
}

async fn a_deposit_that_cannot_be_made_leaves_nothing(store: &Fixture) {
    let provider = store.configured("acme").await;
    let first = store.new_deposit(&user("ann"), provider, "s").await;
    assert_eq!(store.deposit(&first).await.unwrap(), Deposited::Done);
    // The account is there, though it was taken to be new; not there, though it was taken to exist; somebody else's.
    let wrongly_new = again(store, &first, false).await;
    assert_eq!(store.deposit(&wrongly_new).await.unwrap(), Deposited::Changed);
    let wrongly_old = Deposit { account: AccountId::new(NOW), ..again(store, &first, true).await };
    assert_eq!(store.deposit(&wrongly_old).await.unwrap(), Deposited::Changed);
    let mut theirs = store.new_deposit(&user("bob"), provider, "s").await;
    (theirs.account, theirs.existing) = (first.account, true);
    assert_eq!(store.deposit(&theirs).await.unwrap(), Deposited::Changed);
    // A flow that was failed, and one of another user.
    let failed = again(store, &first, true).await;
    let failure = FlowFailure::OutcomeUnknown;
    assert!(store.fail_flow(failed.flow, FlowStep::Exchanged, failure, None, NOW).await.unwrap());
    assert_eq!(store.deposit(&failed).await.unwrap(), Deposited::FlowGone);
    let bobs = store.exchanged(&user("bob"), provider).await;
    let with_bobs = Deposit { flow: bobs, ..again(store, &first, true).await };
    assert_eq!(store.deposit(&with_bobs).await.unwrap(), Deposited::FlowGone);

    assert!(store.holding(first.grant.id).await.unwrap().is_some());
    assert_eq!(store.number("SELECT COUNT(*) FROM grants").await, 1);
    assert_eq!(store.number("SELECT COUNT(*) FROM users").await, 1);
    assert_eq!(store.number("SELECT COUNT(*) FROM events").await, 1);
}

async fn an_account_unlinked_meanwhile_is_not_linked_again_by_its_id(store: &Fixture) {
    let provider = store.configured("acme").await;
    let first = store.new_deposit(&user("ann"), provider, "s").await;
    assert_eq!(store.deposit(&first).await.unwrap(), Deposited::Done);
    let second = again(store, &first, true).await;
    let unlinked = event(EventKind::AccountUnlinked, &user("ann"), provider);
    assert!(store.unlink(first.account, &unlinked, at(1)).await.unwrap());
    assert_eq!(store.deposit(&second).await.unwrap(), Deposited::Changed);
    let anew = Deposit { account: AccountId::new(NOW), existing: false, ..second };
    assert_eq!(store.deposit(&anew).await.unwrap(), Deposited::Done);
    assert_eq!(store.account_by_subject(provider, "s", &[].into()).await.unwrap(), Some((anew.account, user("ann"))));
}

async fn unlinking_while_it_is_linked_again_leaves_no_grant_in_use(store: &Fixture) {
    let provider = store.configured("acme").await;
    for round in 0..40 {
        let first = store.new_deposit(&user("ann"), provider, &format!("s{round}")).await;
        assert_eq!(store.deposit(&first).await.unwrap(), Deposited::Done);
        let second = again(store, &first, true).await;
        let linking = tokio::spawn({
            let store = (*store).clone();
            async move { store.deposit(&second).await.unwrap() }
        });
        tokio::time::sleep(Duration::from_micros(100 * round)).await;
        let unlinked = event(EventKind::AccountUnlinked, &user("ann"), provider);
        assert!(store.unlink(first.account, &unlinked, at(1)).await.unwrap());
        linking.await.unwrap();
        let in_use = format!("SELECT COUNT(*) FROM grants WHERE account_id = '{}' AND is_current", first.account);
        assert_eq!(store.number(&in_use).await, 0, "round {round}");
    }
}

async fn unlinking_happens_once_and_frees_the_identity(store: &Fixture) {
    let provider = store.configured("acme").await;
    let (account, grant) = store.linked(&user("ann"), provider, "s").await;
    let claim = store.claim_now(grant, NOW).await.unwrap();
    let unlinked = |()| event(EventKind::AccountUnlinked, &user("ann"), provider).account(account);
    assert!(store.unlink(account, &unlinked(()), at(1)).await.unwrap());
    assert!(!store.unlink(account, &unlinked(()), at(2)).await.unwrap());
    assert!(!store.unlink(AccountId::new(NOW), &unlinked(()), at(2)).await.unwrap());
    assert_eq!(store.events(EventKind::AccountUnlinked).await, 1);
    assert_eq!(store.account(account).await.unwrap().unwrap().state, AccountState::Unlinked);
    assert_eq!(store.holdings(&user("ann"), provider).await.unwrap(), []);
    assert!(store.holding(grant).await.unwrap().is_none());
    assert_eq!(store.account_by_subject(provider, "s", &[].into()).await.unwrap(), None);
    // Nobody refreshes it any more, but who was at it still holds the lease.
    assert!(store.claim(&claim.grant, None, false, ReplicaId::new(NOW), at(90), at(99)).await.unwrap().is_none());
    let leased = format!("SELECT COUNT(*) FROM grants WHERE id = '{grant}' AND lease_until IS NOT NULL");
    assert_eq!((claim.grant.fence, store.number(&leased).await), (1, 1));

    store.linked(&user("bob"), provider, "s").await;
    assert_eq!(store.holdings(&user("bob"), provider).await.unwrap().len(), 1);
}

async fn quarantine_takes_a_grant_out_of_use_once(store: &Fixture) {
    let provider = store.configured("acme").await;
    let (account, grant) = store.linked(&user("ann"), provider, "s").await;
    let (other, _) = store.linked(&user("ann"), provider, "other").await;
    let told = |()| event(EventKind::AccountQuarantined, &user("ann"), provider).because("unopenable");
    assert!(!store.quarantine(grant, other, &told(())).await.unwrap());
    assert!(store.quarantine(grant, account, &told(())).await.unwrap());
    assert!(!store.quarantine(grant, account, &told(())).await.unwrap());
    assert_eq!(store.events(EventKind::AccountQuarantined).await, 1);
    let row = store.account(account).await.unwrap().unwrap();
    assert_eq!((row.state, row.state_reason.as_deref()), (AccountState::Quarantined, Some("unopenable")));
    assert_eq!(store.account(other).await.unwrap().unwrap().state, AccountState::Active);
    assert_eq!(store.holding(grant).await.unwrap().unwrap().grant.state, GrantState::Quarantined);
    assert!(store.claim_now(grant, NOW).await.is_none());
}
