//! The bodies of answers, in all the ways that a fault can have them sent.

use std::borrow::Cow;
use std::io;
use std::time::Duration;

use axum::body::{Body, Bytes};
use futures_util::stream;
use serde_json::Value;

/// How much of a huge body is made at once, in bytes.
const PIECE: usize = 64 * 1024;

/// The byte order mark of UTF-8.
const BOM: &[u8] = b"\xef\xbb\xbf";

/// What an answer says.
pub(super) enum Content {
    /// An object of names and raw JSON texts; none of them is no body at all.
    Fields(Vec<(Cow<'static, str>, String)>),
    /// This text.
    Text(String),
    /// An object of this many bytes.
    Huge(u64),
    /// Arrays in arrays, so many.
    Nested(u32),
}

/// How a body is sent.
#[derive(Default)]
pub(super) struct Manner {
    pub(super) bom: bool,
    /// Send only so many bytes, as if they were all.
    pub(super) truncate: Option<usize>,
    /// Announce all and lose the connection after so many bytes.
    pub(super) break_off: Option<usize>,
    /// Wait so long before each byte.
    pub(super) drip: Option<Duration>,
}

/// A body and the length to announce, where the body itself would not tell it.
pub(super) struct Sent {
    pub(super) body: Body,
    pub(super) length: Option<usize>,
}

impl Content {
    pub(super) fn is_empty(&self) -> bool {
        matches!(self, Self::Fields(fields) if fields.is_empty())
    }

    /// The body as it is sent. A huge one is always sent at once and whole: it is never in memory.
    pub(super) fn send(self, manner: &Manner) -> Sent {
        let text = match self {
            Self::Fields(fields) if fields.is_empty() => String::new(),
            Self::Fields(fields) => object(&fields),
            Self::Text(text) => text,
            Self::Huge(size) => return Sent { body: huge(size), length: None },
            Self::Nested(depth) => nested(depth),
        };
        let mut bytes = if manner.bom { [BOM, text.as_bytes()].concat() } else { text.into_bytes() };
        if let Some(kept) = manner.truncate {
            bytes.truncate(kept);
        }
        if manner.break_off.is_none() && manner.drip.is_none() {
            return Sent { body: bytes.into(), length: None };
        }
        Sent { length: Some(bytes.len()), body: slowly(bytes.into(), manner) }
    }
}

fn object(fields: &[(Cow<'static, str>, String)]) -> String {
    let fields: Vec<String> =
        fields.iter().map(|(name, raw)| format!("{}:{raw}", Value::from(name.as_ref()))).collect();
    format!("{{{}}}", fields.join(","))
}

fn nested(depth: u32) -> String {
    let depth = usize::try_from(depth).unwrap_or_default();
    ["[".repeat(depth), "]".repeat(depth)].concat()
}

/// `{`, spaces, `}`.
fn huge(size: u64) -> Body {
    let piece = move |at: u64| {
        let left = size.saturating_sub(at);
        if left == 0 {
            return None;
        }
        let length = usize::try_from(left).map_or(PIECE, |left| left.min(PIECE));
        let mut bytes = vec![b' '; length];
        if at == 0 {
            bytes[0] = b'{';
        }
        if left == length as u64 {
            bytes[length - 1] = b'}';
        }
        Some((Ok::<_, io::Error>(Bytes::from(bytes)), at + length as u64))
    };
    Body::from_stream(stream::unfold(0, move |at| std::future::ready(piece(at))))
}

/// One byte each `drip`, or all that is not lost at once.
fn slowly(bytes: Bytes, manner: &Manner) -> Body {
    let (drip, end) = (manner.drip, manner.break_off.unwrap_or(usize::MAX).min(bytes.len()));
    let is_lost = manner.break_off.is_some();
    Body::from_stream(stream::unfold(0, move |at| {
        let step = if drip.is_some() { 1 } else { end };
        let piece = bytes.slice(at.min(end)..(at + step).min(end));
        async move {
            match drip {
                Some(span) => tokio::time::sleep(span).await,
                // What was sent before must be on its way when the connection ends.
                None => tokio::task::yield_now().await,
            }
            if !piece.is_empty() {
                return Some((Ok(piece), at + step));
            }
            is_lost.then(|| (Err(io::Error::new(io::ErrorKind::ConnectionAborted, "cut by a fault")), at))
        }
    }))
}
