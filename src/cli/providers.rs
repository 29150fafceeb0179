//! `providers`: the authorization servers that users can link.

mod secrets;
mod update;

use std::path::PathBuf;

use anyhow::Context as _;
use serde_json::{Value, json};

use super::remote::{PAGE_SIZE, Remote, Target};
use super::{output, remote, secret};
use crate::proto::v1::{
    self, CreateProviderRequest, DeleteProviderRequest, GetProviderRequest, ListProvidersRequest, Provider,
    ProviderEndpoints, ProviderSecret, ProviderState,
};

/// Configure, show, change and delete the providers that users can link.
#[derive(clap::Subcommand)]
pub(super) enum Command {
    Create(Box<Create>),
    List(List),
    Get(Get),
    Update(update::Update),
    #[command(subcommand)]
    Secrets(secrets::Command),
    Delete(Delete),
}

/// Configure a provider, and print the redirect URI to register there.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:
  token-wallet providers create acme --catalog-entry oauth2 --client-id wallet --client-secret-file acme.secret \\
    --authorization-url https://acme.example/authorize --token-url https://acme.example/token \\
    --userinfo-url https://acme.example/userinfo --scope profile
  pass show acme | token-wallet providers create acme … --client-secret-file -

Register the printed redirect URI at the provider, exactly as it is.",
    group = clap::ArgGroup::new("secret").required(true)
)]
pub(super) struct Create {
    /// Its name in every other call, such as github
    slug: String,

    /// The catalog entry it is made from; oauth2 takes any OAuth 2.0 server by its endpoints [default: the slug]
    #[arg(long, value_name = "ENTRY")]
    catalog_entry: Option<String>,

    /// Our client id there
    #[arg(long, value_name = "ID")]
    client_id: String,

    /// A file with our client secret there; - reads it from standard input, without echo on a terminal
    #[arg(long, value_name = "FILE", group = "secret")]
    client_secret_file: Option<PathBuf>,

    /// We have no secret there (a public client)
    #[arg(long, group = "secret")]
    public: bool,

    /// A scope that every link asks for besides the catalog's; may be repeated
    #[arg(long, value_name = "SCOPE")]
    scope: Vec<String>,

    /// Its name for people [default: the catalog's]
    #[arg(long, value_name = "NAME")]
    display_name: Option<String>,

    /// Print JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    endpoints: Endpoints,

    #[command(flatten)]
    target: Target,
}

/// Where a provider of the `oauth2` entry is reached.
#[derive(clap::Args)]
#[command(next_help_heading = "Endpoints (for --catalog-entry oauth2, which needs the first three)")]
struct Endpoints {
    /// The page that asks the user for consent
    #[arg(long, value_name = "URL")]
    authorization_url: Option<String>,

    /// Where codes and refresh tokens are redeemed
    #[arg(long, value_name = "URL")]
    token_url: Option<String>,

    /// Where the account's profile is read
    #[arg(long, value_name = "URL")]
    userinfo_url: Option<String>,

    /// Where tokens are revoked when an account is unlinked [default: nowhere]
    #[arg(long, value_name = "URL")]
    revocation_url: Option<String>,

    /// The issuer that callbacks must name [default: not checked]
    #[arg(long, value_name = "URL")]
    issuer: Option<String>,

    /// JSON pointer to the account's id in the profile [default: /sub]
    #[arg(long, value_name = "POINTER")]
    subject_pointer: Option<String>,
}

/// List the configured providers.
#[derive(clap::Args)]
pub(super) struct List {
    /// Print JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    target: Target,
}

/// Show one provider.
#[derive(clap::Args)]
pub(super) struct Get {
    /// Its slug
    provider: String,

    /// Print JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    target: Target,
}

/// Delete a provider that no account uses. Deleting twice is no error.
#[derive(clap::Args)]
pub(super) struct Delete {
    /// Its slug
    provider: String,

    #[command(flatten)]
    target: Target,
}

impl Command {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Create(create) => create.run().await,
            Self::List(list) => list.run().await,
            Self::Get(get) => get.run().await,
            Self::Update(update) => update.run().await,
            Self::Secrets(command) => command.run().await,
            Self::Delete(delete) => delete.run().await,
        }
    }
}

impl Create {
    async fn run(self) -> anyhow::Result<()> {
        let remote = self.target.remote()?;
        let secret = self.client_secret_file.as_deref().map(secret::read).transpose()?;
        let request = CreateProviderRequest {
            slug: self.slug,
            catalog_entry: self.catalog_entry.unwrap_or_default(),
            client_id: self.client_id,
            client_secret: secret.map(|secret| secret.expose().to_owned()).unwrap_or_default(),
            additional_scopes: self.scope,
            endpoints: self.endpoints.into_proto(),
            display_name: self.display_name.unwrap_or_default(),
            ..Default::default()
        };
        let answer = remote.providers().create_provider(request).await?.into_inner();
        let provider = answer.provider.context("the wallet answered without a provider")?;
        if self.json {
            return Ok(output::json(&to_json(&provider))?);
        }
        output::note("register this redirect URI at the provider:");
        Ok(output::line(output::plain(&provider.redirect_uri))?)
    }
}

impl Endpoints {
    /// Unset if nothing is given: the catalog knows the endpoints then.
    fn into_proto(self) -> Option<ProviderEndpoints> {
        let endpoints = ProviderEndpoints {
            authorization_url: self.authorization_url.unwrap_or_default(),
            token_url: self.token_url.unwrap_or_default(),
            userinfo_url: self.userinfo_url.unwrap_or_default(),
            revocation_url: self.revocation_url.unwrap_or_default(),
            issuer: self.issuer.unwrap_or_default(),
            subject_pointer: self.subject_pointer.unwrap_or_default(),
        };
        (endpoints != ProviderEndpoints::default()).then_some(endpoints)
    }
}

impl List {
    async fn run(self) -> anyhow::Result<()> {
        let all = all(&self.target.remote()?).await?;
        if self.json {
            return Ok(output::json(&all.iter().map(to_json).collect())?);
        }
        let row = |provider: &Provider| {
            let Provider { slug, display_name, catalog_entry, redirect_uri, .. } = provider.clone();
            [slug, display_name, catalog_entry, state(provider).to_owned(), redirect_uri]
        };
        let rows: Vec<_> = all.iter().map(row).collect();
        Ok(output::table(["PROVIDER", "NAME", "CATALOG ENTRY", "STATE", "REDIRECT URI"], &rows)?)
    }
}

impl Get {
    async fn run(self) -> anyhow::Result<()> {
        let request = GetProviderRequest { provider: self.provider };
        let answer = self.target.remote()?.providers().get_provider(request).await?.into_inner();
        let provider = answer.provider.context("the wallet answered without a provider")?;
        show(provider, self.json)
    }
}

/// Prints a provider whole.
fn show(provider: Provider, json: bool) -> anyhow::Result<()> {
    if json {
        return Ok(output::json(&to_json(&provider))?);
    }
    let (state, health) = (state(&provider).to_owned(), provider.health.unwrap_or_default());
    let endpoints = provider.endpoints.unwrap_or_default();
    let scopes: Vec<_> = [provider.base_scopes, provider.additional_scopes].concat();
    for (name, value) in [
        ("provider", provider.slug),
        ("id", provider.id),
        ("name", provider.display_name),
        ("catalog entry", provider.catalog_entry),
        ("client id", provider.client_id),
        ("redirect URI", provider.redirect_uri),
        ("scopes", scopes.join(" ")),
        ("authorization URL", endpoints.authorization_url),
        ("token URL", endpoints.token_url),
        ("userinfo URL", endpoints.userinfo_url),
        ("revocation URL", endpoints.revocation_url),
        ("issuer", endpoints.issuer),
        ("state", state),
        ("paused until", output::time(health.pause_end_time)),
        ("misconfigured since", output::time(health.misconfigured_time)),
        ("frozen until", output::time(health.freeze_end_time)),
        ("requests a second", provider.requests_per_second.to_string()),
        ("requests at once", provider.max_in_flight.to_string()),
        ("made", output::time(provider.create_time)),
        ("etag", provider.etag),
    ] {
        output::line(format_args!("{name:<20} {}", output::plain(&value)))?;
    }
    for ProviderSecret { id, create_time, last_used_time } in provider.secrets {
        let (made, used) = (output::time(create_time), output::time(last_used_time));
        output::line(format_args!("{:<20} {}  made {made}  last used {used}", "secret", output::plain(&id)))?;
    }
    Ok(())
}

/// How a provider fares, in one word.
fn state(provider: &Provider) -> &'static str {
    match provider.health.as_ref().map(v1::ProviderHealth::state) {
        Some(ProviderState::Ok) => "ok",
        Some(ProviderState::Paused) => "paused",
        Some(ProviderState::Frozen) => "frozen",
        Some(ProviderState::Misconfigured) => "misconfigured",
        Some(ProviderState::Unspecified) | None => "unknown",
    }
}

impl Delete {
    async fn run(self) -> anyhow::Result<()> {
        let request = DeleteProviderRequest { provider: self.provider };
        self.target.remote()?.providers().delete_provider(request).await?;
        output::note("deleted");
        Ok(())
    }
}

/// All providers, page by page.
pub(super) async fn all(remote: &Remote) -> anyhow::Result<Vec<Provider>> {
    remote::all(async |page_token| {
        let request = ListProvidersRequest { page_size: PAGE_SIZE, page_token };
        let page = remote.providers().list_providers(request).await?.into_inner();
        Ok((page.providers, page.next_page_token))
    })
    .await
}

fn to_json(provider: &Provider) -> Value {
    let endpoints = provider.endpoints.clone().unwrap_or_default();
    let secrets = provider.secrets.iter();
    let secrets = secrets.map(|secret| {
        json!({
            "id": secret.id,
            "create_time": output::json_time(secret.create_time),
            "last_used_time": output::json_time(secret.last_used_time),
        })
    });
    let health = provider.health.unwrap_or_default();
    json!({
        "id": provider.id,
        "slug": provider.slug,
        "catalog_entry": provider.catalog_entry,
        "display_name": provider.display_name,
        "client_id": provider.client_id,
        "redirect_uri": provider.redirect_uri,
        "base_scopes": provider.base_scopes,
        "additional_scopes": provider.additional_scopes,
        "endpoints": {
            "authorization_url": endpoints.authorization_url,
            "token_url": endpoints.token_url,
            "userinfo_url": endpoints.userinfo_url,
            "revocation_url": endpoints.revocation_url,
            "issuer": endpoints.issuer,
            "subject_pointer": endpoints.subject_pointer,
        },
        "secrets": secrets.collect::<Value>(),
        "create_time": output::json_time(provider.create_time),
        "etag": provider.etag,
        "health": {
            "state": state(provider),
            "pause_end_time": output::json_time(health.pause_end_time),
            "misconfigured_time": output::json_time(health.misconfigured_time),
            "freeze_end_time": output::json_time(health.freeze_end_time),
        },
        "requests_per_second": provider.requests_per_second,
        "max_in_flight": provider.max_in_flight,
    })
}
