//! The one refresh of a grant: claimed, sent once, its answer stored over older ones only. It runs in a task of its
//! own, so that it outlives the callers who wait for it.

use std::sync::Arc;
use std::time::Duration;

use super::flights::{Flight, Landing, Passenger};
use super::{Ids, Inner, Wallet};
use crate::domain::error::Failure;
use crate::domain::grant::Grant;
use crate::domain::policy;
use crate::domain::provider::Verdict;
use crate::domain::secret::RefreshToken;
use crate::providers::{Permit, Provider};
use crate::store::{Claim, Holding, Recorded};
use crate::telemetry;

/// A claim that could not be followed by its request within this is given back unsent: by then somebody else may
/// soon hold the lease.
const LATEST_SEND: Duration = Duration::from_secs(5);

/// When to ask again, if this process is shutting down: what is begun now might be cut off with its answer on the way.
const STOPPING: Duration = Duration::from_secs(1);

impl Wallet {
    /// Joins the refresh of the holding's grant, starting it if none is under way. Dropping the passenger does not
    /// end the flight.
    pub(super) fn refresh(&self, holding: &Holding) -> Passenger {
        let (passenger, flight) = self.0.flights.board(holding.grant.id);
        if let Some(flight) = flight {
            let (inner, grant) = (Arc::clone(&self.0), holding.grant.clone());
            self.0.tasks.spawn(async move {
                let landing = inner.claim_and_redeem(&grant, &flight).await;
                flight.land(landing);
            });
        }
        passenger
    }
}

impl Inner {
    /// Claims the grant, unless it has changed since it was judged, and redeems its refresh token.
    async fn claim_and_redeem(&self, judged: &Grant, flight: &Flight) -> Landing {
        let provider = match self.registry.by_id(judged.provider).await {
            Ok(provider) => provider,
            Err(failure) => return Landing::Failed(failure),
        };
        let _permit = self.registry.gate().permit(provider.id).await;
        if self.tasks.is_closed() {
            return Landing::Failed(Failure::ProviderUnavailable { retry_after: STOPPING });
        }
        let now = self.clock.now();
        let until = now.plus(policy::LEASE);
        let (generation, fence) = (judged.access_generation, judged.fence);
        match self.store.claim(judged.id, generation, fence, self.replica, now, until).await {
            Ok(Some(claim)) => self.redeem(&provider, claim, flight).await,
            Ok(None) => Landing::Elsewhere,
            Err(error) => Landing::Failed(error.into()),
        }
    }

    /// Redeems what a sweep has claimed. A flight of this process outranks the claim, however long it takes: it may have
    /// sent the token and not have stored the answer yet. The claim is kept until it has landed, then given back.
    pub(super) async fn redeem_claimed(&self, provider: &Provider, claim: Claim, permit: Permit) {
        let (passenger, flight) = self.flights.board(claim.grant.id);
        if let Some(flight) = flight {
            let landing = self.redeem(provider, claim, &flight).await;
            flight.land(landing);
            return;
        }
        // The flight may be waiting for a permit itself.
        drop(permit);
        passenger.arrive().await;
        self.give_back(&claim.grant).await;
    }

    /// Spends the claimed refresh token, once, and stores what comes of it.
    async fn redeem(&self, provider: &Provider, claim: Claim, flight: &Flight) -> Landing {
        let (grant, claimed_at) = (claim.grant, self.clock.boot());
        let ids = Ids::of(&grant);
        let generation = grant.refresh_generation.unwrap_or_default();
        let Ok(token) = self.vault.open_cell::<RefreshToken>(&claim.refresh_token, &ids.at(generation)) else {
            self.quarantine(&grant, "refresh_token").await;
            return Landing::Failed(Failure::GrantQuarantined);
        };
        if self.clock.boot().saturating_sub(claimed_at) > LATEST_SEND {
            return self.give_back(&grant).await;
        }
        let sent_at = self.clock.now();
        let result = provider.refresh(&token).await;
        telemetry::metrics::refresh(
            provider.slug.as_str(),
            result.as_ref().map_or_else(Verdict::as_str, |_| "refreshed"),
        );
        match result {
            Ok(answer) => self.keep(flight, &grant, answer, sent_at).await,
            Err(verdict) => self.note(&grant, verdict).await,
        }
    }

    async fn give_back(&self, grant: &Grant) -> Landing {
        if let Err(error) = self.store.release(grant.id, grant.fence).await {
            tracing::warn!(grant = %grant.id, %error, "could not give back a claim; its lease will run out");
        }
        Landing::Elsewhere
    }

    /// Stores what the provider's refusal or silence means.
    async fn note(&self, grant: &Grant, verdict: Verdict) -> Landing {
        let (change, failure) = self.verdict(grant, verdict);
        match self.store.record(&change).await {
            Ok(Recorded::Stored(_)) => Landing::Failed(failure),
            Ok(Recorded::Superseded) => Landing::Elsewhere,
            Err(error) => {
                tracing::warn!(grant = %grant.id, %error, "could not store a verdict; the lease will run out");
                Landing::Failed(failure)
            }
        }
    }
}
