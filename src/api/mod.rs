//! The gRPC door: parse, permit, call, convert.

mod api_client_service;
mod convert;
mod deadline;
mod door;
mod event_service;
mod external_account_service;
mod methods;
mod once;
mod page;
mod provider_service;
mod redirect_url_service;
mod status;
mod wallet_service;

use std::future::Future;
use std::time::Duration;

use tokio::net::TcpListener;
use tonic::transport::server::TcpIncoming;

use crate::access::{Access, Requests};
use crate::domain::instance::InstanceKind;
use crate::events::Events;
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

/// Serves the contract, health and reflection on `listener` until `shutdown` completes, then finishes the calls that
/// are under way.
pub async fn serve(listener: TcpListener, rooms: Rooms, shutdown: impl Future<Output = ()>) -> Result<(), ApiError> {
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_service_status("", tonic_health::ServingStatus::Serving).await;
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
    // Small answers must not wait for the acknowledgement of the ones before.
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let mut server = tonic::transport::Server::builder()
        .max_concurrent_streams(STREAMS)
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .layer(door::Door::new(rooms.access.clone(), rooms.kind));
    server
        .add_service(health_service.max_decoding_message_size(LARGEST_REQUEST))
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
            v1::event_service_server::EventServiceServer::new(rooms.clone()).max_decoding_message_size(LARGEST_REQUEST),
        )
        .add_service(
            v1::api_client_service_server::ApiClientServiceServer::new(rooms)
                .max_decoding_message_size(LARGEST_REQUEST),
        )
        .serve_with_incoming_shutdown(incoming, shutdown)
        .await?;
    Ok(())
}
