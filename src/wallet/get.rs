//! Gets: `(user, provider)` in, a fresh access token out.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::flights::Landing;
use super::memory::stale;
use super::refresh::Errand;
use super::{Ids, Inner, Wallet};
use crate::access::permit::{Permit, ReadToken};
use crate::clock::Timestamp;
use crate::domain::error::Failure;
use crate::domain::grant::{Grant, Need, Refusal, Serve};
use crate::domain::ids::AccountId;
use crate::domain::policy;
use crate::domain::scopes::Scopes;
use crate::domain::secret::AccessToken;
use crate::providers::Provider;
use crate::store::Holding;

/// Which token is wanted, besides whose and where.
#[derive(Default)]
pub struct TokenRequest {
    /// One of the user's accounts; unset: the default one, or the only one.
    pub account: Option<AccountId>,
    /// What the token must be good for.
    pub need: Need,
    /// A token of the account that the provider's API has just refused.
    pub rejected: Option<AccessToken>,
}

/// A token handed out.
pub struct Handout {
    /// The token.
    pub access_token: AccessToken,
    /// How to send it.
    pub token_type: String,
    /// When it ends; `None` if never.
    pub expires_at: Option<Timestamp>,
    /// What was granted.
    pub scopes: Scopes,
    /// Whose it is.
    pub account: AccountId,
    /// The provider's own id of the account.
    pub subject: String,
    /// What an API call needs besides the token.
    pub metadata: BTreeMap<String, String>,
}

impl Wallet {
    /// A fresh access token, or the truth about why there is none. If the token at hand is too old, this waits for
    /// the one refresh of its grant; dropping the future leaves that refresh running.
    pub async fn token(&self, permit: &Permit<ReadToken>, request: &TokenRequest) -> Result<Handout, Failure> {
        let ReadToken { user, provider } = permit.action();
        let provider = self.0.registry.by_slug(provider).await?;
        let mut refreshed = false;
        loop {
            if let Some(handout) = self.hot_get(user, provider.id, request) {
                return Ok(handout);
            }
            let holding = choose(&self.0.holdings(user, provider.id).await?, request.account)?;
            let now = self.0.clock.now();
            let holding = self.0.answers.pending.lay_over(holding, now);
            let rejected = self.is_rejected(&holding, request).await?;
            let serve = if rejected {
                holding.grant.serve_rejected(&request.need, now)
            } else {
                holding.grant.serve(&request.need, now)
            };
            let (errand, stale_will_do) = match serve {
                Serve::Now => return self.hand_out(&holding).await,
                Serve::NowThenRefresh => {
                    drop(self.fly(&holding.grant, Errand::Ahead));
                    return self.hand_out(&holding).await;
                }
                Serve::Refuse(refusal) => return Err(self.failure(refusal, &provider)),
                // What the provider issues is already too short for its own margin: above the floor it will do.
                Serve::AfterRefresh { .. } if refreshed && !rejected && holding.grant.lives(now) => {
                    return self.hand_out(&holding).await;
                }
                // The refresh still waits for the store, and for so long that what it brought is dead.
                Serve::AfterRefresh { .. } if refreshed && self.0.answers.pending.holds(holding.grant.id) => {
                    return Err(Failure::StoreUnavailable);
                }
                Serve::AfterRefresh { .. } if refreshed => {
                    return Err(Failure::ProviderUnavailable { retry_after: Duration::from_secs(1) });
                }
                Serve::AfterRefresh { stale_will_do } if rejected => (Errand::Rejected, stale_will_do),
                Serve::AfterRefresh { stale_will_do } => (Errand::Wanted, stale_will_do),
                Serve::Probe => (Errand::Probe, false),
            };
            match self.fly(&holding.grant, errand).arrive().await {
                Landing::Refreshed => refreshed = true,
                Landing::Elsewhere => {}
                Landing::Failed(Failure::ProviderUnavailable { .. } | Failure::StoreUnavailable) if stale_will_do => {
                    return self.hand_out_while_it_lives(&holding).await;
                }
                Landing::Failed(failure) => return Err(failure),
            }
        }
    }

    /// The account that a get is about.
    pub async fn account_of(&self, permit: &Permit<ReadToken>, request: &TokenRequest) -> Result<AccountId, Failure> {
        let ReadToken { user, provider } = permit.action();
        let provider = self.0.registry.by_slug(provider).await?;
        Ok(choose(&self.0.holdings(user, provider.id).await?, request.account)?.grant.account)
    }

    /// Whether the token at hand is the one that the caller reports as rejected.
    async fn is_rejected(&self, holding: &Holding, request: &TokenRequest) -> Result<bool, Failure> {
        let Some(rejected) = &request.rejected else { return Ok(false) };
        Ok(self.open(holding).await?.access_token == *rejected)
    }

    async fn open(&self, holding: &Holding) -> Result<Handout, Failure> {
        let Some(handout) = self.0.opened(holding) else {
            self.0.quarantine(&holding.grant, "access_token").await;
            return Err(Failure::GrantQuarantined);
        };
        Ok(handout)
    }

    async fn hand_out_while_it_lives(&self, holding: &Holding) -> Result<Handout, Failure> {
        if holding.grant.lives(self.0.clock.now()) {
            return self.hand_out(holding).await;
        }
        Err(Failure::ProviderUnavailable { retry_after: Duration::from_secs(5) })
    }

    async fn hand_out(&self, holding: &Holding) -> Result<Handout, Failure> {
        let handout = self.open(holding).await?;
        self.keep_ahead(&holding.grant);
        Ok(handout)
    }

    /// Notes that the grant was asked for, so that the sweep refreshes it ahead. Written when a tenth of the span is
    /// used up, not by every get; nobody waits for it.
    pub(super) fn keep_ahead(&self, grant: &Grant) {
        let span = policy::ahead_for(grant.freshness.lifetime.span(), self.0.ahead_for);
        let now = self.0.clock.now();
        if !grant.refreshable() || grant.ahead_until.since(now) > span.mul_f64(0.9) {
            return;
        }
        let until = now.plus(span);
        // In memory first: the gets until it is written do not write it again.
        self.0.remember_ahead(grant, until);
        let (inner, id, stale) = (Arc::clone(&self.0), grant.id, stale(grant));
        self.0.tasks.spawn(async move {
            if let Err(error) = inner.store.extend_ahead(id, until).await {
                tracing::warn!(grant = %id, %error, "could not note that a grant was asked for");
                inner.cache.forget(&stale);
            }
        });
    }

    fn failure(&self, refusal: Refusal, provider: &Provider) -> Failure {
        let now = self.0.clock.now();
        match refusal {
            Refusal::MissingScopes(scopes) => Failure::MissingScopes { scopes },
            Refusal::ReauthorizationRequired => Failure::ReauthorizationRequired,
            Refusal::NoRefreshToken => Failure::NoRefreshToken,
            Refusal::Quarantined => Failure::GrantQuarantined,
            Refusal::NotLinked => Failure::AccountNotLinked,
            Refusal::Rejected(until) => Failure::AccessTokenRejected { retry_after: until.since(now) },
            Refusal::Wait(_) if provider.standing.misconfigured_at.is_some() => Failure::ProviderMisconfigured,
            Refusal::Wait(until) => {
                let until = provider.standing.paused_until.map_or(until, |paused| until.max(paused));
                Failure::ProviderUnavailable { retry_after: until.since(now) }
            }
        }
    }
}

impl Inner {
    /// The holding's token, opened; nothing if it does not open.
    pub(super) fn opened(&self, holding: &Holding) -> Option<Handout> {
        let Holding { grant, access_token, subject, metadata, .. } = holding;
        let ids = Ids::of(grant);
        Some(Handout {
            access_token: self.vault.open_cell(access_token, &ids.at(grant.access_generation)).ok()?,
            expires_at: grant.freshness.expires_at(),
            token_type: grant.token_type.clone(),
            scopes: grant.scopes.clone(),
            account: grant.account,
            subject: subject.clone(),
            // What the provider says of itself counts more than what the link was begun with.
            metadata: grant.params.clone().into_iter().chain(metadata.clone()).collect(),
        })
    }

    /// Takes a grant out of use because a cell of it does not open. Nothing is deleted: an operator must look.
    pub(super) async fn quarantine(&self, grant: &Grant, cell: &str) {
        use crate::domain::event::{Event, EventKind};
        tracing::error!(grant = %grant.id, account = %grant.account, cell, "a stored token does not open; quarantined its grant");
        let event = Event::new(EventKind::AccountQuarantined, self.clock.now(), grant.user.clone(), grant.provider)
            .account(grant.account)
            .grant(grant.id)
            .because(cell);
        let (store, id, account) = (self.store.clone(), grant.id, grant.account);
        let change = async move { store.quarantine(id, account, &event).await };
        if let Err(error) = self.cache.change(stale(grant), change).await {
            tracing::error!(grant = %grant.id, %error, "could not quarantine a grant");
        }
    }
}

/// Which of the user's accounts: the given one; else the default; else the only one. Never another.
pub(super) fn choose(holdings: &[Arc<Holding>], account: Option<AccountId>) -> Result<Arc<Holding>, Failure> {
    let mut each = holdings.iter().cloned();
    if let Some(account) = account {
        return each.find(|holding| holding.grant.account == account).ok_or(Failure::AccountNotFound);
    }
    let several = holdings.len() > 1;
    let mut found = each.filter(|holding| !several || holding.is_default);
    match found.next() {
        Some(holding) => Ok(holding),
        None if several => Err(Failure::DefaultAccountUnset),
        None => Err(Failure::AccountNotLinked),
    }
}
