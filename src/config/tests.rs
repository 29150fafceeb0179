use std::path::PathBuf;

use super::*;

/// A configuration file in a folder of its own.
fn file(text: &str) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("wallet.toml");
    std::fs::write(&path, text).unwrap();
    (folder, path)
}

fn read(text: &str, variables: &[(&str, &str)]) -> Result<Config, ConfigError> {
    let (_folder, path) = file(text);
    Config::read(Some(&path), variables.iter().map(|(name, value)| ((*name).into(), (*value).into())))
}

/// The keys with faults, in the order told.
fn faulty(text: &str, variables: &[(&str, &str)]) -> Vec<String> {
    match read(text, variables) {
        Ok(_) => Vec::new(),
        Err(error) => error.faults.into_iter().map(|fault| fault.key).collect(),
    }
}

const PRODUCTION: &str = "public_url = 'https://wallet.example.com/'\n";
const DEVELOPMENT: &str = "instance.kind = 'development'\n";

#[test]
fn the_defaults_are_a_production_instance_on_loopback() {
    let config = read(PRODUCTION, &[]).ok().unwrap();
    assert_eq!(config.kind, InstanceKind::Production);
    assert_eq!(config.public_url.unwrap().path(), "/");
    assert_eq!(config.store.url.expose(), "sqlite:token-wallet.db");
    assert_eq!(config.spool_dir, PathBuf::from("token-wallet.db.spool"));
    assert_eq!(config.serve_during_store_outage, Duration::ZERO);
    assert_eq!(config.root_key, RootKeyPlace::Env("TOKEN_WALLET_ROOT_KEY".to_owned()));
    assert_eq!(config.listeners.grpc, "127.0.0.1:50051".parse().unwrap());
    assert_eq!(config.listeners.web, "127.0.0.1:8080".parse().unwrap());
    assert_eq!(config.listeners.ops, "127.0.0.1:9464".parse().unwrap());
    assert_eq!(config.refresh_ahead_for, Duration::from_hours(14 * 24));
    assert_eq!(config.outbound_allow, []);
    assert_eq!(config.log, LogConfig { format: LogFormat::Pretty, filter: "warn,token_wallet=info".to_owned() });
}

#[test]
fn every_fault_is_told_at_once_with_its_key_and_origin() {
    let text = "store.max_connections = 0\nlog.format = 'shiny'\nlog.colour = true\nrefresh.ahead_for = 'soon'\n\
                grpc = { addr = '0.0.0.0:1' }\noutbound.allow = ['10.0.0.0/99']\nstore.url = 'mysql://x'";
    let (_folder, path) = file(text);
    let variables = [("TOKEN_WALLET__OPS__ADDR".into(), "nowhere".into())];
    let error = Config::read(Some(&path), variables).err().unwrap();
    let keys: Vec<_> = error.faults.iter().map(|fault| fault.key.as_str()).collect();
    let expected = ["public_url", "store.url", "store.max_connections", "grpc.addr", "ops.addr", "refresh.ahead_for"];
    assert_eq!(keys[..6], expected);
    assert_eq!(keys[6..], ["outbound.allow", "log.format", "log.colour"]);
    let told = error.to_string();
    let file = path.display();
    for line in [
        "the configuration has 9 errors:".to_owned(),
        "public_url is required in a production instance (not set; its variable is TOKEN_WALLET__PUBLIC_URL)"
            .to_owned(),
        format!("store.max_connections must be at least 1 ({file})"),
        "ops.addr must be an address such as 127.0.0.1:8080 (variable TOKEN_WALLET__OPS__ADDR)".to_owned(),
        format!("refresh.ahead_for must be a duration such as \"90s\" or \"14days\" ({file})"),
        format!("outbound.allow must be networks such as 10.1.0.0/16, or addresses ({file})"),
        format!("log.format must be pretty or json ({file})"),
        format!("log.colour is no key of the wallet ({file})"),
    ] {
        assert!(told.contains(&line), "{line}\nis not in\n{told}");
    }
}

#[test]
fn the_environment_overrides_the_file() {
    let text = format!("{PRODUCTION}log.filter = 'warn'\nstore.max_connections = 3");
    let variables = [
        ("TOKEN_WALLET__LOG__FILTER", "debug"),
        ("TOKEN_WALLET__OUTBOUND__ALLOW", "[\"10.0.0.1\", \"fd00::/8\"]"),
        ("TOKEN_WALLET__REFRESH__AHEAD_FOR", "0"),
        ("TOKEN_WALLET_ROOT_KEY", "of another reader"),
    ];
    let config = read(&text, &variables).ok().unwrap();
    assert_eq!(config.log.filter, "debug");
    assert_eq!(config.store.max_connections, 3);
    assert_eq!(config.outbound_allow, ["10.0.0.1/32".parse().unwrap(), "fd00::/8".parse::<IpNet>().unwrap()]);
    assert_eq!(config.refresh_ahead_for, Duration::ZERO);
}

#[test]
fn an_unknown_variable_or_section_is_a_fault() {
    assert_eq!(faulty(PRODUCTION, &[("TOKEN_WALLET__STORE__URI", "x")]), ["store.uri"]);
    assert_eq!(faulty(PRODUCTION, &[("TOKEN_WALLET__SERVER__PORT", "1")]), ["server"]);
    assert_eq!(faulty(&format!("{PRODUCTION}log = 'json'"), &[]), ["log.format", "log.filter", "log"]);
}

#[test]
fn a_secret_can_come_from_a_file() {
    let (_folder, path) = file("postgres://wallet:hunter2@db/wallet\n");
    let path = path.to_str().unwrap();
    let config =
        read(&format!("{PRODUCTION}spool.dir = '/s'"), &[("TOKEN_WALLET__STORE__URL_FILE", path)]).ok().unwrap();
    assert_eq!(config.store.url.expose(), "postgres://wallet:hunter2@db/wallet");
    let both = [("TOKEN_WALLET__STORE__URL_FILE", path), ("TOKEN_WALLET__STORE__URL", "sqlite:x")];
    assert_eq!(faulty(PRODUCTION, &both), ["store.url_file"]);
    assert_eq!(faulty(PRODUCTION, &[("TOKEN_WALLET__STORE__URL_FILE", "/nowhere/url")]), ["store.url_file"]);
}

#[test]
fn a_production_instance_on_postgresql_says_where_its_spool_is() {
    let postgres = [("TOKEN_WALLET__STORE__URL", "postgres://wallet@db/wallet")];
    assert_eq!(faulty(PRODUCTION, &postgres), ["spool.dir"]);
    let told = read(PRODUCTION, &postgres).err().unwrap().to_string();
    assert!(told.contains("spool.dir is required in a production instance on PostgreSQL"), "{told}");
    let config = read(DEVELOPMENT, &postgres).ok().unwrap();
    assert_eq!(config.spool_dir, PathBuf::from("token-wallet.spool"));
    let given = [postgres[0], ("TOKEN_WALLET__SPOOL__DIR", "/var/lib/spool")];
    assert_eq!(read(PRODUCTION, &given).ok().unwrap().spool_dir, PathBuf::from("/var/lib/spool"));
    assert_eq!(read(PRODUCTION, &given[1..]).ok().unwrap().spool_dir, PathBuf::from("/var/lib/spool"));
}

#[test]
fn no_fault_tells_a_value() {
    let secret = "postgres://wallet:hunter2@db/wallet";
    let quoted = format!("'{secret}'");
    for key in ["public_url", "store.max_connections", "grpc.addr", "refresh.ahead_for", "log.format", "log.filter"] {
        let text = format!("{key} = {quoted}");
        assert!(!read(&text, &[]).err().unwrap().to_string().contains("hunter2"), "{key}");
    }
    for text in [format!("store.url = '{secret}"), format!("outbound.allow = [{quoted}]"), format!("x = {quoted}")] {
        assert!(!read(&text, &[]).err().unwrap().to_string().contains("hunter2"), "{text}");
    }
}

#[test]
fn a_file_that_cannot_be_parsed_names_the_line() {
    let error = read("[store]\nurl = 'sqlite:x\n", &[]).err().unwrap().to_string();
    assert!(error.contains("wallet.toml line 2: "), "{error}");
    let missing = Config::read(Some(Path::new("/nowhere/wallet.toml")), []).err().unwrap().to_string();
    assert!(missing.contains("/nowhere/wallet.toml cannot be read: "), "{missing}");
}

#[test]
fn a_production_instance_refuses_what_is_for_development() {
    for (text, key) in [
        ("public_url = 'http://127.0.0.1:8080'", "public_url"),
        ("grpc.addr = '0.0.0.0:50051'", "grpc.addr"),
        ("grpc.addr = '[::]:50051'", "grpc.addr"),
        ("ops.addr = '192.0.2.1:9464'", "ops.addr"),
        ("sandbox.url = 'http://127.0.0.1:9000'", "sandbox.url"),
    ] {
        let text = if key == "public_url" { text.to_owned() } else { format!("{PRODUCTION}{text}") };
        assert_eq!(faulty(&text, &[]), [key], "{text}");
    }
    let allowed = "grpc.addr = '0.0.0.0:50051'\ngrpc.allow_plaintext = true\nweb.addr = '0.0.0.0:80'\n\
                   ops.addr = '[::]:9464'\nops.allow_plaintext = true";
    assert_eq!(faulty(&format!("{PRODUCTION}{allowed}"), &[]), [""; 0]);
}

#[test]
fn a_production_instance_refuses_the_root_key_that_dev_generated() {
    let folder = tempfile::tempdir().unwrap();
    let key = folder.path().join("root.key");
    let text = format!("{PRODUCTION}root_key.source = 'file'\nroot_key.file = '{}'", key.display());
    assert_eq!(faulty(&text, &[]), [""; 0]);
    std::fs::write(folder.path().join("dev.json"), "{}").unwrap();
    assert_eq!(faulty(&text, &[]), ["root_key.file"]);
}

#[test]
fn a_development_instance_stays_on_loopback() {
    let fine = "public_url = 'http://localhost:8080'\nsandbox.url = 'http://127.0.0.1:9000/'";
    assert_eq!(faulty(&format!("{DEVELOPMENT}{fine}"), &[]), [""; 0]);
    for (text, key) in [
        ("public_url = 'http://wallet.example.com'", "public_url"),
        ("grpc.addr = '0.0.0.0:1'\ngrpc.allow_plaintext = true", "grpc.addr"),
        ("web.addr = '0.0.0.0:1'", "web.addr"),
        ("ops.addr = '[::]:1'", "ops.addr"),
        ("sandbox.url = 'https://sandbox.example.com'", "sandbox.url"),
    ] {
        assert_eq!(faulty(&format!("{DEVELOPMENT}{text}"), &[]), [key], "{text}");
    }
}

#[test]
fn a_root_key_source_needs_what_it_names() {
    assert_eq!(faulty(&format!("{PRODUCTION}root_key.source = 'file'"), &[]), ["root_key.file"]);
    assert_eq!(faulty(&format!("{PRODUCTION}root_key.file = 'k'"), &[]), ["root_key.file"]);
    assert_eq!(faulty(&format!("{PRODUCTION}root_key.source = 'memory'"), &[]), ["root_key.source"]);
}

#[test]
fn a_store_must_outlive_the_process() {
    for url in ["sqlite::memory:", "sqlite://:memory:", "sqlite:x?mode=memory", "sqlite:", "x", "http://db/"] {
        assert_eq!(faulty(&format!("{PRODUCTION}store.url = '{url}'"), &[]), ["store.url"], "{url}");
    }
    for url in ["sqlite:x", "sqlite:/var/lib/x.db", "postgres:///w?host=/run/pg", "postgresql://u:p@h:5/d"] {
        assert_eq!(faulty(&format!("{PRODUCTION}spool.dir = 's'\nstore.url = '{url}'"), &[]), [""; 0], "{url}");
    }
}

#[test]
fn the_table_shows_every_key() {
    let table = keys::table();
    assert_eq!(table.lines().count(), keys::KEYS.len() + 2);
    assert!(table.contains("| `store.url` | `sqlite:token-wallet.db` | "), "{table}");
}

#[test]
fn dev_runs_in_one_folder_on_loopback() {
    let any = "127.0.0.1:0".parse().unwrap();
    let listeners = Listeners { grpc: any, web: any, ops: any };
    let config = Config::development(Path::new("/d"), listeners, Url::parse("http://127.0.0.1:9/").unwrap());
    assert_eq!(config.kind, InstanceKind::Development);
    assert_eq!(config.store.url.sqlite_path(), Some(Path::new("/d/wallet.db")));
    assert_eq!(config.root_key, RootKeyPlace::File("/d/root.key".into()));
}
