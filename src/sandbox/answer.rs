//! What the OAuth endpoints answer: JSON objects whose fields are kept as raw text, so that a fault can replace one by
//! anything.

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::Value;

use super::recorder::Secrets;

/// Why a request is refused (RFC 6749 sections 4.1.2.1 and 5.2, RFC 6750 section 3.1, OIDC Core section 3.1.2.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OauthError {
    InvalidRequest,
    InvalidClient,
    InvalidGrant,
    InvalidScope,
    InvalidToken,
    UnauthorizedClient,
    UnsupportedGrantType,
    UnsupportedResponseType,
    AccessDenied,
    LoginRequired,
    RequestNotSupported,
    RequestUriNotSupported,
    TooLarge,
    ServerError,
}

/// A refusal with its one sentence, and the consent it is about where one is known.
#[derive(Clone, Debug)]
pub(super) struct Refusal {
    pub(super) error: OauthError,
    pub(super) why: &'static str,
    pub(super) family: Option<String>,
}

/// An answer before it is sent, with what the recorder is told about it.
pub(super) struct Answer {
    pub(super) status: StatusCode,
    /// Name and raw JSON text.
    pub(super) fields: Vec<(&'static str, String)>,
    pub(super) challenge: Option<&'static str>,
    pub(super) error: Option<String>,
    pub(super) family: Option<String>,
    pub(super) issued: Secrets,
}

impl OauthError {
    /// The code on the wire.
    pub(super) fn code(self) -> &'static str {
        match self {
            Self::InvalidRequest | Self::TooLarge => "invalid_request",
            Self::InvalidClient => "invalid_client",
            Self::InvalidGrant => "invalid_grant",
            Self::InvalidScope => "invalid_scope",
            Self::InvalidToken => "invalid_token",
            Self::UnauthorizedClient => "unauthorized_client",
            Self::UnsupportedGrantType => "unsupported_grant_type",
            Self::UnsupportedResponseType => "unsupported_response_type",
            Self::AccessDenied => "access_denied",
            Self::LoginRequired => "login_required",
            Self::RequestNotSupported => "request_not_supported",
            Self::RequestUriNotSupported => "request_uri_not_supported",
            Self::ServerError => "server_error",
        }
    }

    fn status(self) -> StatusCode {
        match self {
            Self::InvalidClient | Self::InvalidToken => StatusCode::UNAUTHORIZED,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::ServerError => StatusCode::INTERNAL_SERVER_ERROR,
            Self::InvalidRequest
            | Self::InvalidGrant
            | Self::InvalidScope
            | Self::UnauthorizedClient
            | Self::UnsupportedGrantType
            | Self::UnsupportedResponseType
            | Self::AccessDenied
            | Self::LoginRequired
            | Self::RequestNotSupported
            | Self::RequestUriNotSupported => StatusCode::BAD_REQUEST,
        }
    }

    /// `WWW-Authenticate` for a 401 (RFC 6749 section 5.2, RFC 6750 section 3).
    fn challenge(self) -> Option<&'static str> {
        match self {
            Self::InvalidClient => Some("Basic realm=\"sandbox\""),
            Self::InvalidToken => Some("Bearer realm=\"sandbox\", error=\"invalid_token\""),
            _ => None,
        }
    }
}

impl Refusal {
    pub(super) fn new(error: OauthError, why: &'static str) -> Self {
        Self { error, why, family: None }
    }

    /// `invalid_request`, the most common one.
    pub(super) fn request(why: &'static str) -> Self {
        Self::new(OauthError::InvalidRequest, why)
    }

    /// `invalid_grant`.
    pub(super) fn grant(why: &'static str) -> Self {
        Self::new(OauthError::InvalidGrant, why)
    }

    pub(super) fn of_family(mut self, family: &str) -> Self {
        self.family = Some(family.into());
        self
    }
}

impl From<std::io::Error> for Refusal {
    fn from(_: std::io::Error) -> Self {
        Self::new(OauthError::ServerError, "the state file cannot be written")
    }
}

impl From<super::secrets::NoRandomness> for Refusal {
    fn from(_: super::secrets::NoRandomness) -> Self {
        Self::new(OauthError::ServerError, "the system gave no randomness")
    }
}

impl Answer {
    /// An empty answer of this status.
    pub(super) fn new(status: StatusCode) -> Self {
        Self { status, fields: vec![], challenge: None, error: None, family: None, issued: Secrets::default() }
    }

    /// Adds a field.
    pub(super) fn with(mut self, name: &'static str, value: impl Into<Value>) -> Self {
        self.fields.push((name, value.into().to_string()));
        self
    }

    /// Puts raw text in place of a field's value, whether or not the field was there.
    pub(super) fn put_raw(&mut self, name: &'static str, raw: impl Into<String>) {
        self.drop_field(name);
        self.fields.push((name, raw.into()));
    }

    /// Takes a field out.
    pub(super) fn drop_field(&mut self, name: &str) {
        self.fields.retain(|(field, _)| *field != name);
    }

    /// An OAuth error of any status and code.
    pub(super) fn error(status: StatusCode, code: String) -> Self {
        let mut answer = Self::new(status).with("error", code.as_str());
        answer.error = Some(code);
        answer
    }

    fn body(&self) -> String {
        let fields: Vec<String> =
            self.fields.iter().map(|(name, raw)| format!("{}:{raw}", Value::from(*name))).collect();
        format!("{{{}}}", fields.join(","))
    }
}

impl From<Refusal> for Answer {
    fn from(refusal: Refusal) -> Self {
        let answer = Self::error(refusal.error.status(), refusal.error.code().into());
        let mut answer = answer.with("error_description", refusal.why);
        answer.challenge = refusal.error.challenge();
        answer.family = refusal.family;
        answer
    }
}

impl IntoResponse for Answer {
    fn into_response(self) -> Response {
        // RFC 7009 section 2.2 and RFC 6750 section 3: success at /revoke and a bare challenge say nothing more.
        let silent = self.fields.is_empty();
        let body = if silent { Body::empty() } else { Body::from(self.body()) };
        let mut response = (self.status, body).into_response();
        let headers = response.headers_mut();
        if !silent {
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        }
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(header::PRAGMA, HeaderValue::from_static("no-cache"));
        if let Some(challenge) = self.challenge {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
        }
        response
    }
}
