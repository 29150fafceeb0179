//! Ten thousand events under load, with the process killed again and again.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::join_all;
use token_wallet::proto::v1;
use token_wallet::proto::v1::event_service_client::EventServiceClient;
use token_wallet::sandbox::{Options, Person};
use tokio::sync::watch;

use super::watcher::Watcher;
use crate::support::browser;
use crate::support::clients::Keyed;
use crate::support::database::Database;
use crate::support::harness::{APP_URL, on_both_engines, until};
use crate::support::service::Wallet;

/// How many changes, in how many lives of the process, by how many callers at once.
const CHANGES: usize = 10_000;
const LIVES: usize = 6;
const CALLERS: usize = 24;

/// So many of the callers link and unlink, as fast as the provider's budget has it. The others cause what is cheaper.
const LINKERS: usize = 4;

/// After so many events the watcher leaves by itself, and comes back.
const LEAVES_AFTER: usize = 777;

on_both_engines! {
    async fn promise_p9_ten_thousand_changes_and_kills_are_as_many_events_each_told_once_in_order(engine) {
        let people = (0..LINKERS).map(|n| Person::named(&format!("p{n}"))).collect();
        let mut wallet = Wallet::running(engine, Options { people, ..Options::default() }).await;
        let (there, where_it_is) = watch::channel(wallet.event_log());
        let told = Arc::new(Mutex::new(Vec::new()));
        let watching = tokio::spawn(watch_all(where_it_is, Arc::clone(&told)));
        let done = AtomicUsize::new(0);
        for life in 1..=LIVES {
            let enough = CHANGES * life / LIVES;
            let callers = join_all((0..CALLERS).map(|caller| call(&wallet, life, caller, &done)));
            let killer = async {
                while done.load(Ordering::SeqCst) < enough {
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
                // In the middle of what the others do.
                wallet.kill();
            };
            tokio::join!(callers, killer);
            wallet.end().await;
            if life < LIVES {
                wallet.start().await;
                there.send_replace(wallet.event_log());
            }
        }
        // Nobody writes any more: what the store says of the changes, and what of the events.
        let database = wallet.database().await;
        assert_same(&database).await;
        let written = set(&database, "SELECT id FROM events").await;
        assert!(written.len() >= CHANGES, "{}", written.len());
        drop(database);
        wallet.start().await;
        there.send_replace(wallet.event_log());
        let heard = || told.lock().unwrap().len();
        until("the watcher has heard of all", async || heard() >= written.len()).await;
        watching.abort();
        let told = told.lock().unwrap().clone();
        assert_eq!(told[..written.len()].iter().cloned().collect::<BTreeSet<_>>(), written);
        let database = wallet.database().await;
        let log = database.texts("SELECT id FROM events WHERE sequence IS NOT NULL ORDER BY sequence").await;
        assert_eq!(told, log[..told.len()], "each once, in the order of the log");
        let holes = "SELECT MAX(sequence) - COUNT(*) FROM events WHERE sequence IS NOT NULL";
        assert_eq!(database.number(holes).await, 0);
    }
}

/// Makes changes until the wallet is gone, and counts them.
async fn call(wallet: &Wallet, life: usize, caller: usize, done: &AtomicUsize) {
    for n in 0.. {
        let changes = if caller < LINKERS {
            link_and_unlink(wallet, caller).await
        } else {
            mix_up(wallet, &format!("{life}.{caller}.{n}")).await
        };
        let Some(changes) = changes else { return };
        done.fetch_add(changes, Ordering::SeqCst);
    }
}

/// Two changes: an account is linked and unlinked.
async fn link_and_unlink(wallet: &Wallet, caller: usize) -> Option<usize> {
    let user = format!("linker {caller}");
    let url = start(wallet, &user).await?;
    let callback = wallet.approve(url.parse().unwrap(), &format!("p{caller}")).await;
    let answer = wallet.http.get(callback).send().await.ok()?;
    let ticket = browser::parameter(&browser::location(&answer), "ticket").unwrap();
    let account = wallet.complete(&user, &ticket).await.ok()?.external_account.unwrap().id;
    let request = v1::DeleteExternalAccountRequest { external_account_id: account };
    wallet.accounts().delete_external_account(request).await.ok()?;
    Some(2)
}

/// One change: a flow is burned, since its callback comes for another provider.
async fn mix_up(wallet: &Wallet, user: &str) -> Option<usize> {
    let url = start(wallet, user).await?.parse().unwrap();
    let state = browser::parameter(&url, "state").unwrap();
    let answer =
        wallet.http.get(wallet.web(&format!("/oauth/callback/other?code=c&state={state}"))).send().await.ok()?;
    assert_eq!(answer.status(), 400);
    Some(1)
}

async fn start(wallet: &Wallet, user: &str) -> Option<String> {
    let request = v1::StartLinkRequest {
        user_id: user.into(),
        provider: "sandbox".into(),
        redirect_url: APP_URL.into(),
        ..Default::default()
    };
    Some(wallet.accounts().start_link(request).await.ok()?.into_inner().authorization_url)
}

/// Watches wherever the wallet is, from the cursor it has, and notes each event's id.
async fn watch_all(wallet: watch::Receiver<EventServiceClient<Keyed>>, told: Arc<Mutex<Vec<String>>>) {
    let list = v1::ListEventsRequest { page_size: 1, ..Default::default() };
    let mut client = wallet.borrow().clone();
    let mut cursor = client.list_events(list).await.unwrap().into_inner().cursor;
    loop {
        let client = wallet.borrow().clone();
        let request = v1::WatchEventsRequest { cursor: cursor.clone(), ..Default::default() };
        let Ok(mut watcher) = Watcher::open(client, request).await else {
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        for _ in 0..LEAVES_AFTER {
            let Ok(Some(message)) = watcher.message().await else { break };
            told.lock().unwrap().extend(message.event.map(|event| event.id));
            cursor = message.cursor;
        }
    }
}

/// That each change has its event, and each event its change.
async fn assert_same(database: &Database) {
    for (changes, events) in [
        (
            "SELECT id FROM flows WHERE failure = 'provider_mismatch'",
            "SELECT flow_id FROM events WHERE kind = 'flow.provider_mismatch'",
        ),
        (
            "SELECT id FROM flows WHERE state = 'done'",
            "SELECT flow_id FROM events WHERE kind IN ('account.linked', 'account.relinked')",
        ),
        ("SELECT id FROM external_accounts", "SELECT account_id FROM events WHERE kind = 'account.linked'"),
        (
            "SELECT id FROM external_accounts WHERE state = 'unlinked'",
            "SELECT account_id FROM events WHERE kind = 'account.unlinked'",
        ),
        ("SELECT id FROM grants WHERE state = 'ended'", "SELECT grant_id FROM events WHERE kind LIKE 'grant.%'"),
    ] {
        let told = database.texts(events).await;
        assert_eq!(told.iter().cloned().collect::<BTreeSet<_>>(), set(database, changes).await, "{changes}");
        assert_eq!(told.len(), set(database, changes).await.len(), "{events}");
        assert!(!told.is_empty(), "{events}");
    }
    let kinds =
        set(database, "SELECT DISTINCT kind FROM events WHERE kind <> 'account.relinked' AND kind NOT LIKE 'grant.%'")
            .await;
    assert_eq!(kinds.len(), 3, "{kinds:?}");
}

async fn set(database: &Database, sql: &str) -> BTreeSet<String> {
    database.texts(sql).await.into_iter().collect()
}
