//! Events: listed and watched, by whoever has a cursor (promise P9).

use token_wallet::proto::v1::EventType;

use crate::support::harness::{Harness, on_both_engines};

mod watcher;

use watcher::Watcher;

#[test]
fn the_page_of_events_lists_each() {
    let page = include_str!("../../docs/events.md");
    let table = token_wallet::domain::event::table();
    assert!(page.ends_with(&table), "the table in docs/events.md must be:\n\n{table}");
}

on_both_engines! {
    async fn a_watcher_hears_of_each_change_once_with_its_ids(engine) {
        let harness = Harness::start(engine).await;
        let mut watcher = Watcher::from_now(&harness).await;
        let account = harness.link("ann", "demo").await;
        let linked = watcher.event().await;
        assert_eq!(linked.r#type(), EventType::AccountLinked);
        assert_eq!((linked.user_id.as_str(), linked.provider.as_str()), ("ann", "sandbox"));
        assert_eq!(linked.external_account_id, account.id);
        assert!(linked.id.starts_with("evt_") && linked.flow_id.starts_with("flw_") && !linked.security);
        assert_eq!(linked.time.unwrap().seconds, harness.clock.now().millis() / 1_000);
        harness.link("ann", "demo").await;
        assert_eq!(watcher.event().await.r#type(), EventType::AccountRelinked);
    }
}
