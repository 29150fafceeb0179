//! The build that people run holds nothing of what the crash tests need.
#![cfg(not(feature = "failpoints"))]

use std::process::Command;

use token_wallet::sandbox::{DEFAULT_CLIENT_SECRET, Options};

use crate::support::child::BINARY;
use crate::support::harness::Engine;
use crate::support::service::Wallet;

fn program_holds(text: &str) -> bool {
    let found = Command::new("grep").args(["--quiet", "--text", "--fixed-strings", text, BINARY]).status().unwrap();
    found.success()
}

#[tokio::test]
async fn an_ordinary_build_has_no_failpoints_and_ignores_their_variables() {
    assert!(program_holds("TOKEN_WALLET_CONFIG"), "the program is searched");
    for text in ["TOKEN_WALLET_FAILPOINT", "TOKEN_WALLET_CLOCK", "refresh.claimed"] {
        assert!(!program_holds(text), "{text}");
    }
    let variables = [("TOKEN_WALLET_FAILPOINT", "link.committed"), ("TOKEN_WALLET_CLOCK", "/nowhere/clock")];
    let mut wallet = Wallet::new(Engine::Sqlite, Options::default(), &variables).await;
    wallet.start().await;
    wallet.configure(DEFAULT_CLIENT_SECRET).await;
    wallet.link("u", "demo").await;
    wallet.terminate();
    assert!(wallet.end().await.success());
}
