//! What every call passes, in this order: request id and span, deadline, catching of panics, authentication. What a
//! caller may do is asked in the services, with the request at hand.

use std::convert::Infallible;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::FutureExt as _;
use http::{Request, Response};
use tokio_util::task::TaskTracker;
use tonic::body::Body;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;
use tower::{Layer, Service};
use tracing::Instrument as _;

use super::{deadline, methods, status};
use crate::access::{Access, Caller};
use crate::domain::error::Failure;
use crate::domain::instance::InstanceKind;
use crate::domain::reason::{Level, Meaning};
use crate::hurry::Guest;
use crate::telemetry;

tokio::task_local! {
    /// The call's id, for the answers that name it.
    pub(super) static REQUEST_ID: String;
}

/// Stands in front of every service.
#[derive(Clone)]
pub(super) struct Door {
    access: Access,
    open_reflection: bool,
    /// Those under way: not the streams that they open.
    calls: TaskTracker,
}

/// A service behind the door.
#[derive(Clone)]
pub(super) struct Behind<S> {
    door: Door,
    service: S,
}

impl Door {
    pub(super) fn new(access: Access, kind: InstanceKind, calls: TaskTracker) -> Self {
        Self { access, open_reflection: kind == InstanceKind::Development, calls }
    }

    /// Whether this method may be called without a key.
    fn is_open(&self, path: &str) -> bool {
        path.starts_with("/grpc.health.v1.Health/") || (self.open_reflection && path.starts_with("/grpc.reflection."))
    }

    /// Who calls, where that must be known.
    async fn admit(&self, request: &mut Request<Body>) -> Result<Option<Caller>, Failure> {
        if self.is_open(request.uri().path()) {
            return Ok(None);
        }
        let header = request.headers().get(http::header::AUTHORIZATION);
        let header = header.map(|value| value.to_str().unwrap_or_default());
        let caller = self.access.authenticate(header).await?;
        if let Some(guest) = request.extensions().get::<Arc<Guest>>() {
            guest.is_known();
        }
        // What follows has no use for the key.
        request.headers_mut().remove(http::header::AUTHORIZATION);
        request.extensions_mut().insert(caller);
        Ok(Some(caller))
    }
}

impl<S> Layer<S> for Door {
    type Service = Behind<S>;

    fn layer(&self, service: S) -> Behind<S> {
        Behind { door: self.clone(), service }
    }
}

impl<S> Service<Request<Body>> for Behind<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.service.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        // The clone has not been polled ready; the one that has takes this call.
        let clone = self.service.clone();
        let service = std::mem::replace(&mut self.service, clone);
        let (door, method) = (self.door.clone(), methods::label(request.uri().path()));
        let id = data_encoding::HEXLOWER.encode(&crate::vault::random::random_bytes::<8>());
        let span = tracing::info_span!("call", method, request_id = %id);
        let under_way = door.calls.token();
        let call = async move {
            let _under_way = under_way;
            #[expect(clippy::disallowed_methods, reason = "how long a call really took")]
            let began = tokio::time::Instant::now();
            let (response, caller) = pass(door, service, request).await;
            log(method, &response, caller, began.elapsed());
            Ok(response)
        };
        Box::pin(REQUEST_ID.scope(id, call).instrument(span))
    }
}

/// The caller of an admitted request.
pub(super) fn caller<T>(request: &tonic::Request<T>) -> Result<Caller, Status> {
    request.extensions().get::<Caller>().copied().ok_or_else(|| status::of(Failure::CredentialsMissing))
}

async fn pass<S>(door: Door, mut service: S, mut request: Request<Body>) -> (Response<Body>, Option<Caller>)
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
{
    let limit = deadline::of(request.headers());
    let mut caller = None;
    let work = async {
        match door.admit(&mut request).await {
            Ok(known) => {
                caller = known;
                match service.call(request).await {
                    Ok(response) => response,
                    Err(never) => match never {},
                }
            }
            Err(failure) => status::of(failure).into_http(),
        }
    };
    let response = match tokio::time::timeout(limit, AssertUnwindSafe(work).catch_unwind()).await {
        Ok(Ok(response)) => response,
        Ok(Err(_panic)) => {
            tracing::error!("a call panicked");
            status::of(Failure::Internal).into_http()
        }
        Err(_elapsed) => status::of(Failure::DeadlineExceeded).into_http(),
    };
    (response, caller)
}

/// The code of an answer: errors carry it in the head, a good answer in the trailers that follow.
fn code_of(response: &Response<Body>) -> Code {
    response.headers().get("grpc-status").map_or(Code::Ok, |code| Code::from_bytes(code.as_bytes()))
}

/// The reason of an error (`google.rpc.ErrorInfo`).
fn reason_of(response: &Response<Body>) -> Option<String> {
    let details = Status::from_header_map(response.headers())?.get_error_details();
    details.error_info().map(|info| info.reason.clone())
}

fn log(method: &'static str, response: &Response<Body>, caller: Option<Caller>, took: Duration) {
    let code = code_of(response);
    let name = status::name(code);
    telemetry::metrics::request(method, name, took);
    if code == Code::Ok {
        tracing::debug!("a call was answered");
        return;
    }
    let client = caller.map(|caller| tracing::field::display(caller.client()));
    let reason = reason_of(response);
    match level(code, reason.as_deref()) {
        Level::Error => tracing::error!(code = name, reason, client, "a call failed"),
        Level::Info => tracing::info!(code = name, reason, client, "a call was refused"),
        Level::Debug => tracing::debug!(code = name, reason, client, "a call was refused"),
    }
}

/// The level of the reason; what never reached a use case has none.
fn level(code: Code, reason: Option<&str>) -> Level {
    match reason.and_then(Meaning::of) {
        Some(meaning) => meaning.kind.level(),
        None if matches!(code, Code::Internal | Code::Unknown) => Level::Error,
        None => Level::Info,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use futures_util::future;
    use tokio_util::task::TaskTracker;
    use tower::{ServiceExt as _, service_fn};

    use super::*;
    use crate::cache::Cache;
    use crate::clock::{Clock, Timestamp};
    use crate::domain::ids::InstanceId;
    use crate::store::Store;

    #[tokio::test]
    async fn g11_a_panic_ends_its_own_call_and_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&format!("sqlite:{}", folder.path().join("wallet.db").display()), 1).await.unwrap();
        let begin = Timestamp::from_millis(1_800_000_000_000);
        let clock = Clock::moved(begin).0;
        let cache = Cache::new(store.clone(), clock.clone(), 0, TaskTracker::new());
        let access = Access::new(store, cache, clock, InstanceId::new(begin));
        let first = std::sync::Arc::new(AtomicBool::new(true));
        let service = service_fn(move |_: Request<Body>| {
            let panics = first.swap(false, Ordering::SeqCst);
            async move {
                assert!(!panics, "canary");
                // As every handler does, after an await.
                future::ready(()).await;
                Ok::<_, Infallible>(Response::new(Body::empty()))
            }
        });
        let mut door = Door::new(access, InstanceKind::Production, TaskTracker::new()).layer(service);
        let call = || Request::builder().uri("/grpc.health.v1.Health/Check").body(Body::empty()).unwrap();

        let response = door.ready().await.unwrap().call(call()).await.unwrap();
        let status = Status::from_header_map(response.headers()).unwrap();
        assert_eq!((status.code(), status.message()), (Code::Internal, "internal error"));
        let details = status.get_error_details();
        let told = details.error_info().unwrap();
        assert_eq!((told.reason.as_str(), told.metadata.len()), ("INTERNAL", 1));
        let id = &told.metadata["request_id"];
        assert!(id.len() == 16 && id.bytes().all(|byte| byte.is_ascii_hexdigit()), "{id}");
        assert!(!status.details().windows(6).any(|part| part == b"canary"), "nothing of the panic is told");

        let response = door.ready().await.unwrap().call(call()).await.unwrap();
        assert_eq!(code_of(&response), Code::Ok, "the next call through the same door");
    }
}
