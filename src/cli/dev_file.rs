//! `dev.json`: where a running `token-wallet dev` is reached, and its API key. Mode 0600.

use std::fs;
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use crate::domain::secret::ApiKey;

/// The folder that `dev` uses, and that other commands look into, unless told otherwise.
pub(super) const DEFAULT_FOLDER: &str = ".token-wallet";

/// What the file says.
pub(super) struct DevFile {
    pub(super) grpc: SocketAddr,
    pub(super) web: SocketAddr,
    pub(super) ops: SocketAddr,
    pub(super) api_key: ApiKey,
    pub(super) sandbox: String,
}

impl DevFile {
    /// Where the file is.
    pub(super) fn path(folder: &Path) -> PathBuf {
        folder.join("dev.json")
    }

    /// Reads the file; `None` if there is none.
    pub(super) fn read(folder: &Path) -> anyhow::Result<Option<Self>> {
        let path = Self::path(folder);
        let text = match fs::read_to_string(&path) {
            Ok(text) => Zeroizing::new(text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
        };
        match serde_json::from_str(&text).ok().and_then(|value| Self::parse(&value)) {
            Some(file) => Ok(Some(file)),
            None => bail!("{} is not what `token-wallet dev` wrote", path.display()),
        }
    }

    /// Replaces the file at once: a reader sees the old or the new one, never a part.
    pub(super) fn write(&self, folder: &Path) -> anyhow::Result<()> {
        let path = Self::path(folder);
        let fresh = path.with_extension("json.new");
        let write = || {
            let _ = fs::remove_file(&fresh);
            let mut options = fs::OpenOptions::new();
            options.write(true).create_new(true);
            #[cfg(unix)]
            std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
            let mut file = options.open(&fresh)?;
            writeln!(file, "{:#}", self.to_json())?;
            file.sync_all()?;
            fs::rename(&fresh, &path)
        };
        write().with_context(|| format!("cannot write {}", path.display()))
    }

    /// What the file and `dev --json` say. Holds the API key.
    pub(super) fn to_json(&self) -> Value {
        json!({
            "grpc": self.grpc,
            "web": self.web,
            "ops": self.ops,
            "api_key": self.api_key.expose(),
            "sandbox": self.sandbox,
        })
    }

    fn parse(value: &Value) -> Option<Self> {
        let text = |key: &str| value.get(key).and_then(Value::as_str);
        let address = |key: &str| text(key)?.parse().ok();
        Some(Self {
            grpc: address("grpc")?,
            web: address("web")?,
            ops: address("ops")?,
            api_key: ApiKey::new(text("api_key")?),
            sandbox: text("sandbox")?.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn the_file_reads_back_and_is_private() {
        let folder = tempfile::tempdir().unwrap();
        assert!(DevFile::read(folder.path()).unwrap().is_none());
        let addr = "127.0.0.1:1".parse().unwrap();
        let sandbox = "http://127.0.0.1:2".to_owned();
        let file = DevFile { grpc: addr, web: addr, ops: addr, api_key: ApiKey::new("twk_x"), sandbox };
        file.write(folder.path()).unwrap();
        file.write(folder.path()).unwrap();
        let again = DevFile::read(folder.path()).unwrap().unwrap();
        assert_eq!((again.to_json(), again.api_key.expose()), (file.to_json(), "twk_x"));
        assert_eq!(DevFile::path(folder.path()).metadata().unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_foreign_file_is_an_error_that_does_not_quote_it() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(DevFile::path(folder.path()), "{\"api_key\": \"twk_secret\"").unwrap();
        let error = DevFile::read(folder.path()).err().unwrap();
        assert!(!format!("{error:?}").contains("secret"), "{error:?}");
    }
}
