//! The spool: answers that the store has not taken yet, sealed, on disk. One thread writes; what comes together is made
//! lasting together.

mod folder;
mod journal;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;

use crate::clock::Timestamp;
use crate::domain::ids::{InstanceId, ReplicaId};
use crate::domain::spool::Entry;
use crate::telemetry::metrics;
use crate::vault::{Owner, Sealed, Vault};

pub use folder::Whose;

use folder::Folder;
use journal::{Found, Journal, Place};
use writer::{Order, Writer};

/// The file in a replica's folder.
const FILE: &str = "answers";

/// What the disk does not take is offered to it again after this.
const AGAIN_AFTER: Duration = Duration::from_secs(1);

/// The spool cannot be used.
#[derive(Clone, Debug, thiserror::Error)]
pub enum SpoolError {
    /// It cannot be read or written.
    #[error("the spool {0}: {1}")]
    Io(PathBuf, String),
    /// Its directory cannot be used.
    #[error("spool.dir {0} cannot be used: {1}")]
    Directory(PathBuf, String),
    /// A file that says whose spool it is says nothing.
    #[error("{0} does not say whose spool this is; if its folder holds no answers, remove the folder")]
    Nameless(PathBuf),
    /// Every folder is somebody else's.
    #[error("no folder of the spool {0} is free")]
    Crowded(PathBuf),
    /// An answer has no sealed form.
    #[error("an answer cannot be sealed")]
    Unsealable,
    /// It is closed, or its thread is gone.
    #[error("the spool is closed")]
    Closed,
}

/// A spool that this process has.
pub struct Spool {
    directory: PathBuf,
    instance: InstanceId,
    replica: ReplicaId,
    vault: Arc<Vault>,
    orders: UnboundedSender<Order>,
}

/// An answer that a former life left over.
pub struct SpoolRecord {
    /// Whose life.
    pub(super) replica: ReplicaId,
    pub(super) entry: Entry,
    pub(super) slip: Slip,
}

/// A spooled answer's place. Dropped without more ado, the answer stays for the next life.
pub(super) struct Slip {
    place: Place,
    orders: UnboundedSender<Order>,
}

impl SpoolError {
    fn io(path: &Path, error: &std::io::Error) -> Self {
        Self::Io(path.to_owned(), error.to_string())
    }

    /// Whether an operator must look at the folder first.
    pub const fn is_configuration(&self) -> bool {
        matches!(self, Self::Directory(..) | Self::Nameless(_) | Self::Crowded(_))
    }
}

impl Spool {
    /// Opens a spool below `directory` and gives what a former life of its replica left over, the oldest first. What
    /// does not read or open stays on disk; that is logged as an error and counted.
    pub fn open(
        directory: &Path,
        whose: Whose,
        vault: Arc<Vault>,
        now: Timestamp,
    ) -> Result<(Self, Vec<SpoolRecord>), SpoolError> {
        let folder = Folder::take(directory, whose, now)?;
        let (journal, found) = journal_of(&folder)?;
        Self::run(directory, whose.instance, vault, folder, journal, found)
    }

    /// Takes what others left in folders that nobody has any more: each is ours until its spool is closed. Those without
    /// an answer that can be read are let go. Blocks.
    pub(super) fn left_behind(&self) -> Vec<(Self, Vec<SpoolRecord>)> {
        let take = |folder: Folder| {
            let (journal, found) = journal_of(&folder)?;
            let opens = |(_, payload): &(Place, Vec<u8>)| unseal(&self.vault, folder.replica, payload).is_some();
            if !found.records.iter().any(opens) {
                return Ok(None);
            }
            Self::run(&self.directory, self.instance, Arc::clone(&self.vault), folder, journal, found).map(Some)
        };
        let left = Folder::left(&self.directory, self.instance);
        left.filter_map(|folder| {
            take(folder).unwrap_or_else(|error: SpoolError| {
                tracing::warn!(%error, "a folder of the spool that nobody has cannot be read");
                None
            })
        })
        .collect()
    }

    fn run(
        directory: &Path,
        instance: InstanceId,
        vault: Arc<Vault>,
        folder: Folder,
        journal: Journal,
        found: Found,
    ) -> Result<(Self, Vec<SpoolRecord>), SpoolError> {
        let (orders, queue) = unbounded_channel();
        let (path, replica) = (folder.path.join(FILE), folder.replica);
        let (depth, mut unreadable) = (found.records.len(), found.damaged);
        let mut leftovers = Vec::new();
        for (place, payload) in found.records {
            match unseal(&vault, replica, &payload) {
                Some(entry) => {
                    leftovers.push(SpoolRecord { replica, entry, slip: Slip { place, orders: orders.clone() } });
                }
                None => unreadable += 1,
            }
        }
        if unreadable + found.aside > 0 {
            tracing::error!(unreadable, set_aside = found.aside, path = %path.display(), "answers in the spool cannot be read or are nobody's; they stay there");
        }
        metrics::spool_unreadable(unreadable + found.aside);
        let writer = Writer { path, journal, depth, shown: 0, orders: orders.clone(), _folder: folder };
        let thread = std::thread::Builder::new().name("spool".to_owned());
        thread.spawn(move || writer.run(queue)).map_err(|error| SpoolError::io(directory, &error))?;
        Ok((Self { directory: directory.to_owned(), instance, replica, vault, orders }, leftovers))
    }

    /// Who this process is.
    pub const fn replica(&self) -> ReplicaId {
        self.replica
    }

    /// Seals an answer and hands it to the disk until that takes it; what comes back says that it is there.
    ///
    /// # Errors
    ///
    /// If it cannot be sealed, or the spool is closed.
    pub(super) fn append(&self, entry: &Entry) -> impl Future<Output = Result<Slip, SpoolError>> + use<> {
        let sealed = self.vault.seal(entry, &owner(&self.replica.to_string()));
        let orders = self.orders.clone();
        async move {
            let sealed = sealed.map_err(|_| SpoolError::Unsealable)?;
            loop {
                let (told, appended) = oneshot::channel();
                // If nobody takes it any more, the answer says so.
                let _ = orders.send(Order::Append { payload: sealed.as_bytes().to_vec(), told });
                match appended.await.unwrap_or(Err(SpoolError::Closed)) {
                    Err(SpoolError::Io(..)) => tokio::time::sleep(AGAIN_AFTER).await,
                    done => return done,
                }
            }
        }
    }

    /// Whether it can be written now.
    pub async fn check(&self) -> Result<(), SpoolError> {
        let (told, checked) = oneshot::channel();
        self.orders.send(Order::Check(told)).map_err(|_| SpoolError::Closed)?;
        checked.await.unwrap_or(Err(SpoolError::Closed))
    }

    /// Writes what it was given and lets its folder go. What is in it stays.
    pub(super) async fn close(&self) {
        let (told, closed) = oneshot::channel();
        if self.orders.send(Order::Close(told)).is_ok() {
            // An error means that it has been closed before.
            let _ = closed.await;
        }
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        // Slips may keep the channel open.
        let _ = self.orders.send(Order::Close(oneshot::channel().0));
    }
}

impl Slip {
    /// The store has the answer, or does not want it: its place is free.
    pub(super) fn done(self) {
        // A closed spool keeps it; the next life finds that it is stored.
        let _ = self.orders.send(Order::Free(self.place));
    }

    /// The answer is nobody's any more, and must not be lost either: it stays for somebody to look at.
    pub(super) fn set_aside(self) {
        // A closed spool keeps it for the next life to find the same.
        let _ = self.orders.send(Order::SetAside(self.place));
    }
}

fn journal_of(folder: &Folder) -> Result<(Journal, Found), SpoolError> {
    let path = folder.path.join(FILE);
    Journal::open(&path).map_err(|error| SpoolError::io(&path, &error))
}

fn unseal(vault: &Vault, replica: ReplicaId, payload: &[u8]) -> Option<Entry> {
    let sealed = Sealed::from_stored(payload.to_vec()).ok()?;
    vault.open_cell(&sealed, &owner(&replica.to_string())).ok()
}

/// What a record is bound to: the replica.
const fn owner(replica: &str) -> Owner<'_> {
    Owner { row: replica, account: "", user: "", provider: "", generation: 0 }
}

#[cfg(test)]
mod tests;
