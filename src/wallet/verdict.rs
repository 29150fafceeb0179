//! What a failed refresh makes of its grant. Only a refusal, confirmed, ends one.

use super::{Inner, spread};
use crate::domain::error::Failure;
use crate::domain::event::{Event, EventKind};
use crate::domain::grant::{Grant, GrantState};
use crate::domain::policy;
use crate::domain::provider::Verdict;
use crate::store::{GrantChange, Outcome};

impl Inner {
    /// The change to store, and what waiting callers are told.
    pub(super) fn verdict(&self, grant: &Grant, verdict: Verdict) -> (GrantChange, Failure) {
        let now = self.clock.now();
        let unavailable =
            |until: crate::clock::Timestamp| Failure::ProviderUnavailable { retry_after: until.since(now) };
        let deferred = |after| grant.deferred(now, after, spread());
        let (state, due_at, reason, failure) = match verdict {
            Verdict::Refused(code) => match grant.refused(now) {
                (GrantState::Dead, _) => (GrantState::Dead, None, Some(code), Failure::ReauthorizationRequired),
                (state, due_at) => {
                    let failure = due_at.map_or(Failure::ReauthorizationRequired, unavailable);
                    (state, due_at, Some(code), failure)
                }
            },
            Verdict::Misconfigured(code) => {
                tracing::error!(provider = %grant.provider, code, "the provider does not accept the client credentials");
                (grant.state, Some(deferred(None)), Some(code), Failure::ProviderMisconfigured)
            }
            Verdict::Later { after } => {
                let due_at = deferred(after);
                (grant.state, Some(due_at), None, unavailable(due_at))
            }
            // The provider may have acted: nobody else asks before the lease would have run out.
            Verdict::Unknown => {
                let due_at = deferred(Some(policy::LEASE));
                (grant.state, Some(due_at), None, unavailable(due_at))
            }
        };
        let event = (state == GrantState::Dead).then(|| {
            tracing::info!(grant = %grant.id, account = %grant.account, "the provider ended a grant; the user must authorize again");
            Event::new(EventKind::AccountReauthorizationRequired, now, grant.user.clone(), grant.provider)
                .account(grant.account)
                .grant(grant.id)
                .because(reason.as_deref().unwrap_or_default())
        });
        let outcome = Outcome::Verdict { state, due_at, reason, committed_fence: grant.committed_fence };
        (GrantChange { grant: grant.id, account: grant.account, fence: grant.fence, outcome, event }, failure)
    }
}
