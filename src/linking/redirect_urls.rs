//! The redirect-URL allow-list.

use super::Linking;
use crate::access::permit::{ManageRedirectUrls, Permit};
use crate::domain::error::Failure;
use crate::domain::ids::{ApiClientId, RedirectUrlId};
use crate::domain::instance::InstanceKind;
use crate::domain::redirect::RedirectUrl;
use crate::store::{Note, RedirectUrlRow};

impl Linking {
    /// Allows a URL, for one API client or for all. Allowing it again answers the entry that stands. `note` makes the
    /// note of the call.
    pub async fn allow_redirect_url(
        &self,
        _permit: &Permit<ManageRedirectUrls>,
        url: &str,
        client: Option<ApiClientId>,
        note: impl FnOnce(&RedirectUrlRow) -> Result<Option<Note>, Failure>,
    ) -> Result<RedirectUrlRow, Failure> {
        let url = RedirectUrl::parse(url, self.0.kind).map_err(|why| Failure::field("url", why))?;
        if let Some(client) = client
            && !self.0.store.api_client_exists(client).await?
        {
            return Err(Failure::ApiClientNotFound);
        }
        let now = self.0.clock.now();
        let row = RedirectUrlRow { id: RedirectUrlId::new(now), url: url.as_str().to_owned(), client, created_at: now };
        self.0.store.create_redirect_url(&row, note).await
    }

    /// Lists the allowed URLs, newest first, after the one that ended the page before.
    pub async fn redirect_urls(
        &self,
        _permit: &Permit<ManageRedirectUrls>,
        after: Option<RedirectUrlId>,
        limit: u32,
    ) -> Result<Vec<RedirectUrlRow>, Failure> {
        Ok(self.0.store.list_redirect_urls(after, limit).await?)
    }

    /// Takes a URL off the list; flows under way end there no more. Again is fine for 30 days.
    pub async fn forbid_redirect_url(
        &self,
        _permit: &Permit<ManageRedirectUrls>,
        id: RedirectUrlId,
    ) -> Result<(), Failure> {
        let gone = self.0.store.delete_redirect_url(id, self.0.clock.now()).await?;
        if gone { Ok(()) } else { Err(Failure::RedirectUrlNotFound) }
    }

    /// Whether a flow of this client may end at `url`. In development, loopback needs no entry.
    pub(super) async fn may_end_at(&self, client: ApiClientId, url: &RedirectUrl) -> Result<bool, Failure> {
        if self.0.kind == InstanceKind::Development && url.is_loopback() {
            return Ok(true);
        }
        let candidates = self.0.store.redirect_url_candidates(client, url.as_str()).await?;
        let allowed = candidates.iter().filter_map(|entry| RedirectUrl::parse(entry, self.0.kind).ok());
        Ok(allowed.into_iter().any(|entry| url.is_at(&entry)))
    }
}
