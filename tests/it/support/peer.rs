//! A peer on loopback that answers as a test says, byte by byte, and counts what it sees.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// What is sent back for one request.
#[derive(Clone)]
pub enum Reply {
    /// These bytes, then the connection stays open for the next request.
    Text(String),
    /// These bytes, then the connection is closed.
    Last(String),
    /// Nothing: the connection is closed.
    Close,
    /// Nothing, for ever.
    Hang,
    /// These bytes, then one byte every 5 ms, for ever.
    Drip(String),
    /// These bytes, then zeros as fast as they are taken, for ever.
    Flood(String),
}

/// A listener whose connections get a reply for each request they send.
pub struct Peer {
    pub address: SocketAddr,
    connections: Arc<AtomicUsize>,
    requests: Arc<std::sync::Mutex<Vec<String>>>,
    flooded: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Peer {
    /// Answers the n-th request (counted over all connections) with the n-th reply, the last one again and again.
    pub async fn new(replies: Vec<Reply>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (connections, requests, flooded) = (Arc::default(), Arc::default(), Arc::default());
        let seen = Seen { requests: Arc::clone(&requests), flooded: Arc::clone(&flooded), replies: replies.into() };
        let count: Arc<AtomicUsize> = Arc::clone(&connections);
        let task = tokio::spawn(async move {
            let mut peers = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::SeqCst);
                peers.spawn(seen.clone().serve(stream));
            }
        });
        Self { address, connections, requests, flooded, task }
    }

    /// With JSON for every request.
    pub async fn json(status: u16, body: &str) -> Self {
        Self::new(vec![Reply::Text(json(status, body))]).await
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    /// The requests as they came, head and body.
    pub fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }

    /// How many bytes of floods were taken.
    pub fn flooded(&self) -> usize {
        self.flooded.load(Ordering::SeqCst)
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// An HTTP answer with a JSON body.
pub fn json(status: u16, body: &str) -> String {
    answer(status, "content-type: application/json\r\n", body)
}

/// An HTTP answer with these header lines.
pub fn answer(status: u16, headers: &str, body: &str) -> String {
    format!("HTTP/1.1 {status} Status\r\n{headers}content-length: {}\r\n\r\n{body}", body.len())
}

#[derive(Clone)]
struct Seen {
    requests: Arc<std::sync::Mutex<Vec<String>>>,
    flooded: Arc<AtomicUsize>,
    replies: Arc<[Reply]>,
}

impl Seen {
    async fn serve(self, mut stream: TcpStream) {
        while let Some(request) = read_request(&mut stream).await {
            let turn = {
                let mut requests = self.requests.lock().unwrap();
                requests.push(request);
                requests.len() - 1
            };
            let reply = self.replies.get(turn).or(self.replies.last()).unwrap();
            if self.reply(&mut stream, reply.clone()).await.is_err() {
                return;
            }
        }
    }

    /// `Err` ends the connection.
    async fn reply(&self, stream: &mut TcpStream, reply: Reply) -> std::io::Result<()> {
        let closed = || Err(std::io::ErrorKind::ConnectionAborted.into());
        match reply {
            Reply::Text(text) => stream.write_all(text.as_bytes()).await,
            Reply::Last(text) => {
                stream.write_all(text.as_bytes()).await?;
                closed()
            }
            Reply::Close => closed(),
            Reply::Hang => std::future::pending().await,
            Reply::Drip(head) => {
                stream.write_all(head.as_bytes()).await?;
                loop {
                    stream.write_all(b"x").await?;
                    tokio::time::sleep(std::time::Duration::from_millis(5)).await;
                }
            }
            Reply::Flood(head) => {
                stream.write_all(head.as_bytes()).await?;
                let zeros = vec![b'0'; 64 << 10];
                loop {
                    stream.write_all(&zeros).await?;
                    self.flooded.fetch_add(zeros.len(), Ordering::SeqCst);
                }
            }
        }
    }
}

/// A whole request, or nothing if the connection ends before one.
async fn read_request(stream: &mut TcpStream) -> Option<String> {
    let mut bytes = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&bytes);
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| {
                let (name, value) = line.split_once(':')?;
                name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().unwrap())
            });
            if body.len() >= length.unwrap_or(0) {
                return Some(text.into_owned());
            }
        }
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    }
}
