//! The catalog: what is known of providers, as data.

use std::collections::BTreeMap;
use std::sync::LazyLock;
use std::time::Duration;

use serde::Deserialize;

use crate::domain::doubt::Reuse;
use crate::domain::provider::Lifetime;
use crate::domain::scopes::Scopes;

/// All entries, by name.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Catalog {
    provider: BTreeMap<String, Entry>,
}

/// What is known of one provider.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// The entry's name; the key of its table.
    #[serde(skip)]
    pub name: String,
    /// Its name for people.
    pub display_name: String,
    /// Only for development instances.
    #[serde(default)]
    pub development_only: bool,
    /// Where the browser is sent (RFC 6749 section 3.1). Absent, with the other URLs: the operator gives them.
    pub authorization_url: Option<String>,
    /// Where codes and refresh tokens are redeemed (RFC 6749 section 3.2).
    pub token_url: Option<String>,
    /// Where the profile is read, by GET with the access token as Bearer.
    pub userinfo_url: Option<String>,
    /// Where tokens are revoked (RFC 7009). Absent: the provider has no such endpoint, or the operator gives it.
    pub revocation_url: Option<String>,
    /// How a revocation is authorized; absent: as at the token endpoint.
    revocation_auth: Option<RevocationAuth>,
    /// Which token a revocation takes.
    #[serde(default)]
    pub revocation_token: RevocationToken,
    /// What a revocation ends. Not known is taken for the most.
    #[serde(default)]
    pub revocation_reach: RevocationReach,
    /// What `iss` of its callbacks must be (RFC 9207). Absent: not checked.
    pub issuer: Option<String>,
    /// RFC 6901 pointer to the account's id in the profile.
    pub ptr_id: String,
    /// The same to the e-mail address.
    pub ptr_email: Option<String>,
    /// The same to the name for people.
    pub ptr_name: Option<String>,
    /// The same to the picture's URL.
    pub ptr_avatar: Option<String>,
    /// The same to the login name.
    pub ptr_username: Option<String>,
    /// How a client secret is shown to the token endpoint (RFC 6749 section 2.3.1). Public clients send their id alone.
    pub token_auth: TokenAuth,
    /// What stands between two scopes, asked and granted.
    pub scope_separator: String,
    /// What every authorization asks for, so that the profile can be read.
    pub identity_scopes: Vec<String>,
    /// What a link asks for besides, to get a refresh token.
    pub offline_scopes: Vec<String>,
    /// Whether RFC 7636 is used, with S256.
    pub pkce: Pkce,
    /// How the browser brings back what the provider says.
    #[serde(default)]
    pub response_mode: ResponseMode,
    /// Fixed parameters of the authorization URL.
    #[serde(default)]
    pub auth_params: BTreeMap<String, String>,
    /// More of them where a refresh token is wanted.
    #[serde(default)]
    pub offline_params: BTreeMap<String, String>,
    /// The access token's usual life in seconds, for answers that do not say: 0 = it does not expire.
    access_token_ttl: Option<u64>,
    /// How long a code may be redeemed, in seconds.
    code_lifetime: u64,
    /// Error codes of the token endpoint that mean that this grant is over.
    pub dead_grant_errors: Vec<String>,
    /// Whether a refresh gives a new refresh token.
    #[serde(default)]
    refresh_rotates: Rotates,
    /// How long after its first use a refresh token is taken again, in seconds: 0 = not at all. Absent: not known.
    refresh_reuse_grace: Option<u64>,
    /// What becomes of a refresh token that is used again.
    #[serde(default)]
    refresh_reuse_effect: ReuseEffect,
    /// How long a refresh token lives, used or not, in seconds: 0 = for ever. Where refresh tokens rotate, each of them;
    /// else the whole consent. Absent: not known.
    refresh_ttl: Option<u64>,
    /// How long a refresh token lives that is not used, in seconds: 0 = for ever. Absent: not known.
    refresh_idle_ttl: Option<u64>,
    /// Whether a refresh ends the access token before it.
    #[serde(default)]
    pub refresh_kills_access_token: bool,
    /// Fields of the token answer that an API call needs besides the token. Never secret.
    #[serde(default)]
    pub metadata: Vec<String>,
}

/// Ways to show a client secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TokenAuth {
    /// As HTTP Basic password, form-encoded before.
    ClientSecretBasic,
    /// In the body.
    ClientSecretPost,
}

/// Ways to authorize a revocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RevocationAuth {
    /// Whoever has the token may.
    None,
    /// The client names itself.
    ClientIdOnly,
    /// With the client's secret, as [`TokenAuth::ClientSecretBasic`].
    ClientSecretBasic,
    /// With the client's secret, as [`TokenAuth::ClientSecretPost`].
    ClientSecretPost,
    /// By the access token itself, which is the one that is revoked (RFC 6750 section 2.1).
    BearerAccessToken,
}

/// Which token a revocation takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RevocationToken {
    /// Either; a refresh token takes its access tokens with it (RFC 7009 section 2.1).
    #[default]
    RefreshOrAccess,
    /// Refresh tokens alone.
    Refresh,
    /// Access tokens alone.
    Access,
}

/// What a revocation ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RevocationReach {
    /// What came of the same consent as the token, and no more.
    Token,
    /// All that the user ever gave to our client, newer consents too.
    #[default]
    Authorization,
}

/// Ways to bring back what the provider says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ResponseMode {
    /// In the query of the redirect URI (RFC 6749 section 4.1.2).
    #[default]
    Query,
    /// In a form that the browser posts there (OAuth 2.0 Form Post Response Mode).
    FormPost,
}

/// Whether a refresh gives a new refresh token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Rotates {
    Always,
    Never,
    Sometimes,
    #[default]
    Unknown,
}

/// What becomes of a refresh token that is used again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum ReuseEffect {
    Error,
    FamilyRevoked,
    OldStillValid,
    OldStillValidWithinGrace,
    OldStillValidUntilReplacementUsed,
    #[default]
    Unknown,
}

/// What a provider makes of RFC 7636.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pkce {
    /// It takes a challenge, or ignores it as RFC 6749 section 3.1 says.
    Supported,
    /// It refuses requests with one.
    Unsupported,
}

static EMBEDDED: LazyLock<Catalog> = LazyLock::new(|| {
    #[expect(clippy::expect_used, reason = "the text is compiled in, and a test reads it")]
    Catalog::parse(include_str!("catalog.toml")).expect("the embedded catalog")
});

impl Catalog {
    /// The catalog of this build.
    pub fn embedded() -> &'static Self {
        &EMBEDDED
    }

    /// The entry of this name.
    pub fn entry(&self, name: &str) -> Option<&Entry> {
        self.provider.get(name)
    }

    /// The names of all entries, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.provider.keys().map(String::as_str)
    }

    fn parse(text: &str) -> Result<Self, toml::de::Error> {
        let mut tables: BTreeMap<String, BTreeMap<String, toml::Table>> = toml::from_str(text)?;
        for entries in tables.values_mut() {
            inherit(entries);
        }
        let mut catalog = Self::deserialize(toml::Value::try_from(tables).map_err(serde::de::Error::custom)?)?;
        for (name, entry) in &mut catalog.provider {
            entry.name.clone_from(name);
        }
        Ok(catalog)
    }
}

/// An entry that says `like = "other"` has the other's keys where it has none of its own.
fn inherit(entries: &mut BTreeMap<String, toml::Table>) {
    let originals = entries.clone();
    for entry in entries.values_mut() {
        let original = entry.get("like").and_then(toml::Value::as_str).and_then(|like| originals.get(like));
        // An unknown one stays in the table, where it is a key that nobody knows.
        if let Some(original) = original {
            entry.remove("like");
            for (key, value) in original {
                entry.entry(key.clone()).or_insert_with(|| value.clone());
            }
        }
    }
}

impl Entry {
    /// The life of an access token whose answer does not say.
    pub fn usual_lifetime(&self) -> Option<Lifetime> {
        self.access_token_ttl.map(|seconds| match seconds {
            0 => Lifetime::Endless,
            seconds => Lifetime::Stated(Duration::from_secs(seconds)),
        })
    }

    /// What the provider makes of a refresh token that was redeemed before. What is not known is taken for the worst.
    pub fn reuse(&self) -> Reuse {
        let grace = self.refresh_reuse_grace.filter(|grace| *grace > 0).map(Duration::from_secs);
        match (self.refresh_rotates, self.refresh_reuse_effect, grace) {
            // A replacement that did not reach us is not used.
            (Rotates::Never, _, _)
            | (_, ReuseEffect::OldStillValid | ReuseEffect::OldStillValidUntilReplacementUsed, _) => Reuse::Harmless,
            (_, _, Some(grace)) => Reuse::Grace(grace),
            (_, ReuseEffect::Error | ReuseEffect::OldStillValidWithinGrace, None) => Reuse::Refused,
            (_, ReuseEffect::FamilyRevoked | ReuseEffect::Unknown, None) => Reuse::EndsAll,
        }
    }

    /// How long the provider keeps a refresh token that is not used; `None` if for ever, or not known.
    pub fn idle_life(&self) -> Option<Duration> {
        let rotating = self.refresh_ttl.filter(|_| self.refresh_rotates != Rotates::Never);
        [self.refresh_idle_ttl, rotating].into_iter().flatten().filter(|ttl| *ttl > 0).min().map(Duration::from_secs)
    }

    /// How long a consent lives however often it is used; `None` if for ever, or not known.
    pub fn consent_life(&self) -> Option<Duration> {
        let fixed = self.refresh_ttl.filter(|ttl| *ttl > 0 && self.refresh_rotates == Rotates::Never);
        fixed.map(Duration::from_secs)
    }

    /// How a revocation is authorized.
    pub fn revocation_auth(&self) -> RevocationAuth {
        self.revocation_auth.unwrap_or(match self.token_auth {
            TokenAuth::ClientSecretBasic => RevocationAuth::ClientSecretBasic,
            TokenAuth::ClientSecretPost => RevocationAuth::ClientSecretPost,
        })
    }

    /// How long a code may be redeemed.
    pub const fn code_lifetime(&self) -> Duration {
        Duration::from_secs(self.code_lifetime)
    }

    /// What every authorization asks for.
    pub fn base_scopes(&self) -> Scopes {
        self.identity_scopes.iter().cloned().collect()
    }

    /// What a link asks for besides.
    pub fn offline_scopes(&self) -> Scopes {
        self.offline_scopes.iter().cloned().collect()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// An entry like `oauth2` with lines of TOML added, for tables.
    pub(crate) fn entry_with(lines: &str) -> &'static Entry {
        let base = r#"
            display_name = "Example"
            ptr_id = "/sub"
            scope_separator = " "
            identity_scopes = ["openid"]
            offline_scopes = ["offline_access"]
            code_lifetime = 30
        "#;
        let defaults = [
            ("pkce", "\"supported\""),
            ("dead_grant_errors", "[\"invalid_grant\"]"),
            ("token_auth", "\"client_secret_basic\""),
        ];
        let defaults = defaults.iter().filter(|(key, _)| !lines.contains(key));
        let defaults = defaults.map(|(key, value)| format!("{key} = {value}")).collect::<Vec<_>>().join("\n");
        let text = format!("[provider.example]\n{base}\n{defaults}\n{lines}");
        let catalog = Box::leak(Box::new(Catalog::parse(&text).unwrap()));
        catalog.entry("example").unwrap()
    }

    #[test]
    fn what_is_not_known_of_a_refresh_token_is_taken_for_the_worst() {
        let secs = Duration::from_secs;
        for (lines, reuse) in [
            ("", Reuse::EndsAll),
            ("refresh_rotates = \"never\"", Reuse::Harmless),
            ("refresh_reuse_effect = \"old_still_valid\"", Reuse::Harmless),
            ("refresh_reuse_effect = \"old_still_valid_until_replacement_used\"", Reuse::Harmless),
            ("refresh_reuse_effect = \"error\"", Reuse::Refused),
            ("refresh_reuse_effect = \"error\"\nrefresh_reuse_grace = 60", Reuse::Grace(secs(60))),
            ("refresh_reuse_effect = \"family_revoked\"\nrefresh_reuse_grace = 0", Reuse::EndsAll),
            ("refresh_reuse_effect = \"family_revoked\"\nrefresh_reuse_grace = 30", Reuse::Grace(secs(30))),
        ] {
            assert_eq!(entry_with(lines).reuse(), reuse, "{lines}");
        }
    }

    #[test]
    fn a_refresh_token_that_is_replaced_only_dies_of_idleness() {
        let day = Duration::from_hours(24);
        let lives = |lines: &str| (entry_with(lines).idle_life(), entry_with(lines).consent_life());
        assert_eq!(lives(""), (None, None));
        assert_eq!(lives("refresh_rotates = \"always\"\nrefresh_ttl = 86400"), (Some(day), None));
        assert_eq!(lives("refresh_rotates = \"never\"\nrefresh_ttl = 86400"), (None, Some(day)));
        assert_eq!(lives("refresh_rotates = \"never\"\nrefresh_ttl = 0\nrefresh_idle_ttl = 86400"), (Some(day), None));
        assert_eq!(
            lives("refresh_rotates = \"always\"\nrefresh_ttl = 864000\nrefresh_idle_ttl = 86400"),
            (Some(day), None)
        );
    }

    #[test]
    fn an_entry_may_be_like_another() {
        let strict = Catalog::embedded().entry("sandbox_strict").unwrap();
        let plain = Catalog::embedded().entry("sandbox").unwrap();
        assert_eq!(
            (&strict.token_url, strict.reuse(), plain.reuse()),
            (&plain.token_url, Reuse::EndsAll, Reuse::Refused)
        );
        assert!(Catalog::parse("[provider.a]\nlike = \"b\"").is_err());
    }

    #[test]
    fn the_embedded_catalog_is_read_and_each_entry_is_whole() {
        let catalog = Catalog::embedded();
        assert_eq!(
            catalog.names().collect::<Vec<_>>(),
            [
                "oauth2",
                "sandbox",
                "sandbox_form_post",
                "sandbox_grace",
                "sandbox_static",
                "sandbox_strict",
                "sandbox_whole"
            ]
        );
        for name in catalog.names() {
            let entry = catalog.entry(name).unwrap();
            assert_eq!(entry.name, name);
            let urls = [&entry.authorization_url, &entry.token_url, &entry.userinfo_url];
            assert!(urls.iter().all(|url| url.is_some()) || urls.iter().all(|url| url.is_none()), "{name}");
            let pointers = [Some(&entry.ptr_id), entry.ptr_email.as_ref(), entry.ptr_name.as_ref()];
            assert!(pointers.into_iter().flatten().all(|pointer| pointer.starts_with('/')), "{name}");
            assert!(entry.code_lifetime() >= Duration::from_secs(30), "{name}");
            let asked = entry.identity_scopes.iter().chain(&entry.offline_scopes);
            assert!(Scopes::parse(asked.cloned()).is_ok(), "{name}");
        }
    }

    #[test]
    fn a_key_that_nobody_reads_is_an_error() {
        let text = include_str!("catalog.toml").replacen("display_name", "refresh_url = \"x\"\ndisplay_name", 1);
        assert!(Catalog::parse(&text).unwrap_err().to_string().contains("refresh_url"));
    }

    #[test]
    fn the_usual_lifetime_is_stated_endless_or_unknown() {
        assert_eq!(entry_with("").usual_lifetime(), None);
        assert_eq!(entry_with("access_token_ttl = 0").usual_lifetime(), Some(Lifetime::Endless));
        let hour = Lifetime::Stated(Duration::from_hours(1));
        assert_eq!(entry_with("access_token_ttl = 3600").usual_lifetime(), Some(hour));
    }
}
