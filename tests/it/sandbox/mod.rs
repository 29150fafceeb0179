//! The sandbox provider, driven over real HTTP.

mod control;
mod docs;
mod faults;
mod flow;
mod grants;
mod tokens;

use std::io::Write as _;
use std::time::Duration;

use data_encoding::BASE64URL_NOPAD;
use reqwest::{Client as Http, Response, StatusCode};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;
use token_wallet::clock::{Clock, Hand, Timestamp};
use token_wallet::sandbox::{
    self, Client, DEFAULT_CLIENT_ID, DEFAULT_CLIENT_SECRET, Effect, Ending, Endpoint, Grant, Options, RedirectRule,
    Repeated, Reply, Request, Reuse, Rotation, Rule, Sandbox, When,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use url::Url;

use crate::support::browser;

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
        Self { sandbox, http: browser::new(), hand }
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
        self.code_of("demo", scope).await
    }

    async fn code_of(&self, person: &str, scope: &str) -> String {
        let answer = self.decide(self.authorization(scope, &[]), &[("person", person), ("decision", "approve")]).await;
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
        self.linked_as("demo", scope).await
    }

    async fn linked_as(&self, person: &str, scope: &str) -> Value {
        let (status, answer) = self.exchange(&self.code_of(person, scope).await, VERIFIER).await;
        assert_eq!(status, 200, "{}", answer["error_description"]);
        answer
    }

    async fn refresh(&self, token: &str) -> (StatusCode, Value) {
        read(self.token(&[("grant_type", "refresh_token"), ("refresh_token", token)]).await).await
    }

    async fn revoke(&self, token: &str) -> StatusCode {
        let request = self.http.post(self.url("/revoke")).basic_auth(DEFAULT_CLIENT_ID, Some(DEFAULT_CLIENT_SECRET));
        request.form(&[("token", token)]).send().await.unwrap().status()
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
