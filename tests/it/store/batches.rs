//! Results stored together: one transaction, and a bad one does no harm to the others (faults N7, S3).

use std::time::Duration;

use sqlx::Connection as _;
use token_wallet::domain::event::EventKind;
use token_wallet::domain::grant::GrantState;
use token_wallet::domain::ids::{AccountId, GrantId, ProviderId, ReplicaId};
use token_wallet::store::{GrantChange, Recorded, StartFlow, Store};

use super::records::refreshed;
use super::{Fixture, NOW, at, event, new_flow, on_both_engines, unique_hash, user};
use crate::support::harness::until;

on_both_engines! {
    n7_a_bad_row_does_no_harm_to_the_others_of_its_batch
    s1_a_transaction_that_the_database_undoes_by_itself_harms_no_later_one
    n7_results_are_stored_while_housekeeping_removes_many_rows
    s3_an_answer_recorded_twice_is_told_as_stored
}

struct Claimed {
    provider: ProviderId,
    account: AccountId,
    grant: GrantId,
}

/// So many claimed grants of one provider, with fence 1.
async fn claimed(store: &Fixture, count: usize) -> Vec<Claimed> {
    let provider = store.configured("acme").await;
    let mut all = Vec::new();
    for number in 0..count {
        let (account, grant) = store.linked(&user(&format!("u{number}")), provider, &format!("s{number}")).await;
        store.claim_now(grant, NOW).await.unwrap();
        all.push(Claimed { provider, account, grant });
    }
    all
}

fn change(Claimed { provider, account, grant }: &Claimed) -> GrantChange {
    let event = event(EventKind::AccountRecovered, &user("u"), *provider).account(*account).grant(*grant);
    GrantChange {
        grant: *grant,
        account: *account,
        fence: 1,
        outcome: refreshed(1),
        event: Some(event),
        scopes_changed: None,
        announce: None,
        at: NOW,
    }
}

async fn n7_a_bad_row_does_no_harm_to_the_others_of_its_batch(store: &Fixture) {
    let claimed = claimed(store, 5).await;
    // Newest first: answers come back in the order of the changes, whatever the order of writing.
    let changes: Vec<_> = claimed.iter().rev().map(change).collect();
    let bad = changes[2].grant;
    if store.url.starts_with("sqlite:") {
        let when = format!("WHEN NEW.id = '{bad}' BEGIN SELECT RAISE(ABORT, 'no'); END");
        store.tamper(format!("CREATE TRIGGER bad BEFORE UPDATE ON grants {when}")).await;
    } else {
        let body = format!("BEGIN IF NEW.id = '{bad}' THEN RAISE 'no'; END IF; RETURN NEW; END");
        store.tamper(format!("CREATE FUNCTION bad() RETURNS trigger LANGUAGE plpgsql AS $${body}$$")).await;
        store.tamper("CREATE TRIGGER bad BEFORE UPDATE ON grants FOR EACH ROW EXECUTE FUNCTION bad()").await;
    }
    let recorded = store.record_all(&changes).await.unwrap();
    for (index, recorded) in recorded.iter().enumerate() {
        match recorded {
            Ok(recorded) => assert_eq!((index != 2, *recorded), (true, Recorded::Stored(GrantState::Active))),
            Err(error) => assert!(index == 2 && !error.is_transient(), "{error}"),
        }
    }
    let stored = "SELECT COUNT(*) FROM grants WHERE access_generation = 1";
    assert_eq!(store.number(stored).await, 4);
}

async fn s1_a_transaction_that_the_database_undoes_by_itself_harms_no_later_one(store: &Fixture) {
    let changes: Vec<_> = claimed(store, 2).await.iter().map(change).collect();
    // As a full disk does: the ROLLBACK that follows finds nothing to roll back.
    let sqlite = store.url.starts_with("sqlite:");
    if sqlite {
        store.tamper("CREATE TRIGGER full BEFORE UPDATE ON grants BEGIN SELECT RAISE(ROLLBACK, 'full'); END").await;
    } else {
        let body = "BEGIN RAISE SQLSTATE '53100'; END";
        store.tamper(format!("CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS $${body}$$")).await;
        store
            .tamper("CREATE TRIGGER full_disk BEFORE UPDATE ON grants FOR EACH ROW EXECUTE FUNCTION full_disk()")
            .await;
    }
    for _ in 0..3 {
        let recorded = store.record_all(&changes).await;
        assert!(recorded.is_err() || recorded.unwrap().iter().all(Result::is_err));
    }
    store.tamper(if sqlite { "DROP TRIGGER full" } else { "DROP TRIGGER full_disk ON grants" }).await;
    for recorded in store.record_all(&changes).await.unwrap() {
        assert_eq!(recorded.unwrap(), Recorded::Stored(GrantState::Active));
    }
}

async fn s3_an_answer_recorded_twice_is_told_as_stored(store: &Fixture) {
    let changes: Vec<_> = claimed(store, 2).await.iter().map(change).collect();
    for _ in 0..2 {
        for recorded in store.record_all(&changes).await.unwrap() {
            assert_eq!(recorded.unwrap(), Recorded::Stored(GrantState::Active));
        }
    }
}

async fn n7_results_are_stored_while_housekeeping_removes_many_rows(store: &Fixture) {
    const ROWS: u32 = 20_000;
    let changes: Vec<_> = claimed(store, 20).await.iter().map(change).collect();
    let provider = store.configured("old").await;
    let flow = new_flow(&user("u"), provider);
    assert_eq!(store.start_flow(&flow, &unique_hash(flow.id), None, None).await.unwrap(), StartFlow::Started);
    let (number, hash) = if store.url.starts_with("sqlite:") {
        (
            format!(
                "(WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {ROWS}) SELECT i FROM n)"
            ),
            "CAST(n.i AS BLOB)",
        )
    } else {
        (format!("(SELECT generate_series(1, {ROWS}) AS i)"), "CAST(CAST(n.i AS TEXT) AS BYTEA)")
    };
    store
        .tamper(format!(
            "INSERT INTO flows (id, state, client_id, user_id, provider_id, redirect_uri, scopes, state_hash, failure,
                                created_at, expires_at, ended_at)
             SELECT CAST(n.i AS TEXT), 'failed', client_id, user_id, provider_id, redirect_uri, scopes, {hash}, 'expired',
                    created_at, expires_at, created_at
             FROM flows, {number} n WHERE flows.id = '{}'",
            flow.id
        ))
        .await;
    let tidying = store.delete_flows(at(1));
    let storing = async {
        for change in &changes {
            // Far below a lease, and far below what all of the housekeeping takes on a slow disk.
            let recording = tokio::time::timeout(Duration::from_secs(2), store.record(change));
            assert_eq!(recording.await.unwrap().unwrap(), Recorded::Stored(GrantState::Active));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let (deleted, ()) = tokio::join!(tidying, storing);
    assert_eq!(deleted.unwrap(), u64::from(ROWS) + 20, "with those of the links");
}

/// A session of somebody else that holds a grant's row until it is closed.
async fn holding(store: &Fixture, grant: GrantId) -> sqlx::PgConnection {
    let mut session = sqlx::PgConnection::connect(&store.url).await.unwrap();
    let hold = format!("BEGIN; SELECT id FROM grants WHERE id = '{grant}' FOR UPDATE");
    sqlx::raw_sql(sqlx::AssertSqlSafe(hold)).execute(&mut session).await.unwrap();
    session
}

#[tokio::test]
async fn n7_a_row_that_somebody_holds_keeps_its_own_result_waiting_and_no_other() {
    let store = Fixture::on_postgres().await;
    let changes: Vec<_> = claimed(&store, 5).await.iter().map(change).collect();
    let held = holding(&store, changes[2].grant).await;
    let recorded = tokio::time::timeout(Duration::from_secs(3), store.record_all(&changes)).await.unwrap().unwrap();
    for (index, recorded) in recorded.iter().enumerate() {
        match recorded {
            Ok(recorded) => assert_eq!((index != 2, *recorded), (true, Recorded::Stored(GrantState::Active))),
            Err(error) => assert!(index == 2 && error.is_transient(), "{error}"),
        }
    }
    // A claim of it does not wait for ever either.
    let judged = store.judged(changes[2].grant).await;
    let claiming = store.claim(&judged, None, false, ReplicaId::new(NOW), at(60), at(80));
    let claimed = tokio::time::timeout(Duration::from_secs(5), claiming).await.unwrap();
    assert!(claimed.unwrap_err().is_transient());
    held.close().await.unwrap();
    assert_eq!(store.record(&changes[2]).await.unwrap(), Recorded::Stored(GrantState::Active));
}

#[tokio::test]
async fn n7_every_change_is_bounded_in_time_and_no_session_keeps_the_bounds() {
    let store = Fixture::on_postgres().await;
    let names = ["lock_timeout", "statement_timeout", "idle_in_transaction_session_timeout"];
    let shown = names.map(|name| format!("current_setting('{name}')")).join(", ");
    let body = format!("BEGIN INSERT INTO seen VALUES (TG_TABLE_NAME, {shown}); RETURN NEW; END");
    store.tamper("CREATE TABLE seen (of TEXT, a TEXT, b TEXT, c TEXT)").await;
    store.tamper(format!("CREATE FUNCTION see() RETURNS trigger LANGUAGE plpgsql AS $${body}$$")).await;
    for table in ["grants", "providers"] {
        store.tamper(format!("CREATE TRIGGER see AFTER UPDATE ON {table} FOR EACH ROW EXECUTE FUNCTION see()")).await;
    }
    let claimed = claimed(&store, 1).await;
    assert_eq!(store.record(&change(&claimed[0])).await.unwrap(), Recorded::Stored(GrantState::Active));
    assert!(store.extend_ahead(claimed[0].grant, at(90_000)).await.unwrap());
    assert!(store.pause_provider(claimed[0].provider, at(30), NOW).await.unwrap());
    let unbounded = store.number("SELECT COUNT(*) FROM seen WHERE a = '0' OR b = '0' OR c = '0'").await;
    assert_eq!((store.number("SELECT COUNT(*) FROM seen").await, unbounded), (4, 0));
    let bounds = "SELECT COUNT(DISTINCT (a, b, c)) FROM seen";
    assert_eq!(store.number(bounds).await, 3, "results, claims, and the rest");
}

#[tokio::test]
async fn s4_results_are_stored_while_every_other_connection_is_busy() {
    let store = Fixture::on_postgres().await;
    let changes: Vec<_> = claimed(&store, 2).await.iter().map(change).collect();
    let mut locked = sqlx::PgConnection::connect(&store.url).await.unwrap();
    sqlx::raw_sql("BEGIN; LOCK TABLE redirect_urls IN ACCESS EXCLUSIVE MODE").execute(&mut locked).await.unwrap();
    // One for each of the pool's connections, and more.
    let waiting: Vec<_> = (0..20)
        .map(|_| {
            let store = Store::clone(&store);
            tokio::spawn(async move { store.list_redirect_urls(None, 1).await })
        })
        .collect();
    let waits = "SELECT COUNT(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
    until("the pool is exhausted", async || store.number(waits).await == 8).await;
    for recorded in store.record_all(&changes).await.unwrap() {
        assert_eq!(recorded.unwrap(), Recorded::Stored(GrantState::Active));
    }
    assert_eq!(store.number(waits).await, 8);
    locked.close().await.unwrap();
    for waiting in waiting {
        waiting.await.unwrap().unwrap();
    }
}
