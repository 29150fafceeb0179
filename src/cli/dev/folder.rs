//! The data folder of `dev`: one process at a time, a root key, a keyring.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

use crate::clock::Clock;
use crate::config::Config;
use crate::keys::{self, KeysError};
use crate::vault::RootKey;

/// The folder, locked until this is dropped.
pub(super) struct Folder {
    path: PathBuf,
    _lock: File,
}

impl Folder {
    /// Makes the folder if need be, for its owner only, and locks it.
    pub(super) fn open(path: &Path) -> anyhow::Result<Self> {
        let lock = Self::lock(path).with_context(|| format!("cannot use the folder {}", path.display()))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path: path.to_owned(), _lock: lock }),
            Err(TryLockError::WouldBlock) => bail!("another `token-wallet dev` runs on {}", path.display()),
            Err(TryLockError::Error(error)) => {
                Err(error).with_context(|| format!("cannot lock the folder {}", path.display()))
            }
        }
    }

    fn lock(path: &Path) -> std::io::Result<File> {
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true);
        #[cfg(unix)]
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        builder.create(path)?;
        OpenOptions::new().write(true).create(true).truncate(false).open(path.join("dev.lock"))
    }

    /// Makes root key and keyring at the first start. Says whether the store is new.
    pub(super) async fn ensure_keyring(&self, config: &Config, clock: &Clock) -> anyhow::Result<bool> {
        let root_key = self.path.join("root.key");
        if !root_key.exists() {
            if self.path.join("wallet.db").exists() {
                bail!(
                    "{} is gone, and nothing else opens wallet.db beside it: put it back, or delete the folder",
                    root_key.display()
                );
            }
            RootKey::generate().write_new(&root_key)?;
        }
        match keys::status(config).await {
            Ok(_) => Ok(false),
            Err(KeysError::NoStore(_) | KeysError::NoKeyring(_)) => {
                keys::init(config, clock).await?;
                Ok(true)
            }
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_serves_one_process_at_a_time() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("a/b");
        let first = Folder::open(&path).unwrap();
        assert!(Folder::open(&path).is_err());
        drop(first);
        assert!(Folder::open(&path).is_ok());
    }
}
