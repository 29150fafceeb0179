//! External accounts: shown, listed, changed, unlinked.

use super::Linking;
use crate::access::permit::{Permit, ReadAccounts, ReadUserProviders, UnlinkAccounts, UpdateAccounts};
use crate::domain::account::Label;
use crate::domain::error::Failure;
use crate::domain::event::{Event, EventKind};
use crate::domain::ids::AccountId;
use crate::domain::provider::{Health, Profile, Slug};
use crate::providers::Provider;
use crate::store::{AccountChange, AccountFilter, AccountRow, Stale, UpdateAccount};
use crate::vault::{Owner, Sealed};

/// An account with its profile opened.
pub struct Account {
    /// What the store knows.
    pub row: AccountRow,
    /// Who it is; empty once it is unlinked, or if the stored profile does not open.
    pub profile: Profile,
    /// A name that its user chose, if there is one and it opens.
    pub label: Option<Label>,
}

/// What to change of an account. Unset fields stay as they are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AccountEdit {
    /// The new label; `Some(None)` takes it away.
    pub label: Option<Option<Label>>,
    /// Whether it is its user's default at the provider.
    pub is_default: Option<bool>,
    /// The revision that it must still have.
    pub revision: Option<i64>,
}

/// A provider as one user has it.
pub struct UserProvider {
    /// The provider.
    pub provider: Provider,
    /// The user's accounts there, the oldest first.
    pub accounts: Vec<Account>,
    /// Whether one, or one more, can be linked now.
    pub connectable: bool,
}

/// Some of the providers, by slug, as one user has them.
pub struct UserProviderPage {
    /// The providers.
    pub providers: Vec<UserProvider>,
    /// Where the next page begins: behind this slug. `None`: this is the last.
    pub next: Option<Slug>,
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

    /// Changes an account: once this has returned, no get that names no account is answered with a former default's
    /// token.
    pub async fn update(
        &self,
        _permit: &Permit<UpdateAccounts>,
        id: AccountId,
        edit: AccountEdit,
    ) -> Result<Account, Failure> {
        let row = self.0.store.account(id).await?.ok_or(Failure::AccountNotFound)?;
        let label = edit.label.map(|label| label.map(|label| self.seal_label(&row, &label)).transpose()).transpose()?;
        let change = AccountChange { label, is_default: edit.is_default, revision: edit.revision };
        let (store, now) = (self.0.store.clone(), self.0.clock.now());
        let stale = Stale::Account { provider: row.provider, user: row.user };
        let update = async move { store.update_account(id, &change, now).await };
        match self.0.cache.change(stale, update).await? {
            UpdateAccount::Done { default_changed } => {
                if default_changed {
                    self.0.cache.settled().await;
                }
                self.account_of(id).await
            }
            UpdateAccount::NotFound => Err(Failure::AccountNotFound),
            UpdateAccount::Changed => Err(Failure::Conflict),
        }
    }

    /// Up to `limit` providers by slug, those behind `after`, with the accounts that a user has there.
    pub async fn user_providers(
        &self,
        permit: &Permit<ReadUserProviders>,
        after: Option<&Slug>,
        limit: u32,
    ) -> Result<UserProviderPage, Failure> {
        let page = self.0.registry.page(after.map(Slug::as_str), limit).await?;
        let rows = match (page.providers.first(), page.providers.last()) {
            (Some(first), Some(last)) => {
                self.0.store.accounts_beside(&permit.action().user, &first.slug, &last.slug).await?
            }
            _ => Vec::new(),
        };
        let now = self.0.clock.now();
        let mut accounts: Vec<_> = rows.into_iter().map(|row| self.open(row)).collect();
        let providers = page.providers.into_iter().map(|provider| {
            let of_it = accounts.extract_if(.., |account| account.row.provider == provider.id).collect();
            let connectable = provider.standing.health(now) != Health::Misconfigured;
            UserProvider { provider, accounts: of_it, connectable }
        });
        Ok(UserProviderPage { providers: providers.collect(), next: page.next })
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
        let label = row.label.as_ref().and_then(|label| {
            let opened = self.0.vault.open_cell(label, &owner);
            opened.inspect_err(|error| tracing::error!(account = %row.id, %error, "a stored label does not open")).ok()
        });
        let profile = profile.unwrap_or_default();
        Account { row, profile, label }
    }

    fn seal_label(&self, row: &AccountRow, label: &Label) -> Result<Sealed<Label>, Failure> {
        let (id, provider) = (row.id.to_string(), row.provider.to_string());
        let owner = Owner::of_profile(&id, row.user.as_str(), &provider);
        self.0.vault.seal(label, &owner).map_err(|error| {
            tracing::error!(account = %row.id, %error, "could not seal a label");
            Failure::Internal
        })
    }
}
