//! The ops endpoints: `/livez`, `/readyz`, `/metrics`.

use std::future::Future;
use std::io;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware;
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use tokio::net::TcpListener;

use crate::hurry::{Hurried, Manner};
use crate::store::Store;
use crate::telemetry;
use crate::wallet::Wallet;

/// What readiness is judged by.
#[derive(Clone)]
pub struct Readiness {
    /// It must answer.
    pub store: Store,
    /// Its spool must be writable.
    pub wallet: Wallet,
    /// Names a job that keeps failing.
    pub failing_job: Arc<dyn Fn() -> Option<&'static str> + Send + Sync>,
}

/// Serves the ops endpoints on `listener` until `shutdown` completes.
pub async fn serve(
    listener: TcpListener,
    readiness: Readiness,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let router = Router::new()
        .route("/livez", get(|| async { "live\n" }))
        .route("/readyz", get(ready))
        .route(
            "/metrics",
            get(|| async {
                ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], telemetry::metrics::render())
            }),
        )
        .layer(middleware::map_response(async |mut response: Response| {
            // Whoever stands between must not answer for us.
            response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
            response
        }))
        .with_state(readiness);
    axum::serve(Hurried::new(listener, Manner::InTurns), router).with_graceful_shutdown(shutdown).await
}

async fn ready(State(readiness): State<Readiness>) -> Response {
    if readiness.store.ping().await.is_err() {
        return (StatusCode::SERVICE_UNAVAILABLE, "not ready: the store does not answer\n").into_response();
    }
    if !readiness.wallet.spool_is_writable().await {
        return (StatusCode::SERVICE_UNAVAILABLE, "not ready: the spool cannot be written\n").into_response();
    }
    if let Some(ahead) = readiness.wallet.astray() {
        let told =
            format!("not ready: the database's clock was set back by {} s while replicas ran\n", ahead.as_secs());
        return (StatusCode::SERVICE_UNAVAILABLE, told).into_response();
    }
    match (readiness.failing_job)() {
        Some(job) => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: job {job} keeps failing\n")).into_response(),
        None => "ready\n".into_response(),
    }
}
