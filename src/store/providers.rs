//! Configured providers and their client secrets.

use std::time::Duration;

use super::Store;
use super::coherence::{self, Stale};
use super::error::StoreError;
use super::provider_secrets::{self, ProviderSecretRow};
use super::request_ids::{self, Note};
use super::sql::{Row, Sql, Value, args, statements, to_json};
use crate::clock::Timestamp;
use crate::domain::ids::{ProviderId, ProviderSecretId};
use crate::domain::provider::{Limits, Slug, Standing};
use crate::domain::scopes::Scopes;
use crate::domain::secret::ClientSecret;
use crate::vault::Sealed;

/// For so long a repeated deletion succeeds.
pub(super) const DELETION_REMEMBERED: Duration = Duration::from_hours(24 * 30);

/// A provider to store.
#[derive(Clone, Debug)]
pub struct NewProvider {
    /// Its id.
    pub id: ProviderId,
    /// Its name in every call.
    pub slug: Slug,
    /// The catalog entry that describes it.
    pub catalog_entry: String,
    /// Its name for people, if not the catalog's.
    pub display_name: Option<String>,
    /// Our client id there.
    pub client_id: String,
    /// Scopes to ask for besides the catalog's.
    pub additional_scopes: Scopes,
    /// Its own endpoints, for catalog entries that have none: a JSON object.
    pub endpoints: Option<serde_json::Value>,
    /// When it was configured.
    pub created_at: Timestamp,
    /// Our client secret there, if the client has one.
    pub secret: Option<(ProviderSecretId, Sealed<ClientSecret>)>,
}

/// A stored provider.
#[derive(Clone, Debug, PartialEq)]
pub struct ProviderRow {
    /// Its id.
    pub id: ProviderId,
    /// Its name in every call.
    pub slug: Slug,
    /// The catalog entry that describes it.
    pub catalog_entry: String,
    /// Its name for people, if not the catalog's.
    pub display_name: Option<String>,
    /// Our client id there.
    pub client_id: String,
    /// Scopes to ask for besides the catalog's.
    pub additional_scopes: Scopes,
    /// Its own endpoints, for catalog entries that have none: a JSON object.
    pub endpoints: Option<serde_json::Value>,
    /// When it was configured.
    pub created_at: Timestamp,
    /// Our client secrets there, the newest first.
    pub secrets: Vec<ProviderSecretRow>,
    /// What it may be sent.
    pub limits: Limits,
    /// How we stand with it.
    pub standing: Standing,
    /// Counts the changes of its configuration: [`Store::update_provider`].
    pub revision: i64,
}

/// What to change of a provider; `None` keeps what is there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProviderChange {
    /// Its name for people; an empty one is the catalog's.
    pub display_name: Option<String>,
    /// Scopes to ask for besides the catalog's.
    pub additional_scopes: Option<Scopes>,
    /// Requests a second; 0 is the default.
    pub requests_per_second: Option<u32>,
    /// Requests in flight; 0 is the default.
    pub max_in_flight: Option<u32>,
    /// Whether a freeze of verdicts ends.
    pub unfreeze: bool,
    /// The revision that it must still have.
    pub revision: Option<i64>,
}

/// What became of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpdateProvider {
    /// It is done.
    Done,
    /// There is none of this name.
    NotFound,
    /// It was changed since.
    Changed,
}

/// What a deletion came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeleteProvider {
    /// It is gone, now or in the last 30 days.
    Deleted,
    /// A linked account or an open flow needs it.
    InUse,
    /// There is none of this name.
    NotFound,
}

macro_rules! columns {
    () => {
        "SELECT p.id AS p_id, p.slug AS p_slug, p.catalog_entry AS p_catalog_entry, p.display_name AS p_display_name,
                p.client_id AS p_client_id, p.additional_scopes AS p_additional_scopes, p.endpoints AS p_endpoints,
                p.created_at AS p_created_at, p.requests_per_second AS p_requests_per_second,
                p.max_in_flight AS p_max_in_flight, p.paused_until AS p_paused_until,
                p.misconfigured_at AS p_misconfigured_at, p.probe_at AS p_probe_at, p.blamed_by AS p_blamed_by,
                p.frozen_until AS p_frozen_until, p.revision AS p_revision,
                s.id AS s_id, s.secret AS s_secret, s.created_at AS s_created_at, s.last_used_at AS s_last_used_at "
    };
}

macro_rules! with_secrets {
    () => {
        " LEFT JOIN provider_secrets s ON s.provider_id = p.id ORDER BY p.slug, s.created_at DESC, s.id DESC"
    };
}

statements! {
    CREATE {
        "INSERT INTO providers (id, slug, catalog_entry, display_name, client_id, additional_scopes, endpoints, created_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT DO NOTHING"
    }
    BY_ID { columns!() "FROM (SELECT * FROM providers WHERE id = $1 AND deleted_at IS NULL) p" with_secrets!() }
    BY_SLUG { columns!() "FROM (SELECT * FROM providers WHERE slug = $1 AND deleted_at IS NULL) p" with_secrets!() }
    LIST {
        columns!()
        "FROM (SELECT * FROM providers WHERE deleted_at IS NULL AND slug > COALESCE($1, '') ORDER BY slug LIMIT $2) p"
        with_secrets!()
    }
    // Whatever refuses our credentials may be cured by this: the next request may try them. And whoever changes a
    // provider may know that its pause is over; if not, the provider says so again.
    UPDATE {
        "UPDATE providers SET probe_at = NULL, paused_until = NULL, revision = revision + 1,
            display_name = NULLIF(COALESCE($2, display_name), ''),
            additional_scopes = COALESCE($3, additional_scopes),
            requests_per_second = NULLIF(COALESCE($4, requests_per_second), 0),
            max_in_flight = NULLIF(COALESCE($5, max_in_flight), 0),
            frozen_until = CASE WHEN $6 THEN NULL ELSE frozen_until END
         WHERE slug = $1 AND deleted_at IS NULL AND (CAST($7 AS BIGINT) IS NULL OR revision = $7)"
    }
    // The lock makes starting flows wait, and waits for flows that are being started.
    TO_DELETE { "SELECT id FROM providers WHERE slug = $1 AND deleted_at IS NULL" [pg " FOR UPDATE"] }
    IN_USE {
        "SELECT 1 AS used WHERE EXISTS (SELECT 1 FROM external_accounts WHERE provider_id = $1 AND state <> 'unlinked')
            OR EXISTS (SELECT 1 FROM flows WHERE provider_id = $1 AND ended_at IS NULL)"
    }
    DELETE { "UPDATE providers SET deleted_at = $2 WHERE id = $1 AND deleted_at IS NULL" }
    DELETE_SECRETS { "DELETE FROM provider_secrets WHERE provider_id = $1" }
    DELETED_LATELY { "SELECT 1 AS deleted FROM providers WHERE slug = $1 AND deleted_at > $2 LIMIT 1" }
}

impl NewProvider {
    /// The same as it is read once it is stored.
    #[must_use]
    pub fn row(&self) -> ProviderRow {
        let secret = self.secret.as_ref().map(|(id, secret)| ProviderSecretRow {
            id: *id,
            secret: secret.clone(),
            created_at: self.created_at,
            last_used_at: None,
        });
        ProviderRow {
            id: self.id,
            slug: self.slug.clone(),
            catalog_entry: self.catalog_entry.clone(),
            display_name: self.display_name.clone(),
            client_id: self.client_id.clone(),
            additional_scopes: self.additional_scopes.clone(),
            endpoints: self.endpoints.clone(),
            created_at: self.created_at,
            secrets: secret.into_iter().collect(),
            limits: Limits::default(),
            standing: Standing::default(),
            revision: 1,
        }
    }
}

impl Store {
    /// Stores a provider with its first secret and the note of its call. False, and nothing stored, if the slug is
    /// taken.
    pub async fn create_provider(&self, provider: &NewProvider, note: Option<&Note>) -> Result<bool, StoreError> {
        let mut tx = self.db.begin().await?;
        let endpoints = provider.endpoints.as_ref().map(ToString::to_string);
        let values = args![
            provider.id,
            &provider.slug,
            provider.catalog_entry.as_str(),
            provider.display_name.as_deref(),
            provider.client_id.as_str(),
            to_json(&provider.additional_scopes)?,
            endpoints.as_deref(),
            provider.created_at,
        ];
        if tx.execute(&CREATE, values).await? == 0 {
            return Ok(false);
        }
        if let Some((id, secret)) = &provider.secret {
            provider_secrets::insert(&mut tx, provider.id, *id, secret, provider.created_at).await?;
        }
        request_ids::write(&mut tx, note, None).await?;
        tx.commit().await?;
        Ok(true)
    }

    /// The provider of this name.
    pub async fn provider_by_slug(&self, slug: &Slug) -> Result<Option<ProviderRow>, StoreError> {
        Ok(gather(&self.db.all(&BY_SLUG, args![slug]).await?)?.pop())
    }

    /// The provider of this id, unless it is deleted.
    pub async fn provider(&self, id: ProviderId) -> Result<Option<ProviderRow>, StoreError> {
        Ok(gather(&self.db.all(&BY_ID, args![id]).await?)?.pop())
    }

    /// Up to `limit` providers by slug, those behind the slug `after`.
    pub async fn list_providers(&self, after: Option<&str>, limit: u32) -> Result<Vec<ProviderRow>, StoreError> {
        gather(&self.db.all(&LIST, args![after, limit]).await?)
    }

    /// Changes what `change` says.
    pub async fn update_provider(
        &self,
        slug: &Slug,
        change: &ProviderChange,
        now: Timestamp,
    ) -> Result<UpdateProvider, StoreError> {
        let scopes = change.additional_scopes.as_ref().map(to_json).transpose()?;
        let values = args![
            slug,
            change.display_name.as_deref(),
            scopes.as_deref(),
            change.requests_per_second.map(i64::from),
            change.max_in_flight.map(i64::from),
            change.unfreeze,
            change.revision,
        ];
        if self.change_provider(&UPDATE, values, now).await? {
            return Ok(UpdateProvider::Done);
        }
        let there = self.provider_by_slug(slug).await?.is_some();
        Ok(if there { UpdateProvider::Changed } else { UpdateProvider::NotFound })
    }

    /// A change of a provider's row by one statement, told to all replicas. False if it hits none.
    pub(super) async fn change_provider(
        &self,
        statement: &Sql,
        values: &[Value<'_>],
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let mut tx = self.db.begin().await?;
        if tx.execute(statement, values).await? == 0 {
            return Ok(false);
        }
        coherence::tell(&mut tx, &Stale::Providers, now).await?;
        tx.commit().await?;
        Ok(true)
    }

    /// Deletes a provider and its secrets unless it is in use. The row stays; the slug is free.
    pub async fn delete_provider(&self, slug: &Slug, now: Timestamp) -> Result<DeleteProvider, StoreError> {
        let mut tx = self.db.begin().await?;
        let Some(row) = tx.one(&TO_DELETE, args![slug]).await? else {
            let since = now.minus(DELETION_REMEMBERED);
            let lately = tx.one(&DELETED_LATELY, args![slug, since]).await?.is_some();
            return Ok(if lately { DeleteProvider::Deleted } else { DeleteProvider::NotFound });
        };
        let id: ProviderId = row.of("providers", "", "id")?.parse("id")?;
        if tx.one(&IN_USE, args![id]).await?.is_some() {
            return Ok(DeleteProvider::InUse);
        }
        tx.execute(&DELETE, args![id, now]).await?;
        tx.execute(&DELETE_SECRETS, args![id]).await?;
        coherence::tell(&mut tx, &Stale::Providers, now).await?;
        tx.commit().await?;
        Ok(DeleteProvider::Deleted)
    }
}

/// Providers from rows of one secret each.
fn gather(rows: &[Row]) -> Result<Vec<ProviderRow>, StoreError> {
    let mut providers: Vec<ProviderRow> = Vec::new();
    for row in rows {
        let cells = row.of("providers", "p_", "id")?;
        let id = cells.parse("id")?;
        if providers.last().is_none_or(|last| last.id != id) {
            providers.push(ProviderRow {
                id,
                slug: cells.read("slug", |text| Slug::parse(text).ok())?,
                catalog_entry: cells.get("catalog_entry")?,
                display_name: cells.get("display_name")?,
                client_id: cells.get("client_id")?,
                additional_scopes: cells.json("additional_scopes")?,
                endpoints: cells.read_opt("endpoints", |text| serde_json::from_str(text).ok())?,
                created_at: cells.time("created_at")?,
                secrets: Vec::new(),
                limits: Limits {
                    requests_per_second: cells.count_opt("requests_per_second")?,
                    max_in_flight: cells.count_opt("max_in_flight")?,
                },
                standing: Standing {
                    paused_until: cells.time_opt("paused_until")?,
                    misconfigured_at: cells.time_opt("misconfigured_at")?,
                    probe_at: cells.time_opt("probe_at")?,
                    blamed_by: cells.parse_opt("blamed_by")?,
                    frozen_until: cells.time_opt("frozen_until")?,
                },
                revision: cells.get("revision")?,
            });
        }
        let (Some(provider), Some(secret)) = (providers.last_mut(), provider_secrets::joined(row)?) else { continue };
        provider.secrets.push(secret);
    }
    Ok(providers)
}
