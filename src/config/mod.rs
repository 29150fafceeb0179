//! Configuration: one file, the environment, and every error at once.
//!
//! The one room that reads the environment. Values come from, weakest first: the defaults of [`keys::KEYS`], one TOML
//! file, and variables `TOKEN_WALLET__SECTION__KEY`.

mod checks;
mod error;
pub mod keys;
mod reader;
mod values;

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use url::Url;

use crate::domain::instance::InstanceKind;
pub use error::{ConfigError, Fault};
use reader::{Reader, sources};
pub use values::{LogFormat, StoreUrl};
use values::{Network, RootKeyKind, Span};

/// The file that is read if none is named; it may be missing.
pub const DEFAULT_FILE: &str = "token-wallet.toml";

/// The exit code of every configuration fault (`EX_CONFIG` of sysexits).
pub const EXIT_CODE: u8 = 78;

/// Events are kept for at least this long.
const SHORTEST_RETENTION: Duration = Duration::from_hours(1);

/// What the wallet is run with, checked as a whole.
#[derive(Clone)]
pub struct Config {
    /// What the instance may be used for.
    pub kind: InstanceKind,
    /// Where browsers reach the web listener, without a trailing slash in its path. Always set in production; `None`
    /// means `http://` and the web listener's address.
    pub public_url: Option<Url>,
    /// The database.
    pub store: StoreConfig,
    /// Where answers are kept that the store does not take.
    pub spool_dir: PathBuf,
    /// How long a refreshed token is served that only the spool has, on PostgreSQL.
    pub serve_during_store_outage: Duration,
    /// Where the root key is.
    pub root_key: RootKeyPlace,
    /// Where the wallet listens.
    pub listeners: Listeners,
    /// How long after a get its grant is refreshed ahead of time; zero means always.
    pub refresh_ahead_for: Duration,
    /// Bytes of the store held in memory at most; 0 holds nothing.
    pub cache_max_bytes: u64,
    /// How long events are kept; at least an hour.
    pub events_retention: Duration,
    /// Private networks that providers may be in; single addresses are networks of one.
    pub outbound_allow: Vec<IpNet>,
    /// How logs are written.
    pub log: LogConfig,
    /// Where a first admin API key is written if there is no API client yet.
    pub bootstrap_admin_key_file: Option<PathBuf>,
    /// The base URL of a sandbox provider, without a trailing slash (development only).
    pub sandbox_url: Option<Url>,
}

/// The database.
#[derive(Clone)]
pub struct StoreConfig {
    /// Which one.
    pub url: StoreUrl,
    /// Connections held at most; at least 1.
    pub max_connections: u32,
}

/// Where the root key is; never the key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RootKeyPlace {
    /// An environment variable, by its name.
    Env(String),
    /// A file of mode 0600.
    File(PathBuf),
}

/// Where the wallet listens; port 0 takes a free one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listeners {
    /// gRPC.
    pub grpc: SocketAddr,
    /// Callback and pages.
    pub web: SocketAddr,
    /// Metrics and probes.
    pub ops: SocketAddr,
}

/// How logs are written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// One line of text or one JSON object an event.
    pub format: LogFormat,
    /// What is logged, as `tracing_subscriber::EnvFilter` directives. `RUST_LOG` has the last word.
    pub filter: String,
}

impl Config {
    /// Reads `file` and the environment. Without a file, [`DEFAULT_FILE`] is read if it is there.
    pub fn load(file: Option<&Path>) -> Result<Self, ConfigError> {
        Self::read(file, variables())
    }

    /// As [`Config::load`], with the environment handed in.
    pub fn read(
        file: Option<&Path>,
        variables: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Self, ConfigError> {
        let mut reader = Reader::new(sources(file, variables)?);
        let config = Self::take(&mut reader);
        reader.finish(config)
    }

    /// What `dev` runs with: everything below `data_dir`, loopback only, one sandbox provider.
    pub fn development(data_dir: &Path, listeners: Listeners, sandbox_url: Url) -> Self {
        let database = data_dir.join("wallet.db");
        Self {
            kind: InstanceKind::Development,
            public_url: None,
            store: StoreConfig { url: StoreUrl::sqlite(&database), max_connections: 4 },
            spool_dir: beside(&database),
            serve_during_store_outage: Duration::ZERO,
            root_key: RootKeyPlace::File(data_dir.join("root.key")),
            listeners,
            refresh_ahead_for: Duration::from_hours(24 * 14),
            cache_max_bytes: 64 << 20,
            events_retention: Duration::from_hours(24 * 90),
            outbound_allow: Vec::new(),
            log: LogConfig { format: LogFormat::Pretty, filter: "warn,token_wallet=info".to_owned() },
            bootstrap_admin_key_file: None,
            sandbox_url: Some(sandbox_url),
        }
    }

    /// Takes and checks every value; after a fault the rest is looked at all the same.
    fn take(reader: &mut Reader) -> Option<Self> {
        let kind = reader.get("instance.kind");
        let public_url = reader.optional("public_url").map(values::without_trailing_slash);
        checks::public_url(kind, public_url.as_ref(), reader);
        let url = store_url(reader);
        let max_connections = reader.get("store.max_connections");
        if max_connections == Some(0) {
            reader.fault("store.max_connections", "must be at least 1");
        }
        let spool_dir = spool_dir(kind, url.as_ref(), reader);
        let serve_during_store_outage = reader.get::<Span>("serve_during_store_outage");
        let root_key = root_key(reader);
        checks::root_key(kind, root_key.as_ref(), reader);
        let grpc = checks::listener(kind, "grpc.addr", Some("grpc.allow_plaintext"), reader);
        let web = checks::listener(kind, "web.addr", None, reader);
        let ops = checks::listener(kind, "ops.addr", Some("ops.allow_plaintext"), reader);
        let ahead_for = reader.get::<Span>("refresh.ahead_for");
        let cache_max_bytes = reader.get("cache.max_bytes");
        let events_retention = reader.get::<Span>("events.retention");
        if events_retention.is_some_and(|kept| kept.0 < SHORTEST_RETENTION) {
            reader.fault("events.retention", "must be at least 1h");
        }
        let allow = reader.get::<Vec<Network>>("outbound.allow");
        let format = reader.get("log.format");
        let filter = reader.get("log.filter");
        checks::log_filter(filter.as_ref(), reader);
        let bootstrap_admin_key_file = reader.optional("bootstrap_admin_key_file");
        let sandbox_url = reader.optional("sandbox.url").map(values::without_trailing_slash);
        checks::sandbox(kind, sandbox_url.as_ref(), reader);
        Some(Self {
            kind: kind?,
            public_url,
            store: StoreConfig { url: url?, max_connections: max_connections? },
            spool_dir: spool_dir?,
            serve_during_store_outage: serve_during_store_outage?.0,
            root_key: root_key?,
            listeners: Listeners { grpc: grpc?, web: web?, ops: ops? },
            refresh_ahead_for: ahead_for?.0,
            cache_max_bytes: cache_max_bytes?,
            events_retention: events_retention?.0,
            outbound_allow: allow?.into_iter().map(|network| network.0).collect(),
            log: LogConfig { format: format?, filter: filter? },
            bootstrap_admin_key_file,
            sandbox_url,
        })
    }
}

/// An environment variable, for what is not configuration proper: the root key, `RUST_LOG`, an API key of the CLI.
#[expect(clippy::disallowed_methods, reason = "this room is the one that reads the environment")]
pub fn variable(name: &str) -> Option<OsString> {
    std::env::var_os(name)
}

#[expect(clippy::disallowed_methods, reason = "this room is the one that reads the environment")]
fn variables() -> impl Iterator<Item = (OsString, OsString)> {
    std::env::vars_os()
}

/// `store.url`, or what the file of `store.url_file` holds.
fn store_url(reader: &mut Reader) -> Option<StoreUrl> {
    let (key, text) = match reader.optional::<PathBuf>("store.url_file") {
        Some(_) if reader.is_set("store.url") => {
            reader.fault("store.url_file", "cannot be set together with store.url");
            return None;
        }
        Some(path) if path.to_string_lossy().contains("://") => {
            reader.fault("store.url_file", "must be the path of a file, not the URL itself");
            return None;
        }
        Some(path) => ("store.url_file", reader.secret_file("store.url_file", &path)?),
        None => ("store.url", reader.get::<String>("store.url")?.into()),
    };
    StoreUrl::parse(text).map_err(|error| reader.fault(key, error)).ok()
}

/// `spool.dir`, or what it is by default. A production instance on PostgreSQL has no place of its own that surely
/// outlives the process.
fn spool_dir(kind: Option<InstanceKind>, url: Option<&StoreUrl>, reader: &mut Reader) -> Option<PathBuf> {
    if reader.is_set("spool.dir") {
        return reader.optional("spool.dir");
    }
    match (url?.sqlite_path(), kind?) {
        (Some(database), _) => Some(beside(database)),
        (None, InstanceKind::Development) => Some(PathBuf::from("token-wallet.spool")),
        (None, InstanceKind::Production) => {
            reader.fault("spool.dir", "is required in a production instance on PostgreSQL");
            None
        }
    }
}

/// The default spool of a `SQLite` store.
fn beside(database: &Path) -> PathBuf {
    let mut path = database.as_os_str().to_owned();
    path.push(".spool");
    path.into()
}

fn root_key(reader: &mut Reader) -> Option<RootKeyPlace> {
    let source = reader.get::<RootKeyKind>("root_key.source");
    let env = reader.get("root_key.env");
    let file = reader.optional("root_key.file");
    let place = match source? {
        RootKeyKind::Env if file.is_some() => {
            reader.fault("root_key.file", "is set, but root_key.source is \"env\": set it to \"file\"");
            None
        }
        RootKeyKind::Env => env.map(RootKeyPlace::Env),
        RootKeyKind::File if reader.is_set("root_key.file") => file.map(RootKeyPlace::File),
        RootKeyKind::File => {
            reader.fault("root_key.file", "is required when root_key.source is \"file\"");
            None
        }
    };
    let place = place?;
    checks::root_key_place(&place).map_err(|(key, why)| reader.fault(key, why)).ok().map(|()| place)
}

#[cfg(test)]
mod tests;
