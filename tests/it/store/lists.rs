//! Lists: pages that neither repeat nor leave out.

use std::collections::BTreeSet;

use token_wallet::domain::account::AccountState;
use token_wallet::domain::event::EventKind;
use token_wallet::domain::ids::{ApiClientId, RedirectUrlId};
use token_wallet::store::{AccountFilter, ApiClientRow, RedirectUrlRow};

use super::{Fixture, at, event, on_both_engines, slug, user};

on_both_engines! {
    providers_page_by_slug
    clients_and_redirect_urls_page_newest_first
    accounts_page_newest_first_and_by_filter
}

async fn providers_page_by_slug(store: &Fixture) {
    // By bytes: a digit, `-` and `_` stand where ASCII has them.
    for name in ["b", "a_b", "a-b", "ab", "a1"] {
        store.configured(name).await;
    }
    let page = async |after: Option<&str>, limit| {
        let rows = store.list_providers(after, limit).await.unwrap();
        rows.iter().map(|row| row.slug.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(page(None, 10).await, ["a-b", "a1", "a_b", "ab", "b"]);
    assert_eq!(page(None, 2).await, ["a-b", "a1"]);
    assert_eq!(page(Some("a1"), 2).await, ["a_b", "ab"]);
    assert_eq!(page(Some("b"), 2).await, [""; 0]);
}

async fn clients_and_redirect_urls_page_newest_first(store: &Fixture) {
    let mut clients = Vec::new();
    let mut urls = Vec::new();
    for second in 0..5 {
        let created_at = at(second);
        let id = ApiClientId::new(created_at);
        let client = ApiClientRow { id, display_name: second.to_string(), created_at, keys: vec![] };
        store.create_api_client(&client, &[0; 32], None).await.unwrap();
        clients.insert(0, id);
        let url = format!("https://app.example/{second}");
        let entry = RedirectUrlRow { id: RedirectUrlId::new(created_at), url, client: None, created_at };
        store.create_redirect_url(&entry, |_| Ok(None)).await.unwrap();
        urls.insert(0, entry.id);
    }
    let client_page = async |after, limit| {
        let rows = store.list_api_clients(after, limit).await.unwrap();
        rows.iter().map(|row| row.id).collect::<Vec<_>>()
    };
    assert_eq!(client_page(None, 3).await, clients[..3]);
    assert_eq!(client_page(Some(clients[2]), 3).await, clients[3..]);
    let url_page = async |after, limit| {
        let rows = store.list_redirect_urls(after, limit).await.unwrap();
        rows.iter().map(|row| row.id).collect::<Vec<_>>()
    };
    assert_eq!(url_page(None, 3).await, urls[..3]);
    assert_eq!(url_page(Some(urls[2]), 3).await, urls[3..]);
}

async fn accounts_page_newest_first_and_by_filter(store: &Fixture) {
    let (acme, zeta) = (store.configured("acme").await, store.configured("zeta").await);
    let mut ids = BTreeSet::new();
    for name in ["ann", "bob"] {
        for (provider, subjects) in [(acme, 3), (zeta, 1)] {
            for subject in 0..subjects {
                ids.insert(store.linked(&user(name), provider, &format!("{name}{subject}")).await.0);
            }
        }
    }
    let newest_first: Vec<_> = ids.iter().rev().copied().collect();
    let list = async |filter: AccountFilter, after, limit| {
        let rows = store.list_accounts(&filter, after, limit).await.unwrap();
        rows.into_iter().map(|row| row.id).collect::<Vec<_>>()
    };
    assert_eq!(list(AccountFilter::default(), None, 100).await, newest_first);
    let mut paged = Vec::new();
    while let page @ [_, ..] = &list(AccountFilter::default(), paged.last().copied(), 3).await[..] {
        paged.extend_from_slice(page);
    }
    assert_eq!(paged, newest_first);

    let of_ann = AccountFilter { user: Some(user("ann")), ..AccountFilter::default() };
    assert_eq!(list(of_ann.clone(), None, 100).await.len(), 4);
    let at_acme = AccountFilter { provider: Some(slug("acme")), ..of_ann.clone() };
    let page = list(at_acme.clone(), None, 2).await;
    assert_eq!((page.len(), list(at_acme.clone(), page.last().copied(), 2).await.len()), (2, 1));
    let nowhere = AccountFilter { provider: Some(slug("nowhere")), ..AccountFilter::default() };
    assert_eq!(list(nowhere, None, 100).await, []);

    let gone = page[0];
    let unlinked = event(EventKind::AccountUnlinked, &user("ann"), acme);
    assert!(store.unlink(gone, &unlinked, at(5)).await.unwrap());
    assert_eq!(list(of_ann.clone(), None, 100).await.len(), 3);
    for filter in [of_ann, AccountFilter::default()] {
        let filter = AccountFilter { state: Some(AccountState::Unlinked), ..filter };
        assert_eq!(list(filter, None, 100).await, [gone]);
    }
    let row = store.account(gone).await.unwrap().unwrap();
    assert!(row.granted_scopes.is_empty() && row.expires_at.is_none() && !row.refreshable);
}
