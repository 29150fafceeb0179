//! What is done to many grants at once leaves the writer free in between: 250 rows a transaction.

use token_wallet::clock::{Clock, Timestamp};

use super::{Fixture, NOW, at, on_both_engines, user};

on_both_engines! {
    a_provider_s_retries_are_pulled_forward_in_several_transactions
    tokens_are_distrusted_in_several_transactions_and_the_time_begins_anew_after_the_last
}

/// Grants of one provider.
const MANY: i64 = 1_000;

/// As many as that, each of an account of its own, that failed once.
async fn many(store: &Fixture) -> token_wallet::domain::ids::ProviderId {
    let provider = store.configured("acme").await;
    let (account, _) = store.linked(&user("u"), provider, "s").await;
    let numbers = if store.url.starts_with("sqlite:") {
        format!("(WITH RECURSIVE n(i) AS (SELECT 2 UNION ALL SELECT i + 1 FROM n WHERE i < {MANY}) SELECT i FROM n)")
    } else {
        format!("(SELECT generate_series(2, {MANY}) AS i)")
    };
    let kept = "user_id, provider_id, state, created_at";
    let tokens = "is_current, access_token, access_generation, refresh_token, refresh_generation, token_type, scopes, \
                  requested_scopes, metadata, issued_at, lifetime, lifetime_assumed, due_at, ahead_until, attempts, \
                  fence, committed_fence, sweep_at";
    for copy in [
        format!(
            "INSERT INTO external_accounts (id, subject, profile, is_default, scope_history, {kept})
             SELECT id || n.i, subject || n.i, profile, is_default, scope_history, {kept} FROM external_accounts, {numbers} n"
        ),
        format!(
            "INSERT INTO grants (id, account_id, {kept}, {tokens})
             SELECT id || n.i, '{account}' || n.i, {kept}, {tokens} FROM grants, {numbers} n"
        ),
        "UPDATE grants SET attempts = 1".to_owned(),
    ] {
        store.tamper(copy).await;
    }
    provider
}

/// Lets no transaction change a grant once more than 600 are to be swept now.
async fn break_off_after_600(store: &Fixture) {
    let too_many = format!("(SELECT COUNT(*) FROM grants WHERE sweep_at = {}) > 600", NOW.millis());
    if store.url.starts_with("sqlite:") {
        let fails = "BEGIN SELECT RAISE(ABORT, 'enough'); END";
        store.tamper(format!("CREATE TRIGGER enough AFTER UPDATE ON grants WHEN {too_many} {fails}")).await;
    } else {
        let body = format!("BEGIN IF {too_many} THEN RAISE 'enough'; END IF; RETURN NEW; END");
        store.tamper(format!("CREATE FUNCTION enough() RETURNS trigger LANGUAGE plpgsql AS $${body}$$")).await;
        store.tamper("CREATE TRIGGER enough AFTER UPDATE ON grants FOR EACH ROW EXECUTE FUNCTION enough()").await;
    }
}

async fn go_on(store: &Fixture) {
    let of = if store.url.starts_with("sqlite:") { "" } else { " ON grants" };
    store.tamper(format!("DROP TRIGGER enough{of}")).await;
}

async fn due_now(store: &Fixture) -> i64 {
    let now = NOW.millis();
    store.number(&format!("SELECT COUNT(*) FROM grants WHERE sweep_at = {now} AND due_at = {now}")).await
}

async fn high_water(store: &Fixture) -> Timestamp {
    store.times(&Clock::system()).await.unwrap().high_water
}

async fn a_provider_s_retries_are_pulled_forward_in_several_transactions(store: &Fixture) {
    let provider = many(store).await;
    let waiting = store.linked(&user("w"), provider, "w").await.1;
    break_off_after_600(store).await;
    assert!(store.pull_retries_forward(provider, NOW).await.is_err());
    assert_eq!(due_now(store).await, 500, "two transactions, and the third was undone");
    go_on(store).await;
    assert_eq!(store.pull_retries_forward(provider, NOW).await.unwrap(), 500);
    assert_eq!(store.pull_retries_forward(provider, NOW).await.unwrap(), 0);
    assert_eq!(store.judged(waiting).await.freshness.due_at, Some(at(3_000)), "it has not failed");
}

async fn tokens_are_distrusted_in_several_transactions_and_the_time_begins_anew_after_the_last(store: &Fixture) {
    many(store).await;
    let ahead = at(86_400).millis();
    store
        .tamper(format!(
            "INSERT INTO instance (singleton, id, kind, replica_id, created_at, high_water)
             VALUES (1, 'ins', 'development', 'rep', 0, {ahead})"
        ))
        .await;
    break_off_after_600(store).await;
    assert!(store.distrust_tokens(NOW).await.is_err());
    assert_eq!((due_now(store).await, high_water(store).await), (500, at(86_400)));
    go_on(store).await;
    let all = usize::try_from(MANY).unwrap();
    assert_eq!(store.distrust_tokens(NOW).await.unwrap(), all);
    assert_eq!((due_now(store).await, high_water(store).await), (MANY, NOW));
    let run_out = format!("SELECT COUNT(*) FROM grants WHERE issued_at + lifetime = {}", NOW.millis());
    assert_eq!(store.number(&run_out).await, MANY);
}
