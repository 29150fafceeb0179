//! `health`: whether a wallet serves, for health checks of images that have no other program.

use super::{output, remote};

/// Ask a wallet whether it serves: print "serving", or fail.
///
/// It is the standard gRPC health check (grpc.health.v1), which needs no API key. `/readyz` of the ops listener tells
/// more: whether the store answers, and what is wrong.
#[derive(clap::Args)]
#[command(
    after_help = "Example:\n  token-wallet health --addr 127.0.0.1:50051\n\nExit codes: 0 it serves, 1 it does not."
)]
pub(super) struct Args {
    /// Its gRPC address, HOST:PORT [default: 127.0.0.1:50051]
    #[arg(long, env = "TOKEN_WALLET_ADDR", value_name = "ADDR")]
    addr: Option<String>,
}

impl Args {
    pub(super) async fn run(&self) -> anyhow::Result<()> {
        let addr = self.addr.as_deref().unwrap_or(remote::DEFAULT_ADDR);
        anyhow::ensure!(remote::serves(addr).await?, "the wallet at {addr} is ending");
        Ok(output::line("serving")?)
    }
}
