//! One watcher's stream: read from the log page by page, as fast as the watcher takes it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use super::{Events, Inner, Parts, Place};
use crate::access::permit::{Permit, ReadEvents};
use crate::clock::Timestamp;
use crate::domain::error::Failure;
use crate::domain::ids::ApiClientId;
use crate::store::{EventFilter, EventRow};
use crate::telemetry::metrics;

/// How long a watcher hears nothing at most: then it is told where the log is, if its key still lives.
const HEARTBEAT: Duration = Duration::from_secs(30);

/// How long a stream lasts at most, so that watchers spread over replicas that come and go.
const LONGEST: Duration = Duration::from_mins(30);

/// How many events are read at once; no more wait for a slow watcher.
const PAGE: u32 = 100;

/// How long a message waits for a watcher that reads nothing; then its stream ends.
const PATIENCE: Duration = Duration::from_mins(1);

/// How long the last message waits when the process closes, in real time.
const LAST_WORD: Duration = Duration::from_millis(500);

/// How many watchers a process has at most: each of them reads for itself.
const MOST: usize = 256;

/// How many of them one API client may have.
const MOST_OF_CLIENT: usize = 64;

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
    told: Place,
    /// Everything up to here was read.
    read: Place,
    /// When it next hears of the log if nothing happens.
    beat_at: Timestamp,
    ends_at: Timestamp,
    ended: bool,
    _seat: Seat,
}

/// A watcher's place among those of the process.
struct Seat {
    inner: Arc<Inner>,
    client: ApiClientId,
}

impl Events {
    /// Watches from a cursor's place, or from now on: what is committed before is not told.
    pub async fn watch(
        &self,
        permit: Permit<ReadEvents>,
        after: Option<Place>,
        filter: EventFilter,
    ) -> Result<Watch, Failure> {
        let seat = self.seat(permit.client())?;
        let place = if let Some(place) = after {
            // What follows must be there; nothing is told before the stream has begun.
            self.read(after, &EventFilter::default(), 1).await?;
            place
        } else {
            let newest = Place::of(self.try_to_number().await?, None);
            self.read(Some(newest), &EventFilter::default(), 1).await?.upto
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

    fn seat(&self, client: ApiClientId) -> Result<Seat, Failure> {
        let mut watchers = self.0.watchers();
        let taken = watchers.values().sum::<usize>();
        let of_client = watchers.get(&client).copied().unwrap_or_default();
        if taken >= MOST || of_client >= MOST_OF_CLIENT {
            return Err(Failure::TooManyWatchers);
        }
        watchers.insert(client, of_client + 1);
        metrics::event_watchers(taken + 1);
        Ok(Seat { inner: Arc::clone(&self.0), client })
    }
}

impl Watch {
    /// Hands message after message to `reader`, until the stream has ended or nobody reads it: whoever takes nothing
    /// keeps its seat no longer than others do.
    pub async fn tell(mut self, reader: mpsc::Sender<Result<Message, Failure>>) {
        loop {
            let next = tokio::select! {
                () = reader.closed() => return,
                next = self.next() => next.transpose(),
            };
            let Some(next) = next else { return };
            let goes_on = next.is_ok();
            let Some(room) = self.room(&reader).await else {
                tracing::info!("a watcher reads nothing; its stream ended");
                return;
            };
            room.send(next);
            if !goes_on {
                return;
            }
        }
    }

    /// Waits until the reader takes a message; `None`: it does not.
    async fn room<'a, T>(&self, reader: &'a mpsc::Sender<T>) -> Option<mpsc::Permit<'a, T>> {
        let Parts { clock, closing, .. } = &self.events.0.parts;
        let closes = async {
            closing.cancelled().await;
            tokio::time::sleep(LAST_WORD).await;
        };
        tokio::select! {
            biased;
            room = reader.reserve() => room.ok(),
            () = clock.until(clock.now().plus(PATIENCE)) => None,
            () = closes => None,
        }
    }

    /// The next message; `None` once the stream has ended, of age or because the process closes. The first message and
    /// the last one tell a cursor and no event.
    ///
    /// # Errors
    ///
    /// [`Failure::ApiKeyInvalid`] once the caller's key is gone, [`Failure::StoreUnavailable`], [`Failure::EventsGone`].
    async fn next(&mut self) -> Result<Option<Message>, Failure> {
        while !self.ended {
            let now = self.events.0.parts.clock.now();
            if now >= self.ends_at || self.events.0.parts.closing.is_cancelled() {
                self.ended = true;
                return Ok(Some(self.message(None)));
            }
            if let Some(event) = self.queue.pop_front() {
                self.told = Place::of(event.sequence, Some(&event.id.to_string()));
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
        let last = page.is_last();
        if !page.events.is_empty() {
            // No key that is gone is told of what happens afterwards.
            self.events.0.parts.access.renew(&self.permit).await?;
            self.queue = page.events.into();
        } else if last {
            self.wait().await;
        }
        Ok(())
    }

    async fn wait(&self) {
        let inner = &self.events.0;
        let mut newest = inner.newest.subscribe();
        let more = async { newest.wait_for(|newest| *newest > self.read.sequence).await.map(drop) };
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
        let mut watchers = self.inner.watchers();
        if let Some(of_client) = watchers.get_mut(&self.client) {
            *of_client -= 1;
        }
        watchers.retain(|_, of_client| *of_client > 0);
        metrics::event_watchers(watchers.values().sum());
    }
}
