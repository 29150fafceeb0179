//! The thread that writes to a spool's file: what comes together is made lasting together.

use std::path::PathBuf;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};
use tokio::sync::oneshot;

use super::folder::Folder;
use super::journal::{Journal, Place};
use super::{Slip, SpoolError};
use crate::telemetry::metrics;

/// What it is told to do.
pub(super) enum Order {
    Append { payload: Vec<u8>, told: oneshot::Sender<Result<Slip, SpoolError>> },
    Free(Place),
    SetAside(Place),
    Check(oneshot::Sender<Result<(), SpoolError>>),
    Close(oneshot::Sender<()>),
}

/// What it has.
pub(super) struct Writer {
    pub(super) path: PathBuf,
    pub(super) journal: Journal,
    /// How many answers wait in the file, and how many of them the metrics know of.
    pub(super) depth: usize,
    pub(super) shown: usize,
    /// For the slips.
    pub(super) orders: UnboundedSender<Order>,
    /// Ends with this, whatever else still holds on to the spool.
    pub(super) _folder: Folder,
}

impl Writer {
    pub(super) fn run(mut self, mut queue: UnboundedReceiver<Order>) {
        self.show();
        let mut batch = Vec::new();
        while queue.blocking_recv_many(&mut batch, usize::MAX) > 0 {
            let closed = self.carry_out(batch.drain(..));
            self.show();
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
    pub(super) fn carry_out(&mut self, batch: impl Iterator<Item = Order>) -> Option<oneshot::Sender<()>> {
        let (mut appended, mut checked, mut closed) = (Vec::new(), Vec::new(), None);
        for order in batch {
            match order {
                Order::Append { payload, told } => appended.push((self.journal.write(&payload), told)),
                Order::Free(place) => {
                    self.journal.free(place);
                    self.depth -= 1;
                }
                Order::SetAside(place) => {
                    self.journal.set_aside(&place);
                    self.depth -= 1;
                    metrics::spool_unreadable(1);
                }
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
        let mut failed = Vec::new();
        for (written, told) in appended {
            let written = written.map_err(|error| SpoolError::io(&self.path, &error));
            let result = self.acknowledge(written, synced.clone());
            failed.extend(result.as_ref().err().cloned());
            // If nobody waits any more the answer stays, for whether the store has it is not known here.
            let _ = told.send(result);
        }
        if let Some(error) = failed.first() {
            tracing::error!(answers = failed.len(), %error, "answers cannot be spooled: they are in memory only until that, or the store, works again");
            metrics::spool_failed(failed.len());
        }
        closed
    }

    fn acknowledge(
        &mut self,
        written: Result<Place, SpoolError>,
        synced: Result<(), SpoolError>,
    ) -> Result<Slip, SpoolError> {
        let place = written?;
        if let Err(error) = synced {
            self.journal.free(place);
            return Err(error);
        }
        metrics::spool_appended();
        self.depth += 1;
        Ok(Slip { place, orders: self.orders.clone() })
    }

    fn show(&mut self) {
        metrics::spool_records(self.shown, self.depth);
        self.shown = self.depth;
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        metrics::spool_records(self.shown, 0);
    }
}
