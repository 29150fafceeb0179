//! How axum accepts hurried connections.

use std::io;
use std::net::SocketAddr;

use axum::serve::Listener;

use crate::hurry::{Connection, Hurried};

impl Listener for Hurried {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        Self::accept(self).await
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Self::local_addr(self)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    use axum::Router;
    use axum::body::Body;
    use axum::routing::get;
    use futures_util::stream;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpListener, TcpStream};
    use tokio::sync::watch;
    use tokio::time::Instant;

    use super::*;
    use crate::hurry::Manner;

    async fn hurried(patience: Duration, router: Router) -> TcpStream {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let hurried = Hurried::with(listener, Manner::InTurns, patience, 9);
        tokio::spawn(async move { axum::serve(hurried, router).await });
        TcpStream::connect(address).await.unwrap()
    }

    fn well() -> Router {
        Router::new().route("/", get(|| async { "well" }))
    }

    #[tokio::test]
    #[expect(clippy::disallowed_methods, reason = "a real client's real time")]
    async fn g5_a_client_that_drips_its_headers_is_given_up() {
        let mut stream = hurried(Duration::from_millis(300), well()).await;
        let began = Instant::now();
        let mut end = [0; 1];
        let mut drips = b"GET / HTTP/1.1\r\nhost: x\r\nx-slow: ".iter().chain(std::iter::repeat(&b'a'));
        loop {
            // Each byte comes soon enough; all of them do not.
            let write = stream.write_all(&[*drips.next().unwrap()]).await;
            let read = tokio::time::timeout(Duration::from_millis(20), stream.read(&mut end)).await;
            if write.is_err() || matches!(read, Ok(Ok(0) | Err(_))) {
                break;
            }
            assert!(began.elapsed() < Duration::from_secs(10), "it is never given up");
        }
        assert!(began.elapsed() >= Duration::from_millis(250), "{:?}", began.elapsed());
    }

    #[tokio::test]
    async fn each_request_of_a_connection_has_its_own_time() {
        let mut stream = hurried(Duration::from_secs(1), well()).await;
        for _ in 0..20 {
            stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
            let mut answer = vec![0; 1024];
            let length = stream.read(&mut answer).await.unwrap();
            assert!(answer[..length].starts_with(b"HTTP/1.1 200"));
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    #[tokio::test]
    async fn g5_a_client_that_idles_after_its_answer_is_given_up() {
        let mut stream = hurried(Duration::from_millis(200), well()).await;
        stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        let mut answer = Vec::new();
        let end = tokio::time::timeout(Duration::from_secs(30), stream.read_to_end(&mut answer)).await;
        assert!(end.is_ok(), "it is never given up");
        assert!(answer.starts_with(b"HTTP/1.1 200"));
    }

    #[tokio::test]
    async fn g5_a_client_that_does_not_read_its_answer_is_given_up() {
        let (held, mut dropped) = watch::channel(());
        let held = Arc::new(Mutex::new(Some(held)));
        let router = Router::new().route(
            "/",
            get(move || {
                let held = held.lock().unwrap().take();
                let endless = stream::repeat_with(move || {
                    // The body holds it for as long as it is sent.
                    let _ = &held;
                    Ok::<_, io::Error>(vec![b'x'; 64 * 1024])
                });
                std::future::ready(Body::from_stream(endless))
            }),
        );
        let mut stream = hurried(Duration::from_millis(200), router).await;
        stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        let end = tokio::time::timeout(Duration::from_secs(30), dropped.changed()).await;
        assert!(end.expect("it is never given up").is_err());
    }
}
