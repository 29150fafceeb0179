//! Providers changed while they are used, and what keeps requests away from them (faults P8, P9, N2, N5).

use std::time::Duration;

use prost_types::FieldMask;
use token_wallet::proto::v1;
use token_wallet::proto::v1::ProviderState;
use token_wallet::sandbox::{DEFAULT_CLIENT_SECRET, Effect, Options, Person, Rule};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::support::harness::{Engine, Harness, on_both_engines, reason, until};

/// What is refused, where.
fn refusing(status: u16, error: &str) -> Vec<Rule> {
    vec![Rule::refresh(Effect::error(status, error))]
}

/// A wallet with this many linked users, `u0` to …, whose tokens are dead, at a sandbox with these faults.
async fn with_dead_tokens(engine: Engine, users: usize, faults: Vec<Rule>) -> Harness {
    let people = (0..=users).map(|n| Person::named(&format!("p{n}"))).collect();
    let harness = Harness::with(engine, Options { people, ..Options::default() }).await;
    for n in 0..users {
        harness.link(&format!("u{n}"), &format!("p{n}")).await;
        // A link takes two of fifty requests a second.
        harness.pass(Duration::from_millis(50));
    }
    harness.sandbox.set_faults(faults);
    harness.pass(Duration::from_hours(2));
    harness
}

async fn provider(harness: &Harness) -> v1::Provider {
    let request = v1::GetProviderRequest { provider: "sandbox".into() };
    harness.providers().get_provider(request).await.unwrap().into_inner().provider.unwrap()
}

async fn state(harness: &Harness) -> ProviderState {
    provider(harness).await.health.unwrap().state()
}

/// Changes what `paths` name.
async fn update(harness: &Harness, paths: &[&str], request: v1::UpdateProviderRequest) -> Result<v1::Provider, Status> {
    let update_mask = Some(FieldMask { paths: paths.iter().map(|path| (*path).to_owned()).collect() });
    let provider = if request.provider.is_empty() { "sandbox".into() } else { request.provider.clone() };
    let request = v1::UpdateProviderRequest { provider, update_mask, ..request };
    harness.providers().update_provider(request).await.map(|answer| answer.into_inner().provider.unwrap())
}

async fn add_secret(harness: &Harness, provider: &str, secret: &str) -> Result<v1::ProviderSecret, Status> {
    let request = v1::CreateProviderSecretRequest {
        provider: provider.into(),
        client_secret: secret.into(),
        ..Default::default()
    };
    let answer = harness.providers().create_provider_secret(request).await;
    answer.map(|answer| answer.into_inner().provider_secret.unwrap())
}

async fn remove_secret(harness: &Harness, provider: &str, secret: &str) -> Result<(), Status> {
    let request = v1::DeleteProviderSecretRequest { provider: provider.into(), provider_secret_id: secret.into() };
    harness.providers().delete_provider_secret(request).await.map(drop)
}

async fn metric_is(harness: &Harness, line: &str) {
    until(line, async || {
        harness.http.get(harness.ops("/metrics")).send().await.unwrap().text().await.unwrap().contains(line)
    })
    .await;
}

on_both_engines! {
    async fn a_stale_etag_of_a_provider_is_a_conflict_and_changes_nothing(engine) {
        let harness = Harness::start(engine).await;
        let name = |display_name: &str, etag: &str| v1::UpdateProviderRequest {
            display_name: display_name.into(),
            etag: etag.into(),
            ..Default::default()
        };
        let before = provider(&harness).await;
        let changed = update(&harness, &["display_name"], name("mine", &before.etag)).await.unwrap();
        assert_ne!(changed.etag, before.etag);
        for etag in [before.etag.as_str(), "7", "no etag of ours"] {
            let refused = update(&harness, &["display_name"], name("theirs", etag)).await.unwrap_err();
            assert_eq!((refused.code(), reason(&refused).as_str()), (Code::Aborted, "CONFLICT"), "{etag}");
        }
        assert_eq!(provider(&harness).await, changed);
        let request = v1::ListProvidersRequest::default();
        let listed = harness.providers().list_providers(request).await.unwrap().into_inner().providers;
        assert_eq!(listed[0].etag, changed.etag);
        // Who names none changes it whatever it is.
        update(&harness, &["display_name"], name("any", "")).await.unwrap();
        // A pause, or a secret, is not a change of the configuration.
        let before = provider(&harness).await;
        add_secret(&harness, "sandbox", "another").await.unwrap();
        assert_eq!(provider(&harness).await.etag, before.etag);
    }

    async fn an_update_changes_what_its_mask_names_and_nothing_else(engine) {
        let harness = Harness::start(engine).await;
        let before = provider(&harness).await;
        assert_eq!((before.requests_per_second, before.max_in_flight), (50, 16));
        assert_eq!(before.health.unwrap(), v1::ProviderHealth { state: ProviderState::Ok.into(), ..Default::default() });
        let all = v1::UpdateProviderRequest {
            display_name: "Ours".into(),
            additional_scopes: vec!["files".into()],
            requests_per_second: 5,
            max_in_flight: 2,
            ..Default::default()
        };
        let named = update(&harness, &["requests_per_second"], all.clone()).await.unwrap();
        assert_eq!(named, v1::Provider { requests_per_second: 5, etag: named.etag.clone(), ..before.clone() });
        let paths = ["display_name", "additional_scopes", "requests_per_second", "max_in_flight"];
        let changed = update(&harness, &paths, all).await.unwrap();
        assert_eq!((changed.display_name.as_str(), changed.max_in_flight), ("Ours", 2));
        assert_eq!(changed.additional_scopes, ["files"]);
        assert_eq!(provider(&harness).await, changed);
        let back = update(&harness, &paths, v1::UpdateProviderRequest::default()).await.unwrap();
        assert_eq!(back, v1::Provider { etag: back.etag.clone(), ..before });
    }

    async fn a_change_that_makes_no_sense_is_refused(engine) {
        let harness = Harness::start(engine).await;
        let before = provider(&harness).await;
        let none = v1::UpdateProviderRequest::default;
        for (paths, request, code) in [
            (&[][..], none(), Code::InvalidArgument),
            (&["client_id"], none(), Code::InvalidArgument),
            (&["display_name", "client_secret"], none(), Code::InvalidArgument),
            (&["verdicts_frozen"], v1::UpdateProviderRequest { verdicts_frozen: true, ..none() }, Code::InvalidArgument),
            (&["max_in_flight"], v1::UpdateProviderRequest { max_in_flight: -1, ..none() }, Code::InvalidArgument),
            (
                &["requests_per_second"],
                v1::UpdateProviderRequest { requests_per_second: 100_001, ..none() },
                Code::InvalidArgument,
            ),
            (
                &["additional_scopes"],
                v1::UpdateProviderRequest { additional_scopes: vec!["a b".into()], ..none() },
                Code::InvalidArgument,
            ),
            (&["display_name"], v1::UpdateProviderRequest { provider: "other".into(), ..none() }, Code::NotFound),
        ] {
            assert_eq!(update(&harness, paths, request).await.unwrap_err().code(), code, "{paths:?}");
        }
        assert_eq!(provider(&harness).await, before);
    }

    async fn an_operator_ends_a_freeze(engine) {
        let harness = Harness::start(engine).await;
        let until = harness.clock.now().plus(Duration::from_mins(30)).millis();
        harness.database().await.execute(&format!("UPDATE providers SET frozen_until = {until}")).await;
        assert_eq!(state(&harness).await, ProviderState::Frozen);
        let thawed = update(&harness, &["verdicts_frozen"], v1::UpdateProviderRequest::default()).await.unwrap();
        assert_eq!(thawed.health.unwrap().state(), ProviderState::Ok);
    }

    async fn a_client_secret_is_changed_without_a_gap(engine) {
        let harness = with_dead_tokens(engine, 1, Vec::new()).await;
        let [old] = provider(&harness).await.secrets.try_into().unwrap();
        assert!(old.last_used_time.is_some(), "the link used it");
        let new = add_secret(&harness, "sandbox", DEFAULT_CLIENT_SECRET).await.unwrap();
        assert!(new.id.starts_with("psc_") && new.last_used_time.is_none());
        harness.get("u0").await.unwrap();
        let secrets = provider(&harness).await.secrets;
        assert_eq!((secrets.len(), &secrets[0]), (2, &new), "the one that worked is used on");
        remove_secret(&harness, "sandbox", &old.id).await.unwrap();
        remove_secret(&harness, "sandbox", &old.id).await.unwrap();
        harness.pass(Duration::from_hours(2));
        harness.get("u0").await.unwrap();
        // Nobody who waits for a token waits for this.
        until("its use is noted", async || provider(&harness).await.secrets[0].last_used_time.is_some()).await;

        let last = remove_secret(&harness, "sandbox", &new.id).await.unwrap_err();
        assert_eq!((last.code(), reason(&last).as_str()), (Code::FailedPrecondition, "LAST_PROVIDER_SECRET"));
        for _ in 0..2 {
            add_secret(&harness, "sandbox", "s").await.unwrap();
        }
        let fourth = add_secret(&harness, "sandbox", "s").await.unwrap_err();
        assert_eq!((fourth.code(), reason(&fourth).as_str()), (Code::FailedPrecondition, "TOO_MANY_PROVIDER_SECRETS"));
        for bad in [
            add_secret(&harness, "sandbox", "").await.unwrap_err(),
            add_secret(&harness, "sandbox", "a\n").await.unwrap_err(),
            remove_secret(&harness, "sandbox", "psc_1").await.unwrap_err(),
        ] {
            assert_eq!(reason(&bad), "INVALID_FIELD");
        }
        for missing in
            [add_secret(&harness, "other", "s").await.unwrap_err(), remove_secret(&harness, "other", &new.id).await.unwrap_err()]
        {
            assert_eq!(reason(&missing), "PROVIDER_NOT_FOUND");
        }
    }

    async fn p8_refused_credentials_are_tried_once_a_minute_and_at_once_after_a_cure(engine) {
        for (status, error) in [(401, "invalid_client"), (400, "unauthorized_client")] {
            refused_credentials(engine, refusing(status, error)).await;
        }
    }

    async fn p8_a_grant_that_is_refused_proves_that_our_credentials_are_taken(engine) {
        let harness = with_dead_tokens(engine, 2, refusing(401, "invalid_client")).await;
        for user in ["u0", "u1"] {
            // The sweep may have been first, and the grant have a wait of its own.
            harness.get(user).await.unwrap_err();
        }
        until("it is certain", async || state(&harness).await == ProviderState::Misconfigured).await;
        let ended = Rule::refresh(Effect::error(400, "invalid_grant")).times(1);
        harness.sandbox.set_faults([ended]);
        harness.pass(Duration::from_mins(1));
        until("it recovers", async || {
            let _ = harness.get("u0").await;
            state(&harness).await == ProviderState::Ok
        })
        .await;
        until("the others are refreshed", async || harness.get("u0").await.is_ok() || harness.get("u1").await.is_ok()).await;
        let refused = harness.refreshes().iter().filter(|request| request.status == 400).count();
        assert_eq!(refused, 1);
        let events = harness.database().await.events().await;
        assert_eq!(events.iter().filter(|event| *event == "provider.recovered").count(), 1, "{events:?}");
    }

    async fn p8_a_profile_is_read_where_our_credentials_are_refused_and_is_no_try_of_them(engine) {
        let mut faults = refusing(401, "invalid_client");
        faults.push(Rule::userinfo(Effect::error(503, "down")));
        let harness = with_dead_tokens(engine, 2, faults).await;
        let ticket = harness.ticket("u2", "p2").await;
        assert_eq!(reason(&harness.complete("u2", &ticket).await.unwrap_err()), "PROVIDER_UNAVAILABLE", "it is parked");
        for user in ["u0", "u1"] {
            // The sweep may have been first, and the grant have a wait of its own.
            harness.get(user).await.unwrap_err();
        }
        until("it is certain", async || state(&harness).await == ProviderState::Misconfigured).await;
        harness.sandbox.set_faults(refusing(401, "invalid_client"));
        harness.complete("u2", &ticket).await.unwrap();
        assert_eq!(state(&harness).await, ProviderState::Misconfigured);
    }

    async fn p9_an_update_ends_a_pause(engine) {
        let harness = with_dead_tokens(engine, 2, refusing(429, "slow_down")).await;
        assert_eq!(reason(&harness.get("u0").await.unwrap_err()), "PROVIDER_UNAVAILABLE");
        assert_eq!(state(&harness).await, ProviderState::Paused);
        harness.sandbox.clear_faults();
        // The grant that was tried has a wait of its own, of a few seconds.
        harness.pass(Duration::from_secs(6));
        assert_eq!(reason(&harness.get("u1").await.unwrap_err()), "PROVIDER_UNAVAILABLE");
        let named = v1::UpdateProviderRequest { display_name: "Ours".into(), ..Default::default() };
        update(&harness, &["display_name"], named).await.unwrap();
        assert_eq!(state(&harness).await, ProviderState::Ok);
        harness.get("u1").await.unwrap();
    }

    async fn s9_a_pause_that_a_clock_a_day_ahead_has_written_keeps_nobody_waiting(engine) {
        let mut harness = with_dead_tokens(engine, 1, Vec::new()).await;
        harness.stop().await;
        let tomorrow = harness.clock.now().plus(Duration::from_hours(24)).millis();
        harness.database().await.execute(&format!("UPDATE providers SET paused_until = {tomorrow}")).await;
        harness.restart().await;
        harness.get("u0").await.unwrap();
    }

    async fn p9_a_provider_that_limits_us_is_left_alone_by_all(engine) {
        let harness = with_dead_tokens(engine, 3, refusing(429, "slow_down")).await;
        assert_eq!(reason(&harness.get("u0").await.unwrap_err()), "PROVIDER_UNAVAILABLE");
        assert_eq!(state(&harness).await, ProviderState::Paused);
        let asked = harness.refreshes().len();
        harness.sandbox.clear_faults();
        for user in ["u0", "u1", "u2"] {
            assert_eq!(reason(&harness.get(user).await.unwrap_err()), "PROVIDER_UNAVAILABLE");
        }
        let ticket = harness.ticket("u3", "p3").await;
        let refused = harness.complete("u3", &ticket).await.unwrap_err();
        let wait = refused.get_error_details().retry_info().and_then(|info| info.retry_delay).unwrap();
        assert_eq!(reason(&refused), "PROVIDER_UNAVAILABLE");
        assert!((Duration::from_secs(30)..=Duration::from_secs(45)).contains(&wait), "{wait:?}");
        metric_is(&harness, "token_wallet_provider_paused{provider=\"sandbox\"} 1").await;
        assert_eq!((harness.refreshes().len(), harness.exchanges().len()), (asked, 3), "nothing more was sent");
        harness.pass(Duration::from_secs(45));
        assert_eq!(state(&harness).await, ProviderState::Ok);
        harness.complete("u3", &ticket).await.unwrap();
        until("all are refreshed", async || {
            harness.get("u0").await.is_ok() && harness.get("u1").await.is_ok() && harness.get("u2").await.is_ok()
        })
        .await;
    }

    async fn n2_a_provider_that_fails_is_left_alone_and_tried_again(engine) {
        let harness = with_dead_tokens(engine, 12, refusing(503, "down")).await;
        for n in 0..12 {
            assert_eq!(reason(&harness.get(&format!("u{n}")).await.unwrap_err()), "PROVIDER_UNAVAILABLE");
        }
        metric_is(&harness, "token_wallet_breaker_open{provider=\"sandbox\"} 1").await;
        let asked = harness.refreshes().len();
        harness.sandbox.clear_faults();
        let ticket = harness.ticket("new", "p12").await;
        assert_eq!(reason(&harness.complete("new", &ticket).await.unwrap_err()), "PROVIDER_UNAVAILABLE");
        assert_eq!(reason(&harness.get("u0").await.unwrap_err()), "PROVIDER_UNAVAILABLE");
        assert_eq!((harness.refreshes().len(), harness.exchanges().len()), (asked, 12), "nothing more was sent");
        harness.pass(Duration::from_secs(30));
        // Its ticket may have died meanwhile; what matters is that a link works again.
        until("all works again", async || {
            harness.pass(Duration::from_secs(1));
            harness.get("u0").await.is_ok() && harness.get("u11").await.is_ok()
        })
        .await;
        metric_is(&harness, "token_wallet_breaker_open{provider=\"sandbox\"} 0").await;
    }

    async fn n5_a_provider_whose_refreshes_hang_can_still_be_linked(engine) {
        let hold = vec![Rule::refresh(Effect::Hold)];
        let harness = with_dead_tokens(engine, 20, hold).await;
        let waiting: Vec<_> = (0..20)
            .map(|n| {
                let mut wallet = harness.wallet();
                let user_id = format!("u{n}");
                let request = v1::GetAccessTokenRequest { user_id, provider: "sandbox".into(), ..Default::default() };
                tokio::spawn(async move { wallet.get_access_token(request).await })
            })
            .collect();
        harness.sandbox.wait_held(13).await;
        harness.link("new", "p20").await;
        harness.sandbox.clear_faults();
        for waiting in waiting {
            waiting.await.unwrap().unwrap();
        }
        assert_eq!(harness.refreshes().len(), 20);
    }
}

/// Two grants whose refreshes are refused like this, until an operator has mended what is wrong.
async fn refused_credentials(engine: Engine, faults: Vec<Rule>) {
    let harness = with_dead_tokens(engine, 2, faults).await;
    // One grant alone could be a fault of its own.
    for user in ["u0", "u1"] {
        // The sweep may have been first, and the grant have a wait of its own.
        harness.get(user).await.unwrap_err();
    }
    until("it is certain", async || state(&harness).await == ProviderState::Misconfigured).await;
    for user in ["u0", "u1"] {
        assert_eq!(reason(&harness.get(user).await.unwrap_err()), "PROVIDER_MISCONFIGURED");
    }
    let asked = harness.refreshes().len();
    assert!(asked <= 2, "{asked}");
    let link = harness.ticket("u2", "p2").await;
    assert_eq!(reason(&harness.complete("u2", &link).await.unwrap_err()), "PROVIDER_MISCONFIGURED");
    for _ in 0..3 {
        harness.pass(Duration::from_mins(1));
        until("a try a minute", async || {
            let _ = harness.get("u0").await.unwrap_err();
            harness.refreshes().len() > asked
        })
        .await;
    }
    assert!(harness.refreshes().len() <= asked + 3);
    metric_is(&harness, "token_wallet_provider_misconfigured{provider=\"sandbox\"} 1").await;

    harness.sandbox.clear_faults();
    harness.get("u0").await.unwrap_err();
    // The grant that was tried last has a wait of its own, of a few seconds.
    harness.pass(Duration::from_secs(6));
    harness.get("u0").await.unwrap_err();
    add_secret(&harness, "sandbox", DEFAULT_CLIENT_SECRET).await.unwrap();
    until("it recovers", async || harness.get("u0").await.is_ok() && harness.get("u1").await.is_ok()).await;
    assert_eq!(state(&harness).await, ProviderState::Ok);
    let events = harness.database().await.events().await;
    for kind in ["provider.misconfigured", "provider.recovered"] {
        assert_eq!(events.iter().filter(|event| *event == kind).count(), 1, "{events:?}");
    }
    assert!(!events.iter().any(|kind| kind == "account.reauthorization_required"), "{events:?}");
}
