//! The gRPC door: parse, permit, call, convert.

mod api_client_service;
mod convert;
mod deadline;
mod door;
mod event_service;
mod external_account_service;
mod health;
mod listener;
mod methods;
mod once;
mod page;
mod provider_service;
mod redirect_url_service;
mod status;
mod user_service;
mod wallet_service;

use std::convert::Infallible;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic_health::pb::health_server::HealthServer;

use crate::access::{Access, Requests};
use crate::domain::instance::InstanceKind;
use crate::events::Events;
use crate::hurry::{Guests, Hurried, Manner};
use crate::linking::Linking;
use crate::proto::{self, v1};
use crate::providers::Registry;
use crate::wallet::Wallet;

/// The largest request that is read, in bytes.
const LARGEST_REQUEST: usize = 64 * 1024;

/// The most calls one connection may have under way. Callers usually have one connection: those of their calls that
/// wait for a provider which hangs must leave room for the others.
const STREAMS: u32 = 1_024;

/// How long a connection may take over its HTTP/2 ping before it is dropped.
const KEEPALIVE: Duration = Duration::from_secs(20);

/// How long a caller may take at shutdown to take the last answer.
const GRACE: Duration = Duration::from_secs(1);

/// What the gRPC door opens to.
#[derive(Clone)]
pub struct Rooms {
    /// Knows the callers.
    pub access: Access,
    /// Remembers creating calls.
    pub requests: Requests,
    /// Hands out tokens.
    pub wallet: Wallet,
    /// Runs flows, keeps accounts.
    pub linking: Linking,
    /// The configured providers.
    pub registry: std::sync::Arc<Registry>,
    /// What happened.
    pub events: Events,
    /// In development, reflection needs no key.
    pub kind: InstanceKind,
}

/// The gRPC door did not open, or broke.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// HTTP/2 failed.
    #[error("the gRPC listener failed")]
    Transport(#[from] tonic::transport::Error),
    /// The built-in descriptors do not describe a service.
    #[error("the built-in descriptors cannot be served")]
    Reflection(#[from] tonic_reflection::server::Error),
}

/// Serves the contract, health and reflection on `listener` until `closing`, then finishes the calls that are under
/// way. Streams end; whoever does not read that is cut off.
pub async fn serve(listener: TcpListener, rooms: Rooms, closing: CancellationToken) -> Result<(), ApiError> {
    // Everything that answers here is told, whichever of the two versions asks.
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .include_reflection_service(false)
            .register_encoded_file_descriptor_set(proto::DESCRIPTORS)
            // The details of errors, so that a client that reads the contract here can print them.
            .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET)
    };
    let (hurried, calls) = (Hurried::new(listener, Manner::AtOnce), TaskTracker::new());
    let cut = cut_off(hurried.guests(), calls.clone(), closing.clone());
    let mut server = tonic::transport::Server::builder()
        .max_concurrent_streams(STREAMS)
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .layer(door::Door::new(rooms.access.clone(), rooms.kind, calls));
    let serving = server
        .add_service(HealthServer::new(health::Pulse(closing.clone())).max_decoding_message_size(LARGEST_REQUEST))
        .add_service(reflection().build_v1()?.max_decoding_message_size(LARGEST_REQUEST))
        .add_service(reflection().build_v1alpha()?.max_decoding_message_size(LARGEST_REQUEST))
        .add_service(
            v1::wallet_service_server::WalletServiceServer::new(rooms.clone())
                .max_decoding_message_size(LARGEST_REQUEST),
        )
        .add_service(
            v1::external_account_service_server::ExternalAccountServiceServer::new(rooms.clone())
                .max_decoding_message_size(LARGEST_REQUEST),
        )
        .add_service(
            v1::provider_service_server::ProviderServiceServer::new(rooms.clone())
                .max_decoding_message_size(LARGEST_REQUEST),
        )
        .add_service(
            v1::redirect_url_service_server::RedirectUrlServiceServer::new(rooms.clone())
                .max_decoding_message_size(LARGEST_REQUEST),
        )
        .add_service(
            v1::user_service_server::UserServiceServer::new(rooms.clone()).max_decoding_message_size(LARGEST_REQUEST),
        )
        .add_service(
            v1::event_service_server::EventServiceServer::new(rooms.clone()).max_decoding_message_size(LARGEST_REQUEST),
        )
        .add_service(
            v1::api_client_service_server::ApiClientServiceServer::new(rooms)
                .max_decoding_message_size(LARGEST_REQUEST),
        )
        .serve_with_incoming_shutdown(listener::incoming(hurried), closing.cancelled());
    tokio::select! {
        ended = serving => Ok(ended?),
        never = cut => match never {},
    }
}

/// Ends what is left of the connections once no call is under way and the answers could be read. The listener ends then.
async fn cut_off(guests: Guests, calls: TaskTracker, closing: CancellationToken) -> Infallible {
    closing.cancelled().await;
    calls.close();
    loop {
        calls.wait().await;
        tokio::time::sleep(GRACE).await;
        if calls.is_empty() {
            break;
        }
    }
    guests.close();
    std::future::pending().await
}
