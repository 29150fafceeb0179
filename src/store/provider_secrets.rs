//! Our client secrets at providers: up to a few each, so that one can be changed without a gap.

use std::time::Duration;

use super::Store;
use super::coherence::{self, Stale};
use super::db::Tx;
use super::error::StoreError;
use super::request_ids::{self, Note};
use super::sql::{Row, args, statements};
use crate::clock::Timestamp;
use crate::domain::ids::{ProviderId, ProviderSecretId};
use crate::domain::provider::Slug;
use crate::domain::secret::ClientSecret;
use crate::vault::Sealed;

/// A provider has no more secrets: a refused refresh tries them all.
pub const MOST_SECRETS: i64 = 3;

/// How exactly it is known when a secret was used last.
pub const USE_NOTED_EVERY: Duration = Duration::from_hours(1);

/// A stored client secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProviderSecretRow {
    /// Its id.
    pub id: ProviderSecretId,
    /// The secret.
    pub secret: Sealed<ClientSecret>,
    /// When it was given.
    pub created_at: Timestamp,
    /// When the provider took it last, within the hour.
    pub last_used_at: Option<Timestamp>,
}

/// What giving a provider another secret came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddSecret {
    /// It has it.
    Added,
    /// It has [`MOST_SECRETS`] already.
    TooMany,
    /// There is no such provider.
    NoProvider,
}

/// What taking a secret away came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RemoveSecret {
    /// It is gone, now or before.
    Removed,
    /// It is the last one, and stays: without it nothing could be refreshed.
    Last,
    /// There is no such provider.
    NoProvider,
}

statements! {
    INSERT { "INSERT INTO provider_secrets (id, provider_id, secret, created_at) VALUES ($1, $2, $3, $4)" }
    // The lock makes counting and changing one step. A new secret may cure what refuses our credentials: the next
    // request may try.
    LOCK { "UPDATE providers SET probe_at = NULL WHERE id = $1 AND deleted_at IS NULL" }
    LOCK_BY_SLUG { "SELECT id FROM providers WHERE slug = $1 AND deleted_at IS NULL" [pg " FOR UPDATE"] }
    IDS { "SELECT id FROM provider_secrets WHERE provider_id = $1" }
    DELETE { "DELETE FROM provider_secrets WHERE id = $1" }
    // Also when another one was used since: the latest is the first to be tried.
    USED {
        "UPDATE provider_secrets SET last_used_at = $2
         WHERE id = $1 AND (last_used_at IS NULL OR last_used_at <= $3 OR EXISTS (
            SELECT 1 FROM provider_secrets o WHERE o.provider_id = provider_secrets.provider_id
                AND o.id <> provider_secrets.id AND o.last_used_at >= provider_secrets.last_used_at))"
    }
}

impl Store {
    /// Gives a provider another secret, and writes the note of its call.
    pub async fn add_secret(
        &self,
        provider: ProviderId,
        secret: &ProviderSecretRow,
        note: Option<&Note>,
    ) -> Result<AddSecret, StoreError> {
        let mut tx = self.db.begin().await?;
        if tx.execute(&LOCK, args![provider]).await? == 0 {
            return Ok(AddSecret::NoProvider);
        }
        let count = tx.all(&IDS, args![provider]).await?.len();
        if i64::try_from(count).is_ok_and(|count| count >= MOST_SECRETS) {
            return Ok(AddSecret::TooMany);
        }
        insert(&mut tx, provider, secret.id, &secret.secret, secret.created_at).await?;
        request_ids::write(&mut tx, note, None).await?;
        coherence::tell(&mut tx, &Stale::Providers, secret.created_at).await?;
        tx.commit().await?;
        Ok(AddSecret::Added)
    }

    /// Takes a secret of the provider of this name away, but not the last one.
    pub async fn remove_secret(
        &self,
        slug: &Slug,
        secret: ProviderSecretId,
        now: Timestamp,
    ) -> Result<RemoveSecret, StoreError> {
        let mut tx = self.db.begin().await?;
        let Some(row) = tx.one(&LOCK_BY_SLUG, args![slug]).await? else { return Ok(RemoveSecret::NoProvider) };
        let provider: ProviderId = row.of("providers", "", "id")?.parse("id")?;
        let ids = tx.all(&IDS, args![provider]).await?;
        let ids: Vec<ProviderSecretId> = ids
            .iter()
            .map(|row| row.of("provider_secrets", "", "id")?.parse("id"))
            .collect::<Result<_, StoreError>>()?;
        match ids.as_slice() {
            [only] if *only == secret => return Ok(RemoveSecret::Last),
            ids if ids.contains(&secret) => tx.execute(&DELETE, args![secret]).await?,
            _ => return Ok(RemoveSecret::Removed),
        };
        coherence::tell(&mut tx, &Stale::Providers, now).await?;
        tx.commit().await?;
        Ok(RemoveSecret::Removed)
    }

    /// The provider took this secret. Written at most once an hour, unless another one was taken since. True if it was
    /// written.
    pub async fn secret_used(&self, secret: ProviderSecretId, now: Timestamp) -> Result<bool, StoreError> {
        self.change_provider(&USED, args![secret, now, now.minus(USE_NOTED_EVERY)], now).await
    }
}

/// Stores a secret.
pub(super) async fn insert(
    tx: &mut Tx,
    provider: ProviderId,
    id: ProviderSecretId,
    secret: &Sealed<ClientSecret>,
    now: Timestamp,
) -> Result<(), StoreError> {
    tx.execute(&INSERT, args![id, provider, secret, now]).await.map(drop)
}

/// The secret in a provider's row; none if the provider has none.
pub(super) fn joined(row: &Row) -> Result<Option<ProviderSecretRow>, StoreError> {
    if row.get::<Option<String>>("s_id")?.is_none() {
        return Ok(None);
    }
    let cells = row.of("provider_secrets", "s_", "id")?;
    Ok(Some(ProviderSecretRow {
        id: cells.parse("id")?,
        secret: cells.sealed("secret")?,
        created_at: cells.time("created_at")?,
        last_used_at: cells.time_opt("last_used_at")?,
    }))
}
