//! What a sandbox is started with. Every field has a default that suits `dev` and tests.

use std::collections::HashSet;
use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroU64;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use url::{Host, Url};

use crate::clock::Clock;

/// The id of the client that [`Options::default`] registers.
pub const DEFAULT_CLIENT_ID: &str = "sandbox";

/// The secret of the client that [`Options::default`] registers. It is documented, so it protects nothing.
pub const DEFAULT_CLIENT_SECRET: &str = "sandbox-secret";

/// How to start a sandbox: `Options { token_ttl, ..Options::default() }`.
#[derive(Clone)]
pub struct Options {
    /// Where to listen; port 0 takes a free one. Default `127.0.0.1:0`.
    pub addr: SocketAddr,
    /// The base URL and issuer to announce, without a trailing slash, for a sandbox behind another address. Default:
    /// `http://` and the bound address (an unspecified address is announced as loopback).
    pub base_url: Option<String>,
    /// How long an access token lives. Default one hour.
    pub token_ttl: Duration,
    /// How long an authorization code lives. Default 60 s.
    pub code_ttl: Duration,
    /// How long a refresh token lives from the answer that gave it. Default 30 days.
    pub refresh_ttl: Duration,
    /// What becomes of a refresh token that was redeemed. Default [`Rotation::Always`].
    pub rotation: Rotation,
    /// Whether a dead refresh token that is presented again ends everything its consent gave (RFC 9700 section
    /// 4.14.2). Default false.
    pub reuse_revokes_family: bool,
    /// Who may ask for tokens. Default: one confidential client, [`DEFAULT_CLIENT_ID`], on loopback redirect URIs.
    pub clients: Vec<Client>,
    /// Who can be chosen on the authorize page; the first is preselected. Default: `demo`, `alice` and `bob`.
    pub people: Vec<Person>,
    /// Where grants and the signing key are kept, mode 0600. Default none: both are gone with the process.
    pub state_file: Option<PathBuf>,
    /// Put in front of every code and token, so that a test can plant a canary. Letters, digits, `-`, `.`, `_`, `~`.
    pub secret_prefix: Option<String>,
    /// What time it is. Default the machine's.
    pub clock: Clock,
}

/// What becomes of a refresh token that was redeemed.
///
/// As text (`--rotation`): `always`, `never`, `every=3`, `grace=30s`. As JSON: `"always"`, `"never"`, `{"every": 3}`,
/// `{"grace_seconds": 30}`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rotation {
    /// Each redemption gives a new one; the old one is dead at once.
    Always,
    /// It stays good and the answer carries no `refresh_token`.
    Never,
    /// Each so-and-so-many-th redemption of a grant gives a new one, and the old one is dead at once; the others are as
    /// with `Never`. 1 is as `Always`.
    Every(NonZeroU64),
    /// Each redemption gives a new one; the old one still answers for this long after its first redemption. Each such
    /// answer carries a fresh successor (only hashes are kept, so the first cannot be told again) and all successors
    /// are good.
    #[serde(rename = "grace_seconds")]
    Grace(#[serde(with = "super::settings::seconds")] Duration),
}

/// An application that may ask for tokens (RFC 6749 section 2).
#[derive(Clone)]
pub struct Client {
    /// Its `client_id`.
    pub id: String,
    /// Its `client_secret`; none makes it a public client, which must use PKCE. What is accepted instead or besides can
    /// be changed later: [`Settings::client_secrets`](super::Settings::client_secrets).
    pub secret: Option<String>,
    /// Where people may be sent back to.
    pub redirect: RedirectRule,
    /// Whether a code is given only to requests with PKCE (OAuth 2.1). Always so for public clients.
    pub require_pkce: bool,
}

/// Which redirect URIs a client may name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RedirectRule {
    /// `http` to `127.0.0.1`, `[::1]` or `localhost`, any port and path (RFC 8252 section 7.3).
    Loopback,
    /// One of these, compared as text (RFC 9700 section 2.1).
    Exact(Vec<String>),
}

/// A made-up person who can be chosen on the authorize page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Person {
    /// The short name that forms and `login_hint` use.
    pub username: String,
    /// The full name, claim `name`.
    pub name: String,
    /// Claim `email`.
    pub email: String,
    /// Claim `email_verified`.
    pub email_verified: bool,
    /// Claim `sub`.
    pub subject: String,
}

/// A rotation that is not `always`, `never`, `every=<number>` or `grace=<duration>`.
#[derive(Debug, thiserror::Error)]
#[error("expected always, never, every=<number> or grace=<duration>, as in every=3 or grace=30s")]
pub struct UnknownRotation;

impl Default for Options {
    fn default() -> Self {
        Self {
            addr: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            base_url: None,
            token_ttl: Duration::from_hours(1),
            code_ttl: Duration::from_mins(1),
            refresh_ttl: Duration::from_hours(30 * 24),
            rotation: Rotation::Always,
            reuse_revokes_family: false,
            clients: vec![Client::confidential(DEFAULT_CLIENT_ID, DEFAULT_CLIENT_SECRET, RedirectRule::Loopback)],
            people: ["demo", "alice", "bob"].map(Person::named).into(),
            state_file: None,
            secret_prefix: None,
            clock: Clock::system(),
        }
    }
}

impl Options {
    /// Refuses options that no sandbox can run on, as `InvalidInput`.
    pub(super) fn check(&self) -> io::Result<()> {
        let unique = |names: Vec<&str>| {
            let count = names.len();
            count > 0 && names.into_iter().collect::<HashSet<_>>().len() == count
        };
        let refuse = |why: &str| Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        if !unique(self.people.iter().map(|person| person.username.as_str()).collect()) {
            return refuse("people: at least one, each with a username of its own");
        }
        if !unique(self.people.iter().map(|person| person.subject.as_str()).collect()) {
            return refuse("people: two share a subject");
        }
        if !unique(self.clients.iter().map(|client| client.id.as_str()).collect()) {
            return refuse("clients: at least one, each with an id of its own");
        }
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
        if !self.secret_prefix.as_deref().unwrap_or_default().bytes().all(plain) {
            return refuse("secret_prefix: only letters, digits, - . _ ~");
        }
        if self.base_url.as_deref().is_some_and(|url| url.ends_with('/') || Url::parse(url).is_err()) {
            return refuse("base_url: an absolute URL without a trailing slash");
        }
        Ok(())
    }
}

impl Client {
    /// A client that keeps a secret.
    pub fn confidential(id: impl Into<String>, secret: impl Into<String>, redirect: RedirectRule) -> Self {
        Self { id: id.into(), secret: Some(secret.into()), redirect, require_pkce: true }
    }

    /// A client that cannot keep one, such as an app on a phone.
    pub fn public(id: impl Into<String>, redirect: RedirectRule) -> Self {
        Self { id: id.into(), secret: None, redirect, require_pkce: true }
    }

    /// Its id and the secrets that are accepted at first; none for a public client.
    pub(super) fn accepted(&self) -> Option<(String, Vec<String>)> {
        Some((self.id.clone(), vec![self.secret.clone()?]))
    }

    pub(super) fn needs_pkce(&self) -> bool {
        self.require_pkce || self.secret.is_none()
    }
}

impl RedirectRule {
    /// The URI parsed, if people may be sent there.
    pub(super) fn accept(&self, uri: &str) -> Option<Url> {
        let url = Url::parse(uri).ok()?;
        let plain = url.fragment().is_none() && url.username().is_empty() && url.password().is_none();
        let listed = match self {
            Self::Loopback => {
                url.scheme() == "http"
                    && match url.host() {
                        Some(Host::Ipv4(ip)) => ip == Ipv4Addr::LOCALHOST,
                        Some(Host::Ipv6(ip)) => ip.is_loopback(),
                        Some(Host::Domain(name)) => name == "localhost",
                        None => false,
                    }
            }
            Self::Exact(uris) => uris.iter().any(|listed| listed == uri),
        };
        (plain && listed).then_some(url)
    }
}

impl Person {
    /// A person made of a username: `ada` is Ada, `ada@sandbox.example` (verified), subject `person-ada`.
    pub fn named(username: &str) -> Self {
        let mut letters = username.chars();
        let name = letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default();
        Self {
            username: username.into(),
            name,
            email: format!("{username}@sandbox.example"),
            email_verified: true,
            subject: format!("person-{username}"),
        }
    }
}

impl FromStr for Rotation {
    type Err = UnknownRotation;

    fn from_str(text: &str) -> Result<Self, UnknownRotation> {
        match text {
            "always" => Ok(Self::Always),
            "never" => Ok(Self::Never),
            _ => match text.split_once('=').ok_or(UnknownRotation)? {
                ("every", count) => count.parse().map(Self::Every).map_err(|_| UnknownRotation),
                ("grace", span) => humantime::parse_duration(span).map(Self::Grace).map_err(|_| UnknownRotation),
                _ => Err(UnknownRotation),
            },
        }
    }
}

impl fmt::Display for Rotation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Always => f.write_str("always"),
            Self::Never => f.write_str("never"),
            Self::Every(count) => write!(f, "every={count}"),
            Self::Grace(span) => write!(f, "grace={}", humantime::format_duration(*span)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_means_loopback_in_every_spelling_a_url_parser_knows() {
        let rule = RedirectRule::Loopback;
        for fine in ["http://127.0.0.1:1/x", "http://[::1]/", "http://localhost:8080/cb?a=b"] {
            assert!(rule.accept(fine).is_some(), "{fine}");
        }
        for wrong in [
            "https://127.0.0.1/",
            "http://127.0.0.1.example.com/",
            "http://127.0.0.1@example.com/",
            "http://user@127.0.0.1/",
            "http://127.0.0.1/#f",
            "http://127.0.0.2/",
            "//127.0.0.1/",
            "javascript:alert(1)",
            "",
        ] {
            assert!(rule.accept(wrong).is_none(), "{wrong}");
        }
    }

    #[test]
    fn a_rotation_reads_what_it_prints() {
        for text in ["always", "never", "every=3", "grace=30s"] {
            assert_eq!(text.parse::<Rotation>().unwrap().to_string(), text);
        }
        assert!("sometimes".parse::<Rotation>().is_err());
        assert!("grace=soon".parse::<Rotation>().is_err());
        assert!("every=0".parse::<Rotation>().is_err());
    }

    #[test]
    fn options_that_cannot_run_are_refused() {
        let twice = vec![Person::named("demo"), Person::named("demo")];
        assert!(Options { people: twice, ..Options::default() }.check().is_err());
        assert!(Options { clients: vec![], ..Options::default() }.check().is_err());
        assert!(Options { secret_prefix: Some("a b".into()), ..Options::default() }.check().is_err());
        assert!(Options::default().check().is_ok());
    }
}
