//! Refreshed tokens that are in the spool and not in the store yet, laid over what the store says.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::clock::Timestamp;
use crate::domain::grant::{Grant, GrantState};
use crate::domain::ids::GrantId;
use crate::store::{GrantChange, Holding, Outcome};

/// By grant, the newest answer that the store has not taken.
#[derive(Default)]
pub(super) struct Pending(Mutex<HashMap<GrantId, Spooled>>);

struct Spooled {
    change: GrantChange,
    /// Until when it is served; `None` is for as long as it takes.
    until: Option<Timestamp>,
}

impl Pending {
    /// From now on an answer is served though the store does not have it.
    pub(super) fn insert(&self, change: GrantChange, until: Option<Timestamp>) {
        let mut pending = self.lock();
        if pending.get(&change.grant).is_none_or(|known| known.change.fence < change.fence) {
            pending.insert(change.grant, Spooled { change, until });
        }
    }

    /// The store has the answer of this fence, or a newer one.
    pub(super) fn remove(&self, grant: GrantId, fence: i64) {
        let mut pending = self.lock();
        if pending.get(&grant).is_some_and(|known| known.change.fence <= fence) {
            pending.remove(&grant);
        }
    }

    /// Whether the store has not taken an answer of this grant yet.
    pub(super) fn holds(&self, grant: GrantId) -> bool {
        self.lock().contains_key(&grant)
    }

    /// Lays what is newer than the store over what was read of it, now or before.
    pub(super) fn lay_over(&self, mut holding: Arc<Holding>, now: Timestamp) -> Arc<Holding> {
        let pending = self.lock();
        if let Some(Spooled { change, until }) = pending.get(&holding.grant.id)
            && until.is_none_or(|until| now < until)
            && holding.grant.committed_fence < change.fence
        {
            lay(Arc::make_mut(&mut holding), change);
        }
        holding
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<GrantId, Spooled>> {
        // The map is whole between any two statements.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The holding as it will be when the change is stored.
fn lay(holding: &mut Holding, change: &GrantChange) {
    let Outcome::Refreshed { access_token, refresh_token, token_type, scopes, metadata, freshness } = &change.outcome
    else {
        return;
    };
    holding.access_token = access_token.clone();
    if !metadata.is_empty() {
        holding.metadata.clone_from(metadata);
    }
    let grant = &mut holding.grant;
    *grant = Grant {
        state: if matches!(grant.state, GrantState::Suspect | GrantState::Dead) {
            GrantState::Active
        } else {
            grant.state
        },
        freshness: freshness.clone(),
        token_type: token_type.clone(),
        scopes: scopes.clone().unwrap_or_else(|| grant.scopes.clone()),
        access_generation: change.fence,
        refresh_generation: if refresh_token.is_some() { Some(change.fence) } else { grant.refresh_generation },
        committed_fence: change.fence,
        attempts: 0,
        attempted_at: None,
        retry_not_before: None,
        ..grant.clone()
    };
}
