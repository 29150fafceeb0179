//! Reading a token endpoint's answer (RFC 6749 section 5.1) as providers write it, not as they should.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::catalog::Entry;
use super::verdict::classify;
use crate::clock::Timestamp;
use crate::domain::provider::{Lifetime, TokenAnswer, Verdict};
use crate::domain::scopes::Scopes;
use crate::domain::secret::{AccessToken, RefreshToken};
use crate::outbound::{Response, json};

/// Longer tokens are not taken: no API takes a header of this size.
const TOKEN_LIMIT: usize = 16 << 10;

/// Longer metadata, or scopes in all, are left out.
const TEXT_LIMIT: usize = 8 << 10;

/// Reads a token answer, or what it is instead. The tokens are moved out of the parsed answer, not copied.
pub fn read(response: &Response, entry: &Entry, now: Timestamp) -> Result<TokenAnswer, Verdict> {
    let success = (200..=299).contains(&response.status);
    let parsed = if success { json::read(&response.body).ok() } else { None };
    let Some(Value::Object(mut fields)) = parsed else { return Err(classify(response, entry, now)) };
    // A token counts whatever stands beside it: it may be the only copy of a rotated one.
    let Some(access_token) = access_token(&mut fields) else { return Err(classify(response, entry, now)) };
    Ok(TokenAnswer {
        access_token,
        refresh_token: refresh_token(&mut fields),
        token_type: token_type(fields.get("token_type")),
        lifetime: Lifetime::read(fields.get("expires_in"), entry.usual_lifetime()),
        scopes: scopes(fields.get("scope"), &entry.scope_separator),
        metadata: metadata(&fields, &entry.metadata),
    })
}

/// It must fit a header (RFC 6750 section 2.1).
fn access_token(fields: &mut Map<String, Value>) -> Option<AccessToken> {
    let Some(Value::String(token)) = fields.remove("access_token") else { return None };
    // Taken over before it is judged, so that a refused one is wiped too.
    let token = AccessToken::new(token);
    let fits = (1..=TOKEN_LIMIT).contains(&token.expose().len());
    (fits && token.expose().bytes().all(|byte| byte.is_ascii_graphic())).then_some(token)
}

/// Missing, null and empty mean that the one at hand stays (RFC 6749 section 6). One that is no VSCHAR text (appendix
/// A.17) is left out as well: the access token beside it still serves.
fn refresh_token(fields: &mut Map<String, Value>) -> Option<RefreshToken> {
    let token = match fields.remove("refresh_token")? {
        Value::String(token) => RefreshToken::new(token),
        Value::Null => return None,
        _ => {
            tracing::warn!("a provider sent a refresh token that is not a text; the one at hand is kept");
            return None;
        }
    };
    let (length, printable) = (token.expose().len(), token.expose().bytes().all(|byte| matches!(byte, 0x20..=0x7e)));
    if length > TOKEN_LIMIT || !printable {
        tracing::warn!(length, "a provider sent a refresh token that is none; the one at hand is kept");
        return None;
    }
    (length > 0).then_some(token)
}

/// Compared without regard to case (RFC 6749 section 5.1); callers write it in front of the token.
fn token_type(value: Option<&Value>) -> String {
    let said = value.and_then(Value::as_str).unwrap_or_default();
    let is_word =
        (1..=32).contains(&said.len()) && said.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    if !is_word || said.eq_ignore_ascii_case("bearer") { "Bearer".to_owned() } else { said.to_owned() }
}

/// How long a list is as one text.
fn length(list: &[Value]) -> usize {
    list.iter().filter_map(Value::as_str).map(|scope| scope.len() + 1).sum()
}

/// A text or an array; absent means as asked for, and so does an empty one: nobody grants nothing and a token.
fn scopes(value: Option<&Value>, separator: &str) -> Option<Scopes> {
    let granted = match value? {
        Value::String(text) if text.len() <= TEXT_LIMIT => Scopes::split(text, separator),
        Value::Array(list) if length(list) <= TEXT_LIMIT => {
            list.iter().filter_map(Value::as_str).map(str::to_owned).collect()
        }
        _ => return None,
    };
    (!granted.is_empty()).then_some(granted)
}

/// Only what the catalog names, so that no secret slips in.
fn metadata(fields: &Map<String, Value>, names: &[String]) -> BTreeMap<String, String> {
    let text = |value: &Value| match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    };
    let wanted = names.iter().filter_map(|name| Some((name.clone(), text(fields.get(name)?)?)));
    wanted.filter(|(_, text)| !text.is_empty() && text.len() <= TEXT_LIMIT).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;
    use crate::providers::catalog::tests::entry_with;
    use crate::providers::provider::tests::NOW;
    use crate::providers::verdict::tests::response;

    fn read_with(entry: &Entry, answer: &Value) -> Result<TokenAnswer, Verdict> {
        read(&response(200, &answer.to_string()), entry, NOW)
    }

    fn read_plain(answer: &Value) -> TokenAnswer {
        read_with(entry_with(""), answer).ok().unwrap()
    }

    #[test]
    fn a_whole_answer_is_read() {
        let answer = read_plain(&json!({
            "access_token": "at-1", "refresh_token": "rt 1", "token_type": "bearer", "expires_in": 60,
            "scope": "openid files", "id_token": "x.y.z",
        }));
        assert_eq!((answer.access_token.expose(), answer.token_type.as_str()), ("at-1", "Bearer"));
        assert!(answer.refresh_token.is_some_and(|token| token.expose() == "rt 1"));
        assert_eq!(answer.lifetime, Lifetime::Stated(Duration::from_mins(1)));
        assert_eq!(answer.scopes.unwrap().join(","), "openid,files");
        assert!(answer.metadata.is_empty());
    }

    #[test]
    fn a_bare_token_is_enough() {
        let answer = read_plain(&json!({ "access_token": "a" }));
        assert_eq!(answer.token_type, "Bearer");
        assert!(answer.refresh_token.is_none() && answer.scopes.is_none());
        assert_eq!(answer.lifetime, Lifetime::Assumed(Duration::from_hours(1)));
    }

    #[test]
    fn without_a_new_refresh_token_the_old_one_is_kept() {
        for token in [json!(null), json!(""), json!(7), json!(["x"]), json!("a\u{0}b"), json!("a".repeat(16_385))] {
            assert!(
                read_plain(&json!({ "access_token": "a", "refresh_token": token })).refresh_token.is_none(),
                "{token}"
            );
        }
    }

    #[test]
    fn an_odd_lifetime_never_costs_the_token() {
        for expires_in in [json!("3600"), json!(59.5), json!(null), json!(-1), json!(1e18), json!("soon"), json!({})] {
            assert_eq!(
                read_plain(&json!({ "access_token": "a", "expires_in": expires_in })).access_token.expose(),
                "a"
            );
        }
        let huge = format!(r#"{{"access_token":"a","expires_in":1{}}}"#, "0".repeat(300));
        assert!(read(&response(200, &huge), entry_with(""), NOW).is_ok());
        let endless = read_with(entry_with("access_token_ttl = 0"), &json!({ "access_token": "a", "expires_in": 0 }));
        assert_eq!(endless.ok().unwrap().lifetime, Lifetime::Endless);
    }

    #[test]
    fn an_access_token_that_fits_no_header_is_no_answer() {
        for token in
            [json!(""), json!(null), json!(5), json!("a b"), json!("a\nb"), json!("ä"), json!("a".repeat(16_385))]
        {
            let read = read_with(entry_with(""), &json!({ "access_token": token }));
            assert_eq!(read.err(), Some(Verdict::Unknown), "{token}");
        }
        assert!(read_with(entry_with(""), &json!({ "access_token": "a".repeat(16_384) })).is_ok());
    }

    #[test]
    fn token_types_are_words() {
        for (said, meant) in [
            (json!("BEARER"), "Bearer"),
            (json!("DPoP"), "DPoP"),
            (json!(""), "Bearer"),
            (json!(null), "Bearer"),
            (json!("Bearer\r\nX: y"), "Bearer"),
        ] {
            assert_eq!(read_plain(&json!({ "access_token": "a", "token_type": said })).token_type, meant, "{said}");
        }
    }

    #[test]
    fn scopes_come_as_text_or_array_or_not_at_all() {
        for (said, meant) in [
            (json!("a b  a"), Some("a b")),
            (json!(["a", 7, "b"]), Some("a b")),
            (json!(""), None),
            (json!([]), None),
            (json!(null), None),
            (json!(7), None),
            (json!("a ".repeat(5_000)), None),
            (json!(["a".repeat(5_000), "b".repeat(5_000)]), None),
        ] {
            let scopes = read_plain(&json!({ "access_token": "a", "scope": said })).scopes;
            assert_eq!(scopes.map(|scopes| scopes.join(" ")).as_deref(), meant, "{said}");
        }
    }

    #[test]
    fn only_metadata_that_the_catalog_names_is_kept() {
        let entry = entry_with("metadata = [\"instance_url\", \"realm\", \"absent\", \"odd\"]");
        let answer =
            json!({ "access_token": "a", "instance_url": "https://x", "realm": 7, "odd": {}, "id_token": "s" });
        let metadata = read_with(entry, &answer).ok().unwrap().metadata;
        assert_eq!(json!(metadata), json!({ "instance_url": "https://x", "realm": "7" }));
    }

    #[test]
    fn a_token_in_anything_but_a_success_is_none() {
        let body = json!({ "access_token": "a" }).to_string();
        assert_eq!(
            read(&response(302, &body), entry_with(""), NOW).err(),
            Some(Verdict::Later { after: None, answered: false })
        );
        let both = json!({ "access_token": "a", "error": "invalid_grant" });
        assert!(read_with(entry_with(""), &both).is_ok());
    }
}
