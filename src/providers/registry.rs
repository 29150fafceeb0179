//! The registry: which providers are configured.

use std::sync::Arc;
use std::time::Duration;

use url::Url;

use super::catalog::{Catalog, Entry};
use super::endpoints::{CustomEndpoints, Endpoints};
use super::gate::Gate;
use super::provider::{Provider, Wire, secret_owner};
use crate::access::permit::{ManageProviders, Permit, ReadProviders};
use crate::cache::{Cache, Concern, Kind, Shelf};
use crate::clock::Clock;
use crate::domain::error::Failure;
use crate::domain::ids::{ProviderId, ProviderSecretId};
use crate::domain::instance::InstanceKind;
use crate::domain::provider::Slug;
use crate::domain::scopes::Scopes;
use crate::domain::secret::ClientSecret;
use crate::outbound::Outbound;
use crate::store::{self, DeleteProvider, ProviderRow, Stale, Store, StoreError};
use crate::vault::{Sealed, Vault};

/// What a registry is made of.
pub struct Parts {
    /// Where providers are kept.
    pub store: Store,
    /// What of them may be kept in memory.
    pub cache: Cache,
    /// Seals and opens client secrets.
    pub vault: Arc<Vault>,
    /// What providers are called through.
    pub outbound: Outbound,
    /// What this instance may be used for.
    pub kind: InstanceKind,
    /// What browsers reach this instance by; redirect URIs begin with it.
    pub public_url: Url,
    /// The base URL of the sandbox, if one runs: it may move its port between starts.
    pub sandbox_url: Option<Url>,
    /// The time.
    pub clock: Clock,
}

/// Where this instance stands.
#[derive(Clone, Debug)]
struct Site {
    kind: InstanceKind,
    public_url: Url,
    sandbox: Option<Url>,
}

/// The configured providers.
pub struct Registry {
    store: Store,
    cache: Cache,
    memory: Shelf<Named, Arc<Provider>>,
    wire: Wire,
    catalog: &'static Catalog,
    site: Site,
    gate: Gate,
}

/// What a provider is looked up by.
#[derive(Clone, PartialEq, Eq, Hash)]
enum Named {
    Id(ProviderId),
    Slug(Slug),
}

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

/// What a provider takes in memory besides its secrets, about: its URLs are most of it.
const WEIGHT: usize = 4_096;

/// Some of the providers, by slug.
pub struct ProviderPage {
    /// The providers.
    pub providers: Vec<Provider>,
    /// Where the next page begins: behind this slug. `None`: this is the last.
    pub next: Option<Slug>,
}

/// A stored provider that does not fit this program or this start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
enum MergeError {
    #[error("its catalog entry is not known")]
    Entry,
    #[error("its endpoints do not read")]
    Endpoints,
    #[error("no sandbox runs")]
    NoSandbox,
}

impl Registry {
    /// With the catalog of this build.
    pub fn new(parts: Parts) -> Self {
        let Parts { store, cache, vault, outbound, kind, public_url, sandbox_url, clock } = parts;
        let site = Site { kind, public_url, sandbox: sandbox_url };
        let wire = Wire { outbound, vault, clock };
        let memory = memory(&cache);
        Self { store, cache, memory, wire, catalog: Catalog::embedded(), site, gate: Gate::default() }
    }

    /// Every request to a provider needs a permit of it.
    pub const fn gate(&self) -> &Gate {
        &self.gate
    }

    /// The provider of this name.
    ///
    /// # Errors
    ///
    /// [`Failure::ProviderNotFound`], [`Failure::ProviderUnavailable`] for the sandbox where none runs, and the store's.
    pub async fn by_slug(&self, slug: &Slug) -> Result<Arc<Provider>, Failure> {
        self.remembered(Named::Slug(slug.clone()), || self.store.provider_by_slug(slug)).await
    }

    /// The provider of this id; errors as [`Self::by_slug`].
    pub async fn by_id(&self, id: ProviderId) -> Result<Arc<Provider>, Failure> {
        self.remembered(Named::Id(id), || self.store.provider(id)).await
    }

    /// The provider of this name, to be shown; errors as [`Self::by_slug`].
    pub async fn provider(&self, _permit: &Permit<ReadProviders>, slug: &Slug) -> Result<Provider, Failure> {
        // As the store has it now, with what memory need not know.
        self.found(self.store.provider_by_slug(slug).await?)
    }

    /// Up to `limit` providers by slug, those behind `after`. One that does not fit this program is left out and
    /// logged: it must not hide the others.
    pub async fn list(
        &self,
        _permit: &Permit<ReadProviders>,
        after: Option<&str>,
        limit: u32,
    ) -> Result<ProviderPage, Failure> {
        let mut rows = self.store.list_providers(after, limit.saturating_add(1)).await?;
        let is_last = rows.len() <= usize::try_from(limit).unwrap_or(usize::MAX);
        rows.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
        let next = if is_last { None } else { rows.last().map(|row| row.slug.clone()) };
        let providers = rows.into_iter().filter_map(|row| self.merged(row).ok()).collect();
        Ok(ProviderPage { providers, next })
    }

    /// Configures a provider.
    ///
    /// # Errors
    ///
    /// [`Failure::InvalidField`], [`Failure::ProviderExists`], [`Failure::SharedCredentialsInProduction`], and the
    /// store's.
    pub async fn create(&self, _permit: &Permit<ManageProviders>, new: NewProvider) -> Result<Provider, Failure> {
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
        let created = self.store.create_provider(&row).await?;
        if created { self.found(self.store.provider(id).await?) } else { Err(Failure::ProviderExists) }
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

    /// From memory, or else read from the store. One that does not fit this program is not remembered.
    async fn remembered<R>(&self, name: Named, read: impl FnOnce() -> R) -> Result<Arc<Provider>, Failure>
    where
        R: Future<Output = Result<Option<ProviderRow>, StoreError>>,
    {
        let read = async || self.found(read().await?).map(|provider| Some(Arc::new(provider)));
        self.memory.get_or_read(name, read).await?.ok_or(Failure::ProviderNotFound)
    }

    fn found(&self, row: Option<ProviderRow>) -> Result<Provider, Failure> {
        self.merged(row.ok_or(Failure::ProviderNotFound)?)
    }

    fn merged(&self, row: ProviderRow) -> Result<Provider, Failure> {
        let (id, slug) = (row.id, row.slug.clone());
        merge(self.catalog.entry(&row.catalog_entry), row, &self.site, &self.wire).map_err(|error| match error {
            MergeError::NoSandbox => {
                tracing::warn!(provider = %slug, %error, "a provider cannot be reached");
                Failure::ProviderUnavailable { retry_after: Duration::from_mins(1) }
            }
            MergeError::Entry | MergeError::Endpoints => {
                tracing::error!(%id, provider = %slug, %error, "a stored provider cannot be used");
                Failure::Internal
            }
        })
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

/// A shelf for providers.
fn memory(cache: &Cache) -> Shelf<Named, Arc<Provider>> {
    cache.shelf(Kind {
        name: "providers",
        sixteenths: 1,
        weigh: |_, provider| WEIGHT + provider.secrets.iter().map(|row| row.secret.as_bytes().len()).sum::<usize>(),
        concern: |stale| match stale {
            Stale::Providers => Concern::All,
            Stale::Account { .. } | Stale::ApiClients => Concern::None,
        },
    })
}

type SealedSecret = (ProviderSecretId, Sealed<ClientSecret>);

/// The catalog's entry and the operator's row as one. Pure.
fn merge(entry: Option<&'static Entry>, row: ProviderRow, site: &Site, wire: &Wire) -> Result<Provider, MergeError> {
    let entry = entry.ok_or(MergeError::Entry)?;
    let endpoints = match row.endpoints {
        Some(own) => {
            let own = serde_json::from_value::<CustomEndpoints>(own).ok();
            own.and_then(|own| Endpoints::of_custom(own, entry)).ok_or(MergeError::Endpoints)?
        }
        None if entry.development_only && site.sandbox.is_none() => return Err(MergeError::NoSandbox),
        None => Endpoints::of_entry(entry, site.sandbox.as_ref()).ok_or(MergeError::Endpoints)?,
    };
    let public_url = site.public_url.as_str().trim_end_matches('/');
    Ok(Provider {
        redirect_uri: format!("{public_url}/oauth/callback/{}", row.slug),
        display_name: row.display_name.unwrap_or_else(|| entry.display_name.clone()),
        id: row.id,
        slug: row.slug,
        entry,
        client_id: row.client_id,
        additional_scopes: row.additional_scopes,
        endpoints,
        secrets: row.secrets,
        created_at: row.created_at,
        wire: wire.clone(),
    })
}

/// What does not need the catalog.
fn check(new: &NewProvider) -> Result<(), Failure> {
    // RFC 6749 appendix A.1 and A.2: VSCHAR.
    let printable =
        |text: &str, most| (1..=most).contains(&text.len()) && text.bytes().all(|b| matches!(b, 0x20..=0x7e));
    if !printable(&new.client_id, 512) {
        return Err(Failure::field("client_id", "must be 1 to 512 printable ASCII characters"));
    }
    if new.client_secret.as_ref().is_some_and(|secret| !printable(secret.expose(), 4096)) {
        return Err(Failure::field("client_secret", "must be 1 to 4096 printable ASCII characters, or unset"));
    }
    let named = |name: &String| (1..=128).contains(&name.len()) && !name.chars().any(char::is_control);
    if new.display_name.as_ref().is_some_and(|name| !named(name)) {
        return Err(Failure::field("display_name", "must be 1 to 128 bytes without control characters, or unset"));
    }
    if new.additional_scopes.iter().count() > 100 {
        return Err(Failure::field("additional_scopes", "must be at most 100"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::providers::provider::tests::{NOW, provider};

    fn row(catalog_entry: &str, endpoints: Option<serde_json::Value>) -> ProviderRow {
        ProviderRow {
            id: ProviderId::new(NOW),
            slug: Slug::parse("mine").unwrap(),
            catalog_entry: catalog_entry.into(),
            display_name: None,
            client_id: "c".into(),
            additional_scopes: Scopes::default(),
            endpoints,
            created_at: NOW,
            secrets: Vec::new(),
        }
    }

    fn merged(row: ProviderRow, sandbox: Option<&str>) -> Result<Provider, MergeError> {
        let sandbox = sandbox.map(|url| Url::parse(url).unwrap());
        let public_url = Url::parse("https://wallet.example.com/base/").unwrap();
        let site = Site { kind: InstanceKind::Development, public_url, sandbox };
        merge(Catalog::embedded().entry(&row.catalog_entry), row, &site, &provider(None, "").wire)
    }

    #[test]
    fn a_row_takes_what_it_does_not_say_from_the_catalog() {
        let sandbox = merged(row("sandbox", None), Some("http://127.0.0.1:7/")).ok().unwrap();
        assert_eq!(sandbox.redirect_uri, "https://wallet.example.com/base/oauth/callback/mine");
        assert_eq!(sandbox.display_name, "Sandbox");
        assert_eq!(sandbox.endpoints.token_url.as_str(), "http://127.0.0.1:7/token");
        let own = ProviderRow { display_name: Some("Ours".into()), ..row("sandbox", None) };
        assert_eq!(merged(own, Some("http://127.0.0.1:7")).ok().unwrap().display_name, "Ours");
    }

    #[test]
    fn a_row_that_does_not_fit_says_why() {
        assert_eq!(merged(row("gone", None), None).err(), Some(MergeError::Entry));
        assert_eq!(merged(row("sandbox", None), None).err(), Some(MergeError::NoSandbox));
        for endpoints in [None, Some(serde_json::json!({})), Some(serde_json::json!("x"))] {
            assert_eq!(merged(row("oauth2", endpoints), None).err(), Some(MergeError::Endpoints));
        }
    }

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
}
