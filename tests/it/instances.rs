//! Instance kinds, and what operators see: probes, metrics, reflection (parts of fault A6).

use token_wallet::app::App;
use token_wallet::domain::instance::InstanceKind;
use token_wallet::proto::v1;
use tonic::Code;
use tonic::transport::Channel;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;

use crate::support::harness::{Harness, on_both_engines, reason};

on_both_engines! {
    async fn a_production_instance_refuses_what_is_for_development(engine) {
        let harness = Harness::production(engine).await;
        let sandbox = v1::CreateProviderRequest { slug: "sandbox".into(), client_id: "sandbox".into(), ..Default::default() };
        let refused = harness.providers().create_provider(sandbox).await.unwrap_err();
        assert_eq!((refused.code(), reason(&refused).as_str()), (Code::FailedPrecondition, "SHARED_CREDENTIALS_IN_PRODUCTION"));
        let endpoints = |scheme: &str| v1::ProviderEndpoints {
            authorization_url: format!("{scheme}://id.example.com/authorize"),
            token_url: format!("{scheme}://id.example.com/token"),
            userinfo_url: format!("{scheme}://id.example.com/me"),
            ..Default::default()
        };
        let generic = |scheme: &str| v1::CreateProviderRequest {
            slug: "example".into(),
            catalog_entry: "oauth2".into(),
            client_id: "wallet".into(),
            endpoints: Some(endpoints(scheme)),
            ..Default::default()
        };
        assert_eq!(harness.providers().create_provider(generic("http")).await.unwrap_err().code(), Code::InvalidArgument);
        let made = harness.providers().create_provider(generic("https")).await.unwrap().into_inner().provider.unwrap();
        assert_eq!(made.redirect_uri, "https://wallet.example.com/oauth/callback/example");
        // A flow must say where it ends, and loopback needs its entry like any other URL.
        for redirect_url in ["", "http://127.0.0.1:5000/done", "http://localhost/done"] {
            let link = v1::StartLinkRequest {
                user_id: "u".into(),
                provider: "example".into(),
                redirect_url: redirect_url.into(),
                ..Default::default()
            };
            assert_eq!(reason(&harness.accounts().start_link(link).await.unwrap_err()), "REDIRECT_URL_NOT_ALLOWED");
        }
        let allow = v1::CreateRedirectUrlRequest { url: "http://127.0.0.1/done".into(), ..Default::default() };
        harness.redirect_urls().create_redirect_url(allow).await.unwrap();
        let link = v1::StartLinkRequest {
            user_id: "u".into(),
            provider: "example".into(),
            redirect_url: "http://127.0.0.1:5000/done".into(),
            ..Default::default()
        };
        let started = harness.accounts().start_link(link).await.unwrap().into_inner();
        assert!(started.authorization_url.starts_with("https://id.example.com/authorize?"));
        let delete = v1::DeleteProviderRequest { provider: "example".into() };
        assert_eq!(reason(&harness.providers().delete_provider(delete).await.unwrap_err()), "PROVIDER_IN_USE");
    }

    async fn a_development_store_never_starts_as_production(engine) {
        let mut harness = Harness::start(engine).await;
        harness.stop().await;
        harness.config.kind = InstanceKind::Production;
        let Err(error) = App::start(harness.config.clone(), harness.clock.clone()).await else { panic!("it started") };
        assert_eq!(error.exit_code(), 78);
        assert!(error.to_string().contains("made as a development instance"), "{error}");
    }

    async fn reflection_is_open_in_development_and_needs_a_key_in_production(engine) {
        let development = Harness::start(engine).await;
        assert_eq!(services(development.channel()).await.unwrap(), 10, "ours, health and both versions of reflection itself");
        let production = Harness::production(engine).await;
        assert_eq!(services(production.channel()).await.unwrap_err().code(), Code::Unauthenticated);
    }

    async fn probes_and_metrics_tell_how_it_fares(engine) {
        let harness = Harness::start(engine).await;
        harness.link("u", "demo").await;
        harness.pass(std::time::Duration::from_hours(2));
        harness.get("u").await.unwrap();
        let text = async |path: &str| {
            let answer = harness.http.get(harness.ops(path)).send().await.unwrap();
            (answer.status().as_u16(), answer.text().await.unwrap())
        };
        assert_eq!(text("/livez").await, (200, "live\n".into()));
        assert_eq!(text("/readyz").await, (200, "ready\n".into()));
        let (status, metrics) = text("/metrics").await;
        assert_eq!(status, 200);
        for series in [
            "token_wallet_requests_total{method=\"WalletService/GetAccessToken\",code=\"OK\"}",
            "token_wallet_refreshes_total{provider=\"sandbox\",outcome=\"refreshed\"}",
            "token_wallet_request_duration_seconds_bucket{method=\"WalletService/GetAccessToken\",le=\"+Inf\"}",
        ] {
            assert!(metrics.contains(series), "{series} in {metrics}");
        }
    }
}

/// How many services reflection names.
async fn services(channel: Channel) -> Result<usize, tonic::Status> {
    use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
    let ask = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut client = ServerReflectionClient::new(channel);
    let mut answers = client.server_reflection_info(futures_util::stream::iter([ask])).await?.into_inner();
    match answers.message().await?.and_then(|answer| answer.message_response) {
        Some(MessageResponse::ListServicesResponse(list)) => Ok(list.service.len()),
        other => panic!("{other:?}"),
    }
}
