//! The connections: plain TCP that a request can have cut instead of being answered.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use axum::extract::connect_info::Connected;
use axum::serve::{IncomingStream, Listener};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};

/// How a connection ends without an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cut {
    /// As if there were nothing more to say (FIN).
    Close,
    /// As if it never was (RST).
    Reset,
}

/// Accepts connections that can be cut.
pub(super) struct Wires(pub(super) TcpListener);

/// A connection: it takes nothing to send any more once it is cut.
pub(super) struct Wire {
    socket: TcpStream,
    cutter: Cutter,
}

/// Cuts the connection that a request came by.
#[derive(Clone, Default)]
pub(super) struct Cutter(Arc<OnceLock<Cut>>);

impl Cutter {
    /// Takes effect with the next byte to be sent.
    pub(super) fn cut(&self, how: Cut) {
        // A connection that is cut already ends as it was told first.
        let _ = self.0.set(how);
    }
}

impl Wire {
    fn check(&self) -> io::Result<()> {
        match self.cutter.0.get() {
            None => return Ok(()),
            Some(Cut::Close) => {}
            Some(Cut::Reset) => self.socket.set_zero_linger()?,
        }
        Err(io::Error::new(io::ErrorKind::ConnectionAborted, "cut by a fault"))
    }
}

impl Listener for Wires {
    type Io = Wire;
    type Addr = std::net::SocketAddr;

    async fn accept(&mut self) -> (Wire, Self::Addr) {
        let (socket, peer) = Listener::accept(&mut self.0).await;
        // Small answers on a kept connection must not wait for the peer's acknowledgement; a socket that refuses works.
        let _ = socket.set_nodelay(true);
        (Wire { socket, cutter: Cutter::default() }, peer)
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.0.local_addr()
    }
}

impl Connected<IncomingStream<'_, Wires>> for Cutter {
    fn connect_info(stream: IncomingStream<'_, Wires>) -> Self {
        stream.io().cutter.clone()
    }
}

impl AsyncRead for Wire {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, to: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_read(cx, to)
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.check()?;
        Pin::new(&mut self.socket).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check()?;
        Pin::new(&mut self.socket).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check()?;
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}
