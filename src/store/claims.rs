//! Claims: who may redeem a grant's refresh token now. A claim raises the fence and takes a lease.

use super::Store;
use super::error::StoreError;
use super::grants::{grant, grant_columns};
use super::lanes::Lane;
use super::sql::{Row, args, statements};
use crate::clock::Timestamp;
use crate::domain::grant::Grant;
use crate::domain::ids::{GrantId, ProviderId, ReplicaId};
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

/// A grant that can be refreshed and that nobody is refreshing; `$1` is now.
macro_rules! claimable {
    () => {
        "is_current AND state IN ('active', 'suspect') AND refresh_token IS NOT NULL
         AND (lease_until IS NULL OR lease_until <= $1)"
    };
}

/// The second of these is what the index of due grants holds; the first two imply it.
macro_rules! due {
    () => {
        " AND due_at <= $1 AND ahead_until > $1 AND due_at < ahead_until "
    };
}

statements! {
    CLAIM {
        "UPDATE grants SET fence = fence + 1, lease_owner = $3, lease_until = $4, attempted_at = $1
         WHERE id = $2 AND access_generation = $5 AND fence = $6 AND " claimable!()
        " RETURNING " grant_columns!() ", grants.refresh_token AS g_refresh_token"
    }
    CLAIM_DUE {
        "WITH due AS MATERIALIZED (SELECT id FROM grants WHERE provider_id = $2 AND " claimable!() due!()
        "ORDER BY due_at LIMIT $5" [pg " FOR UPDATE SKIP LOCKED"] ")
         UPDATE grants SET fence = fence + 1, lease_owner = $3, lease_until = $4, attempted_at = $1
         FROM due WHERE grants.id = due.id
         RETURNING " grant_columns!() ", grants.refresh_token AS g_refresh_token"
    }
    PROVIDERS_DUE {
        "SELECT p.id FROM providers p WHERE p.deleted_at IS NULL AND EXISTS (
            SELECT 1 FROM grants WHERE provider_id = p.id AND " claimable!() due!() ") ORDER BY p.id"
    }
    // The fence stays raised: numbers are not used twice.
    RELEASE {
        "UPDATE grants SET lease_owner = NULL, lease_until = NULL, attempted_at = NULL
         WHERE id = $1 AND fence = $2 AND committed_fence < $2 AND lease_until IS NOT NULL"
    }
    VOID { "UPDATE grants SET lease_owner = NULL, lease_until = NULL WHERE lease_until IS NOT NULL" }
}

impl Store {
    /// Claims a grant that a caller judged by the access token of generation `judged` and the attempts up to `fence`.
    /// `None` if that is not the token any more, or somebody tried since, or holds a lease, or it cannot be refreshed:
    /// read it and judge again.
    pub async fn claim(
        &self,
        id: GrantId,
        judged: i64,
        fence: i64,
        by: ReplicaId,
        now: Timestamp,
        lease_until: Timestamp,
    ) -> Result<Option<Claim>, StoreError> {
        let rows = self.db.lane(Lane::Claims).change(&CLAIM, args![now, id, by, lease_until, judged, fence]).await?;
        rows.first().map(claim).transpose()
    }

    /// Claims up to `limit` of a provider's grants that are due and were asked for lately, the longest due first.
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

    /// The providers with a grant that [`Self::claim_due`] would claim.
    pub async fn providers_due(&self, now: Timestamp) -> Result<Vec<ProviderId>, StoreError> {
        let rows = self.db.all(&PROVIDERS_DUE, args![now]).await?;
        rows.iter().map(|row| row.of("providers", "", "id")?.parse("id")).collect()
    }

    /// Gives a claim back whose token was not sent. False if it is not this fence's any more.
    pub async fn release(&self, id: GrantId, fence: i64) -> Result<bool, StoreError> {
        Ok(self.db.lane(Lane::Claims).execute(&RELEASE, args![id, fence]).await? == 1)
    }

    /// Ends all leases: for a store of one process, which has just started and so knows their owner to be gone.
    /// Answers how many there were.
    pub async fn void_leases(&self) -> Result<u64, StoreError> {
        self.db.execute(&VOID, &[]).await
    }
}

fn claim(row: &Row) -> Result<Claim, StoreError> {
    let cells = row.of("grants", "g_", "id")?;
    Ok(Claim { grant: grant(row)?, refresh_token: cells.sealed("refresh_token")? })
}
