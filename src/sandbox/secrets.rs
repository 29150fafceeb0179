//! Codes and tokens: 256 random bits with a prefix that tells what they are. Only their hashes are kept.

use data_encoding::{BASE64URL_NOPAD, HEXLOWER};
use ring::rand::{SecureRandom as _, SystemRandom};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// A code or token on its way out. Nothing prints it.
pub(super) struct Secret(String);

/// SHA-256 of a code or token, the only form in which one is kept.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub(super) struct Digest([u8; 32]);

/// What a secret is for; its prefix says so.
#[derive(Clone, Copy)]
pub(super) enum Kind {
    Code,
    Access,
    Refresh,
}

/// The operating system gave no randomness.
#[derive(Debug, thiserror::Error)]
#[error("no randomness")]
pub(super) struct NoRandomness;

/// Makes secrets.
pub(super) struct Minter {
    random: SystemRandom,
    prefix: String,
}

impl Minter {
    pub(super) fn new(prefix: Option<String>) -> Self {
        Self { random: SystemRandom::new(), prefix: prefix.unwrap_or_default() }
    }

    pub(super) fn mint(&self, kind: Kind) -> Result<Secret, NoRandomness> {
        let mark = match kind {
            Kind::Code => "sbx_ac_",
            Kind::Access => "sbx_at_",
            Kind::Refresh => "sbx_rt_",
        };
        let bits: [u8; 32] = self.bits()?;
        Ok(Secret(format!("{}{mark}{}", self.prefix, BASE64URL_NOPAD.encode(&bits))))
    }

    /// A name for everything one consent gives: `fam_` and 96 random bits.
    pub(super) fn family(&self) -> Result<String, NoRandomness> {
        let bits: [u8; 12] = self.bits()?;
        Ok(format!("fam_{}", HEXLOWER.encode(&bits)))
    }

    fn bits<const N: usize>(&self) -> Result<[u8; N], NoRandomness> {
        let mut bits = [0; N];
        self.random.fill(&mut bits).map_err(|_| NoRandomness)?;
        Ok(bits)
    }
}

impl Secret {
    pub(super) fn expose(&self) -> &str {
        &self.0
    }

    pub(super) fn digest(&self) -> Digest {
        Digest::of(&self.0)
    }
}

impl Digest {
    pub(super) fn of(secret: &str) -> Self {
        Self(Sha256::digest(secret.as_bytes()).into())
    }

    /// The first 16 hex characters: enough to tell two secrets apart, useless for anything else.
    pub(super) fn fingerprint(&self) -> String {
        HEXLOWER.encode(&self.0[..8])
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        HEXLOWER.encode(&digest.0)
    }
}

impl TryFrom<String> for Digest {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let bytes = HEXLOWER.decode(text.as_bytes()).map_err(|_| "a digest is lower-case hex")?;
        bytes.try_into().map(Self).map_err(|_| "a digest has 32 bytes")
    }
}
