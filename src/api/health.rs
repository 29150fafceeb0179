//! `grpc.health.v1.Health`: the wallet serves until it closes, and says so before it goes.

use std::pin::Pin;

use futures_util::{Stream, StreamExt as _, stream};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_server::Health;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

/// Told from when on nothing is served.
pub(super) struct Pulse(pub(super) CancellationToken);

#[tonic::async_trait]
impl Health for Pulse {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        known(&request)?;
        Ok(Response::new(told(!self.0.is_cancelled())))
    }

    async fn watch(&self, request: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        known(&request)?;
        let closing = self.0.clone();
        let now = stream::iter((!closing.is_cancelled()).then(|| Ok(told(true))));
        let end = stream::once(async move {
            closing.cancelled().await;
            Ok(told(false))
        });
        Ok(Response::new(Box::pin(now.chain(end))))
    }
}

/// Only the whole is told of, by the name that the protocol gives it.
fn known(request: &Request<HealthCheckRequest>) -> Result<(), Status> {
    if request.get_ref().service.is_empty() { Ok(()) } else { Err(Status::not_found("no such service")) }
}

fn told(serves: bool) -> HealthCheckResponse {
    let status = if serves { ServingStatus::Serving } else { ServingStatus::NotServing };
    HealthCheckResponse { status: status.into() }
}
