//! The beginning of a link or reauthorization: a flow row and the URL that the browser must visit.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{FlowIds, Linking};
use crate::access::permit::{Permit, Reauthorize, StartLink};
use crate::clock::Timestamp;
use crate::domain::account::AccountState;
use crate::domain::error::Failure;
use crate::domain::flow::{FLOW_LIFE, Flow, FlowState};
use crate::domain::ids::{AccountId, ApiClientId, FlowId};
use crate::domain::instance::InstanceKind;
use crate::domain::redirect::RedirectUrl;
use crate::domain::scopes::Scopes;
use crate::domain::user::UserId;
use crate::failpoint::failpoint;
use crate::providers::{Authorization, Provider};
use crate::store::{Note, StartFlow};
use crate::vault::random;

/// Which link to begin, besides whose and where.
#[derive(Clone, Debug, Default)]
pub struct LinkRequest {
    /// Where the browser goes at the end; unset: the wallet's own page, in development only.
    pub redirect_url: Option<String>,
    /// Scopes besides the provider's configured ones.
    pub additional_scopes: Scopes,
    /// The account the user will probably choose, at most 256 bytes.
    pub login_hint: Option<String>,
    /// The per-user parts of the provider's URLs; for a reauthorization unset, or the account's.
    pub params: BTreeMap<String, String>,
}

/// A begun link.
pub struct StartedLink {
    /// Its flow.
    pub flow: FlowId,
    /// Where the browser must go. Holds the flow's `state`: not for logs.
    pub authorization_url: String,
    /// When it fails by itself.
    pub expires_at: Timestamp,
}

/// What a flow is started for.
struct Purpose {
    client: ApiClientId,
    user: UserId,
    provider: Arc<Provider>,
    /// The account to reauthorize.
    reauthorizes: Option<AccountId>,
    /// What is asked for besides the provider's own scopes.
    scopes: Scopes,
    login_hint: Option<String>,
    /// The per-user parts of the provider's URLs.
    params: BTreeMap<String, String>,
}

impl Linking {
    /// Begins a link. `note` makes the note of the call.
    pub async fn start(
        &self,
        permit: &Permit<StartLink>,
        request: &LinkRequest,
        note: impl FnOnce(&StartedLink) -> Result<Option<Note>, Failure>,
    ) -> Result<StartedLink, Failure> {
        let StartLink { user, provider } = permit.action();
        let purpose = Purpose {
            client: permit.client(),
            user: user.clone(),
            provider: self.0.registry.by_slug(provider).await?,
            reauthorizes: None,
            scopes: request.additional_scopes.clone(),
            login_hint: request.login_hint.clone(),
            params: request.params.clone(),
        };
        self.begin(purpose, request, note).await
    }

    /// Begins a reauthorization: a link that only the account with this id may come back from, and that asks for all
    /// that it was ever granted. `note` makes the note of the call.
    pub async fn reauthorize(
        &self,
        permit: &Permit<Reauthorize>,
        id: AccountId,
        request: &LinkRequest,
        note: impl FnOnce(&StartedLink) -> Result<Option<Note>, Failure>,
    ) -> Result<StartedLink, Failure> {
        self.reauthorize_for(permit.client(), id, request, note).await
    }

    pub(super) async fn reauthorize_for(
        &self,
        client: ApiClientId,
        id: AccountId,
        request: &LinkRequest,
        note: impl FnOnce(&StartedLink) -> Result<Option<Note>, Failure>,
    ) -> Result<StartedLink, Failure> {
        let account = self.account_of(id).await?;
        if account.row.state == AccountState::Unlinked {
            return Err(Failure::AccountNotFound);
        }
        if !request.params.is_empty() && request.params != account.row.params {
            return Err(Failure::field("provider_params", "must be unset, or those that the account was linked with"));
        }
        let known = account.profile.email.or(account.profile.username);
        let purpose = Purpose {
            client,
            provider: self.0.registry.by_id(account.row.provider).await?,
            user: account.row.user,
            reauthorizes: Some(id),
            scopes: account.row.scope_history.union(&request.additional_scopes),
            login_hint: request.login_hint.clone().or(known),
            params: account.row.params,
        };
        self.begin(purpose, request, note).await
    }

    async fn begin(
        &self,
        purpose: Purpose,
        request: &LinkRequest,
        note: impl FnOnce(&StartedLink) -> Result<Option<Note>, Failure>,
    ) -> Result<StartedLink, Failure> {
        let Purpose { client, user, provider, reauthorizes, scopes, login_hint, params } = purpose;
        provider.entry.check_params(&params)?;
        if request.login_hint.as_ref().is_some_and(|hint| hint.len() > 256 || hint.chars().any(char::is_control)) {
            return Err(Failure::field("login_hint", "must be at most 256 bytes without control characters"));
        }
        let redirect_url = self.redirect_url(client, request.redirect_url.as_deref()).await?;
        let (state, verifier) = (random::flow_state(), random::pkce_verifier());
        let now = self.0.clock.now();
        let flow = Flow {
            id: FlowId::new(now),
            state: FlowState::Started,
            client,
            user,
            provider: provider.id,
            redirect_url,
            redirect_uri: provider.redirect_uri.clone(),
            scopes: provider.link_scopes(&scopes),
            reauthorizes,
            params,
            created_at: now,
            expires_at: now.plus(FLOW_LIFE),
            ended_at: None,
        };
        let ids = FlowIds::of(&flow);
        let sealed = self.0.vault.seal(&verifier, &ids.owner()).map_err(|error| {
            tracing::error!(flow = %flow.id, %error, "could not seal a PKCE verifier");
            Failure::Internal
        })?;
        let sealed = Some(&sealed).filter(|_| provider.uses_pkce());
        let authorization_url = provider.at(&flow.params).authorization_url(&Authorization {
            state: &state,
            verifier: &verifier,
            scopes: &flow.scopes,
            login_hint: login_hint.as_deref(),
            offline: true,
        });
        let started = StartedLink { flow: flow.id, authorization_url, expires_at: flow.expires_at };
        let note = note(&started)?;
        match self.0.store.start_flow(&flow, &random::hash(state.expose()), sealed, note.as_ref()).await? {
            StartFlow::Started => {}
            StartFlow::TooMany(until) => return Err(Failure::TooManyFlows { retry_after: until.since(now) }),
            StartFlow::ProviderGone => return Err(Failure::ProviderNotFound),
        }
        failpoint!("link.opened");
        if let Err(failure) = self.0.wallet.revocations_over(&flow.user, provider.id).await {
            // Nobody gets its URL, now or for the same request_id: that one begins anew.
            if let Err(error) = self.0.store.withdraw_flow(flow.id, self.0.clock.now()).await {
                tracing::warn!(flow = %flow.id, %error, "a flow that nobody can go on with stays open until it expires");
            }
            return Err(failure);
        }
        Ok(started)
    }

    /// The redirect URL, if this client may use it.
    async fn redirect_url(&self, client: ApiClientId, text: Option<&str>) -> Result<Option<RedirectUrl>, Failure> {
        let Some(text) = text else {
            let own_page = self.0.kind == InstanceKind::Development;
            return if own_page { Ok(None) } else { Err(Failure::RedirectUrlNotAllowed) };
        };
        let url = RedirectUrl::parse(text, self.0.kind).map_err(|_| Failure::RedirectUrlNotAllowed)?;
        if self.may_end_at(client, &url).await? { Ok(Some(url)) } else { Err(Failure::RedirectUrlNotAllowed) }
    }
}
