//! A listener on this machine that a browser comes back to (RFC 8252 section 7.3).

use std::io;

use axum::Router;
use axum::extract::{RawQuery, State};
use axum::http::{StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use url::Url;

/// The path that browsers come back to.
const PATH: &str = "/linked";

/// What has to be on the wallet's allow-list for it; the port does not matter.
pub(super) const ALLOWED_URL: &str = "http://127.0.0.1/linked";

const PAGE: &str = "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>Token wallet</title>\
    <body><h1>Back to the terminal</h1><p>It finishes the link and says how it went. You can close this page.</p>";

/// A listener that waits for one browser.
pub(super) struct Loopback {
    url: Url,
    arrivals: mpsc::Receiver<Url>,
    stop: CancellationToken,
    serving: JoinHandle<io::Result<()>>,
}

#[derive(Clone)]
struct Door {
    url: Url,
    arrived: mpsc::Sender<Url>,
}

impl Loopback {
    /// Listens on a free port of 127.0.0.1.
    pub(super) async fn open() -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = Url::parse(&format!("http://{}{PATH}", listener.local_addr()?))?;
        let (arrived, arrivals) = mpsc::channel(1);
        let stop = CancellationToken::new();
        let router = Router::new().route(PATH, get(take)).with_state(Door { url: url.clone(), arrived });
        let server = axum::serve(listener, router).with_graceful_shutdown(stop.clone().cancelled_owned());
        Ok(Self { url, arrivals, stop, serving: tokio::spawn(server.into_future()) })
    }

    /// Where to send the browser.
    pub(super) fn url(&self) -> &str {
        self.url.as_str()
    }

    /// The whole URL that the browser came back with.
    pub(super) async fn arrival(&mut self) -> Option<Url> {
        self.arrivals.recv().await
    }

    /// Stops listening once the page has been sent.
    pub(super) async fn close(self) -> anyhow::Result<()> {
        self.stop.cancel();
        Ok(self.serving.await??)
    }
}

/// Takes the first browser that brings an outcome; others, and whatever else a browser asks for, change nothing.
async fn take(State(door): State<Door>, RawQuery(query): RawQuery) -> Response {
    let mut url = door.url;
    url.set_query(query.as_deref());
    if !url.query_pairs().any(|(key, _)| matches!(&*key, "ticket" | "error")) {
        return StatusCode::NOT_FOUND.into_response();
    }
    // Full or closed: somebody was here before.
    let _ = door.arrived.try_send(url);
    let headers = [
        (header::CACHE_CONTROL, "no-store"),
        (header::CONNECTION, "close"),
        (header::CONTENT_SECURITY_POLICY, "default-src 'none'; frame-ancestors 'none'"),
        (header::REFERRER_POLICY, "no-referrer"),
    ];
    (headers, Html(PAGE)).into_response()
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    async fn browse(url: &str, path: &str) -> String {
        let address = Url::parse(url).unwrap().socket_addrs(|| None).unwrap()[0];
        let mut socket = tokio::net::TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
        socket.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn the_first_browser_with_an_outcome_is_taken_and_sees_a_page() {
        let mut loopback = Loopback::open().await.unwrap();
        let url = loopback.url().to_owned();
        assert!(browse(&url, "/favicon.ico").await.starts_with("HTTP/1.1 404"));
        assert!(browse(&url, PATH).await.starts_with("HTTP/1.1 404"));
        let page = browse(&url, "/linked?ticket=abc%2Fd").await;
        assert!(page.starts_with("HTTP/1.1 200") && page.contains("Back to the terminal"), "{page}");
        browse(&url, "/linked?ticket=second").await;
        assert_eq!(loopback.arrival().await.unwrap().as_str(), format!("{url}?ticket=abc%2Fd"));
        loopback.close().await.unwrap();
    }
}
