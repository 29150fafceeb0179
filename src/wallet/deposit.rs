//! Deposits: a code is redeemed once, its answer parked at once, and the grant made from it.

use super::{FlowIds, Ids, Wallet, parked, spread};
use crate::clock::Timestamp;
use crate::domain::error::Failure;
use crate::domain::event::{Event, EventKind};
use crate::domain::flow::{Flow, FlowFailure, Outcome};
use crate::domain::grant::Freshness;
use crate::domain::ids::{AccountId, GrantId};
use crate::domain::policy;
use crate::domain::provider::{Profile, TokenAnswer, Verdict};
use crate::domain::secret::{AuthorizationCode, PkceVerifier};
use crate::domain::spool::ExchangeAnswer;
use crate::failpoint::failpoint;
use crate::providers::{Entry, Permit, Provider};
use crate::store::{ClaimedFlow, Deposit, Deposited, NewGrant, Stale};
use crate::vault::Owner;

/// How often a deposit looks again when somebody else linked or unlinked the same account in between.
const TRIES: usize = 5;

/// Why a claimed code led to no parked answer.
pub enum RedeemError {
    /// The provider's word, or its silence.
    Verdict(Verdict),
    /// The stored code or verifier does not open; nothing was sent.
    Unsent,
    /// The provider answered, and the answer could not be kept.
    Parking(Failure),
}

/// Where a new grant belongs.
#[derive(Clone, Copy)]
struct Place {
    /// Its account.
    account: AccountId,
    /// Whether that is there.
    existing: bool,
    /// Why the account must not have it: it is to be revoked, and its flow fails for this.
    astray: Option<FlowFailure>,
}

impl Wallet {
    /// Redeems a claimed flow's code, once, and parks the answer before anything else is done with it.
    pub async fn redeem_code(
        &self,
        flow: &Flow,
        claimed: &ClaimedFlow,
        provider: &Provider,
        permit: Permit,
    ) -> Result<(), RedeemError> {
        let ids = FlowIds::of(flow);
        let unsent = |error| {
            tracing::error!(flow = %flow.id, %error, "a flow's secrets do not open");
            RedeemError::Unsent
        };
        let code: AuthorizationCode = self.0.vault.open_cell(&claimed.code, &ids.owner()).map_err(unsent)?;
        let verifier = claimed.verifier.as_ref().map(|sealed| self.0.vault.open_cell(sealed, &ids.owner()));
        let verifier: Option<PkceVerifier> = verifier.transpose().map_err(unsent)?;
        let secret = provider.secrets_in_order().next();
        let _here = self.0.answers.here(flow.id);
        let result = provider.at(&flow.params).exchange(&code, verifier.as_ref(), &flow.redirect_uri).await;
        let _ = self.0.registry.settle(provider, permit, &result).await;
        if matches!(result, Err(Verdict::Refused(_))) {
            // The code, not our credentials.
            self.0.registry.accepted(provider, secret).await;
        }
        let answer = result.map_err(RedeemError::Verdict)?;
        failpoint!("link.exchanged");
        self.0
            .park(self.0.replica, ExchangeAnswer { flow: flow.id, answer }, None)
            .await
            .map_err(RedeemError::Parking)?;
        failpoint!("link.parked");
        self.0.registry.accepted(provider, secret).await;
        Ok(())
    }

    /// Opens a parked answer.
    pub fn open_parked(&self, flow: &Flow, sealed: &crate::vault::Sealed<TokenAnswer>) -> Result<TokenAnswer, Failure> {
        self.0.vault.open_cell(sealed, &parked(&flow.id.to_string())).map_err(|_| {
            tracing::error!(flow = %flow.id, "a parked answer does not open");
            Failure::GrantQuarantined
        })
    }

    /// Makes the account's grant of a parked answer: in one move with the account and the flow's end. A subject that
    /// the user linked before keeps its account and the better of the two grants. A reauthorization that came back as
    /// another account, or to one that was unlinked meanwhile, fails here, its grant kept to be revoked.
    pub async fn deposit(
        &self,
        flow: &Flow,
        answer: &TokenAnswer,
        profile: &Profile,
        sent_at: Timestamp,
    ) -> Result<Outcome, Failure> {
        let entry = self.0.registry.by_id(flow.provider).await?.entry;
        for _ in 0..TRIES {
            let place = self.place(flow, &profile.subject).await?;
            let deposit = self.deposit_of(entry, flow, answer, profile, sent_at, place)?;
            let Place { account, existing, astray } = place;
            let stale = Stale::Account { provider: flow.provider, user: flow.user.clone() };
            let store = self.0.store.clone();
            let outcome = Outcome { account, created: !existing, kept: false };
            match (self.0.cache.change(stale, async move { store.deposit(&deposit).await }).await?, astray) {
                (Deposited::Done, Some(failure)) => return Err(failure.into()),
                (Deposited::Done, None) => {
                    failpoint!("link.committed");
                    if existing {
                        // Its old token may be revoked next.
                        self.0.cache.settled().await;
                    }
                    return Ok(outcome);
                }
                (Deposited::Kept, _) => return Ok(Outcome { kept: true, ..outcome }),
                (Deposited::Changed, _) => {}
                (Deposited::LinkedToAnotherUser, _) => return Err(Failure::AccountLinkedToAnotherUser),
                (Deposited::FlowGone, _) => return Err(Failure::FlowOutcomeUnknown),
            }
        }
        Err(Failure::StoreUnavailable)
    }

    /// Where a grant of this identity belongs.
    async fn place(&self, flow: &Flow, subject: &str) -> Result<Place, Failure> {
        let live = self.0.store.account_by_subject(flow.provider, subject).await?;
        let theirs = live.as_ref().filter(|(_, user)| *user == flow.user).map(|(account, _)| *account);
        if let Some(wanted) = flow.reauthorizes
            && theirs != Some(wanted)
        {
            // Unlinked meanwhile, or another account.
            let row = self.0.store.account(wanted).await?;
            let same = row.as_ref().is_some_and(|row| row.user == flow.user && row.subject == subject);
            let failure = if same { FlowFailure::AccountUnlinked } else { FlowFailure::AccountMismatch };
            let hung_on = if same { Some(wanted) } else { theirs };
            let account = hung_on.unwrap_or_else(|| AccountId::new(self.0.clock.now()));
            return Ok(Place { account, existing: hung_on.is_some(), astray: Some(failure) });
        }
        match (live, theirs) {
            (Some(_), None) => Err(Failure::AccountLinkedToAnotherUser),
            (_, Some(account)) => Ok(Place { account, existing: true, astray: None }),
            (None, None) => Ok(Place { account: AccountId::new(self.0.clock.now()), existing: false, astray: None }),
        }
    }

    fn deposit_of(
        &self,
        entry: &Entry,
        flow: &Flow,
        answer: &TokenAnswer,
        profile: &Profile,
        sent_at: Timestamp,
        Place { account, existing, astray }: Place,
    ) -> Result<Deposit, Failure> {
        let now = self.0.clock.now();
        let refreshable = answer.refresh_token.is_some();
        let idle = entry.idle_life();
        let freshness = Freshness::of(answer, refreshable, idle, sent_at, self.0.load(flow.provider), spread());
        let ahead_until = now.plus(policy::ahead_for(freshness.lifetime.span(), self.0.ahead_for));
        let scopes = answer.scopes.clone().unwrap_or_else(|| flow.scopes.clone());
        let grant = GrantId::new(now);
        let ids = Ids::new(grant, account, &flow.user, flow.provider);
        let sealing = |error: crate::vault::VaultError| {
            tracing::error!(flow = %flow.id, %error, "could not seal a grant");
            Failure::Internal
        };
        let refresh_token = answer.refresh_token.as_ref().map(|token| self.0.vault.seal(token, &ids.at(0))).transpose();
        Ok(Deposit {
            flow: flow.id,
            account,
            existing,
            astray,
            user: flow.user.clone(),
            provider: flow.provider,
            subject: profile.subject.clone(),
            profile: self.0.vault.seal(profile, &ids.profile()).map_err(sealing)?,
            events: events(flow, (account, existing), grant, !refreshable && freshness.lifetime.span().is_some(), now),
            kept: Event::new(EventKind::AccountGrantKept, now, flow.user.clone(), flow.provider)
                .account(account)
                .flow(flow.id),
            grant: NewGrant {
                id: grant,
                access_token: self.0.vault.seal(&answer.access_token, &ids.at(0)).map_err(sealing)?,
                refresh_token: refresh_token.map_err(sealing)?,
                token_type: answer.token_type.clone(),
                scopes,
                requested_scopes: flow.scopes.clone(),
                metadata: answer.metadata.clone(),
                params: flow.params.clone(),
                freshness,
                ahead_until,
                warn_at: entry.consent_life().filter(|_| refreshable).map(|life| policy::warn_at(sent_at, life)),
            },
            now,
        })
    }
}

impl Ids {
    /// The owner of the account's own cell.
    fn profile(&self) -> Owner<'_> {
        Owner::of_profile(&self.account, &self.user, &self.provider)
    }
}

/// What is told of a new grant; `will_end`: its token ends, and cannot be refreshed.
fn events(
    flow: &Flow,
    (account, existing): (AccountId, bool),
    grant: GrantId,
    will_end: bool,
    now: Timestamp,
) -> Vec<Event> {
    let event =
        |kind| Event::new(kind, now, flow.user.clone(), flow.provider).account(account).grant(grant).flow(flow.id);
    let linked = event(if existing { EventKind::AccountRelinked } else { EventKind::AccountLinked });
    let not_refreshable = will_end.then(|| event(EventKind::AccountNotRefreshable));
    [linked].into_iter().chain(not_refreshable).collect()
}
