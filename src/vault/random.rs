//! Randomness from the operating system, and the one-time secrets made of it.

use data_encoding::BASE64URL_NOPAD;
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use crate::domain::secret::{FlowState, PkceVerifier, Ticket};

/// Fills `bytes` from the operating system's generator.
///
/// # Panics
/// If the operating system has no randomness to give: no secret may then be made, and no caller could do better.
pub(super) fn fill(bytes: &mut [u8]) {
    if let Err(error) = getrandom::fill(bytes) {
        panic!("the operating system gives no random bytes: {error}");
    }
}

/// `N` random bytes.
///
/// # Panics
/// If the operating system has no randomness to give.
pub fn random_bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    fill(&mut bytes);
    bytes
}

/// A number in 0..1 to spread what would otherwise happen at once.
///
/// # Panics
/// If the operating system has no randomness to give.
pub fn spread() -> f64 {
    f64::from(u32::from_be_bytes(random_bytes())) / (f64::from(u32::MAX) + 1.0)
}

/// The `state` of one authorization URL (RFC 6749 section 10.12): 256 bits in 43 characters of base64url.
///
/// # Panics
/// If the operating system has no randomness to give.
pub fn flow_state() -> FlowState {
    FlowState::new(secret_text())
}

/// The single-use secret that ends a flow: 256 bits in 43 characters of base64url.
///
/// # Panics
/// If the operating system has no randomness to give.
pub fn ticket() -> Ticket {
    Ticket::new(secret_text())
}

/// A PKCE verifier as RFC 7636 section 4.1 recommends it: 32 random bytes in 43 characters of base64url.
///
/// # Panics
/// If the operating system has no randomness to give.
pub fn pkce_verifier() -> PkceVerifier {
    PkceVerifier::new(secret_text())
}

/// SHA-256 of a secret, for look-ups by what was only shown once. Safe for secrets of 128 random bits or more;
/// anything a person could guess would need a slow hash.
pub fn hash(text: &str) -> [u8; 32] {
    Sha256::digest(text.as_bytes()).into()
}

fn secret_text() -> String {
    let mut bytes = Zeroizing::new([0; 32]);
    fill(&mut *bytes);
    BASE64URL_NOPAD.encode(&*bytes)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn one_time_secrets_are_43_unreserved_characters_and_never_repeat() {
        let texts: HashSet<String> = (0..1_000)
            .flat_map(|_| {
                [flow_state().expose().to_owned(), ticket().expose().to_owned(), pkce_verifier().expose().to_owned()]
            })
            .collect();
        assert_eq!(texts.len(), 3_000);
        for text in texts {
            assert_eq!(text.len(), 43);
            assert!(text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte)));
        }
    }

    #[test]
    fn random_bytes_differ_from_call_to_call() {
        assert_ne!(random_bytes::<16>(), random_bytes::<16>());
    }

    #[test]
    fn a_hash_is_sha_256() {
        let hex = data_encoding::HEXLOWER.encode(&hash("abc"));
        assert_eq!(hex, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }
}
