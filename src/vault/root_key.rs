//! Root keys: 256 bits that wrap the data keys. Given from outside (a variable or a file), never stored by the wallet.

use std::ffi::OsString;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use data_encoding::{BASE64, HEXLOWER};
use hmac::Mac as _;
use zeroize::{Zeroize as _, Zeroizing};

use super::envelope::SealingKey;
use super::hmac::hmac;
use super::random;

/// No root key takes more room than this, and no more of a file is read.
const MOST_TEXT: usize = 1024;

/// The id that envelopes made by a root key carry; data keys count from 1.
const ROOT_KEY_ID: u32 = 0;

/// A root key. Wiped when dropped; nothing prints it.
pub struct RootKey(Zeroizing<[u8; 32]>);

/// Where the root key is: 32 bytes in standard base64 (44 characters), a line break at the end allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RootKeySource {
    /// An environment variable, by its name.
    Env(String),
    /// A file that nobody but its owner can read.
    File(PathBuf),
}

/// Why there is no root key. Names the fault and the source, never the key.
#[derive(Debug, thiserror::Error)]
pub enum RootKeyError {
    /// There is no such variable or file.
    #[error("no root key: {0} does not exist")]
    Missing(RootKeySource),
    /// The file cannot be read.
    #[error("no root key: {0} cannot be read: {1}")]
    Unreadable(RootKeySource, io::Error),
    /// Others than the file's owner have rights to it.
    #[error("no root key: {origin} has mode {mode:04o}, it must be 0600 or narrower")]
    TooOpen {
        /// The file.
        origin: RootKeySource,
        /// Its permission bits.
        mode: u32,
    },
    /// The text is not base64.
    #[error("no root key: {0} does not hold standard base64 with padding")]
    WrongEncoding(RootKeySource),
    /// The decoded key is not 32 bytes long.
    #[error("no root key: {origin} holds {bytes} bytes, a root key has 32")]
    WrongLength {
        /// The source.
        origin: RootKeySource,
        /// How many bytes it holds.
        bytes: usize,
    },
    /// The key is nothing but zero bytes.
    #[error("no root key: {0} holds only zeros")]
    AllZero(RootKeySource),
    /// The file for a new root key is there already; it is left as it is.
    #[error("{0} exists already and is not overwritten")]
    Exists(RootKeySource),
    /// The file for a new root key cannot be written.
    #[error("{0} cannot be written: {1}")]
    Unwritable(RootKeySource, io::Error),
}

impl RootKey {
    /// Reads the key from its source. `variable` looks an environment variable up: only the configuration may touch
    /// the environment, so it hands `std::env::var_os` in.
    pub fn load(source: &RootKeySource, variable: impl FnOnce(&str) -> Option<OsString>) -> Result<Self, RootKeyError> {
        match source {
            RootKeySource::Env(name) => {
                let value = variable(name).ok_or_else(|| RootKeyError::Missing(source.clone()))?;
                let text = Zeroizing::new(value.into_encoded_bytes());
                Self::parse(&text, source)
            }
            RootKeySource::File(path) => Self::parse(&read(path, source)?, source),
        }
    }

    /// Reads the key from what its source held; `source` is only named in errors.
    pub fn parse(text: impl AsRef<[u8]>, source: &RootKeySource) -> Result<Self, RootKeyError> {
        let text = text.as_ref();
        let text = text.strip_suffix(b"\n").unwrap_or(text);
        let text = text.strip_suffix(b"\r").unwrap_or(text);
        let bytes = BASE64.decode(text).map(Zeroizing::new).map_err(|_| RootKeyError::WrongEncoding(source.clone()))?;
        let mut key = Self(Zeroizing::new([0; 32]));
        if bytes.len() != key.0.len() {
            return Err(RootKeyError::WrongLength { origin: source.clone(), bytes: bytes.len() });
        }
        key.0.copy_from_slice(&bytes);
        if key.0.iter().all(|byte| *byte == 0) {
            return Err(RootKeyError::AllZero(source.clone()));
        }
        Ok(key)
    }

    /// A new random key.
    ///
    /// # Panics
    /// If the operating system has no randomness to give.
    pub fn generate() -> Self {
        let mut key = Self(Zeroizing::new([0; 32]));
        random::fill(&mut *key.0);
        key
    }

    /// The key as a source holds it, without a line break.
    pub fn to_base64(&self) -> Zeroizing<String> {
        Zeroizing::new(BASE64.encode(&*self.0))
    }

    /// Writes the key to a new file of mode 0600 and waits until disk has it. What exists is never overwritten; after
    /// a failed write no file is left.
    pub fn write_new(&self, path: &Path) -> Result<(), RootKeyError> {
        let source = || RootKeySource::File(path.to_owned());
        let mut options = OpenOptions::new();
        options.write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut file = options.open(path).map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => RootKeyError::Exists(source()),
            _ => RootKeyError::Unwritable(source(), error),
        })?;
        let mut text = self.to_base64();
        // Room first: a growing string would leave a copy of the key behind.
        let mut line = Zeroizing::new(String::with_capacity(text.len() + 1));
        line.push_str(&text);
        line.push('\n');
        text.zeroize();
        file.write_all(line.as_bytes()).and_then(|()| file.sync_all()).and_then(|()| sync_folder(path)).map_err(
            |error| {
                // Ours alone, just made: a half-written key would only mislead. The first error is the one to tell.
                let _ = std::fs::remove_file(path);
                RootKeyError::Unwritable(source(), error)
            },
        )
    }

    /// Names the key without giving it away: 16 hex digits of an HMAC of a fixed label.
    pub fn fingerprint(&self) -> String {
        HEXLOWER.encode(&self.derive("token-wallet root key fingerprint v1")[..8])
    }

    /// What wraps data keys. Derived, so that no root key serves two purposes.
    pub(super) fn wrapping_key(&self) -> SealingKey {
        SealingKey::new(ROOT_KEY_ID, &self.derive("token-wallet root key wrapping v1"))
    }

    /// One block of HKDF-Expand (RFC 5869 section 2.3) over a key that is uniformly random already.
    fn derive(&self, label: &str) -> Zeroizing<[u8; 32]> {
        let mut mac = hmac(&self.0, label.as_bytes());
        mac.update(&[1]);
        Zeroizing::new(mac.finalize().into_bytes().into())
    }
}

impl fmt::Display for RootKeySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Env(name) => write!(f, "environment variable {name}"),
            Self::File(path) => write!(f, "file {}", path.display()),
        }
    }
}

fn read(path: &Path, source: &RootKeySource) -> Result<Zeroizing<Vec<u8>>, RootKeyError> {
    let file = File::open(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => RootKeyError::Missing(source.clone()),
        _ => RootKeyError::Unreadable(source.clone(), error),
    })?;
    let unreadable = |error| RootKeyError::Unreadable(source.clone(), error);
    // Of the open file, so that nobody swaps the path between look and read.
    let found = file.metadata().map_err(unreadable)?;
    if found.is_dir() {
        return Err(unreadable(io::ErrorKind::IsADirectory.into()));
    }
    #[cfg(unix)]
    {
        let mode = std::os::unix::fs::MetadataExt::mode(&found) & 0o7777;
        if mode & !0o600 != 0 {
            return Err(RootKeyError::TooOpen { origin: source.clone(), mode });
        }
    }
    let mut text = Zeroizing::new(Vec::with_capacity(MOST_TEXT));
    file.take(MOST_TEXT as u64).read_to_end(&mut text).map_err(unreadable)?;
    Ok(text)
}

/// Makes the file's name as durable as its content.
fn sync_folder(path: &Path) -> io::Result<()> {
    #[cfg(unix)]
    {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(folder)?.sync_all()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn env() -> RootKeySource {
        RootKeySource::Env("WALLET_KEY".to_owned())
    }

    /// The error's text, or the word "loaded".
    fn told(loaded: Result<RootKey, RootKeyError>) -> String {
        loaded.map_or_else(|error| error.to_string(), |_| "loaded".to_owned())
    }

    fn from_env(value: &str) -> String {
        told(RootKey::load(&env(), |name| (name == "WALLET_KEY").then(|| value.into())))
    }

    #[test]
    fn a_key_reads_back_from_its_text_with_and_without_a_line_break() {
        let key = RootKey::generate();
        for end in ["", "\n", "\r\n"] {
            let again = RootKey::parse(key.to_base64().to_string() + end, &env()).unwrap();
            assert!(again.0 == key.0);
        }
    }

    #[test]
    fn each_fault_of_a_variable_is_named_with_its_source() {
        let of = |bytes: &[u8]| from_env(&BASE64.encode(bytes));
        let zeros = "no root key: environment variable WALLET_KEY holds only zeros";
        let encoding = "no root key: environment variable WALLET_KEY does not hold standard base64 with padding";
        let length =
            |bytes| format!("no root key: environment variable WALLET_KEY holds {bytes} bytes, a root key has 32");
        assert_eq!(of(&[7; 32]), "loaded");
        assert_eq!(of(&[0; 32]), zeros);
        assert_eq!(of(&[7; 31]), length(31));
        assert_eq!(of(&[7; 33]), length(33));
        assert_eq!(from_env(""), length(0));
        assert_eq!(from_env(&"5e".repeat(32)), length(48), "hex digits are base64 too, but of another length");
        for text in [
            "x",
            "a secret!",
            " BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=",
            "__",
            "BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc",
        ] {
            assert_eq!(from_env(text), encoding);
        }
        assert_eq!(
            told(RootKey::load(&env(), |_| None)),
            "no root key: environment variable WALLET_KEY does not exist"
        );
    }

    #[test]
    fn a_new_file_is_private_and_is_never_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("root.key");
        let (first, second) = (RootKey::generate(), RootKey::generate());
        first.write_new(&path).unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o7777, 0o600);
        assert!(matches!(second.write_new(&path), Err(RootKeyError::Exists(_))));
        let loaded = RootKey::load(&RootKeySource::File(path.clone()), |_| None).unwrap();
        assert!(loaded.0 == first.0);
        let nowhere = second.write_new(&folder.path().join("missing/root.key"));
        assert!(matches!(nowhere, Err(RootKeyError::Unwritable(..))));
    }

    #[test]
    fn each_fault_of_a_file_is_named_with_its_path() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("root.key");
        let load = |path: &Path| told(RootKey::load(&RootKeySource::File(path.to_owned()), |_| None));
        let named = |fault: &str| format!("no root key: file {} {fault}", path.display());
        assert_eq!(load(&path), named("does not exist"));
        RootKey::generate().write_new(&path).unwrap();
        for mode in [0o640, 0o604, 0o644, 0o700, 0o4600] {
            std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
            assert_eq!(load(&path), named(&format!("has mode {mode:04o}, it must be 0600 or narrower")));
        }
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o400)).unwrap();
        assert_eq!(load(&path), "loaded");
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
        std::fs::write(&path, vec![b'A'; 1 << 20]).unwrap();
        assert_eq!(load(&path), named("holds 768 bytes, a root key has 32"));
        let directory = load(folder.path());
        assert!(directory.contains("cannot be read: is a directory"), "{directory}");
    }

    #[test]
    fn a_fingerprint_is_fixed_by_the_key_and_is_no_part_of_it() {
        let key = |byte| RootKey(Zeroizing::new([byte; 32]));
        assert_eq!(key(1).fingerprint(), key(1).fingerprint());
        assert_ne!(key(1).fingerprint(), key(2).fingerprint());
        assert_eq!(key(1).fingerprint().len(), 16);
    }
}
