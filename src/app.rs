//! Builds the whole service from its configuration, runs it, and shuts it down in order.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use url::Url;

use crate::access::clients::NewClient;
use crate::access::{Access, Requests};
use crate::api;
use crate::cache::Cache;
use crate::clock::Clock;
use crate::config::{Config, EXIT_CODE};
use crate::domain::error::Failure;
use crate::domain::ids::ApiClientId;
use crate::domain::instance::InstanceKind;
use crate::domain::secret::ApiKey;
use crate::events::{self, Events};
use crate::jobs::{JobsError, Timetable};
use crate::keys::{self, KeysError, Opened};
use crate::linking::{self, Linking};
use crate::outbound::{Outbound, OutboundConfig, OutboundConfigError};
use crate::providers::{self, Registry};
use crate::store::{Engine, Store, StoreError};
use crate::wallet::spool::{Spool, SpoolError, SpoolRecord, Whose};
use crate::wallet::{self, Wallet};
use crate::{telemetry, web};

/// How long running work may take to end at shutdown.
const DRAIN: Duration = Duration::from_secs(15);

/// How often a store that is away at start is asked again, also while a connection to it hangs.
const ASK: Duration = Duration::from_millis(250);

/// Why the service does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The root key or keyring.
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The spool.
    #[error(transparent)]
    Spool(#[from] SpoolError),
    /// A listener.
    #[error("cannot listen on {address} ({listener})")]
    Listen {
        /// Which one.
        listener: &'static str,
        /// Where.
        address: SocketAddr,
        /// Why not.
        source: std::io::Error,
    },
    /// The HTTP client.
    #[error(transparent)]
    Outbound(#[from] OutboundConfigError),
    /// The timetable.
    #[error(transparent)]
    Jobs(#[from] JobsError),
    /// The public URL cannot be made.
    #[error("the public URL cannot be made of the web listener's address")]
    PublicUrl,
    /// A first step failed.
    #[error("{0}")]
    Failed(#[from] Failure),
    /// The bootstrap key's file.
    #[error("cannot write the first API key to {path}: {source}")]
    KeyFile {
        /// Where to.
        path: std::path::PathBuf,
        /// Why not.
        source: std::io::Error,
    },
}

impl StartError {
    /// The exit code: 78 where an operator must mend something first, 1 where trying again may help.
    pub fn exit_code(&self) -> u8 {
        let configuration = match self {
            Self::Keys(error) => error.is_configuration(),
            Self::Store(error) => error.is_configuration(),
            Self::Spool(error) => error.is_configuration(),
            Self::Outbound(_) | Self::PublicUrl | Self::KeyFile { .. } => true,
            Self::Listen { .. } | Self::Jobs(_) | Self::Failed(_) => false,
        };
        if configuration { EXIT_CODE } else { 1 }
    }

    /// Whether it is only that the store is away for now.
    fn is_away(&self) -> bool {
        match self {
            Self::Store(error) | Self::Keys(KeysError::Store(error)) => {
                error.is_transient() && !error.is_configuration()
            }
            Self::Failed(failure) => *failure == Failure::StoreUnavailable,
            _ => false,
        }
    }
}

/// Where a running service listens.
#[derive(Clone, Copy, Debug)]
pub struct Addresses {
    /// gRPC.
    pub grpc: SocketAddr,
    /// The callback and pages.
    pub web: SocketAddr,
    /// Metrics and probes.
    pub ops: SocketAddr,
}

/// The running service.
pub struct App {
    addresses: Addresses,
    store: Store,
    wallet: Wallet,
    timetable: Timetable,
    closing: CancellationToken,
    /// Work that outlives its callers.
    tasks: TaskTracker,
    /// The three listeners.
    servers: TaskTracker,
}

impl App {
    /// Checks everything, opens the listeners and runs. Nothing listens, and nothing is changed, unless the root key
    /// opens the keyring. A store that is away is waited for: what the last life left in the spool shall be in it as
    /// soon as it is back.
    pub async fn start(config: Config, clock: Clock) -> Result<Self, StartError> {
        telemetry::metrics::install();
        let store = open(&config).await?;
        let opened = patiently(&config, async || keys::open(&store, &config).await).await?;
        patiently(&config, async || store.migrate().await).await?;
        patiently(&config, async || wallet::set_clock(&store, &clock).await).await?;
        let (closing, tasks) = (CancellationToken::new(), TaskTracker::new());
        let cache = Cache::new(store.clone(), clock.clone(), config.cache_max_bytes, tasks.clone());
        let access = Access::new(store.clone(), cache.clone(), clock.clone(), opened.instance.id);
        if let Some(path) = &config.bootstrap_admin_key_file {
            write_first_key(&store, &access, path).await?;
        }
        let listeners = Bound::bind(&config).await?;
        let rooms = rooms(&config, clock.clone(), &store, &cache, &opened, listeners.addresses.web, &tasks)?;
        patiently(&config, async || rooms.wallet.adopt().await).await?;
        // The lock of the file, or of the spool's folder, proves that this replica's last process is dead.
        patiently(&config, async || rooms.linking.recover().await).await?;
        patiently(&config, async || rooms.wallet.arrive().await).await?;
        let events = Events::new(events::Parts {
            store: store.clone(),
            access: access.clone(),
            clock,
            instance: opened.instance.id,
            retention: config.events_retention,
            closing: closing.clone(),
        });
        let timetable = Timetable::start(&rooms.wallet, &rooms.linking, &events, &tasks, &closing).await?;
        let servers = TaskTracker::new();
        servers.spawn(events.clone().follow());
        if store.engine() == Engine::Postgres {
            servers.spawn(cache.follow(closing.clone()));
        }
        let health = timetable.health();
        let UseCases { requests, wallet, linking, registry } = rooms;
        let readiness = web::Readiness {
            store: store.clone(),
            wallet: wallet.clone(),
            failing_job: Arc::new(move || health.failing()),
        };
        let rooms =
            api::Rooms { access, requests, wallet: wallet.clone(), linking, registry, events, kind: config.kind };
        let addresses = listeners.serve(rooms, readiness, &servers, &closing);
        tracing::info!(grpc = %addresses.grpc, web = %addresses.web, ops = %addresses.ops, kind = config.kind.as_str(), "ready");
        Ok(Self { addresses, store, wallet, timetable, closing, tasks, servers })
    }

    /// Where it listens.
    pub const fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// Runs each job once, beside the timetable, and waits until nothing is under way: for whoever moves the clock and
    /// does not want to wait for the second's stroke. While the clock stands, what waits for a provider's budget waits.
    ///
    /// # Errors
    ///
    /// The first job that failed; those after it did not run.
    pub async fn turn(&self) -> Result<(), Failure> {
        self.timetable.turn().await
    }

    /// Returns when a listener has broken: the service is of no use any more and shall be shut down.
    pub async fn broken(&self) {
        self.closing.cancelled().await;
    }

    /// Stops in order: no new jobs, no new calls; what runs may end; then the spool, then the store.
    pub async fn shutdown(self) {
        // Closed first: from now on no refresh is begun.
        self.tasks.close();
        self.closing.cancel();
        self.timetable.stop().await;
        self.servers.close();
        let drained = tokio::time::timeout(DRAIN, async {
            self.servers.wait().await;
            self.tasks.wait().await;
        });
        if drained.await.is_err() {
            tracing::warn!(tasks = self.tasks.len(), "stopped with work under way; its leases will run out");
        }
        self.wallet.close().await;
        self.store.close().await;
        tracing::info!("stopped");
    }
}

/// Opens the store. On PostgreSQL a try to connect may hang for seconds beside a server that is back: the next one does
/// not wait for it. A file that cannot be opened is no store that is away.
async fn open(config: &Config) -> Result<Store, StartError> {
    if config.store.url.sqlite_path().is_some() {
        return Ok(keys::store(config).await?);
    }
    let mut tries = FuturesUnordered::new();
    patiently(config, async || {
        tries.push(Store::open(config.store.url.expose(), config.store.max_connections));
        let opened = tokio::time::timeout(ASK, tries.select_next_some()).await;
        opened.unwrap_or_else(|_| Err(StoreError::Unavailable("no connection yet".to_owned())))
    })
    .await
}

/// Takes a step of the start again and again while the store is away.
async fn patiently<T, E: Into<StartError>>(
    config: &Config,
    mut step: impl AsyncFnMut() -> Result<T, E>,
) -> Result<T, StartError> {
    let mut told = None;
    let file = config.store.url.sqlite_path().map(|path| tracing::field::display(path.display()));
    loop {
        match step().await.map_err(Into::into) {
            Err(error) if error.is_away() => {
                let reason = error.to_string();
                if told.as_ref() != Some(&reason) {
                    tracing::warn!(reason, file, "waiting for the store");
                    told = Some(reason);
                }
                tokio::time::sleep(ASK).await;
            }
            done => return done,
        }
    }
}

/// Makes the first API client of a stopped store, for an operator who has no key yet.
pub async fn bootstrap_client(
    config: &Config,
    display_name: &str,
    clock: &Clock,
) -> Result<(ApiClientId, ApiKey), StartError> {
    let store = keys::store(config).await?;
    let made = async {
        let opened = keys::open(&store, config).await?;
        store.migrate().await?;
        let cache = Cache::new(store.clone(), clock.clone(), 0, TaskTracker::new());
        let access = Access::new(store.clone(), cache, clock.clone(), opened.instance.id);
        Ok(access.bootstrap_client(display_name).await?)
    };
    let made: Result<NewClient, StartError> = made.await;
    store.close().await;
    made.map(|made| (made.client.id, made.key))
}

/// The use cases.
struct UseCases {
    requests: Requests,
    wallet: Wallet,
    linking: Linking,
    registry: Arc<Registry>,
}

/// This process's spool, and what the last one left in it.
fn spool(
    config: &Config,
    store: &Store,
    opened: &Opened,
    clock: &Clock,
) -> Result<(Spool, Vec<SpoolRecord>), SpoolError> {
    // A SQLite store knows who its only process is; on PostgreSQL that is said by the spool's folder.
    let replica = (store.engine() == Engine::Sqlite).then_some(opened.instance.replica);
    let whose = Whose { instance: opened.instance.id, replica };
    Spool::open(&config.spool_dir, whose, Arc::clone(&opened.vault), clock.now())
}

fn rooms(
    config: &Config,
    clock: Clock,
    store: &Store,
    cache: &Cache,
    opened: &Opened,
    web: SocketAddr,
    tasks: &TaskTracker,
) -> Result<UseCases, StartError> {
    let development = config.kind == InstanceKind::Development;
    let outbound = Outbound::new(&OutboundConfig {
        allow: config.outbound_allow.iter().map(ToString::to_string).collect(),
        development,
        ..OutboundConfig::default()
    })?;
    let public_url = match &config.public_url {
        Some(url) => url.clone(),
        None => Url::parse(&format!("http://{web}")).map_err(|_| StartError::PublicUrl)?,
    };
    let registry = Arc::new(Registry::new(providers::Parts {
        store: store.clone(),
        cache: cache.clone(),
        vault: Arc::clone(&opened.vault),
        outbound,
        kind: config.kind,
        public_url,
        sandbox_url: config.sandbox_url.clone(),
        clock: clock.clone(),
    }));
    let (spool, leftovers) = spool(config, store, opened, &clock)?;
    let replica = spool.replica();
    let wallet = Wallet::new(wallet::Parts {
        store: store.clone(),
        cache: cache.clone(),
        vault: Arc::clone(&opened.vault),
        registry: Arc::clone(&registry),
        clock: clock.clone(),
        spool,
        ahead_for: config.refresh_ahead_for,
        serve_during_store_outage: config.serve_during_store_outage,
        tasks: tasks.clone(),
    });
    wallet.replay(leftovers);
    let linking = Linking::new(linking::Parts {
        store: store.clone(),
        cache: cache.clone(),
        vault: Arc::clone(&opened.vault),
        registry: Arc::clone(&registry),
        wallet: wallet.clone(),
        clock: clock.clone(),
        kind: config.kind,
        replica,
        tasks: tasks.clone(),
    });
    let requests = Requests::new(store.clone(), Arc::clone(&opened.vault), clock, tasks.clone());
    Ok(UseCases { requests, wallet, linking, registry })
}

/// The three listeners, open and not yet served.
struct Bound {
    grpc: TcpListener,
    web: TcpListener,
    ops: TcpListener,
    addresses: Addresses,
}

impl Bound {
    async fn bind(config: &Config) -> Result<Self, StartError> {
        let (grpc, grpc_address) = listen("grpc", config.listeners.grpc).await?;
        let (web, web_address) = listen("web", config.listeners.web).await?;
        let (ops, ops_address) = listen("ops", config.listeners.ops).await?;
        let addresses = Addresses { grpc: grpc_address, web: web_address, ops: ops_address };
        Ok(Self { grpc, web, ops, addresses })
    }

    fn serve(
        self,
        rooms: api::Rooms,
        readiness: web::Readiness,
        servers: &TaskTracker,
        closing: &CancellationToken,
    ) -> Addresses {
        let pages =
            web::Rooms { linking: rooms.linking.clone(), kind: rooms.kind, grpc: self.addresses.grpc.to_string() };
        let broken = |listener: &'static str, closing: CancellationToken| {
            move |error: &dyn std::error::Error| {
                tracing::error!(listener, %error, "a listener broke");
                closing.cancel();
            }
        };
        let (told, closed) = (broken("grpc", closing.clone()), closing.clone());
        servers.spawn(async move { api::serve(self.grpc, rooms, closed).await.map_err(|error| told(&error)) });
        let (told, closed) = (broken("web", closing.clone()), closing.clone().cancelled_owned());
        servers.spawn(async move { web::serve(self.web, pages, closed).await.map_err(|error| told(&error)) });
        let (told, closed) = (broken("ops", closing.clone()), closing.clone().cancelled_owned());
        servers.spawn(async move { web::serve_ops(self.ops, readiness, closed).await.map_err(|error| told(&error)) });
        self.addresses
    }
}

async fn listen(listener: &'static str, address: SocketAddr) -> Result<(TcpListener, SocketAddr), StartError> {
    let failed = |source| StartError::Listen { listener, address, source };
    let socket = TcpListener::bind(address).await.map_err(failed)?;
    let address = socket.local_addr().map_err(failed)?;
    Ok((socket, address))
}

/// Makes the first API client if there is none, and writes its key to a new file that only its owner reads.
async fn write_first_key(store: &Store, access: &Access, path: &Path) -> Result<(), StartError> {
    if !store.list_api_clients(None, 1).await?.is_empty() {
        return Ok(());
    }
    let failed = |source| StartError::KeyFile { path: path.to_owned(), source };
    // The file first: a key that cannot be written down must not be made.
    let mut file = private_file(path).map_err(failed)?;
    let made = access.bootstrap_client("bootstrap").await?;
    std::io::Write::write_all(&mut file, format!("{}\n", made.key.expose()).as_bytes()).map_err(failed)?;
    file.sync_all().map_err(failed)?;
    tracing::info!(path = %path.display(), "wrote the first API key");
    Ok(())
}

fn private_file(path: &Path) -> std::io::Result<std::fs::File> {
    use std::os::unix::fs::OpenOptionsExt as _;
    std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}
