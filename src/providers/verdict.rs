//! Verdicts: what a provider's answer or silence means. Decided here, once; nobody else reads error codes.

use std::time::{Duration, UNIX_EPOCH};

use serde_json::Value;

use super::catalog::Entry;
use crate::clock::Timestamp;
use crate::domain::policy::LONGEST_PAUSE;
use crate::domain::provider::Verdict;
use crate::outbound::{NotSent, OutboundError, Response, json};

/// Codes that blame the client, not the grant (RFC 6749 section 5.2).
const CLIENT_ERRORS: [&str; 2] = ["invalid_client", "unauthorized_client"];

/// What a token endpoint's answer without a token means. The status of an overload or outage outranks what the body
/// says; else the body's error code decides, also in a 200. An outage without a code may have been told by somebody
/// between us and the provider: whether the provider acted, it does not say. A 503 says so: not now (RFC 9110 section
/// 15.6.4).
pub fn classify(response: &Response, entry: &Entry, now: Timestamp) -> Verdict {
    let code = error_code(&response.body);
    // Frameworks put the status' name there: that is no word of the token endpoint (RFC 6749 section 5.2).
    let spoke = code.as_deref().is_some_and(|code| word(code) == code);
    match (response.status, code.as_deref()) {
        (429, _) => Verdict::Limited { after: retry_after(response, now) },
        (503, _) => Verdict::Later { after: retry_after(response, now), answered: false },
        (408 | 500.., _) if !spoke => Verdict::Unclear { after: retry_after(response, now) },
        (500.., _) => Verdict::Later { after: retry_after(response, now), answered: false },
        (_, Some(code)) if entry.dead_grant_errors.iter().any(|dead| dead == code) => Verdict::Refused(word(code)),
        (_, Some(code)) if CLIENT_ERRORS.contains(&code) => Verdict::Misconfigured(word(code)),
        // RFC 6749 section 5.2: 401 is the answer to a failed client authentication.
        (401, code) => Verdict::Misconfigured(code.map_or_else(|| "http_401".to_owned(), word)),
        (200..=299, None) => Verdict::Unknown,
        (status, code) => {
            Verdict::Later { after: retry_after(response, now), answered: status != 408 && code.is_some() }
        }
    }
}

/// What a revocation endpoint's answer means (RFC 7009 section 2.2). A token that the provider does not know is as good as
/// revoked, and so is an access token that is no credential any more where it is its own (`by_token`).
pub fn classify_revocation(response: &Response, entry: &Entry, by_token: bool, now: Timestamp) -> Result<(), Verdict> {
    let code = error_code(&response.body);
    match (response.status, code.as_deref()) {
        (200..=299, None) | (400..=499, Some("invalid_token")) => Ok(()),
        (401, _) if by_token => Ok(()),
        // RFC 7009 section 2.2.1.
        (200..=499, Some(code @ "unsupported_token_type")) => Err(Verdict::Refused(word(code))),
        _ => match classify(response, entry, now) {
            Verdict::Refused(_) => Ok(()),
            // Asking again harms nobody.
            Verdict::Unclear { after } => Err(Verdict::Later { after, answered: false }),
            Verdict::Unknown => Err(Verdict::Later { after: None, answered: false }),
            verdict => Err(verdict),
        },
    }
}

/// What the profile endpoint's refusal means (RFC 6750 section 3.1).
pub fn classify_profile(response: &Response, now: Timestamp) -> Verdict {
    match response.status {
        401 => Verdict::Refused("invalid_token".to_owned()),
        429 => Verdict::Limited { after: retry_after(response, now) },
        // The scopes that are asked for do not let the profile be read: the configuration's fault, not the user's.
        403 if response.www_authenticate.as_deref().is_some_and(|text| text.contains("insufficient_scope")) => {
            Verdict::Misconfigured("insufficient_scope".to_owned())
        }
        status => {
            let answered = status < 500 && status != 408 && error_code(&response.body).is_some();
            Verdict::Later { after: retry_after(response, now), answered }
        }
    }
}

impl From<OutboundError> for Verdict {
    fn from(error: OutboundError) -> Self {
        match error {
            OutboundError::NotSent(NotSent::Tls) => Self::Untrusted,
            OutboundError::NotSent(_) => Self::Later { after: None, answered: false },
            OutboundError::Sent(_) => Self::Unknown,
        }
    }
}

/// The `error` of a JSON object, if there is one that is a text.
fn error_code(body: &[u8]) -> Option<String> {
    match json::read(body).ok()?.as_object_mut()?.remove("error")? {
        Value::String(code) if !code.is_empty() => Some(code),
        _ => None,
    }
}

/// What may be kept of an error code: providers put all sorts of text there.
fn word(code: &str) -> String {
    let plain = code.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'_' | b'0'..=b'9'));
    if plain && (1..=64).contains(&code.len()) { code.to_owned() } else { "other".to_owned() }
}

/// RFC 9110 section 10.2.3: seconds, or a date. What is neither is nothing.
fn retry_after(response: &Response, now: Timestamp) -> Option<Duration> {
    let text = response.retry_after.as_deref()?.trim();
    let wait = if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        Duration::from_secs(text.parse().unwrap_or(u64::MAX))
    } else {
        let date = httpdate::parse_http_date(text).ok()?.duration_since(UNIX_EPOCH).ok()?;
        Timestamp::from_millis(i64::try_from(date.as_millis()).ok()?).since(now)
    };
    Some(wait.min(LONGEST_PAUSE))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::outbound::{NotSent, Unanswered};
    use crate::providers::catalog::tests::entry_with;
    use crate::providers::provider::tests::NOW;

    pub(crate) fn response(status: u16, body: &str) -> Response {
        let body = zeroize::Zeroizing::new(body.as_bytes().to_vec());
        Response { status, retry_after: None, www_authenticate: None, location: None, body }
    }

    fn refused(code: &str) -> Verdict {
        Verdict::Refused(code.to_owned())
    }

    fn misconfigured(code: &str) -> Verdict {
        Verdict::Misconfigured(code.to_owned())
    }

    const LATER: Verdict = Verdict::Later { after: None, answered: false };
    const ANSWERED: Verdict = Verdict::Later { after: None, answered: true };
    const UNCLEAR: Verdict = Verdict::Unclear { after: None };

    #[test]
    fn a_token_is_revoked_if_the_provider_says_so_or_does_not_know_it() {
        let entry = entry_with("");
        for (status, body, by_token, read) in [
            (200, "", false, Ok(())),
            (204, "", false, Ok(())),
            (200, "{}", false, Ok(())),
            (400, r#"{"error":"invalid_token"}"#, false, Ok(())),
            (400, r#"{"error":"invalid_grant"}"#, false, Ok(())),
            (401, r#"{"error":"invalid_token"}"#, true, Ok(())),
            (400, r#"{"error":"unsupported_token_type"}"#, false, Err(refused("unsupported_token_type"))),
            (400, r#"{"error":"invalid_request"}"#, false, Err(ANSWERED)),
            (401, r#"{"error":"invalid_client"}"#, false, Err(misconfigured("invalid_client"))),
            (401, "", false, Err(misconfigured("http_401"))),
            (200, r#"{"error":"other_error"}"#, false, Err(ANSWERED)),
            (403, "", false, Err(LATER)),
            (500, "", false, Err(LATER)),
            (503, "", true, Err(LATER)),
            (429, "", false, Err(Verdict::Limited { after: None })),
        ] {
            assert_eq!(classify_revocation(&response(status, body), entry, by_token, NOW), read, "{status} {body}");
        }
    }

    #[test]
    fn only_the_codes_of_the_catalog_refuse_a_grant() {
        let entry = entry_with("dead_grant_errors = [\"invalid_grant\", \"bad_refresh_token\", \"Token Gone\"]");
        for (status, body, verdict) in [
            (400, r#"{"error":"invalid_grant"}"#, refused("invalid_grant")),
            (
                400,
                r#"{"error":"invalid_grant","error_description":"Token has been revoked"}"#,
                refused("invalid_grant"),
            ),
            (401, r#"{"error":"invalid_grant"}"#, refused("invalid_grant")),
            (403, r#"{"error":"invalid_grant"}"#, refused("invalid_grant")),
            (200, r#"{"error":"bad_refresh_token"}"#, refused("bad_refresh_token")),
            (400, r#"{"error":"Token Gone"}"#, refused("other")),
            (400, r#"{"error":"invalid_client"}"#, misconfigured("invalid_client")),
            (401, r#"{"error":"invalid_client"}"#, misconfigured("invalid_client")),
            (200, r#"{"error":"invalid_client"}"#, misconfigured("invalid_client")),
            (400, r#"{"error":"unauthorized_client"}"#, misconfigured("unauthorized_client")),
            (401, "", misconfigured("http_401")),
            (401, "<html>", misconfigured("http_401")),
            (401, r#"{"error":"access_denied"}"#, misconfigured("access_denied")),
            (401, r#"{"error":"Wrong PASSWORD: hunter2"}"#, misconfigured("other")),
            (400, r#"{"error":"invalid_request"}"#, ANSWERED),
            (400, r#"{"error":"invalid_scope"}"#, ANSWERED),
            (403, r#"{"error":"access_denied"}"#, ANSWERED),
            (400, r#"{"error":{"code":190}}"#, LATER),
            (400, r#"{"error":""}"#, LATER),
            (400, "", LATER),
            (403, "forbidden", LATER),
            (404, "<html>", LATER),
            (408, "", UNCLEAR),
            (408, r#"{"error":"timeout"}"#, LATER),
            (301, "", LATER),
            (302, r#"{"access_token":"a"}"#, LATER),
            (200, r#"{"error":"slow_down"}"#, ANSWERED),
            (500, r#"{"error":"invalid_grant"}"#, LATER),
            (500, r#"{"error":null}"#, UNCLEAR),
            (500, "", UNCLEAR),
            (502, "<h1>invalid_grant</h1>", UNCLEAR),
            (504, r#"{"status":504,"error":"Gateway Timeout"}"#, UNCLEAR),
            (500, r#"{"error":"server_error"}"#, LATER),
            (504, r#"{"message":"timed out"}"#, UNCLEAR),
            (599, "", UNCLEAR),
            (503, r#"{"error":"invalid_client"}"#, LATER),
            (503, "<html>", LATER),
            (429, r#"{"error":"invalid_grant"}"#, Verdict::Limited { after: None }),
            (200, "", Verdict::Unknown),
            (200, "<html>", Verdict::Unknown),
            (200, "{}", Verdict::Unknown),
            (200, "[]", Verdict::Unknown),
            (200, r#"{"error":null}"#, Verdict::Unknown),
            (200, r#"{"access_token":"abc"#, Verdict::Unknown),
            (204, "", Verdict::Unknown),
        ] {
            assert_eq!(classify(&response(status, body), entry, NOW), verdict, "{status} {body}");
        }
    }

    #[test]
    fn a_request_that_was_sent_is_never_taken_for_unsent() {
        assert_eq!(Verdict::from(OutboundError::NotSent(NotSent::Connect)), LATER);
        assert_eq!(Verdict::from(OutboundError::NotSent(NotSent::Tls)), Verdict::Untrusted);
        assert_eq!(Verdict::from(OutboundError::Sent(Unanswered::Timeout)), Verdict::Unknown);
    }

    #[test]
    fn a_wait_is_read_in_seconds_or_as_a_date_and_clamped() {
        let secs = |secs| Some(Duration::from_secs(secs));
        // NOW is Tue, 14 Nov 2023 22:13:20 GMT.
        for (text, wait) in [
            ("30", secs(30)),
            (" 30 ", secs(30)),
            ("0", secs(0)),
            ("999999", secs(900)),
            ("99999999999999999999999999", secs(900)),
            ("Tue, 14 Nov 2023 22:14:20 GMT", secs(60)),
            ("Tue, 14 Nov 2023 22:00:00 GMT", secs(0)),
            ("Fri, 31 Dec 9999 23:59:59 GMT", secs(900)),
            ("Thu, 01 Jan 1970 00:00:00 GMT", secs(0)),
            ("", None),
            ("-5", None),
            ("1.5", None),
            ("soon", None),
        ] {
            for status in [429, 503, 400, 502] {
                let response = Response { retry_after: Some(text.to_owned()), ..response(status, "") };
                let (meant, profile) = match status {
                    429 => (Verdict::Limited { after: wait }, Verdict::Limited { after: wait }),
                    502 => (Verdict::Unclear { after: wait }, Verdict::Later { after: wait, answered: false }),
                    _ => (
                        Verdict::Later { after: wait, answered: false },
                        Verdict::Later { after: wait, answered: false },
                    ),
                };
                assert_eq!(classify(&response, entry_with(""), NOW), meant, "{status} {text:?}");
                assert_eq!(classify_profile(&response, NOW), profile, "{status} {text:?}");
            }
        }
    }

    #[test]
    fn a_refused_profile_blames_the_token_or_the_scopes() {
        let scopes = Some(r#"Bearer realm="x", error="insufficient_scope""#.to_owned());
        let forbidden = Response { www_authenticate: scopes, ..response(403, "") };
        assert_eq!(classify_profile(&forbidden, NOW), misconfigured("insufficient_scope"));
        assert_eq!(classify_profile(&response(401, ""), NOW), refused("invalid_token"));
        for status in [302, 400, 403, 404, 500, 503] {
            assert_eq!(classify_profile(&response(status, ""), NOW), LATER, "{status}");
        }
        for (status, meant) in [(400, ANSWERED), (403, ANSWERED), (408, LATER), (500, LATER), (503, LATER)] {
            assert_eq!(classify_profile(&response(status, r#"{"error":"access_denied"}"#), NOW), meant, "{status}");
        }
    }
}
