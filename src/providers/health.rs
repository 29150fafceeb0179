//! What a provider's answers say of how we stand with it, told to all replicas.

use std::sync::Arc;
use std::time::Duration;

use super::gate::{ClosedBy, Permit, Settled, Signal, Target, Urgency};
use super::provider::Provider;
use super::registry::Registry;
use crate::clock::Timestamp;
use crate::domain::error::Failure;
use crate::domain::event::{Event, EventKind};
use crate::domain::ids::{GrantId, ProviderId};
use crate::domain::policy;
use crate::domain::provider::Verdict;
use crate::store::{Blame, ProviderSecretRow, Stale, Store, StoreError};
use crate::vault::random;

impl Registry {
    /// A permit of the gate, and the provider as it is when the permit is given; where the provider refuses our
    /// credentials, the permit of a probe, if it is time for one.
    ///
    /// # Errors
    ///
    /// [`Failure::ProviderUnavailable`] and [`Failure::ProviderMisconfigured`]: nothing may be sent; and those of
    /// [`Self::by_id`].
    pub async fn permit(
        &self,
        id: ProviderId,
        target: Target,
        urgency: Urgency,
    ) -> Result<(Arc<Provider>, Permit), Failure> {
        let (provider, permit) = self.gate.permit(target, urgency, || self.by_id(id)).await?;
        let closed = match permit {
            Ok(permit) => return Ok((provider, permit)),
            Err(closed) => closed,
        };
        let probe = if closed.why == ClosedBy::Misconfigured { self.probe(&provider).await } else { None };
        let permit = probe.ok_or_else(|| closed.failure(self.wire.clock.now()))?;
        Ok((provider, permit))
    }

    /// The provider limits us (429) and asked for this pause: nobody sends it anything before what is answered. Where
    /// the store is away, at least nobody here.
    pub async fn pause(&self, provider: &Provider, asked: Option<Duration>) -> Timestamp {
        let now = self.wire.clock.now();
        let until = policy::paused_until(now, asked, random::spread());
        if self.gate.pause(provider, until) {
            tracing::warn!(provider = %provider.slug, %until, "the provider asked for a pause: it is sent nothing");
        }
        let id = provider.id;
        match self.note(async move |store| store.pause_provider(id, until, now).await).await {
            Ok(_) => self.gate.pause_is_noted(provider, until),
            Err(error) => {
                tracing::warn!(provider = %provider.slug, %error, "could not tell the other replicas of a provider's pause");
            }
        }
        until
    }

    /// Settles a permit with what its request came to. A provider that limits us is paused.
    pub async fn settle<T: Sync>(&self, provider: &Provider, permit: Permit, outcome: &Result<T, Verdict>) -> Settled {
        let settled = permit.settle(Signal::of(outcome));
        match outcome {
            Err(Verdict::Limited { after }) => drop(self.pause(provider, *after).await),
            Err(Verdict::Untrusted) => self.distrust(provider).await,
            _ => {}
        }
        settled
    }

    /// Whoever answered is not the provider, as far as its certificate says: told once an hour.
    async fn distrust(&self, provider: &Provider) {
        let now = self.wire.clock.now();
        if !self.gate.is_news(provider, now) {
            return;
        }
        tracing::error!(provider = %provider.slug, "the provider's TLS certificate is not valid, or it speaks no TLS; nothing is sent");
        let event = Event::of_provider(EventKind::ProviderUntrusted, now, provider.id);
        if let Err(error) = self.store.tell(&event).await {
            tracing::warn!(provider = %provider.slug, %error, "could not note that a provider is not trusted");
        }
    }

    /// The provider refused our credentials, all that there are, when this grant was refreshed.
    pub async fn blame(&self, provider: &Provider, grant: GrantId) {
        let (id, now) = (provider.id, self.wire.clock.now());
        match self.note(async move |store| store.blame_provider(id, grant, now).await).await {
            Ok(Blame::Misconfigured) => {
                self.gate.refuse(provider, now.plus(policy::PROBE_EVERY));
                tracing::error!(provider = %provider.slug, "the provider refuses our credentials; its grants wait until they are mended");
            }
            Ok(Blame::First | Blame::Already) => {}
            Err(error) => {
                tracing::warn!(provider = %provider.slug, %error, "could not note that a provider refuses our credentials");
            }
        }
    }

    /// Writes what is noted of a provider, and drops what memory had of it: the next look-up reads it anew.
    async fn note<T: Send + 'static, W>(&self, write: impl FnOnce(Store) -> W) -> Result<T, StoreError>
    where
        W: Future<Output = Result<T, StoreError>> + Send + 'static,
    {
        self.cache.change(Stale::Providers, write(self.store.clone())).await
    }

    /// A permit to try credentials that the provider refused, once a minute in the whole cluster; `None` if it is not
    /// misconfigured or it is not time.
    pub async fn probe(&self, provider: &Provider) -> Option<Permit> {
        let (now, standing) = (self.wire.clock.now(), &provider.standing);
        if standing.misconfigured_at.is_none() || standing.probe_at.is_some_and(|at| now < at) {
            return None;
        }
        // First what may be given back.
        let permit = self.gate.try_probe(provider)?;
        let (id, next) = (provider.id, now.plus(policy::PROBE_EVERY));
        match self.note(async move |store| store.claim_probe(id, now, next).await).await {
            Ok(claimed) => claimed.then_some(permit),
            Err(error) => {
                tracing::warn!(provider = %provider.slug, %error, "could not claim a try of refused credentials");
                None
            }
        }
    }

    /// The provider took our credentials, with this secret (`None`: a public client). It becomes the first to be tried,
    /// and what was held against the credentials is forgotten. Done again at the next success where the store is away.
    /// Answers whether the provider was misconfigured until now.
    pub async fn accepted(&self, provider: &Provider, secret: Option<&ProviderSecretRow>) -> bool {
        let now = self.wire.clock.now();
        let mut recovered = false;
        if provider.standing.is_blamed() {
            let id = provider.id;
            match self.note(async move |store| store.absolve_provider(id, now).await).await {
                Ok(true) => {
                    recovered = true;
                    tracing::info!(provider = %provider.slug, "the provider takes our credentials again");
                }
                Ok(false) => {}
                Err(error) => {
                    tracing::warn!(provider = %provider.slug, %error, "could not note that a provider recovered");
                }
            }
        }
        let noted = secret.is_none_or(|secret| provider.is_noted(secret, now));
        if let Some(id) = secret.filter(|_| !noted).map(|secret| secret.id)
            && let Err(error) = self.note(async move |store| store.secret_used(id, now).await).await
        {
            tracing::warn!(provider = %provider.slug, %error, "could not note which client secret worked");
        }
        recovered
    }
}
