//! Links the demo account as a browser would: page, decision, callback, all over HTTP.

use anyhow::{Context as _, bail};
use http::header::CONTENT_TYPE;
use http::{Method, Request};
use url::Url;
use url::form_urlencoded::Serializer;

use crate::outbound::{Outbound, OutboundConfig};

/// Where the flow ends. Nobody listens there: the last redirect is read, not followed.
pub(super) const REDIRECT_URL: &str = "http://127.0.0.1/dev";

/// No cookies, no scripts: neither the sandbox nor the wallet needs them.
pub(super) struct Browser(Outbound);

impl Browser {
    pub(super) fn new() -> anyhow::Result<Self> {
        Ok(Self(Outbound::new(&OutboundConfig { development: true, ..OutboundConfig::default() })?))
    }

    /// Opens the authorization page, approves as `person`, and follows the redirects up to [`REDIRECT_URL`].
    pub(super) async fn approve(&self, authorization_url: &str, person: &str) -> anyhow::Result<Url> {
        let page = self.send(Method::GET, authorization_url, String::new()).await?;
        if page.status != 200 {
            bail!("the sandbox shows no page to approve (status {})", page.status);
        }
        let decision =
            Serializer::new(String::new()).append_pair("person", person).append_pair("decision", "approve").finish();
        let callback = self.redirect(Method::POST, authorization_url, decision).await?;
        let arrival = self.redirect(Method::GET, &callback, String::new()).await?;
        let url = Url::parse(&arrival).context("the wallet's last redirect is no URL")?;
        if arrival.split('?').next() != Some(REDIRECT_URL) {
            bail!("the wallet's last redirect leads elsewhere");
        }
        Ok(url)
    }

    async fn redirect(&self, method: Method, url: &str, form: String) -> anyhow::Result<String> {
        let answer = self.send(method, url, form).await?;
        match (answer.status, answer.location) {
            (302 | 303, Some(location)) => Ok(location),
            (status, _) => bail!("a redirect was expected while linking, not status {status}"),
        }
    }

    async fn send(&self, method: Method, url: &str, form: String) -> anyhow::Result<crate::outbound::Response> {
        let mut request = Request::builder().method(&method).uri(url);
        if method == Method::POST {
            request = request.header(CONTENT_TYPE, "application/x-www-form-urlencoded");
        }
        Ok(self.0.send(request.body(form.into_bytes())?).await?)
    }
}
