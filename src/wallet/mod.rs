//! Grants: deposit, get, refresh, sweep, withdraw.

mod deposit;
mod flights;
mod get;
mod probe;
mod recover;
mod refresh;
mod replica;
mod sweep;
mod verdict;

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio_util::task::TaskTracker;

use crate::clock::{Clock, Timestamp};
use crate::domain::error::Failure;
use crate::domain::event::Event;
use crate::domain::flow::Flow;
use crate::domain::grant::Grant;
use crate::domain::ids::{AccountId, ProviderId, ReplicaId};
use crate::providers::Registry;
use crate::store::Store;
use crate::vault::random::spread;
use crate::vault::{Owner, Vault};

pub use deposit::RedeemError;
pub use get::{Handout, TokenRequest};

use flights::Flights;
use replica::Pulse;

/// Holds the grants of all users: takes them in, keeps them fresh, hands out their access tokens. Cheap to clone.
#[derive(Clone)]
pub struct Wallet(Arc<Inner>);

struct Inner {
    store: Store,
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
    /// When this replica began to run.
    started_at: Timestamp,
    /// What is known of this replica among others.
    pulse: Mutex<Pulse>,
    /// Work that goes on when its callers leave.
    tasks: TaskTracker,
}

impl Wallet {
    /// Over the store, with its tokens sealed by `vault`. Work that outlives its callers runs in `tasks`.
    pub fn new(
        store: Store,
        vault: Arc<Vault>,
        registry: Arc<Registry>,
        clock: Clock,
        replica: ReplicaId,
        ahead_for: Duration,
        tasks: TaskTracker,
    ) -> Self {
        let started_at = clock.now();
        let (flights, sweeping, pulse) = (Flights::default(), Mutex::default(), Mutex::default());
        Self(Arc::new(Inner {
            store,
            vault,
            registry,
            clock,
            replica,
            ahead_for,
            flights,
            sweeping,
            started_at,
            pulse,
            tasks,
        }))
    }

    /// Takes an account's grant out of use: no get that starts later serves it. False if the account is unlinked
    /// already. `event` is written with the change.
    pub async fn withdraw(&self, account: AccountId, event: &Event) -> Result<bool, Failure> {
        Ok(self.0.store.unlink(account, event, self.0.clock.now()).await?)
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
