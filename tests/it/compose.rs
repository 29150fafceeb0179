//! docker-compose.yml, without a container engine: its services as processes of this machine, with the commands,
//! variables, scripts and volumes that the file gives them.

use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use rustix::process::Signal;
use tempfile::TempDir;
use token_wallet::config::keys::{KEYS, variable_of};
use token_wallet::proto::v1;
use token_wallet::proto::v1::complete_link_request::Proof;
use token_wallet::proto::v1::external_account_service_client::ExternalAccountServiceClient;
use token_wallet::proto::v1::wallet_service_client::WalletServiceClient;
use token_wallet::sandbox::{self, DEFAULT_CLIENT_ID, DEFAULT_CLIENT_SECRET, Options, Sandbox};
use tonic::transport::Channel;
use yaml_rust2::{Yaml, YamlLoader};

use crate::support::browser;
use crate::support::child::{Running, binary, run_in, text};
use crate::support::clients::{Key, Keyed};
use crate::support::harness::{APP_URL, manners, until};
use crate::support::postgres;

const FILE: &str = include_str!("../../docker-compose.yml");
const REPLICAS: [&str; 2] = ["wallet-1", "wallet-2"];

#[test]
fn the_compose_file_is_whole_and_gives_nothing_away() {
    let file = Compose::read();
    let services = file.0["services"].as_hash().unwrap();
    for (name, service) in services {
        let name = name.as_str().unwrap();
        for (other, _) in get(service, "depends_on").into_hash().unwrap_or_default() {
            assert!(services.contains_key(&other), "{name} depends on {other:?}");
        }
        for volume in file.volumes(name) {
            assert!(file.0["volumes"].as_hash().unwrap().contains_key(&Yaml::String(volume.name)), "{name}");
        }
        let image = get(service, "image").into_string().unwrap();
        assert!(image == "token-wallet" || image.contains(':'), "{image} is not pinned");
        for port in get(service, "ports").into_vec().unwrap_or_default() {
            assert!(port.as_str().unwrap().starts_with("127.0.0.1:"), "{name} is open to the network: {port:?}");
        }
        for (variable, value) in file.environment(name) {
            if variable.starts_with("TOKEN_WALLET__") {
                assert!(KEYS.iter().any(|key| variable_of(key.path) == variable), "{variable} means nothing");
            }
            let secret = variable.contains("PASSWORD") || variable.contains("SECRET") || variable.ends_with("_KEY");
            assert!(!secret || variable.ends_with("_FILE"), "{variable} holds a secret: {value}");
        }
    }
    let spools =
        REPLICAS.map(|name| file.volumes(name).into_iter().find(|volume| volume.path == "/var/lib/token-wallet"));
    let [Some(first), Some(second)] = spools else { panic!("a replica without a spool") };
    assert_ne!(first.name, second.name, "both replicas use one spool");
    for name in REPLICAS {
        let service = &file.0["services"][name];
        assert_eq!(get(service, "read_only"), Yaml::Boolean(true));
        assert_eq!(get(service, "stop_grace_period").as_str(), Some("30s"), "running work is given 15 seconds");
    }
}

#[tokio::test]
async fn two_replicas_of_the_compose_file_serve_behind_one_address_and_one_may_go() {
    let mut composed = Composed::new().await;
    composed.make_secrets();
    for service in ["migrate", "keyring", "migrate", "keyring"] {
        // As often as somebody says `up`.
        let done = composed.run(service);
        assert!(done.status.success(), "{service}: {}", text(&done.stderr));
    }
    for name in REPLICAS {
        composed.start(name).await;
    }
    let front = composed.front().await;
    composed.configure(&front);
    front.link().await;
    for _ in 0..40 {
        front.get().await;
    }
    let served = "token_wallet_requests_total{method=\"WalletService/GetAccessToken\",code=\"OK\"} ";
    for replica in &composed.replicas {
        let metrics = replica.metrics(&front.http).await;
        let gets = metrics.lines().find_map(|line| line.strip_prefix(served)).unwrap_or("0");
        assert!(gets.parse::<f64>().unwrap() >= 10.0, "{} served {gets} of 40 gets", replica.name);
    }
    assert_eq!(
        front.sandbox.requests().iter().filter(|request| request.endpoint == sandbox::Endpoint::Token).count(),
        1
    );

    let gone = composed.replicas.pop().unwrap();
    assert_eq!(health(&gone.grpc), Some(0));
    assert_eq!(gone.child.end_by(Signal::TERM), Some(0));
    until("nobody is sent to the one that is gone", async || {
        for _ in 0..4 {
            if front.try_get().await.is_err() {
                return false;
            }
        }
        true
    })
    .await;
    for _ in 0..40 {
        front.get().await;
    }
    assert_eq!(health(&composed.replicas[0].grpc), Some(0));
    assert_eq!(health(&gone.grpc), Some(1));
}

/// The file.
struct Compose(Yaml);

/// A named volume of a service, and where it is in its container.
struct Volume {
    name: String,
    path: String,
}

/// The file's services, on this machine.
struct Composed {
    file: Compose,
    folder: TempDir,
    replicas: Vec<Replica>,
    sandbox: Option<Sandbox>,
    database: postgres::TestDatabase,
}

struct Replica {
    name: &'static str,
    child: Running,
    grpc: String,
    web: String,
    ops: String,
}

/// The one address, as applications see it.
struct Front {
    sandbox: Sandbox,
    http: reqwest::Client,
    key: String,
    channel: Channel,
    grpc: String,
    web: String,
    _proxy: Running,
}

impl Compose {
    fn read() -> Self {
        Self(YamlLoader::load_from_str(FILE).unwrap().remove(0))
    }

    fn words(&self, service: &str, key: &str) -> Vec<String> {
        let words = get(&self.0["services"][service], key).into_vec().unwrap();
        // Compose writes a dollar sign twice where it is not its own.
        words.into_iter().map(|word| word.into_string().unwrap().replace("$$", "$")).collect()
    }

    fn environment(&self, service: &str) -> Vec<(String, String)> {
        let mut all = Vec::new();
        flatten(&get(&self.0["services"][service], "environment"), &mut all);
        all
    }

    fn volumes(&self, service: &str) -> Vec<Volume> {
        let volumes = get(&self.0["services"][service], "volumes").into_vec().unwrap_or_default();
        let volume = |volume: Yaml| {
            let volume = volume.into_string().unwrap();
            let mut parts = volume.split(':').map(str::to_owned);
            Volume { name: parts.next().unwrap(), path: parts.next().unwrap() }
        };
        volumes.into_iter().map(volume).collect()
    }
}

/// A key of a mapping, its own or one that it takes over by `<<`.
fn get(mapping: &Yaml, key: &str) -> Yaml {
    match (&mapping[key], &mapping["<<"]) {
        (Yaml::BadValue, Yaml::BadValue) => Yaml::BadValue,
        (Yaml::BadValue, other) => get(other, key),
        (own, _) => own.clone(),
    }
}

/// All variables, a mapping's own last; `${NAME:-default}` is the default.
fn flatten(mapping: &Yaml, all: &mut Vec<(String, String)>) {
    for (name, value) in mapping.as_hash().into_iter().flatten() {
        match (name.as_str().unwrap(), value) {
            ("<<", other) => flatten(other, all),
            (name, value) => {
                let value = value.as_str().unwrap();
                let default = value.strip_prefix("${").and_then(|rest| rest.strip_suffix('}')?.split_once(":-"));
                all.push((name.to_owned(), default.map_or(value, |(_, default)| default).to_owned()));
            }
        }
    }
}

impl Composed {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for volume in ["secrets", REPLICAS[0], REPLICAS[1]] {
            std::fs::create_dir(folder.path().join(volume)).unwrap();
        }
        let sandbox = Some(sandbox::start(Options::default()).await.unwrap());
        Self { file: Compose::read(), folder, replicas: Vec::new(), sandbox, database: postgres::database().await }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A path in a service's container as it is here.
    fn here(&self, service: &str, text: &str) -> String {
        self.file
            .volumes(service)
            .iter()
            .fold(text.to_owned(), |text, volume| text.replace(&volume.path, self.path(&volume.name).to_str().unwrap()))
    }

    /// What the service `secrets` does, twice; then the URL leads to the test's database.
    fn make_secrets(&self) {
        let shell = self.file.words("secrets", "entrypoint");
        let script = self.here("secrets", &self.file.words("secrets", "command")[0]);
        // Its users are those of the images.
        let script = format!("chown() {{ :; }}; id() {{ echo 70; }}\n{script}");
        let secrets = || {
            ["root.key", "postgres.password", "store.url"]
                .map(|name| std::fs::read(self.path("secrets").join(name)).unwrap())
        };
        let mut made = None;
        for _ in 0..2 {
            let done = Command::new(&shell[0]).args(&shell[1..]).arg(&script).output().unwrap();
            assert!(done.status.success(), "{}", text(&done.stderr));
            assert_eq!(made.get_or_insert_with(secrets), &secrets(), "secrets are made once");
        }
        let [_, password, url] = made.unwrap();
        let url = text(&url);
        assert_eq!(url.trim_end(), format!("postgres://wallet:{}@postgres:5432/wallet", text(&password).trim_end()));
        token_wallet::config::StoreUrl::parse(url.trim_end().to_owned()).unwrap();
        std::fs::write(self.path("secrets/store.url"), &self.database.url).unwrap();
    }

    fn command(&self, service: &str, arguments: &[&str]) -> Command {
        let mut command = binary(self.folder.path(), arguments, &[]);
        command.env("TOKEN_WALLET__SANDBOX__URL", self.sandbox.as_ref().unwrap().base_url());
        for (name, value) in self.file.environment(service) {
            let free = value.strip_prefix("0.0.0.0:").map(|_| "127.0.0.1:0".to_owned());
            command.env(name, free.unwrap_or_else(|| self.here(service, &value)));
        }
        command
    }

    /// Runs a service that ends by itself.
    fn run(&self, service: &str) -> Output {
        let arguments = self.file.words(service, "command");
        self.command(service, &arguments.iter().map(String::as_str).collect::<Vec<_>>()).output().unwrap()
    }

    async fn start(&mut self, name: &'static str) {
        let log = self.path(&format!("{name}.log"));
        let mut command = self.command(name, &["serve"]);
        let child = Running(command.stderr(File::create(&log).unwrap()).spawn().unwrap());
        until("it is ready", async || std::fs::read_to_string(&log).unwrap().contains("\"grpc\":\"")).await;
        let log = std::fs::read_to_string(&log).unwrap();
        let [grpc, web, ops] = ["grpc", "web", "ops"].map(|listener| {
            let rest = log.split_once(&format!("\"{listener}\":\"")).unwrap().1;
            rest.split_once('"').unwrap().0.to_owned()
        });
        self.replicas.push(Replica { name, child, grpc, web, ops });
    }

    /// As an operator would, through the one address.
    fn configure(&self, front: &Front) {
        std::fs::write(self.path("client.secret"), DEFAULT_CLIENT_SECRET).unwrap();
        let entry = manners(&front.sandbox);
        let provider = ["providers", "create", "sandbox", "--catalog-entry", entry, "--client-id", DEFAULT_CLIENT_ID];
        let provider = [&provider[..], &["--client-secret-file", "client.secret"]].concat();
        for arguments in [&provider[..], &["redirect-urls", "create", APP_URL]] {
            let whom = ["--addr", &front.grpc, "--api-key-file", "wallet-1/admin.key"];
            let done = run_in(self.folder.path(), &[arguments, &whom].concat(), &[]);
            assert!(done.status.success(), "{}", text(&done.stderr));
        }
    }

    /// The file's HAProxy in front of the replicas, with the first API key.
    async fn front(&mut self) -> Front {
        let config = self.file.0["configs"]["front"]["content"].as_str().unwrap().to_owned();
        let config = config.replace(" port 9464", "");
        let config = self.replicas.iter().fold(config, |config, replica| {
            let port = replica.ops.rsplit_once(':').unwrap().1;
            config
                .replace(&format!("{}:50051", replica.name), &format!("{} port {port}", replica.grpc))
                .replace(&format!("{}:8080", replica.name), &format!("{} port {port}", replica.web))
        });
        let key = std::fs::read_to_string(self.path("wallet-1/admin.key")).unwrap();
        // A free port may be taken by somebody else in between.
        for attempt in 1.. {
            let [grpc, web] =
                [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap()).map(|free| free.local_addr().unwrap());
            let config =
                config.replace("bind :50051", &format!("bind {grpc}")).replace("bind :8080", &format!("bind {web}"));
            let path = self.path("haproxy.cfg");
            std::fs::write(&path, config).unwrap();
            let mut proxy = haproxy(&path, &self.path("haproxy.log"));
            let channel = Channel::from_shared(format!("http://{grpc}")).unwrap().connect_lazy();
            let http = browser::new();
            let answers = async || {
                if proxy.0.try_wait().unwrap().is_some() {
                    return true;
                }
                let finished = http.get(format!("http://{web}/oauth/callback/sandbox")).send().await;
                finished.is_ok_and(|answer| answer.status() == 400)
            };
            until("the front leads to a replica", answers).await;
            if proxy.0.try_wait().unwrap().is_none() {
                let sandbox = self.sandbox.take().unwrap();
                let web = format!("http://{web}");
                return Front {
                    sandbox,
                    http,
                    key: key.trim_end().to_owned(),
                    channel,
                    grpc: grpc.to_string(),
                    web,
                    _proxy: proxy,
                };
            }
            assert!(attempt < 5, "{}", std::fs::read_to_string(self.path("haproxy.log")).unwrap());
        }
        unreachable!()
    }
}

fn haproxy(config: &Path, log: &Path) -> Running {
    let mut command = Command::new("haproxy");
    command.arg("-db").arg("-f").arg(config).env("PATH", "/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin");
    Running(command.stderr(File::create(log).unwrap()).spawn().expect("haproxy: scripts/test installs it"))
}

impl Replica {
    async fn metrics(&self, http: &reqwest::Client) -> String {
        http.get(format!("http://{}/metrics", self.ops)).send().await.unwrap().text().await.unwrap()
    }
}

/// What the image's health check ends with.
fn health(grpc: &str) -> Option<i32> {
    run_in(Path::new("/"), &["health", "--addr", grpc], &[]).status.code()
}

impl Front {
    fn wallet(&self) -> WalletServiceClient<Keyed> {
        WalletServiceClient::with_interceptor(self.channel.clone(), Key::new(&self.key))
    }

    fn accounts(&self) -> ExternalAccountServiceClient<Keyed> {
        ExternalAccountServiceClient::with_interceptor(self.channel.clone(), Key::new(&self.key))
    }

    async fn link(&self) {
        let request = v1::StartLinkRequest {
            user_id: "u".into(),
            provider: "sandbox".into(),
            redirect_url: APP_URL.into(),
            ..Default::default()
        };
        let url = self.accounts().start_link(request).await.unwrap().into_inner().authorization_url;
        let form = [("person", "demo"), ("decision", "approve")];
        let back = browser::location(&self.http.post(url).form(&form).send().await.unwrap());
        // The address that the file publishes is somewhere else here.
        let back = back.as_str().strip_prefix("http://localhost:8080/").unwrap().to_owned();
        let answer = self.http.get(format!("{}/{back}", self.web)).send().await.unwrap();
        let ticket = browser::parameter(&browser::location(&answer), "ticket").unwrap();
        let request = v1::CompleteLinkRequest { user_id: "u".into(), proof: Some(Proof::Ticket(ticket)) };
        self.accounts().complete_link(request).await.unwrap();
    }

    async fn try_get(&self) -> Result<String, tonic::Status> {
        let request =
            v1::GetAccessTokenRequest { user_id: "u".into(), provider: "sandbox".into(), ..Default::default() };
        Ok(self.wallet().get_access_token(request).await?.into_inner().access_token)
    }

    async fn get(&self) -> String {
        self.try_get().await.unwrap()
    }
}
