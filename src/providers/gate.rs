//! The gate: how many requests a provider may have in flight from here.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::domain::ids::ProviderId;

/// How many requests one provider may have in flight.
pub const IN_FLIGHT: usize = 16;

/// Lets requests through to providers, so many at once to each. As long as its providers: they are few, and made by
/// operators.
#[derive(Default)]
pub struct Gate {
    providers: Mutex<HashMap<ProviderId, Arc<Semaphore>>>,
}

/// One request may be in flight while this stands.
pub struct Permit {
    _permit: Option<OwnedSemaphorePermit>,
}

impl Gate {
    /// Waits until a request to `provider` may be sent; first come, first served.
    pub async fn permit(&self, provider: ProviderId) -> Permit {
        // Only a closed semaphore gives none, and nobody closes these.
        Permit { _permit: self.turnstile(provider).acquire_owned().await.ok() }
    }

    /// Up to `most` permits that are free now.
    pub fn try_permits(&self, provider: ProviderId, most: usize) -> Vec<Permit> {
        let turnstile = self.turnstile(provider);
        let free = std::iter::from_fn(|| Arc::clone(&turnstile).try_acquire_owned().ok());
        free.take(most).map(|permit| Permit { _permit: Some(permit) }).collect()
    }

    fn turnstile(&self, provider: ProviderId) -> Arc<Semaphore> {
        // The map is whole between any two statements, so a panic elsewhere leaves nothing half done.
        let mut providers = self.providers.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(providers.entry(provider).or_insert_with(|| Arc::new(Semaphore::new(IN_FLIGHT))))
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;
    use crate::clock::Timestamp;

    #[test]
    fn each_provider_has_its_own_permits_and_they_come_back() {
        let gate = Gate::default();
        let [one, other] = [(); 2].map(|()| ProviderId::new(Timestamp::from_millis(0)));
        let first = gate.permit(one).now_or_never().unwrap();
        let rest = gate.try_permits(one, usize::MAX);
        assert_eq!(rest.len(), IN_FLIGHT - 1);
        assert!(gate.permit(one).now_or_never().is_none());
        assert_eq!(gate.try_permits(other, 3).len(), 3);
        drop(first);
        assert!(gate.permit(one).now_or_never().is_some());
    }
}
