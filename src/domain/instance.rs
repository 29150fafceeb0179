//! The instance: one deployment with one store.

/// What an instance may be used for; written once into its store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum InstanceKind {
    /// On one machine, over loopback: the sandbox provider, a generated root key.
    Development,
    /// For real users. The default.
    Production,
}

impl InstanceKind {
    /// Its name in the store and in messages.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Development => "development",
            Self::Production => "production",
        }
    }

    /// Reads its name.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Development, Self::Production].into_iter().find(|kind| kind.as_str() == text)
    }
}
