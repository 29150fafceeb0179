//! The coherence log: what replicas are told to drop. A store of one process writes none.

use token_wallet::domain::event::EventKind;
use token_wallet::domain::grant::{Freshness, GrantState};
use token_wallet::domain::ids::{AccountId, ApiClientId, GrantId, ProviderId};
use token_wallet::domain::provider::Lifetime;
use token_wallet::store::{
    ApiClientRow, Changes, DeleteProvider, Deposit, Deposited, Engine, GrantChange, Outcome, Place, Stale,
};

use super::{Fixture, NOW, at, event, on_both_engines, sealed, slug, user};

on_both_engines! {
    each_change_that_takes_something_away_is_logged_with_it
    a_refresh_is_logged_if_it_kills_the_older_token_and_a_death_is
    who_missed_something_is_told_of_a_gap
}

/// Who has read so far, whatever was there.
fn read_to(sequence: i64) -> Place {
    Place { sequence, mark: None }
}

/// What was logged since `known`, if this store has a log.
async fn since(store: &Fixture, known: i64) -> Vec<Stale> {
    let Changes { place, stale, gap } = store.coherence_since(Some(&read_to(known))).await.unwrap();
    assert!(!gap);
    assert_eq!(place.sequence, known + i64::try_from(stale.len()).unwrap());
    stale
}

fn if_logged(store: &Fixture, stale: impl IntoIterator<Item = Stale>) -> Vec<Stale> {
    stale.into_iter().filter(|_| store.engine() == Engine::Postgres).collect()
}

fn account(name: &str, provider: ProviderId) -> Stale {
    Stale::Account { provider, user: user(name) }
}

async fn each_change_that_takes_something_away_is_logged_with_it(store: &Fixture) {
    let provider = store.configured("acme").await;
    let (linked, grant) = store.linked(&user("ann smith"), provider, "s").await;
    let relink =
        Deposit { account: linked, existing: true, ..store.new_deposit(&user("ann smith"), provider, "s").await };
    assert_eq!(store.deposit(&relink).await.unwrap(), Deposited::Done);
    let quarantined = event(EventKind::AccountQuarantined, &user("ann smith"), provider).because("access_token");
    assert!(!store.quarantine(grant, linked, &quarantined).await.unwrap(), "not the current one any more: not logged");
    assert!(store.quarantine(relink.grant.id, linked, &quarantined).await.unwrap());
    let unlinked = event(EventKind::AccountUnlinked, &user("ann smith"), provider);
    assert!(store.unlink(linked, &unlinked, NOW).await.unwrap());
    assert!(!store.unlink(linked, &unlinked, NOW).await.unwrap(), "again: not logged");
    let idle = store.configured("idle").await;
    assert_eq!(store.delete_provider(&slug("idle"), NOW).await.unwrap(), DeleteProvider::Deleted, "{idle}");
    let client = ApiClientRow { id: ApiClientId::new(NOW), display_name: "c".into(), created_at: NOW, keys: vec![] };
    store.create_api_client(&client, &[7; 32], None).await.unwrap();
    assert!(store.delete_api_client(client.id, NOW).await.unwrap());

    let ann = || account("ann smith", provider);
    let all = if_logged(store, [ann(), ann(), ann(), ann(), Stale::Providers, Stale::ApiClients]);
    assert_eq!(since(store, 0).await, all);
    let known = i64::try_from(all.len()).unwrap();
    assert_eq!(since(store, (known - 1).max(0)).await, if_logged(store, [Stale::ApiClients]));
}

async fn a_refresh_is_logged_if_it_kills_the_older_token_and_a_death_is(store: &Fixture) {
    let provider = store.configured("acme").await;
    let (linked, grant) = store.linked(&user("ann"), provider, "s").await;
    let known = store.coherence_since(None).await.unwrap().place.sequence;
    let refreshed = |fence: i64| Outcome::Refreshed {
        access_token: sealed(1),
        refresh_token: None,
        token_type: "Bearer".to_owned(),
        scopes: None,
        metadata: std::collections::BTreeMap::new(),
        freshness: Freshness { issued_at: at(fence), lifetime: Lifetime::Endless, due_at: None, keep_alive_at: None },
    };
    let dead = |committed_fence| Outcome::Verdict {
        state: GrantState::Dead,
        due_at: None,
        retry_not_before: None,
        reason: None,
        committed_fence,
    };
    let change = |fence, outcome, announce| change((linked, grant), fence, outcome, announce);
    let ann = || Some(account("ann", provider));
    for fence in 1..=3 {
        store.claim_now(grant, at(20 * fence)).await.unwrap();
        let announce = if fence == 1 { None } else { ann() };
        let outcome = if fence == 3 { dead(2) } else { refreshed(fence) };
        store.record(&change(fence, outcome, announce)).await.unwrap();
    }
    // Too late: it takes nothing away.
    store.record(&change(1, refreshed(1), ann())).await.unwrap();
    assert_eq!(since(store, known).await, if_logged(store, [ann().unwrap(), ann().unwrap()]));
}

fn change(
    (account, grant): (AccountId, GrantId),
    fence: i64,
    outcome: Outcome,
    announce: Option<Stale>,
) -> GrantChange {
    GrantChange { grant, account, fence, outcome, event: None, scopes_changed: None, announce, at: NOW }
}

async fn who_missed_something_is_told_of_a_gap(store: &Fixture) {
    let provider = store.configured("acme").await;
    for n in 0..3 {
        store.linked(&user("ann"), provider, &format!("s{n}")).await;
    }
    let gap = async |known: Option<i64>| store.coherence_since(known.map(read_to).as_ref()).await.unwrap().gap;
    assert!(gap(None).await, "who knows nothing");
    assert!(gap(Some(4)).await, "a step back: the database is another, or an older copy");
    if store.engine() == Engine::Sqlite {
        assert!(!gap(Some(0)).await);
        return;
    }
    assert!(!gap(Some(0)).await);
    store.tamper("UPDATE coherence_log SET kind = 'cellars' WHERE sequence = 3").await;
    assert!(gap(Some(0)).await && !gap(Some(3)).await, "a word of a newer program");
    store.tamper("UPDATE coherence_log SET kind = 'account' WHERE sequence = 3").await;
    store.tamper(format!("UPDATE coherence_log SET at = {} WHERE sequence = 1", at(-1).millis())).await;
    store.tidy_coherence(NOW).await.unwrap();
    assert!(gap(Some(0)).await && !gap(Some(1)).await, "old rows are removed");
    // More than is read at once, and removed in several pieces.
    store
        .tamper(
            "INSERT INTO coherence_log SELECT n, 'providers', '', 0 FROM generate_series(4, 2503) n;
             UPDATE coherence SET sequence = 2503",
        )
        .await;
    assert!(gap(Some(3)).await && gap(Some(1_502)).await && !gap(Some(1_503)).await);
    store.tidy_coherence(at(1)).await.unwrap();
    assert_eq!(store.number("SELECT COUNT(*) FROM coherence_log").await, 1, "by which its readers know the log again");
    let newest =
        Changes { place: Place { sequence: 2_503, mark: Some("providers  0".into()) }, stale: vec![], gap: false };
    assert_eq!(store.coherence_since(Some(&newest.place)).await.unwrap(), newest);
}

#[tokio::test]
async fn a_log_that_lost_its_end_and_grew_as_long_again_is_another_log() {
    let store = Fixture::on_postgres().await;
    let provider = store.configured("acme").await;
    store.linked(&user("ann"), provider, "s").await;
    let known = store.coherence_since(None).await.unwrap().place;
    let again = store.coherence_since(Some(&known)).await.unwrap();
    assert_eq!(again, Changes { place: known.clone(), stale: vec![], gap: false });
    // A standby that had not received the newest change takes over, and others change something before it is read.
    store
        .tamper(
            "DELETE FROM coherence_log WHERE sequence = (SELECT sequence FROM coherence);
             UPDATE coherence SET sequence = sequence - 1",
        )
        .await;
    store.linked(&user("bob"), provider, "t").await;
    let after = store.coherence_since(Some(&known)).await.unwrap();
    assert_eq!(after.place.sequence, known.sequence);
    assert!(after.gap);
    store.linked(&user("bob"), provider, "u").await;
    assert!(store.coherence_since(Some(&known)).await.unwrap().gap);
    assert!(!store.coherence_since(Some(&after.place)).await.unwrap().gap);
}
