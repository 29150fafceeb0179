//! Events: listed and watched, by whoever has a cursor (promise P9).

mod load;
mod tail;
mod watcher;

use std::collections::BTreeSet;
use std::time::Duration;

use sqlx::Connection as _;
use token_wallet::proto::v1::{self, EventType};
use token_wallet::sandbox::{Effect, Options, Person, Rule};
use tonic::Code;

use crate::support::clients::Key;
use crate::support::harness::{Engine, Harness, on_both_engines, reason, until};
use watcher::{Watcher, of_an_old_grant};

const HOUR: Duration = Duration::from_hours(1);

#[test]
fn the_page_of_events_lists_each() {
    let page = include_str!("../../docs/events.md");
    let table = token_wallet::domain::event::table();
    assert!(page.ends_with(&table), "the table in docs/events.md must be:\n\n{table}");
}

async fn unlink(harness: &Harness, account: &str) {
    let request = v1::DeleteExternalAccountRequest { external_account_id: account.into() };
    harness.accounts().delete_external_account(request).await.unwrap();
}

/// A page, without what became of old grants: that is told when their provider has answered.
async fn list(harness: &Harness, request: v1::ListEventsRequest) -> Result<v1::ListEventsResponse, tonic::Status> {
    let mut page = harness.event_log().list_events(request).await?.into_inner();
    page.events.retain(|event| !of_an_old_grant(event));
    Ok(page)
}

/// Waits until everything that was committed has a number.
async fn numbered(harness: &Harness) {
    let database = harness.database().await;
    let waiting = "SELECT COUNT(*) FROM events WHERE sequence IS NULL";
    until("all events are numbered", async || database.number(waiting).await == 0).await;
}

on_both_engines! {
    async fn promise_p9_a_watcher_hears_of_each_change_once_with_its_ids(engine) {
        let harness = Harness::start(engine).await;
        let mut watcher = Watcher::from_now(&harness).await;
        let account = harness.link("ann", "demo").await;
        // 50 ms on a machine that has nothing else to do; the job of each second is not waited for.
        let linked = tokio::time::timeout(Duration::from_millis(900), watcher.event()).await.unwrap();
        assert_eq!(linked.r#type(), EventType::AccountLinked);
        assert_eq!((linked.user_id.as_str(), linked.provider.as_str()), ("ann", "sandbox"));
        assert_eq!(linked.external_account_id, account.id);
        assert!(linked.id.starts_with("evt_") && linked.flow_id.starts_with("flw_") && !linked.security);
        assert_eq!(linked.time.unwrap().seconds, harness.clock.now().millis() / 1_000);

        harness.link("ann", "demo").await;
        let relinked = watcher.event().await;
        assert_eq!((relinked.r#type(), relinked.external_account_id), (EventType::AccountRelinked, account.id.clone()));

        harness.pass(HOUR + HOUR);
        // A stream does not live for so long.
        watcher = Watcher::from(&harness, &watcher.cursor).await;
        harness.sandbox.set_faults([Rule::refresh(Effect::error(400, "invalid_grant"))]);
        harness.get("ann").await.unwrap_err();
        harness.pass(Duration::from_secs(6));
        until("the grant has ended", async || {
            harness.get("ann").await.is_err_and(|status| reason(&status) == "REAUTHORIZATION_REQUIRED")
        })
        .await;
        let needed = watcher.event().await;
        assert_eq!(needed.r#type(), EventType::AccountReauthorizationRequired);
        assert_eq!((needed.external_account_id.as_str(), needed.reason.as_str()), (&*account.id, "invalid_grant"));

        let ticket = harness.ticket("bob", "alice").await;
        harness.complete("eve", &ticket).await.unwrap_err();
        let attack = watcher.event().await;
        assert_eq!((attack.r#type(), attack.security), (EventType::FlowSessionMismatch, true));
        assert_eq!((attack.user_id.as_str(), attack.external_account_id.as_str()), ("bob", ""));

        unlink(&harness, &account.id).await;
        unlink(&harness, &account.id).await;
        let unlinked = watcher.event().await;
        assert_eq!((unlinked.r#type(), unlinked.external_account_id), (EventType::AccountUnlinked, account.id));

        let all = list(&harness, v1::ListEventsRequest::default()).await.unwrap();
        let told = [&linked.id, &relinked.id, &needed.id, &attack.id, &unlinked.id];
        assert_eq!(all.events.iter().map(|event| &event.id).collect::<Vec<_>>(), told, "and no others");
        assert_eq!(all.next_page_token, "");
        let request = v1::ListEventsRequest { cursor: watcher.cursor, ..Default::default() };
        assert_eq!(list(&harness, request).await.unwrap().events, [], "the watcher was told all");
    }

    async fn a_list_is_read_page_by_page_and_watched_on_from_its_end(engine) {
        let people = (0..7).map(|n| Person::named(&format!("p{n}"))).collect();
        let harness = Harness::with(engine, Options { people, ..Options::default() }).await;
        let mut accounts = Vec::new();
        for n in 0..6 {
            accounts.push(harness.link(&format!("u{n}"), &format!("p{n}")).await.id);
            harness.pass(Duration::from_millis(50));
        }
        unlink(&harness, &accounts[2]).await;
        let filter = v1::EventFilter { types: vec![EventType::AccountLinked.into()], ..Default::default() };
        let request = v1::ListEventsRequest { filter: Some(filter), page_size: 4, ..Default::default() };
        let first = list(&harness, request.clone()).await.unwrap();
        let next = v1::ListEventsRequest { page_token: first.next_page_token.clone(), ..request.clone() };
        let second = list(&harness, next.clone()).await.unwrap();
        let ids = first.events.iter().chain(&second.events).map(|event| event.external_account_id.clone());
        assert_eq!((ids.collect::<Vec<_>>(), second.next_page_token.as_str()), (accounts.clone(), ""));
        let other = v1::ListEventsRequest { filter: None, ..next };
        assert_eq!(reason(&list(&harness, other).await.unwrap_err()), "INVALID_FIELD", "a token of another list");
        // From the middle.
        let request = v1::ListEventsRequest { cursor: first.cursor, ..Default::default() };
        let rest = list(&harness, request).await.unwrap();
        assert_eq!(rest.events.len(), 3);
        let mut watcher = Watcher::from(&harness, &rest.cursor).await;
        let late = harness.link("u6", "p6").await;
        assert_eq!(watcher.event().await.external_account_id, late.id, "nothing twice, nothing left out");
    }

    async fn a_filter_lets_through_what_matches_and_the_cursor_passes_the_rest(engine) {
        let harness = Harness::with_users(engine, 2, Options::default()).await;
        let only = |user_id: &str, types: &[EventType]| v1::EventFilter {
            user_id: user_id.into(),
            types: types.iter().map(|wanted| (*wanted).into()).collect(),
            ..Default::default()
        };
        let mut of_u0 = Watcher::of(&harness, only("u0", &[])).await;
        let mut unlinks = Watcher::of(&harness, only("", &[EventType::AccountUnlinked])).await;
        let at = v1::EventFilter { provider: "elsewhere".into(), ..Default::default() };
        let mut elsewhere = Watcher::of(&harness, at).await;
        let before = elsewhere.cursor.clone();
        let u1 = harness.account("u1").await.id;
        unlink(&harness, &u1).await;
        harness.link("u0", "p0").await;
        assert_eq!(unlinks.event().await.external_account_id, u1);
        assert_eq!(of_u0.event().await.r#type(), EventType::AccountRelinked);
        // Nothing for this one; after half a minute it hears how far the log is.
        harness.pass(Duration::from_secs(31));
        let beat = elsewhere.next().await.unwrap().unwrap();
        assert_eq!(beat.event, None);
        assert_ne!(beat.cursor, before);
        let mut from_there = Watcher::from(&harness, &beat.cursor).await;
        unlink(&harness, &harness.account("u0").await.id).await;
        assert_eq!(from_there.event().await.r#type(), EventType::AccountUnlinked);
        for bad in [vec![0], vec![99], vec![-1]] {
            let filter = Some(v1::EventFilter { types: bad, ..Default::default() });
            let refused = list(&harness, v1::ListEventsRequest { filter, ..Default::default() }).await.unwrap_err();
            assert_eq!(reason(&refused), "INVALID_FIELD");
        }
    }

    async fn who_begins_again_with_its_cursor_is_told_each_event_once(engine) {
        let mut harness = Harness::start(engine).await;
        let mut watcher = Watcher::from_now(&harness).await;
        let mut told = Vec::new();
        for round in 0..4 {
            for _ in 0..3 {
                harness.link("ann", "demo").await;
            }
            // Cut off in the middle, or with the wallet.
            for _ in 0..round {
                told.push(watcher.event().await.id);
            }
            let cursor = watcher.cursor.clone();
            drop(watcher);
            if round == 2 {
                harness.restart().await;
            }
            watcher = Watcher::from(&harness, &cursor).await;
        }
        while told.len() < 12 {
            told.push(watcher.event().await.id);
        }
        let ids = harness.database().await.texts("SELECT id FROM events WHERE kind NOT LIKE 'grant.%' ORDER BY sequence").await;
        assert_eq!(told, ids);
    }

    async fn a_key_that_is_deleted_hears_no_more(engine) {
        let harness = Harness::start(engine).await;
        let make = async |seconds: Option<i64>| {
            let key_ttl = seconds.map(|seconds| prost_types::Duration { seconds, nanos: 0 });
            let request = v1::CreateApiClientRequest { display_name: "watcher".into(), key_ttl, ..Default::default() };
            let made = harness.clients().create_api_client(request).await.unwrap().into_inner();
            let (client, key) = (made.api_client.unwrap().id, made.api_key.unwrap().secret);
            let events = v1::event_service_client::EventServiceClient::with_interceptor(harness.channel(), Key::new(&key));
            (client, Watcher::open(events, v1::WatchEventsRequest::default()).await.unwrap())
        };
        let (busy_client, mut busy) = make(None).await;
        let (idle_client, mut idle) = make(None).await;
        let (_, mut expiring) = make(Some(20)).await;
        harness.link("ann", "demo").await;
        for watcher in [&mut busy, &mut idle, &mut expiring] {
            assert_eq!(watcher.event().await.r#type(), EventType::AccountLinked);
        }
        let delete = async |client: String| {
            let request = v1::DeleteApiClientRequest { api_client_id: client };
            harness.clients().delete_api_client(request).await.unwrap();
        };
        delete(busy_client).await;
        harness.link("ann", "demo").await;
        let ended = busy.next().await.unwrap_err();
        assert_eq!((ended.code(), reason(&ended).as_str()), (Code::Unauthenticated, "API_KEY_INVALID"));
        assert_eq!(idle.event().await.r#type(), EventType::AccountRelinked);
        // Nothing happens, and it ends all the same.
        delete(idle_client).await;
        assert_eq!(expiring.event().await.r#type(), EventType::AccountRelinked);
        harness.pass(Duration::from_secs(31));
        assert_eq!(reason(&idle.next().await.unwrap_err()), "API_KEY_INVALID");
        assert_eq!(reason(&expiring.next().await.unwrap_err()), "API_KEY_INVALID");
    }

    async fn a_stream_ends_with_its_last_cursor_at_its_age_and_when_the_wallet_stops(engine) {
        let mut harness = Harness::start(engine).await;
        let (mut old, mut young) = (Watcher::from_now(&harness).await, None);
        harness.link("ann", "demo").await;
        old.event().await;
        let cursor = old.cursor.clone();
        for _ in 0..60 {
            young = Some(Watcher::from_now(&harness).await);
            harness.pass(Duration::from_secs(30));
            if old.next().await.unwrap().is_none() {
                break;
            }
            assert_eq!(old.cursor, cursor);
        }
        assert_eq!(old.next().await.unwrap(), None, "after half an hour");
        let mut young = young.unwrap();
        harness.link("ann", "demo").await;
        young.event().await;
        let ending = async {
            assert_eq!(young.next().await.unwrap().unwrap().event, None);
            assert_eq!(young.next().await.unwrap(), None);
            let cursor = young.cursor.clone();
            drop((young, old));
            cursor
        };
        let stopping = async { tokio::join!(ending, harness.stop()).0 };
        let cursor = tokio::time::timeout(Duration::from_secs(5), stopping).await.expect("nobody waits for watchers");
        harness.restart().await;
        harness.link("ann", "demo").await;
        let mut again = Watcher::from(&harness, &cursor).await;
        assert_eq!(again.event().await.r#type(), EventType::AccountRelinked);
    }

    async fn a_cursor_is_good_for_its_own_log_and_while_what_follows_is_kept(engine) {
        let harness = Harness::start(engine).await;
        harness.link("ann", "demo").await;
        let begin = list(&harness, v1::ListEventsRequest { page_size: 1, ..Default::default() }).await.unwrap().cursor;
        let elsewhere = Harness::start(Engine::Sqlite).await;
        elsewhere.link("ann", "demo").await;
        let foreign = list(&elsewhere, v1::ListEventsRequest::default()).await.unwrap().cursor;
        let asked = async |cursor: &str| {
            let listed = list(&harness, v1::ListEventsRequest { cursor: cursor.into(), ..Default::default() }).await;
            let request = v1::WatchEventsRequest { cursor: cursor.into(), ..Default::default() };
            let watched = Watcher::open(harness.event_log(), request).await;
            let [listed, watched] = [listed.map(drop), watched.map(drop)].map(|told| told.map_err(|told| reason(&told)));
            assert_eq!(listed, watched);
            listed
        };
        assert_eq!(asked(&begin).await, Ok(()));
        for wrong in [foreign.as_str(), "x", "AAAAAAAAAAAAAAAAAAAAAA"] {
            assert_eq!(asked(wrong).await, Err("INVALID_FIELD".to_owned()));
        }
        // An older copy of the database was put back.
        harness.database().await.execute("UPDATE event_log SET sequence = 0").await;
        assert_eq!(asked(&begin).await, Err("INVALID_FIELD".to_owned()));
        harness.database().await.execute("UPDATE event_log SET sequence = 1").await;

        harness.link("ann", "demo").await;
        harness.pass(HOUR * 24 * 91);
        harness.link("bob", "alice").await;
        harness.work().await;
        assert_eq!(asked(&begin).await, Err("EVENTS_GONE".to_owned()), "older than 90 days");
        let kept = list(&harness, v1::ListEventsRequest::default()).await.unwrap();
        assert!(kept.events.iter().all(|event| event.user_id == "bob") && !kept.events.is_empty());
        assert_eq!(asked(&kept.cursor).await, Ok(()));
    }

    async fn what_is_written_and_who_watches_is_counted(engine) {
        let harness = Harness::start(engine).await;
        let linked = "token_wallet_events_total{type=\"account.linked\"}";
        let (before, watching) = (harness.metric(linked).await, harness.metric("token_wallet_event_watchers").await);
        let watcher = Watcher::from_now(&harness).await;
        harness.link("ann", "demo").await;
        let now = harness.metric(linked).await;
        assert!((now - before - 1.0).abs() < 0.1, "{before} and {now}");
        let now = harness.metric("token_wallet_event_watchers").await;
        assert!(now > watching || watching > 0.0, "{watching} and {now}");
        drop(watcher);
        until("the watcher has left", async || harness.metric("token_wallet_event_watchers").await < 1.0).await;
        until("all are numbered", async || harness.metric("token_wallet_events_unnumbered").await < 1.0).await;
        let opened = "token_wallet_requests_total{method=\"EventService/WatchEvents\",code=\"OK\"}";
        assert!(harness.metric(opened).await >= 1.0);
    }

    async fn watchers_are_bounded_and_leave_room_when_they_go(engine) {
        let harness = Harness::start(engine).await;
        let mut watchers = Vec::new();
        for _ in 0..256 {
            watchers.push(Watcher::from_now(&harness).await);
        }
        let refused = Watcher::open(harness.event_log(), v1::WatchEventsRequest::default()).await.err().unwrap();
        assert_eq!((refused.code(), reason(&refused).as_str()), (Code::ResourceExhausted, "TOO_MANY_WATCHERS"));
        harness.link("ann", "demo").await;
        for watcher in &mut watchers {
            assert_eq!(watcher.event().await.r#type(), EventType::AccountLinked);
        }
        watchers.pop();
        until("there is room again", async || {
            Watcher::open(harness.event_log(), v1::WatchEventsRequest::default()).await.is_ok()
        })
        .await;
    }

    async fn a_slow_watcher_gets_everything_and_keeps_nobody_waiting(engine) {
        let harness = Harness::start(engine).await;
        let mut slow = Watcher::from_now(&harness).await;
        let provider = harness.database().await.texts("SELECT id FROM providers").await.remove(0);
        // More than fits the connection's window, had it all been sent.
        let numbers = if engine == Engine::Sqlite {
            "WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 5000)"
        } else {
            "WITH n AS (SELECT generate_series(1, 5000) AS n)"
        };
        // Real ids, as the wallet would write them, all but their last digits.
        let insert = format!(
            "INSERT INTO events (id, at, kind, user_id, provider_id)
             {numbers} SELECT 'evt_01jd00000000000000000' || (10000 + n), 0, 'account.linked', 'eve', '{provider}' FROM n"
        );
        assert_eq!(harness.database().await.execute(&insert).await, 5_000);
        numbered(&harness).await;
        let account = harness.link("ann", "demo").await;
        let mut quick = Watcher::from_now(&harness).await;
        unlink(&harness, &account.id).await;
        assert_eq!(quick.event().await.r#type(), EventType::AccountUnlinked);
        let mut told = BTreeSet::new();
        for _ in 0..5_000 {
            assert!(told.insert(slow.event().await.id));
        }
        assert_eq!(slow.event().await.r#type(), EventType::AccountLinked);
        assert_eq!(slow.event().await.r#type(), EventType::AccountUnlinked);
    }
}

#[tokio::test]
async fn a_watcher_hears_of_what_another_replica_has_written() {
    let harness = Harness::start(Engine::Postgres).await;
    let second = harness.second().await;
    let mut watcher = Watcher::open(second.event_log(), v1::WatchEventsRequest::default()).await.unwrap();
    for _ in 0..3 {
        harness.link("ann", "demo").await;
        tokio::time::timeout(Duration::from_secs(1), watcher.event()).await.expect("within a second");
    }
    // The cursor is good everywhere.
    let here = Watcher::from(&harness, &watcher.cursor).await;
    assert_eq!(here.cursor, watcher.cursor);
}

#[tokio::test]
async fn while_somebody_holds_the_log_changes_go_on_and_what_waits_is_counted() {
    let harness = Harness::start(Engine::Postgres).await;
    let mut watcher = Watcher::from_now(&harness).await;
    let mut other = sqlx::PgConnection::connect(harness.config.store.url.expose()).await.unwrap();
    let mut held = other.begin().await.unwrap();
    sqlx::query("SELECT 1 FROM event_log FOR UPDATE").execute(&mut *held).await.unwrap();
    let account = harness.link("ann", "demo").await;
    unlink(&harness, &account.id).await;
    until("they are counted", async || harness.metric("token_wallet_events_unnumbered").await > 1.0).await;
    held.rollback().await.unwrap();
    assert_eq!(watcher.event().await.r#type(), EventType::AccountLinked);
    assert_eq!(watcher.event().await.r#type(), EventType::AccountUnlinked);
}
