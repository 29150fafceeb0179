//! The gate: what every request to a provider passes. It keeps to the provider's budget, to its pauses, and away from
//! a provider that fails.
//!
//! All of it is on business time: with a clock that stands, who has to wait for budget waits.

mod breaker;
mod budget;
mod tally;

use std::collections::{BTreeMap, HashMap};
use std::pin::pin;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use super::provider::Provider;
use crate::clock::{Clock, Timestamp};
use crate::domain::error::Failure;
use crate::domain::ids::ProviderId;
use crate::domain::policy;
use crate::domain::provider::{Limits, Slug};
use crate::telemetry;

pub(super) use breaker::Signal;
pub use budget::Urgency;

use breaker::Breaker;
use budget::{Budget, Share, Spent};
use tally::Tally;

/// Over how long attempted refreshes are counted.
const ATTEMPTS_OVER: Duration = Duration::from_mins(1);

/// How often it is told that a provider does not prove who it is.
const TOLD_AGAIN: Duration = Duration::from_hours(1);

/// Lets requests through to providers. As long as its providers: they are few, and made by operators.
pub struct Gate {
    clock: Clock,
    replicas: AtomicU32,
    readings: AtomicU64,
    lanes: Mutex<HashMap<ProviderId, Arc<Lane>>>,
}

/// One request may be in flight while this stands. Who sends it settles it; a permit that is dropped instead gives back
/// what it took.
#[must_use]
pub struct Permit {
    lane: Arc<Lane>,
    urgency: Urgency,
    epoch: u64,
    settled: bool,
}

/// What a request is sent to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// The token endpoint: our client credentials go with it.
    Token,
    /// The profile endpoint. It says nothing of our credentials, and is no worse off where they are refused.
    Profile,
}

/// A provider is sent nothing now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Closed {
    /// When to ask again.
    pub until: Timestamp,
    /// Why.
    pub why: ClosedBy,
}

/// Why a provider is sent nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClosedBy {
    /// It asked for a pause (429).
    Paused,
    /// It fails.
    Breaker,
    /// It refuses our credentials: nobody but a probe ([`super::Registry::probe`]) asks.
    Misconfigured,
}

/// What settling a permit changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Settled {
    /// The provider works again: what was put off for its sake may be pulled forward.
    pub closed_again: bool,
}

/// The way to one provider.
struct Lane {
    clock: Clock,
    state: Mutex<State>,
    /// Something may let the next one through, or keep all away.
    changed: Notify,
    /// One queue an urgency; only its head looks at the budget.
    queues: [tokio::sync::Mutex<()>; 4],
}

struct State {
    slug: Slug,
    /// A pause that began here and is not in the row yet.
    pausing_until: Option<Timestamp>,
    /// What the row said when anybody read it last.
    paused_until: Option<Timestamp>,
    /// Whoever began to read the row before may not have seen the last pause that began here.
    noted: u64,
    /// When our credentials may be tried again, if they are refused.
    probe_at: Option<Timestamp>,
    limits: Limits,
    budget: Budget,
    breaker: Breaker,
    attempts: Tally,
    /// When it was last told that the provider does not prove who it is.
    distrusted_at: Option<Timestamp>,
}

/// Why there is no permit at once.
enum Stop {
    Closed(Closed),
    Spent(Spent),
}

impl Gate {
    /// For one replica, until [`Self::set_replicas`] says otherwise.
    pub(super) fn new(clock: Clock) -> Self {
        Self { clock, replicas: AtomicU32::new(1), readings: AtomicU64::new(0), lanes: Mutex::default() }
    }

    /// The number of a look at rows that begins now: higher than those of all before it.
    pub(super) fn reading(&self) -> u64 {
        self.readings.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Waits until a request may be sent to the provider that `read` gives; first come, first served within an urgency.
    /// Gives the provider as it is then, not as it was before the wait. [`Closed`] at once, and also to those who wait
    /// when something closes the gate.
    ///
    /// # Errors
    ///
    /// What `read` fails with.
    pub(super) async fn permit<R>(
        &self,
        target: Target,
        urgency: Urgency,
        read: impl Fn() -> R,
    ) -> Result<(Arc<Provider>, Result<Permit, Closed>), Failure>
    where
        R: Future<Output = Result<Arc<Provider>, Failure>>,
    {
        let provider = read().await?;
        if let Some(closed) = self.closed(&provider, target) {
            return Ok((provider, Err(closed)));
        }
        let permit = self.wait(&self.lane(&provider), target, urgency).await;
        // Not while others wait behind this.
        let provider = read().await?;
        let lane = self.learn(&provider);
        let kept = lane.state().kept_away(Some(target), self.clock.now());
        Ok((provider, kept.map_or(permit, Err)))
    }

    async fn wait(&self, lane: &Arc<Lane>, target: Target, urgency: Urgency) -> Result<Permit, Closed> {
        let _turn = lane.queues[urgency as usize].lock().await;
        loop {
            // From before the look on, so that no change is missed.
            let mut changed = pin!(lane.changed.notified());
            changed.as_mut().enable();
            match self.admit(lane, Some(target), urgency) {
                Ok(permit) => return Ok(permit),
                Err(Stop::Closed(closed)) => return Err(closed),
                Err(Stop::Spent(Spent::Places)) => changed.await,
                Err(Stop::Spent(Spent::Rate(until))) => tokio::select! {
                    () = changed => {}
                    () = self.clock.until(until) => {}
                },
            }
        }
    }

    /// Permits for background work at the token endpoint, as many as there are now; none while it is closed.
    pub fn try_permits(&self, provider: &Provider) -> Vec<Permit> {
        let lane = self.learn(provider);
        std::iter::from_fn(|| self.admit(&lane, Some(Target::Token), Urgency::Background).ok()).collect()
    }

    /// What keeps requests away that no waiting for budget would end, by the row as it was read just now.
    pub fn closed(&self, provider: &Provider, target: Target) -> Option<Closed> {
        let lane = self.learn(provider);
        lane.state().open(Some(target), self.clock.now()).err()
    }

    /// A permit for one try of credentials that were refused, if it may be sent now.
    pub(super) fn try_probe(&self, provider: &Provider) -> Option<Permit> {
        self.admit(&self.learn(provider), None, Urgency::Waiting).ok()
    }

    /// Whether it is to be told that this provider does not prove who it is: the first time in an hour.
    pub(super) fn is_news(&self, provider: &Provider, now: Timestamp) -> bool {
        let lane = self.lane(provider);
        let mut state = lane.state();
        let told = state.distrusted_at.is_some_and(|at| now.since(at) < TOLD_AGAIN);
        if !told {
            state.distrusted_at = Some(now);
        }
        !told
    }

    /// Nothing is sent to this provider before `until`. True if it was not paused yet.
    pub(super) fn pause(&self, provider: &Provider, until: Timestamp) -> bool {
        let lane = self.lane(provider);
        let mut state = lane.state();
        let begins = state.paused(self.clock.now()).is_none();
        state.pausing_until = state.pausing_until.max(Some(until));
        drop(state);
        lane.changed.notify_waiters();
        begins
    }

    /// The row says now what [`Self::pause`] said: whoever changes it may end the pause, as soon as it is read anew.
    pub(super) fn pause_is_noted(&self, provider: &Provider, until: Timestamp) {
        let lane = self.lane(provider);
        let mut state = lane.state();
        state.pausing_until = state.pausing_until.filter(|pausing| *pausing > until);
        state.paused_until = state.paused_until.max(Some(until));
        state.noted = self.reading();
    }

    /// It refuses our credentials, as the row says now: also those who wait are told.
    pub(super) fn refuse(&self, provider: &Provider, probe_at: Timestamp) {
        let lane = self.lane(provider);
        lane.state().probe_at = Some(probe_at);
        lane.changed.notify_waiters();
    }

    /// Says how many replicas are alive: the limits are divided by them. None counts as one.
    pub fn set_replicas(&self, replicas: u32) {
        if self.replicas.swap(replicas, Ordering::Relaxed) != replicas {
            self.lanes().values().for_each(|lane| lane.changed.notify_waiters());
        }
    }

    /// How many refreshes were sent to this provider from here in the last 60 s.
    pub fn attempts_last_minute(&self, provider: ProviderId) -> u32 {
        let lane = self.lanes().get(&provider).map(Arc::clone);
        lane.map_or(0, |lane| lane.state().attempts.count(self.clock.now()))
    }

    /// The same for all providers that were sent any.
    pub fn attempts(&self) -> BTreeMap<ProviderId, u32> {
        let now = self.clock.now();
        let counts = self.lanes().iter().map(|(id, lane)| (*id, lane.state().attempts.count(now))).collect::<Vec<_>>();
        counts.into_iter().filter(|(_, count)| *count > 0).collect()
    }

    /// Shows in the metrics what keeps requests away from providers now.
    pub fn show(&self) {
        let now = self.clock.now();
        for lane in self.lanes().values() {
            let state = lane.state();
            telemetry::metrics::gate(
                state.slug.as_str(),
                state.breaker.is_open(),
                state.paused(now).is_some(),
                state.probe_at.is_some(),
            );
        }
    }

    /// The lane of a provider, which learns what its row, read just now, says.
    fn learn(&self, provider: &Provider) -> Arc<Lane> {
        let (lane, standing) = (self.lane(provider), &provider.standing);
        let probe_at = standing.misconfigured_at.map(|since| standing.probe_at.unwrap_or(since));
        let mut state = lane.state();
        let before_the_pause = state.paused_until.filter(|_| provider.reading < state.noted);
        let said = (standing.paused_until.max(before_the_pause), probe_at, provider.limits);
        let known = (state.paused_until, state.probe_at, state.limits);
        (state.paused_until, state.probe_at, state.limits) = said;
        drop(state);
        if said != known {
            lane.changed.notify_waiters();
        }
        lane
    }

    fn lane(&self, provider: &Provider) -> Arc<Lane> {
        Arc::clone(self.lanes().entry(provider.id).or_insert_with(|| Arc::new(self.new_lane(provider))))
    }

    fn new_lane(&self, provider: &Provider) -> Lane {
        let state = State {
            slug: provider.slug.clone(),
            pausing_until: None,
            paused_until: None,
            noted: 0,
            probe_at: None,
            limits: provider.limits,
            budget: Budget::new(self.clock.now()),
            breaker: Breaker::new(),
            attempts: Tally::over(ATTEMPTS_OVER),
            distrusted_at: None,
        };
        Lane {
            clock: self.clock.clone(),
            state: Mutex::new(state),
            changed: Notify::new(),
            queues: [(); 4].map(tokio::sync::Mutex::new),
        }
    }

    /// `target` is `None` for a try of refused credentials.
    fn admit(&self, lane: &Arc<Lane>, target: Option<Target>, urgency: Urgency) -> Result<Permit, Stop> {
        let now = self.clock.now();
        let mut state = lane.state();
        let share = Share::of(state.limits, self.replicas.load(Ordering::Relaxed));
        state.open(target, now).map_err(Stop::Closed)?;
        state.budget.take(share, urgency, now).map_err(Stop::Spent)?;
        let epoch = state.breaker.admit();
        drop(state);
        Ok(Permit { lane: Arc::clone(lane), urgency, epoch, settled: false })
    }

    fn lanes(&self) -> MutexGuard<'_, HashMap<ProviderId, Arc<Lane>>> {
        // The map is whole between any two statements, so a panic elsewhere leaves nothing half done.
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Permit {
    /// The request was sent, and this came of it.
    pub(super) fn settle(mut self, signal: Signal) -> Settled {
        self.settled = true;
        Settled { closed_again: self.end(signal) }
    }

    fn end(&self, signal: Signal) -> bool {
        let now = self.lane.clock.now();
        let mut state = self.lane.state();
        state.budget.end(self.urgency, self.settled);
        let was_open = state.breaker.open_until();
        let closed_again = state.breaker.settle(self.epoch, signal, now);
        let opened = state.breaker.open_until().filter(|_| was_open.is_none());
        let opened = opened.map(|until| (state.slug.clone(), until.since(now)));
        if self.settled && matches!(self.urgency, Urgency::Background | Urgency::Waiting) {
            state.attempts.add(now);
        }
        drop(state);
        if let Some((provider, span)) = opened {
            tracing::warn!(%provider, seconds = span.as_secs(), "a provider fails: it is sent nothing for a while");
        }
        self.lane.changed.notify_waiters();
        closed_again
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if !self.settled {
            self.end(Signal::Neutral);
        }
    }
}

impl Closed {
    /// What callers are told.
    pub fn failure(self, now: Timestamp) -> Failure {
        match self.why {
            ClosedBy::Misconfigured => Failure::ProviderMisconfigured,
            ClosedBy::Paused | ClosedBy::Breaker => {
                Failure::ProviderUnavailable { retry_after: self.until.since(now).min(policy::LONGEST_PAUSE) }
            }
        }
    }
}

impl Lane {
    fn state(&self) -> MutexGuard<'_, State> {
        // As above: no statement that can panic leaves the state half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Until when it asked to be sent nothing, if that lasts.
    fn paused(&self, now: Timestamp) -> Option<Timestamp> {
        self.pausing_until.max(self.paused_until).filter(|until| now < *until)
    }

    /// What keeps requests away whatever the breaker says; but for misconfiguration where there is no target.
    fn kept_away(&self, target: Option<Target>, now: Timestamp) -> Option<Closed> {
        let misconfigured = self.probe_at.filter(|_| target == Some(Target::Token));
        let misconfigured = misconfigured.map(|until| Closed { until, why: ClosedBy::Misconfigured });
        misconfigured.or_else(|| self.paused(now).map(|until| Closed { until, why: ClosedBy::Paused }))
    }

    fn open(&mut self, target: Option<Target>, now: Timestamp) -> Result<(), Closed> {
        if let Some(closed) = self.kept_away(target, now) {
            return Err(closed);
        }
        self.breaker.check(now).map_err(|until| Closed { until, why: ClosedBy::Breaker })
    }
}

#[cfg(test)]
mod tests;
