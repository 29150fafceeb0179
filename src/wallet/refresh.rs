//! The one refresh of a grant: claimed, sent once, its answer stored over older ones only. It runs in a task of its
//! own, so that it outlives the callers who wait for it.

use std::sync::Arc;
use std::time::Duration;

use super::flights::{Flight, Landing, Passenger};
use super::{Ids, Inner, Wallet};
use crate::domain::doubt::{self, Recovery, Reuse};
use crate::domain::error::Failure;
use crate::domain::grant::Grant;
use crate::domain::policy;
use crate::domain::provider::Verdict;
use crate::domain::secret::RefreshToken;
use crate::failpoint::failpoint;
use crate::providers::{Permit, Provider, Target, Urgency};
use crate::store::Claim;
use crate::telemetry;

/// A claim that could not be followed by its request within this is given back unsent: by then somebody else may
/// soon hold the lease.
const LATEST_SEND: Duration = Duration::from_secs(5);

/// When to ask again, if this process is shutting down: what is begun now might be cut off with its answer on the way.
const STOPPING: Duration = Duration::from_secs(1);

/// Why a grant is flown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Errand {
    /// Its token is due, and nobody waits.
    Ahead,
    /// Somebody waits for a token.
    Wanted,
    /// Somebody waits whose token the provider's API has refused.
    Rejected,
    /// The same, and the grant cannot be refreshed: the provider is asked whether its token lives.
    Probe,
}

/// How often a flight looks again while another replica is at its grant.
const FIRST_LOOK: Duration = Duration::from_millis(100);
const LAST_LOOK: Duration = Duration::from_millis(500);

/// What a claim of a grant in doubt rests on.
#[derive(Clone, Copy)]
struct Retried<'a> {
    recovery: Recovery,
    /// The grant as it was judged.
    before: &'a Grant,
}

impl Wallet {
    /// Joins the flight of a grant, starting it if none is under way. Dropping the passenger does not end the flight.
    pub(super) fn fly(&self, judged: &Grant, errand: Errand) -> Passenger {
        let (passenger, flight) = self.0.flights.board(judged.id);
        if let Some(flight) = flight {
            let (inner, judged) = (Arc::clone(&self.0), judged.clone());
            self.0.tasks.spawn(async move {
                let landing = match inner.run(&flight, &judged, errand).await {
                    Ok(landing) => {
                        inner.forget_unless_refreshed(&judged, &landing);
                        landing
                    }
                    // Nothing was done to the grant, as far as is known; the next flight finds a claim whose answer was
                    // lost.
                    Err(failure) => Landing::Failed(failure),
                };
                if landing == Landing::Elsewhere && errand != Errand::Ahead {
                    inner.wait_for_another(&flight, &judged).await;
                }
                flight.land(landing);
            });
        }
        passenger
    }
}

impl Inner {
    /// Somebody else is at it, or was: looks again, for all passengers together, until another replica's lease is over.
    /// Memory has then what came of it.
    async fn wait_for_another(&self, flight: &Flight, judged: &Grant) {
        let mut look_again = FIRST_LOOK;
        while flight.is_waited_for() {
            // Real time, not the clock's: this waits for another process, or for a moment at the store.
            tokio::time::sleep(look_again).await;
            look_again = (look_again * 2).min(LAST_LOOK);
            let Ok(holdings) = self.holdings(&judged.user, judged.provider).await else { return };
            let now = self.clock.now();
            let mut leases = holdings.iter().filter(|holding| holding.grant.id == judged.id);
            let lease = leases.next().and_then(|holding| holding.grant.lease);
            if lease.is_none_or(|lease| lease.owner == self.replica || doubt::is_over(lease, now)) {
                return;
            }
        }
    }

    /// Claims the grant, unless it has changed since it was judged, and redeems its refresh token.
    async fn run(&self, flight: &Flight, judged: &Grant, errand: Errand) -> Result<Landing, Failure> {
        let provider = self.registry.by_id(judged.provider).await?;
        if let Err(landing) = self.doubt(&provider, judged, errand).await? {
            return Ok(landing);
        }
        let urgency = if errand == Errand::Ahead { Urgency::Background } else { Urgency::Waiting };
        let target = if errand == Errand::Probe { Target::Profile } else { Target::Token };
        let (provider, permit) = self.registry.permit(judged.provider, target, urgency).await?;
        if self.tasks.is_closed() {
            return Err(Failure::ProviderUnavailable { retry_after: STOPPING });
        }
        // Again: waiting for the permit may have outlasted a grace.
        let recovery = match self.doubt(&provider, judged, errand).await? {
            Ok(recovery) => recovery,
            Err(landing) => return Ok(landing),
        };
        failpoint!("refresh.claiming");
        let claiming_at = self.clock.boot();
        let now = self.clock.now();
        let until = now.plus(policy::LEASE);
        if errand == Errand::Probe {
            let claimed = self.store.claim_for_probe(judged, self.replica, now, until).await?;
            return match claimed {
                Some(grant) => self.probe(&provider, &grant, permit).await,
                None => Ok(Landing::Elsewhere),
            };
        }
        let harmless = provider.entry.reuse() == Reuse::Harmless;
        match self.store.claim(judged, recovery, harmless, self.replica, now, until).await? {
            Some(claim) => {
                let retried = recovery.map(|recovery| Retried { recovery, before: judged });
                Ok(self.redeem(flight, &provider, claim, retried, claiming_at, permit).await)
            }
            None => Ok(Landing::Elsewhere),
        }
    }

    /// Redeems what a sweep has claimed. A flight of this process outranks the claim, however long it takes: it may have
    /// sent the token and not have stored the answer yet. The claim is kept until it tells what it comes to, then given
    /// back.
    pub(super) async fn redeem_claimed(
        &self,
        provider: &Provider,
        claim: Claim,
        claiming_at: Duration,
        permit: Permit,
    ) {
        let (passenger, flight) = self.flights.board(claim.grant.id);
        if let Some(flight) = flight {
            let grant = claim.grant.clone();
            let landing = self.redeem(&flight, provider, claim, None, claiming_at, permit).await;
            self.forget_unless_refreshed(&grant, &landing);
            flight.land(landing);
            return;
        }
        // The flight may be waiting for a permit itself.
        drop(permit);
        passenger.arrive().await;
        self.give_back(&claim.grant, None).await;
    }

    /// Spends the claimed refresh token and stores what comes of it. Where the provider refuses one of our client
    /// secrets the next is tried, each under a claim of its own. `claiming_at`: the boot clock before the claim.
    async fn redeem(
        &self,
        flight: &Flight,
        provider: &Provider,
        claim: Claim,
        retried: Option<Retried<'_>>,
        claiming_at: Duration,
        permit: Permit,
    ) -> Landing {
        failpoint!("refresh.claimed");
        let (mut grant, mut claiming_at) = (claim.grant, claiming_at);
        let generation = grant.refresh_generation.unwrap_or_default();
        let opened = self.vault.open_cell::<RefreshToken>(&claim.refresh_token, &Ids::of(&grant).at(generation));
        let Ok(token) = opened else {
            self.quarantine(&grant, "refresh_token").await;
            return Landing::Failed(Failure::GrantQuarantined);
        };
        let send_by = retried.and_then(|retried| retried.recovery.send_by);
        let mut secrets = provider.secrets_in_order();
        let mut secret = secrets.next();
        let (result, sent_at, untried) = loop {
            let now = self.clock.now();
            let missed = send_by.is_some_and(|by| by < now);
            if missed || self.clock.boot().saturating_sub(claiming_at) > LATEST_SEND {
                return self.give_back(&grant, retried).await;
            }
            failpoint!("refresh.sent");
            let result = provider.at(&grant.params).refresh(&token, secret).await;
            let refused = matches!(result, Err(Verdict::Misconfigured(_)));
            let Some(next) = refused.then(|| secrets.next()).flatten() else { break (result, now, false) };
            (secret, claiming_at) = (Some(next), self.clock.boot());
            let renewing_at = self.clock.now();
            if send_by.is_some_and(|by| by < renewing_at) {
                break (result, now, true);
            }
            let until = renewing_at.plus(policy::LEASE);
            match self.store.renew_claim(&grant, self.replica, renewing_at, until).await {
                Ok(Some(renewed)) => grant = renewed.grant,
                Ok(None) => return self.give_back(&grant, retried).await,
                Err(_) => break (result, now, true),
            }
        };
        let closed_again = self.registry.settle(provider, permit, &result).await.closed_again;
        let outcome = result.as_ref().map_or_else(Verdict::as_str, |_| "refreshed");
        telemetry::metrics::refresh(provider.slug.as_str(), outcome);
        let (landing, accepted) = match result {
            Ok(answer) => {
                failpoint!("refresh.answered");
                (self.keep(flight, provider, &grant, answer, sent_at).await, true)
            }
            Err(verdict) => {
                // Nobody is to blame while a secret is left that was not tried.
                let verdict = match verdict {
                    Verdict::Misconfigured(_) if untried => Verdict::Later { after: None, answered: true },
                    verdict => verdict,
                };
                if matches!(verdict, Verdict::Misconfigured(_)) {
                    self.registry.blame(provider, grant.id).await;
                }
                // Of the grant (RFC 6749 section 5.2): our credentials were good enough to be told.
                let accepted = matches!(verdict, Verdict::Refused(_));
                (self.note(provider, &grant, retried.map(|retried| retried.before), verdict).await, accepted)
            }
        };
        // What is noted now may wait for its turn at the store for long; nobody who waits for the grant waits for that.
        self.forget_unless_refreshed(&grant, &landing);
        flight.land(landing.clone());
        let works_again = accepted && self.registry.accepted(provider, secret).await;
        if closed_again || works_again {
            self.pull_forward(provider).await;
        }
        landing
    }

    /// The provider works again: what failed there is tried again, as fast as its gate lets it.
    async fn pull_forward(&self, provider: &Provider) {
        match self.store.pull_retries_forward(provider.id, self.clock.now()).await {
            Ok(grants) => tracing::info!(provider = %provider.slug, grants, "a provider works again"),
            Err(error) => tracing::warn!(provider = %provider.slug, %error, "retries keep their times"),
        }
    }

    async fn give_back(&self, grant: &Grant, retried: Option<Retried<'_>>) -> Landing {
        let before = retried.map(|retried| retried.before);
        if let Err(error) = self.store.release(grant, before, self.replica).await {
            tracing::warn!(grant = %grant.id, %error, "could not give back a claim; its lease will run out");
        }
        Landing::Elsewhere
    }
}
