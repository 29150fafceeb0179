//! The sandbox provider, driven over real HTTP.

use std::io::Write as _;
use std::time::Duration;

use data_encoding::BASE64URL_NOPAD;
use reqwest::{Client as Http, Response, StatusCode};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;
use token_wallet::clock::{Clock, Hand, Timestamp};
use token_wallet::sandbox::{
    self, Client, DEFAULT_CLIENT_ID, DEFAULT_CLIENT_SECRET, Endpoint, ErrorFault, ExpiresInFault, Faults, Hold,
    Options, RedirectRule, RefreshTokenFault, Request, Rotation, Sandbox, TokenFaults, UserinfoFaults,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use url::Url;

const VERIFIER: &str = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";
const REDIRECT: &str = "http://127.0.0.1:4711/callback";
const ALL: &str = "openid profile email offline_access";

/// A sandbox on a clock that the test moves, and a client of it.
struct Scene {
    sandbox: Sandbox,
    http: Http,
    hand: Hand,
}

impl Scene {
    async fn new(options: Options) -> Self {
        let (clock, hand) = Clock::moved(Timestamp::from_millis(1_800_000_000_000));
        let sandbox = sandbox::start(Options { clock, ..options }).await.unwrap();
        Self { sandbox, http: browser(), hand }
    }

    async fn plain() -> Self {
        Self::new(Options::default()).await
    }

    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.sandbox.base_url())
    }

    fn authorization(&self, scope: &str, more: &[(&str, &str)]) -> Url {
        let challenge = BASE64URL_NOPAD.encode(&Sha256::digest(VERIFIER.as_bytes()));
        let mut url = Url::parse(&self.url("/authorize")).unwrap();
        url.query_pairs_mut()
            .append_pair("response_type", "code")
            .append_pair("client_id", DEFAULT_CLIENT_ID)
            .append_pair("redirect_uri", REDIRECT)
            .append_pair("scope", scope)
            .append_pair("state", "st&te")
            .append_pair("code_challenge", &challenge)
            .append_pair("code_challenge_method", "S256")
            .extend_pairs(more);
        url
    }

    async fn decide(&self, url: Url, form: &[(&str, &str)]) -> Response {
        self.http.post(url).form(form).send().await.unwrap()
    }

    async fn code(&self, scope: &str) -> String {
        let answer = self.decide(self.authorization(scope, &[]), &[("person", "demo"), ("decision", "approve")]).await;
        told(&answer, "code").unwrap()
    }

    async fn token(&self, form: &[(&str, &str)]) -> Response {
        let request = self.http.post(self.url("/token")).basic_auth(DEFAULT_CLIENT_ID, Some(DEFAULT_CLIENT_SECRET));
        request.form(form).send().await.unwrap()
    }

    async fn exchange(&self, code: &str, verifier: &str) -> (StatusCode, Value) {
        let form = [
            ("grant_type", "authorization_code"),
            ("code", code),
            ("redirect_uri", REDIRECT),
            ("code_verifier", verifier),
        ];
        read(self.token(&form).await).await
    }

    async fn linked(&self, scope: &str) -> Value {
        let (status, answer) = self.exchange(&self.code(scope).await, VERIFIER).await;
        assert_eq!(status, 200, "{}", answer["error_description"]);
        answer
    }

    async fn refresh(&self, token: &str) -> (StatusCode, Value) {
        read(self.token(&[("grant_type", "refresh_token"), ("refresh_token", token)]).await).await
    }

    async fn userinfo(&self, token: &str) -> Response {
        self.http.get(self.url("/userinfo")).bearer_auth(token).send().await.unwrap()
    }

    async fn lives(&self, token: &str) -> bool {
        self.userinfo(token).await.status() == 200
    }

    async fn put(&self, path: &str, body: &Value) -> (StatusCode, Value) {
        read(self.http.put(self.url(path)).json(body).send().await.unwrap()).await
    }

    async fn get(&self, path: &str) -> (StatusCode, Value) {
        read(self.http.get(self.url(path)).send().await.unwrap()).await
    }

    fn last(&self, endpoint: Endpoint) -> Request {
        self.sandbox.requests().into_iter().rfind(|request| request.endpoint == endpoint).unwrap()
    }
}

/// An HTTP client that follows no redirect.
#[expect(clippy::disallowed_methods, reason = "a test's own client is not the wallet's")]
fn browser() -> Http {
    let _ = rustls::crypto::ring::default_provider().install_default();
    Http::builder().redirect(reqwest::redirect::Policy::none()).no_proxy().build().unwrap()
}

/// A parameter of the redirect that an answer makes.
fn told(answer: &Response, name: &str) -> Option<String> {
    let location = Url::parse(answer.headers()["location"].to_str().unwrap()).unwrap();
    location.query_pairs().find(|(key, _)| key == name).map(|(_, value)| value.into_owned())
}

async fn read(answer: Response) -> (StatusCode, Value) {
    let (status, text) = (answer.status(), answer.text().await.unwrap());
    (status, serde_json::from_str(&text).unwrap_or_default())
}

fn text<'a>(answer: &'a Value, field: &str) -> &'a str {
    answer[field].as_str().unwrap()
}

fn refused((status, answer): (StatusCode, Value)) -> String {
    assert_eq!(status, 400);
    serde_json::from_value(answer["error"].clone()).unwrap()
}

#[tokio::test]
async fn discovery_describes_the_endpoints_that_answer() {
    let scene = Scene::plain().await;
    let (status, metadata) = scene.get("/.well-known/openid-configuration").await;
    assert_eq!(status, 200);
    assert_eq!(metadata, scene.get("/.well-known/oauth-authorization-server").await.1);
    assert_eq!(text(&metadata, "issuer"), scene.sandbox.base_url());
    assert_eq!(metadata["code_challenge_methods_supported"], json!(["S256"]));
    for endpoint in ["authorization_endpoint", "token_endpoint", "revocation_endpoint", "userinfo_endpoint", "jwks_uri"]
    {
        let answer = scene.http.get(text(&metadata, endpoint)).send().await.unwrap();
        assert_ne!(answer.status(), 404, "{endpoint}");
    }
}

#[tokio::test]
async fn a_form_post_approves_and_the_code_gives_tokens_and_an_identity() {
    let scene = Scene::plain().await;
    let url = scene.authorization(ALL, &[("nonce", "n-1")]);
    let answer = scene.decide(url, &[("person", "alice"), ("decision", "approve")]).await;
    assert_eq!(answer.status(), 303);
    assert_eq!(told(&answer, "state").as_deref(), Some("st&te"));
    assert_eq!(told(&answer, "iss"), Some(scene.sandbox.base_url()));
    let form = [
        ("grant_type", "authorization_code"),
        ("code", &told(&answer, "code").unwrap()),
        ("redirect_uri", REDIRECT),
        ("code_verifier", VERIFIER),
    ];
    let answer = scene.token(&form).await;
    assert_eq!(answer.headers()["cache-control"], "no-store");
    let (_, tokens) = read(answer).await;
    assert!(text(&tokens, "access_token").starts_with("sbx_at_"));
    assert!(text(&tokens, "refresh_token").starts_with("sbx_rt_"));
    assert_eq!((&tokens["token_type"], &tokens["expires_in"]), (&json!("Bearer"), &json!(3600)));
    assert_eq!(text(&tokens, "scope"), ALL);
    let (_, person) = read(scene.userinfo(text(&tokens, "access_token")).await).await;
    assert_eq!(
        person,
        json!({ "sub": "person-alice", "name": "Alice", "preferred_username": "alice",
            "email": "alice@sandbox.example", "email_verified": true })
    );

    let (signed, signature) = text(&tokens, "id_token").rsplit_once('.').unwrap();
    let claims = BASE64URL_NOPAD.decode(signed.split_once('.').unwrap().1.as_bytes()).unwrap();
    let claims: Value = serde_json::from_slice(&claims).unwrap();
    let at_hash = BASE64URL_NOPAD.encode(&Sha256::digest(text(&tokens, "access_token").as_bytes())[..16]);
    assert_eq!((text(&claims, "nonce"), text(&claims, "at_hash")), ("n-1", at_hash.as_str()));
    assert_eq!((text(&claims, "iss"), text(&claims, "aud")), (scene.sandbox.base_url().as_str(), DEFAULT_CLIENT_ID));
    assert_eq!((&claims["sub"], &claims["exp"]), (&person["sub"], &json!(1_800_003_600)));
    let key = scene.get("/jwks").await.1["keys"][0].clone();
    let mut point = vec![4];
    point.extend(["x", "y"].map(|axis| BASE64URL_NOPAD.decode(text(&key, axis).as_bytes()).unwrap()).concat());
    let key = ring::signature::UnparsedPublicKey::new(&ring::signature::ECDSA_P256_SHA256_FIXED, point);
    key.verify(signed.as_bytes(), &BASE64URL_NOPAD.decode(signature.as_bytes()).unwrap()).unwrap();
}

#[tokio::test]
async fn the_page_offers_people_carries_the_request_and_can_be_posted_as_it_stands() {
    let scene = Scene::plain().await;
    let url = scene.authorization("openid \u{3c}b\u{3e}", &[("login_hint", "bob@sandbox.example")]);
    let answer = scene.http.get(url.clone()).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    let policy = answer.headers()["content-security-policy"].to_str().unwrap();
    assert!(policy.starts_with("default-src 'none'; style-src 'sha256-"));
    let page = answer.text().await.unwrap();
    assert!(page.contains("name=\"state\" value=\"st&amp;te\""));
    assert!(page.contains("value=\"bob\" checked"));
    assert!(!page.contains("<b>") && !page.contains("<script"));
    let mut form: Vec<(String, String)> = url.query_pairs().into_owned().collect();
    form.push(("decision".into(), "approve".into()));
    let answer = scene.http.post(scene.url("/authorize")).form(&form).send().await.unwrap();
    let tokens = scene.exchange(&told(&answer, "code").unwrap(), VERIFIER).await.1;
    let person = read(scene.userinfo(text(&tokens, "access_token")).await).await.1;
    assert_eq!(person["sub"], "person-bob", "login_hint decides where nobody is named");
    assert!(tokens.get("refresh_token").is_none(), "offline_access was not asked for");
}

#[tokio::test]
async fn requests_that_cannot_be_trusted_get_a_page_and_the_others_a_redirect() {
    let scene = Scene::plain().await;
    for (name, value) in [("client_id", "nobody"), ("redirect_uri", "https://example.com/"), ("redirect_uri", "")] {
        let mut url = scene.authorization(ALL, &[]);
        let pairs: Vec<(String, String)> = url.query_pairs().into_owned().collect();
        let changed = pairs.iter().map(|(key, old)| (key.as_str(), if key == name { value } else { old.as_str() }));
        url.query_pairs_mut().clear().extend_pairs(changed);
        let answer = scene.decide(url, &[("decision", "approve")]).await;
        assert_eq!((answer.status(), answer.headers().get("location")), (StatusCode::BAD_REQUEST, None));
    }
    for (more, error) in [
        (("prompt", "none"), "login_required"),
        (("request", "x"), "request_not_supported"),
        (("scope", "twice"), "invalid_request"),
        (("response_mode", "fragment"), "invalid_request"),
    ] {
        let answer = scene.http.get(scene.authorization(ALL, &[more])).send().await.unwrap();
        assert_eq!(told(&answer, "error").as_deref(), Some(error));
        assert_eq!(told(&answer, "state").as_deref(), Some("st&te"));
        assert_eq!(told(&answer, "iss"), Some(scene.sandbox.base_url()));
    }
    let plain = scene.authorization(ALL, &[]).as_str().replace("S256", "plain");
    let answer = scene.http.get(plain).send().await.unwrap();
    assert_eq!(told(&answer, "error").as_deref(), Some("invalid_request"));
    let answer = scene.decide(scene.authorization(ALL, &[]), &[("decision", "cancel")]).await;
    assert_eq!(told(&answer, "error").as_deref(), Some("access_denied"));
    let answer = scene.decide(scene.authorization(ALL, &[]), &[("decision", "approve"), ("person", "eve")]).await;
    assert_eq!(answer.status(), 400);
}

#[tokio::test]
async fn a_wrong_verifier_redirect_uri_client_or_a_late_code_gives_nothing() {
    let phone = Client::public("phone", RedirectRule::Loopback);
    let mut options = Options::default();
    options.clients.push(phone);
    let scene = Scene::new(options).await;
    let code = scene.code(ALL).await;
    let wrong = VERIFIER.replace('d', "e");
    assert_eq!(refused(scene.exchange(&code, &wrong).await), "invalid_grant");
    let form = [("grant_type", "authorization_code"), ("code", &code), ("code_verifier", VERIFIER)];
    assert_eq!(refused(read(scene.token(&form).await).await), "invalid_grant");
    let form = [form[0], form[1], form[2], ("redirect_uri", REDIRECT), ("client_id", "phone")];
    let answer = scene.http.post(scene.url("/token")).form(&form).send().await.unwrap();
    assert_eq!(refused(read(answer).await), "invalid_grant");
    let answer = scene.http.post(scene.url("/token")).basic_auth("sandbox", Some("no")).form(&form[..4]);
    let answer = answer.send().await.unwrap();
    assert_eq!(
        (answer.status(), &answer.headers()["www-authenticate"]),
        (StatusCode::UNAUTHORIZED, &"Basic realm=\"sandbox\"".parse().unwrap())
    );
    assert_eq!(read(answer).await.1["error"], "invalid_client");
    scene.hand.advance(Duration::from_mins(1));
    assert_eq!(refused(scene.exchange(&code, VERIFIER).await), "invalid_grant");
}

#[tokio::test]
async fn a_public_client_proves_itself_by_pkce_alone() {
    let options = Options {
        clients: vec![Client::public(DEFAULT_CLIENT_ID, RedirectRule::Exact(vec![REDIRECT.into()]))],
        ..Options::default()
    };
    let scene = Scene::new(options).await;
    let code = scene.code(ALL).await;
    let form = [
        ("grant_type", "authorization_code"),
        ("client_id", DEFAULT_CLIENT_ID),
        ("code", &code),
        ("redirect_uri", REDIRECT),
        ("code_verifier", VERIFIER),
    ];
    let (status, tokens) = read(scene.http.post(scene.url("/token")).form(&form).send().await.unwrap()).await;
    assert_eq!(status, 200);
    assert!(scene.lives(text(&tokens, "access_token")).await);
}

#[tokio::test]
async fn using_a_code_twice_revokes_what_it_gave() {
    let scene = Scene::plain().await;
    let code = scene.code(ALL).await;
    let tokens = scene.exchange(&code, VERIFIER).await.1;
    assert!(scene.lives(text(&tokens, "access_token")).await);
    assert_eq!(refused(scene.exchange(&code, VERIFIER).await), "invalid_grant");
    assert!(!scene.lives(text(&tokens, "access_token")).await);
    assert_eq!(refused(scene.refresh(text(&tokens, "refresh_token")).await), "invalid_grant");
}

#[tokio::test]
async fn rotation_always_kills_the_old_refresh_token_and_only_it() {
    let scene = Scene::plain().await;
    let first = scene.linked(ALL).await;
    let second = scene.refresh(text(&first, "refresh_token")).await.1;
    assert_ne!(first["refresh_token"], second["refresh_token"]);
    assert_eq!(refused(scene.refresh(text(&first, "refresh_token")).await), "invalid_grant");
    assert!(scene.lives(text(&second, "access_token")).await && scene.lives(text(&first, "access_token")).await);
    assert_eq!(scene.refresh(text(&second, "refresh_token")).await.0, 200);
}

#[tokio::test]
async fn rotation_never_keeps_the_refresh_token_and_does_not_repeat_it() {
    let scene = Scene::new(Options { rotation: Rotation::Never, ..Options::default() }).await;
    let first = scene.linked(ALL).await;
    for _ in 0..2 {
        let (status, next) = scene.refresh(text(&first, "refresh_token")).await;
        assert_eq!((status, next.get("refresh_token")), (StatusCode::OK, None));
        assert_ne!(first["access_token"], next["access_token"]);
    }
    scene.hand.advance(Duration::from_hours(30 * 24));
    assert_eq!(refused(scene.refresh(text(&first, "refresh_token")).await), "invalid_grant");
}

#[tokio::test]
async fn rotation_with_grace_answers_an_old_token_until_the_grace_ends() {
    let scene = Scene::new(Options { rotation: Rotation::Grace(Duration::from_secs(30)), ..Options::default() }).await;
    let first = scene.linked(ALL).await;
    let second = scene.refresh(text(&first, "refresh_token")).await.1;
    scene.hand.advance(Duration::from_secs(29));
    let twin = scene.refresh(text(&first, "refresh_token")).await.1;
    assert_ne!(second["refresh_token"], twin["refresh_token"]);
    scene.hand.advance(Duration::from_secs(1));
    assert_eq!(refused(scene.refresh(text(&first, "refresh_token")).await), "invalid_grant");
    for successor in [second, twin] {
        assert_eq!(scene.refresh(text(&successor, "refresh_token")).await.0, 200);
    }
}

#[tokio::test]
async fn reuse_ends_the_family_where_that_is_the_rule() {
    let scene = Scene::new(Options { reuse_revokes_family: true, ..Options::default() }).await;
    let (first, other) = (scene.linked(ALL).await, scene.linked(ALL).await);
    let second = scene.refresh(text(&first, "refresh_token")).await.1;
    assert_eq!(refused(scene.refresh(text(&first, "refresh_token")).await), "invalid_grant");
    assert!(!scene.lives(text(&second, "access_token")).await);
    assert_eq!(refused(scene.refresh(text(&second, "refresh_token")).await), "invalid_grant");
    assert!(scene.lives(text(&other, "access_token")).await, "another consent of the same person goes on");
}

#[tokio::test]
async fn a_refresh_can_narrow_its_scopes_and_never_widen_them() {
    let scene = Scene::new(Options { rotation: Rotation::Never, ..Options::default() }).await;
    let first = scene.linked("openid profile offline_access").await;
    let form =
        |scope| [("grant_type", "refresh_token"), ("refresh_token", text(&first, "refresh_token")), ("scope", scope)];
    let (_, narrow) = read(scene.token(&form("openid")).await).await;
    assert_eq!(narrow["scope"], "openid");
    assert_eq!(read(scene.userinfo(text(&narrow, "access_token")).await).await.1, json!({ "sub": "person-demo" }));
    assert_eq!(refused(read(scene.token(&form("openid email")).await).await), "invalid_scope");
}

#[tokio::test]
async fn revoking_an_access_token_ends_it_and_revoking_a_refresh_token_ends_all() {
    let mut options = Options::default();
    options.clients.push(Client::public("phone", RedirectRule::Loopback));
    let scene = Scene::new(options).await;
    let first = scene.linked(ALL).await;
    let second = scene.refresh(text(&first, "refresh_token")).await.1;
    let revoke = async |token: &str| {
        let request = scene.http.post(scene.url("/revoke")).basic_auth(DEFAULT_CLIENT_ID, Some(DEFAULT_CLIENT_SECRET));
        request.form(&[("token", token)]).send().await.unwrap().status()
    };
    let foreign = [("token", text(&second, "refresh_token")), ("client_id", "phone")];
    let foreign = scene.http.post(scene.url("/revoke")).form(&foreign).send().await.unwrap();
    assert_eq!(refused(read(foreign).await), "unauthorized_client");
    assert_eq!(revoke("sbx_at_nothing").await, 200);
    assert_eq!(revoke(text(&first, "access_token")).await, 200);
    assert!(!scene.lives(text(&first, "access_token")).await);
    assert!(scene.lives(text(&second, "access_token")).await);
    assert_eq!(revoke(text(&second, "refresh_token")).await, 200);
    assert!(!scene.lives(text(&second, "access_token")).await);
    assert_eq!(refused(scene.refresh(text(&second, "refresh_token")).await), "invalid_grant");
}

#[tokio::test]
async fn userinfo_refuses_expired_missing_and_doubled_tokens() {
    let scene = Scene::new(Options { token_ttl: Duration::from_mins(1), ..Options::default() }).await;
    let tokens = scene.linked(ALL).await;
    let token = text(&tokens, "access_token");
    scene.hand.advance(Duration::from_millis(59_999));
    assert!(scene.lives(token).await);
    let posted = scene.http.post(scene.url("/userinfo")).form(&[("access_token", token)]).send().await.unwrap();
    assert_eq!(posted.status(), 200);
    let doubled = scene.http.post(scene.url("/userinfo")).bearer_auth(token).form(&[("access_token", token)]);
    assert_eq!(refused(read(doubled.send().await.unwrap()).await), "invalid_request");
    scene.hand.advance(Duration::from_millis(1));
    let late = scene.userinfo(token).await;
    assert_eq!(late.status(), 401);
    assert_eq!(late.headers()["www-authenticate"], "Bearer realm=\"sandbox\", error=\"invalid_token\"");
    let bare = scene.http.get(scene.url("/userinfo")).send().await.unwrap();
    assert_eq!(bare.headers()["www-authenticate"], "Bearer realm=\"sandbox\"");
}

#[tokio::test]
async fn malformed_requests_get_the_shape_of_rfc_6749() {
    let scene = Scene::plain().await;
    assert_eq!(refused(read(scene.token(&[("grant_type", "password")]).await).await), "unsupported_grant_type");
    assert_eq!(refused(read(scene.token(&[("code", "x")]).await).await), "invalid_request");
    let twice = [("grant_type", "refresh_token"), ("refresh_token", "a"), ("refresh_token", "b")];
    assert_eq!(refused(read(scene.token(&twice).await).await), "invalid_request");
    let json = scene.http.post(scene.url("/token")).json(&json!({ "grant_type": "refresh_token" }));
    assert_eq!(refused(read(json.send().await.unwrap()).await), "invalid_request");
    let huge = "x".repeat(64 * 1024 + 1);
    for path in ["/token", "/revoke", "/authorize"] {
        let answer = scene.http.post(scene.url(path)).form(&[("token", &huge)]).send().await.unwrap();
        assert_eq!(answer.status(), 413, "{path}");
    }
    let noise = scene.http.post(scene.url("/token")).header("content-type", "application/x-www-form-urlencoded");
    let noise = noise.header("authorization", &b"Basic \xff%%%"[..]).body(vec![0xff, 0xfe, b'&', b'=', b'%', 0]);
    assert_eq!(refused(read(noise.send().await.unwrap()).await), "invalid_request");
}

#[tokio::test]
async fn noise_on_the_wire_ends_its_connection_and_nothing_else() {
    let scene = Scene::plain().await;
    let long = format!("GET /jwks HTTP/1.1\r\nhost: x\r\nnoise: {}\r\n\r\n", "x".repeat(1 << 20));
    let many = format!("GET /jwks HTTP/1.1\r\n{}\r\n", "noise: x\r\n".repeat(1000));
    for noise in [&b"\x00\xff\x16\x03\r\n\r\n"[..], b"POST /token HTTP/1.1\r\n\r\n", long.as_bytes(), many.as_bytes()] {
        let mut wire = TcpStream::connect(scene.sandbox.addr()).await.unwrap();
        // The other side may hang up in the middle of it.
        let _ = wire.write_all(noise).await;
        let _ = wire.shutdown().await;
        let mut answer = Vec::new();
        let _ = wire.read_to_end(&mut answer).await;
        assert!(!answer.starts_with(b"HTTP/1.1 2"), "{}", String::from_utf8_lossy(&answer));
    }
    assert_eq!(scene.get("/jwks").await.0, 200);
}

#[tokio::test]
async fn of_many_redemptions_at_once_one_succeeds() {
    let scene = Scene::plain().await;
    let first = scene.linked(ALL).await;
    let all = (0..32).map(|_| scene.refresh(text(&first, "refresh_token")));
    let outcomes = futures_util::future::join_all(all).await;
    assert_eq!(outcomes.iter().filter(|(status, _)| *status == 200).count(), 1);
}

#[tokio::test]
async fn the_state_file_survives_a_restart_and_a_torn_last_line() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("sandbox.jsonl");
    let kept = || Options { state_file: Some(path.clone()), ..Options::default() };
    let scene = Scene::new(kept()).await;
    let (tokens, gone) = (scene.linked(ALL).await, scene.linked(ALL).await);
    let used = scene.refresh(text(&tokens, "refresh_token")).await.1;
    let revoke = scene.http.post(scene.url("/revoke")).basic_auth(DEFAULT_CLIENT_ID, Some(DEFAULT_CLIENT_SECRET));
    revoke.form(&[("token", text(&gone, "refresh_token"))]).send().await.unwrap();
    let unspent = scene.code(ALL).await;
    let key = scene.get("/jwks").await.1;
    assert!(sandbox::start(kept()).await.is_err(), "a state file belongs to one sandbox");
    let before = std::fs::read(&path).unwrap();
    scene.sandbox.shutdown().await;
    assert_eq!(std::fs::read(&path).unwrap(), before, "nothing waits for the shutdown to be written");
    assert!(!String::from_utf8(before).unwrap().contains("sbx_"), "only hashes are kept");
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&path).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);

    let mut file = std::fs::OpenOptions::new().append(true).open(&path).unwrap();
    file.write_all(b"[{\"change\":\"family_ended\",\"id\":\"fam").unwrap();
    for _ in 0..2 {
        let scene = Scene::new(kept()).await;
        assert_eq!(scene.get("/jwks").await.1, key);
        assert!(scene.lives(text(&used, "access_token")).await);
        assert!(!scene.lives(text(&gone, "access_token")).await);
        assert_eq!(refused(scene.refresh(text(&tokens, "refresh_token")).await), "invalid_grant");
        scene.sandbox.shutdown().await;
    }
    let scene = Scene::new(kept()).await;
    assert_eq!(scene.exchange(&unspent, VERIFIER).await.0, 200);
    assert_eq!(scene.refresh(text(&used, "refresh_token")).await.0, 200);
    scene.sandbox.shutdown().await;

    std::fs::write(&path, "not json\n[]\n").unwrap();
    let error = sandbox::start(kept()).await.err().unwrap();
    assert!(error.to_string().contains("line 1"), "{error}");
}

#[tokio::test]
async fn the_log_tells_who_spent_what_by_fingerprint_and_never_a_secret() {
    let scene = Scene::new(Options { secret_prefix: Some("canary-7".into()), ..Options::default() }).await;
    let code = scene.code(ALL).await;
    let first = scene.exchange(&code, VERIFIER).await.1;
    scene.refresh(text(&first, "refresh_token")).await;
    scene.refresh(text(&first, "refresh_token")).await;
    assert!(scene.lives(text(&first, "access_token")).await);
    let (_, log) = scene.get("/_sandbox/requests?since=2").await;
    assert_eq!((&log["last_sequence"], log["requests"].as_array().unwrap().len()), (&json!(5), 3));

    let seen = scene.sandbox.requests();
    let fingerprint = |answer: &Value, field| Some(Sandbox::fingerprint(text(answer, field)));
    let [approved, exchanged, once, twice, asked] = &seen[..] else { panic!("{} requests", seen.len()) };
    assert_eq!(approved.issued.code, Some(Sandbox::fingerprint(&code)));
    assert_eq!(exchanged.presented.code, approved.issued.code);
    assert_eq!(exchanged.issued.refresh_token, fingerprint(&first, "refresh_token"));
    assert_eq!((once.status, once.error.as_deref()), (200, None));
    assert_eq!((twice.status, twice.error.as_deref()), (400, Some("invalid_grant")));
    assert_eq!(once.presented, twice.presented);
    assert_eq!(once.presented.refresh_token, exchanged.issued.refresh_token);
    assert_eq!(asked.presented.access_token, fingerprint(&first, "access_token"));
    assert!(seen[1..].iter().all(|request| request.family.is_some() && request.family == once.family));
    assert_eq!((once.client_id.as_deref(), once.grant_type.as_deref()), (Some("sandbox"), Some("refresh_token")));
    assert_eq!((once.sequence, once.time), (3, 1_800_000_000_000));
    let written = serde_json::to_string(&seen).unwrap();
    assert!(code.starts_with("canary-7sbx_ac_") && !written.contains("canary") && !written.contains("sbx_"));

    assert_eq!(scene.http.delete(scene.url("/_sandbox/requests")).send().await.unwrap().status(), 204);
    assert_eq!(scene.get("/_sandbox/requests").await.1, json!({ "requests": [], "last_sequence": 5 }));
}

#[tokio::test]
async fn settings_change_while_it_runs_and_nonsense_changes_nothing() {
    let scene = Scene::plain().await;
    let (status, changed) =
        scene.put("/_sandbox/settings", &json!({ "token_ttl_seconds": 20, "rotation": { "grace_seconds": 5 } })).await;
    assert_eq!((status, &changed["code_ttl_seconds"]), (StatusCode::OK, &json!(60)));
    assert_eq!(scene.sandbox.settings().rotation, Rotation::Grace(Duration::from_secs(5)));
    assert_eq!(scene.linked(ALL).await["expires_in"], 20);
    for nonsense in [json!({ "token_ttl": 1 }), json!({ "token_ttl_seconds": -1 }), json!([1])] {
        assert_eq!(scene.put("/_sandbox/settings", &nonsense).await.0, 400);
    }
    assert_eq!(scene.get("/_sandbox/settings").await.1, changed);
}

#[tokio::test]
async fn a_withheld_refresh_token_leaves_the_presented_one_good() {
    let scene = Scene::plain().await;
    let first = scene.linked(ALL).await;
    for (fault, seen) in [("omit", None), ("empty", Some(json!(""))), ("null", Some(Value::Null))] {
        scene.put("/_sandbox/faults", &json!({ "refresh": { "refresh_token": fault } })).await;
        let (status, answer) = scene.refresh(text(&first, "refresh_token")).await;
        assert_eq!((status, answer.get("refresh_token").cloned()), (StatusCode::OK, seen));
        assert!(scene.lives(text(&answer, "access_token")).await);
    }
    let exchange = TokenFaults { refresh_token: Some(RefreshTokenFault::Omit), ..TokenFaults::default() };
    scene.sandbox.set_faults(Faults { exchange, ..Faults::default() });
    assert!(scene.linked(ALL).await.get("refresh_token").is_none());
    assert!(scene.refresh(text(&first, "refresh_token")).await.1["refresh_token"].is_string());
}

#[tokio::test]
async fn expires_in_can_be_anything_while_the_token_lives_as_ever() {
    let scene = Scene::new(Options { rotation: Rotation::Never, ..Options::default() }).await;
    let first = scene.linked(ALL).await;
    for raw in ["null", "\"3600\"", "3599.5", "0", "-1", "1000000000000000000", "1e400", "\"soon\""] {
        scene.put("/_sandbox/faults", &json!({ "refresh": { "expires_in": { "raw": raw } } })).await;
        let form = [("grant_type", "refresh_token"), ("refresh_token", text(&first, "refresh_token"))];
        let body = scene.token(&form).await.text().await.unwrap();
        assert!(body.contains(&format!("\"expires_in\":{raw}")), "{raw}");
    }
    let refresh = TokenFaults { expires_in: Some(ExpiresInFault::Omit), ..TokenFaults::default() };
    scene.sandbox.set_faults(Faults { refresh, ..Faults::default() });
    let (_, answer) = scene.refresh(text(&first, "refresh_token")).await;
    assert!(answer.get("expires_in").is_none() && scene.lives(text(&answer, "access_token")).await);
    scene.http.delete(scene.url("/_sandbox/faults")).send().await.unwrap();
    assert_eq!(scene.refresh(text(&first, "refresh_token")).await.1["expires_in"], 3600);
}

#[tokio::test]
async fn an_injected_error_is_told_as_often_as_asked_and_spends_nothing() {
    let scene = Scene::plain().await;
    let first = scene.linked(ALL).await;
    let fault = json!({ "refresh": { "error": { "status": 400, "error": "invalid_grant", "times": 2 } } });
    scene.put("/_sandbox/faults", &fault).await;
    for _ in 0..2 {
        assert_eq!(refused(scene.refresh(text(&first, "refresh_token")).await), "invalid_grant");
    }
    let request = scene.last(Endpoint::Token);
    assert_eq!((request.status, request.error.as_deref()), (400, Some("invalid_grant")));
    assert_eq!(request.presented.refresh_token, Some(Sandbox::fingerprint(text(&first, "refresh_token"))));
    assert_eq!(scene.refresh(text(&first, "refresh_token")).await.0, 200);
    let error = ErrorFault { status: 503, error: "temporarily_unavailable".into(), times: None };
    let userinfo = UserinfoFaults { error: Some(error), hold: None };
    scene.sandbox.set_faults(Faults { userinfo, ..Faults::default() });
    for _ in 0..2 {
        assert_eq!(scene.userinfo(text(&first, "access_token")).await.status(), 503);
    }
    assert_eq!(scene.put("/_sandbox/faults", &json!({ "refresh": { "typo": 1 } })).await.0, 400);
    assert!(!scene.lives(text(&first, "access_token")).await, "a refused change changes nothing");
}

#[tokio::test]
async fn a_held_request_waits_before_or_after_the_work() {
    let scene = Scene::plain().await;
    let first = scene.linked(ALL).await;
    for (place, done) in [("before", 0), ("after", 1)] {
        scene.put("/_sandbox/faults", &json!({ "exchange": { "hold": place } })).await;
        let code = scene.code(ALL).await;
        let decided = scene.sandbox.requests().len();
        let act = async {
            assert_eq!(scene.get("/_sandbox/faults?held=1").await.1["held"], 1);
            assert_eq!(scene.sandbox.requests().len(), decided + done, "{place}");
            assert_eq!(scene.refresh(text(&first, "refresh_token")).await.0, if done == 0 { 200 } else { 400 });
            scene.http.post(scene.url("/_sandbox/faults/release")).send().await.unwrap();
        };
        let ((status, _), ()) = tokio::join!(scene.exchange(&code, VERIFIER), act);
        assert_eq!(status, 200);
    }
    assert_eq!(scene.get("/_sandbox/faults?held=0").await.1, json!({ "held": 0, "faults": Faults::default() }));
}

#[tokio::test]
async fn what_has_arrived_is_done_even_if_its_caller_goes_away() {
    let scene = Scene::plain().await;
    let first = scene.linked(ALL).await;
    let old = text(&first, "refresh_token");
    let refresh = TokenFaults { hold: Some(Hold::Before), ..TokenFaults::default() };
    scene.sandbox.set_faults(Faults { refresh, ..Faults::default() });
    tokio::select! {
        _ = scene.refresh(old) => panic!("the answer was not held"),
        () = scene.sandbox.wait_held(1) => {}
    }
    for _ in 0..8 {
        // Round trips in which the sandbox sees that the connection is gone.
        assert_eq!(scene.get("/jwks").await.0, 200);
    }
    scene.sandbox.release();
    let done = async {
        while scene.last(Endpoint::Token).grant_type.as_deref() != Some("refresh_token") {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), done).await.unwrap();
    assert_eq!(scene.last(Endpoint::Token).status, 200, "the caller is gone, the token is spent");
    assert_eq!(refused(scene.refresh(old).await), "invalid_grant");
}

#[tokio::test]
async fn a_shutdown_answers_what_is_held_and_frees_the_port() {
    let scene = Scene::plain().await;
    let first = scene.linked(ALL).await;
    let refresh = TokenFaults { hold: Some(Hold::Before), ..TokenFaults::default() };
    scene.sandbox.set_faults(Faults { refresh, ..Faults::default() });
    let (url, addr) = (scene.url("/token"), scene.sandbox.addr());
    let form = [("grant_type", "refresh_token"), ("refresh_token", text(&first, "refresh_token"))];
    let held = scene.http.post(url).basic_auth(DEFAULT_CLIENT_ID, Some(DEFAULT_CLIENT_SECRET)).form(&form).send();
    let sandbox = scene.sandbox;
    let stop = async {
        sandbox.wait_held(1).await;
        sandbox.shutdown().await;
    };
    let (answer, ()) = tokio::join!(held, stop);
    assert_eq!(answer.unwrap().status(), 200);
    let again = sandbox::start(Options { addr, ..Options::default() }).await.unwrap();
    assert_eq!(again.addr(), addr);
}
