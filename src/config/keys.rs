//! Every key there is: its default, which is read from here, and its meaning, which the README's table shows.

use std::fmt::Write as _;

/// A configuration key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    /// Its path, such as `store.url`.
    pub path: &'static str,
    /// Its default in the notation of environment variables, or none.
    pub default: Option<&'static str>,
    /// What it is for, as Markdown.
    pub meaning: &'static str,
}

/// All keys, in the order in which they are explained.
pub const KEYS: [Key; 23] = [
    key(
        "instance.kind",
        Some("production"),
        "`production` or `development`. Written into the store once; a development store never starts as production.",
    ),
    key(
        "public_url",
        None,
        "Where browsers reach the web listener, such as `https://wallet.example.com`: https, or http on loopback in \
         development. Required in production; in development unset means the web listener's address.",
    ),
    key("store.url", Some("sqlite:token-wallet.db"), "`sqlite:PATH` or `postgres://USER:PASSWORD@HOST:PORT/DATABASE`."),
    key("store.url_file", None, "A file that holds the store's URL, instead of `store.url`."),
    key(
        "store.max_connections",
        Some("10"),
        "Database connections held at most, besides two that PostgreSQL gets for storing providers' answers.",
    ),
    key(
        "spool.dir",
        None,
        "Where providers' answers are kept, sealed, while the store does not take them: a directory that outlives the \
         process; replicas on one machine may share it. Unset means the `SQLite` file's path and `.spool`. Required in \
         production with PostgreSQL; in development there, unset means `token-wallet.spool`.",
    ),
    key(
        "serve_during_store_outage",
        Some("0"),
        "How long a refreshed token is served that the spool has and PostgreSQL does not take: until then an unlink by \
         another replica may be missed. `SQLite` needs no such limit.",
    ),
    key("root_key.source", Some("env"), "`env` or `file`: where the root key is."),
    key("root_key.env", Some("TOKEN_WALLET_ROOT_KEY"), "The variable with the root key: 32 bytes in base64."),
    key("root_key.file", None, "The file with the root key, mode 0600."),
    key("grpc.addr", Some("127.0.0.1:50051"), "The gRPC listener. Port 0 takes a free one."),
    key(
        "grpc.allow_plaintext",
        Some("false"),
        "Says that TLS is ended in front of a gRPC listener that is not on loopback; without it production refuses to \
         start.",
    ),
    key("web.addr", Some("127.0.0.1:8080"), "The listener for callbacks and pages, behind `public_url`."),
    key("ops.addr", Some("127.0.0.1:9464"), "The listener for `/metrics`, `/livez` and `/readyz`."),
    key("ops.allow_plaintext", Some("false"), "The same as `grpc.allow_plaintext`, for the ops listener."),
    key(
        "refresh.ahead_for",
        Some("14days"),
        "How long after a get its grant is refreshed before anybody asks again; `0` means always.",
    ),
    key(
        "cache.max_bytes",
        Some("67108864"),
        "Bytes of sealed tokens, providers and API keys held in memory at most, so that gets need not ask the database; \
         `0` holds none.",
    ),
    key(
        "events.retention",
        Some("90days"),
        "How long events are kept: at least `1h`. Whoever watches must not be away for longer.",
    ),
    key(
        "outbound.allow",
        Some("[]"),
        "Private networks that providers may be in, such as `[\"10.1.0.0/16\"]`; all others are refused.",
    ),
    key("log.format", Some("pretty"), "`pretty` or `json`."),
    key(
        "log.filter",
        Some("warn,token_wallet=info"),
        "What is logged, such as `warn,token_wallet=debug`; `RUST_LOG` overrides it. Dependencies never log below \
         `info`.",
    ),
    key(
        "bootstrap_admin_key_file",
        None,
        "A new file, mode 0600, that a first API key is written to if there is no API client yet.",
    ),
    key("sandbox.url", None, "The base URL of a `token-wallet sandbox` (development only)."),
];

const fn key(path: &'static str, default: Option<&'static str>, meaning: &'static str) -> Key {
    Key { path, default, meaning }
}

/// The environment variable that overrides the key.
pub fn variable_of(path: &str) -> String {
    format!("TOKEN_WALLET__{}", path.replace('.', "__").to_uppercase())
}

/// All keys as a Markdown table.
pub fn table() -> String {
    let mut table = "| key | default | meaning |\n|---|---|---|\n".to_owned();
    for Key { path, default, meaning } in KEYS {
        let default = default.map(|text| format!("`{text}`")).unwrap_or_default();
        // Writing to a String cannot fail.
        let _ = writeln!(table, "| `{path}` | {default} | {meaning} |");
    }
    table
}
