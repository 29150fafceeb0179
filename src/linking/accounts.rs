//! External accounts: shown, listed, unlinked.

use super::Linking;
use crate::access::permit::{Permit, ReadAccounts, UnlinkAccounts};
use crate::domain::error::Failure;
use crate::domain::event::{Event, EventKind};
use crate::domain::ids::AccountId;
use crate::domain::provider::Profile;
use crate::store::{AccountFilter, AccountRow};
use crate::vault::Owner;

/// An account with its profile opened.
pub struct Account {
    /// What the store knows.
    pub row: AccountRow,
    /// Who it is; empty once it is unlinked, or if the stored profile does not open.
    pub profile: Profile,
}

impl Linking {
    /// One account, unlinked ones too while their row stands.
    pub async fn account(&self, _permit: &Permit<ReadAccounts>, id: AccountId) -> Result<Account, Failure> {
        self.account_of(id).await
    }

    /// Accounts, newest first, after the one that ended the page before.
    pub async fn accounts(
        &self,
        _permit: &Permit<ReadAccounts>,
        filter: &AccountFilter,
        after: Option<AccountId>,
        limit: u32,
    ) -> Result<Vec<Account>, Failure> {
        let rows = self.0.store.list_accounts(filter, after, limit).await?;
        Ok(rows.into_iter().map(|row| self.open(row)).collect())
    }

    /// Unlinks an account: no get that starts after this has returned serves it. Unlinking again changes nothing.
    pub async fn unlink(&self, _permit: &Permit<UnlinkAccounts>, id: AccountId) -> Result<(), Failure> {
        let row = self.0.store.account(id).await?.ok_or(Failure::AccountNotFound)?;
        let now = self.0.clock.now();
        let event = Event::new(EventKind::AccountUnlinked, now, row.user, row.provider).account(id);
        if self.0.wallet.withdraw(id, event).await? {
            tracing::info!(account = %id, "unlinked an account");
        }
        Ok(())
    }

    pub(super) async fn account_of(&self, id: AccountId) -> Result<Account, Failure> {
        Ok(self.open(self.0.store.account(id).await?.ok_or(Failure::AccountNotFound)?))
    }

    fn open(&self, row: AccountRow) -> Account {
        let (id, provider) = (row.id.to_string(), row.provider.to_string());
        let owner = Owner::of_profile(&id, row.user.as_str(), &provider);
        let opened = row.profile.as_ref().map(|profile| self.0.vault.open_cell(profile, &owner)).transpose();
        let profile = opened.unwrap_or_else(|error| {
            tracing::error!(account = %row.id, %error, "a stored profile does not open");
            None
        });
        let profile = profile.unwrap_or_default();
        Account { row, profile }
    }
}
