//! `token get`: a fresh access token on standard output.

use std::time::Duration;

use anyhow::anyhow;
use serde_json::json;

use super::output;
use super::remote::Target;
use crate::proto::v1;

const EXAMPLES: &str = "\
Examples:
  token-wallet token get demo sandbox
  token-wallet token get alice github --min-ttl 10m --scope repo
  token-wallet token get alice github --header | curl -H @- https://api.github.com/user";

/// Get access tokens.
#[derive(clap::Subcommand)]
pub(super) enum Command {
    Get(Get),
}

/// Print a fresh access token, and nothing else, on standard output.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Get {
    /// The user
    user: String,

    /// The provider's slug, such as github
    provider: String,

    /// One of the user's accounts there, `eac_…` [default: the default one, or the only one]
    #[arg(long, value_name = "ID")]
    account: Option<String>,

    /// The least life the token must have left, such as 10m; kept up to half of what the provider issues
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    min_ttl: Option<Duration>,

    /// A scope that the token must have; may be repeated
    #[arg(long, value_name = "SCOPE")]
    scope: Vec<String>,

    /// Print `Authorization: Bearer …` instead, for `curl -H @-`
    #[arg(long, conflicts_with = "json")]
    header: bool,

    /// Print the whole answer as JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    target: Target,
}

impl Command {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Get(get) => get.run().await,
        }
    }
}

impl Get {
    async fn run(self) -> anyhow::Result<()> {
        let remote = self.target.remote()?;
        let min_ttl = self.min_ttl.map(prost_types::Duration::try_from).transpose();
        let request = v1::GetAccessTokenRequest {
            user_id: self.user,
            provider: self.provider,
            external_account_id: self.account.unwrap_or_default(),
            required_scopes: self.scope,
            min_ttl: min_ttl.map_err(|_| anyhow!("--min-ttl is too long"))?,
            ..Default::default()
        };
        let token = remote.wallet().get_access_token(request).await?.into_inner();
        if self.json {
            output::json(&to_json(&token))?;
        } else if self.header {
            output::line(format_args!("Authorization: {} {}", scheme(&token.token_type), token.access_token))?;
        } else {
            output::line(&token.access_token)?;
        }
        Ok(())
    }
}

/// The scheme of the header. Providers write `bearer` in any case (RFC 6749 section 5.1), some APIs insist on `Bearer`.
fn scheme(token_type: &str) -> &str {
    if token_type.eq_ignore_ascii_case("bearer") || token_type.is_empty() { "Bearer" } else { token_type }
}

fn to_json(token: &v1::GetAccessTokenResponse) -> serde_json::Value {
    json!({
        "access_token": token.access_token,
        "token_type": token.token_type,
        "expire_time": output::json_time(token.expire_time),
        "scopes": token.scopes,
        "external_account_id": token.external_account_id,
        "provider": token.provider,
        "provider_account_id": token.provider_account_id,
        "provider_metadata": token.provider_metadata,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bearer_is_written_the_way_every_api_takes_it() {
        assert_eq!(
            [scheme("bearer"), scheme("BEARER"), scheme(""), scheme("DPoP")],
            ["Bearer", "Bearer", "Bearer", "DPoP"]
        );
    }
}
