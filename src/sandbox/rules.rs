//! Faults as they are written down: which requests a rule hits, and the one thing it does to them.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::http::{HeaderName, HeaderValue, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// The deepest that [`Effect::Nested`] goes: each level is two bytes in memory.
const DEEPEST: u32 = 10_000_000;

/// One fault: which requests it hits, and what it does to them. It stands until it is cleared.
///
/// As JSON: `{"on": "refresh", "person": "alice", "times": 1, "do": {"answer": {"status": 400, "error":
/// "invalid_grant"}}}`; all but `on` and `do` may be left out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    pub(super) on: Operation,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) person: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) client_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) share_of_grants: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) share_of_requests: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) times: Option<u64>,
    #[serde(default)]
    pub(super) when: When,
    #[serde(rename = "do")]
    pub(super) effect: Effect,
}

/// What a rule can hit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Operation {
    /// `/token` with `grant_type=authorization_code`.
    Exchange,
    /// `/token` with `grant_type=refresh_token`.
    Refresh,
    /// `/userinfo`.
    Userinfo,
    /// `/revoke`.
    Revoke,
}

/// At which point of a request something happens; it matters to effects that wait or stand in place of the answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum When {
    /// Before the provider does anything: nothing is redeemed, issued or revoked.
    #[default]
    Before,
    /// After the provider has done what was asked: a refresh token is spent, and only the answer is hit.
    After,
}

/// What a rule does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Effect {
    /// The request waits until the rule is cleared or all holds are released.
    Hold,
    /// The request waits this long, in real time; on the wire `delay_ms`.
    #[serde(rename = "delay_ms", with = "millis")]
    Delay(Duration),
    /// Another answer.
    Answer(Reply),
    /// A JSON object of this many bytes (at least 2), nearly all of them spaces, made as it is sent.
    Huge(u64),
    /// JSON arrays nested this deep, at most 10 000 000.
    Nested(u32),
    /// No answer: the connection is closed.
    Close,
    /// No answer: the connection is reset.
    Reset,
    /// The same token as last time.
    Repeat(Repeated),
    /// A field is missing.
    Omit(String),
    /// Fields have these values.
    Set(Map<String, Value>),
    /// Fields have these texts as their values, put into the answer as they are: `1e400`, `}{`.
    Raw(BTreeMap<String, String>),
    /// Headers have these values.
    Headers(BTreeMap<String, String>),
    /// A byte order mark stands in front.
    Bom,
    /// Only the first bytes of the body are sent, as if it were whole.
    Truncate(usize),
    /// The connection is lost after this many bytes of the body.
    BreakOff(usize),
    /// The body is sent byte by byte, one each so often, in real time; on the wire `drip_ms`.
    #[serde(rename = "drip_ms", with = "millis")]
    Drip(Duration),
}

/// What is given again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Repeated {
    /// The refresh token that was presented, which stays good.
    RefreshToken,
    /// The grant's newest access token with what is left of its life; a new one if a restart made it forgotten.
    AccessToken,
}

/// An answer that a rule gives. Without `error` and `body` it is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reply {
    pub(super) status: u16,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) error: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) error_description: Option<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) headers: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) body: Option<String>,
}

/// What kind of thing an effect is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// The request waits.
    Wait,
    /// Something stands in place of the answer.
    Replacement,
    /// The answer, whichever it is, is changed.
    Change,
}

impl Rule {
    /// Every code exchange meets this.
    pub fn exchange(effect: Effect) -> Self {
        Self::on(Operation::Exchange, effect)
    }

    /// Every refresh meets this.
    pub fn refresh(effect: Effect) -> Self {
        Self::on(Operation::Refresh, effect)
    }

    /// Every request of a profile meets this.
    pub fn userinfo(effect: Effect) -> Self {
        Self::on(Operation::Userinfo, effect)
    }

    /// Every revocation meets this.
    pub fn revoke(effect: Effect) -> Self {
        Self::on(Operation::Revoke, effect)
    }

    /// Only requests about this person's grants, by username.
    #[must_use]
    pub fn person(self, username: impl Into<String>) -> Self {
        Self { person: Some(username.into()), ..self }
    }

    /// Only requests about this client's grants.
    #[must_use]
    pub fn client(self, client_id: impl Into<String>) -> Self {
        Self { client_id: Some(client_id.into()), ..self }
    }

    /// Only this share of the grants (0 to 1), always the same ones: the choice is made by person, client, the rule's
    /// id and [`Settings::seed`](super::Settings::seed).
    #[must_use]
    pub fn share_of_grants(self, share: f64) -> Self {
        Self { share_of_grants: Some(share), ..self }
    }

    /// Only this share of the requests (0 to 1): the choice is made as for grants, and by how many requests there were
    /// about the grant before.
    #[must_use]
    pub fn share_of_requests(self, share: f64) -> Self {
        Self { share_of_requests: Some(share), ..self }
    }

    /// Only the next `count` requests that it would hit.
    #[must_use]
    pub fn times(self, count: u64) -> Self {
        Self { times: Some(count), ..self }
    }

    /// At this point of the request.
    #[must_use]
    pub fn when(self, when: When) -> Self {
        Self { when, ..self }
    }

    /// After the provider has done what was asked.
    #[must_use]
    pub fn after(self) -> Self {
        self.when(When::After)
    }

    fn on(on: Operation, effect: Effect) -> Self {
        Self {
            on,
            person: None,
            client_id: None,
            share_of_grants: None,
            share_of_requests: None,
            times: None,
            when: When::default(),
            effect,
        }
    }

    /// Says why this rule cannot be carried out.
    pub(super) fn check(&self) -> Result<(), &'static str> {
        let shares = [self.share_of_grants, self.share_of_requests];
        if shares.iter().flatten().any(|share| !(0.0..=1.0).contains(share)) {
            return Err("a share is a number from 0 to 1");
        }
        match &self.effect {
            Effect::Answer(reply) => reply.check(),
            Effect::Headers(headers) => check_headers(headers),
            Effect::Huge(0..2) => Err("a huge answer has at least 2 bytes"),
            Effect::Nested(depth) if *depth > DEEPEST => Err("nested: at most 10000000"),
            Effect::Repeat(_) if self.on != Operation::Refresh => Err("only a refresh can repeat a token"),
            _ => Ok(()),
        }
    }
}

impl Effect {
    /// An OAuth error (RFC 6749 section 5.2).
    pub fn error(status: u16, code: impl Into<String>) -> Self {
        Self::Answer(Reply::new(status).error(code))
    }

    /// The answer has no such field. Without `refresh_token` the one presented is not rotated and stays good; the same
    /// holds where that field is set.
    pub fn omit(field: impl Into<String>) -> Self {
        Self::Omit(field.into())
    }

    /// The answer's field has this value.
    pub fn set(field: impl Into<String>, value: impl Into<Value>) -> Self {
        Self::Set(Map::from_iter([(field.into(), value.into())]))
    }

    /// The answer's field has this text as its value, be it JSON or not.
    pub fn raw(field: impl Into<String>, text: impl Into<String>) -> Self {
        Self::Raw(BTreeMap::from([(field.into(), text.into())]))
    }

    pub(super) fn kind(&self) -> Kind {
        match self {
            Self::Hold | Self::Delay(_) => Kind::Wait,
            Self::Answer(_) | Self::Huge(_) | Self::Nested(_) | Self::Close | Self::Reset => Kind::Replacement,
            Self::Repeat(_)
            | Self::Omit(_)
            | Self::Set(_)
            | Self::Raw(_)
            | Self::Headers(_)
            | Self::Bom
            | Self::Truncate(_)
            | Self::BreakOff(_)
            | Self::Drip(_) => Kind::Change,
        }
    }

    /// Whether what it says about this field of the answer stands in place of what is true.
    pub(super) fn forges(&self, field: &str) -> bool {
        match self {
            Self::Omit(name) => name == field,
            Self::Set(fields) => fields.contains_key(field),
            Self::Raw(fields) => fields.contains_key(field),
            _ => false,
        }
    }
}

impl Reply {
    /// An empty answer of this status, 200 to 599.
    pub fn new(status: u16) -> Self {
        Self { status, ..Self::default() }
    }

    /// With this OAuth error in a JSON body.
    #[must_use]
    pub fn error(self, code: impl Into<String>) -> Self {
        Self { error: Some(code.into()), ..self }
    }

    /// With this `error_description` beside the error.
    #[must_use]
    pub fn description(self, text: impl Into<String>) -> Self {
        Self { error_description: Some(text.into()), ..self }
    }

    /// With this body; its `content-type` is `application/json` if no header says otherwise.
    #[must_use]
    pub fn body(self, text: impl Into<String>) -> Self {
        Self { body: Some(text.into()), ..self }
    }

    /// With this header, such as `retry-after`.
    #[must_use]
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.insert(name.into(), value.into());
        self
    }

    fn check(&self) -> Result<(), &'static str> {
        if !(200..600).contains(&self.status) || StatusCode::from_u16(self.status).is_err() {
            return Err("a status is a number from 200 to 599");
        }
        if self.body.is_some() && (self.error.is_some() || self.error_description.is_some()) {
            return Err("an answer has an error or a body");
        }
        check_headers(&self.headers)
    }
}

fn check_headers(headers: &BTreeMap<String, String>) -> Result<(), &'static str> {
    let legal =
        |(name, value): (&String, &String)| name.parse::<HeaderName>().is_ok() && HeaderValue::from_str(value).is_ok();
    if headers.iter().all(legal) { Ok(()) } else { Err("a header's name or value is not legal") }
}

/// Durations as whole milliseconds.
mod millis {
    use std::time::Duration;

    use serde::{Deserialize as _, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(span: &Duration, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u64(u64::try_from(span.as_millis()).unwrap_or(u64::MAX))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        u64::deserialize(from).map(Duration::from_millis)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_reads_what_it_writes() {
        let rules = [
            Rule::refresh(Effect::error(400, "invalid_grant")).person("alice").client("app").times(1),
            Rule::exchange(Effect::Hold).after().share_of_grants(0.5).share_of_requests(0.25),
            Rule::userinfo(Effect::Delay(Duration::from_millis(5))),
            Rule::revoke(Effect::Answer(Reply::new(429).description("x").header("retry-after", "7"))),
            Rule::refresh(Effect::raw("expires_in", "1e400")),
            Rule::refresh(Effect::set("expires_in", 1)),
            Rule::refresh(Effect::Repeat(Repeated::AccessToken)),
        ];
        for rule in rules {
            let text = serde_json::to_string(&rule).unwrap();
            assert_eq!(serde_json::from_str::<Rule>(&text).unwrap(), rule, "{text}");
            assert_eq!(rule.check(), Ok(()), "{text}");
        }
    }

    #[test]
    fn a_rule_that_cannot_be_carried_out_is_refused() {
        let refused = [
            Rule::refresh(Effect::Hold).share_of_grants(1.1),
            Rule::refresh(Effect::Hold).share_of_requests(f64::NAN),
            Rule::refresh(Effect::error(199, "x")),
            Rule::refresh(Effect::error(600, "x")),
            Rule::refresh(Effect::Answer(Reply::new(200).error("x").body("y"))),
            Rule::refresh(Effect::Answer(Reply::new(200).header("a b", "c"))),
            Rule::refresh(Effect::Headers(BTreeMap::from([("a".into(), "b\n".into())]))),
            Rule::refresh(Effect::Huge(1)),
            Rule::refresh(Effect::Nested(DEEPEST + 1)),
            Rule::exchange(Effect::Repeat(Repeated::RefreshToken)),
        ];
        for rule in refused {
            assert!(rule.check().is_err(), "{rule:?}");
        }
    }
}
