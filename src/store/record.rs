//! What a refresh came to, written over nothing newer.

use std::collections::BTreeMap;

use super::Store;
use super::coherence::{self, Stale};
use super::db::Tx;
use super::error::StoreError;
use super::events;
use super::grants::lifetime_columns;
use super::sql::{Row, Value, args, statements, to_json};
use crate::clock::Timestamp;
use crate::domain::event::Event;
use crate::domain::grant::{Freshness, GrantState};
use crate::domain::ids::{AccountId, GrantId};
use crate::domain::scopes::Scopes;
use crate::domain::secret::{AccessToken, RefreshToken};
use crate::vault::Sealed;

/// What the claim of `fence` came to.
#[derive(Clone, Debug)]
pub struct GrantChange {
    /// The grant.
    pub grant: GrantId,
    /// Its account.
    pub account: AccountId,
    /// The claim's fence.
    pub fence: i64,
    /// What it came to.
    pub outcome: Outcome,
    /// Written if the account's state changes with it.
    pub event: Option<Event>,
    /// What other replicas must drop, if the access token that they may hold is good for nothing any more.
    pub announce: Option<Stale>,
    /// When.
    pub at: Timestamp,
}

/// What a claim came to.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// New tokens, sealed under the claim's fence as their generation. A grant taken for ended comes back, and its
    /// account with it.
    Refreshed {
        /// The access token.
        access_token: Sealed<AccessToken>,
        /// The refresh token, if a new one came.
        refresh_token: Option<Sealed<RefreshToken>>,
        /// How the access token is sent.
        token_type: String,
        /// What is granted, if the answer said so.
        scopes: Option<Scopes>,
        /// What an API call needs besides the token; nothing leaves what is known.
        metadata: BTreeMap<String, String>,
        /// How fresh the access token is.
        freshness: Freshness,
    },
    /// No tokens. Stored only if nobody claimed since and no answer came since.
    Verdict {
        /// Active, suspect or dead.
        state: GrantState,
        /// When the next attempt is due; `None` if none is.
        due_at: Option<Timestamp>,
        /// Before this nobody causes an attempt, not even a caller who waits.
        retry_not_before: Option<Timestamp>,
        /// Why the account needs a new consent, if it does.
        reason: Option<String>,
        /// The committed fence that the claim saw.
        committed_fence: i64,
    },
}

/// What became of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recorded {
    /// Written; the grant is in this state now.
    Stored(GrantState),
    /// Not written: a newer answer, or a newer claim, is there.
    Superseded,
}

macro_rules! write_tokens {
    () => {
        "UPDATE grants SET access_token = $4, access_generation = $3, committed_fence = $3,
            refresh_token = COALESCE($5, refresh_token),
            refresh_generation = CASE WHEN $5 IS NULL THEN refresh_generation ELSE $3 END,
            token_type = $6, scopes = COALESCE($7, scopes), metadata = COALESCE($8, metadata),
            issued_at = $9, lifetime = $10, lifetime_assumed = $11, due_at = $12, attempts = 0, retry_not_before = NULL,
            attempted_at = CASE WHEN fence = $3 THEN NULL ELSE attempted_at END,
            lease_owner = CASE WHEN fence = $3 THEN NULL ELSE lease_owner END,
            lease_until = CASE WHEN fence = $3 THEN NULL ELSE lease_until END,
            state = CASE WHEN state IN ('suspect', 'dead') THEN 'active' ELSE state END
         WHERE id = $1 AND account_id = $2 AND committed_fence < $3 AND fence >= $3 "
    };
}

statements! {
    REFRESHED { write_tokens!() "AND state <> 'dead' RETURNING id, state" }
    // Its account comes back too, in the same transaction.
    REVIVED { write_tokens!() "RETURNING id, state" }
    VERDICT {
        "UPDATE grants SET attempts = attempts + 1, lease_owner = NULL, lease_until = NULL,
            due_at = CASE WHEN state IN ('active', 'suspect') THEN $6 ELSE due_at END, retry_not_before = $7,
            state = CASE WHEN state IN ('active', 'suspect') THEN $5 ELSE state END
         WHERE id = $1 AND account_id = $2 AND fence = $3 AND committed_fence = $4
         RETURNING id, state"
    }
    ACCOUNT_ENDS {
        "UPDATE external_accounts SET state = 'reauthorization_required', state_reason = $2
         WHERE id = $1 AND state = 'active'"
    }
    ACCOUNT_RECOVERS {
        "UPDATE external_accounts SET state = 'active', state_reason = NULL
         WHERE id = $1 AND state = 'reauthorization_required'"
    }
}

impl Store {
    /// Writes what a claim came to, if nothing newer is there.
    pub async fn record(&self, change: &GrantChange) -> Result<Recorded, StoreError> {
        let GrantChange { grant, account, fence, .. } = *change;
        match &change.outcome {
            Outcome::Refreshed { access_token, refresh_token, token_type, scopes, metadata, freshness } => {
                let scopes = scopes.as_ref().map(to_json).transpose()?;
                let metadata = if metadata.is_empty() { None } else { Some(to_json(metadata)?) };
                let (lifetime, assumed) = lifetime_columns(freshness.lifetime);
                let values = args![
                    grant,
                    account,
                    fence,
                    access_token,
                    refresh_token.as_ref(),
                    token_type.as_str(),
                    scopes.as_deref(),
                    metadata.as_deref(),
                    freshness.issued_at,
                    lifetime,
                    assumed,
                    freshness.due_at,
                ];
                self.record_tokens(change, values).await
            }
            Outcome::Verdict { state, due_at, retry_not_before, reason, committed_fence } => {
                let values = args![grant, account, fence, *committed_fence, state.as_str(), *due_at, *retry_not_before];
                if *state == GrantState::Dead {
                    return self.record_death(change, values, reason.as_deref()).await;
                }
                recorded(self.db.change(&VERDICT, values).await?.first())
            }
        }
    }

    async fn record_tokens(&self, change: &GrantChange, values: &[Value<'_>]) -> Result<Recorded, StoreError> {
        // The usual case is one statement. Otherwise something newer is there, or the grant was taken for ended.
        if change.announce.is_none() {
            let outcome = recorded(self.db.change(&REFRESHED, values).await?.first())?;
            if outcome != Recorded::Superseded {
                return Ok(outcome);
            }
        }
        let mut tx = self.db.begin().await?;
        let outcome = recorded(tx.all(&REVIVED, values).await?.first())?;
        // Not if it was linked again a moment ago: the account is another grant's then.
        let revived = outcome == Recorded::Stored(GrantState::Active);
        if revived && tx.execute(&ACCOUNT_RECOVERS, args![change.account]).await? == 1 {
            tell(&mut tx, change).await?;
        }
        announce(&mut tx, change, outcome).await?;
        tx.commit().await?;
        Ok(outcome)
    }

    async fn record_death(
        &self,
        change: &GrantChange,
        values: &[Value<'_>],
        reason: Option<&str>,
    ) -> Result<Recorded, StoreError> {
        let mut tx = self.db.begin().await?;
        let outcome = recorded(tx.all(&VERDICT, values).await?.first())?;
        if outcome == Recorded::Stored(GrantState::Dead)
            && tx.execute(&ACCOUNT_ENDS, args![change.account, reason]).await? == 1
        {
            tell(&mut tx, change).await?;
        }
        announce(&mut tx, change, outcome).await?;
        tx.commit().await?;
        Ok(outcome)
    }
}

async fn tell(tx: &mut Tx, change: &GrantChange) -> Result<(), StoreError> {
    match &change.event {
        Some(event) => events::insert(tx, event).await,
        None => Ok(()),
    }
}

async fn announce(tx: &mut Tx, change: &GrantChange, outcome: Recorded) -> Result<(), StoreError> {
    match &change.announce {
        Some(stale) if outcome != Recorded::Superseded => coherence::tell(tx, stale, change.at).await,
        _ => Ok(()),
    }
}

fn recorded(row: Option<&Row>) -> Result<Recorded, StoreError> {
    let Some(row) = row else { return Ok(Recorded::Superseded) };
    Ok(Recorded::Stored(row.of("grants", "", "id")?.read("state", GrantState::parse)?))
}
