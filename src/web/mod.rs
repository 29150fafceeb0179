//! The HTTP doors: the callback and pages for people, the ops endpoints for operators.

mod callback;
mod listener;
mod ops;
mod page;

use std::future::Future;
use std::io;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use tokio::net::TcpListener;

use crate::domain::instance::InstanceKind;
use crate::hurry::{Hurried, Manner};
use crate::linking::Linking;

pub use ops::{Readiness, serve as serve_ops};

/// What the web door opens to.
#[derive(Clone)]
pub struct Rooms {
    /// Takes callbacks.
    pub linking: Linking,
    /// In development the Host header must name this machine.
    pub kind: InstanceKind,
    /// The gRPC address that the wallet's own page tells people to call.
    pub grpc: String,
}

/// Serves the callback and the pages on `listener` until `shutdown` completes, then finishes what is under way.
pub async fn serve(
    listener: TcpListener,
    rooms: Rooms,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let kind = rooms.kind;
    let router = Router::new()
        .route("/oauth/callback/{provider}", get(callback::receive).head(callback::look).post(callback::post))
        .layer(DefaultBodyLimit::max(callback::LONGEST_QUERY))
        .method_not_allowed_fallback(|| async { page::method_not_allowed() })
        .fallback(|| async { page::not_found() })
        .layer(middleware::from_fn(move |request, next| check_host(kind, request, next)))
        .layer(middleware::from_fn(harden))
        .with_state(rooms);
    axum::serve(Hurried::new(listener, Manner::InTurns), router).with_graceful_shutdown(shutdown).await
}

/// A development instance answers to this machine's own names alone, so that no web site can reach it by a name that
/// it points here (DNS rebinding).
async fn check_host(kind: InstanceKind, request: Request, next: Next) -> Response {
    let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    if kind == InstanceKind::Development && !is_loopback(host) {
        return (StatusCode::MISDIRECTED_REQUEST, "a development instance answers to loopback names only\n")
            .into_response();
    }
    next.run(request).await
}

fn is_loopback(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|digit| digit.is_ascii_digit()) => name,
        _ => host,
    };
    matches!(name, "127.0.0.1" | "[::1]" | "localhost")
}

/// Headers of every answer: nothing is kept, framed, sniffed or told to the next site.
async fn harden(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CACHE_CONTROL, "no-store"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers.insert(header::CONTENT_SECURITY_POLICY, page::content_security_policy());
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machines_names_are_loopback() {
        for good in ["127.0.0.1", "127.0.0.1:8080", "[::1]", "[::1]:8080", "localhost:1"] {
            assert!(is_loopback(good), "{good}");
        }
        for bad in ["", "evil.example", "127.0.0.1.evil.example", "localhost:x", "127.0.0.1:80@evil.example", "::1"] {
            assert!(!is_loopback(bad), "{bad}");
        }
    }
}
