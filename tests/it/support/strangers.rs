//! Peers that are no provider: one that takes no connection, and one that cannot prove who it is.

use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use data_encoding::BASE64;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ServerConfig, ServerConnection};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

/// For localhost and 127.0.0.1, good from 2020 to 2120, and signed by nobody but itself.
const CERTIFICATE: &str = "MIIBYTCCAQegAwIBAgIBATAKBggqhkjOPQQDAjAUMRIwEAYDVQQDDAlsb2NhbGhvc3QwIBcNMjAwMTAxMDAwMDAwWhgP\
    MjEyMDAxMDEwMDAwMDBaMBQxEjAQBgNVBAMMCWxvY2FsaG9zdDBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABCpK83w3p5DsjBhX7eYZpuJTFEffFhT7\
    5/deOjWfy3GkzzOwkKgY8BEWS0zI2tnpRA3vSp/t0PaTe/vtNeuEHmWjSDBGMBoGA1UdEQQTMBGCCWxvY2FsaG9zdIcEfwAAATAJBgNVHRMEAjAAMB0G\
    A1UdDgQWBBT96eOjNxutRiwlpdwoa5wAfC+mNjAKBggqhkjOPQQDAgNIADBFAiA3nIyAcbIoO7p13z1RomUDdHMVHvw9bf+d0+JqYOG4lwIhAJbgv1yY\
    pfvusKLSeQWIYPh1cJrUtfqbdeCT37a9bHMF";

/// Its key, of no worth to anybody.
const KEY: &str = "MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgixZG2l+GCMOj//rdIZVDrhya30RxKI0wUSn9Z13Sz2KhRANCAAQq\
    SvN8N6eQ7IwYV+3mGabiUxRH3xYU++f3Xjo1n8txpM8zsJCoGPARFktMyNrZ6UQN70qf7dD2k3v77TXrhB5l";

/// A listener that takes no connection and refuses none: its queue is full.
pub struct Full {
    pub address: SocketAddr,
    _listener: TcpListener,
    _queue: Vec<TcpStream>,
}

impl Full {
    pub async fn new() -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = socket.listen(1).unwrap();
        let (address, mut queue) = (listener.local_addr().unwrap(), Vec::new());
        while let Ok(taken) = tokio::time::timeout(Duration::from_millis(80), TcpStream::connect(address)).await {
            queue.push(taken.unwrap());
            assert!(queue.len() < 100, "its queue does not fill");
        }
        Self { address, _listener: listener, _queue: queue }
    }
}

/// A TLS server with a certificate that names the right host and that no authority has signed.
pub struct Impostor {
    pub address: SocketAddr,
    greeted: Arc<AtomicUsize>,
    heard: Arc<AtomicUsize>,
}

impl Impostor {
    pub fn start() -> Self {
        let chain = vec![CertificateDer::from(BASE64.decode(CERTIFICATE.as_bytes()).unwrap())];
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(BASE64.decode(KEY.as_bytes()).unwrap()));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let config = Arc::new(config.with_no_client_auth().with_single_cert(chain, key).unwrap());
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (greeted, heard) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (greetings, bytes) = (Arc::clone(&greeted), Arc::clone(&heard));
        // A thread that ends with the test's process: rustls' own streams block.
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (mut stream, mut tls) = (stream.unwrap(), ServerConnection::new(Arc::clone(&config)).unwrap());
                greetings.fetch_add(1, Ordering::SeqCst);
                let mut tls = rustls::Stream::new(&mut tls, &mut stream);
                let mut request = [0; 4096];
                // Whoever believes it is answered with a token.
                while let Ok(length @ 1..) = tls.read(&mut request) {
                    bytes.fetch_add(length, Ordering::SeqCst);
                    let body = r#"{"access_token":"forged","token_type":"Bearer"}"#;
                    let _ = write!(tls, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
                }
            }
        });
        Self { address, greeted, heard }
    }

    /// How many began to speak with it.
    pub fn greeted(&self) -> usize {
        self.greeted.load(Ordering::SeqCst)
    }

    /// How many bytes of requests it was told.
    pub fn heard(&self) -> usize {
        self.heard.load(Ordering::SeqCst)
    }
}
