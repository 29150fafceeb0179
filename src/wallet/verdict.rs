//! What a failed refresh makes of its grant. Only a refusal, confirmed, ends one; and none is ended while the provider
//! refuses too many at once.

use std::time::Duration;

use super::flights::Landing;
use super::memory::stale;
use super::{Inner, spread};
use crate::clock::Timestamp;
use crate::domain::doubt::{self, Reuse};
use crate::domain::error::Failure;
use crate::domain::event::{Event, EventKind};
use crate::domain::grant::{Grant, GrantState, Lease};
use crate::domain::policy;
use crate::domain::provider::Verdict;
use crate::providers::Provider;
use crate::store::{GrantChange, Outcome, Recorded, Stale};
use crate::telemetry::metrics;

/// Why an account needs a new consent whose refresh token was spent by a request that was never answered.
const OUTCOME_LOST: &str = "rotation_outcome_lost";

/// Refusals are counted over this.
const WAVE: Duration = Duration::from_mins(1);

/// So many grants that turn suspect within a [`WAVE`] are a wave, and so is a tenth of what was attempted, if more.
const WAVE_AT_LEAST: u32 = 5;

/// Grants ended this shortly before a wave was noticed are part of it. While verdicts are frozen, as many suspects as
/// make a wave within this are one.
const PART_OF_WAVE: Duration = Duration::from_mins(5);

impl Inner {
    /// Stores what the provider's refusal or silence means for a claimed grant. `before`: what it was before the claim, if
    /// it was in doubt.
    pub(super) async fn note(
        &self,
        provider: &Provider,
        grant: &Grant,
        before: Option<&Grant>,
        verdict: Verdict,
    ) -> Landing {
        if let Verdict::Misconfigured(code) = &verdict {
            tracing::error!(provider = %provider.slug, code, "the provider does not accept the client credentials");
        }
        let (change, failure) = match doubtful(provider, grant, before, &verdict, self.clock.now()) {
            Some(doubtful) => doubtful,
            None => self.verdict(grant, verdict),
        };
        let recorded = self.store.record(&change).await;
        // At once, and after an error too: the commit's answer may be all that was lost.
        self.cache.forget(&stale(grant));
        match recorded {
            Ok(Recorded::Stored(state)) => {
                let reason = match &change.outcome {
                    Outcome::Verdict { reason, .. } => reason.as_deref(),
                    _ => None,
                };
                self.after(provider, grant, state, reason).await;
                // The provider's verdicts are frozen.
                let reprieved = failure == Failure::ReauthorizationRequired && state != GrantState::Dead;
                Landing::Failed(if reprieved { Failure::ProviderUnavailable { retry_after: WAVE } } else { failure })
            }
            Ok(Recorded::Superseded) => Landing::Elsewhere,
            Err(error) => {
                tracing::warn!(grant = %grant.id, %error, "could not store a verdict; the lease will run out");
                Landing::Failed(failure)
            }
        }
    }

    /// The change to store, and what waiting callers are told.
    fn verdict(&self, grant: &Grant, verdict: Verdict) -> (GrantChange, Failure) {
        let now = self.clock.now();
        let unavailable = |until: Timestamp| Failure::ProviderUnavailable { retry_after: until.since(now) };
        let (state, retry_not_before, reason, failure) = match verdict {
            Verdict::Refused(code) => {
                let (state, again_at) = grant.refused(now);
                let failure = again_at.map_or(Failure::ReauthorizationRequired, unavailable);
                (state, again_at, Some(code), failure)
            }
            Verdict::Misconfigured(code) => (grant.state, None, Some(code), Failure::ProviderMisconfigured),
            Verdict::Later { after, .. } | Verdict::Limited { after } | Verdict::Unclear { after } => {
                let until = after.map(|after| now.plus(after));
                (grant.state, until, None, unavailable(grant.deferred(now, until, 1.0)))
            }
            Verdict::Unknown | Verdict::Untrusted => {
                (grant.state, None, None, unavailable(grant.deferred(now, None, 1.0)))
            }
        };
        let due_at = match (state, retry_not_before) {
            (GrantState::Suspect, Some(confirm_at)) if grant.state != GrantState::Suspect => confirm_at,
            _ => grant.deferred(now, retry_not_before, spread()),
        };
        let reason = match grant.doubted_fence {
            Some(_) if state == GrantState::Dead => Some(OUTCOME_LOST.to_owned()),
            _ => reason,
        };
        let event = (state == GrantState::Dead).then(|| {
            Event::new(EventKind::AccountReauthorizationRequired, now, grant.user.clone(), grant.provider)
                .account(grant.account)
                .grant(grant.id)
                .because(reason.as_deref().unwrap_or_default())
        });
        let due_at = grant.refreshable().then_some(due_at);
        let committed_fence = grant.committed_fence;
        let outcome = Outcome::Verdict { state, due_at, retry_not_before, reason, committed_fence };
        (change(grant, outcome, event, now), failure)
    }

    /// What a stored verdict means beyond its grant.
    async fn after(&self, provider: &Provider, before: &Grant, state: GrantState, reason: Option<&str>) {
        match state {
            GrantState::Dead => {
                tracing::info!(grant = %before.id, account = %before.account, reason, "the provider ended a grant; the user must authorize again");
                if before.doubted_fence.is_some() {
                    metrics::rotation_outcome_lost(provider.slug.as_str());
                }
            }
            GrantState::Suspect if before.state != GrantState::Suspect => {
                if let Err(error) = self.freeze_a_wave(provider).await {
                    tracing::warn!(provider = %provider.slug, %error, "could not look for a wave of refusals");
                }
            }
            _ => {}
        }
    }

    /// Freezes the provider's verdicts if too many of its grants turned suspect at once; while they are frozen, for
    /// longer, but not for a grant now and then: a big provider would never thaw.
    async fn freeze_a_wave(&self, provider: &Provider) -> Result<(), Failure> {
        let now = self.clock.now();
        let (over, enough) = if provider.standing.frozen_until.is_some_and(|until| until > now) {
            (PART_OF_WAVE, WAVE_AT_LEAST)
        } else {
            (WAVE, WAVE_AT_LEAST.max(self.attempts_everywhere(provider) / 10))
        };
        let suspected = self.store.suspected(provider.id, now.minus(over)).await?;
        if suspected < enough {
            return Ok(());
        }
        let (store, id, ended_after) = (self.store.clone(), provider.id, now.minus(PART_OF_WAVE));
        let freeze = async move { store.freeze_verdicts(id, now.plus(policy::FREEZE), ended_after, now).await };
        let done = self.cache.change(Stale::Providers, freeze).await?;
        // Not by the row as it was read: several grants notice a wave at once.
        if done.began {
            tracing::error!(provider = %provider.slug, suspected, back = done.back, "too many grants are refused at once: none is ended for now");
            metrics::verdicts_frozen(provider.slug.as_str());
        }
        Ok(())
    }
}

/// The change of a claimed grant that brings no token. One that tells of the account's end is told to all replicas.
pub(super) fn change(grant: &Grant, outcome: Outcome, event: Option<Event>, at: Timestamp) -> GrantChange {
    let announce = event.as_ref().map(Stale::of);
    let (id, account, fence) = (grant.id, grant.account, grant.fence);
    GrantChange { grant: id, account, fence, outcome, event, scopes_changed: None, announce, at }
}

/// The change that leaves a claimed grant in doubt, and what waiting callers are told; `None` if there is no doubt. Only
/// what was not answered waits for the end of its lease. What was surely not acted on leaves the grant as it was
/// `before`.
fn doubtful(
    provider: &Provider,
    grant: &Grant,
    before: Option<&Grant>,
    verdict: &Verdict,
    now: Timestamp,
) -> Option<(GrantChange, Failure)> {
    let reuse = provider.entry.reuse();
    let asked = |after: Option<Duration>| after.map_or(now, |after| now.plus(after));
    let soon = now.plus(policy::retry_for_waiting(grant.freshness.span()));
    let (doubted, lease_until, earliest) = match (verdict, before) {
        (Verdict::Refused(_), _) => return None,
        _ if reuse == Reuse::Harmless => return None,
        (Verdict::Unknown, _) => {
            let lease_end = grant.lease.map_or(now, |lease| lease.until);
            (grant, lease_end, lease_end)
        }
        (Verdict::Unclear { after }, _) => (grant, now, asked(*after)),
        (Verdict::Later { after, .. } | Verdict::Limited { after }, Some(before)) => {
            (before, now, soon.max(asked(*after)))
        }
        (Verdict::Misconfigured(_) | Verdict::Untrusted, Some(before)) => (before, now, soon),
        (Verdict::Later { .. } | Verdict::Limited { .. } | Verdict::Misconfigured(_) | Verdict::Untrusted, None) => {
            return None;
        }
    };
    let due_at = doubt::next_look(doubted, reuse, earliest, now, spread());
    if matches!(verdict, Verdict::Unknown | Verdict::Unclear { .. }) {
        let verdict = verdict.as_str();
        tracing::warn!(grant = %grant.id, verdict, "no answer says whether a refresh token is spent; its grant is in doubt");
        metrics::in_doubt(provider.slug.as_str());
    }
    let failure = match verdict {
        Verdict::Misconfigured(_) => Failure::ProviderMisconfigured,
        _ => Failure::ProviderUnavailable { retry_after: due_at.since(now) },
    };
    let outcome = Outcome::InDoubt {
        fence: doubted.fence,
        lease: Lease { until: lease_until, ..doubted.lease? },
        sent_at: doubted.attempted_at,
        doubted_fence: doubted.doubted_fence,
        due_at,
        retry_not_before: earliest,
    };
    Some((change(grant, outcome, None, now), failure))
}
