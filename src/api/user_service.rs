//! `UserService`.

use tonic::{Request, Response, Status};

use super::convert::fields;
use super::page::Page;
use super::{Rooms, door, status};
use crate::access::Caller;
use crate::access::permit::{DeleteUsers, ReadUsers};
use crate::domain::error::Failure;
use crate::proto::v1;
use crate::proto::v1::user_service_server::UserService;
use crate::store::UserRow;

#[tonic::async_trait]
impl UserService for Rooms {
    async fn get_user(&self, request: Request<v1::GetUserRequest>) -> Result<Response<v1::GetUserResponse>, Status> {
        let caller = door::caller(&request)?;
        self.show_user(caller, request.into_inner()).await.map(Response::new).map_err(status::of)
    }

    async fn list_users(
        &self,
        request: Request<v1::ListUsersRequest>,
    ) -> Result<Response<v1::ListUsersResponse>, Status> {
        let caller = door::caller(&request)?;
        self.list_users_of(caller, &request.into_inner()).await.map(Response::new).map_err(status::of)
    }

    async fn delete_user(
        &self,
        request: Request<v1::DeleteUserRequest>,
    ) -> Result<Response<v1::DeleteUserResponse>, Status> {
        let caller = door::caller(&request)?;
        self.erase_user(caller, request.into_inner()).await.map(Response::new).map_err(status::of)
    }
}

impl Rooms {
    async fn show_user(&self, caller: Caller, request: v1::GetUserRequest) -> Result<v1::GetUserResponse, Failure> {
        let row = self.linking.user(&caller.may(ReadUsers)?, &fields::user(request.user_id)?).await?;
        Ok(v1::GetUserResponse { user: Some(user(&row)) })
    }

    async fn list_users_of(
        &self,
        caller: Caller,
        request: &v1::ListUsersRequest,
    ) -> Result<v1::ListUsersResponse, Failure> {
        let permit = caller.may(ReadUsers)?;
        let page = Page::read(permit.client(), &["users"], request.page_size, &request.page_token)?;
        let mut rows = self.linking.users(&permit, page.after()?.as_ref(), page.limit()).await?;
        let next_page_token = page.cut(&mut rows, |row| row.id.to_string());
        Ok(v1::ListUsersResponse { users: rows.iter().map(user).collect(), next_page_token })
    }

    async fn erase_user(
        &self,
        caller: Caller,
        request: v1::DeleteUserRequest,
    ) -> Result<v1::DeleteUserResponse, Failure> {
        self.linking.delete_user(&caller.may(DeleteUsers)?, &fields::user(request.user_id)?).await?;
        Ok(v1::DeleteUserResponse {})
    }
}

fn user(row: &UserRow) -> v1::User {
    v1::User { id: row.id.to_string(), create_time: Some(fields::moment(row.created_at)) }
}
