//! `ExternalAccountService`.

use tonic::{Request, Response, Status};

use super::convert::{account, fields};
use super::once::{Noting, once};
use super::page::Page;
use super::{Rooms, door, status};
use crate::access::Caller;
use crate::access::permit::{
    CompleteLink, ReadAccounts, ReadUserProviders, Reauthorize, StartLink, UnlinkAccounts, UpdateAccounts,
};
use crate::domain::error::Failure;
use crate::domain::secret::Ticket;
use crate::linking::{LinkRequest, Proof, StartedLink};
use crate::proto::v1;
use crate::proto::v1::complete_link_request::Proof as WireProof;
use crate::proto::v1::external_account_service_server::ExternalAccountService;
use crate::store::AccountFilter;

#[tonic::async_trait]
impl ExternalAccountService for Rooms {
    async fn start_link(
        &self,
        request: Request<v1::StartLinkRequest>,
    ) -> Result<Response<v1::StartLinkResponse>, Status> {
        let caller = door::caller(&request)?;
        self.start(caller, request.into_inner()).await.map(Response::new).map_err(status::of)
    }

    async fn start_reauthorization(
        &self,
        request: Request<v1::StartReauthorizationRequest>,
    ) -> Result<Response<v1::StartReauthorizationResponse>, Status> {
        let caller = door::caller(&request)?;
        self.reauthorize(caller, request.into_inner()).await.map(Response::new).map_err(status::of)
    }

    async fn complete_link(
        &self,
        request: Request<v1::CompleteLinkRequest>,
    ) -> Result<Response<v1::CompleteLinkResponse>, Status> {
        let caller = door::caller(&request)?;
        self.complete(caller, request.into_inner()).await.map(Response::new).map_err(status::of)
    }

    async fn get_external_account(
        &self,
        request: Request<v1::GetExternalAccountRequest>,
    ) -> Result<Response<v1::GetExternalAccountResponse>, Status> {
        let caller = door::caller(&request)?;
        self.account(caller, request.into_inner()).await.map(Response::new).map_err(status::of)
    }

    async fn list_external_accounts(
        &self,
        request: Request<v1::ListExternalAccountsRequest>,
    ) -> Result<Response<v1::ListExternalAccountsResponse>, Status> {
        let caller = door::caller(&request)?;
        self.accounts(caller, request.into_inner()).await.map(Response::new).map_err(status::of)
    }

    async fn update_external_account(
        &self,
        request: Request<v1::UpdateExternalAccountRequest>,
    ) -> Result<Response<v1::UpdateExternalAccountResponse>, Status> {
        let caller = door::caller(&request)?;
        self.change_account(caller, request.into_inner()).await.map(Response::new).map_err(status::of)
    }

    async fn list_user_providers(
        &self,
        request: Request<v1::ListUserProvidersRequest>,
    ) -> Result<Response<v1::ListUserProvidersResponse>, Status> {
        let caller = door::caller(&request)?;
        self.user_providers(caller, request.into_inner()).await.map(Response::new).map_err(status::of)
    }

    async fn delete_external_account(
        &self,
        request: Request<v1::DeleteExternalAccountRequest>,
    ) -> Result<Response<v1::DeleteExternalAccountResponse>, Status> {
        let caller = door::caller(&request)?;
        self.unlink(caller, &request.into_inner()).await.map(Response::new).map_err(status::of)
    }
}

impl Rooms {
    async fn start(&self, caller: Caller, request: v1::StartLinkRequest) -> Result<v1::StartLinkResponse, Failure> {
        let (user, provider) = (request.user_id.clone(), request.provider.clone());
        let action = StartLink { user: fields::user(user)?, provider: fields::provider(provider)? };
        let start = |rooms: Self, permit, request: v1::StartLinkRequest, noting: Noting| async move {
            let link = LinkRequest {
                redirect_url: fields::optional(request.redirect_url),
                additional_scopes: fields::scopes("additional_scopes", request.additional_scopes)?,
                login_hint: fields::optional(request.login_hint),
                params: request.provider_params.into_iter().collect(),
            };
            let answer = |started: &StartedLink| v1::StartLinkResponse {
                flow_id: started.flow.to_string(),
                authorization_url: started.authorization_url.clone(),
                expire_time: Some(fields::moment(started.expires_at)),
            };
            let note = |started: &StartedLink| noting.note(&answer(started));
            Ok(answer(&rooms.linking.start(&permit, &link, note).await?))
        };
        once(self, caller.may(action)?, request, start).await
    }

    async fn reauthorize(
        &self,
        caller: Caller,
        request: v1::StartReauthorizationRequest,
    ) -> Result<v1::StartReauthorizationResponse, Failure> {
        let id = fields::id("external_account_id", &request.external_account_id)?;
        let start = move |rooms: Self, permit, request: v1::StartReauthorizationRequest, noting: Noting| async move {
            let link = LinkRequest {
                redirect_url: fields::optional(request.redirect_url),
                additional_scopes: fields::scopes("additional_scopes", request.additional_scopes)?,
                login_hint: fields::optional(request.login_hint),
                params: request.provider_params.into_iter().collect(),
            };
            let answer = |started: &StartedLink| v1::StartReauthorizationResponse {
                flow_id: started.flow.to_string(),
                authorization_url: started.authorization_url.clone(),
                expire_time: Some(fields::moment(started.expires_at)),
            };
            let note = |started: &StartedLink| noting.note(&answer(started));
            Ok(answer(&rooms.linking.reauthorize(&permit, id, &link, note).await?))
        };
        once(self, caller.may(Reauthorize)?, request, start).await
    }

    async fn complete(
        &self,
        caller: Caller,
        request: v1::CompleteLinkRequest,
    ) -> Result<v1::CompleteLinkResponse, Failure> {
        let permit = caller.may(CompleteLink { user: fields::user(request.user_id)? })?;
        let proof = match request.proof {
            Some(WireProof::Ticket(ticket)) => Proof::Ticket(Ticket::new(ticket)),
            Some(WireProof::RedirectedUrl(url)) => Proof::RedirectedUrl(url),
            None => return Err(Failure::field("proof", "must be a ticket or a redirected_url")),
        };
        let linked = self.linking.complete(&permit, proof).await?;
        Ok(v1::CompleteLinkResponse {
            external_account: Some(account::account(linked.account)),
            created: linked.created,
            kept_grant: linked.kept_grant,
        })
    }

    async fn account(
        &self,
        caller: Caller,
        request: v1::GetExternalAccountRequest,
    ) -> Result<v1::GetExternalAccountResponse, Failure> {
        let id = fields::id("external_account_id", &request.external_account_id)?;
        let found = self.linking.account(&caller.may(ReadAccounts)?, id).await?;
        Ok(v1::GetExternalAccountResponse { external_account: Some(account::account(found)) })
    }

    async fn accounts(
        &self,
        caller: Caller,
        request: v1::ListExternalAccountsRequest,
    ) -> Result<v1::ListExternalAccountsResponse, Failure> {
        let permit = caller.may(ReadAccounts)?;
        let state = account::filter(request.state)?;
        let bound_to = ["accounts", &request.user_id, &request.provider, &request.state.to_string()];
        let page = Page::read(permit.client(), &bound_to, request.page_size, &request.page_token)?;
        let filter = AccountFilter {
            user: fields::optional(request.user_id).map(fields::user).transpose()?,
            provider: fields::optional(request.provider).map(fields::provider).transpose()?,
            state,
        };
        let mut accounts = self.linking.accounts(&permit, &filter, page.after()?, page.limit()).await?;
        let next_page_token = page.cut(&mut accounts, |account| account.row.id.to_string());
        let external_accounts = accounts.into_iter().map(account::account).collect();
        Ok(v1::ListExternalAccountsResponse { external_accounts, next_page_token })
    }

    async fn change_account(
        &self,
        caller: Caller,
        request: v1::UpdateExternalAccountRequest,
    ) -> Result<v1::UpdateExternalAccountResponse, Failure> {
        let permit = caller.may(UpdateAccounts)?;
        let id = fields::id("external_account_id", &request.external_account_id)?;
        let changed = self.linking.update(&permit, id, account::edit(request)?).await?;
        Ok(v1::UpdateExternalAccountResponse { external_account: Some(account::account(changed)) })
    }

    async fn user_providers(
        &self,
        caller: Caller,
        request: v1::ListUserProvidersRequest,
    ) -> Result<v1::ListUserProvidersResponse, Failure> {
        let bound_to = ["user-providers", &request.user_id];
        let page = Page::read(caller.client(), &bound_to, request.page_size, &request.page_token)?;
        let permit = caller.may(ReadUserProviders { user: fields::user(request.user_id)? })?;
        let found = self.linking.user_providers(&permit, page.after()?.as_ref(), page.size()).await?;
        let next_page_token = found.next.map(|slug| page.token(slug.as_str())).unwrap_or_default();
        let user_providers = found.providers.into_iter().map(account::user_provider).collect();
        Ok(v1::ListUserProvidersResponse { user_providers, next_page_token })
    }

    async fn unlink(
        &self,
        caller: Caller,
        request: &v1::DeleteExternalAccountRequest,
    ) -> Result<v1::DeleteExternalAccountResponse, Failure> {
        let id = fields::id("external_account_id", &request.external_account_id)?;
        self.linking.unlink(&caller.may(UnlinkAccounts)?, id).await?;
        Ok(v1::DeleteExternalAccountResponse {})
    }
}
