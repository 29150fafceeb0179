//! Replicas on machines whose clocks are wrong, and a database whose clock is set back (fault S9).

use std::time::Duration;

use token_wallet::clock::{Clock, Hand, Timestamp};
use token_wallet::domain::ids::ReplicaId;

use crate::support::harness::{Harness, Replica};

const DAY: Duration = Duration::from_hours(24);

/// Above what a test takes, and below what anybody would call wrong.
const ABOUT: Duration = Duration::from_mins(3);

fn right() -> Timestamp {
    Clock::system().now()
}

/// What a token's answer says of its end.
async fn expiry(replica: &Replica) -> Timestamp {
    let expires = replica.get("u").await.unwrap().expire_time.unwrap();
    Timestamp::from_millis(expires.seconds * 1_000)
}

fn is_about(time: Timestamp, expected: Timestamp) -> bool {
    time.since(expected) < ABOUT && expected.since(time) < ABOUT
}

async fn high_water(harness: &Harness) -> Timestamp {
    Timestamp::from_millis(harness.database().await.number("SELECT high_water FROM instance").await)
}

async fn readiness(harness: &Harness, url: String) -> (u16, String) {
    let answer = harness.http.get(url).send().await.unwrap();
    (answer.status().as_u16(), answer.text().await.unwrap())
}

/// A replica each on machines a day ahead and a day behind, and one on a right machine.
async fn three() -> (Harness, [Replica; 2], [Hand; 2]) {
    let harness = Harness::machine(Clock::moved_machine(right())).await;
    let (ahead, ahead_hand) = Clock::moved_machine(right().plus(DAY));
    let (behind, behind_hand) = Clock::moved_machine(right().minus(DAY));
    let replicas = [harness.second_with_clock(ahead).await, harness.second_with_clock(behind).await];
    (harness, replicas, [ahead_hand, behind_hand])
}

#[tokio::test]
async fn s9_replicas_whose_machines_are_days_apart_share_the_databases_time() {
    let (harness, replicas, hands) = three().await;
    harness.link("u", "demo").await;
    for jump in [Duration::ZERO, DAY] {
        hands[0].set(right().plus(DAY + jump));
        hands[1].set(right().minus(DAY + jump));
        for replica in &replicas {
            replica.turn().await;
            assert!(is_about(expiry(replica).await, right().plus(Duration::from_hours(1))));
        }
        assert!(is_about(high_water(&harness).await, right()));
        assert_eq!(readiness(&harness, replicas[0].ops("/readyz")).await, (200, "ready\n".into()));
    }
    assert!(harness.refreshes().is_empty(), "no age was mistaken");
    // What one refreshes is fresh to the others.
    harness.link("v", "alice").await;
    let age = "UPDATE grants SET issued_at = issued_at - 7200000, due_at = 0 WHERE user_id = 'v'";
    assert_eq!(harness.database().await.execute(age).await, 1);
    let token = replicas[0].get("v").await.unwrap().access_token;
    for replica in [&replicas[1], &harness.replica()] {
        assert_eq!(replica.get("v").await.unwrap().access_token, token);
    }
    assert_eq!(harness.refreshes().len(), 1);
    let off = harness.metric("token_wallet_clock_ahead_seconds{clock=\"machine\"}").await;
    // One page for all replicas of a process: whoever looked last.
    assert!(off.abs() > DAY.as_secs_f64() - 3_600.0 || off.abs() < 3_600.0, "{off}");
}

#[tokio::test]
async fn s9_a_database_whose_clock_was_set_back_is_told_of_and_all_hold_on_to_the_time_of_before() {
    // What stays behind a replica's boot clock is the database's.
    let (clock, hand) = Clock::moved_machine(right());
    let harness = Harness::machine((clock, hand)).await;
    harness.pass(DAY);
    harness.link("u", "demo").await;
    let ahead = harness.clock.now();
    harness.turn().await.unwrap();
    assert!(harness.clock.now() >= ahead);
    let (status, told) = readiness(&harness, harness.ops("/readyz")).await;
    assert!(status == 503 && told.contains("clock was set back by 86"), "{status} {told}");
    let off = harness.metric("token_wallet_clock_ahead_seconds{clock=\"wallet\"}").await;
    assert!((off - DAY.as_secs_f64()).abs() < ABOUT.as_secs_f64(), "{off}");
    assert!(is_about(high_water(&harness).await, right().plus(DAY)));

    // Whoever comes now joins the others: there is one time, so nobody takes another's token for older or younger.
    let (clock, _hand) = Clock::moved_machine(right());
    let lives = async {
        loop {
            harness.pass(Duration::from_millis(50));
            harness.turn().await.unwrap();
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let second = tokio::select! {
        second = harness.second_with_clock(clock.clone()) => second,
        () = lives => unreachable!(),
    };
    assert!(is_about(clock.now(), right().plus(DAY)));
    assert!(is_about(expiry(&second).await, right().plus(DAY + Duration::from_hours(1))));
    assert!(harness.refreshes().is_empty());
}

#[tokio::test]
async fn s9_where_nobody_holds_on_to_the_time_of_before_all_tokens_are_refreshed_before_they_are_served() {
    let mut harness = Harness::machine(Clock::moved_machine(right())).await;
    harness.pass(DAY);
    harness.link("u", "demo").await;
    harness.turn().await.unwrap();
    // Signs of another's life, and no life.
    let other = ReplicaId::new(right());
    let dead = format!(
        "INSERT INTO replicas (id, started_at, beat_at, attempts) SELECT '{other}', 0, high_water, '{{}}' FROM instance"
    );
    assert_eq!(harness.database().await.execute(&dead).await, 1);
    harness.restart_with_clock(Clock::moved_machine(right()).0).await;
    assert!(is_about(harness.clock.now(), right()));
    assert!(is_about(expiry(&harness.replica()).await, right().plus(Duration::from_hours(1))));
    assert_eq!(harness.refreshes().len(), 1);
    assert!(is_about(high_water(&harness).await, right()));
    assert_eq!(readiness(&harness, harness.ops("/readyz")).await.0, 200);
}
