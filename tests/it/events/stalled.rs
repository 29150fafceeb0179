//! Watchers that read nothing, and connections on which nothing happens: they keep no seat and hold up no shutdown.

use std::time::Duration;

use token_wallet::proto::v1;
use token_wallet::proto::v1::event_service_client::EventServiceClient;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tonic::Streaming;
use tonic::transport::{Channel, Endpoint};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::support::clients::Key;
use crate::support::harness::{Harness, on_both_engines, until};

const WATCHERS: &str = "token_wallet_event_watchers";

/// A stream whose client has room for a few bytes and takes none of them. The channel keeps it open.
async fn stalled(harness: &Harness, key: &str) -> (Channel, Streaming<v1::WatchEventsResponse>) {
    let endpoint = Endpoint::from_shared(format!("http://{}", harness.addresses().grpc)).unwrap();
    let channel = endpoint.initial_stream_window_size(8).connect().await.unwrap();
    let mut events = EventServiceClient::with_interceptor(channel.clone(), Key::new(key));
    (channel, events.watch_events(v1::WatchEventsRequest::default()).await.unwrap().into_inner())
}

on_both_engines! {
    async fn a_watcher_that_reads_nothing_loses_its_seat_long_before_its_age(engine) {
        let harness = Harness::start(engine).await;
        let stalled = stalled(&harness, &harness.key).await;
        assert!(harness.metric(WATCHERS).await > 0.5);
        // More than its connection holds for it.
        for _ in 0..4 {
            harness.link("ann", "demo").await;
        }
        let mut passed = Duration::ZERO;
        while harness.metric(WATCHERS).await > 0.5 {
            assert!(passed < Duration::from_mins(20), "it keeps its seat");
            harness.pass(Duration::from_secs(61));
            passed += Duration::from_secs(61);
            // It may be on its way to wait.
            for _ in 0..20 {
                if harness.metric(WATCHERS).await < 0.5 {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
        drop(stalled);
    }

    async fn a_watcher_that_reads_nothing_loses_its_seat_with_its_key(engine) {
        let harness = Harness::start(engine).await;
        let request = v1::CreateApiClientRequest { display_name: "watcher".into(), ..Default::default() };
        let made = harness.clients().create_api_client(request).await.unwrap().into_inner();
        let stalled = stalled(&harness, &made.api_key.unwrap().secret).await;
        assert!(harness.metric(WATCHERS).await > 0.5);
        let request = v1::DeleteApiClientRequest { api_client_id: made.api_client.unwrap().id };
        harness.clients().delete_api_client(request).await.unwrap();
        // It is told of nothing any more, and its key is looked at.
        harness.link("ann", "demo").await;
        until("its seat is free", async || harness.metric(WATCHERS).await < 0.5).await;
        drop(stalled);
    }

    async fn g5_nobody_who_idles_or_reads_nothing_holds_up_a_shutdown(engine) {
        let mut harness = Harness::start(engine).await;
        let address = harness.addresses().grpc;
        let silent = TcpStream::connect(address).await.unwrap();
        let mut half = TcpStream::connect(address).await.unwrap();
        half.write_all(b"PRI * HTTP").await.unwrap();
        let mut idle = TcpStream::connect(address).await.unwrap();
        idle.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
        let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
        let mut health = HealthClient::new(endpoint.connect().await.unwrap());
        let mut health = health.watch(HealthCheckRequest::default()).await.unwrap().into_inner();
        assert_eq!(health.message().await.unwrap().unwrap().status(), ServingStatus::Serving);
        let stalled = stalled(&harness, &harness.key).await;
        for _ in 0..4 {
            harness.link("ann", "demo").await;
        }
        // A second where nobody reads; 15 are the end of all patience.
        let stopping = tokio::time::timeout(Duration::from_secs(10), harness.stop());
        let (stopped, said) = tokio::join!(stopping, health.message());
        stopped.expect("nobody is waited for");
        assert_eq!(said.unwrap().unwrap().status(), ServingStatus::NotServing);
        assert_eq!(health.message().await.unwrap(), None);
        drop((silent, half, idle, stalled));
    }
}
