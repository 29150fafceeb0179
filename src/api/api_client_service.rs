//! `ApiClientService`.

use tonic::{Request, Response, Status};

use super::convert::fields;
use super::once::{Noting, once};
use super::page::Page;
use super::{Rooms, door, status};
use crate::access::Caller;
use crate::access::clients::NewClient;
use crate::access::permit::ManageClients;
use crate::domain::error::Failure;
use crate::proto::v1;
use crate::proto::v1::api_client_service_server::ApiClientService;
use crate::store::{ApiClientRow, ApiKeyRow};

#[tonic::async_trait]
impl ApiClientService for Rooms {
    async fn create_api_client(
        &self,
        request: Request<v1::CreateApiClientRequest>,
    ) -> Result<Response<v1::CreateApiClientResponse>, Status> {
        let caller = door::caller(&request)?;
        self.make_client(caller, request.into_inner()).await.map(Response::new).map_err(status::of)
    }

    async fn list_api_clients(
        &self,
        request: Request<v1::ListApiClientsRequest>,
    ) -> Result<Response<v1::ListApiClientsResponse>, Status> {
        let caller = door::caller(&request)?;
        self.clients(caller, &request.into_inner()).await.map(Response::new).map_err(status::of)
    }

    async fn delete_api_client(
        &self,
        request: Request<v1::DeleteApiClientRequest>,
    ) -> Result<Response<v1::DeleteApiClientResponse>, Status> {
        let caller = door::caller(&request)?;
        self.remove_client(caller, &request.into_inner()).await.map(Response::new).map_err(status::of)
    }
}

impl Rooms {
    async fn make_client(
        &self,
        caller: Caller,
        request: v1::CreateApiClientRequest,
    ) -> Result<v1::CreateApiClientResponse, Failure> {
        let make = |rooms: Self, permit, request: v1::CreateApiClientRequest, noting: Noting| async move {
            let key_ttl = fields::duration("key_ttl", request.key_ttl)?;
            let answer = |new: &NewClient| v1::CreateApiClientResponse {
                api_client: Some(api_client(new.client.clone())),
                api_key: Some(v1::ApiKey {
                    info: new.client.keys.first().map(key_info),
                    secret: new.key.expose().to_owned(),
                }),
            };
            let note = |new: &NewClient| noting.note(&answer(new));
            Ok(answer(&rooms.access.create_client(&permit, &request.display_name, key_ttl, note).await?))
        };
        once(self, caller.may(ManageClients)?, request, make).await
    }

    async fn clients(
        &self,
        caller: Caller,
        request: &v1::ListApiClientsRequest,
    ) -> Result<v1::ListApiClientsResponse, Failure> {
        let permit = caller.may(ManageClients)?;
        let page = Page::read(permit.client(), &["api-clients"], request.page_size, &request.page_token)?;
        let mut rows = self.access.clients(&permit, page.after()?, page.limit()).await?;
        let next_page_token = page.cut(&mut rows, |row| row.id.to_string());
        Ok(v1::ListApiClientsResponse { api_clients: rows.into_iter().map(api_client).collect(), next_page_token })
    }

    async fn remove_client(
        &self,
        caller: Caller,
        request: &v1::DeleteApiClientRequest,
    ) -> Result<v1::DeleteApiClientResponse, Failure> {
        let id = fields::id("api_client_id", &request.api_client_id)?;
        self.access.delete_client(&caller.may(ManageClients)?, id).await?;
        Ok(v1::DeleteApiClientResponse {})
    }
}

fn api_client(row: ApiClientRow) -> v1::ApiClient {
    v1::ApiClient {
        id: row.id.to_string(),
        display_name: row.display_name,
        api_keys: row.keys.iter().map(key_info).collect(),
        create_time: Some(fields::moment(row.created_at)),
    }
}

fn key_info(row: &ApiKeyRow) -> v1::ApiKeyInfo {
    v1::ApiKeyInfo {
        id: row.id.to_string(),
        create_time: Some(fields::moment(row.created_at)),
        expire_time: row.expires_at.map(fields::moment),
    }
}
