//! Who writes next on `SQLite`, which has one writer: what a provider answered goes before what is about to be asked,
//! and that before everything else. PostgreSQL has many writers, and connections that are for results alone.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

/// What a write is for, the most urgent first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lane {
    /// Stores what a provider answered: it may be the only copy.
    Results,
    /// Claims, and gives claims back.
    Claims,
    /// The rest.
    Rest,
}

/// The queues in front of the writer. Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct Lanes(Arc<Mutex<Queues>>);

#[derive(Default)]
struct Queues {
    taken: bool,
    waiting: [VecDeque<oneshot::Sender<Turn>>; 3],
    /// How many turns in a row were given while somebody less urgent waited.
    overtaken: u32,
}

/// After so many turns the least urgent lane has one: else whoever refreshes without a pause keeps users from linking,
/// and this process from giving signs of life.
const OVERTAKEN_AT_MOST: u32 = 8;

/// Leave to write. The next in line gets it when this is dropped.
pub(super) struct Turn(Option<Lanes>);

impl Lanes {
    /// Waits until it is this lane's turn; first come, first served within a lane.
    pub(super) async fn turn(&self, lane: Lane) -> Turn {
        let turn = {
            let mut queues = self.lock();
            if !queues.taken {
                queues.taken = true;
                return Turn(Some(self.clone()));
            }
            let (next, turn) = oneshot::channel();
            queues.waiting[lane as usize].push_back(next);
            turn
        };
        // A sender goes away only by sending.
        turn.await.unwrap_or(Turn(None))
    }

    fn pass_on(&self) {
        let mut queues = self.lock();
        while let Some(next) = queues.next() {
            match next.send(Turn(Some(self.clone()))) {
                Ok(()) => return,
                // Left the queue. Its turn is void: dropped as it is, it would come back here.
                Err(mut turn) => turn.0 = None,
            }
        }
        queues.taken = false;
    }

    fn lock(&self) -> MutexGuard<'_, Queues> {
        // The queues are whole between any two statements.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queues {
    fn next(&mut self) -> Option<oneshot::Sender<Turn>> {
        let first = self.waiting.iter().position(|lane| !lane.is_empty())?;
        let last = self.waiting.iter().rposition(|lane| !lane.is_empty())?;
        let overtakes = first < last && self.overtaken < OVERTAKEN_AT_MOST;
        self.overtaken = if overtakes { self.overtaken + 1 } else { 0 };
        self.waiting[if overtakes { first } else { last }].pop_front()
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(lanes) = self.0.take() {
            lanes.pass_on();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In which order so many of each lane write who all wait.
    async fn order_of(waiting: [(Lane, usize); 3]) -> Vec<(Lane, usize)> {
        let lanes = Lanes::default();
        let held = lanes.turn(Lane::Rest).await;
        let order = Arc::new(Mutex::new(Vec::new()));
        let mut writes = Vec::new();
        for (lane, count) in waiting {
            for number in 0..count {
                let (lanes, order) = (lanes.clone(), Arc::clone(&order));
                writes.push(tokio::spawn(async move {
                    let _turn = lanes.turn(lane).await;
                    order.lock().unwrap().push((lane, number));
                }));
                // Lets it take its place.
                tokio::task::yield_now().await;
            }
        }
        drop(held);
        for write in writes {
            write.await.unwrap();
        }
        let order = order.lock().unwrap();
        order.clone()
    }

    #[tokio::test]
    async fn n7_results_overtake_claims_and_claims_overtake_the_rest() {
        let expected = [(Lane::Results, 1), (Lane::Claims, 5), (Lane::Rest, 50)];
        let expected: Vec<_> =
            expected.into_iter().flat_map(|(lane, count)| (0..count).map(move |number| (lane, number))).collect();
        assert_eq!(order_of([(Lane::Rest, 50), (Lane::Claims, 5), (Lane::Results, 1)]).await, expected);
    }

    #[tokio::test]
    async fn n7_however_much_is_urgent_the_rest_has_its_turn() {
        let order = order_of([(Lane::Rest, 3), (Lane::Claims, 20), (Lane::Results, 20)]).await;
        let places: Vec<_> = (0..order.len()).filter(|place| order[*place].0 == Lane::Rest).collect();
        assert_eq!(places, [8, 17, 26]);
    }

    #[tokio::test]
    async fn a_turn_is_not_lost_when_its_waiter_leaves() {
        let lanes = Lanes::default();
        let held = lanes.turn(Lane::Rest).await;
        let gone = tokio::spawn({
            let lanes = lanes.clone();
            async move { drop(lanes.turn(Lane::Results).await) }
        });
        tokio::task::yield_now().await;
        let (mut late, mut last) = (Box::pin(lanes.turn(Lane::Claims)), Box::pin(lanes.turn(Lane::Rest)));
        assert!(futures_util::poll!(&mut late).is_pending() && futures_util::poll!(&mut last).is_pending());
        gone.abort();
        assert!(gone.await.is_err());
        drop(held);
        // Told that it is its turn, and leaves without looking.
        drop(late);
        let turn = last.await;
        assert!(lanes.lock().taken);
        drop(turn);
        assert!(!lanes.lock().taken);
    }
}
