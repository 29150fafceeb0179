//! The spool: answers that the store has not taken yet, sealed, on disk. One thread writes; what comes together is made
//! lasting together.

mod folder;
mod journal;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;

use crate::clock::Timestamp;
use crate::domain::ids::ReplicaId;
use crate::domain::spool::Entry;
use crate::telemetry::metrics;
use crate::vault::{Owner, Sealed, Vault};

pub use folder::Whose;

use folder::Folder;
use journal::{Journal, Place};

/// The file in a replica's folder.
const FILE: &str = "answers";

/// The spool cannot be used.
#[derive(Clone, Debug, thiserror::Error)]
pub enum SpoolError {
    /// It cannot be read or written.
    #[error("the spool {0}: {1}")]
    Io(PathBuf, String),
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

/// The spool of this process.
pub struct Spool {
    replica: ReplicaId,
    vault: Arc<Vault>,
    orders: UnboundedSender<Order>,
}

/// An answer that a former life left over.
pub struct SpoolRecord {
    pub(super) entry: Entry,
    pub(super) slip: Slip,
}

/// A spooled answer's place. Dropped without more ado, the answer stays for the next life.
pub(super) struct Slip {
    place: Place,
    orders: UnboundedSender<Order>,
}

enum Order {
    Append { payload: Vec<u8>, told: oneshot::Sender<Result<Slip, SpoolError>> },
    Free(Place),
    Check(oneshot::Sender<Result<(), SpoolError>>),
    Close(oneshot::Sender<()>),
}

impl SpoolError {
    fn io(path: &Path, error: &std::io::Error) -> Self {
        Self::Io(path.to_owned(), error.to_string())
    }

    /// Whether an operator must look at the folder first.
    pub const fn is_configuration(&self) -> bool {
        matches!(self, Self::Nameless(_) | Self::Crowded(_))
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
        let path = folder.path.join(FILE);
        let (journal, found) = Journal::open(&path).map_err(|error| SpoolError::io(&path, &error))?;
        let (orders, queue) = unbounded_channel();
        let spool = Self { replica: folder.replica, vault, orders };
        let mut unreadable = found.damaged;
        let depth = found.records.len();
        let mut leftovers = Vec::new();
        for (place, payload) in found.records {
            match spool.unseal(payload) {
                Some(entry) => leftovers.push(SpoolRecord { entry, slip: spool.slip(place) }),
                None => unreadable += 1,
            }
        }
        if unreadable > 0 {
            tracing::error!(unreadable, path = %path.display(), "answers in the spool cannot be read; they stay there");
        }
        metrics::spool_unreadable(unreadable);
        let writer = Writer { path, journal, depth, orders: spool.orders.clone(), _folder: folder };
        metrics::spool_records(depth);
        let thread = std::thread::Builder::new().name("spool".to_owned());
        thread.spawn(move || writer.run(queue)).map_err(|error| SpoolError::io(directory, &error))?;
        Ok((spool, leftovers))
    }

    /// Who this process is.
    pub const fn replica(&self) -> ReplicaId {
        self.replica
    }

    /// Seals an answer and hands it to the disk; what comes back says that it is there.
    pub(super) fn append(&self, entry: &Entry) -> impl Future<Output = Result<Slip, SpoolError>> + use<> {
        let replica = self.replica.to_string();
        let ordered = self.vault.seal(entry, &owner(&replica)).map(|sealed| {
            let (told, appended) = oneshot::channel();
            // If nobody takes it any more, the answer says so.
            let _ = self.orders.send(Order::Append { payload: sealed.as_bytes().to_vec(), told });
            appended
        });
        async { ordered.map_err(|_| SpoolError::Unsealable)?.await.unwrap_or(Err(SpoolError::Closed)) }
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

    fn slip(&self, place: Place) -> Slip {
        Slip { place, orders: self.orders.clone() }
    }

    fn unseal(&self, payload: Vec<u8>) -> Option<Entry> {
        let sealed = Sealed::from_stored(payload).ok()?;
        self.vault.open_cell(&sealed, &owner(&self.replica.to_string())).ok()
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
}

/// What a record is bound to: the replica.
const fn owner(replica: &str) -> Owner<'_> {
    Owner { row: replica, account: "", user: "", provider: "", generation: 0 }
}

/// The thread that writes.
struct Writer {
    path: PathBuf,
    journal: Journal,
    depth: usize,
    /// For the slips.
    orders: UnboundedSender<Order>,
    /// Ends with this, whatever else still holds on to the spool.
    _folder: Folder,
}

impl Writer {
    fn run(mut self, mut queue: UnboundedReceiver<Order>) {
        let mut batch = Vec::new();
        while queue.blocking_recv_many(&mut batch, usize::MAX) > 0 {
            let closed = self.carry_out(batch.drain(..));
            metrics::spool_records(self.depth);
            if let Some(closed) = closed {
                drop(self);
                // Nobody may be waiting for it.
                let _ = closed.send(());
                return;
            }
        }
    }

    /// Writes what has come together, makes it lasting at once, and tells everybody. Something comes back if this was
    /// the end.
    fn carry_out(&mut self, batch: impl Iterator<Item = Order>) -> Option<oneshot::Sender<()>> {
        let (mut appended, mut checked, mut closed) = (Vec::new(), Vec::new(), None);
        for order in batch {
            match order {
                Order::Append { payload, told } => appended.push((self.journal.write(&payload), told)),
                Order::Free(place) => self.free(place),
                Order::Check(told) => checked.push((self.journal.probe(), told)),
                Order::Close(told) => closed = Some(told),
            }
        }
        let written =
            appended.iter().any(|(written, _)| written.is_ok()) || checked.iter().any(|(probed, _)| probed.is_ok());
        let synced = if written { self.journal.sync() } else { Ok(()) };
        let lasting = |error: &std::io::Error| SpoolError::io(&self.path, error);
        let synced = synced.map_err(|error| lasting(&error));
        for (probed, told) in checked {
            let _ = told.send(probed.map_err(|error| lasting(&error)).and_then(|()| synced.clone()));
        }
        for (written, told) in appended {
            self.acknowledge(written.map_err(|error| SpoolError::io(&self.path, &error)), synced.clone(), told);
        }
        closed
    }

    fn acknowledge(
        &mut self,
        written: Result<Place, SpoolError>,
        synced: Result<(), SpoolError>,
        told: oneshot::Sender<Result<Slip, SpoolError>>,
    ) {
        let result = match (written, synced) {
            (Ok(place), Ok(())) => {
                metrics::spool_appended();
                self.depth += 1;
                Ok(Slip { place, orders: self.orders.clone() })
            }
            (Ok(place), Err(error)) => {
                self.journal.free(place);
                Err(error)
            }
            (Err(error), _) => Err(error),
        };
        if let Err(error) = &result {
            tracing::error!(%error, "an answer cannot be spooled; it is in memory only until the store takes it");
            metrics::spool_failed();
        }
        // The store was faster, and nobody waits any more.
        if let Err(Ok(slip)) = told.send(result) {
            self.free(slip.place);
        }
    }

    fn free(&mut self, place: Place) {
        self.journal.free(place);
        self.depth -= 1;
    }
}

#[cfg(test)]
mod tests;
