//! The `token-wallet` command.

use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    // The process has one cryptography provider; an error would mean that it is set already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    token_wallet::cli::run().await
}
