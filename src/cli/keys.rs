//! `keys`: the keyring, by commands on the store itself.

use serde_json::{Value, json};

use super::{ConfigArgs, output};
use crate::clock::Clock;
use crate::keys::{self, DataKeyStatus, KeyStatus, KeysError};
use crate::vault::KeyState;

/// Make the keyring of a new store, or look at it.
#[derive(clap::Subcommand)]
pub(super) enum Command {
    Init(Init),
    Status(Status),
}

const INIT_EXAMPLE: &str = "\
Example, with a root key in the environment (keep it: nothing opens without it):
  export TOKEN_WALLET_ROOT_KEY=$(head -c 32 /dev/urandom | base64)
  token-wallet keys init";

/// Make the keyring of a new store, wrapped by the configured root key. Once in a store's life.
#[derive(clap::Args)]
#[command(after_help = INIT_EXAMPLE)]
pub(super) struct Init {
    #[command(flatten)]
    shared: Shared,

    /// Succeed where the store has a keyring already that the root key opens
    #[arg(long)]
    if_missing: bool,
}

/// Open the keyring with the configured root key, and show its keys.
#[derive(clap::Args)]
#[command(after_help = "Exit codes: 0 it opens, 78 it does not, 1 the store is away or another process uses it.")]
pub(super) struct Status {
    #[command(flatten)]
    shared: Shared,
}

#[derive(clap::Args)]
struct Shared {
    #[command(flatten)]
    config: ConfigArgs,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Command {
    pub(super) async fn run(&self) -> anyhow::Result<()> {
        match self {
            Self::Init(Init { shared, if_missing }) => {
                let config = shared.config.load()?;
                let made = match keys::init(&config, &Clock::system()).await {
                    Err(KeysError::AlreadyThere) if *if_missing => keys::status(&config).await,
                    made => made,
                };
                shared.show(&made?)
            }
            Self::Status(Status { shared }) => shared.show(&keys::status(&shared.config.load()?).await?),
        }
    }
}

impl Shared {
    fn show(&self, status: &KeyStatus) -> anyhow::Result<()> {
        if self.json {
            return Ok(output::json(&to_json(status))?);
        }
        output::line(format_args!("instance              {} ({})", status.instance, status.kind.as_str()))?;
        output::line(format_args!("root key fingerprint  {}", status.fingerprint))?;
        output::line("")?;
        let row = |key: &DataKeyStatus| [key.id.to_string(), word(key.state).to_owned(), key.created_at.to_string()];
        Ok(output::table(["DATA KEY", "STATE", "MADE"], &status.keys.iter().map(row).collect::<Vec<_>>())?)
    }
}

fn to_json(status: &KeyStatus) -> Value {
    let key = |key: &DataKeyStatus| json!({ "id": key.id, "state": word(key.state), "create_time": key.created_at.to_string() });
    json!({
        "instance": status.instance.to_string(),
        "kind": status.kind.as_str(),
        "root_key_fingerprint": status.fingerprint,
        "data_keys": status.keys.iter().map(key).collect::<Value>(),
    })
}

const fn word(state: KeyState) -> &'static str {
    match state {
        KeyState::Pending => "pending",
        KeyState::Active => "active",
        KeyState::Retired => "retired",
    }
}
