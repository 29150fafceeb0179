//! External accounts: one account of one user at one provider.

use serde::{Deserialize, Serialize};

/// The longest label, in characters.
const LONGEST_LABEL: usize = 128;

/// A name that the user's application gives an account: 1 to 128 characters without control characters. It is personal,
/// and stored sealed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Label(String);

/// Whether an account's token can be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccountState {
    /// Tokens are served.
    Active,
    /// The provider ended the grant: the user must consent again.
    ReauthorizationRequired,
    /// Its stored token does not open.
    Quarantined,
    /// Unlinked. The row stays so that a repeated unlink succeeds.
    Unlinked,
}

impl AccountState {
    const ALL: [Self; 4] = [Self::Active, Self::ReauthorizationRequired, Self::Quarantined, Self::Unlinked];

    /// Its name in the store.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::ReauthorizationRequired => "reauthorization_required",
            Self::Quarantined => "quarantined",
            Self::Unlinked => "unlinked",
        }
    }

    /// Reads its name.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == text)
    }
}

impl Label {
    /// Reads a label; `None` for the empty text, which is none.
    ///
    /// # Errors
    ///
    /// What a label must be.
    pub fn parse(text: String) -> Result<Option<Self>, &'static str> {
        if text.chars().count() > LONGEST_LABEL || text.chars().any(char::is_control) {
            return Err("must be at most 128 characters without control characters");
        }
        Ok(Some(Self(text)).filter(|label| !label.0.is_empty()))
    }

    /// The label itself.
    pub fn into_string(self) -> String {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_is_short_and_without_control_characters() {
        assert_eq!(Label::parse(String::new()), Ok(None));
        assert_eq!(Label::parse("ü".repeat(128)).unwrap().map(Label::into_string), Some("ü".repeat(128)));
        for bad in ["ü".repeat(129), "a\nb".to_owned(), "\u{7f}".to_owned()] {
            assert!(Label::parse(bad).is_err());
        }
    }
}
