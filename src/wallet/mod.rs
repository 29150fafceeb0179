//! Grants: deposit, get, refresh, sweep, withdraw.

mod answers;
mod census;
mod deposit;
mod flights;
mod get;
mod keep;
mod ledger;
mod memory;
mod park;
mod pending;
mod probe;
mod recover;
mod refresh;
mod replay;
mod replica;
mod revoke;
pub mod spool;
mod sweep;
mod time;
mod verdict;
mod withdraw;

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio_util::task::TaskTracker;

use crate::cache::Cache;
use crate::clock::{Clock, Timestamp};
use crate::domain::flow::Flow;
use crate::domain::grant::Grant;
use crate::domain::ids::{AccountId, GrantId, ProviderId, ReplicaId};
use crate::domain::user::UserId;
use crate::providers::Registry;
use crate::store::Store;
use crate::vault::random::spread;
use crate::vault::{Owner, Vault};

pub use deposit::RedeemError;
pub use get::{Handout, TokenRequest};
pub use time::set_clock;

use answers::Answers;
use flights::Flights;
use memory::Memory;
use replica::Pulse;
use spool::Spool;

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
    /// What providers answered and the store has not taken yet.
    answers: Answers,
    /// Providers whose due grants are being claimed.
    sweeping: Mutex<HashSet<ProviderId>>,
    /// When this replica began to run.
    started_at: Timestamp,
    /// What is known of this replica among others.
    pulse: Mutex<Pulse>,
    /// Work that goes on when its callers leave.
    tasks: TaskTracker,
}

/// What a wallet stands on.
pub struct Parts {
    /// The store.
    pub store: Store,
    /// What of it may be kept in memory.
    pub cache: Cache,
    /// Seals and opens tokens.
    pub vault: Arc<Vault>,
    /// The configured providers.
    pub registry: Arc<Registry>,
    /// The time.
    pub clock: Clock,
    /// Takes answers that the store does not take; says who this process is.
    pub spool: Spool,
    /// How long after a get its grant is refreshed ahead of the next one; zero means always.
    pub ahead_for: Duration,
    /// How long a refreshed token that only the spool has is served where other processes share the store.
    pub serve_during_store_outage: Duration,
    /// Runs what outlives its callers.
    pub tasks: TaskTracker,
}

impl Wallet {
    /// Over its parts.
    pub fn new(parts: Parts) -> Self {
        let Parts { store, cache, vault, registry, clock, spool, ahead_for, serve_during_store_outage, tasks } = parts;
        let (memory, flights, sweeping) = (memory::memory(&cache), Flights::default(), Mutex::default());
        let (replica, started_at, pulse) = (spool.replica(), clock.now(), Mutex::default());
        let answers = Answers::new(&store, spool, serve_during_store_outage);
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
            answers,
            sweeping,
            started_at,
            pulse,
            tasks,
        }))
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
        Self::new(grant.id, grant.account, &grant.user, grant.provider)
    }

    fn new(grant: GrantId, account: AccountId, user: &UserId, provider: ProviderId) -> Self {
        Self {
            grant: grant.to_string(),
            account: account.to_string(),
            user: user.to_string(),
            provider: provider.to_string(),
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
}

/// The owner of a flow's parked answer: bound to the flow's row and nothing else.
const fn parked(flow: &str) -> Owner<'_> {
    Owner { row: flow, account: "", user: "", provider: "", generation: 0 }
}
