//! The answer to a code, on its way to its flow.

use super::answers::answered;
use super::spool::Slip;
use super::{Inner, parked};
use crate::domain::error::Failure;
use crate::domain::ids::{FlowId, ReplicaId};
use crate::domain::provider::TokenAnswer;
use crate::domain::spool::{Entry, ExchangeAnswer};
use crate::failpoint::failpoint;

impl Inner {
    /// Parks the answer to a code with its flow, which replica `by` claimed. What comes to a flow that has ended without
    /// it is revoked; where even the flow is gone it is set aside in the spool: it holds tokens that live, and is nobody's.
    pub(super) async fn park(&self, by: ReplicaId, answer: ExchangeAnswer, slip: Option<Slip>) -> Result<(), Failure> {
        let answered_at = answered();
        let (answers, flow) = (&self.answers, answer.flow);
        let sealed = self.vault.seal(&answer.answer, &parked(&flow.to_string())).map_err(|error| {
            tracing::error!(%flow, %error, "could not seal a provider's answer");
            Failure::Internal
        })?;
        let entry = Entry::Exchange(answer);
        let storing = Box::pin(async {
            let parked = answers.ledger.offer(|| self.store.park_answer(flow, by, &sealed)).await?;
            if parked { Ok(()) } else { Err(Failure::FlowOutcomeUnknown) }
        });
        let spooled = || {
            failpoint!("link.spooled");
        };
        let (stored, slip) = answers.until_stored(&entry, answered_at, slip, storing, spooled).await;
        match (&stored, slip) {
            (Ok(()), Some(slip)) => {
                slip.done();
                tracing::info!(%flow, "a spooled answer is out of the spool");
            }
            (Err(Failure::FlowOutcomeUnknown), slip) => self.revoke_late(&entry, slip).await,
            (Err(Failure::Internal), Some(_)) => {
                tracing::error!(%flow, "the answer to a code cannot be parked; it stays in the spool");
            }
            _ => {}
        }
        stored
    }

    /// A code was answered when its flow had ended. Like any answer it is offered to the store for as long as this process
    /// lives: it may be in memory only.
    async fn revoke_late(&self, entry: &Entry, slip: Option<Slip>) {
        let Entry::Exchange(ExchangeAnswer { flow, answer }) = entry else { return };
        let kept = self.keep_late(*flow, answer).await;
        match (kept, slip) {
            (Ok(true), slip) => slip.map(Slip::done).unwrap_or_default(),
            (Ok(false), Some(slip)) => {
                tracing::error!(%flow, "a code was answered when its flow was gone; the answer is set aside in the spool");
                slip.set_aside();
            }
            (Ok(false), None) => {
                tracing::error!(%flow, "a code was answered when its flow was gone; nobody has the answer");
            }
            // It stays in the spool for the next start, if it is there.
            (Err(failure), _) => tracing::error!(%flow, %failure, "the late answer to a code cannot be revoked"),
        }
    }

    /// False if even the flow is gone.
    async fn keep_late(&self, flow: FlowId, answer: &TokenAnswer) -> Result<bool, Failure> {
        let ledger = &self.answers.ledger;
        let Some(ended) = ledger.offer(|| self.store.flow(flow)).await? else { return Ok(false) };
        let now = self.clock.now();
        let stray = self.stray(&ended, answer, "", now)?;
        Ok(ledger.offer(|| self.store.keep_stray(&stray, None, now)).await?)
    }
}
