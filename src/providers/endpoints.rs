//! Where a provider is reached: from the catalog, or given by the operator.

use serde::{Deserialize, Serialize};
use url::Url;

use super::catalog::Entry;
use crate::domain::error::Failure;
use crate::outbound::Outbound;

/// Where a provider is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoints {
    /// The page that asks the user for consent (RFC 6749 section 3.1).
    pub authorization_url: Url,
    /// Where codes and refresh tokens are redeemed (RFC 6749 section 3.2).
    pub token_url: Url,
    /// Where the profile is read.
    pub userinfo_url: Url,
    /// Where tokens are revoked (RFC 7009), if anywhere.
    pub revocation_url: Option<Url>,
    /// What `iss` of its callbacks must be, compared as text (RFC 9207 section 2.4). `None`: not checked.
    pub issuer: Option<String>,
    /// RFC 6901 pointer to the account's id in the profile.
    pub subject_pointer: String,
}

/// Endpoints as an operator gives them, and as the store keeps them (as JSON).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CustomEndpoints {
    /// See [`Endpoints::authorization_url`].
    pub authorization_url: String,
    /// See [`Endpoints::token_url`].
    pub token_url: String,
    /// See [`Endpoints::userinfo_url`].
    pub userinfo_url: String,
    /// See [`Endpoints::revocation_url`].
    pub revocation_url: Option<String>,
    /// See [`Endpoints::issuer`].
    pub issuer: Option<String>,
    /// See [`Endpoints::subject_pointer`]; `None` is the catalog's, `/sub`.
    pub subject_pointer: Option<String>,
}

/// Stands in the catalog's URLs for the base URL of the sandbox.
const SANDBOX: &str = "{sandbox}";

impl CustomEndpoints {
    /// Checks what an operator gave: no URL that [`Outbound`] would refuse to call.
    ///
    /// # Errors
    ///
    /// [`Failure::InvalidField`] with the field's path.
    pub fn check(&self, outbound: &Outbound) -> Result<(), Failure> {
        check_url("endpoints.authorization_url", &self.authorization_url, outbound)?;
        check_url("endpoints.token_url", &self.token_url, outbound)?;
        check_url("endpoints.userinfo_url", &self.userinfo_url, outbound)?;
        if let Some(url) = &self.revocation_url {
            check_url("endpoints.revocation_url", url, outbound)?;
        }
        if let Some(issuer) = &self.issuer {
            check_url("endpoints.issuer", issuer, outbound)?;
        }
        match &self.subject_pointer {
            Some(pointer) if !is_pointer(pointer) => Err(Failure::field("endpoints.subject_pointer", POINTER)),
            _ => Ok(()),
        }
    }
}

const POINTER: &str = "must be a JSON pointer such as /sub, at most 256 bytes";

impl Endpoints {
    /// The entry's own, with the sandbox at `sandbox`. `None`: the entry has none, or needs a sandbox and there is none.
    pub fn of_entry(entry: &Entry, sandbox: Option<&Url>) -> Option<Self> {
        let base = sandbox.map(|url| url.as_str().trim_end_matches('/'));
        let fill = |text: &str| match base {
            Some(base) => Some(text.replace(SANDBOX, base)),
            None => (!text.contains(SANDBOX)).then(|| text.to_owned()),
        };
        let url = |text: &Option<String>| Url::parse(&fill(text.as_ref()?)?).ok();
        Some(Self {
            authorization_url: url(&entry.authorization_url)?,
            token_url: url(&entry.token_url)?,
            userinfo_url: url(&entry.userinfo_url)?,
            revocation_url: url(&entry.revocation_url),
            issuer: entry.issuer.as_deref().and_then(fill),
            subject_pointer: entry.ptr_id.clone(),
        })
    }

    /// Those of a stored provider. `None`: not URLs.
    pub fn of_custom(custom: CustomEndpoints, entry: &Entry) -> Option<Self> {
        Some(Self {
            authorization_url: Url::parse(&custom.authorization_url).ok()?,
            token_url: Url::parse(&custom.token_url).ok()?,
            userinfo_url: Url::parse(&custom.userinfo_url).ok()?,
            revocation_url: custom.revocation_url.as_deref().map(Url::parse).transpose().ok()?,
            issuer: custom.issuer,
            subject_pointer: custom.subject_pointer.unwrap_or_else(|| entry.ptr_id.clone()),
        })
    }
}

impl Entry {
    /// Whether the operator must give the endpoints.
    pub const fn wants_endpoints(&self) -> bool {
        self.token_url.is_none()
    }
}

fn check_url(field: &'static str, text: &str, outbound: &Outbound) -> Result<(), Failure> {
    let plain = text.len() <= 2048 && text.bytes().all(|byte| matches!(byte, 0x21..=0x7e));
    let url = if plain { Url::parse(text).ok() } else { None };
    let url = url.ok_or_else(|| Failure::field(field, "must be an absolute URL of at most 2048 ASCII characters"))?;
    outbound.check(&url).map_err(|why| Failure::field(field, why))
}

/// RFC 6901 section 3: `~` is followed by 0 or 1.
fn is_pointer(text: &str) -> bool {
    let escapes_are_fine = text.split('~').skip(1).all(|rest| rest.starts_with(['0', '1']));
    text.starts_with('/') && text.len() <= 256 && escapes_are_fine && !text.chars().any(char::is_control)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outbound::OutboundConfig;
    use crate::providers::catalog::Catalog;

    fn custom() -> CustomEndpoints {
        CustomEndpoints {
            authorization_url: "https://id.example.com/authorize?tenant=7".into(),
            token_url: "https://id.example.com/token".into(),
            userinfo_url: "https://id.example.com/me".into(),
            revocation_url: Some("https://id.example.com/revoke".into()),
            issuer: Some("https://id.example.com".into()),
            subject_pointer: None,
        }
    }

    fn check(custom: &CustomEndpoints, development: bool) -> Result<(), Failure> {
        let config = OutboundConfig { development, ..OutboundConfig::default() };
        custom.check(&Outbound::new(&config).unwrap())
    }

    #[test]
    fn the_sandbox_is_found_where_it_runs() {
        let entry = Catalog::embedded().entry("sandbox").unwrap();
        let base = Url::parse("http://127.0.0.1:4711").unwrap();
        let endpoints = Endpoints::of_entry(entry, Some(&base)).unwrap();
        assert_eq!(endpoints.token_url.as_str(), "http://127.0.0.1:4711/token");
        assert_eq!(endpoints.issuer.as_deref(), Some("http://127.0.0.1:4711"));
        assert_eq!(Endpoints::of_entry(entry, None), None);
    }

    #[test]
    fn an_operators_endpoints_are_read_with_the_catalogs_pointer() {
        let entry = Catalog::embedded().entry("oauth2").unwrap();
        assert!(entry.wants_endpoints());
        assert_eq!(check(&custom(), false), Ok(()));
        let endpoints = Endpoints::of_custom(custom(), entry).unwrap();
        assert_eq!(endpoints.subject_pointer, "/sub");
        assert_eq!(endpoints.issuer.as_deref(), Some("https://id.example.com"));
    }

    #[test]
    fn endpoints_that_could_not_be_called_are_refused() {
        for bad in [
            "",
            "/token",
            "id.example.com/token",
            "http://id.example.com/token",
            "https://169.254.169.254/latest",
            "https://user:pw@id.example.com/token",
            "https://id.example.com/token#x",
            "https://id.example.com/tök",
            "https://id.example.com/a b",
            "file:///etc/passwd",
        ] {
            let custom = CustomEndpoints { token_url: bad.into(), ..custom() };
            let refused = check(&custom, false);
            assert!(
                matches!(refused, Err(Failure::InvalidField { field: "endpoints.token_url", .. })),
                "{bad:?}: {refused:?}"
            );
        }
        let local = CustomEndpoints { token_url: "http://127.0.0.1:9000/token".into(), ..custom() };
        assert!(check(&local, false).is_err());
        assert_eq!(check(&local, true), Ok(()));
    }

    #[test]
    fn a_subject_pointer_is_a_json_pointer() {
        for (pointer, good) in
            [("/sub", true), ("/data/0/id", true), ("/https:~1~1x", true), ("sub", false), ("", false), ("/a~2", false)]
        {
            let custom = CustomEndpoints { subject_pointer: Some(pointer.into()), ..custom() };
            assert_eq!(check(&custom, false).is_ok(), good, "{pointer}");
        }
    }
}
