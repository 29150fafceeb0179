//! One watcher's stream: read from the log page by page, as fast as the watcher takes it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::{Events, Inner};
use crate::access::permit::{Permit, ReadEvents};
use crate::clock::Timestamp;
use crate::domain::error::Failure;
use crate::store::{EventFilter, EventRow};
use crate::telemetry::metrics;

/// How long a watcher hears nothing at most: then it is told where the log is, if its key still lives.
const HEARTBEAT: Duration = Duration::from_secs(30);

/// How long a stream lasts at most, so that watchers spread over replicas that come and go.
const LONGEST: Duration = Duration::from_mins(30);

/// How many events are read at once; no more wait for a slow watcher.
const PAGE: u32 = 100;

/// How many watchers a process has at most: each of them reads for itself.
const MOST: usize = 256;

/// What a watcher is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// What happened; `None`: only how far the log is.
    pub event: Option<EventRow>,
    /// Behind everything that was told so far.
    pub cursor: String,
}

/// A watcher's stream.
pub struct Watch {
    events: Events,
    permit: Permit<ReadEvents>,
    filter: EventFilter,
    /// Read and not told yet.
    queue: VecDeque<EventRow>,
    /// Everything up to here was told, or did not match.
    told: i64,
    /// Everything up to here was read.
    read: i64,
    /// When it next hears of the log if nothing happens.
    beat_at: Timestamp,
    ends_at: Timestamp,
    ended: bool,
    _seat: Seat,
}

/// A watcher's place among those of the process.
struct Seat(Arc<Inner>);

impl Events {
    /// Watches from a cursor's place, or from now on.
    pub async fn watch(
        &self,
        permit: Permit<ReadEvents>,
        after: Option<i64>,
        filter: EventFilter,
    ) -> Result<Watch, Failure> {
        let seat = self.seat()?;
        let place = match after {
            // What it asks for must be there; nothing is told before the stream has begun.
            Some(place) => {
                self.read(Some(place), &EventFilter::default(), 1).await?;
                place
            }
            None => self.0.parts.store.event_log().await?.newest,
        };
        let now = self.0.parts.clock.now();
        Ok(Watch {
            events: self.clone(),
            permit,
            filter,
            queue: VecDeque::new(),
            told: place,
            read: place,
            beat_at: now,
            ends_at: now.plus(LONGEST),
            ended: false,
            _seat: seat,
        })
    }

    fn seat(&self) -> Result<Seat, Failure> {
        let taken = self.0.watchers.fetch_add(1, Ordering::Relaxed);
        metrics::event_watchers(taken + 1);
        // Given back at once if there is none.
        let seat = Seat(Arc::clone(&self.0));
        if taken < MOST { Ok(seat) } else { Err(Failure::TooManyWatchers) }
    }
}

impl Watch {
    /// The next message; `None` once the stream has ended, of age or because the process closes. The first message and
    /// the last one tell a cursor and no event.
    ///
    /// # Errors
    ///
    /// [`Failure::ApiKeyInvalid`] once the caller's key is gone, [`Failure::StoreUnavailable`], [`Failure::EventsGone`].
    pub async fn next(&mut self) -> Result<Option<Message>, Failure> {
        while !self.ended {
            let now = self.events.0.parts.clock.now();
            if now >= self.ends_at || self.events.0.parts.closing.is_cancelled() {
                self.ended = true;
                return Ok(Some(self.message(None)));
            }
            if let Some(event) = self.queue.pop_front() {
                self.told = event.sequence;
                return Ok(Some(self.message(Some(event))));
            }
            self.told = self.read;
            if now >= self.beat_at {
                self.events.0.parts.access.renew(&self.permit).await?;
                self.beat_at = now.plus(HEARTBEAT);
                return Ok(Some(self.message(None)));
            }
            self.read_on().await?;
        }
        Ok(None)
    }

    /// Reads a page, or waits until there may be one, or something else to tell.
    async fn read_on(&mut self) -> Result<(), Failure> {
        let page = self.events.read(Some(self.read), &self.filter, PAGE).await?;
        self.read = page.upto;
        if !page.events.is_empty() {
            // No key that is gone is told of what happens afterwards.
            self.events.0.parts.access.renew(&self.permit).await?;
            self.queue = page.events.into();
        } else if page.upto >= page.newest {
            self.wait().await;
        }
        Ok(())
    }

    async fn wait(&self) {
        let inner = &self.events.0;
        let mut newest = inner.newest.subscribe();
        let more = async { newest.wait_for(|newest| *newest > self.read).await.map(drop) };
        tokio::select! {
            () = inner.parts.closing.cancelled() => {}
            () = inner.parts.clock.until(self.beat_at.min(self.ends_at)) => {}
            // The sender lives as long as this does.
            _ = more => {}
        }
    }

    fn message(&self, event: Option<EventRow>) -> Message {
        Message { event, cursor: self.events.cursor(self.told) }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        metrics::event_watchers(self.0.watchers.fetch_sub(1, Ordering::Relaxed) - 1);
    }
}
