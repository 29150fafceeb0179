//! Answers that are lost on their way, and tokens that are rejected (faults P14, P15, P17): what callers are told,
//! and what was sent.

use std::collections::BTreeSet;
use std::num::NonZeroU64;
use std::time::Duration;

use token_wallet::domain::ids::ReplicaId;
use token_wallet::proto::v1;
use token_wallet::proto::v1::external_account::State;
use token_wallet::sandbox::{DEFAULT_CLIENT_ID, Effect, Endpoint, Options, Reply, Rotation, Rule, Settings};

use crate::support::harness::{Engine, Harness, on_both_engines, reason};
use crate::support::oracle::{counts, wait};

/// A token that the sandbox gave when the test began is due, and far above its floor.
const DUE: Duration = Duration::from_mins(56);

/// It is dead.
const DEAD: Duration = Duration::from_hours(2);

const fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

const fn mins(mins: u64) -> Duration {
    Duration::from_mins(mins)
}

/// The manners that the catalog tells apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manners {
    Plain,
    Graceful,
    Strict,
    Static,
}

impl Manners {
    const ALL: [Self; 4] = [Self::Plain, Self::Graceful, Self::Strict, Self::Static];

    fn options(self) -> Options {
        let rotation = match self {
            Self::Plain | Self::Strict => Rotation::Always,
            Self::Graceful => Rotation::Grace(mins(1)),
            Self::Static => Rotation::Never,
        };
        Options { rotation, reuse_revokes_family: self == Self::Strict, ..Options::default() }
    }

    /// Whether nothing but luck helps where the answer to a rotation was lost.
    fn risky(self) -> bool {
        matches!(self, Self::Plain | Self::Strict)
    }

    async fn linked(self, engine: Engine) -> Harness {
        let harness = Harness::with(engine, self.options()).await;
        harness.link("u", "demo").await;
        harness
    }
}

/// Gets of a token that shall live so long, or that is not this one.
fn wanting(min_ttl: Option<Duration>, rejected: &str) -> v1::GetAccessTokenRequest {
    let min_ttl = min_ttl.map(|span| prost_types::Duration { seconds: span.as_secs().try_into().unwrap(), nanos: 0 });
    v1::GetAccessTokenRequest {
        user_id: "u".into(),
        min_ttl,
        rejected_access_token: rejected.into(),
        ..Default::default()
    }
}

on_both_engines! {
    async fn p14_an_answer_lost_after_the_rotation_costs_the_grant_only_where_nothing_helps(engine) {
        for manners in Manners::ALL {
            let harness = manners.linked(engine).await;
            let (in_doubt, lost) =
                (harness.counted("refreshes_in_doubt_total").await, harness.counted("rotation_outcome_lost_total").await);
            let old = harness.get("u").await.unwrap().access_token;
            harness.pass(DUE);
            harness.sandbox.set_faults([Rule::refresh(Effect::Close).after().times(1)]);
            harness.work().await;
            assert_eq!(harness.refreshes().len(), 1, "{manners:?}");
            let doubts = u64::from(manners != Manners::Static);
            assert_eq!(harness.counted("refreshes_in_doubt_total").await - in_doubt, doubts, "{manners:?}");
            // Who is content with the old one does not notice; who is not hears that there is none now.
            assert_eq!(harness.get("u").await.unwrap().access_token, old, "{manners:?}");
            let patient = harness.get_with(wanting(Some(mins(30)), "")).await.unwrap_err();
            assert_eq!(reason(&patient), "PROVIDER_UNAVAILABLE", "{manners:?}");
            assert_eq!(harness.refreshes().len(), 1, "{manners:?}: nothing is sent meanwhile");
            harness.live(secs(25), secs(5)).await;
            if !manners.risky() {
                assert_eq!(harness.refreshes().len(), 2, "{manners:?}: one more");
                assert_ne!(harness.get("u").await.unwrap().access_token, old, "{manners:?}");
                lives_on(&harness, manners).await;
                continue;
            }
            // 240 s were left, 30 s of them below the floor.
            harness.live(secs(160), secs(10)).await;
            assert_eq!(harness.refreshes().len(), 1, "{manners:?}: not while the old one lives");
            assert_eq!(harness.get("u").await.unwrap().access_token, old, "{manners:?}");
            assert_eq!(harness.told("u").await, "OK", "{manners:?}");
            harness.live(secs(120), secs(5)).await;
            assert_eq!(harness.told("u").await, "REAUTHORIZATION_REQUIRED", "{manners:?}");
            assert_eq!(harness.refreshes().len(), 3, "{manners:?}: one late try, and one to confirm its refusal");
            let ended = harness.account("u").await;
            let told = (ended.state(), ended.state_reason.as_str());
            assert_eq!(told, (State::ReauthorizationRequired, "rotation_outcome_lost"), "{manners:?}");
            assert_eq!(harness.counted("rotation_outcome_lost_total").await - lost, 1, "{manners:?}");
            let events = counts([("account.linked", 1), ("account.reauthorization_required", 1)]);
            assert_eq!(harness.events().await, events, "{manners:?}");
            harness.live(mins(10), mins(1)).await;
            assert_eq!(harness.refreshes().len(), 3, "{manners:?}: and no more");
        }
    }

    async fn p14_a_rejected_token_does_not_wait_for_its_floor(engine) {
        let harness = Manners::Strict.linked(engine).await;
        harness.pass(DUE);
        harness.sandbox.set_faults([Rule::refresh(Effect::Close).times(1)]);
        harness.work().await;
        let old = harness.get("u").await.unwrap().access_token;
        let refused = harness.get_with(wanting(None, &old)).await.unwrap_err();
        assert_eq!(reason(&refused), "ACCESS_TOKEN_REJECTED", "the lease is not over");
        harness.live(secs(21), secs(7)).await;
        let new = harness.get_with(wanting(None, &old)).await.unwrap();
        assert!(new.access_token != old && harness.is_accepted(&new.access_token).await);
        assert_eq!(harness.refreshes().len(), 2);
        harness.assert_each_redeemed_once();
    }

    async fn p14_an_answer_lost_before_the_rotation_costs_nothing(engine) {
        for (manners, effect) in Manners::ALL.into_iter().flat_map(|manners| [(manners, Effect::Close), (manners, Effect::Reset)]) {
            let harness = manners.linked(engine).await;
            harness.pass(DUE);
            harness.sandbox.set_faults([Rule::refresh(effect).times(1)]);
            for _ in 0..7 {
                harness.live(secs(45), secs(5)).await;
                assert_eq!(harness.told("u").await, "OK", "{manners:?}");
            }
            assert_eq!(harness.refreshes().len(), 2, "{manners:?}");
            lives_on(&harness, manners).await;
        }
    }

    async fn p14_a_second_silence_is_an_outage_like_any_other(engine) {
        for manners in Manners::ALL {
            let harness = manners.linked(engine).await;
            let lost = harness.counted("rotation_outcome_lost_total").await;
            harness.pass(DUE);
            harness.sandbox.set_faults([Rule::refresh(Effect::Close)]);
            harness.live(mins(15), secs(10)).await;
            assert_eq!(harness.told("u").await, "PROVIDER_UNAVAILABLE", "{manners:?}");
            let asked = harness.refreshes().len();
            assert!((3..=20).contains(&asked), "{manners:?}: {asked} in a quarter of an hour");
            harness.sandbox.clear_faults();
            harness.live(mins(21), mins(1)).await;
            assert_eq!(harness.told("u").await, "OK", "{manners:?}");
            assert_eq!(harness.counted("rotation_outcome_lost_total").await, lost);
            lives_on(&harness, manners).await;
        }
    }

    async fn p10_p14_an_error_that_does_not_say_whether_the_token_is_spent_costs_the_grant_only_where_nothing_helps(engine) {
        for (manners, reply) in Manners::ALL.into_iter().zip(unclear()) {
            let harness = manners.linked(engine).await;
            let (in_doubt, lost) =
                (harness.counted("refreshes_in_doubt_total").await, harness.counted("rotation_outcome_lost_total").await);
            let old = harness.get("u").await.unwrap().access_token;
            harness.pass(DUE);
            harness.sandbox.set_faults([Rule::refresh(Effect::Answer(reply)).after().times(1)]);
            harness.work().await;
            assert_eq!(harness.refreshes().len(), 1, "{manners:?}");
            let doubts = u64::from(manners != Manners::Static);
            assert_eq!(harness.counted("refreshes_in_doubt_total").await - in_doubt, doubts, "{manners:?}");
            assert_eq!(harness.get("u").await.unwrap().access_token, old, "{manners:?}");
            let patient = harness.get_with(wanting(Some(mins(30)), "")).await.unwrap_err();
            assert_eq!(reason(&patient), "PROVIDER_UNAVAILABLE", "{manners:?}");
            assert!(wait(&patient) > Duration::ZERO, "{manners:?}");
            harness.live(secs(6), secs(1)).await;
            if !manners.risky() {
                assert_eq!(harness.refreshes().len(), 2, "{manners:?}: it was answered, so no lease is waited for");
                assert_ne!(harness.get("u").await.unwrap().access_token, old, "{manners:?}");
                lives_on(&harness, manners).await;
                continue;
            }
            harness.live(secs(190), secs(10)).await;
            assert_eq!(harness.refreshes().len(), 1, "{manners:?}: not while the old one lives");
            assert_eq!(harness.get("u").await.unwrap().access_token, old, "{manners:?}");
            assert!(harness.is_accepted(&old).await, "{manners:?}: and it does live");
            harness.live(secs(100), secs(5)).await;
            assert_eq!(harness.told("u").await, "REAUTHORIZATION_REQUIRED", "{manners:?}");
            assert_eq!(harness.refreshes().len(), 3, "{manners:?}: one late try, and one to confirm its refusal");
            assert_eq!(harness.account("u").await.state_reason, "rotation_outcome_lost", "{manners:?}");
            assert_eq!(harness.counted("rotation_outcome_lost_total").await - lost, 1, "{manners:?}");
        }
    }

    async fn p10_p14_an_error_that_does_not_say_whether_the_token_is_spent_costs_nothing_if_it_was_not(engine) {
        for (manners, reply) in Manners::ALL.into_iter().rev().zip(unclear()) {
            let harness = manners.linked(engine).await;
            harness.pass(DUE);
            harness.sandbox.set_faults([Rule::refresh(Effect::Answer(reply)).times(1)]);
            harness.work().await;
            for _ in 0..20 {
                harness.live(secs(15), secs(3)).await;
                assert_eq!(harness.told("u").await, "OK", "{manners:?}");
            }
            let asked = harness.refreshes();
            assert_eq!(asked.len(), 2, "{manners:?}");
            let between = Duration::from_millis((asked[1].time - asked[0].time).unsigned_abs());
            let expected = if manners.risky() { secs(205)..secs(215) } else { secs(1)..secs(8) };
            assert!(expected.contains(&between), "{manners:?}: {between:?}");
            lives_on(&harness, manners).await;
        }
    }

    async fn p10_an_error_with_a_code_or_a_503_says_that_the_token_is_not_spent(engine) {
        let replies = [Reply::new(500).error("server_error"), Reply::new(408).error("timeout"), Reply::new(503), Reply::new(404)];
        for reply in replies {
            let harness = Manners::Strict.linked(engine).await;
            let in_doubt = harness.counted("refreshes_in_doubt_total").await;
            harness.pass(DUE);
            harness.sandbox.set_faults([Rule::refresh(Effect::Answer(reply.clone())).times(1)]);
            harness.work().await;
            assert_eq!(harness.told("u").await, "OK", "{reply:?}");
            harness.live(secs(6), secs(1)).await;
            assert_eq!(harness.refreshes().len(), 2, "{reply:?}");
            assert_eq!(harness.counted("refreshes_in_doubt_total").await, in_doubt, "{reply:?}");
            lives_on(&harness, Manners::Strict).await;
        }
    }

    async fn p14_an_outage_at_the_retry_ends_no_doubt(engine) {
        let outage = || Rule::refresh(Effect::error(503, "temporarily_unavailable"));
        let harness = Manners::Graceful.linked(engine).await;
        let lost = harness.counted("rotation_outcome_lost_total").await;
        let old = harness.get("u").await.unwrap().access_token;
        harness.pass(DUE);
        harness.sandbox.set_faults([Rule::refresh(Effect::Close).after().times(1), outage()]);
        harness.live(secs(66), secs(3)).await;
        let asked = harness.refreshes().len();
        assert!((3..=10).contains(&asked), "tried again and again while the grace lasts: {asked}");
        harness.sandbox.clear_faults();
        harness.live(secs(130), secs(5)).await;
        assert_eq!(harness.refreshes().len(), asked, "and not after it, while the old token lives");
        assert_eq!(harness.get("u").await.unwrap().access_token, old);
        assert_eq!(harness.told("u").await, "OK");
        harness.live(secs(120), secs(5)).await;
        assert_eq!(harness.told("u").await, "REAUTHORIZATION_REQUIRED");
        assert_eq!(harness.refreshes().len(), asked + 2);
        assert_eq!(harness.account("u").await.state_reason, "rotation_outcome_lost");
        assert_eq!(harness.counted("rotation_outcome_lost_total").await - lost, 1);
        // One that is over before the grace is costs nothing.
        let harness = Manners::Graceful.linked(engine).await;
        harness.pass(DUE);
        harness.sandbox.set_faults([Rule::refresh(Effect::Close).after().times(1), outage().times(3)]);
        harness.live(secs(54), secs(3)).await;
        assert_ne!(harness.get("u").await.unwrap().access_token, old);
        lives_on(&harness, Manners::Graceful).await;
    }

    async fn p14_p8_a_retry_tries_the_second_client_secret(engine) {
        // Within the grace, and long after it.
        for silences in [1, 2] {
            let harness = Manners::Graceful.linked(engine).await;
            harness.pass(DUE);
            let lost = Rule::refresh(Effect::Close).times(silences);
            harness.sandbox.set_faults([if silences == 1 { lost.after() } else { lost }]);
            harness.work().await;
            let new = v1::CreateProviderSecretRequest { provider: "sandbox".into(), client_secret: "second-secret".into(), ..Default::default() };
            harness.providers().create_provider_secret(new).await.unwrap();
            let mut settings = harness.sandbox.settings();
            settings.client_secrets.insert(DEFAULT_CLIENT_ID.into(), vec!["second-secret".into()]);
            harness.sandbox.set_settings(settings);
            harness.live(secs(230), secs(5)).await;
            assert_eq!(harness.told("u").await, "OK", "{silences}");
            let statuses: Vec<_> = harness.refreshes().iter().map(|request| request.status).skip(usize::try_from(silences).unwrap()).collect();
            assert_eq!(statuses, [401, 200], "{silences}");
            assert_eq!(harness.provider_state().await, v1::ProviderState::Ok, "{silences}");
            lives_on(&harness, Manners::Graceful).await;
        }
    }

    async fn s9_a_lease_from_a_clock_that_was_a_day_ahead_keeps_nobody_waiting_for_a_day(engine) {
        for manners in Manners::ALL {
            let harness = manners.linked(engine).await;
            harness.pass(DEAD);
            let ahead = harness.clock.now().plus(mins(24 * 60));
            let (other, sent_at) = (ReplicaId::new(ahead), ahead.millis());
            let claimed = format!("UPDATE grants SET fence = 1, lease_owner = '{other}', lease_until = {}, attempted_at = {sent_at}", sent_at + 20_000);
            let alive = format!("INSERT INTO replicas (id, started_at, beat_at, attempts) VALUES ('{other}', {sent_at}, {sent_at}, '{{}}')");
            let database = harness.database().await;
            database.execute(&claimed).await;
            database.execute(&alive).await;
            // Not before it has had time to learn of others.
            harness.live(secs(16), secs(2)).await;
            assert_eq!(harness.told("u").await, "OK", "{manners:?}");
            assert_eq!(harness.refreshes().len(), 1, "{manners:?}");
            lives_on(&harness, manners).await;
        }
    }

    async fn s9_who_slept_takes_nobody_for_silent_who_slept_too(engine) {
        let harness = Manners::Plain.linked(engine).await;
        harness.pass(DEAD);
        let now = harness.clock.now();
        let (other, sent_at) = (ReplicaId::new(now), now.millis());
        let database = harness.database().await;
        let claimed = format!("UPDATE grants SET fence = 1, lease_owner = '{other}', lease_until = {}, attempted_at = {sent_at}", sent_at + 20_000);
        database.execute(&claimed).await;
        database.execute(&format!("INSERT INTO replicas (id, started_at, beat_at, attempts) VALUES ('{other}', {sent_at}, {sent_at}, '{{}}')")).await;
        // The machine sleeps, with both of them, and the other one has the answer.
        harness.pass(mins(5));
        assert_eq!(harness.told("u").await, "PROVIDER_UNAVAILABLE");
        for _ in 0..6 {
            let beat = format!("UPDATE replicas SET beat_at = {} WHERE id = '{other}'", harness.clock.now().millis());
            database.execute(&beat).await;
            harness.live(secs(5), secs(5)).await;
            assert_eq!(harness.told("u").await, "PROVIDER_UNAVAILABLE");
        }
        assert_eq!(harness.refreshes().len(), 0, "the other one is there");
        harness.live(secs(65), secs(5)).await;
        assert_eq!((harness.told("u").await.as_str(), harness.refreshes().len()), ("OK", 1), "it is there no more");
        lives_on(&harness, Manners::Plain).await;
    }

    async fn p15_the_newest_refresh_token_is_kept_however_the_provider_rotates(engine) {
        let habits =
            [Rotation::Always, Rotation::Never, Rotation::Every(NonZeroU64::new(3).unwrap()), Rotation::Grace(secs(30))];
        for rotation in habits {
            let harness = Harness::with(engine, Options { rotation, reuse_revokes_family: true, ..Options::default() }).await;
            harness.link("u", "demo").await;
            for _ in 0..7 {
                harness.pass(DEAD);
                assert_eq!(harness.told("u").await, "OK", "{rotation:?}");
            }
            let presented: BTreeSet<_> =
                harness.refreshes().into_iter().map(|request| request.presented.refresh_token).collect();
            let rotated = match rotation {
                Rotation::Never => 1,
                Rotation::Every(_) => 3,
                Rotation::Always | Rotation::Grace(_) => 7,
            };
            assert_eq!((harness.refreshes().len(), presented.len()), (7, rotated), "{rotation:?}");
            harness.assert_each_redeemed_once();
        }
    }

    async fn p17_a_token_reported_as_rejected_again_and_again_is_refreshed_once_and_never_answered_back(engine) {
        let harness = Harness::start(engine).await;
        let settings = harness.sandbox.settings();
        harness.sandbox.set_settings(Settings { refresh_ends_access: true, ..settings });
        harness.link("u", "demo").await;
        let first = harness.get("u").await.unwrap().access_token;
        let refused = harness.get_with(wanting(None, &first)).await.unwrap_err();
        assert_eq!((reason(&refused).as_str(), wait(&refused)), ("ACCESS_TOKEN_REJECTED", secs(30)), "it is too new");
        assert!(harness.refreshes().is_empty());
        harness.pass(secs(30));
        let second = harness.get_with(wanting(None, &first)).await.unwrap().access_token;
        assert_ne!(second, first);
        // The old one is dead now, says the provider too; whoever still reports it is given the new one.
        assert!(!harness.is_accepted(&first).await);
        for _ in 0..20 {
            let given = harness.get_with(wanting(None, &first)).await.unwrap().access_token;
            assert!(given == second && harness.is_accepted(&given).await);
        }
        assert_eq!(harness.refreshes().len(), 1);
        // A caller who rejects whatever is given, each second for five minutes.
        let (mut rejected, mut given) = (second, 0);
        for _ in 0..300 {
            harness.pass(secs(1));
            match harness.get_with(wanting(None, &rejected)).await {
                Ok(token) => {
                    assert_ne!(token.access_token, rejected, "never answered back");
                    rejected = token.access_token;
                    given += 1;
                }
                Err(status) => assert_eq!(reason(&status), "ACCESS_TOKEN_REJECTED"),
            }
        }
        let asked = harness.refreshes();
        assert_eq!((asked.len(), given), (11, 10), "one in thirty seconds");
        assert!(asked.windows(2).all(|two| two[1].time - two[0].time >= 30_000), "{asked:?}");
        assert_eq!(harness.told("u").await, "OK");
        harness.assert_each_redeemed_once();
    }

    async fn p17_a_short_token_is_too_new_for_a_quarter_of_its_life(engine) {
        let harness = Harness::with(engine, Options { token_ttl: secs(60), ..Options::default() }).await;
        harness.link("u", "demo").await;
        let token = harness.get("u").await.unwrap().access_token;
        harness.pass(secs(14));
        assert_eq!(wait(&harness.get_with(wanting(None, &token)).await.unwrap_err()), secs(1));
        harness.pass(secs(1));
        assert_ne!(harness.get_with(wanting(None, &token)).await.unwrap().access_token, token);
        assert_eq!(harness.refreshes().len(), 1);
    }

    async fn p17_a_rejected_token_that_cannot_be_refreshed_ends_by_two_words_of_the_provider_a_minute_apart(engine) {
        let harness = Harness::start(engine).await;
        harness.sandbox.set_faults([Rule::exchange(Effect::omit("refresh_token"))]);
        harness.link("u", "demo").await;
        let token = harness.get("u").await.unwrap().access_token;
        let profiles = || {
            let all = harness.sandbox.requests();
            all.iter().filter(|request| request.endpoint == Endpoint::Userinfo).count()
        };
        let rejected = async || reason(&harness.get_with(wanting(None, &token)).await.unwrap_err());
        let asked = profiles();
        assert_eq!(rejected().await, "ACCESS_TOKEN_REJECTED");
        assert_eq!(profiles(), asked, "it is too new");
        harness.pass(secs(30));
        // The provider says that it lives.
        assert_eq!(rejected().await, "ACCESS_TOKEN_REJECTED");
        assert_eq!(rejected().await, "ACCESS_TOKEN_REJECTED");
        assert_eq!(profiles() - asked, 1, "and is not asked again at once");
        assert_eq!(harness.account("u").await.state(), State::Active);
        // It says once that it does not: that is not believed.
        harness.pass(secs(31));
        harness.sandbox.set_faults([Rule::userinfo(Effect::error(401, "invalid_token"))]);
        for _ in 0..11 {
            assert_eq!(rejected().await, "ACCESS_TOKEN_REJECTED");
            harness.pass(secs(5));
        }
        assert_eq!(profiles() - asked, 2);
        assert_eq!(harness.account("u").await.state(), State::Active);
        harness.pass(secs(6));
        assert_eq!(rejected().await, "REAUTHORIZATION_REQUIRED");
        assert_eq!(profiles() - asked, 3);
        assert_eq!(reason(&harness.get("u").await.unwrap_err()), "REAUTHORIZATION_REQUIRED");
        assert_eq!((harness.account("u").await.state_reason.as_str(), harness.refreshes().len()), ("invalid_token", 0));
    }
}

/// Errors that do not say what became of the refresh token.
fn unclear() -> [Reply; 4] {
    let page = Reply::new(502).body("<h1>invalid_grant</h1>").header("content-type", "text/html");
    [page, Reply::new(500), Reply::new(504).body("{\"message\": \"upstream timed out\"}"), Reply::new(408)]
}

/// The grant is as good as if nothing had been: it is refreshed further, and nobody was told of anything.
async fn lives_on(harness: &Harness, manners: Manners) {
    harness.pass(DEAD);
    assert_eq!(harness.told("u").await, "OK", "{manners:?}");
    assert_eq!(harness.events().await, counts([("account.linked", 1)]), "{manners:?}");
    let totals = harness.sandbox.totals();
    assert_eq!((totals.reuses, totals.max_overlap), (0, 1), "{manners:?}");
}
