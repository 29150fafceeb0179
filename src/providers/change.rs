//! Configuring providers: made, changed, removed, their client secrets with them.

use super::catalog::Entry;
use super::endpoints::CustomEndpoints;
use super::provider::{Provider, secret_owner};
use super::registry::Registry;
use crate::access::permit::{ManageProviders, Permit};
use crate::domain::error::Failure;
use crate::domain::ids::{ProviderId, ProviderSecretId};
use crate::domain::instance::InstanceKind;
use crate::domain::provider::Slug;
use crate::domain::scopes::Scopes;
use crate::domain::secret::ClientSecret;
use crate::store::{
    self, AddSecret, DeleteProvider, Note, ProviderChange, ProviderSecretRow, RemoveSecret, Stale, UpdateProvider,
};
use crate::vault::Sealed;

/// Above what any provider allows, and far from where arithmetic stops.
const MOST_REQUESTS_PER_SECOND: u32 = 100_000;
const MOST_IN_FLIGHT: u32 = 10_000;

/// A provider to configure.
pub struct NewProvider {
    /// Its name in every call.
    pub slug: Slug,
    /// The catalog entry; `None` is the one of the slug's name.
    pub catalog_entry: Option<String>,
    /// Our client id there.
    pub client_id: String,
    /// Our client secret there; `None` is a public client (RFC 6749 section 2.1).
    pub client_secret: Option<ClientSecret>,
    /// What every link shall ask for besides the catalog's.
    pub additional_scopes: Scopes,
    /// For entries without endpoints of their own.
    pub endpoints: Option<CustomEndpoints>,
    /// Its name for people; `None` is the catalog's.
    pub display_name: Option<String>,
}

impl Registry {
    /// Configures a provider. `note` makes the note of the call.
    ///
    /// # Errors
    ///
    /// [`Failure::InvalidField`], [`Failure::ProviderExists`], [`Failure::SharedCredentialsInProduction`], and the
    /// store's.
    pub async fn create(
        &self,
        _permit: &Permit<ManageProviders>,
        new: NewProvider,
        note: impl FnOnce(&Provider) -> Result<Option<Note>, Failure>,
    ) -> Result<Provider, Failure> {
        let entry = self.entry_for(&new)?;
        check(&new)?;
        let endpoints = self.own_endpoints(&new, entry)?;
        let now = self.wire.clock.now();
        let id = ProviderId::new(now);
        let secret = new.client_secret.map(|secret| self.seal(&secret, id)).transpose()?;
        let row = store::NewProvider {
            id,
            slug: new.slug,
            catalog_entry: entry.name.clone(),
            display_name: new.display_name,
            client_id: new.client_id,
            additional_scopes: new.additional_scopes,
            endpoints,
            created_at: now,
            secret,
        };
        let provider = self.found(Some(row.row()))?;
        let note = note(&provider)?;
        // Nothing in memory is stale: that there is no such provider is not remembered.
        let created = self.store.create_provider(&row, note.as_ref()).await?;
        if created { Ok(provider) } else { Err(Failure::ProviderExists) }
    }

    /// Removes a provider that no account uses. Removing one that is gone succeeds for 30 days.
    ///
    /// # Errors
    ///
    /// [`Failure::ProviderInUse`], [`Failure::ProviderNotFound`], and the store's.
    pub async fn delete(&self, _permit: &Permit<ManageProviders>, slug: &Slug) -> Result<(), Failure> {
        let (store, slug, now) = (self.store.clone(), slug.clone(), self.wire.clock.now());
        let delete = async move { store.delete_provider(&slug, now).await };
        match self.cache.change(Stale::Providers, delete).await? {
            DeleteProvider::Deleted => {
                self.cache.settled().await;
                Ok(())
            }
            DeleteProvider::InUse => Err(Failure::ProviderInUse),
            DeleteProvider::NotFound => Err(Failure::ProviderNotFound),
        }
    }

    /// Changes what `change` says, has refused credentials tried again at once, and ends a pause.
    ///
    /// # Errors
    ///
    /// [`Failure::InvalidField`], [`Failure::ProviderNotFound`], [`Failure::Conflict`] if it is of another revision than
    /// `change` names, and the store's.
    pub async fn update(
        &self,
        _permit: &Permit<ManageProviders>,
        slug: &Slug,
        change: ProviderChange,
    ) -> Result<Provider, Failure> {
        check_change(&change)?;
        let (store, name, now) = (self.store.clone(), slug.clone(), self.wire.clock.now());
        let before = if change.unfreeze { self.store.provider_by_slug(slug).await? } else { None };
        let frozen_until = before.and_then(|row| row.standing.frozen_until);
        let update = async move { store.update_provider(&name, &change, now).await };
        match self.cache.change(Stale::Providers, update).await? {
            UpdateProvider::Done => {}
            UpdateProvider::NotFound => return Err(Failure::ProviderNotFound),
            UpdateProvider::Changed => return Err(Failure::Conflict),
        }
        if frozen_until.is_some_and(|until| until > now) {
            tracing::info!(provider = %slug, "an operator ended the freeze: refusals end grants again");
        }
        self.found(self.store.provider_by_slug(slug).await?)
    }

    /// Gives a provider another client secret, up to [`store::MOST_SECRETS`], and has it tried at once. `note`
    /// makes the note of the call.
    ///
    /// # Errors
    ///
    /// [`Failure::InvalidField`], [`Failure::TooManyProviderSecrets`], [`Failure::ProviderNotFound`], and the store's.
    pub async fn add_secret(
        &self,
        _permit: &Permit<ManageProviders>,
        slug: &Slug,
        secret: &ClientSecret,
        note: impl FnOnce(&ProviderSecretRow) -> Result<Option<Note>, Failure>,
    ) -> Result<ProviderSecretRow, Failure> {
        check_secret(secret)?;
        let provider = self.store.provider_by_slug(slug).await?.ok_or(Failure::ProviderNotFound)?.id;
        let (id, secret) = self.seal(secret, provider)?;
        let row = ProviderSecretRow { id, secret, created_at: self.wire.clock.now(), last_used_at: None };
        let (store, added, note) = (self.store.clone(), row.clone(), note(&row)?);
        let add = async move { store.add_secret(provider, &added, note.as_ref()).await };
        match self.cache.change(Stale::Providers, add).await? {
            AddSecret::Added => Ok(row),
            AddSecret::TooMany => Err(Failure::TooManyProviderSecrets),
            AddSecret::NoProvider => Err(Failure::ProviderNotFound),
        }
    }

    /// Takes a client secret away, but not the last one: no request that starts after this has returned carries it.
    /// Taking away one that is gone succeeds.
    ///
    /// # Errors
    ///
    /// [`Failure::LastProviderSecret`], [`Failure::ProviderNotFound`], and the store's.
    pub async fn remove_secret(
        &self,
        _permit: &Permit<ManageProviders>,
        slug: &Slug,
        secret: ProviderSecretId,
    ) -> Result<(), Failure> {
        let (store, slug, now) = (self.store.clone(), slug.clone(), self.wire.clock.now());
        let remove = async move { store.remove_secret(&slug, secret, now).await };
        match self.cache.change(Stale::Providers, remove).await? {
            RemoveSecret::Removed => {
                self.cache.settled().await;
                Ok(())
            }
            RemoveSecret::Last => Err(Failure::LastProviderSecret),
            RemoveSecret::NoProvider => Err(Failure::ProviderNotFound),
        }
    }

    fn entry_for(&self, new: &NewProvider) -> Result<&'static Entry, Failure> {
        let name = new.catalog_entry.as_deref().unwrap_or(new.slug.as_str());
        let entry = self.catalog.entry(name).ok_or_else(|| {
            let known = self.catalog.names().collect::<Vec<_>>().join(", ");
            Failure::field("catalog_entry", format!("must be one of {known}"))
        })?;
        match (entry.development_only, self.site.kind, &self.site.sandbox) {
            (true, InstanceKind::Production, _) => Err(Failure::SharedCredentialsInProduction),
            (true, InstanceKind::Development, None) => Err(Failure::field("catalog_entry", "no sandbox runs here")),
            _ => Ok(entry),
        }
    }

    fn own_endpoints(&self, new: &NewProvider, entry: &Entry) -> Result<Option<serde_json::Value>, Failure> {
        match (&new.endpoints, entry.wants_endpoints()) {
            (None, false) => Ok(None),
            (None, true) => Err(Failure::field(
                "endpoints",
                "must be given (authorization, token and userinfo URL): the catalog does not know them",
            )),
            (Some(_), false) => Err(Failure::field("endpoints", "must be unset: the catalog knows them")),
            (Some(endpoints), true) => {
                endpoints.check(&self.wire.outbound)?;
                serde_json::to_value(endpoints).map(Some).map_err(|_| Failure::Internal)
            }
        }
    }

    fn seal(&self, secret: &ClientSecret, provider: ProviderId) -> Result<SealedSecret, Failure> {
        let id = ProviderSecretId::new(self.wire.clock.now());
        let sealed = self.wire.vault.seal(secret, &secret_owner(id, provider).owner()).map_err(|error| {
            tracing::error!(%provider, %error, "could not seal a client secret");
            Failure::Internal
        })?;
        Ok((id, sealed))
    }
}

type SealedSecret = (ProviderSecretId, Sealed<ClientSecret>);

/// What does not need the catalog.
fn check(new: &NewProvider) -> Result<(), Failure> {
    if !printable(&new.client_id, 512) {
        return Err(Failure::field("client_id", "must be 1 to 512 printable ASCII characters"));
    }
    new.client_secret.as_ref().map_or(Ok(()), check_secret)?;
    new.display_name.as_deref().map_or(Ok(()), check_display_name)?;
    check_scopes(&new.additional_scopes)
}

fn check_change(change: &ProviderChange) -> Result<(), Failure> {
    change.display_name.as_deref().filter(|name| !name.is_empty()).map_or(Ok(()), check_display_name)?;
    change.additional_scopes.as_ref().map_or(Ok(()), check_scopes)?;
    if change.requests_per_second.is_some_and(|rate| rate > MOST_REQUESTS_PER_SECOND) {
        return Err(Failure::field("requests_per_second", "must be at most 100000, or 0 for the default"));
    }
    if change.max_in_flight.is_some_and(|most| most > MOST_IN_FLIGHT) {
        return Err(Failure::field("max_in_flight", "must be at most 10000, or 0 for the default"));
    }
    Ok(())
}

fn check_secret(secret: &ClientSecret) -> Result<(), Failure> {
    if printable(secret.expose(), 4096) {
        return Ok(());
    }
    Err(Failure::field("client_secret", "must be 1 to 4096 printable ASCII characters"))
}

fn check_display_name(name: &str) -> Result<(), Failure> {
    if (1..=128).contains(&name.len()) && !name.chars().any(char::is_control) {
        return Ok(());
    }
    Err(Failure::field("display_name", "must be 1 to 128 bytes without control characters, or unset"))
}

fn check_scopes(scopes: &Scopes) -> Result<(), Failure> {
    if scopes.iter().count() > 100 { Err(Failure::field("additional_scopes", "must be at most 100")) } else { Ok(()) }
}

/// RFC 6749 appendix A.1 and A.2: VSCHAR.
fn printable(text: &str, most: usize) -> bool {
    (1..=most).contains(&text.len()) && text.bytes().all(|byte| matches!(byte, 0x20..=0x7e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_operator_gives_is_checked() {
        let new = || NewProvider {
            slug: Slug::parse("mine").unwrap(),
            catalog_entry: Some("oauth2".into()),
            client_id: "c".into(),
            client_secret: None,
            additional_scopes: Scopes::default(),
            endpoints: None,
            display_name: None,
        };
        let field = |new: NewProvider| match check(&new) {
            Err(Failure::InvalidField { field, .. }) => Some(field),
            _ => None,
        };
        assert_eq!(field(new()), None);
        assert_eq!(field(NewProvider { client_id: String::new(), ..new() }), Some("client_id"));
        assert_eq!(field(NewProvider { client_id: "ü".into(), ..new() }), Some("client_id"));
        assert_eq!(field(NewProvider { client_secret: Some(ClientSecret::new("")), ..new() }), Some("client_secret"));
        assert_eq!(
            field(NewProvider { client_secret: Some(ClientSecret::new("a\n")), ..new() }),
            Some("client_secret")
        );
        assert_eq!(field(NewProvider { display_name: Some("\u{7}".into()), ..new() }), Some("display_name"));
        let many = (0..101).map(|n| n.to_string()).collect();
        assert_eq!(field(NewProvider { additional_scopes: many, ..new() }), Some("additional_scopes"));
    }
    #[test]
    fn what_an_operator_changes_is_checked_and_nothing_or_a_default_is_fine() {
        let none = ProviderChange::default;
        let name = |text: &str| ProviderChange { display_name: Some(text.into()), ..none() };
        let rate = |rate| ProviderChange { requests_per_second: Some(rate), ..none() };
        let places = |places| ProviderChange { max_in_flight: Some(places), ..none() };
        let many = ProviderChange { additional_scopes: Some((0..101).map(|n| n.to_string()).collect()), ..none() };
        for (change, field) in [
            (none(), None),
            (name(""), None),
            (name("\n"), Some("display_name")),
            (rate(0), None),
            (rate(100_000), None),
            (rate(100_001), Some("requests_per_second")),
            (places(0), None),
            (places(10_001), Some("max_in_flight")),
            (many, Some("additional_scopes")),
        ] {
            let told = match check_change(&change) {
                Err(Failure::InvalidField { field, .. }) => Some(field),
                _ => None,
            };
            assert_eq!(told, field, "{change:?}");
        }
    }
}
