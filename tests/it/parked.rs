//! Answers to codes that wait for their account: none is dropped unread, none becomes the account of a link that has
//! ended.

use std::time::Duration;

use token_wallet::sandbox::{Effect, Ending, Options, Rule};

use crate::support::harness::{Harness, on_both_engines, reason, until};
use crate::support::outage::{Outage, aside, spooled};
use crate::support::service::Wallet;

on_both_engines! {
    async fn a_parked_answer_is_not_given_up_for_the_time_that_no_process_ran(engine) {
        // Else there would be no telling whose it is.
        let living = Options { token_ttl: Duration::from_hours(24), ..Options::default() };
        let mut harness = Harness::with(engine, living).await;
        let ticket = harness.ticket("u", "demo").await;
        harness.sandbox.set_faults([Rule::userinfo(Effect::error(503, "temporarily_unavailable"))]);
        assert_eq!(reason(&harness.complete("u", &ticket).await.unwrap_err()), "PROVIDER_UNAVAILABLE");
        harness.stop().await;
        harness.pass(Duration::from_hours(2));
        harness.restart().await;
        harness.turn().await.unwrap();
        harness.turn().await.unwrap();
        harness.sandbox.clear_faults();
        until("it became an account", async || {
            harness.turn().await.unwrap();
            harness.get("u").await.is_ok()
        })
        .await;
        assert_eq!(harness.exchanges().len(), 1);
    }

    async fn a_parked_answer_that_was_tried_in_vain_for_an_hour_is_given_up(engine) {
        let harness = Harness::start(engine).await;
        let ticket = harness.ticket("u", "demo").await;
        harness.sandbox.set_faults([Rule::userinfo(Effect::error(503, "temporarily_unavailable"))]);
        assert_eq!(reason(&harness.complete("u", &ticket).await.unwrap_err()), "PROVIDER_UNAVAILABLE");
        // With a sign of life every few seconds: while the wallet sleeps nothing is tried.
        harness.live(Duration::from_mins(59), Duration::from_secs(8)).await;
        let open = "SELECT COUNT(*) FROM flows WHERE answer IS NOT NULL";
        assert_eq!(harness.database().await.number(open).await, 1);
        // How many minutes more: a busy machine counts less of the time, as its silences are longer.
        until("it is given up", async || {
            harness.live(Duration::from_mins(1), Duration::from_secs(8)).await;
            harness.database().await.number(open).await == 0
        })
        .await;
    }

    async fn an_answer_whose_flow_has_ended_meanwhile_is_revoked_and_never_becomes_an_account(engine) {
        let mut wallet = Wallet::running(engine, Options::default()).await;
        let outage = spooled_exchange(&mut wallet).await;
        outage.end().await;
        let ending = "UPDATE flows SET state = 'failed', failure = 'outcome_unknown', ended_at = claimed_at, code = NULL,
                      pkce_verifier = NULL WHERE state = 'claimed'";
        assert_eq!(wallet.database().await.execute(ending).await, 1);
        wallet.sandbox.clear_faults();
        wallet.start().await;
        let revoked = "SELECT COUNT(*) FROM events WHERE kind = 'grant.revoked'";
        until("it is revoked", async || wallet.database().await.number(revoked).await == 1).await;
        assert_eq!((spooled(&wallet.spool()), aside(&wallet.spool())), (0, 0));
        assert_eq!(wallet.sandbox.grants_of("demo")[0].ended, Some(Ending::Revoked));
        wallet.link("u", "demo").await;
        assert!(wallet.is_accepted(&wallet.get("u", "sandbox").await.unwrap().access_token).await);
        assert_eq!(wallet.token_requests("authorization_code").len(), 2);
    }

    async fn an_answer_whose_flow_is_gone_is_set_aside_and_not_tried_again(engine) {
        let mut wallet = Wallet::running(engine, Options::default()).await;
        let outage = spooled_exchange(&mut wallet).await;
        outage.end().await;
        assert_eq!(wallet.database().await.execute("DELETE FROM flows").await, 1);
        wallet.sandbox.clear_faults();
        wallet.start().await;
        until("it is set aside", async || aside(&wallet.spool()) == 1).await;
        assert_eq!(spooled(&wallet.spool()), 0);
        let log = std::fs::read_to_string(wallet.folder().join("logs/2.stderr")).unwrap();
        assert!(log.lines().any(|line| line.contains("ERROR") && line.contains("set aside")), "{log}");
        // Not tried again, counted, and in nobody's way.
        wallet.terminate();
        assert!(wallet.end().await.success());
        wallet.start().await;
        let metrics = wallet.http.get(wallet.ops("/metrics")).send().await.unwrap().text().await.unwrap();
        assert!(metrics.contains("token_wallet_spool_unreadable_total 1"), "{metrics}");
        wallet.link("u", "demo").await;
        assert!(wallet.is_accepted(&wallet.get("u", "sandbox").await.unwrap().access_token).await);
        assert_eq!(aside(&wallet.spool()), 1);
        assert_eq!(wallet.token_requests("authorization_code").len(), 2);
    }
}

/// Has the answer to a code be in the spool alone when the process dies.
async fn spooled_exchange(wallet: &mut Wallet) -> Outage {
    let ticket = wallet.ticket("u", "demo").await;
    wallet.sandbox.set_faults([Rule::exchange(Effect::Hold).after()]);
    let killing = async {
        wallet.sandbox.wait_held(1).await;
        let outage = Outage::begin(wallet.store()).await;
        wallet.sandbox.release();
        until("it is spooled", async || spooled(&wallet.spool()) == 1).await;
        wallet.kill();
        outage
    };
    let (_, outage) = tokio::join!(wallet.complete("u", &ticket), killing);
    wallet.end().await;
    outage
}
