//! What a failure means, whoever is told of it: gRPC callers, a person in a browser, operators at the log or the
//! command line, readers of docs/errors.md. The rows stand in [`super::error`], one a reason.

use std::fmt::Write as _;
use std::time::Duration;

/// What one reason means. Every text is fixed.
#[derive(Debug, PartialEq, Eq)]
pub struct Meaning {
    /// `google.rpc.ErrorInfo.reason`.
    pub reason: &'static str,
    /// What kind of failure it is: its code, HTTP status and log level.
    pub kind: Kind,
    /// What callers are told.
    pub sentence: &'static str,
    /// What to do about it: for a service, and as a command for an operator.
    pub cure: &'static str,
    /// The field to blame and what it must be, where that is always the same.
    pub violation: Option<(&'static str, &'static str)>,
    /// What `google.rpc.ErrorInfo.metadata` says, as far as it is known.
    pub metadata: &'static [Detail],
    /// Whether and when another call may help.
    pub retry: Retry,
    /// What a person in a browser reads.
    pub page: Page,
}

/// The kinds of failures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The request cannot be right.
    InvalidArgument,
    /// Nobody knows who calls.
    Unauthenticated,
    /// The caller may not.
    PermissionDenied,
    /// It is not there.
    NotFound,
    /// Something is there already.
    AlreadyExists,
    /// Something else must be done first.
    FailedPrecondition,
    /// Somebody else was faster: read again, then decide.
    Aborted,
    /// Too much was asked for.
    ResourceExhausted,
    /// Not now.
    Unavailable,
    /// The call ran out of time.
    DeadlineExceeded,
    /// Something stored cannot be read.
    DataLoss,
    /// A fault of ours.
    Internal,
}

/// A key of `google.rpc.ErrorInfo.metadata`. An id is told only to the caller that sent it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detail {
    /// The provider's slug, as the caller sent it.
    Provider,
    /// The account, if the caller named one.
    ExternalAccountId,
    /// The scopes that are missing, separated by spaces.
    Scopes,
    /// The call's id, which stands in the log.
    RequestId,
}

/// Whether another call may help (`google.rpc.RetryInfo`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// Not by itself.
    No,
    /// After this time.
    After(Duration),
    /// After a time that each failure tells.
    Told,
}

/// A page for a person.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Page {
    /// The heading.
    pub title: &'static str,
    /// What happened.
    pub sentence: &'static str,
    /// What to do next.
    pub next: &'static str,
}

/// How loudly a failure is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// An operator must look.
    Error,
    /// A refusal, as they happen.
    Info,
    /// What anybody can cause without a key: it must not fill the log.
    Debug,
}

impl Meaning {
    /// The details that an answer carries, for readers.
    fn carries(&self) -> String {
        let metadata = self.metadata.iter().map(|detail| format!("`{}`", detail.as_str()));
        let bad_request = (self.kind == Kind::InvalidArgument).then(|| "BadRequest".to_owned());
        let retry = (self.retry != Retry::No).then(|| "RetryInfo".to_owned());
        metadata.chain(bad_request).chain(retry).collect::<Vec<_>>().join(", ")
    }
}

impl Kind {
    /// Its gRPC code's name.
    pub const fn code(self) -> &'static str {
        match self {
            Self::InvalidArgument => "INVALID_ARGUMENT",
            Self::Unauthenticated => "UNAUTHENTICATED",
            Self::PermissionDenied => "PERMISSION_DENIED",
            Self::NotFound => "NOT_FOUND",
            Self::AlreadyExists => "ALREADY_EXISTS",
            Self::FailedPrecondition => "FAILED_PRECONDITION",
            Self::Aborted => "ABORTED",
            Self::ResourceExhausted => "RESOURCE_EXHAUSTED",
            Self::Unavailable => "UNAVAILABLE",
            Self::DeadlineExceeded => "DEADLINE_EXCEEDED",
            Self::DataLoss => "DATA_LOSS",
            Self::Internal => "INTERNAL",
        }
    }

    /// Its HTTP status (the mapping of google/rpc/code.proto).
    pub const fn http_status(self) -> u16 {
        match self {
            Self::InvalidArgument | Self::FailedPrecondition => 400,
            Self::Unauthenticated => 401,
            Self::PermissionDenied => 403,
            Self::NotFound => 404,
            Self::AlreadyExists | Self::Aborted => 409,
            Self::ResourceExhausted => 429,
            Self::DataLoss | Self::Internal => 500,
            Self::Unavailable => 503,
            Self::DeadlineExceeded => 504,
        }
    }

    /// How loudly it is logged.
    pub const fn level(self) -> Level {
        match self {
            Self::Internal | Self::DataLoss => Level::Error,
            Self::Unauthenticated => Level::Debug,
            Self::InvalidArgument
            | Self::PermissionDenied
            | Self::NotFound
            | Self::AlreadyExists
            | Self::FailedPrecondition
            | Self::Aborted
            | Self::ResourceExhausted
            | Self::Unavailable
            | Self::DeadlineExceeded => Level::Info,
        }
    }

    /// What a person reads where the reason has no page of its own.
    pub const fn page(self) -> Page {
        match self {
            Self::InvalidArgument
            | Self::Unauthenticated
            | Self::PermissionDenied
            | Self::NotFound
            | Self::AlreadyExists
            | Self::FailedPrecondition
            | Self::Aborted => Page {
                title: "Not connected",
                sentence: "The request could not be completed, and nothing was connected.",
                next: "Go back to the application and start again.",
            },
            Self::ResourceExhausted | Self::Unavailable | Self::DeadlineExceeded => Page {
                title: "Try again in a moment",
                sentence: "The service is not available right now.",
                next: "Reload this page in a moment.",
            },
            Self::DataLoss | Self::Internal => Page {
                title: "Something went wrong",
                sentence: "The request failed through a fault on our side.",
                next: "Go back to the application and start again.",
            },
        }
    }
}

impl Detail {
    /// The key.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Provider => "provider",
            Self::ExternalAccountId => "external_account_id",
            Self::Scopes => "scopes",
            Self::RequestId => "request_id",
        }
    }
}

/// The reasons as a Markdown table.
pub fn table(meanings: &[Meaning]) -> String {
    let mut table =
        "| reason | code | HTTP | what it says | what to do | details |\n|---|---|---|---|---|---|\n".to_owned();
    for meaning in meanings {
        let Meaning { reason, kind, sentence, cure, .. } = meaning;
        let (code, status, carries) = (kind.code(), kind.http_status(), meaning.carries());
        // Writing to a text does not fail.
        let _ = writeln!(table, "| `{reason}` | {code} | {status} | {sentence} | {cure} | {carries} |");
    }
    table
}
