//! `migrate`: brings the store's schema up to date without serving.

use super::{ConfigArgs, logs, output};
use crate::store::Store;

/// Bring the store's schema up to this version. `serve` does the same at its start.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  token-wallet migrate --config /etc/token-wallet.toml")]
pub(super) struct Args {
    #[command(flatten)]
    config: ConfigArgs,
}

impl Args {
    pub(super) async fn run(&self) -> anyhow::Result<()> {
        let config = self.config.load()?;
        logs(&config.log)?;
        let store = Store::open(config.store.url.expose(), config.store.max_connections).await?;
        let migrated = store.migrate().await;
        store.close().await;
        migrated?;
        output::note("the schema is up to date");
        Ok(())
    }
}
