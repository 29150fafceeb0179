//! Claims: who may redeem a grant's refresh token now. A claim raises the fence and takes a lease.

use super::Store;
use super::error::StoreError;
use super::grants::{grant, grant_columns};
use super::lanes::Lane;
use super::sql::{Row, args, statements};
use crate::clock::Timestamp;
use crate::domain::doubt::Recovery;
use crate::domain::grant::{Grant, Lease};
use crate::domain::ids::{ProviderId, ReplicaId};
use crate::domain::policy;
use crate::domain::secret::RefreshToken;
use crate::vault::Sealed;

/// A grant that its claimer alone may refresh until the lease ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The grant as it is after the claim: its fence is the claim's.
    pub grant: Grant,
    /// What to redeem.
    pub refresh_token: Sealed<RefreshToken>,
}

/// A grant that can be refreshed.
macro_rules! refreshable {
    () => {
        "is_current AND state IN ('active', 'suspect') AND refresh_token IS NOT NULL "
    };
}

/// A grant in doubt: a claim's lease is over, or was set by a clock that was wrong, and its outcome is not known.
macro_rules! in_doubt {
    () => {
        concat!(refreshable!(), "AND (lease_until <= $1 OR lease_until > $2) ")
    };
}

pub(super) use {in_doubt, refreshable};

/// What a claim needs: the grant is as it was judged, down to its lease, which is over or was never taken, or was set by
/// a clock that was wrong.
macro_rules! as_judged {
    () => {
        "id = $2 AND access_generation = $5 AND fence = $6 AND lease_until IS NOT DISTINCT FROM $7
         AND (lease_until IS NULL OR lease_until <= $1 OR lease_until > $8) "
    };
}

/// Somebody asked for it lately, or the provider would forget it, or a suspicion is to be confirmed.
macro_rules! wanted {
    () => {
        "(ahead_until > $1 OR COALESCE(keep_alive_at <= $1, FALSE) OR state = 'suspect') "
    };
}

macro_rules! take {
    () => {
        "UPDATE grants SET fence = fence + 1, lease_owner = $3, lease_until = $4, attempted_at = $1 "
    };
}

macro_rules! claimed {
    () => {
        concat!(" RETURNING ", grant_columns!(), ", grants.refresh_token AS g_refresh_token")
    };
}

statements! {
    // A request that was never answered is remembered until an answer is stored.
    CLAIM {
        take!() ", doubted_fence = CASE WHEN lease_until IS NULL OR $9 THEN doubted_fence ELSE COALESCE(doubted_fence, fence) END
         WHERE " as_judged!() "AND " refreshable!() "AND NOT EXISTS (
            SELECT 1 FROM replicas r WHERE r.id = grants.lease_owner AND r.id <> $3 AND r.beat_at > $10 AND r.beat_at <= $8)" claimed!()
    }
    CLAIM_PROBE {
        take!() "WHERE " as_judged!() "AND is_current AND state IN ('active', 'suspect') RETURNING " grant_columns!()
    }
    RENEW {
        take!() "WHERE id = $2 AND fence = $5 AND committed_fence = $6 AND lease_owner = $3 AND lease_until > $1 AND " refreshable!() claimed!()
    }
    CLAIM_DUE {
        "WITH due AS MATERIALIZED (SELECT id FROM grants WHERE provider_id = $2 AND " refreshable!()
        "AND lease_until IS NULL AND sweep_at <= $1 AND " wanted!() "ORDER BY sweep_at LIMIT $5" [pg " FOR UPDATE SKIP LOCKED"] ") "
        take!() "FROM due WHERE grants.id = due.id" claimed!()
    }
    PROVIDERS_DUE {
        "SELECT p.id FROM providers p WHERE p.deleted_at IS NULL AND EXISTS (
            SELECT 1 FROM grants WHERE provider_id = p.id AND " refreshable!() "AND lease_until IS NULL AND sweep_at <= $1)
         ORDER BY p.id"
    }
    // What nobody has asked for since it was planned.
    RETIRE {
        "UPDATE grants SET sweep_at = keep_alive_at WHERE id IN (
            SELECT id FROM grants WHERE provider_id = $2 AND is_current AND sweep_at <= $1 AND lease_until IS NULL
                AND NOT " wanted!() "ORDER BY sweep_at LIMIT $3)
            AND lease_until IS NULL AND NOT " wanted!()
    }
    PROVIDERS_IN_DOUBT {
        "SELECT DISTINCT provider_id FROM grants WHERE " in_doubt!() "AND sweep_at <= $1 ORDER BY provider_id"
    }
    IN_DOUBT {
        "SELECT " grant_columns!() " FROM grants WHERE provider_id = $3 AND " in_doubt!() "AND sweep_at <= $1
         ORDER BY sweep_at LIMIT $4"
    }
    POSTPONE {
        "UPDATE grants SET due_at = $5, sweep_at = $5 WHERE id = $3 AND fence = $4 AND sweep_at <= $1 AND " in_doubt!()
    }
    // The fence stays raised: numbers are not used twice. After the lease's end too: nobody has claimed since, and what
    // was not sent needs no doubt.
    RELEASE {
        "UPDATE grants SET attempted_at = NULL, lease_owner = NULL, lease_until = NULL
         WHERE id = $1 AND fence = $2 AND committed_fence < $2 AND lease_owner = $3"
    }
    // Unless an answer of the fence in doubt, or of a later one, has settled the doubt since.
    RELEASE_RETRIED {
        "UPDATE grants SET attempted_at = CASE WHEN committed_fence < $4 THEN CAST($5 AS BIGINT) END,
            lease_owner = CASE WHEN committed_fence < $4 THEN $6 END,
            lease_until = CASE WHEN committed_fence < $4 THEN CAST($7 AS BIGINT) END,
            doubted_fence = CASE WHEN committed_fence < $4 THEN CAST($8 AS BIGINT) END
         WHERE id = $1 AND fence = $2 AND committed_fence < $2 AND lease_owner = $3"
    }
}

impl Store {
    /// Claims a grant for its refresh, as `judged`. `None` if it is not any more what was judged, or is in flight, or
    /// cannot be refreshed: read it and judge again. A grant in doubt is claimed like any other: judging it is the
    /// caller's part ([`crate::domain::doubt`]), and `recovery` what it rests on; unless its provider takes a refresh
    /// token again (`harmless`), the doubt is remembered.
    pub async fn claim(
        &self,
        judged: &Grant,
        recovery: Option<Recovery>,
        harmless: bool,
        by: ReplicaId,
        now: Timestamp,
        lease_until: Timestamp,
    ) -> Result<Option<Claim>, StoreError> {
        let (generation, fence, lease) =
            (judged.access_generation, judged.fence, judged.lease.map(|lease| lease.until));
        let silent_since = recovery.and_then(|recovery| recovery.sender_silent_since).unwrap_or(Timestamp::END);
        let latest = policy::latest_written(now);
        let values = args![now, judged.id, by, lease_until, generation, fence, lease, latest, harmless, silent_since];
        self.db.lane(Lane::Claims).change(&CLAIM, values).await?.first().map(claim).transpose()
    }

    /// Claims a grant, refreshable or not, so as to ask the provider whether its access token lives; otherwise as
    /// [`Self::claim`].
    pub async fn claim_for_probe(
        &self,
        judged: &Grant,
        by: ReplicaId,
        now: Timestamp,
        lease_until: Timestamp,
    ) -> Result<Option<Grant>, StoreError> {
        let (generation, fence, lease) =
            (judged.access_generation, judged.fence, judged.lease.map(|lease| lease.until));
        let latest = policy::latest_written(now);
        let values = args![now, judged.id, by, lease_until, generation, fence, lease, latest];
        self.db.lane(Lane::Claims).change(&CLAIM_PROBE, values).await?.first().map(grant).transpose()
    }

    /// Renews a claim that stands, for another request. `None` if it does not stand any more, or an answer was stored
    /// since.
    pub async fn renew_claim(
        &self,
        claimed: &Grant,
        by: ReplicaId,
        now: Timestamp,
        lease_until: Timestamp,
    ) -> Result<Option<Claim>, StoreError> {
        let Grant { id, fence, committed_fence, .. } = *claimed;
        let rows =
            self.db.lane(Lane::Claims).change(&RENEW, args![now, id, by, lease_until, fence, committed_fence]).await?;
        rows.first().map(claim).transpose()
    }

    /// Claims up to `limit` of a provider's grants that are to be swept, the longest due first. None that is in doubt.
    pub async fn claim_due(
        &self,
        provider: ProviderId,
        by: ReplicaId,
        limit: u32,
        now: Timestamp,
        lease_until: Timestamp,
    ) -> Result<Vec<Claim>, StoreError> {
        let rows = self.db.lane(Lane::Claims).change(&CLAIM_DUE, args![now, provider, by, lease_until, limit]).await?;
        let mut claims = rows.iter().map(claim).collect::<Result<Vec<_>, _>>()?;
        // RETURNING has no order.
        claims.sort_by_key(|claim| claim.grant.freshness.due_at);
        Ok(claims)
    }

    /// The providers with a grant that [`Self::claim_due`] would claim, or [`Self::retire_unwanted`] plan anew.
    pub async fn providers_due(&self, now: Timestamp) -> Result<Vec<ProviderId>, StoreError> {
        let rows = self.db.all(&PROVIDERS_DUE, args![now]).await?;
        rows.iter().map(|row| row.of("providers", "", "id")?.parse("id")).collect()
    }

    /// Plans up to `limit` of a provider's grants anew that nobody has asked for since they were planned: they are swept
    /// when the provider would forget them. Answers how many those are.
    pub async fn retire_unwanted(&self, provider: ProviderId, now: Timestamp, limit: u32) -> Result<u64, StoreError> {
        self.db.execute(&RETIRE, args![now, provider, limit]).await
    }

    /// The providers with a grant that [`Self::grants_in_doubt`] would answer.
    pub async fn providers_in_doubt(&self, now: Timestamp) -> Result<Vec<ProviderId>, StoreError> {
        let rows = self.db.all(&PROVIDERS_IN_DOUBT, args![now, policy::latest_written(now)]).await?;
        rows.iter().map(|row| row.of("grants", "", "provider_id")?.parse("provider_id")).collect()
    }

    /// Up to `limit` of a provider's grants to be swept that are in doubt: a claim's lease is over and its outcome is not
    /// known.
    pub async fn grants_in_doubt(
        &self,
        provider: ProviderId,
        now: Timestamp,
        limit: u32,
    ) -> Result<Vec<Grant>, StoreError> {
        self.db
            .all(&IN_DOUBT, args![now, policy::latest_written(now), provider, limit])
            .await?
            .iter()
            .map(grant)
            .collect()
    }

    /// Has a grant in doubt looked at again at `until`. False if it is not as it was.
    pub async fn postpone_doubt(&self, judged: &Grant, until: Timestamp, now: Timestamp) -> Result<bool, StoreError> {
        let values = args![now, policy::latest_written(now), judged.id, judged.fence, until];
        Ok(self.db.execute(&POSTPONE, values).await? == 1)
    }

    /// Gives a claim back whose token was not sent: a grant that was in doubt is in doubt again as it was `before`.
    /// False if it is not this fence's any more.
    pub async fn release(&self, claimed: &Grant, before: Option<&Grant>, by: ReplicaId) -> Result<bool, StoreError> {
        let (lane, id, fence) = (self.db.lane(Lane::Claims), claimed.id, claimed.fence);
        let doubt = before.and_then(|before| Some((before, before.lease?)));
        let released = match doubt {
            None => lane.execute(&RELEASE, args![id, fence, by]).await?,
            Some((before, Lease { owner, until })) => {
                let Grant { attempted_at, doubted_fence, .. } = *before;
                let values = args![id, fence, by, before.fence, attempted_at, owner, until, doubted_fence];
                lane.execute(&RELEASE_RETRIED, values).await?
            }
        };
        Ok(released == 1)
    }
}

fn claim(row: &Row) -> Result<Claim, StoreError> {
    let cells = row.of("grants", "g_", "id")?;
    Ok(Claim { grant: grant(row)?, refresh_token: cells.sealed("refresh_token")? })
}
