//! The engine with all its guards keeps its promises, with each kind of provider.

use crate::rules::{Engine, Rotation};
use crate::world::Bounds;
use stateright::{Checker, Model};

/// Explores every order of events and asserts every promise and milestone.
fn explore(rotation: Rotation, bounds: Bounds) {
    let begun = std::time::Instant::now();
    let checker = Engine { rotation, bounds, without: None }.checker().spawn_bfs().join();
    let (states, depth, seconds) = (checker.unique_state_count(), checker.max_depth(), begun.elapsed().as_secs_f32());
    println!("{rotation:?}: {states} states, {depth} steps deep, {seconds:.1} s; {bounds:?}");
    checker.assert_properties();
}

/// A crash, a pause, a lost or late message and an outage, in any order and at any step.
const ALL_FAULTS: Bounds = Bounds { crashes: 1, pauses: 1, outages: 1, losses: 1, ..Bounds::of(3) };
/// Less of it at once, where the whole would be too large or teaches nothing.
const CRASH_AND_PAUSE: Bounds = Bounds { outages: 0, ..ALL_FAULTS };
const CRASH_AND_OUTAGE: Bounds = Bounds { pauses: 0, ..ALL_FAULTS };
const PAUSE_AND_OUTAGE: Bounds = Bounds { crashes: 0, losses: 0, ..ALL_FAULTS };
/// Twice the same fault, and one claim more.
const TWICE: Bounds = Bounds { crashes: 2, losses: 2, ..Bounds::of(4) };
/// What the provider may say but the truth, and commits whose acknowledgement is lost.
const ANSWERS: Bounds =
    Bounds { crashes: 1, unheard: 1, glitches: 1, refused_secrets: 1, revocations: 1, ..Bounds::of(4) };
const ANSWERS_IN_SHORT: Bounds = Bounds { claims: 3, ..ANSWERS };
/// A second client secret, and a pause before it is used.
const SECRETS: Bounds = Bounds { pauses: 1, losses: 1, refused_secrets: 1, ..Bounds::of(3) };
/// Answers that are neither a token nor a refusal.
const ERRORS: Bounds = Bounds { crashes: 1, losses: 1, errors: 2, ..Bounds::of(3) };
/// One of them, and a replica that is away.
const AN_ERROR: Bounds = Bounds { crashes: 1, pauses: 1, errors: 1, ..Bounds::of(3) };
/// Unlink or reauthorization.
const ENDING: Bounds = Bounds { crashes: 1, pauses: 1, endings: 1, ..Bounds::of(3) };

macro_rules! explored {
    ($($name:ident: $rotation:ident, $bounds:ident;)*) => {
        $(#[test]
        fn $name() {
            explore(Rotation::$rotation, $bounds);
        })*
    };
}

explored! {
    a_token_that_never_rotates_survives_crash_and_pause: Never, CRASH_AND_PAUSE;
    a_token_that_never_rotates_survives_crash_and_outage: Never, CRASH_AND_OUTAGE;
    a_token_that_never_rotates_survives_faults_that_repeat: Never, TWICE;
    a_token_that_never_rotates_gets_a_fair_verdict: Never, ANSWERS_IN_SHORT;
    a_token_that_never_rotates_survives_errors: Never, ERRORS;
    a_token_that_never_rotates_is_gone_once_ended: Never, ENDING;

    a_rotation_with_grace_survives_crash_and_pause: Grace, CRASH_AND_PAUSE;
    a_rotation_with_grace_survives_crash_and_outage: Grace, CRASH_AND_OUTAGE;
    a_rotation_with_grace_survives_pause_and_outage: Grace, PAUSE_AND_OUTAGE;
    a_rotation_with_grace_survives_faults_that_repeat: Grace, TWICE;
    a_rotation_with_grace_gets_a_fair_verdict: Grace, ANSWERS_IN_SHORT;
    a_rotation_with_grace_survives_a_pause_between_two_secrets: Grace, SECRETS;
    a_rotation_with_grace_survives_errors: Grace, ERRORS;
    a_rotation_with_grace_survives_an_error_and_a_replica_that_is_away: Grace, AN_ERROR;
    a_rotation_with_grace_is_gone_once_ended: Grace, ENDING;

    a_rotation_without_grace_survives_all_faults: Strict, ALL_FAULTS;
    a_rotation_without_grace_survives_faults_that_repeat: Strict, TWICE;
    a_rotation_without_grace_gets_a_fair_verdict: Strict, ANSWERS;
    a_rotation_without_grace_survives_errors: Strict, ERRORS;
    a_rotation_without_grace_is_gone_once_ended: Strict, ENDING;

    a_family_that_dies_of_reuse_survives_all_faults: Family, ALL_FAULTS;
    a_family_that_dies_of_reuse_survives_faults_that_repeat: Family, TWICE;
    a_family_that_dies_of_reuse_gets_a_fair_verdict: Family, ANSWERS;
    a_family_that_dies_of_reuse_survives_errors: Family, ERRORS;
    a_family_that_dies_of_reuse_survives_an_error_and_a_replica_that_is_away: Family, AN_ERROR;
    a_family_that_dies_of_reuse_is_gone_once_ended: Family, ENDING;
}
