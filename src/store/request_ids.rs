//! Creating calls by their `request_id`.

use super::error::StoreError;
use super::sql::{args, statements};
use super::{BATCH, Store};
use crate::clock::Timestamp;
use crate::domain::request::{Request, RequestKey};
use crate::vault::Sealed;

/// A call that was made before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestRow {
    /// What was asked and answered.
    pub record: Sealed<Request>,
    /// While it is being answered: until when nobody else begins it anew.
    pub lease_until: Option<Timestamp>,
}

statements! {
    RESERVE {
        "INSERT INTO request_ids (api_client_id, method, request_id, record, lease_until, expires_at)
         VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT DO NOTHING"
    }
    FIND {
        "SELECT request_id, record, lease_until FROM request_ids
         WHERE api_client_id = $1 AND method = $2 AND request_id = $3 AND expires_at > $4"
    }
    // A record is sealed anew each time: no two are equal.
    TAKE_OVER {
        "UPDATE request_ids SET record = $5, lease_until = $6, expires_at = $7
         WHERE api_client_id = $1 AND method = $2 AND request_id = $3 AND record = $4"
    }
    FORGET {
        "DELETE FROM request_ids WHERE api_client_id = $1 AND method = $2 AND request_id = $3 AND record = $4"
    }
    FORGET_EXPIRED {
        "DELETE FROM request_ids WHERE api_client_id = $1 AND method = $2 AND request_id = $3 AND expires_at <= $4"
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
        record: &Sealed<Request>,
        lease_until: Timestamp,
        now: Timestamp,
        expires_at: Timestamp,
    ) -> Result<bool, StoreError> {
        let RequestKey { client, method, id } = key;
        let mut tx = self.db.begin().await?;
        tx.execute(&FORGET_EXPIRED, args![*client, *method, id.as_str(), now]).await?;
        let values = args![*client, *method, id.as_str(), record, lease_until, expires_at];
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
                Ok(RequestRow { record: cells.sealed("record")?, lease_until: cells.time_opt("lease_until")? })
            })
            .transpose()
    }

    /// Puts `new` in the place of `old`; without a lease it is answered. False if `old` is not there any more.
    pub async fn replace_request(
        &self,
        key: &RequestKey,
        old: &Sealed<Request>,
        new: &Sealed<Request>,
        lease_until: Option<Timestamp>,
        expires_at: Timestamp,
    ) -> Result<bool, StoreError> {
        let RequestKey { client, method, id } = key;
        let values = args![*client, *method, id.as_str(), old, new, lease_until, expires_at];
        Ok(self.db.execute(&TAKE_OVER, values).await? == 1)
    }

    /// Forgets a call that failed, so that it can be made again.
    pub async fn forget_request(&self, key: &RequestKey, record: &Sealed<Request>) -> Result<(), StoreError> {
        let RequestKey { client, method, id } = key;
        self.db.execute(&FORGET, args![*client, *method, id.as_str(), record]).await.map(drop)
    }

    /// Removes what need not be answered again any more.
    pub async fn tidy_requests(&self, now: Timestamp) -> Result<u64, StoreError> {
        self.in_batches(&TIDY, args![now, BATCH]).await
    }
}
