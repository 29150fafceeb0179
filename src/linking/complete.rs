//! The end of a link: only who started the flow gets its code redeemed. The exchange runs in a task of its own, so
//! that what was begun is finished when the caller leaves.

use super::{Account, Linking};
use crate::access::permit::{CompleteLink, Permit};
use crate::domain::error::Failure;
use crate::domain::event::{Event, EventKind};
use crate::domain::flow::{Completion, Flow, FlowFailure, FlowState, Outcome};
use crate::domain::ids::FlowId;
use crate::domain::provider::Verdict;
use crate::domain::secret::Ticket;
use crate::failpoint::failpoint;
use crate::providers::{self, Provider, Target, Urgency};
use crate::store::{ClaimedFlow, FlowStep};
use crate::vault::random;
use crate::wallet::RedeemError;

/// How often a call looks again when the flow moved on under it.
const LOOKS: usize = 5;

/// When a profile that could not be read is worth another try: the resume job's own pace.
const PROFILE_RETRY: std::time::Duration = std::time::Duration::from_secs(5);

/// What the browser brought back.
pub enum Proof {
    /// The ticket.
    Ticket(Ticket),
    /// The whole URL that it was sent to, with the ticket or the error in it.
    RedirectedUrl(String),
}

/// An ended link.
pub struct Linked {
    /// The account.
    pub account: Account,
    /// False if the user had linked it before.
    pub created: bool,
    /// Whether the account kept the grant that it had, because the new one is not as good.
    pub kept_grant: bool,
}

impl Linking {
    /// Ends a link for the user of `permit`, or tells its outcome again. A ticket brought by anybody else burns its
    /// flow.
    pub async fn complete(&self, permit: &Permit<CompleteLink>, proof: Proof) -> Result<Linked, Failure> {
        let ticket = ticket(proof)?;
        let hash = random::hash(ticket.expose());
        let outcome = self.complete_by(permit, &hash).await?;
        let account = self.account_of(outcome.account).await?;
        Ok(Linked { account, created: outcome.created, kept_grant: outcome.kept })
    }

    async fn complete_by(&self, permit: &Permit<CompleteLink>, hash: &[u8; 32]) -> Result<Outcome, Failure> {
        for _ in 0..LOOKS {
            let flow = self.0.store.flow_by_ticket(hash).await?.ok_or(Failure::TicketSpent)?;
            match flow.completion(permit.client(), &permit.action().user, self.0.clock.now()) {
                Completion::Redeem => {
                    // Nothing comes back if another call was faster, or the ticket ran out: look again.
                    if let Some(outcome) = self.redeem(flow).await? {
                        return Ok(outcome);
                    }
                }
                Completion::Finish => return self.finish_tracked(flow.id).await,
                Completion::InProgress => return Err(Failure::FlowInProgress),
                Completion::Done(outcome) => return Ok(outcome),
                Completion::Failed(failure) => return Err(failure.into()),
                Completion::Burn(failure) => self.burn(&flow, failure).await?,
                Completion::NotTheirs => return Err(Failure::FlowSessionMismatch { stolen: false }),
                Completion::Forgotten => return Err(Failure::TicketSpent),
            }
        }
        Err(Failure::FlowInProgress)
    }

    /// Fails a flow whose ticket was brought late or by somebody else. The code is never redeemed.
    async fn burn(&self, flow: &Flow, failure: FlowFailure) -> Result<(), Failure> {
        let now = self.0.clock.now();
        let event = (failure == FlowFailure::SessionMismatch).then(|| {
            tracing::warn!(flow = %flow.id, "a ticket was brought by somebody else than its flow's starter");
            Event::new(EventKind::FlowSessionMismatch, now, flow.user.clone(), flow.provider).flow(flow.id)
        });
        let burned = self.0.store.fail_flow(flow.id, FlowStep::Returned, failure, event.as_ref(), now).await?;
        match failure {
            _ if !burned => Ok(()),
            // Told to who brought it: its starter hears who was here.
            FlowFailure::SessionMismatch => Err(Failure::FlowSessionMismatch { stolen: false }),
            failure => Err(failure.into()),
        }
    }

    /// Claims the flow and takes it to its end in a task that outlives this call. `None` if somebody else has it.
    async fn redeem(&self, flow: Flow) -> Result<Option<Outcome>, Failure> {
        let linking = self.clone();
        let task = self.0.tasks.spawn(async move {
            // Before the claim: one that waited for its turn would be taken for abandoned.
            let (provider, permit) = linking.0.registry.permit(flow.provider, Target::Token, Urgency::Link).await?;
            let now = linking.0.clock.now();
            let Some(claimed) = linking.0.store.claim_flow(flow.id, linking.0.replica, now).await? else {
                return Ok(None);
            };
            failpoint!("link.claimed");
            linking.exchange(&flow, &claimed, &provider, permit).await?;
            linking.finish(flow.id).await.map(Some)
        });
        task.await.unwrap_or(Err(Failure::Internal))
    }

    async fn exchange(
        &self,
        flow: &Flow,
        claimed: &ClaimedFlow,
        provider: &Provider,
        permit: providers::Permit,
    ) -> Result<(), Failure> {
        let failure = match self.0.wallet.redeem_code(flow, claimed, provider, permit).await {
            Ok(()) => return Ok(()),
            Err(RedeemError::Verdict(Verdict::Refused(code))) => {
                tracing::warn!(flow = %flow.id, code, "the provider refused a code");
                FlowFailure::CodeRefused
            }
            Err(RedeemError::Verdict(Verdict::Misconfigured(code))) => {
                tracing::error!(flow = %flow.id, provider = %provider.slug, code, "the provider does not accept the client credentials");
                FlowFailure::Misconfigured
            }
            // The code is never sent twice, so a try that may have been one is the last.
            Err(
                RedeemError::Verdict(
                    Verdict::Later { .. }
                    | Verdict::Limited { .. }
                    | Verdict::Unclear { .. }
                    | Verdict::Untrusted
                    | Verdict::Unknown,
                )
                | RedeemError::Unsent,
            ) => FlowFailure::OutcomeUnknown,
            Err(RedeemError::Parking(failure)) => return Err(failure),
        };
        Err(self.end(flow, FlowStep::Claimed, failure).await)
    }

    /// [`Self::finish`] in a task that outlives this call.
    async fn finish_tracked(&self, flow: FlowId) -> Result<Outcome, Failure> {
        let linking = self.clone();
        self.0.tasks.spawn(async move { linking.finish(flow).await }).await.unwrap_or(Err(Failure::Internal))
    }

    /// Makes the account of a parked answer: reads the profile, then deposits. Any process may do this, and again.
    pub(super) async fn finish(&self, flow: FlowId) -> Result<Outcome, Failure> {
        let Some((flow, sealed, sent_at)) = self.0.store.parked_answer(flow).await? else {
            return self.told(flow).await;
        };
        let answer = self.0.wallet.open_parked(&flow, &sealed)?;
        let (provider, permit) = self.0.registry.permit(flow.provider, Target::Profile, Urgency::Link).await?;
        let profile = provider.at(&flow.params).userinfo(&answer.access_token).await;
        let _ = self.0.registry.settle(&provider, permit, &profile).await;
        let failure = match profile {
            Ok(profile) => match self.0.wallet.deposit(&flow, &answer, &profile, sent_at).await {
                Err(Failure::AccountLinkedToAnotherUser) => {
                    let failure = FlowFailure::LinkedToAnotherUser;
                    self.0.wallet.put_away(&flow, &answer, &profile.subject, failure).await?;
                    return Err(failure.into());
                }
                // Somebody else was faster.
                Err(Failure::FlowOutcomeUnknown) => return self.told(flow.id).await,
                outcome => return outcome,
            },
            Err(
                Verdict::Later { after: Some(retry_after), .. }
                | Verdict::Limited { after: Some(retry_after) }
                | Verdict::Unclear { after: Some(retry_after) },
            ) => {
                return Err(Failure::ProviderUnavailable { retry_after });
            }
            Err(
                Verdict::Later { after: None, .. }
                | Verdict::Limited { after: None }
                | Verdict::Unclear { after: None }
                | Verdict::Untrusted
                | Verdict::Unknown,
            ) => {
                return Err(Failure::ProviderUnavailable { retry_after: PROFILE_RETRY });
            }
            // A token that was good a moment ago, by the provider's own word.
            Err(Verdict::Refused(code)) => {
                tracing::error!(flow = %flow.id, provider = %provider.slug, code, "the provider does not know a new token");
                FlowFailure::OutcomeUnknown
            }
            Err(Verdict::Misconfigured(code)) => {
                tracing::error!(flow = %flow.id, provider = %provider.slug, code, "the provider does not show the account's profile");
                FlowFailure::Misconfigured
            }
        };
        self.0.wallet.put_away(&flow, &answer, "", failure).await?;
        Err(failure.into())
    }

    /// The outcome of a flow that somebody else ends.
    async fn told(&self, flow: FlowId) -> Result<Outcome, Failure> {
        match self.0.store.flow(flow).await?.map(|flow| flow.state) {
            Some(FlowState::Done(outcome)) => Ok(outcome),
            Some(FlowState::Failed(failure)) => Err(failure.into()),
            Some(FlowState::Started | FlowState::Returned | FlowState::Claimed | FlowState::Exchanged) => {
                Err(Failure::FlowInProgress)
            }
            None => Err(Failure::TicketSpent),
        }
    }

    /// Fails a flow and gives what its caller is told.
    async fn end(&self, flow: &Flow, from: FlowStep, failure: FlowFailure) -> Failure {
        match self.0.store.fail_flow(flow.id, from, failure, None, self.0.clock.now()).await {
            Ok(_) => failure.into(),
            Err(error) => error.into(),
        }
    }
}

/// The ticket of a proof. An error that the browser brought back instead is told as such; it proves nothing and
/// changes nothing.
fn ticket(proof: Proof) -> Result<Ticket, Failure> {
    let url = match proof {
        Proof::Ticket(ticket) => return Ok(ticket),
        Proof::RedirectedUrl(url) => url,
    };
    let unusable = || Failure::field("redirected_url", "must be the URL that the browser was sent to");
    let url = url::Url::parse(&url).map_err(|_| unusable())?;
    let value = |wanted: &str| url.query_pairs().find(|(key, _)| key == wanted).map(|(_, value)| value.into_owned());
    if let Some(ticket) = value("ticket") {
        return Ok(Ticket::new(ticket));
    }
    let failure = value("error").as_deref().and_then(FlowFailure::parse).ok_or_else(unusable)?;
    Err(failure.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_redirected_url_holds_a_ticket_or_a_reason() {
        let of = |url: &str| ticket(Proof::RedirectedUrl(url.to_owned())).map(|ticket| ticket.expose().to_owned());
        assert_eq!(of("http://127.0.0.1:1/cb?a=1&ticket=t-1"), Ok("t-1".to_owned()));
        assert_eq!(of("com.example.app:/cb?error=cancelled"), Err(Failure::FlowCancelled));
        for bad in ["", "nonsense", "https://app.example.com/cb", "https://app.example.com/cb?error=%3Cscript%3E"] {
            assert!(matches!(of(bad), Err(Failure::InvalidField { .. })), "{bad}");
        }
    }
}
