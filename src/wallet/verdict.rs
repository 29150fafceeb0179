//! What a failed refresh makes of its grant. Only a refusal, confirmed, ends one.

use super::{Inner, spread};
use crate::domain::error::Failure;
use crate::domain::event::{Event, EventKind};
use crate::domain::grant::{Grant, GrantState};
use crate::domain::policy;
use crate::domain::provider::Verdict;
use crate::store::{GrantChange, Outcome, Stale};

impl Inner {
    /// The change to store, and what waiting callers are told.
    pub(super) fn verdict(&self, grant: &Grant, verdict: Verdict) -> (GrantChange, Failure) {
        let now = self.clock.now();
        let spread = spread();
        let unavailable =
            |until: crate::clock::Timestamp| Failure::ProviderUnavailable { retry_after: until.since(now) };
        let retry_not_before = match &verdict {
            Verdict::Refused(_) => grant.refused(now).1,
            Verdict::Later { after } => after.map(|after| now.plus(after)),
            // The provider may have acted: nobody asks before the lease would have run out.
            Verdict::Unknown => Some(now.plus(policy::LEASE)),
            Verdict::Misconfigured(_) => None,
        };
        let deferred = grant.deferred(now, retry_not_before, spread);
        let (state, due_at, reason, failure) = match verdict {
            Verdict::Refused(code) => match grant.refused(now) {
                (state, Some(due_at)) => (state, Some(due_at), Some(code), unavailable(due_at)),
                (state, None) => (state, None, Some(code), Failure::ReauthorizationRequired),
            },
            Verdict::Misconfigured(code) => {
                tracing::error!(provider = %grant.provider, code, "the provider does not accept the client credentials");
                (grant.state, Some(deferred), Some(code), Failure::ProviderMisconfigured)
            }
            Verdict::Later { .. } | Verdict::Unknown => (grant.state, Some(deferred), None, unavailable(deferred)),
        };
        let event = (state == GrantState::Dead).then(|| {
            tracing::info!(grant = %grant.id, account = %grant.account, "the provider ended a grant; the user must authorize again");
            Event::new(EventKind::AccountReauthorizationRequired, now, grant.user.clone(), grant.provider)
                .account(grant.account)
                .grant(grant.id)
                .because(reason.as_deref().unwrap_or_default())
        });
        let outcome =
            Outcome::Verdict { state, due_at, retry_not_before, reason, committed_fence: grant.committed_fence };
        let (id, account, fence) = (grant.id, grant.account, grant.fence);
        let announce = event.as_ref().map(Stale::of);
        (GrantChange { grant: id, account, fence, outcome, event, announce, at: now }, failure)
    }
}
