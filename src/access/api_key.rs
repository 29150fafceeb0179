//! API keys: `twk_<instance>_<id>_<secret><crc>`.
//!
//! The instance tag keeps a key from being tried at another deployment, the id finds the row, the secret is 256 random
//! bits of which the store keeps a SHA-256, and the CRC tells a mistyped key (or lets a scanner tell a real one)
//! without a look-up.

use std::fmt;

use data_encoding::Specification;
use std::sync::LazyLock;

use crate::clock::Timestamp;
use crate::domain::ids::{ApiKeyId, InstanceId};
use crate::domain::secret::ApiKey;
use crate::vault::random;

const PREFIX: &str = "twk";
const SECRET_DIGITS: usize = 52;
const CRC_DIGITS: usize = 7;

/// RFC 4648 base32 in lower case, without padding.
static BASE32: LazyLock<Option<data_encoding::Encoding>> = LazyLock::new(|| {
    let mut specification = Specification::new();
    specification.symbols.push_str("abcdefghijklmnopqrstuvwxyz234567");
    specification.encoding().ok()
});

/// The part of an instance's id that its keys carry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InstanceTag(String);

/// A key as its client showed it. What is not well-formed has an id that no row has.
pub(super) struct Presented {
    pub(super) instance: InstanceTag,
    pub(super) id: ApiKeyId,
    pub(super) secret_hash: [u8; 32],
    pub(super) well_formed: bool,
}

impl InstanceTag {
    /// The last eight digits of the id: random bits.
    pub fn of(instance: InstanceId) -> Self {
        let id = instance.to_string();
        Self(id[id.len() - 8..].to_owned())
    }
}

impl fmt::Display for InstanceTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Makes a key: what its client gets, and the hash that the store keeps.
pub(super) fn make(instance: &InstanceTag, id: ApiKeyId) -> (ApiKey, [u8; 32]) {
    let secret = zeroize::Zeroizing::new(base32(&*zeroize::Zeroizing::new(random::random_bytes::<32>())));
    let id = id.to_string();
    let digits = id.trim_start_matches("key_");
    let body = zeroize::Zeroizing::new(format!("{PREFIX}_{instance}_{digits}_{}", *secret));
    let key = ApiKey::new(format!("{}{}", *body, crc(&body)));
    (key, random::hash(&secret))
}

/// Reads a key. It always answers, and always hashes, so that what is wrong with a key does not show in the time.
pub(super) fn read(text: &str, now: Timestamp) -> Presented {
    let parts = split(text);
    let (instance, id, secret) = parts.unwrap_or(("", "", text));
    let id = format!("key_{id}").parse();
    Presented {
        instance: InstanceTag(instance.to_owned()),
        well_formed: parts.is_some() && id.is_ok(),
        id: id.unwrap_or_else(|_| ApiKeyId::new(now)),
        secret_hash: random::hash(secret),
    }
}

/// The instance tag, id and secret of a key whose form and CRC are right.
fn split(text: &str) -> Option<(&str, &str, &str)> {
    let (body, check) = text.split_at_checked(text.len().checked_sub(CRC_DIGITS)?)?;
    if text.len() > 200 || crc(body) != check {
        return None;
    }
    let mut parts = body.split('_');
    let found = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let (prefix, instance, id, secret) = found;
    (prefix == PREFIX && secret.len() == SECRET_DIGITS && parts.next().is_none()).then_some((instance, id, secret))
}

fn crc(body: &str) -> String {
    base32(&crc32fast::hash(body.as_bytes()).to_be_bytes())
}

fn base32(bytes: &[u8]) -> String {
    BASE32.as_ref().map(|encoding| encoding.encode(bytes)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_millis(1_700_000_000_000);

    #[test]
    fn a_key_reads_back() {
        let (instance, id) = (InstanceTag::of(InstanceId::new(NOW)), ApiKeyId::new(NOW));
        let (key, stored) = make(&instance, id);
        let presented = read(key.expose(), NOW);
        assert!(presented.well_formed);
        assert_eq!((presented.instance, presented.id), (instance, id));
        assert_eq!(presented.secret_hash, stored);
    }

    #[test]
    fn every_changed_or_missing_character_is_noticed() {
        let (key, _) = make(&InstanceTag::of(InstanceId::new(NOW)), ApiKeyId::new(NOW));
        for at in 0..key.expose().len() {
            let mut changed = key.expose().to_owned();
            let other = if &changed[at..=at] == "a" { "b" } else { "a" };
            changed.replace_range(at..=at, other);
            assert!(!read(&changed, NOW).well_formed, "{at}");
            assert!(!read(&key.expose()[..at], NOW).well_formed, "{at}");
        }
        for bad in ["", "twk", "twk____", "\u{fc}\u{fc}\u{fc}\u{fc}", &"x".repeat(10_000)] {
            assert!(!read(bad, NOW).well_formed);
        }
    }

    #[test]
    fn two_keys_have_nothing_secret_in_common() {
        let (instance, id) = (InstanceTag::of(InstanceId::new(NOW)), ApiKeyId::new(NOW));
        assert_ne!(make(&instance, id).1, make(&instance, id).1);
    }
}
