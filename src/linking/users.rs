//! Users: shown, listed, deleted.

use super::Linking;
use crate::access::permit::{DeleteUsers, Permit, ReadUsers};
use crate::domain::error::Failure;
use crate::domain::user::UserId;
use crate::store::UserRow;

impl Linking {
    /// One user.
    pub async fn user(&self, _permit: &Permit<ReadUsers>, id: &UserId) -> Result<UserRow, Failure> {
        self.0.store.user(id).await?.ok_or(Failure::UserNotFound)
    }

    /// Users by their ids, after the one that ended the page before.
    pub async fn users(
        &self,
        _permit: &Permit<ReadUsers>,
        after: Option<&UserId>,
        limit: u32,
    ) -> Result<Vec<UserRow>, Failure> {
        Ok(self.0.store.list_users(after, limit).await?)
    }

    /// Deletes a user with all accounts: no get that starts after this has returned serves one of them. Deleting again
    /// changes nothing.
    pub async fn delete_user(&self, _permit: &Permit<DeleteUsers>, id: &UserId) -> Result<(), Failure> {
        self.0.wallet.withdraw_user(id).await
    }
}
