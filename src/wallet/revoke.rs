//! Revocation: what a grant gave is taken back at the provider once it has ended. Tried at once and for a day; what came
//! of it is told.

use std::sync::Arc;
use std::time::Duration;

use super::flights::Flight;
use super::{Ids, Inner, Wallet, spread};
use crate::domain::error::Failure;
use crate::domain::event::EventKind;
use crate::domain::ids::{AccountId, GrantId, ProviderId};
use crate::domain::policy;
use crate::domain::provider::Verdict;
use crate::domain::user::UserId;
use crate::failpoint::failpoint;
use crate::providers::{Permit, Provider, Urgency};
use crate::store::{Revocation, RevocationClaim, RevocationEnd};
use crate::telemetry;

/// Revocations that one run takes on.
const BATCH: u32 = 100;

/// A claim that could not be followed by its request within this is given back.
const LATEST_SEND: Duration = Duration::from_secs(5);

/// How long who begins a flow waits for a revocation that was sent: a call has no more.
const SENT_WITHIN: Duration = Duration::from_secs(9);

/// How often it looks.
const LOOK: Duration = Duration::from_millis(100);

/// What a try came to.
enum Tried {
    /// The provider took the tokens back.
    Revoked,
    /// It is not to be tried at all.
    Pointless(&'static str),
    /// It will never be, says the provider.
    Refused(String),
    /// Not this time.
    Later {
        /// Why.
        why: &'static str,
        /// How long the provider asked to wait.
        after: Option<Duration>,
    },
}

impl Wallet {
    /// Tries the revocations that are due, each in a task of its own.
    pub async fn revoke(&self) -> Result<(), Failure> {
        for (grant, provider) in self.0.store.revocations_due(self.0.clock.now(), BATCH).await? {
            // Whoever flies it is at it already, or has a refresh under way.
            if let (_, Some(flight)) = self.0.flights.board(grant) {
                let inner = Arc::clone(&self.0);
                self.0.tasks.spawn(async move { inner.take_back(flight, grant, provider).await });
            }
        }
        Ok(())
    }

    /// The first try, of all that an account's end has left: now, or as soon as a refresh under way in this process has
    /// landed. The caller does not wait.
    pub(super) fn revoke_at_once(&self, account: AccountId) {
        let wallet = self.clone();
        self.0.tasks.spawn(async move {
            let due = match wallet.0.store.revocations_of(account).await {
                Ok(due) => due,
                Err(error) => {
                    tracing::warn!(%account, %error, "an ended grant is not revoked at once");
                    return;
                }
            };
            for (grant, provider) in due {
                let flight = match wallet.0.flights.board(grant) {
                    (_, Some(flight)) => Some(flight),
                    (passenger, None) => {
                        passenger.arrive().await;
                        wallet.0.flights.board(grant).1
                    }
                };
                // What still flies has told early what it comes to: the next run of the job.
                if let Some(flight) = flight {
                    wallet.0.take_back(flight, grant, provider).await;
                }
            }
        });
    }

    /// Waits until no revocation of this user that was sent can end a consent that is given from now on. For who has
    /// begun a flow at `provider`: none is sent any more.
    ///
    /// # Errors
    ///
    /// [`Failure::ProviderUnavailable`] if that takes longer than a call may, and the store's.
    pub async fn revocations_over(&self, user: &UserId, provider: ProviderId) -> Result<(), Failure> {
        let (clock, began_at) = (&self.0.clock, self.0.clock.now());
        let given_up = clock.until(began_at.plus(SENT_WITHIN));
        let mut given_up = std::pin::pin!(given_up);
        loop {
            let pending = self.0.store.pending_revocations(user, provider).await?;
            let now = clock.now();
            // One that lies further ahead was written by a clock that was wrong.
            let latest = policy::latest(now, policy::REVOKE_LEASE);
            let ends = pending.into_iter().filter_map(|it| it.until).filter(|until| (now..=latest).contains(until));
            let Some(until) = ends.max().filter(|until| *until > now) else { return Ok(()) };
            tokio::select! {
                () = &mut given_up => return Err(Failure::ProviderUnavailable { retry_after: until.since(now) }),
                () = tokio::time::sleep(LOOK) => {}
            }
        }
    }

    /// Whether something of this user's is still to be revoked that would end a consent given to the client that this
    /// provider knows.
    pub async fn revokes_whole(&self, user: &UserId, provider: ProviderId) -> Result<bool, Failure> {
        for pending in self.0.store.pending_revocations(user, provider).await? {
            match self.0.registry.by_id(pending.provider).await {
                Ok(provider) if provider.revokes_whole() => return Ok(true),
                Ok(_) | Err(Failure::ProviderNotFound) => {}
                Err(failure) => return Err(failure),
            }
        }
        Ok(false)
    }
}

impl Inner {
    /// One try. The flight keeps this process from another one, and from taking up an answer to a refresh meanwhile.
    async fn take_back(&self, flight: Flight, grant: GrantId, provider: ProviderId) {
        if self.tasks.is_closed() {
            return;
        }
        if let Err(failure) = self.try_to_take_back(grant, provider).await {
            tracing::warn!(%grant, %failure, "a revocation is tried later");
        }
        drop(flight);
    }

    async fn try_to_take_back(&self, grant: GrantId, id: ProviderId) -> Result<(), Failure> {
        let provider = match self.registry.by_id(id).await {
            Ok(provider) => Some(provider),
            Err(Failure::ProviderNotFound) => None,
            Err(failure) => return Err(failure),
        };
        let target = provider.as_ref().and_then(|provider| provider.revocation_target());
        let whole = provider.as_ref().is_some_and(|provider| provider.revokes_whole());
        let permit = match target {
            Some(target) => Some(self.registry.permit(id, target, Urgency::Revocation).await),
            None => None,
        };
        let (claiming_at, now) = (self.clock.boot(), self.clock.now());
        let until = now.plus(policy::REVOKE_LEASE);
        let claim = match self.store.claim_revocation(grant, id, whole, now, until).await? {
            RevocationClaim::Claimed(claim) => claim,
            RevocationClaim::Dropped(kind) => {
                let given_up = kind == EventKind::GrantRevocationFailed;
                count(provider.as_deref(), if given_up { "given_up" } else { "not_revoked" });
                return Ok(());
            }
            RevocationClaim::NotNow => return Ok(()),
        };
        failpoint!("revoke.claimed");
        let (provider, tried) = match permit {
            None if provider.is_none() => (provider, Tried::Pointless("provider_deleted")),
            None => (provider, Tried::Pointless("unsupported")),
            Some(Ok((provider, permit))) => {
                let tried = self.send(&provider, &claim, claiming_at, permit).await;
                (Some(provider), tried)
            }
            Some(Err(Failure::ProviderUnavailable { retry_after })) => {
                (provider, Tried::Later { why: "unavailable", after: Some(retry_after) })
            }
            Some(Err(_)) => (provider, Tried::Later { why: "misconfigured", after: None }),
        };
        self.settle(provider.as_deref(), &claim, tried).await
    }

    /// Sends what is known of a grant's tokens, each under the claim of this try.
    async fn send(&self, provider: &Provider, claim: &Revocation, claiming_at: Duration, permit: Permit) -> Tried {
        let ids = Ids::new(claim.grant, claim.account, &claim.user, claim.provider);
        let access = self.vault.open_cell(&claim.access_token, &ids.at(claim.access_generation)).ok();
        let generation = claim.refresh_generation.unwrap_or_default();
        let sealed = claim.refresh_token.as_ref();
        let refresh = sealed.and_then(|sealed| self.vault.open_cell(sealed, &ids.at(generation)).ok());
        let whole = !claim.in_doubt && sealed.is_some() == refresh.is_some();
        let (mut permit, mut claiming_at) = (Some(permit), claiming_at);
        let (mut taken, mut refused) = (false, None);
        let mut tokens = provider.revocable(refresh.as_ref(), access.as_ref(), whole).into_iter().peekable();
        if tokens.peek().is_none() {
            let sealed = access.is_none() || sealed.is_some() != refresh.is_some();
            return if sealed { Tried::Later { why: "sealed", after: None } } else { Tried::Pointless("unsupported") };
        }
        let at = provider.at(&claim.params);
        let mut secrets = provider.secrets_for_revocation();
        let mut secret = secrets.next();
        while let Some(token) = tokens.peek().copied() {
            let permit = match permit.take() {
                Some(permit) => permit,
                None => match self.send_more(provider, claim).await {
                    Ok((permit, at)) => {
                        claiming_at = at;
                        permit
                    }
                    Err(tried) => return tried,
                },
            };
            if self.clock.boot().saturating_sub(claiming_at) > LATEST_SEND {
                return Tried::Later { why: "late", after: None };
            }
            failpoint!("revoke.sent");
            let result = at.revoke(token, secret).await;
            let _ = self.registry.settle(provider, permit, &result).await;
            if matches!(result, Err(Verdict::Misconfigured(_)))
                && let Some(next) = secrets.next()
            {
                secret = Some(next);
                continue;
            }
            tokens.next();
            match result {
                Ok(()) => taken = true,
                // The next token may be one that the provider takes back.
                Err(Verdict::Refused(code)) => refused = Some(code),
                Err(verdict) => return Tried::of(&verdict),
            }
        }
        failpoint!("revoke.answered");
        refused.filter(|_| !taken).map_or(Tried::Revoked, Tried::Refused)
    }

    /// A permit for one more request of the same try, and when the boot clock stood before its claim was renewed.
    async fn send_more(&self, provider: &Provider, claim: &Revocation) -> Result<(Permit, Duration), Tried> {
        let later = |why| Tried::Later { why, after: None };
        let target = provider.revocation_target().ok_or(Tried::Pointless("unsupported"))?;
        let permit = self.registry.permit(provider.id, target, Urgency::Revocation).await;
        let (_, permit) = permit.map_err(|_| later("unavailable"))?;
        let (claiming_at, now) = (self.clock.boot(), self.clock.now());
        match self.store.renew_revocation(claim, provider.revokes_whole(), now, now.plus(policy::REVOKE_LEASE)).await {
            Ok(true) => Ok((permit, claiming_at)),
            Ok(false) | Err(_) => Err(later("late")),
        }
    }

    /// Stores what a try came to.
    async fn settle(&self, provider: Option<&Provider>, claim: &Revocation, tried: Tried) -> Result<(), Failure> {
        let now = self.clock.now();
        let told = |kind, reason| RevocationEnd::Told(kind, reason);
        let last = now >= claim.ending_at.plus(policy::REVOKE_FOR);
        let (outcome, end) = match &tried {
            Tried::Revoked => ("revoked", told(EventKind::GrantRevoked, claim.in_doubt.then_some("in_doubt"))),
            Tried::Pointless(why) => ("not_revoked", told(EventKind::GrantNotRevoked, Some(why))),
            Tried::Refused(code) => ("refused", told(EventKind::GrantRevocationFailed, Some(code))),
            Tried::Later { why, .. } if last => ("given_up", told(EventKind::GrantRevocationFailed, Some(why))),
            Tried::Later { why, after } => {
                let again = policy::revoke_again_at(now, claim.ending_at, claim.attempt, spread());
                (*why, RevocationEnd::Again(after.map_or(again, |after| again.max(now.plus(after)))))
            }
        };
        count(provider, outcome);
        let ended = self.store.end_revocation(claim, end, now).await?;
        failpoint!("revoke.recorded");
        if let RevocationEnd::Told(kind, reason) = end
            && ended
        {
            let (grant, kind) = (claim.grant, kind.as_str());
            tracing::info!(%grant, kind, reason, attempts = claim.attempt, "a grant has ended");
        }
        Ok(())
    }
}

fn count(provider: Option<&Provider>, outcome: &'static str) {
    telemetry::metrics::revocation(provider.map_or("deleted", |provider| provider.slug.as_str()), outcome);
}

impl Tried {
    fn of(verdict: &Verdict) -> Self {
        let after = match verdict {
            Verdict::Later { after, .. } | Verdict::Limited { after } | Verdict::Unclear { after } => *after,
            Verdict::Refused(_) | Verdict::Misconfigured(_) | Verdict::Untrusted | Verdict::Unknown => None,
        };
        Self::Later { why: verdict.as_str(), after }
    }
}
