//! The keyring: the data keys of one instance, wrapped in its record, ready to use in a [`Vault`].

use std::fmt;

use hmac::Mac as _;
use zeroize::Zeroizing;

use super::cell::{Cell, Owner};
use super::envelope::{Envelope, Fields, SealingKey};
use super::hmac::hmac;
use super::random;
use super::root_key::RootKey;
use super::sealed::Sealed;
use crate::clock::Timestamp;
use crate::domain::ids::InstanceId;

/// The keyring of one instance in memory: what seals values and opens them again. Share it in an `Arc`.
pub struct Vault {
    instance: String,
    active: SealingKey,
    others: Vec<SealingKey>,
}

/// The keyring as a store holds it. Nothing in it opens without the root key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyringRecord {
    /// Which root key wraps it; see [`RootKey::fingerprint`].
    pub root_key_fingerprint: String,
    /// A known value under the root key: tells a wrong root key from a changed record.
    pub canary: Vec<u8>,
    /// The key of `mac`, wrapped.
    pub mac_key: Vec<u8>,
    /// HMAC-SHA256 over instance, fingerprint and every key row.
    pub mac: Vec<u8>,
    /// The data keys, in any order.
    pub keys: Vec<DataKeyRecord>,
}

/// A data key as a store holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataKeyRecord {
    /// Counts from 1; sealed values name their key by it.
    pub id: u32,
    /// What the key is used for now.
    pub state: KeyState,
    /// The key, wrapped by the root key for this instance and id.
    pub wrapped: Vec<u8>,
    /// When the key was made.
    pub created_at: Timestamp,
}

/// The life of a data key. Keys in all states open values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyState {
    /// Known, not used for sealing before every replica has it.
    Pending,
    /// Seals new values; exactly one key is active.
    Active,
    /// Only opens what it once sealed.
    Retired,
}

/// Why there is no vault, or no sealed value. Names ids and fingerprints, never key bytes.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum VaultError {
    /// The record is wrapped by another root key.
    #[error("this is not the store's root key: expected fingerprint {expected}, given {given}")]
    WrongRootKey {
        /// The fingerprint that the store names.
        expected: String,
        /// The fingerprint of the key that was given.
        given: String,
    },
    /// A part of the keyring does not open under the right root key: it is damaged, or another instance's.
    #[error("the keyring's {0} does not open under this root key and instance")]
    Damaged(Part),
    /// Every part opens, but together they are not what this wallet wrote.
    #[error("the keyring was changed by something else than the wallet: its MAC or fingerprint does not match")]
    Tampered,
    /// There must be exactly one active key.
    #[error("the keyring has {0} active data keys instead of one")]
    ActiveKeys(usize),
    /// The value cannot be sealed: it has no plain form, or is longer than 64 GiB.
    #[error("a value for {0} cannot be sealed")]
    Unsealable(&'static str),
}

/// A part of a keyring, each wrapped for its own purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The known value.
    Canary,
    /// The key of the MAC.
    MacKey,
    /// A data key, by its id.
    DataKey(u32),
}

/// Why a sealed value stays shut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// This keyring has no such key: another replica may have made it since the keyring was read.
    #[error("data key {0} is not in the keyring")]
    UnknownKey(u32),
    /// Damaged, moved here from another place or owner, or not what the column holds. Which one, nobody can tell.
    #[error("the sealed value does not open here")]
    Damaged,
}

impl Vault {
    /// Makes a new keyring with one active data key, made at `now`.
    ///
    /// # Panics
    /// If the operating system has no randomness to give.
    pub fn create(root: &RootKey, instance: InstanceId, now: Timestamp) -> Result<(Self, KeyringRecord), VaultError> {
        let wrapper = Wrapper::new(root, instance);
        let first = DataKeyRecord {
            id: 1,
            state: KeyState::Active,
            wrapped: wrapper.wrap(Part::DataKey(1), &*random_key())?,
            created_at: now,
        };
        let mac_key = random_key();
        let mut record = KeyringRecord {
            root_key_fingerprint: root.fingerprint(),
            canary: wrapper.wrap(Part::Canary, b"")?,
            mac_key: wrapper.wrap(Part::MacKey, &*mac_key)?,
            mac: Vec::new(),
            keys: vec![first],
        };
        record.mac = hmac(&mac_key, record.covered(&wrapper.instance).as_bytes()).finalize().into_bytes().to_vec();
        // Through the front door, so that what does not open is never stored.
        Ok((Self::open(root, instance, &record)?, record))
    }

    /// Opens a stored keyring: checks the root key, then the MAC over all of it, then unwraps the keys.
    pub fn open(root: &RootKey, instance: InstanceId, record: &KeyringRecord) -> Result<Self, VaultError> {
        let wrapper = Wrapper::new(root, instance);
        record.check_root_key(root, &wrapper)?;
        record.check_mac(&wrapper)?;
        let (mut active, mut others) = (Vec::new(), Vec::new());
        for row in &record.keys {
            let key = wrapper.unwrap_key(Part::DataKey(row.id), &row.wrapped, |key| SealingKey::new(row.id, key))?;
            match row.state {
                KeyState::Active => active.push(key),
                KeyState::Pending | KeyState::Retired => others.push(key),
            }
        }
        let [active] = <[SealingKey; 1]>::try_from(active).map_err(|keys| VaultError::ActiveKeys(keys.len()))?;
        Ok(Self { instance: wrapper.instance, active, others })
    }

    /// Seals a value for its column and this owner, under the active key.
    ///
    /// # Panics
    /// If the operating system has no randomness to give.
    pub fn seal<T: Cell>(&self, value: &T, owner: &Owner<'_>) -> Result<Sealed<T>, VaultError> {
        let unsealable = || VaultError::Unsealable(T::PLACE.as_str());
        let plain = value.to_plain().ok_or_else(unsealable)?;
        let bound_to = owner.binding(&self.instance, T::PLACE);
        let bytes = self.active.seal(&plain, &bound_to).map_err(|_| unsealable())?;
        Ok(Sealed::new(bytes, self.active.id()))
    }

    /// Opens a value of this owner. It opens only with the owner, column and instance that it was sealed for.
    pub fn open_cell<T: Cell>(&self, sealed: &Sealed<T>, owner: &Owner<'_>) -> Result<T, OpenError> {
        let envelope = Envelope::parse(sealed.as_bytes()).map_err(|_| OpenError::Damaged)?;
        let key = std::iter::once(&self.active)
            .chain(&self.others)
            .find(|key| key.id() == envelope.key_id)
            .ok_or(OpenError::UnknownKey(envelope.key_id))?;
        let plain = key.open(&envelope, &owner.binding(&self.instance, T::PLACE)).ok_or(OpenError::Damaged)?;
        T::from_plain(plain).ok_or(OpenError::Damaged)
    }
}

impl KeyringRecord {
    /// The fingerprint tells which key was given, the canary whether the fingerprint can be believed.
    fn check_root_key(&self, root: &RootKey, wrapper: &Wrapper) -> Result<(), VaultError> {
        let given = root.fingerprint();
        match (given == self.root_key_fingerprint, wrapper.unwrap(Part::Canary, &self.canary)) {
            (true, opened) => opened.map(drop),
            (false, Ok(_)) => Err(VaultError::Tampered),
            (false, Err(_)) => Err(VaultError::WrongRootKey { expected: self.root_key_fingerprint.clone(), given }),
        }
    }

    fn check_mac(&self, wrapper: &Wrapper) -> Result<(), VaultError> {
        let covered = self.covered(&wrapper.instance);
        let mac = wrapper.unwrap_key(Part::MacKey, &self.mac_key, |key| hmac(key, covered.as_bytes()))?;
        mac.verify_slice(&self.mac).map_err(|_| VaultError::Tampered)
    }

    /// What the MAC covers. The keys' order in the record does not count: a store may give rows in any.
    fn covered(&self, instance: &str) -> Fields {
        let mut keys: Vec<&DataKeyRecord> = self.keys.iter().collect();
        keys.sort_by_key(|key| key.id);
        let head = Fields::versioned().text("keyring").text(instance).text(&self.root_key_fingerprint);
        keys.into_iter().fold(head, |fields, key| {
            fields.number(key.id.into()).text(key.state.as_str()).bytes(&key.wrapped).number(key.created_at.millis())
        })
    }
}

impl KeyState {
    /// The word that a store keeps.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Active => "active",
            Self::Retired => "retired",
        }
    }

    /// The state of a stored word; nothing if it is none.
    pub fn parse(word: &str) -> Option<Self> {
        [Self::Pending, Self::Active, Self::Retired].into_iter().find(|state| state.as_str() == word)
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Canary => f.write_str("canary"),
            Self::MacKey => f.write_str("MAC key"),
            Self::DataKey(id) => write!(f, "data key {id}"),
        }
    }
}

/// The root key at work for one instance.
struct Wrapper {
    key: SealingKey,
    instance: String,
}

impl Wrapper {
    fn new(root: &RootKey, instance: InstanceId) -> Self {
        Self { key: root.wrapping_key(), instance: instance.to_string() }
    }

    fn wrap(&self, part: Part, plain: &[u8]) -> Result<Vec<u8>, VaultError> {
        self.key.seal(plain, &self.binding(part)).map_err(|_| VaultError::Unsealable("keyring"))
    }

    fn unwrap(&self, part: Part, bytes: &[u8]) -> Result<Zeroizing<Vec<u8>>, VaultError> {
        Envelope::parse(bytes)
            .ok()
            .and_then(|envelope| self.key.open(&envelope, &self.binding(part)))
            .ok_or(VaultError::Damaged(part))
    }

    /// Lends an unwrapped key out without a copy of its bytes.
    fn unwrap_key<K>(&self, part: Part, bytes: &[u8], make: impl FnOnce(&[u8; 32]) -> K) -> Result<K, VaultError> {
        let plain = self.unwrap(part, bytes)?;
        plain.as_slice().try_into().map(make).map_err(|_| VaultError::Damaged(part))
    }

    /// A wrapped part opens for its own purpose, id and instance only.
    fn binding(&self, part: Part) -> Fields {
        let (purpose, id) = match part {
            Part::Canary => ("canary", 0),
            Part::MacKey => ("mac key", 0),
            Part::DataKey(id) => ("data key", id),
        };
        Fields::versioned().text(purpose).text(&self.instance).number(id.into())
    }
}

fn random_key() -> Zeroizing<[u8; 32]> {
    let mut key = Zeroizing::new([0; 32]);
    random::fill(&mut *key);
    key
}

#[cfg(test)]
mod tests;
