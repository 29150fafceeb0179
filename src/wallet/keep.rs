//! What a refresh brought, on its way into the store.

use std::pin::pin;
use std::time::Duration;

use super::answers::answered;
use super::flights::{Flight, Landing};
use super::spool::Slip;
use super::{Ids, Inner, spread};
use crate::clock::Timestamp;
use crate::domain::error::Failure;
use crate::domain::event::{Event, EventKind};
use crate::domain::grant::{Freshness, Grant};
use crate::domain::provider::TokenAnswer;
use crate::domain::spool::{Entry, RefreshAnswer};
use crate::failpoint::failpoint;
use crate::providers::Provider;
use crate::store::{GrantChange, Outcome, Recorded, Stale};
use crate::vault::VaultError;

/// Who waits for a token that cannot be served before the store has it is told so by then.
const TOLD_AFTER: Duration = Duration::from_secs(3);

impl Inner {
    /// Stores what a refresh brought. Passengers of `flight` are told as soon as the new token can be served.
    pub(super) async fn keep(
        &self,
        flight: &Flight,
        provider: &Provider,
        grant: &Grant,
        answer: TokenAnswer,
        sent_at: Timestamp,
    ) -> Landing {
        let (idle, load) = (provider.entry.idle_life(), self.load(provider.id));
        let freshness = Freshness::of(&answer, true, idle, sent_at, load, spread());
        let answer = RefreshAnswer {
            grant: grant.id,
            account: grant.account,
            user: grant.user.clone(),
            provider: grant.provider,
            fence: grant.fence,
            sent_at,
            due_at: freshness.due_at,
            keep_alive_at: freshness.keep_alive_at,
            answer,
        };
        let known = answer.answer.scopes.as_ref().is_some_and(|scopes| scopes.same_as(&grant.scopes));
        self.store_refresh(answer, provider.entry.refresh_kills_access_token, known, None, Some(flight)).await
    }

    /// With `kills` the other replicas are told that the access token before this one is good for nothing any more.
    /// `known`: the grant has the answer's scopes already, for certain.
    pub(super) async fn store_refresh(
        &self,
        answer: RefreshAnswer,
        kills: bool,
        known: bool,
        slip: Option<Slip>,
        flight: Option<&Flight>,
    ) -> Landing {
        let answered_at = answered();
        let (grant, fence, provider, user) = (answer.grant, answer.fence, answer.provider, answer.user.clone());
        let change = match self.change_of(&answer, kills, known) {
            Ok(change) => change,
            Err(error) => {
                tracing::error!(%grant, %error, "could not seal a refreshed token");
                return Landing::Failed(Failure::Internal);
            }
        };
        let answers = &self.answers;
        let tell = |landing| {
            if let Some(flight) = flight {
                flight.tell(landing);
            }
        };
        let serve_for = answers.serve_for;
        let when_spooled = || {
            failpoint!("refresh.spooled");
            if serve_for != Some(Duration::ZERO) {
                let until = serve_for.map(|span| self.clock.now().plus(span));
                answers.pending.insert(change.clone(), until);
                tell(Landing::Refreshed);
            }
        };
        let entry = Entry::Refresh(answer);
        let storing = answers.ledger.commit(change.clone());
        let mut stored = pin!(answers.until_stored(&entry, answered_at, slip, storing, when_spooled));
        let in_time = tokio::time::timeout(TOLD_AFTER, &mut stored).await;
        let (stored, slip) = if let Ok(stored) = in_time {
            stored
        } else {
            tell(Landing::Failed(Failure::StoreUnavailable));
            stored.await
        };
        match stored {
            Ok(recorded) => {
                failpoint!("refresh.committed");
                // Memory first: until it has the token, what is pending lies over it.
                self.renew(&user, provider).await;
                answers.pending.remove(grant, fence);
                if let Some(slip) = slip {
                    slip.done();
                    tracing::info!(%grant, fence, ?recorded, "a spooled answer is out of the spool");
                }
                if recorded == Recorded::Superseded { Landing::Elsewhere } else { Landing::Refreshed }
            }
            Err(error) => {
                if !error.is_transient() {
                    tracing::error!(%grant, fence, %error, "a refreshed token cannot be stored; it stays in the spool");
                    answers.refuse(grant, fence);
                }
                Landing::Failed(error.into())
            }
        }
    }

    /// The change that stores a refresh's answer.
    fn change_of(&self, refresh: &RefreshAnswer, kills: bool, known: bool) -> Result<GrantChange, VaultError> {
        let RefreshAnswer { grant, account, user, provider, fence, sent_at, due_at, keep_alive_at, answer } = refresh;
        let ids = Ids::new(*grant, *account, user, *provider);
        let refresh_token = answer.refresh_token.as_ref();
        let at = self.clock.now();
        let event = |kind| Event::new(kind, at, user.clone(), *provider).account(*account).grant(*grant);
        let recovered = event(EventKind::AccountRecovered);
        Ok(GrantChange {
            grant: *grant,
            account: *account,
            fence: *fence,
            outcome: Outcome::Refreshed {
                access_token: self.vault.seal(&answer.access_token, &ids.at(*fence))?,
                refresh_token: refresh_token.map(|token| self.vault.seal(token, &ids.at(*fence))).transpose()?,
                token_type: answer.token_type.clone(),
                scopes: answer.scopes.clone(),
                metadata: answer.metadata.clone(),
                freshness: Freshness {
                    issued_at: *sent_at,
                    lifetime: answer.lifetime,
                    due_at: *due_at,
                    keep_alive_at: *keep_alive_at,
                },
            },
            announce: kills.then(|| Stale::of(&recovered)),
            event: Some(recovered),
            scopes_changed: (!known).then(|| event(EventKind::AccountScopesChanged)),
            at,
        })
    }
}
