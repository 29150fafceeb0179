//! The refresh engine as a model whose every order of events is explored: what ARCHITECTURE.md says about refreshing
//! rests on it.
//!
//! Modelled: one grant's row, with the statements that guard it ([`row`]); two replicas, each with at most one flight, an
//! answer in memory and a spool on disk ([`replica`]); and around them ([`around`]) a provider of one of four kinds
//! ([`rules::Rotation`]), the network, the store, and the user. A replica may be killed or paused between any two of its
//! steps; a paused one goes on after its lease as if nothing had been. The store leaves one replica, or both, and comes
//! back. Requests and answers are lost or late; so are the acknowledgements of commits. The provider refuses in error,
//! dislikes the client secret, or answers with an error, having acted or not. The user unlinks, reauthorizes, or revokes at the provider.
//!
//! Time is not counted: what is certain about it is an order. A lease does not end while a live process waits for its
//! answer, or is about to store it (all limits of a request are shorter than the lease, a commit takes seconds at most).
//! A grace, as the row tells it, is over before it is at the provider. The wait for a second answer is longer than an
//! error of the provider lasts. All else may take any time: "30 s" and "10 min" of a stale heartbeat are the same here,
//! and change only how often an owner that lives is given up.
//!
//! A grace is taken at its worst: a token replaced within it works until the grace is over, then only the newest does.
//!
//! Bounds: three or four claims, one or two of each fault, by configuration ([`holds`]); each is explored to its end.
//! The replicas are alike, so that worlds that differ only in their names count once.
//!
//! Not modelled: the budget, breaker, backoff and freeze (they only delay); revocation at the provider after unlink; the
//! cache and its read lease; damage to a spool or a disk; a provider that acts on a request after its lease.
//!
//! [`holds`] asserts the promises ([`properties`]) with every guard in place, that nothing in them is vacuous, and that
//! tokens are lost in the listed ways and no other. [`guards`] takes each guard away ([`rules::Guard`]) and asserts that
//! a promise breaks. `cargo test --test model -- --nocapture` prints states, times and counterexamples.
#![allow(clippy::print_stdout, reason = "states, times and counterexamples are to be read")]
#![allow(clippy::disallowed_methods, reason = "how long it takes to explore is real time")]

mod around;
mod guards;
mod holds;
mod properties;
mod replica;
mod row;
mod rules;
mod truth;
mod world;

use around::{EVENTS, Event};
use replica::Act;
use rules::Engine;
use stateright::{Model, Property};
use world::{Replica, World};

/// One step from a state to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Move {
    /// A replica's.
    Of(Replica, Act),
    Around(Event),
}

impl Model for Engine {
    type State = World;
    type Action = Move;

    fn init_states(&self) -> Vec<World> {
        vec![World::begin(self.bounds)]
    }

    fn actions(&self, world: &World, moves: &mut Vec<Move>) {
        for (replica, process) in world.processes.iter().enumerate() {
            moves.extend(process.acts().map(|act| Move::Of(replica, act)));
        }
        moves.extend(EVENTS.into_iter().map(Move::Around));
    }

    fn next_state(&self, before: &World, change: Move) -> Option<World> {
        if before.truth.is_told() {
            return None;
        }
        let mut after = *before;
        match change {
            Move::Of(replica, act) => after.act(self, replica, act)?,
            Move::Around(event) => after.happen(self, event)?,
        }
        after.account_for_losses(before, change);
        Some(after)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        properties::of(self)
    }
}
