//! The wallet as the built binary in a process of its own, which can be killed and started again, against a sandbox in
//! this one. Its clock is the machine's.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Output};
use std::sync::Arc;
use std::time::Duration;

use reqwest::{Client as Http, Url};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use token_wallet::config::StoreUrl;
use token_wallet::proto::v1;
use token_wallet::proto::v1::complete_link_request::Proof;
use token_wallet::sandbox::{self, Endpoint, Options, Request, Sandbox};
use token_wallet::vault::RootKey;
use tonic::Status;
use tonic::transport::Channel;

use super::browser;
use super::child::{Running, binary, text};
use super::clients::keyed_clients;
use super::database::Database;
use super::harness::{APP_URL, Engine};
use super::outage::spooled;
use super::postgres::{self, TestDatabase};
use super::proxy::Proxy;

/// The database's password, where the test server asks for none and so takes any.
pub const DATABASE_PASSWORD: &str = "canary-database/password+\"8Zq<1";

/// How long a process may take to start or end.
const PATIENCE: Duration = Duration::from_secs(30);

/// A wallet's files, its sandbox, and its process if one runs.
pub struct Wallet {
    pub sandbox: Arc<Sandbox>,
    pub http: Http,
    /// Of the first API client.
    pub key: String,
    store: StoreUrl,
    variables: Vec<(String, String)>,
    folder: TempDir,
    process: Option<Process>,
    starts: usize,
    database: Option<Arc<TestDatabase>>,
}

/// A running wallet.
struct Process {
    child: Running,
    channel: Channel,
    grpc: String,
    web: String,
    ops: String,
}

keyed_clients!(Wallet);

impl Wallet {
    /// A new wallet on `engine`, not running, with its keyring and a first API client. `variables` go to every
    /// process of it.
    pub async fn new(engine: Engine, options: Options, variables: &[(&str, &str)]) -> Self {
        let database = if engine == Engine::Postgres { Some(postgres::database().await) } else { None };
        Self::on(database, options, variables).await
    }

    /// The same on this PostgreSQL database, or on a file of its own.
    pub async fn on(database: Option<TestDatabase>, options: Options, variables: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let url = match &database {
            Some(database) => with_password(&database.url),
            None => format!("sqlite:{}", folder.path().join("data/wallet.db").display()),
        };
        RootKey::generate().write_new(&folder.path().join("root.key")).unwrap();
        let sandbox = Arc::new(sandbox::start(options).await.unwrap());
        let mut wallet = Self::of(folder, StoreUrl::parse(url).unwrap(), sandbox, database.map(Arc::new));
        wallet.variables.extend(variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        let made = wallet.run(&["keys", "init"], &[]);
        assert!(made.status.success(), "{made:?}");
        let made = wallet.run(&["clients", "create", "tests", "--bootstrap"], &[]);
        assert!(made.status.success(), "{made:?}");
        text_line(&made.stdout).clone_into(&mut wallet.key);
        wallet
    }

    /// Another replica, not running: a process with a folder of its own, on the same database.
    pub fn beside(&self) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::copy(self.folder().join("root.key"), folder.path().join("root.key")).unwrap();
        let (sandbox, database) = (Arc::clone(&self.sandbox), self.database.clone());
        let mut wallet = Self::of(folder, self.store.clone(), sandbox, database);
        let own = wallet.variables.len();
        wallet.variables.extend_from_slice(&self.variables[own..]);
        self.key.clone_into(&mut wallet.key);
        wallet
    }

    /// With the variables that each needs, and a folder that has the root key.
    fn of(folder: TempDir, store: StoreUrl, sandbox: Arc<Sandbox>, database: Option<Arc<TestDatabase>>) -> Self {
        let path = |name: &str| folder.path().join(name);
        std::fs::create_dir(path("logs")).unwrap();
        std::fs::create_dir(path("data")).unwrap();
        std::fs::write(path("store.url"), store.expose()).unwrap();
        let text = |path: PathBuf| path.to_str().unwrap().to_owned();
        let own = [
            ("INSTANCE__KIND", "development".into()),
            ("STORE__URL_FILE", text(path("store.url"))),
            ("ROOT_KEY__SOURCE", "file".into()),
            ("ROOT_KEY__FILE", text(path("root.key"))),
            ("GRPC__ADDR", "127.0.0.1:0".into()),
            ("WEB__ADDR", "127.0.0.1:0".into()),
            ("OPS__ADDR", "127.0.0.1:0".into()),
            ("SANDBOX__URL", sandbox.base_url()),
        ];
        Self {
            sandbox,
            http: browser::new(),
            key: String::new(),
            store,
            variables: own.map(|(name, value)| (format!("TOKEN_WALLET__{name}"), value)).into(),
            folder,
            process: None,
            starts: 0,
            database,
        }
    }

    /// A running wallet with the provider `sandbox` and the redirect URL of the tests.
    pub async fn running(engine: Engine, options: Options) -> Self {
        let mut wallet = Self::new(engine, options, &[]).await;
        wallet.start().await;
        wallet.configure(sandbox::DEFAULT_CLIENT_SECRET).await;
        wallet
    }

    /// Starts `serve` and waits until it is ready.
    pub async fn start(&mut self) {
        self.start_with(&[]).await;
    }

    /// The same, with variables for this process alone.
    pub async fn start_with(&mut self, variables: &[(&str, &str)]) {
        assert!(self.process.is_none());
        self.starts += 1;
        let log = |stream: &str| self.folder.path().join(format!("logs/{}.{stream}", self.starts));
        let mut command = self.command(&["serve"], variables);
        command.stdout(File::create(log("stdout")).unwrap()).stderr(File::create(log("stderr")).unwrap());
        let mut child = Running(command.spawn().unwrap());
        let began = tokio::time::timeout(PATIENCE, async {
            loop {
                let told = std::fs::read_to_string(log("stderr")).unwrap();
                if let Some(line) = told.lines().find(|line| line.contains("ready") && line.contains("grpc")) {
                    break ["grpc", "web", "ops"].map(|listener| address(line, listener));
                }
                assert!(child.0.try_wait().unwrap().is_none(), "{told}");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        let [grpc, web, ops] = began.await.unwrap();
        let channel = Channel::from_shared(format!("http://{grpc}")).unwrap().connect_lazy();
        self.process = Some(Process { child, channel, grpc, web, ops });
    }

    /// From its next start on the process reaches PostgreSQL through this proxy; the test does not.
    pub fn behind_a_proxy(&self) -> Proxy {
        let proxy = Proxy::start(self.store.expose());
        self.reach_by(proxy.url());
        proxy
    }

    /// From its next start on the process reaches its database like this; the test does not.
    pub fn reach_by(&self, url: &str) {
        std::fs::write(self.folder().join("store.url"), url).unwrap();
    }

    /// From its next start on its store is another one.
    pub fn move_to(&mut self, url: &str) {
        std::fs::write(self.folder.path().join("store.url"), url).unwrap();
        self.store = StoreUrl::parse(url.to_owned()).unwrap();
    }

    /// How many answers are on disk in its spool.
    pub fn spooled(&self) -> usize {
        spooled(&match self.store.sqlite_path() {
            Some(path) => PathBuf::from(format!("{}.spool", path.display())),
            None => self.folder.path().join("token-wallet.spool"),
        })
    }

    /// Sends SIGTERM and leaves the process to [`Self::end`].
    pub fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    /// Ends the process at once, as `kill -9` does, and leaves it to [`Self::end`].
    pub fn kill(&self) {
        self.signal(Signal::KILL);
    }

    /// Stops the process in the middle of whatever it does, until [`Self::resume`].
    pub fn pause(&self) {
        self.signal(Signal::STOP);
    }

    pub fn resume(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.process().child.0), signal).unwrap();
    }

    /// Waits for the process to end.
    pub async fn end(&mut self) -> ExitStatus {
        let mut process = self.process.take().unwrap();
        // A connection that is kept open would be waited for.
        process.channel = Channel::from_static("http://127.0.0.1:1").connect_lazy();
        let ended = tokio::time::timeout(PATIENCE, async {
            loop {
                if let Some(status) = process.child.0.try_wait().unwrap() {
                    break status;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        ended.await.unwrap()
    }

    /// Runs another command of the binary with the wallet's configuration.
    pub fn run(&self, arguments: &[&str], variables: &[(&str, &str)]) -> Output {
        self.command(arguments, variables).output().unwrap()
    }

    /// Runs `serve` on this store until it has ended, or has logged `word`; gives its exit code, if it has one, and what
    /// it has logged.
    pub async fn serve_on(&self, store: &str, word: &str) -> (Option<i32>, String) {
        let path = |name: &str| self.folder.path().join(name);
        std::fs::write(path("other.url"), store).unwrap();
        let url_file = ("TOKEN_WALLET__STORE__URL_FILE", path("other.url"));
        let mut command = self.command(&["serve"], &[(url_file.0, url_file.1.to_str().unwrap())]);
        let mut child = Running(command.stderr(File::create(path("logs/other")).unwrap()).spawn().unwrap());
        let ended = tokio::time::timeout(PATIENCE, async {
            loop {
                let ended = child.0.try_wait().unwrap();
                let log = std::fs::read_to_string(path("logs/other")).unwrap();
                if ended.is_some() || log.contains(word) {
                    return (ended.and_then(|status| status.code()), log);
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        ended.await.unwrap()
    }

    /// Another command of the binary with the wallet's configuration, not running.
    pub fn command(&self, arguments: &[&str], variables: &[(&str, &str)]) -> Command {
        let mut command = binary(self.folder.path(), arguments, variables);
        let own = self.variables.iter().filter(|(name, _)| !variables.iter().any(|(given, _)| given == name));
        command.envs(own.map(|(name, value)| (name, value)));
        command
    }

    fn process(&self) -> &Process {
        self.process.as_ref().unwrap()
    }

    /// The folder with the wallet's own files: `data`, `logs`, `root.key`, `store.url`.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn pid(&self) -> u32 {
        self.process().child.0.id()
    }

    pub fn grpc(&self) -> &str {
        &self.process().grpc
    }

    pub fn web(&self, path: &str) -> String {
        format!("http://{}{path}", self.process().web)
    }

    pub fn ops(&self, path: &str) -> String {
        format!("http://{}{path}", self.process().ops)
    }

    pub fn store(&self) -> &StoreUrl {
        &self.store
    }

    /// Where its spool is.
    pub fn spool(&self) -> PathBuf {
        match self.store.sqlite_path() {
            Some(path) => PathBuf::from(format!("{}.spool", path.display())),
            None => self.folder().join("token-wallet.spool"),
        }
    }

    pub async fn database(&self) -> Database {
        Database::open(&self.store).await
    }

    pub fn channel(&self) -> Channel {
        self.process().channel.clone()
    }

    /// A token of `user` at `provider`.
    pub async fn get(&self, user: &str, provider: &str) -> Result<v1::GetAccessTokenResponse, Status> {
        let request =
            v1::GetAccessTokenRequest { user_id: user.into(), provider: provider.into(), ..Default::default() };
        self.wallet().get_access_token(request).await.map(tonic::Response::into_inner)
    }

    /// The authorization URL of a link that ends at `redirect_url`.
    pub async fn start_link(&self, user: &str, provider: &str, redirect_url: &str) -> Url {
        let request = v1::StartLinkRequest {
            user_id: user.into(),
            provider: provider.into(),
            redirect_url: redirect_url.into(),
            ..Default::default()
        };
        let started = self.accounts().start_link(request).await.unwrap().into_inner();
        started.authorization_url.parse().unwrap()
    }

    /// The provider's yes: the callback that the browser is sent to.
    pub async fn approve(&self, authorization_url: Url, person: &str) -> Url {
        let form = [("person", person), ("decision", "approve")];
        browser::location(&self.http.post(authorization_url).form(&form).send().await.unwrap())
    }

    /// The ticket that a callback gives.
    pub async fn ticket_of(&self, callback: Url) -> String {
        let answer = self.http.get(callback).send().await.unwrap();
        browser::parameter(&browser::location(&answer), "ticket").unwrap()
    }

    /// A link at the sandbox up to the ticket.
    pub async fn ticket(&self, user: &str, person: &str) -> String {
        let url = self.start_link(user, "sandbox", APP_URL).await;
        self.ticket_of(self.approve(url, person).await).await
    }

    pub async fn complete(&self, user: &str, ticket: &str) -> Result<v1::CompleteLinkResponse, Status> {
        let request = v1::CompleteLinkRequest { user_id: user.into(), proof: Some(Proof::Ticket(ticket.into())) };
        self.accounts().complete_link(request).await.map(tonic::Response::into_inner)
    }

    /// A whole link of `user` to the sandbox's `person`.
    pub async fn link(&self, user: &str, person: &str) -> v1::ExternalAccount {
        let ticket = self.ticket(user, person).await;
        self.complete(user, &ticket).await.unwrap().external_account.unwrap()
    }

    /// What a metric shows, by its name and labels; 0 before it first counts.
    pub async fn metric(&self, name: &str) -> f64 {
        let text = self.http.get(self.ops("/metrics")).send().await.unwrap().text().await.unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.map_or(0.0, |value| value.parse().unwrap())
    }

    /// Makes the token at hand of each user whose id is `like` this two hours older.
    pub async fn age(&self, like: &str) {
        let sql = "UPDATE grants SET issued_at = issued_at - 7200000, due_at = 0, sweep_at = 0 WHERE user_id LIKE";
        assert!(self.database().await.execute(&format!("{sql} '{like}'")).await > 0);
    }

    /// Whether the sandbox's API accepts this access token now.
    pub async fn is_accepted(&self, token: &str) -> bool {
        let url = format!("{}/userinfo", self.sandbox.base_url());
        self.http.get(url).bearer_auth(token).send().await.unwrap().status() == 200
    }

    /// The requests of this grant type that the sandbox has decided.
    pub fn token_requests(&self, grant_type: &str) -> Vec<Request> {
        let mut requests = self.sandbox.requests();
        requests
            .retain(|request| request.endpoint == Endpoint::Token && request.grant_type.as_deref() == Some(grant_type));
        requests
    }
}

/// The same database with a password, if there is none.
fn with_password(url: &str) -> String {
    let mut url = Url::parse(url).unwrap();
    if url.password().is_none() {
        url.set_password(Some(DATABASE_PASSWORD)).unwrap();
    }
    url.into()
}

/// A listener's address in a log line, whatever its format.
fn address(line: &str, listener: &str) -> String {
    let marks = [format!("{listener}="), format!("\"{listener}\":\"")];
    let rest = marks.iter().find_map(|mark| line.split_once(mark.as_str())).unwrap().1;
    rest.split([' ', '"']).next().unwrap().to_owned()
}

fn text_line(bytes: &[u8]) -> &str {
    text(bytes).trim_end()
}
