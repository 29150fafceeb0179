//! Sealing: typed cells, the envelope, the keyring in memory, root keys, randomness. Knows no SQL.
//!
//! A root key, which is never stored, wraps data keys; data keys seal values; [`Sealed`] is what a store may hold.

pub mod cell;
mod envelope;
mod hmac;
pub mod keyring;
pub mod random;
pub mod root_key;
pub mod sealed;

pub use cell::{Cell, JsonCell, Owner, Place};
pub use keyring::{DataKeyRecord, KeyState, KeyringRecord, OpenError, Part, Vault, VaultError};
pub use root_key::{RootKey, RootKeyError, RootKeySource};
pub use sealed::{HeaderError, Sealed};
