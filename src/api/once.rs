//! Creating calls: a `request_id` makes one that is repeated answer the same.

use std::future::Future;
use std::time::Duration;

use prost::Message;
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use super::Rooms;
use crate::access::permit::{Action, Permit};
use crate::access::requests::{KEPT, Reservation};
use crate::domain::error::Failure;
use crate::domain::flow::FLOW_LIFE;
use crate::domain::request::RequestKey;
use crate::proto::v1;
use crate::store::Note;

/// How long an API key is told again.
const KEY_TOLD: Duration = Duration::from_mins(15);

/// A request that makes something.
pub(super) trait Creating: Message + Send + 'static {
    /// Its method's name.
    const METHOD: &'static str;

    /// How long its answer is told again.
    const TOLD: Duration;

    /// Takes the `request_id` out.
    fn take_id(&mut self) -> String;
}

/// Makes the note of a creating call's answer, if the call carries a `request_id`.
pub(super) struct Noting {
    reservation: Option<Reservation>,
    told: Duration,
}

macro_rules! creating {
    ($($request:ident = $method:literal, told for $told:expr;)*) => {$(
        impl Creating for v1::$request {
            const METHOD: &'static str = $method;
            const TOLD: Duration = $told;

            fn take_id(&mut self) -> String {
                std::mem::take(&mut self.request_id)
            }
        }
    )*};
}

creating! {
    StartLinkRequest = "StartLink", told for FLOW_LIFE;
    StartReauthorizationRequest = "StartReauthorization", told for FLOW_LIFE;
    CreateProviderRequest = "CreateProvider", told for KEPT;
    CreateProviderSecretRequest = "CreateProviderSecret", told for KEPT;
    CreateRedirectUrlRequest = "CreateRedirectUrl", told for KEPT;
    CreateApiClientRequest = "CreateApiClient", told for KEY_TOLD;
}

impl Noting {
    /// The note of `answer`, for the transaction that makes what it tells of.
    pub(super) fn note(&self, answer: &impl Message) -> Result<Option<Note>, Failure> {
        self.reservation.as_ref().map(|reservation| reservation.note(encode(answer), self.told)).transpose()
    }
}

/// Answers a creating call, once for each `request_id`. `make` writes the note of its answer.
pub(super) async fn once<P, Q, A, F>(
    rooms: &Rooms,
    permit: Permit<P>,
    mut request: Q,
    make: impl FnOnce(Rooms, Permit<P>, Q, Noting) -> F,
) -> Result<A, Failure>
where
    P: Action,
    Q: Creating,
    A: Message + Default,
    F: Future<Output = Result<A, Failure>> + Send + 'static,
{
    let id = request.take_id();
    let noting = |reservation| Noting { reservation, told: Q::TOLD };
    if id.is_empty() {
        return make(rooms.clone(), permit, request, noting(None)).await;
    }
    let asked = Sha256::digest(&*encode(&request)).into();
    let key = RequestKey { client: permit.client(), method: Q::METHOD, id };
    let work = |reservation| {
        let making = make(rooms.clone(), permit, request, noting(Some(reservation)));
        async move { making.await.map(|answer| encode(&answer)) }
    };
    let answer = rooms.requests.once(key, asked, work).await?;
    A::decode(answer.as_slice()).map_err(|_| Failure::Internal)
}

/// In one allocation of the right size: it may hold a secret.
fn encode(message: &impl Message) -> Zeroizing<Vec<u8>> {
    Zeroizing::new(message.encode_to_vec())
}
