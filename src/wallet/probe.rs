//! A token that cannot be refreshed was reported as rejected: its provider is asked whether it lives.

use super::flights::Landing;
use super::verdict::change;
use super::{Ids, Inner};
use crate::domain::error::Failure;
use crate::domain::grant::{Grant, GrantState};
use crate::domain::policy;
use crate::domain::provider::Verdict;
use crate::domain::secret::AccessToken;
use crate::providers::{Permit, Provider};
use crate::store::Outcome;

impl Inner {
    /// Reads the profile with the claimed grant's access token. Two refusals, a minute apart, end the grant.
    pub(super) async fn probe(&self, provider: &Provider, grant: &Grant, permit: Permit) -> Result<Landing, Failure> {
        let Some(holding) = self.store.holding(grant.id).await? else { return Ok(Landing::Elsewhere) };
        let ids = Ids::of(grant);
        let Ok(token) = self.vault.open_cell::<AccessToken>(&holding.access_token, &ids.at(grant.access_generation))
        else {
            self.quarantine(grant, "access_token").await;
            return Err(Failure::GrantQuarantined);
        };
        let now = self.clock.now();
        let result = provider.at(&grant.params).userinfo(&token).await;
        let _ = self.registry.settle(provider, permit, &result).await;
        if let Err(Verdict::Refused(code)) = result {
            return Ok(match self.note(provider, grant, None, Verdict::Refused(code)).await {
                Landing::Failed(Failure::ProviderUnavailable { retry_after }) => {
                    Landing::Failed(Failure::AccessTokenRejected { retry_after })
                }
                landing => landing,
            });
        }
        // It lives, or nobody knows: not asked again at once.
        let retry_after = policy::too_new(grant.freshness.span());
        let outcome = Outcome::Verdict {
            state: if result.is_ok() { GrantState::Active } else { grant.state },
            due_at: None,
            retry_not_before: Some(now.plus(retry_after)),
            reason: None,
            committed_fence: grant.committed_fence,
        };
        self.store.record(&change(grant, outcome, None, now)).await?;
        Ok(Landing::Failed(Failure::AccessTokenRejected { retry_after }))
    }
}
