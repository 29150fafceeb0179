//! Per-user parts of a provider's URLs: a shop, a subdomain, a tenant. The catalog names them and says what they look
//! like; what fits is put in the place of `{name}`.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::Deserialize;
use url::Url;

use super::catalog::Entry;
use super::endpoints::Endpoints;
use super::provider::Provider;
use crate::domain::error::Failure;

/// What a part looks like. None of them can end a host or a path segment, or begin another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Shape {
    /// One label of a host name: 1 to 63 lower-case letters, digits and `-`, which is neither first nor last.
    HostLabel,
    /// A UUID, or a word: 1 to 64 letters, digits, `-` and `_`.
    UuidOrWord,
}

impl Shape {
    fn fits(self, text: &str) -> bool {
        match self {
            Self::HostLabel => {
                let plain = |byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-');
                (1..=63).contains(&text.len())
                    && text.bytes().all(plain)
                    && !text.starts_with('-')
                    && !text.ends_with('-')
                    // An internationalised label, which a URL parser reads and may refuse.
                    && !text.starts_with("xn--")
            }
            Self::UuidOrWord => {
                let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
                (1..=64).contains(&text.len()) && text.bytes().all(plain)
            }
        }
    }
}

impl Entry {
    /// Whether these are the parts that this entry's URLs take: all of them, none else, each of its shape.
    ///
    /// # Errors
    ///
    /// [`Failure::InvalidField`] of `provider_params`; it names a part of the catalog, never what was given.
    pub fn check_params(&self, given: &BTreeMap<String, String>) -> Result<(), Failure> {
        let refuse = |why: String| Err(Failure::field("provider_params", why));
        for (name, shape) in &self.params {
            match given.get(name) {
                None => return refuse(format!("must have {name}")),
                Some(value) if !shape.fits(value) => return refuse(format!("has a {name} that is none")),
                Some(_) => {}
            }
        }
        if given.keys().any(|name| !self.params.contains_key(name)) {
            return refuse("must have only what the provider's URLs take".to_owned());
        }
        Ok(())
    }
}

impl Provider {
    /// The provider as it is for accounts with these parts.
    pub fn at(&self, params: &BTreeMap<String, String>) -> Cow<'_, Self> {
        if params.is_empty() {
            return Cow::Borrowed(self);
        }
        let Endpoints { authorization_url, token_url, userinfo_url, issuer, subject_pointer, revocation_url } =
            &self.endpoints;
        // What does not parse any more keeps its braces, and reaches nobody.
        let fill = |url: &Url| Url::parse(&filled(url.as_str(), params)).unwrap_or_else(|_| url.clone());
        let endpoints = Endpoints {
            authorization_url: fill(authorization_url),
            token_url: fill(token_url),
            userinfo_url: fill(userinfo_url),
            issuer: issuer.as_ref().map(|issuer| filled(issuer, params)),
            subject_pointer: subject_pointer.clone(),
            revocation_url: revocation_url.as_ref().map(fill),
        };
        Cow::Owned(Self { endpoints, ..self.clone() })
    }
}

/// With each part in its place; in a URL's path the parser has escaped the braces.
fn filled(text: &str, params: &BTreeMap<String, String>) -> String {
    params.iter().fold(text.to_owned(), |text, (name, value)| {
        text.replace(&format!("{{{name}}}"), value).replace(&format!("%7B{name}%7D"), value)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::providers::provider::tests::provider;

    fn params(parts: &[(&str, &str)]) -> BTreeMap<String, String> {
        parts.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn a_part_can_be_nothing_but_a_part() {
        for (shape, good) in [(Shape::HostLabel, "acme-2"), (Shape::UuidOrWord, "9d1f0f3a-6c4e_X")] {
            assert!(shape.fits(good));
            for bad in
                ["", "a.b", "a/b", "a@b", "a:1", "..", "a?b", "a#b", "a%2fb", "a b", "ä", "{shop}", &"a".repeat(65)]
            {
                assert!(!shape.fits(bad), "{bad}");
            }
        }
        for bad in ["-a", "a-", "A", "a_b", "xn--a"] {
            assert!(!Shape::HostLabel.fits(bad), "{bad}");
        }
    }

    #[test]
    fn every_part_must_be_given_and_none_else() {
        let plain = provider(None, "");
        assert_eq!(plain.entry.check_params(&params(&[])), Ok(()));
        assert!(plain.entry.check_params(&params(&[("shop", "acme")])).is_err());
        let shops = provider(None, "params = { shop = \"host_label\" }");
        assert_eq!(shops.entry.check_params(&params(&[("shop", "acme")])), Ok(()));
        for bad in [&[][..], &[("shop", "evil.example/")], &[("shop", "acme"), ("tenant", "x")], &[("Shop", "acme")]] {
            let refused = shops.entry.check_params(&params(bad)).unwrap_err().to_string();
            assert!(refused.starts_with("provider_params ") && !refused.contains("evil"), "{refused}");
        }
    }

    #[test]
    fn each_url_has_its_parts_in_place() {
        let mut shops = provider(None, "params = { shop = \"host_label\", tenant = \"uuid_or_word\" }");
        let url = |text: &str| Url::parse(text).unwrap();
        shops.endpoints.authorization_url = url("https://{shop}.example.com/authorize?t={tenant}");
        shops.endpoints.token_url = url("https://{shop}.example.com/{tenant}/token");
        shops.endpoints.userinfo_url = url("https://example.com/{tenant}/me");
        shops.endpoints.issuer = Some("https://{shop}.example.com".into());
        let here = shops.at(&params(&[("shop", "acme"), ("tenant", "t-1")])).into_owned().endpoints;
        assert_eq!(here.authorization_url.as_str(), "https://acme.example.com/authorize?t=t-1");
        assert_eq!(here.token_url.as_str(), "https://acme.example.com/t-1/token");
        assert_eq!(here.userinfo_url.as_str(), "https://example.com/t-1/me");
        assert_eq!(here.issuer.as_deref(), Some("https://acme.example.com"));
    }
}
