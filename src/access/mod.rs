//! Who calls, and what they may do.

pub mod api_key;
pub mod clients;
pub mod permit;

use subtle::ConstantTimeEq as _;

use crate::clock::Clock;
use crate::domain::error::Failure;
use crate::domain::ids::InstanceId;
use crate::store::Store;

pub use api_key::InstanceTag;
pub use permit::{Caller, Permit};

/// Authenticates callers and keeps the API clients.
#[derive(Clone)]
pub struct Access {
    store: Store,
    clock: Clock,
    instance: InstanceTag,
}

impl Access {
    /// Over the store of `instance`.
    pub fn new(store: Store, clock: Clock, instance: InstanceId) -> Self {
        Self { store, clock, instance: InstanceTag::of(instance) }
    }

    /// Who sends this `authorization` header (RFC 6750 section 2.1). Every refusal of a key is the same refusal, and
    /// takes the same look-up.
    pub async fn authenticate(&self, authorization: Option<&str>) -> Result<Caller, Failure> {
        let header = authorization.ok_or(Failure::CredentialsMissing)?;
        let (scheme, key) = header.split_once(' ').ok_or(Failure::ApiKeyInvalid)?;
        if !scheme.eq_ignore_ascii_case("bearer") {
            return Err(Failure::ApiKeyInvalid);
        }
        let presented = api_key::read(key.trim(), self.clock.now());
        let stored = self.store.api_key(presented.id).await?;
        let known = stored.as_ref().map_or([0; 32].as_slice(), |stored| &stored.secret_hash);
        let same_secret: bool = presented.secret_hash.ct_eq(known).into();
        match stored {
            Some(stored)
                if same_secret
                    && presented.well_formed
                    && presented.instance == self.instance
                    && stored.expires_at.is_none_or(|end| end > self.clock.now()) =>
            {
                Ok(Caller::new(stored.client))
            }
            _ => Err(Failure::ApiKeyInvalid),
        }
    }
}
