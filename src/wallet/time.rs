//! The time that replicas have in common: on PostgreSQL each follows the database's clock, whatever its machine says.

use std::time::Duration;

use super::{Inner, Wallet};
use crate::clock::{Clock, Drift};
use crate::domain::policy::CLOCK_TOLERANCE;
use crate::store::{Store, StoreError, Times};
use crate::telemetry::metrics;

/// So far from the database's time it is no use to tell a caller when a token expires.
const ASTRAY: Duration = Duration::from_mins(1);

/// Sets the clock by the database's, before anything is dated. Nothing is to be done on `SQLite`.
///
/// # Errors
///
/// [`StoreError::Unavailable`] also if the database takes too long to tell the time.
pub async fn set_clock(store: &Store, clock: &Clock) -> Result<(), StoreError> {
    follow(store, clock).await?;
    Ok(())
}

impl Wallet {
    /// How far ahead of the database's clock this replica's time is, if that is so far that it must not go on like that:
    /// the clock was set back while replicas ran.
    pub fn astray(&self) -> Option<Duration> {
        let ahead = Duration::from_millis(u64::try_from(self.0.pulse().drift.business).unwrap_or(0));
        Some(ahead).filter(|ahead| *ahead > ASTRAY)
    }
}

impl Inner {
    /// Looks how the database's clock goes, and tells what is strange about it, once.
    pub(super) async fn follow_the_database(&self) -> Result<(), StoreError> {
        let Some((times, drift)) = follow(&self.store, &self.clock).await? else { return Ok(()) };
        if times.high_water > self.clock.now().plus(CLOCK_TOLERANCE) {
            self.clock.catch_up(times.high_water, times.database.map_or(self.clock.boot(), |reading| reading.answered));
        }
        metrics::clock_ahead("machine", drift.wall);
        metrics::clock_ahead("wallet", drift.business);
        let before = std::mem::replace(&mut self.pulse().drift, drift);
        if drift.jumped > tolerance() {
            tracing::warn!(by_ms = drift.jumped, "the database's clock has jumped ahead");
        }
        if is_off(drift.wall) != is_off(before.wall) {
            tracing::warn!(
                ahead_ms = drift.wall,
                tolerance_ms = tolerance(),
                "this machine's clock against the database's"
            );
        }
        if (drift.business > 0) != (before.business > 0) {
            tracing::error!(
                ahead_ms = drift.business,
                "the database's clock against the time of before, which is held on to until all replicas are stopped"
            );
        }
        Ok(())
    }
}

/// `None` where the clock follows nobody, or the answer took too long to be of use.
async fn follow(store: &Store, clock: &Clock) -> Result<Option<(Times, Drift)>, StoreError> {
    if !clock.is_a_machines() {
        return Ok(None);
    }
    let times = store.times(clock).await?;
    let Some(reading) = times.database else { return Ok(None) };
    if reading.answered.saturating_sub(reading.asked) < CLOCK_TOLERANCE {
        return Ok(Some((times, clock.follow(&reading))));
    }
    if clock.follows() { Ok(None) } else { Err(StoreError::Unavailable("its time was told too late".to_owned())) }
}

fn is_off(ahead: i64) -> bool {
    ahead.abs() > tolerance()
}

fn tolerance() -> i64 {
    i64::try_from(CLOCK_TOLERANCE.as_millis()).unwrap_or(i64::MAX)
}
