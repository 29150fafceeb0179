//! Scopes (RFC 6749 section 3.3): any well-formed scope can be asked for, and what is approved is what was asked.

use serde::{Deserialize, Serialize};

/// The OIDC scopes that mean something here; every other one is granted and means nothing.
pub(super) const KNOWN: [&str; 4] = ["openid", "profile", "email", "offline_access"];

/// A set of scopes in the order asked for, joined by single spaces.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Scopes(String);

impl Scopes {
    /// Reads a `scope` parameter; none if a character is not allowed. Nothing asked for means `profile`.
    pub(super) fn parse(text: Option<&str>) -> Option<Self> {
        let mut scopes: Vec<&str> = Vec::new();
        for scope in text.unwrap_or("profile").split(' ').filter(|scope| !scope.is_empty()) {
            let legal = |byte: u8| (0x21..=0x7e).contains(&byte) && byte != b'"' && byte != b'\\';
            if !scope.bytes().all(legal) {
                return None;
            }
            if !scopes.contains(&scope) {
                scopes.push(scope);
            }
        }
        Some(Self(scopes.join(" ")))
    }

    pub(super) fn has(&self, scope: &str) -> bool {
        self.iter().any(|held| held == scope)
    }

    /// Whether each of these is also in `other`.
    pub(super) fn within(&self, other: &Self) -> bool {
        self.iter().all(|scope| other.has(scope))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.split(' ').filter(|scope| !scope.is_empty())
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_are_a_set_of_legal_words() {
        let scopes = Scopes::parse(Some("openid  calendar.read openid")).unwrap();
        assert_eq!(scopes.as_str(), "openid calendar.read");
        assert!(scopes.has("openid") && !scopes.has("calendar"));
        assert!(Scopes::parse(Some("openid")).unwrap().within(&scopes));
        assert!(!Scopes::parse(Some("email")).unwrap().within(&scopes));
        assert!(Scopes::parse(Some("a\"b")).is_none());
        assert!(Scopes::parse(Some("a\tb")).is_none());
        assert_eq!(Scopes::parse(None).unwrap().as_str(), "profile");
    }
}
