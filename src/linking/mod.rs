//! Flows, accounts and redirect URLs: opens and ends external accounts; calls the wallet, never the reverse.

mod accounts;
mod complete;
mod consent;
mod receive;
mod redirect_urls;
mod start;
mod upkeep;

use std::sync::Arc;

use tokio_util::task::TaskTracker;

use crate::cache::Cache;
use crate::clock::Clock;
use crate::domain::ids::ReplicaId;
use crate::domain::instance::InstanceKind;
use crate::providers::Registry;
use crate::store::Store;
use crate::vault::Vault;
use crate::wallet::{FlowIds, Wallet};

pub use accounts::{Account, AccountEdit, UserProvider, UserProviderPage};
pub use complete::{Linked, Proof};
pub use consent::Refused;
pub use receive::{Callback, Received};
pub use start::{LinkRequest, StartedLink};

/// Runs flows and keeps accounts. Cheap to clone.
#[derive(Clone)]
pub struct Linking(Arc<Parts>);

/// What linking stands on.
pub struct Parts {
    /// The store.
    pub store: Store,
    /// What of it may be kept in memory.
    pub cache: Cache,
    /// Seals flows' secrets and profiles.
    pub vault: Arc<Vault>,
    /// The configured providers.
    pub registry: Arc<Registry>,
    /// Takes the grants.
    pub wallet: Wallet,
    /// The time.
    pub clock: Clock,
    /// What the instance is for.
    pub kind: InstanceKind,
    /// This process.
    pub replica: ReplicaId,
    /// Runs what outlives its callers.
    pub tasks: TaskTracker,
}

impl Linking {
    /// Over its parts.
    pub fn new(parts: Parts) -> Self {
        Self(Arc::new(parts))
    }
}
