//! Moves: changes of several tables that stand or fall together. Grants are locked before accounts, everywhere, so
//! that two moves cannot wait for each other.

use std::collections::BTreeMap;

use super::Store;
use super::coherence::{self, Stale};
use super::db::Tx;
use super::error::StoreError;
use super::events;
use super::grants::lifetime_columns;
use super::sql::{args, statements, to_json};
use crate::clock::Timestamp;
use crate::domain::event::Event;
use crate::domain::grant::Freshness;
use crate::domain::ids::{AccountId, FlowId, GrantId, ProviderId};
use crate::domain::provider::Profile;
use crate::domain::scopes::Scopes;
use crate::domain::secret::{AccessToken, RefreshToken};
use crate::domain::user::UserId;
use crate::vault::Sealed;

/// The end of a flow: an account with a new current grant.
#[derive(Clone, Debug)]
pub struct Deposit {
    /// The flow, whose answer is parked.
    pub flow: FlowId,
    /// The account: a new id, or the one that the user has.
    pub account: AccountId,
    /// Whether the user has it already.
    pub existing: bool,
    /// The user.
    pub user: UserId,
    /// The provider.
    pub provider: ProviderId,
    /// The provider's own id of the account.
    pub subject: String,
    /// Who the account belongs to.
    pub profile: Sealed<Profile>,
    /// What the consent gave.
    pub grant: NewGrant,
    /// What to tell.
    pub events: Vec<Event>,
    /// When.
    pub now: Timestamp,
}

/// A grant to store as its account's current one. Its tokens are sealed under generation 0.
#[derive(Clone, Debug)]
pub struct NewGrant {
    /// Its id.
    pub id: GrantId,
    /// The access token.
    pub access_token: Sealed<AccessToken>,
    /// The refresh token, if one came.
    pub refresh_token: Option<Sealed<RefreshToken>>,
    /// How the access token is sent.
    pub token_type: String,
    /// What was granted.
    pub scopes: Scopes,
    /// What was asked for.
    pub requested_scopes: Scopes,
    /// What an API call needs besides the token.
    pub metadata: BTreeMap<String, String>,
    /// How fresh the access token is.
    pub freshness: Freshness,
    /// Until when it is refreshed ahead of being asked for.
    pub ahead_until: Timestamp,
    /// When the consent runs out by itself, if the provider does that.
    pub consent_ends_at: Option<Timestamp>,
    /// When to say so ahead.
    pub warn_at: Option<Timestamp>,
}

/// What a deposit came to. But for [`Deposited::Done`], nothing was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deposited {
    /// The account stands.
    Done,
    /// Whether the user has the account is not as assumed any more: look again.
    Changed,
    /// Another user has it.
    LinkedToAnotherUser,
    /// The flow has no parked answer any more: somebody else finished or failed it.
    FlowGone,
}

/// How often an unlinking begins anew because the account was linked again in between.
const UNLINK_TRIES: usize = 10;

statements! {
    END_FLOW {
        "UPDATE flows SET state = 'done', account_id = $2, account_created = $3, ended_at = $4, code = NULL,
                          pkce_verifier = NULL, answer = NULL
         WHERE id = $1 AND state = 'exchanged' AND user_id = $5 AND provider_id = $6"
    }
    CREATE_USER {
        "INSERT INTO users (id, created_at) VALUES ($1, $2)
         ON CONFLICT (id) DO UPDATE SET created_at = EXCLUDED.created_at, deleted_at = NULL
         WHERE users.deleted_at IS NOT NULL"
    }
    CREATE_ACCOUNT {
        "INSERT INTO external_accounts (id, user_id, provider_id, subject, profile, state, is_default, created_at)
         VALUES ($1, $2, $3, $4, $5, 'active', FALSE, $6) ON CONFLICT DO NOTHING"
    }
    OWNER {
        "SELECT id, user_id FROM external_accounts WHERE provider_id = $1 AND subject = $2 AND state <> 'unlinked'"
    }
    RELINK {
        "UPDATE external_accounts SET state = 'active', state_reason = NULL, profile = $5
         WHERE id = $1 AND user_id = $2 AND provider_id = $3 AND subject = $4 AND state <> 'unlinked'"
    }
    CREATE_GRANT {
        "INSERT INTO grants (id, account_id, user_id, provider_id, state, is_current, access_token, access_generation,
            refresh_token, refresh_generation, token_type, scopes, requested_scopes, metadata, issued_at, lifetime,
            lifetime_assumed, due_at, ahead_until, keep_alive_at, sweep_at, consent_ends_at, warn_at, attempts, fence,
            committed_fence, created_at)
         VALUES ($1, $2, $3, $4, 'active', TRUE, $5, 0, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $18,
            CASE WHEN CAST($15 AS BIGINT) < CAST($16 AS BIGINT) THEN $15 ELSE $18 END, $19, $20, 0, 0, 0, $17)"
    }
    // The lease stays: an answer on its way is still stored, for the revocation.
    END_CURRENT_GRANT {
        "UPDATE grants SET state = 'ending', is_current = FALSE, ending_at = $2, ending_reason = $3, revoke_at = $2
         WHERE account_id = $1 AND is_current"
    }
    CURRENT_GRANT { "SELECT id FROM grants WHERE account_id = $1 AND is_current" }
    UNLINK {
        "UPDATE external_accounts SET state = 'unlinked', state_reason = NULL, is_default = FALSE, profile = NULL, unlinked_at = $2
         WHERE id = $1 AND state <> 'unlinked'"
    }
    QUARANTINE_GRANT {
        "UPDATE grants SET state = 'quarantined'
         WHERE id = $1 AND account_id = $2 AND is_current AND state IN ('active', 'suspect')"
    }
    QUARANTINE_ACCOUNT {
        "UPDATE external_accounts SET state = 'quarantined', state_reason = $2 WHERE id = $1 AND state <> 'unlinked'"
    }
}

impl Store {
    /// Ends a flow with its parked answer: the account stands with the new grant, an older one is `ending`, the
    /// events are written. All of it or nothing.
    pub async fn deposit(&self, deposit: &Deposit) -> Result<Deposited, StoreError> {
        let mut tx = self.db.begin().await?;
        let Deposit { flow, account, existing, user, provider, now, .. } = deposit;
        let values = args![*flow, *account, !existing, *now, user, *provider];
        if tx.execute(&END_FLOW, values).await? == 0 {
            return Ok(Deposited::FlowGone);
        }
        let placed = if *existing { relink(&mut tx, deposit).await? } else { create(&mut tx, deposit).await? };
        if placed != Deposited::Done {
            return Ok(placed);
        }
        create_grant(&mut tx, deposit).await?;
        for event in &deposit.events {
            events::insert(&mut tx, event).await?;
        }
        // Also for a new account: with a second one there is a choice to make.
        let stale = Stale::Account { provider: *provider, user: user.clone() };
        coherence::tell(&mut tx, &stale, *now).await?;
        tx.commit().await?;
        Ok(Deposited::Done)
    }

    /// Unlinks an account; its current grant is `ending`. False, and no event, if it was already, or is not there.
    pub async fn unlink(&self, account: AccountId, event: &Event, now: Timestamp) -> Result<bool, StoreError> {
        for _ in 0..UNLINK_TRIES {
            if let Some(unlinked) = self.try_to_unlink(account, event, now).await? {
                return Ok(unlinked);
            }
        }
        Err(StoreError::Unavailable("the account is linked again and again while it is being unlinked".to_owned()))
    }

    /// `None`, and nothing written, if the account was linked again meanwhile.
    async fn try_to_unlink(
        &self,
        account: AccountId,
        event: &Event,
        now: Timestamp,
    ) -> Result<Option<bool>, StoreError> {
        let mut tx = self.db.begin().await?;
        end_current_grant(&mut tx, account, now).await?;
        if mark_unlinked(&mut tx, account, now).await? == 0 {
            return Ok(Some(false));
        }
        // On PostgreSQL the first statement may have waited for somebody who linked the account again, and then did not
        // see their grant. From here on the account's lock keeps others from making one; a grant must not be locked
        // after its account, so this begins anew.
        if tx.one(&CURRENT_GRANT, args![account]).await?.is_some() {
            return Ok(None);
        }
        events::insert(&mut tx, event).await?;
        coherence::tell(&mut tx, &Stale::of(event), now).await?;
        tx.commit().await?;
        Ok(Some(true))
    }

    /// Takes a grant that does not open out of use, and its account. Nothing is lost: the cells stay. False, and no
    /// event, if it is not current, or not active or suspect, any more.
    pub async fn quarantine(&self, grant: GrantId, account: AccountId, event: &Event) -> Result<bool, StoreError> {
        let mut tx = self.db.begin().await?;
        if tx.execute(&QUARANTINE_GRANT, args![grant, account]).await? == 0 {
            return Ok(false);
        }
        tx.execute(&QUARANTINE_ACCOUNT, args![account, event.reason.as_deref()]).await?;
        events::insert(&mut tx, event).await?;
        coherence::tell(&mut tx, &Stale::of(event), event.at).await?;
        tx.commit().await?;
        Ok(true)
    }
}

/// The first step of an unlink: the account's grant, if it has one, is `ending`.
pub(super) async fn end_current_grant(tx: &mut Tx, account: AccountId, now: Timestamp) -> Result<(), StoreError> {
    tx.execute(&END_CURRENT_GRANT, args![account, now, "unlinked"]).await.map(drop)
}

/// The second: nothing is known of it any more but its ids and times. Answers how many accounts these were, 0 or 1.
pub(super) async fn mark_unlinked(tx: &mut Tx, account: AccountId, now: Timestamp) -> Result<u64, StoreError> {
    tx.execute(&UNLINK, args![account, now]).await
}

async fn create(tx: &mut Tx, deposit: &Deposit) -> Result<Deposited, StoreError> {
    let Deposit { account, user, provider, subject, profile, now, .. } = deposit;
    tx.execute(&CREATE_USER, args![user, *now]).await?;
    let values = args![*account, user, *provider, subject.as_str(), profile, *now];
    if tx.execute(&CREATE_ACCOUNT, values).await? == 1 {
        return Ok(Deposited::Done);
    }
    let Some(row) = tx.one(&OWNER, args![*provider, subject.as_str()]).await? else { return Ok(Deposited::Changed) };
    let owner = row.of("external_accounts", "", "id")?.user("user_id")?;
    Ok(if owner == *user { Deposited::Changed } else { Deposited::LinkedToAnotherUser })
}

async fn relink(tx: &mut Tx, deposit: &Deposit) -> Result<Deposited, StoreError> {
    let Deposit { account, user, provider, subject, profile, now, .. } = deposit;
    let ended = tx.execute(&END_CURRENT_GRANT, args![*account, *now, "superseded"]).await?;
    let relinked = tx.execute(&RELINK, args![*account, user, *provider, subject.as_str(), profile]).await?;
    Ok(if (ended, relinked) == (1, 1) { Deposited::Done } else { Deposited::Changed })
}

async fn create_grant(tx: &mut Tx, deposit: &Deposit) -> Result<(), StoreError> {
    let grant = &deposit.grant;
    let (lifetime, assumed) = lifetime_columns(grant.freshness.lifetime);
    let values = args![
        grant.id,
        deposit.account,
        &deposit.user,
        deposit.provider,
        &grant.access_token,
        grant.refresh_token.as_ref(),
        grant.refresh_token.as_ref().map(|_| 0),
        grant.token_type.as_str(),
        to_json(&grant.scopes)?,
        to_json(&grant.requested_scopes)?,
        to_json(&grant.metadata)?,
        grant.freshness.issued_at,
        lifetime,
        assumed,
        grant.freshness.due_at,
        grant.ahead_until,
        deposit.now,
        grant.freshness.keep_alive_at,
        grant.consent_ends_at,
        grant.warn_at,
    ];
    tx.execute(&CREATE_GRANT, values).await.map(drop)
}
