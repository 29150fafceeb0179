//! Reading a profile: who an account belongs to.

use serde_json::Value;

use super::catalog::Entry;
use super::endpoints::Endpoints;
use crate::domain::provider::Profile;

/// The most bytes of a subject (OpenID Connect Core section 2).
const SUBJECT_LIMIT: usize = 255;

/// Why a profile cannot be used; never says what it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the profile has no usable account id where it is looked for")]
pub struct NoSubject;

/// Picks what we know of a person out of a profile answer. Only the account's id must be there; what else is missing,
/// too long or not a text is left out.
pub fn read(answer: &Value, entry: &Entry, endpoints: &Endpoints) -> Result<Profile, NoSubject> {
    let subject = answer.pointer(&endpoints.subject_pointer).and_then(subject).ok_or(NoSubject)?;
    let field = |pointer: &Option<String>, limit| text(answer.pointer(pointer.as_deref()?)?.as_str()?, limit);
    Ok(Profile {
        subject,
        name: field(&entry.ptr_name, 256),
        username: field(&entry.ptr_username, 256),
        email: field(&entry.ptr_email, 320),
        avatar_url: field(&entry.ptr_avatar, 2048),
    })
}

/// A text, or a whole number as some providers number their accounts.
fn subject(value: &Value) -> Option<String> {
    match value {
        Value::String(id) => text(id, SUBJECT_LIMIT),
        Value::Number(id) if id.is_u64() || id.is_i64() => Some(id.to_string()),
        _ => None,
    }
}

fn text(text: &str, limit: usize) -> Option<String> {
    let good = (1..=limit).contains(&text.len()) && !text.chars().any(char::is_control);
    good.then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::providers::provider::tests::provider;

    fn read_at(pointer: &str, answer: &Value) -> Result<Profile, NoSubject> {
        let mut provider = provider(None, "ptr_name = \"/name\"\nptr_email = \"/emails/0\"\nptr_avatar = \"/picture\"");
        provider.endpoints.subject_pointer = pointer.to_owned();
        read(answer, provider.entry, &provider.endpoints)
    }

    #[test]
    fn the_subject_is_text_of_a_text_or_whole_number() {
        for (id, subject) in [
            (json!("user-1"), Some("user-1")),
            (json!(9_007_199_254_740_993_u64), Some("9007199254740993")),
            (json!(-1), Some("-1")),
            (json!(u64::MAX), Some("18446744073709551615")),
            (json!(1.5), None),
            (json!(1e30), None),
            (json!(true), None),
            (json!(null), None),
            (json!(""), None),
            (json!("a\nb"), None),
            (json!(["x"]), None),
            (json!("x".repeat(256)), None),
        ] {
            let read = read_at("/data/id", &json!({ "data": { "id": id } }));
            assert_eq!(read.map(|profile| profile.subject).ok().as_deref(), subject, "{id}");
        }
        assert_eq!(read_at("/sub", &json!({ "id": 1 })), Err(NoSubject));
        assert_eq!(read_at("/sub", &json!([])), Err(NoSubject));
    }

    #[test]
    fn what_else_is_there_is_kept_if_it_is_text_of_a_sane_length() {
        let answer = json!({ "sub": "1", "name": "Zoë", "emails": ["z@example.com"], "picture": "x".repeat(2049) });
        let profile = read_at("/sub", &answer).unwrap();
        assert_eq!((profile.name.as_deref(), profile.email.as_deref()), (Some("Zoë"), Some("z@example.com")));
        assert_eq!((profile.avatar_url, profile.username), (None, None));
        let odd = read_at("/sub", &json!({ "sub": "1", "name": 7, "emails": {}, "picture": "a\u{7}" })).unwrap();
        assert_eq!(odd, Profile { subject: "1".into(), ..Profile::default() });
    }
}
