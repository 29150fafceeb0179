//! Holdings in memory: a hot get is answered from here, without the store. Tokens lie there sealed and are opened per
//! call; refresh tokens never do.

use std::mem::size_of;
use std::sync::Arc;

use super::get::{Handout, TokenRequest, choose};
use super::{Inner, Wallet};
use crate::cache::{Cache, Concern, Kind, Shelf};
use crate::clock::Timestamp;
use crate::domain::grant::{Grant, Serve};
use crate::domain::ids::ProviderId;
use crate::domain::user::UserId;
use crate::store::{Holding, Stale, StoreError};

/// A user's live accounts at a provider, the oldest first.
pub(super) type Holdings = Arc<[Arc<Holding>]>;

/// Whose and where.
type Key = (ProviderId, UserId);

/// The holdings that memory has. None are not remembered: a user without accounts is always looked up.
pub(super) type Memory = Shelf<Key, Holdings>;

/// What the boxes of one key or value of a map take besides their text: a node's share, rounded up.
const BOXED: usize = 48;

/// A shelf for holdings.
pub(super) fn memory(cache: &Cache) -> Memory {
    cache.shelf(Kind {
        name: "tokens",
        sixteenths: 14,
        weigh,
        concern: |stale| match stale {
            Stale::Account { provider, user } => Concern::One((*provider, user.clone())),
            Stale::Providers | Stale::ApiClients => Concern::None,
        },
    })
}

impl Wallet {
    /// A token that memory can answer with as it is. An error is never told from memory.
    pub(super) fn from_memory(&self, user: &UserId, provider: ProviderId, request: &TokenRequest) -> Option<Handout> {
        let holdings = self.0.memory.get(&(provider, user.clone()))?;
        let holding = choose(&holdings, request.account).ok()?;
        let serve = holding.grant.serve(&request.need, self.0.clock.now());
        if !matches!(serve, Serve::Now | Serve::NowThenRefresh) {
            return None;
        }
        let handout = self.0.opened(&holding)?;
        self.keep_ahead(&holding.grant);
        if serve == Serve::NowThenRefresh {
            drop(self.refresh(&holding));
        }
        Some(handout)
    }
}

impl Inner {
    /// The user's holdings as the store has them, remembered.
    pub(super) async fn holdings(&self, user: &UserId, provider: ProviderId) -> Result<Holdings, StoreError> {
        let read = async {
            let holdings: Holdings = self.store.holdings(user, provider).await?.into_iter().map(Arc::new).collect();
            Ok::<_, StoreError>((!holdings.is_empty()).then_some(holdings))
        };
        Ok(self.memory.read((provider, user.clone()), read).await?.unwrap_or_default())
    }

    /// Drops what memory has of the grant's user there, and reads it anew if it had something.
    pub(super) async fn renew(&self, grant: &Grant) {
        let was_hot = self.memory.holds(&(grant.provider, grant.user.clone()));
        self.cache.forget(&stale(grant));
        if was_hot && let Err(error) = self.holdings(&grant.user, grant.provider).await {
            tracing::debug!(grant = %grant.id, %error, "could not read a refreshed grant; its next get will");
        }
    }

    /// Notes in memory that the grant is refreshed ahead until then.
    pub(super) fn remember_ahead(&self, grant: &Grant, until: Timestamp) {
        self.memory.amend(&(grant.provider, grant.user.clone()), |holdings| {
            let ahead = |holding: &Arc<Holding>| {
                let mut holding = Arc::clone(holding);
                if holding.grant.id == grant.id {
                    Arc::make_mut(&mut holding).grant.ahead_until = until;
                }
                holding
            };
            holdings.iter().map(ahead).collect()
        });
    }
}

/// What a change of the grant makes stale.
pub(super) fn stale(grant: &Grant) -> Stale {
    Stale::Account { provider: grant.provider, user: grant.user.clone() }
}

/// The bytes that an entry takes.
fn weigh((_, user): &Key, holdings: &Holdings) -> usize {
    let of_one = |holding: &Arc<Holding>| {
        let Holding { grant, access_token, subject, metadata, .. } = &**holding;
        let scopes: usize = grant.scopes.iter().map(|scope| BOXED + scope.len()).sum();
        let metadata: usize = metadata.iter().map(|(name, value)| 2 * BOXED + name.len() + value.len()).sum();
        let texts = grant.user.as_str().len() + grant.token_type.len() + subject.len();
        size_of::<Holding>() + access_token.as_bytes().len() + texts + scopes + metadata
    };
    size_of::<Key>() + user.as_str().len() + size_of::<Holdings>() + holdings.iter().map(of_one).sum::<usize>()
}
