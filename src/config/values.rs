//! Types of single values.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use ipnet::IpNet;
use serde::de::{Deserializer, Error, Unexpected, Visitor};
use url::Url;
use zeroize::Zeroizing;

/// How a log line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Text for people.
    Pretty,
    /// One JSON object a line.
    Json,
}

/// What a PostgreSQL URL may say in its query (the driver's `PgConnectOptions`).
const PARAMETERS: [&str; 18] = [
    "application_name",
    "dbname",
    "host",
    "hostaddr",
    "options",
    "password",
    "port",
    "ssl-ca",
    "ssl-cert",
    "ssl-key",
    "ssl-mode",
    "ssl-root-cert",
    "sslcert",
    "sslkey",
    "sslmode",
    "sslrootcert",
    "statement-cache-capacity",
    "user",
];

/// Which database. Its text may hold a password, so nothing prints it.
#[derive(Clone)]
pub struct StoreUrl(Zeroizing<String>);

/// Why a text is no store URL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreUrlError {
    /// Neither of the two forms.
    #[error("must be sqlite:PATH or postgres://USER:PASSWORD@HOST:PORT/DATABASE")]
    Shape,
    /// A parameter that is none. Its value may be a misspelt password's, which the driver would log.
    #[error("has a parameter that PostgreSQL connections do not have here")]
    Parameter,
    /// A database without a file.
    #[error("must name a file: what an in-memory database holds is lost with the process")]
    InMemory,
}

/// The kinds of root key sources.
#[derive(Clone, Copy, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum RootKeyKind {
    Env,
    File,
}

/// A network, or a single address.
pub(super) struct Network(pub(super) IpNet);

/// A listener's address.
pub(super) struct Address(pub(super) SocketAddr);

/// An absolute URL.
pub(super) struct WebUrl(pub(super) Url);

/// A humane duration, or a bare 0.
#[derive(Clone, Copy)]
pub(super) struct Span(pub(super) Duration);

impl StoreUrl {
    /// A `SQLite` file.
    pub fn sqlite(path: &Path) -> Self {
        Self(format!("sqlite:{}", path.display()).into())
    }

    /// Which database it is, without the user and the password: text to show and to compare.
    pub fn place(&self) -> String {
        let Ok(url) = Url::parse(&self.0) else { return (*self.0).clone() };
        let parameter = |name| url.query_pairs().find(|(key, _)| key == name).map(|(_, value)| value.into_owned());
        let host = parameter("host").or_else(|| url.host_str().map(str::to_owned)).unwrap_or_default();
        let port = parameter("port").or_else(|| url.port().map(|port| port.to_string())).unwrap_or_default();
        let database = parameter("dbname").unwrap_or_else(|| url.path().trim_start_matches('/').to_owned());
        let colon = if port.is_empty() { "" } else { ":" };
        format!("{host}{colon}{port}/{database}")
    }

    /// Reads `sqlite:PATH` or `postgres://…`.
    pub fn parse(text: impl Into<Zeroizing<String>>) -> Result<Self, StoreUrlError> {
        let text = text.into();
        if let Some(path) = text.strip_prefix("sqlite:") {
            return match path.trim_start_matches('/') {
                "" => Err(StoreUrlError::Shape),
                ":memory:" => Err(StoreUrlError::InMemory),
                _ if path.contains("mode=memory") => Err(StoreUrlError::InMemory),
                _ => Ok(Self(text)),
            };
        }
        let url = Url::parse(&text).map_err(|_| StoreUrlError::Shape)?;
        // A host may be missing: a socket is named by the `host` parameter.
        if !matches!(url.scheme(), "postgres" | "postgresql") {
            return Err(StoreUrlError::Shape);
        }
        let mut names = url.query_pairs().map(|(name, _)| name);
        let known = names.all(|name| PARAMETERS.contains(&&*name) || name.starts_with("options["));
        if known { Ok(Self(text)) } else { Err(StoreUrlError::Parameter) }
    }

    /// The URL itself, for the store that opens it.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// The file of a `SQLite` store.
    pub fn sqlite_path(&self) -> Option<&Path> {
        self.0.strip_prefix("sqlite:").map(Path::new)
    }
}

impl<'de> serde::Deserialize<'de> for Network {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let network = text.parse().or_else(|_| text.parse().map(|address: IpAddr| address.into()));
        network.map(Self).map_err(|_| {
            D::Error::invalid_value(Unexpected::Other("text"), &"networks such as 10.1.0.0/16, or addresses")
        })
    }
}

impl<'de> serde::Deserialize<'de> for Address {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let wrong = |_| D::Error::invalid_value(Unexpected::Other("text"), &"an address such as 127.0.0.1:8080");
        String::deserialize(deserializer)?.parse().map(Self).map_err(wrong)
    }
}

impl<'de> serde::Deserialize<'de> for WebUrl {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let wrong = |_| D::Error::invalid_value(Unexpected::Other("text"), &"a URL such as https://wallet.example.com");
        String::deserialize(deserializer)?.parse().map(Self).map_err(wrong)
    }
}

impl<'de> serde::Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Humane;

        impl Visitor<'_> for Humane {
            type Value = Span;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a duration such as \"90s\" or \"14days\"")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Span, E> {
                let wrong = |_| E::invalid_value(Unexpected::Other("text"), &self);
                humantime::parse_duration(text).map(Span).map_err(wrong)
            }

            fn visit_u64<E: Error>(self, number: u64) -> Result<Span, E> {
                let wrong = Unexpected::Unsigned(number);
                if number == 0 { Ok(Span(Duration::ZERO)) } else { Err(E::invalid_value(wrong, &self)) }
            }

            fn visit_i64<E: Error>(self, number: i64) -> Result<Span, E> {
                let wrong = Unexpected::Signed(number);
                u64::try_from(number)
                    .map_err(|_| E::invalid_value(wrong, &self))
                    .and_then(|number| self.visit_u64(number))
            }
        }

        deserializer.deserialize_any(Humane)
    }
}

/// `https://host/` and `https://host/path/` as bases that paths are appended to.
pub(super) fn without_trailing_slash(WebUrl(mut url): WebUrl) -> Url {
    let path = url.path().trim_end_matches('/').to_owned();
    url.set_path(&path);
    url
}
