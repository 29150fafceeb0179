//! `WalletService`.

use futures_util::stream::{self, StreamExt as _};
use tonic::{Request, Response, Status};

use super::convert::token;
use super::status::{self, Sent};
use super::{Rooms, door};
use crate::access::Caller;
use crate::access::permit::{ReadToken, StartLink};
use crate::domain::error::Failure;
use crate::linking::Refused;
use crate::proto::v1;
use crate::proto::v1::batch_get_access_tokens_response as batch;
use crate::proto::v1::wallet_service_server::WalletService;

/// The most requests in one batch.
const LARGEST_BATCH: usize = 100;

/// How many of a batch are worked on at a time.
const AT_ONCE: usize = 16;

#[tonic::async_trait]
impl WalletService for Rooms {
    async fn get_access_token(
        &self,
        request: Request<v1::GetAccessTokenRequest>,
    ) -> Result<Response<v1::GetAccessTokenResponse>, Status> {
        let caller = door::caller(&request)?;
        self.get(caller, request.into_inner()).await.map(Response::new)
    }

    async fn batch_get_access_tokens(
        &self,
        request: Request<v1::BatchGetAccessTokensRequest>,
    ) -> Result<Response<v1::BatchGetAccessTokensResponse>, Status> {
        let caller = door::caller(&request)?;
        let requests = request.into_inner().requests;
        if requests.is_empty() || requests.len() > LARGEST_BATCH {
            return Err(status::of(Failure::field("requests", "must be 1 to 100 requests")));
        }
        let answers = stream::iter(requests).map(|request| self.get(caller, request)).buffered(AT_ONCE);
        let results = answers.map(|answer| batch::Result { result: Some(result(answer)) }).collect().await;
        Ok(Response::new(v1::BatchGetAccessTokensResponse { results }))
    }
}

impl Rooms {
    async fn get(
        &self,
        caller: Caller,
        request: v1::GetAccessTokenRequest,
    ) -> Result<v1::GetAccessTokenResponse, Status> {
        let (action, redirect_url, request) = token::request(request).map_err(status::of)?;
        let permit = caller.may(action).map_err(status::of)?;
        let given = match redirect_url {
            None => self.wallet.token(&permit, &request).await.map_err(Refused::from),
            Some(url) => {
                let ReadToken { user, provider } = permit.action().clone();
                let may_link = caller.may(StartLink { user, provider }).map_err(status::of)?;
                self.linking.token_or_consent(&permit, &may_link, &request, url).await
            }
        };
        let handout = given.map_err(|Refused { failure, consent }| {
            let account = request.account.map(|account| account.to_string()).unwrap_or_default();
            let sent = Sent { provider: permit.action().provider.as_str(), account: &account };
            status::with(&failure, sent, consent.map(token::consent))
        })?;
        Ok(token::answer(&permit.action().provider, handout))
    }
}

fn result(answer: Result<v1::GetAccessTokenResponse, Status>) -> batch::result::Result {
    match answer {
        Ok(token) => batch::result::Result::Token(token),
        Err(status) => batch::result::Result::Error(status::rich(&status)),
    }
}
