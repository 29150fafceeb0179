//! `accounts link` and `accounts reauthorize`: a whole flow from the terminal, with a browser on the same machine.

use std::time::Duration;

use anyhow::{Context as _, bail};
use url::Url;

use super::loopback::{ALLOWED_URL, Loopback};
use super::remote::{Remote, Target, reason};
use super::{accounts, output};
use crate::proto::v1::complete_link_request::Proof;
use crate::proto::v1::{
    CompleteLinkRequest, CompleteLinkResponse, GetExternalAccountRequest, StartLinkRequest, StartReauthorizationRequest,
};

const NOTES: &str = "\
Example:
  token-wallet accounts link alice github --scope repo

The browser comes back to a listener on this machine; it must run here too. A production wallet must allow that once:
  token-wallet redirect-urls create http://127.0.0.1/linked";

const NOT_REFRESHABLE: &str = "\
warning: the provider gave no refresh token, so the account works only until its token ends. Ask for offline access, which
         many providers give for the scope offline_access (providers create --scope, accounts link --scope)";

const KEPT: &str = "\
note: the account keeps the grant that it had: the new one has no refresh token, or fewer scopes";

/// Link an account: print the URL to open in a browser, wait for it, and finish the link.
#[derive(clap::Args)]
#[command(after_help = NOTES)]
pub(super) struct Link {
    /// The user to link for
    user: String,

    /// The provider's slug, such as github
    provider: String,

    #[command(flatten)]
    consent: Consent,
}

/// Renew an account's grant: print the URL to open in a browser, wait for it, and finish.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  token-wallet accounts reauthorize eac_01jd… --scope repo")]
pub(super) struct Reauthorize {
    /// The account, `eac_…`, as `accounts list` shows it
    #[arg(value_name = "ACCOUNT")]
    account: String,

    #[command(flatten)]
    consent: Consent,
}

/// What is asked of the person, and how the terminal waits for them.
#[derive(clap::Args)]
struct Consent {
    /// A scope to ask for besides the configured ones; may be repeated
    #[arg(long, value_name = "SCOPE")]
    scope: Vec<String>,

    /// A per-user part of the provider's URLs, such as shop=acme; may be repeated
    #[arg(long, value_name = "NAME=VALUE", value_parser = part)]
    param: Vec<(String, String)>,

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
        let remote = self.consent.target.remote()?;
        let loopback = listen().await?;
        let request = StartLinkRequest {
            user_id: self.user.clone(),
            provider: self.provider,
            redirect_url: loopback.url().to_owned(),
            additional_scopes: self.consent.scope.clone(),
            login_hint: self.consent.login_hint.clone().unwrap_or_default(),
            provider_params: self.consent.param.iter().cloned().collect(),
            ..Default::default()
        };
        let started = remote.accounts().start_link(request).await;
        let started = started.inspect_err(|status| advise(reason(status).as_deref()))?.into_inner();
        self.consent.end(&remote, loopback, &started.authorization_url, &self.user).await
    }
}

impl Reauthorize {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let remote = self.consent.target.remote()?;
        let request = GetExternalAccountRequest { external_account_id: self.account.clone() };
        let account = remote.accounts().get_external_account(request).await?.into_inner().external_account;
        let user = account.context("the wallet answered without an account")?.user_id;
        let loopback = listen().await?;
        let request = StartReauthorizationRequest {
            external_account_id: self.account,
            redirect_url: loopback.url().to_owned(),
            additional_scopes: self.consent.scope.clone(),
            login_hint: self.consent.login_hint.clone().unwrap_or_default(),
            provider_params: self.consent.param.iter().cloned().collect(),
            ..Default::default()
        };
        let started = remote.accounts().start_reauthorization(request).await;
        let started = started.inspect_err(|status| advise(reason(status).as_deref()))?.into_inner();
        self.consent.end(&remote, loopback, &started.authorization_url, &user).await
    }
}

impl Consent {
    /// Waits for the browser and ends the flow for `user`.
    async fn end(
        &self,
        remote: &Remote,
        mut loopback: Loopback,
        authorization_url: &str,
        user: &str,
    ) -> anyhow::Result<()> {
        output::note("Open this in a browser on this machine:");
        output::note(format_args!("\n  {authorization_url}\n"));
        let Ok(arrival) = tokio::time::timeout(self.timeout, loopback.arrival()).await else {
            bail!(
                "the browser did not come back in time; if it showed an error page, the wallet's log says what was wrong"
            );
        };
        let arrival = arrival.context("the listener stopped")?;
        loopback.close().await?;
        self.show(complete(remote, user, &arrival).await?)
    }

    fn show(&self, completed: CompleteLinkResponse) -> anyhow::Result<()> {
        let account = completed.external_account.context("the wallet answered without an account")?;
        if completed.kept_grant {
            output::note(KEPT);
        }
        if !account.refreshable && account.expire_time.is_some() {
            output::note(NOT_REFRESHABLE);
        }
        if self.json {
            return Ok(output::json(&accounts::to_json(&account))?);
        }
        let what = if completed.created { "linked" } else { "linked again" };
        let (who, user) = (output::plain(accounts::who(&account)), output::plain(&account.user_id));
        output::note(format_args!("{what}: {who} at {}, for {user}", output::plain(&account.provider)));
        Ok(output::line(account.id)?)
    }
}

async fn listen() -> anyhow::Result<Loopback> {
    Loopback::open().await.context("cannot listen on 127.0.0.1")
}

/// Reads `NAME=VALUE`.
fn part(text: &str) -> Result<(String, String), &'static str> {
    let (name, value) = text.split_once('=').ok_or("must be NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

/// Says what this command needs, if that is why a flow was refused.
fn advise(reason: Option<&str>) {
    if reason == Some("REDIRECT_URL_NOT_ALLOWED") {
        output::note(format_args!("This command needs it once: token-wallet redirect-urls create {ALLOWED_URL}"));
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
