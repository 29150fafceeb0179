//! No secret leaves the wallet but by the answers that hand it out: a whole run of the real binary with everything
//! logged, whose every trace is searched for planted canaries in every encoding (support/canary.rs).

mod configurations;

use std::path::Path;
use std::process::Output;
use std::time::Duration;

use prost::Message as _;
use reqwest::{StatusCode, Url};
use token_wallet::proto::v1;
use token_wallet::proto::v1::complete_link_request::Proof;
use token_wallet::sandbox::{Client, DEFAULT_CLIENT_ID, Effect, Options, Person, RedirectRule, Rule};
use tonic::metadata::MetadataValue;
use tonic::{Request, Response, Status};

use crate::support::browser::parameter;
use crate::support::canary::{Canary, Searcher};
use crate::support::harness::{APP_URL, Engine, on_both_engines};
use crate::support::peer::{Peer, Reply, answer, json};
use crate::support::service::{DATABASE_PASSWORD, Wallet};

/// In front of every code and token of the sandbox.
const SANDBOX: &str = "canary-sandbox~5tR.";
/// Our client secret there, with characters that encodings change.
const CLIENT_SECRET: &str = "canary\"client\\secret/+%<&> W7pQ\"x/9=";
/// In whatever the other provider answers.
const PEER: &str = "canary-peer-3vNcX81b";
/// What strangers send us.
const STRANGER: &str = "canary-stranger-kL40zq7";

/// Each is a person of the sandbox as well.
const USERS: [&str; 9] =
    ["one", "two", "three", "five", "refresh", "invalid-grant", "unavailable", "misconfigured", "strange"];

on_both_engines! {
    async fn a_run_that_logs_everything_as_text_leaks_no_secret(engine) {
        run(engine, "pretty").await;
    }

    async fn a_run_that_logs_everything_as_json_leaks_no_secret(engine) {
        run(engine, "json").await;
    }
}

/// What was written or told, with its place.
#[derive(Default)]
struct Traces(Vec<(String, Vec<u8>)>);

/// Secrets that came to be during the run.
type Secrets = Vec<Canary>;

impl Traces {
    fn add(&mut self, place: impl Into<String>, bytes: impl Into<Vec<u8>>) {
        self.0.push((place.into(), bytes.into()));
    }

    /// An error with everything that it carries.
    fn refused<T>(&mut self, place: &str, result: Result<T, Status>) {
        let Err(status) = result else { panic!("{place}: not refused") };
        self.add(format!("{place}: message"), status.message());
        self.add(format!("{place}: details"), status.details());
        self.add(format!("{place}: all"), format!("{status:?}"));
    }

    /// An answer that has no secret to hand out.
    fn told<T: prost::Message>(&mut self, place: &str, result: Result<Response<T>, Status>) {
        let answer = result.unwrap();
        self.add(format!("{place}: metadata"), format!("{:?}", answer.metadata()));
        self.add(place, answer.into_inner().encode_to_vec());
    }

    async fn page(&mut self, place: &str, answer: reqwest::Response) {
        self.add(format!("{place}: head"), format!("{} {:?}", answer.status(), answer.headers()));
        self.add(place, answer.bytes().await.unwrap());
    }

    fn output(&mut self, place: &str, output: &Output) {
        self.add(format!("{place}: stdout"), output.stdout.clone());
        self.add(format!("{place}: stderr"), output.stderr.clone());
    }

    fn folder(&mut self, place: &str, folder: &Path) {
        for entry in folder.read_dir().unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                self.folder(place, &path);
                continue;
            }
            self.add(format!("{place}: {}", path.display()), std::fs::read(&path).unwrap());
        }
    }

    fn text_of(&self, place: &str) -> String {
        let found = self.0.iter().filter(|(name, _)| name.contains(place));
        found.map(|(_, bytes)| String::from_utf8_lossy(bytes)).collect()
    }
}

async fn run(engine: Engine, format: &str) {
    let client = Client::confidential(DEFAULT_CLIENT_ID, CLIENT_SECRET, RedirectRule::Loopback);
    let people = USERS.map(Person::named).into();
    let options = Options { secret_prefix: Some(SANDBOX.into()), clients: vec![client], people, ..Options::default() };
    let variables = [("RUST_LOG", "trace"), ("TOKEN_WALLET__LOG__FORMAT", format)];
    let mut wallet = Wallet::new(engine, options, &variables).await;
    let (mut traces, mut secrets) = (Traces::default(), planted(&wallet));
    wallet.start().await;
    wallet.configure(CLIENT_SECRET).await;

    flows(&wallet, &mut traces, &mut secrets).await;
    refreshes(&wallet, &mut traces, &mut secrets).await;
    odd_answers(&wallet, &mut traces, &mut secrets).await;
    strangers(&wallet, &mut traces).await;
    callers(&wallet, &mut traces, &mut secrets).await;
    command_line(&wallet, &mut traces);

    for page in ["/metrics", "/readyz", "/livez", "/nowhere"] {
        traces.page(page, wallet.http.get(wallet.ops(page)).send().await.unwrap()).await;
    }
    traces.add("cmdline", std::fs::read(format!("/proc/{}/cmdline", wallet.pid())).unwrap());
    database(engine, &wallet, "running", &mut traces).await;
    wallet.terminate();
    assert!(wallet.end().await.success());
    database(engine, &wallet, "stopped", &mut traces).await;
    traces.folder("logs", &wallet.folder().join("logs"));
    verify(&traces, secrets);
}

/// What is secret from the beginning.
fn planted(wallet: &Wallet) -> Secrets {
    let root_key = std::fs::read_to_string(wallet.folder().join("root.key")).unwrap();
    let root_key = root_key.trim_end();
    let store_url = std::fs::read_to_string(wallet.folder().join("store.url")).unwrap();
    let mut secrets: Secrets =
        [SANDBOX, CLIENT_SECRET, PEER, STRANGER, DATABASE_PASSWORD].map(|secret| Canary::new(secret, secret)).into();
    secrets.push(Canary::new("root key", root_key));
    secrets.push(Canary::new("root key's bytes", data_encoding::BASE64.decode(root_key.as_bytes()).unwrap()));
    secrets.push(api_key("first API key", &wallet.key));
    if let Some(password) = store_url.parse::<Url>().unwrap().password().filter(|password| password.len() > 11) {
        secrets.push(Canary::new("database password as it is sent", password));
    }
    secrets
}

/// The secret part: the rest of a key is its instance and id.
fn api_key(name: &str, key: &str) -> Canary {
    Canary::new(name, key.rsplit('_').next().unwrap())
}

/// Links with all their secrets: by tickets, at our own page, refused, cancelled, wrong.
async fn flows(wallet: &Wallet, traces: &mut Traces, secrets: &mut Secrets) {
    for user in ["one", "two"] {
        let url = wallet.start_link(user, "sandbox", APP_URL).await;
        secrets.push(Canary::new("state", parameter(&url, "state").unwrap()));
        let callback = wallet.approve(url, user).await;
        assert!(parameter(&callback, "code").unwrap().starts_with(SANDBOX), "the canary is planted");
        let ticket = wallet.ticket_of(callback.clone()).await;
        secrets.push(Canary::new("ticket", &ticket));
        traces.page("callback used again", wallet.http.get(callback).send().await.unwrap()).await;
        if user == "two" {
            traces.refused("another user's ticket", wallet.complete("one", &ticket).await);
            traces.refused("burned ticket", wallet.complete(user, &ticket).await);
            continue;
        }
        let linked = wallet.complete(user, &ticket).await.unwrap();
        traces.add("linked", linked.encode_to_vec());
        traces.add("linked again", wallet.complete(user, &ticket).await.unwrap().encode_to_vec());
        let redirected = Proof::RedirectedUrl(format!("{APP_URL}?ticket={ticket}"));
        let request = v1::CompleteLinkRequest { user_id: "two".into(), proof: Some(redirected) };
        traces.refused("another user's URL", wallet.accounts().complete_link(request).await);
        let token = wallet.get(user, "sandbox").await.unwrap().access_token;
        assert!(token.starts_with(SANDBOX) && wallet.is_accepted(&token).await);
        secrets.push(Canary::new("access token", &token[SANDBOX.len()..]));
    }
    // Without a redirect URL our own page shows the ticket: the one page that does.
    let url = wallet.start_link("three", "sandbox", "").await;
    let callback = wallet.approve(url, "three").await;
    let own_page = wallet.http.get(callback).send().await.unwrap().text().await.unwrap();
    let ticket = own_page.split("&#34;ticket&#34;: &#34;").nth(1).unwrap().split("&#34;").next().unwrap();
    secrets.push(Canary::new("ticket of our own page", ticket));
    traces.add("our own page", own_page.replace(ticket, ""));
    traces.add("linked", wallet.complete("three", ticket).await.unwrap().encode_to_vec());

    refused_codes(wallet, traces).await;
    // Callbacks that contradict their flow, or nothing.
    for (name, change) in [
        ("wrong issuer", format!("code={SANDBOX}&iss=https://{STRANGER}.example")),
        ("error", format!("error={STRANGER}&error_description={STRANGER}")),
        ("both", format!("code={STRANGER}&error={STRANGER}")),
        ("twice", format!("code={STRANGER}&code={STRANGER}")),
    ] {
        let url = wallet.start_link("four", "sandbox", APP_URL).await;
        let state = parameter(&url, "state").unwrap();
        secrets.push(Canary::new("state", &state));
        let callback = wallet.web(&format!("/oauth/callback/sandbox?state={state}&{change}"));
        traces.page(name, wallet.http.get(callback).send().await.unwrap()).await;
    }
}

/// Codes that the provider refuses, and a profile that it does not show.
async fn refused_codes(wallet: &Wallet, traces: &mut Traces) {
    for (status, error) in [(400, "invalid_grant"), (401, PEER), (503, PEER), (400, PEER)] {
        let ticket = wallet.ticket("five", "five").await;
        wallet.sandbox.set_faults([Rule::exchange(Effect::error(status, error))]);
        traces.refused("refused code", wallet.complete("five", &ticket).await);
        wallet.sandbox.clear_faults();
    }
    let ticket = wallet.ticket("five", "five").await;
    wallet.sandbox.set_faults([Rule::userinfo(Effect::error(403, PEER))]);
    traces.refused("refused profile", wallet.complete("five", &ticket).await);
    wallet.sandbox.clear_faults();
}

/// Refreshes that give a token, are refused, or fail.
async fn refreshes(wallet: &Wallet, traces: &mut Traces, secrets: &mut Secrets) {
    let users = &USERS[4..];
    for user in users {
        wallet.link(user, user).await;
    }
    let errors = [None, Some((400, "invalid_grant")), Some((503, PEER)), Some((401, PEER)), Some((418, PEER))];
    for (user, error) in users.iter().zip(errors) {
        let refused = error.is_some();
        let rule = error.map(|(status, error)| Rule::refresh(Effect::error(status, error)));
        wallet.sandbox.set_faults(rule);
        wallet.age(user).await;
        let result = wallet.get(user, "sandbox").await;
        if refused {
            traces.refused(user, result);
        } else {
            secrets.push(Canary::new("refreshed token", &result.unwrap().access_token[SANDBOX.len()..]));
        }
    }
    assert!(wallet.token_requests("refresh_token").len() >= users.len());
    wallet.sandbox.clear_faults();
    let requests = users.iter().map(|user| v1::GetAccessTokenRequest {
        user_id: (*user).into(),
        provider: "sandbox".into(),
        ..Default::default()
    });
    let batch = v1::BatchGetAccessTokensRequest { requests: requests.collect() };
    wallet.wallet().batch_get_access_tokens(batch).await.unwrap();
}

/// A provider that answers with anything but what it should, secrets in every corner. It also shows us what we send.
async fn odd_answers(wallet: &Wallet, traces: &mut Traces, secrets: &mut Secrets) {
    let description =
        format!(r#"{{"error":"invalid_grant","error_description":"{PEER}","error_uri":"https://{PEER}"}}"#);
    let good = format!(
        r#"{{"access_token":"{PEER}-at","refresh_token":"{PEER}-rt","id_token":"{PEER}","expires_in":1,"token_type":"bearer"}}"#
    );
    let refusals = [
        json(400, &description),
        json(200, &format!(r#"{{"access_token":"{PEER}""#)),
        json(200, &format!(r#"{{"access_token":"{PEER} {PEER}"}}"#)),
        answer(200, "content-type: text/html\r\n", &format!("<html>{PEER}")),
        answer(503, &format!("retry-after: {PEER}\r\n"), PEER),
        json(401, &format!(r#"{{"error":"{PEER}"}}"#)),
        answer(302, &format!("location: https://{PEER}.example/?token={PEER}\r\n"), PEER),
        format!("HTTP/1.1 200 {PEER}\r\nx-{PEER}\x01: {PEER}\r\n\r\n"),
    ];
    let profiles = [answer(500, &format!("www-authenticate: {PEER}\r\n"), PEER), json(200, r#"{"sub":"peer-1"}"#)];
    let replies = refusals.iter().cloned().chain([json(200, &good)]).chain(profiles).chain([json(400, &description)]);
    let peer = Peer::new(replies.map(Reply::Last).collect()).await;
    let request = v1::CreateProviderRequest {
        slug: "peer".into(),
        catalog_entry: "oauth2".into(),
        client_id: "wallet".into(),
        client_secret: CLIENT_SECRET.into(),
        endpoints: Some(v1::ProviderEndpoints {
            authorization_url: peer.url("/authorize"),
            token_url: peer.url("/token"),
            userinfo_url: peer.url("/me"),
            ..Default::default()
        }),
        ..Default::default()
    };
    traces.told("create provider", wallet.providers().create_provider(request).await);
    for turn in 0..=refusals.len() {
        let state = parameter(&wallet.start_link("peer", "peer", APP_URL).await, "state").unwrap();
        let callback = wallet.web(&format!("/oauth/callback/peer?state={state}&code={PEER}-code"));
        let ticket = wallet.ticket_of(callback.parse().unwrap()).await;
        secrets.extend([Canary::new("state", state), Canary::new("ticket", &ticket)]);
        traces.refused("odd answer", wallet.complete("peer", &ticket).await);
        if turn == refusals.len() {
            traces.add("linked", wallet.complete("peer", &ticket).await.unwrap().encode_to_vec());
        }
    }
    let verifiers: Vec<_> = peer.requests().iter().filter_map(|request| form_value(request, "code_verifier")).collect();
    assert_eq!(verifiers.len(), refusals.len() + 1);
    secrets.extend(verifiers.into_iter().map(|verifier| Canary::new("PKCE verifier", verifier)));
    for _ in 0..100 {
        let result = wallet.get("peer", "peer").await;
        if result.is_err() {
            return traces.refused("odd refresh", result);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("the peer's token was never refreshed");
}

fn form_value(request: &str, name: &str) -> Option<String> {
    let (_, body) = request.split_once("\r\n\r\n")?;
    let mut fields = url::form_urlencoded::parse(body.as_bytes());
    fields.find(|(key, _)| key == name).map(|(_, value)| value.into_owned())
}

/// Calls and callbacks of people who have no business here.
async fn strangers(wallet: &Wallet, traces: &mut Traces) {
    for path in [
        format!("/oauth/callback/sandbox?state={STRANGER}&code={STRANGER}"),
        format!("/oauth/callback/sandbox?state={}&code={STRANGER}", STRANGER.repeat(2).split_at(43).0),
        format!("/oauth/callback/{STRANGER}?state={STRANGER}&error={STRANGER}"),
        format!("/oauth/callback/sandbox?code={}", STRANGER.repeat(2_000)),
        format!("/{STRANGER}?token={STRANGER}"),
    ] {
        let answer = wallet.http.get(wallet.web(&path)).header("cookie", STRANGER).send().await.unwrap();
        traces.page(&path[..20], answer).await;
    }
    let host = wallet.http.get(wallet.web("/")).header("host", format!("{STRANGER}.example")).send().await.unwrap();
    assert_eq!(host.status(), StatusCode::MISDIRECTED_REQUEST);
    traces.page("host", host).await;
    let instance = wallet.key.split('_').nth(1).unwrap();
    for header in [
        format!("Bearer {STRANGER}"),
        format!("Bearer twk_{instance}_{STRANGER}_{STRANGER}"),
        format!("Bearer {}{STRANGER}", wallet.key),
        format!("Basic {}", data_encoding::BASE64.encode(format!("u:{STRANGER}").as_bytes())),
        STRANGER.to_owned(),
    ] {
        let mut request = Request::new(v1::GetAccessTokenRequest { user_id: STRANGER.into(), ..Default::default() });
        request.metadata_mut().insert("authorization", MetadataValue::try_from(header).unwrap());
        request.metadata_mut().insert("x-api-key", MetadataValue::from_static(STRANGER));
        let mut client = v1::wallet_service_client::WalletServiceClient::new(wallet.channel());
        traces.refused("wrong key", client.get_access_token(request).await);
    }
}

/// Calls of a caller with a key: secrets where they do not belong, and every answer that holds none.
async fn callers(wallet: &Wallet, traces: &mut Traces, secrets: &mut Secrets) {
    traces.refused("made-up ticket", wallet.complete("one", STRANGER).await);
    for url in [format!("{APP_URL}?ticket={STRANGER}"), format!("{APP_URL}?error={STRANGER}"), STRANGER.to_owned()] {
        let request = v1::CompleteLinkRequest { user_id: "one".into(), proof: Some(Proof::RedirectedUrl(url)) };
        traces.refused("redirected URL", wallet.accounts().complete_link(request).await);
    }
    for url in [format!("https://{STRANGER}@h.example"), format!("https://h.example/?t={STRANGER}"), STRANGER.into()] {
        let request = v1::StartLinkRequest {
            user_id: "one".into(),
            provider: "sandbox".into(),
            redirect_url: url.clone(),
            ..Default::default()
        };
        traces.refused("redirect URL", wallet.accounts().start_link(request).await);
        let endpoints = v1::ProviderEndpoints { token_url: url, ..Default::default() };
        let request = v1::CreateProviderRequest {
            slug: "odd".into(),
            catalog_entry: "oauth2".into(),
            client_id: "c".into(),
            client_secret: STRANGER.into(),
            endpoints: Some(endpoints),
            ..Default::default()
        };
        traces.refused("endpoints", wallet.providers().create_provider(request).await);
    }
    for (slug, entry) in [("Not A Slug", ""), ("sandbox", ""), (STRANGER, STRANGER)] {
        let request = v1::CreateProviderRequest {
            slug: slug.into(),
            catalog_entry: entry.into(),
            client_id: "c".into(),
            client_secret: STRANGER.into(),
            ..Default::default()
        };
        traces.refused("provider", wallet.providers().create_provider(request).await);
    }
    for (provider, client_secret) in [("sandbox", format!("{STRANGER}\n")), ("none", STRANGER.to_owned())] {
        let request =
            v1::CreateProviderSecretRequest { provider: provider.into(), client_secret, ..Default::default() };
        traces.refused("provider secret", wallet.providers().create_provider_secret(request).await);
    }
    let request = v1::CreateProviderSecretRequest {
        provider: "sandbox".into(),
        client_secret: CLIENT_SECRET.to_owned(),
        ..Default::default()
    };
    traces.told("second provider secret", wallet.providers().create_provider_secret(request).await);
    let request = v1::CreateApiClientRequest { display_name: "second".into(), ..Default::default() };
    let made = wallet.clients().create_api_client(request).await.unwrap().into_inner();
    secrets.push(api_key("second API key", &made.api_key.unwrap().secret));
    traces.told("clients", wallet.clients().list_api_clients(v1::ListApiClientsRequest::default()).await);
    traces.told("providers", wallet.providers().list_providers(v1::ListProvidersRequest::default()).await);
    let listed = wallet.accounts().list_external_accounts(v1::ListExternalAccountsRequest::default()).await;
    let accounts = listed.as_ref().unwrap().get_ref().external_accounts.clone();
    traces.told("accounts", listed);
    let one = accounts.iter().find(|account| account.user_id == "one").unwrap().id.clone();
    let request = v1::DeleteExternalAccountRequest { external_account_id: one };
    traces.told("unlink", wallet.accounts().delete_external_account(request).await);
    traces.refused("unlinked", wallet.get("one", "sandbox").await);
}

/// Commands of the binary, logging everything too. What `token get` and `clients create` print is theirs to print.
fn command_line(wallet: &Wallet, traces: &mut Traces) {
    let remote = [("TOKEN_WALLET_ADDR", wallet.grpc()), ("TOKEN_WALLET_API_KEY", &wallet.key)];
    for arguments in [
        &["accounts", "list", "--json"][..],
        &["providers", "get", "sandbox", "--json"],
        &["clients", "list"],
        &["token", "get", "nobody", "sandbox"],
        &["keys", "status"],
        &["clients", "create", "third", "--bootstrap"],
    ] {
        traces.output(&arguments.join(" "), &wallet.run(arguments, &remote));
    }
    let got = wallet.run(&["token", "get", "three", "sandbox", "--json"], &remote);
    assert!(
        got.status.success() && got.stdout.windows(SANDBOX.len()).any(|part| part == SANDBOX.as_bytes()),
        "{got:?}"
    );
    traces.add("token get: stderr", got.stderr);
    let made = wallet.run(&["clients", "create", "third"], &remote);
    assert!(made.status.success(), "{made:?}");
    traces.add("clients create: stderr", made.stderr);
    for key in [STRANGER, &format!("{STRANGER}\u{1}"), ""] {
        let remote = [("TOKEN_WALLET_ADDR", wallet.grpc()), ("TOKEN_WALLET_API_KEY", key)];
        let output = wallet.run(&["accounts", "list"], &remote);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        traces.output("wrong API key", &output);
    }
}

/// Every byte that the store keeps.
async fn database(engine: Engine, wallet: &Wallet, when: &str, traces: &mut Traces) {
    if engine == Engine::Sqlite {
        return traces.folder(&format!("database, {when}"), &wallet.folder().join("data"));
    }
    let database = wallet.database().await;
    let tables = "SELECT table_name::text FROM information_schema.tables WHERE table_schema = current_schema()";
    for table in database.texts(tables).await {
        // Bytes come as hexadecimal digits.
        let rows = database.texts(&format!("SELECT to_jsonb(t)::text FROM {table} AS t")).await;
        traces.add(format!("database, {when}: {table}"), rows.join("\n"));
    }
}

/// Nothing was found, and there was something to be searched.
fn verify(traces: &Traces, secrets: Secrets) {
    let database = traces.text_of("database, stopped");
    for stored in ["invalid-grant", "peer-1", "gra_", "account.linked"] {
        assert!(database.contains(stored), "{stored} is not in the database");
    }
    let logs = traces.text_of("logs");
    for told in ["DEBUG", "a call was answered", "the provider refused a code"] {
        assert!(logs.contains(told), "{told} is not in the logs");
    }
    assert!(traces.text_of("/metrics").contains("token_wallet_refreshes_total"));
    assert_none_found(traces, secrets);
}

fn assert_none_found(traces: &Traces, secrets: Secrets) {
    let searcher = Searcher::new(secrets);
    let leaks: Vec<_> = traces
        .0
        .iter()
        .flat_map(|(place, bytes)| searcher.find(bytes).into_iter().map(move |found| (place, found)))
        .map(|(place, (secret, around))| format!("{secret}\n  in {place}: {around}"))
        .collect();
    assert!(leaks.is_empty(), "{} leaks:\n{}", leaks.len(), leaks.join("\n"));
}
