//! Flows: each step is one compare-and-swap on the state before it.

use super::error::StoreError;
use super::events;
use super::lanes::Lane;
use super::request_ids::{self, Note};
use super::sql::{Cells, Row, args, statements, to_json};
use super::{BATCH, Store};
use crate::clock::Timestamp;
use crate::domain::event::Event;
use crate::domain::flow::{Flow, FlowFailure, FlowState, MOST_OPEN, Outcome};
use crate::domain::ids::{FlowId, ReplicaId};
use crate::domain::instance::InstanceKind;
use crate::domain::provider::TokenAnswer;
use crate::domain::redirect::RedirectUrl;
use crate::domain::secret::{AuthorizationCode, PkceVerifier};
use crate::vault::Sealed;

/// The steps that a flow can fail from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlowStep {
    /// The browser is at the provider.
    Started,
    /// The code is here.
    Returned,
    /// The code is being redeemed.
    Claimed,
    /// The provider's answer is parked.
    Exchanged,
}

/// Whether a flow was started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartFlow {
    /// It is stored.
    Started,
    /// Its user has [`MOST_OPEN`] open flows at the provider; the first of them ends then.
    TooMany(Timestamp),
    /// Its provider is not there any more.
    ProviderGone,
}

/// What redeeming a code takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClaimedFlow {
    /// The code, to be sent once.
    pub code: Sealed<AuthorizationCode>,
    /// The PKCE verifier, unless the provider refuses PKCE.
    pub verifier: Option<Sealed<PkceVerifier>>,
}

macro_rules! select {
    () => {
        "SELECT id, state, client_id, user_id, provider_id, redirect_url, redirect_uri, scopes, reauthorizes, params, account_id,
                account_created, grant_kept, failure, created_at, expires_at, ended_at, answer, claimed_at FROM flows "
    };
}

macro_rules! expired {
    () => {
        "ended_at IS NULL AND expires_at <= $1 AND state IN ('started', 'returned')"
    };
}

// By whoever asks, or by a replica that was not heard of for long.
macro_rules! abandoned {
    () => {
        "ended_at IS NULL AND state = 'claimed' AND claimed_at < $1 AND (claimed_by = $6
            OR NOT EXISTS (SELECT 1 FROM replicas r WHERE r.id = flows.claimed_by AND r.beat_at > $7))"
    };
}

statements! {
    // Until the transaction ends, so that no two count each other out. On SQLite BEGIN IMMEDIATE is the lock.
    TAKE_TURN {
        "SELECT 1 AS taken" [lite " WHERE $1 <> ''"]
        [pg " FROM (SELECT pg_advisory_xact_lock(hashtextextended(CAST($1 AS TEXT), 0))) AS turn"]
    }
    // Nothing is started at a provider that is being deleted.
    START {
        "INSERT INTO flows (id, state, client_id, user_id, provider_id, redirect_url, redirect_uri, scopes, state_hash,
                            pkce_verifier, created_at, expires_at, reauthorizes, params)
         SELECT $1, 'started', $2, $3, p.id, $5, $6, $7, $8, $9, $10, $11, $12, $14
         FROM providers p WHERE p.id = $4 AND p.deleted_at IS NULL AND (SELECT COUNT(*) FROM flows f
            WHERE f.user_id = $3 AND f.provider_id = $4 AND f.ended_at IS NULL AND f.state IN ('started', 'returned')
                AND f.expires_at > $10) < $13"
        [pg " FOR SHARE OF p"]
    }
    OPEN_OF_USER {
        "SELECT COUNT(*) AS flows, MIN(expires_at) AS first_end FROM flows
         WHERE user_id = $1 AND provider_id = $2 AND ended_at IS NULL AND state IN ('started', 'returned')
            AND expires_at > $3"
    }
    BY_ID { select!() "WHERE id = $1" }
    BY_STATE { select!() "WHERE state_hash = $1" }
    BY_TICKET { select!() "WHERE ticket_hash = $1" }
    RETURN {
        "UPDATE flows SET state = 'returned', code = $2, ticket_hash = $3, expires_at = $4
         WHERE id = $1 AND state = 'started' AND expires_at > $5"
    }
    FAIL {
        "UPDATE flows SET state = 'failed', failure = $3, ended_at = $4, code = NULL, pkce_verifier = NULL, answer = NULL
         WHERE id = $1 AND state = $2"
    }
    CLAIM {
        "UPDATE flows SET state = 'claimed', claimed_by = $2, claimed_at = $3
         WHERE id = $1 AND state = 'returned' AND expires_at > $3 RETURNING id, code, pkce_verifier"
    }
    // Once more is once: the answer to the first time may have been lost.
    PARK {
        "UPDATE flows SET state = 'exchanged', answer = $3, code = NULL, pkce_verifier = NULL
         WHERE id = $1 AND state IN ('claimed', 'exchanged') AND claimed_by = $2"
    }
    // The word that it was parked was lost, and it became an account since.
    BECAME { "SELECT id FROM flows WHERE id = $1 AND state = 'done' AND claimed_by = $2" }
    PARKED {
        "SELECT id FROM flows WHERE state = 'exchanged' AND ended_at IS NULL AND claimed_at < $1
         ORDER BY expires_at LIMIT $2"
    }
    EXPIRE {
        "UPDATE flows SET state = 'failed', failure = $3, ended_at = $1, code = NULL, pkce_verifier = NULL WHERE "
        expired!() " AND id IN (SELECT id FROM flows WHERE " expired!() " ORDER BY expires_at LIMIT $2)"
    }
    ABANDON {
        "UPDATE flows SET state = 'failed', failure = $3, ended_at = $4, code = NULL, pkce_verifier = NULL WHERE "
        abandoned!() " AND id IN (SELECT id FROM flows WHERE " abandoned!() " AND id NOT IN ("
        [lite "SELECT value FROM json_each($5)"] [pg "SELECT jsonb_array_elements_text(CAST($5 AS JSONB))"]
        ") ORDER BY expires_at LIMIT $2)"
    }
    DELETE { "DELETE FROM flows WHERE id IN (SELECT id FROM flows WHERE ended_at < $1 ORDER BY ended_at LIMIT $2)" }
}

impl FlowStep {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Started => "started",
            Self::Returned => "returned",
            Self::Claimed => "claimed",
            Self::Exchanged => "exchanged",
        }
    }
}

impl Store {
    /// Stores a flow that begins, with the note of its call, unless its user has too many open at the provider.
    pub async fn start_flow(
        &self,
        flow: &Flow,
        state_hash: &[u8; 32],
        verifier: Option<&Sealed<PkceVerifier>>,
        note: Option<&Note>,
    ) -> Result<StartFlow, StoreError> {
        let values = args![
            flow.id,
            flow.client,
            &flow.user,
            flow.provider,
            flow.redirect_url.as_ref().map(RedirectUrl::as_str),
            flow.redirect_uri.as_str(),
            to_json(&flow.scopes)?,
            state_hash,
            verifier,
            flow.created_at,
            flow.expires_at,
            flow.reauthorizes,
            MOST_OPEN,
            to_json(&flow.params)?,
        ];
        let mut tx = self.db.begin().await?;
        tx.execute(&TAKE_TURN, args![format!("{} {}", flow.provider, flow.user)]).await?;
        if tx.execute(&START, values).await? == 1 {
            request_ids::write(&mut tx, note, Some(flow)).await?;
            tx.commit().await?;
            return Ok(StartFlow::Started);
        }
        let row = tx.one(&OPEN_OF_USER, args![&flow.user, flow.provider, flow.created_at]).await?;
        let Some(row) = row else { return Ok(StartFlow::ProviderGone) };
        let (flows, first_end): (i64, Option<i64>) = (row.get("flows")?, row.get("first_end")?);
        Ok(match first_end.filter(|_| flows >= i64::from(MOST_OPEN)) {
            Some(end) => StartFlow::TooMany(Timestamp::from_millis(end)),
            None => StartFlow::ProviderGone,
        })
    }

    /// A flow by its id.
    pub async fn flow(&self, id: FlowId) -> Result<Option<Flow>, StoreError> {
        self.db.one(&BY_ID, args![id]).await?.map(|row| flow(&row)).transpose()
    }

    /// A flow by the hash of its `state` parameter.
    pub async fn flow_by_state(&self, state_hash: &[u8; 32]) -> Result<Option<Flow>, StoreError> {
        self.db.one(&BY_STATE, args![state_hash]).await?.map(|row| flow(&row)).transpose()
    }

    /// A flow by the hash of its ticket.
    pub async fn flow_by_ticket(&self, ticket_hash: &[u8; 32]) -> Result<Option<Flow>, StoreError> {
        self.db.one(&BY_TICKET, args![ticket_hash]).await?.map(|row| flow(&row)).transpose()
    }

    /// Started to returned, with the code and a ticket that lives until `expires_at`. False if it is in another state
    /// or too late.
    pub async fn return_flow(
        &self,
        id: FlowId,
        code: &Sealed<AuthorizationCode>,
        ticket_hash: &[u8; 32],
        expires_at: Timestamp,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        Ok(self.db.execute(&RETURN, args![id, code, ticket_hash, expires_at, now]).await? == 1)
    }

    /// `from` to failed; wipes what was sealed in it. False, and no event, if it is in another state.
    pub async fn fail_flow(
        &self,
        id: FlowId,
        from: FlowStep,
        failure: FlowFailure,
        event: Option<&Event>,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let mut tx = self.db.begin().await?;
        let values = args![id, from.as_str(), failure.as_str(), now];
        if tx.execute(&FAIL, values).await? == 0 {
            return Ok(false);
        }
        if let Some(event) = event {
            events::insert(&mut tx, event).await?;
        }
        tx.commit().await?;
        Ok(true)
    }

    /// Returned to claimed, while the ticket lives: `by` alone may now send the code, once.
    pub async fn claim_flow(
        &self,
        id: FlowId,
        by: ReplicaId,
        now: Timestamp,
    ) -> Result<Option<ClaimedFlow>, StoreError> {
        let rows = self.db.lane(Lane::Claims).change(&CLAIM, args![id, by, now]).await?;
        let Some(row) = rows.first() else { return Ok(None) };
        let cells = row.of("flows", "", "id")?;
        Ok(Some(ClaimedFlow { code: cells.sealed("code")?, verifier: cells.sealed_opt("pkce_verifier")? }))
    }

    /// Claimed to exchanged, with the provider's answer; the same again changes nothing. False if `by` does not hold the
    /// claim, or the flow has ended without this answer.
    pub async fn park_answer(
        &self,
        id: FlowId,
        by: ReplicaId,
        answer: &Sealed<TokenAnswer>,
    ) -> Result<bool, StoreError> {
        Ok(self.db.lane(Lane::Results).execute(&PARK, args![id, by, answer]).await? == 1
            || self.db.one(&BECAME, args![id, by]).await?.is_some())
    }

    /// A flow in state exchanged, with its parked answer and when its code was claimed.
    pub async fn parked_answer(
        &self,
        id: FlowId,
    ) -> Result<Option<(Flow, Sealed<TokenAnswer>, Timestamp)>, StoreError> {
        let Some(row) = self.db.one(&BY_ID, args![id]).await? else { return Ok(None) };
        let flow = flow(&row)?;
        if flow.state != FlowState::Exchanged {
            return Ok(None);
        }
        let cells = row.of("flows", "", "id")?;
        Ok(Some((flow, cells.sealed("answer")?, cells.time("claimed_at")?)))
    }

    /// Up to `limit` flows with a parked answer whose code was claimed before `claimed_before`, the oldest first.
    pub async fn parked_flows(&self, claimed_before: Timestamp, limit: u32) -> Result<Vec<FlowId>, StoreError> {
        let rows = self.db.all(&PARKED, args![claimed_before, limit]).await?;
        rows.iter().map(|row| row.of("flows", "", "id")?.parse("id")).collect()
    }

    /// Fails what was started or returned and ran out of time. Answers how many.
    pub async fn expire_flows(&self, now: Timestamp) -> Result<u64, StoreError> {
        self.in_batches(&EXPIRE, args![now, BATCH, FlowFailure::Expired.as_str()]).await
    }

    /// Fails what was claimed before `claimed_before` and never came to an answer: by the replica `by`, but for those in
    /// `here`, whose answer it has or may yet get; and by replicas that were not heard of after `heard_since`. Answers
    /// how many.
    pub async fn abandon_claimed_flows(
        &self,
        claimed_before: Timestamp,
        by: ReplicaId,
        here: &[FlowId],
        heard_since: Timestamp,
        now: Timestamp,
    ) -> Result<u64, StoreError> {
        let here = to_json(&here.iter().map(ToString::to_string).collect::<Vec<_>>())?;
        let failure = FlowFailure::OutcomeUnknown.as_str();
        self.in_batches(&ABANDON, args![claimed_before, BATCH, failure, now, here, by, heard_since]).await
    }

    /// Removes flows that ended before `ended_before`. Answers how many.
    pub async fn delete_flows(&self, ended_before: Timestamp) -> Result<u64, StoreError> {
        self.in_batches(&DELETE, args![ended_before, BATCH]).await
    }
}

fn flow(row: &Row) -> Result<Flow, StoreError> {
    let cells = row.of("flows", "", "id")?;
    Ok(Flow {
        id: cells.parse("id")?,
        state: state(&cells)?,
        client: cells.parse("client_id")?,
        user: cells.user("user_id")?,
        provider: cells.parse("provider_id")?,
        // Checked for its instance when the flow was started; development takes them all.
        redirect_url: cells
            .read_opt("redirect_url", |text| RedirectUrl::parse(text, InstanceKind::Development).ok())?,
        redirect_uri: cells.get("redirect_uri")?,
        scopes: cells.json("scopes")?,
        reauthorizes: cells.parse_opt("reauthorizes")?,
        params: cells.json("params")?,
        created_at: cells.time("created_at")?,
        expires_at: cells.time("expires_at")?,
        ended_at: cells.time_opt("ended_at")?,
    })
}

fn state(cells: &Cells<'_>) -> Result<FlowState, StoreError> {
    Ok(match cells.get::<String>("state")?.as_str() {
        "started" => FlowState::Started,
        "returned" => FlowState::Returned,
        "claimed" => FlowState::Claimed,
        "exchanged" => FlowState::Exchanged,
        "done" => FlowState::Done(Outcome {
            account: cells.parse("account_id")?,
            created: cells.get("account_created")?,
            kept: cells.get("grant_kept")?,
        }),
        "failed" => FlowState::Failed(cells.read("failure", FlowFailure::parse)?),
        _ => return Err(cells.corrupt("state")),
    })
}
