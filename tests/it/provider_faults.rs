//! Providers that refuse or limit (faults P7, P8, P9, P11): what callers are told, and what was sent.

use std::time::Duration;

use token_wallet::proto::v1;
use token_wallet::proto::v1::external_account::State;
use token_wallet::sandbox::{DEFAULT_CLIENT_ID, Effect, Options, Reply, Rule};

use crate::support::harness::{Engine, Harness, on_both_engines, reason};
use crate::support::oracle::{counts, wait};

/// It is dead.
const DEAD: Duration = Duration::from_hours(2);

const fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

const fn mins(mins: u64) -> Duration {
    Duration::from_mins(mins)
}

on_both_engines! {
    async fn p7_a_third_refused_at_once_ends_no_grant_and_all_recover_with_the_provider(engine) {
        const USERS: usize = 30;
        let (harness, refused) = with_a_third_refused(engine, USERS).await;
        let served = USERS - refused;
        let wave = counts([("OK", served), ("PROVIDER_UNAVAILABLE", refused)]);
        assert_eq!(harness.all_told(USERS).await, wave);
        for _ in 0..5 {
            harness.live(mins(2), secs(10)).await;
            assert_eq!(harness.all_told(USERS).await, wave);
        }
        let asked = harness.refreshes().iter().filter(|request| request.status == 400).count();
        assert!(asked <= 25 * refused, "{asked} requests for {refused} grants in ten minutes");
        harness.sandbox.clear_faults();
        harness.live(mins(16), mins(1)).await;
        assert_eq!(harness.all_told(USERS).await, counts([("OK", USERS)]));
        assert_eq!(harness.events().await, counts([("account.linked", USERS)]));
        harness.assert_each_redeemed_once();
    }

    async fn p7_half_an_hour_after_the_last_new_suspect_what_is_still_refused_ends(engine) {
        const USERS: usize = 30;
        let (harness, refused) = with_a_third_refused(engine, USERS).await;
        harness.live(mins(29), secs(30)).await;
        assert_eq!(harness.events().await, counts([("account.linked", USERS)]), "none is ended before");
        harness.live(mins(17), secs(30)).await;
        let ended = counts([("OK", USERS - refused), ("REAUTHORIZATION_REQUIRED", refused)]);
        assert_eq!(harness.all_told(USERS).await, ended);
        let told = counts([("account.linked", USERS), ("account.reauthorization_required", refused)]);
        assert_eq!(harness.events().await, told);
        let asked = harness.refreshes().iter().filter(|request| request.status == 400).count();
        harness.live(mins(20), mins(1)).await;
        assert_eq!(harness.refreshes().iter().filter(|request| request.status == 400).count(), asked, "and never again");
        harness.assert_each_redeemed_once();
    }

    async fn p7_a_grant_refused_now_and_then_keeps_no_verdicts_frozen_but_five_within_five_minutes_do(engine) {
        const USERS: usize = 30;
        let (harness, _) = with_a_third_refused(engine, USERS).await;
        let begin = harness.clock.now();
        harness.sandbox.clear_faults();
        let frozen = async |minute: u64| {
            harness.live(begin.plus(mins(minute)).since(harness.clock.now()), mins(1)).await;
            harness.provider_state().await == v1::ProviderState::Frozen
        };
        assert!(frozen(16).await);
        assert_eq!(harness.all_told(USERS).await, counts([("OK", USERS)]));
        revoke(&harness, 0).await;
        assert!(frozen(24).await);
        for n in 1..6 {
            revoke(&harness, n).await;
        }
        assert!(frozen(32).await, "for longer, by the five");
        revoke(&harness, 6).await;
        assert!(frozen(53).await);
        assert!(!frozen(56).await, "not for longer by the one");
        harness.live(mins(20), mins(1)).await;
        let told = counts([("OK", USERS - 7), ("REAUTHORIZATION_REQUIRED", 7)]);
        assert_eq!(harness.all_told(USERS).await, told);
        assert_eq!(harness.counted("verdicts_frozen_total").await, 1);
    }

    async fn p7_an_operator_thaws_the_verdicts_and_the_next_refusal_counts(engine) {
        const USERS: usize = 30;
        let (harness, refused) = with_a_third_refused(engine, USERS).await;
        harness.live(mins(1), secs(10)).await;
        let update = v1::UpdateProviderRequest {
            provider: "sandbox".into(),
            update_mask: Some(prost_types::FieldMask { paths: vec!["verdicts_frozen".into()] }),
            ..Default::default()
        };
        harness.providers().update_provider(update).await.unwrap();
        assert_eq!(harness.provider_state().await, v1::ProviderState::Ok);
        harness.live(mins(3), secs(15)).await;
        let ended = counts([("OK", USERS - refused), ("REAUTHORIZATION_REQUIRED", refused)]);
        assert_eq!(harness.all_told(USERS).await, ended);
        harness.assert_each_redeemed_once();
    }

    async fn p8_with_two_secrets_the_change_at_the_provider_is_not_noticed(engine) {
        let harness = Harness::with_users(engine, 2, Options::default()).await;
        let new = v1::CreateProviderSecretRequest { provider: "sandbox".into(), client_secret: "second-secret".into(), ..Default::default() };
        harness.providers().create_provider_secret(new).await.unwrap();
        let mut settings = harness.sandbox.settings();
        settings.client_secrets.insert(DEFAULT_CLIENT_ID.into(), vec!["second-secret".into()]);
        harness.sandbox.set_settings(settings);
        harness.live(DEAD, mins(20)).await;
        assert_eq!(harness.all_told(2).await, counts([("OK", 2)]));
        let asked = harness.refreshes();
        let refused = asked.iter().filter(|request| request.status == 401).count();
        assert!((1..=2).contains(&refused), "the old one is tried once a grant at most: {asked:?}");
        assert_eq!(harness.provider_state().await, v1::ProviderState::Ok);
        harness.live(DEAD, mins(20)).await;
        assert_eq!(harness.all_told(2).await, counts([("OK", 2)]));
        let later = harness.refreshes();
        assert!(later[asked.len()..].iter().all(|request| request.status == 200), "the new one is used from then on");
        assert_eq!(harness.events().await, counts([("account.linked", 2)]));
        harness.assert_each_redeemed_once();
    }

    async fn p9_a_wait_in_seconds_as_a_date_or_absurd_is_kept_by_all(engine) {
        let harness = Harness::with_users(engine, 2, Options::default()).await;
        let texts = ["120", "0", "999999999999", "soon", "-5", "Fri, 31 Dec 9999 23:59:59 GMT", "Thu, 01 Jan 1970 00:00:00 GMT"];
        let waits = [(120, 180), (1, 2), (900, 900), (30, 45), (30, 45), (900, 900), (1, 2)];
        let mut asked: Vec<_> = texts.map(|text| Some(text.to_owned())).into_iter().zip(waits).collect();
        asked.push((None, (30, 45)));
        // What the clock shows in the round after these.
        let now = harness.clock.now().plus(DEAD * 9);
        let then = std::time::UNIX_EPOCH + Duration::from_millis(now.millis().unsigned_abs()) + mins(5);
        asked.push((Some(httpdate::fmt_http_date(then)), (299, 450)));
        for (round, (asked, (least, most))) in (1..).zip(asked) {
            let begin = now.minus(DEAD * (9 - round));
            harness.pass(begin.since(harness.clock.now()));
            let mut reply = Reply::new(429);
            if let Some(text) = &asked {
                reply = reply.header("retry-after", text);
            }
            harness.sandbox.set_faults([Rule::refresh(Effect::Answer(reply))]);
            let first = harness.get("u0").await.unwrap_err();
            assert_eq!(reason(&first), "PROVIDER_UNAVAILABLE", "{asked:?}");
            harness.sandbox.clear_faults();
            let sent = harness.refreshes().len();
            let second = harness.get("u1").await.unwrap_err();
            let told = wait(&second);
            let rounded = told + Duration::from_millis(500);
            assert!(rounded >= secs(least) && told <= secs(most), "{asked:?}: {told:?}");
            assert_eq!(harness.provider_state().await, v1::ProviderState::Paused, "{asked:?}");
            harness.pass(secs(least - 1));
            harness.work().await;
            assert_eq!(harness.refreshes().len(), sent, "{asked:?}: nothing was sent meanwhile");
            harness.live(secs(most) + secs(6), secs(30)).await;
            assert_eq!(harness.all_told(2).await, counts([("OK", 2)]), "{asked:?}");
        }
        assert_eq!(harness.events().await, counts([("account.linked", 2)]));
        harness.assert_each_redeemed_once();
    }

    async fn p11_a_dead_grant_is_told_by_the_catalogs_codes_whatever_the_status(engine) {
        let slack = r#"{"ok": false, "error": "token_revoked"}"#;
        let answers = [
            (Reply::new(400).error("invalid_grant").description("revoked"), "invalid_grant"),
            (Reply::new(401).error("invalid_grant"), "invalid_grant"),
            (Reply::new(403).error("invalid_grant"), "invalid_grant"),
            (Reply::new(200).error("bad_refresh_token"), "bad_refresh_token"),
            (Reply::new(200).body(slack), "token_revoked"),
        ];
        let harness = Harness::with_users(engine, answers.len(), Options::default()).await;
        let mut asked = 0;
        for (n, (answer, code)) in answers.into_iter().enumerate() {
            let user = format!("u{n}");
            harness.sandbox.set_faults([Rule::refresh(Effect::Answer(answer)).person(format!("p{n}"))]);
            harness.pass(DEAD);
            assert_eq!(harness.told(&user).await, "PROVIDER_UNAVAILABLE", "{code}: not at once");
            harness.live(secs(8), secs(2)).await;
            assert_eq!(harness.told(&user).await, "REAUTHORIZATION_REQUIRED");
            let ended = harness.account(&user).await;
            assert_eq!((ended.state(), ended.state_reason.as_str()), (State::ReauthorizationRequired, code));
            asked += 2;
            let refused = harness.refreshes().iter().filter(|request| !request.rules.is_empty()).count();
            assert_eq!(refused, asked, "two requests each, and no more");
        }
        assert_eq!(harness.events().await["account.reauthorization_required"], 5);
    }

    async fn p11_a_code_that_the_catalog_does_not_know_ends_nothing(engine) {
        let harness = Harness::start(engine).await;
        harness.link("u", "demo").await;
        for answer in [Reply::new(200).error("some_error"), Reply::new(403).error("access_denied"), Reply::new(400).error("")] {
            harness.sandbox.set_faults([Rule::refresh(Effect::Answer(answer.clone()))]);
            harness.pass(DEAD);
            harness.live(mins(10), secs(30)).await;
            assert_eq!(harness.told("u").await, "PROVIDER_UNAVAILABLE", "{answer:?}");
            harness.sandbox.clear_faults();
            harness.live(mins(21), mins(1)).await;
            assert_eq!(harness.told("u").await, "OK", "{answer:?}");
        }
        assert_eq!(harness.events().await, counts([("account.linked", 1)]));
        harness.assert_each_redeemed_once();
    }
}

/// The provider ends the grant of user and person `n`, which is noticed.
async fn revoke(harness: &Harness, n: usize) {
    let user_id = format!("u{n}");
    let rejected_access_token = harness.get(&user_id).await.unwrap().access_token;
    assert_eq!(harness.sandbox.revoke(&format!("p{n}")).unwrap(), 1);
    let request = v1::GetAccessTokenRequest { user_id, rejected_access_token, ..Default::default() };
    assert_eq!(reason(&harness.get_with(request).await.unwrap_err()), "PROVIDER_UNAVAILABLE");
}

/// As many users whose tokens are dead, a third of whom the provider refuses; how many those are. Its verdicts are
/// frozen.
async fn with_a_third_refused(engine: Engine, users: usize) -> (Harness, usize) {
    let harness = Harness::with_users(engine, users, Options::default()).await;
    harness.sandbox.set_faults([Rule::refresh(Effect::error(400, "invalid_grant")).share_of_grants(0.34)]);
    harness.pass(DEAD);
    harness.work().await;
    let requests = harness.refreshes();
    let refused = requests.iter().filter(|request| request.status == 400).count();
    assert!((6..=15).contains(&refused), "{refused}");
    assert_eq!(harness.provider_state().await, v1::ProviderState::Frozen);
    assert_eq!(harness.counted("verdicts_frozen_total").await, 1);
    (harness, refused)
}
