//! A proxy in front of PostgreSQL that fails the way networks and servers do, also between a commit and its answer.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use reqwest::Url;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

/// A running proxy; gone, with its connections, when the last clone is dropped.
#[derive(Clone)]
pub struct Proxy {
    url: String,
    direct: String,
    shared: Arc<Shared>,
    _stop: Arc<DropGuard>,
}

struct Shared {
    server: Server,
    weather: watch::Sender<Weather>,
    doomed: Mutex<Option<Doomed>>,
    lost: watch::Sender<usize>,
    stop: CancellationToken,
}

enum Server {
    Unix(PathBuf),
    Tcp(String),
}

/// A commit that breaks its connection.
struct Doomed {
    /// A part of a statement in its transaction.
    sql: String,
    moment: Moment,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Moment {
    /// The server is not asked for it.
    BeforeCommit,
    /// The server has done it, and its answer is lost.
    AfterCommit,
}

#[derive(Clone, Copy, Default)]
struct Weather {
    held: bool,
    /// How late everything arrives, on either way.
    delay: Duration,
    refusing: bool,
    /// Counts the cuts: whoever connected under a smaller number is cut off.
    cuts: u64,
    /// The same for [`Proxy::forget`]: nothing is forwarded any more.
    forgets: u64,
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

impl Proxy {
    /// Before the server of `database_url`.
    pub fn start(database_url: &str) -> Self {
        let mut url: Url = database_url.parse().unwrap();
        let server = server(&url);
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let listener = TcpListener::from_std(listener).unwrap();
        url.set_host(Some("127.0.0.1")).unwrap();
        url.set_port(Some(listener.local_addr().unwrap().port())).unwrap();
        // The proxy reads along.
        url.set_query(Some("sslmode=disable"));
        let stop = CancellationToken::new();
        let (weather, lost) = (watch::Sender::default(), watch::Sender::default());
        let shared = Arc::new(Shared { server, weather, doomed: Mutex::default(), lost, stop: stop.clone() });
        tokio::spawn(Arc::clone(&shared).accept(listener));
        Self { url: url.into(), direct: database_url.to_owned(), shared, _stop: Arc::new(stop.drop_guard()) }
    }

    /// The same database through the proxy.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The same database past the proxy.
    pub fn direct_url(&self) -> &str {
        &self.direct
    }

    /// Drops all connections; new ones are closed at once.
    pub fn cut(&self) {
        self.shared.weather.send_modify(|weather| {
            weather.refusing = true;
            weather.cuts += 1;
        });
    }

    /// Forwards nothing any more, in neither direction, and keeps all connections.
    pub fn hold(&self) {
        self.shared.weather.send_modify(|weather| weather.held = true);
    }

    /// Lets everything arrive so much later, on either way.
    pub fn delay(&self, by: Duration) {
        self.shared.weather.send_modify(|weather| weather.delay = by);
    }

    /// Ends [`Self::cut`], [`Self::hold`] and [`Self::delay`]; what was held back goes on.
    pub fn heal(&self) {
        self.shared.weather.send_modify(|weather| {
            (weather.held, weather.refusing, weather.delay) = (false, false, Duration::ZERO);
        });
    }

    /// Ends [`Self::cut`] and [`Self::hold`] for new connections. The old ones stay as they are and silent, as where
    /// something in between has lost its memory of them.
    pub fn forget(&self) {
        self.shared.weather.send_modify(|weather| {
            (weather.held, weather.refusing) = (false, false);
            weather.forgets += 1;
        });
    }

    /// Loses the answer to the next commit of a change by a statement that contains `sql`: the server has committed,
    /// and the client's connection breaks before it is told.
    pub fn cut_after_commit(&self, sql: &str) {
        self.doom(sql, Moment::AfterCommit);
    }

    /// Loses the next `COMMIT` of a transaction with a statement that contains `sql`: both sides' connections break
    /// before the server is asked for it.
    pub fn cut_before_commit(&self, sql: &str) {
        self.doom(sql, Moment::BeforeCommit);
    }

    fn doom(&self, sql: &str, moment: Moment) {
        *self.shared.doomed.lock().unwrap() = Some(Doomed { sql: sql.to_owned(), moment });
    }

    /// Waits until so many commits, or their answers, have been lost.
    pub async fn commits_lost(&self, count: usize) {
        self.shared.lost.subscribe().wait_for(|lost| *lost >= count).await.unwrap();
    }
}

/// Where the server is: as libpq reads `?host=/directory`, or the URL's own host.
fn server(url: &Url) -> Server {
    let port = url.port().unwrap_or(5432);
    match url.query_pairs().find(|(key, _)| key == "host") {
        Some((_, folder)) if folder.starts_with('/') => {
            Server::Unix(PathBuf::from(format!("{folder}/.s.PGSQL.{port}")))
        }
        Some((_, host)) => Server::Tcp(format!("{host}:{port}")),
        None => Server::Tcp(format!("{}:{port}", url.host_str().unwrap())),
    }
}

impl Server {
    async fn connect(&self) -> std::io::Result<Box<dyn Stream>> {
        Ok(match self {
            Self::Unix(path) => Box::new(UnixStream::connect(path).await?),
            Self::Tcp(address) => Box::new(TcpStream::connect(address).await?),
        })
    }
}

impl Shared {
    async fn accept(self: Arc<Self>, listener: TcpListener) {
        while let Some(accepted) = self.stop.run_until_cancelled(listener.accept()).await {
            let (client, _) = accepted.unwrap();
            let weather = *self.weather.borrow();
            if !weather.refusing {
                tokio::spawn(Arc::clone(&self).connection(client, weather));
            }
        }
    }

    /// One connection, until an end of it closes or it is cut.
    async fn connection(self: Arc<Self>, client: TcpStream, begun: Weather) {
        let Ok(server) = self.server.connect().await else { return };
        let talk = Mutex::new(Talk::default());
        let (from_client, to_client) = client.into_split();
        let (from_server, to_server) = tokio::io::split(server);
        let asked = |bytes: &[u8]| {
            let committing = talk.lock().unwrap().asked(bytes);
            !self.loses(&committing, Moment::BeforeCommit)
        };
        let answered = |bytes: &[u8]| {
            let committed = talk.lock().unwrap().answered(bytes);
            !self.loses(&committed, Moment::AfterCommit)
        };
        let mut weather = self.weather.subscribe();
        tokio::select! {
            () = self.pump(from_client, to_server, begun.forgets, asked) => {}
            () = self.pump(from_server, to_client, begun.forgets, answered) => {}
            _ = weather.wait_for(|weather| weather.cuts != begun.cuts) => {}
            () = self.stop.cancelled() => {}
        }
    }

    /// Whether the commit of these statements, or its answer, is the doomed one.
    fn loses(&self, statements: &[String], moment: Moment) -> bool {
        let is_lost = |doomed: &mut Doomed| {
            doomed.moment == moment && statements.iter().any(|statement| statement.contains(&doomed.sql))
        };
        let lost = self.doomed.lock().unwrap().take_if(is_lost).is_some();
        self.lost.send_if_modified(|count| {
            *count += usize::from(lost);
            lost
        });
        lost
    }

    /// Forwards what comes, while `look` lets it pass.
    async fn pump(
        &self,
        mut from: impl AsyncRead + Unpin,
        mut to: impl AsyncWrite + Unpin,
        forgets: u64,
        look: impl Fn(&[u8]) -> bool,
    ) {
        let mut weather = self.weather.subscribe();
        let mut buffer = vec![0; 16 * 1024];
        while let Ok(read @ 1..) = from.read(&mut buffer).await {
            let delay = weather.borrow().delay;
            if !delay.is_zero() {
                tokio::time::sleep(delay).await;
            }
            let _ = weather.wait_for(|weather| !weather.held && weather.forgets == forgets).await;
            if !look(&buffer[..read]) || to.write_all(&buffer[..read]).await.is_err() {
                return;
            }
        }
    }
}

/// What is being said on a connection, as far as it tells which change was committed (PostgreSQL's protocol 3).
#[derive(Default)]
struct Talk {
    from_client: Vec<u8>,
    from_server: Vec<u8>,
    begun: bool,
    /// Prepared statements by name.
    prepared: HashMap<String, String>,
    /// The statements since the last time that no transaction was open.
    run: Vec<String>,
    changed: bool,
}

impl Talk {
    /// The statements whose commit `bytes` ask for.
    fn asked(&mut self, bytes: &[u8]) -> Vec<String> {
        self.from_client.extend_from_slice(bytes);
        if !self.begun {
            // The first message has no kind.
            let Some(length) = self.from_client.first_chunk().map(|length| size(*length)) else { return Vec::new() };
            if self.from_client.len() < length {
                return Vec::new();
            }
            self.from_client.drain(..length);
            self.begun = true;
        }
        let mut committing = Vec::new();
        while let Some((kind, body)) = message(&mut self.from_client) {
            let mut texts = body.split(|byte| *byte == 0).map(|text| String::from_utf8_lossy(text).into_owned());
            let mut text = || texts.next().unwrap_or_default();
            match kind {
                b'P' => drop(self.prepared.insert(text(), text())),
                b'B' => {
                    let (_portal, name) = (text(), text());
                    self.run.extend(self.prepared.get(&name).cloned());
                }
                b'Q' => {
                    let script = text();
                    if script == "COMMIT" {
                        committing.extend_from_slice(&self.run);
                    }
                    self.run.push(script);
                }
                _ => {}
            }
        }
        committing
    }

    /// The statements whose changes `bytes` tell to be committed, with what was asked in the same transaction.
    fn answered(&mut self, bytes: &[u8]) -> Vec<String> {
        self.from_server.extend_from_slice(bytes);
        let mut committed = Vec::new();
        while let Some((kind, body)) = message(&mut self.from_server) {
            match kind {
                // "UPDATE 1", "INSERT 0 1", "COMMIT", …
                b'C' => {
                    let tag = String::from_utf8_lossy(&body).trim_end_matches('\0').to_owned();
                    let changes = ["INSERT", "UPDATE", "DELETE"].iter().any(|word| tag.starts_with(word));
                    self.changed = (self.changed || changes && !tag.ends_with(" 0")) && tag != "ROLLBACK";
                }
                // Ready, and no transaction is open.
                b'Z' if body == *b"I" => {
                    let run = std::mem::take(&mut self.run);
                    if std::mem::take(&mut self.changed) {
                        committed.extend(run);
                    }
                }
                _ => {}
            }
        }
        committed
    }
}

/// Takes a whole message, its kind and its body, off the front.
fn message(bytes: &mut Vec<u8>) -> Option<(u8, Vec<u8>)> {
    let length = size(*bytes.get(1..)?.first_chunk()?);
    if bytes.len() < 1 + length {
        return None;
    }
    let message: Vec<u8> = bytes.drain(..=length).collect();
    Some((message[0], message[5..].to_vec()))
}

fn size(length: [u8; 4]) -> usize {
    usize::try_from(u32::from_be_bytes(length)).unwrap()
}

mod tests {
    use std::time::Duration;

    use sqlx::postgres::PgConnection;
    use sqlx::{Connection as _, Executor as _};

    use super::Proxy;
    use crate::support::postgres::{self, TestDatabase};

    async fn connect(url: &str) -> sqlx::Result<PgConnection> {
        PgConnection::connect(url).await
    }

    /// A database with a table of numbers, and a proxy before it.
    async fn table() -> (TestDatabase, Proxy) {
        let database = postgres::database().await;
        connect(&database.url).await.unwrap().execute("CREATE TABLE t (n BIGINT)").await.unwrap();
        let proxy = Proxy::start(&database.url);
        (database, proxy)
    }

    async fn count(url: &str) -> i64 {
        sqlx::query_scalar("SELECT COUNT(*) FROM t").fetch_one(&mut connect(url).await.unwrap()).await.unwrap()
    }

    async fn insert(connection: &mut PgConnection) -> sqlx::Result<()> {
        sqlx::query("INSERT INTO t VALUES ($1)").bind(1_i64).execute(connection).await.map(drop)
    }

    #[tokio::test]
    async fn a_proxy_passes_on_what_is_said_until_it_is_cut_and_again_when_it_is_healed() {
        let (_database, proxy) = table().await;
        let mut connection = connect(proxy.url()).await.unwrap();
        insert(&mut connection).await.unwrap();
        proxy.cut();
        assert!(insert(&mut connection).await.is_err());
        assert!(connect(proxy.url()).await.is_err());
        proxy.heal();
        assert!(insert(&mut connection).await.is_err(), "what is cut stays cut");
        assert_eq!(count(proxy.url()).await, 1);
    }

    #[tokio::test]
    async fn a_held_proxy_answers_when_it_is_healed() {
        let (database, proxy) = table().await;
        let mut connection = connect(proxy.url()).await.unwrap();
        proxy.hold();
        let (mut inserting, mut connecting) = (Box::pin(insert(&mut connection)), Box::pin(connect(proxy.url())));
        let patience = Duration::from_millis(50);
        assert!(tokio::time::timeout(patience, &mut inserting).await.is_err());
        assert!(tokio::time::timeout(patience, &mut connecting).await.is_err());
        assert_eq!(count(&database.url).await, 0);
        proxy.heal();
        inserting.await.unwrap();
        connecting.await.unwrap();
        assert_eq!(count(&database.url).await, 1);
    }

    #[tokio::test]
    async fn a_proxy_that_forgets_passes_on_what_is_said_on_new_connections_alone() {
        let (database, proxy) = table().await;
        let mut connection = connect(proxy.url()).await.unwrap();
        proxy.hold();
        let mut inserting = Box::pin(insert(&mut connection));
        let patience = Duration::from_millis(50);
        assert!(tokio::time::timeout(patience, &mut inserting).await.is_err());
        proxy.forget();
        insert(&mut connect(proxy.url()).await.unwrap()).await.unwrap();
        assert!(tokio::time::timeout(patience, &mut inserting).await.is_err());
        assert_eq!(count(&database.url).await, 1);
    }

    #[tokio::test]
    async fn a_commits_answer_is_lost_once_and_what_it_committed_is_there() {
        let (database, proxy) = table().await;
        let mut connection = connect(proxy.url()).await.unwrap();
        insert(&mut connection).await.unwrap();
        proxy.cut_after_commit("INSERT INTO t");
        // Another statement, and one that changes nothing, are none of it.
        connection.execute("UPDATE t SET n = 2").await.unwrap();
        connection.execute("INSERT INTO t SELECT 1 WHERE FALSE").await.unwrap();
        assert!(insert(&mut connection).await.is_err());
        proxy.commits_lost(1).await;
        assert_eq!(count(&database.url).await, 2);

        let mut connection = connect(proxy.url()).await.unwrap();
        insert(&mut connection).await.unwrap();
        proxy.cut_after_commit("INSERT INTO t");
        let mut tx = connection.begin().await.unwrap();
        insert(&mut tx).await.unwrap();
        sqlx::query("SELECT n FROM t").fetch_all(&mut *tx).await.unwrap();
        assert!(tx.commit().await.is_err());
        proxy.commits_lost(2).await;
        assert_eq!(count(&database.url).await, 4);
    }

    #[tokio::test]
    async fn a_commit_that_the_server_is_never_asked_for_has_not_happened() {
        let (database, proxy) = table().await;
        proxy.cut_before_commit("INSERT INTO t");
        let mut connection = connect(proxy.url()).await.unwrap();
        let mut tx = connection.begin().await.unwrap();
        sqlx::query("SELECT n FROM t").fetch_all(&mut *tx).await.unwrap();
        tx.commit().await.unwrap();
        let mut tx = connection.begin().await.unwrap();
        insert(&mut tx).await.unwrap();
        assert!(tx.commit().await.is_err());
        proxy.commits_lost(1).await;
        assert_eq!(count(&database.url).await, 0);
        // Once.
        let mut connection = connect(proxy.url()).await.unwrap();
        let mut tx = connection.begin().await.unwrap();
        insert(&mut tx).await.unwrap();
        tx.commit().await.unwrap();
        assert_eq!(count(&database.url).await, 1);
    }

    #[tokio::test]
    async fn what_a_slow_proxy_passes_on_arrives_later_on_either_way() {
        let (_database, proxy) = table().await;
        let mut connection = connect(proxy.url()).await.unwrap();
        let late = Duration::from_millis(60);
        proxy.delay(late);
        let mut asking = Box::pin(connection.execute("SELECT 1"));
        assert!(tokio::time::timeout(2 * late - Duration::from_millis(10), &mut asking).await.is_err());
        asking.await.unwrap();
        proxy.heal();
        insert(&mut connection).await.unwrap();
        assert_eq!(count(proxy.url()).await, 1);
    }

    #[tokio::test]
    async fn what_is_rolled_back_is_no_commit() {
        let (database, proxy) = table().await;
        let mut connection = connect(proxy.url()).await.unwrap();
        proxy.cut_after_commit("");
        let mut tx = connection.begin().await.unwrap();
        insert(&mut tx).await.unwrap();
        tx.rollback().await.unwrap();
        connection.execute("SELECT 1").await.unwrap();
        assert_eq!(count(&database.url).await, 0);
    }
}
