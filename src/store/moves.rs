//! Moves: changes of several tables that stand or fall together. Grants are locked before accounts, everywhere, so
//! that two moves cannot wait for each other.

use std::collections::BTreeMap;

use super::Store;
use super::coherence::{self, Stale};
use super::db::Tx;
use super::error::StoreError;
use super::events;
use super::grants::{freshness, lifetime_columns};
use super::sql::{args, statements, to_json};
use crate::clock::Timestamp;
use crate::domain::consent::{self, Worth};
use crate::domain::event::Event;
use crate::domain::flow::FlowFailure;
use crate::domain::grant::{Freshness, GrantState};
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
    /// Set: no account gets this grant and the flow fails for this; the grant is only kept to be revoked, with
    /// `account`, which is made as an unlinked one if it is not `existing`.
    pub astray: Option<FlowFailure>,
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
    /// What to tell instead if the account keeps the grant that it has.
    pub kept: Event,
    /// When.
    pub now: Timestamp,
}

/// A grant to store, normally as its account's current one. Its tokens are sealed under generation 0.
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
    /// The per-user parts of the provider's URLs.
    pub params: BTreeMap<String, String>,
    /// How fresh the access token is.
    pub freshness: Freshness,
    /// Until when it is refreshed ahead of being asked for.
    pub ahead_until: Timestamp,
    /// When to say that the consent will soon run out by itself, if the provider does that.
    pub warn_at: Option<Timestamp>,
}

/// What a deposit came to. But for [`Deposited::Done`], nothing was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deposited {
    /// The account stands with the new grant; or, if it is astray, that is kept to be revoked and the flow has failed.
    Done,
    /// The account stands with the grant that it had, which is the better one; the new one is to be revoked.
    Kept,
    /// Whether the user has the account is not as assumed any more: look again.
    Changed,
    /// Another user has it.
    LinkedToAnotherUser,
    /// The flow has no parked answer any more: somebody else finished or failed it.
    FlowGone,
}

/// Why a grant is ending.
#[derive(Clone, Copy)]
enum Ending {
    /// A newer one took its place.
    Superseded,
    /// Its account was unlinked.
    Unlinked,
    /// The one that its account had is better.
    Outdone,
    /// It is another account's than the one to reauthorize.
    Mismatch,
}

/// How often an unlinking begins anew because the account was linked again in between.
const UNLINK_TRIES: usize = 10;

statements! {
    END_FLOW {
        "UPDATE flows SET state = 'done', account_id = $2, account_created = $3, grant_kept = FALSE, ended_at = $4,
                          code = NULL, pkce_verifier = NULL, answer = NULL
         WHERE id = $1 AND state = 'exchanged' AND user_id = $5 AND provider_id = $6"
    }
    GRANT_KEPT { "UPDATE flows SET grant_kept = TRUE WHERE id = $1" }
    FAIL_FLOW {
        "UPDATE flows SET state = 'failed', failure = $2, ended_at = $3, code = NULL, pkce_verifier = NULL, answer = NULL
         WHERE id = $1 AND state = 'exchanged' AND user_id = $4 AND provider_id = $5"
    }
    CREATE_USER {
        "INSERT INTO users (id, created_at) VALUES ($1, $2)
         ON CONFLICT (id) DO UPDATE SET created_at = EXCLUDED.created_at, deleted_at = NULL
         WHERE users.deleted_at IS NOT NULL"
    }
    // A user without an account is none.
    NAME_USER { "INSERT INTO users (id, created_at, deleted_at) VALUES ($1, $2, $2) ON CONFLICT DO NOTHING" }
    CREATE_ACCOUNT {
        "INSERT INTO external_accounts (id, user_id, provider_id, subject, profile, state, is_default, created_at,
                                        scope_history)
         VALUES ($1, $2, $3, $4, $5, 'active', FALSE, $6, $7) ON CONFLICT DO NOTHING"
    }
    CREATE_UNLINKED {
        "INSERT INTO external_accounts (id, user_id, provider_id, subject, state, is_default, created_at, scope_history,
                                        unlinked_at)
         VALUES ($1, $2, $3, $4, 'unlinked', FALSE, $5, '[]', $5)"
    }
    OWNER {
        "SELECT id, user_id FROM external_accounts WHERE provider_id = $1 AND subject = $2 AND state <> 'unlinked'"
    }
    RELINK {
        "UPDATE external_accounts SET state = 'active', state_reason = NULL, profile = $5, scope_history = $6
         WHERE id = $1 AND user_id = $2 AND provider_id = $3 AND subject = $4 AND state <> 'unlinked'"
    }
    CREATE_GRANT {
        "INSERT INTO grants (id, account_id, user_id, provider_id, state, is_current, access_token, access_generation,
            refresh_token, refresh_generation, token_type, scopes, requested_scopes, metadata, issued_at, lifetime,
            lifetime_assumed, due_at, ahead_until, keep_alive_at, sweep_at, warn_at, attempts, fence,
            committed_fence, created_at, ending_reason, ending_at, revoke_at, params)
         VALUES ($1, $2, $3, $4, CASE WHEN CAST($20 AS TEXT) IS NULL THEN 'active' ELSE 'ending' END,
            CAST($20 AS TEXT) IS NULL, $5, 0, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $18,
            CASE WHEN CAST($15 AS BIGINT) < CAST($16 AS BIGINT) THEN $15 ELSE $18 END, $19, 0, 0, 0, $17, $20,
            CASE WHEN CAST($20 AS TEXT) IS NOT NULL THEN CAST($17 AS BIGINT) END,
            CASE WHEN CAST($20 AS TEXT) IS NOT NULL THEN CAST($17 AS BIGINT) END, $21)"
    }
    // The lock keeps others from linking the account again, and from ending the grant.
    CURRENT {
        "SELECT grants.id, grants.state, grants.scopes, grants.issued_at, grants.lifetime, grants.lifetime_assumed,
            grants.due_at, grants.keep_alive_at, grants.refresh_generation, a.scope_history
         FROM grants JOIN external_accounts a ON a.id = grants.account_id
         WHERE grants.account_id = $1 AND grants.is_current" [pg " FOR UPDATE OF grants"]
    }
    // The lease stays: an answer on its way is still stored, for the revocation.
    END_CURRENT_GRANT {
        "UPDATE grants SET state = 'ending', is_current = FALSE, ending_at = $2, ending_reason = $3, revoke_at = $2
         WHERE account_id = $1 AND is_current"
    }
    CURRENT_GRANT { "SELECT id FROM grants WHERE account_id = $1 AND is_current" }
    UNLINK {
        "UPDATE external_accounts SET state = 'unlinked', state_reason = NULL, is_default = FALSE, profile = NULL,
            label = NULL, scope_history = '[]', unlinked_at = $2
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

impl Ending {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Superseded => "superseded",
            Self::Unlinked => "unlinked",
            Self::Outdone => "outdone",
            Self::Mismatch => "mismatch",
        }
    }
}

impl Store {
    /// Ends a flow with its parked answer: the account stands with the better of the new grant and the one it had, the
    /// other is `ending`, the events are written. All of it or nothing.
    pub async fn deposit(&self, deposit: &Deposit) -> Result<Deposited, StoreError> {
        if let Some(failure) = deposit.astray {
            return self.put_away(deposit, failure).await;
        }
        let mut tx = self.db.begin().await?;
        let Deposit { flow, account, existing, user, provider, now, .. } = deposit;
        let values = args![*flow, *account, !existing, *now, user, *provider];
        if tx.execute(&END_FLOW, values).await? == 0 {
            return Ok(Deposited::FlowGone);
        }
        let placed = if *existing { relink(&mut tx, deposit).await? } else { create(&mut tx, deposit).await? };
        let kept = match placed {
            Deposited::Done => false,
            Deposited::Kept => true,
            Deposited::Changed | Deposited::LinkedToAnotherUser | Deposited::FlowGone => return Ok(placed),
        };
        create_grant(&mut tx, deposit, kept.then_some(Ending::Outdone)).await?;
        if kept {
            tx.execute(&GRANT_KEPT, args![*flow]).await?;
            events::insert(&mut tx, &deposit.kept).await?;
        } else {
            for event in &deposit.events {
                events::insert(&mut tx, event).await?;
            }
            // Also for a new account: with a second one there is a choice to make.
            let stale = Stale::Account { provider: *provider, user: user.clone() };
            coherence::tell(&mut tx, &stale, *now).await?;
        }
        tx.commit().await?;
        Ok(placed)
    }

    /// Fails a flow whose grant no account may have, and keeps the grant to be revoked.
    async fn put_away(&self, deposit: &Deposit, failure: FlowFailure) -> Result<Deposited, StoreError> {
        let Deposit { flow, account, existing, user, provider, subject, now, .. } = deposit;
        let mut tx = self.db.begin().await?;
        if tx.execute(&FAIL_FLOW, args![*flow, failure.as_str(), *now, user, *provider]).await? == 0 {
            return Ok(Deposited::FlowGone);
        }
        if !existing {
            create_unlinked(&mut tx, *account, user, *provider, subject, *now).await?;
        }
        let ending = if failure == FlowFailure::AccountUnlinked { Ending::Unlinked } else { Ending::Mismatch };
        create_grant(&mut tx, deposit, Some(ending)).await?;
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

/// Makes an account that was never linked, for a grant that is only to be revoked.
pub(super) async fn create_unlinked(
    tx: &mut Tx,
    account: AccountId,
    user: &UserId,
    provider: ProviderId,
    subject: &str,
    now: Timestamp,
) -> Result<(), StoreError> {
    tx.execute(&NAME_USER, args![user, now]).await?;
    tx.execute(&CREATE_UNLINKED, args![account, user, provider, subject, now]).await.map(drop)
}

/// The first step of an unlink: the account's grant, if it has one, is `ending`.
pub(super) async fn end_current_grant(tx: &mut Tx, account: AccountId, now: Timestamp) -> Result<(), StoreError> {
    tx.execute(&END_CURRENT_GRANT, args![account, now, Ending::Unlinked.as_str()]).await.map(drop)
}

/// The second: nothing is known of it any more but its ids and times. Answers how many accounts these were, 0 or 1.
pub(super) async fn mark_unlinked(tx: &mut Tx, account: AccountId, now: Timestamp) -> Result<u64, StoreError> {
    tx.execute(&UNLINK, args![account, now]).await
}

async fn create(tx: &mut Tx, deposit: &Deposit) -> Result<Deposited, StoreError> {
    let Deposit { account, user, provider, subject, profile, now, .. } = deposit;
    tx.execute(&CREATE_USER, args![user, *now]).await?;
    let history = to_json(&deposit.grant.scopes)?;
    let values = args![*account, user, *provider, subject.as_str(), profile, *now, history];
    if tx.execute(&CREATE_ACCOUNT, values).await? == 1 {
        return Ok(Deposited::Done);
    }
    let Some(row) = tx.one(&OWNER, args![*provider, subject.as_str()]).await? else { return Ok(Deposited::Changed) };
    let owner = row.of("external_accounts", "", "id")?.user("user_id")?;
    Ok(if owner == *user { Deposited::Changed } else { Deposited::LinkedToAnotherUser })
}

async fn relink(tx: &mut Tx, deposit: &Deposit) -> Result<Deposited, StoreError> {
    let Deposit { account, user, provider, subject, profile, grant, now, .. } = deposit;
    let Some(row) = tx.one(&CURRENT, args![*account]).await? else { return Ok(Deposited::Changed) };
    let cells = row.of("grants", "", "id")?;
    let scopes: Scopes = cells.json("scopes")?;
    let refreshable = cells.get::<Option<i64>>("refresh_generation")?.is_some();
    let spent = !refreshable && freshness(&cells)?.expires_at().is_some_and(|end| end <= *now);
    let replaced = consent::replaces(
        Worth { refreshable, scopes: &scopes },
        cells.read("state", GrantState::parse)?,
        spent,
        Worth { refreshable: grant.refresh_token.is_some(), scopes: &grant.scopes },
    );
    if replaced {
        tx.execute(&END_CURRENT_GRANT, args![*account, *now, Ending::Superseded.as_str()]).await?;
    }
    let history = cells.json::<Scopes>("scope_history")?.union(&scopes).union(&grant.scopes);
    let values = args![*account, user, *provider, subject.as_str(), profile, to_json(&history)?];
    if tx.execute(&RELINK, values).await? == 0 {
        return Ok(Deposited::Changed);
    }
    Ok(if replaced { Deposited::Done } else { Deposited::Kept })
}

async fn create_grant(tx: &mut Tx, deposit: &Deposit, ending: Option<Ending>) -> Result<(), StoreError> {
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
        grant.warn_at,
        ending.map(Ending::as_str),
        to_json(&grant.params)?,
    ];
    tx.execute(&CREATE_GRANT, values).await.map(drop)
}
