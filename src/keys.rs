//! The life of the keyring: made once, opened at start, checked before anything else.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::clock::{Clock, Timestamp};
use crate::config::{self, Config, RootKeyPlace};
use crate::domain::ids::{InstanceId, ReplicaId};
use crate::domain::instance::InstanceKind;
use crate::store::{Instance, Schema, Store, StoreError};
use crate::vault::{KeyState, KeyringRecord, RootKey, RootKeyError, RootKeySource, Vault, VaultError};

/// Why the keyring cannot be used. Each is a fault of configuration or of the store's contents, told before a
/// listener opens or a row changes.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// The root key cannot be had.
    #[error(transparent)]
    RootKey(#[from] RootKeyError),
    /// The keyring does not open.
    #[error(transparent)]
    Vault(#[from] VaultError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// There is no such `SQLite` file.
    #[error("there is no store {}; `token-wallet keys init` makes one", .0.display())]
    NoStore(PathBuf),
    /// The store is new. Which, if it is a file.
    #[error("the store{} has no keyring yet; make one with `token-wallet keys init`", named(.0.as_deref()))]
    NoKeyring(Option<PathBuf>),
    /// Sealed rows without the keyring that could open them.
    #[error("the store holds sealed rows but no keyring; restore the keyring from a backup")]
    KeyringMissing,
    /// `keys init` on a store that has one.
    #[error("the store has a keyring already")]
    AlreadyThere,
    /// A store made for something else.
    #[error("the store was made as a {stored} instance and is started as {configured}")]
    OtherKind {
        /// What the store says.
        stored: &'static str,
        /// What the configuration says.
        configured: &'static str,
    },
    /// The store was moved, or is being moved.
    #[error(
        "the store was left for {0} by `token-wallet migrate-store`: use that one, or take it back with its --abandon"
    )]
    Left(String),
    /// The store was written by a newer version.
    #[error("the store was written by a newer version of token-wallet")]
    Newer,
}

/// What there is to know about a keyring, without its keys.
#[derive(Clone, Debug)]
pub struct KeyStatus {
    /// Whose it is.
    pub instance: InstanceId,
    /// What that instance is for.
    pub kind: InstanceKind,
    /// The root key's fingerprint.
    pub fingerprint: String,
    /// The data keys.
    pub keys: Vec<DataKeyStatus>,
}

/// What there is to know about a data key.
#[derive(Clone, Debug)]
pub struct DataKeyStatus {
    /// Its id, part of every value that it sealed.
    pub id: u32,
    /// Whether it seals, or only opens.
    pub state: KeyState,
    /// When it was made.
    pub created_at: Timestamp,
}

impl KeysError {
    /// Whether an operator must mend the configuration or the store (exit code 78), as against a store that is away.
    pub const fn is_configuration(&self) -> bool {
        match self {
            Self::Store(error) => error.is_configuration(),
            _ => true,
        }
    }
}

/// Makes the keyring of a new store, with its instance.
pub async fn init(config: &Config, clock: &Clock) -> Result<KeyStatus, KeysError> {
    let root = root_key(config)?;
    let store = Store::open(config.store.url.expose(), config.store.max_connections).await?;
    let result = init_in(&store, &root, config.kind, clock).await;
    store.close().await;
    result
}

/// Opens a store's keyring with the configured root key and tells about it.
pub async fn status(config: &Config) -> Result<KeyStatus, KeysError> {
    let store = store(config).await?;
    let opened = open_left(&store, config).await;
    store.close().await;
    let Opened { instance, record, .. } = opened?;
    Ok(tell(&instance, &record))
}

/// Opens the configured store. A `SQLite` file that is not there is not made: its path may be mistyped.
pub(crate) async fn store(config: &Config) -> Result<Store, KeysError> {
    if let Some(path) = config.store.url.sqlite_path().filter(|path| !path.exists()) {
        return Err(KeysError::NoStore(path.to_owned()));
    }
    Ok(Store::open(config.store.url.expose(), config.store.max_connections).await?)
}

/// An opened keyring.
pub(crate) struct Opened {
    pub(crate) vault: Arc<Vault>,
    pub(crate) instance: Instance,
    record: KeyringRecord,
}

/// Opens the store's keyring, before any migration: whatever is wrong leaves the store as it is.
pub(crate) async fn open(store: &Store, config: &Config) -> Result<Opened, KeysError> {
    let opened = open_left(store, config).await?;
    match opened.instance.left_for {
        Some(place) => Err(KeysError::Left(place)),
        None => Ok(opened),
    }
}

/// The same, whether or not the store was left for another.
pub(crate) async fn open_left(store: &Store, config: &Config) -> Result<Opened, KeysError> {
    let root = root_key(config)?;
    let no_keyring = || KeysError::NoKeyring(config.store.url.sqlite_path().map(Path::to_owned));
    match store.schema().await? {
        Schema::Empty => return Err(no_keyring()),
        Schema::Newer => return Err(KeysError::Newer),
        Schema::Current | Schema::Older => {}
    }
    let (instance, record) = match (store.instance().await?, store.keyring().await?) {
        (Some(instance), Some(record)) => (instance, record),
        _ if store.has_rows().await? => return Err(KeysError::KeyringMissing),
        _ => return Err(no_keyring()),
    };
    let vault = Vault::open(&root, instance.id, &record)?;
    if instance.kind != config.kind {
        return Err(KeysError::OtherKind { stored: instance.kind.as_str(), configured: config.kind.as_str() });
    }
    Ok(Opened { vault: Arc::new(vault), instance, record })
}

async fn init_in(store: &Store, root: &RootKey, kind: InstanceKind, clock: &Clock) -> Result<KeyStatus, KeysError> {
    if store.schema().await? == Schema::Newer {
        return Err(KeysError::Newer);
    }
    store.migrate().await?;
    if store.keyring().await?.is_some() {
        return Err(KeysError::AlreadyThere);
    }
    if store.has_rows().await? {
        return Err(KeysError::KeyringMissing);
    }
    let now = clock.now();
    let instance =
        Instance { id: InstanceId::new(now), kind, replica: ReplicaId::new(now), created_at: now, left_for: None };
    let (_vault, record) = Vault::create(root, instance.id, now)?;
    if !store.initialise(&instance, &record).await? {
        return Err(KeysError::AlreadyThere);
    }
    Ok(tell(&instance, &record))
}

fn root_key(config: &Config) -> Result<RootKey, RootKeyError> {
    let source = match &config.root_key {
        RootKeyPlace::Env(name) => RootKeySource::Env(name.clone()),
        RootKeyPlace::File(path) => RootKeySource::File(path.clone()),
    };
    RootKey::load(&source, config::variable)
}

/// A store in the middle of a sentence.
fn named(path: Option<&Path>) -> String {
    path.map(|path| format!(" {}", path.display())).unwrap_or_default()
}

fn tell(instance: &Instance, record: &KeyringRecord) -> KeyStatus {
    let keys = record.keys.iter();
    KeyStatus {
        instance: instance.id,
        kind: instance.kind,
        fingerprint: record.root_key_fingerprint.clone(),
        keys: keys.map(|key| DataKeyStatus { id: key.id, state: key.state, created_at: key.created_at }).collect(),
    }
}
