//! Grants that do not decode, and what the constraints hold.

use token_wallet::domain::error::Failure;
use token_wallet::store::StoreError;

use super::{Fixture, on_both_engines, user};

on_both_engines! {
    a_grant_that_does_not_decode_is_named_and_its_value_is_not_told
    the_constraints_hold_against_any_writer
}

async fn a_grant_that_does_not_decode_is_named_and_its_value_is_not_told(store: &Fixture) {
    let provider = store.configured("acme").await;
    let (account, grant) = store.linked(&user("ann"), provider, "s").await;
    let short = if store.url.starts_with("sqlite:") { "X'0102'" } else { "'\\x0102'" };
    for (column, value, good) in [
        ("scopes", "'planted'", "'[]'"),
        ("metadata", "'[\"planted\"]'", "'{}'"),
        ("lifetime", "-1", "NULL"),
        ("attempts", "-1", "0"),
        ("user_id", "'planted\u{1}'", "'ann'"),
        ("provider_id", "'planted'", &format!("'{provider}'")),
        ("access_token", short, "access_token"),
    ] {
        store.tamper(format!("UPDATE grants SET {column} = {value}")).await;
        let error = store.holding(grant).await.unwrap_err();
        let StoreError::Corrupt { table: "grants", column: named, id } = &error else { panic!("{error}") };
        assert_eq!((*named, id), (column, &grant.to_string()));
        assert!(!error.to_string().contains("planted"), "{error}");
        assert_eq!(Failure::from(error), Failure::Internal);
        store.tamper(format!("UPDATE grants SET {column} = {good}")).await;
    }
    store.tamper(format!("UPDATE external_accounts SET profile = {short}")).await;
    let error = store.account(account).await.unwrap_err();
    assert!(matches!(&error, StoreError::Corrupt { table: "external_accounts", column: "profile", .. }), "{error}");
}

async fn the_constraints_hold_against_any_writer(store: &Fixture) {
    let provider = store.configured("acme").await;
    store.linked(&user("ann"), provider, "s").await;
    store.linked(&user("ann"), provider, "other").await;
    store.exchanged(&user("ann"), provider).await;
    for statement in [
        "UPDATE grants SET state = 'fine'",
        "UPDATE grants SET state = 'ending'",
        "UPDATE grants SET committed_fence = fence + 1",
        "UPDATE grants SET lease_until = 5",
        "UPDATE grants SET refresh_token = NULL",
        "UPDATE grants SET access_token = NULL",
        "UPDATE grants SET account_id = (SELECT MIN(account_id) FROM grants)",
        "UPDATE external_accounts SET subject = 's'",
        "UPDATE external_accounts SET state = 'gone'",
        "UPDATE external_accounts SET is_default = TRUE",
        "UPDATE flows SET state = 'done' WHERE state = 'exchanged'",
        "UPDATE flows SET answer = NULL WHERE state = 'exchanged'",
        "UPDATE flows SET state = 'failed', ended_at = 1, answer = NULL WHERE state = 'exchanged'",
        "DELETE FROM users",
        "DELETE FROM providers",
    ] {
        let refused = store.try_to_tamper(statement).await;
        assert!(refused.is_err_and(|error| error.as_database_error().is_some()), "{statement}");
    }
}
