//! Event rows: written in the transaction of the change that they tell of.

use super::Store;
use super::db::Tx;
use super::error::StoreError;
use super::sql::{args, statements};
use crate::domain::event::Event;
use crate::domain::user::UserId;

statements! {
    INSERT {
        "INSERT INTO events (id, at, kind, user_id, provider_id, account_id, grant_id, flow_id, reason)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)"
    }
}

impl Store {
    /// Writes an event that tells of no change.
    pub async fn tell(&self, event: &Event) -> Result<(), StoreError> {
        let mut tx = self.db.begin().await?;
        insert(&mut tx, event).await?;
        tx.commit().await
    }
}

/// Writes an event.
pub(super) async fn insert(tx: &mut Tx, event: &Event) -> Result<(), StoreError> {
    let values = args![
        event.id,
        event.at,
        event.kind.as_str(),
        event.user.as_ref().map(UserId::as_str),
        event.provider,
        event.account,
        event.grant,
        event.flow,
        event.reason.as_deref(),
    ];
    tx.execute(&INSERT, values).await.map(drop)
}
