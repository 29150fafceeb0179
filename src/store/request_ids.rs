//! Creating calls by their `request_id`.

use super::db::Tx;
use super::error::StoreError;
use super::sql::{args, statements};
use super::{BATCH, Store};
use crate::clock::Timestamp;
use crate::domain::flow::Flow;
use crate::domain::request::{Answer, Asked, RequestKey};
use crate::domain::user::UserId;
use crate::vault::Sealed;

/// A call that was made before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestRow {
    /// What was asked.
    pub asked: Sealed<Asked>,
    /// What was answered, while that is told.
    pub answer: Option<Sealed<Answer>>,
    /// While it is being answered: until when nobody else begins it anew.
    pub lease_until: Option<Timestamp>,
}

/// The answer to a call, for the transaction that makes what it tells of: either both stand or neither does.
#[derive(Clone, Debug)]
pub struct Note {
    /// Which call.
    pub key: RequestKey,
    /// As it was reserved: nobody else has begun the call anew since.
    pub asked: Sealed<Asked>,
    /// Its answer.
    pub answer: Sealed<Answer>,
    /// Until when it is told again.
    pub told_until: Timestamp,
}

statements! {
    RESERVE {
        "INSERT INTO request_ids (api_client_id, method, request_id, asked, lease_until, expires_at)
         VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT DO NOTHING"
    }
    // The URL of a flow is good for nothing once the browser is back.
    FIND {
        "SELECT r.request_id, r.asked, r.lease_until,
            CASE WHEN r.told_until > $4 AND (r.flow_id IS NULL OR f.state = 'started') THEN r.answer END AS answer
         FROM request_ids r LEFT JOIN flows f ON f.id = r.flow_id
         WHERE r.api_client_id = $1 AND r.method = $2 AND r.request_id = $3 AND r.expires_at > $4"
    }
    // What was asked is sealed anew each time: no two are equal.
    TAKE_OVER {
        "UPDATE request_ids SET asked = $5, lease_until = $6, expires_at = $7
         WHERE api_client_id = $1 AND method = $2 AND request_id = $3 AND asked = $4 AND lease_until IS NOT NULL"
    }
    ANSWER {
        "UPDATE request_ids SET answer = $5, told_until = $6, flow_id = $7, user_id = $8, lease_until = NULL
         WHERE api_client_id = $1 AND method = $2 AND request_id = $3 AND asked = $4 AND lease_until IS NOT NULL"
    }
    FORGET {
        "DELETE FROM request_ids
         WHERE api_client_id = $1 AND method = $2 AND request_id = $3 AND asked = $4 AND lease_until IS NOT NULL"
    }
    FORGET_EXPIRED {
        "DELETE FROM request_ids WHERE api_client_id = $1 AND method = $2 AND request_id = $3 AND expires_at <= $4"
    }
    ERASE_OF_USER { "UPDATE request_ids SET answer = NULL, user_id = NULL WHERE user_id = $1" }
    ERASE {
        "UPDATE request_ids SET answer = NULL WHERE answer IS NOT NULL AND (api_client_id, method, request_id) IN (
            SELECT api_client_id, method, request_id FROM request_ids WHERE answer IS NOT NULL AND told_until <= $1
            ORDER BY told_until LIMIT $2)"
    }
    TIDY {
        "DELETE FROM request_ids WHERE (api_client_id, method, request_id) IN (
            SELECT api_client_id, method, request_id FROM request_ids WHERE expires_at <= $1 ORDER BY expires_at LIMIT $2)"
    }
}

impl Store {
    /// Notes that a call is being answered. False if one with its id was made before.
    pub async fn reserve_request(
        &self,
        key: &RequestKey,
        asked: &Sealed<Asked>,
        lease_until: Timestamp,
        now: Timestamp,
        expires_at: Timestamp,
    ) -> Result<bool, StoreError> {
        let RequestKey { client, method, id } = key;
        let mut tx = self.db.begin().await?;
        tx.execute(&FORGET_EXPIRED, args![*client, *method, id.as_str(), now]).await?;
        let values = args![*client, *method, id.as_str(), asked, lease_until, expires_at];
        let reserved = tx.execute(&RESERVE, values).await? == 1;
        tx.commit().await?;
        Ok(reserved)
    }

    /// The call that was made before.
    pub async fn request(&self, key: &RequestKey, now: Timestamp) -> Result<Option<RequestRow>, StoreError> {
        let RequestKey { client, method, id } = key;
        let found = self.db.one(&FIND, args![*client, *method, id.as_str(), now]).await?;
        found
            .map(|row| {
                let cells = row.of("request_ids", "", "request_id")?;
                Ok(RequestRow {
                    asked: cells.sealed("asked")?,
                    answer: cells.sealed_opt("answer")?,
                    lease_until: cells.time_opt("lease_until")?,
                })
            })
            .transpose()
    }

    /// Begins a call anew that nobody answered: `new` stands for it now. False if `old` does not any more.
    pub async fn take_over_request(
        &self,
        key: &RequestKey,
        old: &Sealed<Asked>,
        new: &Sealed<Asked>,
        lease_until: Timestamp,
        expires_at: Timestamp,
    ) -> Result<bool, StoreError> {
        let RequestKey { client, method, id } = key;
        let values = args![*client, *method, id.as_str(), old, new, lease_until, expires_at];
        Ok(self.db.execute(&TAKE_OVER, values).await? == 1)
    }

    /// Forgets a call that failed, so that it can be made again; but not one that was answered.
    pub async fn forget_request(&self, key: &RequestKey, asked: &Sealed<Asked>) -> Result<(), StoreError> {
        let RequestKey { client, method, id } = key;
        self.db.execute(&FORGET, args![*client, *method, id.as_str(), asked]).await.map(drop)
    }

    /// Erases answers that are told no more, and removes what need not be known any more.
    pub async fn tidy_requests(&self, now: Timestamp) -> Result<u64, StoreError> {
        let erased = self.in_batches(&ERASE, args![now, BATCH]).await?;
        Ok(erased + self.in_batches(&TIDY, args![now, BATCH]).await?)
    }
}

/// Writes the note of the call, if it has one, as the last of its transaction: a call whose place was taken makes
/// nothing. `flow`: whose URL the answer holds.
pub(super) async fn write(tx: &mut Tx, note: Option<&Note>, flow: Option<&Flow>) -> Result<(), StoreError> {
    let Some(Note { key, asked, answer, told_until }) = note else { return Ok(()) };
    let (flow, user) = (flow.map(|flow| flow.id), flow.map(|flow| flow.user.as_str()));
    let values = args![key.client, key.method, key.id.as_str(), asked, answer, *told_until, flow, user];
    if tx.execute(&ANSWER, values).await? == 1 { Ok(()) } else { Err(StoreError::Overtaken) }
}

/// Erases what a user's calls were answered.
pub(super) async fn erase(tx: &mut Tx, user: &UserId) -> Result<(), StoreError> {
    tx.execute(&ERASE_OF_USER, args![user]).await.map(drop)
}
