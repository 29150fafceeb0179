//! `dev`: everything on this machine, with one linked account, ready to be called.

mod browser;
mod folder;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{env, io};

use anyhow::Context as _;
use url::Url;

use self::browser::Browser;
use self::folder::Folder;
use super::dev_file::{DEFAULT_FOLDER, DevFile};
use super::remote::Remote;
use super::stop::Stop;
use super::{accounts, logs, output, providers};
use crate::app::App;
use crate::clock::Clock;
use crate::config::{Config, Listeners};
use crate::domain::secret::ApiKey;
use crate::proto::v1::{CreateProviderRequest, ListExternalAccountsRequest, StartLinkRequest, StartLinkResponse};
use crate::sandbox::{self, DEFAULT_CLIENT_ID, DEFAULT_CLIENT_SECRET, Options, Rotation, Sandbox};

/// The user that is linked from the start.
const USER: &str = "demo";

/// The user that the printed browser link is for; a second account of [`USER`] would make "the" account ambiguous.
const GUEST: &str = "alice";

/// The provider's slug.
const PROVIDER: &str = "sandbox";

/// Its catalog entry.
const CATALOG_ENTRY: &str = "sandbox_grace";

/// How long a redeemed refresh token still answers. A wallet that is killed while the answer is on its way then goes on
/// with the old one, as at real providers that rotate.
const GRACE: Duration = Duration::from_mins(1);

const NOTES: &str = "\
Examples:
  token-wallet dev
  token-wallet dev --token-ttl 20s --json --grpc-addr 127.0.0.1:0 --web-addr 127.0.0.1:0 --ops-addr 127.0.0.1:0

Everything stays in the data folder: a second start goes on where the first ended. Other commands that are called from
the same folder find the wallet by themselves. Delete the data folder to begin again.

The sandbox gives a new refresh token with each refresh; the old one still answers for 30 seconds. Its log of requests
is at /_sandbox/requests.";

/// Try the wallet on this machine: a sandbox provider, and user "demo" linked to it. Not for real accounts.
#[derive(clap::Args)]
#[command(after_help = NOTES)]
pub(super) struct Args {
    /// Where everything is kept
    #[arg(long, value_name = "FOLDER", default_value = DEFAULT_FOLDER)]
    data_dir: PathBuf,

    /// The gRPC listener; port 0 takes a free one
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:50051", value_parser = loopback)]
    grpc_addr: SocketAddr,

    /// The listener for callbacks and pages; port 0 takes a free one
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8080", value_parser = loopback)]
    web_addr: SocketAddr,

    /// The listener for metrics and probes; port 0 takes a free one
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:9464", value_parser = loopback)]
    ops_addr: SocketAddr,

    /// How long the sandbox's access tokens live
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = humantime::parse_duration)]
    token_ttl: Duration,

    /// Print one JSON line when ready: grpc, web, ops, `api_key`, sandbox
    #[arg(long)]
    json: bool,
}

/// What runs.
struct Running {
    app: App,
    sandbox: Sandbox,
    /// Keeps other processes out of the folder.
    _folder: Folder,
}

impl Args {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let mut stop = Stop::listen()?;
        let running = tokio::select! {
            running = self.start() => running?,
            () = stop.told() => return Ok(()),
        };
        stop.told().await;
        running.app.shutdown().await;
        running.sandbox.shutdown().await;
        Ok(())
    }

    async fn start(&self) -> anyhow::Result<Running> {
        let folder = Folder::open(&self.data_dir)?;
        let before = DevFile::read(&self.data_dir)?;
        let sandbox = self.sandbox(before.as_ref()).await.context("the sandbox cannot start")?;
        let listeners = Listeners { grpc: self.grpc_addr, web: self.web_addr, ops: self.ops_addr };
        let config = Config::development(&self.data_dir, listeners, Url::parse(&sandbox.base_url())?);
        logs(&config.log)?;
        let clock = Clock::system();
        let api_key = self.api_key(&folder, &config, &clock, before, &sandbox).await?;
        let app = App::start(config, clock).await?;
        let addresses = app.addresses();
        let file = DevFile {
            grpc: addresses.grpc,
            web: addresses.web,
            ops: addresses.ops,
            api_key,
            sandbox: sandbox.base_url(),
        };
        file.write(&self.data_dir)?;
        let remote = Remote::new(&file.grpc.to_string(), &file.api_key)?;
        ensure_provider(&remote).await?;
        ensure_link(&remote).await?;
        self.greet(&remote, &file).await?;
        Ok(Running { app, sandbox, _folder: folder })
    }

    /// Starts the sandbox on the port that it had before, if that is free: accounts remember where they are from.
    async fn sandbox(&self, before: Option<&DevFile>) -> io::Result<Sandbox> {
        let port = before.and_then(|file| Url::parse(&file.sandbox).ok()?.port()).unwrap_or(0);
        let options = Options {
            addr: (Ipv4Addr::LOCALHOST, port).into(),
            token_ttl: self.token_ttl,
            rotation: Rotation::Grace(GRACE),
            state_file: Some(self.data_dir.join("sandbox.state")),
            ..Options::default()
        };
        match sandbox::start(options.clone()).await {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                sandbox::start(Options { addr: (Ipv4Addr::LOCALHOST, 0).into(), ..options }).await
            }
            started => started,
        }
    }

    /// The key of the first start, or a new one; written down before anything else can fail.
    async fn api_key(
        &self,
        folder: &Folder,
        config: &Config,
        clock: &Clock,
        before: Option<DevFile>,
        sandbox: &Sandbox,
    ) -> anyhow::Result<ApiKey> {
        let is_new = folder.ensure_keyring(config, clock).await?;
        if let Some(before) = before
            && !is_new
        {
            return Ok(before.api_key);
        }
        let (_, api_key) = crate::app::bootstrap_client(config, "token-wallet dev", clock).await?;
        let Listeners { grpc, web, ops } = config.listeners;
        let file = DevFile { grpc, web, ops, api_key, sandbox: sandbox.base_url() };
        file.write(&self.data_dir)?;
        Ok(file.api_key)
    }

    async fn greet(&self, remote: &Remote, file: &DevFile) -> anyhow::Result<()> {
        if self.json {
            return Ok(output::line(file.to_json())?);
        }
        let link = start_link(remote, GUEST, "").await?;
        let key = file.api_key.expose();
        output::note(
            "\nReady. Ctrl-C ends it. Get a token with grpcurl, get one with this program, and link an account",
        );
        output::note(format_args!(
            "of user {GUEST:?} in a browser (within 10 minutes). Its last page shows the call that finishes the link: put \
             this API key and user {GUEST:?} into it.\n"
        ));
        output::line(format_args!(
            "grpcurl -plaintext -H 'authorization: Bearer {key}' -d '{{\"user_id\": \"{USER}\", \"provider\": \
             \"{PROVIDER}\"}}' {} tokenwallet.v1.WalletService/GetAccessToken",
            file.grpc
        ))?;
        let found = self.data_dir == Path::new(DEFAULT_FOLDER);
        let variables = format!("TOKEN_WALLET_ADDR={} TOKEN_WALLET_API_KEY={key} ", file.grpc);
        let variables = if found { "" } else { &variables };
        output::line(format_args!("{variables}{} token get {USER} {PROVIDER}", program()))?;
        output::line(link.authorization_url)?;
        Ok(())
    }
}

/// This program as it was called, so that the line can be pasted after `cargo run` too.
fn program() -> String {
    env::args().next().unwrap_or_else(|| "token-wallet".to_owned())
}

async fn ensure_provider(remote: &Remote) -> anyhow::Result<()> {
    // Not by its slug: a refusal would be logged before anything went wrong.
    if providers::all(remote).await?.iter().any(|provider| provider.slug == PROVIDER) {
        return Ok(());
    }
    let request = CreateProviderRequest {
        slug: PROVIDER.to_owned(),
        catalog_entry: CATALOG_ENTRY.to_owned(),
        client_id: DEFAULT_CLIENT_ID.to_owned(),
        client_secret: DEFAULT_CLIENT_SECRET.to_owned(),
        ..CreateProviderRequest::default()
    };
    remote.providers().create_provider(request).await?;
    Ok(())
}

/// Links [`USER`] as a person with a browser would, unless that is done.
async fn ensure_link(remote: &Remote) -> anyhow::Result<()> {
    let filter = ListExternalAccountsRequest {
        user_id: USER.to_owned(),
        provider: PROVIDER.to_owned(),
        ..ListExternalAccountsRequest::default()
    };
    if accounts::list(remote, filter).await?.iter().any(accounts::is_active) {
        return Ok(());
    }
    let started = start_link(remote, USER, browser::REDIRECT_URL).await?;
    let arrival = Browser::new()?.approve(&started.authorization_url, USER).await?;
    super::link::complete(remote, USER, &arrival).await?;
    Ok(())
}

async fn start_link(remote: &Remote, user: &str, redirect_url: &str) -> anyhow::Result<StartLinkResponse> {
    let request = StartLinkRequest {
        user_id: user.to_owned(),
        provider: PROVIDER.to_owned(),
        redirect_url: redirect_url.to_owned(),
        ..StartLinkRequest::default()
    };
    Ok(remote.accounts().start_link(request).await?.into_inner())
}

/// `dev` lets everybody be everybody, so it is for this machine only.
fn loopback(text: &str) -> Result<SocketAddr, String> {
    let addr: SocketAddr = text.parse().map_err(|_| "must be an address such as 127.0.0.1:0".to_owned())?;
    if addr.ip().to_canonical().is_loopback() { Ok(addr) } else { Err("must be a loopback address".to_owned()) }
}
