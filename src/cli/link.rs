//! `accounts link`: a whole link from the terminal, with a browser on the same machine.

use std::time::Duration;

use anyhow::{Context as _, bail};
use url::Url;

use super::loopback::{ALLOWED_URL, Loopback};
use super::remote::{Remote, Target, reason};
use super::{accounts, output};
use crate::proto::v1::complete_link_request::Proof;
use crate::proto::v1::{CompleteLinkRequest, CompleteLinkResponse, StartLinkRequest, StartLinkResponse};

const NOTES: &str = "\
Example:
  token-wallet accounts link alice github --scope repo

The browser comes back to a listener on this machine; it must run here too. A production wallet must allow that once:
  token-wallet redirect-urls create http://127.0.0.1/linked";

const NOT_REFRESHABLE: &str = "\
warning: the provider gave no refresh token, so the account works only until its token ends. Ask for offline access, which
         many providers give for the scope offline_access (providers create --scope, accounts link --scope)";

/// Link an account: print the URL to open in a browser, wait for it, and finish the link.
#[derive(clap::Args)]
#[command(after_help = NOTES)]
pub(super) struct Link {
    /// The user to link for
    user: String,

    /// The provider's slug, such as github
    provider: String,

    /// A scope to ask for besides the configured ones; may be repeated
    #[arg(long, value_name = "SCOPE")]
    scope: Vec<String>,

    /// The account that will probably be chosen, as the provider knows it
    #[arg(long, value_name = "HINT")]
    login_hint: Option<String>,

    /// How long to wait for the browser
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = humantime::parse_duration)]
    timeout: Duration,

    /// Print the account as JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    target: Target,
}

impl Link {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let remote = self.target.remote()?;
        let mut loopback = Loopback::open().await.context("cannot listen on 127.0.0.1")?;
        let started = start(&remote, &self.request(loopback.url())).await?;
        output::note("Open this in a browser on this machine:");
        output::note(format_args!("\n  {}\n", started.authorization_url));
        let Ok(arrival) = tokio::time::timeout(self.timeout, loopback.arrival()).await else {
            bail!(
                "the browser did not come back in time; if it showed an error page, the wallet's log says what was wrong"
            );
        };
        let arrival = arrival.context("the listener stopped")?;
        loopback.close().await?;
        let completed = complete(&remote, &self.user, &arrival).await?;
        self.show(completed)
    }

    fn request(&self, redirect_url: &str) -> StartLinkRequest {
        StartLinkRequest {
            user_id: self.user.clone(),
            provider: self.provider.clone(),
            redirect_url: redirect_url.to_owned(),
            additional_scopes: self.scope.clone(),
            login_hint: self.login_hint.clone().unwrap_or_default(),
            ..Default::default()
        }
    }

    fn show(&self, completed: CompleteLinkResponse) -> anyhow::Result<()> {
        let account = completed.external_account.context("the wallet answered without an account")?;
        if !account.refreshable && account.expire_time.is_some() {
            output::note(NOT_REFRESHABLE);
        }
        if self.json {
            return Ok(output::json(&accounts::to_json(&account))?);
        }
        let what = if completed.created { "linked" } else { "linked again" };
        let who = output::plain(accounts::who(&account));
        output::note(format_args!("{what}: {who} at {}, for {}", self.provider, output::plain(&self.user)));
        Ok(output::line(account.id)?)
    }
}

async fn start(remote: &Remote, request: &StartLinkRequest) -> anyhow::Result<StartLinkResponse> {
    match remote.accounts().start_link(request.clone()).await {
        Ok(started) => Ok(started.into_inner()),
        Err(status) => {
            if reason(&status).as_deref() == Some("REDIRECT_URL_NOT_ALLOWED") {
                output::note(format_args!(
                    "This command needs it once: token-wallet redirect-urls create {ALLOWED_URL}"
                ));
            }
            Err(status.into())
        }
    }
}

/// Ends a link with the URL that the browser came back with.
pub(super) async fn complete(remote: &Remote, user: &str, arrival: &Url) -> anyhow::Result<CompleteLinkResponse> {
    if let Some((_, why)) = arrival.query_pairs().find(|(key, _)| key == "error") {
        bail!("nothing was linked: {}", output::plain(&why).replace('_', " "));
    }
    let proof = Some(Proof::RedirectedUrl(arrival.to_string()));
    let request = CompleteLinkRequest { user_id: user.to_owned(), proof };
    Ok(remote.accounts().complete_link(request).await?.into_inner())
}
