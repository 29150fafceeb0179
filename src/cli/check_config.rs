//! `check-config`: all that is wrong with the configuration, without starting anything.

use super::{ConfigArgs, output};

/// Check the configuration: print "ok" or every error in it.
///
/// The same check is the first thing that `serve` does. Nothing is opened or started: `keys status` also tries the
/// root key and the store.
#[derive(clap::Args)]
#[command(after_help = "Exit codes: 0 in order, 78 not.")]
pub(super) struct Args {
    #[command(flatten)]
    config: ConfigArgs,
}

impl Args {
    pub(super) fn run(&self) -> anyhow::Result<()> {
        self.config.load()?;
        Ok(output::line("ok")?)
    }
}
