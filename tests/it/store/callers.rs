//! API clients, their keys, and the redirect URLs that they may use.

use token_wallet::domain::ids::{ApiClientId, ApiKeyId, RedirectUrlId};
use token_wallet::store::{ApiClientRow, ApiKeyRow, RedirectUrlRow, StoredApiKey};

use super::{Fixture, NOW, at, on_both_engines};

on_both_engines! {
    a_client_and_its_key_read_back
    a_deleted_client_leaves_no_key_and_no_redirect_url
    allowing_a_url_twice_is_allowing_it_once
    candidates_are_the_same_url_and_all_of_loopback
    a_removed_url_stays_removed_and_says_so_for_30_days
}

fn client(name: &str) -> ApiClientRow {
    let key = ApiKeyRow { id: ApiKeyId::new(NOW), created_at: NOW, expires_at: Some(at(90)) };
    ApiClientRow { id: ApiClientId::new(NOW), display_name: name.to_owned(), created_at: NOW, keys: vec![key] }
}

fn allowed(url: &str, client: Option<ApiClientId>) -> RedirectUrlRow {
    RedirectUrlRow { id: RedirectUrlId::new(NOW), url: url.to_owned(), client, created_at: NOW }
}

async fn a_client_and_its_key_read_back(store: &Fixture) {
    let client = client("billing");
    store.create_api_client(&client, &[7; 32], None).await.unwrap();
    assert!(store.api_client_exists(client.id).await.unwrap());
    assert!(!store.api_client_exists(ApiClientId::new(NOW)).await.unwrap());
    assert_eq!(store.list_api_clients(None, 10).await.unwrap(), std::slice::from_ref(&client));
    let stored = StoredApiKey { client: client.id, secret_hash: vec![7; 32], expires_at: Some(at(90)) };
    assert_eq!(store.api_key(client.keys[0].id).await.unwrap(), Some(stored));
    assert_eq!(store.api_key(ApiKeyId::new(NOW)).await.unwrap(), None);
}

async fn a_deleted_client_leaves_no_key_and_no_redirect_url(store: &Fixture) {
    let (gone, stays) = (client("gone"), client("stays"));
    for client in [&gone, &stays] {
        store.create_api_client(client, &[7; 32], None).await.unwrap();
        store.create_redirect_url(&allowed("https://app.example/cb", Some(client.id)), |_| Ok(None)).await.unwrap();
    }
    assert!(store.delete_api_client(gone.id, at(1)).await.unwrap());
    assert_eq!(store.api_key(gone.keys[0].id).await.unwrap(), None);
    assert!(!store.api_client_exists(gone.id).await.unwrap());
    assert_eq!(store.list_api_clients(None, 10).await.unwrap(), std::slice::from_ref(&stays));
    let urls = store.list_redirect_urls(None, 10).await.unwrap();
    assert_eq!(urls.iter().map(|url| url.client).collect::<Vec<_>>(), [Some(stays.id)]);
    assert_eq!(store.number("SELECT COUNT(*) FROM api_keys").await, 1);

    assert!(store.delete_api_client(gone.id, at(86_400)).await.unwrap());
    assert!(!store.delete_api_client(gone.id, at(40 * 86_400)).await.unwrap());
    assert!(!store.delete_api_client(ApiClientId::new(NOW), at(1)).await.unwrap());
}

async fn allowing_a_url_twice_is_allowing_it_once(store: &Fixture) {
    let client = client("app");
    store.create_api_client(&client, &[7; 32], None).await.unwrap();
    let url = "https://app.example/cb";
    let first = allowed(url, None);
    assert_eq!(store.create_redirect_url(&first, |_| Ok(None)).await.unwrap(), first);
    assert_eq!(store.create_redirect_url(&allowed(url, None), |_| Ok(None)).await.unwrap(), first);
    let own = allowed(url, Some(client.id));
    assert_eq!(store.create_redirect_url(&own, |_| Ok(None)).await.unwrap(), own);
    assert_eq!(store.list_redirect_urls(None, 10).await.unwrap().len(), 2);
}

async fn candidates_are_the_same_url_and_all_of_loopback(store: &Fixture) {
    let (client, other) = (client("app"), client("other"));
    for client in [&client, &other] {
        store.create_api_client(client, &[7; 32], None).await.unwrap();
    }
    for (url, whose) in [
        ("https://app.example/cb", Some(client.id)),
        ("https://app.example/cb", Some(other.id)),
        ("https://app.example/cb2", None),
        ("http://127.0.0.1/cb", None),
        ("http://127.0.0.1/theirs", Some(other.id)),
    ] {
        store.create_redirect_url(&allowed(url, whose), |_| Ok(None)).await.unwrap();
    }
    let candidates = async |url| {
        let mut urls = store.redirect_url_candidates(client.id, url).await.unwrap();
        urls.sort();
        urls
    };
    assert_eq!(candidates("https://app.example/cb").await, ["http://127.0.0.1/cb", "https://app.example/cb"]);
    assert_eq!(candidates("http://127.0.0.1:5000/cb").await, ["http://127.0.0.1/cb"]);
    assert_eq!(candidates("https://APP.example/cb").await, ["http://127.0.0.1/cb"]);
}

async fn a_removed_url_stays_removed_and_says_so_for_30_days(store: &Fixture) {
    let url = allowed("https://app.example/cb", None);
    store.create_redirect_url(&url, |_| Ok(None)).await.unwrap();
    assert!(!store.delete_redirect_url(RedirectUrlId::new(NOW), NOW).await.unwrap());
    assert!(store.delete_redirect_url(url.id, NOW).await.unwrap());
    assert!(store.delete_redirect_url(url.id, at(86_400)).await.unwrap());
    assert!(!store.delete_redirect_url(url.id, at(31 * 86_400)).await.unwrap());
    assert!(store.redirect_url_candidates(ApiClientId::new(NOW), &url.url).await.unwrap().is_empty());
    assert_eq!(store.list_redirect_urls(None, 10).await.unwrap(), []);
    let again = allowed(&url.url, None);
    assert_eq!(store.create_redirect_url(&again, |_| Ok(None)).await.unwrap(), again);
}
