//! Providers over real HTTP: configured through the registry, called at the sandbox and at a peer that misbehaves.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tempfile::TempDir;
use token_wallet::access::permit::{ManageProviders, ReadProviders};
use token_wallet::access::{Access, Caller};
use token_wallet::cache::Cache;
use token_wallet::clock::{Clock, Timestamp};
use token_wallet::domain::error::Failure;
use token_wallet::domain::ids::InstanceId;
use token_wallet::domain::instance::InstanceKind;
use token_wallet::domain::provider::{Slug, TokenAnswer, Verdict};
use token_wallet::domain::scopes::Scopes;
use token_wallet::domain::secret::{AccessToken, AuthorizationCode, ClientSecret, PkceVerifier, RefreshToken};
use token_wallet::outbound::{Outbound, OutboundConfig};
use token_wallet::providers::{Authorization, CustomEndpoints, NewProvider, Parts, Provider, ProviderPage, Registry};
use token_wallet::sandbox::{self, DEFAULT_CLIENT_ID, DEFAULT_CLIENT_SECRET, Options, Sandbox};
use token_wallet::store::Store;
use token_wallet::vault::{RootKey, Vault, random};
use tokio_util::task::TaskTracker;
use url::Url;

use crate::support::peer::{Peer, Reply, answer, json};

const LATER: Verdict = Verdict::Later { after: None, answered: false };

/// A registry over a store of its own.
struct Scene {
    registry: Registry,
    caller: Caller,
    _directory: TempDir,
}

impl Scene {
    async fn new(kind: InstanceKind, sandbox_url: Option<Url>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&format!("sqlite:{}", directory.path().join("store.db").display()), 2).await.unwrap();
        store.migrate().await.unwrap();
        let now = Timestamp::from_millis(1_800_000_000_000);
        let (instance, clock) = (InstanceId::new(now), Clock::moved(now).0);
        let (vault, _) = Vault::create(&RootKey::generate(), instance, now).unwrap();
        let cache = Cache::new(store.clone(), clock.clone(), 1 << 20, TaskTracker::new());
        let access = Access::new(store.clone(), cache.clone(), clock.clone(), instance);
        let key = access.bootstrap_client("tests").await.unwrap().key;
        let caller = access.authenticate(Some(&format!("Bearer {}", key.expose()))).await.unwrap();
        let development = kind == InstanceKind::Development;
        // Long enough for any answer of a test, short enough to wait for where none comes.
        let total_timeout = Duration::from_millis(400);
        let config = OutboundConfig { development, total_timeout, ..OutboundConfig::default() };
        let registry = Registry::new(Parts {
            store,
            cache,
            vault: Arc::new(vault),
            outbound: Outbound::new(&config).unwrap(),
            kind,
            public_url: Url::parse("http://127.0.0.1:8080").unwrap(),
            sandbox_url,
            clock,
        });
        Self { registry, caller, _directory: directory }
    }

    async fn development() -> Self {
        Self::new(InstanceKind::Development, None).await
    }

    async fn create(&self, new: NewProvider) -> Result<Provider, Failure> {
        self.registry.create(&self.caller.may(ManageProviders)?, new, |_| Ok(None)).await
    }

    async fn list(&self, after: Option<&Slug>) -> Result<ProviderPage, Failure> {
        self.registry.list(&self.caller.may(ReadProviders)?, after.map(Slug::as_str), 1).await
    }

    async fn delete(&self, slug: &Slug) -> Result<(), Failure> {
        self.registry.delete(&self.caller.may(ManageProviders)?, slug).await
    }

    /// A provider whose endpoints are a peer's.
    async fn at(&self, peer: &Peer) -> Provider {
        let endpoints = CustomEndpoints {
            authorization_url: peer.url("/authorize"),
            token_url: peer.url("/token"),
            userinfo_url: peer.url("/me"),
            revocation_url: None,
            ..CustomEndpoints::default()
        };
        self.create(NewProvider { endpoints: Some(endpoints), ..new("peer", "oauth2") }).await.ok().unwrap()
    }
}

fn slug(text: &str) -> Slug {
    Slug::parse(text).unwrap()
}

fn new(name: &str, entry: &str) -> NewProvider {
    NewProvider {
        slug: slug(name),
        catalog_entry: Some(entry.into()),
        client_id: DEFAULT_CLIENT_ID.into(),
        client_secret: Some(ClientSecret::new(DEFAULT_CLIENT_SECRET)),
        additional_scopes: Scopes::default(),
        endpoints: None,
        display_name: None,
    }
}

/// A sandbox and a provider at it.
async fn at_sandbox(secret: &str) -> (Sandbox, Scene, Provider) {
    let sandbox = sandbox::start(Options::default()).await.unwrap();
    let base = Url::parse(&sandbox.base_url()).unwrap();
    let scene = Scene::new(InstanceKind::Development, Some(base)).await;
    let secret = Some(ClientSecret::new(secret));
    let provider = scene.create(NewProvider { client_secret: secret, ..new("sandbox", "sandbox") }).await.ok().unwrap();
    (sandbox, scene, provider)
}

/// Approves as `demo`; answers the code and its verifier.
async fn approve(provider: &Provider) -> (AuthorizationCode, PkceVerifier) {
    let (state, verifier) = (random::flow_state(), random::pkce_verifier());
    let scopes = provider.link_scopes(&Scopes::default());
    let asked = Authorization { state: &state, verifier: &verifier, scopes: &scopes, login_hint: None, offline: true };
    let url = provider.authorization_url(&asked);
    let form = [("person", "demo"), ("decision", "approve")];
    let response = browser().post(url).form(&form).send().await.unwrap();
    let back = Url::parse(response.headers()["location"].to_str().unwrap()).unwrap();
    let told = |name| back.query_pairs().find_map(|(key, value)| (key == name).then(|| value.into_owned()));
    assert!(back.as_str().starts_with(&provider.redirect_uri));
    assert_eq!(told("state").as_deref(), Some(state.expose()));
    assert_eq!(told("iss"), provider.endpoints.issuer);
    (AuthorizationCode::new(told("code").unwrap()), verifier)
}

#[expect(clippy::disallowed_methods, reason = "a test's own client is not the wallet's")]
fn browser() -> reqwest::Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).no_proxy().build().unwrap()
}

#[tokio::test]
async fn a_link_at_the_sandbox_gives_tokens_a_profile_and_refreshes() {
    let (_sandbox, _scene, provider) = at_sandbox(DEFAULT_CLIENT_SECRET).await;
    let (code, verifier) = approve(&provider).await;
    let linked = provider.exchange(&code, Some(&verifier), &provider.redirect_uri).await.ok().unwrap();
    assert_eq!((linked.token_type.as_str(), linked.lifetime.span()), ("Bearer", Some(Duration::from_hours(1))));
    assert_eq!(linked.scopes.unwrap().join(" "), "openid profile email offline_access");

    let profile = provider.userinfo(&linked.access_token).await.unwrap();
    assert!(!profile.subject.is_empty() && profile.email.is_some(), "{profile:?}");

    let first = linked.refresh_token.unwrap();
    let refreshed = provider.refresh(&first, provider.secrets_in_order().next()).await.ok().unwrap();
    assert!(refreshed.access_token.expose() != linked.access_token.expose());
    assert!(refreshed.refresh_token.is_some_and(|token| token.expose() != first.expose()));
    assert_eq!(
        provider.refresh(&first, provider.secrets_in_order().next()).await.err(),
        Some(Verdict::Refused("invalid_grant".into()))
    );
    let again = provider.exchange(&code, Some(&verifier), &provider.redirect_uri).await;
    assert_eq!(again.err(), Some(Verdict::Refused("invalid_grant".into())));
    let unknown = provider.userinfo(&AccessToken::new("unknown")).await;
    assert_eq!(unknown, Err(Verdict::Refused("invalid_token".into())));
}

#[tokio::test]
async fn a_wrong_client_secret_or_verifier_is_told_apart() {
    let (_sandbox, _scene, provider) = at_sandbox("wrong").await;
    let (code, verifier) = approve(&provider).await;
    let refused = provider.exchange(&code, Some(&verifier), &provider.redirect_uri).await;
    assert_eq!(refused.err(), Some(Verdict::Misconfigured("invalid_client".into())));

    let (_sandbox, _scene, provider) = at_sandbox(DEFAULT_CLIENT_SECRET).await;
    let (code, _) = approve(&provider).await;
    let refused = provider.exchange(&code, Some(&random::pkce_verifier()), &provider.redirect_uri).await;
    assert_eq!(refused.err(), Some(Verdict::Refused("invalid_grant".into())));
}

/// What a refresh comes to when the token endpoint replies so; it is asked once, whatever that is.
async fn refresh(reply: Reply) -> Result<TokenAnswer, Verdict> {
    let (scene, peer) = (Scene::development().await, Peer::new(vec![reply]).await);
    let provider = scene.at(&peer).await;
    let outcome = provider.refresh(&RefreshToken::new("rt-1"), provider.secrets_in_order().next()).await;
    let requests = peer.requests();
    assert_eq!(requests.len(), 1);
    assert!(requests[0].ends_with("grant_type=refresh_token&refresh_token=rt-1"));
    outcome
}

#[tokio::test]
async fn p1_a_missing_refresh_token_keeps_the_old_one() {
    for body in [
        json!({ "access_token": "a", "expires_in": 60 }),
        json!({ "access_token": "a", "refresh_token": "" }),
        json!({ "access_token": "a", "refresh_token": null }),
    ] {
        let answer = refresh(Reply::Text(json(200, &body.to_string()))).await.ok().unwrap();
        assert!(answer.refresh_token.is_none(), "{body}");
    }
}

#[tokio::test]
async fn p2_an_odd_lifetime_is_read_or_assumed() {
    for (said, seconds) in [
        ("\"90\"", 90),
        ("90.9", 90),
        ("null", 3_600),
        ("0", 3_600),
        ("-1", 3_600),
        ("1000000000000000000", 400 * 86_400),
        ("\"soon\"", 3_600),
    ] {
        let body = format!(r#"{{"access_token":"a","expires_in":{said}}}"#);
        let answer = refresh(Reply::Text(json(200, &body))).await.ok().unwrap();
        assert_eq!(answer.lifetime.span(), Some(Duration::from_secs(seconds)), "{said}");
    }
}

#[tokio::test]
async fn p10_an_answer_that_is_none_is_never_a_refusal() {
    let html = "content-type: text/html\r\n";
    for (reply, verdict) in [
        (answer(500, "", ""), Verdict::Unclear { after: None }),
        (answer(502, html, "<html>invalid_grant</html>"), Verdict::Unclear { after: None }),
        (
            answer(503, "retry-after: 7\r\n", ""),
            Verdict::Later { after: Some(Duration::from_secs(7)), answered: false },
        ),
        (answer(429, "retry-after: 86400\r\n", ""), Verdict::Limited { after: Some(Duration::from_mins(15)) }),
        (answer(200, "", ""), Verdict::Unknown),
        (answer(200, html, "<html>"), Verdict::Unknown),
        (json(200, r#"{"access_token":"a","#), Verdict::Unknown),
        (answer(204, "", ""), Verdict::Unknown),
        (answer(307, "location: http://127.0.0.1:1/\r\n", ""), LATER),
        (json(400, r#"{"error":"invalid_grant"}"#), Verdict::Refused("invalid_grant".into())),
        (json(401, r#"{"error":"invalid_client"}"#), Verdict::Misconfigured("invalid_client".into())),
    ] {
        assert_eq!(refresh(Reply::Text(reply.clone())).await.err(), Some(verdict), "{reply}");
    }
    for reply in [
        answer(200, "content-type: text/plain\r\n", r#"{"access_token":"a"}"#),
        json(200, "\u{feff}{\"access_token\":\"a\"}"),
    ] {
        assert!(refresh(Reply::Text(reply.clone())).await.is_ok(), "what can be read is: {reply}");
    }
}

#[tokio::test]
async fn p12_endless_and_deep_answers_are_cut() {
    let deep = format!(r#"{{"access_token":"a","x":{}{}}}"#, "[".repeat(100_000), "]".repeat(100_000));
    for reply in [
        Reply::Flood("HTTP/1.1 200 OK\r\ncontent-length: 1073741824\r\n\r\n".into()),
        Reply::Drip("HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n".into()),
        Reply::Text(json(200, &deep)),
        Reply::Hang,
        Reply::Close,
    ] {
        assert_eq!(refresh(reply).await.err(), Some(Verdict::Unknown));
    }
}

#[tokio::test]
async fn a_profile_that_cannot_be_read_blames_nobody_but_the_configuration() {
    let scene = Scene::development().await;
    for (reply, verdict) in [
        (Reply::Text(json(200, "{}")), Verdict::Misconfigured("no_subject".into())),
        (Reply::Text(json(200, r#"{"sub":"#)), LATER),
        (Reply::Text(json(503, "")), LATER),
        (Reply::Text(json(401, "")), Verdict::Refused("invalid_token".into())),
        (Reply::Close, LATER),
        (Reply::Hang, LATER),
    ] {
        let peer = Peer::new(vec![reply]).await;
        let provider = scene.at(&peer).await;
        assert_eq!(provider.userinfo(&AccessToken::new("at-1")).await, Err(verdict));
        assert!(peer.requests()[0].contains("authorization: Bearer at-1"));
        assert!(scene.delete(&provider.slug).await.is_ok());
    }
}

#[tokio::test]
async fn p19_a_provider_at_a_private_address_is_not_configured_in_production() {
    let (scene, peer) = (Scene::new(InstanceKind::Production, None).await, Peer::json(200, "{}").await);
    let port = peer.address.port();
    let at = |token_url: String| NewProvider {
        endpoints: Some(CustomEndpoints {
            authorization_url: "https://id.example.com/authorize".into(),
            token_url,
            userinfo_url: "https://id.example.com/me".into(),
            revocation_url: None,
            ..CustomEndpoints::default()
        }),
        ..new("custom", "oauth2")
    };
    for bad in ["http://127.0.0.1", "https://127.0.0.1", "https://169.254.169.254", "https://[::1]", "https://10.0.0.1"]
    {
        let refused = scene.create(at(format!("{bad}:{port}/token"))).await;
        assert!(matches!(refused, Err(Failure::InvalidField { field: "endpoints.token_url", .. })), "{bad}");
    }
    // What a name resolves to is seen at the call, and nothing is connected to.
    let provider = scene.create(at(format!("https://localhost:{port}/token"))).await.ok().unwrap();
    assert_eq!(provider.refresh(&RefreshToken::new("rt"), provider.secrets_in_order().next()).await.err(), Some(LATER));
    assert_eq!(peer.connections(), 0);
}

#[tokio::test]
async fn providers_are_created_found_listed_and_deleted() {
    let (_sandbox, scene, sandbox) = at_sandbox(DEFAULT_CLIENT_SECRET).await;
    let peer = Peer::json(200, "{}").await;
    let peer = scene.at(&peer).await;
    assert_eq!(sandbox.redirect_uri, "http://127.0.0.1:8080/oauth/callback/sandbox");
    assert_eq!((peer.secrets.len(), peer.display_name.as_str()), (1, "OAuth 2.0"));
    let registry = &scene.registry;
    assert!(registry.by_id(peer.id).await.is_ok_and(|found| found.slug == peer.slug));
    assert!(registry.by_slug(&peer.slug).await.is_ok_and(|found| found.endpoints == peer.endpoints));
    let taken = scene.create(new("sandbox", "sandbox")).await;
    assert_eq!(taken.err(), Some(Failure::ProviderExists));

    let first = scene.list(None).await.ok().unwrap();
    assert_eq!(first.providers.iter().map(|provider| provider.slug.as_str()).collect::<Vec<_>>(), ["peer"]);
    let second = scene.list(first.next.as_ref()).await.ok().unwrap();
    assert_eq!(second.providers.iter().map(|provider| provider.slug.as_str()).collect::<Vec<_>>(), ["sandbox"]);
    assert!(second.next.is_none());

    assert_eq!(scene.delete(&peer.slug).await, Ok(()));
    assert_eq!(scene.delete(&peer.slug).await, Ok(()), "deleting a deleted one succeeds");
    assert_eq!(registry.by_slug(&peer.slug).await.err(), Some(Failure::ProviderNotFound));
    assert_eq!(registry.by_id(peer.id).await.err(), Some(Failure::ProviderNotFound));
    assert_eq!(scene.delete(&slug("never")).await, Err(Failure::ProviderNotFound));
}

#[tokio::test]
async fn what_does_not_fit_the_catalog_or_the_instance_is_not_configured() {
    let production = Scene::new(InstanceKind::Production, None).await;
    let refused = production.create(new("sandbox", "sandbox")).await;
    assert_eq!(refused.err(), Some(Failure::SharedCredentialsInProduction));

    let scene = Scene::development().await;
    let endpoints = Some(CustomEndpoints::default());
    for (new, field) in [
        (new("x", "nothing"), "catalog_entry"),
        (NewProvider { catalog_entry: None, ..new("x", "") }, "catalog_entry"),
        (new("x", "sandbox"), "catalog_entry"),
        (new("x", "oauth2"), "endpoints"),
        (NewProvider { endpoints, ..new("x", "oauth2") }, "endpoints.authorization_url"),
    ] {
        let refused = scene.create(new).await.err();
        assert!(matches!(refused, Some(Failure::InvalidField { field: told, .. }) if told == field), "{refused:?}");
    }
}
