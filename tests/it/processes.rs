//! Processes that are killed, told to stop, or started where they should not be (faults S5, S7, S8): the built
//! binary against a sandbox in this process.

use std::path::PathBuf;
use std::time::Duration;

use token_wallet::proto::v1;
use token_wallet::sandbox::{Effect, Options, Person, Rotation, Rule, When};
use tonic::Code;

use crate::support::child::text;
use crate::support::harness::{Engine, on_both_engines, reason, until};
use crate::support::service::Wallet;
use crate::support::writer::hold_writer;

/// Well below what the RPC's deadline allows.
const SOON: Duration = Duration::from_secs(10);

/// A sandbox whose dead refresh tokens answer once more within a minute.
fn graceful() -> Options {
    Options { rotation: Rotation::Grace(Duration::from_mins(1)), ..Options::default() }
}

/// Completes a link and kills the wallet once the sandbox holds a request of it.
async fn complete_and_kill(wallet: &mut Wallet, ticket: &str) {
    let killing = async {
        wallet.sandbox.wait_held(1).await;
        wallet.kill();
    };
    let (cut_off, ()) = tokio::join!(wallet.complete("u", ticket), killing);
    assert!(matches!(cut_off.unwrap_err().code(), Code::Unavailable | Code::Unknown));
    wallet.end().await;
}

fn database_file(wallet: &Wallet) -> PathBuf {
    wallet.store().sqlite_path().unwrap().to_owned()
}

#[tokio::test]
async fn s7_a_second_process_on_the_same_file_refuses_to_start_and_the_first_goes_on() {
    let mut wallet = Wallet::running(Engine::Sqlite, Options::default()).await;
    wallet.link("u", "demo").await;
    for command in [&["serve"][..], &["migrate"], &["keys", "status"], &["clients", "create", "x", "--bootstrap"]] {
        let second = wallet.run(command, &[]);
        assert_eq!(second.status.code(), Some(1), "{command:?}: another try may help: {second:?}");
        let told = text(&second.stderr);
        assert!(told.contains("another process uses the store") && told.contains("wallet.db"), "{command:?}: {told}");
    }
    assert!(wallet.is_accepted(&wallet.get("u", "sandbox").await.unwrap().access_token).await);
    wallet.terminate();
    assert!(wallet.end().await.success());
    wallet.start().await;
    assert!(wallet.get("u", "sandbox").await.is_ok(), "the lock ended with its process");
}

#[tokio::test]
async fn s7_a_damaged_file_refuses_with_the_reason_and_is_not_overwritten() {
    let mut wallet = Wallet::running(Engine::Sqlite, Options::default()).await;
    wallet.link("u", "demo").await;
    wallet.terminate();
    assert!(wallet.end().await.success());
    let path = database_file(&wallet);
    let whole = std::fs::read(&path).unwrap();
    let garbage = |range: std::ops::Range<usize>| {
        let mut bytes = whole.clone();
        bytes[range].fill(0x5a);
        bytes
    };
    let page = usize::from(u16::from_be_bytes([whole[16], whole[17]]));
    for (damage, bytes, told) in [
        ("its header", garbage(0..100), "file is not a database"),
        ("its schema", garbage(100..page), "malformed"),
        ("all but its header", garbage(page..whole.len()), "malformed"),
        ("cut to a page", whole[..page].to_vec(), "malformed"),
        ("cut within a page", whole[..page + 7].to_vec(), "malformed"),
        ("cut within its header", whole[..50].to_vec(), "malformed"),
    ] {
        std::fs::write(&path, &bytes).unwrap();
        for command in [&["serve"][..], &["keys", "status"], &["keys", "init"], &["migrate"]] {
            let refused = wallet.run(command, &[]);
            assert_eq!(refused.status.code(), Some(78), "{damage}, {command:?}: {refused:?}");
            assert!(text(&refused.stderr).contains(told), "{damage}, {command:?}: {refused:?}");
            assert!(std::fs::read(&path).unwrap() == bytes, "{damage}: {command:?} wrote to it");
        }
    }
    std::fs::write(&path, &whole).unwrap();
    wallet.start().await;
    assert!(wallet.is_accepted(&wallet.get("u", "sandbox").await.unwrap().access_token).await);
}

#[tokio::test]
async fn a_spool_that_cannot_be_used_is_told_by_its_key_and_its_path() {
    let wallet = Wallet::new(Engine::Sqlite, Options::default(), &[]).await;
    let file = wallet.folder().join("file");
    std::fs::write(&file, "").unwrap();
    for directory in [file.clone(), file.join("below"), PathBuf::from("/proc/spool")] {
        let directory = directory.to_str().unwrap();
        let refused = wallet.run(&["serve"], &[("TOKEN_WALLET__SPOOL__DIR", directory)]);
        let told = text(&refused.stderr);
        assert_eq!(refused.status.code(), Some(78), "{directory}: {told}");
        assert!(told.contains("spool.dir") && told.contains(directory), "{directory}: {told}");
    }
}

#[tokio::test]
async fn a_mistyped_path_of_the_store_is_told_and_nothing_is_made_there() {
    const ALL: [&[&str]; 5] =
        [&["serve"], &["keys", "status"], &["clients", "create", "x", "--bootstrap"], &["keys", "init"], &["migrate"]];
    let wallet = Wallet::new(Engine::Sqlite, Options::default(), &[]).await;
    let (folder, url_file) = (wallet.folder().join("mistyped"), wallet.folder().join("mistyped.url"));
    let path = folder.join("wallet.db");
    std::fs::write(&url_file, format!("sqlite:{}", path.display())).unwrap();
    let run = |command: &[&str]| {
        let run = wallet.run(command, &[("TOKEN_WALLET__STORE__URL_FILE", url_file.to_str().unwrap())]);
        assert!(run.status.code() == Some(0) || text(&run.stderr).contains(path.to_str().unwrap()), "{run:?}");
        run.status.code()
    };
    for command in ALL {
        assert_eq!(run(command), Some(78), "{command:?}");
        assert!(!folder.exists(), "{command:?} made the folder");
    }
    std::fs::create_dir(&folder).unwrap();
    for command in &ALL[..3] {
        assert_eq!(run(command), Some(78), "{command:?}");
        assert_eq!(folder.read_dir().unwrap().count(), 0, "{command:?} made a file");
    }
    assert_eq!(run(&["migrate"]), Some(0));
    assert_eq!(run(&["serve"]), Some(78), "no keyring, and which store has none");
    assert_eq!(run(&["keys", "init"]), Some(0));
    assert_eq!(run(&["keys", "status"]), Some(0));
}

#[tokio::test]
async fn a_start_behind_another_writer_says_which_file_it_waits_for() {
    let mut wallet = Wallet::new(Engine::Sqlite, Options::default(), &[]).await;
    let path = database_file(&wallet);
    let log = wallet.folder().join("logs/1.stderr");
    let held = hold_writer(&path).await;
    let wait = async {
        until("it says that it waits", async || {
            let told = std::fs::read_to_string(&log).unwrap_or_default();
            told.lines().any(|line| line.contains("waiting for the store") && line.contains(path.to_str().unwrap()))
        })
        .await;
        drop(held);
    };
    tokio::join!(wallet.start(), wait);
}

#[tokio::test]
async fn a_database_that_lets_nobody_in_is_a_mistake_and_one_that_does_not_answer_is_waited_for() {
    let wallet = Wallet::new(Engine::Postgres, Options::default(), &[]).await;
    let right = reqwest::Url::parse(wallet.store().expose()).unwrap();
    let with = |change: fn(&mut reqwest::Url)| {
        let mut url = right.clone();
        change(&mut url);
        url.set_password(Some("canary-7")).unwrap();
        url.to_string()
    };
    for (url, told, code) in [
        (with(|url| url.set_username("nobody").unwrap()), "role \"nobody\" does not exist", Some(78)),
        (with(|url| url.set_path("nothing")), "database \"nothing\" does not exist", Some(78)),
        ("postgres://wallet:canary-7@127.0.0.1:1/wallet".to_owned(), "onnection refused", None),
    ] {
        let (ended, log) = wallet.serve_on(&url, "waiting for the store").await;
        assert_eq!(ended, code, "{url}: {log}");
        assert!(log.contains(told) && !log.contains("canary-7"), "{url}: {log}");
    }
}

#[tokio::test]
async fn s5_killed_while_a_refresh_is_at_the_provider_it_is_fresh_once_the_lease_is_over() {
    for when in [When::Before, When::After] {
        let mut wallet = Wallet::running(Engine::Sqlite, graceful()).await;
        wallet.link("u", "demo").await;
        wallet.sandbox.set_faults([Rule::refresh(Effect::Hold).when(when)]);
        wallet.age("%").await;
        wallet.sandbox.wait_held(1).await;
        wallet.kill();
        wallet.end().await;
        wallet.sandbox.release();
        wallet.start().await;
        // What the dead process has sent may still be heard.
        assert_eq!(reason(&wallet.get("u", "sandbox").await.unwrap_err()), "PROVIDER_UNAVAILABLE", "{when:?}");
        wallet.kill();
        wallet.end().await;
        let over = "UPDATE grants SET lease_until = lease_until - 20000, attempted_at = attempted_at - 20000";
        assert_eq!(wallet.database().await.execute(over).await, 1);
        wallet.start().await;
        let token = tokio::time::timeout(SOON, wallet.get("u", "sandbox")).await.unwrap().unwrap();
        assert!(wallet.is_accepted(&token.access_token).await, "{when:?}");
        // The lost answer's and its repetition's, both by the same refresh token.
        let requests = wallet.token_requests("refresh_token");
        let presented: Vec<_> = requests.iter().map(|request| &request.presented.refresh_token).collect();
        assert_eq!(presented.len(), 2, "{when:?}: {requests:?}");
        assert_eq!(presented[0], presented[1], "{when:?}");
    }
}

on_both_engines! {
    async fn s5_killed_while_a_code_is_at_the_provider_no_code_is_ever_sent_twice(engine) {
        for when in [When::Before, When::After] {
            let mut wallet = Wallet::running(engine, Options::default()).await;
            let ticket = wallet.ticket("u", "demo").await;
            wallet.sandbox.set_faults([Rule::exchange(Effect::Hold).when(when)]);
            complete_and_kill(&mut wallet, &ticket).await;
            wallet.sandbox.release();
            wallet.start().await;
            let told = wallet.complete("u", &ticket).await.unwrap_err();
            assert_eq!(reason(&told), "FLOW_OUTCOME_UNKNOWN", "{when:?}: {told:?}");
            assert_eq!(reason(&wallet.get("u", "sandbox").await.unwrap_err()), "ACCOUNT_NOT_LINKED");
            assert_eq!(wallet.token_requests("authorization_code").len(), 1, "{when:?}");
            // It can be begun again.
            wallet.link("u", "demo").await;
            assert!(wallet.is_accepted(&wallet.get("u", "sandbox").await.unwrap().access_token).await);
            assert_eq!(wallet.token_requests("authorization_code").len(), 2, "{when:?}");
        }
    }

    async fn s5_killed_after_the_exchange_the_link_is_finished_by_the_next_process(engine) {
        let mut wallet = Wallet::running(engine, Options::default()).await;
        let ticket = wallet.ticket("u", "demo").await;
        wallet.sandbox.set_faults([Rule::userinfo(Effect::Hold)]);
        complete_and_kill(&mut wallet, &ticket).await;
        wallet.sandbox.release();
        // Long enough ago that nobody else can be taken to be at it.
        let parked = "UPDATE flows SET claimed_at = claimed_at - 120000 WHERE state = 'exchanged'";
        assert_eq!(wallet.database().await.execute(parked).await, 1);
        wallet.start().await;
        // Nobody asks for it: the next process finds the parked answer by itself.
        until("the link is finished", async || wallet.get("u", "sandbox").await.is_ok()).await;
        assert!(wallet.is_accepted(&wallet.get("u", "sandbox").await.unwrap().access_token).await);
        assert!(wallet.complete("u", &ticket).await.unwrap().external_account.is_some(), "and tells its outcome");
        assert_eq!(wallet.token_requests("authorization_code").len(), 1);
    }

    async fn s8_told_to_stop_with_200_refreshes_in_flight_it_stores_all_that_were_sent(engine) {
        const USERS: usize = 220;
        // Refreshes get 85 % of 240 places.
        const IN_FLIGHT: usize = 204;
        let people = (0..USERS).map(|n| Person::named(&format!("p{n}"))).collect();
        let mut wallet = Wallet::running(engine, Options { people, ..graceful() }).await;
        let paths = ["requests_per_second", "max_in_flight"].map(str::to_owned).into();
        let limits = v1::UpdateProviderRequest {
            provider: "sandbox".into(),
            requests_per_second: 10_000,
            max_in_flight: 240,
            update_mask: Some(prost_types::FieldMask { paths }),
            ..Default::default()
        };
        wallet.providers().update_provider(limits).await.unwrap();
        for n in 0..USERS {
            wallet.link(&format!("p{n}"), &format!("p{n}")).await;
        }
        wallet.sandbox.set_faults([Rule::refresh(Effect::Hold)]);
        wallet.age("%").await;
        let users: Vec<_> = (0..USERS).map(|n| format!("p{n}")).collect();
        let gets = futures_util::future::join_all(users.iter().map(|user| wallet.get(user, "sandbox")));
        let stopping = async {
            // As many as the provider's gate lets refresh at once; the others wait behind them.
            wallet.sandbox.wait_held(IN_FLIGHT).await;
            wallet.terminate();
            until("no new call is taken", async || {
                tokio::net::TcpStream::connect(wallet.grpc()).await.is_err()
            })
            .await;
            wallet.sandbox.release();
        };
        let (answers, ()) = tokio::join!(gets, stopping);
        let (fresh, refused): (Vec<_>, Vec<_>) = answers.into_iter().partition(Result::is_ok);
        for answer in &fresh {
            assert!(wallet.is_accepted(&answer.as_ref().unwrap().access_token).await);
        }
        // Those that had not been sent are not begun any more.
        assert!(refused.iter().all(|answer| reason(answer.as_ref().unwrap_err()) == "PROVIDER_UNAVAILABLE"));
        assert_eq!(wallet.end().await.code(), Some(0));
        assert!(fresh.len() >= IN_FLIGHT && fresh.len() == wallet.token_requests("refresh_token").len());
        let held = "SELECT COUNT(*) FROM grants WHERE lease_until IS NOT NULL";
        assert_eq!(wallet.database().await.number(held).await, 0);
        wallet.start().await;
        for n in 0..USERS {
            assert!(wallet.is_accepted(&wallet.get(&format!("p{n}"), "sandbox").await.unwrap().access_token).await);
        }
        let requests = wallet.token_requests("refresh_token");
        let presented: std::collections::BTreeSet<_> =
            requests.iter().map(|request| request.presented.refresh_token.clone()).collect();
        assert_eq!((requests.len(), presented.len()), (USERS, USERS), "each token is sent once, before or after");
    }
}
