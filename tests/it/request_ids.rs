//! Creating calls that are repeated (faults G9, S3): what they make is made once, whatever became of the first one's
//! answer; and an answer is told no longer than what it tells of is good for.

use std::time::Duration;

use sqlx::Connection as _;
use token_wallet::proto::v1;
use token_wallet::sandbox::Options;
use tonic::{Code, Status};

use crate::support::harness::{APP_URL, Harness, on_both_engines, reason, until};

fn client(request_id: &str) -> v1::CreateApiClientRequest {
    let (display_name, request_id) = ("made once".into(), request_id.into());
    v1::CreateApiClientRequest { display_name, request_id, ..Default::default() }
}

fn link(user: &str, request_id: &str) -> v1::StartLinkRequest {
    v1::StartLinkRequest {
        user_id: user.into(),
        provider: "sandbox".into(),
        redirect_url: APP_URL.into(),
        request_id: request_id.into(),
        ..Default::default()
    }
}

async fn make(harness: &Harness, request_id: &str) -> Result<v1::CreateApiClientResponse, Status> {
    harness.clients().create_api_client(client(request_id)).await.map(tonic::Response::into_inner)
}

async fn start(harness: &Harness, user: &str, request_id: &str) -> Result<v1::StartLinkResponse, Status> {
    harness.accounts().start_link(link(user, request_id)).await.map(tonic::Response::into_inner)
}

async fn count(harness: &Harness, of: &str) -> i64 {
    harness.database().await.number(&format!("SELECT COUNT(*) FROM {of}")).await
}

fn assert_gone(told: Result<impl std::fmt::Debug, Status>) {
    let told = told.unwrap_err();
    assert_eq!((told.code(), reason(&told).as_str()), (Code::FailedPrecondition, "REQUEST_ANSWER_GONE"), "{told:?}");
}

#[tokio::test]
async fn s3_what_was_made_by_a_commit_that_was_not_heard_of_is_told_to_who_asks_again() {
    let (harness, proxy) = Harness::through_proxy(Options::default()).await;
    let (clients, flows) = (count(&harness, "api_clients").await, count(&harness, "flows").await);

    proxy.cut_after_commit("INSERT INTO api_clients");
    assert_eq!(reason(&make(&harness, "r").await.unwrap_err()), "STORE_UNAVAILABLE");
    proxy.commits_lost(1).await;
    let made = make(&harness, "r").await.unwrap();
    assert_eq!(count(&harness, "api_clients").await, clients + 1);
    let key = made.api_key.unwrap().secret;
    harness.accounts_as(&key).list_external_accounts(v1::ListExternalAccountsRequest::default()).await.unwrap();

    proxy.cut_after_commit("INSERT INTO flows");
    assert_eq!(reason(&start(&harness, "u", "r").await.unwrap_err()), "STORE_UNAVAILABLE");
    proxy.commits_lost(2).await;
    let started = start(&harness, "u", "r").await.unwrap();
    assert_eq!(count(&harness, "flows").await, flows + 1);
    let callback = harness.decide(&started.authorization_url, "demo", "approve").await;
    let ticket = harness.ticket_of(callback).await;
    assert!(harness.complete("u", &ticket).await.unwrap().created, "the very flow");

    let secret = || v1::CreateProviderSecretRequest {
        provider: "sandbox".into(),
        client_secret: "second-secret".into(),
        request_id: "r".into(),
    };
    proxy.cut_after_commit("INSERT INTO provider_secrets");
    assert_eq!(reason(&harness.providers().create_provider_secret(secret()).await.unwrap_err()), "STORE_UNAVAILABLE");
    proxy.commits_lost(3).await;
    harness.providers().create_provider_secret(secret()).await.unwrap();
    assert_eq!(count(&harness, "provider_secrets").await, 2);

    let provider = || v1::CreateProviderRequest {
        slug: "another".into(),
        catalog_entry: "sandbox".into(),
        client_id: "c".into(),
        client_secret: "s".into(),
        request_id: "r".into(),
        ..Default::default()
    };
    proxy.cut_after_commit("INSERT INTO providers");
    assert_eq!(reason(&harness.providers().create_provider(provider()).await.unwrap_err()), "STORE_UNAVAILABLE");
    proxy.commits_lost(4).await;
    let made = harness.providers().create_provider(provider()).await.unwrap().into_inner().provider.unwrap();
    let request = v1::GetProviderRequest { provider: "another".into() };
    assert_eq!(harness.providers().get_provider(request).await.unwrap().into_inner().provider.unwrap(), made);

    let url = || v1::CreateRedirectUrlRequest {
        url: "https://other.example.com/".into(),
        request_id: "r".into(),
        ..Default::default()
    };
    proxy.cut_after_commit("INSERT INTO redirect_urls");
    assert_eq!(reason(&harness.redirect_urls().create_redirect_url(url()).await.unwrap_err()), "STORE_UNAVAILABLE");
    proxy.commits_lost(5).await;
    let made = harness.redirect_urls().create_redirect_url(url()).await.unwrap().into_inner().redirect_url.unwrap();
    let request = v1::DeleteRedirectUrlRequest { redirect_url_id: made.id.clone() };
    harness.redirect_urls().delete_redirect_url(request).await.unwrap();
    let again = harness.redirect_urls().create_redirect_url(url()).await.unwrap().into_inner().redirect_url.unwrap();
    assert_eq!(again.id, made.id, "not made anew, though it was deleted since");
}

#[tokio::test]
async fn a_call_that_takes_longer_than_anybody_waits_makes_nothing_beside_who_took_its_place() {
    let (harness, proxy) = Harness::through_proxy(Options::default()).await;
    let before = count(&harness, "api_clients").await;
    let mut held = sqlx::PgConnection::connect(proxy.direct_url()).await.unwrap();
    sqlx::raw_sql("BEGIN; LOCK TABLE api_clients IN EXCLUSIVE MODE").execute(&mut held).await.unwrap();
    let database = harness.database().await;
    let waiting = async |calls| {
        let waits = "SELECT COUNT(*) FROM pg_locks WHERE NOT granted AND relation = 'api_clients'::regclass";
        until("they wait", async || database.number(waits).await == calls).await;
    };
    let (first, second, ()) = tokio::join!(
        make(&harness, "r"),
        async {
            waiting(1).await;
            harness.pass(Duration::from_secs(31));
            make(&harness, "r").await
        },
        async {
            waiting(2).await;
            sqlx::raw_sql("ROLLBACK").execute(&mut held).await.unwrap();
        }
    );
    let told = make(&harness, "r").await.unwrap();
    assert_eq!(count(&harness, "api_clients").await, before + 1);
    for answer in [first, second] {
        match answer {
            Ok(answer) => assert_eq!(answer, told),
            Err(waits) => assert_eq!(reason(&waits), "REQUEST_IN_PROGRESS"),
        }
    }
}

on_both_engines! {
    async fn a_flows_url_is_told_again_while_its_browser_is_under_way_and_not_after(engine) {
        let harness = Harness::start(engine).await;
        let (ended, expired) = (start(&harness, "u", "ended").await.unwrap(), start(&harness, "u", "late").await.unwrap());
        assert_eq!(start(&harness, "u", "ended").await.unwrap(), ended);
        let callback = harness.decide(&ended.authorization_url, "demo", "cancel").await;
        harness.http.get(callback).send().await.unwrap();
        assert_gone(start(&harness, "u", "ended").await);
        assert_eq!(start(&harness, "u", "late").await.unwrap(), expired);
        harness.pass(Duration::from_mins(10));
        assert_gone(start(&harness, "u", "late").await);
        harness.work().await;
        assert_eq!(count(&harness, "request_ids WHERE answer IS NOT NULL").await, 0);
        assert_gone(start(&harness, "u", "late").await);
        assert_eq!(count(&harness, "flows").await, 2);
    }

    async fn a_deleted_users_answers_are_erased_with_the_user(engine) {
        let harness = Harness::start(engine).await;
        let account = harness.link("u", "demo").await;
        harness.link("v", "alice").await;
        start(&harness, "u", "r").await.unwrap();
        let other = start(&harness, "v", "other").await.unwrap();
        let again = v1::StartReauthorizationRequest {
            external_account_id: account.id,
            redirect_url: APP_URL.into(),
            request_id: "r".into(),
            ..Default::default()
        };
        harness.accounts().start_reauthorization(again.clone()).await.unwrap();
        harness.users().delete_user(v1::DeleteUserRequest { user_id: "u".into() }).await.unwrap();
        assert_gone(start(&harness, "u", "r").await);
        assert_eq!(reason(&harness.accounts().start_reauthorization(again).await.unwrap_err()), "REQUEST_ANSWER_GONE");
        assert_eq!(count(&harness, "request_ids WHERE answer IS NOT NULL").await, 1);
        assert_eq!(count(&harness, "request_ids WHERE user_id = 'u'").await, 0);
        assert_eq!(start(&harness, "v", "other").await.unwrap(), other);
    }

    async fn an_api_key_is_told_again_for_a_quarter_of_an_hour_and_made_once_in_a_day(engine) {
        let harness = Harness::start(engine).await;
        let before = count(&harness, "api_clients").await;
        let made = make(&harness, "r").await.unwrap();
        harness.pass(Duration::from_mins(14));
        assert_eq!(make(&harness, "r").await.unwrap(), made);
        harness.pass(Duration::from_mins(1));
        assert_gone(make(&harness, "r").await);
        harness.work().await;
        assert_eq!(count(&harness, "request_ids WHERE answer IS NOT NULL").await, 0);
        assert_gone(make(&harness, "r").await);
        assert_eq!(count(&harness, "api_clients").await, before + 1);
    }
}
