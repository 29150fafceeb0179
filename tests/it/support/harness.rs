//! The whole wallet and a sandbox provider, in this process, on a clock that the test moves.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use reqwest::{Client as Http, Url};
use tempfile::TempDir;
use token_wallet::app::{self, App};
use token_wallet::clock::{Clock, Hand, Timestamp};
use token_wallet::config::{Config, Listeners, StoreUrl};
use token_wallet::domain::error::Failure;
use token_wallet::domain::instance::InstanceKind;
use token_wallet::keys;
use token_wallet::proto::v1;
use token_wallet::proto::v1::complete_link_request::Proof;
use token_wallet::proto::v1::event_service_client::EventServiceClient;
use token_wallet::proto::v1::external_account_service_client::ExternalAccountServiceClient;
use token_wallet::proto::v1::user_service_client::UserServiceClient;
use token_wallet::proto::v1::wallet_service_client::WalletServiceClient;
use token_wallet::sandbox::{self, DEFAULT_CLIENT_SECRET, Options, Person, Rotation, Sandbox};
use tonic::Status;
use tonic::transport::Channel;
use tonic_types::StatusExt as _;

use super::browser;
use super::clients::{Key, Keyed, keyed_clients};
use super::database::Database;
use super::postgres::{self, TestDatabase};
use super::proxy::Proxy;

/// When every test begins.
pub const BEGIN: Timestamp = Timestamp::from_millis(1_800_000_000_000);

/// Where flows of the tests end.
pub const APP_URL: &str = "https://app.example.com/linked";

/// Which database a test runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    Sqlite,
    Postgres,
}

keyed_clients!(Harness);

/// A running wallet with a provider `sandbox`, and everything that a test does to it.
pub struct Harness {
    app: Option<App>,
    pub sandbox: Sandbox,
    pub config: Config,
    pub clock: Clock,
    pub hand: Hand,
    pub key: String,
    pub http: Http,
    channel: Channel,
    _folder: TempDir,
    database: Option<TestDatabase>,
}

/// One of several processes of a wallet: where to call, and as whom.
pub struct Replica {
    /// None for the harness's own.
    app: Option<App>,
    pub key: String,
    channel: Channel,
}

impl Replica {
    /// The same, called with another key.
    pub fn with_key(&self, key: &str) -> Self {
        Self { app: None, key: key.to_owned(), channel: self.channel.clone() }
    }

    /// Runs each of its jobs once.
    pub async fn turn(&self) {
        self.app.as_ref().unwrap().turn().await.unwrap();
    }

    /// Its probes.
    pub fn ops(&self, path: &str) -> String {
        format!("http://{}{path}", self.app.as_ref().unwrap().addresses().ops)
    }

    /// Its events.
    pub fn event_log(&self) -> EventServiceClient<Keyed> {
        EventServiceClient::with_interceptor(self.channel.clone(), Key::new(&self.key))
    }

    /// A fresh token of `user` at the sandbox.
    pub async fn get(&self, user: &str) -> Result<v1::GetAccessTokenResponse, Status> {
        let (user_id, provider) = (user.into(), "sandbox".into());
        self.get_at(v1::GetAccessTokenRequest { user_id, provider, ..Default::default() }).await
    }

    /// A token as `request` wants it.
    pub async fn get_at(&self, request: v1::GetAccessTokenRequest) -> Result<v1::GetAccessTokenResponse, Status> {
        let mut wallet = WalletServiceClient::with_interceptor(self.channel.clone(), Key::new(&self.key));
        wallet.get_access_token(request).await.map(tonic::Response::into_inner)
    }
}

impl Harness {
    /// On `engine`, with the sandbox's usual hour of life for access tokens.
    pub async fn start(engine: Engine) -> Self {
        Self::with(engine, Options::default()).await
    }

    /// On `engine`, with a sandbox of these options (its clock is the wallet's).
    pub async fn with(engine: Engine, options: Options) -> Self {
        let harness = Self::bare(engine, options, |_| {}).await;
        harness.configure(DEFAULT_CLIENT_SECRET).await;
        harness
    }

    /// On a PostgreSQL database that is reached through a proxy.
    pub async fn through_proxy(options: Options) -> (Self, Proxy) {
        let mut proxy = None;
        let harness = Self::bare(Engine::Postgres, options, |config| {
            let before = proxy.insert(Proxy::start(config.store.url.expose()));
            config.store.url = StoreUrl::parse(before.url().to_owned()).unwrap();
        })
        .await;
        harness.configure(DEFAULT_CLIENT_SECRET).await;
        (harness, proxy.unwrap())
    }

    /// A production instance on `engine`, with nothing configured.
    pub async fn production(engine: Engine) -> Self {
        Self::bare(engine, Options::default(), |config| {
            config.kind = InstanceKind::Production;
            config.public_url = Some("https://wallet.example.com".parse().unwrap());
            config.sandbox_url = None;
        })
        .await
    }

    /// One machine of several, on PostgreSQL. The sandbox's clock is the machine's of the database.
    pub async fn machine((clock, hand): (Clock, Hand)) -> Self {
        let options = Options { clock: Clock::system(), ..Options::default() };
        let harness = Self::built(Engine::Postgres, options, clock, hand, |_| {}).await;
        harness.configure(DEFAULT_CLIENT_SECRET).await;
        harness
    }

    async fn bare(engine: Engine, options: Options, change: impl FnOnce(&mut Config)) -> Self {
        let (clock, hand) = Clock::moved(BEGIN);
        Self::built(engine, Options { clock: clock.clone(), ..options }, clock, hand, change).await
    }

    async fn built(
        engine: Engine,
        options: Options,
        clock: Clock,
        hand: Hand,
        change: impl FnOnce(&mut Config),
    ) -> Self {
        let sandbox = sandbox::start(options).await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let listeners = Listeners { grpc: any, web: any, ops: any };
        let mut config = Config::development(folder.path(), listeners, sandbox.base_url().parse().unwrap());
        let database = match engine {
            Engine::Sqlite => None,
            Engine::Postgres => Some(postgres::database().await),
        };
        if let Some(database) = &database {
            config.store.url = StoreUrl::parse(database.url.clone()).unwrap();
        }
        change(&mut config);
        write_root_key(folder.path());
        keys::init(&config, &clock).await.unwrap();
        let (_, key) = app::bootstrap_client(&config, "tests", &clock).await.unwrap();
        let app = App::start(config.clone(), clock.clone()).await.unwrap();
        let channel = channel(&app);
        Self {
            app: Some(app),
            sandbox,
            config,
            clock,
            hand,
            key: key.expose().to_owned(),
            http: browser::new(),
            channel,
            _folder: folder,
            database,
        }
    }

    /// On `engine`, with users `u0`, `u1` and so on, each linked to a person of its own: `p0`, `p1` and so on. There is
    /// one person more.
    pub async fn with_users(engine: Engine, users: usize, options: Options) -> Self {
        let people = (0..=users).map(|n| Person::named(&format!("p{n}"))).collect();
        let harness = Self::with(engine, Options { people, ..options }).await;
        for n in 0..users {
            harness.link(&format!("u{n}"), &format!("p{n}")).await;
            // A link takes two of fifty requests a second.
            harness.pass(Duration::from_millis(50));
        }
        harness
    }

    /// Stops the wallet and starts it again on what it has stored. The sandbox goes on.
    pub async fn restart(&mut self) {
        self.restart_with_clock(self.clock.clone()).await;
    }

    /// The same in a new process that reads the clock like this; the sandbox reads it as before.
    pub async fn restart_with_clock(&mut self, clock: Clock) {
        self.stop().await;
        let app = App::start(self.config.clone(), clock.clone()).await.unwrap();
        self.clock = clock;
        self.channel = channel(&app);
        self.app = Some(app);
    }

    /// Stops the wallet in order.
    pub async fn stop(&mut self) {
        if let Some(app) = self.app.take() {
            // An open connection would be waited for.
            self.channel = Channel::from_static("http://127.0.0.1:1").connect_lazy();
            app.shutdown().await;
        }
    }

    /// Another process on the same PostgreSQL database.
    pub async fn second(&self) -> Replica {
        self.second_with_clock(self.clock.clone()).await
    }

    /// The same on a machine with this clock.
    pub async fn second_with_clock(&self, clock: Clock) -> Replica {
        let app = App::start(self.config.clone(), clock).await.unwrap();
        let channel = channel(&app);
        Replica { app: Some(app), key: self.key.clone(), channel }
    }

    /// This process, as others are called.
    pub fn replica(&self) -> Replica {
        Replica { app: None, key: self.key.clone(), channel: self.channel.clone() }
    }

    /// Takes PostgreSQL away, until [`Self::mend_database`].
    pub async fn cut_database(&self) {
        self.database.as_ref().unwrap().cut().await;
    }

    pub async fn mend_database(&self) {
        self.database.as_ref().unwrap().mend().await;
    }

    /// As another API client.
    pub fn accounts_as(&self, key: &str) -> ExternalAccountServiceClient<Keyed> {
        ExternalAccountServiceClient::with_interceptor(self.channel.clone(), Key::new(key))
    }

    /// Its users.
    pub fn users(&self) -> UserServiceClient<Keyed> {
        UserServiceClient::with_interceptor(self.channel(), Key::new(&self.key))
    }

    /// The gRPC channel without a key.
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// Where the callback and pages are.
    pub fn web(&self, path: &str) -> String {
        format!("http://{}{path}", self.addresses().web)
    }

    /// Where metrics and probes are.
    pub fn ops(&self, path: &str) -> String {
        format!("http://{}{path}", self.addresses().ops)
    }

    pub fn addresses(&self) -> app::Addresses {
        self.app.as_ref().unwrap().addresses()
    }

    /// The wallet's database, for what no RPC shows.
    pub async fn database(&self) -> Database {
        Database::open(&self.config.store.url).await
    }

    /// A fresh token of `user`.
    pub async fn get(&self, user: &str) -> Result<v1::GetAccessTokenResponse, Status> {
        self.get_with(v1::GetAccessTokenRequest { user_id: user.into(), ..Default::default() }).await
    }

    /// A fresh token of `user` at another provider.
    pub async fn get_at(&self, provider: &str, user: &str) -> Result<v1::GetAccessTokenResponse, Status> {
        let (provider, user_id) = (provider.into(), user.into());
        self.get_with(v1::GetAccessTokenRequest { user_id, provider, ..Default::default() }).await
    }

    /// A token as `request` wants it, at the sandbox if it does not say.
    pub async fn get_with(&self, request: v1::GetAccessTokenRequest) -> Result<v1::GetAccessTokenResponse, Status> {
        let provider = if request.provider.is_empty() { "sandbox".into() } else { request.provider.clone() };
        self.replica().get_at(v1::GetAccessTokenRequest { provider, ..request }).await
    }

    /// Begins a link that ends at [`APP_URL`].
    pub async fn start_link(&self, user: &str) -> v1::StartLinkResponse {
        self.start_link_at("sandbox", user).await
    }

    async fn start_link_at(&self, provider: &str, user: &str) -> v1::StartLinkResponse {
        let request = v1::StartLinkRequest {
            user_id: user.into(),
            provider: provider.into(),
            redirect_url: APP_URL.into(),
            ..Default::default()
        };
        self.accounts().start_link(request).await.unwrap().into_inner()
    }

    /// What a person's browser does at the provider: decides, and is sent to the callback's URL.
    pub async fn decide(&self, authorization_url: &str, person: &str, decision: &str) -> Url {
        let form = [("person", person), ("decision", decision)];
        let answer = self.http.post(authorization_url).form(&form).send().await.unwrap();
        browser::location(&answer)
    }

    /// A link up to the ticket: begun, approved by `person`, returned to the app.
    pub async fn ticket(&self, user: &str, person: &str) -> String {
        self.ticket_at("sandbox", user, person).await
    }

    /// The same at another provider.
    pub async fn ticket_at(&self, provider: &str, user: &str, person: &str) -> String {
        let started = self.start_link_at(provider, user).await;
        let callback = self.decide(&started.authorization_url, person, "approve").await;
        self.ticket_of(callback).await
    }

    /// The ticket that a callback gives.
    pub async fn ticket_of(&self, callback: Url) -> String {
        let answer = self.http.get(callback).send().await.unwrap();
        browser::parameter(&browser::location(&answer), "ticket").unwrap()
    }

    /// Ends a link.
    pub async fn complete(&self, user: &str, ticket: &str) -> Result<v1::CompleteLinkResponse, Status> {
        let request = v1::CompleteLinkRequest { user_id: user.into(), proof: Some(Proof::Ticket(ticket.into())) };
        self.accounts().complete_link(request).await.map(tonic::Response::into_inner)
    }

    /// A whole link of `user` to the sandbox's `person`.
    pub async fn link(&self, user: &str, person: &str) -> v1::ExternalAccount {
        let ticket = self.ticket(user, person).await;
        self.complete(user, &ticket).await.unwrap().external_account.unwrap()
    }

    /// Runs each job of the wallet once, and what they start, to its end.
    pub async fn turn(&self) -> Result<(), Failure> {
        self.app.as_ref().unwrap().turn().await
    }

    /// Waits until a job has run so many times more from its beginning to its end.
    pub async fn turns(&self, job: &str, times: u32) {
        let count =
            async || self.metric(&format!("token_wallet_job_runs_total{{job=\"{job}\",outcome=\"well\"}}")).await;
        // The one that runs now began before.
        let enough = count().await + f64::from(times) + 1.0;
        until("the job has run", async || count().await >= enough).await;
    }

    /// What a metric shows, by its name and labels; 0 before it first counts.
    pub async fn metric(&self, name: &str) -> f64 {
        let text = self.http.get(self.ops("/metrics")).send().await.unwrap().text().await.unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.map_or(0.0, |value| value.parse().unwrap())
    }

    /// Whether the sandbox's API accepts this access token now.
    pub async fn is_accepted(&self, token: &str) -> bool {
        let url = format!("{}/userinfo", self.sandbox.base_url());
        self.http.get(url).bearer_auth(token).send().await.unwrap().status() == 200
    }

    /// Runs each job of the wallet once, and what they start, to its end; meanwhile the clock goes on.
    pub async fn work(&self) {
        self.in_time(self.turn()).await.unwrap();
    }

    /// Waits for this. While it takes its time, because a second's budget is spent, or the provider is slow, the clock
    /// goes on: ten times as fast as real time.
    pub async fn in_time<T>(&self, work: impl Future<Output = T>) -> T {
        let mut work = std::pin::pin!(work);
        loop {
            tokio::select! {
                biased;
                done = &mut work => return done,
                () = tokio::time::sleep(Duration::from_millis(5)) => self.pass(Duration::from_millis(50)),
            }
        }
    }

    /// Lets this time pass in steps, with a turn of the wallet's jobs after each.
    pub async fn live(&self, span: Duration, step: Duration) {
        let end = self.clock.now().plus(span);
        while self.clock.now() < end {
            self.pass(step.min(end.since(self.clock.now())));
            self.work().await;
        }
    }

    /// Moves the clock on.
    pub fn pass(&self, time: Duration) {
        self.hand.advance(time);
    }
}

/// The reason of an error, as callers read it.
pub fn reason(status: &Status) -> String {
    status.get_error_details().error_info().map(|info| info.reason.clone()).unwrap_or_default()
}

/// The catalog's entry that says what the sandbox is set to.
pub fn manners(sandbox: &Sandbox) -> &'static str {
    let settings = sandbox.settings();
    match settings.rotation {
        Rotation::Never => "sandbox_static",
        Rotation::Grace(_) => "sandbox_grace",
        Rotation::Always if settings.reuse_revokes_family => "sandbox_strict",
        Rotation::Always | Rotation::Every(_) => "sandbox",
    }
}

/// Waits, in real time and not for long, until `condition` holds.
pub async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    for _ in 0..200 {
        if condition().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("waited in vain until {what}");
}

/// Declares each test once for both databases: `name_on_sqlite` and `name_on_postgres`.
macro_rules! on_both_engines {
    ($($(#[$doc:meta])* async fn $name:ident($engine:ident) $body:block)*) => {
        mod on_sqlite {
            $(#[tokio::test]
            async fn $name() {
                super::$name(crate::support::harness::Engine::Sqlite).await;
            })*
        }

        mod on_postgres {
            $(#[tokio::test]
            async fn $name() {
                super::$name(crate::support::harness::Engine::Postgres).await;
            })*
        }

        $($(#[$doc])* async fn $name($engine: crate::support::harness::Engine) $body)*
    };
}

pub(crate) use on_both_engines;

fn channel(app: &App) -> Channel {
    Channel::from_shared(format!("http://{}", app.addresses().grpc)).unwrap().connect_lazy()
}

fn write_root_key(folder: &std::path::Path) {
    token_wallet::vault::RootKey::generate().write_new(&folder.join("root.key")).unwrap();
}
