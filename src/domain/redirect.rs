//! Redirect URLs: where a flow may send the browser at its end.

use url::{Host, Url};

use super::instance::InstanceKind;

/// A URL that a flow may end at, in its canonical form. Whether it is allowed is the allow-list's word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RedirectUrl(Url);

/// Why a text cannot be a redirect URL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RedirectUrlError {
    /// Not a URL, too long, or written in another than the canonical form (upper-case host, default port, dot
    /// segments, backslashes, numbers for addresses): every parser must read it alike.
    #[error("must be an absolute URL in canonical form, at most 2048 bytes")]
    NotCanonical,
    /// Neither https, http on a loopback literal, nor a native app's reverse-domain scheme.
    #[error("must be https, http on 127.0.0.1 or [::1], or an app scheme with a dot such as com.example.app:/callback")]
    Scheme,
    /// `user:password@` in front of the host.
    #[error("must not contain user information")]
    UserInfo,
    /// A `#fragment`.
    #[error("must not contain a fragment")]
    Fragment,
    /// A query parameter that the flow itself adds.
    #[error("must not have a ticket, error or state parameter of its own")]
    ReservedParameter,
}

impl RedirectUrl {
    /// Reads a URL strictly. `localhost` by name is accepted in development only (RFC 8252 section 8.3).
    pub fn parse(text: &str, kind: InstanceKind) -> Result<Self, RedirectUrlError> {
        let printable =
            text.bytes().all(|byte| matches!(byte, 0x21..=0x7e) && !matches!(byte, b'\\' | b'"' | b'<' | b'>'));
        if !printable || text.len() > 2048 {
            return Err(RedirectUrlError::NotCanonical);
        }
        let url = Url::parse(text).map_err(|_| RedirectUrlError::NotCanonical)?;
        if !url.username().is_empty() || url.password().is_some() || authority(text).contains('@') {
            return Err(RedirectUrlError::UserInfo);
        }
        if url.fragment().is_some() {
            return Err(RedirectUrlError::Fragment);
        }
        let canonical = url.as_str() == text || (url.path() == "/" && url.as_str().strip_suffix('/') == Some(text));
        if !canonical {
            return Err(RedirectUrlError::NotCanonical);
        }
        if !scheme_is_allowed(&url, kind) {
            return Err(RedirectUrlError::Scheme);
        }
        if url.query_pairs().any(|(key, _)| matches!(&*key.to_ascii_lowercase(), "ticket" | "error" | "state")) {
            return Err(RedirectUrlError::ReservedParameter);
        }
        Ok(Self(url))
    }

    /// Whether this is http to this machine, where any port is the same place (RFC 8252 section 7.3).
    pub fn is_loopback(&self) -> bool {
        self.0.scheme() == "http"
    }

    /// Whether a flow that asks for `self` may end at the allow-list's entry `allowed`: the same URL, but for the port
    /// on loopback.
    pub fn is_at(&self, allowed: &Self) -> bool {
        if self.is_loopback() && allowed.is_loopback() {
            return without_port(&self.0) == without_port(&allowed.0);
        }
        self.0 == allowed.0
    }

    /// The URL with one more query parameter.
    pub fn with(&self, key: &str, value: &str) -> String {
        let mut url = self.0.clone();
        url.query_pairs_mut().append_pair(key, value);
        url.into()
    }

    /// The URL as text.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

fn authority(text: &str) -> &str {
    let rest = text.split_once("//").map_or("", |(_, rest)| rest);
    rest.split(['/', '?', '#']).next().unwrap_or("")
}

fn scheme_is_allowed(url: &Url, kind: InstanceKind) -> bool {
    match url.scheme() {
        "https" => url.host().is_some(),
        "http" => match url.host() {
            Some(Host::Ipv4(address)) => address == std::net::Ipv4Addr::LOCALHOST,
            Some(Host::Ipv6(address)) => address == std::net::Ipv6Addr::LOCALHOST,
            Some(Host::Domain(name)) => name == "localhost" && kind == InstanceKind::Development,
            None => false,
        },
        scheme => scheme.contains('.') && !scheme.starts_with('.') && !scheme.ends_with('.'),
    }
}

fn without_port(url: &Url) -> Url {
    let mut url = url.clone();
    // Only a URL without a host refuses; it has no port either.
    let _ = url.set_port(None);
    url
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<RedirectUrl, RedirectUrlError> {
        RedirectUrl::parse(text, InstanceKind::Production)
    }

    #[test]
    fn web_loopback_and_native_urls_are_read() {
        for good in [
            "https://app.example.com/callback",
            "https://app.example.com",
            "https://app.example.com/cb?tenant=7",
            "http://127.0.0.1:8123/cb",
            "http://[::1]:9/cb",
            "com.example.app:/callback",
            "com.example.app://done/callback",
        ] {
            assert!(parse(good).is_ok(), "{good}");
        }
    }

    #[test]
    fn every_spelling_trick_is_refused() {
        use RedirectUrlError::{Fragment, NotCanonical, ReservedParameter, Scheme, UserInfo};
        for (bad, why) in [
            ("", NotCanonical),
            ("/callback", NotCanonical),
            ("//evil.example", NotCanonical),
            ("https:app.example.com/cb", NotCanonical),
            ("https:/app.example.com/cb", NotCanonical),
            ("https:///app.example.com/cb", NotCanonical),
            (" https://app.example.com/cb", NotCanonical),
            ("https://app.example.com/cb\n", NotCanonical),
            ("ht\ttps://app.example.com/cb", NotCanonical),
            ("https://App.Example.com/cb", NotCanonical),
            ("HTTPS://app.example.com/cb", NotCanonical),
            ("https://app.example.com:443/cb", NotCanonical),
            ("https://app.example.com/a/../cb", NotCanonical),
            ("https://app.example.com/%2e%2e/cb", NotCanonical),
            ("https://app.example.com\\@evil.example/cb", NotCanonical),
            ("https://app.example.com\u{3002}evil.example/", NotCanonical),
            ("https://xn--/cb", NotCanonical),
            ("http://2130706433/cb", NotCanonical),
            ("http://0x7f.1/cb", NotCanonical),
            ("http://127.1/cb", NotCanonical),
            ("http://[0:0:0:0:0:0:0:1]/cb", NotCanonical),
            ("https://user@app.example.com/cb", UserInfo),
            ("https://@app.example.com/cb", UserInfo),
            ("https://app.example.com@evil.example/cb", UserInfo),
            ("https://app.example.com/cb#x", Fragment),
            ("https://app.example.com/cb#", Fragment),
            ("https://app.example.com/cb?ticket=1", ReservedParameter),
            ("https://app.example.com/cb?a=1&%65rror=x", ReservedParameter),
            ("https://app.example.com/cb?State", ReservedParameter),
            ("http://app.example.com/cb", Scheme),
            ("http://127.0.0.2/cb", Scheme),
            ("http://localhost/cb", Scheme),
            ("http://[::ffff:7f00:1]/cb", Scheme),
            ("javascript:alert(1)", Scheme),
            ("data:text/html,x", Scheme),
            ("file:///etc/passwd", Scheme),
            ("myapp:/callback", Scheme),
        ] {
            assert_eq!(parse(bad), Err(why), "{bad:?}");
        }
        assert_eq!(parse(&format!("https://app.example.com/{}", "a".repeat(2048))), Err(NotCanonical));
    }

    #[test]
    fn localhost_by_name_is_for_development() {
        assert!(RedirectUrl::parse("http://localhost:3000/cb", InstanceKind::Development).is_ok());
    }

    #[test]
    fn only_loopback_ports_are_all_the_same() {
        let at = |a: &str, b: &str| parse(a).unwrap().is_at(&parse(b).unwrap());
        assert!(at("http://127.0.0.1:50123/cb", "http://127.0.0.1/cb"));
        assert!(!at("http://127.0.0.1:50123/cb", "http://[::1]/cb"));
        assert!(!at("http://127.0.0.1/other", "http://127.0.0.1/cb"));
        assert!(!at("https://app.example.com:8443/cb", "https://app.example.com/cb"));
        assert!(!at("https://app.example.com/cb/", "https://app.example.com/cb"));
        assert!(!at("https://app.example.com/cb?x=1", "https://app.example.com/cb"));
    }

    #[test]
    fn a_parameter_is_added_and_escaped() {
        let url = parse("https://app.example.com/cb?tenant=7").unwrap();
        assert_eq!(url.with("error", "a&b=c"), "https://app.example.com/cb?tenant=7&error=a%26b%3Dc");
        assert_eq!(parse("com.example.app:/cb").unwrap().with("ticket", "t"), "com.example.app:/cb?ticket=t");
    }
}
