//! Grants: deposit, get, refresh, sweep, withdraw.

mod deposit;
mod flights;
mod get;
mod memory;
mod refresh;
mod sweep;
mod verdict;

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio_util::task::TaskTracker;

use crate::cache::Cache;
use crate::clock::Clock;
use crate::domain::error::Failure;
use crate::domain::event::Event;
use crate::domain::flow::Flow;
use crate::domain::grant::Grant;
use crate::domain::ids::{AccountId, ProviderId, ReplicaId};
use crate::providers::Registry;
use crate::store::{Stale, Store};
use crate::vault::{Owner, Vault};

pub use deposit::RedeemError;
pub use get::{Handout, TokenRequest};

use flights::Flights;
use memory::Memory;

/// Holds the grants of all users: takes them in, keeps them fresh, hands out their access tokens. Cheap to clone.
#[derive(Clone)]
pub struct Wallet(Arc<Inner>);

struct Inner {
    store: Store,
    cache: Cache,
    memory: Memory,
    vault: Arc<Vault>,
    registry: Arc<Registry>,
    clock: Clock,
    replica: ReplicaId,
    /// How long after a get its grant is refreshed ahead of the next one.
    ahead_for: Duration,
    /// Redemptions under way in this process.
    flights: Flights,
    /// Providers whose due grants are being claimed.
    sweeping: Mutex<HashSet<ProviderId>>,
    /// Work that goes on when its callers leave.
    tasks: TaskTracker,
}

/// What a wallet is made of.
pub struct Parts {
    /// Where grants are kept.
    pub store: Store,
    /// What of them may be kept in memory.
    pub cache: Cache,
    /// Seals and opens tokens.
    pub vault: Arc<Vault>,
    /// The configured providers.
    pub registry: Arc<Registry>,
    /// The time.
    pub clock: Clock,
    /// This process.
    pub replica: ReplicaId,
    /// How long after a get its grant is refreshed ahead of the next one.
    pub ahead_for: Duration,
    /// Runs what outlives its callers.
    pub tasks: TaskTracker,
}

impl Wallet {
    /// Over its parts.
    pub fn new(parts: Parts) -> Self {
        let Parts { store, cache, vault, registry, clock, replica, ahead_for, tasks } = parts;
        let (memory, flights, sweeping) = (memory::memory(&cache), Flights::default(), Mutex::default());
        Self(Arc::new(Inner {
            store,
            cache,
            memory,
            vault,
            registry,
            clock,
            replica,
            ahead_for,
            flights,
            sweeping,
            tasks,
        }))
    }

    /// Takes an account's grant out of use: no get that starts after this has returned serves it, on any replica.
    /// False if the account is unlinked already. `event` is written with the change.
    pub async fn withdraw(&self, account: AccountId, event: Event) -> Result<bool, Failure> {
        let (store, now, stale) = (self.0.store.clone(), self.0.clock.now(), Stale::of(&event));
        let unlinked = self.0.cache.change(stale, async move { store.unlink(account, &event, now).await }).await?;
        // Also if it was done before: perhaps a moment ago, and its caller still waits.
        self.0.cache.settled().await;
        Ok(unlinked)
    }
}

impl Inner {
    fn sweeping(&self) -> std::sync::MutexGuard<'_, HashSet<ProviderId>> {
        // The set is whole between any two statements, so a panic elsewhere leaves nothing half done.
        self.sweeping.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The ids that a grant's cells are bound to, as text.
struct Ids {
    grant: String,
    account: String,
    user: String,
    provider: String,
}

impl Ids {
    fn of(grant: &Grant) -> Self {
        Self {
            grant: grant.id.to_string(),
            account: grant.account.to_string(),
            user: grant.user.to_string(),
            provider: grant.provider.to_string(),
        }
    }

    fn at(&self, generation: i64) -> Owner<'_> {
        Owner { row: &self.grant, account: &self.account, user: &self.user, provider: &self.provider, generation }
    }
}

/// The ids that a flow's cells are bound to, as text.
pub struct FlowIds {
    flow: String,
    user: String,
    provider: String,
}

impl FlowIds {
    /// Of `flow`.
    pub fn of(flow: &Flow) -> Self {
        Self { flow: flow.id.to_string(), user: flow.user.to_string(), provider: flow.provider.to_string() }
    }

    /// The owner of the flow's code and verifier.
    pub fn owner(&self) -> Owner<'_> {
        Owner { row: &self.flow, account: "", user: &self.user, provider: &self.provider, generation: 0 }
    }

    /// The owner of its parked answer: bound to the flow's row and nothing else.
    fn row_alone(&self) -> Owner<'_> {
        Owner { row: &self.flow, account: "", user: "", provider: "", generation: 0 }
    }
}

/// A number in 0..1 to spread what would otherwise happen at once.
fn spread() -> f64 {
    let bits = u32::from_be_bytes(crate::vault::random::random_bytes::<4>());
    f64::from(bits) / (f64::from(u32::MAX) + 1.0)
}
