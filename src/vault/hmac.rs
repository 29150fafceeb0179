//! HMAC-SHA256 (RFC 2104) under a 256-bit key, for which it cannot fail.

use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;
use zeroize::Zeroizing;

/// The MAC of `message`, to be finalized or verified in constant time.
pub(super) fn hmac(key: &[u8; 32], message: &[u8]) -> Hmac<Sha256> {
    // RFC 2104 fills a short key up with zeros to the hash's block; a key of that length needs no error path.
    let mut block = Zeroizing::new([0; 64]);
    block[..32].copy_from_slice(key);
    let mut mac = Hmac::<Sha256>::new((&*block).into());
    mac.update(message);
    mac
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_hmac_that_any_key_length_gives() {
        let key = [0x5a; 32];
        let mut other = Hmac::<Sha256>::new_from_slice(&key).unwrap();
        other.update(b"message");
        assert_eq!(hmac(&key, b"message").finalize().into_bytes(), other.finalize().into_bytes());
    }
}
