//! `redirect-urls`: where flows may send browsers at their end.

use serde_json::{Value, json};

use super::remote::{PAGE_SIZE, Target};
use super::{output, remote};
use crate::proto::v1::{CreateRedirectUrlRequest, DeleteRedirectUrlRequest, ListRedirectUrlsRequest, RedirectUrl};

/// Allow, list and take back the URLs that flows may send browsers to.
#[derive(clap::Subcommand)]
pub(super) enum Command {
    Create(Create),
    List(List),
    Delete(Delete),
}

/// Allow a URL: https, http on a loopback address (any port), or an app's scheme with a dot.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  token-wallet redirect-urls create https://app.example.com/linked
  token-wallet redirect-urls create http://127.0.0.1/linked          for `accounts link`")]
pub(super) struct Create {
    /// The URL; flows may end exactly there
    url: String,

    /// The API client that may use it, `acl_…` [default: all]
    #[arg(long, value_name = "CLIENT")]
    client: Option<String>,

    /// Print JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    target: Target,
}

/// List the allowed URLs, newest first.
#[derive(clap::Args)]
pub(super) struct List {
    /// Print JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    target: Target,
}

/// Take a URL off the list. Deleting twice is no error.
#[derive(clap::Args)]
pub(super) struct Delete {
    /// The entry, `rdu_…`, as `redirect-urls list` shows it
    #[arg(value_name = "ENTRY")]
    entry: String,

    #[command(flatten)]
    target: Target,
}

impl Command {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Create(create) => create.run().await,
            Self::List(list) => list.run().await,
            Self::Delete(delete) => delete.run().await,
        }
    }
}

impl Create {
    async fn run(self) -> anyhow::Result<()> {
        let request = CreateRedirectUrlRequest {
            url: self.url,
            api_client_id: self.client.unwrap_or_default(),
            ..Default::default()
        };
        let answer = self.target.remote()?.redirect_urls().create_redirect_url(request).await?;
        let entry = answer.into_inner().redirect_url.unwrap_or_default();
        if self.json {
            return Ok(output::json(&to_json(&entry))?);
        }
        output::note(format_args!("allowed: {}", output::plain(&entry.url)));
        Ok(output::line(entry.id)?)
    }
}

impl List {
    async fn run(self) -> anyhow::Result<()> {
        let remote = self.target.remote()?;
        let all = remote::all(async |page_token| {
            let request = ListRedirectUrlsRequest { page_size: PAGE_SIZE, page_token };
            let page = remote.redirect_urls().list_redirect_urls(request).await?.into_inner();
            Ok((page.redirect_urls, page.next_page_token))
        })
        .await?;
        if self.json {
            return Ok(output::json(&all.iter().map(to_json).collect())?);
        }
        let row = |entry: &RedirectUrl| {
            let client = if entry.api_client_id.is_empty() { "all" } else { &entry.api_client_id };
            [entry.id.clone(), entry.url.clone(), client.to_owned(), output::time(entry.create_time)]
        };
        let rows: Vec<_> = all.iter().map(row).collect();
        Ok(output::table(["ENTRY", "URL", "CLIENT", "ALLOWED"], &rows)?)
    }
}

impl Delete {
    async fn run(self) -> anyhow::Result<()> {
        let request = DeleteRedirectUrlRequest { redirect_url_id: self.entry };
        self.target.remote()?.redirect_urls().delete_redirect_url(request).await?;
        output::note("deleted");
        Ok(())
    }
}

fn to_json(entry: &RedirectUrl) -> Value {
    json!({
        "id": entry.id,
        "url": entry.url,
        "api_client_id": entry.api_client_id,
        "create_time": output::json_time(entry.create_time),
    })
}
