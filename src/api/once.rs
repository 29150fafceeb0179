//! Creating calls: a `request_id` makes one that is repeated answer the same.

use std::future::Future;

use prost::Message;
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use super::Rooms;
use crate::access::Caller;
use crate::domain::error::Failure;
use crate::domain::request::RequestKey;
use crate::proto::v1;

/// A request that makes something.
pub(super) trait Creating: Message + Send + 'static {
    /// Its method's name.
    const METHOD: &'static str;

    /// Takes the `request_id` out.
    fn take_id(&mut self) -> String;
}

macro_rules! creating {
    ($($request:ident = $method:literal;)*) => {$(
        impl Creating for v1::$request {
            const METHOD: &'static str = $method;

            fn take_id(&mut self) -> String {
                std::mem::take(&mut self.request_id)
            }
        }
    )*};
}

creating! {
    StartLinkRequest = "StartLink";
    StartReauthorizationRequest = "StartReauthorization";
    CreateProviderRequest = "CreateProvider";
    CreateProviderSecretRequest = "CreateProviderSecret";
    CreateRedirectUrlRequest = "CreateRedirectUrl";
    CreateApiClientRequest = "CreateApiClient";
}

/// Answers a creating call, once for each `request_id`.
pub(super) async fn once<Q, A, F>(
    rooms: &Rooms,
    caller: Caller,
    mut request: Q,
    make: impl FnOnce(Rooms, Q) -> F,
) -> Result<A, Failure>
where
    Q: Creating,
    A: Message + Default,
    F: Future<Output = Result<A, Failure>> + Send + 'static,
{
    let id = request.take_id();
    if id.is_empty() {
        return make(rooms.clone(), request).await;
    }
    let asked = Sha256::digest(&*encode(&request)).into();
    let key = RequestKey { client: caller.client(), method: Q::METHOD, id };
    let making = make(rooms.clone(), request);
    let answer = rooms.requests.once(key, asked, async move { making.await.map(|answer| encode(&answer)) }).await?;
    A::decode(answer.as_slice()).map_err(|_| Failure::Internal)
}

/// In one allocation of the right size: it may hold a secret.
fn encode(message: &impl Message) -> Zeroizing<Vec<u8>> {
    Zeroizing::new(message.encode_to_vec())
}
