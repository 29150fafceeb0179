//! The one refresh of a grant: claimed, sent once, its answer stored over older ones only. It runs in a task of its
//! own, so that it outlives the callers who wait for it.

use std::sync::Arc;
use std::time::Duration;

use super::flights::{Landing, Passenger};
use super::memory::stale;
use super::{Ids, Inner, Wallet, spread};
use crate::clock::Timestamp;
use crate::domain::error::Failure;
use crate::domain::event::{Event, EventKind};
use crate::domain::grant::{Freshness, Grant};
use crate::domain::policy;
use crate::domain::provider::{TokenAnswer, Verdict};
use crate::domain::secret::RefreshToken;
use crate::providers::{Permit, Provider};
use crate::store::{Claim, GrantChange, Holding, Outcome, Recorded, Stale, StoreError};
use crate::telemetry;

/// A claim that could not be followed by its request within this is given back unsent: by then somebody else may
/// soon hold the lease.
const LATEST_SEND: Duration = Duration::from_secs(5);

/// When to ask again, if this process is shutting down: what is begun now might be cut off with its answer on the way.
const STOPPING: Duration = Duration::from_secs(1);

/// How often an answer that the store does not take is offered again, and how long the pauses grow.
pub(super) const FIRST_PAUSE: Duration = Duration::from_millis(50);
pub(super) const LAST_PAUSE: Duration = Duration::from_secs(2);

impl Wallet {
    /// Joins the refresh of the holding's grant, starting it if none is under way. Dropping the passenger does not
    /// end the flight.
    pub(super) fn refresh(&self, holding: &Holding) -> Passenger {
        let (passenger, flight) = self.0.flights.board(holding.grant.id);
        if let Some(flight) = flight {
            let (inner, grant) = (Arc::clone(&self.0), holding.grant.clone());
            self.0.tasks.spawn(async move {
                let landing = inner.claim_and_redeem(&grant).await;
                inner.renew(&grant, &landing).await;
                flight.land(landing);
            });
        }
        passenger
    }
}

impl Inner {
    /// Claims the grant, unless it has changed since it was judged, and redeems its refresh token.
    async fn claim_and_redeem(&self, judged: &Grant) -> Landing {
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
            Ok(Some(claim)) => self.redeem(&provider, claim).await,
            Ok(None) => Landing::Elsewhere,
            Err(error) => Landing::Failed(error.into()),
        }
    }

    /// Redeems what a sweep has claimed. A flight of this process outranks the claim, however long it takes: it may have
    /// sent the token and not have stored the answer yet. The claim is kept until it has landed, then given back.
    pub(super) async fn redeem_claimed(&self, provider: &Provider, claim: Claim, permit: Permit) {
        let (passenger, flight) = self.flights.board(claim.grant.id);
        if let Some(flight) = flight {
            let grant = claim.grant.clone();
            let landing = self.redeem(provider, claim).await;
            self.renew(&grant, &landing).await;
            flight.land(landing);
            return;
        }
        // The flight may be waiting for a permit itself.
        drop(permit);
        passenger.arrive().await;
        self.give_back(&claim.grant).await;
    }

    /// Spends the claimed refresh token, once, and stores what comes of it.
    async fn redeem(&self, provider: &Provider, claim: Claim) -> Landing {
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
            Ok(answer) => {
                let announce = provider.entry.refresh_kills_access_token.then(|| stale(&grant));
                self.keep(&grant, &ids, answer, sent_at, announce).await
            }
            Err(verdict) => self.note(&grant, verdict).await,
        }
    }

    async fn give_back(&self, grant: &Grant) -> Landing {
        if let Err(error) = self.store.release(grant.id, grant.fence).await {
            tracing::warn!(grant = %grant.id, %error, "could not give back a claim; its lease will run out");
        }
        Landing::Elsewhere
    }

    /// Stores a new token. It is the only copy that there may be, so this does not give up.
    async fn keep(
        &self,
        grant: &Grant,
        ids: &Ids,
        answer: TokenAnswer,
        sent_at: Timestamp,
        announce: Option<Stale>,
    ) -> Landing {
        let freshness = Freshness::of(&answer, true, sent_at, 0.0, spread());
        let sealed = self.vault.seal(&answer.access_token, &ids.at(grant.fence)).and_then(|access_token| {
            let refresh_token = answer.refresh_token.as_ref();
            let refresh_token = refresh_token.map(|token| self.vault.seal(token, &ids.at(grant.fence))).transpose()?;
            Ok((access_token, refresh_token))
        });
        let (access_token, refresh_token) = match sealed {
            Ok(sealed) => sealed,
            Err(error) => {
                tracing::error!(grant = %grant.id, %error, "could not seal a refreshed token");
                return Landing::Failed(Failure::Internal);
            }
        };
        let change = GrantChange {
            grant: grant.id,
            account: grant.account,
            fence: grant.fence,
            outcome: Outcome::Refreshed {
                access_token,
                refresh_token,
                token_type: answer.token_type,
                scopes: answer.scopes,
                metadata: answer.metadata,
                freshness,
            },
            event: Some(
                Event::new(EventKind::AccountRecovered, self.clock.now(), grant.user.clone(), grant.provider)
                    .account(grant.account)
                    .grant(grant.id),
            ),
            announce,
            at: self.clock.now(),
        };
        match self.record_surely(&change).await {
            Ok(Recorded::Stored(_)) => Landing::Refreshed,
            Ok(Recorded::Superseded) => Landing::Elsewhere,
            Err(error) => Landing::Failed(error.into()),
        }
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

    /// Offers a change to the store until it is taken; gives up only on a fault that time does not heal.
    pub(super) async fn record_surely(&self, change: &GrantChange) -> Result<Recorded, StoreError> {
        let mut pause = FIRST_PAUSE;
        loop {
            match self.store.record(change).await {
                Err(error) if error.is_transient() => {
                    tracing::warn!(grant = %change.grant, %error, "the store does not take a refreshed token; trying again");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(LAST_PAUSE);
                }
                result => return result,
            }
        }
    }
}
