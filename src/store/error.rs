//! What a store can fail with.

use crate::domain::error::Failure;

/// Why the store gave no answer. Texts name tables, columns and ids, never values.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// It cannot be reached, read or written for now: connection, pool, timeout, full or read-only disk, busy.
    #[error("the store is not available: {0}")]
    Unavailable(String),
    /// Somebody else holds what one statement needs, and does not let go of it; the rest may be well.
    #[error("the store is busy: {0}")]
    Busy(String),
    /// The database lets nobody in with this URL: its user, password or database, or the host's name, is wrong. It may
    /// be changed there while we run, so the same call may succeed later.
    #[error("the store does not let us in: {0}")]
    Refused(String),
    /// The `SQLite` file cannot be opened or made.
    #[error("cannot use the store {0}: {1}")]
    File(String, String),
    /// A row does not decode.
    #[error("{table}.{column} of row {id} does not decode")]
    Corrupt {
        /// The table.
        table: &'static str,
        /// The column.
        column: &'static str,
        /// The row's primary key.
        id: String,
    },
    /// The schema is newer than this program: an older binary must not write to it.
    #[error("the schema has version {found} and this program knows {known}: use a newer program")]
    Newer {
        /// The schema's version.
        found: i64,
        /// The newest version that this program knows.
        known: i64,
    },
    /// Another process has the `SQLite` file open.
    #[error("another process uses the store {0}")]
    Locked(String),
    /// The URL names no store.
    #[error("not a store URL: {0}")]
    Url(&'static str),
    /// A creating call took so long that another one with its `request_id` took its place; nothing was written.
    #[error("another call with its request_id took this one's place")]
    Overtaken,
    /// Anything else: a damaged file, a missing table, a fault of ours.
    #[error("the store failed: {0}")]
    Other(String),
}

impl StoreError {
    /// Whether the same call may succeed later.
    pub const fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable(_) | Self::Busy(_) | Self::Refused(_))
    }

    /// Whether an operator must mend something before a start can succeed, as against a store that is away or in use.
    pub const fn is_configuration(&self) -> bool {
        !matches!(self, Self::Unavailable(_) | Self::Busy(_) | Self::Locked(_))
    }
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        use sqlx::Error as E;
        match &error {
            E::Io(_) | E::Tls(_) | E::PoolTimedOut | E::PoolClosed | E::WorkerCrashed | E::BeginFailed => {
                Self::Unavailable(error.to_string())
            }
            E::Database(database) => {
                // Only the message and the code: PostgreSQL's details quote values.
                let code = database.code().unwrap_or_default();
                let text = format!("{} ({code})", database.message());
                match code.as_ref() {
                    // PostgreSQL: a lock is not available; a statement took too long, or an operator ended it.
                    "55P03" | "57014" => Self::Busy(text),
                    // Class 28: invalid authorization.
                    code if code.len() == 5 && (code.starts_with("28") || code == "3D000") => Self::Refused(text),
                    code if is_passing(code) => Self::Unavailable(text),
                    _ => Self::Other(text),
                }
            }
            _ => Self::Other(error.to_string()),
        }
    }
}

/// Whether a database's error code says "not now". `SQLite` has numbers (<https://sqlite.org/rescode.html>),
/// PostgreSQL five characters whose first two are a class (its documentation, appendix A).
fn is_passing(code: &str) -> bool {
    const SQLITE: [i64; 7] = [
        5,  // SQLITE_BUSY
        6,  // SQLITE_LOCKED
        7,  // SQLITE_NOMEM
        8,  // SQLITE_READONLY
        10, // SQLITE_IOERR
        13, // SQLITE_FULL
        14, // SQLITE_CANTOPEN
    ];
    const POSTGRES_CLASSES: [&str; 5] = [
        "08", // connection exception
        "40", // transaction rolled back: deadlock, serialization
        "53", // out of disk, memory, connections
        "57", // operator intervention: shutdown, cancelled
        "58", // system error
    ];
    const POSTGRES: [&str; 4] = [
        "25006", // read-only transaction: a standby
        "25P03", // ended: it was idle for too long within a transaction
        "26000", // a named statement is not there: a pooler gave us another session
        "42P05", // a named statement is there already: the same
    ];
    match code.len() {
        5 => POSTGRES.contains(&code) || POSTGRES_CLASSES.iter().any(|class| code.starts_with(class)),
        // The low byte is the primary code.
        _ => code.parse().is_ok_and(|code: i64| SQLITE.contains(&(code & 0xff))),
    }
}

impl From<StoreError> for Failure {
    /// Logs the cause, which the failure does not carry.
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Unavailable(_) | StoreError::Busy(_) | StoreError::Refused(_) => {
                tracing::warn!(%error, "the store is not available");
                Self::StoreUnavailable
            }
            StoreError::Overtaken => Self::RequestInProgress,
            StoreError::Corrupt { .. }
            | StoreError::Newer { .. }
            | StoreError::Locked(_)
            | StoreError::File(..)
            | StoreError::Url(_)
            | StoreError::Other(_) => {
                tracing::error!(%error, "the store failed");
                Self::Internal
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passing_faults_are_told_from_lasting_ones() {
        for code in ["5", "261", "1032", "13", "08006", "25006", "25P03", "40P01", "53100", "53300", "57P01"] {
            assert!(is_passing(code), "{code}");
        }
        for code in ["", "1", "11", "19", "2067", "26", "23505", "42P01", "22P02", "25001"] {
            assert!(!is_passing(code), "{code}");
        }
    }

    #[test]
    fn what_a_failure_tells_does_not_carry_the_cause() {
        assert_eq!(Failure::from(StoreError::Unavailable("disk full".into())), Failure::StoreUnavailable);
        let corrupt = StoreError::Corrupt { table: "grants", column: "state", id: "gra_1".into() };
        assert_eq!(corrupt.to_string(), "grants.state of row gra_1 does not decode");
        assert_eq!(Failure::from(corrupt), Failure::Internal);
    }
}
