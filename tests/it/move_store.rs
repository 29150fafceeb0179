//! `migrate-store`: from SQLite to PostgreSQL, with all that the wallet knows, and never on both.

use token_wallet::sandbox::{Options, Person};

use crate::support::child::text;
use crate::support::harness::{Engine, reason};
use crate::support::postgres;
use crate::support::service::Wallet;

/// What says that the move is over.
const MOVED: &str = "make it store.url";

#[tokio::test]
async fn a_store_is_moved_to_postgresql_and_serves_there_and_never_again_on_sqlite() {
    let people = (0..4).map(|n| Person::named(&format!("p{n}"))).collect();
    let mut wallet = Wallet::running(Engine::Sqlite, Options { people, ..Options::default() }).await;
    for n in 0..3 {
        wallet.link(&format!("u{n}"), &format!("p{n}")).await;
    }
    let gone = wallet.link("u3", "p3").await;
    let old = wallet.get("u0", "sandbox").await.unwrap().access_token;
    let key = wallet.key.clone();
    wallet.terminate();
    assert!(wallet.end().await.success());

    let target = postgres::database().await;
    let file = wallet.folder().join("postgres.url");
    std::fs::write(&file, &target.url).unwrap();
    let arguments = ["migrate-store", "--to-url-file", file.to_str().unwrap()];
    // Dead half way, it goes on where it was; and none starts anywhere meanwhile.
    wallet.database().await.execute("UPDATE instance SET left_for = 'elsewhere/db'").await;
    let refused = wallet.run(&arguments, &[]);
    assert_eq!(refused.status.code(), Some(78));
    assert!(text(&refused.stderr).contains("elsewhere/db"), "{refused:?}");
    wallet.database().await.execute("UPDATE instance SET left_for = NULL").await;
    let moved = wallet.run(&arguments, &[]);
    assert!(moved.status.success() && text(&moved.stderr).contains(MOVED), "{moved:?}");
    assert!(text(&moved.stderr).contains("external_accounts: 4 rows"), "{moved:?}");
    assert!(!text(&moved.stderr).contains("postgres:"), "a URL holds a password: {moved:?}");
    // Once more does no harm; and there is no way back.
    assert!(wallet.run(&arguments, &[]).status.success());
    let back = wallet.run(&[&arguments[..], &["--abandon"]].concat(), &[]);
    assert_eq!(back.status.code(), Some(78), "{back:?}");
    let refused = wallet.run(&["serve"], &[]);
    assert_eq!(refused.status.code(), Some(78));
    assert!(text(&refused.stderr).contains("migrate-store"), "{refused:?}");

    wallet.move_to(&target.url);
    wallet.start().await;
    assert_eq!(wallet.key, key, "API keys go along");
    assert_eq!(wallet.get("u0", "sandbox").await.unwrap().access_token, old);
    wallet.age("u%").await;
    for n in 0..4 {
        let token = wallet.get(&format!("u{n}"), "sandbox").await.unwrap().access_token;
        assert!(wallet.is_accepted(&token).await);
    }
    let again = wallet.link("u3", "p3").await;
    assert_eq!(again.id, gone.id);
    let kinds = wallet.database().await.events().await;
    assert_eq!(kinds.iter().filter(|kind| *kind == "account.linked").count(), 4, "{kinds:?}");
}

#[tokio::test]
async fn a_move_that_is_cut_off_goes_on_or_is_given_up_and_is_refused_where_others_live() {
    let mut wallet = Wallet::running(Engine::Sqlite, Options::default()).await;
    wallet.link("u", "demo").await;
    wallet.terminate();
    assert!(wallet.end().await.success());
    let target = postgres::database().await;
    let file = wallet.folder().join("postgres.url");
    std::fs::write(&file, &target.url).unwrap();
    let arguments = ["migrate-store", "--to-url-file", file.to_str().unwrap()];
    assert!(wallet.run(&arguments, &[]).status.success());

    // As it is when the process dies before the last table.
    let old = wallet.store().expose().to_owned();
    wallet.move_to(&target.url);
    for table in ["keyring", "data_keys", "events", "grants"] {
        wallet.database().await.execute(&format!("DELETE FROM {table}")).await;
    }
    let refused = wallet.run(&["serve"], &[]);
    assert_eq!(refused.status.code(), Some(78), "nobody starts on half a store: {refused:?}");
    wallet.move_to(&old);
    assert_eq!(wallet.run(&["serve"], &[]).status.code(), Some(78), "nor on the one that is being left");
    let abandoned = wallet.run(&[&arguments[..], &["--abandon"]].concat(), &[]);
    assert!(abandoned.status.success(), "{abandoned:?}");
    wallet.start().await;
    wallet.get("u", "sandbox").await.unwrap();
    wallet.terminate();
    assert!(wallet.end().await.success());
    assert!(wallet.run(&arguments, &[]).status.success());
    wallet.move_to(&target.url);
    wallet.start().await;
    assert!(wallet.is_accepted(&wallet.get("u", "sandbox").await.unwrap().access_token).await);
    assert_eq!(reason(&wallet.get("nobody", "sandbox").await.unwrap_err()), "ACCOUNT_NOT_LINKED");

    let other = Wallet::new(Engine::Sqlite, Options::default(), &[]).await;
    let refused = other.run(&arguments, &[]);
    assert_eq!(refused.status.code(), Some(78), "{refused:?}");
    assert!(text(&refused.stderr).contains("another instance"), "{refused:?}");
    assert_eq!(other.run(&["keys", "status"], &[]).status.code(), Some(0));
}
