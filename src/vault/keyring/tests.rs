//! What a keyring refuses.

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
fn with_key(root: &RootKey, instance: InstanceId, record: &KeyringRecord, id: u32, state: KeyState) -> KeyringRecord {
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
