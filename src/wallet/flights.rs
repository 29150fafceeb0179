//! Redemptions under way in this process: whoever needs one joins it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

use crate::domain::error::Failure;
use crate::domain::ids::GrantId;

/// What a redemption came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Landing {
    /// A new token is stored.
    Refreshed,
    /// Somebody else is at it, or was: look again.
    Elsewhere,
    /// No new token, and why.
    Failed(Failure),
}

type Seat = watch::Receiver<Option<Landing>>;

/// The flights of this process, at most one per grant.
#[derive(Clone, Default)]
pub(super) struct Flights(Arc<Mutex<HashMap<GrantId, Seat>>>);

/// The one flight of a grant. When it is dropped, landed or not, the grant may fly again and passengers are told.
pub(super) struct Flight {
    grant: GrantId,
    landed: watch::Sender<Option<Landing>>,
    flights: Flights,
}

/// A place in a flight.
pub(super) struct Passenger(Seat);

impl Flights {
    /// Joins the grant's flight; the first to come gets the flight itself, to fly it.
    pub(super) fn board(&self, grant: GrantId) -> (Passenger, Option<Flight>) {
        let mut flights = self.lock();
        if let Some(seat) = flights.get(&grant) {
            return (Passenger(seat.clone()), None);
        }
        let (landed, seat) = watch::channel(None);
        flights.insert(grant, seat.clone());
        (Passenger(seat), Some(Flight { grant, landed, flights: self.clone() }))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<GrantId, Seat>> {
        // The map is whole between any two statements, so a panic elsewhere leaves nothing half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Flight {
    /// Tells the passengers, those who board later too, what it will come to, while it is still under way. The grant does
    /// not fly again before it has landed.
    pub(super) fn tell(&self, landing: Landing) {
        self.landed.send_if_modified(|told| {
            let untold = told.is_none();
            told.get_or_insert(landing);
            untold
        });
    }

    /// Ends the flight: nobody joins it any more, and its passengers are told. Once it has landed this does nothing.
    pub(super) fn land(&self, landing: Landing) {
        self.leave();
        self.tell(landing);
    }

    /// Whether anybody has a seat and was not told yet.
    pub(super) fn is_waited_for(&self) -> bool {
        // The map has a seat too.
        self.landed.borrow().is_none() && self.landed.receiver_count() > 1
    }

    fn leave(&self) {
        // Not the grant's next flight: it may have begun when this one landed.
        let mut flights = self.flights.lock();
        if flights.get(&self.grant).is_some_and(|seat| seat.same_channel(&self.landed.subscribe())) {
            flights.remove(&self.grant);
        }
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.leave();
    }
}

impl Passenger {
    /// Waits until the flight tells what it comes to. Leaving early does not end it.
    pub(super) async fn arrive(mut self) -> Landing {
        match self.0.wait_for(Option::is_some).await {
            Ok(landing) => landing.clone().unwrap_or(Landing::Elsewhere),
            // The task ended without landing: it panicked, and said so in the log.
            Err(_) => Landing::Failed(Failure::Internal),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;

    #[tokio::test]
    async fn a_grant_has_one_flight_and_all_passengers_land_with_it() {
        let (flights, grant) = (Flights::default(), GrantId::new(Timestamp::from_millis(0)));
        let (first, flight) = flights.board(grant);
        let (second, none) = flights.board(grant);
        assert!(none.is_none());
        flight.unwrap().land(Landing::Refreshed);
        assert_eq!((first.arrive().await, second.arrive().await), (Landing::Refreshed, Landing::Refreshed));
        assert!(flights.board(grant).1.is_some(), "the next one is a new flight");
    }

    #[tokio::test]
    async fn passengers_told_early_get_off_and_the_grant_does_not_fly_before_it_has_landed() {
        let (flights, grant) = (Flights::default(), GrantId::new(Timestamp::from_millis(0)));
        let (first, flight) = flights.board(grant);
        let flight = flight.unwrap();
        flight.tell(Landing::Refreshed);
        let (late, none) = flights.board(grant);
        assert!(none.is_none());
        assert_eq!((first.arrive().await, late.arrive().await), (Landing::Refreshed, Landing::Refreshed));
        flight.land(Landing::Elsewhere);
        let (_, next) = flights.board(grant);
        flight.land(Landing::Elsewhere);
        drop(flight);
        assert!(next.is_some() && flights.board(grant).1.is_none(), "landed again it does not end the next flight");
    }

    #[tokio::test]
    async fn a_lost_flight_strands_nobody() {
        let (flights, grant) = (Flights::default(), GrantId::new(Timestamp::from_millis(0)));
        let (passenger, flight) = flights.board(grant);
        drop(flight);
        assert_eq!(passenger.arrive().await, Landing::Failed(Failure::Internal));
        assert!(flights.board(grant).1.is_some());
    }

    #[tokio::test]
    async fn g11_a_panic_in_a_refresh_strands_nobody_and_the_grant_flies_again() {
        let (flights, grant) = (Flights::default(), GrantId::new(Timestamp::from_millis(0)));
        let (passenger, flight) = flights.board(grant);
        let (other, none) = flights.board(grant);
        assert!(none.is_none());
        let flying = tokio::spawn(async move {
            let _flight = flight;
            tokio::task::yield_now().await;
            panic!("a refresh panics");
        });
        assert!(flying.await.is_err_and(|error: tokio::task::JoinError| error.is_panic()));
        let failed = Landing::Failed(Failure::Internal);
        assert_eq!((passenger.arrive().await, other.arrive().await), (failed.clone(), failed));
        assert!(flights.board(grant).1.is_some());
    }
}
