//! A caller that watches.

use std::time::Duration;

use token_wallet::proto::v1;
use token_wallet::proto::v1::event_service_client::EventServiceClient;
use tonic::{Status, Streaming};

use crate::support::clients::Keyed;
use crate::support::harness::Harness;

/// How long a message may take to come, in real time.
const PATIENCE: Duration = Duration::from_secs(10);

pub struct Watcher {
    messages: Streaming<v1::WatchEventsResponse>,
    /// Of the last message.
    pub cursor: String,
}

impl Watcher {
    /// Everything from now on.
    pub async fn from_now(harness: &Harness) -> Self {
        Self::open(harness.event_log(), v1::WatchEventsRequest::default()).await.unwrap()
    }

    /// Everything behind a cursor.
    pub async fn from(harness: &Harness, cursor: &str) -> Self {
        let request = v1::WatchEventsRequest { cursor: cursor.to_owned(), ..Default::default() };
        Self::open(harness.event_log(), request).await.unwrap()
    }

    /// What `filter` lets through, from now on.
    pub async fn of(harness: &Harness, filter: v1::EventFilter) -> Self {
        let request = v1::WatchEventsRequest { filter: Some(filter), ..Default::default() };
        Self::open(harness.event_log(), request).await.unwrap()
    }

    /// Opens a stream and reads its first message, which tells where it begins.
    pub async fn open(mut events: EventServiceClient<Keyed>, request: v1::WatchEventsRequest) -> Result<Self, Status> {
        let messages = events.watch_events(request).await?.into_inner();
        let mut watcher = Self { messages, cursor: String::new() };
        assert_eq!(watcher.next().await?.unwrap().event, None);
        assert_ne!(watcher.cursor, "");
        Ok(watcher)
    }

    /// The next message; `None` at the stream's end. What became of old grants is told when their provider has answered,
    /// whenever that is, and left out.
    pub async fn next(&mut self) -> Result<Option<v1::WatchEventsResponse>, Status> {
        loop {
            let Some(message) = self.message().await? else { return Ok(None) };
            if !message.event.as_ref().is_some_and(of_an_old_grant) {
                return Ok(Some(message));
            }
        }
    }

    /// The next message, whatever it tells.
    pub async fn message(&mut self) -> Result<Option<v1::WatchEventsResponse>, Status> {
        let message = tokio::time::timeout(PATIENCE, self.messages.message()).await.expect("a message in time")?;
        if let Some(message) = &message {
            self.cursor.clone_from(&message.cursor);
        }
        Ok(message)
    }

    /// The next event.
    pub async fn event(&mut self) -> v1::Event {
        loop {
            if let Some(event) = self.next().await.unwrap().expect("the stream goes on").event {
                return event;
            }
        }
    }
}

/// Whether it tells of a revocation.
pub fn of_an_old_grant(event: &v1::Event) -> bool {
    event.r#type().as_str_name().starts_with("EVENT_TYPE_GRANT_")
}
