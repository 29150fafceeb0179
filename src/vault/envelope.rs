//! The envelope, format version 1: `version u8 | key id u32 | nonce 24 | ciphertext | tag 16`, numbers big-endian.
//!
//! The cipher is XAES-256-GCM (C2SP): its 192-bit nonces may be drawn at random for as long as a key lives.

use xaes_256_gcm::Xaes256Gcm;
use xaes_256_gcm::aead::{AeadInOut as _, KeyInit as _};
use zeroize::Zeroizing;

use super::random;

/// The format's version: the first byte of an envelope and the first field of what it is bound to.
pub(super) const VERSION: u8 = 1;

const KEY_ID: usize = 4;
const NONCE: usize = 24;
const HEADER: usize = 1 + KEY_ID + NONCE;
const TAG: usize = 16;

/// Stored bytes that are no envelope of a known format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// Shorter than the envelope of an empty value.
    #[error("{0} bytes are too few for a sealed value")]
    TooShort(usize),
    /// Written by a newer wallet, or no envelope at all.
    #[error("format version {0} is unknown")]
    UnknownVersion(u8),
}

/// The value is longer than the cipher takes (64 GiB).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the value is too long to be sealed")]
pub(super) struct TooLong;

/// An envelope taken apart, not yet opened.
pub(super) struct Envelope<'a> {
    pub(super) key_id: u32,
    nonce: &'a [u8; NONCE],
    ciphertext: &'a [u8],
    tag: &'a [u8; TAG],
}

/// A key ready to seal and open, under the id that envelopes name it by.
pub(super) struct SealingKey {
    id: u32,
    cipher: Xaes256Gcm,
}

/// What an envelope is bound to (its associated data), or what a MAC covers: fields, each after its own length
/// (u64, big-endian), so that no two lists of fields give the same bytes.
pub(super) struct Fields(Vec<u8>);

impl<'a> Envelope<'a> {
    pub(super) fn parse(bytes: &'a [u8]) -> Result<Self, HeaderError> {
        let split = || {
            let (version, rest) = bytes.split_first()?;
            let (key_id, rest) = rest.split_first_chunk()?;
            let (nonce, rest) = rest.split_first_chunk()?;
            let (ciphertext, tag) = rest.split_last_chunk()?;
            Some((*version, Self { key_id: u32::from_be_bytes(*key_id), nonce, ciphertext, tag }))
        };
        match split() {
            None => Err(HeaderError::TooShort(bytes.len())),
            Some((VERSION, envelope)) => Ok(envelope),
            Some((version, _)) => Err(HeaderError::UnknownVersion(version)),
        }
    }
}

impl SealingKey {
    pub(super) fn new(id: u32, key: &[u8; 32]) -> Self {
        Self { id, cipher: Xaes256Gcm::new(key.into()) }
    }

    pub(super) fn id(&self) -> u32 {
        self.id
    }

    pub(super) fn seal(&self, plain: &[u8], bound_to: &Fields) -> Result<Vec<u8>, TooLong> {
        self.seal_with(&random::random_bytes(), plain, bound_to)
    }

    /// Seals under a given nonce, which must never have been used before.
    fn seal_with(&self, nonce: &[u8; NONCE], plain: &[u8], bound_to: &Fields) -> Result<Vec<u8>, TooLong> {
        // Room for all of it at once: growing would leave copies of the plaintext behind.
        let mut bytes = Vec::with_capacity(HEADER + plain.len() + TAG);
        bytes.push(VERSION);
        bytes.extend_from_slice(&self.id.to_be_bytes());
        bytes.extend_from_slice(nonce);
        bytes.extend_from_slice(plain);
        let body = &mut bytes[HEADER..];
        let tag = self.cipher.encrypt_inout_detached(nonce.into(), &bound_to.0, body.into()).map_err(|_| TooLong)?;
        bytes.extend_from_slice(&tag);
        Ok(bytes)
    }

    /// The plaintext, or nothing if key, bytes or binding are not the ones of sealing.
    pub(super) fn open(&self, envelope: &Envelope<'_>, bound_to: &Fields) -> Option<Zeroizing<Vec<u8>>> {
        if envelope.key_id != self.id {
            return None;
        }
        let mut body = Zeroizing::new(envelope.ciphertext.to_vec());
        self.cipher
            .decrypt_inout_detached(envelope.nonce.into(), &bound_to.0, body.as_mut_slice().into(), envelope.tag.into())
            .ok()?;
        Some(body)
    }
}

impl Fields {
    /// Starts with the format's version.
    pub(super) fn versioned() -> Self {
        Self(Vec::with_capacity(320)).bytes(&[VERSION])
    }

    pub(super) fn text(self, field: &str) -> Self {
        self.bytes(field.as_bytes())
    }

    pub(super) fn number(self, field: i64) -> Self {
        self.bytes(&field.to_be_bytes())
    }

    pub(super) fn bytes(mut self, field: &[u8]) -> Self {
        self.0.extend_from_slice(&(field.len() as u64).to_be_bytes());
        self.0.extend_from_slice(field);
        self
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use data_encoding::HEXLOWER;

    use super::*;

    /// One of the two published vectors: <https://github.com/C2SP/C2SP/blob/main/XAES-256-GCM.md>.
    fn assert_vector(key: u8, aad: &str, sealed: &str) {
        let key = SealingKey::new(0x0102_0304, &[key; 32]);
        let bound_to = Fields(aad.into());
        let bytes = key.seal_with(b"ABCDEFGHIJKLMNOPQRSTUVWX", b"XAES-256-GCM", &bound_to).unwrap();
        assert_eq!(&bytes[..HEADER], b"\x01\x01\x02\x03\x04ABCDEFGHIJKLMNOPQRSTUVWX");
        assert_eq!(HEXLOWER.encode(&bytes[HEADER..]), sealed);
        let opened = key.open(&Envelope::parse(&bytes).unwrap(), &bound_to);
        assert_eq!(opened.unwrap().as_slice(), b"XAES-256-GCM");
    }

    #[test]
    fn the_published_vectors_of_xaes_256_gcm_come_out() {
        assert_vector(1, "", "ce546ef63c9cc60765923609b33a9a1974e96e52daf2fcf7075e2271");
        assert_vector(3, "c2sp.org/XAES-256-GCM", "986ec1832593df5443a179437fd083bf3fdb41abd740a21f71eb769d");
    }

    #[test]
    fn fields_are_told_apart_by_their_lengths() {
        let fields = Fields::versioned().text("ab").text("").number(-2);
        let expected = [
            &[0, 0, 0, 0, 0, 0, 0, 1, 1][..],
            &[0, 0, 0, 0, 0, 0, 0, 2, b'a', b'b'],
            &[0, 0, 0, 0, 0, 0, 0, 0],
            &[0, 0, 0, 0, 0, 0, 0, 8, 255, 255, 255, 255, 255, 255, 255, 254],
        ];
        assert_eq!(fields.as_bytes(), expected.concat());
    }

    #[test]
    fn the_shortest_envelope_is_that_of_an_empty_value() {
        let key = SealingKey::new(1, &[9; 32]);
        let bytes = key.seal(b"", &Fields::versioned()).unwrap();
        assert_eq!(bytes.len(), HEADER + TAG);
        assert!(Envelope::parse(&bytes).is_ok());
        assert_eq!(Envelope::parse(&bytes[1..]).err(), Some(HeaderError::TooShort(44)));
    }
}
