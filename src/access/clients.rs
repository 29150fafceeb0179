//! API clients: made, listed, removed.

use std::time::Duration;

use super::permit::{ManageClients, Permit};
use super::{Access, api_key};
use crate::domain::error::Failure;
use crate::domain::ids::{ApiClientId, ApiKeyId};
use crate::domain::secret::ApiKey;
use crate::store::{ApiClientRow, ApiKeyRow, Note, Stale};

/// A new API client with the one showing of its first key.
pub struct NewClient {
    /// The client, with its key's row.
    pub client: ApiClientRow,
    /// The key itself.
    pub key: ApiKey,
}

impl Access {
    /// Makes an API client. `key_ttl` unset: its key does not expire. `note` makes the note of the call.
    pub async fn create_client(
        &self,
        _permit: &Permit<ManageClients>,
        display_name: &str,
        key_ttl: Option<Duration>,
        note: impl FnOnce(&NewClient) -> Result<Option<Note>, Failure>,
    ) -> Result<NewClient, Failure> {
        self.make_client(display_name, key_ttl, note).await
    }

    /// Makes the first API client of a store that nobody can call yet; for commands that hold the store itself.
    pub async fn bootstrap_client(&self, display_name: &str) -> Result<NewClient, Failure> {
        self.make_client(display_name, None, |_| Ok(None)).await
    }

    /// Lists API clients, newest first, after the one that ended the page before.
    pub async fn clients(
        &self,
        _permit: &Permit<ManageClients>,
        after: Option<ApiClientId>,
        limit: u32,
    ) -> Result<Vec<ApiClientRow>, Failure> {
        Ok(self.store.list_api_clients(after, limit).await?)
    }

    /// Removes an API client and its keys: no call that starts after this has returned is let in by them. Again is fine
    /// for 30 days.
    pub async fn delete_client(&self, _permit: &Permit<ManageClients>, client: ApiClientId) -> Result<(), Failure> {
        let (store, now) = (self.store.clone(), self.clock.now());
        let delete = async move { store.delete_api_client(client, now).await };
        if !self.cache.change(Stale::ApiClients, delete).await? {
            return Err(Failure::ApiClientNotFound);
        }
        self.cache.settled().await;
        tracing::info!(%client, "an API client is removed");
        Ok(())
    }

    async fn make_client(
        &self,
        display_name: &str,
        key_ttl: Option<Duration>,
        note: impl FnOnce(&NewClient) -> Result<Option<Note>, Failure>,
    ) -> Result<NewClient, Failure> {
        let name_is_fine = (1..=100).contains(&display_name.len()) && !display_name.chars().any(char::is_control);
        if !name_is_fine {
            return Err(Failure::field("display_name", "must be 1 to 100 bytes without control characters"));
        }
        if key_ttl.is_some_and(|ttl| ttl < Duration::from_secs(1)) {
            return Err(Failure::field("key_ttl", "must be at least a second"));
        }
        let now = self.clock.now();
        let key_row =
            ApiKeyRow { id: ApiKeyId::new(now), created_at: now, expires_at: key_ttl.map(|ttl| now.plus(ttl)) };
        let (key, hash) = api_key::make(&self.instance, key_row.id);
        let client = ApiClientRow {
            id: ApiClientId::new(now),
            display_name: display_name.to_owned(),
            created_at: now,
            keys: vec![key_row],
        };
        let new = NewClient { client, key };
        let note = note(&new)?;
        self.store.create_api_client(&new.client, &hash, note.as_ref()).await?;
        tracing::info!(client = %new.client.id, "made an API client");
        Ok(new)
    }
}
