//! `events list` and `events tail`, as people and scripts call them.

use std::io::{BufRead as _, BufReader};
use std::process::Stdio;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use token_wallet::proto::v1;
use token_wallet::sandbox::Options;

use crate::support::child::{Running, text};
use crate::support::harness::{Engine, until};
use crate::support::service::Wallet;

/// How long a line may take to come.
const PATIENCE: Duration = Duration::from_secs(20);

/// The lines of a child, read by a thread of their own.
fn lines(output: impl std::io::Read + Send + 'static) -> Receiver<String> {
    let (told, lines) = channel();
    std::thread::spawn(move || {
        BufReader::new(output).lines().map_while(Result::ok).try_for_each(|line| told.send(line))
    });
    lines
}

#[tokio::test]
async fn a_tail_follows_across_a_killed_wallet_and_ends_well_with_its_cursor() {
    let mut wallet = Wallet::running(Engine::Sqlite, Options::default()).await;
    let address = wallet.grpc().to_owned();
    let (addr, key) = (address.clone(), wallet.key.clone());
    let called = [("TOKEN_WALLET_ADDR", addr.as_str()), ("TOKEN_WALLET_API_KEY", key.as_str())];
    let mut command = wallet.command(&["events", "tail", "--json"], &called);
    let mut tail = Running(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap());
    let events = lines(tail.0.stdout.take().unwrap());
    let notes = lines(tail.0.stderr.take().unwrap());
    let next = || serde_json::from_str::<Value>(&events.recv_timeout(PATIENCE).unwrap()).unwrap();
    until("it watches", async || {
        let text = wallet.http.get(wallet.ops("/metrics")).send().await.unwrap().text().await.unwrap();
        text.contains("token_wallet_event_watchers 1\n")
    })
    .await;

    let account = wallet.link("ann", "demo").await;
    let linked = next();
    assert_eq!((&linked["type"], &linked["user_id"]), (&"account.linked".into(), &"ann".into()));
    assert_eq!(linked["external_account_id"], account.id);
    wallet.kill();
    wallet.end().await;
    wallet.start_with(&[("TOKEN_WALLET__GRPC__ADDR", &address)]).await;
    let request = v1::DeleteExternalAccountRequest { external_account_id: account.id };
    wallet.accounts().delete_external_account(request).await.unwrap();
    let unlinked = next();
    assert_eq!(unlinked["type"], "account.unlinked");

    kill_process(Pid::from_child(&tail.0), Signal::INT).unwrap();
    assert_eq!(tail.0.wait().unwrap().code(), Some(0));
    let note = notes.recv_timeout(PATIENCE).unwrap();
    assert!(note.ends_with(&format!("--from {}", unlinked["cursor"].as_str().unwrap())), "{note}");

    let listed = wallet.run(&["events", "list", "--type", "account.unlinked", "--json"], &called);
    let listed: Vec<Value> = serde_json::from_slice(&listed.stdout).unwrap();
    assert_eq!(listed.iter().map(|event| &event["id"]).collect::<Vec<_>>(), [&unlinked["id"]]);
    let listed = wallet.run(&["events", "list", "--user", "ann"], &called);
    let listed = text(&listed.stdout);
    assert_eq!(listed.lines().count(), 3, "{listed}");
    assert!(listed.contains("account.linked") && listed.contains("account.unlinked"), "{listed}");
    let refused = wallet.run(&["events", "tail", "--from", "x"], &called);
    assert_eq!(refused.status.code(), Some(1));
    let told = text(&refused.stderr);
    assert!(told.contains("must be a cursor") && !told.contains("go on with"), "{told}");
    let listed =
        wallet.run(&["events", "list", "--user", "ann", "--from", unlinked["cursor"].as_str().unwrap()], &called);
    assert_eq!(text(&listed.stdout).lines().count(), 1, "{listed:?}");
    assert!(text(&listed.stderr).starts_with("go on with: token-wallet events tail --from "), "{listed:?}");
    wallet.terminate();
    assert!(wallet.end().await.success());
}
