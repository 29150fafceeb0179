//! Users: opaque names given by the callers.

use std::fmt;

/// A caller's name for a user: 1 to 256 bytes of UTF-8 without control characters, compared byte for byte.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct UserId(String);

/// The text cannot name a user. It says why, never what the text was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UserIdError {
    /// No text at all.
    #[error("must not be empty")]
    Empty,
    /// More than 256 bytes.
    #[error("must be at most 256 bytes")]
    TooLong,
    /// A control character, NUL among them.
    #[error("must not contain control characters")]
    ControlCharacter,
}

impl UserId {
    /// The most bytes a user id may have.
    pub const MAX_BYTES: usize = 256;

    /// Checks and takes over a caller's name for a user.
    pub fn parse(text: impl Into<String>) -> Result<Self, UserIdError> {
        let text = text.into();
        match text {
            text if text.is_empty() => Err(UserIdError::Empty),
            text if text.len() > Self::MAX_BYTES => Err(UserIdError::TooLong),
            text if text.chars().any(char::is_control) => Err(UserIdError::ControlCharacter),
            text => Ok(Self(text)),
        }
    }

    /// The name as the caller wrote it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::str::FromStr for UserId {
    type Err = UserIdError;

    fn from_str(text: &str) -> Result<Self, UserIdError> {
        Self::parse(text)
    }
}

impl fmt::Display for UserId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_decide_what_a_user_id_may_be() {
        assert!(UserId::parse("u").is_ok());
        assert!(UserId::parse("ü".repeat(128)).is_ok());
        assert_eq!(UserId::parse(""), Err(UserIdError::Empty));
        assert_eq!(UserId::parse("ü".repeat(129)), Err(UserIdError::TooLong));
        assert_eq!(UserId::parse("a\0b"), Err(UserIdError::ControlCharacter));
        assert_eq!(UserId::parse("a\u{85}b"), Err(UserIdError::ControlCharacter));
    }

    #[test]
    fn lookalikes_are_different_users() {
        assert_ne!(UserId::parse("é"), UserId::parse("e\u{301}"));
        assert_ne!(UserId::parse("a"), UserId::parse("a "));
    }
}
