//! Connections that do not pile up: who takes too long is given up, and where there are too many, whoever has been
//! there for longest without showing who it is makes room for the next one.

use std::collections::{BTreeMap, HashSet};
use std::future::Future as _;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, Sleep};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// How long a client may take to begin, to send what it has begun, and to take what it is sent. Longer than any answer
/// takes to come about.
const PATIENCE: Duration = Duration::from_secs(30);

/// The most connections of one listener.
const MOST: usize = 4_096;

/// How soon accepting is tried again where the process has no descriptor left.
const AGAIN: Duration = Duration::from_millis(50);

/// What every HTTP/2 client begins with: the preface, and the head of its SETTINGS frame (RFC 9113 section 3.4).
const PREFACE: usize = 24 + 9;

/// In which turns the two sides speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// A request, its answer, the next request (HTTP/1): from the last byte that the client was sent it has its time
    /// to begin a request, and as long again for the rest of it.
    InTurns,
    /// Both at any time (HTTP/2): the client has its time to begin the connection. Pings find out who is gone later.
    AtOnce,
}

/// Accepts hurried connections.
pub struct Hurried {
    listener: TcpListener,
    manner: Manner,
    patience: Duration,
    guests: Guests,
}

/// One connection.
pub struct Connection {
    stream: TcpStream,
    manner: Manner,
    patience: Duration,
    deadline: Pin<Box<Sleep>>,
    /// The deadline counts.
    hurried: bool,
    /// Of HTTP/1: nothing of the next request has come.
    idle: bool,
    /// Of HTTP/2: so many bytes are missing until it has begun.
    missing: usize,
    shown_out: Pin<Box<WaitForCancellationFutureOwned>>,
    guest: Arc<Guest>,
}

/// Who is connected to a listener. Cheap to clone.
#[derive(Clone)]
pub struct Guests(Arc<Inner>);

/// One of them.
pub struct Guest {
    number: u64,
    guests: Guests,
}

struct Inner {
    most: usize,
    list: Mutex<List>,
    closed: CancellationToken,
}

#[derive(Default)]
struct List {
    next: u64,
    /// The oldest first, and how they are shown out.
    strangers: BTreeMap<u64, CancellationToken>,
    known: HashSet<u64>,
}

impl Hurried {
    /// Of `listener`.
    pub fn new(listener: TcpListener, manner: Manner) -> Self {
        Self::with(listener, manner, PATIENCE, MOST)
    }

    /// With another patience and another number of connections.
    pub fn with(listener: TcpListener, manner: Manner, patience: Duration, most: usize) -> Self {
        let inner = Inner { most, list: Mutex::default(), closed: CancellationToken::new() };
        Self { listener, manner, patience, guests: Guests(Arc::new(inner)) }
    }

    /// Who is connected.
    pub fn guests(&self) -> Guests {
        self.guests.clone()
    }

    /// Where it listens.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// The next connection. A caller who finds every seat taken by known ones is turned away.
    pub async fn accept(&self) -> (Connection, SocketAddr) {
        loop {
            match self.listener.accept().await {
                Ok((stream, address)) => {
                    // Small answers must not wait for the acknowledgement of the ones before; where that cannot be had
                    // the connection is gone already.
                    let _ = stream.set_nodelay(true);
                    if let Some((guest, shown_out)) = self.guests.seat() {
                        return (self.connection(stream, guest, shown_out), address);
                    }
                }
                Err(error) if is_its_own(&error) => {}
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    self.guests.list().show_oldest_out();
                    tokio::time::sleep(AGAIN).await;
                }
            }
        }
    }

    fn connection(&self, stream: TcpStream, guest: Guest, shown_out: CancellationToken) -> Connection {
        Connection {
            stream,
            manner: self.manner,
            patience: self.patience,
            deadline: Box::pin(tokio::time::sleep(self.patience)),
            hurried: true,
            idle: true,
            missing: PREFACE,
            shown_out: Box::pin(shown_out.cancelled_owned()),
            guest: Arc::new(guest),
        }
    }
}

impl Guests {
    /// Ends every connection, also those that come.
    pub fn close(&self) {
        self.0.closed.cancel();
    }

    fn seat(&self) -> Option<(Guest, CancellationToken)> {
        let mut list = self.list();
        if list.strangers.len() + list.known.len() >= self.0.most && !list.show_oldest_out() {
            return None;
        }
        let (number, shown_out) = (list.next, self.0.closed.child_token());
        list.next += 1;
        list.strangers.insert(number, shown_out.clone());
        Some((Guest { number, guests: self.clone() }, shown_out))
    }

    fn list(&self) -> MutexGuard<'_, List> {
        self.0.list.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl List {
    /// Whether there was one.
    fn show_oldest_out(&mut self) -> bool {
        self.strangers.pop_first().map(|(_, stranger)| stranger.cancel()).is_some()
    }
}

impl Guest {
    /// It has shown who it is: it makes room for nobody.
    pub fn is_known(&self) {
        let mut list = self.guests.list();
        if list.strangers.remove(&self.number).is_some() {
            list.known.insert(self.number);
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let mut list = self.guests.list();
        list.strangers.remove(&self.number);
        list.known.remove(&self.number);
    }
}

impl Connection {
    /// Who is at its other end.
    pub fn guest(&self) -> Arc<Guest> {
        Arc::clone(&self.guest)
    }

    /// Whether it goes on. Asked at each step in either direction: a client that takes nothing is not read from either.
    fn check(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        if self.shown_out.as_mut().poll(context).is_ready() {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        if self.hurried && self.deadline.as_mut().poll(context).is_ready() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        Ok(())
    }

    #[expect(clippy::disallowed_methods, reason = "a real client's real time")]
    fn begin_anew(&mut self) {
        let deadline = Instant::now() + self.patience;
        self.deadline.as_mut().reset(deadline);
        self.hurried = true;
    }

    fn has_read(&mut self, bytes: usize) {
        match self.manner {
            Manner::InTurns if self.idle && bytes > 0 => {
                self.begin_anew();
                self.idle = false;
            }
            Manner::AtOnce if self.missing > 0 => {
                self.missing = self.missing.saturating_sub(bytes);
                self.hurried = self.missing > 0;
            }
            _ => {}
        }
    }

    /// From here on it is the client's turn: to ask on, or to take more.
    fn has_written(&mut self, context: &mut Context<'_>, done: bool) -> io::Result<()> {
        match (self.manner, done) {
            (Manner::InTurns, true) => {
                self.begin_anew();
                self.idle = true;
            }
            (Manner::AtOnce, true) => self.hurried = self.missing > 0,
            (Manner::AtOnce, false) if !self.hurried => self.begin_anew(),
            _ => {}
        }
        // Whoever waits is woken by the deadline too.
        if done { Ok(()) } else { self.check(context) }
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, to: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.check(context)?;
        let before = to.filled().len();
        let read = ready!(Pin::new(&mut self.stream).poll_read(context, to));
        self.has_read(to.filled().len() - before);
        Poll::Ready(read)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.check(context)?;
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.has_written(context, written.is_ready())?;
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check(context)?;
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, parts);
        self.has_written(context, written.is_ready())?;
        written
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

/// Whether accepting failed for this one connection only.
fn is_its_own(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    const SHORT: Duration = Duration::from_millis(200);
    const LONG: Duration = Duration::from_mins(1);

    async fn listening(manner: Manner, patience: Duration, most: usize) -> Hurried {
        Hurried::with(TcpListener::bind("127.0.0.1:0").await.unwrap(), manner, patience, most)
    }

    async fn connected(hurried: &Hurried) -> (TcpStream, Connection) {
        let client = TcpStream::connect(hurried.local_addr().unwrap()).await.unwrap();
        (client, hurried.accept().await.0)
    }

    /// How an attempt ends, which must not take for ever.
    async fn end<T: std::fmt::Debug>(attempt: impl Future<Output = io::Result<T>>) -> io::ErrorKind {
        tokio::time::timeout(LONG / 2, attempt).await.expect("it is given up").unwrap_err().kind()
    }

    #[tokio::test]
    async fn g5_a_client_that_sends_nothing_is_given_up() {
        for manner in [Manner::InTurns, Manner::AtOnce] {
            let hurried = listening(manner, SHORT, 9).await;
            let (_client, mut connection) = connected(&hurried).await;
            assert_eq!(end(connection.read_u8()).await, io::ErrorKind::TimedOut, "{manner:?}");
        }
    }

    #[tokio::test]
    async fn g5_a_client_that_does_not_take_its_answer_is_given_up() {
        for manner in [Manner::InTurns, Manner::AtOnce] {
            let hurried = listening(manner, SHORT, 9).await;
            let (mut client, mut connection) = connected(&hurried).await;
            client.write_all(&[b'x'; PREFACE]).await.unwrap();
            connection.read_exact(&mut [0; PREFACE]).await.unwrap();
            let answer = async {
                loop {
                    connection.write_all(&vec![0; 64 * 1024]).await?;
                }
                #[expect(unreachable_code, reason = "says what it would answer")]
                Ok(())
            };
            assert_eq!(end(answer).await, io::ErrorKind::TimedOut, "{manner:?}");
        }
    }

    #[tokio::test]
    async fn g5_half_a_preface_is_no_beginning_and_a_whole_one_has_all_the_time() {
        let hurried = listening(Manner::AtOnce, SHORT, 9).await;
        let (mut client, mut connection) = connected(&hurried).await;
        client.write_all(&[b'x'; PREFACE - 1]).await.unwrap();
        connection.read_exact(&mut [0; PREFACE - 1]).await.unwrap();
        assert_eq!(end(connection.read_u8()).await, io::ErrorKind::TimedOut);

        let (mut client, mut connection) = connected(&hurried).await;
        client.write_all(&[b'x'; PREFACE]).await.unwrap();
        connection.read_exact(&mut [0; PREFACE]).await.unwrap();
        assert!(tokio::time::timeout(SHORT * 3, connection.read_u8()).await.is_err(), "it may idle");
        client.write_all(b"x").await.unwrap();
        assert_eq!(connection.read_u8().await.unwrap(), b'x');
    }

    #[tokio::test]
    async fn g5_where_all_seats_are_taken_the_oldest_stranger_makes_room() {
        let hurried = listening(Manner::AtOnce, LONG, 3).await;
        let (_oldest_client, mut oldest) = connected(&hurried).await;
        oldest.guest().is_known();
        let (_second_client, mut second) = connected(&hurried).await;
        let (_third_client, mut third) = connected(&hurried).await;
        let (_fourth_client, mut fourth) = connected(&hurried).await;
        assert_eq!(end(second.read_u8()).await, io::ErrorKind::ConnectionAborted);
        for waits in [&mut oldest, &mut third, &mut fourth] {
            assert!(tokio::time::timeout(Duration::from_millis(20), waits.read_u8()).await.is_err());
        }
        // Who is known is never sent away: the next one is.
        third.guest().is_known();
        fourth.guest().is_known();
        let mut turned_away = TcpStream::connect(hurried.local_addr().unwrap()).await.unwrap();
        let accepting = tokio::time::timeout(SHORT, hurried.accept());
        assert!(accepting.await.is_err());
        assert!(matches!(turned_away.read(&mut [0]).await, Ok(0) | Err(_)));
        // Who leaves makes room.
        drop(oldest);
        connected(&hurried).await;
    }

    #[tokio::test]
    async fn a_closed_listener_ends_its_connections_in_whatever_they_do() {
        let hurried = listening(Manner::AtOnce, LONG, 9).await;
        let (_reading_client, mut reading) = connected(&hurried).await;
        let (_writing_client, mut writing) = connected(&hurried).await;
        let writes = async {
            loop {
                writing.write_all(&vec![0; 64 * 1024]).await?;
            }
            #[expect(unreachable_code, reason = "says what it would answer")]
            Ok(())
        };
        let closes = async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            hurried.guests().close();
        };
        let (read, written, ()) = tokio::join!(end(reading.read_u8()), end(writes), closes);
        assert_eq!([read, written], [io::ErrorKind::ConnectionAborted; 2]);
    }
}
