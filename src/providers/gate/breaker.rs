//! The breaker: a provider that fails is left alone for a while, then tried by a few requests.

use std::time::Duration;

use super::tally::Tally;
use crate::clock::Timestamp;
use crate::domain::provider::Verdict;

/// Over how long failures are set against calls.
const WINDOW: Duration = Duration::from_secs(30);
/// With fewer calls in the window a share of them says nothing.
const ENOUGH_CALLS: u32 = 20;
/// So many failures one after the other open it, however few calls there are.
const IN_A_ROW: u32 = 10;
/// How long it is open at first; twice as long each time that the probes fail.
const FIRST_OPEN: Duration = Duration::from_secs(30);
/// How long it is open at most. Failures further apart are not in a row either.
const LONGEST_OPEN: Duration = Duration::from_mins(5);
/// How many requests try a provider that was left alone; all must go well.
const PROBES: u32 = 3;
/// While the probes are out, when it is worth asking again.
const PROBING: Duration = Duration::from_secs(5);

/// What a request says of its provider's health.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::providers) enum Signal {
    /// It gave an answer that can be read, whatever that says.
    Well,
    /// It could not be reached, gave no answer, one that is none, or said that it is out of order.
    Failed,
    /// Nothing: the request was given up by us.
    Neutral,
}

impl Signal {
    /// What an outcome says. A refusal, a limit, a misconfiguration and any other error code are answers too: ten grants
    /// with a scope that the provider does not know say nothing of its health.
    pub(in crate::providers) const fn of<T>(outcome: &Result<T, Verdict>) -> Self {
        match outcome {
            Ok(_)
            | Err(
                Verdict::Refused(_)
                | Verdict::Misconfigured(_)
                | Verdict::Limited { .. }
                | Verdict::Later { answered: true, .. },
            ) => Self::Well,
            Err(
                Verdict::Later { answered: false, .. }
                | Verdict::Unclear { .. }
                | Verdict::Untrusted
                | Verdict::Unknown,
            ) => Self::Failed,
        }
    }
}

/// One provider's breaker.
#[derive(Debug)]
pub(super) struct Breaker {
    state: State,
    /// Counts the changes of state: what was admitted before one says nothing about what comes after it.
    epoch: u64,
    calls: Tally,
    failures: Tally,
    in_a_row: u32,
    failed_at: Option<Timestamp>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Closed,
    /// `times` it opened without having closed in between.
    Open {
        until: Timestamp,
        times: u32,
    },
    Probing {
        out: u32,
        well: u32,
        times: u32,
    },
}

impl Breaker {
    pub(super) fn new() -> Self {
        Self {
            state: State::Closed,
            epoch: 0,
            calls: Tally::over(WINDOW),
            failures: Tally::over(WINDOW),
            in_a_row: 0,
            failed_at: None,
        }
    }

    /// Whether it keeps all but probes away.
    pub(super) const fn is_open(&self) -> bool {
        !matches!(self.state, State::Closed)
    }

    /// Until when it keeps everything away.
    pub(super) const fn open_until(&self) -> Option<Timestamp> {
        match self.state {
            State::Open { until, .. } => Some(until),
            State::Closed | State::Probing { .. } => None,
        }
    }

    /// Whether a request may be sent; if not, when to ask again.
    pub(super) fn check(&mut self, now: Timestamp) -> Result<(), Timestamp> {
        if let State::Open { until, times } = self.state {
            if now < until {
                return Err(until);
            }
            self.turn(State::Probing { out: 0, well: 0, times });
        }
        match self.state {
            State::Probing { out, well, .. } if out + well >= PROBES => Err(now.plus(PROBING)),
            State::Probing { .. } | State::Open { .. } | State::Closed => Ok(()),
        }
    }

    /// A request that [`Self::check`] let pass is on its way; answers what to settle it with.
    pub(super) fn admit(&mut self) -> u64 {
        if let State::Probing { out, .. } = &mut self.state {
            *out += 1;
        }
        self.epoch
    }

    /// What came of an admitted request. True if this closes the breaker.
    pub(super) fn settle(&mut self, epoch: u64, signal: Signal, now: Timestamp) -> bool {
        if epoch != self.epoch {
            return false;
        }
        match (&mut self.state, signal) {
            (State::Open { .. }, _) | (State::Closed, Signal::Neutral) => {}
            (State::Closed, Signal::Well) => {
                self.calls.add(now);
                self.in_a_row = 0;
            }
            (State::Closed, Signal::Failed) => self.failed(now),
            (State::Probing { out, .. }, Signal::Neutral) => *out -= 1,
            (State::Probing { times, .. }, Signal::Failed) => {
                let times = *times;
                self.open(now, times + 1);
            }
            (State::Probing { out, well, .. }, Signal::Well) => {
                (*out, *well) = (*out - 1, *well + 1);
                if *well >= PROBES {
                    self.turn(State::Closed);
                    return true;
                }
            }
        }
        false
    }

    fn failed(&mut self, now: Timestamp) {
        self.calls.add(now);
        self.failures.add(now);
        // One grant that fails every quarter of an hour says nothing about the provider.
        let apart = self.failed_at.replace(now).is_some_and(|before| now.since(before) > LONGEST_OPEN);
        self.in_a_row = if apart { 1 } else { self.in_a_row + 1 };
        let calls = self.calls.count(now);
        let half = calls >= ENOUGH_CALLS && self.failures.count(now).saturating_mul(2) >= calls;
        if half || self.in_a_row >= IN_A_ROW {
            self.open(now, 0);
        }
    }

    fn open(&mut self, now: Timestamp, times: u32) {
        let open_for = FIRST_OPEN.saturating_mul(2_u32.saturating_pow(times)).min(LONGEST_OPEN);
        self.turn(State::Open { until: now.plus(open_for), times });
    }

    fn turn(&mut self, state: State) {
        self.state = state;
        self.epoch += 1;
        self.in_a_row = 0;
        self.calls.clear();
        self.failures.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(secs: i64) -> Timestamp {
        Timestamp::from_millis(secs * 1000)
    }

    /// A request at `now` that comes to this; whether it was let pass.
    fn call(breaker: &mut Breaker, now: Timestamp, signal: Signal) -> bool {
        let passed = breaker.check(now).is_ok();
        if passed {
            let epoch = breaker.admit();
            breaker.settle(epoch, signal, now);
        }
        passed
    }

    fn opened(now: Timestamp) -> Breaker {
        let mut breaker = Breaker::new();
        for _ in 0..IN_A_ROW {
            assert!(call(&mut breaker, now, Signal::Failed));
        }
        assert!(breaker.is_open());
        breaker
    }

    #[test]
    fn it_opens_by_a_share_of_many_or_by_a_row() {
        use Signal::{Failed, Neutral, Well};
        // (what the calls come to, in turns; seconds between them; after how many it opens)
        for (turns, apart, opens) in [
            (&[Failed][..], 0, Some(10)),
            (&[Failed], 29, Some(10)),
            (&[Failed], 301, None),
            (&[Failed, Neutral], 0, Some(19)),
            (&[Failed, Well], 0, Some(20 + 1)),
            (&[Well, Failed], 0, Some(20)),
            (&[Well, Failed], 2, None),
            (&[Well, Well, Failed], 0, None),
            (&[Well], 0, None),
            (&[Neutral], 0, None),
        ] {
            let mut breaker = Breaker::new();
            let calls = turns.iter().cycle().zip(0..200).zip(1..);
            let opened = calls.map(|((signal, n), count)| {
                call(&mut breaker, at(n * apart), *signal);
                (breaker.is_open(), count)
            });
            assert_eq!(opened.into_iter().find(|(open, _)| *open).map(|(_, count)| count), opens, "{turns:?} {apart}");
        }
    }

    #[test]
    fn it_stays_open_longer_each_time_its_probes_fail_and_five_minutes_at_most() {
        let mut breaker = opened(at(0));
        let mut now = 0;
        for open_for in [30, 60, 120, 240, 300, 300] {
            assert_eq!(breaker.check(at(now)), Err(at(now + open_for)));
            assert_eq!(breaker.check(at(now + open_for - 1)), Err(at(now + open_for)));
            now += open_for;
            assert!(call(&mut breaker, at(now), Signal::Failed), "a probe");
        }
    }

    #[test]
    fn three_probes_that_all_go_well_close_it() {
        let mut breaker = opened(at(0));
        let now = at(30);
        let probes: Vec<u64> = std::iter::from_fn(|| breaker.check(now).is_ok().then(|| breaker.admit())).collect();
        assert_eq!(probes.len(), 3);
        assert!(!breaker.settle(probes[0], Signal::Well, now));
        assert!(!breaker.settle(probes[1], Signal::Neutral, now), "one that says nothing is sent again");
        assert!(breaker.check(now).is_ok());
        let again = breaker.admit();
        assert!(!breaker.settle(probes[2], Signal::Well, now) && breaker.is_open());
        assert!(breaker.settle(again, Signal::Well, now) && !breaker.is_open());
        for _ in 0..9 {
            assert!(call(&mut breaker, now, Signal::Failed), "what was counted before is forgotten");
        }
    }

    #[test]
    fn what_was_admitted_before_it_opened_neither_closes_nor_opens_it() {
        let mut breaker = Breaker::new();
        let late = breaker.admit();
        for _ in 0..IN_A_ROW {
            call(&mut breaker, at(0), Signal::Failed);
        }
        assert!(breaker.check(at(30)).is_ok());
        assert!(!breaker.settle(late, Signal::Failed, at(30)));
        for closes in [false, false, true] {
            assert!(breaker.check(at(30)).is_ok());
            let probe = breaker.admit();
            assert_eq!(breaker.settle(probe, Signal::Well, at(30)), closes);
        }
        assert!(!breaker.settle(late, Signal::Failed, at(30)) && !breaker.is_open());
    }

    #[test]
    fn an_answer_is_no_failure_whatever_it_says() {
        let code = || "code".to_owned();
        for (outcome, signal) in [
            (Ok(()), Signal::Well),
            (Err(Verdict::Refused(code())), Signal::Well),
            (Err(Verdict::Misconfigured(code())), Signal::Well),
            (Err(Verdict::Limited { after: None }), Signal::Well),
            (Err(Verdict::Later { after: None, answered: true }), Signal::Well),
            (Err(Verdict::Later { after: None, answered: false }), Signal::Failed),
            (Err(Verdict::Unclear { after: None }), Signal::Failed),
            (Err(Verdict::Untrusted), Signal::Failed),
            (Err(Verdict::Unknown), Signal::Failed),
        ] {
            assert_eq!(Signal::of(&outcome), signal, "{outcome:?}");
        }
    }
}
