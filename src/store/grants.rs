//! Grants: what one consent gave us, read for judging and serving.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Store;
use super::error::StoreError;
use super::sql::{Cells, Row, args, statements};
use crate::clock::Timestamp;
use crate::domain::grant::{Freshness, Grant, GrantState, Lease};
use crate::domain::ids::{GrantId, ProviderId};
use crate::domain::provider::Lifetime;
use crate::domain::secret::AccessToken;
use crate::domain::user::UserId;
use crate::vault::Sealed;

/// A live account's current grant with all that a get needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holding {
    /// The grant.
    pub grant: Grant,
    /// Its access token.
    pub access_token: Sealed<AccessToken>,
    /// The provider's own id of the account.
    pub subject: String,
    /// Whether the account is its user's default at the provider.
    pub is_default: bool,
    /// What an API call needs besides the token, by the provider's names.
    pub metadata: BTreeMap<String, String>,
}

/// A [`Grant`]'s columns, prefixed, of the table `grants`.
macro_rules! grant_columns {
    () => {
        "grants.id AS g_id, grants.account_id AS g_account_id, grants.user_id AS g_user_id, grants.provider_id AS g_provider_id,
         grants.state AS g_state, grants.issued_at AS g_issued_at, grants.lifetime AS g_lifetime,
         grants.lifetime_assumed AS g_lifetime_assumed, grants.due_at AS g_due_at, grants.token_type AS g_token_type,
         grants.scopes AS g_scopes, grants.params AS g_params, grants.access_generation AS g_access_generation,
         grants.refresh_generation AS g_refresh_generation, grants.fence AS g_fence, grants.committed_fence AS g_committed_fence,
         grants.attempted_at AS g_attempted_at, grants.retry_not_before AS g_retry_not_before, grants.attempts AS g_attempts, grants.ahead_until AS g_ahead_until,
         grants.keep_alive_at AS g_keep_alive_at, grants.lease_owner AS g_lease_owner, grants.lease_until AS g_lease_until,
         grants.doubted_fence AS g_doubted_fence"
    };
}

pub(super) use grant_columns;

macro_rules! holdings {
    () => {
        " grants.access_token AS g_access_token, grants.metadata AS g_metadata,
          a.id AS a_id, a.subject AS a_subject, a.is_default AS a_is_default
          FROM external_accounts a JOIN grants ON grants.account_id = a.id AND grants.is_current "
    };
}

statements! {
    OF_USER {
        "SELECT " grant_columns!() "," holdings!()
        "WHERE a.user_id = $1 AND a.provider_id = $2 AND a.state <> 'unlinked' ORDER BY a.id"
    }
    BY_ID { "SELECT " grant_columns!() "," holdings!() "WHERE grants.id = $1 AND a.state <> 'unlinked'" }
    EXTEND_AHEAD {
        "UPDATE grants SET ahead_until = $2, sweep_at = CASE WHEN due_at < $2 THEN due_at ELSE sweep_at END
         WHERE id = $1 AND is_current AND ahead_until < $2"
    }
}

impl Store {
    /// The user's live accounts at a provider with their current grants, the oldest account first: the read of every
    /// get.
    pub async fn holdings(&self, user: &UserId, provider: ProviderId) -> Result<Vec<Holding>, StoreError> {
        self.db.all(&OF_USER, args![user, provider]).await?.iter().map(holding).collect()
    }

    /// A grant while it is its account's current one.
    pub async fn holding(&self, id: GrantId) -> Result<Option<Holding>, StoreError> {
        self.db.one(&BY_ID, args![id]).await?.map(|row| holding(&row)).transpose()
    }

    /// Has a grant refreshed ahead until `until`. False if it is already, or is not current any more.
    pub async fn extend_ahead(&self, id: GrantId, until: Timestamp) -> Result<bool, StoreError> {
        Ok(self.db.execute(&EXTEND_AHEAD, args![id, until]).await? == 1)
    }
}

/// The grant in a row of `grant_columns!()`.
pub(super) fn grant(row: &Row) -> Result<Grant, StoreError> {
    let cells = row.of("grants", "g_", "id")?;
    Ok(Grant {
        id: cells.parse("id")?,
        account: cells.parse("account_id")?,
        user: cells.user("user_id")?,
        provider: cells.parse("provider_id")?,
        state: cells.read("state", GrantState::parse)?,
        freshness: freshness(&cells)?,
        token_type: cells.get("token_type")?,
        scopes: cells.json("scopes")?,
        params: cells.json("params")?,
        access_generation: cells.get("access_generation")?,
        refresh_generation: cells.get("refresh_generation")?,
        fence: cells.get("fence")?,
        committed_fence: cells.get("committed_fence")?,
        lease: lease(&cells)?,
        doubted_fence: cells.get("doubted_fence")?,
        attempted_at: cells.time_opt("attempted_at")?,
        attempts: cells.count("attempts")?,
        retry_not_before: cells.time_opt("retry_not_before")?,
        ahead_until: cells.time("ahead_until")?,
    })
}

/// How fresh a grant's access token is.
pub(super) fn freshness(cells: &Cells<'_>) -> Result<Freshness, StoreError> {
    let span = cells.get::<Option<i64>>("lifetime")?.map(u64::try_from);
    let lifetime = match (span.transpose().map_err(|_| cells.corrupt("lifetime"))?, cells.get("lifetime_assumed")?) {
        (None, _) => Lifetime::Endless,
        (Some(millis), false) => Lifetime::Stated(Duration::from_millis(millis)),
        (Some(millis), true) => Lifetime::Assumed(Duration::from_millis(millis)),
    };
    Ok(Freshness {
        issued_at: cells.time("issued_at")?,
        lifetime,
        due_at: cells.time_opt("due_at")?,
        keep_alive_at: cells.time_opt("keep_alive_at")?,
    })
}

/// Whose claim has no outcome yet.
fn lease(cells: &Cells<'_>) -> Result<Option<Lease>, StoreError> {
    let (owner, until) = (cells.parse_opt("lease_owner")?, cells.time_opt("lease_until")?);
    Ok(owner.zip(until).map(|(owner, until)| Lease { owner, until }))
}

/// A lifetime as the columns `lifetime` (milliseconds, or null) and `lifetime_assumed`.
pub(super) fn lifetime_columns(lifetime: Lifetime) -> (Option<i64>, bool) {
    let millis = lifetime.span().map(|span| i64::try_from(span.as_millis()).unwrap_or(i64::MAX));
    (millis, matches!(lifetime, Lifetime::Assumed(_)))
}

fn holding(row: &Row) -> Result<Holding, StoreError> {
    let (account, cells) = (row.of("external_accounts", "a_", "id")?, row.of("grants", "g_", "id")?);
    Ok(Holding {
        grant: grant(row)?,
        access_token: cells.sealed("access_token")?,
        subject: account.get("subject")?,
        is_default: account.get("is_default")?,
        metadata: cells.json("metadata")?,
    })
}
