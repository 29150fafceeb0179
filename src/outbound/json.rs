//! Reading JSON of others: bounded depth.

use serde_json::Value;

/// How deep objects and arrays may nest.
pub const DEPTH_LIMIT: usize = 64;

/// The body cannot be read. It says nothing of the body.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JsonError {
    /// Nested deeper than [`DEPTH_LIMIT`].
    #[error("nested too deeply")]
    TooDeep,
    /// Not JSON.
    #[error("not JSON")]
    Malformed,
}

/// Reads a JSON text (RFC 8259). A byte order mark in front is skipped, as section 8.1 lets a reader do: an answer that
/// can be read must not cost a grant.
pub fn read(body: &[u8]) -> Result<Value, JsonError> {
    let body = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body);
    if depth(body) > DEPTH_LIMIT {
        return Err(JsonError::TooDeep);
    }
    serde_json::from_slice(body).map_err(|_| JsonError::Malformed)
}

/// How deep brackets nest outside of strings. Exact for valid JSON, and that is enough: the parser refuses the rest.
fn depth(body: &[u8]) -> usize {
    let (mut depth, mut deepest, mut in_string, mut escaped) = (0_usize, 0, false, false);
    for byte in body {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'[' | b'{' if !in_string => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b']' | b'}' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nested(levels: usize) -> Vec<u8> {
        ["[".repeat(levels), "]".repeat(levels)].concat().into_bytes()
    }

    #[test]
    fn depth_is_bounded_before_anything_is_parsed() {
        assert!(read(&nested(DEPTH_LIMIT)).is_ok());
        assert_eq!(read(&nested(DEPTH_LIMIT + 1)), Err(JsonError::TooDeep));
        assert_eq!(read(&nested(100_000)), Err(JsonError::TooDeep));
        assert_eq!(read("{\"a\":".repeat(100_000).as_bytes()), Err(JsonError::TooDeep));
    }

    #[test]
    fn brackets_in_strings_do_not_count() {
        let text = serde_json::json!({ "a": "[\"{\\".repeat(200) });
        assert_eq!(read(text.to_string().as_bytes()), Ok(text));
    }

    #[test]
    fn what_is_not_json_is_refused() {
        for bad in ["", "<html>", "{\"a\":1", "{\"a\":1}x", "\u{feff}", "{'a':1}"] {
            assert_eq!(read(bad.as_bytes()), Err(JsonError::Malformed), "{bad:?}");
        }
        assert_eq!(read("\u{feff}{\"a\":1}".as_bytes()), Ok(serde_json::json!({ "a": 1 })));
    }
}
