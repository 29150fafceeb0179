//! Three replicas, many grants with tokens of 30 s whose provider ends everything when a refresh token comes twice, all of
//! them asked for all the time, and a random fault every few seconds.
//!
//! ```sh
//! TOKEN_WALLET_CHAOS_SECONDS=600 TOKEN_WALLET_CHAOS_GRANTS=2000 TOKEN_WALLET_CHAOS_SEED=7 scripts/test cluster::chaos
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures_util::StreamExt as _;
use token_wallet::sandbox::{Effect, Ending, Options, Rule};

use super::load::{Answer, Load};
use crate::support::cluster::{Cluster, people};
use crate::support::dice::Dice;
use crate::support::harness::reason;
use crate::support::proxy::Proxy;
use crate::support::real_time::{now, say};

/// How long a token lives.
const LIFE: Duration = Duration::from_secs(30);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    Kill,
    Stop,
    Cut,
    CutAll,
    Crash,
    EndSessions,
}

const FAULTS: [Fault; 6] = [Fault::Kill, Fault::Stop, Fault::Cut, Fault::CutAll, Fault::Crash, Fault::EndSessions];

fn told(name: &str, or: u64) -> u64 {
    #[expect(clippy::disallowed_methods, reason = "how a person asks for a longer run")]
    let told = std::env::var(format!("TOKEN_WALLET_CHAOS_{name}"));
    told.map_or(or, |text| text.parse().unwrap())
}

/// Real time, in steps.
async fn pass(time: Duration) {
    let began = now();
    while began.elapsed() < time {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn promises_p1_to_p4_hold_on_three_replicas_while_one_thing_after_another_breaks() {
    let (seconds, grants, seed) = (told("SECONDS", 45), told("GRANTS", 120), told("SEED", 1));
    let users = usize::try_from(grants).unwrap();
    let options = Options { people: people(users), token_ttl: LIFE, reuse_revokes_family: true, ..Options::default() };
    let mut cluster = Cluster::on_a_server(3, options, &[]).await.with_users(users).await;
    // Requests that are under way for a while, so that faults meet them.
    cluster.sandbox().set_faults([Rule::refresh(Effect::Delay(Duration::from_millis(200))).after()]);
    let load = Load::start(&cluster, users, 2);
    let (began, mut dice, mut faults) = (now(), Dice::new(seed), BTreeMap::<Fault, u32>::new());
    while began.elapsed() < Duration::from_secs(seconds) {
        let fault = *dice.pick(&FAULTS);
        let replica = usize::try_from(dice.below(3)).unwrap();
        *faults.entry(fault).or_default() += 1;
        befall(&mut cluster, &load, fault, replica).await;
        pass(Duration::from_millis(dice.between(500, 3_000))).await;
    }
    let calm = now();
    // Whoever sent what was never answered gives signs of life, and the token at hand must have come to its end.
    let dead = settled(&cluster, users).await;
    let calmed = calm.elapsed();
    let answers = load.end().await;
    judge(&cluster, &answers, &dead).await;
    let counted = |fits: fn(&Answer) -> bool| answers.iter().filter(|answer| fits(answer)).count();
    say(format_args!(
        "{grants} grants, {seconds} s, seed {seed}, {faults:?}: {} tokens handed out and {} gets refused, {:?}; {} lost \
         their rotation's answer; calm {calmed:?} later",
        counted(|answer| answer.told.is_ok()),
        counted(|answer| answer.told.is_err()),
        cluster.sandbox().totals(),
        dead.len(),
    ));
}

async fn befall(cluster: &mut Cluster, load: &Load, fault: Fault, replica: usize) {
    match fault {
        Fault::Kill => {
            cluster.kill_and_restart(replica).await;
            load.moved(replica, cluster.replicas[replica].channel());
        }
        Fault::Stop => {
            cluster.replicas[replica].pause();
            pass(Duration::from_secs(5)).await;
            cluster.replicas[replica].resume();
        }
        Fault::Cut => {
            cluster.proxies[replica].cut();
            pass(Duration::from_secs(2)).await;
            cluster.proxies[replica].heal();
        }
        Fault::CutAll => {
            cluster.proxies.iter().for_each(Proxy::cut);
            pass(Duration::from_secs(2)).await;
            cluster.proxies.iter().for_each(Proxy::heal);
        }
        Fault::Crash => {
            let server = cluster.server.as_ref().unwrap();
            server.crash().await;
            server.restart().await;
        }
        Fault::EndSessions => cluster.end_sessions().await,
    }
}

/// Waits until each user is served by all replicas, or its consent has ended at the provider and it is served by none;
/// who those are.
async fn settled(cluster: &Cluster, users: usize) -> BTreeSet<usize> {
    let began = now();
    loop {
        let ended: BTreeSet<_> = (0..users).filter(|n| ending(cluster, *n).is_some()).collect();
        // What each replica tells of those who hear something else than they should.
        let mut strange = BTreeMap::<_, u32>::new();
        let gets = (0..users).map(|n| async move { (n, cluster.gets(&format!("u{n}"), 3).await) });
        let mut gets = futures_util::stream::iter(gets).buffer_unordered(20);
        while let Some((user, got)) = gets.next().await {
            for (replica, got) in got.into_iter().enumerate() {
                let told = got.as_ref().map_or_else(reason, |_| "OK".to_owned());
                if ended.contains(&user) == got.is_ok() {
                    *strange.entry((replica, told)).or_default() += 1;
                }
            }
        }
        if strange.is_empty() {
            return ended;
        }
        assert!(began.elapsed() < Duration::from_secs(90), "neither served nor ended: {strange:?}");
        pass(Duration::from_millis(500)).await;
    }
}

/// Why the user's consent has ended.
fn ending(cluster: &Cluster, user: usize) -> Option<Ending> {
    let grants = cluster.sandbox().grants_of(&format!("p{user}"));
    assert_eq!(grants.len(), 1);
    grants[0].ended
}

/// No token was handed out that was dead, but of a consent that ended because an answer was lost; and each of those is
/// known to the wallet as that.
async fn judge(cluster: &Cluster, answers: &[Answer], dead: &BTreeSet<usize>) {
    assert!(answers.iter().filter(|answer| answer.told.is_ok()).count() > 1_000);
    for answer in answers {
        match &answer.told {
            Ok(token) => {
                assert!(!token.expired, "u{} was given an expired token", answer.user);
                assert!(token.accepted || dead.contains(&answer.user), "u{} was given a dead token", answer.user);
            }
            Err(told) => assert_ne!(reason(told), "INTERNAL", "{told:?}"),
        }
    }
    let database = cluster.first().database().await;
    // Too many at once are frozen as suspects: not ended, and in doubt all the same.
    let lost = "SELECT user_id FROM events WHERE reason = 'rotation_outcome_lost'
        UNION SELECT user_id FROM grants WHERE state = 'suspect' AND doubted_fence IS NOT NULL";
    let known: BTreeSet<_> = database.texts(lost).await.into_iter().collect();
    for user in dead {
        assert_eq!(ending(cluster, *user), Some(Ending::Reuse));
        assert!(known.contains(&format!("u{user}")), "u{user} was redeemed twice, and not known to be in doubt");
    }
    let named: BTreeSet<_> = dead.iter().map(|user| format!("u{user}")).collect();
    let not_active = database.texts("SELECT user_id FROM grants WHERE state <> 'active'").await;
    assert!(not_active.iter().all(|user| named.contains(user)), "{not_active:?} but {named:?}");
    let (totals, dead) = (cluster.sandbox().totals(), u64::try_from(dead.len()).unwrap());
    assert!(totals.grace_repeats == 0 && totals.reuses >= dead, "{totals:?}");
    let unaccounted = cluster.sandbox().grants().into_iter().filter(|grant| grant.reuses > 0 && grant.ended.is_none());
    assert_eq!(unaccounted.count(), 0);
}
