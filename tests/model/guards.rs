//! The engine without one of its guards breaks a promise: each guard is needed.

use crate::properties as promise;
use crate::rules::{Engine, Guard, Rotation};
use crate::world::Bounds;
use stateright::{Checker, HasDiscoveries, Model};

/// Explores the engine without `guard` until a promise breaks, and asserts that it is this one.
fn breaks(guard: Guard, rotation: Rotation, bounds: Bounds, promise: &'static str) {
    let begun = std::time::Instant::now();
    let engine = Engine { rotation, bounds, without: Some(guard) };
    let checker = engine.checker().finish_when(HasDiscoveries::AnyOf([promise].into())).spawn_bfs().join();
    let (states, seconds) = (checker.unique_state_count(), begun.elapsed().as_secs_f32());
    let found = checker.discovery(promise).map(stateright::Path::into_actions);
    let Some(steps) = found else { panic!("without {guard:?} this still holds in {states} states: {promise}") };
    println!(
        "without {guard:?}, {rotation:?}: {states} states, {seconds:.1} s; broken in {} steps: {promise}",
        steps.len()
    );
    println!("  {}", steps.iter().map(|step| format!("{step:?}")).collect::<Vec<_>>().join(", "));
}

const CRASH: Bounds = Bounds { crashes: 1, ..Bounds::of(3) };
const PAUSE: Bounds = Bounds { pauses: 1, ..Bounds::of(3) };
const CRASH_AND_PAUSE: Bounds = Bounds { pauses: 1, ..CRASH };
const CRASH_AND_LOSS: Bounds = Bounds { losses: 1, ..CRASH };
const LOSS: Bounds = Bounds { losses: 1, ..Bounds::of(3) };
const TWO_LOSSES: Bounds = Bounds { losses: 2, ..Bounds::of(3) };
const OUTAGE: Bounds = Bounds { outages: 1, ..Bounds::of(3) };
const GLITCH: Bounds = Bounds { glitches: 1, ..Bounds::of(3) };
const GLITCH_UNHEARD: Bounds = Bounds { unheard: 1, ..GLITCH };
const SECRET_AND_PAUSE: Bounds = Bounds { refused_secrets: 1, ..PAUSE };
const SECRET_LOSS_AND_PAUSE: Bounds = Bounds { losses: 1, ..SECRET_AND_PAUSE };
const SECRET_AND_CRASH: Bounds = Bounds { refused_secrets: 1, ..CRASH };
const ERROR: Bounds = Bounds { errors: 1, ..Bounds::of(3) };
const LOSS_AND_ERROR: Bounds = Bounds { errors: 1, ..LOSS };
const ENDING: Bounds = Bounds { endings: 1, ..Bounds::of(3) };

macro_rules! needed {
    ($($(#[doc = $how:literal])+ $name:ident: $guard:ident, $rotation:ident, $bounds:ident, $promise:ident;)*) => {
        $($(#[doc = $how])+ #[test]
        fn $name() {
            breaks(Guard::$guard, Rotation::$rotation, $bounds, promise::$promise);
        })*
    };
}

needed! {
    /// Both judge; one asks, is refused in error, and the other asks the second question at once.
    a_claim_needs_the_judged_fence: ClaimFence, Family, GLITCH, DEAD_IS_DEAD;
    /// A replayed answer revives a suspect grant between a judgement and its claim.
    a_claim_needs_the_judged_generation: ClaimGeneration, Strict, CRASH, NEEDED;
    /// Two claims in a row, and both send.
    a_claim_respects_a_running_lease: ClaimLease, Strict, CRASH, ONCE;
    /// The owner's answer is in its spool; the lease ends; anyone reuses the token before it is replayed.
    only_a_recovery_claims_a_row_in_doubt: ClaimNotInDoubt, Family, CRASH, EXPLAINED;
    /// The owner has restarted and is about to replay.
    a_recovery_needs_an_owner_that_knows_nothing: RecoveryOwner, Family, CRASH, EXPLAINED;
    /// After an outage of the store every heartbeat is old.
    a_recovery_needs_a_store_that_has_settled: RecoverySettled, Family, OUTAGE, EXPLAINED;
    /// Judged while the owner was down, claimed when it is back.
    a_recovery_is_judged_again_in_its_claim: RecoveryInClaim, Family, CRASH, EXPLAINED;
    /// The retry is refused while the old access token would have served for long.
    a_recovery_waits_for_the_floor: RecoveryAtFloor, Strict, CRASH, LAST;
    /// The retry is unanswered too; then the first answer is replayed: fresh, and in doubt.
    a_recovery_waits_until_the_token_is_due: RecoveryDue, Never, CRASH_AND_LOSS, NEEDED;
    /// The second retry comes when the grace of the first redemption is over.
    a_recovery_within_the_grace_is_done_once: RecoveryOnceInGrace, Grace, TWO_LOSSES, LAST;
    /// A paused replica finds its own lease over, and its answer in memory.
    a_flight_outranks_its_lease: FlightOutranksLease, Family, PAUSE, EXPLAINED;
    /// Restarted, it finds its own row in doubt, and does not look into its spool.
    a_restart_replays_before_it_claims: ReplayFirst, Family, CRASH, EXPLAINED;
    /// The dead process's request is still at the provider.
    a_lease_outlives_its_process: LeaseOutlivesOwner, Never, CRASH, ONCE;
    /// Paused after its claim, it sends when another has.
    a_request_is_sent_soon_or_not_at_all: SendSoon, Strict, PAUSE, ONCE;
    /// A late release gives away the lease of the next claim.
    a_release_needs_its_own_fence: ReleaseFence, Strict, PAUSE, ONCE;
    /// A recovery within the grace is released; a plain claim follows when the grace is over.
    a_released_recovery_leaves_the_row_in_doubt: ReleaseKeepsDoubt, Grace, CRASH_AND_PAUSE, LAST;
    /// The request is slow rather than lost.
    an_unanswered_request_keeps_its_lease: UnansweredKeepsLease, Strict, LOSS, ONCE;
    /// It was acted on, and the token is sent again.
    an_unclear_answer_leaves_the_row_in_doubt: UnclearIsDoubt, Strict, ERROR, LAST;
    /// A retry within the grace is put off; a plain claim follows when the grace is over.
    a_retry_that_is_put_off_leaves_the_row_in_doubt: LaterKeepsDoubt, Grace, LOSS_AND_ERROR, LAST;
    /// Paused between the refusal of one secret and the use of the next.
    a_second_request_needs_a_renewed_claim: SecondClaim, Strict, SECRET_AND_PAUSE, ONCE;
    /// The same, and the renewal takes the lease from whoever has it now.
    a_renewal_needs_its_own_fence: RenewalFence, Strict, SECRET_AND_PAUSE, ONCE;
    /// A retry within the grace is paused between two secrets until the grace is over.
    a_renewal_needs_a_running_lease: RenewalInTime, Grace, SECRET_LOSS_AND_PAUSE, LAST;
    /// Between the refusal of one secret and the use of the next, a replay has made the row fresh.
    a_renewal_needs_that_nothing_was_stored_since: RenewalUnchanged, Strict, SECRET_AND_CRASH, NEEDED;
    /// Killed after the caller was answered.
    a_caller_waits_for_the_spool: SpoolBeforeRely, Never, CRASH, KEPT;
    /// A spool is replayed when a recovery has stored a newer answer.
    a_success_needs_to_be_newer: SuccessNewer, Grace, CRASH, ORDERED;
    /// A replayed answer frees the row under a recovery that is in flight.
    a_success_clears_only_its_own_lease: SuccessOwnLease, Strict, CRASH, ONCE;
    /// A replayed answer, older than a retry that is unanswered: its token's grace is over, and it is tried at once.
    a_success_ends_only_its_own_doubt: SuccessOwnDoubt, Grace, CRASH_AND_LOSS, LAST;
    /// Two refusals of the old token, while the new one waits in a spool.
    a_success_is_stored_even_after_a_verdict: SuccessRevives, Strict, CRASH, KEPT;
    /// Refused because a recovery has the newer token by now.
    a_verdict_needs_its_own_fence: VerdictFence, Strict, CRASH_AND_PAUSE, FAIR;
    /// Refused, and then the first answer is replayed before the refusal is written.
    a_verdict_needs_that_nothing_was_stored_since: VerdictUnchanged, Strict, CRASH, DEAD_IS_DEAD;
    /// Its acknowledgement is lost, it is written again, and counts as two.
    a_verdict_names_the_state_it_was_claimed_in: VerdictOnce, Never, GLITCH_UNHEARD, DEAD_IS_DEAD;
    /// One refusal in error.
    a_grant_ends_by_two_answers: TwoAnswers, Never, GLITCH, DEAD_IS_DEAD;
    /// Both answers are of the same minute's error.
    the_second_question_waits: ConfirmLater, Never, GLITCH, DEAD_IS_DEAD;
    /// The refresh in flight succeeds after unlink.
    what_the_user_ended_stays_ended: EndingStays, Never, ENDING, GONE;
    /// The refresh in flight succeeds after reauthorization.
    a_result_is_written_to_its_own_grant: OwnGrant, Never, ENDING, APART;
}
