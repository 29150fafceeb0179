//! `providers secrets`: changing a client secret without a gap.

use std::path::PathBuf;

use anyhow::Context as _;

use super::super::remote::Target;
use super::super::{output, secret};
use crate::proto::v1::{CreateProviderSecretRequest, DeleteProviderSecretRequest};

/// Add and remove client secrets.
#[derive(clap::Subcommand)]
#[command(after_help = "To change a secret without a gap:
  1. add the new one
  2. take the old one back at the provider, or let it expire: what worked last is tried first
  3. wait until `token-wallet providers get` shows that the new one was used (to the hour)
  4. remove the old one")]
pub(in crate::cli) enum Command {
    Add(Add),
    Remove(Remove),
}

/// Give a provider another client secret, up to three; it is tried where the others are refused.
#[derive(clap::Args)]
pub(in crate::cli) struct Add {
    /// The provider's slug
    provider: String,

    /// A file with the client secret; - reads it from standard input, without echo on a terminal
    #[arg(long, value_name = "FILE")]
    client_secret_file: PathBuf,

    #[command(flatten)]
    target: Target,
}

/// Remove a client secret, but not the last one. Removing twice is no error.
#[derive(clap::Args)]
pub(in crate::cli) struct Remove {
    /// The provider's slug
    provider: String,

    /// The secret, `psc_…`, as providers get shows it
    #[arg(value_name = "SECRET")]
    secret: String,

    #[command(flatten)]
    target: Target,
}

impl Command {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Add(add) => add.run().await,
            Self::Remove(remove) => remove.run().await,
        }
    }
}

impl Add {
    async fn run(self) -> anyhow::Result<()> {
        let remote = self.target.remote()?;
        let client_secret = secret::read(&self.client_secret_file)?.expose().to_owned();
        let request = CreateProviderSecretRequest { provider: self.provider, client_secret, ..Default::default() };
        let answer = remote.providers().create_provider_secret(request).await?.into_inner();
        let added = answer.provider_secret.context("the wallet answered without a secret")?;
        Ok(output::line(output::plain(&added.id))?)
    }
}

impl Remove {
    async fn run(self) -> anyhow::Result<()> {
        let request = DeleteProviderSecretRequest { provider: self.provider, provider_secret_id: self.secret };
        self.target.remote()?.providers().delete_provider_secret(request).await?;
        output::note("removed");
        Ok(())
    }
}
