//! What is served from memory, and that nothing is which was taken away (promise P7).

use std::time::Duration;

use token_wallet::proto::v1;
use token_wallet::sandbox::Options;
use tonic::{Code, Status};

use crate::support::child::text;
use crate::support::database::Database;
use crate::support::harness::{Engine, Harness, Replica, on_both_engines, reason, until};

/// How long a change that takes something away waits on PostgreSQL.
const SETTLED: Duration = Duration::from_millis(1_100);

type Got = Result<v1::GetAccessTokenResponse, Status>;

/// What every get reads, put out of reach; what keeps the lease stays.
async fn hide(database: &Database) {
    for table in ["api_keys", "providers", "grants"] {
        database.execute(&format!("ALTER TABLE {table} RENAME TO hidden_{table}")).await;
    }
}

async fn show(database: &Database) {
    for table in ["api_keys", "providers", "grants"] {
        database.execute(&format!("ALTER TABLE hidden_{table} RENAME TO {table}")).await;
    }
}

/// Waits until this get is answered without the store, and nothing that was logged before can be dropped any more: the
/// lease of before is over, so this one came with a later reading of the log.
async fn until_hot(harness: &Harness, mut get: impl AsyncFnMut() -> Got) {
    harness.pass(Duration::from_secs(1));
    let database = harness.database().await;
    until("a get is answered from memory", async || {
        get().await.unwrap();
        hide(&database).await;
        let hot = get().await.is_ok();
        show(&database).await;
        hot
    })
    .await;
}

/// The same answer to many gets, sent a hundred at a time.
async fn each_of(gets: usize, get: impl AsyncFn() -> Got, fits: impl Fn(&Got) -> bool) {
    for _ in 0..gets / 100 {
        let answers = futures_util::future::join_all((0..100).map(|_| get())).await;
        for got in answers {
            let told = got.as_ref().map(|_| "a token").map_err(Status::message);
            assert!(fits(&got), "{told:?}");
        }
    }
}

fn refused(why: &'static str) -> impl Fn(&Got) -> bool {
    move |got| got.as_ref().is_err_and(|status| reason(status) == why)
}

fn at(user: &str, provider: &str) -> v1::GetAccessTokenRequest {
    v1::GetAccessTokenRequest { user_id: user.into(), provider: provider.into(), ..Default::default() }
}

/// A wallet of two replicas, `ann` and `bob` hot on the second.
async fn two() -> (Harness, Replica) {
    let harness = Harness::start(Engine::Postgres).await;
    harness.link("ann", "alice").await;
    harness.link("bob", "bob").await;
    let second = harness.second().await;
    for user in ["ann", "bob"] {
        until_hot(&harness, async || second.get(user).await).await;
    }
    (harness, second)
}

/// After a change has returned: nobody is served the old, neither while the leases of before run out nor with new ones.
async fn assert_gone(harness: &Harness, second: &Replica, request: v1::GetAccessTokenRequest, why: &'static str) {
    harness.pass(SETTLED);
    for _ in 0..2 {
        each_of(500, async || harness.get_with(request.clone()).await, refused(why)).await;
        each_of(500, async || second.get_at(request.clone()).await, refused(why)).await;
        until_hot(harness, async || second.get("bob").await).await;
    }
}

/// Does something and answers whether it took as long as others may serve the old.
async fn waits<T>(work: impl Future<Output = T>) -> (T, bool) {
    let early = tokio::time::sleep(SETTLED);
    tokio::pin!(early, work);
    tokio::select! {
        biased;
        done = &mut work => (done, false),
        () = &mut early => (work.await, true),
    }
}

/// The value of a counter, of whatever labels.
async fn counted(harness: &Harness, line: &str) -> f64 {
    let page = harness.http.get(harness.ops("/metrics")).send().await.unwrap().bytes().await.unwrap();
    text(&page).lines().find_map(|text| text.strip_prefix(line)?.trim().parse().ok()).unwrap_or(0.0)
}

on_both_engines! {
    async fn a_hot_get_asks_nothing_of_the_store(engine) {
        let harness = Harness::start(engine).await;
        harness.link("ann", "alice").await;
        harness.link("bob", "bob").await;
        let token = harness.get("ann").await.unwrap().access_token;
        let database = harness.database().await;
        until_hot(&harness, async || harness.get("ann").await).await;
        hide(&database).await;
        each_of(300, async || harness.get("ann").await, |got| got.as_ref().is_ok_and(|got| got.access_token == token)).await;
        let cold = harness.get("bob").await.unwrap_err();
        assert_eq!(cold.code(), Code::Internal, "a get that is not hot does ask");
        // What memory cannot answer, the store is asked for: an error is never told from memory.
        let scopes = v1::GetAccessTokenRequest { required_scopes: vec!["more".into()], ..at("ann", "sandbox") };
        assert_eq!(harness.get_with(scopes.clone()).await.unwrap_err().code(), Code::Internal);
        show(&database).await;
        assert_eq!(reason(&harness.get_with(scopes).await.unwrap_err()), "MISSING_SCOPES");
        assert_eq!(harness.get("bob").await.unwrap().token_type, "Bearer");
        assert!(counted(&harness, "token_wallet_store_statements_total{statement=\"grants::OF_USER\"}").await > 0.0);
        for shelf in ["tokens", "providers", "api_keys"] {
            for count in ["hits_total", "misses_total", "bytes", "entries"] {
                let line = format!("token_wallet_cache_{count}{{shelf=\"{shelf}\"}}");
                assert!(counted(&harness, &line).await > 0.0, "{line}");
            }
        }
    }

    async fn promise_p7_after_an_unlinking_a_thousand_gets_hand_out_nothing(engine) {
        let harness = Harness::start(engine).await;
        let account = harness.link("ann", "alice").await;
        until_hot(&harness, async || harness.get("ann").await).await;
        let request = v1::DeleteExternalAccountRequest { external_account_id: account.id };
        harness.accounts().delete_external_account(request).await.unwrap();
        each_of(1_000, async || harness.get("ann").await, refused("ACCOUNT_NOT_LINKED")).await;
        assert!(counted(&harness, "token_wallet_cache_drops_total{shelf=\"tokens\"}").await > 0.0);
    }

    async fn a_relinked_account_serves_its_new_token_and_a_second_one_is_a_choice_to_make(engine) {
        let harness = Harness::start(engine).await;
        harness.link("ann", "alice").await;
        until_hot(&harness, async || harness.get("ann").await).await;
        let old = harness.get("ann").await.unwrap().access_token;
        harness.link("ann", "alice").await;
        let new = harness.get("ann").await.unwrap().access_token;
        assert_ne!(old, new);
        until_hot(&harness, async || harness.get("ann").await).await;
        harness.link("ann", "demo").await;
        each_of(100, async || harness.get("ann").await, refused("DEFAULT_ACCOUNT_UNSET")).await;
    }

    async fn deleted_providers_and_api_clients_are_gone_at_once(engine) {
        let harness = Harness::start(engine).await;
        let (spare, client, key) = spares(&harness).await;
        let provider = async || harness.get_with(at("ann", &spare)).await;
        each_of(100, provider, refused("ACCOUNT_NOT_LINKED")).await;
        delete_provider(&harness, &spare).await;
        each_of(100, provider, refused("PROVIDER_NOT_FOUND")).await;
        let keyed = async || harness.replica().with_key(&key).get("ann").await;
        each_of(100, keyed, refused("ACCOUNT_NOT_LINKED")).await;
        delete_client(&harness, &client).await;
        each_of(100, keyed, refused("API_KEY_INVALID")).await;
    }

    async fn a_refreshed_token_replaces_the_one_in_memory(engine) {
        let harness = Harness::start(engine).await;
        harness.link("ann", "alice").await;
        until_hot(&harness, async || harness.get("ann").await).await;
        harness.pass(Duration::from_hours(2));
        let token = harness.get("ann").await.unwrap().access_token;
        until_hot(&harness, async || harness.get("ann").await).await;
        assert_eq!(harness.get("ann").await.unwrap().access_token, token);
        // Past due: memory serves it, and the refresh that it wakes replaces it.
        harness.pass(Duration::from_mins(58));
        until("the new one is served", async || harness.get("ann").await.unwrap().access_token != token).await;
        assert_eq!(harness.refreshes().len(), 2);
    }

    async fn that_a_grant_was_asked_for_is_noted_once_by_gets_from_memory(engine) {
        let harness = Harness::with(engine, Options { token_ttl: Duration::from_hours(24 * 10), ..Options::default() }).await;
        harness.link("ann", "alice").await;
        until_hot(&harness, async || harness.get("ann").await).await;
        let database = harness.database().await;
        let ahead = async || database.number("SELECT ahead_until FROM grants").await;
        let before = ahead().await;
        harness.pass(Duration::from_hours(24 * 2));
        harness.get("ann").await.unwrap();
        until("it is noted", async || ahead().await > before).await;
        let noted = ahead().await;
        harness.pass(Duration::from_hours(1));
        until_hot(&harness, async || harness.get("ann").await).await;
        each_of(100, async || harness.get("ann").await, Got::is_ok).await;
        assert_eq!(ahead().await, noted, "not again before a tenth of the span is used up");
        assert!(harness.refreshes().is_empty());
    }
}

/// A provider without accounts, and an API client with its key.
async fn spares(harness: &Harness) -> (String, String, String) {
    let request = v1::CreateProviderRequest {
        slug: "spare".into(),
        catalog_entry: "sandbox".into(),
        client_id: "spare".into(),
        ..Default::default()
    };
    harness.providers().create_provider(request).await.unwrap();
    let request = v1::CreateApiClientRequest { display_name: "spare".into(), ..Default::default() };
    let made = harness.clients().create_api_client(request).await.unwrap().into_inner();
    ("spare".into(), made.api_client.unwrap().id, made.api_key.unwrap().secret)
}

async fn delete_provider(harness: &Harness, slug: &str) {
    let request = v1::DeleteProviderRequest { provider: slug.into() };
    harness.providers().delete_provider(request).await.unwrap();
}

async fn delete_client(harness: &Harness, id: &str) {
    let request = v1::DeleteApiClientRequest { api_client_id: id.into() };
    harness.clients().delete_api_client(request).await.unwrap();
}

#[tokio::test]
async fn promise_p7_what_is_unlinked_on_one_replica_is_gone_on_the_other_when_the_call_returns() {
    let (harness, second) = two().await;
    let of_ann = v1::ListExternalAccountsRequest { user_id: "ann".into(), ..Default::default() };
    let accounts = harness.accounts().list_external_accounts(of_ann).await.unwrap().into_inner().external_accounts;
    let id = accounts[0].id.clone();
    let delete = || async {
        let request = v1::DeleteExternalAccountRequest { external_account_id: id.clone() };
        harness.accounts().delete_external_account(request).await.unwrap();
    };
    assert!(waits(delete()).await.1, "it returns when no other replica can serve it any more");
    assert_gone(&harness, &second, at("ann", "sandbox"), "ACCOUNT_NOT_LINKED").await;
    assert!(waits(delete()).await.1, "again: perhaps the first one still waits");
}

#[tokio::test]
async fn promise_p7_deleted_providers_and_api_clients_are_gone_on_the_other_replica() {
    let (harness, second) = two().await;
    let (spare, client, key) = spares(&harness).await;
    let keyed = second.with_key(&key);
    each_of(100, async || second.get_at(at("ann", &spare)).await, refused("ACCOUNT_NOT_LINKED")).await;
    until_hot(&harness, async || keyed.get("bob").await).await;
    assert!(waits(delete_provider(&harness, &spare)).await.1);
    assert_gone(&harness, &second, at("ann", &spare), "PROVIDER_NOT_FOUND").await;
    until_hot(&harness, async || keyed.get("bob").await).await;
    assert!(waits(delete_client(&harness, &client)).await.1);
    harness.pass(SETTLED);
    for _ in 0..2 {
        each_of(500, async || keyed.get("bob").await, refused("API_KEY_INVALID")).await;
        until_hot(&harness, async || second.get("bob").await).await;
    }
}

#[tokio::test]
async fn promise_p7_a_relinked_account_serves_its_new_token_on_the_other_replica() {
    let (harness, second) = two().await;
    let ticket = harness.ticket("ann", "alice").await;
    let (linked, waited) = waits(harness.complete("ann", &ticket)).await;
    assert!(linked.is_ok() && waited);
    harness.pass(SETTLED);
    let new = harness.get("ann").await.unwrap().access_token;
    for _ in 0..2 {
        each_of(500, async || second.get("ann").await, |got| got.as_ref().is_ok_and(|got| got.access_token == new))
            .await;
        until_hot(&harness, async || second.get("bob").await).await;
    }
}

#[tokio::test]
async fn k2_what_one_replica_quarantines_the_other_serves_no_more() {
    let (harness, second) = two().await;
    let database = harness.database().await;
    // Nobody has asked the first one yet, so it reads the damage.
    let damage = "UPDATE grants SET access_token = set_byte(access_token, 60, get_byte(access_token, 60) # 1)
                  WHERE user_id = 'ann'";
    assert_eq!(database.execute(damage).await, 1);
    assert_eq!(harness.get("ann").await.unwrap_err().code(), Code::DataLoss);
    until("the other knows", async || second.get("ann").await.is_err()).await;
    assert_gone(&harness, &second, at("ann", "sandbox"), "GRANT_QUARANTINED").await;
}

#[tokio::test]
async fn s4_a_replica_that_is_cut_off_serves_from_memory_for_a_second_and_no_longer() {
    let harness = Harness::start(Engine::Postgres).await;
    harness.link("ann", "alice").await;
    until_hot(&harness, async || harness.get("ann").await).await;
    harness.cut_database().await;
    each_of(100, async || harness.get("ann").await, Got::is_ok).await;
    harness.pass(Duration::from_millis(999));
    each_of(100, async || harness.get("ann").await, Got::is_ok).await;
    harness.pass(Duration::from_millis(1));
    let request = harness.get("ann");
    let refused = tokio::time::timeout(Duration::from_secs(10), request).await.unwrap().unwrap_err();
    assert_eq!((refused.code(), reason(&refused).as_str()), (Code::Unavailable, "STORE_UNAVAILABLE"));
    harness.mend_database().await;
    until("it is served again", async || harness.get("ann").await.is_ok()).await;
    until_hot(&harness, async || harness.get("ann").await).await;
}
