//! `clients`: the services that may call.

use std::time::Duration;

use anyhow::{Context as _, anyhow};
use serde_json::{Value, json};

use super::remote::{PAGE_SIZE, Target};
use super::{ConfigArgs, output, remote};
use crate::app;
use crate::clock::Clock;
use crate::proto::v1::{ApiClient, ApiKeyInfo, CreateApiClientRequest, DeleteApiClientRequest, ListApiClientsRequest};

/// Make, list and delete API clients: the services that may call, and their keys.
#[derive(clap::Subcommand)]
pub(super) enum Command {
    Create(Create),
    List(List),
    Delete(Delete),
}

/// Make an API client and print its API key, which is shown this once.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  token-wallet clients create billing --key-ttl 90days > billing.key
  token-wallet clients create admin --bootstrap > admin.key          the first one, on a stopped store")]
pub(super) struct Create {
    /// Its name for operators
    name: String,

    /// How long the key works, such as 90days [default: for ever]
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    key_ttl: Option<Duration>,

    /// Write to the configured store itself, which no wallet may be using: how the first key is made
    #[arg(long, conflicts_with_all = ["key_ttl", "api_key_file"])]
    bootstrap: bool,

    /// Print JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    config: ConfigArgs,

    #[command(flatten)]
    target: Target,
}

/// List the API clients, newest first.
#[derive(clap::Args)]
pub(super) struct List {
    /// Print JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    target: Target,
}

/// Delete an API client: its keys stop working at once. Deleting twice is no error.
#[derive(clap::Args)]
pub(super) struct Delete {
    /// The client, `acl_…`, as `clients list` shows it
    #[arg(value_name = "CLIENT")]
    client: String,

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
        if self.bootstrap {
            let config = self.config.load()?;
            let (id, key) = app::bootstrap_client(&config, &self.name, &Clock::system()).await?;
            return show(&id.to_string(), &self.name, key.expose(), self.json);
        }
        let key_ttl = self.key_ttl.map(prost_types::Duration::try_from).transpose();
        let key_ttl = key_ttl.map_err(|_| anyhow!("--key-ttl is too long"))?;
        let request = CreateApiClientRequest { display_name: self.name, key_ttl, ..Default::default() };
        let created = self.target.remote()?.clients().create_api_client(request).await?.into_inner();
        let incomplete = "the wallet answered without a key";
        let (client, key) = created.api_client.zip(created.api_key).context(incomplete)?;
        show(&client.id, &client.display_name, &key.secret, self.json)
    }
}

impl List {
    async fn run(self) -> anyhow::Result<()> {
        let remote = self.target.remote()?;
        let all = remote::all(async |page_token| {
            let request = ListApiClientsRequest { page_size: PAGE_SIZE, page_token };
            let page = remote.clients().list_api_clients(request).await?.into_inner();
            Ok((page.api_clients, page.next_page_token))
        })
        .await?;
        if self.json {
            return Ok(output::json(&all.iter().map(to_json).collect())?);
        }
        let rows: Vec<_> = all.into_iter().map(row).collect();
        Ok(output::table(["CLIENT", "NAME", "MADE", "KEY", "KEY ENDS"], &rows)?)
    }
}

impl Delete {
    async fn run(self) -> anyhow::Result<()> {
        let request = DeleteApiClientRequest { api_client_id: self.client };
        self.target.remote()?.clients().delete_api_client(request).await?;
        output::note("deleted");
        Ok(())
    }
}

/// Shows a new client and its key: the one time that the key is seen.
fn show(id: &str, name: &str, secret: &str, json: bool) -> anyhow::Result<()> {
    output::note("This API key is shown once and is not stored: keep it where secrets are kept.");
    if json {
        return Ok(output::json(&json!({ "id": id, "display_name": name, "api_key": secret }))?);
    }
    output::note(format_args!("client: {id}"));
    Ok(output::line(secret)?)
}

fn to_json(client: &ApiClient) -> Value {
    let key = |key: &ApiKeyInfo| {
        json!({
            "id": key.id,
            "create_time": output::json_time(key.create_time),
            "expire_time": output::json_time(key.expire_time),
        })
    };
    json!({
        "id": client.id,
        "display_name": client.display_name,
        "create_time": output::json_time(client.create_time),
        "api_keys": client.api_keys.iter().map(key).collect::<Value>(),
    })
}

fn row(client: ApiClient) -> [String; 5] {
    let keys = client.api_keys.iter().map(|key| key.id.as_str()).collect::<Vec<_>>().join(" ");
    let end = |key: &ApiKeyInfo| key.expire_time.map_or_else(|| "never".to_owned(), |end| output::time(Some(end)));
    let ends = client.api_keys.iter().map(end).collect::<Vec<_>>().join(" ");
    [client.id, client.display_name, output::time(client.create_time), keys, ends]
}
