//! What an onlooker who sees everything can say: what is lost and why, and which promise is broken.

use crate::Move;
use crate::around::{Event, Mood};
use crate::replica::Act;
use crate::rules::{Engine, Rotation};
use crate::world::{
    Broken, Ended, Fence, Glitch, GrantState, Life, Link, Loss, Process, Reply, Step, Token, Truth, Wire, World,
};

impl Truth {
    pub(crate) fn broke(&mut self, promise: Broken) {
        self.broken = self.broken.or(Some(promise));
    }

    /// A promise is broken for good: what comes after adds nothing.
    pub(crate) fn is_told(self) -> bool {
        self.broken.is_some() || self.loss == Some(Loss::Unexplained)
    }
}

impl World {
    /// The refresh tokens outside of the row that are ours, and whose each is.
    fn in_hand(&self) -> impl Iterator<Item = (Token, Fence)> {
        self.processes.iter().flat_map(|process| {
            let wire = process.flight.and_then(|flight| match flight.step {
                Step::Sent(Wire::Reply(Reply::Success(token))) => Some((token, flight.fence)),
                _ => None,
            });
            let answers = [process.held, process.spool].into_iter().flatten();
            answers.filter_map(|answer| Some((answer.token?, answer.fence))).chain(wire)
        })
    }

    fn has(&self, token: Token) -> bool {
        self.row.token == token || self.in_hand().any(|(other, _)| other == token)
    }

    /// Nothing that we hold works any more.
    pub(crate) fn is_lost(&self) -> bool {
        !self.provider.takes(self.row.token) && !self.in_hand().any(|(token, _)| self.provider.takes(token))
    }

    /// A replica holds a working token that would be stored, and that was not given up. A retry within a grace gives up
    /// nobody; if a pause holds it up until the grace is over, or the provider refuses it in error, the verdict comes
    /// before the holder does, whose return revives the grant.
    pub(crate) fn someone_knows_better(&self, engine: &Engine) -> bool {
        let known = self.truth.forfeited.max(self.row.committed);
        let wasted = self.truth.sent_late || self.provider.glitch != Glitch::Ahead;
        let missed = engine.rotation == Rotation::Grace && wasted;
        !missed && self.in_hand().any(|(token, fence)| fence > known && self.provider.takes(token))
    }

    /// Nothing is under way.
    pub(crate) fn is_settled(&self) -> bool {
        let quiet = |process: &Process| process.life == Life::Up && process.link == Link::Up && process.is_idle();
        self.processes.iter().all(quiet) && self.stray.is_none()
    }

    /// What is durable, or relied on, is in the store or in a spool.
    pub(crate) fn keeps_what_is_owed(&self) -> bool {
        let owed = self.truth.owed;
        let spooled = |process: &Process| process.spool.is_some_and(|answer| answer.fence >= owed);
        self.row.committed >= owed || self.processes.iter().any(spooled)
    }

    /// After `change` made `self` out of `before`: is the newest refresh token still ours, and if not, why?
    pub(crate) fn account_for_losses(&mut self, before: &World, change: Move) {
        if self.row.state == GrantState::Ending || self.ended != Ended::No {
            self.truth.loss = None;
            return;
        }
        self.truth.loss = match before.truth.loss {
            _ if self.provider.revoked && before.provider.revoked => before.truth.loss,
            Some(loss) if self.provider.revoked => Some(loss),
            None if self.provider.revoked => Some(who_revoked(before, change)),
            _ if self.has(self.provider.newest) => None,
            Some(loss) => Some(loss),
            None => Some(who_lost(before, change)),
        };
    }
}

fn who_revoked(before: &World, change: Move) -> Loss {
    let late = match change {
        Move::Around(Event::UserRevokes) => return Loss::UserRevoked,
        Move::Around(Event::Provider(who, _)) => before.processes[who].flight.is_some_and(|flight| flight.late),
        Move::Around(Event::ProviderOnStray(_)) => before.stray.is_some_and(|request| request.late),
        _ => return Loss::Unexplained,
    };
    let newest = before.provider.newest;
    let stored = (before.row.token == newest).then_some(before.row.committed);
    let held = before.in_hand().filter(|(token, _)| *token == newest).map(|(_, fence)| fence);
    if late {
        Loss::LateSend
    } else if stored.into_iter().chain(held).all(|fence| fence <= before.truth.forfeited) {
        Loss::HolderAway
    } else {
        Loss::Unexplained
    }
}

fn who_lost(before: &World, change: Move) -> Loss {
    match change {
        Move::Around(Event::AnswerLost(_)) => Loss::AnswerLost,
        Move::Around(Event::Provider(_, Mood::ActsAndFails)) => Loss::AnswerUnclear,
        Move::Around(Event::ProviderOnStray(_)) => match before.stray {
            Some(request) if request.orphan => Loss::DiedWaiting,
            _ => Loss::AnswerLost,
        },
        Move::Around(Event::Crash(who)) => match before.processes[who].held {
            Some(answer) if answer.token.is_some() => Loss::DiedBeforeFsync,
            _ => Loss::DiedWaiting,
        },
        Move::Of(_, Act::Commit | Act::CommitUnheard | Act::Replay) if before.truth.sent_late => Loss::LateSend,
        _ => Loss::Unexplained,
    }
}
