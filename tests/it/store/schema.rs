//! Versions of the schema, and every statement against it.

use token_wallet::domain::ids::{InstanceId, ReplicaId};
use token_wallet::domain::instance::InstanceKind;
use token_wallet::store::{Instance, Schema, Store, StoreError};
use token_wallet::vault::{DataKeyRecord, KeyState, KeyringRecord};

use super::{Fixture, NOW, at, on_both_engines, user};

on_both_engines! {
    every_statement_is_accepted_by_the_engine
    migrating_again_changes_nothing
    a_newer_schema_is_refused_and_left_alone
    an_instance_and_its_keyring_are_written_once
    rows_without_a_keyring_are_noticed
}

async fn every_statement_is_accepted_by_the_engine(store: &Fixture) {
    assert!(store.prepare_all().await.unwrap() > 60);
}

async fn migrating_again_changes_nothing(store: &Fixture) {
    let provider = store.configured("acme").await;
    store.migrate().await.unwrap();
    assert_eq!(store.schema().await.unwrap(), Schema::Current);
    assert!(store.provider_by_slug(&super::slug("acme")).await.unwrap().is_some_and(|row| row.id == provider));
}

async fn a_newer_schema_is_refused_and_left_alone(store: &Fixture) {
    store.tamper("INSERT INTO schema_migrations (version, name) VALUES (9999, 'from the future')").await;
    assert_eq!(store.schema().await.unwrap(), Schema::Newer);
    let refused = store.migrate().await.unwrap_err();
    assert!(matches!(refused, StoreError::Newer { found: 9999, known: 1 }), "{refused}");
}

#[tokio::test]
async fn an_empty_database_is_told_from_a_migrated_one_on_sqlite() {
    tell_empty_from_migrated(&Fixture::empty_on_sqlite().await).await;
}

#[tokio::test]
async fn an_empty_database_is_told_from_a_migrated_one_on_postgres() {
    tell_empty_from_migrated(&Fixture::empty_on_postgres().await).await;
}

async fn tell_empty_from_migrated(store: &Fixture) {
    assert_eq!(store.schema().await.unwrap(), Schema::Empty);
    store.ping().await.unwrap();
    store.migrate().await.unwrap();
    assert_eq!(store.schema().await.unwrap(), Schema::Current);
}

#[tokio::test]
async fn replicas_that_migrate_at_once_do_it_once() {
    let fixture = Fixture::empty_on_postgres().await;
    let mut migrations = tokio::task::JoinSet::new();
    for _ in 0..6 {
        let url = fixture.url.clone();
        migrations.spawn(async move {
            let store = Store::open(&url, 2).await?;
            let migrated = store.migrate().await;
            store.close().await;
            migrated
        });
    }
    for migrated in migrations.join_all().await {
        migrated.unwrap();
    }
    assert_eq!(fixture.number("SELECT COUNT(*) FROM schema_migrations").await, 1);
    assert_eq!(fixture.schema().await.unwrap(), Schema::Current);
}

async fn an_instance_and_its_keyring_are_written_once(store: &Fixture) {
    assert_eq!(store.instance().await.unwrap(), None);
    assert_eq!(store.keyring().await.unwrap(), None);
    let instance = |seconds| Instance {
        id: InstanceId::new(NOW),
        kind: InstanceKind::Production,
        replica: ReplicaId::new(NOW),
        created_at: at(seconds),
        left_for: None,
    };
    let first = instance(0);
    assert!(store.initialise(&first, &keyring(1)).await.unwrap());
    assert!(!store.initialise(&instance(1), &keyring(2)).await.unwrap());
    assert_eq!(store.instance().await.unwrap(), Some(first));
    assert_eq!(store.keyring().await.unwrap(), Some(keyring(1)));

    store.tamper("DELETE FROM instance").await;
    assert!(!store.initialise(&instance(2), &keyring(3)).await.unwrap());
    assert_eq!(store.instance().await.unwrap(), None);

    store.tamper("UPDATE data_keys SET id = -1 WHERE id = 2").await;
    let error = store.keyring().await.unwrap_err();
    assert!(matches!(error, StoreError::Corrupt { table: "data_keys", column: "id", .. }), "{error}");
}

fn keyring(mark: u8) -> KeyringRecord {
    let key = |id, state| DataKeyRecord { id, state, wrapped: vec![mark; 40], created_at: at(i64::from(id)) };
    KeyringRecord {
        root_key_fingerprint: format!("root {mark}"),
        canary: vec![mark; 3],
        mac_key: vec![mark; 4],
        mac: vec![mark; 32],
        keys: vec![key(1, KeyState::Retired), key(2, KeyState::Active), key(3, KeyState::Pending)],
    }
}

async fn rows_without_a_keyring_are_noticed(store: &Fixture) {
    assert!(!store.has_rows().await.unwrap());
    let provider = store.configured("acme").await;
    assert!(store.has_rows().await.unwrap());
    store.linked(&user("ann"), provider, "s").await;
    store.tamper("DELETE FROM provider_secrets").await;
    assert!(store.has_rows().await.unwrap());
}
