//! Where spools are: numbered folders below one directory, each of one process at a time. A replica is its folder: who
//! starts on it again is the same replica, and finds what the last life left over.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::SpoolError;
use crate::clock::Timestamp;
use crate::domain::ids::{InstanceId, ReplicaId};

/// More processes do not share one directory.
const MOST: usize = 1024;

/// So often a folder of theirs that is held is looked at again before another one is begun: whoever looks through what
/// was left behind holds it for a moment.
const LOOKS: u32 = 20;
/// And so far apart.
const LOOK: Duration = Duration::from_millis(50);

/// Whose spool is wanted.
#[derive(Clone, Copy, Debug)]
pub struct Whose {
    /// The instance.
    pub instance: InstanceId,
    /// The replica, where the store knows it (`SQLite`); else that of the first free folder.
    pub replica: Option<ReplicaId>,
}

impl Whose {
    fn is(self, (instance, replica): (InstanceId, ReplicaId)) -> bool {
        instance == self.instance && self.replica.is_none_or(|known| known == replica)
    }
}

/// A folder, locked.
pub(super) struct Folder {
    pub(super) path: PathBuf,
    pub(super) replica: ReplicaId,
    /// Held until this is dropped.
    _lock: File,
}

impl Folder {
    /// Takes the first folder below `directory` that nobody holds and that is theirs, or nobody's: then it becomes
    /// theirs. Blocks for up to a second where all of theirs are held.
    #[expect(clippy::disallowed_methods, reason = "at the start, before anybody waits for anything")]
    pub(super) fn take(directory: &Path, whose: Whose, now: Timestamp) -> Result<Self, SpoolError> {
        for _ in 0..LOOKS {
            if let Some(folder) = Self::first(directory, whose, now, true)? {
                return Ok(folder);
            }
            std::thread::sleep(LOOK);
        }
        Self::first(directory, whose, now, false)?.ok_or_else(|| SpoolError::Crowded(directory.to_owned()))
    }

    /// `None` where there is none; and for whoever is `patient`, instead of one that is nobody's behind one of theirs
    /// that is held.
    fn first(directory: &Path, whose: Whose, now: Timestamp, patient: bool) -> Result<Option<Self>, SpoolError> {
        let mut held = false;
        for number in 0..MOST {
            let path = directory.join(number.to_string());
            let unusable = |error: io::Error| SpoolError::Directory(directory.to_owned(), error.to_string());
            let Some(lock) = lock(&path).map_err(unusable)? else {
                held |= owner(&path).is_ok_and(|owner| owner.is_some_and(|owner| whose.is(owner)));
                continue;
            };
            let replica = match owner(&path)? {
                Some(owner) if whose.is(owner) => owner.1,
                Some(_) => continue,
                None if held && patient => return Ok(None),
                None => {
                    let replica = whose.replica.unwrap_or_else(|| ReplicaId::new(now));
                    own(&path, whose.instance, replica).map_err(|error| SpoolError::io(&path, &error))?;
                    replica
                }
            };
            return Ok(Some(Self { path, replica, _lock: lock }));
        }
        Ok(None)
    }

    /// The folders of the instance below `directory` that nobody holds.
    pub(super) fn left(directory: &Path, instance: InstanceId) -> impl Iterator<Item = Self> {
        let folders = std::fs::read_dir(directory).into_iter().flatten().filter_map(Result::ok);
        folders.map(|folder| folder.path()).filter_map(move |path| {
            // Whoever starts on what cannot be read says so.
            let (_, replica) = owner(&path).ok()?.filter(|(of, _)| *of == instance)?;
            let lock = lock(&path).ok()??;
            Some(Self { path, replica, _lock: lock })
        })
    }
}

/// Locks a folder, making it if it is not there, for its owner only. `None` if another process has it.
fn lock(path: &Path) -> io::Result<Option<File>> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path.join("lock"))?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// Whose folder it is.
fn owner(path: &Path) -> Result<Option<(InstanceId, ReplicaId)>, SpoolError> {
    let path = path.join("replica");
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(SpoolError::io(&path, &error)),
    };
    let ids = text.split_whitespace().collect::<Vec<_>>();
    let [instance, replica] = ids[..] else { return Err(SpoolError::Nameless(path)) };
    match (instance.parse(), replica.parse()) {
        (Ok(instance), Ok(replica)) => Ok(Some((instance, replica))),
        _ => Err(SpoolError::Nameless(path)),
    }
}

/// Writes down whose folder it is; whole or not at all.
fn own(path: &Path, instance: InstanceId, replica: ReplicaId) -> io::Result<()> {
    let draft = path.join("replica.new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
    writeln!(file, "{instance} {replica}")?;
    file.sync_all()?;
    std::fs::rename(&draft, path.join("replica"))?;
    File::open(path)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_millis(1_800_000_000_000);

    #[test]
    fn each_process_has_a_folder_of_its_own_and_comes_back_to_it() {
        let directory = tempfile::tempdir().unwrap();
        let take = |whose| Folder::take(directory.path(), whose, NOW).unwrap();
        let (one, other) = (InstanceId::new(NOW), InstanceId::new(NOW));
        let any = Whose { instance: one, replica: None };
        let (first, second) = (take(any), take(any));
        assert!(first.replica != second.replica && first.path != second.path);
        let (path, replica) = (first.path.clone(), first.replica);
        assert_eq!(Folder::left(directory.path(), one).count(), 0, "both are held");
        drop(first);
        assert_eq!(Folder::left(directory.path(), other).count(), 0, "not theirs");
        assert!(Folder::left(directory.path(), one).map(|left| left.replica).eq([replica]));
        // Not another instance's, and not another replica's where the store knows which.
        assert!(take(Whose { instance: other, ..any }).path != path);
        let known = Whose { instance: one, replica: Some(ReplicaId::new(NOW)) };
        assert_eq!(take(known).replica, known.replica.unwrap());
        let again = take(any);
        assert_eq!((again.path, again.replica), (path.clone(), replica));
        let mode =
            |path: &Path| std::os::unix::fs::PermissionsExt::mode(&path.metadata().unwrap().permissions()) & 0o777;
        assert_eq!((mode(&path), mode(&path.join("replica")), mode(&path.join("lock"))), (0o700, 0o600, 0o600));
    }

    #[test]
    fn who_starts_while_its_folder_is_looked_through_waits_and_is_the_same_replica() {
        let directory = tempfile::tempdir().unwrap();
        let whose = Whose { instance: InstanceId::new(NOW), replica: None };
        let replica = Folder::take(directory.path(), whose, NOW).unwrap().replica;
        let looking = Folder::left(directory.path(), whose.instance).next().unwrap();
        assert!(Folder::first(directory.path(), whose, NOW, true).unwrap().is_none());
        let again = std::thread::scope(|scope| {
            let starting = scope.spawn(|| Folder::take(directory.path(), whose, NOW).unwrap().replica);
            drop(looking);
            starting.join().unwrap()
        });
        assert_eq!(again, replica);
    }

    #[test]
    fn a_folder_that_does_not_say_whose_it_is_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let whose = Whose { instance: InstanceId::new(NOW), replica: None };
        drop(Folder::take(directory.path(), whose, NOW).unwrap());
        std::fs::write(directory.path().join("0/replica"), "").unwrap();
        assert!(matches!(Folder::take(directory.path(), whose, NOW), Err(SpoolError::Nameless(_))));
    }
}
