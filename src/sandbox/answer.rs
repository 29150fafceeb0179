//! What the OAuth endpoints answer: JSON objects whose fields are kept as raw text, so that a fault can replace one by
//! anything.

use std::borrow::Cow;

use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::Value;

use super::body::{Content, Manner};
use super::recorder::{Reuse, Secrets};
use super::rules::{Effect, Reply};
use super::wire::Cut;

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
    pub(super) reuse: Option<Reuse>,
}

/// An answer before it is sent, with what the recorder is told about it.
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) content: Content,
    /// Headers of its own; they stand in place of the usual ones.
    headers: Vec<(HeaderName, HeaderValue)>,
    manner: Manner,
    /// How the connection ends instead.
    pub(super) cut: Option<Cut>,
    pub(super) error: Option<String>,
    pub(super) family: Option<String>,
    pub(super) issued: Secrets,
    pub(super) reuse: Option<Reuse>,
    /// Whether the refresh token was redeemed for a successor.
    pub(super) rotated: bool,
    /// The rules that it met.
    pub(super) rules: Vec<u64>,
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
        Self { error, why, family: None, reuse: None }
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
        Self {
            status,
            content: Content::Fields(Vec::new()),
            headers: Vec::new(),
            manner: Manner::default(),
            cut: None,
            error: None,
            family: None,
            issued: Secrets::default(),
            reuse: None,
            rotated: false,
            rules: Vec::new(),
        }
    }

    /// Adds a field.
    pub(super) fn with(mut self, name: &'static str, value: impl Into<Value>) -> Self {
        self.put(name.into(), value.into().to_string());
        self
    }

    /// With a challenge of this `WWW-Authenticate`.
    pub(super) fn challenging(mut self, challenge: &'static str) -> Self {
        self.headers.push((header::WWW_AUTHENTICATE, HeaderValue::from_static(challenge)));
        self
    }

    /// An OAuth error of any status and code.
    pub(super) fn error(status: StatusCode, code: String) -> Self {
        let mut answer = Self::new(status).with("error", code.as_str());
        answer.error = Some(code);
        answer
    }

    /// Has an effect on this answer. Those that make a request wait, or the provider act otherwise, have none here.
    pub(super) fn meet(&mut self, effect: &Effect) {
        match effect {
            Effect::Hold | Effect::Delay(_) | Effect::Repeat(_) => {}
            Effect::Answer(reply) => self.say(reply),
            Effect::Huge(size) => self.become_ok(Content::Huge(*size)),
            Effect::Nested(depth) => self.become_ok(Content::Nested(*depth)),
            Effect::Close => self.cut = Some(Cut::Close),
            Effect::Reset => self.cut = Some(Cut::Reset),
            Effect::Omit(field) => self.drop_field(field),
            Effect::Set(fields) => {
                fields.iter().for_each(|(name, value)| self.forge(name, value.to_string()));
            }
            Effect::Raw(fields) => fields.iter().for_each(|(name, raw)| self.forge(name, raw.clone())),
            Effect::Headers(headers) => self.put_headers(headers),
            Effect::Bom => self.manner.bom = true,
            Effect::Truncate(kept) => self.manner.truncate = Some(*kept),
            Effect::BreakOff(kept) => self.manner.break_off = Some(*kept),
            Effect::Drip(span) => self.manner.drip = Some(*span),
        }
    }

    /// The status that is sent, 0 if nothing is.
    pub(super) fn sent_status(&self) -> u16 {
        if self.cut.is_some() { 0 } else { self.status.as_u16() }
    }

    fn say(&mut self, reply: &Reply) {
        self.status = StatusCode::from_u16(reply.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        self.error.clone_from(&reply.error);
        self.headers.clear();
        self.content = Content::Fields(Vec::new());
        if let Some(body) = &reply.body {
            self.content = Content::Text(body.clone());
        }
        for (name, text) in [("error", &reply.error), ("error_description", &reply.error_description)] {
            if let Some(text) = text {
                self.put(name.into(), Value::from(text.as_str()).to_string());
            }
        }
        self.put_headers(&reply.headers);
    }

    fn become_ok(&mut self, content: Content) {
        (self.status, self.error, self.content) = (StatusCode::OK, None, content);
        self.headers.clear();
    }

    /// Puts raw text in place of a successful answer's field, whether or not the field was there.
    fn forge(&mut self, name: &str, raw: String) {
        self.drop_field(name);
        if self.status.is_success() {
            self.put(name.to_owned().into(), raw);
        }
    }

    fn put(&mut self, name: Cow<'static, str>, raw: String) {
        if let Content::Fields(fields) = &mut self.content {
            fields.push((name, raw));
        }
    }

    /// Takes a field out of a successful answer.
    fn drop_field(&mut self, name: &str) {
        if let (true, Content::Fields(fields)) = (self.status.is_success(), &mut self.content) {
            fields.retain(|(field, _)| field != name);
        }
    }

    /// Rules are checked before they stand: all of these are legal.
    fn put_headers(&mut self, headers: &std::collections::BTreeMap<String, String>) {
        let parsed = |(name, value): (&String, &String)| Some((name.parse().ok()?, HeaderValue::from_str(value).ok()?));
        self.headers.extend(headers.iter().filter_map(parsed));
    }
}

impl From<Refusal> for Answer {
    fn from(refusal: Refusal) -> Self {
        let answer = Self::error(refusal.error.status(), refusal.error.code().into());
        let mut answer = answer.with("error_description", refusal.why);
        if let Some(challenge) = refusal.error.challenge() {
            answer = answer.challenging(challenge);
        }
        answer.family = refusal.family;
        answer.reuse = refusal.reuse;
        answer
    }
}

impl IntoResponse for Answer {
    fn into_response(self) -> Response {
        // RFC 7009 section 2.2 and RFC 6750 section 3: success at /revoke and a bare challenge say nothing more.
        let silent = self.content.is_empty();
        let sent = self.content.send(&self.manner);
        let mut response = (self.status, sent.body).into_response();
        let headers = response.headers_mut();
        headers.remove(header::CONTENT_TYPE);
        if !silent {
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        }
        if let Some(length) = sent.length {
            headers.insert(header::CONTENT_LENGTH, length.into());
        }
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(header::PRAGMA, HeaderValue::from_static("no-cache"));
        for (name, value) in self.headers {
            headers.insert(name, value);
        }
        response
    }
}
