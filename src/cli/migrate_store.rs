//! `migrate-store`: from SQLite to PostgreSQL.

use std::io::{self, IsTerminal as _, Write as _};
use std::path::PathBuf;

use anyhow::Context as _;

use super::{ConfigArgs, logs, output};
use crate::clock::Clock;
use crate::config::StoreUrl;
use crate::move_store;

const NOTES: &str = "\
Example, with the wallet stopped:
  token-wallet migrate-store --config token-wallet.toml --to-url-file postgres.url
  then set store.url_file to it, and start `serve`

It can be told again if it fails or is stopped half way, and goes on where it was. From its beginning on no wallet starts
on the old store, and none on the new one before its end: two would redeem the same refresh tokens.";

/// Move a store from SQLite to PostgreSQL, under the same root key.
#[derive(clap::Args)]
#[command(after_help = NOTES)]
pub(super) struct Args {
    #[command(flatten)]
    config: ConfigArgs,

    /// A file with the URL of the PostgreSQL database to move to: empty, or half way from an earlier try
    #[arg(long, value_name = "FILE")]
    to_url_file: PathBuf,

    /// Give up a move that is not whole: the old store may be used again
    #[arg(long)]
    abandon: bool,
}

impl Args {
    pub(super) async fn run(&self) -> anyhow::Result<()> {
        let config = self.config.load()?;
        logs(&config.log)?;
        let path = self.to_url_file.display();
        let url = std::fs::read_to_string(&self.to_url_file).with_context(|| format!("cannot read {path}"))?;
        let target = StoreUrl::parse(url.trim().to_owned()).with_context(|| format!("the URL in {path}"))?;
        if self.abandon {
            move_store::abandon_move(&config, &target).await?;
            output::note("the move is given up; the old store may be used again");
            return Ok(());
        }
        move_store::move_store(&config, &target, &Clock::system(), &mut Bar::new().progress()).await?;
        output::note(format_args!("moved to {}: make it store.url and start `serve`", target.place()));
        Ok(())
    }
}

/// One line that grows on a terminal; elsewhere one line a table.
struct Bar {
    terminal: bool,
}

impl Bar {
    fn new() -> Self {
        Self { terminal: io::stderr().is_terminal() }
    }

    fn progress(self) -> impl FnMut(&str, u64, u64) + Send {
        const WIDTH: u64 = 30;
        move |table, done, all| {
            let end = done >= all;
            if self.terminal {
                let filled = usize::try_from(done * WIDTH / all.max(1)).unwrap_or(0).min(30);
                let line = format!("\r{table:<20} [{:<30}] {done} of {all}", "#".repeat(filled));
                // Nobody left to tell: nothing to do about it.
                let _ = write!(io::stderr(), "{line}{}", if end { "\n" } else { "" });
            } else if end {
                output::note(format_args!("{table}: {all} rows"));
            }
        }
    }
}
