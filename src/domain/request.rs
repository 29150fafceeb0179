//! Creating calls that carry a `request_id`: made twice, they are answered the same.

use zeroize::Zeroizing;

/// SHA-256 of what a creating call asked, without its id.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Asked(pub [u8; 32]);

/// What it was answered, as it was sent. It may hold an API key or a flow's `state`.
pub struct Answer(pub Zeroizing<Vec<u8>>);

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
