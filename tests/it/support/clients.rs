//! Callers of a wallet: one way to call, in this process or another.

pub use token_wallet::proto::v1;
pub use token_wallet::proto::v1::api_client_service_client::ApiClientServiceClient;
pub use token_wallet::proto::v1::event_service_client::EventServiceClient;
pub use token_wallet::proto::v1::external_account_service_client::ExternalAccountServiceClient;
pub use token_wallet::proto::v1::provider_service_client::ProviderServiceClient;
pub use token_wallet::proto::v1::redirect_url_service_client::RedirectUrlServiceClient;
pub use token_wallet::proto::v1::wallet_service_client::WalletServiceClient;
pub use token_wallet::sandbox::DEFAULT_CLIENT_ID;
use tonic::Status;
use tonic::codegen::InterceptedService;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::transport::Channel;

pub use super::harness::{APP_URL, manners};

/// Sends the API key with every call.
#[derive(Clone)]
pub struct Key(MetadataValue<Ascii>);

impl Key {
    pub fn new(key: &str) -> Self {
        Self(format!("Bearer {key}").parse().unwrap())
    }
}

impl Interceptor for Key {
    fn call(&mut self, mut request: tonic::Request<()>) -> Result<tonic::Request<()>, Status> {
        request.metadata_mut().insert("authorization", self.0.clone());
        Ok(request)
    }
}

pub type Keyed = InterceptedService<Channel, Key>;

/// Gives a type with `channel()` and the fields `key` and `sandbox` its clients.
macro_rules! keyed_clients {
    ($owner:ty) => {
        const _: () = {
            use crate::support::clients::*;

            impl $owner {
                pub fn wallet(&self) -> WalletServiceClient<Keyed> {
                    WalletServiceClient::with_interceptor(self.channel(), Key::new(&self.key))
                }

                pub fn accounts(&self) -> ExternalAccountServiceClient<Keyed> {
                    ExternalAccountServiceClient::with_interceptor(self.channel(), Key::new(&self.key))
                }

                pub fn providers(&self) -> ProviderServiceClient<Keyed> {
                    ProviderServiceClient::with_interceptor(self.channel(), Key::new(&self.key))
                }

                pub fn redirect_urls(&self) -> RedirectUrlServiceClient<Keyed> {
                    RedirectUrlServiceClient::with_interceptor(self.channel(), Key::new(&self.key))
                }

                pub fn event_log(&self) -> EventServiceClient<Keyed> {
                    EventServiceClient::with_interceptor(self.channel(), Key::new(&self.key))
                }

                pub fn clients(&self) -> ApiClientServiceClient<Keyed> {
                    ApiClientServiceClient::with_interceptor(self.channel(), Key::new(&self.key))
                }

                /// The provider `sandbox` and the redirect URL of the tests.
                pub async fn configure(&self, client_secret: &str) {
                    let request = v1::CreateProviderRequest {
                        slug: "sandbox".into(),
                        catalog_entry: manners(&self.sandbox).into(),
                        client_id: DEFAULT_CLIENT_ID.into(),
                        client_secret: client_secret.into(),
                        ..Default::default()
                    };
                    self.providers().create_provider(request).await.unwrap();
                    let request = v1::CreateRedirectUrlRequest { url: APP_URL.into(), ..Default::default() };
                    self.redirect_urls().create_redirect_url(request).await.unwrap();
                }
            }
        };
    };
}

pub(crate) use keyed_clients;
