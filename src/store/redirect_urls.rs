//! The allow-list of redirect URLs.

use super::Store;
use super::error::StoreError;
use super::providers::DELETION_REMEMBERED;
use super::request_ids::{self, Note};
use super::sql::{Row, args, statements};
use crate::clock::Timestamp;
use crate::domain::error::Failure;
use crate::domain::ids::{ApiClientId, RedirectUrlId};

/// An entry of the allow-list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RedirectUrlRow {
    /// Its id.
    pub id: RedirectUrlId,
    /// The URL in its canonical form.
    pub url: String,
    /// Who may use it; `None` is every API client.
    pub client: Option<ApiClientId>,
    /// When it was allowed.
    pub created_at: Timestamp,
}

statements! {
    CREATE {
        "INSERT INTO redirect_urls (id, url, api_client_id, created_at) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING"
    }
    STANDING {
        "SELECT id, url, api_client_id, created_at FROM redirect_urls
         WHERE url = $1 AND COALESCE(api_client_id, '') = COALESCE($2, '') AND deleted_at IS NULL"
    }
    LIST {
        "SELECT id, url, api_client_id, created_at FROM redirect_urls
         WHERE deleted_at IS NULL AND id < COALESCE($1, '~') ORDER BY id DESC LIMIT $2"
    }
    DELETE { "UPDATE redirect_urls SET deleted_at = $2 WHERE id = $1 AND deleted_at IS NULL" }
    DELETED_LATELY { "SELECT 1 AS deleted FROM redirect_urls WHERE id = $1 AND deleted_at > $2" }
    // Ports of loopback URLs do not count, so that all of them may match.
    CANDIDATES {
        "SELECT url FROM redirect_urls WHERE deleted_at IS NULL
            AND (api_client_id IS NULL OR api_client_id = $1) AND (url = $2 OR SUBSTR(url, 1, 5) = 'http:')"
    }
}

impl Store {
    /// Allows a URL. Answers the entry that stands: this one, or that of an earlier call for the same URL and client.
    /// `note` makes the note of its call.
    pub async fn create_redirect_url(
        &self,
        entry: &RedirectUrlRow,
        note: impl FnOnce(&RedirectUrlRow) -> Result<Option<Note>, Failure>,
    ) -> Result<RedirectUrlRow, Failure> {
        let mut tx = self.db.begin().await?;
        tx.execute(&CREATE, args![entry.id, entry.url.as_str(), entry.client, entry.created_at]).await?;
        let row = tx.one(&STANDING, args![entry.url.as_str(), entry.client]).await?;
        // Gone again: deleted by somebody else between the two statements.
        let standing = row.map_or_else(|| Ok(entry.clone()), |row| redirect_url(&row))?;
        request_ids::write(&mut tx, note(&standing)?.as_ref(), None).await?;
        tx.commit().await?;
        Ok(standing)
    }

    /// Up to `limit` entries, the newest first, those older than `after`.
    pub async fn list_redirect_urls(
        &self,
        after: Option<RedirectUrlId>,
        limit: u32,
    ) -> Result<Vec<RedirectUrlRow>, StoreError> {
        self.db.all(&LIST, args![after, limit]).await?.iter().map(redirect_url).collect()
    }

    /// Removes an entry. True too if that was done in the last 30 days.
    pub async fn delete_redirect_url(&self, id: RedirectUrlId, now: Timestamp) -> Result<bool, StoreError> {
        if self.db.execute(&DELETE, args![id, now]).await? > 0 {
            return Ok(true);
        }
        let since = now.minus(DELETION_REMEMBERED);
        Ok(self.db.one(&DELETED_LATELY, args![id, since]).await?.is_some())
    }

    /// What `client` may use that `url` could match: entries that are equal to it, and all on loopback.
    pub async fn redirect_url_candidates(&self, client: ApiClientId, url: &str) -> Result<Vec<String>, StoreError> {
        self.db.all(&CANDIDATES, args![client, url]).await?.iter().map(|row| row.get("url")).collect()
    }
}

fn redirect_url(row: &Row) -> Result<RedirectUrlRow, StoreError> {
    let cells = row.of("redirect_urls", "", "id")?;
    Ok(RedirectUrlRow {
        id: cells.parse("id")?,
        url: cells.get("url")?,
        client: cells.parse_opt("api_client_id")?,
        created_at: cells.time("created_at")?,
    })
}
