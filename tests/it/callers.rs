//! Who calls, and with what (faults G1, G11, A1; health and reflection).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use token_wallet::proto::v1;
use token_wallet::sandbox::{Effect, Options, Rule};
use tonic::Code;
use tonic::transport::Channel;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;

use crate::support::harness::{Engine, Harness, on_both_engines, reason};

on_both_engines! {
    async fn g1_a_user_id_that_cannot_be_one_is_refused_by_field_and_not_told_back(engine) {
        let harness = Harness::start(engine).await;
        for bad in ["", "\0", "a\u{7}b", "line\nbreak", &"x".repeat(4_096)] {
            let get = harness.get(bad).await.unwrap_err();
            let link = v1::StartLinkRequest { user_id: bad.into(), provider: "sandbox".into(), ..Default::default() };
            let link = harness.accounts().start_link(link).await.unwrap_err();
            for refused in [get, link] {
                assert_eq!((refused.code(), reason(&refused).as_str()), (Code::InvalidArgument, "INVALID_FIELD"));
                assert!(refused.message().starts_with("user_id "), "{}", refused.message());
                assert!(bad.is_empty() || !refused.message().contains(bad), "never the value");
            }
        }
    }

    async fn a1_every_bad_key_is_refused_alike(engine) {
        let harness = Harness::start(engine).await;
        let request = v1::CreateApiClientRequest {
            display_name: "short-lived".into(),
            key_ttl: Some(prost_types::Duration { seconds: 60, nanos: 0 }), ..Default::default() };
        let made = harness.clients().create_api_client(request).await.unwrap().into_inner();
        let (client, key) = (made.api_client.unwrap(), made.api_key.unwrap());
        let works = async |key: &str| {
            let list = v1::ListExternalAccountsRequest::default();
            harness.accounts_as(key).list_external_accounts(list).await.map(drop)
        };
        works(&key.secret).await.unwrap();
        // Of another instance: the same row could be there.
        let elsewhere = Harness::start(Engine::Sqlite).await;
        let mut last = key.secret.clone();
        last.pop();
        let mut wrong_secret = harness.key.clone();
        let place = wrong_secret.len() - 20;
        let other = if &wrong_secret[place..=place] == "z" { "y" } else { "z" };
        wrong_secret.replace_range(place..=place, other);
        harness.pass(Duration::from_secs(61));
        let mut answers = Vec::new();
        for bad in ["x", "twk_", "twk_a_b_c", &last, &wrong_secret, &elsewhere.key, &key.secret] {
            let refused = works(bad).await.unwrap_err();
            assert_eq!(reason(&refused), "API_KEY_INVALID", "{}", bad.len());
            answers.push((refused.code(), refused.message().to_owned(), refused.details().to_vec()));
        }
        // Revoked, after it has worked.
        let request = v1::CreateApiClientRequest { display_name: "revoked".into(), key_ttl: None, ..Default::default() };
        let made = harness.clients().create_api_client(request).await.unwrap().into_inner();
        let secret = made.api_key.unwrap().secret;
        works(&secret).await.unwrap();
        let delete = v1::DeleteApiClientRequest { api_client_id: made.api_client.unwrap().id };
        harness.clients().delete_api_client(delete.clone()).await.unwrap();
        harness.clients().delete_api_client(delete).await.unwrap();
        let refused = works(&secret).await.unwrap_err();
        answers.push((refused.code(), refused.message().to_owned(), refused.details().to_vec()));
        assert_eq!(answers[0].0, Code::Unauthenticated);
        assert!(answers.iter().all(|answer| *answer == answers[0]), "one text for all");
        assert_eq!(client.display_name, "short-lived");
    }

    async fn a1_without_a_key_nothing_is_answered_but_health(engine) {
        let harness = Harness::start(engine).await;
        let mut health = HealthClient::new(harness.channel());
        let served = health.check(HealthCheckRequest::default()).await.unwrap().into_inner();
        assert_eq!(served.status(), tonic_health::pb::health_check_response::ServingStatus::Serving);
        for path in [
            "/tokenwallet.v1.WalletService/GetAccessToken",
            "/tokenwallet.v1.ApiClientService/CreateApiClient",
            "/tokenwallet.v1.NoService/NoMethod",
        ] {
            let refused = bare(harness.channel(), path).await;
            assert_eq!((refused.code(), reason(&refused).as_str()), (Code::Unauthenticated, "CREDENTIALS_MISSING"), "{path}");
        }
    }

    async fn g11_a_panic_inside_one_call_ends_that_call_alone(engine) {
        let harness = Harness::with_users(engine, 1, Options::default()).await;
        harness.pass(Duration::from_hours(2));
        harness.sandbox.set_faults([Rule::refresh(Effect::Hold)]);
        let make = async || {
            let request = v1::CreateApiClientRequest { display_name: "new".into(), ..Default::default() };
            harness.clients().create_api_client(request).await
        };
        // On the same connection, before, during and after.
        let others = async {
            harness.sandbox.wait_held(1).await;
            let log = panics_at("made an API client");
            let ended = make().await.unwrap_err();
            drop(log);
            assert_eq!((ended.code(), ended.message(), reason(&ended).as_str()), (Code::Internal, "internal error", "INTERNAL"));
            assert!(!ended.details().windows(6).any(|part| part == b"canary"), "nothing of the panic is told");
            make().await.unwrap();
            harness.sandbox.release();
        };
        let (get, ()) = tokio::join!(harness.get("u0"), others);
        assert!(harness.is_accepted(&get.unwrap().access_token).await);
        harness.link("u0", "p0").await;
    }

    async fn g4_without_a_key_too_no_message_over_the_limit_is_read(engine) {
        let harness = Harness::start(engine).await;
        let mut health = HealthClient::new(harness.channel());
        let refused = health.check(HealthCheckRequest { service: "x".repeat(65 * 1024) }).await.unwrap_err();
        assert_eq!(refused.code(), Code::OutOfRange, "{refused}");
        let mut reflection = ServerReflectionClient::new(harness.channel());
        let asked = ServerReflectionRequest { host: "x".repeat(65 * 1024), message_request: Some(MessageRequest::ListServices(String::new())) };
        let answered = match reflection.server_reflection_info(futures_util::stream::iter([asked])).await {
            Ok(answers) => matches!(answers.into_inner().message().await, Ok(Some(_))),
            Err(_) => false,
        };
        assert!(!answered);
    }
}

/// While it lives, the first to log a line with `words` panics.
fn panics_at(words: &'static str) -> tracing::subscriber::DefaultGuard {
    struct Panics(&'static str, Arc<AtomicBool>);

    impl std::io::Write for Panics {
        fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
            let now = String::from_utf8_lossy(line).contains(self.0) && !self.1.swap(true, Ordering::SeqCst);
            if now { panic!("canary") } else { Ok(line.len()) }
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    let done = Arc::new(AtomicBool::new(false));
    let subscriber = tracing_subscriber::fmt().with_writer(move || Panics(words, Arc::clone(&done))).finish();
    tracing::subscriber::set_default(subscriber)
}

/// A call of any path with an empty message and no key.
async fn bare(channel: Channel, path: &'static str) -> tonic::Status {
    let mut grpc = tonic::client::Grpc::new(channel);
    grpc.ready().await.unwrap();
    let codec = tonic_prost::ProstCodec::<v1::GetAccessTokenRequest, v1::GetAccessTokenResponse>::default();
    let request = tonic::Request::new(v1::GetAccessTokenRequest::default());
    grpc.unary(request, http::uri::PathAndQuery::from_static(path), codec).await.unwrap_err()
}
