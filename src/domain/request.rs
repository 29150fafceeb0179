//! Creating calls that carry a `request_id`: made twice, they are answered the same.

use zeroize::Zeroizing;

/// What a creating call asked and what it was answered. It may hold an API key or a flow's `state`.
pub struct Request {
    /// SHA-256 of the request without its id.
    pub asked: [u8; 32],
    /// The answer as it was sent; `None` while nobody knows one.
    pub answer: Option<Zeroizing<Vec<u8>>>,
}

/// Which call it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestKey {
    /// Whose: another client's ids are others.
    pub client: super::ids::ApiClientId,
    /// The method's name: so are another method's.
    pub method: &'static str,
    /// The `request_id`.
    pub id: String,
}
