//! The promises P2, P3, P4 and P7 of the wallet; and what must be possible, so that they do not hold for want of events.

use crate::replica::Act;
use crate::rules::{Engine, Rotation};
use crate::world::{Access, Broken, Ended, GrantState, Kind, Life, Link, Loss, Process, World};
use stateright::Property;

pub(crate) const ONCE: &str = "promise P2: redemptions overlap only after a pause between a check and its send";
pub(crate) const NEEDED: &str = "promise P2: what was just refreshed is not refreshed again";
pub(crate) const KEPT: &str = "promise P3: what is durable or relied on is in the store or in a spool";
pub(crate) const ORDERED: &str = "promise P3: no older answer replaces a newer one";
pub(crate) const EXPLAINED: &str = "promise P3: every lost token has one of the unavoidable causes";
pub(crate) const FAIR: &str = "promise P4: no grant ends while a replica that nobody gave up holds a working token";
pub(crate) const DEAD_IS_DEAD: &str = "promise P4: when all is quiet, a dead grant is dead at the provider";
pub(crate) const LAST: &str = "promise P4: doubt alone suspects no grant whose access token still serves";
pub(crate) const GONE: &str = "promise P7: what the user ended is not served";
pub(crate) const APART: &str = "promise P7: the grant of a reauthorization is not touched by the old one";
pub(crate) const FREE: &str = "a grant in doubt is never stuck";

type Condition = fn(&Engine, &World) -> bool;

/// What holds always; and, if no guard is missing, what happens sometimes in these bounds, and why tokens are lost.
pub(crate) fn of(engine: &Engine) -> Vec<Property<Engine>> {
    let mut all = promises();
    if engine.without.is_none() {
        all.extend(milestones(engine));
        all.extend(losses(engine));
    }
    all
}

fn promises() -> Vec<Property<Engine>> {
    let list: [(&'static str, Condition); 11] = [
        (ONCE, |_, world| world.truth.broken != Some(Broken::Overlap)),
        (NEEDED, |_, world| world.truth.broken != Some(Broken::NeedlessRedemption)),
        (KEPT, |_, world| world.keeps_what_is_owed()),
        (ORDERED, |_, world| world.truth.broken != Some(Broken::Overwritten)),
        (EXPLAINED, |_, world| world.truth.loss != Some(Loss::Unexplained)),
        (FAIR, |_, world| world.truth.broken != Some(Broken::EndedInVain)),
        (DEAD_IS_DEAD, |_, world| {
            world.row.state != GrantState::Dead || !world.is_settled() || !world.provider.takes(world.row.token)
        }),
        (LAST, |_, world| world.truth.broken != Some(Broken::DoubtedEarly)),
        (GONE, |_, world| world.ended == Ended::No || !world.row.is_served()),
        (APART, |_, world| world.ended != Ended::Replaced { harmed: true }),
        (FREE, |engine, world| !waits_for_recovery(world) || [0, 1].iter().any(|me| may_recover(engine, world, *me))),
    ];
    list.into_iter().map(|(name, condition)| Property::always(name, condition)).collect()
}

fn ended_by_doubt(world: &World) -> bool {
    world.row.state == GrantState::Dead && world.row.doubted != 0
}

fn waits_for_recovery(world: &World) -> bool {
    let row = &world.row;
    let waits = row.is_in_doubt() && row.is_served() && row.access == Access::AtFloor;
    waits && world.is_settled() && world.left.claims > 0
}

fn may_recover(engine: &Engine, world: &World, me: usize) -> bool {
    let mut next = *world;
    next.act(engine, me, Act::Judge(Kind::Recover)).is_some()
}

fn milestones(engine: &Engine) -> Vec<Property<Engine>> {
    let Engine { rotation, bounds, .. } = *engine;
    let crash = bounds.crashes > 0;
    let doubt = crash || bounds.losses > 0 || bounds.pauses > 0 || bounds.errors > 0;
    let list: [(bool, &'static str, Condition); 5] = [
        (true, "a refresh succeeds", |_, world| world.row.committed > 0),
        (doubt, "a doubt ends in a success", |_, world| {
            let recovers = |process: &Process| process.held.is_some_and(|it| it.recovers && it.token.is_some());
            world.processes.iter().any(recovers)
        }),
        (crash, "a spool that is newer than the store is replayed", |_, world| {
            world.processes.iter().any(|process| is_replaying(world, process))
        }),
        (crash && rotation == Rotation::Strict, "a late success revives a dead grant", |_, world| {
            let revives = |process: &Process| is_replaying(world, process) && !world.is_lost();
            world.row.state == GrantState::Dead && world.processes.iter().any(revives)
        }),
        (doubt && rotation != Rotation::Never, "rotation_outcome_lost is counted", |_, world| ended_by_doubt(world)),
    ];
    let here = list.into_iter().filter(|(possible, ..)| *possible);
    here.map(|(_, name, condition)| Property::sometimes(name, condition)).collect()
}

fn is_replaying(world: &World, process: &Process) -> bool {
    let able = process.unread && process.life == Life::Up && process.link != Link::Away;
    able && process.spool.is_some_and(|answer| answer.fence > world.row.committed)
}

/// Why a grant may be dead at the provider: each cause is reached where it is listed, and nowhere else.
fn losses(engine: &Engine) -> Vec<Property<Engine>> {
    let Engine { rotation, bounds, .. } = *engine;
    let rotates = rotation != Rotation::Never;
    let (family, grace) = (rotation == Rotation::Family, rotation == Rotation::Grace);
    let away = bounds.crashes > 0 || bounds.pauses > 0 || bounds.outages > 0;
    // A name, whether it is possible here, that it happened, that it did not.
    macro_rules! loss {
        ($possible:expr, $name:literal, $loss:ident) => {
            if $possible {
                Property::sometimes($name, |_, world: &World| world.is_lost() && world.truth.loss == Some(Loss::$loss))
            } else {
                Property::always($name, |_, world: &World| !world.is_lost() || world.truth.loss != Some(Loss::$loss))
            }
        };
    }
    vec![
        loss!(rotates && bounds.losses > 0, "lost: the network ate the answer", AnswerLost),
        loss!(rotates && bounds.errors > 0, "lost: the provider acted, and answered with an error", AnswerUnclear),
        loss!(rotates && bounds.crashes > 0, "lost: died waiting for the answer", DiedWaiting),
        loss!(rotates && bounds.crashes > 0, "lost: died between the answer and its fsync", DiedBeforeFsync),
        loss!((family || grace) && bounds.pauses > 0, "lost: sent late, after a pause", LateSend),
        loss!(family && away, "lost: the holder of the answer was away", HolderAway),
        loss!(bounds.revocations > 0, "lost: revoked by the user", UserRevoked),
    ]
}
