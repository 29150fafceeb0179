//! Configurations with a secret in the wrong place, and stores that do not let us in.

use token_wallet::config::keys::KEYS;
use token_wallet::vault::RootKey;

use super::{Traces, assert_none_found};
use crate::support::canary::Canary;
use crate::support::child::run_in;

/// Where it does not belong.
const MISPLACED: &str = "canary-misplaced-0hYd2Ew";

#[test]
fn an_error_in_the_configuration_never_tells_a_secret() {
    let root_key = RootKey::generate().to_base64();
    let folder = tempfile::tempdir().unwrap();
    let mut traces = Traces::default();
    let base = [
        ("RUST_LOG", "trace"),
        ("TOKEN_WALLET__PUBLIC_URL", "https://wallet.example.com"),
        ("TOKEN_WALLET_ROOT_KEY", root_key.as_str()),
    ];
    let mut refused = |command: &str, key: &str, value: &str| {
        let variable = format!("TOKEN_WALLET__{}", key.replace('.', "__").to_uppercase());
        let command: Vec<_> = command.split(' ').collect();
        let output = run_in(folder.path(), &command, &[&base[..], &[(&variable, value)]].concat());
        assert!(matches!(output.status.code(), Some(1 | 78)), "{key}: {output:?}");
        traces.output(&format!("{command:?} with {key}"), &output);
    };
    // No server has its socket there.
    let store = format!("postgres://u:{MISPLACED}@localhost/d?host={}", folder.path().display());
    for url in [
        store.clone(),
        format!("{store}&passwd={MISPLACED}&x={MISPLACED}"),
        format!("{store}&sslmode={MISPLACED}"),
        format!("postgres://u:{MISPLACED}@127.0.0.1:port/d"),
        format!("mysql://u:{MISPLACED}@h/d"),
        MISPLACED.to_owned(),
    ] {
        for command in ["serve", "migrate", "keys init"] {
            refused(command, "store.url", &url);
        }
    }
    // A secret as the value of each key; a path or a file that is not there may be named.
    let paths = ["store.url", "store.url_file", "root_key.file", "bootstrap_admin_key_file"];
    for key in KEYS.iter().filter(|key| !paths.contains(&key.path)) {
        for secret in [MISPLACED, &format!("https://u:{MISPLACED}@h.example/?x={MISPLACED}#y"), &root_key] {
            refused("serve", key.path, secret);
        }
    }
    // Likely mistakes: the secret itself where the place of it belongs.
    refused("serve", "store.url_file", &store);
    for text in [
        format!("store.url = \"{MISPLACED}"),
        format!("store.url = {MISPLACED}"),
        format!("public_url = 'https://h'\npublic_url = '{MISPLACED}'"),
        format!("grpc = '{MISPLACED}'\nsecret = '{MISPLACED}'"),
        format!("root_key = {{ source = 'file', file = '{}' }}", *root_key),
        "root_key = { source = 'file', file = 'secret' }".to_owned(),
    ] {
        std::fs::write(folder.path().join("wrong.toml"), text).unwrap();
        std::fs::write(folder.path().join("secret"), MISPLACED).unwrap();
        let output = run_in(folder.path(), &["serve", "--config", "wrong.toml"], &base);
        assert_eq!(output.status.code(), Some(78), "{output:?}");
        traces.output("wrong.toml", &output);
    }
    let secrets = vec![Canary::new("misplaced", MISPLACED), Canary::new("root key", root_key.as_bytes())];
    assert_none_found(&traces, secrets);
}
