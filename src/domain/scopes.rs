//! Scopes: what a grant may do (RFC 6749 section 3.3).

/// Scopes in the order they were given, each once.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(from = "Vec<String>")]
pub struct Scopes(Vec<String>);

/// The text is not a scope (RFC 6749 section 3.3: printable ASCII without space, quote and backslash; at most 256
/// bytes here).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be scope tokens of printable ASCII without spaces, quotes and backslashes, at most 256 bytes each")]
pub struct ScopeError;

impl Scopes {
    /// Checks scopes that a caller gave.
    pub fn parse<S: Into<String>>(scopes: impl IntoIterator<Item = S>) -> Result<Self, ScopeError> {
        let scopes: Vec<String> = scopes.into_iter().map(Into::into).collect();
        if scopes.iter().all(|scope| is_scope(scope)) { Ok(scopes.into_iter().collect()) } else { Err(ScopeError) }
    }

    /// Reads a provider's list; what is between two separators is a scope, whatever it is.
    pub fn split(text: &str, separator: &str) -> Self {
        text.split(separator).map(str::trim).filter(|scope| !scope.is_empty()).map(str::to_owned).collect()
    }

    /// Writes the list as one text.
    pub fn join(&self, separator: &str) -> String {
        self.0.join(separator)
    }

    /// These and those of `other`.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        self.iter().chain(other.iter()).map(str::to_owned).collect()
    }

    /// Those that are asked for by `required` and not here.
    pub fn missing(&self, required: &Self) -> Vec<String> {
        required.0.iter().filter(|scope| !self.0.contains(scope)).cloned().collect()
    }

    /// Whether these are those of `other`, in whatever order.
    pub fn same_as(&self, other: &Self) -> bool {
        self.0.len() == other.0.len() && self.missing(other).is_empty()
    }

    /// The scopes in order.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl From<Vec<String>> for Scopes {
    fn from(scopes: Vec<String>) -> Self {
        scopes.into_iter().collect()
    }
}

impl From<Scopes> for Vec<String> {
    fn from(scopes: Scopes) -> Self {
        scopes.0
    }
}

impl FromIterator<String> for Scopes {
    fn from_iter<I: IntoIterator<Item = String>>(scopes: I) -> Self {
        let mut each_once: Vec<String> = Vec::new();
        for scope in scopes {
            if !each_once.contains(&scope) {
                each_once.push(scope);
            }
        }
        Self(each_once)
    }
}

fn is_scope(text: &str) -> bool {
    (1..=256).contains(&text.len()) && text.bytes().all(|byte| matches!(byte, 0x21 | 0x23..=0x5b | 0x5d..=0x7e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scope_stands_once_and_in_order() {
        let scopes = Scopes::parse(["b", "a", "b"]).unwrap();
        assert_eq!(scopes.join(" "), "b a");
        assert_eq!(scopes.union(&Scopes::split("a c", " ")).join(","), "b,a,c");
    }

    #[test]
    fn what_is_missing_is_named() {
        let granted = Scopes::split("read, write", ",");
        assert_eq!(granted.missing(&Scopes::parse(["write", "admin"]).unwrap()), ["admin"]);
    }

    #[test]
    fn order_makes_no_other_scopes() {
        let same = |one, other| Scopes::split(one, " ").same_as(&Scopes::split(other, " "));
        assert!(same("a b", "b a") && same("", ""));
        assert!(!same("a", "a b") && !same("a b", "a") && !same("a", "b"));
    }

    #[test]
    fn a_scope_cannot_smuggle_another() {
        for bad in ["", "a b", "a\"", "a\\", "ü", "a\n", &"x".repeat(257)] {
            assert_eq!(Scopes::parse([bad]), Err(ScopeError), "{bad:?}");
        }
    }
}
