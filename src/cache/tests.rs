//! What memory keeps, and what it does not serve.

use tempfile::TempDir;

use super::*;
use crate::clock::Timestamp;
use crate::domain::ids::ProviderId;
use crate::domain::user::UserId;
use crate::telemetry::metrics;

const NOW: Timestamp = Timestamp::from_millis(1_700_000_000_000);

/// Memory over an empty store, `SQLite` so that its lease does not end, with one shelf of texts by user.
struct Scene {
    cache: Cache,
    texts: Shelf<String, String>,
    _folder: TempDir,
}

impl Scene {
    async fn new(name: &'static str, max_bytes: u64) -> Self {
        metrics::install();
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&format!("sqlite:{}", folder.path().join("wallet.db").display()), 1).await.unwrap();
        let cache = Cache::new(store, Clock::moved(NOW).0, max_bytes, TaskTracker::new());
        let texts = cache.shelf(Kind {
            name,
            sixteenths: 16,
            weigh: |user: &String, text: &String| user.len() + text.len(),
            concern: |stale| match stale {
                Stale::Account { user, .. } => Concern::One(user.to_string()),
                Stale::Providers => Concern::All,
                Stale::ApiClients => Concern::None,
            },
        });
        Self { cache, texts, _folder: folder }
    }

    /// Reads `text` from a store where `meanwhile` happens after the look.
    async fn read(&self, user: &str, text: &str, meanwhile: impl FnOnce()) -> Option<String> {
        let read = async || {
            let found = Some(text.to_owned());
            meanwhile();
            Ok::<_, StoreError>(found)
        };
        self.texts.get_or_read(user.to_owned(), read).await.unwrap()
    }

    fn held(&self, user: &str) -> Option<String> {
        self.texts.get(&user.to_owned())
    }
}

fn account_of(user: &str) -> Stale {
    Stale::Account { provider: ProviderId::new(NOW), user: UserId::parse(user).unwrap() }
}

/// The value of a metric of this shelf.
fn counted(metric: &str, shelf: &str) -> Option<u64> {
    let line = format!("{metric}{{shelf=\"{shelf}\"}} ");
    metrics::render().lines().find_map(|text| text.strip_prefix(&line)?.parse().ok())
}

#[tokio::test]
async fn what_was_read_is_kept_until_it_is_dropped() {
    let scene = Scene::new("test_kept", 1 << 20).await;
    assert_eq!(scene.read("ann", "one", || {}).await.as_deref(), Some("one"));
    assert_eq!(scene.read("ann", "two", || {}).await.as_deref(), Some("one"), "from memory");
    scene.read("bob", "three", || {}).await;
    scene.cache.forget(&Stale::ApiClients);
    scene.cache.forget(&account_of("ann"));
    assert_eq!((scene.held("ann"), scene.held("bob").as_deref()), (None, Some("three")));
    scene.cache.forget(&Stale::Providers);
    assert_eq!(scene.held("bob"), None);
}

#[tokio::test]
async fn a_drop_between_a_look_and_its_keeping_wins() {
    let scene = Scene::new("test_race", 1 << 20).await;
    let dropped = scene.read("ann", "old", || scene.cache.forget(&account_of("ann"))).await;
    assert_eq!(dropped.as_deref(), Some("old"), "whoever asked before is answered");
    assert_eq!(scene.held("ann"), None, "nobody is who asks later");
    // The log of other replicas may name what this one reads right now in words that it cannot match: any drop counts.
    scene.read("ann", "old", || scene.cache.forget(&account_of("bob"))).await;
    assert_eq!(scene.held("ann"), None);
    scene.read("ann", "new", || {}).await;
    assert_eq!(scene.held("ann").as_deref(), Some("new"));
}

#[tokio::test]
async fn what_is_amended_is_what_is_held_and_nothing_comes_back_by_it() {
    let scene = Scene::new("test_amended", 1 << 20).await;
    scene.read("ann", "one", || {}).await;
    scene.texts.amend(&"ann".to_owned(), |text| format!("{text} and a half"));
    assert_eq!(scene.held("ann").as_deref(), Some("one and a half"));
    scene.cache.forget(&account_of("ann"));
    scene.texts.amend(&"ann".to_owned(), |text| format!("{text} again"));
    assert_eq!(scene.held("ann"), None);
}

#[tokio::test]
async fn a_change_is_followed_by_its_drop_also_if_it_fails_or_its_caller_leaves() {
    let scene = Scene::new("test_changed", 1 << 20).await;
    scene.read("ann", "one", || {}).await;
    let failed = async { Err::<(), _>(StoreError::Unavailable("the answer was lost".to_owned())) };
    assert!(scene.cache.change(account_of("ann"), failed).await.is_err());
    assert_eq!(scene.held("ann"), None);

    scene.read("ann", "one", || {}).await;
    let (go, wait) = tokio::sync::oneshot::channel::<()>();
    let change = async { Ok(wait.await.is_ok()) };
    let gone = tokio::time::timeout(Duration::from_millis(1), scene.cache.change(account_of("ann"), change)).await;
    assert!(gone.is_err(), "its caller left");
    assert_eq!(scene.held("ann").as_deref(), Some("one"), "and nothing has changed yet");
    go.send(()).unwrap();
    scene.cache.0.tasks.close();
    scene.cache.0.tasks.wait().await;
    assert_eq!(scene.held("ann"), None);
}

#[tokio::test]
async fn without_bytes_nothing_is_kept() {
    let scene = Scene::new("test_off", 0).await;
    scene.read("ann", "one", || {}).await;
    assert_eq!(scene.read("ann", "two", || {}).await.as_deref(), Some("two"));
    assert_eq!(scene.held("ann"), None);
}

#[tokio::test]
async fn hits_misses_drops_bytes_and_entries_are_counted() {
    let scene = Scene::new("test_counted", 1 << 20).await;
    scene.read("ann", "12345", || {}).await;
    scene.read("bob", "1234567", || {}).await;
    scene.read("ann", "12345", || {}).await;
    let count = |metric| counted(metric, "test_counted");
    let both = 2 * (3 + 64) + 5 + 7;
    assert_eq!([count(metrics::CACHE_HITS), count(metrics::CACHE_MISSES)], [Some(1), Some(2)]);
    assert_eq!([count(metrics::CACHE_ENTRIES), count(metrics::CACHE_BYTES)], [Some(2), Some(both)]);
    assert_eq!(scene.texts.bytes(), both);
    scene.cache.forget(&Stale::ApiClients);
    scene.cache.forget(&Stale::Providers);
    assert_eq!(count(metrics::CACHE_DROPS), Some(1), "what does not concern a shelf is none of its drops");
    assert_eq!([count(metrics::CACHE_ENTRIES), count(metrics::CACHE_BYTES)], [Some(0), Some(0)]);
}
