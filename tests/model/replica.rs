//! What a replica does, one step at a time: between any two of them it may be paused or killed.

use crate::rules::{Engine, Guard, Rotation};
use crate::world::{
    Access, Answer, Broken, Doubt, Flight, GrantState, Kind, Life, Link, Process, Replica, Reply, Request, Span, Step,
    Wire, World,
};

/// A step of a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Act {
    /// Reads the row and finds that it is to be claimed.
    Judge(Kind),
    Claim,
    /// Five seconds since the claim? Goes on, or releases.
    Check,
    Send,
    /// Reads the provider's answer from its socket.
    Receive,
    /// Stops waiting for it, or for the store that would renew its claim.
    GiveUp,
    /// Claims anew for a request with the second client secret.
    Renew,
    /// Appends the answer to the spool and syncs it.
    Spool,
    /// Gives a waiting caller the new access token before it is in the store.
    Rely,
    Commit,
    /// Commits, and does not hear of it.
    CommitUnheard,
    /// Reads its spool after a restart, and commits what is there.
    Replay,
}

impl Process {
    /// The steps that it may be about to take.
    pub(crate) fn acts(&self) -> impl Iterator<Item = Act> {
        let up = self.life == Life::Up;
        let flies: &[Act] = match self.flight.map(|flight| flight.step) {
            _ if !up => &[],
            None => &[Act::Judge(Kind::Due), Act::Judge(Kind::Confirm), Act::Judge(Kind::Recover)],
            Some(Step::Judged) => &[Act::Claim],
            Some(Step::Claimed) => &[Act::Check],
            Some(Step::Checked) => &[Act::Send],
            Some(Step::Sent(_)) => &[Act::Receive, Act::GiveUp],
            Some(Step::SecretRefused) => &[Act::Renew, Act::GiveUp, Act::Send],
        };
        let holds: &[Act] = match self.held {
            Some(_) if up => &[Act::Spool, Act::Rely, Act::Commit, Act::CommitUnheard],
            _ => &[],
        };
        let unread: &[Act] = if up && self.unread { &[Act::Replay] } else { &[] };
        flies.iter().chain(holds).chain(unread).copied()
    }
}

impl World {
    /// Takes the step, if the replica can.
    pub(crate) fn act(&mut self, engine: &Engine, me: Replica, act: Act) -> Option<()> {
        if self.processes[me].life != Life::Up {
            return None;
        }
        match act {
            Act::Judge(kind) => self.judge(engine, me, kind),
            Act::Claim => self.claim(engine, me),
            Act::Check => self.check(engine, me),
            Act::Send => self.send(engine, me),
            Act::Receive => self.receive(engine, me),
            Act::GiveUp => self.give_up(engine, me),
            Act::Renew => self.renew(engine, me),
            Act::Spool => self.spool(me),
            Act::Rely => self.rely(engine, me),
            Act::Commit => self.commit(engine, me, true),
            Act::CommitUnheard => self.commit(engine, me, false),
            Act::Replay => self.replay(engine, me),
        }
    }

    fn judge(&mut self, engine: &Engine, me: Replica, kind: Kind) -> Option<()> {
        let (row, process) = (self.row, self.processes[me]);
        let wanted = match kind {
            Kind::Due => row.state == GrantState::Active && row.access >= Access::Due,
            Kind::Confirm => {
                row.state == GrantState::Suspect && (row.confirmation_due || !engine.has(Guard::ConfirmLater))
            }
            Kind::Recover => row.is_served() && self.may_recover(engine, me),
        };
        let knows = (process.held.is_some() && engine.has(Guard::FlightOutranksLease))
            || (process.unread && engine.has(Guard::ReplayFirst));
        let able = process.flight.is_none() && process.link != Link::Away && self.left.claims > 0;
        if !(wanted && able && !knows && row.is_free_for(engine, kind)) {
            return None;
        }
        self.processes[me].flight = Some(Flight {
            kind,
            step: Step::Judged,
            fence: row.fence,
            committed: row.committed,
            token: 0,
            confirms: false,
            slept: false,
            late: false,
            before: None,
        });
        Some(())
    }

    fn may_recover(&self, engine: &Engine, me: Replica) -> bool {
        let Some(lease) = self.row.lease.filter(|lease| lease.span != Span::Running) else { return false };
        if self.row.access == Access::Fresh && engine.has(Guard::RecoveryDue) {
            return false;
        }
        let first = self.row.doubted == 0 || !engine.has(Guard::RecoveryOnceInGrace);
        match engine.rotation {
            Rotation::Never => return true,
            Rotation::Grace if lease.span == Span::Over && first => return true,
            _ => {}
        }
        let owner = usize::from(lease.owner);
        let at_floor = self.row.access == Access::AtFloor || !engine.has(Guard::RecoveryAtFloor);
        let silent = owner == me || self.processes[owner].is_silent() || !engine.has(Guard::RecoveryOwner);
        let settled = self.processes[me].link == Link::Up || !engine.has(Guard::RecoverySettled);
        at_floor && silent && settled
    }

    /// What the silence of the row's owner, as `me` sees it, truly says.
    fn owner_knows_nothing(&self, me: Replica) -> bool {
        let Some(lease) = self.row.lease else { return false };
        let (owner, process) = (usize::from(lease.owner), self.processes[me]);
        if owner == me { process.is_idle() } else { self.processes[owner].is_silent() && process.link == Link::Up }
    }

    fn claim(&mut self, engine: &Engine, me: Replica) -> Option<()> {
        let judged = self.processes[me].flight.filter(|flight| flight.step == Step::Judged)?;
        self.processes[me].flight = None;
        if self.processes[me].link == Link::Away || self.left.claims == 0 {
            return Some(());
        }
        let before = self.row;
        let recovers = judged.kind == Kind::Recover;
        if recovers && engine.has(Guard::RecoveryInClaim) && !self.may_recover(engine, me) {
            return Some(());
        }
        let forfeits = recovers && self.owner_knows_nothing(me);
        if !self.row.claim(engine, &judged, me) {
            return Some(());
        }
        self.left.claims -= 1;
        if before.access == Access::Fresh && before.state == GrantState::Active {
            self.truth.broke(Broken::NeedlessRedemption);
        }
        if forfeits {
            self.truth.forfeited = judged.fence;
        }
        self.processes[me].flight = Some(Flight {
            step: Step::Claimed,
            fence: self.row.fence,
            committed: self.row.committed,
            token: self.row.token,
            confirms: before.state == GrantState::Suspect,
            before: before.lease.filter(|_| recovers).map(|lease| Doubt {
                fence: before.fence,
                lease,
                doubted: before.doubted,
            }),
            ..judged
        });
        Some(())
    }

    fn check(&mut self, engine: &Engine, me: Replica) -> Option<()> {
        let process = &mut self.processes[me];
        let flight = process.flight.as_mut().filter(|flight| flight.step == Step::Claimed)?;
        if !flight.slept || !engine.has(Guard::SendSoon) {
            flight.step = Step::Checked;
            return Some(());
        }
        let claim = *flight;
        process.flight = None;
        if process.link != Link::Away {
            self.row.release(engine, &claim);
        }
        Some(())
    }

    fn send(&mut self, engine: &Engine, me: Replica) -> Option<()> {
        let unclaimed = |step| step == Step::SecretRefused && !engine.has(Guard::SecondClaim);
        let flight = self.processes[me].flight.filter(|it| it.step == Step::Checked || unclaimed(it.step))?;
        let other = &self.processes[1 - me];
        let meets = other.flight.filter(|other_flight| {
            matches!(other_flight.step, Step::Sent(Wire::Request))
                || (other_flight.is_on_the_wire() && other.life == Life::Up && !other_flight.slept)
        });
        let excused = flight.late
            || self.stray.is_some_and(|request| request.late)
            || meets.is_some_and(|other_flight| other_flight.late);
        if (meets.is_some() || self.stray.is_some()) && !excused {
            self.truth.broke(Broken::Overlap);
        }
        self.truth.sent_late |= flight.late;
        self.processes[me].flight = Some(Flight { step: Step::Sent(Wire::Request), ..flight });
        Some(())
    }

    fn receive(&mut self, engine: &Engine, me: Replica) -> Option<()> {
        let process = &mut self.processes[me];
        let flight = process.flight?;
        let Step::Sent(Wire::Reply(reply)) = flight.step else { return None };
        let token = match reply {
            Reply::Success(token) => Some(token),
            Reply::InvalidGrant => None,
            Reply::InvalidClient => {
                process.flight = Some(Flight { step: Step::SecretRefused, late: false, ..flight });
                return Some(());
            }
            Reply::Later | Reply::Unclear => {
                process.flight = None;
                if process.link != Link::Away {
                    self.row.put_off(engine, &flight, reply);
                }
                return Some(());
            }
        };
        if process.held.is_some() {
            return None;
        }
        let Flight { fence, committed, confirms, .. } = flight;
        let recovers = flight.kind == Kind::Recover;
        process.held = Some(Answer { token, fence, committed, confirms, recovers });
        process.flight = None;
        Some(())
    }

    fn give_up(&mut self, engine: &Engine, me: Replica) -> Option<()> {
        let flight = self.processes[me].flight?;
        match flight.step {
            Step::SecretRefused if self.processes[me].link == Link::Away => {}
            Step::Sent(Wire::Nothing) => {}
            Step::Sent(Wire::Request) if self.stray.is_none() && self.left.losses > 0 => {
                self.left.losses -= 1;
                let Flight { fence, token, late, .. } = flight;
                self.stray = Some(Request { fence, token, late, orphan: false });
            }
            _ => return None,
        }
        self.processes[me].flight = None;
        if !engine.has(Guard::UnansweredKeepsLease) && self.row.fence == flight.fence {
            self.row.lease = None;
        }
        Some(())
    }

    fn renew(&mut self, engine: &Engine, me: Replica) -> Option<()> {
        let process = &mut self.processes[me];
        let flight = process.flight.filter(|flight| flight.step == Step::SecretRefused)?;
        if process.link == Link::Away || self.left.claims == 0 {
            return None;
        }
        process.flight = None;
        let fresh = self.row.access == Access::Fresh;
        if !self.row.renew(engine, &flight, me) {
            self.row.release(engine, &flight);
            return Some(());
        }
        if fresh {
            self.truth.broke(Broken::NeedlessRedemption);
        }
        self.left.claims -= 1;
        let (fence, committed, token) = (self.row.fence, self.row.committed, self.row.token);
        let step = Step::Claimed;
        let renewed = Flight { step, fence, committed, token, slept: false, late: false, ..flight };
        self.processes[me].flight = Some(renewed);
        Some(())
    }

    fn spool(&mut self, me: Replica) -> Option<()> {
        let process = &mut self.processes[me];
        let answer = process.held.filter(|answer| answer.token.is_some() && process.spool.is_none())?;
        process.spool = Some(answer);
        self.truth.owed = self.truth.owed.max(answer.fence);
        Some(())
    }

    /// With the guard there is nothing to see here: what is in the spool is owed already.
    fn rely(&mut self, engine: &Engine, me: Replica) -> Option<()> {
        let process = &self.processes[me];
        let answer = process.held.filter(|answer| answer.token.is_some() && process.spool.is_none())?;
        if engine.has(Guard::SpoolBeforeRely) {
            return None;
        }
        self.truth.owed = self.truth.owed.max(answer.fence);
        Some(())
    }

    fn commit(&mut self, engine: &Engine, me: Replica, heard: bool) -> Option<()> {
        let Process { link, held, .. } = self.processes[me];
        let answer = held.filter(|_| link != Link::Away)?;
        if !heard {
            self.left.unheard = self.left.unheard.checked_sub(1)?;
        }
        self.store(engine, answer);
        if heard {
            self.processes[me].held = None;
            if self.processes[me].spool == Some(answer) {
                self.processes[me].spool = None;
                self.processes[me].unread = false;
            }
        }
        Some(())
    }

    fn replay(&mut self, engine: &Engine, me: Replica) -> Option<()> {
        let Process { link, spool, unread, .. } = self.processes[me];
        let answer = spool.filter(|_| unread && link != Link::Away)?;
        self.store(engine, answer);
        self.processes[me].spool = None;
        self.processes[me].unread = false;
        Some(())
    }
}

impl Process {
    /// Its heartbeat is stale.
    pub(crate) fn is_silent(&self) -> bool {
        self.life != Life::Up || self.link != Link::Up
    }
}
