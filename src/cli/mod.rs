//! The command line: one file a command; `remote` is the gRPC client.

mod accounts;
mod check_config;
mod clients;
mod dev;
mod dev_file;
mod events;
mod health;
mod keys;
mod link;
mod loopback;
mod migrate;
mod migrate_store;
mod output;
mod providers;
mod redirect_urls;
mod remote;
mod sandbox;
mod secret;
mod serve;
mod stop;
mod token;
mod users;

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::app::StartError;
use crate::config::{self, Config, ConfigError, LogConfig, LogFormat};
use crate::keys::KeysError;
use crate::move_store::MoveError;
use crate::store::StoreError;
use crate::telemetry::{self, TelemetryError};
use crate::vault::RootKeyError;

const EXAMPLES: &str = "\
Examples:
  token-wallet dev                                       try it: everything on this machine, one linked account
  token-wallet token get demo sandbox                    print a fresh access token
  token-wallet accounts link USER PROVIDER               link an account in a browser
  token-wallet serve --config /etc/token-wallet.toml     run it

Exit codes: 0 done, 1 failed, 2 wrong usage, 78 wrong configuration (root key included).";

/// Holds OAuth grants and answers (user, provider) with an access token that is always fresh.
#[derive(Parser)]
#[command(name = "token-wallet", version, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Dev(dev::Args),
    Serve(serve::Args),
    Sandbox(sandbox::Args),
    Migrate(migrate::Args),
    MigrateStore(migrate_store::Args),
    CheckConfig(check_config::Args),
    Health(health::Args),
    #[command(subcommand)]
    Keys(keys::Command),
    #[command(subcommand)]
    Clients(clients::Command),
    #[command(subcommand)]
    Providers(providers::Command),
    #[command(subcommand)]
    RedirectUrls(redirect_urls::Command),
    #[command(subcommand)]
    Accounts(accounts::Command),
    #[command(subcommand)]
    Users(users::Command),
    #[command(subcommand)]
    Token(token::Command),
    #[command(subcommand)]
    Events(events::Command),
}

/// The configuration of the commands that run on it.
#[derive(clap::Args)]
struct ConfigArgs {
    /// The configuration file; variables `TOKEN_WALLET__SECTION__KEY` override it [default: token-wallet.toml, if there]
    #[arg(long, env = "TOKEN_WALLET_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
}

impl ConfigArgs {
    fn load(&self) -> Result<Config, ConfigError> {
        Config::load(self.config.as_deref())
    }
}

/// Runs the command that the process was started with.
pub async fn run() -> ExitCode {
    // Prints help, versions and usage errors by itself and ends with 0 or 2: nothing runs yet.
    let cli = Cli::parse();
    match cli.command.run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => ExitCode::from(report(&error)),
    }
}

impl Command {
    async fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Dev(args) => args.run().await,
            Self::Serve(args) => args.run().await,
            Self::Sandbox(args) => args.run().await,
            Self::Migrate(args) => args.run().await,
            Self::MigrateStore(args) => args.run().await,
            Self::CheckConfig(args) => args.run(),
            Self::Health(args) => args.run().await,
            Self::Keys(command) => command.run().await,
            Self::Clients(command) => command.run().await,
            Self::Providers(command) => command.run().await,
            Self::RedirectUrls(command) => command.run().await,
            Self::Accounts(command) => command.run().await,
            Self::Users(command) => command.run().await,
            Self::Token(command) => command.run().await,
            Self::Events(command) => command.run().await,
        }
    }
}

/// Tells what went wrong, once, and gives the exit code.
fn report(error: &anyhow::Error) -> u8 {
    // Whoever reads our output has seen enough, as in `… | head -1`.
    if error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe) {
        return 0;
    }
    if let Some(explanation) = remote::explain(error) {
        output::failure(&explanation, explanation.hint.as_deref());
        return 1;
    }
    output::failure(format_args!("{error:#}"), None);
    exit_code(error)
}

/// 78 where somebody must mend the configuration, the root key or the store first; 1 where another try may help.
fn exit_code(error: &anyhow::Error) -> u8 {
    if let Some(error) = error.downcast_ref::<StartError>() {
        return error.exit_code();
    }
    let configuration = error.is::<ConfigError>()
        || error.is::<RootKeyError>()
        || matches!(error.downcast_ref(), Some(TelemetryError::Filter(_)))
        || error.downcast_ref::<KeysError>().is_some_and(KeysError::is_configuration)
        || error.downcast_ref::<MoveError>().is_some_and(MoveError::is_configuration)
        || error.downcast_ref::<StoreError>().is_some_and(StoreError::is_configuration);
    if configuration { config::EXIT_CODE } else { 1 }
}

/// Begins to log as configured; `RUST_LOG` has the last word on what.
fn logs(log: &LogConfig) -> Result<(), TelemetryError> {
    let format = match log.format {
        LogFormat::Pretty => telemetry::Format::Pretty,
        LogFormat::Json => telemetry::Format::Json,
    };
    let wished = config::variable("RUST_LOG").and_then(|filter| filter.into_string().ok());
    telemetry::init(format, wished.filter(|filter| !filter.is_empty()).as_deref().unwrap_or(&log.filter))
}
