//! What refreshes come to: a newer answer is never overwritten, a verdict needs to be the newest word.

use std::collections::BTreeMap;
use std::time::Duration;

use token_wallet::clock::Timestamp;
use token_wallet::domain::account::AccountState;
use token_wallet::domain::event::{Event, EventKind};
use token_wallet::domain::grant::{Freshness, Grant, GrantState, Lease};
use token_wallet::domain::ids::{AccountId, EventId, GrantId, ProviderId};
use token_wallet::domain::provider::Lifetime;
use token_wallet::store::{Claim, GrantChange, Holding, Outcome, Recorded, RevocationClaim, RevocationEnd};

use super::{Fixture, NOW, at, event, on_both_engines, scopes, sealed, user};

on_both_engines! {
    new_tokens_are_stored_under_their_fence
    an_answer_without_refresh_token_scopes_and_metadata_keeps_what_is_there
    p16_other_scopes_are_told_with_the_answer_that_brought_them_and_once
    a_late_answer_never_overwrites_a_newer_one
    an_older_answer_leaves_the_newer_claim_its_lease
    two_refusals_end_account_and_grant_with_one_event
    a_late_success_revives_a_dead_grant_and_its_account
    a_verdict_needs_to_be_the_newest_word
    a_deferred_attempt_counts_and_releases
    an_answer_for_an_unlinked_account_is_stored_and_stays_ending
    a_quarantined_grant_stays_so
    a_change_of_another_account_or_an_unknown_fence_is_dropped
    fifty_late_answers_at_once_leave_the_newest
    a_request_without_an_answer_leaves_its_lease_and_any_answer_ends_the_doubt
    a_retry_that_changes_nothing_leaves_the_doubt_as_it_was
    a_retry_that_changes_nothing_after_the_answer_leaves_no_doubt
    an_answer_to_a_grant_that_ended_long_ago_has_a_day_to_be_revoked
    while_verdicts_are_frozen_no_grant_is_ended
    a_freeze_brings_back_what_the_wave_ended
    a_grant_that_nobody_asks_for_is_swept_when_the_provider_would_forget_it
}

struct Ann {
    provider: ProviderId,
    account: AccountId,
    grant: GrantId,
}

impl Ann {
    async fn linked(store: &Fixture) -> Self {
        let provider = store.configured("acme").await;
        let (account, grant) = store.linked(&user("ann"), provider, "s").await;
        Self { provider, account, grant }
    }

    /// The next claim, by whom it may be: leases are 20 s, so each is taken 20 s after the one before.
    async fn claim(&self, store: &Fixture, number: i64) -> Claim {
        store.claim_now(self.grant, at(20 * number)).await.unwrap()
    }

    fn change(&self, fence: i64, outcome: Outcome, kind: EventKind) -> GrantChange {
        let event = event(kind, &user("ann"), self.provider).account(self.account).grant(self.grant);
        GrantChange {
            grant: self.grant,
            account: self.account,
            fence,
            outcome,
            event: Some(event),
            scopes_changed: None,
            announce: None,
            at: NOW,
        }
    }

    async fn refreshed(&self, store: &Fixture, fence: i64) -> Recorded {
        store.record(&self.change(fence, refreshed(fence), EventKind::AccountRecovered)).await.unwrap()
    }

    async fn verdict(&self, store: &Fixture, fence: i64, state: GrantState, committed_fence: i64) -> Recorded {
        let outcome = Outcome::Verdict {
            state,
            due_at: Some(at(500)),
            retry_not_before: Some(at(500)),
            reason: Some("invalid_grant".to_owned()),
            committed_fence,
        };
        let kind = EventKind::AccountReauthorizationRequired;
        let mut change = self.change(fence, outcome, kind);
        change.event = change.event.filter(|_| state == GrantState::Dead);
        change.at = at(7);
        store.record(&change).await.unwrap()
    }

    /// The claim of `fence` leaves in doubt what was claimed as `doubted`, from when its lease ends.
    async fn in_doubt(&self, store: &Fixture, fence: i64, doubted: &Grant, lease_until: Timestamp) -> Recorded {
        let outcome = Outcome::InDoubt {
            fence: doubted.fence,
            lease: Lease { until: lease_until, ..doubted.lease.unwrap() },
            sent_at: doubted.attempted_at,
            doubted_fence: doubted.doubted_fence,
            due_at: lease_until.plus(Duration::from_secs(40)),
            retry_not_before: lease_until,
        };
        let change = self.change(fence, outcome, EventKind::AccountRecovered);
        store.record(&GrantChange { event: None, ..change }).await.unwrap()
    }

    async fn account_state(&self, store: &Fixture) -> (AccountState, Option<String>) {
        let row = store.account(self.account).await.unwrap().unwrap();
        (row.state, row.state_reason)
    }
}

fn lease_until(holding: &Holding) -> Option<Timestamp> {
    holding.grant.lease.map(|lease| lease.until)
}

/// New tokens, marked by their fence.
pub fn refreshed(fence: i64) -> Outcome {
    let mark = u8::try_from(100 + fence).unwrap();
    Outcome::Refreshed {
        access_token: sealed(mark),
        refresh_token: Some(sealed(mark)),
        token_type: "DPoP".to_owned(),
        scopes: Some(scopes("read new")),
        metadata: BTreeMap::from([("shop".to_owned(), "moved".to_owned())]),
        freshness: Freshness {
            issued_at: at(fence),
            lifetime: Lifetime::Assumed(Duration::from_secs(100)),
            due_at: Some(at(fence + 50)),
            keep_alive_at: Some(at(7_000)),
        },
    }
}

async fn p16_other_scopes_are_told_with_the_answer_that_brought_them_and_once(store: &Fixture) {
    let ann = Ann::linked(store).await;
    let news = event(EventKind::AccountScopesChanged, &user("ann"), ann.provider).account(ann.account).grant(ann.grant);
    let told = async || store.events(EventKind::AccountScopesChanged).await;
    let change = |fence| GrantChange {
        scopes_changed: Some(Event { id: EventId::new(NOW), ..news.clone() }),
        ..ann.change(fence, refreshed(fence), EventKind::AccountRecovered)
    };
    for number in 0..3 {
        ann.claim(store, number).await;
    }
    // From the spool it is not known what the grant has: the row says.
    assert_eq!(store.record(&change(2)).await.unwrap(), Recorded::Stored(GrantState::Active));
    assert_eq!(told().await, 1);
    // The same answer again, an older one, and a newer one with the same scopes.
    store.record(&change(2)).await.unwrap();
    assert_eq!(store.record(&change(1)).await.unwrap(), Recorded::Superseded);
    assert_eq!(store.record(&change(3)).await.unwrap(), Recorded::Stored(GrantState::Active));
    assert_eq!(told().await, 1);
}

async fn new_tokens_are_stored_under_their_fence(store: &Fixture) {
    let ann = Ann::linked(store).await;
    assert_eq!(ann.claim(store, 0).await.grant.fence, 1);
    assert_eq!(ann.refreshed(store, 1).await, Recorded::Stored(GrantState::Active));
    let holding = store.holding(ann.grant).await.unwrap().unwrap();
    let grant = &holding.grant;
    assert_eq!((grant.access_generation, grant.refresh_generation), (1, Some(1)));
    assert_eq!((grant.fence, grant.committed_fence, grant.attempted_at, grant.attempts), (1, 1, None, 0));
    assert_eq!((grant.token_type.as_str(), &grant.scopes), ("DPoP", &scopes("read new")));
    let Outcome::Refreshed { freshness, metadata, .. } = refreshed(1) else { unreachable!() };
    assert_eq!((&grant.freshness, &holding.metadata), (&freshness, &metadata));
    assert_eq!((&holding.access_token, lease_until(&holding)), (&sealed(101), None));
    assert_eq!(ann.claim(store, 1).await.refresh_token, sealed(101));
    // An account that was never taken for ended does not recover.
    assert_eq!(store.events(EventKind::AccountRecovered).await, 0);
}

async fn an_answer_without_refresh_token_scopes_and_metadata_keeps_what_is_there(store: &Fixture) {
    let ann = Ann::linked(store).await;
    ann.claim(store, 0).await;
    let Outcome::Refreshed { access_token, token_type, freshness, .. } = refreshed(1) else { unreachable!() };
    let outcome = Outcome::Refreshed {
        access_token,
        refresh_token: None,
        token_type,
        scopes: None,
        metadata: BTreeMap::new(),
        freshness: Freshness { lifetime: Lifetime::Endless, due_at: None, ..freshness },
    };
    let change = GrantChange { event: None, ..ann.change(1, outcome, EventKind::AccountRecovered) };
    assert_eq!(store.record(&change).await.unwrap(), Recorded::Stored(GrantState::Active));
    let holding = store.holding(ann.grant).await.unwrap().unwrap();
    assert_eq!((holding.grant.access_generation, holding.grant.refresh_generation), (1, Some(0)));
    assert_eq!((&holding.grant.scopes, holding.metadata["shop"].as_str()), (&scopes("read"), "acme"));
    assert_eq!(holding.grant.freshness.lifetime, Lifetime::Endless);
    assert_eq!(ann.claim(store, 1).await.refresh_token, sealed(11));
}

async fn a_late_answer_never_overwrites_a_newer_one(store: &Fixture) {
    let ann = Ann::linked(store).await;
    ann.claim(store, 0).await;
    assert_eq!(ann.claim(store, 1).await.grant.fence, 2);
    assert_eq!(ann.refreshed(store, 2).await, Recorded::Stored(GrantState::Active));
    let newest = store.holding(ann.grant).await.unwrap();
    assert_eq!(ann.refreshed(store, 1).await, Recorded::Superseded);
    // The same answer again, because nobody heard that it was stored.
    assert_eq!(ann.refreshed(store, 2).await, Recorded::Stored(GrantState::Active));
    assert_eq!(store.holding(ann.grant).await.unwrap(), newest);
}

async fn an_older_answer_leaves_the_newer_claim_its_lease(store: &Fixture) {
    let ann = Ann::linked(store).await;
    ann.claim(store, 0).await;
    ann.claim(store, 1).await;
    assert_eq!(ann.refreshed(store, 1).await, Recorded::Stored(GrantState::Active));
    let holding = store.holding(ann.grant).await.unwrap().unwrap();
    assert_eq!((lease_until(&holding), holding.grant.attempted_at), (Some(at(40)), Some(at(20))));
    assert_eq!((holding.grant.access_generation, holding.grant.fence), (1, 2));
    assert_eq!(ann.refreshed(store, 2).await, Recorded::Stored(GrantState::Active));
    assert_eq!(store.judged(ann.grant).await.lease, None);
}

async fn two_refusals_end_account_and_grant_with_one_event(store: &Fixture) {
    let ann = Ann::linked(store).await;
    ann.claim(store, 0).await;
    assert_eq!(ann.verdict(store, 1, GrantState::Suspect, 0).await, Recorded::Stored(GrantState::Suspect));
    let grant = store.holding(ann.grant).await.unwrap().unwrap().grant;
    assert_eq!((grant.state, grant.attempts, grant.freshness.due_at), (GrantState::Suspect, 1, Some(at(500))));
    assert_eq!(ann.account_state(store).await, (AccountState::Active, None));

    ann.claim(store, 1).await;
    assert_eq!(ann.verdict(store, 2, GrantState::Dead, 0).await, Recorded::Stored(GrantState::Dead));
    assert_eq!(store.events(EventKind::AccountReauthorizationRequired).await, 1);
    let ended = (AccountState::ReauthorizationRequired, Some("invalid_grant".to_owned()));
    assert_eq!(ann.account_state(store).await, ended);
    let grant = store.holding(ann.grant).await.unwrap().unwrap().grant;
    assert_eq!((grant.state, grant.freshness.due_at), (GrantState::Dead, None));
    assert!(store.claim_now(ann.grant, at(900)).await.is_none());
    // Said again, it is not told again.
    assert_eq!(ann.verdict(store, 2, GrantState::Dead, 0).await, Recorded::Stored(GrantState::Dead));
    assert_eq!(store.events(EventKind::AccountReauthorizationRequired).await, 1);
}

async fn a_late_success_revives_a_dead_grant_and_its_account(store: &Fixture) {
    let ann = Ann::linked(store).await;
    ann.claim(store, 0).await;
    ann.claim(store, 1).await;
    assert_eq!(ann.verdict(store, 2, GrantState::Dead, 0).await, Recorded::Stored(GrantState::Dead));
    assert_eq!(ann.refreshed(store, 1).await, Recorded::Stored(GrantState::Active));
    assert_eq!(ann.account_state(store).await, (AccountState::Active, None));
    assert_eq!(store.events(EventKind::AccountRecovered).await, 1);
    assert_eq!(store.holding(ann.grant).await.unwrap().unwrap().access_token, sealed(101));

    // Out of mere suspicion it comes back without a word.
    ann.claim(store, 2).await;
    assert_eq!(ann.verdict(store, 3, GrantState::Suspect, 1).await, Recorded::Stored(GrantState::Suspect));
    ann.claim(store, 3).await;
    assert_eq!(ann.refreshed(store, 4).await, Recorded::Stored(GrantState::Active));
    assert_eq!(store.events(EventKind::AccountRecovered).await, 1);
}

async fn a_verdict_needs_to_be_the_newest_word(store: &Fixture) {
    let ann = Ann::linked(store).await;
    ann.claim(store, 0).await;
    ann.claim(store, 1).await;
    let before = store.holding(ann.grant).await.unwrap();
    // Somebody claimed since.
    assert_eq!(ann.verdict(store, 1, GrantState::Dead, 0).await, Recorded::Superseded);
    assert_eq!(store.holding(ann.grant).await.unwrap(), before);
    // An answer came since.
    assert_eq!(ann.refreshed(store, 1).await, Recorded::Stored(GrantState::Active));
    assert_eq!(ann.verdict(store, 2, GrantState::Dead, 0).await, Recorded::Superseded);
    assert_eq!(ann.verdict(store, 2, GrantState::Suspect, 0).await, Recorded::Superseded);
    assert_eq!(ann.account_state(store).await, (AccountState::Active, None));
    assert_eq!(store.judged(ann.grant).await.lease, None, "it was answered all the same");
    assert_eq!(store.number("SELECT COUNT(*) FROM events").await, 1, "only that of the link");
}

async fn a_deferred_attempt_counts_and_releases(store: &Fixture) {
    let ann = Ann::linked(store).await;
    for number in 1..=3 {
        ann.claim(store, number).await;
        assert_eq!(ann.verdict(store, number, GrantState::Active, 0).await, Recorded::Stored(GrantState::Active));
        let holding = store.holding(ann.grant).await.unwrap().unwrap();
        assert_eq!((i64::from(holding.grant.attempts), lease_until(&holding)), (number, None));
        assert_eq!(holding.grant.attempted_at, Some(at(20 * number)));
    }
}

async fn an_answer_for_an_unlinked_account_is_stored_and_stays_ending(store: &Fixture) {
    let ann = Ann::linked(store).await;
    ann.claim(store, 0).await;
    let unlinked = event(EventKind::AccountUnlinked, &user("ann"), ann.provider);
    assert!(store.unlink(ann.account, &unlinked, at(1)).await.unwrap());
    assert_eq!(ann.refreshed(store, 1).await, Recorded::Stored(GrantState::Ending));
    assert_eq!(store.number("SELECT refresh_generation FROM grants").await, 1);
    assert_eq!(store.number("SELECT COUNT(*) FROM grants WHERE is_current OR lease_until IS NOT NULL").await, 0);
    assert_eq!(ann.account_state(store).await.0, AccountState::Unlinked);
    assert!(store.holding(ann.grant).await.unwrap().is_none());

    // A refusal changes nothing of it either.
    let bob = Ann { account: ann.account, ..Ann::linked_to(store, ann.provider).await };
    assert_eq!(bob.verdict(store, 1, GrantState::Dead, 0).await, Recorded::Superseded);
    assert_eq!(store.events(EventKind::AccountReauthorizationRequired).await, 0);
}

impl Ann {
    /// Another account at the same provider.
    async fn linked_to(store: &Fixture, provider: ProviderId) -> Self {
        let (account, grant) = store.linked(&user("ann"), provider, "other").await;
        Self { provider, account, grant }
    }
}

async fn a_quarantined_grant_stays_so(store: &Fixture) {
    let ann = Ann::linked(store).await;
    ann.claim(store, 0).await;
    let told = event(EventKind::AccountQuarantined, &user("ann"), ann.provider);
    assert!(store.quarantine(ann.grant, ann.account, &told).await.unwrap());
    assert_eq!(ann.verdict(store, 1, GrantState::Dead, 0).await, Recorded::Stored(GrantState::Quarantined));
    assert_eq!(ann.account_state(store).await.0, AccountState::Quarantined);
    assert_eq!(store.events(EventKind::AccountReauthorizationRequired).await, 0);
    assert_eq!(ann.refreshed(store, 1).await, Recorded::Stored(GrantState::Quarantined));
    assert_eq!(ann.account_state(store).await.0, AccountState::Quarantined);
}

async fn a_change_of_another_account_or_an_unknown_fence_is_dropped(store: &Fixture) {
    let ann = Ann::linked(store).await;
    let other = Ann::linked_to(store, ann.provider).await;
    ann.claim(store, 0).await;
    let crossed = Ann { account: other.account, ..ann };
    assert_eq!(crossed.refreshed(store, 1).await, Recorded::Superseded);
    assert_eq!(crossed.verdict(store, 1, GrantState::Dead, 0).await, Recorded::Superseded);
    assert_eq!(other.account_state(store).await.0, AccountState::Active);
    // Nobody has claimed under this fence yet.
    assert_eq!(other.refreshed(store, 1).await, Recorded::Superseded);
}

async fn fifty_late_answers_at_once_leave_the_newest(store: &Fixture) {
    let ann = Ann::linked(store).await;
    for number in 0..50 {
        ann.claim(store, number).await;
    }
    let mut answers = tokio::task::JoinSet::new();
    for fence in 1..=50 {
        let change = ann.change(fence, refreshed(fence), EventKind::AccountRecovered);
        let store = (*store).clone();
        answers.spawn(async move { store.record(&change).await.unwrap() });
    }
    answers.join_all().await;
    let holding = store.holding(ann.grant).await.unwrap().unwrap();
    assert_eq!((holding.grant.committed_fence, holding.grant.access_generation), (50, 50));
    assert_eq!(holding.access_token, sealed(150));
}

async fn a_request_without_an_answer_leaves_its_lease_and_any_answer_ends_the_doubt(store: &Fixture) {
    let ann = Ann::linked(store).await;
    ann.claim(store, 0).await;
    let claimed = store.judged(ann.grant).await;
    assert_eq!(ann.in_doubt(store, 1, &claimed, at(20)).await, Recorded::Stored(GrantState::Active));
    let grant = store.judged(ann.grant).await;
    assert_eq!((grant.lease.map(|lease| lease.until), grant.attempts), (Some(at(20)), 1));
    assert_eq!((grant.freshness.due_at, grant.retry_not_before), (Some(at(60)), Some(at(20))));

    let again = ann.claim(store, 2).await.grant;
    assert_eq!((again.fence, again.doubted_fence), (2, Some(1)));
    // The second claim comes to nothing: still nobody knows what became of the first.
    assert_eq!(ann.verdict(store, 2, GrantState::Active, 0).await, Recorded::Stored(GrantState::Active));
    assert_eq!(store.judged(ann.grant).await.doubted_fence, Some(1));
    assert_eq!(ann.refreshed(store, 1).await, Recorded::Stored(GrantState::Active));
    assert_eq!(store.judged(ann.grant).await.doubted_fence, None);
}

/// A retry that was not acted on leaves the doubt as it was: whose it is, since when, and that its grace is unused.
async fn a_retry_that_changes_nothing_leaves_the_doubt_as_it_was(store: &Fixture) {
    let ann = Ann::linked(store).await;
    ann.claim(store, 0).await;
    let before = store.judged(ann.grant).await;
    let retry = ann.claim(store, 1).await.grant;
    assert_eq!((retry.fence, retry.doubted_fence), (2, Some(1)));
    assert_eq!(ann.in_doubt(store, 2, &before, at(21)).await, Recorded::Stored(GrantState::Active));
    let after = store.judged(ann.grant).await;
    assert_eq!(
        (after.lease.map(|lease| lease.owner), after.attempted_at),
        (before.lease.map(|lease| lease.owner), Some(NOW))
    );
    assert_eq!((after.lease.map(|lease| lease.until), after.doubted_fence, after.attempts), (Some(at(21)), None, 1));
    assert_eq!((after.freshness.due_at, after.retry_not_before), (Some(at(61)), Some(at(21))));
}

/// The answer in doubt comes while a retry is under way that is then not acted on: no doubt is left.
async fn a_retry_that_changes_nothing_after_the_answer_leaves_no_doubt(store: &Fixture) {
    let ann = Ann::linked(store).await;
    ann.claim(store, 0).await;
    let before = store.judged(ann.grant).await;
    ann.claim(store, 1).await;
    assert_eq!(ann.refreshed(store, 1).await, Recorded::Stored(GrantState::Active));
    let fresh = store.judged(ann.grant).await;
    assert_eq!(
        (fresh.doubted_fence, fresh.lease.map(|lease| lease.until)),
        (Some(1), Some(at(40))),
        "it may be acted on"
    );
    assert_eq!(ann.in_doubt(store, 2, &before, at(21)).await, Recorded::Superseded);
    let settled = store.judged(ann.grant).await;
    assert_eq!((settled.lease, settled.doubted_fence, settled.attempts), (None, None, 0));
    assert_eq!(settled.freshness, fresh.freshness);

    // One that was not answered may have been acted on all the same.
    let ann = Ann::linked_to(store, ann.provider).await;
    ann.claim(store, 0).await;
    let retry = ann.claim(store, 1).await.grant;
    assert_eq!(ann.refreshed(store, 1).await, Recorded::Stored(GrantState::Active));
    assert_eq!(ann.in_doubt(store, 2, &retry, at(40)).await, Recorded::Stored(GrantState::Active));
    let doubtful = store.judged(ann.grant).await;
    assert_eq!((doubtful.lease, doubtful.doubted_fence), (retry.lease, Some(1)));
}

async fn an_answer_to_a_grant_that_ended_long_ago_has_a_day_to_be_revoked(store: &Fixture) {
    let ann = Ann::linked(store).await;
    ann.claim(store, 0).await;
    let unlinked = event(EventKind::AccountUnlinked, &user("ann"), ann.provider);
    assert!(store.unlink(ann.account, &unlinked, at(1)).await.unwrap());
    let claimed = store.claim_revocation(ann.grant, ann.provider, false, at(30), at(50)).await.unwrap();
    let RevocationClaim::Claimed(claimed) = claimed else { panic!("{claimed:?}") };
    let revoked = RevocationEnd::Told(EventKind::GrantRevoked, None);
    assert!(store.end_revocation(&claimed, revoked, at(30)).await.unwrap());
    let late = ann.change(1, refreshed(1), EventKind::AccountRecovered);
    let days = at(3 * 86_400);
    assert_eq!(store.record(&GrantChange { at: days, ..late }).await.unwrap(), Recorded::Stored(GrantState::Ending));
    let until = days.plus(Duration::from_secs(20));
    let claimed = store.claim_revocation(ann.grant, ann.provider, false, days, until).await.unwrap();
    let RevocationClaim::Claimed(claimed) = claimed else { panic!("{claimed:?}") };
    assert_eq!(claimed.ending_at, days);
}

async fn while_verdicts_are_frozen_no_grant_is_ended(store: &Fixture) {
    let ann = Ann::linked(store).await;
    assert!(store.freeze_verdicts(ann.provider, at(1_800), at(-300), NOW).await.unwrap().began);
    // A shorter freeze shortens nothing.
    assert!(!store.freeze_verdicts(ann.provider, at(900), at(-300), NOW).await.unwrap().began);
    let standing = store.provider(ann.provider).await.unwrap().unwrap().standing;
    assert_eq!(standing.frozen_until, Some(at(1_800)));
    ann.claim(store, 0).await;
    assert_eq!(ann.verdict(store, 1, GrantState::Dead, 0).await, Recorded::Stored(GrantState::Suspect));
    let grant = store.judged(ann.grant).await;
    assert_eq!((grant.lease, grant.freshness.due_at), (None, Some(at(500))));
    assert_eq!(ann.account_state(store).await.0, AccountState::Active);
    assert_eq!(store.events(EventKind::AccountReauthorizationRequired).await, 0);

    ann.claim(store, 90).await;
    store.tamper(format!("UPDATE providers SET frozen_until = {}", NOW.millis())).await;
    assert_eq!(ann.verdict(store, 2, GrantState::Dead, 0).await, Recorded::Stored(GrantState::Dead));
}

async fn a_freeze_brings_back_what_the_wave_ended(store: &Fixture) {
    let ann = Ann::linked(store).await;
    let old = Ann::linked_to(store, ann.provider).await;
    for (ended, number) in [(&old, 0), (&ann, 1)] {
        ended.claim(store, number).await;
        assert_eq!(ended.verdict(store, 1, GrantState::Dead, 0).await, Recorded::Stored(GrantState::Dead));
    }
    store.tamper(format!("UPDATE grants SET dead_at = 1 WHERE id = '{}'", old.grant)).await;
    assert_eq!(store.suspected(ann.provider, NOW).await.unwrap(), 2);
    assert_eq!(store.suspected(ann.provider, at(7)).await.unwrap(), 0);

    assert_eq!(store.freeze_verdicts(ann.provider, at(2_000), at(-293), at(60)).await.unwrap().back, 1);
    assert_eq!(ann.account_state(store).await, (AccountState::Active, None));
    let grant = store.judged(ann.grant).await;
    assert_eq!((grant.state, grant.freshness.due_at), (GrantState::Suspect, Some(at(60))));
    assert_eq!(old.account_state(store).await.0, AccountState::ReauthorizationRequired);
    assert_eq!(store.events(EventKind::AccountRecovered).await, 1);
}

async fn a_grant_that_nobody_asks_for_is_swept_when_the_provider_would_forget_it(store: &Fixture) {
    let ann = Ann::linked(store).await;
    store.tamper(format!("UPDATE grants SET ahead_until = {}", NOW.millis())).await;
    ann.claim(store, 0).await;
    assert_eq!(ann.refreshed(store, 1).await, Recorded::Stored(GrantState::Active));
    let swept = async |second| store.providers_due(at(second)).await.unwrap() == [ann.provider];
    assert!(!swept(6_999).await);
    assert!(swept(7_000).await);
    // An attempt that fails is not repeated in a hot loop.
    store.claim_now(ann.grant, at(7_000)).await.unwrap();
    let late = Outcome::Verdict {
        state: GrantState::Active,
        due_at: Some(at(7_060)),
        retry_not_before: None,
        reason: None,
        committed_fence: 1,
    };
    let late = GrantChange { event: None, at: at(7_000), ..ann.change(2, late, EventKind::AccountRecovered) };
    assert_eq!(store.record(&late).await.unwrap(), Recorded::Stored(GrantState::Active));
    assert!(!swept(7_059).await);
    assert!(swept(7_060).await);
}
