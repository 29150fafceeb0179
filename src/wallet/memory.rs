//! Holdings in memory: a hot get is answered from here, without the store. Tokens lie there sealed and are opened per
//! call; refresh tokens never do.

use std::mem::size_of;
use std::sync::Arc;

use super::flights::Landing;
use super::get::{Handout, TokenRequest, choose};
use super::refresh::Errand;
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
    /// A token that memory can answer with as it is. An error is never told from memory, and a rejected token is looked
    /// for in the store.
    pub(super) fn hot_get(&self, user: &UserId, provider: ProviderId, request: &TokenRequest) -> Option<Handout> {
        if request.rejected.is_some() {
            return None;
        }
        let holdings = self.0.memory.get(&(provider, user.clone()))?;
        let now = self.0.clock.now();
        let holding = self.0.answers.pending.lay_over(choose(&holdings, request.account).ok()?, now);
        let serve = holding.grant.serve(&request.need, now);
        if !matches!(serve, Serve::Now | Serve::NowThenRefresh) {
            return None;
        }
        let handout = self.0.opened(&holding)?;
        self.keep_ahead(&holding.grant);
        if serve == Serve::NowThenRefresh {
            drop(self.fly(&holding.grant, Errand::Ahead));
        }
        Some(handout)
    }
}

impl Inner {
    /// The user's holdings as the store has them, remembered.
    pub(super) async fn holdings(&self, user: &UserId, provider: ProviderId) -> Result<Holdings, StoreError> {
        let read = async || {
            let holdings: Holdings = self.store.holdings(user, provider).await?.into_iter().map(Arc::new).collect();
            Ok::<_, StoreError>((!holdings.is_empty()).then_some(holdings))
        };
        Ok(self.memory.read((provider, user.clone()), read).await?.unwrap_or_default())
    }

    /// The store has a refreshed token: drops what memory has of its user there. What was hot is read anew, once for all
    /// who wait for the new token.
    pub(super) async fn renew(&self, user: &UserId, provider: ProviderId) {
        let was_hot = self.memory.holds(&(provider, user.clone()));
        self.cache.forget(&Stale::Account { provider, user: user.clone() });
        if was_hot && let Err(error) = self.holdings(user, provider).await {
            tracing::debug!(%provider, %error, "could not read a refreshed grant; its next get will");
        }
    }

    /// A flight that brought no token found, or left, the grant other than memory has it: it is to be judged anew, not
    /// flown again and again. One that did bring a token has renewed memory itself.
    pub(super) fn forget_unless_refreshed(&self, grant: &Grant, landing: &Landing) {
        if *landing != Landing::Refreshed {
            self.cache.forget(&stale(grant));
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
        let metadata: usize =
            metadata.iter().chain(&grant.params).map(|(name, value)| 2 * BOXED + name.len() + value.len()).sum();
        let texts = grant.user.as_str().len() + grant.token_type.len() + subject.len();
        size_of::<Holding>() + access_token.as_bytes().len() + texts + scopes + metadata
    };
    size_of::<Key>() + user.as_str().len() + size_of::<Holdings>() + holdings.iter().map(of_one).sum::<usize>()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use tokio_util::task::TaskTracker;

    use super::*;
    use crate::clock::Clock;
    use crate::domain::grant::tests::hour;
    use crate::domain::ids::InstanceId;
    use crate::domain::secret::AccessToken;
    use crate::store::Store;
    use crate::vault::{Owner, RootKey, Vault};

    const NOW: Timestamp = Timestamp::from_millis(1_700_000_000_000);

    /// A holding of `user` with a token of a kilobyte.
    fn holding(user: &UserId, vault: &Vault) -> Holding {
        let owner = Owner { row: "", account: "", user: "", provider: "", generation: 0 };
        Holding {
            grant: Grant { user: user.clone(), ..hour(0) },
            access_token: vault.seal(&AccessToken::new("t".repeat(1_024)), &owner).unwrap(),
            subject: "person".into(),
            is_default: false,
            metadata: BTreeMap::from([("shop".to_owned(), "s.example.com".to_owned())]),
        }
    }

    #[tokio::test]
    async fn ten_thousand_users_take_no_more_than_is_allowed() {
        const ALLOWED: u64 = 4 << 20;
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&format!("sqlite:{}", folder.path().join("wallet.db").display()), 1).await.unwrap();
        let cache = Cache::new(store, Clock::moved(NOW).0, ALLOWED, TaskTracker::new());
        let memory = memory(&cache);
        let (vault, _) = Vault::create(&RootKey::generate(), InstanceId::new(NOW), NOW).unwrap();
        let (provider, mut most, mut one) = (ProviderId::new(NOW), 0, 0);
        for n in 0..10_000 {
            let user = UserId::parse(format!("user-{n}")).unwrap();
            let holdings: Holdings = [Arc::new(holding(&user, &vault))].into();
            one = weigh(&(provider, user.clone()), &holdings);
            memory.read((provider, user), async || Ok::<_, StoreError>(Some(holdings))).await.unwrap();
            most = most.max(memory.bytes());
        }
        assert!(one > 1_024 + 300, "{one} bytes is less than its parts");
        assert!(most <= ALLOWED, "{most} bytes");
        let held =
            (0..10_000).filter(|n| memory.holds(&(provider, UserId::parse(format!("user-{n}")).unwrap()))).count();
        assert!(held > 1_500, "the memory allowed is used: {held} users");
    }
}
