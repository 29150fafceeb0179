//! What is done on one replica holds on the others: refreshes (N1), unlinking (N3, promise P7), links (C10), migrations
//! (S10).

use std::time::Duration;

use reqwest::Url;
use token_wallet::config::StoreUrl;
use token_wallet::proto::v1::DeleteExternalAccountRequest;
use token_wallet::sandbox::{Effect, Options, Rule, Sandbox};
use token_wallet::vault::RootKey;

use crate::support::child::{Running, binary, text};
use crate::support::cluster::Cluster;
use crate::support::database::Database;
use crate::support::harness::{APP_URL, reason, until};
use crate::support::postgres;
use crate::support::proxy::Proxy;
use crate::support::service::Wallet;

#[tokio::test]
async fn n1_a_thousand_gets_of_one_expired_grant_over_three_replicas_cause_one_token_request() {
    let cluster = Cluster::start(3, Options::default(), &[]).await;
    cluster.first().link("u", "demo").await;
    cluster.sandbox().set_faults([Rule::refresh(Effect::Hold)]);
    cluster.expire("u").await;
    let asked = async {
        cluster.sandbox().wait_held(1).await;
        for _ in 0..10 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        cluster.sandbox().release();
    };
    let (got, ()) = tokio::join!(cluster.gets("u", 1_000), asked);
    let tokens: Vec<_> = got.into_iter().map(|got| got.unwrap().access_token).collect();
    assert!(tokens.iter().all(|token| *token == tokens[0]) && cluster.sandbox().accepts(&tokens[0]));
    assert_eq!(cluster.first().token_requests("refresh_token").len(), 1);
    // Each looked once before and once after; in between each replica did, for all of its callers together.
    let mut read = 0.0;
    for replica in &cluster.replicas {
        read += replica.metric("token_wallet_store_statements_total{statement=\"grants::OF_USER\"}").await;
    }
    assert!(read < 2_200.0, "{read}");
}

#[tokio::test]
async fn n3_unlinked_and_linked_again_on_two_replicas_while_a_third_refreshes_the_new_grant_lives_and_nothing_else() {
    let cluster = Cluster::start(3, Options::default(), &[]).await;
    let account = cluster.first().link("u", "demo").await;
    let [refreshing, unlinking, linking] = &cluster.replicas[..] else { panic!() };
    cluster.sandbox().set_faults([Rule::refresh(Effect::Hold).after()]);
    cluster.expire("u").await;
    let meanwhile = async {
        cluster.sandbox().wait_held(1).await;
        let request = DeleteExternalAccountRequest { external_account_id: account.id };
        unlinking.accounts().delete_external_account(request).await.unwrap();
        for replica in [unlinking, linking] {
            assert_eq!(reason(&replica.get("u", "sandbox").await.unwrap_err()), "ACCOUNT_NOT_LINKED");
        }
        linking.link("u", "demo").await;
        cluster.sandbox().release();
    };
    let (late, ()) = tokio::join!(refreshing.get("u", "sandbox"), meanwhile);
    let [refresh] = &cluster.first().token_requests("refresh_token")[..] else { panic!("one refresh") };
    let late = late.map(|got| Sandbox::fingerprint(&got.access_token));
    assert!(late.is_err() || late.ok() != refresh.issued.access_token, "the late answer is nobody's");
    cluster.assert_served("u").await;
    until("only the new grant lives", async || {
        let grants = cluster.sandbox().grants_of("demo");
        grants.len() == 2 && grants[0].ended.is_some() && grants[1].ended.is_none()
    })
    .await;
    cluster.assert_served("u").await;
}

#[tokio::test]
async fn promise_p7_after_an_unlinking_on_one_replica_ten_thousand_gets_on_the_others_hand_out_nothing() {
    let cluster = Cluster::start(3, Options::default(), &[]).await;
    let account = cluster.first().link("u", "demo").await;
    let [first, others @ ..] = &cluster.replicas[..] else { panic!() };
    for replica in others {
        until("it serves from memory", async || {
            replica.get("u", "sandbox").await.unwrap();
            replica.metric("token_wallet_cache_hits_total{shelf=\"tokens\"}").await > 0.0
        })
        .await;
    }
    let request = DeleteExternalAccountRequest { external_account_id: account.id };
    first.accounts().delete_external_account(request).await.unwrap();
    for _ in 0..50 {
        let gets = (0..200).map(|n| others[n % 2].get("u", "sandbox"));
        for got in futures_util::future::join_all(gets).await {
            assert_eq!(reason(&got.map(|_| "a token").unwrap_err()), "ACCOUNT_NOT_LINKED");
        }
    }
}

#[tokio::test]
async fn c10_a_link_goes_on_on_other_replicas_while_those_of_before_are_dead() {
    let address = ("TOKEN_WALLET__PUBLIC_URL", "http://127.0.0.1:1");
    let mut cluster = Cluster::start(3, Options::default(), &[address]).await;
    let authorization_url = cluster.first().start_link("u", "sandbox", APP_URL).await;
    cluster.replicas[0].kill();
    cluster.replicas[0].end().await;
    let callback = cluster.replicas[1].approve(authorization_url, "demo").await;
    let at = |replica: &Wallet| -> Url {
        replica.web(&format!("{}?{}", callback.path(), callback.query().unwrap())).parse().unwrap()
    };
    let ticket = cluster.replicas[1].ticket_of(at(&cluster.replicas[1])).await;
    // Used up, wherever it is tried.
    let again = cluster.first().http.get(at(&cluster.replicas[2])).send().await.unwrap();
    assert_eq!(again.status().as_u16(), 400);
    cluster.replicas[1].kill();
    cluster.replicas[1].end().await;
    let linked = cluster.replicas[2].complete("u", &ticket).await.unwrap().external_account.unwrap();
    for replica in &mut cluster.replicas[..2] {
        replica.start().await;
        assert_eq!(replica.complete("u", &ticket).await.unwrap().external_account.unwrap().id, linked.id);
    }
    cluster.assert_served("u").await;
    assert_eq!(cluster.first().token_requests("authorization_code").len(), 1);
}

#[tokio::test]
async fn s10_a_migration_that_is_killed_half_way_leaves_nothing_and_of_those_at_once_one_wins() {
    let database = postgres::database().await;
    let proxy = Proxy::start(&database.url);
    let folder = tempfile::tempdir().unwrap();
    let root_key = folder.path().join("root.key");
    RootKey::generate().write_new(&root_key).unwrap();
    let migrate = |url: &str| {
        let variables = [
            ("TOKEN_WALLET__INSTANCE__KIND", "development"),
            ("TOKEN_WALLET__STORE__URL", url),
            ("TOKEN_WALLET__ROOT_KEY__SOURCE", "file"),
            ("TOKEN_WALLET__ROOT_KEY__FILE", root_key.to_str().unwrap()),
        ];
        let mut command = binary(folder.path(), &["migrate"], &variables);
        command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
        Running(command.spawn().unwrap())
    };
    let store = StoreUrl::parse(database.url.clone()).unwrap();
    let looking = Database::open(&store).await;
    let tables = "SELECT COUNT(*) FROM information_schema.tables WHERE table_schema = 'public'";
    // All is done but the commit when the process dies, or its connection does.
    proxy.cut_before_commit("CREATE TABLE grants");
    let mut first = migrate(proxy.url());
    proxy.commits_lost(1).await;
    until("it has ended", async || first.0.try_wait().unwrap().is_some()).await;
    assert!(!first.0.wait().unwrap().success());
    assert_eq!(looking.number(tables).await, 0);

    let mut all: Vec<_> = (0..3).map(|_| migrate(&database.url)).collect();
    for one in &mut all {
        until("it has ended", async || one.0.try_wait().unwrap().is_some()).await;
        assert!(one.0.wait().unwrap().success());
    }
    assert!(looking.number(tables).await > 10);
    assert_eq!(looking.number("SELECT COUNT(*) FROM schema_migrations").await, 1);
}

#[tokio::test]
async fn s10_a_replica_of_an_older_program_refuses_a_newer_schema_and_those_that_run_go_on() {
    let cluster = Cluster::start(2, Options::default(), &[]).await;
    cluster.first().link("u", "demo").await;
    let newer = "INSERT INTO schema_migrations (version, name) VALUES (9999, 'from the future')";
    cluster.first().database().await.execute(newer).await;
    let refused = cluster.first().beside().run(&["serve"], &[]);
    assert_eq!(refused.status.code(), Some(78), "{refused:?}");
    assert!(text(&refused.stderr).contains("written by a newer version"), "{refused:?}");
    cluster.assert_served("u").await;
}
