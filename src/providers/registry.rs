//! The registry: which providers are configured.

use std::sync::Arc;
use std::time::Duration;

use url::Url;

use super::catalog::Catalog;
use super::gate::Gate;
use super::merge::{MergeError, Site, merge};
use super::provider::{Provider, Wire};
use crate::access::permit::{Permit, ReadProviders};
use crate::cache::{Cache, Concern, Kind, Shelf};
use crate::clock::Clock;
use crate::domain::error::Failure;
use crate::domain::ids::ProviderId;
use crate::domain::instance::InstanceKind;
use crate::domain::provider::Slug;
use crate::outbound::Outbound;
use crate::store::{ProviderRow, Stale, Store, StoreError};
use crate::vault::Vault;

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

/// The configured providers.
pub struct Registry {
    pub(super) store: Store,
    pub(super) cache: Cache,
    memory: Shelf<Named, Arc<Provider>>,
    pub(super) wire: Wire,
    pub(super) catalog: &'static Catalog,
    pub(super) site: Site,
    pub(super) gate: Gate,
}

/// What a provider is looked up by.
#[derive(Clone, PartialEq, Eq, Hash)]
enum Named {
    Id(ProviderId),
    Slug(Slug),
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

impl Registry {
    /// With the catalog of this build.
    pub fn new(parts: Parts) -> Self {
        let Parts { store, cache, vault, outbound, kind, public_url, sandbox_url, clock } = parts;
        let site = Site { kind, public_url, sandbox: sandbox_url };
        let gate = Gate::new(clock.clone());
        let wire = Wire { outbound, vault, clock };
        let memory = memory(&cache);
        Self { store, cache, memory, wire, catalog: Catalog::embedded(), site, gate }
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
        self.page(after, limit).await
    }

    /// The same for use cases that show less of them.
    pub async fn page(&self, after: Option<&str>, limit: u32) -> Result<ProviderPage, Failure> {
        let mut rows = self.store.list_providers(after, limit.saturating_add(1)).await?;
        let is_last = rows.len() <= usize::try_from(limit).unwrap_or(usize::MAX);
        rows.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
        let next = if is_last { None } else { rows.last().map(|row| row.slug.clone()) };
        let providers = rows.into_iter().filter_map(|row| self.merged(row).ok()).collect();
        Ok(ProviderPage { providers, next })
    }

    /// From memory, or else read from the store. One that does not fit this program is not remembered.
    async fn remembered<R>(&self, name: Named, read: impl FnOnce() -> R) -> Result<Arc<Provider>, Failure>
    where
        R: Future<Output = Result<Option<ProviderRow>, StoreError>>,
    {
        let read = async || {
            let reading = self.gate.reading();
            self.found(read().await?).map(|provider| Some(Arc::new(Provider { reading, ..provider })))
        };
        self.memory.get_or_read(name, read).await?.ok_or(Failure::ProviderNotFound)
    }

    pub(super) fn found(&self, row: Option<ProviderRow>) -> Result<Provider, Failure> {
        self.merged(row.ok_or(Failure::ProviderNotFound)?)
    }

    fn merged(&self, row: ProviderRow) -> Result<Provider, Failure> {
        let row = ProviderRow { standing: row.standing.credible(self.wire.clock.now()), ..row };
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
