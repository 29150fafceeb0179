//! `Sealed<T>`: a value of one column, encrypted. All that a store may hold of a secret.

use std::fmt;
use std::marker::PhantomData;

use super::cell::Cell;
use super::envelope::Envelope;
pub use super::envelope::HeaderError;

/// A sealed `T`. Only [`super::Vault::seal`] makes a new one and only [`super::Vault::open_cell`] reads one, so that
/// plaintext in a store does not compile.
pub struct Sealed<T> {
    bytes: Vec<u8>,
    key_id: u32,
    cell: PhantomData<fn() -> T>,
}

impl<T: Cell> Sealed<T> {
    /// Takes up what a store holds: the envelope's form is checked, its content is not opened.
    pub fn from_stored(bytes: Vec<u8>) -> Result<Self, HeaderError> {
        let key_id = Envelope::parse(&bytes)?.key_id;
        Ok(Self::new(bytes, key_id))
    }

    pub(super) fn new(bytes: Vec<u8>, key_id: u32) -> Self {
        Self { bytes, key_id, cell: PhantomData }
    }

    /// The envelope, for the store.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The id of the data key that it was sealed under.
    pub fn key_id(&self) -> u32 {
        self.key_id
    }
}

impl<T> Clone for Sealed<T> {
    fn clone(&self) -> Self {
        Self { bytes: self.bytes.clone(), key_id: self.key_id, cell: PhantomData }
    }
}

impl<T> PartialEq for Sealed<T> {
    fn eq(&self, other: &Self) -> bool {
        self.bytes == other.bytes
    }
}

impl<T> Eq for Sealed<T> {}

impl<T> fmt::Debug for Sealed<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sealed({} bytes)", self.bytes.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::secret::AccessToken;

    type Stored = Sealed<AccessToken>;

    /// Deterministic noise (splitmix64), so that a failure comes back with its seed.
    fn noise(seed: u64, length: usize) -> Vec<u8> {
        let mut state = seed;
        (0..length)
            .map(|_| {
                state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
                let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
                mixed.to_le_bytes()[3]
            })
            .collect()
    }

    #[test]
    fn whatever_a_store_holds_is_taken_up_unchanged_or_refused_by_its_form() {
        for length in 0..200 {
            for version in 0..=u8::MAX {
                let mut bytes = noise(u64::from(version) << 32 | length as u64, length);
                if let Some(first) = bytes.first_mut() {
                    *first = version;
                }
                match Stored::from_stored(bytes.clone()) {
                    Ok(sealed) => {
                        assert!(length >= 45 && version == 1);
                        assert_eq!(sealed.as_bytes(), bytes);
                        assert_eq!(sealed.key_id().to_be_bytes(), bytes[1..5]);
                    }
                    Err(HeaderError::TooShort(told)) => assert!(told == length && length < 45),
                    Err(HeaderError::UnknownVersion(told)) => assert!(told == version && version != 1 && length >= 45),
                }
            }
        }
    }

    #[test]
    fn debug_tells_the_length_only() {
        let mut bytes = noise(1, 60);
        bytes[0] = 1;
        assert_eq!(format!("{:?}", Stored::from_stored(bytes).unwrap()), "Sealed(60 bytes)");
    }
}
