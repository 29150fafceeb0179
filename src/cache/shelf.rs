//! A shelf: what is kept of one kind, by key, bounded by bytes.

use std::future::Future;
use std::hash::Hash;
use std::sync::{Arc, PoisonError};

use quick_cache::Weighter;
use quick_cache::sync::Cache as Map;

use super::Cache;
use crate::store::Stale;
use crate::telemetry::metrics;

/// What a change means for a shelf.
pub enum Concern<K> {
    /// Nothing.
    None,
    /// This entry is stale.
    One(K),
    /// All may be.
    All,
}

/// A kind of what is kept, and how.
pub struct Kind<K, V> {
    /// Its name in metrics.
    pub name: &'static str,
    /// Its part of all memory, in sixteenths.
    pub sixteenths: u64,
    /// What an entry takes, in bytes, its key included.
    pub weigh: fn(&K, &V) -> usize,
    /// What a change means for it.
    pub concern: fn(&Stale) -> Concern<K>,
}

/// Values of one kind in memory. Cheap to clone, as its values must be.
pub struct Shelf<K, V> {
    cache: Cache,
    /// `None` keeps nothing.
    items: Option<Arc<Items<K, V>>>,
}

/// The part of a shelf that the cache knows.
struct Items<K, V> {
    map: Map<K, V, Scales<K, V>>,
    kind: Kind<K, V>,
    counts: metrics::Shelf,
}

/// Weighs entries for the map.
struct Scales<K, V>(fn(&K, &V) -> usize);

/// What the map adds to each entry: its hash, its place in two lists, and a share of slots that are empty.
const OVERHEAD: usize = 64;

/// What a typical entry takes: sizes the map's memory of what it evicted.
const TYPICAL: u64 = 1_024;

/// A shelf that is told of changes.
pub(super) trait Forgets: Send + Sync {
    /// `None` is everything.
    fn forget(&self, stale: Option<&Stale>);
}

impl Cache {
    /// A shelf of its own for one kind.
    pub fn shelf<K, V>(&self, kind: Kind<K, V>) -> Shelf<K, V>
    where
        K: Eq + Hash + Clone + Send + Sync + 'static,
        V: Clone + Send + Sync + 'static,
    {
        let bytes = self.0.max_bytes / 16 * kind.sixteenths;
        let items = (bytes > 0).then(|| {
            let typical = usize::try_from(bytes / TYPICAL).unwrap_or(usize::MAX);
            let map = Map::with_weighter(typical, bytes, Scales(kind.weigh));
            Arc::new(Items { map, counts: metrics::shelf(kind.name), kind })
        });
        if let Some(items) = &items {
            let told: Arc<dyn Forgets> = Arc::<Items<K, V>>::clone(items);
            self.0.shelves.lock().unwrap_or_else(PoisonError::into_inner).push(told);
        }
        Shelf { cache: self.clone(), items }
    }
}

impl<K: Eq + Hash + Clone, V: Clone> Shelf<K, V> {
    /// What memory holds and may serve.
    pub fn get(&self, key: &K) -> Option<V> {
        let items = self.items.as_ref()?;
        let found = if self.cache.is_leased() { items.map.get(key) } else { None };
        let count = if found.is_some() { &items.counts.hits } else { &items.counts.misses };
        count.increment(1);
        found
    }

    /// Whether memory holds it, to be served or not.
    pub fn holds(&self, key: &K) -> bool {
        self.items.as_ref().is_some_and(|items| items.map.contains_key(key))
    }

    /// Bytes held.
    pub fn bytes(&self) -> u64 {
        self.items.as_ref().map_or(0, |items| items.map.weight())
    }

    /// What memory holds, or else what `read` finds in the store.
    pub async fn get_or_read<E, R>(&self, key: K, read: impl FnOnce() -> R) -> Result<Option<V>, E>
    where
        R: Future<Output = Result<Option<V>, E>>,
    {
        match self.get(&key) {
            Some(found) => Ok(Some(found)),
            None => self.read(key, read).await,
        }
    }

    /// What `read` finds in the store; kept, unless something was dropped since it began to look.
    pub async fn read<E, R>(&self, key: K, read: impl FnOnce() -> R) -> Result<Option<V>, E>
    where
        R: Future<Output = Result<Option<V>, E>>,
    {
        let before = *self.cache.0.drops.read().unwrap_or_else(PoisonError::into_inner);
        // On the heap, so that a call that memory answers need not carry the room for it.
        let found = Box::pin(read()).await?;
        if let (Some(found), Some(items)) = (&found, &self.items) {
            let drops = self.cache.0.drops.read().unwrap_or_else(PoisonError::into_inner);
            if *drops == before {
                items.map.insert(key, found.clone());
                items.measure();
            }
        }
        Ok(found)
    }

    /// Changes what memory holds, if it does.
    pub fn amend(&self, key: &K, amend: impl FnOnce(&V) -> V) {
        let Some(items) = &self.items else { return };
        // Nothing is dropped in between, which would come back with this.
        let _drops = self.cache.0.drops.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(held) = items.map.peek(key) {
            items.map.insert(key.clone(), amend(&held));
        }
    }
}

impl<K: Eq + Hash, V: Clone> Items<K, V> {
    fn measure(&self) {
        // Sizes of memory: far below where a float of 64 bits rounds.
        #[expect(clippy::cast_precision_loss, reason = "a gauge")]
        let (bytes, entries) = (self.map.weight() as f64, self.map.len() as f64);
        self.counts.bytes.set(bytes);
        self.counts.entries.set(entries);
    }
}

impl<K: Eq + Hash + Send + Sync, V: Clone + Send + Sync> Forgets for Items<K, V> {
    fn forget(&self, stale: Option<&Stale>) {
        match stale.map_or(Concern::All, self.kind.concern) {
            Concern::None => return,
            Concern::One(key) => drop(self.map.remove(&key)),
            Concern::All => self.map.clear(),
        }
        self.counts.drops.increment(1);
        self.measure();
    }
}

impl<K, V> Clone for Shelf<K, V> {
    fn clone(&self) -> Self {
        Self { cache: self.cache.clone(), items: self.items.clone() }
    }
}

impl<K, V> Clone for Scales<K, V> {
    fn clone(&self) -> Self {
        Self(self.0)
    }
}

impl<K, V> Weighter<K, V> for Scales<K, V> {
    fn weight(&self, key: &K, value: &V) -> u64 {
        u64::try_from((self.0)(key, value).saturating_add(OVERHEAD)).unwrap_or(u64::MAX)
    }
}
