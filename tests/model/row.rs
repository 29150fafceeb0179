//! The guarded statements: what the store does with the grant's row. Each is one transaction.

use crate::rules::{Engine, Guard, Rotation};
use crate::world::{
    Access, Answer, Broken, Doubt, Ended, Fence, Flight, Glitch, GrantState, Kind, Lease, Loss, Replica, Reply, Row,
    Span, Token, World,
};

impl Row {
    /// Serves gets.
    pub(crate) fn is_served(&self) -> bool {
        matches!(self.state, GrantState::Active | GrantState::Suspect)
    }

    /// A request was sent, perhaps, and its time is over.
    pub(crate) fn is_in_doubt(&self) -> bool {
        self.lease.is_some_and(|lease| lease.span != Span::Running)
    }

    /// Whether the lease lets a claim of this kind pass.
    pub(crate) fn is_free_for(&self, engine: &Engine, kind: Kind) -> bool {
        match self.lease {
            None => kind != Kind::Recover,
            Some(Lease { span: Span::Running, .. }) => !engine.has(Guard::ClaimLease) && kind != Kind::Recover,
            Some(_) => kind == Kind::Recover || !engine.has(Guard::ClaimNotInDoubt),
        }
    }

    /// The claim: counts the fence up and takes the lease. Whether a row was hit.
    pub(crate) fn claim(&mut self, engine: &Engine, judged: &Flight, owner: Replica) -> bool {
        let fence = self.fence == judged.fence || !engine.has(Guard::ClaimFence);
        let generation = self.committed == judged.committed || !engine.has(Guard::ClaimGeneration);
        let hit = self.is_served() && self.is_free_for(engine, judged.kind) && fence && generation;
        if hit {
            if judged.kind == Kind::Recover && self.doubted == 0 {
                self.doubted = self.fence;
            }
            self.take(owner);
        }
        hit
    }

    /// The renewal before a second request.
    pub(crate) fn renew(&mut self, engine: &Engine, claim: &Flight, owner: Replica) -> bool {
        let mine = self.fence == claim.fence || !engine.has(Guard::RenewalFence);
        let unchanged = self.committed == claim.committed || !engine.has(Guard::RenewalUnchanged);
        let in_time = !self.is_in_doubt() || !engine.has(Guard::RenewalInTime);
        let hit = self.is_served() && mine && unchanged && in_time;
        if hit {
            self.take(owner);
        }
        hit
    }

    fn take(&mut self, owner: Replica) {
        self.fence += 1;
        self.lease = Some(Lease { owner: u8::from(owner == 1), span: Span::Running });
    }

    /// A claim came to neither a token nor a refusal.
    pub(crate) fn put_off(&mut self, engine: &Engine, claim: &Flight, reply: Reply) {
        if self.fence != claim.fence {
            return;
        }
        let harmless = engine.rotation == Rotation::Never;
        let Some(lease) = self.lease else { return };
        // By the clock, to which a pause is no different.
        let in_time = lease.span == Span::Running;
        if reply == Reply::Unclear && !harmless && engine.has(Guard::UnclearIsDoubt) {
            let span = if self.doubted == 0 && in_time { Span::Over } else { Span::BeyondGrace };
            self.lease = Some(Lease { span, ..lease });
            return;
        }
        match claim.before.filter(|before| before.fence > self.committed && !harmless) {
            Some(before) if engine.has(Guard::LaterKeepsDoubt) => {
                self.doubt_again(before, in_time);
            }
            _ => self.lease = None,
        }
    }

    /// Makes the row what it was before a recovery's claim.
    fn doubt_again(&mut self, before: Doubt, in_time: bool) {
        let span = if in_time { before.lease.span } else { Span::BeyondGrace };
        self.lease = Some(Lease { span, ..before.lease });
        self.doubted = before.doubted;
    }

    /// Gives an unsent claim back.
    pub(crate) fn release(&mut self, engine: &Engine, claim: &Flight) {
        if self.fence != claim.fence && engine.has(Guard::ReleaseFence) {
            return;
        }
        match claim.before.filter(|before| before.fence > self.committed) {
            // It was given back because time had passed.
            Some(before) if engine.has(Guard::ReleaseKeepsDoubt) => self.doubt_again(before, false),
            _ => self.lease = None,
        }
    }
}

impl World {
    /// Stores an answer, or drops it.
    pub(crate) fn store(&mut self, engine: &Engine, answer: Answer) {
        if let (Ended::Replaced { harmed }, false) = (&mut self.ended, engine.has(Guard::OwnGrant)) {
            *harmed = true;
            return;
        }
        match answer.token {
            Some(token) => self.store_success(engine, answer.fence, token),
            None => self.store_verdict(engine, answer),
        }
    }

    fn store_success(&mut self, engine: &Engine, fence: Fence, token: Token) {
        let row = &mut self.row;
        let older = row.committed >= fence;
        let too_late = row.state == GrantState::Dead && !engine.has(Guard::SuccessRevives);
        if too_late || (older && engine.has(Guard::SuccessNewer)) {
            return;
        }
        if row.committed > fence {
            self.truth.broke(Broken::Overwritten);
        }
        if row.state != GrantState::Ending || !engine.has(Guard::EndingStays) {
            row.state = GrantState::Active;
        }
        if row.fence == fence || !engine.has(Guard::SuccessOwnLease) {
            row.lease = None;
        }
        if row.fence == fence || !engine.has(Guard::SuccessOwnDoubt) {
            row.doubted = 0;
        }
        row.token = token;
        row.committed = fence;
        row.access = Access::Fresh;
        row.confirmation_due = false;
    }

    fn store_verdict(&mut self, engine: &Engine, answer: Answer) {
        let row = &mut self.row;
        let mine = row.fence == answer.fence || !engine.has(Guard::VerdictFence);
        let unchanged = row.committed == answer.committed || !engine.has(Guard::VerdictUnchanged);
        let open = row.is_served() || (row.state == GrantState::Ending && !engine.has(Guard::EndingStays));
        if mine && !unchanged {
            row.lease = None;
            row.doubted = 0;
        }
        if !(mine && unchanged && open) {
            return;
        }
        let second = if engine.has(Guard::VerdictOnce) { answer.confirms } else { row.state == GrantState::Suspect };
        let state = if second || !engine.has(Guard::TwoAnswers) { GrantState::Dead } else { GrantState::Suspect };
        let doubtful = row.doubted > row.committed || self.truth.loss == Some(Loss::AnswerUnclear);
        let by_doubt =
            doubtful && !self.truth.sent_late && !self.provider.revoked && self.provider.glitch == Glitch::Ahead;
        if by_doubt && row.state == GrantState::Active && row.access != Access::AtFloor {
            self.truth.broke(Broken::DoubtedEarly);
        }
        row.lease = None;
        row.confirmation_due = false;
        row.state = state;
        if state == GrantState::Dead && self.someone_knows_better(engine) {
            self.truth.broke(Broken::EndedInVain);
        }
    }
}
