//! What is wrong with a configuration, told all at once.

use std::fmt;

/// One thing that is wrong. Never says the value: it may be a secret in the wrong place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The key, such as `store.url`; empty if the whole source cannot be read.
    pub key: String,
    /// What is wrong with it.
    pub what: String,
    /// Where its value came from: a file, a variable, a default, or nowhere.
    pub origin: String,
}

/// Everything that is wrong with a configuration; at least one fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct ConfigError {
    /// What is wrong, in the order of the keys' documentation, unknown keys last.
    pub faults: Vec<Fault>,
}

impl ConfigError {
    /// A fault of a whole source.
    pub(super) fn of_source(origin: impl Into<String>, what: impl fmt::Display) -> Self {
        Self { faults: vec![Fault { key: String::new(), what: what.to_string(), origin: origin.into() }] }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.key.is_empty() {
            return write!(f, "{} {}", self.origin, self.what);
        }
        write!(f, "{} {} ({})", self.key, self.what, self.origin)
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.faults.len() {
            1 => f.write_str("the configuration has 1 error:")?,
            count => write!(f, "the configuration has {count} errors:")?,
        }
        self.faults.iter().try_for_each(|fault| write!(f, "\n  {fault}"))
    }
}
