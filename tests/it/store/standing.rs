//! How we stand with providers: pauses, blame, probes, and the secrets that work.

use token_wallet::domain::event::EventKind;
use token_wallet::domain::ids::{GrantId, ProviderId, ProviderSecretId};
use token_wallet::domain::provider::{Limits, Standing};
use token_wallet::store::{AddSecret, Blame, ProviderChange, ProviderSecretRow, RemoveSecret, UpdateProvider};

use super::{Fixture, NOW, at, on_both_engines, scopes, sealed, slug, user};

on_both_engines! {
    p9_a_pause_is_made_longer_and_never_shorter
    s9_what_a_clock_a_day_ahead_has_written_is_overwritten
    p8_a_second_grant_makes_it_certain_that_our_credentials_are_refused
    p8_the_only_grant_that_could_be_refreshed_is_certain_at_once
    p8_refused_credentials_are_tried_once_a_minute_however_many_ask
    p8_a_success_absolves_a_provider_once
    two_grants_that_blame_at_once_are_told_of_once
    a_change_keeps_what_it_does_not_name_ends_a_pause_and_has_credentials_tried_at_once
    a_provider_has_up_to_three_secrets_and_keeps_the_last
    the_last_two_secrets_are_not_deleted_both_by_two_at_once
    the_use_of_a_secret_is_noted_once_an_hour_unless_another_one_worked_since
}

async fn standing(store: &Fixture, provider: ProviderId) -> Standing {
    store.provider(provider).await.unwrap().unwrap().standing
}

/// A provider with that many linked accounts; their grants.
async fn with_grants(store: &Fixture, count: usize) -> (ProviderId, Vec<GrantId>) {
    let provider = store.configured("acme").await;
    let mut grants = Vec::new();
    for n in 0..count {
        grants.push(store.linked(&user("ann"), provider, &format!("s{n}")).await.1);
    }
    (provider, grants)
}

async fn p9_a_pause_is_made_longer_and_never_shorter(store: &Fixture) {
    let (provider, other) = (store.configured("acme").await, store.configured("zeta").await);
    for (until, longer) in [(10, true), (5, false), (10, false), (11, true)] {
        assert_eq!(store.pause_provider(provider, at(until), NOW).await.unwrap(), longer);
    }
    assert_eq!(standing(store, provider).await, Standing { paused_until: Some(at(11)), ..Standing::default() });
    assert_eq!(standing(store, other).await, Standing::default());
    assert!(!store.pause_provider(ProviderId::new(NOW), at(5), NOW).await.unwrap());
}

async fn s9_what_a_clock_a_day_ahead_has_written_is_overwritten(store: &Fixture) {
    let day = 86_400;
    let (provider, grants) = with_grants(store, 1).await;
    assert!(store.pause_provider(provider, at(day + 30), at(day)).await.unwrap());
    assert!(store.pause_provider(provider, at(30), NOW).await.unwrap());
    assert_eq!(store.blame_provider(provider, grants[0], at(day)).await.unwrap(), Blame::Misconfigured);
    assert!(store.claim_probe(provider, NOW, at(60)).await.unwrap());
    assert!(!store.claim_probe(provider, at(1), at(61)).await.unwrap());
    assert!(store.freeze_verdicts(provider, at(day + 1_800), at(day - 300), at(day)).await.unwrap().began);
    assert!(store.freeze_verdicts(provider, at(1_800), at(-300), NOW).await.unwrap().began);
    assert!(!store.freeze_verdicts(provider, at(1_860), at(-240), at(60)).await.unwrap().began);
    let standing = standing(store, provider).await;
    assert_eq!((standing.paused_until, standing.probe_at), (Some(at(30)), Some(at(60))));
    assert_eq!(standing.frozen_until, Some(at(1_860)));
}

async fn p8_a_second_grant_makes_it_certain_that_our_credentials_are_refused(store: &Fixture) {
    let (provider, grants) = with_grants(store, 3).await;
    for blame in [Blame::First, Blame::First] {
        assert_eq!(store.blame_provider(provider, grants[0], NOW).await.unwrap(), blame);
    }
    let blamed = standing(store, provider).await;
    assert_eq!((blamed.misconfigured_at, blamed.blamed_by), (None, Some(grants[0])));
    assert!(blamed.is_blamed() && !store.claim_probe(provider, at(900), at(960)).await.unwrap());
    for blame in [Blame::Misconfigured, Blame::Already] {
        assert_eq!(store.blame_provider(provider, grants[1], at(1)).await.unwrap(), blame);
    }
    let blamed = standing(store, provider).await;
    assert_eq!((blamed.misconfigured_at, blamed.probe_at), (Some(at(1)), Some(at(61))));
    assert_eq!(store.events(EventKind::ProviderMisconfigured).await, 1);
}

async fn p8_the_only_grant_that_could_be_refreshed_is_certain_at_once(store: &Fixture) {
    let (provider, grants) = with_grants(store, 3).await;
    // Another provider's grants could not tell either.
    let other = store.configured("zeta").await;
    store.linked(&user("ann"), other, "s").await;
    store.tamper(format!("UPDATE grants SET state = 'dead' WHERE id = '{}'", grants[1])).await;
    assert_eq!(store.blame_provider(provider, grants[0], NOW).await.unwrap(), Blame::First);
    let no_token = "UPDATE grants SET refresh_token = NULL, refresh_generation = NULL";
    store.tamper(format!("{no_token} WHERE id = '{}'", grants[2])).await;
    assert_eq!(store.blame_provider(provider, grants[0], NOW).await.unwrap(), Blame::Misconfigured);
}

async fn p8_refused_credentials_are_tried_once_a_minute_however_many_ask(store: &Fixture) {
    let (provider, grants) = with_grants(store, 1).await;
    assert_eq!(store.blame_provider(provider, grants[0], NOW).await.unwrap(), Blame::Misconfigured);
    assert!(!store.claim_probe(provider, at(59), at(119)).await.unwrap());
    for now in [60, 120] {
        let mut tries = tokio::task::JoinSet::new();
        for _ in 0..10 {
            let store = (*store).clone();
            tries.spawn(async move { store.claim_probe(provider, at(now), at(now + 60)).await.unwrap() });
        }
        assert_eq!(tries.join_all().await.into_iter().filter(|claimed| *claimed).count(), 1);
    }
    assert_eq!(standing(store, provider).await.probe_at, Some(at(180)));
}

async fn p8_a_success_absolves_a_provider_once(store: &Fixture) {
    let (provider, grants) = with_grants(store, 2).await;
    assert_eq!(store.blame_provider(provider, grants[0], NOW).await.unwrap(), Blame::First);
    assert!(!store.absolve_provider(provider, at(1)).await.unwrap(), "nothing was certain");
    assert_eq!(standing(store, provider).await, Standing::default());
    assert_eq!(store.blame_provider(provider, grants[1], NOW).await.unwrap(), Blame::First, "it was forgotten");
    assert_eq!(store.blame_provider(provider, grants[0], NOW).await.unwrap(), Blame::Misconfigured);
    for cured in [true, false] {
        assert_eq!(store.absolve_provider(provider, at(1)).await.unwrap(), cured);
        assert_eq!(standing(store, provider).await, Standing::default());
    }
    assert_eq!(store.events(EventKind::ProviderRecovered).await, 1);
}

async fn two_grants_that_blame_at_once_are_told_of_once(store: &Fixture) {
    let (provider, grants) = with_grants(store, 2).await;
    let blames = grants.iter().map(|grant| store.blame_provider(provider, *grant, NOW));
    let mut blames: Vec<_> = futures_util::future::join_all(blames).await.into_iter().map(Result::unwrap).collect();
    blames.sort_by_key(|blame| *blame == Blame::Misconfigured);
    assert_eq!(blames, [Blame::First, Blame::Misconfigured]);
    assert_eq!(store.events(EventKind::ProviderMisconfigured).await, 1);
}

async fn a_change_keeps_what_it_does_not_name_ends_a_pause_and_has_credentials_tried_at_once(store: &Fixture) {
    let (provider, grants) = with_grants(store, 1).await;
    assert_eq!(store.blame_provider(provider, grants[0], NOW).await.unwrap(), Blame::Misconfigured);
    store.tamper(format!("UPDATE providers SET frozen_until = {0}, paused_until = {0}", at(99).millis())).await;
    let before = store.provider(provider).await.unwrap().unwrap();
    assert_eq!(
        store.update_provider(&slug("acme"), &ProviderChange::default(), NOW).await.unwrap(),
        UpdateProvider::Done
    );
    let mut after = store.provider(provider).await.unwrap().unwrap();
    assert_eq!(after.standing, Standing { probe_at: None, paused_until: None, ..before.standing });
    assert_eq!(after.revision, before.revision + 1);
    (after.standing, after.revision) = (before.standing, before.revision);
    assert_eq!(after, before);

    let change = ProviderChange {
        display_name: Some("Other".into()),
        additional_scopes: Some(scopes("one")),
        requests_per_second: Some(5),
        max_in_flight: Some(2),
        unfreeze: true,
        revision: Some(2),
    };
    assert_eq!(store.update_provider(&slug("acme"), &change, NOW).await.unwrap(), UpdateProvider::Done);
    let row = store.provider(provider).await.unwrap().unwrap();
    assert_eq!((row.display_name.as_deref(), &row.additional_scopes), (Some("Other"), &scopes("one")));
    assert_eq!(row.limits, Limits { requests_per_second: Some(5), max_in_flight: Some(2) });
    assert_eq!(row.standing.frozen_until, None);
    let back = ProviderChange {
        display_name: Some(String::new()),
        requests_per_second: Some(0),
        max_in_flight: Some(0),
        ..ProviderChange::default()
    };
    assert_eq!(store.update_provider(&slug("acme"), &back, NOW).await.unwrap(), UpdateProvider::Done);
    let row = store.provider(provider).await.unwrap().unwrap();
    assert_eq!((row.display_name, row.limits), (None, Limits::default()));
    assert_eq!(store.update_provider(&slug("other"), &change, NOW).await.unwrap(), UpdateProvider::NotFound);
}

fn secret(second: i64) -> ProviderSecretRow {
    ProviderSecretRow {
        id: ProviderSecretId::new(at(second)),
        secret: sealed(9),
        created_at: at(second),
        last_used_at: None,
    }
}

async fn secrets(store: &Fixture, provider: ProviderId) -> Vec<ProviderSecretRow> {
    store.provider(provider).await.unwrap().unwrap().secrets
}

async fn a_provider_has_up_to_three_secrets_and_keeps_the_last(store: &Fixture) {
    let (provider, grants) = with_grants(store, 1).await;
    assert_eq!(store.blame_provider(provider, grants[0], NOW).await.unwrap(), Blame::Misconfigured);
    let (second, third) = (secret(1), secret(2));
    assert_eq!(store.add_secret(provider, &second, None).await.unwrap(), AddSecret::Added);
    let standing = standing(store, provider).await;
    assert_eq!((standing.misconfigured_at, standing.probe_at), (Some(NOW), None), "it may be tried at once");
    assert_eq!(store.add_secret(provider, &third, None).await.unwrap(), AddSecret::Added);
    assert_eq!(store.add_secret(provider, &secret(3), None).await.unwrap(), AddSecret::TooMany);
    assert_eq!(store.add_secret(ProviderId::new(NOW), &secret(3), None).await.unwrap(), AddSecret::NoProvider);
    let rows = secrets(store, provider).await;
    assert_eq!(rows[..2], [third.clone(), second.clone()]);

    let acme = slug("acme");
    assert_eq!(store.remove_secret(&slug("other"), rows[2].id, NOW).await.unwrap(), RemoveSecret::NoProvider);
    let of_another = store.provider(store.configured("zeta").await).await.unwrap().unwrap().secrets.remove(0);
    for gone in [rows[2].id, rows[2].id, second.id, second.id, of_another.id] {
        assert_eq!(store.remove_secret(&acme, gone, NOW).await.unwrap(), RemoveSecret::Removed);
    }
    assert_eq!(store.remove_secret(&acme, third.id, NOW).await.unwrap(), RemoveSecret::Last);
    assert_eq!(secrets(store, provider).await, [third]);
    assert_eq!(store.number("SELECT COUNT(*) FROM provider_secrets").await, 2, "the other provider's stays");
}

async fn the_last_two_secrets_are_not_deleted_both_by_two_at_once(store: &Fixture) {
    let provider = store.configured("acme").await;
    for _ in 0..5 {
        assert_eq!(store.add_secret(provider, &secret(1), None).await.unwrap(), AddSecret::Added);
        let rows = secrets(store, provider).await;
        let acme = slug("acme");
        let both = futures_util::future::join_all(rows.iter().map(|row| store.remove_secret(&acme, row.id, NOW))).await;
        let both: Vec<_> = both.into_iter().map(Result::unwrap).collect();
        assert!(both.contains(&RemoveSecret::Removed) && both.contains(&RemoveSecret::Last), "{both:?}");
        assert_eq!(secrets(store, provider).await.len(), 1);
    }
}

async fn the_use_of_a_secret_is_noted_once_an_hour_unless_another_one_worked_since(store: &Fixture) {
    let provider = store.configured("acme").await;
    assert_eq!(store.add_secret(provider, &secret(1), None).await.unwrap(), AddSecret::Added);
    let [new, old] = secrets(store, provider).await.try_into().unwrap();
    for (id, now, noted) in [
        (old.id, 0, true),
        (old.id, 3_599, false),
        (old.id, 3_600, true),
        (new.id, 3_700, true),
        (new.id, 3_800, false),
        (old.id, 3_900, true),
        (new.id, 3_950, true),
    ] {
        assert_eq!(store.secret_used(id, at(now)).await.unwrap(), noted, "at {now}");
    }
    let used: Vec<_> = secrets(store, provider).await.into_iter().map(|row| row.last_used_at).collect();
    assert_eq!(used, [Some(at(3_950)), Some(at(3_900))]);
}
