//! External accounts, as lists and look-ups show them.

use std::collections::BTreeMap;

use super::Store;
use super::coherence::{self, Stale};
use super::error::StoreError;
use super::events;
use super::grants::freshness;
use super::sql::{Row, args, statements, to_json};
use crate::clock::Timestamp;
use crate::domain::account::{AccountState, Label};
use crate::domain::event::{Event, EventKind};
use crate::domain::ids::{AccountId, ProviderId};
use crate::domain::provider::{Profile, Slug};
use crate::domain::scopes::Scopes;
use crate::domain::user::UserId;
use crate::vault::Sealed;

/// An account with what its current grant says. An unlinked one has no grant: empty scopes, no times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccountRow {
    /// Its id.
    pub id: AccountId,
    /// Whose it is.
    pub user: UserId,
    /// Where it is.
    pub provider: ProviderId,
    /// That provider's name.
    pub provider_slug: String,
    /// The provider's own id of it; with `params`, who it is.
    pub subject: String,
    /// Who it belongs to, as the provider told; `None` once it is unlinked.
    pub profile: Option<Sealed<Profile>>,
    /// Whether its token can be had.
    pub state: AccountState,
    /// Why not, if not.
    pub state_reason: Option<String>,
    /// A name that its user chose.
    pub label: Option<Sealed<Label>>,
    /// Whether it is its user's default at the provider.
    pub is_default: bool,
    /// Counts the changes of label and default.
    pub revision: i64,
    /// When it was linked.
    pub created_at: Timestamp,
    /// Every scope that was ever granted.
    pub scope_history: Scopes,
    /// The per-user parts of the provider's URLs.
    pub params: BTreeMap<String, String>,
    /// What was granted.
    pub granted_scopes: Scopes,
    /// What was asked for.
    pub requested_scopes: Scopes,
    /// Whether there is a refresh token.
    pub refreshable: bool,
    /// When its access token ends; `None` if never.
    pub expires_at: Option<Timestamp>,
    /// When its access token was asked for.
    pub issued_at: Option<Timestamp>,
}

/// Which accounts to list. Unset filters match all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AccountFilter {
    /// Of this user.
    pub user: Option<UserId>,
    /// At this provider.
    pub provider: Option<Slug>,
    /// In this state; unset: all but the unlinked ones.
    pub state: Option<AccountState>,
}

/// A change of an account. Unset fields stay as they are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AccountChange {
    /// The new label; `Some(None)` takes it away.
    pub label: Option<Option<Sealed<Label>>>,
    /// Whether it is its user's default at the provider.
    pub is_default: Option<bool>,
    /// The revision that it must still have.
    pub revision: Option<i64>,
}

/// What became of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpdateAccount {
    /// It is done.
    Done {
        /// Whether a get that names no account may be answered otherwise now.
        default_changed: bool,
    },
    /// There is no such account, or it is unlinked.
    NotFound,
    /// The account was changed since.
    Changed,
}

/// The most accounts that are shown beside providers.
const SHOWN: u32 = 1_000;

macro_rules! select {
    () => {
        "SELECT a.id AS a_id, a.user_id AS a_user_id, a.provider_id AS a_provider_id, p.slug AS a_provider_slug,
            a.subject AS a_subject, a.profile AS a_profile, a.state AS a_state, a.state_reason AS a_state_reason,
            a.is_default AS a_is_default, a.label AS a_label, a.revision AS a_revision, a.created_at AS a_created_at,
            a.scope_history AS a_scope_history, a.params AS a_params,
            g.id AS g_id, g.scopes AS g_scopes, g.requested_scopes AS g_requested_scopes, g.issued_at AS g_issued_at,
            g.refresh_generation AS g_refresh_generation, g.lifetime AS g_lifetime,
            g.lifetime_assumed AS g_lifetime_assumed, g.due_at AS g_due_at, g.keep_alive_at AS g_keep_alive_at
         FROM external_accounts a JOIN providers p ON p.id = a.provider_id
         LEFT JOIN grants g ON g.account_id = a.id AND g.is_current "
    };
}

macro_rules! filter {
    () => {
        "(CAST($1 AS TEXT) IS NULL OR p.slug = $1) AND ((CAST($2 AS TEXT) IS NULL AND a.state <> 'unlinked') OR a.state = $2)
         AND a.id < COALESCE($3, '~') "
    };
}

statements! {
    BY_SUBJECT {
        "SELECT id, user_id FROM external_accounts
         WHERE provider_id = $1 AND subject = $2 AND params = $3 AND state <> 'unlinked'"
    }
    BY_ID { select!() "WHERE a.id = $1" }
    LIST { select!() "WHERE " filter!() "ORDER BY a.id DESC LIMIT $4" }
    // Byte for byte, as providers are listed.
    LIST_BESIDE {
        select!() "WHERE a.user_id = $1 AND a.state <> 'unlinked' AND p.slug >= $2 AND p.slug <= $3
                   ORDER BY p.slug, a.id LIMIT $4"
    }
    // All that may lose or take the default, in one order, so that two changes do not wait for each other.
    LOCK_SIBLINGS {
        "SELECT id, user_id, provider_id, is_default, revision FROM external_accounts
         WHERE (user_id, provider_id) = (SELECT user_id, provider_id FROM external_accounts WHERE id = $1)
            AND state <> 'unlinked' ORDER BY id" [pg " FOR UPDATE"]
    }
    UNSET_DEFAULT {
        "UPDATE external_accounts SET is_default = FALSE, revision = revision + 1
         WHERE user_id = $1 AND provider_id = $2 AND id <> $3 AND is_default AND state <> 'unlinked'"
    }
    UPDATE {
        "UPDATE external_accounts SET label = CASE WHEN $2 THEN $3 ELSE label END, is_default = $4, revision = revision + 1
         WHERE id = $1 AND revision = $5 AND state <> 'unlinked'"
    }
    LIST_OF_USER { select!() "WHERE a.user_id = $5 AND " filter!() "ORDER BY a.id DESC LIMIT $4" }
}

impl Store {
    /// The live account of this identity at a provider, where its URLs have these per-user parts, and whose it is.
    pub async fn account_by_subject(
        &self,
        provider: ProviderId,
        subject: &str,
        params: &BTreeMap<String, String>,
    ) -> Result<Option<(AccountId, UserId)>, StoreError> {
        let Some(row) = self.db.one(&BY_SUBJECT, args![provider, subject, to_json(params)?]).await? else {
            return Ok(None);
        };
        let cells = row.of("external_accounts", "", "id")?;
        Ok(Some((cells.parse("id")?, cells.user("user_id")?)))
    }

    /// An account by its id, unlinked ones too.
    pub async fn account(&self, id: AccountId) -> Result<Option<AccountRow>, StoreError> {
        self.db.one(&BY_ID, args![id]).await?.map(|row| account(&row)).transpose()
    }

    /// Up to `limit` accounts, the newest first, those older than `after`.
    pub async fn list_accounts(
        &self,
        filter: &AccountFilter,
        after: Option<AccountId>,
        limit: u32,
    ) -> Result<Vec<AccountRow>, StoreError> {
        let provider = filter.provider.as_ref().map(Slug::as_str);
        let state = filter.state.map(AccountState::as_str);
        let rows = match &filter.user {
            // A text of its own: SQLite chooses its index before it knows whether a user is given.
            Some(user) => self.db.all(&LIST_OF_USER, args![provider, state, after, limit, user]).await?,
            None => self.db.all(&LIST, args![provider, state, after, limit]).await?,
        };
        rows.iter().map(account).collect()
    }

    /// A user's accounts at the providers from slug `first` to `last`, by slug, the oldest first; up to a thousand.
    pub async fn accounts_beside(
        &self,
        user: &UserId,
        first: &Slug,
        last: &Slug,
    ) -> Result<Vec<AccountRow>, StoreError> {
        self.db.all(&LIST_BESIDE, args![user, first, last, SHOWN]).await?.iter().map(account).collect()
    }

    /// Changes an account; what becomes the default takes that from the one before.
    pub async fn update_account(
        &self,
        id: AccountId,
        change: &AccountChange,
        now: Timestamp,
    ) -> Result<UpdateAccount, StoreError> {
        let mut tx = self.db.begin().await?;
        let siblings = tx.all(&LOCK_SIBLINGS, args![id]).await?;
        let mut found = None;
        for row in &siblings {
            let cells = row.of("external_accounts", "", "id")?;
            if cells.parse::<AccountId>("id")? == id {
                found = Some(cells);
            }
        }
        let Some(cells) = found else { return Ok(UpdateAccount::NotFound) };
        let (user, provider) = (cells.user("user_id")?, cells.parse("provider_id")?);
        let (was_default, revision): (bool, i64) = (cells.get("is_default")?, cells.get("revision")?);
        if change.revision.is_some_and(|expected| expected != revision) {
            return Ok(UpdateAccount::Changed);
        }
        let is_default = change.is_default.unwrap_or(was_default);
        if is_default {
            tx.execute(&UNSET_DEFAULT, args![&user, provider, id]).await?;
        }
        let label = change.label.as_ref();
        let values = args![id, label.is_some(), label.and_then(Option::as_ref), is_default, revision];
        if tx.execute(&UPDATE, values).await? == 0 {
            return Ok(UpdateAccount::Changed);
        }
        let default_changed = is_default != was_default;
        if default_changed {
            let event = Event::new(EventKind::AccountDefaultChanged, now, user.clone(), provider).account(id);
            events::insert(&mut tx, &event.because(if is_default { "set" } else { "unset" })).await?;
            coherence::tell(&mut tx, &Stale::Account { provider, user }, now).await?;
        }
        tx.commit().await?;
        Ok(UpdateAccount::Done { default_changed })
    }
}

fn account(row: &Row) -> Result<AccountRow, StoreError> {
    let cells = row.of("external_accounts", "a_", "id")?;
    let mut account = AccountRow {
        id: cells.parse("id")?,
        user: cells.user("user_id")?,
        provider: cells.parse("provider_id")?,
        provider_slug: cells.get("provider_slug")?,
        subject: cells.get("subject")?,
        profile: cells.sealed_opt("profile")?,
        state: cells.read("state", AccountState::parse)?,
        state_reason: cells.get("state_reason")?,
        label: cells.sealed_opt("label")?,
        is_default: cells.get("is_default")?,
        revision: cells.get("revision")?,
        created_at: cells.time("created_at")?,
        scope_history: cells.json("scope_history")?,
        params: cells.json("params")?,
        granted_scopes: Scopes::default(),
        requested_scopes: Scopes::default(),
        refreshable: false,
        expires_at: None,
        issued_at: None,
    };
    if row.get::<Option<String>>("g_id")?.is_some() {
        let cells = row.of("grants", "g_", "id")?;
        let freshness = freshness(&cells)?;
        account.granted_scopes = cells.json("scopes")?;
        account.requested_scopes = cells.json("requested_scopes")?;
        account.refreshable = cells.get::<Option<i64>>("refresh_generation")?.is_some();
        account.expires_at = freshness.expires_at();
        account.issued_at = Some(freshness.issued_at);
    }
    Ok(account)
}
