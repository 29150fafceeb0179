//! Providers whose answers are none, or odd, or that cannot be reached (faults P4, P10, P12, P13, P19): what callers
//! are told, and what was sent.

use std::collections::BTreeMap;
use std::time::Duration;

use token_wallet::sandbox::{
    DEFAULT_CLIENT_ID, DEFAULT_CLIENT_SECRET, Effect, Options, Person, Repeated, Reply, Request, Rule,
};

use crate::support::canary::{Canary, Searcher};
use crate::support::harness::{BEGIN, Harness, on_both_engines, reason, until};
use crate::support::oracle::counts;
use crate::support::service::Wallet;

/// It is dead.
const DEAD: Duration = Duration::from_hours(2);

const fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

const fn mins(mins: u64) -> Duration {
    Duration::from_mins(mins)
}

/// How long after the request before it each was sent.
fn gaps(requests: &[Request]) -> Vec<i64> {
    requests.windows(2).map(|two| two[1].time - two[0].time).collect()
}

on_both_engines! {
    async fn p4_the_same_token_and_its_end_come_back_and_nothing_loops(engine) {
        let harness = Harness::start(engine).await;
        harness.link("u", "demo").await;
        let first = harness.get("u").await.unwrap();
        harness.sandbox.set_faults([Rule::refresh(Effect::Repeat(Repeated::AccessToken))]);
        harness.pass(mins(55));
        for _ in 0..95 {
            harness.live(secs(3), secs(3)).await;
            let token = harness.get("u").await.unwrap();
            assert_eq!(token.access_token, first.access_token);
            assert!(token.expire_time.unwrap().seconds <= first.expire_time.unwrap().seconds, "the true end is told");
            if harness.clock.now() > BEGIN.plus(mins(60)).minus(secs(12)) {
                break;
            }
        }
        let asked = harness.refreshes();
        assert!((2..=10).contains(&asked.len()), "{asked:?}");
        assert!(gaps(&asked).iter().all(|gap| *gap > 3_000), "{:?}", gaps(&asked));
        harness.sandbox.clear_faults();
        harness.pass(mins(1));
        assert_ne!(harness.get("u").await.unwrap().access_token, first.access_token);
        assert_eq!(harness.told("u").await, "OK");
        harness.assert_each_redeemed_once();
    }

    async fn p10_what_is_no_answer_is_an_outage_and_the_next_try_is_not_refused(engine) {
        let harness = Harness::start(engine).await;
        harness.link("u", "demo").await;
        let page = || Reply::new(502).body("<h1>invalid_grant</h1>").header("content-type", "text/html");
        let answers = [
            Reply::new(500),
            page(),
            Reply::new(503).error("temporarily_unavailable"),
            Reply::new(504).body("{\"message\": \"upstream timed out\"}"),
            Reply::new(408),
            Reply::new(400).error("invalid_request"),
            Reply::new(403).body("forbidden"),
            Reply::new(404),
            Reply::new(307).header("location", "http://169.254.169.254/"),
        ];
        for answer in answers {
            harness.pass(DEAD);
            let before = harness.refreshes().len();
            harness.sandbox.set_faults([Rule::refresh(Effect::Answer(answer.clone()))]);
            assert_eq!(harness.told("u").await, "PROVIDER_UNAVAILABLE", "{answer:?}");
            harness.sandbox.clear_faults();
            // Before the sweep tries again.
            harness.pass(secs(1));
            assert_eq!(harness.told("u").await, "PROVIDER_UNAVAILABLE", "{answer:?}: not at each call");
            harness.pass(secs(5));
            assert_eq!(harness.told("u").await, "OK", "{answer:?}");
            assert_eq!(harness.refreshes().len() - before, 2, "{answer:?}");
        }
        assert_eq!(harness.events().await, counts([("account.linked", 1)]));
        harness.assert_each_redeemed_once();
    }

    async fn p10_p12_an_unreadable_success_is_in_doubt_and_asked_about_after_the_lease(engine) {
        let harness = Harness::start(engine).await;
        harness.link("u", "demo").await;
        let html = || Reply::new(200).body("<h1>OK</h1>").header("content-type", "text/html");
        let effects = [
            Effect::Answer(Reply::new(200)),
            Effect::Answer(Reply::new(204)),
            Effect::Answer(html()),
            Effect::Answer(Reply::new(200).body("{\"access_token\": \"abc")),
            Effect::Answer(Reply::new(200).body("{}")),
            Effect::Huge(1 << 30),
            Effect::Nested(100_000),
        ];
        for (round, effect) in (1..).zip(effects) {
            harness.pass(DEAD);
            let before = harness.refreshes().len();
            harness.sandbox.set_faults([Rule::refresh(effect.clone())]);
            assert_eq!(harness.told("u").await, "PROVIDER_UNAVAILABLE", "{effect:?}");
            harness.sandbox.clear_faults();
            harness.live(secs(18), secs(3)).await;
            assert_eq!(harness.told("u").await, "PROVIDER_UNAVAILABLE", "{effect:?}: it may have been heard");
            assert_eq!(harness.refreshes().len() - before, 1, "{effect:?}");
            harness.live(secs(6), secs(3)).await;
            assert_eq!(harness.told("u").await, "OK", "{effect:?}");
            assert_eq!(harness.refreshes().len() - before, 2, "{effect:?}");
            assert_eq!(harness.counted("refreshes_in_doubt_total").await, round);
        }
        assert_eq!(harness.events().await, counts([("account.linked", 1)]));
        harness.assert_each_redeemed_once();
    }

    async fn p10_a_good_answer_of_another_type_or_with_a_byte_order_mark_is_taken(engine) {
        let harness = Harness::start(engine).await;
        harness.link("u", "demo").await;
        let html = BTreeMap::from([("content-type".to_owned(), "text/html".to_owned())]);
        for effect in [Effect::Headers(html), Effect::Bom] {
            harness.pass(DEAD);
            harness.sandbox.set_faults([Rule::refresh(effect.clone())]);
            assert_eq!(harness.told("u").await, "OK", "{effect:?}");
        }
        assert_eq!(harness.refreshes().len(), 2);
        harness.assert_each_redeemed_once();
    }

    async fn p10_the_body_of_an_error_is_not_logged(engine) {
        const CANARY: &str = "canary-body-8hTq2LmZx4Wv";
        let page = |status| Reply::new(status).body(format!("<h1>{CANARY}</h1>"));
        let unreadable = format!(r#"{{"access_token":"{CANARY}"#);
        let answers = [
            page(500),
            page(502),
            page(503),
            page(504),
            page(408),
            page(403),
            page(200),
            Reply::new(200).body(unreadable),
            Reply::new(500).error(CANARY).description(CANARY),
        ];
        let people = (0..answers.len()).map(|n| Person::named(&format!("u{n}"))).collect();
        let mut wallet = Wallet::new(engine, Options { people, ..Options::default() }, &[("RUST_LOG", "trace")]).await;
        wallet.start().await;
        wallet.configure(DEFAULT_CLIENT_SECRET).await;
        let searcher = Searcher::new(vec![Canary::new("body", CANARY)]);
        for (n, answer) in answers.into_iter().enumerate() {
            let user = format!("u{n}");
            wallet.link(&user, &user).await;
            let before = wallet.token_requests("refresh_token").len();
            wallet.sandbox.set_faults([Rule::refresh(Effect::Answer(answer.clone())).person(user.clone())]);
            wallet.age(&user).await;
            let refused = wallet.get(&user, "sandbox").await.unwrap_err();
            assert_eq!(reason(&refused), "PROVIDER_UNAVAILABLE", "{answer:?}");
            assert_eq!(searcher.find(format!("{refused:?}").as_bytes()), [], "{answer:?}");
            assert!(wallet.token_requests("refresh_token").len() > before, "{answer:?}");
        }
        wallet.terminate();
        assert!(wallet.end().await.success());
        let mut told = Vec::new();
        for log in wallet.folder().join("logs").read_dir().unwrap() {
            told.extend(std::fs::read(log.unwrap().path()).unwrap());
        }
        assert!(String::from_utf8_lossy(&told).contains("the token endpoint gave no token"));
        assert_eq!(searcher.find(&told), []);
    }

    async fn p13_p19_a_provider_that_cannot_be_reached_or_must_not_be_is_sent_nothing_and_ends_nothing(engine) {
        let harness = Harness::start(engine).await;
        harness.create_own("own", DEFAULT_CLIENT_ID).await;
        let ticket = harness.ticket_at("own", "u", "demo").await;
        harness.complete("u", &ticket).await.unwrap();
        let good = format!("{}/token", harness.sandbox.base_url());
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let plain = harness.sandbox.addr();
        for bad in [
            // Nobody listens; no such host; no TLS where there should be.
            format!("http://{free}/token"),
            "https://token-wallet.invalid/token".to_owned(),
            format!("https://{plain}/token"),
            // Special-use addresses: by number, and by a name.
            "https://169.254.169.254/token".to_owned(),
            "https://10.0.0.1/token".to_owned(),
            "http://169.254.169.254/token".to_owned(),
        ] {
            harness.point("own", &bad).await;
            harness.pass(DEAD);
            let get = || harness.get_at("own", "u");
            let before = harness.refreshes().len();
            let failed = get().await.unwrap_err();
            assert_eq!(reason(&failed), "PROVIDER_UNAVAILABLE", "{bad}");
            assert!(!failed.message().contains("169.254"), "{failed}");
            assert_eq!(harness.refreshes().len(), before, "{bad}");
            harness.point("own", &good).await;
            // It was surely not sent, so nothing is in doubt. The sweep may have tried too: then the wait is longer.
            until("it is refreshed", async || {
                harness.pass(secs(6));
                get().await.is_ok()
            })
            .await;
            assert!(harness.is_accepted(&get().await.unwrap().access_token).await, "{bad}");
            assert_eq!(harness.refreshes().len(), before + 1, "{bad}");
        }
        // No TLS where there should be is a security event too.
        assert_eq!(harness.events().await, counts([("account.linked", 1), ("provider.untrusted", 1)]));
        harness.assert_each_redeemed_once();
    }
}
