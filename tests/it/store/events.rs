//! The log of events: numbered after their commit, read by their numbers.

use std::time::Duration;

use sqlx::Connection as _;
use token_wallet::domain::event::{Event, EventKind};
use token_wallet::domain::ids::ProviderId;
use token_wallet::store::{EventFilter, EventPage, EventsError, Store};

use super::{Fixture, NOW, at, event, on_both_engines, slug, user};

on_both_engines! {
    events_are_numbered_in_the_order_of_their_writing_without_holes
    many_number_at_once_and_each_event_has_one_number
    a_filter_skips_what_does_not_match_and_says_how_far_it_looked
    old_events_are_removed_from_the_oldest_on_and_never_an_unnumbered_one
    an_event_of_a_newer_program_is_read_without_its_kind
}

/// Numbers all there are.
async fn number(store: &Store) -> i64 {
    loop {
        let numbered = store.number_events().await.unwrap();
        if numbered.all {
            return numbered.newest;
        }
    }
}

async fn all(store: &Store, after: Option<i64>) -> EventPage {
    store.events_after(after, &EventFilter::default(), 1_000).await.unwrap()
}

fn sequences(page: &EventPage) -> Vec<i64> {
    page.events.iter().map(|event| event.sequence).collect()
}

/// Writes so many events of `name`, one after the other.
async fn tell(store: &Store, name: &str, provider: ProviderId, count: usize) -> Vec<Event> {
    let mut told = Vec::new();
    for _ in 0..count {
        let event = event(EventKind::AccountLinked, &user(name), provider);
        store.tell(&event).await.unwrap();
        told.push(event);
    }
    told
}

async fn events_are_numbered_in_the_order_of_their_writing_without_holes(store: &Fixture) {
    let provider = store.configured("acme").await;
    assert_eq!((number(store).await, all(store, None).await.upto), (0, 0));
    // More than one batch.
    let mut told = tell(store, "ann", provider, 300).await;
    // A replica whose clock is behind: its ids sort before those that were written before.
    let early = Event { id: token_wallet::domain::ids::EventId::new(at(-60)), ..told[0].clone() };
    store.tell(&early).await.unwrap();
    told.push(early);
    assert_eq!(store.event_log().await.unwrap().unnumbered, 301);
    assert_eq!(all(store, None).await.events, [], "not before they have a number");
    let first = store.number_events().await.unwrap();
    assert_eq!((first.count, first.newest, first.all), (250, 250, false));
    assert_eq!(number(store).await, 301);
    assert_eq!(store.event_log().await.unwrap().unnumbered, 0);
    let page = all(store, None).await;
    assert_eq!(sequences(&page), (1..=301).collect::<Vec<_>>());
    assert_eq!((page.upto, page.newest), (301, 301));
    assert!(page.events.iter().map(|event| event.id).eq(told.iter().map(|event| event.id)));
    assert_eq!(sequences(&all(store, Some(299)).await), [300, 301]);
    for place in [302, i64::MAX - 1, i64::MAX] {
        let ahead = store.events_after(Some(place), &EventFilter::default(), 1).await;
        assert!(matches!(ahead, Err(EventsError::Ahead)), "{place}: {ahead:?}");
    }
    let some = store.events_after(Some(10), &EventFilter::default(), 5).await.unwrap();
    assert_eq!((sequences(&some), some.upto), (vec![11, 12, 13, 14, 15], 15));
}

#[tokio::test]
async fn who_reads_on_misses_nothing_whatever_commits_first() {
    let store = Fixture::on_postgres().await;
    let provider = store.configured("acme").await;
    let mut slow = sqlx::PgConnection::connect(&store.url).await.unwrap();
    let mut read = Vec::new();
    let mut after = None;
    let mut read_on = async |store: &Fixture, read: &mut Vec<i64>| {
        number(store).await;
        let page = all(store, after).await;
        after = Some(page.upto);
        read.extend(sequences(&page));
    };
    for _ in 0..3 {
        // Written first, committed last.
        let mut held = slow.begin().await.unwrap();
        let late = event(EventKind::AccountUnlinked, &user("slow"), provider);
        let insert = "INSERT INTO events (id, at, kind, user_id, provider_id) VALUES ($1, 0, $2, 'slow', $3)";
        let insert = sqlx::query(insert).bind(late.id.to_string()).bind(late.kind.as_str());
        insert.bind(provider.to_string()).execute(&mut *held).await.unwrap();
        tell(&store, "ann", provider, 3).await;
        read_on(&store, &mut read).await;
        held.commit().await.unwrap();
        read_on(&store, &mut read).await;
    }
    assert_eq!(read, (1..=12).collect::<Vec<_>>());
    let slow = all(&store, None).await.events;
    let slow: Vec<_> =
        slow.iter().filter(|event| event.user == Some(user("slow"))).map(|event| event.sequence).collect();
    assert_eq!(slow, [4, 8, 12]);
}

#[tokio::test]
async fn who_holds_the_log_keeps_nobody_waiting_for_long() {
    let store = Fixture::on_postgres().await;
    let provider = store.configured("acme").await;
    tell(&store, "ann", provider, 1).await;
    let mut other = sqlx::PgConnection::connect(&store.url).await.unwrap();
    let mut held = other.begin().await.unwrap();
    sqlx::query("SELECT 1 FROM event_log FOR UPDATE").execute(&mut *held).await.unwrap();
    let refused = tokio::time::timeout(Duration::from_secs(1), store.number_events()).await.unwrap();
    assert!(matches!(refused, Err(token_wallet::store::StoreError::Busy(_))), "{refused:?}");
    held.rollback().await.unwrap();
    assert_eq!(number(&store).await, 1);
}

async fn many_number_at_once_and_each_event_has_one_number(store: &Fixture) {
    const EACH: usize = 150;
    const ALL: i64 = 450;
    let provider = store.configured("acme").await;
    let mut work = tokio::task::JoinSet::new();
    for name in ["ann", "bob", "cid"] {
        // On SQLite there is one process.
        let own = if store.url.starts_with("sqlite:") {
            (**store).clone()
        } else {
            Store::open(&store.url, 4).await.unwrap()
        };
        let writing = own.clone();
        work.spawn(async move { drop(tell(&writing, name, provider, EACH).await) });
        work.spawn(async move {
            // In small steps, each beside those of the others.
            while all(&own, None).await.newest < ALL {
                match own.number_events().await {
                    Ok(_) | Err(token_wallet::store::StoreError::Busy(_)) => tokio::task::yield_now().await,
                    Err(error) => panic!("{error}"),
                }
            }
        });
    }
    // A reader beside them, who never looks back.
    let (mut after, mut read) = (None, Vec::new());
    while read.len() < 3 * EACH {
        let page = all(store, after).await;
        after = Some(page.upto);
        read.extend(page.events);
    }
    work.join_all().await;
    assert!(read.iter().map(|event| event.sequence).eq(1..=ALL));
    for name in ["ann", "bob", "cid"] {
        let of = |event: &&token_wallet::store::EventRow| event.user == Some(user(name));
        let ids: Vec<_> = read.iter().filter(of).map(|event| event.id).collect();
        assert!(ids.len() == EACH && ids.is_sorted(), "in the order in which {name}'s were written");
    }
}

async fn a_filter_skips_what_does_not_match_and_says_how_far_it_looked(store: &Fixture) {
    let (acme, idle) = (store.configured("acme").await, store.configured("idle").await);
    let first = tell(store, "bob", acme, 1).await;
    store.tell(&event(EventKind::AccountUnlinked, &user("ann"), idle)).await.unwrap();
    number(store).await;
    // As many as no reading looks at.
    let many = if store.url.starts_with("sqlite:") {
        "WITH RECURSIVE n(n) AS (SELECT 3 UNION ALL SELECT n + 1 FROM n WHERE n < 2500)"
    } else {
        "WITH n AS (SELECT generate_series(3, 2500) AS n)"
    };
    store
        .tamper(format!(
            "{many} INSERT INTO events (id, sequence, at, kind, user_id, provider_id)
            SELECT 'evt_' || n, n, 0, 'account.linked', 'eve', '{acme}' FROM n;
         UPDATE event_log SET sequence = 2500"
        ))
        .await;
    let last = tell(store, "bob", acme, 1).await;
    assert_eq!(number(store).await, 2_501);
    let read = async |after, filter: &EventFilter| store.events_after(after, filter, 10).await;

    let of_bob = EventFilter { user: Some(user("bob")), ..EventFilter::default() };
    let page = read(None, &of_bob).await.unwrap();
    assert_eq!((sequences(&page), page.upto), (vec![1, 2_501], 2_501), "all of one user's at once");
    assert_eq!(page.events.iter().map(|event| event.id).collect::<Vec<_>>(), [first[0].id, last[0].id]);

    let unlinks =
        EventFilter { kinds: vec![EventKind::AccountUnlinked, EventKind::AccountRelinked], ..EventFilter::default() };
    let page = read(None, &unlinks).await.unwrap();
    assert_eq!((sequences(&page), page.upto, page.newest), (vec![2], 1_000, 2_501), "a thousand at a time");
    assert_eq!((page.events[0].user.clone(), page.events[0].provider_slug.as_str()), (Some(user("ann")), "idle"));
    let page = read(Some(page.upto), &unlinks).await.unwrap();
    assert_eq!((sequences(&page), page.upto), (vec![], 2_000));

    let at_idle = EventFilter { provider: Some(slug("idle")), ..EventFilter::default() };
    assert_eq!(sequences(&read(None, &at_idle).await.unwrap()), [2]);
    let nowhere = EventFilter { provider: Some(slug("nowhere")), ..EventFilter::default() };
    assert_eq!(sequences(&read(None, &nowhere).await.unwrap()), [0; 0]);
    let both = EventFilter { user: Some(user("ann")), ..unlinks };
    assert_eq!(sequences(&read(None, &both).await.unwrap()), [2]);
    let neither = EventFilter { user: Some(user("bob")), ..both };
    assert_eq!(sequences(&read(None, &neither).await.unwrap()), [0; 0]);
}

async fn old_events_are_removed_from_the_oldest_on_and_never_an_unnumbered_one(store: &Fixture) {
    let provider = store.configured("acme").await;
    let old = async |seconds| {
        let event = Event { at: at(seconds), ..event(EventKind::AccountLinked, &user("ann"), provider) };
        store.tell(&event).await.unwrap();
    };
    for _ in 0..260 {
        old(-100).await;
    }
    // One whose writer's clock was ahead, and what came after it.
    old(50).await;
    old(-100).await;
    number(store).await;
    old(-100).await;
    assert_eq!(store.forget_events(at(-101)).await.unwrap(), 0);
    assert_eq!(store.forget_events(NOW).await.unwrap(), 260);
    assert_eq!(store.forget_events(NOW).await.unwrap(), 0);
    assert_eq!(sequences(&all(store, None).await), [261, 262], "the oldest that is kept");
    assert_eq!(sequences(&all(store, Some(260)).await), [261, 262]);
    let gone = store.events_after(Some(259), &EventFilter::default(), 1).await;
    assert!(matches!(gone, Err(EventsError::Gone)), "{gone:?}");
    assert_eq!(store.forget_events(at(51)).await.unwrap(), 2);
    assert_eq!(store.event_log().await.unwrap().unnumbered, 1, "it stays however old it is");
    assert_eq!(number(store).await, 263);
    assert_eq!(sequences(&all(store, Some(262)).await), [263]);
}

async fn an_event_of_a_newer_program_is_read_without_its_kind(store: &Fixture) {
    let provider = store.configured("acme").await;
    tell(store, "ann", provider, 1).await;
    store.tamper("UPDATE events SET kind = 'account.teleported'").await;
    number(store).await;
    let page = all(store, None).await;
    assert_eq!((page.events[0].kind, page.events[0].user.clone()), (None, Some(user("ann"))));
    let linked = EventFilter { kinds: vec![EventKind::AccountLinked], ..EventFilter::default() };
    assert_eq!(store.events_after(None, &linked, 10).await.unwrap().events, []);
}
