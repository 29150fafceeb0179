use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;

use super::*;
use crate::clock::Hand;
use crate::domain::provider::{Limits, Standing};
use crate::providers::provider::tests::{NOW, provider};

fn gate() -> (Arc<Gate>, Hand) {
    let (clock, hand) = Clock::moved(NOW);
    (Arc::new(Gate::new(clock)), hand)
}

fn limited(requests_per_second: u32, max_in_flight: u32) -> Provider {
    let limits = Limits { requests_per_second: Some(requests_per_second), max_in_flight: Some(max_in_flight) };
    Provider { limits, ..provider(None, "") }
}

fn at(secs: u64) -> Timestamp {
    NOW.plus(Duration::from_secs(secs))
}

/// A permit for the token endpoint of a provider whose row does not change.
async fn permit(gate: &Gate, provider: &Provider, urgency: Urgency) -> Result<Permit, Closed> {
    let row = Arc::new(provider.clone());
    let permit = gate.permit(Target::Token, urgency, || std::future::ready(Ok(Arc::clone(&row)))).await;
    permit.unwrap().1
}

/// All permits of this urgency that are there now.
fn all(gate: &Gate, provider: &Provider, urgency: Urgency) -> Vec<Permit> {
    std::iter::from_fn(|| permit(gate, provider, urgency).now_or_never()?.ok()).collect()
}

fn closed(gate: &Gate, provider: &Provider) -> Option<Closed> {
    permit(gate, provider, Urgency::Waiting).now_or_never().unwrap().err()
}

/// Waits in a task of its own; the task is known to wait when this returns.
async fn waiting(
    gate: &Arc<Gate>,
    provider: &Provider,
    urgency: Urgency,
) -> tokio::task::JoinHandle<Result<Permit, Closed>> {
    let (gate, provider) = (Arc::clone(gate), provider.clone());
    let task = tokio::spawn(async move { permit(&gate, &provider, urgency).await });
    settle_down().await;
    assert!(!task.is_finished());
    task
}

/// Lets every other task of this thread run until it waits.
async fn settle_down() {
    for _ in 0..50 {
        tokio::task::yield_now().await;
    }
}

#[test]
fn each_provider_has_its_own_places_and_they_come_back() {
    let (gate, _) = gate();
    let (one, other) = (provider(None, ""), provider(None, ""));
    let background = gate.try_permits(&one);
    let rest = (all(&gate, &one, Urgency::Waiting), all(&gate, &one, Urgency::Link));
    assert_eq!((background.len(), rest.0.len(), rest.1.len()), (11, 2, 3));
    assert!(permit(&gate, &one, Urgency::Link).now_or_never().is_none());
    assert_eq!(gate.try_permits(&other).len(), 11);
    drop(rest.1);
    assert_eq!(all(&gate, &one, Urgency::Link).len(), 3);
}

#[test]
fn replicas_share_what_a_provider_may_be_sent_and_each_may_send_something() {
    let (gate, _) = gate();
    for (replicas, places) in [(0, 16), (1, 16), (3, 5), (100, 1)] {
        gate.set_replicas(replicas);
        let provider = provider(None, "");
        assert_eq!(all(&gate, &provider, Urgency::Link).len(), places, "{replicas}");
    }
}

#[tokio::test]
async fn who_waits_gets_the_place_of_who_ends_in_turn() {
    let (gate, _) = gate();
    let provider = limited(1_000, 1);
    let first = permit(&gate, &provider, Urgency::Waiting).await.ok().unwrap();
    let second = waiting(&gate, &provider, Urgency::Waiting).await;
    let third = waiting(&gate, &provider, Urgency::Waiting).await;
    let _ = first.settle(Signal::Well);
    let second = second.await.unwrap().ok().unwrap();
    settle_down().await;
    assert!(!third.is_finished());
    drop(second);
    assert!(third.await.unwrap().is_ok());
}

#[tokio::test]
async fn n4_with_a_clock_that_stands_the_rate_is_waited_for_and_a_jump_of_a_day_gives_a_second_s_worth() {
    let (gate, hand) = gate();
    let provider = limited(10, 100);
    let send = |urgency| {
        let permits = all(&gate, &provider, urgency);
        permits.into_iter().fold(0, |sent, permit| {
            let _ = permit.settle(Signal::Well);
            sent + 1
        })
    };
    assert_eq!((send(Urgency::Background), send(Urgency::Waiting)), (7, 3));
    let waiter = waiting(&gate, &provider, Urgency::Waiting).await;
    hand.advance(Duration::from_millis(99));
    settle_down().await;
    assert!(!waiter.is_finished());
    hand.advance(Duration::from_millis(1));
    let _ = waiter.await.unwrap().ok().unwrap().settle(Signal::Well);
    hand.advance(Duration::from_hours(24));
    assert_eq!((send(Urgency::Background), send(Urgency::Waiting)), (7, 3));
}

#[test]
fn a_permit_that_sent_nothing_costs_nothing_and_counts_as_no_attempt() {
    let (gate, hand) = gate();
    let provider = limited(5, 5);
    for _ in 0..100 {
        drop(all(&gate, &provider, Urgency::Background));
    }
    assert_eq!((gate.attempts_last_minute(provider.id), gate.attempts().len()), (0, 0));
    for urgency in [Urgency::Background, Urgency::Waiting, Urgency::Link] {
        let permit = permit(&gate, &provider, urgency).now_or_never().unwrap().ok().unwrap();
        let _ = permit.settle(Signal::Failed);
    }
    assert_eq!(gate.attempts_last_minute(provider.id), 2, "a link is no refresh");
    assert_eq!(gate.attempts(), BTreeMap::from([(provider.id, 2)]));
    hand.advance(Duration::from_mins(1));
    assert_eq!(gate.attempts(), BTreeMap::new());
}

#[tokio::test]
async fn p9_a_pause_keeps_all_away_also_those_who_wait_already() {
    let (gate, hand) = gate();
    let paused = limited(1_000, 1);
    let place = permit(&gate, &paused, Urgency::Link).await.ok().unwrap();
    let waiters = [waiting(&gate, &paused, Urgency::Waiting).await, waiting(&gate, &paused, Urgency::Waiting).await];
    gate.pause(&paused, at(40));
    let by_pause = |until| Closed { until, why: ClosedBy::Paused };
    for waiter in waiters {
        assert_eq!(waiter.await.unwrap().err(), Some(by_pause(at(40))));
    }
    drop(place);
    // Another replica's pause is read from the row. One that is not in the row yet is not shortened by it.
    let standing = |until| Standing { paused_until: Some(at(until)), ..Standing::default() };
    let read_at = |reading, until| Provider { standing: standing(until), reading, ..paused.clone() };
    let row = |until| read_at(gate.reading(), until);
    let holds = |until, holds| {
        assert_eq!(closed(&gate, &row(until)), Some(by_pause(at(holds))));
        assert_eq!(gate.try_permits(&row(until)).len(), 0);
    };
    holds(30, 40);
    holds(50, 50);
    holds(30, 40);
    gate.pause_is_noted(&paused, at(39));
    holds(30, 40);
    let before = gate.reading();
    gate.pause_is_noted(&paused, at(40));
    // A row that was read before the pause was in it may come late, and may know of a longer one.
    let late = |until| closed(&gate, &read_at(before, until)).unwrap().until;
    assert_eq!((late(30), late(45), late(30)), (at(40), at(45), at(45)));
    holds(40, 40);
    holds(30, 30);
    holds(50, 50);
    let failure = by_pause(at(50)).failure(NOW);
    assert_eq!(failure, Failure::ProviderUnavailable { retry_after: Duration::from_secs(50) });
    hand.advance(Duration::from_secs(50));
    assert_eq!(closed(&gate, &row(50)), None);
}

#[tokio::test]
async fn n2_an_open_breaker_keeps_all_away_also_those_who_wait_already() {
    let (gate, hand) = gate();
    let provider = limited(1_000, 20);
    let mut permits = all(&gate, &provider, Urgency::Link);
    let waiter = waiting(&gate, &provider, Urgency::Link).await;
    for permit in permits.drain(..9) {
        assert!(!permit.settle(Signal::Failed).closed_again);
    }
    // Nine places are free again; the waiter has one and fills the rest up.
    assert!(waiter.await.unwrap().is_ok());
    let rest = all(&gate, &provider, Urgency::Link);
    let waiter = waiting(&gate, &provider, Urgency::Link).await;
    let _ = permits.remove(0).settle(Signal::Failed);
    let open = Closed { until: at(30), why: ClosedBy::Breaker };
    assert_eq!(waiter.await.unwrap().err(), Some(open));
    assert_eq!((closed(&gate, &provider), gate.try_permits(&provider).len()), (Some(open), 0));
    drop((rest, permits));

    hand.advance(Duration::from_secs(30));
    let probes = all(&gate, &provider, Urgency::Waiting);
    assert_eq!(probes.len(), 3);
    let again = probes.into_iter().map(|probe| probe.settle(Signal::Well).closed_again);
    assert_eq!(again.collect::<Vec<_>>(), [false, false, true]);
    assert_eq!(closed(&gate, &provider), None);
}

#[test]
fn p8_a_provider_that_refuses_our_credentials_is_asked_by_probes_alone() {
    let (gate, _) = gate();
    let standing = Standing { misconfigured_at: Some(NOW), probe_at: Some(at(60)), ..Standing::default() };
    let provider = Provider { standing, ..limited(1_000, 1) };
    let refused = Closed { until: at(60), why: ClosedBy::Misconfigured };
    assert_eq!(closed(&gate, &provider), Some(refused));
    assert_eq!(refused.failure(NOW), Failure::ProviderMisconfigured);
    assert_eq!(gate.try_permits(&provider).len(), 0);
    let row = Arc::new(provider.clone());
    let profile = gate.permit(Target::Profile, Urgency::Link, || std::future::ready(Ok(Arc::clone(&row))));
    assert!(profile.now_or_never().unwrap().unwrap().1.is_ok(), "the profile is none of it");
    let probe = gate.try_probe(&provider);
    assert!(probe.is_some() && gate.try_probe(&provider).is_none(), "within the budget");
}

/// A provider's row that changes.
type Changing = Arc<Mutex<Provider>>;

/// Waits for a link in a task of its own.
async fn waiting_for(
    gate: &Arc<Gate>,
    row: &Changing,
) -> tokio::task::JoinHandle<(Arc<Provider>, Result<Permit, Closed>)> {
    let (gate, row) = (Arc::clone(gate), Arc::clone(row));
    let task = tokio::spawn(async move {
        let read = || std::future::ready(Ok(Arc::new(row.lock().unwrap().clone())));
        gate.permit(Target::Token, Urgency::Link, read).await.unwrap()
    });
    settle_down().await;
    assert!(!task.is_finished());
    task
}

#[tokio::test]
async fn who_has_waited_gets_the_provider_as_it_is_then() {
    let (gate, _) = gate();
    let row: Changing = Arc::new(Mutex::new(limited(1_000, 1)));
    let before = row.lock().unwrap().clone();
    let place = permit(&gate, &before, Urgency::Link).await.ok().unwrap();
    let (first, second) = (waiting_for(&gate, &row).await, waiting_for(&gate, &row).await);
    let third = waiting_for(&gate, &row).await;
    row.lock().unwrap().client_id = "changed".into();
    drop(place);
    let (provider, first) = first.await.unwrap();
    assert_eq!((provider.client_id.as_str(), first.is_ok()), ("changed", true));
    // A wider limit counts for who waits, as soon as anybody reads it.
    row.lock().unwrap().limits.max_in_flight = Some(2);
    let now = row.lock().unwrap().clone();
    assert_eq!(gate.closed(&now, Target::Token), None);
    assert!(second.await.unwrap().1.is_ok());
    // What the row says by then counts, also if nobody has read it before.
    row.lock().unwrap().standing.misconfigured_at = Some(NOW);
    drop(first);
    assert_eq!(third.await.unwrap().1.err().map(|closed| closed.why), Some(ClosedBy::Misconfigured));
}

#[tokio::test]
async fn p8_who_waits_hears_at_once_that_our_credentials_are_refused() {
    let (gate, _) = gate();
    let row: Changing = Arc::new(Mutex::new(limited(1_000, 1)));
    let before = row.lock().unwrap().clone();
    let place = permit(&gate, &before, Urgency::Link).await.ok().unwrap();
    let refused = || Some(Closed { until: NOW, why: ClosedBy::Misconfigured });
    let refuse = |at| row.lock().unwrap().standing.misconfigured_at = at;
    // Noticed here.
    let waiter = waiting_for(&gate, &row).await;
    refuse(Some(NOW));
    gate.refuse(&before, NOW);
    assert_eq!(waiter.await.unwrap().1.err(), refused());
    // Noticed elsewhere, and seen here by somebody else.
    refuse(None);
    let now = row.lock().unwrap().clone();
    assert_eq!(gate.closed(&now, Target::Token), None);
    let waiter = waiting_for(&gate, &row).await;
    refuse(Some(NOW));
    let now = row.lock().unwrap().clone();
    assert_eq!(gate.closed(&now, Target::Token), refused());
    assert_eq!(waiter.await.unwrap().1.err(), refused());
    drop(place);
}

#[test]
fn what_keeps_requests_away_is_shown() {
    crate::telemetry::metrics::install();
    let (gate, hand) = gate();
    let of = |name: &str, standing| Provider { slug: Slug::parse(name).unwrap(), standing, ..limited(1_000, 20) };
    let failing = of("gate-failing", Standing::default());
    let paused = of("gate-paused", Standing { paused_until: Some(at(10)), ..Standing::default() });
    let refusing = of("gate-refusing", Standing { misconfigured_at: Some(NOW), ..Standing::default() });
    let shown = |name: &str, provider: &Provider| {
        gate.show();
        let line = format!("token_wallet_{name}{{provider=\"{}\"}} ", provider.slug);
        let text = crate::telemetry::metrics::render();
        text.lines().find_map(|found| found.strip_prefix(&line)).map(str::to_owned)
    };
    for permit in all(&gate, &failing, Urgency::Link) {
        let _ = permit.settle(Signal::Failed);
    }
    assert!(closed(&gate, &paused).is_some() && closed(&gate, &refusing).is_some());
    for (name, yes, no) in [
        ("breaker_open", &failing, &paused),
        ("provider_paused", &paused, &refusing),
        ("provider_misconfigured", &refusing, &failing),
    ] {
        assert_eq!((shown(name, yes).as_deref(), shown(name, no).as_deref()), (Some("1"), Some("0")), "{name}");
    }
    hand.advance(Duration::from_secs(30));
    let cured = Provider { standing: Standing::default(), ..refusing };
    assert_eq!(closed(&gate, &cured), None);
    for permit in all(&gate, &failing, Urgency::Waiting) {
        let _ = permit.settle(Signal::Well);
    }
    let after = [("breaker_open", &failing), ("provider_paused", &paused), ("provider_misconfigured", &cured)];
    for (name, provider) in after {
        assert_eq!(shown(name, provider).as_deref(), Some("0"), "{name}");
    }
}
