//! Grants in doubt and the gate: what is closed keeps nobody else waiting, and nothing is looked at for nothing.

use std::time::Duration;

use token_wallet::clock::Timestamp;
use token_wallet::sandbox::{Client, Effect, Options, Person, Reply, Rule};

use crate::support::harness::{Engine, Harness, on_both_engines, reason};

/// More than one run of the recovery looks at.
const MANY: usize = 101;

const fn mins(mins: u64) -> Duration {
    Duration::from_mins(mins)
}

/// A provider `another` at the same sandbox, as a client of its own.
async fn with_another(engine: Engine, people: usize) -> Harness {
    let people = (0..people).map(|n| Person::named(&format!("p{n}"))).collect();
    let another = Client { id: "another".into(), ..Options::default().clients.remove(0) };
    let clients = Options::default().clients.into_iter().chain([another]).collect();
    let harness = Harness::with(engine, Options { people, clients, ..Options::default() }).await;
    harness.create_own("another", "another").await;
    harness
}

/// Has every grant be in doubt since half an hour, by a request of this replica, its token dead. Planned at `sweep_at`.
async fn put_in_doubt(harness: &Harness, provider: &str, sweep_at: Timestamp) {
    let (database, now) = (harness.database().await, harness.clock.now());
    let at = |ago| now.minus(ago).millis();
    let of = format!("provider_id = (SELECT id FROM providers WHERE slug = '{provider}')");
    database
        .execute(&format!(
            "UPDATE grants SET fence = fence + 1, lease_owner = (SELECT id FROM replicas), lease_until = {}, attempted_at = {},
                issued_at = {}, due_at = {sweep_at}, sweep_at = {sweep_at} WHERE {of}",
            at(mins(30)),
            at(mins(31)),
            at(mins(120)),
            sweep_at = sweep_at.millis(),
        ))
        .await;
}

on_both_engines! {
    async fn p14_doubtful_grants_of_a_provider_that_pauses_keep_no_other_provider_waiting(engine) {
        let harness = with_another(engine, MANY + 2).await;
        for n in 0..MANY {
            harness.link(&format!("u{n}"), &format!("p{n}")).await;
            // A link takes two of fifty requests a second.
            harness.pass(Duration::from_millis(50));
        }
        let ticket = harness.ticket_at("another", "v", &format!("p{MANY}")).await;
        harness.complete("v", &ticket).await.unwrap();
        let pause = Reply::new(429).header("retry-after", "600");
        harness.sandbox.set_faults([Rule::exchange(Effect::Answer(pause))]);
        let ticket = harness.ticket("w", &format!("p{}", MANY + 1)).await;
        assert_eq!(reason(&harness.complete("w", &ticket).await.unwrap_err()), "FLOW_OUTCOME_UNKNOWN");
        let now = harness.clock.now();
        put_in_doubt(&harness, "sandbox", now.minus(mins(2))).await;
        put_in_doubt(&harness, "another", now.minus(mins(1))).await;
        harness.turn().await.unwrap();
        let sent: Vec<_> = harness.refreshes().into_iter().map(|request| request.client_id).collect();
        assert_eq!(sent, [Some("another".to_owned())]);
        let untouched = format!("SELECT COUNT(*) FROM grants WHERE sweep_at = {}", now.minus(mins(2)).millis());
        assert_eq!(harness.database().await.number(&untouched).await, i64::try_from(MANY).unwrap());
    }

    async fn p10_error_codes_that_say_nothing_of_a_provider_s_health_close_no_gate(engine) {
        const ILL: usize = 11;
        let harness = with_another(engine, ILL + 1).await;
        for n in 0..ILL {
            harness.link(&format!("u{n}"), &format!("p{n}")).await;
            harness.pass(Duration::from_millis(50));
        }
        harness.sandbox.set_faults([Rule::refresh(Effect::error(400, "invalid_scope"))]);
        harness.pass(mins(120));
        for n in 0..ILL {
            assert_eq!(reason(&harness.get(&format!("u{n}")).await.unwrap_err()), "PROVIDER_UNAVAILABLE");
        }
        assert_eq!(harness.refreshes().len(), ILL, "each was sent");
        harness.link("v", &format!("p{ILL}")).await;
    }

    async fn p14_a_token_without_end_that_is_in_doubt_is_looked_at_once_a_look(engine) {
        let harness = Harness::start(engine).await;
        harness.link("u", "demo").await;
        put_in_doubt(&harness, "sandbox", harness.clock.now().minus(mins(1))).await;
        let database = harness.database().await;
        database.execute("UPDATE grants SET lifetime = NULL, due_at = NULL, keep_alive_at = sweep_at").await;
        harness.turn().await.unwrap();
        let soon = harness.clock.now().plus(Duration::from_secs(30)).millis();
        assert_eq!(database.number("SELECT sweep_at FROM grants").await, soon);
        assert_eq!(harness.refreshes().len(), 0, "its token lives: nothing is risked");
    }
}
