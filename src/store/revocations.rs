//! Revocations: what is taken back at the provider when a grant has ended. A try is claimed by counting it, and its claim
//! ends by itself; the lease of a refresh that may still be under way is left alone.

use std::collections::BTreeMap;

use super::error::StoreError;
use super::events;
use super::lanes::Lane;
use super::sql::{Cells, Row, args, statements};
use super::{BATCH, Store};
use crate::clock::Timestamp;
use crate::domain::event::{Event, EventKind};
use crate::domain::ids::{AccountId, GrantId, ProviderId};
use crate::domain::policy;
use crate::domain::secret::{AccessToken, RefreshToken};
use crate::domain::user::UserId;
use crate::vault::Sealed;

/// An ended grant whose claimer alone may have its tokens revoked for a while.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revocation {
    /// The grant.
    pub grant: GrantId,
    /// Its account.
    pub account: AccountId,
    /// That account's user.
    pub user: UserId,
    /// That account's provider.
    pub provider: ProviderId,
    /// Its newest access token.
    pub access_token: Sealed<AccessToken>,
    /// That one's generation.
    pub access_generation: i64,
    /// Its newest refresh token.
    pub refresh_token: Option<Sealed<RefreshToken>>,
    /// That one's generation.
    pub refresh_generation: Option<i64>,
    /// The per-user parts of the provider's URLs.
    pub params: BTreeMap<String, String>,
    /// A refresh was sent and its answer is not known: there may be newer tokens than these.
    pub in_doubt: bool,
    /// When it ended.
    pub ending_at: Timestamp,
    /// Which try this is, from 1.
    pub attempt: u32,
    committed_fence: i64,
}

/// What a claim of a revocation came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RevocationClaim {
    /// It is the claimer's.
    Claimed(Box<Revocation>),
    /// Nothing of it is to be revoked: it would end a newer consent. It has ended, and that is told.
    Dropped,
    /// Not now: somebody else is at it or was, a refresh is under way, or a consent that it would end.
    NotNow,
}

/// What a try of a revocation came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RevocationEnd<'a> {
    /// This is told, for this reason, and what is left of the tokens is erased.
    Told(EventKind, Option<&'a str>),
    /// It is tried again then.
    Again(Timestamp),
}

/// How long a revocation waits for a flow that is open, before it looks again.
const FLOW_AGAIN: std::time::Duration = std::time::Duration::from_secs(2);

/// A try is due; one that lies further ahead than any is put off was written by a clock that was wrong.
macro_rules! due {
    () => {
        "state = 'ending' AND (revoke_at <= $1 OR revoke_at > $2)
         AND (lease_until IS NULL OR lease_until <= $1 OR lease_until > $3) "
    };
}

statements! {
    DUE { "SELECT id, provider_id FROM grants WHERE " due!() "ORDER BY revoke_at LIMIT $4" }
    OF_ACCOUNT { "SELECT id, provider_id FROM grants WHERE account_id = $1 AND revoke_at IS NOT NULL" }
    // Whoever begins a flow at one of these providers has begun it, or will see this claim.
    LOCK_PROVIDERS {
        "SELECT id FROM providers WHERE client_id = (SELECT client_id FROM providers WHERE id = $1) ORDER BY id"
        [pg " FOR NO KEY UPDATE"]
    }
    LOOK {
        "SELECT grants.id, COALESCE(ending_reason = 'superseded', FALSE) AS superseded,
            EXISTS (SELECT 1 FROM external_accounts mine
                JOIN external_accounts other ON other.subject = mine.subject AND other.state <> 'unlinked'
                JOIN providers p ON p.id = other.provider_id
                JOIN grants live ON live.account_id = other.id AND live.is_current AND live.state <> 'dead'
                WHERE mine.id = grants.account_id
                    AND p.client_id = (SELECT client_id FROM providers WHERE id = grants.provider_id)) AS in_use,
            EXISTS (SELECT 1 FROM flows JOIN providers p ON p.id = flows.provider_id
                WHERE flows.user_id = grants.user_id AND flows.ended_at IS NULL
                    AND p.client_id = (SELECT client_id FROM providers WHERE id = grants.provider_id)) AS awaited
         FROM grants WHERE grants.id = $4 AND " due!()
    }
    CLAIM {
        "UPDATE grants SET revoke_attempts = revoke_attempts + 1, revoke_at = $5, revoking_until = $5 WHERE id = $4 AND " due!()
        "RETURNING id, account_id, user_id, provider_id, access_token, access_generation, refresh_token, refresh_generation,
            params, revoke_attempts, committed_fence, ending_at, (lease_until IS NOT NULL OR doubted_fence IS NOT NULL) AS in_doubt"
    }
    RENEW {
        "UPDATE grants SET revoke_at = $4, revoking_until = $4
         WHERE id = $1 AND state = 'ending' AND revoke_attempts = $2 AND revoking_until > $3"
    }
    WAIT { "UPDATE grants SET revoke_at = $2 WHERE id = $1 AND state = 'ending' AND revoke_at < $2" }
    AGAIN {
        "UPDATE grants SET revoke_at = $3, revoking_until = NULL
         WHERE id = $1 AND state = 'ending' AND revoke_attempts = $2"
    }
    // Not if a newer answer came meanwhile: that has to be taken back too.
    END {
        "UPDATE grants SET state = 'ended', access_token = NULL, refresh_token = NULL, refresh_generation = NULL,
            metadata = '{}', revoke_at = NULL, revoking_until = NULL, lease_owner = NULL, lease_until = NULL,
            attempted_at = NULL, doubted_fence = NULL, due_at = NULL, sweep_at = NULL, suspect_at = NULL, warn_at = NULL
         WHERE id = $1 AND state = 'ending' AND revoke_attempts = $2 AND committed_fence = $3"
    }
    DROP {
        "UPDATE grants SET state = 'ended', access_token = NULL, refresh_token = NULL, refresh_generation = NULL,
            metadata = '{}', revoke_at = NULL, revoking_until = NULL, due_at = NULL, sweep_at = NULL, suspect_at = NULL,
            warn_at = NULL
         WHERE id = $4 AND " due!() "RETURNING id, account_id, user_id, provider_id"
    }
    UNDER_WAY {
        "SELECT COUNT(*) AS grants FROM grants JOIN providers p ON p.id = grants.provider_id
         WHERE revoke_at IS NOT NULL AND revoking_until > $3 AND user_id = $1
            AND p.client_id = (SELECT client_id FROM providers WHERE id = $2)"
    }
    WAITING { "SELECT COUNT(*) AS grants, MIN(ending_at) AS oldest FROM grants WHERE revoke_at IS NOT NULL" }
    DELETE {
        "DELETE FROM grants WHERE id IN (
            SELECT id FROM grants WHERE state = 'ended' AND ending_at < $1 ORDER BY ending_at LIMIT $2)"
    }
}

impl Store {
    /// Up to `limit` grants whose revocation is to be tried, with their providers, the longest due first.
    pub async fn revocations_due(&self, now: Timestamp, limit: u32) -> Result<Vec<(GrantId, ProviderId)>, StoreError> {
        let [now, put_off, lease] = moments(now);
        self.db.all(&DUE, args![now, put_off, lease, limit]).await?.iter().map(named).collect()
    }

    /// The grants of an account that are to be revoked, with their provider.
    pub async fn revocations_of(&self, account: AccountId) -> Result<Vec<(GrantId, ProviderId)>, StoreError> {
        self.db.all(&OF_ACCOUNT, args![account]).await?.iter().map(named).collect()
    }

    /// Claims a grant's revocation until `until`, if it is due and no refresh is under way. With `whole` it would end all
    /// that the user gave to our client: a grant that was superseded, or whose identity has another live one, is dropped
    /// instead, and an open flow of the user is waited for. Nobody who begins one from then on misses the claim
    /// ([`Self::revocations_under_way`]).
    pub async fn claim_revocation(
        &self,
        grant: GrantId,
        provider: ProviderId,
        whole: bool,
        now: Timestamp,
        until: Timestamp,
    ) -> Result<RevocationClaim, StoreError> {
        let mut tx = self.db.lane(Lane::Claims).begin().await?;
        let [at, put_off, lease] = moments(now);
        if whole {
            tx.all(&LOCK_PROVIDERS, args![provider]).await?;
            let Some(row) = tx.one(&LOOK, args![at, put_off, lease, grant]).await? else {
                return Ok(RevocationClaim::NotNow);
            };
            let reason = if row.get("superseded")? { "superseded" } else { "in_use" };
            if reason == "superseded" || row.get("in_use")? {
                let dropped = tx.all(&DROP, args![at, put_off, lease, grant]).await?;
                let Some(row) = dropped.first() else { return Ok(RevocationClaim::NotNow) };
                let cells = row.of("grants", "", "id")?;
                let event = event(&cells, EventKind::GrantNotRevoked, now)?.because(reason);
                events::insert(&mut tx, &event).await?;
                tx.commit().await?;
                return Ok(RevocationClaim::Dropped);
            }
            if row.get("awaited")? {
                tx.execute(&WAIT, args![grant, now.plus(FLOW_AGAIN)]).await?;
                tx.commit().await?;
                return Ok(RevocationClaim::NotNow);
            }
        }
        let claimed = tx.all(&CLAIM, args![at, put_off, lease, grant, until]).await?;
        let Some(row) = claimed.first() else { return Ok(RevocationClaim::NotNow) };
        let claim = revocation(row)?;
        tx.commit().await?;
        Ok(RevocationClaim::Claimed(Box::new(claim)))
    }

    /// Renews a claim that stands, for another request. False if it does not stand any more.
    pub async fn renew_revocation(
        &self,
        claimed: &Revocation,
        now: Timestamp,
        until: Timestamp,
    ) -> Result<bool, StoreError> {
        let values = args![claimed.grant, claimed.attempt, now, until];
        Ok(self.db.lane(Lane::Claims).execute(&RENEW, values).await? == 1)
    }

    /// Ends a claimed try. False if it was not the claimer's any more; or if a newer token came meanwhile, which is then
    /// due at once.
    pub async fn end_revocation(
        &self,
        claimed: &Revocation,
        end: RevocationEnd<'_>,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let Revocation { grant, attempt, committed_fence, .. } = *claimed;
        let mut tx = self.db.lane(Lane::Results).begin().await?;
        let (kind, reason) = match end {
            RevocationEnd::Told(kind, reason) => (kind, reason),
            RevocationEnd::Again(at) => {
                let again = tx.execute(&AGAIN, args![grant, attempt, at]).await? == 1;
                tx.commit().await?;
                return Ok(again);
            }
        };
        let ended = tx.execute(&END, args![grant, attempt, committed_fence]).await? == 1;
        if ended {
            let event = Event::new(kind, now, claimed.user.clone(), claimed.provider);
            let event = event.account(claimed.account).grant(grant);
            let event = reason.map_or_else(|| event.clone(), |reason| event.clone().because(reason));
            events::insert(&mut tx, &event).await?;
        } else {
            tx.execute(&AGAIN, args![grant, attempt, now]).await?;
        }
        tx.commit().await?;
        Ok(ended)
    }

    /// How many of a user's revocations at the providers that know us by this one's client id may be under way.
    pub async fn revocations_under_way(
        &self,
        user: &UserId,
        provider: ProviderId,
        now: Timestamp,
    ) -> Result<u32, StoreError> {
        let row = self.db.one(&UNDER_WAY, args![user, provider, now]).await?;
        row.map_or(Ok(0), |row| count(&row))
    }

    /// How many revocations wait, and since when the oldest.
    pub async fn revocations_waiting(&self) -> Result<(u32, Option<Timestamp>), StoreError> {
        let Some(row) = self.db.one(&WAITING, &[]).await? else { return Ok((0, None)) };
        Ok((count(&row)?, row.get::<Option<i64>>("oldest")?.map(Timestamp::from_millis)))
    }

    /// Removes grants that ended before `before` and have nothing left to revoke. Answers how many.
    pub async fn delete_ended_grants(&self, before: Timestamp) -> Result<u64, StoreError> {
        self.in_batches(&DELETE, args![before, BATCH]).await
    }
}

/// Now; the latest that a try is put off to; the latest that a lease can run.
fn moments(now: Timestamp) -> [Timestamp; 3] {
    [now, policy::latest(now, policy::LONGEST_REVOKE_RETRY), policy::latest_written(now)]
}

fn named(row: &Row) -> Result<(GrantId, ProviderId), StoreError> {
    let cells = row.of("grants", "", "id")?;
    Ok((cells.parse("id")?, cells.parse("provider_id")?))
}

fn count(row: &Row) -> Result<u32, StoreError> {
    Ok(u32::try_from(row.get::<i64>("grants")?).unwrap_or(u32::MAX))
}

fn event(cells: &Cells<'_>, kind: EventKind, now: Timestamp) -> Result<Event, StoreError> {
    let event = Event::new(kind, now, cells.user("user_id")?, cells.parse("provider_id")?);
    Ok(event.account(cells.parse("account_id")?).grant(cells.parse("id")?))
}

fn revocation(row: &Row) -> Result<Revocation, StoreError> {
    let cells = row.of("grants", "", "id")?;
    Ok(Revocation {
        grant: cells.parse("id")?,
        account: cells.parse("account_id")?,
        user: cells.user("user_id")?,
        provider: cells.parse("provider_id")?,
        access_token: cells.sealed("access_token")?,
        access_generation: cells.get("access_generation")?,
        refresh_token: cells.sealed_opt("refresh_token")?,
        refresh_generation: cells.get("refresh_generation")?,
        params: cells.json("params")?,
        in_doubt: cells.get("in_doubt")?,
        ending_at: cells.time("ending_at")?,
        attempt: cells.count("revoke_attempts")?,
        committed_fence: cells.get("committed_fence")?,
    })
}
