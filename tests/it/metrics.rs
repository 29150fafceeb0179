//! What operators see (docs/metrics.md).

use std::path::Path;
use std::time::Duration;

use token_wallet::sandbox::{DEFAULT_CLIENT_ID, Effect, Options, Reply, Rule};
use token_wallet::telemetry::metrics::{self, METRICS};

use crate::support::harness::{Harness, on_both_engines, until};

const HOUR: Duration = Duration::from_hours(1);

fn in_the_repository(path: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

#[test]
fn the_page_of_metrics_lists_each() {
    let page = std::fs::read_to_string(in_the_repository("docs/metrics.md")).unwrap();
    let table = metrics::table();
    assert!(page.contains(&table), "the table in docs/metrics.md must be:\n\n{table}");
}

/// The text of all tests but those of this file's neighbour in `src`, which has all names.
fn tests() -> String {
    let mut folders = vec![in_the_repository("tests/it"), in_the_repository("src")];
    let mut text = String::new();
    while let Some(folder) = folders.pop() {
        let of_the_program = folder.starts_with(in_the_repository("src"));
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.ends_with("tests.rs") || (!of_the_program && path.extension().is_some_and(|end| end == "rs"))
            {
                text.push_str(&std::fs::read_to_string(path).unwrap());
            }
        }
    }
    text
}

#[test]
fn each_metric_is_caused_by_a_test() {
    let tests = tests();
    for metric in METRICS {
        let name = metric.name.strip_prefix("token_wallet_").unwrap();
        // Those of memory are asked for in a loop over their last words.
        let name = name.strip_prefix("cache_").unwrap_or(name);
        let asked = ["\"", "{", "_bucket{", " 1"].iter().any(|end| tests.contains(&format!("{name}{end}")));
        assert!(asked, "no test asks for {name}");
    }
}

on_both_engines! {
    async fn a_provider_that_cannot_be_used_hides_no_figures_of_the_others(engine) {
        let mut harness = Harness::start(engine).await;
        harness.create_own("own", DEFAULT_CLIENT_ID).await;
        let ticket = harness.ticket_at("own", "u", "demo").await;
        harness.complete("u", &ticket).await.unwrap();
        let unknown = "UPDATE providers SET catalog_entry = 'gone' WHERE slug = 'sandbox'";
        assert_eq!(harness.database().await.execute(unknown).await, 1);
        harness.restart().await;
        harness.turn().await.unwrap();
        let life = harness.metric("token_wallet_smallest_remaining_life_seconds{provider=\"own\"}").await;
        assert!((3_500.0..=3_600.0).contains(&life), "{life}");
    }

    async fn what_alerts_look_at_is_there_from_the_start(engine) {
        let mut harness = Harness::with_users(engine, 1, Options::default()).await;
        let shown = async |harness: &Harness| {
            harness.http.get(harness.ops("/metrics")).send().await.unwrap().text().await.unwrap()
        };
        let text = shown(&harness).await;
        for name in ["spool_failures_total", "spool_unreadable_total"] {
            assert!(text.contains(&format!("token_wallet_{name} 0\n")), "{name} is not 0 in\n{text}");
        }
        // Nobody waits for the stroke of the minute.
        let censuses = async |harness: &Harness| {
            harness.metric("token_wallet_job_runs_total{job=\"census\",outcome=\"well\"}").await
        };
        until("the census of the start is taken", async || censuses(&harness).await > 0.0).await;
        let before = censuses(&harness).await;
        harness.restart().await;
        until("that of the next start is taken", async || censuses(&harness).await > before).await;
        let text = shown(&harness).await;
        for series in [
            "grants{state=\"active\"} 1\n",
            "grants_in_doubt 0\n",
            "due_grants{provider=\"sandbox\"} 0\n",
            "refreshes_in_doubt_total{provider=\"sandbox\"} 0\n",
            "rotation_outcome_lost_total{provider=\"sandbox\"} 0\n",
            "verdicts_frozen_total{provider=\"sandbox\"} 0\n",
        ] {
            assert!(text.contains(&format!("token_wallet_{series}")), "{series} is not in\n{text}");
        }
    }

    async fn the_census_counts_grants_by_state_and_what_waits(engine) {
        let harness = Harness::with_users(engine, 5, Options::default()).await;
        let shown = async |name: &str| harness.metric(&format!("token_wallet_{name}")).await;
        let of_sandbox = async |name: &str| shown(&format!("{name}{{provider=\"sandbox\"}}")).await;
        harness.work().await;
        assert_eq!((shown("grants{state=\"active\"}").await, of_sandbox("due_grants").await), (5.0, 0.0));
        let life = of_sandbox("smallest_remaining_life_seconds").await;
        assert!((3_500.0..=3_600.0).contains(&life), "{life}");

        // One is refused again and again, one is not answered, and then the provider asks for a pause.
        let rules = [
            Rule::refresh(Effect::error(400, "invalid_grant")).person("p0"),
            Rule::refresh(Effect::Close).person("p1"),
            Rule::refresh(Effect::Answer(Reply::new(429).header("retry-after", "600"))),
        ];
        harness.sandbox.set_faults(rules);
        harness.pass(HOUR + HOUR);
        for user in ["u0", "u1", "u2"] {
            harness.get(user).await.unwrap_err();
        }
        harness.pass(Duration::from_secs(30));
        harness.work().await;
        assert_eq!((shown("grants{state=\"suspect\"}").await, shown("grants{state=\"active\"}").await), (1.0, 4.0));
        let in_doubt = shown("grants_in_doubt").await;
        assert!((0.5..1.5).contains(&in_doubt), "{in_doubt}");
        assert!(of_sandbox("due_grants").await >= 2.0, "those that nobody asked for");
        let waits = of_sandbox("oldest_due_seconds").await;
        // The sweep may have been first, and have tried those too before the provider asked for its pause.
        assert!((20.0..=7_200.0).contains(&waits), "{waits}");
        assert!(of_sandbox("smallest_remaining_life_seconds").await <= 0.0, "one has ended");

        harness.pass(HOUR);
        harness.sandbox.set_faults([Rule::refresh(Effect::error(400, "invalid_grant")).person("p0")]);
        harness.live(Duration::from_mins(5), Duration::from_secs(10)).await;
        assert_eq!((shown("grants{state=\"dead\"}").await, shown("grants{state=\"active\"}").await), (1.0, 4.0));
        assert_eq!((of_sandbox("due_grants").await, shown("grants_in_doubt").await), (0.0, 0.0));
    }
}
