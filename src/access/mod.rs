//! Who calls, and what they may do.

pub mod api_key;
pub mod clients;
pub mod permit;
pub mod requests;

use std::sync::Arc;

use subtle::ConstantTimeEq as _;

use crate::cache::{Cache, Concern, Kind, Shelf};
use crate::clock::Clock;
use crate::domain::error::Failure;
use crate::domain::ids::{ApiKeyId, InstanceId};
use crate::store::{Stale, Store, StoreError, StoredApiKey};

pub use api_key::InstanceTag;
use api_key::Presented;
pub use permit::{Caller, Permit};
pub use requests::Requests;

/// Authenticates callers and keeps the API clients.
#[derive(Clone)]
pub struct Access {
    store: Store,
    cache: Cache,
    keys: Shelf<ApiKeyId, Arc<StoredApiKey>>,
    clock: Clock,
    instance: InstanceTag,
}

impl Access {
    /// Over the store of `instance`; what of it may be kept in memory is kept in `cache`.
    pub fn new(store: Store, cache: Cache, clock: Clock, instance: InstanceId) -> Self {
        let keys = cache.shelf(Kind {
            name: "api_keys",
            sixteenths: 1,
            weigh: |_, key: &Arc<StoredApiKey>| {
                size_of::<ApiKeyId>() + size_of::<StoredApiKey>() + key.secret_hash.len()
            },
            concern: |stale| match stale {
                Stale::ApiClients => Concern::All,
                Stale::Account { .. } | Stale::Providers => Concern::None,
            },
        });
        Self { store, cache, keys, clock, instance: InstanceTag::of(instance) }
    }

    /// Who sends this `authorization` header (RFC 6750 section 2.1). Every refusal of a key is the same refusal, and
    /// takes the same look-up: none is
    /// told from memory.
    pub async fn authenticate(&self, authorization: Option<&str>) -> Result<Caller, Failure> {
        let header = authorization.ok_or(Failure::CredentialsMissing)?;
        let (scheme, key) = header.split_once(' ').ok_or(Failure::ApiKeyInvalid)?;
        if !scheme.eq_ignore_ascii_case("bearer") {
            return Err(Failure::ApiKeyInvalid);
        }
        let presented = api_key::read(key.trim(), self.clock.now());
        if let Some(caller) = self.caller(&presented, self.keys.get(&presented.id).as_deref()) {
            return Ok(caller);
        }
        let stored = self.read(presented.id).await?;
        self.caller(&presented, stored.as_deref()).ok_or(Failure::ApiKeyInvalid)
    }

    /// Asks again for what goes on for long: whether the key that it was permitted to still lives.
    ///
    /// # Errors
    ///
    /// [`Failure::ApiKeyInvalid`] if it is gone or has expired.
    pub async fn renew<A>(&self, permit: &Permit<A>) -> Result<(), Failure> {
        let key = permit.caller().key();
        let stored = match self.keys.get(&key) {
            Some(stored) => Some(stored),
            None => self.read(key).await?,
        };
        let lives = stored.is_some_and(|stored| self.is_in_time(&stored));
        if lives { Ok(()) } else { Err(Failure::ApiKeyInvalid) }
    }

    async fn read(&self, key: ApiKeyId) -> Result<Option<Arc<StoredApiKey>>, StoreError> {
        self.keys.read(key, async || Ok(self.store.api_key(key).await?.map(Arc::new))).await
    }

    fn is_in_time(&self, key: &StoredApiKey) -> bool {
        key.expires_at.is_none_or(|end| end > self.clock.now())
    }

    fn caller(&self, presented: &Presented, stored: Option<&StoredApiKey>) -> Option<Caller> {
        let known = stored.map_or([0; 32].as_slice(), |stored| &stored.secret_hash);
        let same_secret: bool = presented.secret_hash.ct_eq(known).into();
        let stored = stored.filter(|stored| {
            same_secret && presented.well_formed && presented.instance == self.instance && self.is_in_time(stored)
        });
        stored.map(|stored| Caller::new(stored.client, presented.id))
    }
}
