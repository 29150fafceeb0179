//! Providers that never stop, cannot be reached, are somebody else, or sit where nobody may be called (faults P10,
//! P12, P13, P19): what callers are told meanwhile, and what was sent.

use std::time::Duration;

use token_wallet::domain::instance::InstanceKind;
use token_wallet::proto::v1;
use token_wallet::sandbox::{DEFAULT_CLIENT_ID, Effect, Options, Person, Reply, Rotation, Rule};
use tonic::{Code, Status};

use crate::support::browser::parameter;
use crate::support::canary::{Canary, Searcher};
use crate::support::harness::{APP_URL, Engine, Harness, on_both_engines, reason, until};
use crate::support::oracle::counts;
use crate::support::peer::Peer;
use crate::support::real_time::now;
use crate::support::service::Wallet;
use crate::support::strangers::{Full, Impostor};

/// A token that the sandbox gave so long ago is due, and far above its floor.
const DUE: Duration = Duration::from_mins(56);

/// It is dead.
const DEAD: Duration = Duration::from_hours(2);

/// Past the end of a claim's lease.
const LEASE: Duration = Duration::from_secs(21);

const fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

/// Gets a token of `u` that lives for half an hour: one that is due will not do.
async fn patient(harness: &Harness, provider: &str) -> Result<String, Status> {
    let request = v1::GetAccessTokenRequest {
        user_id: "u".into(),
        provider: provider.into(),
        min_ttl: Some(prost_types::Duration { seconds: 1_800, nanos: 0 }),
        ..Default::default()
    };
    harness.get_with(request).await.map(|token| token.access_token)
}

fn assert_unavailable(refused: &Status) {
    assert_eq!((refused.code(), reason(refused).as_str()), (Code::Unavailable, "PROVIDER_UNAVAILABLE"), "{refused}");
}

/// A provider `own` at the sandbox, with the user `u` linked there.
async fn linked_at_own(engine: Engine) -> Harness {
    let harness = Harness::start(engine).await;
    harness.create_own("own", DEFAULT_CLIENT_ID).await;
    let ticket = harness.ticket_at("own", "u", "demo").await;
    harness.complete("u", &ticket).await.unwrap();
    harness
}

on_both_engines! {
    async fn p12_an_answer_without_end_is_cut_and_the_old_token_is_served_meanwhile(engine) {
        let rotation = Rotation::Grace(Duration::from_mins(1));
        let harness = Harness::with(engine, Options { rotation, ..Options::default() }).await;
        harness.link("u", "demo").await;
        for effect in [Effect::Huge(1 << 30), Effect::Nested(100_000), Effect::Drip(secs(1))] {
            harness.pass(DEAD);
            let old = harness.get("u").await.unwrap().access_token;
            let before = harness.refreshes().len();
            harness.sandbox.set_faults([Rule::refresh(effect.clone())]);
            harness.pass(DUE);
            let began = now();
            assert_eq!(harness.get("u").await.unwrap().access_token, old, "{effect:?}");
            until("the refresh is at the provider", async || harness.refreshes().len() > before).await;
            // Begun later than the refresh, so that it hears of its end before its own patience is over.
            tokio::time::sleep(Duration::from_millis(100)).await;
            let meanwhile = async {
                for _ in 0..20 {
                    assert_eq!(harness.get("u").await.unwrap().access_token, old, "{effect:?}");
                }
            };
            let (refused, ()) = tokio::join!(patient(&harness, "sandbox"), meanwhile);
            assert_unavailable(&refused.unwrap_err());
            let took = began.elapsed();
            // Real time: what a request to a provider may take, and what a busy machine adds.
            assert!(took < secs(14) && (took > secs(9) || !matches!(effect, Effect::Drip(_))), "{effect:?}: {took:?}");
            assert_eq!(harness.get("u").await.unwrap().access_token, old, "{effect:?}");
            assert_eq!(harness.refreshes().len(), before + 1, "{effect:?}: nothing more while it is in doubt");
            harness.sandbox.clear_faults();
            harness.pass(LEASE);
            let new = patient(&harness, "sandbox").await.unwrap();
            assert!(new != old && harness.is_accepted(&new).await, "{effect:?}");
            assert_eq!(harness.refreshes().len(), before + 2, "{effect:?}");
        }
        assert_eq!(harness.counted("refreshes_in_doubt_total").await, 3);
        assert_eq!(harness.events().await, counts([("account.linked", 1)]));
        let totals = harness.sandbox.totals();
        assert_eq!((totals.reuses, totals.max_overlap), (0, 1), "{totals:?}");
    }

    async fn p13_a_connection_that_hangs_or_is_reset_is_an_outage_and_spends_nothing(engine) {
        let harness = linked_at_own(engine).await;
        let (full, good) = (Full::new().await, format!("{}/token", harness.sandbox.base_url()));
        // Nobody takes the connection: the refresh was surely not sent, and nothing is in doubt.
        let old = harness.get_at("own", "u").await.unwrap().access_token;
        harness.point("own", &format!("http://{}/token", full.address)).await;
        harness.pass(DUE);
        assert_unavailable(&patient(&harness, "own").await.unwrap_err());
        assert_eq!(harness.get_at("own", "u").await.unwrap().access_token, old);
        harness.pass(secs(280));
        assert_unavailable(&harness.get_at("own", "u").await.unwrap_err());
        assert_eq!(harness.refreshes().len(), 0);
        harness.point("own", &good).await;
        harness.pass(secs(6));
        assert!(harness.is_accepted(&harness.get_at("own", "u").await.unwrap().access_token).await);
        assert_eq!(harness.refreshes().len(), 1);
        // It is taken and reset with the request on it: that may have been heard.
        harness.sandbox.set_faults([Rule::refresh(Effect::Reset)]);
        harness.pass(DEAD);
        assert_unavailable(&harness.get_at("own", "u").await.unwrap_err());
        harness.sandbox.clear_faults();
        assert_unavailable(&harness.get_at("own", "u").await.unwrap_err());
        assert_eq!(harness.refreshes().len(), 2);
        harness.pass(LEASE);
        assert!(harness.is_accepted(&harness.get_at("own", "u").await.unwrap().access_token).await);
        assert_eq!(harness.refreshes().len(), 3);
        assert_eq!(harness.events().await, counts([("account.linked", 1)]));
        harness.assert_each_redeemed_once();
    }

    async fn p13_a_forged_certificate_is_told_as_a_security_event_once_an_hour_and_hears_nothing(engine) {
        let harness = linked_at_own(engine).await;
        let impostor = Impostor::start();
        let old = harness.get_at("own", "u").await.unwrap().access_token;
        harness.point("own", &format!("https://localhost:{}/token", impostor.address.port())).await;
        harness.pass(DUE);
        assert_unavailable(&patient(&harness, "own").await.unwrap_err());
        assert_eq!(harness.get_at("own", "u").await.unwrap().access_token, old);
        let untrusted = |times| counts([("account.linked", 1), ("provider.untrusted", times)]);
        assert_eq!(harness.events().await, untrusted(1));
        let at = "SELECT COUNT(*) FROM events JOIN providers ON providers.id = events.provider_id
                  WHERE kind = 'provider.untrusted' AND slug = 'own' AND user_id IS NULL";
        assert_eq!(harness.database().await.number(at).await, 1);
        for _ in 0..2 {
            harness.pass(Duration::from_mins(29));
            assert_unavailable(&harness.get_at("own", "u").await.unwrap_err());
        }
        assert_eq!(harness.events().await, untrusted(1), "once an hour");
        harness.pass(Duration::from_mins(3));
        assert_unavailable(&harness.get_at("own", "u").await.unwrap_err());
        assert_eq!(harness.events().await, untrusted(2));
        assert!(impostor.greeted() >= 4, "{}", impostor.greeted());
        assert_eq!((impostor.heard(), harness.refreshes().len()), (0, 0));
        harness.point("own", &format!("{}/token", harness.sandbox.base_url())).await;
        harness.pass(secs(6));
        assert!(harness.is_accepted(&harness.get_at("own", "u").await.unwrap().access_token).await);
        assert_eq!(harness.refreshes().len(), 1);
        harness.assert_each_redeemed_once();
    }

    async fn p19_in_production_a_token_url_at_a_private_address_gets_no_code(engine) {
        let (harness, peer) = (Harness::production(engine).await, Peer::json(200, r#"{"access_token":"a"}"#).await);
        let port = peer.address.port();
        let own = |token_url: String| v1::CreateProviderRequest {
            slug: "own".into(),
            catalog_entry: "oauth2".into(),
            client_id: "wallet".into(),
            client_secret: "a-client-secret".into(),
            endpoints: Some(v1::ProviderEndpoints {
                authorization_url: "https://id.example.com/authorize".into(),
                token_url,
                userinfo_url: "https://id.example.com/me".into(),
                ..Default::default()
            }),
            ..Default::default()
        };
        for private in ["127.0.0.1", "169.254.169.254", "10.0.0.1", "[::1]", "[fd00:ec2::254]"] {
            let create = own(format!("https://{private}:{port}/token"));
            let refused = harness.providers().create_provider(create).await.unwrap_err();
            assert_eq!((refused.code(), reason(&refused).as_str()), (Code::InvalidArgument, "INVALID_FIELD"), "{private}");
        }
        // What a name means is seen at the call.
        harness.providers().create_provider(own(format!("https://localhost:{port}/token"))).await.unwrap();
        let request = v1::CreateRedirectUrlRequest { url: APP_URL.into(), ..Default::default() };
        harness.redirect_urls().create_redirect_url(request).await.unwrap();
        let request = v1::StartLinkRequest {
            user_id: "u".into(),
            provider: "own".into(),
            redirect_url: APP_URL.into(),
            ..Default::default()
        };
        let started = harness.accounts().start_link(request).await.unwrap().into_inner();
        let state = parameter(&started.authorization_url.parse().unwrap(), "state").unwrap();
        let callback = harness.web(&format!("/oauth/callback/own?state={state}&code=a-code"));
        let ticket = harness.ticket_of(callback.parse().unwrap()).await;
        let refused = harness.complete("u", &ticket).await.unwrap_err();
        assert_eq!((refused.code(), reason(&refused).as_str()), (Code::FailedPrecondition, "FLOW_OUTCOME_UNKNOWN"), "{refused}");
        assert!(!refused.message().contains("localhost"), "{refused}");
        assert_eq!(reason(&harness.get_at("own", "u").await.unwrap_err()), "ACCOUNT_NOT_LINKED");
        assert_eq!(peer.connections(), 0, "refused before connecting");
    }

    async fn p19_in_production_a_token_url_at_a_private_address_gets_no_refresh_token(engine) {
        let mut harness = linked_at_own(engine).await;
        let peer = Peer::json(200, r#"{"access_token":"a"}"#).await;
        let (port, good) = (peer.address.port(), format!("{}/token", harness.sandbox.base_url()));
        let old = harness.get_at("own", "u").await.unwrap().access_token;
        // A grant that a sandbox gave cannot come to be in production; its store is told that it is one.
        become_kind(&mut harness, InstanceKind::Production).await;
        harness.pass(DUE);
        for private in ["localhost", "127.0.0.1", "169.254.169.254", "10.0.0.1", "[::1]", "[fd00:ec2::254]"] {
            harness.point("own", &format!("https://{private}:{port}/token")).await;
            let refused = patient(&harness, "own").await.unwrap_err();
            assert_unavailable(&refused);
            assert!(!refused.message().contains(private), "{refused}");
            assert_eq!(harness.get_at("own", "u").await.unwrap().access_token, old, "{private}");
            harness.pass(secs(6));
        }
        harness.pass(DEAD);
        assert_unavailable(&harness.get_at("own", "u").await.unwrap_err());
        assert_eq!((peer.connections(), harness.refreshes().len()), (0, 0), "refused before connecting");
        // Nothing was spent.
        harness.point("own", &good).await;
        become_kind(&mut harness, InstanceKind::Development).await;
        harness.pass(Duration::from_mins(16));
        assert!(harness.is_accepted(&harness.get_at("own", "u").await.unwrap().access_token).await);
        assert_eq!(harness.refreshes().len(), 1);
        assert_eq!(harness.events().await, counts([("account.linked", 1)]));
        harness.assert_each_redeemed_once();
    }
}

/// Makes another kind of instance of what is stored, and starts it as that.
async fn become_kind(harness: &mut Harness, kind: InstanceKind) {
    harness.stop().await;
    let change = format!("UPDATE instance SET kind = '{}'", kind.as_str());
    assert_eq!(harness.database().await.execute(&change).await, 1);
    harness.config.kind = kind;
    harness.config.public_url = Some("https://wallet.example.com".parse().unwrap());
    harness.restart().await;
}

#[tokio::test]
async fn p12_gigabytes_that_come_all_at_once_do_not_fill_the_memory() {
    // As many as the provider's gate lets pass at once.
    const USERS: usize = 13;
    let names: Vec<_> = (0..USERS).map(|n| format!("p{n}")).collect();
    let people = names.iter().map(|name| Person::named(name)).collect();
    let wallet = Wallet::running(Engine::Sqlite, Options { people, ..Options::default() }).await;
    for name in &names {
        wallet.link(name, name).await;
    }
    wallet.sandbox.set_faults([Rule::refresh(Effect::Huge(1 << 30))]);
    wallet.age("%").await;
    let before = peak(&wallet);
    let gets = futures_util::future::join_all(names.iter().map(|name| wallet.get(name, "sandbox"))).await;
    let grown = peak(&wallet) - before;
    for refused in gets {
        assert_unavailable(&refused.unwrap_err());
    }
    assert!(grown < 32 << 20, "{grown} bytes for {USERS} answers of a gigabyte");
    assert_eq!(wallet.token_requests("refresh_token").len(), USERS);
}

/// The most memory that the wallet's process has had so far, in bytes.
fn peak(wallet: &Wallet) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", wallet.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024
}

#[tokio::test]
async fn p10_nothing_of_what_a_provider_says_is_logged_or_told() {
    const SAID: &str = "canary-body-7Kq2mZx9";
    let html = |status| Reply::new(status).body(format!("<h1>{SAID}</h1>")).header("content-type", "text/html");
    let answers = [
        Reply::new(500).body(SAID),
        html(502),
        Reply::new(503).error("temporarily_unavailable").description(SAID),
        Reply::new(400).error("invalid_request").description(SAID),
        Reply::new(400).error("invalid_grant").description(SAID),
        html(200),
        Reply::new(200).body(format!(r#"{{"access_token": "{SAID}"#)),
        Reply::new(307).header("location", format!("https://{SAID}.example.com/?{SAID}")),
    ];
    let people = (0..answers.len()).map(|n| Person::named(&format!("p{n}"))).collect();
    let options = Options { people, ..Options::default() };
    let mut wallet = Wallet::new(Engine::Sqlite, options, &[("RUST_LOG", "trace")]).await;
    wallet.start().await;
    wallet.configure(token_wallet::sandbox::DEFAULT_CLIENT_SECRET).await;
    let searcher = Searcher::new(vec![Canary::new("a provider's answer", SAID)]);
    for (n, answer) in answers.iter().enumerate() {
        let user = format!("p{n}");
        wallet.link(&user, &user).await;
        wallet.sandbox.set_faults([Rule::refresh(Effect::Answer(answer.clone())).person(&user)]);
        wallet.age(&user).await;
        let refused = wallet.get(&user, "sandbox").await.unwrap_err();
        assert_unavailable(&refused);
        assert_eq!(searcher.find(format!("{refused:?}").as_bytes()), [], "{answer:?}");
        assert_eq!(wallet.token_requests("refresh_token").len(), n + 1, "{answer:?}");
    }
    wallet.terminate();
    assert!(wallet.end().await.success());
    for log in std::fs::read_dir(wallet.folder().join("logs")).unwrap() {
        let log = std::fs::read(log.unwrap().path()).unwrap();
        assert_eq!(searcher.find(&log), []);
    }
    let log = std::fs::read_to_string(wallet.folder().join("logs/1.stderr")).unwrap();
    let told = log.lines().filter(|line| line.contains("the token endpoint gave no token")).count();
    assert_eq!(told, answers.len(), "each failure is told, without its words");
}
