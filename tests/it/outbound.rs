//! The HTTP client against real sockets: what surely was not sent, what may have been, and what is never read.

use std::time::Duration;

use token_wallet::outbound::{NotSent, Outbound, OutboundConfig, OutboundError, Response, Unanswered, UrlError};
use tokio::io::AsyncWriteExt as _;

use crate::support::peer::{Peer, Reply, answer};

fn client(config: &OutboundConfig) -> Outbound {
    Outbound::new(config).unwrap()
}

fn development() -> OutboundConfig {
    OutboundConfig { development: true, ..OutboundConfig::default() }
}

async fn post(client: &Outbound, url: &str) -> Result<Response, OutboundError> {
    let request = http::Request::post(url).body(b"refresh_token=secret".to_vec()).unwrap();
    client.send(request).await
}

/// What a single request came to, and how many the peer saw.
async fn outcome(config: OutboundConfig, reply: Reply) -> (Result<Response, OutboundError>, usize) {
    let peer = Peer::new(vec![reply]).await;
    let outcome = post(&client(&config), &peer.url("/token")).await;
    (outcome, peer.requests().len())
}

fn impatient() -> OutboundConfig {
    let short = Duration::from_millis(80);
    OutboundConfig { connect_timeout: short, total_timeout: short, ..development() }
}

const CHUNKED: &str = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n40000000\r\n";

#[tokio::test]
async fn an_answer_is_read_with_its_headers_whatever_its_status() {
    let headers = "retry-after: 7\r\nwww-authenticate: Bearer\r\nset-cookie: a=b\r\n";
    let peer = Peer::new(vec![Reply::Text(answer(400, headers, "no"))]).await;
    let client = client(&development());
    for _ in 0..2 {
        let response = post(&client, &peer.url("/token")).await.ok().unwrap();
        assert_eq!((response.status, response.body.as_slice()), (400, &b"no"[..]));
        assert_eq!(response.retry_after.as_deref(), Some("7"));
        assert_eq!(response.www_authenticate.as_deref(), Some("Bearer"));
    }
    assert!(peer.requests().iter().all(|request| request.ends_with("\r\n\r\nrefresh_token=secret")));
    assert!(!peer.requests()[1].contains("cookie"), "cookies are not kept");
    assert_eq!(peer.connections(), 1, "the connection is used again");
}

#[tokio::test]
async fn p13_a_refused_connection_was_surely_not_sent() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let outcome = post(&client(&development()), &format!("http://{free}/token")).await;
    assert_eq!(outcome.err(), Some(OutboundError::NotSent(NotSent::Connect)));
}

#[tokio::test]
async fn p13_a_handshake_that_hangs_or_fails_was_surely_not_sent() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}/token", listener.local_addr().unwrap());
    let quick = OutboundConfig { connect_timeout: Duration::from_millis(80), ..development() };
    let outcome = post(&client(&quick), &url).await;
    assert_eq!(outcome.err(), Some(OutboundError::NotSent(NotSent::Connect)));

    let (mut hung, _) = listener.accept().await.unwrap();
    hung.shutdown().await.unwrap();
    let plain = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
        stream
    });
    let outcome = post(&client(&development()), &url).await;
    assert_eq!(outcome.err(), Some(OutboundError::NotSent(NotSent::Tls)));
    drop(plain.await.unwrap());
}

#[tokio::test]
async fn a_connection_that_breaks_after_the_request_leaves_it_in_doubt_and_is_not_tried_again() {
    let broken = Some(OutboundError::Sent(Unanswered::Broken));
    for reply in [
        Reply::Close,
        Reply::Last("HTTP/1.1 200 OK\r\ncontent-le".into()),
        Reply::Last("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{\"access_token\":\"a".into()),
        Reply::Last("SSH-2.0-OpenSSH_9.2\r\n".into()),
    ] {
        let (outcome, requests) = outcome(development(), reply).await;
        assert_eq!((outcome.err(), requests), (broken, 1));
    }
}

#[tokio::test]
async fn a_pooled_connection_that_closes_on_a_request_does_not_send_it_again() {
    let peer = Peer::new(vec![Reply::Text(answer(200, "", "{}")), Reply::Close]).await;
    let client = client(&development());
    assert!(post(&client, &peer.url("/token")).await.is_ok());
    let outcome = post(&client, &peer.url("/token")).await;
    assert_eq!(outcome.err(), Some(OutboundError::Sent(Unanswered::Broken)));
    assert_eq!((peer.requests().len(), peer.connections()), (2, 1));
}

#[tokio::test]
async fn silence_and_dripping_are_cut_by_the_total_time() {
    let timeout = Some(OutboundError::Sent(Unanswered::Timeout));
    for reply in [
        Reply::Hang,
        Reply::Drip("HTTP/1.1 200 OK\r\nx: ".into()),
        Reply::Drip("HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n".into()),
    ] {
        let (outcome, requests) = outcome(impatient(), reply).await;
        assert_eq!((outcome.err(), requests), (timeout, 1));
    }
}

#[tokio::test]
async fn a_body_of_a_gigabyte_is_not_read() {
    let too_large = Some(OutboundError::Sent(Unanswered::TooLarge));
    let announced = "HTTP/1.1 200 OK\r\ncontent-length: 1073741824\r\n\r\n";
    for head in [announced, CHUNKED, "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n"] {
        let peer = Peer::new(vec![Reply::Flood(head.into())]).await;
        let outcome = post(&client(&development()), &peer.url("/token")).await;
        assert_eq!(outcome.err(), too_large, "{head}");
        assert!(peer.flooded() < 32 << 20, "socket buffers aside, the limit is what is read");
    }
    let exact = OutboundConfig { body_limit: 3, ..development() };
    assert!(outcome(exact.clone(), Reply::Text(answer(200, "", "123"))).await.0.is_ok());
    assert_eq!(outcome(exact, Reply::Text(answer(200, "", "1234"))).await.0.err(), too_large);
}

#[tokio::test]
async fn the_status_of_a_failure_stands_though_its_body_cannot_be_read() {
    for reply in [
        Reply::Flood(CHUNKED.replace("200 OK", "503 Down")),
        Reply::Last("HTTP/1.1 503 Down\r\ncontent-length: 9\r\n\r\n<".into()),
    ] {
        let response = outcome(development(), reply).await.0.ok().unwrap();
        assert_eq!((response.status, response.body.len()), (503, 0));
    }
}

#[tokio::test]
async fn redirects_are_not_followed() {
    let other = Peer::json(200, "{}").await;
    for status in [301, 302, 303, 307, 308] {
        let location = format!("location: {}\r\n", other.url("/token"));
        let response = outcome(development(), Reply::Text(answer(status, &location, ""))).await.0.ok().unwrap();
        assert_eq!(response.status, status);
    }
    assert_eq!(other.connections(), 0);
}

#[tokio::test]
async fn private_addresses_are_refused_before_connecting() {
    let peer = Peer::json(200, "{}").await;
    let port = peer.address.port();
    let production = client(&OutboundConfig::default());
    for (url, why) in [
        (format!("https://localhost:{port}/token"), NotSent::Address),
        (format!("https://127.0.0.1:{port}/token"), NotSent::Url(UrlError::Address)),
        (format!("https://[::ffff:127.0.0.1]:{port}/token"), NotSent::Url(UrlError::Address)),
        (format!("http://localhost:{port}/token"), NotSent::Url(UrlError::Scheme)),
    ] {
        assert_eq!(post(&production, &url).await.err(), Some(OutboundError::NotSent(why)), "{url}");
    }
    assert_eq!(peer.connections(), 0);
    assert!(post(&client(&development()), &format!("http://localhost:{port}/token")).await.is_ok());
}
