//! The engine over long and over odd times, and with many grants at once (faults S9, N2, N4, N5, N6).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures_util::StreamExt as _;
use prost_types::FieldMask;
use token_wallet::proto::v1;
use token_wallet::sandbox::{Client, DEFAULT_CLIENT_ID, Effect, Options, Person, Rule, Settings};
use tonic::{Code, Status};

use crate::support::harness::{BEGIN, Harness, on_both_engines, reason, until};
use crate::support::oracle::counts;
use crate::support::real_time::{now, say};

const DAY: Duration = Duration::from_hours(24);

/// What the sandbox's provider is sent at most, as configured.
const PER_SECOND: u32 = 50;
const IN_FLIGHT: u32 = 16;

const fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

const fn mins(mins: u64) -> Duration {
    Duration::from_mins(mins)
}

const fn hours(hours: u64) -> Duration {
    Duration::from_hours(hours)
}

async fn limit(harness: &Harness, requests_per_second: i32, max_in_flight: i32) {
    let paths = ["requests_per_second", "max_in_flight"].map(str::to_owned).into();
    let request = v1::UpdateProviderRequest {
        provider: "sandbox".into(),
        requests_per_second,
        max_in_flight,
        update_mask: Some(FieldMask { paths }),
        ..Default::default()
    };
    harness.providers().update_provider(request).await.unwrap();
}

/// Users `u0` and so on, linked as fast as it goes, all at the same moment.
async fn with_a_crowd(engine: crate::support::harness::Engine, users: usize, options: Options) -> Harness {
    let people = (0..users).map(|n| Person::named(&format!("p{n}"))).collect();
    let harness = Harness::with(engine, Options { people, ..options }).await;
    limit(&harness, 100_000, 1_000).await;
    let links = futures_util::stream::iter(0..users).map(|n| {
        let harness = &harness;
        async move { harness.link(&format!("u{n}"), &format!("p{n}")).await }
    });
    links.buffer_unordered(8).for_each(|_| async {}).await;
    limit(&harness, 0, 0).await;
    harness
}

/// What a crowd of callers is told at once, each one user.
async fn all_told_at_once(harness: &Harness, users: usize) -> BTreeMap<String, usize> {
    let gets = (0..users).map(|n| async move { harness.told(&format!("u{n}")).await });
    let mut counted = BTreeMap::new();
    for told in harness.in_time(futures_util::future::join_all(gets)).await {
        *counted.entry(told).or_default() += 1;
    }
    counted
}

/// How many refreshes were sent in each of these spans.
fn per(harness: &Harness, span: Duration) -> BTreeMap<i64, usize> {
    let span = i64::try_from(span.as_millis()).unwrap();
    let mut counted = BTreeMap::new();
    for request in harness.refreshes() {
        *counted.entry((request.time - BEGIN.millis()) / span).or_default() += 1;
    }
    counted
}

on_both_engines! {
    async fn a_grant_that_nobody_asks_for_is_kept_alive_and_not_refreshed_hourly(engine) {
        let harness = Harness::with_users(engine, 3, Options::default()).await;
        harness.live(DAY * 90, DAY).await;
        let ended: Vec<_> = harness.sandbox.grants().into_iter().filter_map(|grant| grant.ended).collect();
        assert_eq!(ended, [], "the provider forgets what is not used for 30 days");
        let mut of_grants = BTreeMap::<_, Vec<i64>>::new();
        for request in harness.refreshes() {
            of_grants.entry(request.family).or_default().push(request.time - BEGIN.millis());
        }
        assert_eq!(of_grants.len(), 3);
        let days = |millis: i64| millis / i64::try_from(DAY.as_millis()).unwrap();
        for times in of_grants.values() {
            let late: Vec<_> = times.iter().filter(|time| days(**time) > 15).collect();
            assert!((3..=5).contains(&late.len()), "{times:?}");
            assert!(late.windows(2).all(|two| (18..=25).contains(&days(*two[1] - *two[0]))), "{times:?}");
        }
        assert_eq!(harness.all_told(3).await, counts([("OK", 3)]), "the next get waits for one refresh");
        assert!(harness.events().await.is_empty(), "the links are too old to be told, and nothing else happened");
        harness.assert_each_redeemed_once();
    }

    async fn a_consent_that_runs_out_is_told_of_ahead_and_once(engine) {
        let harness = Harness::with(engine, Options { rotation: token_wallet::sandbox::Rotation::Never, ..Options::default() }).await;
        let settings = harness.sandbox.settings();
        harness.sandbox.set_settings(Settings { consent_ttl: Some(DAY * 30), ..settings });
        harness.link("u", "demo").await;
        let linked = ("account.linked", 1);
        // A tenth of thirty days ahead.
        harness.live(DAY * 26 + hours(23), hours(12)).await;
        assert_eq!(harness.events().await.get("account.expires_soon").copied().unwrap_or_default(), 0);
        harness.live(hours(12), hours(1)).await;
        assert_eq!(harness.events().await, counts([linked, ("account.expires_soon", 1)]));
        assert_eq!(harness.told("u").await, "OK");
        harness.live(DAY + hours(23), hours(6)).await;
        assert_eq!(harness.told("u").await, "OK");
        harness.pass(DAY);
        assert_eq!(harness.told("u").await, "PROVIDER_UNAVAILABLE", "to be confirmed");
        harness.live(mins(2), secs(20)).await;
        assert_eq!(harness.told("u").await, "REAUTHORIZATION_REQUIRED");
        let all = [linked, ("account.expires_soon", 1), ("account.reauthorization_required", 1)];
        assert_eq!(harness.events().await, counts(all));
    }

    async fn s9_the_clock_jumps_a_day_forward_and_back_while_the_wallet_runs(engine) {
        const USERS: usize = 60;
        let harness = Harness::with_users(engine, USERS, Options::default()).await;
        harness.hand.set(harness.clock.wall().plus(DAY));
        assert_eq!(all_told_at_once(&harness, USERS).await, counts([("OK", USERS)]));
        harness.work().await;
        let asked = harness.refreshes().len();
        assert_eq!(asked, USERS, "each once");
        // Back again: business time goes on from where it was.
        harness.hand.set(harness.clock.wall().minus(DAY));
        harness.live(mins(5), secs(30)).await;
        assert_eq!(all_told_at_once(&harness, USERS).await, counts([("OK", USERS)]));
        assert_eq!(harness.refreshes().len(), asked);
        harness.assert_within_budget(PER_SECOND, IN_FLIGHT);
        harness.assert_each_redeemed_once();
        assert_eq!(harness.events().await, counts([("account.linked", USERS)]));
    }

    async fn s9_a_wallet_that_starts_with_its_clock_a_day_behind_serves_nothing_that_it_cannot_date(engine) {
        const USERS: usize = 60;
        let mut harness = Harness::with_users(engine, USERS, Options::default()).await;
        harness.live(mins(10), mins(5)).await;
        let true_clock = harness.clock.clone();
        harness.hand.set(harness.clock.wall().minus(DAY));
        harness.restart_with_clock(true_clock.afresh()).await;
        assert!(harness.clock.now() < BEGIN);
        assert_eq!(all_told_at_once(&harness, USERS).await, counts([("OK", USERS)]));
        harness.work().await;
        assert_eq!(harness.refreshes().len(), USERS, "each once");
        harness.live(mins(40), mins(5)).await;
        assert_eq!(all_told_at_once(&harness, USERS).await, counts([("OK", USERS)]));
        assert_eq!(harness.refreshes().len(), USERS, "and not again before it is due");
        // The clock is put right.
        harness.hand.set(harness.clock.wall().plus(DAY));
        assert_eq!(all_told_at_once(&harness, USERS).await, counts([("OK", USERS)]));
        harness.work().await;
        assert!(harness.refreshes().len() <= 2 * USERS);
        harness.assert_each_redeemed_once();
        assert_eq!(harness.events().await, counts([("account.linked", USERS)]));
    }

    async fn s9_a_wallet_that_starts_with_its_clock_a_day_ahead_refreshes_within_its_budget(engine) {
        const USERS: usize = 60;
        let mut harness = Harness::with_users(engine, USERS, Options::default()).await;
        harness.live(mins(10), mins(5)).await;
        harness.hand.set(harness.clock.wall().plus(DAY));
        harness.restart_with_clock(harness.clock.afresh()).await;
        assert_eq!(all_told_at_once(&harness, USERS).await, counts([("OK", USERS)]));
        harness.work().await;
        assert_eq!(harness.refreshes().len(), USERS, "each once");
        harness.assert_within_budget(PER_SECOND, IN_FLIGHT);
        harness.assert_each_redeemed_once();
    }

    async fn s9_a_machine_that_has_slept_for_eight_hours_serves_no_dead_token_and_keeps_to_its_budget(engine) {
        const USERS: usize = 120;
        let harness = with_a_crowd(engine, USERS, Options::default()).await;
        harness.pass(hours(8));
        assert_eq!(all_told_at_once(&harness, USERS).await, counts([("OK", USERS)]));
        harness.work().await;
        assert_eq!(harness.refreshes().len(), USERS, "each once");
        harness.assert_within_budget(PER_SECOND, IN_FLIGHT);
        harness.assert_each_redeemed_once();
    }

    async fn n2_all_who_wait_for_a_refresh_hear_at_once_why_it_failed(engine) {
        let harness = Harness::start(engine).await;
        harness.link("u", "demo").await;
        harness.pass(hours(2));
        harness.sandbox.set_faults([Rule::refresh(Effect::Hold), Rule::refresh(Effect::error(503, "temporarily_unavailable"))]);
        let gets = futures_util::future::join_all((0..200).map(|_| harness.get("u")));
        let releasing = async {
            harness.sandbox.wait_held(1).await;
            harness.sandbox.release();
        };
        let (answers, ()) = tokio::join!(gets, releasing);
        let told: BTreeSet<_> = answers.into_iter().map(|answer| reason(&answer.unwrap_err())).collect();
        assert_eq!(told, ["PROVIDER_UNAVAILABLE".to_owned()].into());
        assert_eq!(harness.refreshes().len(), 1, "for one request");
        harness.sandbox.clear_faults();
        harness.pass(secs(6));
        assert_eq!(harness.told("u").await, "OK");
        harness.assert_each_redeemed_once();
    }

    async fn n4_a_crowd_that_expires_at_once_while_the_provider_is_down_comes_back_within_the_budget(engine) {
        // As many as fill half a minute of what the provider allows.
        const USERS: usize = 300;
        let harness = with_a_crowd(engine, USERS, Options::default()).await;
        limit(&harness, 10, 0).await;
        let sample = async || {
            for n in (0..USERS).step_by(31) {
                let told = harness.told(&format!("u{n}")).await;
                assert!(told == "OK" || told == "PROVIDER_UNAVAILABLE", "{told}");
            }
        };
        // Due from minute 46 to 55, dead in minute 60; down from minute 52 to 62.
        harness.pass(mins(45));
        harness.live(mins(7), secs(15)).await;
        let before = harness.refreshes().len();
        harness.sandbox.set_faults([Rule::refresh(Effect::error(503, "temporarily_unavailable"))]);
        for _ in 0..10 {
            harness.live(mins(1), secs(10)).await;
            sample().await;
        }
        let down = harness.refreshes().len() - before;
        harness.sandbox.clear_faults();
        harness.live(mins(7), secs(10)).await;
        say(format_args!("{before} refreshed before, {down} tried while it was down, {} in all", harness.refreshes().len()));
        assert!(down < 75, "{down} requests to a provider that is down");
        sample().await;
        let fresh = format!("SELECT COUNT(*) FROM grants WHERE state = 'active' AND issued_at > {}", BEGIN.plus(mins(45)).millis());
        assert_eq!(harness.database().await.number(&fresh).await, i64::try_from(USERS).unwrap(), "all have recovered");
        harness.assert_within_budget(10, IN_FLIGHT);
        harness.assert_each_redeemed_once();
        let (worst, most) = per(&harness, mins(1)).into_iter().max_by_key(|(_, count)| *count).unwrap();
        say(format_args!("most in one minute: {most}, in minute {worst}"));
        assert_eq!(harness.events().await, counts([("account.linked", USERS)]));
        // No wave: what was refreshed in a rush is not due in a rush.
        let due = harness.database().await.texts("SELECT CAST(due_at AS TEXT) FROM grants").await;
        let mut minutes = BTreeMap::<i64, usize>::new();
        for due in due {
            *minutes.entry(due.parse::<i64>().unwrap() / 60_000).or_default() += 1;
        }
        assert!(minutes.values().all(|count| *count < USERS / 4), "{minutes:?}");
    }

    async fn n5_two_hundred_hanging_refreshes_do_not_slow_the_gets_of_another_provider(engine) {
        const HANGING: usize = 200;
        let another = Client { id: "another".into(), ..Options::default().clients.remove(0) };
        let clients = Options::default().clients.into_iter().chain([another]).collect();
        let harness = with_a_crowd(engine, HANGING, Options { clients, ..Options::default() }).await;
        harness.create_own("another", "another").await;
        let ticket = harness.ticket_at("another", "v", "p0").await;
        harness.complete("v", &ticket).await.unwrap();
        // What else the machine does comes and goes within seconds, and hits the slowest hundredth first: one figure says
        // little of us. So what hangs is measured again and again, each time between two measurements of the same wallet
        // with nothing that hangs, and the middle of the ones is compared with the middle of the others.
        let (mut quiet, mut during) = (vec![p99(&harness).await], Vec::new());
        loop {
            harness.pass(hours(2));
            harness.sandbox.set_faults([Rule::refresh(Effect::Hold).client(DEFAULT_CLIENT_ID)]);
            harness.get_at("another", "v").await.unwrap();
            let mut hanging = tokio::task::JoinSet::new();
            for n in 0..HANGING {
                let mut wallet = harness.wallet();
                let (user_id, provider) = (format!("u{n}"), "sandbox".to_owned());
                let request = v1::GetAccessTokenRequest { user_id, provider, ..Default::default() };
                hanging.spawn(async move { wallet.get_access_token(request).await });
            }
            harness.sandbox.wait_held(13).await;
            let more = tokio::time::timeout(Duration::from_millis(100), harness.sandbox.wait_held(14)).await;
            assert!(more.is_err(), "no more than 85 % of the places");
            during.push(p99(&harness).await);
            harness.sandbox.clear_faults();
            for answer in harness.in_time(hanging.join_all()).await {
                let impatient = answer.as_ref().is_err_and(|refused| refused.code() == Code::DeadlineExceeded);
                assert!(answer.is_ok() || impatient, "{answer:?}");
            }
            // Whoever's patience ended on a busy machine asks again.
            assert_eq!(all_told_at_once(&harness, HANGING).await, counts([("OK", HANGING)]));
            let asked = harness.refreshes().iter().filter(|request| request.client_id.as_deref() == Some(DEFAULT_CLIENT_ID)).count();
            assert_eq!(asked, HANGING * during.len(), "each once");
            quiet.push(p99(&harness).await);
            let ratio = median(&during).as_secs_f64() / median(&quiet).as_secs_f64();
            say(format_args!("{engine:?}: {ratio:.2}; p99 of a get {during:.1?} while {HANGING} hang, {quiet:.1?} before and after"));
            if during.len() >= 3 && ratio <= 1.5 {
                break;
            }
            assert!(during.len() < 9, "{ratio}");
        }
        harness.assert_each_redeemed_once();
    }

    async fn n6_of_two_users_who_link_one_account_at_once_one_wins(engine) {
        let harness = Harness::start(engine).await;
        let (one, other) = (harness.ticket("ann", "demo").await, harness.ticket("bob", "demo").await);
        harness.sandbox.set_faults([Rule::userinfo(Effect::Hold)]);
        let releasing = async {
            harness.sandbox.wait_held(2).await;
            harness.sandbox.clear_faults();
        };
        let (one, other, ()) = tokio::join!(harness.complete("ann", &one), harness.complete("bob", &other), releasing);
        let (winner, loser, refused) = match (one, other) {
            (Ok(_), Err(refused)) => ("ann", "bob", refused),
            (Err(refused), Ok(_)) => ("bob", "ann", refused),
            both => panic!("{both:?}"),
        };
        assert_eq!(reason(&refused), "ACCOUNT_LINKED_TO_ANOTHER_USER");
        assert!(!refused.message().contains(winner), "without saying whose");
        assert_eq!((harness.told(winner).await.as_str(), harness.told(loser).await.as_str()), ("OK", "ACCOUNT_NOT_LINKED"));
        assert_eq!(harness.exchanges().len(), 2, "no code is sent twice");
        let database = harness.database().await;
        assert_eq!(database.number("SELECT COUNT(*) FROM external_accounts WHERE state <> 'unlinked'").await, 1);
        assert_eq!(database.number("SELECT COUNT(*) FROM grants WHERE is_current").await, 1);
        let alive = || harness.sandbox.grants_of("demo").iter().filter(|grant| grant.ended.is_none()).count();
        until("what the loser was given is taken back", async || alive() == 1).await;
        assert_eq!(harness.told(winner).await, "OK");
    }
}

/// How long the slowest hundredth of gets of `v` at the provider `another` takes.
async fn p99(harness: &Harness) -> Duration {
    let (start, mut took) = (now(), Vec::new());
    // On a machine that is very busy fewer: a request that hangs is given up after ten seconds.
    while took.len() < 300 && start.elapsed() < secs(3) {
        let began = now();
        let token: Result<_, Status> = harness.get_at("another", "v").await;
        took.push(began.elapsed());
        token.unwrap();
    }
    took.sort_unstable();
    took[took.len() * 99 / 100]
}

fn median(of: &[Duration]) -> Duration {
    let mut sorted = of.to_vec();
    sorted.sort_unstable();
    sorted[sorted.len() / 2]
}
