//! External accounts: one account of one user at one provider.

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
