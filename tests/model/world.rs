//! What a state of the model is made of: the grant's row, two replicas, the provider, and what is left of the faults.

use std::hash::{Hash, Hasher};

/// Claims of a grant are counted; 0 is the deposit.
pub(crate) type Fence = u8;
/// Refresh tokens are numbered in the order in which the provider issues them; 0 is the deposit's.
pub(crate) type Token = u8;
/// One of the two replicas.
pub(crate) type Replica = usize;

/// Everything there is at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct World {
    pub(crate) row: Row,
    pub(crate) processes: [Process; 2],
    pub(crate) provider: Provider,
    /// A request whose sender no longer waits: it died, or gave up.
    pub(crate) stray: Option<Request>,
    pub(crate) ended: Ended,
    pub(crate) left: Bounds,
    pub(crate) truth: Truth,
}

/// The grant's row in the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Row {
    pub(crate) state: GrantState,
    pub(crate) access: Access,
    /// Whether a suspect grant's wait for its second answer is over.
    pub(crate) confirmation_due: bool,
    pub(crate) fence: Fence,
    /// The fence of the stored answer, which is also the generation of both tokens.
    pub(crate) committed: Fence,
    pub(crate) token: Token,
    pub(crate) lease: Option<Lease>,
    /// 0: none.
    pub(crate) doubted: Fence,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum GrantState {
    Active,
    Suspect,
    Dead,
    Ending,
}

/// How old the stored access token is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Access {
    Fresh,
    Due,
    /// Below what may be served, or reported as rejected.
    AtFloor,
}

/// Belongs to the row's fence. A lease that is over and still there is what "in doubt" means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Lease {
    pub(crate) owner: u8,
    pub(crate) span: Span,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Span {
    Running,
    /// Over; the provider's known grace, counted from the claim, is not.
    Over,
    /// So is the grace.
    BeyondGrace,
}

/// A replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Process {
    pub(crate) life: Life,
    pub(crate) link: Link,
    /// The one flight a process has for a grant.
    pub(crate) flight: Option<Flight>,
    /// An answer in memory, to be stored.
    pub(crate) held: Option<Answer>,
    /// The same on disk: outlives the process.
    pub(crate) spool: Option<Answer>,
    /// Restarted, and the spool is not replayed yet.
    pub(crate) unread: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Life {
    Up,
    /// Stops for longer than any lease, and goes on later as if nothing had been.
    Paused,
    Down,
}

/// Whether a replica reaches the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Link {
    Up,
    Away,
    /// For less than ten seconds: heartbeats may still be from before.
    Back,
}

/// A refresh under way in a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Flight {
    pub(crate) kind: Kind,
    pub(crate) step: Step,
    /// While judged: the row's. Then: its own.
    pub(crate) fence: Fence,
    /// `committed` when it was judged.
    pub(crate) committed: Fence,
    pub(crate) token: Token,
    /// Claimed while the grant was suspect: a second refusal.
    pub(crate) confirms: bool,
    /// Paused between its claim and its check, or while it waited for the answer.
    pub(crate) slept: bool,
    /// Paused between its check and its send.
    pub(crate) late: bool,
    /// Of a recovery: what the row was in doubt about.
    pub(crate) before: Option<Doubt>,
}

/// A doubt, as a row tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Doubt {
    pub(crate) fence: Fence,
    pub(crate) lease: Lease,
    pub(crate) doubted: Fence,
}

/// Which of the three claims.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// The access token is due.
    Due,
    /// The second question about a suspect grant.
    Confirm,
    /// The one retry of a row in doubt.
    Recover,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Step {
    Judged,
    Claimed,
    /// Found to be within five seconds of its claim.
    Checked,
    Sent(Wire),
    /// The provider refused our client secret: there is a second one.
    SecretRefused,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Wire {
    Request,
    Reply(Reply),
    Nothing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Reply {
    /// The refresh token to use from now on.
    Success(Token),
    InvalidGrant,
    InvalidClient,
    /// Not now: the request was not acted on.
    Later,
    /// An error that does not say whether it was.
    Unclear,
}

/// An answer that reached a replica, with what its write is guarded by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Answer {
    /// The new refresh token, or a refusal.
    pub(crate) token: Option<Token>,
    pub(crate) fence: Fence,
    pub(crate) committed: Fence,
    pub(crate) confirms: bool,
    pub(crate) recovers: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Request {
    pub(crate) fence: Fence,
    pub(crate) token: Token,
    pub(crate) late: bool,
    /// Its sender died, rather than gave up.
    pub(crate) orphan: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Provider {
    pub(crate) newest: Token,
    /// A bit for each replaced token that still works.
    pub(crate) in_grace: u16,
    /// The consent is gone: nothing works.
    pub(crate) revoked: bool,
    pub(crate) glitch: Glitch,
}

/// `invalid_grant` said in error, for a while that is shorter than the wait for a confirmation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Glitch {
    Ahead,
    Now,
    Past,
}

/// What the user did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Ended {
    No,
    Unlinked,
    /// By reauthorization; `harmed`: the new grant was written to by the old one's flight.
    Replaced {
        harmed: bool,
    },
}

/// How much may still happen: what makes the model finite.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Bounds {
    pub(crate) claims: u8,
    pub(crate) crashes: u8,
    pub(crate) pauses: u8,
    /// Times that one replica, or both, lose the store.
    pub(crate) outages: u8,
    /// Requests and answers that the network eats or delays.
    pub(crate) losses: u8,
    /// Commits whose acknowledgement is lost.
    pub(crate) unheard: u8,
    pub(crate) glitches: u8,
    /// Times that the provider refuses the client secret.
    pub(crate) refused_secrets: u8,
    /// Answers that are neither a token nor a refusal.
    pub(crate) errors: u8,
    /// The user takes the consent back at the provider.
    pub(crate) revocations: u8,
    /// Unlink or reauthorization.
    pub(crate) endings: u8,
}

/// What only an onlooker knows; no rule reads it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Truth {
    pub(crate) broken: Option<Broken>,
    /// Why the newest refresh token is not in our hands, or dead.
    pub(crate) loss: Option<Loss>,
    /// The newest answer that is durable, or that a caller relies on.
    pub(crate) owed: Fence,
    /// Claims up to this one had an owner that was truly known to know nothing.
    pub(crate) forfeited: Fence,
    /// A request was held up by a pause between its check and its send.
    pub(crate) sent_late: bool,
}

/// The first promise that was broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Broken {
    /// Promise P2: two redemptions in flight, and neither was held up by a pause between its check and its send.
    Overlap,
    /// Promise P2: a token that was just refreshed is refreshed again.
    NeedlessRedemption,
    /// Promise P3: an older answer over a newer one.
    Overwritten,
    /// Promise P4: a retry in doubt, neither held up by a pause nor refused in error, cost an access token that still served.
    DoubtedEarly,
    /// Promise P4: ended while a replica held a working token that would have been stored, and that nobody had given up.
    EndedInVain,
}

/// Every way in which the newest refresh token of a grant can be lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Loss {
    /// The network ate or delayed the answer.
    AnswerLost,
    /// The provider acted, and answered with an error.
    AnswerUnclear,
    /// The process died between its send and the answer.
    DiedWaiting,
    /// The process died between the answer and its fsync.
    DiedBeforeFsync,
    /// Replaced through a request that was held up by a pause between its check and its send.
    LateSend,
    /// Reused because the replica that held the answer was away for longer than the limit.
    HolderAway,
    /// The user, at the provider.
    UserRevoked,
    /// None of these: the rules are at fault.
    Unexplained,
}

impl Bounds {
    /// So many claims, and no faults.
    pub(crate) const fn of(claims: u8) -> Self {
        Self {
            claims,
            crashes: 0,
            pauses: 0,
            outages: 0,
            losses: 0,
            unheard: 0,
            glitches: 0,
            refused_secrets: 0,
            errors: 0,
            revocations: 0,
            endings: 0,
        }
    }
}

impl World {
    /// One linked grant whose access token is due, and two idle replicas.
    pub(crate) fn begin(left: Bounds) -> Self {
        let process = Process { life: Life::Up, link: Link::Up, flight: None, held: None, spool: None, unread: false };
        Self {
            row: Row {
                state: GrantState::Active,
                access: Access::Due,
                confirmation_due: false,
                fence: 0,
                committed: 0,
                token: 0,
                lease: None,
                doubted: 0,
            },
            processes: [process; 2],
            provider: Provider { newest: 0, in_grace: 0, revoked: false, glitch: Glitch::Ahead },
            stray: None,
            ended: Ended::No,
            left,
            truth: Truth::default(),
        }
    }

    /// The one of two mirror images that stands for both.
    fn canonical(mut self) -> Self {
        if self.processes[1] < self.processes[0] {
            self.processes.swap(0, 1);
            let flights = self.processes.iter_mut().filter_map(|process| process.flight.as_mut());
            let before = flights.filter_map(|flight| flight.before.as_mut()).map(|doubt| &mut doubt.lease);
            for lease in before.chain(&mut self.row.lease) {
                lease.owner = 1 - lease.owner;
            }
        }
        self
    }
}

/// The replicas are alike: two worlds that differ only in their names are one state to the checker, which knows states
/// by their hash.
impl Hash for World {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        let World { row, processes, provider, stray, ended, left, truth } = self.canonical();
        (row, processes, provider, stray, ended, left, truth).hash(hasher);
    }
}

impl Process {
    /// Has an answer, and the store to put it in: seconds at most, however long the model lets it take.
    pub(crate) fn is_about_to_store(&self) -> bool {
        let answered = self.flight.is_some_and(|flight| matches!(flight.step, Step::Sent(Wire::Reply(_))));
        self.life == Life::Up && self.link != Link::Away && (self.held.is_some() || self.unread || answered)
    }

    /// Does nothing, knows nothing, and would say so.
    pub(crate) fn is_idle(&self) -> bool {
        self.flight.is_none() && self.held.is_none() && self.spool.is_none()
    }
}

impl Provider {
    /// Whether `token` would be redeemed.
    pub(crate) fn takes(self, token: Token) -> bool {
        !self.revoked && (token == self.newest || self.in_grace & (1 << token) != 0)
    }
}

impl Flight {
    /// Whether a request of it is on its way, or the answer to it.
    pub(crate) fn is_on_the_wire(&self) -> bool {
        matches!(self.step, Step::Sent(Wire::Request | Wire::Reply(_)))
    }
}
