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
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::domain::secret::{AccessToken, ClientSecret, RefreshToken};
    use crate::vault::root_key::RootKeySource;

    const NOW: Timestamp = Timestamp::from_millis(1_700_000_000_000);
    const OWNER: Owner<'_> = Owner { row: "gra_1", account: "eac_1", user: "alice", provider: "prv_1", generation: 3 };

    fn new() -> (RootKey, InstanceId, Vault, KeyringRecord) {
        let (root, instance) = (RootKey::generate(), InstanceId::new(NOW));
        let (vault, record) = Vault::create(&root, instance, NOW).unwrap();
        (root, instance, vault, record)
    }

    /// The same keyring with one more data key, its MAC made anew.
    fn with_key(
        root: &RootKey,
        instance: InstanceId,
        record: &KeyringRecord,
        id: u32,
        state: KeyState,
    ) -> KeyringRecord {
        let wrapper = Wrapper::new(root, instance);
        let mut record = record.clone();
        let key = wrapper.wrap(Part::DataKey(id), &*random_key()).unwrap();
        record.keys.push(DataKeyRecord { id, state, wrapped: key, created_at: NOW });
        sign(&wrapper, &mut record);
        record
    }

    fn sign(wrapper: &Wrapper, record: &mut KeyringRecord) {
        let covered = record.covered(&wrapper.instance);
        let mac = wrapper.unwrap_key(Part::MacKey, &record.mac_key, |key| hmac(key, covered.as_bytes())).unwrap();
        record.mac = mac.finalize().into_bytes().to_vec();
    }

    fn damaged<T: Cell>(vault: &Vault, bytes: Vec<u8>, owner: &Owner<'_>) -> bool {
        Sealed::<T>::from_stored(bytes)
            .is_ok_and(|sealed| vault.open_cell(&sealed, owner).err() == Some(OpenError::Damaged))
    }

    #[test]
    fn a_value_opens_after_the_keyring_was_stored_and_read_again() {
        let (root, instance, vault, record) = new();
        for text in ["", "ya29.token", &"x".repeat(100_000)] {
            let sealed = vault.seal(&AccessToken::new(text), &OWNER).unwrap();
            assert_eq!(sealed.as_bytes().len(), 45 + text.len());
            assert_eq!(sealed.key_id(), 1);
            let stored = Sealed::<AccessToken>::from_stored(sealed.as_bytes().to_vec()).unwrap();
            assert!(stored == sealed);
            let again = Vault::open(&root, instance, &record).unwrap();
            assert!(again.open_cell(&stored, &OWNER) == Ok(AccessToken::new(text)));
        }
    }

    /// Made by another program (AES-GCM and HMAC put together in Python), with
    /// root key 00..1f, data key 20..3f and MAC key 40..5f: what release 0.1 stores must open for ever.
    #[test]
    fn a_keyring_and_a_value_of_format_1_made_elsewhere_open() {
        let unhex = |text: &str| data_encoding::HEXLOWER.decode(text.as_bytes()).unwrap();
        let record = KeyringRecord {
            root_key_fingerprint: "10ad17dbd8145936".to_owned(),
            canary: unhex(
                "01000000006363636363636363636363636363636363636363636363639d86f01d6793907b92129a\
                daa13833a9",
            ),
            mac_key: unhex(
                "01000000006d6d6d6d6d6d6d6d6d6d6d6d6d6d6d6d6d6d6d6d6d6d6d6d688b8bf7bbb9cfdd952d6b\
                88508bfcbedafddbf80ec2972134298ad23b77f35741e13e14055010edf33a34ccf4319767",
            ),
            mac: unhex("eaf7047c1008430ee5333a070295d4144fa34ca51a58b0c09dea548efaa5dbc3"),
            keys: vec![DataKeyRecord {
                id: 1,
                state: KeyState::Active,
                wrapped: unhex(
                    "010000000064646464646464646464646464646464646464646464646479f5a87789791a4e6220eb\
                d73efadbfc3067251d958b413aa51c98447af4b82313a6f0ff4f80ac57ee15c8c40c52f5a7",
                ),
                created_at: NOW,
            }],
        };
        let sealed = unhex(
            "0100000001767676767676767676767676767676767676767676767676ebe83dc3c0c38e6236cc15\
                3d9a9208ba0fcac431d75abc7b6f7c",
        );
        let env = RootKeySource::Env("ROOT".to_owned());
        let root = RootKey::parse("AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=", &env).unwrap();
        let instance = "ins_01h455vb4pex5vsknk084sn02q".parse().unwrap();
        let vault = Vault::open(&root, instance, &record).unwrap();
        let sealed = Sealed::from_stored(sealed).unwrap();
        assert!(vault.open_cell(&sealed, &OWNER) == Ok(AccessToken::new("ya29.token")));
    }

    #[test]
    fn a_value_with_any_bit_flipped_does_not_open() {
        let (_, _, vault, _) = new();
        let sealed = vault.seal(&AccessToken::new("ya29.some-access-token"), &OWNER).unwrap();
        for bit in 0..sealed.as_bytes().len() * 8 {
            let mut bytes = sealed.as_bytes().to_vec();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let opened = Sealed::<AccessToken>::from_stored(bytes).map(|sealed| vault.open_cell(&sealed, &OWNER));
            match bit / 8 {
                0 => assert!(opened.is_err(), "bit {bit}: another version"),
                1..5 => assert!(matches!(opened, Ok(Err(OpenError::UnknownKey(_)))), "bit {bit}: another key"),
                _ => assert!(matches!(opened, Ok(Err(OpenError::Damaged))), "bit {bit}: another value"),
            }
        }
    }

    #[test]
    fn a_truncated_or_lengthened_value_does_not_open() {
        let (_, _, vault, _) = new();
        let bytes = vault.seal(&AccessToken::new("token"), &OWNER).unwrap().as_bytes().to_vec();
        for length in 0..bytes.len() {
            let cut = bytes[..length].to_vec();
            assert_eq!(
                damaged::<AccessToken>(&vault, cut, &OWNER),
                length >= 45,
                "{length} bytes: refused at once or damaged"
            );
        }
        assert!(damaged::<AccessToken>(&vault, [&bytes[..], &[0]].concat(), &OWNER));
    }

    #[test]
    fn a_value_moved_to_another_owner_column_or_instance_does_not_open() {
        let (root, _, vault, _) = new();
        let bytes = vault.seal(&AccessToken::new("token"), &OWNER).unwrap().as_bytes().to_vec();
        let elsewhere = [
            Owner { row: "gra_2", ..OWNER },
            Owner { account: "eac_2", ..OWNER },
            Owner { user: "Alice", ..OWNER },
            Owner { provider: "prv_2", ..OWNER },
            Owner { generation: 4, ..OWNER },
            Owner { row: "gra_1e", account: "ac_1", ..OWNER },
            Owner { row: "", account: "gra_1eac_1", ..OWNER },
        ];
        for owner in elsewhere {
            assert!(damaged::<AccessToken>(&vault, bytes.clone(), &owner));
        }
        assert!(damaged::<RefreshToken>(&vault, bytes.clone(), &OWNER));
        assert!(damaged::<ClientSecret>(&vault, bytes.clone(), &OWNER));

        // The same key in another instance: what a copied row would meet there.
        let instance = InstanceId::new(NOW).to_string();
        let twin = Vault { instance, ..vault };
        assert!(damaged::<AccessToken>(&twin, bytes.clone(), &OWNER));
        let (other, _) = Vault::create(&root, InstanceId::new(NOW), NOW).unwrap();
        assert!(damaged::<AccessToken>(&other, bytes, &OWNER));
    }

    #[test]
    fn a_key_that_the_keyring_lacks_is_told_apart_from_damage() {
        let (root, instance, vault, mut record) = new();
        record.keys[0].state = KeyState::Retired;
        let newer = with_key(&root, instance, &record, 2, KeyState::Active);
        let ahead = Vault::open(&root, instance, &newer).unwrap();
        let sealed = ahead.seal(&AccessToken::new("token"), &OWNER).unwrap();
        assert_eq!(sealed.key_id(), 2);
        assert_eq!(vault.open_cell(&sealed, &OWNER).err(), Some(OpenError::UnknownKey(2)));
        let old = vault.seal(&AccessToken::new("old"), &OWNER).unwrap();
        assert!(ahead.open_cell(&old, &OWNER) == Ok(AccessToken::new("old")), "a retired key still opens");
    }

    #[test]
    fn a_wrong_root_key_names_both_fingerprints() {
        let (root, instance, _, record) = new();
        let other = RootKey::generate();
        let error = Vault::open(&other, instance, &record).err().unwrap();
        assert_eq!(error, VaultError::WrongRootKey { expected: root.fingerprint(), given: other.fingerprint() });
        let told = error.to_string();
        assert!(told.contains(&root.fingerprint()) && told.contains(&other.fingerprint()));
    }

    #[test]
    fn a_keyring_of_another_instance_does_not_open() {
        let (root, _, _, record) = new();
        let opened = Vault::open(&root, InstanceId::new(NOW), &record);
        assert_eq!(opened.err(), Some(VaultError::Damaged(Part::Canary)));
    }

    #[test]
    fn a_keyring_changed_in_any_field_is_refused() {
        type Change = fn(&mut KeyringRecord);
        let (root, instance, _, record) = new();
        let record = with_key(&root, instance, &record, 2, KeyState::Pending);
        let changes: [(Change, VaultError); 12] = [
            (|record| record.root_key_fingerprint = "0".repeat(16), VaultError::Tampered),
            (|record| record.canary.clear(), VaultError::Damaged(Part::Canary)),
            (|record| record.canary = record.mac_key.clone(), VaultError::Damaged(Part::Canary)),
            (|record| record.mac_key = record.keys[0].wrapped.clone(), VaultError::Damaged(Part::MacKey)),
            (|record| record.mac.clear(), VaultError::Tampered),
            (|record| record.mac[31] ^= 1, VaultError::Tampered),
            (|record| record.keys[0].id = 3, VaultError::Tampered),
            (|record| record.keys[1].state = KeyState::Retired, VaultError::Tampered),
            (|record| record.keys[0].wrapped = record.keys[1].wrapped.clone(), VaultError::Tampered),
            (|record| record.keys[0].created_at = Timestamp::from_millis(0), VaultError::Tampered),
            (|record| drop(record.keys.pop()), VaultError::Tampered),
            (|record| record.keys.push(record.keys[1].clone()), VaultError::Tampered),
        ];
        for (index, (change, expected)) in changes.into_iter().enumerate() {
            let mut tampered = record.clone();
            change(&mut tampered);
            assert_eq!(Vault::open(&root, instance, &tampered).err(), Some(expected), "change {index}");
        }
        for byte in 0..record.canary.len() {
            let mut tampered = record.clone();
            tampered.canary[byte] ^= 0x80;
            assert!(Vault::open(&root, instance, &tampered).is_err(), "canary byte {byte}");
        }
        let mut turned = record.clone();
        turned.keys.reverse();
        assert!(Vault::open(&root, instance, &turned).is_ok(), "the order of rows is the store's affair");
    }

    #[test]
    fn a_wrapped_key_opens_for_no_other_id_or_purpose_even_under_a_right_mac() {
        let (root, instance, _, record) = new();
        let wrapper = Wrapper::new(&root, instance);
        let mut moved = record.clone();
        moved.keys[0].id = 2;
        sign(&wrapper, &mut moved);
        assert_eq!(Vault::open(&root, instance, &moved).err(), Some(VaultError::Damaged(Part::DataKey(2))));
        let mut swapped = record.clone();
        swapped.keys[0].wrapped.clone_from(&record.mac_key);
        sign(&wrapper, &mut swapped);
        assert_eq!(Vault::open(&root, instance, &swapped).err(), Some(VaultError::Damaged(Part::DataKey(1))));
    }

    #[test]
    fn a_keyring_has_exactly_one_active_key() {
        let (root, instance, _, mut record) = new();
        let two = with_key(&root, instance, &record, 2, KeyState::Active);
        assert_eq!(Vault::open(&root, instance, &two).err(), Some(VaultError::ActiveKeys(2)));
        record.keys.clear();
        let none = with_key(&root, instance, &record, 2, KeyState::Pending);
        assert_eq!(Vault::open(&root, instance, &none).err(), Some(VaultError::ActiveKeys(0)));
    }

    #[test]
    fn nonces_do_not_repeat_in_ten_thousand_seals() {
        let (_, _, vault, _) = new();
        let token = AccessToken::new("token");
        let nonces: HashSet<Vec<u8>> =
            (0..10_000).map(|_| vault.seal(&token, &OWNER).unwrap().as_bytes()[5..29].to_vec()).collect();
        assert_eq!(nonces.len(), 10_000);
    }

    #[test]
    fn a_sealed_value_does_not_show_its_text() {
        let (_, _, vault, _) = new();
        let sealed = vault.seal(&AccessToken::new("planted-token"), &OWNER).unwrap();
        assert!(!sealed.as_bytes().windows(5).any(|part| b"planted-token".windows(5).any(|secret| secret == part)));
        assert_eq!(format!("{sealed:?}"), "Sealed(58 bytes)");
    }

    #[test]
    fn a_state_reads_back_from_its_word() {
        for state in [KeyState::Pending, KeyState::Active, KeyState::Retired] {
            assert_eq!(KeyState::parse(state.as_str()), Some(state));
        }
        assert_eq!(KeyState::parse("Active"), None);
    }

    #[test]
    fn a_vault_is_shared_between_threads() {
        fn shared<T: Send + Sync>() {}
        shared::<Vault>();
        shared::<Sealed<AccessToken>>();
    }
}
