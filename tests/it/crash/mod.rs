//! Killed at every step (faults S5): the built binary dies by SIGKILL where a failpoint says, is started again, and
//! what must hold then is looked up at the sandbox, in the database and by asking. Time is moved from outside.
//!
//! A seed decides what is left to chance: see [`life::Chance`]. `TOKEN_WALLET_CRASH_RUNS` says how many seeds each step
//! is tried with (5), `TOKEN_WALLET_CRASH_SEED` with which the first one begins (0).

mod life;
mod link;
mod oracle;
mod refresh;
mod unlink;

use std::os::unix::process::ExitStatusExt as _;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::join_all;
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use token_wallet::failpoint::{NAMES, VARIABLE};
use token_wallet::sandbox::Options;

use crate::support::harness::{Engine, on_both_engines, until};
use crate::support::service::Wallet;

/// How many runs go on at once: most of a run is waiting.
const AT_ONCE: usize = 5;

/// How long a run may take, in real time.
const PATIENCE: Duration = Duration::from_mins(1);

on_both_engines! {
    async fn s5_killed_before_the_claim_of_a_refresh(engine) {
        runs("refresh.claiming", engine, refresh::run).await;
    }

    async fn s5_killed_after_the_claim_of_a_refresh(engine) {
        runs("refresh.claimed", engine, refresh::run).await;
    }

    async fn s5_killed_when_about_to_send_a_refresh_token(engine) {
        runs("refresh.sent", engine, refresh::run).await;
    }

    async fn s5_killed_with_the_answer_to_a_refresh_in_memory_alone(engine) {
        runs("refresh.answered", engine, refresh::run).await;
    }

    async fn s5_killed_with_the_answer_to_a_refresh_in_the_spool_alone(engine) {
        runs("refresh.spooled", engine, refresh::run).await;
    }

    async fn s5_killed_after_the_commit_of_a_refresh(engine) {
        runs("refresh.committed", engine, refresh::run).await;
    }

    async fn s5_killed_after_a_link_was_opened(engine) {
        runs("link.opened", engine, link::run).await;
    }

    async fn s5_killed_after_a_link_has_returned(engine) {
        runs("link.returned", engine, link::run).await;
    }

    async fn s5_killed_after_the_claim_of_a_code(engine) {
        runs("link.claimed", engine, link::run).await;
    }

    async fn s5_killed_with_the_answer_to_a_code_in_memory_alone(engine) {
        runs("link.exchanged", engine, link::run).await;
    }

    async fn s5_killed_with_the_answer_to_a_code_in_the_spool_alone(engine) {
        runs("link.spooled", engine, link::run).await;
    }

    async fn s5_killed_after_the_answer_to_a_code_was_parked(engine) {
        runs("link.parked", engine, link::run).await;
    }

    async fn s5_killed_after_the_commit_of_a_link(engine) {
        runs("link.committed", engine, link::run).await;
    }

    async fn s5_killed_after_the_commit_of_an_unlink(engine) {
        runs("unlink.committed", engine, unlink::run).await;
    }

    async fn s5_killed_after_the_claim_of_a_revocation(engine) {
        runs("revoke.claimed", engine, unlink::run).await;
    }

    async fn s5_killed_when_about_to_revoke_a_token(engine) {
        runs("revoke.sent", engine, unlink::run).await;
    }

    async fn s5_killed_after_the_provider_revoked_a_token(engine) {
        runs("revoke.answered", engine, unlink::run).await;
    }

    async fn s5_killed_after_a_revocation_was_recorded(engine) {
        runs("revoke.recorded", engine, unlink::run).await;
    }
}

/// Tries a step with all seeds and tells which of them failed.
async fn runs<R: Future<Output = ()>>(step: &'static str, engine: Engine, run: fn(life::Chance) -> R) {
    let first = number("TOKEN_WALLET_CRASH_SEED", 0);
    let seeds: Vec<u64> = (first..first + number("TOKEN_WALLET_CRASH_RUNS", 5)).collect();
    let mut failed = Vec::new();
    for seeds in seeds.chunks(AT_ONCE) {
        let running = seeds.iter().map(async |seed| {
            let run = tokio::time::timeout(PATIENCE, run(life::Chance::new(step, engine, *seed)));
            let ended = AssertUnwindSafe(run).catch_unwind().await;
            (*seed, matches!(ended, Ok(Ok(()))))
        });
        failed.extend(join_all(running).await.into_iter().filter(|(_, well)| !well).map(|(seed, _)| seed));
    }
    assert!(failed.is_empty(), "{step} on {engine:?} failed with the seeds {failed:?} of {seeds:?}");
}

#[expect(clippy::disallowed_methods, reason = "how whoever runs the tests asks for more of them")]
fn number(variable: &str, otherwise: u64) -> u64 {
    std::env::var(variable).map_or(otherwise, |text| text.parse().unwrap())
}

#[test]
fn every_failpoint_is_listed_and_every_listed_one_stands_somewhere_and_is_tested() {
    fn collect(folder: &Path, found: &mut Vec<String>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                collect(&path, found);
            } else if !path.ends_with("failpoint.rs") {
                let source = std::fs::read_to_string(path).unwrap();
                let named = source.split("failpoint!(\"").skip(1);
                found.extend(named.map(|rest| rest.split('"').next().unwrap().to_owned()));
            }
        }
    }
    let mut found = Vec::new();
    collect(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut found);
    found.sort();
    found.dedup();
    let tested = include_str!("mod.rs");
    assert_eq!(
        NAMES.into_iter().find(|name| !tested.contains(&format!("runs(\"{name}\""))),
        None,
        "a step without a test"
    );
    let mut listed = NAMES.map(ToOwned::to_owned);
    listed.sort();
    assert_eq!(found, listed);
}

#[tokio::test]
async fn an_unknown_failpoint_or_clock_is_an_error_at_start() {
    let wallet = Wallet::new(Engine::Sqlite, Options::default(), &[]).await;
    let refused = wallet.run(&["serve"], &[(VARIABLE, "refresh.nowhere")]);
    let told = String::from_utf8(refused.stderr).unwrap();
    assert!(!refused.status.success() && told.contains("refresh.claimed"), "{told}");
    assert!(!wallet.run(&["serve"], &[("TOKEN_WALLET_CLOCK", "/nowhere/clock")]).status.success());
}

#[tokio::test]
async fn a_process_paused_at_a_failpoint_goes_on_when_it_is_told_to() {
    let mut wallet = Wallet::new(Engine::Sqlite, Options::default(), &[]).await;
    wallet.start_with(&[(VARIABLE, "link.committed=pause")]).await;
    wallet.configure(token_wallet::sandbox::DEFAULT_CLIENT_SECRET).await;
    let ticket = wallet.ticket("u", "demo").await;
    let pid = Pid::from_raw(i32::try_from(wallet.pid()).unwrap()).unwrap();
    let paused = async {
        until("the process is stopped", async || {
            let told = waitpid(Some(pid), WaitOptions::UNTRACED | WaitOptions::NOHANG).unwrap();
            told.is_some_and(|(_, status)| status.stopped())
        })
        .await;
        assert_eq!(wallet.database().await.number("SELECT COUNT(*) FROM external_accounts").await, 1);
        kill_process(pid, Signal::CONT).unwrap();
    };
    let (completed, ()) = tokio::join!(wallet.complete("u", &ticket), paused);
    assert!(completed.unwrap().created);
    assert!(wallet.is_accepted(&wallet.get("u", "sandbox").await.unwrap().access_token).await);
    wallet.kill();
    assert_eq!(wallet.end().await.signal(), Some(Signal::KILL.as_raw()));
}
