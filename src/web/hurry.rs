//! Connections that are given up when their client takes too long, so that slow ones do not pile up: a client has
//! [`PATIENCE`] to begin a request, from the last byte that it was sent, and as long again for the rest of it.

use std::future::Future as _;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::serve::Listener;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, Sleep};

/// How long a request may take to arrive, and a connection may idle. Longer than any answer takes to come about.
const PATIENCE: Duration = Duration::from_secs(30);

/// Accepts hurried connections.
pub(super) struct Hurried {
    listener: TcpListener,
    patience: Duration,
}

/// One connection.
pub(super) struct Connection {
    stream: TcpStream,
    patience: Duration,
    deadline: Pin<Box<Sleep>>,
    /// Nothing of the next request has come.
    idle: bool,
}

impl Hurried {
    pub(super) const fn new(listener: TcpListener) -> Self {
        Self { listener, patience: PATIENCE }
    }
}

impl Listener for Hurried {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        let (stream, address) = Listener::accept(&mut self.listener).await;
        let deadline = Box::pin(tokio::time::sleep(self.patience));
        (Connection { stream, patience: self.patience, deadline, idle: true }, address)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

impl Connection {
    #[expect(clippy::disallowed_methods, reason = "a real client's real time")]
    fn begin_anew(&mut self, idle: bool) {
        let deadline = Instant::now() + self.patience;
        self.deadline.as_mut().reset(deadline);
        self.idle = idle;
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, to: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.deadline.as_mut().poll(context).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        let before = to.filled().len();
        let read = ready!(Pin::new(&mut self.stream).poll_read(context, to));
        if self.idle && to.filled().len() > before {
            self.begin_anew(false);
        }
        Poll::Ready(read)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write(context, bytes));
        self.begin_anew(true);
        Poll::Ready(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write_vectored(context, parts));
        self.begin_anew(true);
        Poll::Ready(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::routing::get;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    async fn hurried(patience: Duration) -> TcpStream {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new().route("/", get(|| async { "well" }));
        tokio::spawn(async move { axum::serve(Hurried { listener, patience }, router).await });
        TcpStream::connect(address).await.unwrap()
    }

    #[tokio::test]
    #[expect(clippy::disallowed_methods, reason = "a real client's real time")]
    async fn g5_a_client_that_drips_its_headers_is_given_up() {
        let mut stream = hurried(Duration::from_millis(300)).await;
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
        let mut stream = hurried(Duration::from_secs(1)).await;
        for _ in 0..20 {
            stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
            let mut answer = vec![0; 1024];
            let length = stream.read(&mut answer).await.unwrap();
            assert!(answer[..length].starts_with(b"HTTP/1.1 200"));
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}
