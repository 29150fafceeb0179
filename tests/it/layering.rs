//! The floors of ARCHITECTURE.md, read off the sources: which room may name which, and which crate lives where.
//!
//! Every path in `src/` counts: `use` lines with their groups, inline paths, `super::super::…`, attributes, test code.
//! Comments and literals do not.

mod paths;

use std::fmt::Write as _;
use std::path::Path;

use paths::{Mention, mentions};

/// From the roof down. A room may name the rooms of the floors below its own; on one floor nobody names a neighbour.
const FLOORS: &[&[&str]] = &[
    &["main"],
    &["cli"],
    &["app", "move_store"],
    &["api", "web", "jobs"],
    &["linking"],
    &["wallet"],
    &["providers", "events", "keys"],
    &["access"],
    &["cache"],
    &["store"],
    &["vault"],
    &["config", "telemetry", "proto", "outbound", "sandbox"],
    &["domain"],
    &["clock", "failpoint"],
];

/// Rooms that may name less than the floors below them.
const NAMES_ONLY: &[(&str, &[&str])] = &[("sandbox", &["clock"])];

/// Rooms that not everybody above may name.
const NAMED_ONLY_BY: &[(&str, &[&str])] = &[("sandbox", &["cli", "app"]), ("proto", &["cli", "app", "api"])];

/// External crates that live in few places: a room, or one file of it.
const CRATES: &[(&str, &[&str])] = &[
    ("tonic", &["api", "proto", "cli/remote"]),
    ("tonic_health", &["api", "proto", "cli/remote"]),
    ("tonic_prost", &["api", "proto", "cli/remote"]),
    ("tonic_reflection", &["api", "proto", "cli/remote"]),
    ("tonic_types", &["api", "proto", "cli/remote"]),
    ("axum", &["web", "sandbox", "cli/loopback"]),
    ("sqlx", &["store"]),
    ("reqwest", &["outbound"]),
    ("oauth2", &["providers"]),
    ("aes_gcm", &["vault"]),
    ("xaes_256_gcm", &["vault"]),
    ("ring", &["sandbox"]),
    ("quick_cache", &["cache"]),
    ("tokio_cron_scheduler", &["jobs"]),
    ("clap", &["main", "cli"]),
    ("anyhow", &["main", "cli"]),
];

/// What one file breaks, one sentence each.
fn violations(file: &str, source: &str) -> Vec<String> {
    let modules = modules_of(file);
    let Some(room) = modules.first().copied() else {
        return Vec::new(); // lib.rs: the list of the rooms
    };
    let Some(floor) = floor_of(room) else {
        return vec![format!("{file}: the room `{room}` is on no floor: tests/it/layering.rs")];
    };
    let mut found: Vec<String> = mentions(&modules, source)
        .iter()
        .filter_map(|mention| match mention {
            Mention::Ours(named) if named == room => None,
            Mention::Ours(named) => room_violation(room, floor, named),
            Mention::External(krate) => crate_violation(&modules, krate),
        })
        .map(|sentence| format!("{file}: {sentence}"))
        .collect();
    found.sort();
    found.dedup();
    found
}

fn room_violation(room: &str, floor: usize, named: &str) -> Option<String> {
    let Some(below) = floor_of(named) else {
        return Some(format!("`crate::{named}` is no room"));
    };
    let listed = |table: &[(&str, &[&str])], key: &str, value: &str| {
        table.iter().find(|(of, _)| *of == key).is_none_or(|(_, only)| only.contains(&value))
    };
    let allowed = below > floor && listed(NAMES_ONLY, room, named) && listed(NAMED_ONLY_BY, named, room);
    (!allowed).then(|| format!("`{room}` may not name `{named}`"))
}

fn crate_violation(modules: &[&str], krate: &str) -> Option<String> {
    let (_, places) = CRATES.iter().find(|(known, _)| *known == krate)?;
    let here = modules.join("/");
    let inside = places.iter().any(|place| here == *place || here.starts_with(&format!("{place}/")));
    (!inside).then(|| format!("`{krate}` belongs in {} only", places.join(", ")))
}

fn floor_of(room: &str) -> Option<usize> {
    FLOORS.iter().position(|rooms| rooms.contains(&room))
}

/// `wallet/get.rs` -> wallet, get; `wallet/mod.rs` -> wallet; `main.rs` -> main; `lib.rs` -> nothing.
fn modules_of(file: &str) -> Vec<&str> {
    let path = file.trim_end_matches(".rs").trim_end_matches("/mod");
    if path == "lib" { Vec::new() } else { path.split('/').collect() }
}

/// Every source file below `dir`, as its path from there and its text.
fn sources(dir: &Path, below: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let name = format!("{below}{}", entry.file_name().to_str().unwrap());
        if entry.file_type().unwrap().is_dir() {
            found.extend(sources(&entry.path(), &format!("{name}/")));
        } else if Path::new(&name).extension().is_some_and(|extension| extension == "rs") {
            found.push((name, std::fs::read_to_string(entry.path()).unwrap()));
        }
    }
    found
}

#[test]
fn no_room_names_a_room_or_a_crate_that_is_not_its_to_name() {
    let sources = sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), "");
    assert!(sources.iter().any(|(file, _)| file == "domain/ids.rs"), "the sources are read");
    let found: Vec<String> = sources.iter().flat_map(|(file, source)| violations(file, source)).collect();
    let mut report = String::new();
    for sentence in &found {
        writeln!(report, "  {sentence}").unwrap();
    }
    assert!(found.is_empty(), "the floors are broken:\n{report}");
}

#[test]
fn each_way_of_breaking_the_floors_is_reported() {
    for (file, source, sentence) in [
        // A room above, beside, far above; through each kind of path.
        ("store/mod.rs", "use crate::wallet::Wallet;", "`store` may not name `wallet`"),
        ("access/mod.rs", "fn f(k: &crate::keys::Keys) {}", "`access` may not name `keys`"),
        ("domain/grant.rs", "use crate::{clock::Clock, store::{self, Store}};", "`domain` may not name `store`"),
        ("web/page.rs", "use super::super::api;", "`web` may not name `api`"),
        ("wallet/mod.rs", "use super::{linking::x, vault};", "`wallet` may not name `linking`"),
        ("jobs/mod.rs", "mod tests { use super::super::app::App; }", "`jobs` may not name `app`"),
        ("vault/index.rs", "#[cfg(test)] mod tests { use crate::store; }", "`vault` may not name `store`"),
        ("app.rs", "token_wallet::cli::run()", "`app` may not name `cli`"),
        ("store/mod.rs", "macro_rules! m { () => { $crate::wallet::get() } }", "`store` may not name `wallet`"),
        ("api/mod.rs", "pub(crate) use crate as ours;", "`crate::` is no room"),
        ("api/mod.rs", "use crate::*;", "`crate::*` is no room"),
        ("api/mod.rs", "use crate::cellar::Wine;", "`crate::cellar` is no room"),
        // Rooms with rules of their own.
        ("sandbox/token.rs", "use crate::domain::ids::FlowId;", "`sandbox` may not name `domain`"),
        ("providers/mod.rs", "use crate::sandbox::Sandbox;", "`providers` may not name `sandbox`"),
        ("linking/mod.rs", "use crate::proto::v1;", "`linking` may not name `proto`"),
        ("attic/mod.rs", "", "the room `attic` is on no floor: tests/it/layering.rs"),
        // Crates, through each kind of path.
        ("wallet/get.rs", "use tonic::Status;", "`tonic` belongs in api, proto, cli/remote only"),
        ("cli/token.rs", "use tonic::Status;", "`tonic` belongs in api, proto, cli/remote only"),
        ("jobs/mod.rs", "use {::axum::Router, std::io};", "`axum` belongs in web, sandbox, cli/loopback only"),
        ("domain/user.rs", "#[derive(sqlx::FromRow)] struct U;", "`sqlx` belongs in store only"),
        ("domain/user.rs", "fn f() -> <U as sqlx::Decode>::Out", "`sqlx` belongs in store only"),
        ("providers/token.rs", "use reqwest as http;", "`reqwest` belongs in outbound only"),
        ("linking/start.rs", "extern crate oauth2;", "`oauth2` belongs in providers only"),
        ("keys.rs", "fn f() -> aes_gcm::Aes256Gcm { todo!() }", "`aes_gcm` belongs in vault only"),
        ("keys.rs", "type T = Vec<xaes_256_gcm::Key>;", "`xaes_256_gcm` belongs in vault only"),
        ("store/mod.rs", "/* \" */ use anyhow::{Context as _, Result}; // \"", "`anyhow` belongs in main, cli only"),
    ] {
        assert_eq!(violations(file, source), [format!("{file}: {sentence}")], "{source}");
    }
}

#[test]
fn what_the_floors_allow_is_not_reported() {
    for (file, source) in [
        ("main.rs", "fn main() -> anyhow::Result<()> { token_wallet::cli::run() }"),
        ("lib.rs", "pub mod store; pub use crate::wallet::Wallet;"),
        ("cli/dev.rs", "use crate::{app::App, sandbox, proto::v1};"),
        ("cli/remote.rs", "use tonic::transport::Channel;"),
        (
            "api/wallet_service.rs",
            "use super::convert; use crate::{wallet, domain::{ids, secret}}; pub(in crate::api) fn f() {}",
        ),
        (
            "store/grants.rs",
            "mod sql { use super::super::Row; } use super::error::StoreError; use crate::store::moves;",
        ),
        ("providers/token.rs", "use oauth2::reqwest; let tonic = http.axum; tonic.sqlx(); 'axum: loop {}"),
        (
            "wallet/get.rs",
            r##"// crate::api, then /* tonic:: */ f("crate::web::x \" sqlx::y", r#"axum::z"#, b'"', '\'', "//")"##,
        ),
        (
            "wallet/get.rs",
            "/* /* crate::api */ crate::web */ /// crate::jobs\n fn f<'a>(x: &'a str) -> impl Fn() + use<'a> {}",
        ),
    ] {
        assert_eq!(violations(file, source), [""; 0], "{source}");
    }
}
