//! What happens around the replicas: time, faults, the network, the provider, the user.

use crate::rules::{Engine, Guard, Rotation};
use crate::world::{
    Access, Ended, Flight, Glitch, GrantState, Lease, Life, Link, Process, Replica, Reply, Request, Span, Step, Wire,
    World,
};

/// An event that no replica decides on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    AccessTokenAges,
    LeaseEnds,
    /// The known grace, as the row tells it.
    GraceEnds,
    /// The provider forgets replaced tokens.
    ProviderForgets,
    ConfirmationDue,
    Crash(Replica),
    Restart(Replica),
    Pause(Replica),
    Resume(Replica),
    /// These replicas lose the store.
    StoreGoes([bool; 2]),
    StoreReturns,
    StoreSettles,
    RequestLost(Replica),
    AnswerLost(Replica),
    StrayLost,
    /// The provider acts on this replica's request.
    Provider(Replica, Mood),
    ProviderOnStray(Mood),
    UserRevokes,
    Unlink,
    Reauthorize,
}

/// How the provider takes a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mood {
    /// As it should.
    True,
    /// Says `invalid_grant` in error.
    Glitch,
    /// Does not like the client secret.
    SecretRefused,
    /// Has no time.
    Busy,
    /// Fails before it acts.
    Fails,
    /// Acts as it should, and then fails.
    ActsAndFails,
}

/// All events, in a fixed order.
pub(crate) const EVENTS: [Event; 39] = [
    Event::AccessTokenAges,
    Event::LeaseEnds,
    Event::GraceEnds,
    Event::ProviderForgets,
    Event::ConfirmationDue,
    Event::Crash(0),
    Event::Crash(1),
    Event::Restart(0),
    Event::Restart(1),
    Event::Pause(0),
    Event::Pause(1),
    Event::Resume(0),
    Event::Resume(1),
    Event::StoreGoes([true, false]),
    Event::StoreGoes([false, true]),
    Event::StoreGoes([true, true]),
    Event::StoreReturns,
    Event::StoreSettles,
    Event::RequestLost(0),
    Event::RequestLost(1),
    Event::AnswerLost(0),
    Event::AnswerLost(1),
    Event::StrayLost,
    Event::Provider(0, Mood::True),
    Event::Provider(1, Mood::True),
    Event::Provider(0, Mood::Glitch),
    Event::Provider(1, Mood::Glitch),
    Event::Provider(0, Mood::SecretRefused),
    Event::Provider(1, Mood::SecretRefused),
    Event::Provider(0, Mood::Busy),
    Event::Provider(1, Mood::Busy),
    Event::Provider(0, Mood::Fails),
    Event::Provider(1, Mood::Fails),
    Event::Provider(0, Mood::ActsAndFails),
    Event::Provider(1, Mood::ActsAndFails),
    Event::ProviderOnStray(Mood::True),
    Event::UserRevokes,
    Event::Unlink,
    Event::Reauthorize,
];

impl World {
    /// Lets it happen, if it can.
    pub(crate) fn happen(&mut self, engine: &Engine, event: Event) -> Option<()> {
        match event {
            Event::AccessTokenAges => self.age(),
            Event::LeaseEnds => self.end_lease(),
            Event::GraceEnds => self.end_grace(engine),
            Event::ProviderForgets => self.forget(),
            Event::ConfirmationDue => self.confirmation_due(),
            Event::Crash(who) => self.crash(who),
            Event::Restart(who) => self.restart(engine, who),
            Event::Pause(who) => self.pause(who),
            Event::Resume(who) => self.resume(who),
            Event::StoreGoes(from) => self.cut(from),
            Event::StoreReturns => self.relink(Link::Away, Link::Back),
            Event::StoreSettles => self.settle(),
            Event::RequestLost(who) => self.lose(who, Wire::Request),
            Event::AnswerLost(who) => match self.processes[who].flight?.step {
                Step::Sent(wire @ Wire::Reply(_)) => self.lose(who, wire),
                _ => None,
            },
            Event::StrayLost => self.stray.take().map(|_| ()),
            Event::Provider(who, mood) => self.provider_answers(engine, who, mood),
            Event::ProviderOnStray(mood) => {
                let request = self.stray.take()?;
                self.redeem(engine, request.token, mood).map(|_| ())
            }
            Event::UserRevokes => {
                self.left.revocations = self.left.revocations.checked_sub(1)?;
                self.provider.revoked = true;
                Some(())
            }
            Event::Unlink => self.end(Ended::Unlinked),
            Event::Reauthorize => self.end(Ended::Replaced { harmed: false }),
        }
    }

    fn age(&mut self) -> Option<()> {
        if self.left.claims == 0 {
            return None;
        }
        self.row.access = match self.row.access {
            Access::Fresh => Access::Due,
            Access::Due => Access::AtFloor,
            Access::AtFloor => return None,
        };
        Some(())
    }

    /// All limits of a request together are shorter than the lease: only a process that is paused, or gone, or whose
    /// request is answered, has its lease end. Only a request sent after a pause may be on its way then.
    fn end_lease(&mut self) -> Option<()> {
        let lease = self.row.lease.filter(|lease| lease.span == Span::Running)?;
        let (owner, fence) = (&self.processes[usize::from(lease.owner)], self.row.fence);
        if let Some(flight) = owner.flight.filter(|flight| flight.fence == fence && flight.step != Step::Judged) {
            let pending = flight.step == Step::Sent(Wire::Request) && !flight.late;
            if owner.life != Life::Paused || pending {
                return None;
            }
        }
        if owner.is_about_to_store() {
            return None;
        }
        if self.stray.is_some_and(|request| request.fence == fence && !request.late) {
            return None;
        }
        self.row.lease = Some(Lease { span: Span::Over, ..lease });
        Some(())
    }

    fn end_grace(&mut self, engine: &Engine) -> Option<()> {
        let lease = self.row.lease.as_mut().filter(|lease| lease.span == Span::Over)?;
        if engine.rotation != Rotation::Grace {
            return None;
        }
        lease.span = Span::BeyondGrace;
        Some(())
    }

    /// Not before the row says so, which counts from the claim, the provider from the redemption; but a retry within the
    /// grace may be held up by a pause until the grace of the first redemption is over.
    fn forget(&mut self) -> Option<()> {
        let known = self.row.lease.is_some_and(|lease| {
            let owner = &self.processes[usize::from(lease.owner)];
            let unsent = |flight: Flight| matches!(flight.step, Step::Claimed | Step::Checked);
            let held_up = owner.life == Life::Paused && owner.flight.is_some_and(unsent);
            let retried = self.row.doubted != 0 && (held_up || lease.span == Span::Over);
            lease.span != Span::BeyondGrace && !retried
        });
        if self.provider.in_grace == 0 || known {
            return None;
        }
        self.provider.in_grace = 0;
        Some(())
    }

    fn confirmation_due(&mut self) -> Option<()> {
        if self.processes.iter().any(Process::is_about_to_store) {
            return None;
        }
        if self.row.state != GrantState::Suspect || self.row.confirmation_due {
            return None;
        }
        self.row.confirmation_due = true;
        if self.provider.glitch == Glitch::Now {
            self.provider.glitch = Glitch::Past;
        }
        Some(())
    }

    fn crash(&mut self, who: Replica) -> Option<()> {
        let process = &mut self.processes[who];
        if process.life == Life::Down || (process.is_idle() && self.row.lease.is_none()) {
            return None;
        }
        self.left.crashes = self.left.crashes.checked_sub(1)?;
        if let Some(Flight { step: Step::Sent(Wire::Request), fence, token, late, .. }) = process.flight {
            self.stray = self.stray.or(Some(Request { fence, token, late, orphan: true }));
        }
        process.life = Life::Down;
        process.flight = None;
        process.held = None;
        process.unread = process.spool.is_some();
        Some(())
    }

    fn restart(&mut self, engine: &Engine, who: Replica) -> Option<()> {
        if self.processes[who].life != Life::Down {
            return None;
        }
        self.processes[who].life = Life::Up;
        let left_over = |lease: &&mut Lease| usize::from(lease.owner) == who && lease.span == Span::Running;
        if let (Some(lease), false) = (self.row.lease.as_mut().filter(left_over), engine.has(Guard::LeaseOutlivesOwner))
        {
            lease.span = Span::Over;
        }
        Some(())
    }

    fn pause(&mut self, who: Replica) -> Option<()> {
        let process = &mut self.processes[who];
        if process.life != Life::Up || process.is_idle() {
            return None;
        }
        self.left.pauses = self.left.pauses.checked_sub(1)?;
        process.life = Life::Paused;
        if let Some(flight) = &mut process.flight {
            flight.slept |= matches!(flight.step, Step::Claimed | Step::Sent(_));
            flight.late |= flight.step == Step::Checked;
        }
        Some(())
    }

    fn resume(&mut self, who: Replica) -> Option<()> {
        if self.processes[who].life != Life::Paused {
            return None;
        }
        self.processes[who].life = Life::Up;
        Some(())
    }

    fn cut(&mut self, from: [bool; 2]) -> Option<()> {
        if self.processes.iter().any(|process| process.link != Link::Up) {
            return None;
        }
        self.left.outages = self.left.outages.checked_sub(1)?;
        for (process, cut) in self.processes.iter_mut().zip(from) {
            if cut {
                process.link = Link::Away;
            }
        }
        Some(())
    }

    fn relink(&mut self, from: Link, to: Link) -> Option<()> {
        let mut moved = None;
        for process in self.processes.iter_mut().filter(|process| process.link == from) {
            process.link = to;
            moved = Some(());
        }
        moved
    }

    /// Ten seconds after its return: who lives has stored what it held, and said that it lives.
    fn settle(&mut self) -> Option<()> {
        let busy = |process: &Process| {
            process.link == Link::Back && process.life == Life::Up && (process.held.is_some() || process.unread)
        };
        if self.processes.iter().any(busy) {
            return None;
        }
        self.relink(Link::Back, Link::Up)
    }

    fn lose(&mut self, who: Replica, wire: Wire) -> Option<()> {
        let flight = self.processes[who].flight.as_mut().filter(|flight| flight.step == Step::Sent(wire))?;
        self.left.losses = self.left.losses.checked_sub(1)?;
        flight.step = Step::Sent(Wire::Nothing);
        Some(())
    }

    fn provider_answers(&mut self, engine: &Engine, who: Replica, mood: Mood) -> Option<()> {
        let flight = self.processes[who].flight.filter(|flight| flight.step == Step::Sent(Wire::Request))?;
        let reply = self.redeem(engine, flight.token, mood)?;
        self.processes[who].flight = Some(Flight { step: Step::Sent(Wire::Reply(reply)), ..flight });
        Some(())
    }

    fn redeem(&mut self, engine: &Engine, token: u8, mood: Mood) -> Option<Reply> {
        match mood {
            Mood::True => {}
            Mood::Glitch => {
                match self.provider.glitch {
                    Glitch::Ahead => self.left.glitches = self.left.glitches.checked_sub(1)?,
                    Glitch::Now => {}
                    Glitch::Past => return None,
                }
                self.provider.glitch = Glitch::Now;
                return Some(Reply::InvalidGrant);
            }
            Mood::SecretRefused => {
                self.left.refused_secrets = self.left.refused_secrets.checked_sub(1)?;
                return Some(Reply::InvalidClient);
            }
            Mood::Busy | Mood::Fails | Mood::ActsAndFails => {
                self.left.errors = self.left.errors.checked_sub(1)?;
                if mood == Mood::ActsAndFails {
                    self.redeem(engine, token, Mood::True)?;
                }
                return Some(if mood == Mood::Busy { Reply::Later } else { Reply::Unclear });
            }
        }
        let provider = &mut self.provider;
        if !provider.takes(token) {
            provider.revoked |= engine.rotation == Rotation::Family;
            return Some(Reply::InvalidGrant);
        }
        match engine.rotation {
            Rotation::Never => return Some(Reply::Success(token)),
            Rotation::Grace => provider.in_grace |= 1 << provider.newest,
            Rotation::Strict | Rotation::Family => {}
        }
        provider.newest += 1;
        Some(Reply::Success(provider.newest))
    }

    fn end(&mut self, ended: Ended) -> Option<()> {
        self.left.endings = self.left.endings.checked_sub(1)?;
        self.row.state = GrantState::Ending;
        self.ended = ended;
        Some(())
    }
}
