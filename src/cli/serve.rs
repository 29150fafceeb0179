//! `serve`: the wallet itself.

use std::path::PathBuf;

use super::stop::Stop;
use super::{ConfigArgs, logs};
use crate::app::App;
use crate::clock::Clock;

const NOTES: &str = "\
Examples:
  token-wallet serve
  token-wallet serve --config /etc/token-wallet.toml --bootstrap-admin-key-file /run/secrets/admin.key

A new store needs a keyring first: token-wallet keys init. SIGTERM and Ctrl-C end it in order, with exit code 0;
a wrong configuration, root key or keyring ends it with 78 before anything listens, a SQLite file that another process
uses with 1. A store that is away is waited for.";

/// Run the wallet until it is told to stop.
#[derive(clap::Args)]
#[command(after_help = NOTES)]
pub(super) struct Args {
    #[command(flatten)]
    config: ConfigArgs,

    /// A new file for a first API key, made if there is no API client yet
    #[arg(long, value_name = "FILE")]
    bootstrap_admin_key_file: Option<PathBuf>,
}

impl Args {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let mut stop = Stop::listen()?;
        let mut config = self.config.load()?;
        config.bootstrap_admin_key_file = self.bootstrap_admin_key_file.or(config.bootstrap_admin_key_file);
        logs(&config.log)?;
        #[cfg(feature = "failpoints")]
        let clock = for_crash_tests()?;
        #[cfg(not(feature = "failpoints"))]
        let clock = Clock::system();
        let app = tokio::select! {
            app = App::start(config, clock) => app?,
            () = stop.told() => return Ok(()),
        };
        let told = tokio::select! {
            () = stop.told() => true,
            () = app.broken() => false,
        };
        app.shutdown().await;
        anyhow::ensure!(told, "a listener broke; the log says which and why");
        Ok(())
    }
}

/// A crash test says where the process dies, and moves its clock by the file that `TOKEN_WALLET_CLOCK` names.
#[cfg(feature = "failpoints")]
fn for_crash_tests() -> anyhow::Result<Clock> {
    use crate::{config, failpoint};
    if let Some(step) = config::variable(failpoint::VARIABLE) {
        failpoint::arm(&step.to_string_lossy())?;
    }
    Ok(match config::variable("TOKEN_WALLET_CLOCK") {
        Some(path) => Clock::from_file(path.into())?,
        None => Clock::system(),
    })
}
