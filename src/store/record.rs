//! What a refresh came to, written over nothing newer.

use std::collections::BTreeMap;

use super::Store;
use super::coherence::{self, Stale};
use super::db::Tx;
use super::error::StoreError;
use super::events;
use super::grants::lifetime_columns;
use super::lanes::Lane;
use super::sql::{Row, Value, args, statements, to_json};
use crate::clock::Timestamp;
use crate::domain::event::Event;
use crate::domain::grant::{Freshness, GrantState, Lease};
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
    /// Set where a refresh perhaps brought other scopes: written if it did.
    pub scopes_changed: Option<Event>,
    /// What other replicas must drop, if the access token that they may hold is good for nothing any more.
    pub announce: Option<Stale>,
    /// When this came to be known.
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
        /// Active, suspect or dead. While the provider's verdicts are frozen, dead becomes suspect.
        state: GrantState,
        /// When the next attempt is due, unless the grant is dead; `None` if none is.
        due_at: Option<Timestamp>,
        /// Before this nobody causes an attempt, not even a caller who waits.
        retry_not_before: Option<Timestamp>,
        /// Why the account needs a new consent, if it does.
        reason: Option<String>,
        /// The committed fence that the claim saw.
        committed_fence: i64,
    },
    /// Whether a refresh token is spent is not known: with the lease's end the grant is in doubt. Nothing is written if
    /// the doubt is settled: an answer of the fence in doubt, or of a later one, was stored since.
    InDoubt {
        /// The latest claim whose request may have been acted on: this one, or one before it.
        fence: i64,
        /// Who made that claim, and until when it may still bring an answer.
        lease: Lease,
        /// When it was made.
        sent_at: Option<Timestamp>,
        /// The first claim since the latest stored answer whose request was sent and never answered, if that is another.
        doubted_fence: Option<i64>,
        /// When it is looked at next.
        due_at: Timestamp,
        /// Before this nobody causes an attempt, not even a caller who waits.
        retry_not_before: Timestamp,
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
            issued_at = $9, lifetime = $10, lifetime_assumed = $11, due_at = $12, keep_alive_at = $13,
            sweep_at = CASE WHEN CAST($12 AS BIGINT) < ahead_until THEN $12 ELSE $13 END,
            attempts = 0, retry_not_before = NULL, suspect_at = NULL, dead_at = NULL,
            doubted_fence = CASE WHEN fence = $3 OR lease_until IS NULL THEN NULL ELSE doubted_fence END,
            attempted_at = CASE WHEN fence = $3 THEN NULL ELSE attempted_at END,
            lease_owner = CASE WHEN fence = $3 THEN NULL ELSE lease_owner END,
            lease_until = CASE WHEN fence = $3 THEN NULL ELSE lease_until END,
            revoke_at = CASE WHEN state = 'ended' THEN CAST($14 AS BIGINT) ELSE revoke_at END,
            ending_at = CASE WHEN state = 'ended' THEN CAST($14 AS BIGINT) ELSE ending_at END,
            state = CASE WHEN state IN ('suspect', 'dead') THEN 'active' WHEN state = 'ended' THEN 'ending' ELSE state END
         WHERE id = $1 AND account_id = $2 AND committed_fence < $3 AND fence >= $3 "
    };
}

statements! {
    REFRESHED { write_tokens!() "AND state <> 'dead' RETURNING id, state" }
    SCOPES { "SELECT scopes FROM grants WHERE id = $1 AND account_id = $2" [pg " FOR UPDATE"] }
    // Its account comes back too, in the same transaction.
    REVIVED { write_tokens!() "RETURNING id, state" }
    // The same answer again: the word that it was stored was lost.
    STANDS { "SELECT id, state FROM grants WHERE id = $1 AND account_id = $2 AND committed_fence = $3" }
    // A suspect is asked about again even if nobody wants its token.
    VERDICT {
        "UPDATE grants SET attempts = attempts + 1, lease_owner = NULL, lease_until = NULL,
            due_at = CASE WHEN state IN ('active', 'suspect') THEN CAST($6 AS BIGINT) END,
            sweep_at = CASE WHEN state NOT IN ('active', 'suspect') THEN NULL
                WHEN $6 < ahead_until OR $5 = 'suspect' OR keep_alive_at < $6 THEN $6 ELSE keep_alive_at END,
            suspect_at = CASE WHEN $5 = 'suspect' THEN COALESCE(suspect_at, CAST($8 AS BIGINT)) END,
            retry_not_before = $7, state = CASE WHEN state IN ('active', 'suspect') THEN $5 ELSE state END
         WHERE id = $1 AND account_id = $2 AND fence = $3 AND committed_fence = $4
         RETURNING id, state"
    }
    DEATH {
        "UPDATE grants SET attempts = attempts + 1, lease_owner = NULL, lease_until = NULL, due_at = NULL, sweep_at = NULL,
            suspect_at = COALESCE(suspect_at, $5), dead_at = $5, retry_not_before = NULL, state = 'dead'
         WHERE id = $1 AND account_id = $2 AND fence = $3 AND committed_fence = $4 AND state IN ('active', 'suspect')
            AND NOT EXISTS (SELECT 1 FROM providers p WHERE p.id = grants.provider_id AND p.frozen_until > $5)
         RETURNING id, state"
    }
    // An answer came since, or a newer claim: still this claim is over, and was answered.
    SETTLED {
        "UPDATE grants SET lease_owner = NULL, lease_until = NULL, attempted_at = NULL, doubted_fence = NULL
         WHERE id = $1 AND account_id = $2 AND fence = $3 AND committed_fence > $4"
    }
    IN_DOUBT {
        "UPDATE grants SET attempts = attempts + 1, due_at = CAST($5 AS BIGINT), retry_not_before = $6,
            sweep_at = CASE WHEN sweep_at IS NOT NULL THEN CAST($5 AS BIGINT) END,
            lease_owner = $7, lease_until = $8, attempted_at = $9, doubted_fence = $10
         WHERE id = $1 AND account_id = $2 AND fence = $3 AND committed_fence < $4
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
        self.record_all(std::slice::from_ref(change)).await?.pop().unwrap_or(Ok(Recorded::Superseded))
    }

    /// [`Self::record`] for several changes in one transaction; one answer each, in their order. If a change cannot be
    /// stored, each is tried alone, so that it does no harm to the others.
    ///
    /// # Errors
    ///
    /// If the store is away: nothing was written, or its word of it was lost; recording again is harmless. A row that
    /// somebody else holds is no such error, but its change's alone.
    pub async fn record_all(&self, changes: &[GrantChange]) -> Result<Vec<Result<Recorded, StoreError>>, StoreError> {
        match self.record_together(changes, false).await {
            Ok(recorded) => Ok(recorded.into_iter().map(Ok).collect()),
            Err(error) if error.is_transient() && !matches!(error, StoreError::Busy(_)) => Err(error),
            Err(error) if changes.len() == 1 => Ok(vec![Err(error)]),
            Err(error) => {
                tracing::debug!(changes = changes.len(), %error, "a batch of results cannot be stored; storing them one by one");
                let mut recorded = Vec::with_capacity(changes.len());
                for change in changes {
                    let one = self.record_together(std::slice::from_ref(change), true).await;
                    recorded.push(one.map(|one| one.first().copied().unwrap_or(Recorded::Superseded)));
                }
                Ok(recorded)
            }
        }
    }

    /// `hurried`: many may be held by somebody, and those that are not must have their turn.
    async fn record_together(&self, changes: &[GrantChange], hurried: bool) -> Result<Vec<Recorded>, StoreError> {
        // Always in the order of their ids, so that two batches do not wait for each other.
        let mut order = (0..changes.len()).collect::<Vec<_>>();
        order.sort_by_key(|index| changes[*index].grant);
        let mut recorded = vec![Recorded::Superseded; changes.len()];
        let mut announced = Vec::new();
        let mut tx = self.db.lane(Lane::Results).begin().await?;
        if hurried {
            tx.hurry().await?;
        }
        for index in order {
            let change = &changes[index];
            recorded[index] = record(&mut tx, change).await?;
            if recorded[index] != Recorded::Superseded {
                announced.extend(change.announce.as_ref().map(|stale| (stale, change.at)));
            }
        }
        // After all of them: whoever announces makes others wait, and must not wait for a row of theirs any more.
        for (stale, at) in announced {
            coherence::tell(&mut tx, stale, at).await?;
        }
        tx.commit().await?;
        Ok(recorded)
    }
}

async fn record(tx: &mut Tx, change: &GrantChange) -> Result<Recorded, StoreError> {
    let GrantChange { grant, account, fence, at, .. } = *change;
    match &change.outcome {
        Outcome::Refreshed { access_token, refresh_token, token_type, scopes, metadata, freshness } => {
            let news = scopes_news(tx, change, scopes.as_ref()).await?;
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
                freshness.keep_alive_at,
                at,
            ];
            record_tokens(tx, change, values, news).await
        }
        Outcome::Verdict { state, due_at, retry_not_before, reason, committed_fence } => {
            if *state == GrantState::Dead {
                let values = args![grant, account, fence, *committed_fence, at];
                if recorded(tx.all(&DEATH, values).await?.first())? != Recorded::Superseded {
                    if tx.execute(&ACCOUNT_ENDS, args![account, reason.as_deref()]).await? == 1 {
                        tell(tx, change).await?;
                    }
                    return Ok(Recorded::Stored(GrantState::Dead));
                }
            }
            // While verdicts are frozen a death is one more suspicion.
            let kept = if *state == GrantState::Dead { GrantState::Suspect } else { *state };
            let values = args![grant, account, fence, *committed_fence, kept.as_str(), *due_at, *retry_not_before, at];
            let outcome = recorded(tx.all(&VERDICT, values).await?.first())?;
            if outcome == Recorded::Superseded {
                tx.execute(&SETTLED, args![grant, account, fence, *committed_fence]).await?;
            }
            Ok(outcome)
        }
        Outcome::InDoubt { fence: doubtful, lease, sent_at, doubted_fence, due_at, retry_not_before } => {
            let values = args![
                grant,
                account,
                fence,
                *doubtful,
                *due_at,
                *retry_not_before,
                lease.owner,
                lease.until,
                *sent_at,
                *doubted_fence,
            ];
            let outcome = recorded(tx.all(&IN_DOUBT, values).await?.first())?;
            if outcome == Recorded::Superseded {
                tx.execute(&SETTLED, args![grant, account, fence, *doubtful - 1]).await?;
            }
            Ok(outcome)
        }
    }
}

/// What is to be told of a refresh's scopes if its answer is stored.
async fn scopes_news<'a>(
    tx: &mut Tx,
    change: &'a GrantChange,
    scopes: Option<&Scopes>,
) -> Result<Option<&'a Event>, StoreError> {
    let Some((event, new)) = change.scopes_changed.as_ref().zip(scopes) else { return Ok(None) };
    let Some(row) = tx.one(&SCOPES, args![change.grant, change.account]).await? else { return Ok(None) };
    let scopes: String = row.get("scopes")?;
    let same = serde_json::from_str::<Scopes>(&scopes).is_ok_and(|old| old.same_as(new));
    Ok(Some(event).filter(|_| !same))
}

async fn record_tokens(
    tx: &mut Tx,
    change: &GrantChange,
    values: &[Value<'_>],
    news: Option<&Event>,
) -> Result<Recorded, StoreError> {
    // The usual case is one statement. Otherwise something newer is there, or this answer itself, or the grant was
    // taken for ended.
    let mut outcome = recorded(tx.all(&REFRESHED, values).await?.first())?;
    if outcome == Recorded::Superseded {
        outcome = recorded(tx.all(&REVIVED, values).await?.first())?;
        if outcome == Recorded::Superseded {
            return recorded(tx.all(&STANDS, args![change.grant, change.account, change.fence]).await?.first());
        }
        // Not if it was linked again a moment ago: the account is another grant's then.
        let revived = outcome == Recorded::Stored(GrantState::Active);
        if revived && tx.execute(&ACCOUNT_RECOVERS, args![change.account]).await? == 1 {
            tell(tx, change).await?;
        }
    }
    // Of an account's grant, not of one that is ending.
    if let Some(event) = news.filter(|_| matches!(outcome, Recorded::Stored(GrantState::Active))) {
        events::insert(tx, event).await?;
    }
    Ok(outcome)
}

async fn tell(tx: &mut Tx, change: &GrantChange) -> Result<(), StoreError> {
    match &change.event {
        Some(event) => events::insert(tx, event).await,
        None => Ok(()),
    }
}

fn recorded(row: Option<&Row>) -> Result<Recorded, StoreError> {
    let Some(row) = row else { return Ok(Recorded::Superseded) };
    Ok(Recorded::Stored(row.of("grants", "", "id")?.read("state", GrantState::parse)?))
}
