//! Withdrawals: what is taken out of use at once, and then taken back at the provider.

use super::{Ids, Inner, Wallet};
use crate::domain::error::Failure;
use crate::domain::event::Event;
use crate::domain::flow::{Flow, FlowFailure};
use crate::domain::ids::{AccountId, FlowId, GrantId};
use crate::domain::provider::TokenAnswer;
use crate::domain::user::UserId;
use crate::failpoint::failpoint;
use crate::store::{DeletedUser, FlowStep, Stale, Stray};

/// How often a deletion looks again when a flow of the user's is answered in between.
const TRIES: usize = 5;

impl Wallet {
    /// Takes an account's grant out of use: no get that starts after this has returned serves it, on any replica.
    /// False if the account is unlinked already. `event` is written with the change.
    pub async fn withdraw(&self, account: AccountId, event: Event) -> Result<bool, Failure> {
        let (store, now, stale) = (self.0.store.clone(), self.0.clock.now(), Stale::of(&event));
        let unlinked = self.0.cache.change(stale, async move { store.unlink(account, &event, now).await }).await?;
        failpoint!("unlink.committed");
        if unlinked {
            self.revoke_at_once(account);
        }
        // Also if it was done before: perhaps a moment ago, and its caller still waits.
        self.0.cache.settled().await;
        Ok(unlinked)
    }

    /// The same with all that a user has, who is deleted with it. Again changes nothing, for 30 days.
    ///
    /// # Errors
    ///
    /// [`Failure::UserNotFound`], and the store's.
    pub async fn withdraw_user(&self, user: &UserId) -> Result<(), Failure> {
        for _ in 0..TRIES {
            for flow in self.0.store.parked_flows_of(user).await? {
                self.give_up_parked(flow, FlowFailure::UserDeleted).await?;
            }
            let stale = |provider| Stale::Account { provider, user: user.clone() };
            let accounts = self.0.store.accounts_of(user).await?;
            let stale = accounts.into_iter().map(|(_, provider)| stale(provider)).collect();
            let (store, cache, named, now) =
                (self.0.store.clone(), self.0.cache.clone(), user.clone(), self.0.clock.now());
            let deletion = async move {
                let deleted = store.delete_user(&named, now).await?;
                if let DeletedUser::Done(accounts) = &deleted {
                    // Those too that were linked after the look.
                    for (_, provider) in accounts {
                        cache.forget(&Stale::Account { provider: *provider, user: named.clone() });
                    }
                }
                Ok(deleted)
            };
            let accounts = match self.0.cache.change_all(stale, deletion).await? {
                DeletedUser::Done(accounts) => accounts,
                DeletedUser::Before => Vec::new(),
                DeletedUser::Unknown => return Err(Failure::UserNotFound),
                DeletedUser::Parked => continue,
            };
            tracing::info!(accounts = accounts.len(), "deleted a user");
            for (account, _) in accounts {
                self.revoke_at_once(account);
            }
            self.0.cache.settled().await;
            return Ok(());
        }
        Err(Failure::StoreUnavailable)
    }

    /// Gives up a flow's parked answer, if it has one: the flow fails, and what the provider gave is taken back.
    pub async fn give_up_parked(&self, flow: FlowId, failure: FlowFailure) -> Result<bool, Failure> {
        let Some((flow, sealed, _)) = self.0.store.parked_answer(flow).await? else { return Ok(false) };
        if let Ok(answer) = self.open_parked(&flow, &sealed) {
            return self.put_away(&flow, &answer, "", failure).await;
        }
        // Logged there. It cannot be taken back.
        let now = self.0.clock.now();
        Ok(self.0.store.fail_flow(flow.id, FlowStep::Exchanged, failure, None, now).await?)
    }

    /// The same with the answer at hand, and the provider's id of the account, or an empty one.
    pub async fn put_away(
        &self,
        flow: &Flow,
        answer: &TokenAnswer,
        subject: &str,
        failure: FlowFailure,
    ) -> Result<bool, Failure> {
        self.0.keep_stray(flow, answer, subject, Some(failure)).await
    }
}

impl Inner {
    /// Keeps an answer that no account may have, to be revoked. With `failure` it is its flow's parked one, which ends.
    pub(super) async fn keep_stray(
        &self,
        flow: &Flow,
        answer: &TokenAnswer,
        subject: &str,
        failure: Option<FlowFailure>,
    ) -> Result<bool, Failure> {
        let now = self.clock.now();
        let (grant, account) = (GrantId::new(now), AccountId::new(now));
        let ids = Ids::new(grant, account, &flow.user, flow.provider);
        let sealing = |error: crate::vault::VaultError| {
            tracing::error!(flow = %flow.id, %error, "could not seal what is to be revoked");
            Failure::Internal
        };
        let refresh_token = answer.refresh_token.as_ref().map(|token| self.vault.seal(token, &ids.at(0))).transpose();
        let stray = Stray {
            grant,
            account,
            user: flow.user.clone(),
            provider: flow.provider,
            subject: subject.to_owned(),
            access_token: self.vault.seal(&answer.access_token, &ids.at(0)).map_err(sealing)?,
            refresh_token: refresh_token.map_err(sealing)?,
            token_type: answer.token_type.clone(),
            lifetime: answer.lifetime,
        };
        let kept = self.store.keep_stray(&stray, failure.map(|failure| (flow.id, failure)), now).await?;
        if kept {
            tracing::warn!(flow = %flow.id, %grant, "what a provider gave is nobody's; it is revoked");
        }
        Ok(kept)
    }
}
