//! Flows: every step happens once, from the state before it, in time.

use token_wallet::domain::event::EventKind;
use token_wallet::domain::flow::{Flow, FlowFailure, FlowState};
use token_wallet::domain::ids::{EventId, FlowId, ReplicaId};
use token_wallet::domain::instance::InstanceKind;
use token_wallet::domain::redirect::RedirectUrl;
use token_wallet::store::{Beat, ClaimedFlow, FlowStep, StartFlow, StoreError};

use super::{Fixture, NOW, at, event, new_flow, on_both_engines, sealed, unique_hash, user};

on_both_engines! {
    a_flow_reads_back_by_id_state_and_ticket
    fifty_callbacks_at_once_have_one_winner
    fifty_claims_of_a_code_have_one_winner
    no_step_happens_late_or_out_of_order
    a_failure_wipes_what_was_sealed_and_is_told_once
    only_its_claimer_parks_an_answer
    an_answer_that_became_an_account_is_parked
    what_runs_out_of_time_fails_and_is_removed_later
    a_claimed_flow_is_given_up_by_its_claimer_or_when_that_is_silent
    a_flow_that_does_not_decode_is_named
}

async fn a_flow_reads_back_by_id_state_and_ticket(store: &Fixture) {
    let mut flow = new_flow(&user("ann"), store.configured("acme").await);
    flow.redirect_url = Some(RedirectUrl::parse("https://app.example/cb", InstanceKind::Production).unwrap());
    let (state, ticket) = ([1; 32], [2; 32]);
    assert_eq!(store.start_flow(&flow, &state, Some(&sealed(1)), None).await.unwrap(), StartFlow::Started);
    assert_eq!(store.flow(flow.id).await.unwrap(), Some(flow.clone()));
    assert_eq!(store.flow_by_state(&state).await.unwrap(), Some(flow.clone()));
    assert_eq!(store.flow_by_state(&ticket).await.unwrap(), None);

    assert!(store.return_flow(flow.id, &sealed(2), &ticket, at(30), NOW).await.unwrap());
    (flow.state, flow.expires_at) = (FlowState::Returned, at(30));
    assert_eq!(store.flow_by_ticket(&ticket).await.unwrap(), Some(flow.clone()));

    let claimed = store.claim_flow(flow.id, ReplicaId::new(NOW), NOW).await.unwrap();
    assert_eq!(claimed, Some(ClaimedFlow { code: sealed(2), verifier: Some(sealed(1)) }));
    assert_eq!(store.parked_answer(flow.id).await.unwrap(), None);
    assert_eq!(store.flow(FlowId::new(NOW)).await.unwrap(), None);
}

async fn fifty_callbacks_at_once_have_one_winner(store: &Fixture) {
    let flow = new_flow(&user("ann"), store.configured("acme").await);
    assert_eq!(store.start_flow(&flow, &[1; 32], None, None).await.unwrap(), StartFlow::Started);
    let mut callbacks = tokio::task::JoinSet::new();
    for number in 0..50 {
        let store = (*store).clone();
        callbacks.spawn(async move { store.return_flow(flow.id, &sealed(2), &[number; 32], at(30), NOW).await });
    }
    let won = callbacks.join_all().await.into_iter().filter(|won| *won.as_ref().unwrap()).count();
    assert_eq!(won, 1);
}

async fn fifty_claims_of_a_code_have_one_winner(store: &Fixture) {
    let flow = new_flow(&user("ann"), store.configured("acme").await);
    assert_eq!(store.start_flow(&flow, &[1; 32], None, None).await.unwrap(), StartFlow::Started);
    assert!(store.return_flow(flow.id, &sealed(2), &[2; 32], at(30), NOW).await.unwrap());
    let mut claims = tokio::task::JoinSet::new();
    for _ in 0..50 {
        let store = (*store).clone();
        claims.spawn(async move { store.claim_flow(flow.id, ReplicaId::new(NOW), NOW).await });
    }
    let won = claims.join_all().await.into_iter().filter(|won| won.as_ref().unwrap().is_some()).count();
    assert_eq!(won, 1);
}

async fn no_step_happens_late_or_out_of_order(store: &Fixture) {
    let flow = new_flow(&user("ann"), store.configured("acme").await);
    let replica = ReplicaId::new(NOW);
    assert_eq!(store.start_flow(&flow, &[1; 32], None, None).await.unwrap(), StartFlow::Started);
    assert!(store.claim_flow(flow.id, replica, NOW).await.unwrap().is_none());
    assert!(!store.park_answer(flow.id, replica, &sealed(3)).await.unwrap());
    assert!(!store.return_flow(flow.id, &sealed(2), &[2; 32], at(660), at(600)).await.unwrap());
    assert_eq!(store.flow(flow.id).await.unwrap(), Some(flow.clone()));

    assert!(store.return_flow(flow.id, &sealed(2), &[2; 32], at(30), NOW).await.unwrap());
    assert!(!store.return_flow(flow.id, &sealed(2), &[3; 32], at(30), NOW).await.unwrap());
    assert!(store.claim_flow(flow.id, replica, at(30)).await.unwrap().is_none());
    assert_eq!(store.flow(flow.id).await.unwrap().unwrap().state, FlowState::Returned);

    assert!(store.claim_flow(flow.id, replica, at(29)).await.unwrap().is_some());
    for (from, fails) in [(FlowStep::Started, false), (FlowStep::Returned, false), (FlowStep::Exchanged, false)] {
        let failed = store.fail_flow(flow.id, from, FlowFailure::Cancelled, None, NOW).await.unwrap();
        assert_eq!(failed, fails, "{from:?}");
    }
    assert!(store.park_answer(flow.id, replica, &sealed(3)).await.unwrap());
    // Again: the answer to the first time was lost on the way.
    assert!(store.park_answer(flow.id, replica, &sealed(3)).await.unwrap());
    let (parked, answer, claimed_at) = store.parked_answer(flow.id).await.unwrap().unwrap();
    assert_eq!((parked.state, answer, claimed_at), (FlowState::Exchanged, sealed(3), at(29)));
    assert_eq!(store.parked_flows(at(600), 10).await.unwrap(), [flow.id]);
    assert_eq!(store.parked_flows(at(-1), 10).await.unwrap(), []);
}

async fn a_failure_wipes_what_was_sealed_and_is_told_once(store: &Fixture) {
    let provider = store.configured("acme").await;
    let flow = new_flow(&user("ann"), provider);
    assert_eq!(store.start_flow(&flow, &[1; 32], Some(&sealed(1)), None).await.unwrap(), StartFlow::Started);
    assert!(store.return_flow(flow.id, &sealed(2), &[2; 32], at(30), NOW).await.unwrap());
    let told = event(EventKind::FlowSessionMismatch, &user("ann"), provider).flow(flow.id).because("why");
    for fails in [true, false] {
        let told = token_wallet::domain::event::Event { id: EventId::new(NOW), ..told.clone() };
        let failure = FlowFailure::SessionMismatch;
        let failed = store.fail_flow(flow.id, FlowStep::Returned, failure, Some(&told), at(5)).await.unwrap();
        assert_eq!(failed, fails);
    }
    assert_eq!(store.events(EventKind::FlowSessionMismatch).await, 1);
    let failed = store.flow_by_ticket(&[2; 32]).await.unwrap().unwrap();
    assert_eq!(failed.state, FlowState::Failed(FlowFailure::SessionMismatch));
    assert_eq!(failed.ended_at, Some(at(5)));
    let left = "SELECT COUNT(*) FROM flows WHERE code IS NOT NULL OR pkce_verifier IS NOT NULL OR answer IS NOT NULL";
    assert_eq!(store.number(left).await, 0);
}

async fn only_its_claimer_parks_an_answer(store: &Fixture) {
    let flow = new_flow(&user("ann"), store.configured("acme").await);
    let (one, other) = (ReplicaId::new(NOW), ReplicaId::new(NOW));
    assert_eq!(store.start_flow(&flow, &[1; 32], Some(&sealed(1)), None).await.unwrap(), StartFlow::Started);
    assert!(store.return_flow(flow.id, &sealed(2), &[2; 32], at(30), NOW).await.unwrap());
    assert!(store.claim_flow(flow.id, one, NOW).await.unwrap().is_some());
    assert!(!store.park_answer(flow.id, other, &sealed(3)).await.unwrap());
    assert!(store.park_answer(flow.id, one, &sealed(3)).await.unwrap());
    let left = "SELECT COUNT(*) FROM flows WHERE code IS NOT NULL OR pkce_verifier IS NOT NULL";
    assert_eq!(store.number(left).await, 0);
}

async fn what_runs_out_of_time_fails_and_is_removed_later(store: &Fixture) {
    let provider = store.configured("acme").await;
    let (started, returned, claimed) =
        (new_flow(&user("a"), provider), new_flow(&user("b"), provider), new_flow(&user("c"), provider));
    for flow in [&started, &returned, &claimed] {
        assert_eq!(
            store.start_flow(flow, &unique_hash(flow.id), Some(&sealed(1)), None).await.unwrap(),
            StartFlow::Started
        );
    }
    for flow in [&returned, &claimed] {
        assert!(store.return_flow(flow.id, &sealed(2), &unique_hash(flow.id), at(600), NOW).await.unwrap());
    }
    let replica = ReplicaId::new(NOW);
    assert!(store.claim_flow(claimed.id, replica, at(10)).await.unwrap().is_some());
    let exchanged = store.exchanged(&user("d"), provider).await;

    assert_eq!(store.expire_flows(at(599)).await.unwrap(), 0);
    assert_eq!(store.expire_flows(at(600)).await.unwrap(), 2);
    assert_eq!(store.abandon_claimed_flows(at(10), replica, &[], NOW, at(600)).await.unwrap(), 0);
    assert_eq!(store.abandon_claimed_flows(at(11), replica, &[], NOW, at(600)).await.unwrap(), 1);
    for (flow, failure) in
        [(&started, FlowFailure::Expired), (&returned, FlowFailure::Expired), (&claimed, FlowFailure::OutcomeUnknown)]
    {
        let flow = store.flow(flow.id).await.unwrap().unwrap();
        assert_eq!((flow.state, flow.ended_at), (FlowState::Failed(failure), Some(at(600))));
    }
    assert_eq!(store.delete_flows(at(600)).await.unwrap(), 0);
    assert_eq!(store.delete_flows(at(601)).await.unwrap(), 3);
    assert_eq!(store.flow(started.id).await.unwrap(), None);
    assert_eq!(store.flow(exchanged).await.unwrap().unwrap().state, FlowState::Exchanged);
    let given_up = async || {
        let failure = FlowFailure::OutcomeUnknown;
        store.fail_flow(exchanged, FlowStep::Exchanged, failure, None, at(3_600)).await.unwrap()
    };
    assert!(given_up().await && !given_up().await);
    let given_up = store.flow(exchanged).await.unwrap().unwrap();
    assert_eq!(given_up.state, FlowState::Failed(FlowFailure::OutcomeUnknown));
    assert_eq!(store.number("SELECT COUNT(*) FROM flows WHERE answer IS NOT NULL").await, 0);
}

async fn a_claimed_flow_is_given_up_by_its_claimer_or_when_that_is_silent(store: &Fixture) {
    let provider = store.configured("acme").await;
    let [one, other, unheard] = [(); 3].map(|()| ReplicaId::new(NOW));
    for (replica, beat) in [(one, at(100)), (other, at(700))] {
        store.beat(&Beat { replica, started_at: NOW, at: beat, attempts: [].into() }).await.unwrap();
    }
    let mut flows = Vec::new();
    for (name, claimer) in [("a", one), ("b", one), ("c", other), ("d", unheard)] {
        let flow = new_flow(&user(name), provider).id;
        let started = Flow { id: flow, ..new_flow(&user(name), provider) };
        assert_eq!(store.start_flow(&started, &unique_hash(flow), None, None).await.unwrap(), StartFlow::Started);
        assert!(store.return_flow(flow, &sealed(2), &unique_hash(flow), at(30), NOW).await.unwrap());
        assert!(store.claim_flow(flow, claimer, NOW).await.unwrap().is_some());
        flows.push(flow);
    }
    let state = async |flow: usize| store.flow(flows[flow]).await.unwrap().unwrap().state;
    let given_up = || FlowState::Failed(FlowFailure::OutcomeUnknown);
    // Its own but for one; and another's that was never heard of.
    assert_eq!(store.abandon_claimed_flows(at(60), one, &[flows[0]], at(99), at(600)).await.unwrap(), 2);
    assert_eq!((state(0).await, state(1).await), (FlowState::Claimed, given_up()));
    assert_eq!((state(2).await, state(3).await), (FlowState::Claimed, given_up()));
    // Somebody else's, while it was heard of and when it was not any more.
    assert_eq!(store.abandon_claimed_flows(at(60), other, &[flows[2]], at(99), at(600)).await.unwrap(), 0);
    assert_eq!(store.abandon_claimed_flows(at(60), other, &[flows[2]], at(100), at(600)).await.unwrap(), 1);
    assert_eq!((state(0).await, state(2).await), (given_up(), FlowState::Claimed));
}

async fn an_answer_that_became_an_account_is_parked(store: &Fixture) {
    let flow = new_flow(&user("ann"), store.configured("acme").await);
    let claimer = ReplicaId::new(NOW);
    assert_eq!(store.start_flow(&flow, &[1; 32], None, None).await.unwrap(), StartFlow::Started);
    assert!(store.return_flow(flow.id, &sealed(2), &[2; 32], at(30), NOW).await.unwrap());
    assert!(store.claim_flow(flow.id, claimer, NOW).await.unwrap().is_some());
    let flow = flow.id;
    store
        .tamper(
            "UPDATE flows SET state = 'done', code = NULL, account_id = 'eac_1', account_created = TRUE, ended_at = 1",
        )
        .await;
    assert!(store.park_answer(flow, claimer, &sealed(3)).await.unwrap());
    assert!(!store.park_answer(flow, ReplicaId::new(NOW), &sealed(3)).await.unwrap());
    store.tamper("UPDATE flows SET state = 'failed', failure = 'outcome_unknown', account_id = NULL").await;
    assert!(!store.park_answer(flow, claimer, &sealed(3)).await.unwrap());
}

async fn a_flow_that_does_not_decode_is_named(store: &Fixture) {
    let flow = new_flow(&user("ann"), store.configured("acme").await);
    assert_eq!(store.start_flow(&flow, &[1; 32], None, None).await.unwrap(), StartFlow::Started);
    store.tamper("UPDATE flows SET redirect_url = 'javascript:alert(1)'").await;
    let error = store.flow_by_state(&[1; 32]).await.unwrap_err();
    assert!(matches!(&error, StoreError::Corrupt { table: "flows", column: "redirect_url", .. }), "{error}");
    assert!(!error.to_string().contains("alert"), "{error}");
}
