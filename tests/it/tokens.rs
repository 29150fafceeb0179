//! Fresh tokens: gets, refreshes, the sweep (faults G2, G6, N1, P1, P2, P3).

use std::collections::HashSet;
use std::time::Duration;

use serde_json::Value;
use token_wallet::proto::v1;
use token_wallet::proto::v1::batch_get_access_tokens_response::result::Result as BatchResult;
use token_wallet::sandbox::{Effect, Options, Person, Rotation, Rule};
use tonic::Code;

use crate::support::harness::{Harness, on_both_engines, reason, until};

fn min_ttl(user: &str, seconds: i64) -> v1::GetAccessTokenRequest {
    let min_ttl = Some(prost_types::Duration { seconds, nanos: 0 });
    v1::GetAccessTokenRequest { user_id: user.into(), min_ttl, ..Default::default() }
}

/// No refresh token was presented twice.
fn assert_each_redeemed_once(harness: &Harness) {
    let presented: Vec<_> =
        harness.refreshes().into_iter().filter_map(|request| request.presented.refresh_token).collect();
    let distinct: HashSet<_> = presented.iter().collect();
    assert_eq!(distinct.len(), presented.len(), "a refresh token was redeemed twice");
}

on_both_engines! {
    async fn a_linked_account_serves_a_token_that_the_provider_accepts(engine) {
        let harness = Harness::start(engine).await;
        let account = harness.link("demo-user", "demo").await;
        let token = harness.get("demo-user").await.unwrap();
        assert!(harness.is_accepted(&token.access_token).await);
        assert_eq!(token.external_account_id, account.id);
        assert_eq!(token.provider_account_id, "person-demo");
        assert_eq!(token.token_type.to_lowercase(), "bearer");
        assert_eq!(token.expire_time.unwrap().seconds, 1_800_000_000 + 3_600);
        assert!(harness.refreshes().is_empty(), "a fresh token needs no refresh");
    }

    async fn an_expired_token_is_refreshed_before_it_is_served(engine) {
        let harness = Harness::start(engine).await;
        harness.link("u", "demo").await;
        let first = harness.get("u").await.unwrap().access_token;
        harness.pass(Duration::from_hours(2));
        let second = harness.get("u").await.unwrap();
        assert_ne!(first, second.access_token);
        assert!(harness.is_accepted(&second.access_token).await);
        assert_eq!(second.expire_time.unwrap().seconds, 1_800_000_000 + 7_200 + 3_600);
        assert_each_redeemed_once(&harness);
    }

    async fn g2_min_ttl_is_kept_up_to_half_and_causes_no_refresh_per_call(engine) {
        let harness = Harness::start(engine).await;
        harness.link("u", "demo").await;
        harness.pass(Duration::from_mins(31));
        let first = harness.get_with(min_ttl("u", i64::MAX / 2)).await.unwrap();
        assert_eq!(first.expire_time.unwrap().seconds, 1_800_000_000 + 31 * 60 + 3_600, "the true expiry is told");
        for _ in 0..5 {
            assert_eq!(harness.get_with(min_ttl("u", 315_576_000_000)).await.unwrap().access_token, first.access_token);
        }
        assert_eq!(harness.refreshes().len(), 1);
        let refused = harness.get_with(min_ttl("u", -1)).await.unwrap_err();
        assert_eq!((refused.code(), reason(&refused).as_str()), (Code::InvalidArgument, "INVALID_FIELD"));
        assert!(refused.message().contains("min_ttl"));
    }

    async fn n1_a_thousand_gets_of_an_expired_grant_cause_one_token_request(engine) {
        let harness = Harness::start(engine).await;
        harness.link("u", "demo").await;
        harness.pass(Duration::from_hours(2));
        harness.sandbox.set_faults([Rule::refresh(Effect::Hold)]);
        let gets: Vec<_> = (0..1_000)
            .map(|_| {
                let mut wallet = harness.wallet();
                let request = v1::GetAccessTokenRequest {
                    user_id: "u".into(),
                    provider: "sandbox".into(),
                    ..Default::default()
                };
                tokio::spawn(async move { wallet.get_access_token(request).await.map(|answer| answer.into_inner().access_token) })
            })
            .collect();
        harness.sandbox.wait_held(1).await;
        harness.sandbox.release();
        let mut tokens = HashSet::new();
        for get in gets {
            tokens.insert(get.await.unwrap().unwrap());
        }
        assert_eq!(tokens.len(), 1, "all get the same token");
        assert_eq!(harness.refreshes().len(), 1, "for one request");
    }

    async fn n1_a_thousand_callers_who_leave_at_once_still_cause_one_refresh_and_it_is_stored(engine) {
        let harness = Harness::start(engine).await;
        harness.link("u", "demo").await;
        harness.pass(Duration::from_hours(2));
        harness.sandbox.set_faults([Rule::refresh(Effect::Hold)]);
        let gets: Vec<_> = (0..1_000)
            .map(|_| {
                let mut wallet = harness.wallet();
                let request = v1::GetAccessTokenRequest {
                    user_id: "u".into(),
                    provider: "sandbox".into(),
                    ..Default::default()
                };
                tokio::spawn(async move {
                    let get = wallet.get_access_token(request);
                    tokio::time::timeout(Duration::from_millis(1), get).await.is_err()
                })
            })
            .collect();
        let mut left = 0;
        for get in gets {
            left += usize::from(get.await.unwrap());
        }
        assert_eq!(left, 1_000, "the refresh is held: nobody can have been answered");
        // Some call must have come through before it was cancelled; this one surely does, and leaves too.
        let patient = harness.get("u");
        let _ = tokio::time::timeout(Duration::from_millis(80), patient).await;
        harness.sandbox.wait_held(1).await;
        harness.sandbox.release();
        until("the refreshed token is stored", async || {
            // A thousand callers may keep this process from connecting in time; the sweep tries again then.
            harness.pass(Duration::from_secs(1));
            harness.database().await.number("SELECT committed_fence FROM grants").await == 1
        })
        .await;
        assert!(harness.is_accepted(&harness.get("u").await.unwrap().access_token).await);
        assert_eq!(harness.refreshes().len(), 1);
    }

    async fn g6_a_refresh_whose_caller_cancels_completes_and_serves_the_next_call(engine) {
        let harness = Harness::start(engine).await;
        harness.link("u", "demo").await;
        harness.pass(Duration::from_hours(2));
        harness.sandbox.set_faults([Rule::refresh(Effect::Hold).after()]);
        let mut wallet = harness.wallet();
        let get = tokio::spawn(async move {
            let request = v1::GetAccessTokenRequest { user_id: "u".into(), provider: "sandbox".into(), ..Default::default() };
            wallet.get_access_token(request).await
        });
        harness.sandbox.wait_held(1).await;
        get.abort();
        harness.sandbox.release();
        let token = harness.get("u").await.unwrap().access_token;
        assert!(harness.is_accepted(&token).await);
        assert_eq!(harness.refreshes().len(), 1);
    }

    async fn g6_a_caller_that_times_out_hears_why_and_the_refresh_goes_on(engine) {
        let harness = Harness::start(engine).await;
        harness.link("u", "demo").await;
        harness.pass(Duration::from_hours(2));
        harness.sandbox.set_faults([Rule::refresh(Effect::Hold).after()]);
        until("the wallet's answer is here before the client's own patience ends", async || {
            let message =
                v1::GetAccessTokenRequest { user_id: "u".into(), provider: "sandbox".into(), ..Default::default() };
            let mut request = tonic::Request::new(message);
            request.set_timeout(Duration::from_millis(300));
            harness.wallet().get_access_token(request).await.unwrap_err().code() == Code::DeadlineExceeded
        })
        .await;
        harness.sandbox.wait_held(1).await;
        harness.sandbox.release();
        assert!(harness.is_accepted(&harness.get("u").await.unwrap().access_token).await);
        assert_eq!(harness.refreshes().len(), 1);
    }

    async fn p1_a_refresh_answer_without_a_refresh_token_keeps_the_old_one(engine) {
        let harness = Harness::start(engine).await;
        harness.link("u", "demo").await;
        let put = |value: Value| Effect::set("refresh_token", value);
        for effect in [Effect::omit("refresh_token"), put("".into()), put(Value::Null)] {
            harness.pass(Duration::from_hours(2));
            harness.sandbox.set_faults([Rule::refresh(effect.clone())]);
            let token = harness.get("u").await.unwrap().access_token;
            assert!(harness.is_accepted(&token).await, "{effect:?}");
        }
        let presented: HashSet<_> =
            harness.refreshes().into_iter().map(|request| request.presented.refresh_token).collect();
        assert_eq!(presented.len(), 1, "the one refresh token served three times");
        harness.sandbox.clear_faults();
        harness.pass(Duration::from_hours(2));
        harness.get("u").await.unwrap();
        assert_eq!(harness.refreshes().len(), 4);
    }

    async fn p2_an_odd_expires_in_is_neither_an_overflow_nor_a_hot_loop(engine) {
        let options = Options { refresh_ttl: Duration::from_hours(24 * 10_000), ..Options::default() };
        let harness = Harness::with(engine, options).await;
        harness.link("u", "demo").await;
        for (raw, lives) in [
            (None, 3_600),
            (Some("null"), 3_600),
            (Some("\"1800\""), 1_800),
            (Some("1800.9"), 1_800),
            (Some("0"), 3_600),
            (Some("-7"), 3_600),
            (Some("\"soon\""), 3_600),
            (Some("1000000000000000000"), 400 * 86_400),
        ] {
            harness.pass(Duration::from_hours(24 * 401));
            let effect = raw.map_or(Effect::omit("expires_in"), |raw| Effect::raw("expires_in", raw));
            harness.sandbox.set_faults([Rule::refresh(effect)]);
            let before = harness.refreshes().len();
            let now = harness.clock.now().millis() / 1000;
            for _ in 0..3 {
                let token = harness.get("u").await.unwrap();
                assert_eq!(token.expire_time.unwrap().seconds - now, lives, "{raw:?}");
            }
            assert_eq!(harness.refreshes().len() - before, 1, "{raw:?}");
        }
        assert_each_redeemed_once(&harness);
    }

    async fn p3_a_token_that_lives_20_s_is_swept_only_while_it_is_asked_for(engine) {
        let options = Options { token_ttl: Duration::from_secs(20), ..Options::default() };
        let harness = Harness::with(engine, options).await;
        harness.link("u", "demo").await;
        // Asked for: the sweep refreshes it ahead, and a get finds it fresh.
        for round in 1..=3 {
            harness.pass(Duration::from_secs(10));
            until("the sweep has refreshed it", async || harness.refreshes().len() == round).await;
            until("the sweep has stored it", async || {
                harness.database().await.number("SELECT committed_fence FROM grants").await == i64::try_from(round).unwrap()
            })
            .await;
            assert!(harness.is_accepted(&harness.get("u").await.unwrap().access_token).await);
            assert_eq!(harness.refreshes().len(), round, "served without a refresh of its own");
        }
        // Above its floor of 6.7 s but below the margin it is still served; nothing loops.
        harness.pass(Duration::from_secs(250));
        harness.turns("sweep", 2).await;
        harness.link("other", "alice").await;
        // Slowly enough for the sweep, which runs each second, to meet it while it counts as asked for.
        until("the sweep has turned", async || {
            harness.pass(Duration::from_secs(2));
            harness.refreshes().len() > 3
        })
        .await;
        let families: HashSet<_> = harness.refreshes()[3..].iter().map(|request| request.family.clone()).collect();
        assert_eq!(families.len(), 1, "only the grant that is asked for is swept");
        assert!(harness.is_accepted(&harness.get("u").await.unwrap().access_token).await, "the next get waits for one refresh");
        assert_each_redeemed_once(&harness);
    }

    async fn due_tokens_are_refreshed_ahead_without_a_get(engine) {
        let harness = Harness::start(engine).await;
        for (user, person) in [("a", "demo"), ("b", "alice"), ("c", "bob")] {
            harness.link(user, person).await;
        }
        harness.pass(Duration::from_mins(56));
        until("the sweep has refreshed all three", async || {
            harness.database().await.number("SELECT COUNT(*) FROM grants WHERE committed_fence = 1").await == 3
        })
        .await;
        for user in ["a", "b", "c"] {
            assert!(harness.is_accepted(&harness.get(user).await.unwrap().access_token).await);
        }
        assert_eq!(harness.refreshes().len(), 3);
        assert_each_redeemed_once(&harness);
    }

    async fn a_refresh_that_outlives_its_lease_is_not_sent_again_by_the_sweep(engine) {
        let harness = Harness::start(engine).await;
        harness.link("u", "demo").await;
        harness.sandbox.set_faults([Rule::refresh(Effect::Hold).after()]);
        harness.pass(Duration::from_mins(56));
        harness.sandbox.wait_held(1).await;
        // The clock steps, or the store was away: the lease is over and the answer is not stored.
        harness.pass(Duration::from_secs(30));
        let database = harness.database().await;
        harness.turns("sweep", 2).await;
        assert_eq!(harness.refreshes().len(), 1, "one redemption in flight");
        harness.sandbox.release();
        until("the answer is stored", async || database.number("SELECT committed_fence FROM grants").await == 1).await;
        let leased = "SELECT COUNT(*) FROM grants WHERE lease_until IS NOT NULL";
        assert_eq!(database.number(leased).await, 0);
        assert!(harness.is_accepted(&harness.get("u").await.unwrap().access_token).await);
        assert_each_redeemed_once(&harness);
    }

    async fn s8_once_told_to_stop_no_further_refresh_is_begun(engine) {
        let names: Vec<String> = (0..20).map(|number| format!("p{number}")).collect();
        let people = names.iter().map(|name| Person::named(name)).collect();
        let mut harness = Harness::with(engine, Options { people, ..Options::default() }).await;
        for name in &names {
            harness.link(name, name).await;
        }
        harness.sandbox.set_faults([Rule::refresh(Effect::Hold).after()]);
        harness.pass(Duration::from_mins(56));
        harness.sandbox.wait_held(11).await;
        let (grpc, http) = (harness.addresses().grpc, harness.http.clone());
        let release = format!("{}/_sandbox/faults/release", harness.sandbox.base_url());
        let releasing = tokio::spawn(async move {
            while tokio::net::TcpStream::connect(grpc).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            http.post(release).send().await.unwrap();
        });
        harness.stop().await;
        releasing.await.unwrap();
        assert_eq!(harness.refreshes().len(), 11, "what would have to be cut off is not begun");
        let database = harness.database().await;
        assert_eq!(database.number("SELECT COUNT(*) FROM grants WHERE committed_fence = 1").await, 11);
        assert_eq!(database.number("SELECT COUNT(*) FROM grants WHERE lease_until IS NOT NULL").await, 0);
    }

    async fn p6_one_refusal_is_not_believed_and_two_end_the_grant(engine) {
        let harness = Harness::start(engine).await;
        let account = harness.link("u", "demo").await;
        harness.pass(Duration::from_hours(2));
        harness.sandbox.set_faults([Rule::refresh(Effect::error(400, "invalid_grant"))]);
        let refused = harness.get("u").await.unwrap_err();
        assert_eq!(reason(&refused), "PROVIDER_UNAVAILABLE", "{refused}");
        assert_eq!(reason(&harness.get("u").await.unwrap_err()), "PROVIDER_UNAVAILABLE", "no request for each call");
        assert_eq!(harness.refreshes().len(), 1);
        harness.pass(Duration::from_secs(6));
        until("the refusal is confirmed", async || {
            harness.get("u").await.is_err_and(|status| reason(&status) == "REAUTHORIZATION_REQUIRED")
        })
        .await;
        harness.pass(Duration::from_hours(1));
        assert_eq!(reason(&harness.get("u").await.unwrap_err()), "REAUTHORIZATION_REQUIRED");
        assert_eq!(harness.refreshes().len(), 2, "and no further request");
        let events = harness.database().await.events().await;
        assert_eq!(events, ["account.linked", "account.reauthorization_required"]);
        let request = v1::GetExternalAccountRequest { external_account_id: account.id };
        let shown = harness.accounts().get_external_account(request).await.unwrap().into_inner().external_account.unwrap();
        assert_eq!(shown.state(), v1::external_account::State::ReauthorizationRequired);
        assert_eq!(shown.state_reason, "invalid_grant");
        // A new consent brings it back, as the same account.
        harness.sandbox.clear_faults();
        assert_eq!(harness.link("u", "demo").await.id, shown.id);
        assert!(harness.is_accepted(&harness.get("u").await.unwrap().access_token).await);
    }

    async fn p5_a_refusal_that_does_not_repeat_asks_nobody_to_consent_again(engine) {
        let harness = Harness::start(engine).await;
        harness.link("u", "demo").await;
        harness.pass(Duration::from_hours(2));
        harness.sandbox.set_faults([Rule::refresh(Effect::error(400, "invalid_grant")).times(1)]);
        harness.get("u").await.unwrap_err();
        harness.pass(Duration::from_secs(6));
        until("it is served again", async || harness.get("u").await.is_ok()).await;
        assert_eq!(harness.told("u").await, "OK");
        assert_eq!(harness.account("u").await.state(), v1::external_account::State::Active);
        assert_eq!(harness.database().await.events().await, ["account.linked"]);
        assert_eq!(harness.refreshes().iter().map(|request| request.status).collect::<Vec<_>>(), [400, 200]);
        harness.assert_each_redeemed_once();
    }

    async fn p10_an_unreadable_answer_is_not_followed_by_another_request_within_the_lease(engine) {
        let harness = Harness::with(engine, Options { rotation: Rotation::Grace(Duration::from_mins(5)), ..Options::default() }).await;
        harness.link("u", "demo").await;
        harness.pass(Duration::from_hours(2));
        harness.sandbox.set_faults([Rule::refresh(Effect::Truncate(20))]);
        assert_eq!(reason(&harness.get("u").await.unwrap_err()), "PROVIDER_UNAVAILABLE");
        harness.sandbox.clear_faults();
        harness.pass(Duration::from_secs(19));
        assert_eq!(reason(&harness.get("u").await.unwrap_err()), "PROVIDER_UNAVAILABLE", "the provider may have acted");
        assert_eq!(harness.refreshes().len(), 1);
        harness.pass(Duration::from_secs(2));
        assert!(harness.is_accepted(&harness.get("u").await.unwrap().access_token).await);
        assert_eq!(harness.refreshes().len(), 2);
    }

    async fn n2_an_outage_ends_nothing_and_the_token_at_hand_is_served_while_it_lives(engine) {
        let harness = Harness::start(engine).await;
        harness.link("u", "demo").await;
        harness.sandbox.set_faults([Rule::refresh(Effect::error(503, "temporarily_unavailable"))]);
        harness.pass(Duration::from_secs(3_600 - 45));
        assert!(harness.is_accepted(&harness.get("u").await.unwrap().access_token).await, "45 s are left");
        harness.pass(Duration::from_mins(1));
        let refused = harness.get("u").await.unwrap_err();
        assert_eq!((refused.code(), reason(&refused).as_str()), (Code::Unavailable, "PROVIDER_UNAVAILABLE"));
        harness.sandbox.clear_faults();
        harness.pass(Duration::from_hours(1));
        assert!(harness.is_accepted(&harness.get("u").await.unwrap().access_token).await);
        assert_eq!(harness.database().await.events().await, ["account.linked"]);
    }

    async fn a_batch_answers_in_order_each_with_a_token_or_its_own_error(engine) {
        let harness = Harness::start(engine).await;
        harness.link("a", "demo").await;
        harness.link("b", "alice").await;
        let request = |user: &str| v1::GetAccessTokenRequest { user_id: user.into(), provider: "sandbox".into(), ..Default::default() };
        let requests = vec![request("a"), request("nobody"), request("b"), request("")];
        let batch = v1::BatchGetAccessTokensRequest { requests };
        let answer = harness.wallet().batch_get_access_tokens(batch).await.unwrap().into_inner();
        let told: Vec<_> = answer
            .results
            .into_iter()
            .map(|result| match result.result.unwrap() {
                BatchResult::Token(token) => token.provider_account_id,
                BatchResult::Error(status) => format!("{} with {} details", status.code, status.details.len()),
            })
            .collect();
        assert_eq!(told, ["person-demo", "5 with 1 details", "person-alice", "3 with 2 details"]);
        for requests in [Vec::new(), vec![request("a"); 101]] {
            let batch = v1::BatchGetAccessTokensRequest { requests };
            assert_eq!(harness.wallet().batch_get_access_tokens(batch).await.unwrap_err().code(), Code::InvalidArgument);
        }
    }

    async fn scopes_that_were_not_granted_are_named(engine) {
        let harness = Harness::start(engine).await;
        harness.link("u", "demo").await;
        let request = v1::GetAccessTokenRequest {
            user_id: "u".into(),
            required_scopes: vec!["email".into(), "files.write".into()],
            ..Default::default()
        };
        let refused = harness.get_with(request).await.unwrap_err();
        assert_eq!(reason(&refused), "MISSING_SCOPES");
        let details = tonic_types::StatusExt::get_error_details(&refused);
        assert_eq!(details.error_info().unwrap().metadata["scopes"], "files.write");
    }

    async fn with_two_accounts_the_caller_must_say_which(engine) {
        let harness = Harness::start(engine).await;
        harness.link("u", "demo").await;
        let alice = harness.link("u", "alice").await;
        assert_eq!(reason(&harness.get("u").await.unwrap_err()), "DEFAULT_ACCOUNT_UNSET");
        let of = |account: &str| v1::GetAccessTokenRequest {
            user_id: "u".into(),
            external_account_id: account.into(),
            ..Default::default()
        };
        assert_eq!(harness.get_with(of(&alice.id)).await.unwrap().provider_account_id, "person-alice");
        let other = harness.link("somebody-else", "bob").await;
        assert_eq!(reason(&harness.get_with(of(&other.id)).await.unwrap_err()), "ACCOUNT_NOT_FOUND", "never another user's");
    }

    async fn an_unlinked_account_serves_nothing_and_a_late_answer_does_not_bring_it_back(engine) {
        let harness = Harness::start(engine).await;
        let account = harness.link("u", "demo").await;
        harness.pass(Duration::from_hours(2));
        harness.sandbox.set_faults([Rule::refresh(Effect::Hold).after()]);
        let mut wallet = harness.wallet();
        let waiting = tokio::spawn(async move {
            let request = v1::GetAccessTokenRequest { user_id: "u".into(), provider: "sandbox".into(), ..Default::default() };
            wallet.get_access_token(request).await
        });
        harness.sandbox.wait_held(1).await;
        let delete = v1::DeleteExternalAccountRequest { external_account_id: account.id.clone() };
        harness.accounts().delete_external_account(delete.clone()).await.unwrap();
        assert_eq!(reason(&harness.get("u").await.unwrap_err()), "ACCOUNT_NOT_LINKED");
        harness.sandbox.release();
        assert_eq!(reason(&waiting.await.unwrap().unwrap_err()), "ACCOUNT_NOT_LINKED", "the late result is not served");
        harness.accounts().delete_external_account(delete).await.unwrap();
        assert_eq!(harness.database().await.events().await[..2], ["account.linked", "account.unlinked"]);
        assert_eq!(harness.database().await.number("SELECT COUNT(*) FROM grants WHERE is_current").await, 0);
        // Linking again makes a new account.
        harness.sandbox.clear_faults();
        assert_ne!(harness.link("u", "demo").await.id, account.id);
        assert!(harness.is_accepted(&harness.get("u").await.unwrap().access_token).await);
    }

    async fn a_restart_keeps_everything(engine) {
        let mut harness = Harness::start(engine).await;
        harness.link("u", "demo").await;
        let token = harness.get("u").await.unwrap().access_token;
        harness.restart().await;
        assert_eq!(harness.get("u").await.unwrap().access_token, token);
        harness.pass(Duration::from_hours(2));
        assert!(harness.is_accepted(&harness.get("u").await.unwrap().access_token).await);
    }
}
