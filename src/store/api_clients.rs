//! API clients and their keys. Of a key only a hash is known.

use super::Store;
use super::coherence::{self, Stale};
use super::error::StoreError;
use super::providers::DELETION_REMEMBERED;
use super::request_ids::{self, Note};
use super::sql::{Row, args, statements};
use crate::clock::Timestamp;
use crate::domain::ids::{ApiClientId, ApiKeyId};

/// A service that calls us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiClientRow {
    /// Its id.
    pub id: ApiClientId,
    /// Its name for people.
    pub display_name: String,
    /// When it was made.
    pub created_at: Timestamp,
    /// Its keys, the oldest first.
    pub keys: Vec<ApiKeyRow>,
}

/// A key as lists show it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiKeyRow {
    /// Its id.
    pub id: ApiKeyId,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it ends; `None` if never.
    pub expires_at: Option<Timestamp>,
}

/// What a key that a caller brings is checked against.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredApiKey {
    /// Whose key it is.
    pub client: ApiClientId,
    /// SHA-256 of its secret.
    pub secret_hash: Vec<u8>,
    /// When it ends; `None` if never.
    pub expires_at: Option<Timestamp>,
}

statements! {
    CREATE { "INSERT INTO api_clients (id, display_name, created_at) VALUES ($1, $2, $3)" }
    CREATE_KEY {
        "INSERT INTO api_keys (id, api_client_id, secret_hash, created_at, expires_at) VALUES ($1, $2, $3, $4, $5)"
    }
    KEY {
        "SELECT k.id, k.api_client_id, k.secret_hash, k.expires_at FROM api_keys k
         JOIN api_clients c ON c.id = k.api_client_id AND c.deleted_at IS NULL WHERE k.id = $1"
    }
    LIST {
        "SELECT c.id AS c_id, c.display_name AS c_display_name, c.created_at AS c_created_at,
                k.id AS k_id, k.created_at AS k_created_at, k.expires_at AS k_expires_at
         FROM (SELECT * FROM api_clients WHERE deleted_at IS NULL AND id < COALESCE($1, '~')
               ORDER BY id DESC LIMIT $2) c
         LEFT JOIN api_keys k ON k.api_client_id = c.id ORDER BY c.id DESC, k.created_at, k.id"
    }
    EXISTS { "SELECT 1 AS there FROM api_clients WHERE id = $1 AND deleted_at IS NULL" }
    DELETE { "UPDATE api_clients SET deleted_at = $2 WHERE id = $1 AND deleted_at IS NULL" }
    DELETED_LATELY { "SELECT 1 AS deleted FROM api_clients WHERE id = $1 AND deleted_at > $2" }
    DELETE_KEYS { "DELETE FROM api_keys WHERE api_client_id = $1" }
    DELETE_REDIRECT_URLS {
        "UPDATE redirect_urls SET deleted_at = $2 WHERE api_client_id = $1 AND deleted_at IS NULL"
    }
}

impl Store {
    /// Stores a client with its keys and the note of its call. `secret_hash` is the SHA-256 of the first key's secret; clients are made with at
    /// most one.
    pub async fn create_api_client(
        &self,
        client: &ApiClientRow,
        secret_hash: &[u8; 32],
        note: Option<&Note>,
    ) -> Result<(), StoreError> {
        let mut tx = self.db.begin().await?;
        tx.execute(&CREATE, args![client.id, client.display_name.as_str(), client.created_at]).await?;
        if let Some(key) = client.keys.first() {
            let values = args![key.id, client.id, secret_hash, key.created_at, key.expires_at];
            tx.execute(&CREATE_KEY, values).await?;
        }
        request_ids::write(&mut tx, note, None).await?;
        tx.commit().await
    }

    /// A key by its id; `None` too if its client is deleted.
    pub async fn api_key(&self, id: ApiKeyId) -> Result<Option<StoredApiKey>, StoreError> {
        let Some(row) = self.db.one(&KEY, args![id]).await? else { return Ok(None) };
        let cells = row.of("api_keys", "", "id")?;
        Ok(Some(StoredApiKey {
            client: cells.parse("api_client_id")?,
            secret_hash: cells.get("secret_hash")?,
            expires_at: cells.time_opt("expires_at")?,
        }))
    }

    /// Up to `limit` clients, the newest first, those older than `after`.
    pub async fn list_api_clients(
        &self,
        after: Option<ApiClientId>,
        limit: u32,
    ) -> Result<Vec<ApiClientRow>, StoreError> {
        gather(&self.db.all(&LIST, args![after, limit]).await?)
    }

    /// Whether there is such a client.
    pub async fn api_client_exists(&self, id: ApiClientId) -> Result<bool, StoreError> {
        Ok(self.db.one(&EXISTS, args![id]).await?.is_some())
    }

    /// Deletes a client with its keys and redirect URLs. True too if that was done in the last 30 days.
    pub async fn delete_api_client(&self, id: ApiClientId, now: Timestamp) -> Result<bool, StoreError> {
        let mut tx = self.db.begin().await?;
        if tx.execute(&DELETE, args![id, now]).await? == 0 {
            let since = now.minus(DELETION_REMEMBERED);
            return Ok(tx.one(&DELETED_LATELY, args![id, since]).await?.is_some());
        }
        tx.execute(&DELETE_KEYS, args![id]).await?;
        tx.execute(&DELETE_REDIRECT_URLS, args![id, now]).await?;
        coherence::tell(&mut tx, &Stale::ApiClients, now).await?;
        tx.commit().await?;
        Ok(true)
    }
}

/// Clients from rows of one key each.
fn gather(rows: &[Row]) -> Result<Vec<ApiClientRow>, StoreError> {
    let mut clients: Vec<ApiClientRow> = Vec::new();
    for row in rows {
        let cells = row.of("api_clients", "c_", "id")?;
        let id = cells.parse("id")?;
        if clients.last().is_none_or(|last| last.id != id) {
            clients.push(ApiClientRow {
                id,
                display_name: cells.get("display_name")?,
                created_at: cells.time("created_at")?,
                keys: Vec::new(),
            });
        }
        let (Some(client), Some(key)) = (clients.last_mut(), key(row)?) else { continue };
        client.keys.push(key);
    }
    Ok(clients)
}

/// The key in a client's row; none if the client has none.
fn key(row: &Row) -> Result<Option<ApiKeyRow>, StoreError> {
    if row.get::<Option<String>>("k_id")?.is_none() {
        return Ok(None);
    }
    let cells = row.of("api_keys", "k_", "id")?;
    Ok(Some(ApiKeyRow {
        id: cells.parse("id")?,
        created_at: cells.time("created_at")?,
        expires_at: cells.time_opt("expires_at")?,
    }))
}
