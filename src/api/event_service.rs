//! `EventService`.

use std::pin::Pin;
use std::task::{Poll, ready};

use futures_util::{Stream, stream};
use tokio::sync::mpsc;
use tonic::{Request, Response, Status};
use tracing::{Instrument as _, Span};

use super::convert::{event, fields};
use super::door::REQUEST_ID;
use super::page::Page;
use super::{Rooms, door, status};
use crate::access::Caller;
use crate::access::permit::ReadEvents;
use crate::domain::error::Failure;
use crate::events::{Message, Watch};
use crate::proto::v1;
use crate::proto::v1::event_service_server::EventService;

type Messages = Pin<Box<dyn Stream<Item = Result<v1::WatchEventsResponse, Status>> + Send>>;

#[tonic::async_trait]
impl EventService for Rooms {
    type WatchEventsStream = Messages;

    async fn list_events(
        &self,
        request: Request<v1::ListEventsRequest>,
    ) -> Result<Response<v1::ListEventsResponse>, Status> {
        let caller = door::caller(&request)?;
        self.events(caller, request.into_inner()).await.map(Response::new).map_err(status::of)
    }

    async fn watch_events(&self, request: Request<v1::WatchEventsRequest>) -> Result<Response<Messages>, Status> {
        let caller = door::caller(&request)?;
        let watch = self.watch(caller, request.into_inner()).await.map_err(status::of)?;
        Ok(Response::new(messages(watch)))
    }
}

impl Rooms {
    async fn events(&self, caller: Caller, request: v1::ListEventsRequest) -> Result<v1::ListEventsResponse, Failure> {
        let permit = caller.may(ReadEvents)?;
        let v1::ListEventsRequest { filter, cursor, page_size, page_token } = request;
        let bound_to = ["events", &format!("{filter:?}"), &cursor];
        let page = Page::read(permit.client(), &bound_to, page_size, &page_token)?;
        let begin = page.after()?.or_else(|| fields::optional(cursor));
        let begin = begin.map(|cursor| self.events.place(&cursor)).transpose()?;
        let found = self.events.list(&permit, begin, &event::filter(filter)?, page.size()).await?;
        let cursor = self.events.cursor(found.upto);
        Ok(v1::ListEventsResponse {
            next_page_token: if found.is_last() { String::new() } else { page.token(&cursor) },
            events: found.events.into_iter().map(event::event).collect(),
            cursor,
        })
    }

    async fn watch(&self, caller: Caller, request: v1::WatchEventsRequest) -> Result<Watch, Failure> {
        let permit = caller.may(ReadEvents)?;
        let begin = fields::optional(request.cursor).map(|cursor| self.events.place(&cursor)).transpose()?;
        self.events.watch(permit, begin, event::filter(request.filter)?).await
    }
}

/// The stream goes on after its call was answered: what it logs and answers names the call all the same.
fn messages(watch: Watch) -> Messages {
    let (id, span) = (REQUEST_ID.try_with(Clone::clone).unwrap_or_default(), Span::current());
    let (reader, mut messages) = mpsc::channel(1);
    // Whether anybody reads or not.
    tokio::spawn(watch.tell(reader).instrument(span.clone()));
    Box::pin(stream::poll_fn(move |context| {
        let next = ready!(messages.poll_recv(context));
        Poll::Ready(next.map(|message| message.map(answer).map_err(|failure| ended(failure, &id, &span))))
    }))
}

fn ended(failure: Failure, id: &str, span: &Span) -> Status {
    span.in_scope(|| tracing::info!(%failure, "a watcher's stream ended"));
    REQUEST_ID.sync_scope(id.to_owned(), || status::of(failure))
}

fn answer(Message { event, cursor }: Message) -> v1::WatchEventsResponse {
    v1::WatchEventsResponse { event: event.map(event::event), cursor }
}
