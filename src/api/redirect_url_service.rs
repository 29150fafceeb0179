//! `RedirectUrlService`.

use tonic::{Request, Response, Status};

use super::convert::fields;
use super::once::{Noting, once};
use super::page::Page;
use super::{Rooms, door, status};
use crate::access::Caller;
use crate::access::permit::ManageRedirectUrls;
use crate::domain::error::Failure;
use crate::proto::v1;
use crate::proto::v1::redirect_url_service_server::RedirectUrlService;
use crate::store::RedirectUrlRow;

#[tonic::async_trait]
impl RedirectUrlService for Rooms {
    async fn create_redirect_url(
        &self,
        request: Request<v1::CreateRedirectUrlRequest>,
    ) -> Result<Response<v1::CreateRedirectUrlResponse>, Status> {
        let caller = door::caller(&request)?;
        self.allow(caller, request.into_inner()).await.map(Response::new).map_err(status::of)
    }

    async fn list_redirect_urls(
        &self,
        request: Request<v1::ListRedirectUrlsRequest>,
    ) -> Result<Response<v1::ListRedirectUrlsResponse>, Status> {
        let caller = door::caller(&request)?;
        self.allowed(caller, &request.into_inner()).await.map(Response::new).map_err(status::of)
    }

    async fn delete_redirect_url(
        &self,
        request: Request<v1::DeleteRedirectUrlRequest>,
    ) -> Result<Response<v1::DeleteRedirectUrlResponse>, Status> {
        let caller = door::caller(&request)?;
        self.forbid(caller, &request.into_inner()).await.map(Response::new).map_err(status::of)
    }
}

impl Rooms {
    async fn allow(
        &self,
        caller: Caller,
        request: v1::CreateRedirectUrlRequest,
    ) -> Result<v1::CreateRedirectUrlResponse, Failure> {
        let allow = |rooms: Self, permit, request: v1::CreateRedirectUrlRequest, noting: Noting| async move {
            let client = fields::optional_id("api_client_id", &request.api_client_id)?;
            let answer = |row| v1::CreateRedirectUrlResponse { redirect_url: Some(entry(row)) };
            let note = |row: &RedirectUrlRow| noting.note(&answer(row.clone()));
            Ok(answer(rooms.linking.allow_redirect_url(&permit, &request.url, client, note).await?))
        };
        once(self, caller.may(ManageRedirectUrls)?, request, allow).await
    }

    async fn allowed(
        &self,
        caller: Caller,
        request: &v1::ListRedirectUrlsRequest,
    ) -> Result<v1::ListRedirectUrlsResponse, Failure> {
        let permit = caller.may(ManageRedirectUrls)?;
        let page = Page::read(permit.client(), &["redirect-urls"], request.page_size, &request.page_token)?;
        let mut rows = self.linking.redirect_urls(&permit, page.after()?, page.limit()).await?;
        let next_page_token = page.cut(&mut rows, |row| row.id.to_string());
        Ok(v1::ListRedirectUrlsResponse { redirect_urls: rows.into_iter().map(entry).collect(), next_page_token })
    }

    async fn forbid(
        &self,
        caller: Caller,
        request: &v1::DeleteRedirectUrlRequest,
    ) -> Result<v1::DeleteRedirectUrlResponse, Failure> {
        let id = fields::id("redirect_url_id", &request.redirect_url_id)?;
        self.linking.forbid_redirect_url(&caller.may(ManageRedirectUrls)?, id).await?;
        Ok(v1::DeleteRedirectUrlResponse {})
    }
}

fn entry(row: RedirectUrlRow) -> v1::RedirectUrl {
    v1::RedirectUrl {
        id: row.id.to_string(),
        url: row.url,
        api_client_id: row.client.map(|client| client.to_string()).unwrap_or_default(),
        create_time: Some(fields::moment(row.created_at)),
    }
}
