//! The guards of the engine, each of which can be taken away, and the kinds of provider.

use crate::world::Bounds;

/// How a provider treats refresh tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rotation {
    /// The refresh token stays.
    Never,
    /// A replaced token works until a known grace is over, or longer.
    Grace,
    /// A replaced token is refused.
    Strict,
    /// A replaced token is refused, and its use revokes all that came from the consent.
    Family,
}

/// One condition of one step of the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Guard {
    /// A claim needs the fence that was judged.
    ClaimFence,
    /// A claim needs the generation that was judged.
    ClaimGeneration,
    /// A claim respects a running lease.
    ClaimLease,
    /// Only a recovery claims a row in doubt.
    ClaimNotInDoubt,
    /// A recovery needs an owner that is known to know nothing.
    RecoveryOwner,
    /// A recovery needs a store that has been reachable for long enough that heartbeats tell something.
    RecoverySettled,
    /// A recovery waits until the access token is due: a late success may have made it fresh.
    RecoveryDue,
    /// Within a known grace, one retry at once.
    RecoveryOnceInGrace,
    /// A recovery's conditions are asked again by its claim, not only when it was judged.
    RecoveryInClaim,
    /// A recovery waits until the access token is of no more use.
    RecoveryAtFloor,
    /// A process does not claim what it has an answer for in memory, whatever the lease says.
    FlightOutranksLease,
    /// A restarted process replays its spool before it claims.
    ReplayFirst,
    /// A lease outlives its owner's process: a restart does not void it.
    LeaseOutlivesOwner,
    /// A request is sent soon after its claim, or not at all.
    SendSoon,
    /// An unsent claim is released only under its own fence.
    ReleaseFence,
    /// The release of an unsent recovery leaves the row in doubt.
    ReleaseKeepsDoubt,
    /// An unanswered request keeps its lease.
    UnansweredKeepsLease,
    /// An answer that does not say whether the token is spent leaves the row in doubt.
    UnclearIsDoubt,
    /// A retry that was not acted on leaves the row in doubt.
    LaterKeepsDoubt,
    /// A second request needs a renewed claim.
    SecondClaim,
    /// A claim is renewed only under its own fence.
    RenewalFence,
    /// A claim is renewed only while its lease runs, and, if it is a retry within a grace, while that does.
    RenewalInTime,
    /// A claim is renewed only if nothing was stored since.
    RenewalUnchanged,
    /// A caller is not answered before the answer is durable.
    SpoolBeforeRely,
    /// A success is stored only over an older one.
    SuccessNewer,
    /// A success clears only its own lease.
    SuccessOwnLease,
    /// A success ends only its own doubt, not that about a later claim.
    SuccessOwnDoubt,
    /// A success is stored even after a verdict.
    SuccessRevives,
    /// A verdict needs its own fence.
    VerdictFence,
    /// A verdict needs that nothing was stored since its claim.
    VerdictUnchanged,
    /// A verdict names the state that it was claimed in, so that its repetition is not a second answer.
    VerdictOnce,
    /// A grant is ended by the second answer.
    TwoAnswers,
    /// The second question waits.
    ConfirmLater,
    /// What the user ended stays ended.
    EndingStays,
    /// A result is written to the grant that it was claimed from, not to the account's current one.
    OwnGrant,
}

/// One configuration of the model.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Engine {
    pub(crate) rotation: Rotation,
    pub(crate) bounds: Bounds,
    /// The guard that is taken away, if any.
    pub(crate) without: Option<Guard>,
}

impl Engine {
    pub(crate) fn has(&self, guard: Guard) -> bool {
        self.without != Some(guard)
    }
}
