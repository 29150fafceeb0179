//! `providers update`.

use anyhow::{Context as _, bail};
use prost_types::FieldMask;

use super::super::remote::Target;
use crate::proto::v1::UpdateProviderRequest;

/// Change how a provider is asked, and have credentials that it refused tried again at once.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  token-wallet providers update acme --requests-per-second 10
  token-wallet providers update acme --unfreeze")]
pub(in crate::cli) struct Update {
    /// Its slug
    provider: String,

    /// Its name for people; an empty one is the catalog's
    #[arg(long, value_name = "NAME")]
    display_name: Option<String>,

    /// A scope that every link asks for besides the catalog's, instead of those so far; may be repeated
    #[arg(long, value_name = "SCOPE")]
    scope: Vec<String>,

    /// Links ask for the catalog's scopes alone
    #[arg(long, conflicts_with = "scope")]
    no_scopes: bool,

    /// How many requests a second it is sent at most; 0 is the default, 50
    #[arg(long, value_name = "COUNT")]
    requests_per_second: Option<i32>,

    /// How many requests it is sent at once at most; 0 is the default, 16
    #[arg(long, value_name = "COUNT")]
    max_in_flight: Option<i32>,

    /// End a freeze: refusals end grants again
    #[arg(long)]
    unfreeze: bool,

    /// Its etag as it was read (get); refused if it was changed since
    #[arg(long)]
    etag: Option<String>,

    /// Print JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    target: Target,
}

impl Update {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let named = [
            ("display_name", self.display_name.is_some()),
            ("additional_scopes", self.no_scopes || !self.scope.is_empty()),
            ("requests_per_second", self.requests_per_second.is_some()),
            ("max_in_flight", self.max_in_flight.is_some()),
            ("verdicts_frozen", self.unfreeze),
        ];
        let paths: Vec<_> = named.into_iter().filter(|(_, named)| *named).map(|(path, _)| path.to_owned()).collect();
        if paths.is_empty() {
            bail!("nothing to change is given; see providers update --help");
        }
        let request = UpdateProviderRequest {
            provider: self.provider,
            update_mask: Some(FieldMask { paths }),
            display_name: self.display_name.unwrap_or_default(),
            additional_scopes: self.scope,
            requests_per_second: self.requests_per_second.unwrap_or_default(),
            max_in_flight: self.max_in_flight.unwrap_or_default(),
            verdicts_frozen: false,
            etag: self.etag.unwrap_or_default(),
        };
        let answer = self.target.remote()?.providers().update_provider(request).await?.into_inner();
        super::show(answer.provider.context("the wallet answered without a provider")?, self.json)
    }
}
