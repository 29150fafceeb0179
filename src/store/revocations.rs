//! Revocations: what is taken back at the provider when a grant has ended. A try is claimed by counting it, and its claim
//! ends by itself; the lease of a refresh that may still be under way is left alone.

use std::collections::BTreeMap;
use std::time::Duration;

use super::db::Tx;
use super::error::StoreError;
use super::events;
use super::lanes::Lane;
use super::sql::{Cells, Row, args, statements, to_json};
use super::{BATCH, Store};
use crate::clock::Timestamp;
use crate::domain::event::{Event, EventKind};
use crate::domain::flow::{FLOW_LIFE, FlowFailure};
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
    /// It will not be made: it would end a newer consent, or has waited for one for too long. It has ended, and this is
    /// told.
    Dropped(EventKind),
    /// Not now: somebody else is at it or was, a refresh is under way, or a consent that it would end.
    NotNow,
}

/// A revocation that is still to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pending {
    /// Where.
    pub provider: ProviderId,
    /// Until when a request may be under way that ends all that the person gave our client.
    pub until: Option<Timestamp>,
}

/// What stands in the way of a revocation that ends all that its person gave our client.
enum Way {
    /// Nothing.
    Clear,
    /// A consent that may be given at any moment.
    Awaited,
    /// This, for good.
    Closed(EventKind, &'static str),
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
const FLOW_AGAIN: Duration = Duration::from_secs(2);

/// After this it waits no longer for a person who has not consented yet: whoever begins flow after flow would keep it
/// for ever.
const FLOWS_SPARED: Duration = Duration::from_secs(2 * FLOW_LIFE.as_secs());

/// A try is due; one that lies further ahead than any is put off was written by a clock that was wrong.
macro_rules! due {
    () => {
        "state = 'ending' AND (revoke_at <= $1 OR revoke_at > $2)
         AND (lease_until IS NULL OR lease_until <= $1 OR lease_until > $3) "
    };
}

/// The providers at which the same client asks the same server as at a grant's: they share authorizations.
macro_rules! peers {
    () => {
        "(SELECT peer.id FROM providers peer JOIN providers own ON own.client_id = peer.client_id AND own.server = peer.server
          WHERE own.id = grants.provider_id)"
    };
}

/// Flows of a grant's user there that have not ended.
macro_rules! open_beside {
    () => {
        concat!("flows.user_id = grants.user_id AND flows.ended_at IS NULL AND flows.provider_id IN ", peers!())
    };
}

statements! {
    // By turns: one provider's that hang keep nobody else's waiting.
    DUE {
        "SELECT id, provider_id FROM (SELECT id, provider_id, revoke_at,
                ROW_NUMBER() OVER (PARTITION BY provider_id ORDER BY revoke_at, id) AS turn FROM grants WHERE " due!() ") due
         ORDER BY turn, revoke_at LIMIT $4"
    }
    OF_ACCOUNT { "SELECT id, provider_id FROM grants WHERE account_id = $1 AND revoke_at IS NOT NULL" }
    // Whoever begins a flow at one of these providers has begun it, or will see this claim.
    LOCK_PROVIDERS {
        "SELECT p.id FROM providers p JOIN providers own ON own.client_id = p.client_id AND own.server = p.server
         WHERE own.id = $1 ORDER BY p.id" [pg " FOR NO KEY UPDATE OF p"]
    }
    // Where it is not known whose account it was, it may be anybody's.
    LOOK {
        "SELECT grants.id, grants.ending_at, COALESCE(ending_reason = 'superseded', FALSE) AS superseded,
            EXISTS (SELECT 1 FROM external_accounts mine
                JOIN external_accounts other ON other.subject = mine.subject AND other.state <> 'unlinked'
                    AND (other.params = mine.params OR other.provider_id <> mine.provider_id)
                JOIN grants live ON live.account_id = other.id AND live.is_current AND live.state <> 'dead'
                WHERE mine.id = grants.account_id AND other.provider_id IN " peers!() ")
            OR EXISTS (SELECT 1 FROM external_accounts mine
                JOIN external_accounts other ON mine.subject = '' AND other.state <> 'unlinked'
                JOIN grants live ON live.account_id = other.id AND live.is_current AND live.state <> 'dead'
                WHERE mine.id = grants.account_id AND other.provider_id IN " peers!() ") AS in_use,
            EXISTS (SELECT 1 FROM flows WHERE " open_beside!() " AND (flows.expires_at > $2 OR flows.state NOT IN ('started', 'returned')))
                AS awaited,
            EXISTS (SELECT 1 FROM flows WHERE " open_beside!() " AND (flows.expires_at > $2 OR flows.state <> 'returned')
                AND flows.state <> 'started') AS consented
         FROM grants WHERE grants.id = $1 AND grants.state = 'ending'"
    }
    FAIL_STARTED {
        "UPDATE flows SET state = 'failed', failure = $3, ended_at = $2, pkce_verifier = NULL
         WHERE state = 'started' AND EXISTS (SELECT 1 FROM grants WHERE grants.id = $1 AND " open_beside!() ")"
    }
    // Of an identity, or of one that is not known; whoever looks has the lock that such a claim takes too.
    LOCK_PROVIDER { "SELECT id FROM providers WHERE id = $1" [pg " FOR SHARE"] }
    UNDER_WAY {
        "SELECT MAX(grants.revoking_until) AS revoking_until FROM grants
         JOIN external_accounts mine ON mine.id = grants.account_id
         WHERE grants.revoke_at IS NOT NULL AND grants.revoking_until > $4 AND grants.revoking_until <= $5
            AND (mine.subject = '' OR (mine.subject = $2 AND (mine.params = $3 OR mine.provider_id <> $1)))
            AND $1 IN " peers!()
    }
    CLAIM {
        "UPDATE grants SET revoke_attempts = revoke_attempts + 1, revoke_at = $5,
            revoking_until = CASE WHEN $6 THEN CAST($5 AS BIGINT) END
         WHERE id = $4 AND " due!()
        "RETURNING id, account_id, user_id, provider_id, access_token, access_generation, refresh_token, refresh_generation,
            params, revoke_attempts, committed_fence, ending_at, (lease_until IS NOT NULL OR doubted_fence IS NOT NULL) AS in_doubt"
    }
    // Whoever waits for nothing but the end of the claim has waited for it.
    RENEW {
        "UPDATE grants SET revoke_at = $4, revoking_until = CASE WHEN $5 THEN CAST($4 AS BIGINT) END
         WHERE id = $1 AND state = 'ending' AND revoke_attempts = $2 AND revoke_at > $3"
    }
    WAIT { "UPDATE grants SET revoke_at = $5 WHERE id = $4 AND " due!() }
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
    PENDING {
        "SELECT grants.id, grants.provider_id, revoking_until FROM grants
         WHERE revoke_at IS NOT NULL AND user_id = $1 AND $2 IN " peers!()
    }
    WAITING { "SELECT COUNT(*) AS grants, MIN(ending_at) AS oldest FROM grants WHERE revoke_at IS NOT NULL" }
    DELETE {
        "DELETE FROM grants WHERE id IN (
            SELECT id FROM grants WHERE state = 'ended' AND ending_at < $1 ORDER BY ending_at LIMIT $2)"
    }
}

impl Store {
    /// Up to `limit` grants whose revocation is to be tried, with their providers: by turns of each, the longest due first.
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
    /// instead, and an open flow of the user is waited for. That has an end: twice a flow's life after the grant's end
    /// flows that nobody has consented to fail instead, and after a day the revocation is given up. Nobody who begins a
    /// flow from then on misses the claim ([`Self::pending_revocations`]).
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
        match if whole { look(&mut tx, grant, provider, now).await? } else { Some(Way::Clear) } {
            None => return Ok(RevocationClaim::NotNow),
            Some(Way::Clear) => {}
            Some(Way::Awaited) => {
                tx.execute(&WAIT, args![at, put_off, lease, grant, now.plus(FLOW_AGAIN)]).await?;
                tx.commit().await?;
                return Ok(RevocationClaim::NotNow);
            }
            Some(Way::Closed(kind, reason)) => {
                let dropped = tx.all(&DROP, args![at, put_off, lease, grant]).await?;
                let Some(row) = dropped.first() else { return Ok(RevocationClaim::NotNow) };
                let event = event(&row.of("grants", "", "id")?, kind, now)?.because(reason);
                events::insert(&mut tx, &event).await?;
                tx.commit().await?;
                return Ok(RevocationClaim::Dropped(kind));
            }
        }
        let claimed = tx.all(&CLAIM, args![at, put_off, lease, grant, until, whole]).await?;
        let Some(row) = claimed.first() else { return Ok(RevocationClaim::NotNow) };
        let claim = revocation(row)?;
        tx.commit().await?;
        Ok(RevocationClaim::Claimed(Box::new(claim)))
    }

    /// Renews a claim that stands, for another request, which is as `whole` as the first. False if it does not stand any
    /// more, or if something is in its way by now.
    pub async fn renew_revocation(
        &self,
        claimed: &Revocation,
        whole: bool,
        now: Timestamp,
        until: Timestamp,
    ) -> Result<bool, StoreError> {
        let mut tx = self.db.lane(Lane::Claims).begin().await?;
        if whole && !matches!(look(&mut tx, claimed.grant, claimed.provider, now).await?, Some(Way::Clear)) {
            return Ok(false);
        }
        let renewed = tx.execute(&RENEW, args![claimed.grant, claimed.attempt, now, until, whole]).await? == 1;
        tx.commit().await?;
        Ok(renewed)
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

    /// A user's revocations that are still to be made where the same client asks the same server as at this provider.
    pub async fn pending_revocations(&self, user: &UserId, provider: ProviderId) -> Result<Vec<Pending>, StoreError> {
        let rows = self.db.all(&PENDING, args![user, provider]).await?;
        let pending = rows.iter().map(|row| {
            let cells = row.of("grants", "", "id")?;
            Ok(Pending { provider: cells.parse("provider_id")?, until: cells.time_opt("revoking_until")? })
        });
        pending.collect()
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

/// Until when a request may be under way that ends what a consent of this identity gave, at this provider or one that
/// shares its authorizations. No other begins before this transaction ends.
pub(super) async fn under_way(
    tx: &mut Tx,
    provider: ProviderId,
    (subject, params): (&str, &BTreeMap<String, String>),
    now: Timestamp,
) -> Result<Option<Timestamp>, StoreError> {
    tx.all(&LOCK_PROVIDER, args![provider]).await?;
    let latest = policy::latest(now, policy::REVOKE_LEASE);
    let Some(row) = tx.one(&UNDER_WAY, args![provider, subject, to_json(params)?, now, latest]).await? else {
        return Ok(None);
    };
    Ok(row.get::<Option<i64>>("revoking_until")?.map(Timestamp::from_millis))
}

/// What stands in the way of a grant's revocation; `None` if it is not to be revoked any more. What began before at one of
/// these providers is seen.
async fn look(tx: &mut Tx, grant: GrantId, provider: ProviderId, now: Timestamp) -> Result<Option<Way>, StoreError> {
    tx.all(&LOCK_PROVIDERS, args![provider]).await?;
    let Some(row) = tx.one(&LOOK, args![grant, now]).await? else { return Ok(None) };
    let ending_at = row.of("grants", "", "id")?.time("ending_at")?;
    let is = |name| row.get::<bool>(name);
    Ok(Some(if is("superseded")? {
        Way::Closed(EventKind::GrantNotRevoked, "superseded")
    } else if is("in_use")? {
        Way::Closed(EventKind::GrantNotRevoked, "in_use")
    } else if !is("awaited")? {
        Way::Clear
    } else if is("consented")? || now < ending_at.plus(FLOWS_SPARED) {
        let given_up = now >= ending_at.plus(policy::REVOKE_FOR);
        if given_up { Way::Closed(EventKind::GrantRevocationFailed, "flow_open") } else { Way::Awaited }
    } else {
        tx.execute(&FAIL_STARTED, args![grant, now, FlowFailure::Expired.as_str()]).await?;
        Way::Clear
    }))
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
