//! The command line as a person or a script meets it: the built binary, its output and its exit codes.

use std::process::Output;

use rustix::process::Signal;

use super::support::child::{Running, binary, run_in, text};

/// Each command with words that its help must have.
const COMMANDS: [(&str, &[&str]); 45] = [
    ("", &["dev", "serve", "accounts", "Exit codes", "Examples"]),
    ("dev", &["--data-dir", "--grpc-addr", "--web-addr", "--ops-addr", "--token-ttl", "--json", "[default: 60s]"]),
    ("serve", &["--config", "--bootstrap-admin-key-file", "keys init"]),
    (
        "sandbox",
        &["--addr", "--token-ttl", "--rotation", "--person", "--redirect-uri", "--state-file", "/_sandbox/faults"],
    ),
    ("migrate", &["--config"]),
    ("migrate-store", &["--config", "--to-url-file", "--abandon"]),
    ("check-config", &["--config", "78"]),
    ("health", &["--addr", "127.0.0.1:50051", "/readyz"]),
    ("keys", &["init", "status"]),
    ("keys init", &["--config", "--json", "--if-missing", "TOKEN_WALLET_ROOT_KEY"]),
    ("keys status", &["--config", "--json"]),
    ("clients", &["create", "list", "delete"]),
    ("clients create", &["<NAME>", "--key-ttl", "--bootstrap", "--config", "--json", "--addr", "--api-key-file"]),
    ("clients list", &["--json", "--addr"]),
    ("clients delete", &["<CLIENT>"]),
    ("providers", &["create", "get", "list", "update", "secrets", "delete"]),
    ("providers create", &["--catalog-entry", "--client-id", "--client-secret-file", "--public", "--token-url"]),
    ("providers get", &["<PROVIDER>", "--json"]),
    ("providers list", &["--json"]),
    ("providers update", &["<PROVIDER>", "--scope", "--no-scopes", "--requests-per-second", "--unfreeze", "--json"]),
    ("providers secrets", &["add", "remove", "take the old one back"]),
    ("providers secrets add", &["<PROVIDER>", "--client-secret-file"]),
    ("providers secrets remove", &["<PROVIDER>", "<SECRET>"]),
    ("providers delete", &["<PROVIDER>"]),
    ("redirect-urls", &["create", "list", "delete"]),
    ("redirect-urls create", &["<URL>", "--client", "http://127.0.0.1/linked"]),
    ("redirect-urls list", &["--json"]),
    ("redirect-urls delete", &["<ENTRY>"]),
    ("accounts", &["link", "list", "providers", "update", "unlink"]),
    ("accounts link", &["<USER>", "<PROVIDER>", "--scope", "--login-hint", "--timeout"]),
    ("accounts list", &["--user", "--provider", "--json"]),
    ("accounts providers", &["<USER>", "--json"]),
    ("accounts update", &["<ACCOUNT>", "--label", "--no-label", "--default", "--no-default", "--json"]),
    ("accounts unlink", &["<ACCOUNT>"]),
    ("users", &["get", "list", "delete"]),
    ("users get", &["<USER>", "--json"]),
    ("users list", &["--json"]),
    ("users delete", &["<USER>"]),
    ("token", &["get"]),
    ("token get", &["<USER>", "<PROVIDER>", "--min-ttl", "--scope", "--account", "--header", "--json"]),
    ("events", &["list", "tail"]),
    ("events list", &["--user", "--provider", "--type", "--json"]),
    ("events tail", &["--from", "--user", "--type", "--json", "Ctrl-C"]),
    ("help accounts", &["unlink"]),
    ("help token get", &["--min-ttl"]),
];

fn run(arguments: &[&str]) -> Output {
    run_in(tempfile::tempdir().unwrap().path(), arguments, &[])
}

#[test]
fn every_command_explains_itself() {
    for (command, words) in COMMANDS {
        let mut arguments: Vec<_> = command.split_whitespace().collect();
        if !command.starts_with("help") {
            arguments.push("--help");
        }
        let output = run(&arguments);
        let help = text(&output.stdout);
        assert!(output.status.success(), "{command}: {}", text(&output.stderr));
        assert!(help.contains("Usage: token-wallet"), "{command}: {help}");
        for word in words {
            assert!(help.contains(word), "{command}: {word} is not in\n{help}");
        }
        assert!(!help.contains('\u{1b}'), "{command}: colours are for terminals");
    }
}

#[test]
fn wrong_usage_exits_with_2_and_says_what_is_right() {
    for (arguments, told) in [
        (&["token", "get", "demo"][..], "<PROVIDER>"),
        (&["accounts", "unlink"], "<ACCOUNT>"),
        (&["accounts", "update", "eac_x"], "--label"),
        (&["accounts", "update", "eac_x", "--default", "--no-default"], "--no-default"),
        (&["token", "get", "demo", "sandbox", "--min-ttl", "soon"], "--min-ttl"),
        (&["providers", "create", "acme", "--client-id", "x"], "--client-secret-file"),
        (&["providers", "update", "acme", "--scope", "a", "--no-scopes"], "--no-scopes"),
        (&["providers", "secrets", "add", "acme"], "--client-secret-file"),
        (&["providers", "create", "acme", "--client-id", "x", "--client-secret", "s"], "--client-secret"),
        (&["token", "get", "demo", "sandbox", "--api-key", "twk_x"], "--api-key"),
        (&["dev", "--grpc-addr", "0.0.0.0:50051"], "must be a loopback address"),
        (&["sandbox", "--rotation", "sometimes"], "always, never, every=<number> or grace=<duration>"),
        (&["tokens"], "token"),
    ] {
        let output = run(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(text(&output.stderr).contains(told), "{arguments:?}: {}", text(&output.stderr));
        assert_eq!(text(&output.stdout), "", "{arguments:?}");
    }
}

#[test]
fn check_config_tells_every_error_at_once_and_exits_with_78() {
    let folder = tempfile::tempdir().unwrap();
    let file = "public_url = 'http://wallet.example.com'\nlog.level = 'debug'\n";
    std::fs::write(folder.path().join("token-wallet.toml"), file).unwrap();
    let variables = [("TOKEN_WALLET__GRPC__ADDR", "0.0.0.0:50051"), ("TOKEN_WALLET__STORE__URL_FILE", "missing.url")];
    let output = run_in(folder.path(), &["check-config"], &variables);
    assert_eq!(output.status.code(), Some(78));
    let told = text(&output.stderr);
    for line in [
        "error: the configuration has 4 errors:\n",
        "  public_url must be https (token-wallet.toml)\n",
        "  store.url_file names missing.url, which cannot be read: No such file or directory",
        "  grpc.addr is not a loopback address and the listener speaks plaintext: end TLS in front of it, then set \
         grpc.allow_plaintext = true (variable TOKEN_WALLET__GRPC__ADDR)\n",
        "  log.level is no key of the wallet (token-wallet.toml)\n",
    ] {
        assert!(told.contains(line), "{line}\nis not in\n{told}");
    }
}

#[test]
fn check_config_says_ok_if_there_is_nothing_to_say() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("wallet.toml");
    std::fs::write(&config, "public_url = 'https://wallet.example.com'").unwrap();
    let output = run_in(folder.path(), &["check-config", "--config", "wallet.toml"], &[]);
    assert_eq!((output.status.code(), text(&output.stdout), text(&output.stderr)), (Some(0), "ok\n", ""));
    let variables = [("TOKEN_WALLET_CONFIG", config.to_str().unwrap())];
    assert!(run_in(folder.path(), &["check-config"], &variables).status.success());
}

#[test]
fn a_call_without_a_key_or_a_wallet_says_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let output = run_in(folder.path(), &["token", "get", "demo", "sandbox"], &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("no API key: name its file with --api-key-file"), "{output:?}");
    // Port 1 answers nobody.
    let variables = [("TOKEN_WALLET_ADDR", "127.0.0.1:1"), ("TOKEN_WALLET_API_KEY", "twk_canary")];
    let output = run_in(folder.path(), &["accounts", "list"], &variables);
    assert_eq!(output.status.code(), Some(1));
    let told = text(&output.stderr);
    assert!(told.contains("error: no wallet answers there") && told.contains("hint: is it running"), "{told}");
    assert!(!told.contains("canary"), "{told}");
}

#[test]
fn the_key_of_dev_goes_to_dev_only() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join(".token-wallet")).unwrap();
    let file = r#"{"grpc": "127.0.0.1:1", "web": "127.0.0.1:2", "ops": "127.0.0.1:3", "api_key": "twk_canary",
        "sandbox": "http://127.0.0.1:4"}"#;
    std::fs::write(folder.path().join(".token-wallet/dev.json"), file).unwrap();
    let found = run_in(folder.path(), &["accounts", "list"], &[]);
    assert!(text(&found.stderr).contains("no wallet answers there"), "{found:?}");
    let elsewhere = run_in(folder.path(), &["accounts", "list", "--addr", "127.0.0.1:5"], &[]);
    assert!(text(&elsewhere.stderr).contains("no API key"), "{elsewhere:?}");
}

#[test]
fn the_sandbox_says_where_it_is_and_ends_with_0_when_told_to() {
    let folder = tempfile::tempdir().unwrap();
    for signal in [Signal::TERM, Signal::INT] {
        let command = binary(folder.path(), &["sandbox", "--addr", "127.0.0.1:0", "--json"], &[]);
        let (sandbox, ready) = Running::ready(command);
        assert!(ready["sandbox"].as_str().unwrap().starts_with("http://127.0.0.1:"), "{ready}");
        assert_eq!(sandbox.end_by(signal), Some(0), "{signal:?}");
    }
}
