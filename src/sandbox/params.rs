//! Parameters of a query or a form, and who sends them.

use std::collections::BTreeMap;

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::http::{HeaderMap, StatusCode, header};
use data_encoding::BASE64;
use subtle::ConstantTimeEq as _;
use url::form_urlencoded;

use super::answer::{OauthError, Refusal};
use super::options::Client;

/// Decoded names and values in the order sent.
#[derive(Clone, Default)]
pub(super) struct Params(Vec<(String, String)>);

impl Params {
    /// Reads `application/x-www-form-urlencoded` text; it has no malformed spelling.
    pub(super) fn read(text: &[u8]) -> Self {
        Self(form_urlencoded::parse(text).into_owned().collect())
    }

    /// Reads the body of a POST, which must be a form.
    pub(super) fn form(headers: &HeaderMap, body: Result<Bytes, BytesRejection>) -> Result<Self, Refusal> {
        let body = body.map_err(|rejection| match rejection.status() {
            StatusCode::PAYLOAD_TOO_LARGE => Refusal::new(OauthError::TooLarge, "the body is larger than 64 KiB"),
            _ => Refusal::request("the body could not be read"),
        })?;
        if !is_form(headers) {
            return Err(Refusal::request("the body must be application/x-www-form-urlencoded"));
        }
        Ok(Self::read(&body))
    }

    /// The value of a parameter; an empty one counts as left out (RFC 6749 section 3.1).
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, value)| key == name && !value.is_empty()).map(|(_, value)| value.as_str())
    }

    /// Refuses parameters that are sent more than once (RFC 6749 sections 3.1 and 3.2).
    pub(super) fn once(&self) -> Result<(), Refusal> {
        let mut names: Vec<&str> = self.0.iter().map(|(name, _)| name.as_str()).collect();
        names.sort_unstable();
        if names.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err(Refusal::request("a parameter is sent more than once"));
        }
        Ok(())
    }

    /// These and those of `more` that do not repeat one of these word for word.
    pub(super) fn joined(mut self, more: Self) -> Self {
        for pair in more.0 {
            if !self.0.contains(&pair) {
                self.0.push(pair);
            }
        }
        self
    }

    /// Takes a parameter out.
    pub(super) fn take(&mut self, name: &str) -> Option<String> {
        let at = self.0.iter().position(|(key, _)| key == name)?;
        Some(self.0.remove(at).1)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }
}

/// Whether a request says that its body is a form.
pub(super) fn is_form(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let essence = kind.split(';').next().unwrap_or_default().trim();
    essence.eq_ignore_ascii_case("application/x-www-form-urlencoded")
}

/// The credentials of an `Authorization` header of this scheme, in the form sent.
pub(super) fn authorization<'h>(headers: &'h HeaderMap, scheme: &str) -> Option<&'h str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (sent, credentials) = value.split_once(' ')?;
    sent.eq_ignore_ascii_case(scheme).then(|| credentials.trim())
}

/// The `client_id` a request names, in its header or its form.
pub(super) fn named_client(headers: &HeaderMap, form: &Params) -> Option<String> {
    basic(headers).map(|(id, _)| id).or_else(|| form.get("client_id").map(Into::into))
}

/// Who sends this: `client_secret_basic`, `client_secret_post`, or `none` for a public client (RFC 6749 section 2.3).
/// `secrets` are those that are accepted now, by client.
pub(super) fn authenticate<'c>(
    clients: &'c [Client],
    secrets: &BTreeMap<String, Vec<String>>,
    headers: &HeaderMap,
    form: &Params,
) -> Result<&'c Client, Refusal> {
    let refused = || Refusal::new(OauthError::InvalidClient, "the client is unknown or did not prove who it is");
    let (id, secret) = if headers.contains_key(header::AUTHORIZATION) {
        if form.get("client_secret").is_some() {
            return Err(Refusal::request("the client authenticates in two ways at once"));
        }
        let (id, secret) = basic(headers).ok_or_else(refused)?;
        if form.get("client_id").is_some_and(|named| named != id) {
            return Err(Refusal::request("client_id is not the client of the Authorization header"));
        }
        (id, Some(secret).filter(|secret| !secret.is_empty()))
    } else {
        let id = form.get("client_id").ok_or_else(refused)?;
        (id.to_owned(), form.get("client_secret").map(Into::into))
    };
    let client = clients.iter().find(|client| client.id == id).ok_or_else(refused)?;
    let proven = match (&client.secret, &secret) {
        (Some(_), Some(sent)) => {
            let accepted = secrets.get(&client.id).into_iter().flatten();
            accepted.fold(false, |proven, known| proven | bool::from(known.as_bytes().ct_eq(sent.as_bytes())))
        }
        (None, None) => true,
        (Some(_), None) | (None, Some(_)) => false,
    };
    if proven { Ok(client) } else { Err(refused()) }
}

/// Id and secret of HTTP Basic; both are form-encoded inside it (RFC 6749 section 2.3.1).
fn basic(headers: &HeaderMap) -> Option<(String, String)> {
    let bytes = BASE64.decode(authorization(headers, "basic")?.as_bytes()).ok()?;
    let text = String::from_utf8(bytes).ok()?;
    let (id, secret) = text.split_once(':')?;
    Some((form_decoded(id), form_decoded(secret)))
}

fn form_decoded(text: &str) -> String {
    // One value alone: an `=` or `&` that was sent as it is stays what it is.
    let guarded = text.replace('&', "%26").replace('=', "%3D");
    form_urlencoded::parse(guarded.as_bytes()).next().map(|(value, _)| value.into_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::options::RedirectRule;

    fn basic_header(text: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        let value = format!("Basic {}", BASE64.encode(text.as_bytes()));
        headers.insert(header::AUTHORIZATION, value.parse().unwrap());
        headers
    }

    #[test]
    fn a_client_proves_itself_in_exactly_one_way() {
        let clients = [
            Client::confidential("app", "s e:c=r&t", RedirectRule::Loopback),
            Client::public("phone", RedirectRule::Loopback),
        ];
        let secrets = clients.iter().filter_map(Client::accepted).collect();
        let ask = |headers: &HeaderMap, form: &str| {
            authenticate(&clients, &secrets, headers, &Params::read(form.as_bytes()))
                .map(|client| client.id.clone())
                .map_err(|refusal| refusal.error.code())
        };
        let bare = HeaderMap::new();
        assert_eq!(ask(&basic_header("app:s+e%3Ac%3Dr%26t"), ""), Ok("app".into()));
        assert_eq!(ask(&basic_header("app:s e:c=r&t"), ""), Ok("app".into()), "sent without form encoding");
        assert_eq!(ask(&bare, "client_id=app&client_secret=s+e:c%3Dr%26t"), Ok("app".into()));
        assert_eq!(ask(&bare, "client_id=phone"), Ok("phone".into()));
        assert_eq!(ask(&bare, "client_id=phone&client_secret=x"), Err("invalid_client"));
        assert_eq!(ask(&bare, "client_id=app"), Err("invalid_client"));
        assert_eq!(ask(&bare, ""), Err("invalid_client"));
        assert_eq!(ask(&basic_header("app:wrong"), ""), Err("invalid_client"));
        assert_eq!(ask(&basic_header("no colon"), ""), Err("invalid_client"));
        assert_eq!(ask(&basic_header("app:x"), "client_secret=x"), Err("invalid_request"));
        assert_eq!(ask(&basic_header("app:x"), "client_id=phone"), Err("invalid_request"));
    }

    #[test]
    fn a_repeated_parameter_is_refused() {
        assert!(Params::read(b"a=1&b=2").once().is_ok());
        assert!(Params::read(b"a=1&a=1").once().is_err());
        let joined = Params::read(b"a=1").joined(Params::read(b"a=1&b=2"));
        assert!(joined.once().is_ok(), "a page's form posted to the URL with the same query");
        assert!(joined.joined(Params::read(b"a=2")).once().is_err());
    }
}
