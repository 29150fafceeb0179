//! The callback: the provider sends the browser back. One compare-and-swap moves the flow on before anything else is
//! done with what came; no code is redeemed here.

use super::{FlowIds, Linking};
use crate::domain::error::Failure;
use crate::domain::event::{Event, EventKind};
use crate::domain::flow::{Flow, FlowFailure, TICKET_LIFE};
use crate::domain::ids::FlowId;
use crate::domain::provider::Slug;
use crate::domain::secret::{AuthorizationCode, FlowState, Ticket};
use crate::failpoint::failpoint;
use crate::providers::{Provider, ResponseMode};
use crate::store::FlowStep;
use crate::vault::random;

/// Longest code that is taken; providers stay far below.
const LONGEST_CODE: usize = 4096;

/// What a provider's callback brought (RFC 6749 section 4.1.2, RFC 9207).
pub struct Callback {
    /// The provider, by the path that it came to.
    pub provider: String,
    /// `state`.
    pub state: Option<FlowState>,
    /// `code`.
    pub code: Option<AuthorizationCode>,
    /// `error`.
    pub error: Option<String>,
    /// `iss`.
    pub issuer: Option<String>,
}

/// Where the browser goes from the callback.
pub enum Received {
    /// To the app's URL, with a ticket or an error.
    Redirect(String),
    /// To the wallet's own page: the flow came back, and this completes it.
    OwnPage {
        /// The flow.
        flow: FlowId,
        /// The secret that ends it.
        ticket: Ticket,
    },
    /// To the wallet's own page: the flow failed.
    OwnPageFailed(FlowFailure),
    /// Nowhere: the state is missing, malformed, unknown, expired or used, or the callback contradicts itself. One
    /// and the same page for all.
    Bad,
}

impl Linking {
    /// Takes a callback. Whatever is wrong with it burns the flow that its state belongs to.
    pub async fn receive(&self, callback: Callback) -> Result<Received, Failure> {
        let Some(flow) = self.flow_of(callback.state.as_ref()).await? else { return Ok(Received::Bad) };
        let found = match Slug::parse(callback.provider) {
            Ok(slug) => match self.0.registry.by_slug(&slug).await {
                Err(Failure::ProviderNotFound) => None,
                provider => Some(provider?),
            },
            Err(_) => None,
        };
        let Some(provider) = found.filter(|provider| provider.id == flow.provider) else {
            tracing::warn!(flow = %flow.id, "a callback came for another provider than its flow's");
            let event = self.mismatch(&flow);
            self.fail(&flow, FlowFailure::ProviderMismatch, Some(&event)).await?;
            return Ok(Received::Bad);
        };
        if !names(provider.endpoints.issuer.as_deref(), callback.issuer.as_deref()) {
            let (named, expected) = (callback.issuer.is_some(), provider.endpoints.issuer.as_deref());
            tracing::warn!(flow = %flow.id, provider = %provider.slug, named, expected, "a callback does not name its provider's configured issuer");
            // At its own provider's address: the person goes back to the app, with nothing that the callback brought.
            let event = self.mismatch(&flow);
            return self.failed(flow, FlowFailure::ProviderMismatch, Some(&event)).await;
        }
        match (callback.code, callback.error) {
            (Some(code), None) if (1..=LONGEST_CODE).contains(&code.expose().len()) => {
                self.returned(flow, &code, &provider).await
            }
            (None, Some(error)) => {
                let failure =
                    if error == "access_denied" { FlowFailure::Cancelled } else { FlowFailure::ProviderError };
                self.failed(flow, failure, None).await
            }
            _ => {
                self.fail(&flow, FlowFailure::ProviderError, None).await?;
                Ok(Received::Bad)
            }
        }
    }

    /// Whether the provider of this name sends browsers back by a form that they post.
    pub async fn takes_form_posts(&self, provider: String) -> Result<bool, Failure> {
        let Ok(slug) = Slug::parse(provider) else { return Ok(false) };
        match self.0.registry.by_slug(&slug).await {
            Err(Failure::ProviderNotFound) => Ok(false),
            provider => Ok(provider?.entry.response_mode == ResponseMode::FormPost),
        }
    }

    async fn flow_of(&self, state: Option<&FlowState>) -> Result<Option<Flow>, Failure> {
        // 256 bits in base64url; anything else is not worth a look-up.
        let Some(state) = state.filter(|state| state.expose().len() == 43) else { return Ok(None) };
        let flow = self.0.store.flow_by_state(&random::hash(state.expose())).await?;
        Ok(flow.filter(|flow| flow.awaits_callback(self.0.clock.now())))
    }

    /// The provider's yes: the code is sealed, the ticket made.
    async fn returned(&self, flow: Flow, code: &AuthorizationCode, provider: &Provider) -> Result<Received, Failure> {
        if let Some(url) = &flow.redirect_url
            && !self.may_end_at(flow.client, url).await?
        {
            self.fail(&flow, FlowFailure::RedirectUrlNotAllowed, None).await?;
            return Ok(Received::OwnPageFailed(FlowFailure::RedirectUrlNotAllowed));
        }
        let sealed = self.0.vault.seal(code, &FlowIds::of(&flow).owner()).map_err(|error| {
            tracing::error!(flow = %flow.id, %error, "could not seal a code");
            Failure::Internal
        })?;
        let (ticket, now) = (random::ticket(), self.0.clock.now());
        let life = TICKET_LIFE.min(provider.entry.code_lifetime().saturating_sub(std::time::Duration::from_secs(10)));
        let hash = random::hash(ticket.expose());
        if !self.0.store.return_flow(flow.id, &sealed, &hash, now.plus(life), now).await? {
            return Ok(Received::Bad);
        }
        failpoint!("link.returned");
        Ok(match flow.redirect_url {
            Some(url) => Received::Redirect(url.with("ticket", ticket.expose())),
            None => Received::OwnPage { flow: flow.id, ticket },
        })
    }

    /// The provider's no: told to the app, if its URL is still allowed.
    async fn failed(&self, flow: Flow, failure: FlowFailure, event: Option<&Event>) -> Result<Received, Failure> {
        if !self.fail(&flow, failure, event).await? {
            return Ok(Received::Bad);
        }
        Ok(match flow.redirect_url {
            Some(url) if self.may_end_at(flow.client, &url).await? => {
                Received::Redirect(url.with("error", failure.as_str()))
            }
            _ => Received::OwnPageFailed(failure),
        })
    }

    fn mismatch(&self, flow: &Flow) -> Event {
        let now = self.0.clock.now();
        Event::new(EventKind::FlowProviderMismatch, now, flow.user.clone(), flow.provider).flow(flow.id)
    }

    async fn fail(&self, flow: &Flow, failure: FlowFailure, event: Option<&Event>) -> Result<bool, Failure> {
        let now = self.0.clock.now();
        Ok(self.0.store.fail_flow(flow.id, FlowStep::Started, failure, event, now).await?)
    }
}

/// Whether a callback names the issuer that it must: a provider whose issuer is known must name it (RFC 9207 section
/// 2.4).
fn names(expected: Option<&str>, issuer: Option<&str>) -> bool {
    expected.is_none_or(|expected| issuer == Some(expected))
}
