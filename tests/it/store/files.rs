//! The SQLite file: whose it is, and what is damaged.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use token_wallet::domain::error::Failure;
use token_wallet::store::{Engine, Schema, Store, StoreError};

use super::Fixture;

#[tokio::test]
async fn a_second_process_is_refused_until_the_first_is_gone() {
    let store = Fixture::on_sqlite().await;
    assert_eq!(store.engine(), Engine::Sqlite);
    let Err(refused) = Store::open(&store.url, 1).await else { panic!("opened twice") };
    assert!(matches!(refused, StoreError::Locked(_)), "{refused}");
    assert!(refused.to_string().contains("another process"), "{refused}");

    let Fixture { store, url, _home } = store;
    store.close().await;
    drop(store);
    assert_eq!(Store::open(&url, 1).await.unwrap().schema().await.unwrap(), Schema::Current);
}

#[tokio::test]
async fn only_its_owner_can_read_the_file_and_what_lies_beside_it() {
    let store = Fixture::on_sqlite().await;
    store.configured("acme").await;
    let file = Path::new(store.url.strip_prefix("sqlite:").unwrap());
    let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
    let files: Vec<_> = file.parent().unwrap().read_dir().unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(files.len(), 4, "the database, its log, the log's index, the lock: {files:?}");
    for file in files {
        assert_eq!(mode(&file), 0o600, "{}", file.display());
    }
}

#[tokio::test]
async fn a_damaged_file_is_refused_with_the_reason() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("wallet.db");
    std::fs::write(&path, [0x5a; 4096]).unwrap();
    let Err(refused) = Store::open(&format!("sqlite:{}", path.display()), 1).await else { panic!("opened") };
    assert!(refused.to_string().contains("file is not a database"), "{refused}");
    assert!(!refused.is_transient());
}

#[tokio::test]
async fn a_file_that_cannot_be_made_is_named_and_no_directory_is_made() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    std::fs::write(&file, "").unwrap();
    for path in [file.join("wallet.db"), directory.path().join("none/wallet.db"), directory.path().to_owned()] {
        let Err(error) = Store::open(&format!("sqlite:{}", path.display()), 1).await else { panic!("{path:?} opened") };
        assert!(!error.is_transient() && error.to_string().contains(path.to_str().unwrap()), "{error}");
    }
    assert!(!directory.path().join("none").exists());
}

#[tokio::test]
async fn a_server_that_is_away_is_unavailable_and_says_why() {
    let Err(error) = Store::open("postgres://u@127.0.0.1:1/d", 1).await else { panic!("opened") };
    assert!(error.is_transient() && error.to_string().contains("onnection refused"), "{error}");
    assert_eq!(Failure::from(error), Failure::StoreUnavailable);
}

#[tokio::test]
async fn a_url_of_no_store_is_refused_without_repeating_it() {
    for url in ["", "sqlite:", "mysql://u:hunter2@h/d", "postgres://u:hunter2@h:port/d", "wallet.db"] {
        let Err(error) = Store::open(url, 1).await else { panic!("{url} was opened") };
        assert!(matches!(error, StoreError::Url(_)), "{error}");
        assert!(!error.to_string().contains("hunter2"));
    }
}

#[tokio::test]
async fn a_read_only_server_takes_no_write_and_still_answers_reads() {
    let store = Fixture::on_postgres().await;
    store.configured("acme").await;
    // For sessions that begin from now on; those that stand are ended.
    let database = store.url.split('?').next().unwrap().rsplit('/').next().unwrap();
    store.tamper(format!("ALTER DATABASE {database} SET default_transaction_read_only = on")).await;
    let others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                  WHERE datname = current_database() AND pid <> pg_backend_pid()";
    store.tamper(others).await;
    let refused = store.create_provider(&super::new_provider("other"), None).await.unwrap_err();
    assert!(refused.is_transient(), "{refused}");
    assert_eq!(store.list_providers(None, 10).await.unwrap().len(), 1);
}
