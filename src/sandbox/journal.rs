//! The state file: JSON lines, one line a set of changes that stand or fall together, written before the answer that
//! tells of them. It survives the end of the process at any moment; it is not synced for each line, so a machine that
//! loses power may lose the newest.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use super::book::Change;

/// Where changes are written.
pub(super) enum Journal {
    /// Nowhere: a sandbox without a state file.
    Memory,
    /// To a file that ends after `len` good bytes.
    File { file: File, len: u64 },
    /// Nowhere any more: the sandbox was shut down, and what cannot be written must not be answered.
    Closed,
}

/// An existing state file, locked against a second sandbox, with what it says.
pub(super) struct Past {
    /// Held until the compacted file has taken its place.
    _lock: Option<File>,
    pub(super) changes: Vec<Change>,
}

impl Journal {
    /// Reads a state file; a missing one is an empty one. A last line without its end was never answered and is
    /// dropped.
    pub(super) fn read(path: &Path) -> io::Result<Past> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Past { _lock: None, changes: vec![] }),
            Err(error) => return Err(error),
        };
        lock(&file)?;
        let bytes = fs::read(path)?;
        let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        let mut changes = Vec::new();
        for (index, line) in bytes[..whole].split(|byte| *byte == b'\n').enumerate() {
            if !line.is_empty() {
                changes.append(&mut serde_json::from_slice(line).map_err(|_| damaged(index + 1))?);
            }
        }
        Ok(Past { _lock: Some(file), changes })
    }

    /// Starts the file anew with these changes, in one step: either the old file stands or the new one.
    pub(super) fn compact(path: &Path, changes: Vec<Change>) -> io::Result<Self> {
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(".new");
        let fresh = path.with_file_name(name);
        match fs::remove_file(&fresh) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let file = OpenOptions::new().append(true).create_new(true).mode(0o600).open(&fresh)?;
        lock(&file)?;
        let mut journal = Self::File { file, len: 0 };
        for change in changes {
            journal.append(&[change])?;
        }
        if let Self::File { file, .. } = &journal {
            file.sync_all()?;
        }
        fs::rename(&fresh, path)?;
        Ok(journal)
    }

    /// Writes one line. After an error nothing of it is left.
    pub(super) fn append(&mut self, changes: &[Change]) -> io::Result<()> {
        match self {
            Self::Memory => Ok(()),
            Self::Closed => Err(io::Error::other("the sandbox is shut down")),
            Self::File { file, len } => {
                let mut line = serde_json::to_vec(changes)?;
                line.push(b'\n');
                if let Err(error) = file.write_all(&line) {
                    if file.set_len(*len).is_err() {
                        *self = Self::Closed;
                    }
                    return Err(error);
                }
                *len += line.len() as u64;
                Ok(())
            }
        }
    }
}

fn lock(file: &File) -> io::Result<()> {
    file.try_lock().map_err(|error| match error {
        fs::TryLockError::WouldBlock => {
            io::Error::new(io::ErrorKind::ResourceBusy, "another sandbox uses this state file")
        }
        fs::TryLockError::Error(error) => error,
    })
}

fn damaged(line: usize) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("line {line} of the state file cannot be read"))
}
