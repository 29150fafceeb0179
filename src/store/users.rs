//! Users: shown, listed, deleted with all that they have.

use super::coherence::{self, Stale};
use super::error::StoreError;
use super::sql::{Row, args, statements};
use super::{BATCH, Store, events, moves, request_ids};
use crate::clock::Timestamp;
use crate::domain::event::{Event, EventKind};
use crate::domain::flow::FlowFailure;
use crate::domain::ids::{AccountId, FlowId, ProviderId};
use crate::domain::policy;
use crate::domain::user::UserId;

/// A user who is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserRow {
    /// Its id.
    pub id: UserId,
    /// When it was first linked.
    pub created_at: Timestamp,
}

/// What the deletion of a user came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeletedUser {
    /// It is deleted; these accounts were unlinked with it, and their grants are `ending`.
    Done(Vec<(AccountId, ProviderId)>),
    /// It was deleted before, within the last 30 days.
    Before,
    /// There is no such user.
    Unknown,
    /// Nothing was done: a flow of theirs has a parked answer, which must be put away first.
    Parked,
}

/// How often a deletion begins anew because an account was linked in between.
const TRIES: usize = 10;

statements! {
    BY_ID { "SELECT id, created_at FROM users WHERE id = $1 AND deleted_at IS NULL" }
    LIST {
        "SELECT id, created_at FROM users WHERE deleted_at IS NULL AND id > COALESCE($1, '') ORDER BY id LIMIT $2"
    }
    PARKED { "SELECT id FROM flows WHERE user_id = $1 AND state = 'exchanged'" }
    FAIL_FLOWS {
        "UPDATE flows SET state = 'failed', failure = $2, ended_at = $3, code = NULL, pkce_verifier = NULL
         WHERE user_id = $1 AND state IN ('started', 'returned', 'claimed')"
    }
    // The others tell to whom an answer belonged that is still on its way.
    DELETE_FLOWS { "DELETE FROM flows WHERE user_id = $1 AND (state = 'done' OR (state = 'failed' AND claimed_by IS NULL))" }
    LOCK_GRANTS {
        "SELECT grants.id FROM grants WHERE is_current AND account_id IN
            (SELECT id FROM external_accounts WHERE user_id = $1 AND state <> 'unlinked') ORDER BY grants.id"
        [pg " FOR UPDATE"]
    }
    ACCOUNTS {
        "SELECT id, provider_id FROM external_accounts WHERE user_id = $1 AND state <> 'unlinked' ORDER BY id"
    }
    DELETE { "UPDATE users SET deleted_at = $2 WHERE id = $1 AND deleted_at IS NULL" }
    DELETED { "SELECT id FROM users WHERE id = $1 AND deleted_at > $2" }
    REMOVE_ACCOUNTS {
        "DELETE FROM external_accounts WHERE id IN (
            SELECT a.id FROM external_accounts a WHERE a.state = 'unlinked' AND a.unlinked_at < $1
                AND NOT EXISTS (SELECT 1 FROM grants WHERE grants.account_id = a.id)
            ORDER BY a.unlinked_at LIMIT $2)"
    }
    REMOVE_USERS {
        "DELETE FROM users WHERE deleted_at < $1 AND id IN (
            SELECT u.id FROM users u WHERE u.deleted_at < $1
                AND NOT EXISTS (SELECT 1 FROM external_accounts a WHERE a.user_id = u.id)
            ORDER BY u.deleted_at LIMIT $2)"
    }
}

impl Store {
    /// A user who is there.
    pub async fn user(&self, id: &UserId) -> Result<Option<UserRow>, StoreError> {
        self.db.one(&BY_ID, args![id]).await?.map(|row| user(&row)).transpose()
    }

    /// Up to `limit` users by their ids, those behind `after`.
    pub async fn list_users(&self, after: Option<&UserId>, limit: u32) -> Result<Vec<UserRow>, StoreError> {
        let after = after.map(UserId::as_str);
        self.db.all(&LIST, args![after, limit]).await?.iter().map(user).collect()
    }

    /// The user's flows with a parked answer.
    pub async fn parked_flows_of(&self, user: &UserId) -> Result<Vec<FlowId>, StoreError> {
        let rows = self.db.all(&PARKED, args![user]).await?;
        rows.iter().map(|row| row.of("flows", "", "id")?.parse("id")).collect()
    }

    /// The user's live accounts, with their providers.
    pub async fn accounts_of(&self, user: &UserId) -> Result<Vec<(AccountId, ProviderId)>, StoreError> {
        self.db.all(&ACCOUNTS, args![user]).await?.iter().map(account).collect()
    }

    /// Deletes a user: open flows fail, accounts are unlinked, their grants are `ending`. All of it or nothing.
    pub async fn delete_user(&self, user: &UserId, now: Timestamp) -> Result<DeletedUser, StoreError> {
        for _ in 0..TRIES {
            if let Some(deleted) = self.try_to_delete_user(user, now).await? {
                return Ok(deleted);
            }
        }
        Err(StoreError::Unavailable("accounts are linked again and again while their user is being deleted".to_owned()))
    }

    /// `None`, and nothing written, if an account was linked meanwhile. Flows, grants, the user and accounts are locked
    /// in this order, as by all other moves.
    async fn try_to_delete_user(&self, user: &UserId, now: Timestamp) -> Result<Option<DeletedUser>, StoreError> {
        let mut tx = self.db.begin().await?;
        tx.execute(&FAIL_FLOWS, args![user, FlowFailure::UserDeleted.as_str(), now]).await?;
        if tx.one(&PARKED, args![user]).await?.is_some() {
            return Ok(Some(DeletedUser::Parked));
        }
        tx.execute(&DELETE_FLOWS, args![user]).await?;
        request_ids::erase(&mut tx, user).await?;
        tx.all(&LOCK_GRANTS, args![user]).await?;
        let rows = tx.all(&ACCOUNTS, args![user]).await?;
        let accounts = rows.iter().map(account).collect::<Result<Vec<_>, _>>()?;
        for (account, _) in &accounts {
            moves::end_current_grant(&mut tx, *account, now).await?;
        }
        if tx.execute(&DELETE, args![user, now]).await? == 0 {
            if !accounts.is_empty() {
                return Ok(None);
            }
            let deleted = tx.one(&DELETED, args![user, now.minus(policy::KEEP_DELETED)]).await?;
            // The flows that were begun since end with this, or they would make the user anew.
            tx.commit().await?;
            return Ok(Some(if deleted.is_some() { DeletedUser::Before } else { DeletedUser::Unknown }));
        }
        for (account, provider) in &accounts {
            moves::mark_unlinked(&mut tx, *account, now).await?;
            let event = Event::new(EventKind::AccountUnlinked, now, user.clone(), *provider).account(*account);
            events::insert(&mut tx, &event.because("user_deleted")).await?;
        }
        // Linked, or linked again, between the first look and the locks.
        if !tx.all(&LOCK_GRANTS, args![user]).await?.is_empty() || !tx.all(&ACCOUNTS, args![user]).await?.is_empty() {
            return Ok(None);
        }
        let mut providers = accounts.iter().map(|(_, provider)| *provider).collect::<Vec<_>>();
        providers.sort();
        providers.dedup();
        for provider in providers {
            coherence::tell(&mut tx, &Stale::Account { provider, user: user.clone() }, now).await?;
        }
        tx.commit().await?;
        Ok(Some(DeletedUser::Done(accounts)))
    }

    /// Removes what was unlinked and deleted before `before`, once its grants are gone. Answers how many rows.
    pub async fn delete_unlinked(&self, before: Timestamp) -> Result<u64, StoreError> {
        let accounts = self.in_batches(&REMOVE_ACCOUNTS, args![before, BATCH]).await?;
        Ok(accounts + self.in_batches(&REMOVE_USERS, args![before, BATCH]).await?)
    }
}

fn user(row: &Row) -> Result<UserRow, StoreError> {
    let cells = row.of("users", "", "id")?;
    Ok(UserRow { id: cells.user("id")?, created_at: cells.time("created_at")? })
}

fn account(row: &Row) -> Result<(AccountId, ProviderId), StoreError> {
    let cells = row.of("external_accounts", "", "id")?;
    Ok((cells.parse("id")?, cells.parse("provider_id")?))
}
