//! The `token-wallet` command.

fn main() {}
