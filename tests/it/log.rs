//! What operators read in the log: changes, one line each.

use std::time::Duration;

use token_wallet::proto::v1;
use token_wallet::sandbox::{Effect, Options, Reply, Rule};
use tonic::Code;

use crate::support::harness::{Engine, Harness, reason};
use crate::support::log::Log;

const fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

async fn thaw(harness: &Harness) {
    let update = v1::UpdateProviderRequest {
        provider: "sandbox".into(),
        update_mask: Some(prost_types::FieldMask { paths: vec!["verdicts_frozen".into()] }),
        ..Default::default()
    };
    harness.providers().update_provider(update).await.unwrap();
}

#[tokio::test]
async fn a_pause_that_a_provider_asks_for_is_one_line_when_it_begins() {
    let harness = Harness::with_users(Engine::Sqlite, 3, Options::default()).await;
    let log = Log::begin();
    harness.pass(secs(7_200));
    let pause = Rule::refresh(Effect::Answer(Reply::new(429).header("retry-after", "60"))).times(3);
    harness.sandbox.set_faults([pause, Rule::refresh(Effect::Hold)]);
    // Three are limited at once, and those who ask later are not even sent.
    let release = async {
        harness.sandbox.wait_held(3).await;
        harness.sandbox.release();
    };
    let (one, two, three, ()) = tokio::join!(harness.get("u0"), harness.get("u1"), harness.get("u2"), release);
    assert!([one, two, three, harness.get("u0").await].iter().all(Result::is_err));
    let line = log.line("asked for a pause");
    assert!(line.contains("WARN") && line.contains("provider=sandbox") && line.contains("until="), "{line}");
    harness.pass(secs(120));
    harness.get("u0").await.unwrap();
    harness.sandbox.set_faults([Rule::refresh(Effect::Answer(Reply::new(429).header("retry-after", "60")))]);
    harness.pass(secs(7_200));
    harness.get("u0").await.unwrap_err();
    assert_eq!(log.lines("asked for a pause").len(), 2, "the next one");
}

#[tokio::test]
async fn a_breaker_that_opens_says_so_and_for_how_long() {
    let harness = Harness::with_users(Engine::Sqlite, 12, Options::default()).await;
    let log = Log::begin();
    harness.pass(secs(7_200));
    harness.sandbox.set_faults([Rule::refresh(Effect::Answer(Reply::new(503)))]);
    harness.work().await;
    let line = log.line("a provider fails");
    for part in ["WARN", "provider=sandbox", "seconds=30"] {
        assert!(line.contains(part), "{part}: {line}");
    }
    harness.live(secs(60), secs(5)).await;
    let lines = log.lines("a provider fails");
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(lines[1].contains("seconds=60"), "{lines:?}");
}

#[tokio::test]
async fn an_operator_who_ends_a_freeze_is_one_line() {
    let harness = Harness::start(Engine::Sqlite).await;
    let log = Log::begin();
    thaw(&harness).await;
    assert_eq!(log.lines("freeze"), [""; 0], "there is none");
    let until = harness.clock.now().plus(secs(1_800)).millis();
    harness.database().await.execute(&format!("UPDATE providers SET frozen_until = {until}")).await;
    thaw(&harness).await;
    thaw(&harness).await;
    let line = log.line("freeze");
    assert!(line.contains("INFO") && line.contains("provider=sandbox"), "{line}");
}

#[tokio::test]
async fn a_grant_that_ends_because_an_answer_was_lost_says_so() {
    let harness = Harness::with_users(Engine::Sqlite, 2, Options::default()).await;
    let log = Log::begin();
    harness.pass(secs(7_200));
    harness.sandbox.set_faults([
        Rule::refresh(Effect::error(400, "invalid_grant")).person("p0"),
        Rule::refresh(Effect::Close).after().times(1).person("p1"),
    ]);
    harness.work().await;
    harness.live(secs(300), secs(5)).await;
    for user in ["u0", "u1"] {
        assert_eq!(reason(&harness.get(user).await.unwrap_err()), "REAUTHORIZATION_REQUIRED", "{user}");
    }
    let ends = log.lines("ended a grant");
    assert_eq!(ends.len(), 2, "{ends:?}");
    assert_eq!(ends.iter().filter(|line| line.contains("reason=\"rotation_outcome_lost\"")).count(), 1, "{ends:?}");
    assert_eq!(ends.iter().filter(|line| line.contains("reason=\"invalid_grant\"")).count(), 1, "{ends:?}");
}

#[tokio::test]
async fn a_refused_call_says_why_and_to_whom_and_a_refused_key_is_not_told_at_all() {
    let harness = Harness::start(Engine::Sqlite).await;
    let log = Log::begin();
    let wrong = harness.replica().with_key("twk_nonsense").get("u").await.unwrap_err();
    assert_eq!(wrong.code(), Code::Unauthenticated);
    assert_eq!(log.lines("a call was refused"), [""; 0]);
    harness.get("u").await.unwrap_err();
    let line = log.line("a call was refused");
    let [client] = harness.database().await.texts("SELECT id FROM api_clients").await.try_into().unwrap();
    for part in ["code=\"NOT_FOUND\"", "reason=\"ACCOUNT_NOT_LINKED\"", &format!("client={client}")] {
        assert!(line.contains(part), "{part}: {line}");
    }
}
