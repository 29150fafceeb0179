//! Providers: created once a name, deleted when nothing needs them.

use token_wallet::domain::event::EventKind;
use token_wallet::domain::flow::FlowFailure;
use token_wallet::domain::ids::ProviderSecretId;
use token_wallet::store::{DeleteProvider, FlowStep, ProviderSecretRow, StartFlow, StoreError};

use super::{Fixture, NOW, at, event, new_flow, new_provider, on_both_engines, slug, unique_hash, user};

on_both_engines! {
    a_provider_reads_back_as_it_was_stored
    a_slug_is_taken_once_and_free_again_after_deletion
    a_provider_in_use_is_not_deleted
    a_deleted_provider_starts_no_flow_and_keeps_no_secret
    secrets_come_newest_first
    a_provider_that_does_not_decode_is_named
}

async fn a_provider_reads_back_as_it_was_stored(store: &Fixture) {
    let new = new_provider("acme");
    assert!(store.create_provider(&new, None).await.unwrap());
    let row = store.provider(new.id).await.unwrap().unwrap();
    assert_eq!((row.id, &row.slug, &row.catalog_entry), (new.id, &new.slug, &new.catalog_entry));
    assert_eq!((&row.display_name, &row.client_id), (&new.display_name, &new.client_id));
    assert_eq!((&row.additional_scopes, &row.endpoints), (&new.additional_scopes, &new.endpoints));
    let (id, secret) = new.secret.unwrap();
    assert_eq!(row.secrets, [ProviderSecretRow { id, secret, created_at: NOW, last_used_at: None }]);
    assert_eq!(store.provider_by_slug(&slug("acme")).await.unwrap(), Some(row));

    let mut bare = new_provider("bare");
    (bare.display_name, bare.endpoints, bare.secret) = (None, None, None);
    assert!(store.create_provider(&bare, None).await.unwrap());
    let row = store.provider(bare.id).await.unwrap().unwrap();
    assert_eq!((row.display_name, row.endpoints, row.secrets), (None, None, vec![]));
}

async fn a_slug_is_taken_once_and_free_again_after_deletion(store: &Fixture) {
    let first = store.configured("acme").await;
    let second = new_provider("acme");
    assert!(!store.create_provider(&second, None).await.unwrap());
    assert_eq!(store.number("SELECT COUNT(*) FROM provider_secrets").await, 1);

    assert_eq!(store.delete_provider(&slug("acme"), at(1)).await.unwrap(), DeleteProvider::Deleted);
    assert_eq!(store.delete_provider(&slug("acme"), at(30 * 86_400)).await.unwrap(), DeleteProvider::Deleted);
    assert_eq!(store.delete_provider(&slug("acme"), at(31 * 86_400)).await.unwrap(), DeleteProvider::NotFound);
    assert_eq!(store.delete_provider(&slug("other"), at(1)).await.unwrap(), DeleteProvider::NotFound);
    assert_eq!(store.provider(first).await.unwrap(), None);
    assert!(store.create_provider(&second, None).await.unwrap());
    assert_eq!(store.provider_by_slug(&slug("acme")).await.unwrap().unwrap().id, second.id);
}

async fn a_provider_in_use_is_not_deleted(store: &Fixture) {
    let provider = store.configured("acme").await;
    let flow = new_flow(&user("ann"), provider);
    assert_eq!(store.start_flow(&flow, &unique_hash(flow.id), None, None).await.unwrap(), StartFlow::Started);
    assert_eq!(store.delete_provider(&slug("acme"), NOW).await.unwrap(), DeleteProvider::InUse);
    assert!(store.fail_flow(flow.id, FlowStep::Started, FlowFailure::Cancelled, None, NOW).await.unwrap());

    let (account, _) = store.linked(&user("ann"), provider, "s").await;
    assert_eq!(store.delete_provider(&slug("acme"), NOW).await.unwrap(), DeleteProvider::InUse);
    assert_eq!(store.provider(provider).await.unwrap().unwrap().secrets.len(), 1);

    let unlinked = event(EventKind::AccountUnlinked, &user("ann"), provider);
    assert!(store.unlink(account, &unlinked, NOW).await.unwrap());
    assert_eq!(store.delete_provider(&slug("acme"), NOW).await.unwrap(), DeleteProvider::Deleted);
    assert_eq!(store.account(account).await.unwrap().unwrap().provider_slug, "acme");
}

async fn a_deleted_provider_starts_no_flow_and_keeps_no_secret(store: &Fixture) {
    let provider = store.configured("acme").await;
    assert_eq!(store.delete_provider(&slug("acme"), NOW).await.unwrap(), DeleteProvider::Deleted);
    let flow = new_flow(&user("ann"), provider);
    assert_eq!(store.start_flow(&flow, &unique_hash(flow.id), None, None).await.unwrap(), StartFlow::ProviderGone);
    assert_eq!(store.flow(flow.id).await.unwrap(), None);
    assert_eq!(store.number("SELECT COUNT(*) FROM provider_secrets").await, 0);
}

async fn secrets_come_newest_first(store: &Fixture) {
    let provider = store.configured("acme").await;
    store.configured("zeta").await;
    let id = ProviderSecretId::new(at(5));
    let added = format!(
        "INSERT INTO provider_secrets (id, provider_id, secret, created_at)
         SELECT '{id}', provider_id, secret, {} FROM provider_secrets WHERE provider_id = '{provider}'",
        at(5).millis()
    );
    store.tamper(added).await;
    let rows = store.list_providers(None, 10).await.unwrap();
    let shape: Vec<(&str, usize)> = rows.iter().map(|row| (row.slug.as_str(), row.secrets.len())).collect();
    assert_eq!(shape, [("acme", 2), ("zeta", 1)]);
    assert_eq!((rows[0].secrets[0].id, rows[0].secrets[1].created_at), (id, NOW));
}

async fn a_provider_that_does_not_decode_is_named(store: &Fixture) {
    let provider = store.configured("acme").await;
    store.tamper("UPDATE providers SET additional_scopes = '{'").await;
    let error = store.provider(provider).await.unwrap_err();
    assert!(
        matches!(&error, StoreError::Corrupt { table: "providers", column: "additional_scopes", id }
            if *id == provider.to_string()),
        "{error}"
    );
}
