//! `ProviderService`.

use tonic::{Request, Response, Status};

use super::convert::{fields, provider};
use super::once::{Noting, once};
use super::page::Page;
use super::{Rooms, door, status};
use crate::access::Caller;
use crate::access::permit::{ManageProviders, ReadProviders};
use crate::domain::error::Failure;
use crate::domain::provider::Slug;
use crate::domain::secret::ClientSecret;
use crate::proto::v1;
use crate::proto::v1::provider_service_server::ProviderService;
use crate::providers::Provider;
use crate::store::ProviderSecretRow;

#[tonic::async_trait]
impl ProviderService for Rooms {
    async fn create_provider(
        &self,
        request: Request<v1::CreateProviderRequest>,
    ) -> Result<Response<v1::CreateProviderResponse>, Status> {
        let caller = door::caller(&request)?;
        Box::pin(self.make_provider(caller, request.into_inner())).await.map(Response::new).map_err(status::of)
    }

    async fn get_provider(
        &self,
        request: Request<v1::GetProviderRequest>,
    ) -> Result<Response<v1::GetProviderResponse>, Status> {
        let caller = door::caller(&request)?;
        self.provider(caller, request.into_inner()).await.map(Response::new).map_err(status::of)
    }

    async fn list_providers(
        &self,
        request: Request<v1::ListProvidersRequest>,
    ) -> Result<Response<v1::ListProvidersResponse>, Status> {
        let caller = door::caller(&request)?;
        self.providers(caller, &request.into_inner()).await.map(Response::new).map_err(status::of)
    }

    async fn update_provider(
        &self,
        request: Request<v1::UpdateProviderRequest>,
    ) -> Result<Response<v1::UpdateProviderResponse>, Status> {
        let caller = door::caller(&request)?;
        self.change_provider(caller, request.into_inner()).await.map(Response::new).map_err(status::of)
    }

    async fn create_provider_secret(
        &self,
        request: Request<v1::CreateProviderSecretRequest>,
    ) -> Result<Response<v1::CreateProviderSecretResponse>, Status> {
        let caller = door::caller(&request)?;
        Box::pin(self.add_provider_secret(caller, request.into_inner())).await.map(Response::new).map_err(status::of)
    }

    async fn delete_provider_secret(
        &self,
        request: Request<v1::DeleteProviderSecretRequest>,
    ) -> Result<Response<v1::DeleteProviderSecretResponse>, Status> {
        let caller = door::caller(&request)?;
        self.remove_provider_secret(caller, request.into_inner()).await.map(Response::new).map_err(status::of)
    }

    async fn delete_provider(
        &self,
        request: Request<v1::DeleteProviderRequest>,
    ) -> Result<Response<v1::DeleteProviderResponse>, Status> {
        let caller = door::caller(&request)?;
        self.remove_provider(caller, request.into_inner()).await.map(Response::new).map_err(status::of)
    }
}

impl Rooms {
    async fn make_provider(
        &self,
        caller: Caller,
        request: v1::CreateProviderRequest,
    ) -> Result<v1::CreateProviderResponse, Failure> {
        let make = |rooms: Self, permit, request, noting: Noting| async move {
            let answer = |made| v1::CreateProviderResponse { provider: Some(provider::provider(made)) };
            let note = |made: &Provider| noting.note(&answer(made.clone()));
            Ok(answer(rooms.registry.create(&permit, provider::new(request)?, note).await?))
        };
        once(self, caller.may(ManageProviders)?, request, make).await
    }

    async fn provider(
        &self,
        caller: Caller,
        request: v1::GetProviderRequest,
    ) -> Result<v1::GetProviderResponse, Failure> {
        let slug = fields::provider(request.provider)?;
        let found = self.registry.provider(&caller.may(ReadProviders)?, &slug).await?;
        Ok(v1::GetProviderResponse { provider: Some(provider::provider(found)) })
    }

    async fn providers(
        &self,
        caller: Caller,
        request: &v1::ListProvidersRequest,
    ) -> Result<v1::ListProvidersResponse, Failure> {
        let permit = caller.may(ReadProviders)?;
        let page = Page::read(permit.client(), &["providers"], request.page_size, &request.page_token)?;
        let after = page.after::<Slug>()?;
        let found = self.registry.list(&permit, after.as_ref().map(Slug::as_str), page.size()).await?;
        let next_page_token = found.next.map(|slug| page.token(slug.as_str())).unwrap_or_default();
        let providers = found.providers.into_iter().map(provider::provider).collect();
        Ok(v1::ListProvidersResponse { providers, next_page_token })
    }

    async fn change_provider(
        &self,
        caller: Caller,
        request: v1::UpdateProviderRequest,
    ) -> Result<v1::UpdateProviderResponse, Failure> {
        let permit = caller.may(ManageProviders)?;
        let slug = fields::provider(request.provider.clone())?;
        let changed = self.registry.update(&permit, &slug, provider::change(request)?).await?;
        Ok(v1::UpdateProviderResponse { provider: Some(provider::provider(changed)) })
    }

    async fn add_provider_secret(
        &self,
        caller: Caller,
        request: v1::CreateProviderSecretRequest,
    ) -> Result<v1::CreateProviderSecretResponse, Failure> {
        let add = |rooms: Self, permit, request: v1::CreateProviderSecretRequest, noting: Noting| async move {
            let slug = fields::provider(request.provider)?;
            let secret = ClientSecret::new(request.client_secret);
            let answer = |added: &ProviderSecretRow| v1::CreateProviderSecretResponse {
                provider_secret: Some(provider::secret(added)),
            };
            let note = |added: &ProviderSecretRow| noting.note(&answer(added));
            Ok(answer(&rooms.registry.add_secret(&permit, &slug, &secret, note).await?))
        };
        once(self, caller.may(ManageProviders)?, request, add).await
    }

    async fn remove_provider_secret(
        &self,
        caller: Caller,
        request: v1::DeleteProviderSecretRequest,
    ) -> Result<v1::DeleteProviderSecretResponse, Failure> {
        let permit = caller.may(ManageProviders)?;
        let slug = fields::provider(request.provider)?;
        let secret = fields::id("provider_secret_id", &request.provider_secret_id)?;
        self.registry.remove_secret(&permit, &slug, secret).await?;
        Ok(v1::DeleteProviderSecretResponse {})
    }

    async fn remove_provider(
        &self,
        caller: Caller,
        request: v1::DeleteProviderRequest,
    ) -> Result<v1::DeleteProviderResponse, Failure> {
        let slug = fields::provider(request.provider)?;
        self.registry.delete(&caller.may(ManageProviders)?, &slug).await?;
        Ok(v1::DeleteProviderResponse {})
    }
}
