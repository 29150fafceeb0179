//! One run of a job at a time, and a word on how the runs end.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::domain::error::Failure;
use crate::telemetry::metrics;

/// A job that failed this often in a row makes the process not ready.
const TOO_OFTEN: u32 = 5;

/// How the jobs fare: failures in a row, by job.
#[derive(Clone, Default)]
pub struct Health(Arc<Mutex<BTreeMap<&'static str, u32>>>);

/// Keeps a job from overlapping itself.
pub(super) struct Guard {
    job: &'static str,
    running: AtomicBool,
    health: Health,
}

/// One run of a job. The next may begin when it is dropped.
pub(super) struct Run {
    guard: Arc<Guard>,
    ended: bool,
}

impl Health {
    /// A job that keeps failing.
    pub fn failing(&self) -> Option<&'static str> {
        self.lock().iter().find(|(_, failures)| **failures >= TOO_OFTEN).map(|(job, _)| *job)
    }

    fn note(&self, job: &'static str, well: bool) {
        let mut failures = self.lock();
        let count = failures.entry(job).or_default();
        *count = if well { 0 } else { count.saturating_add(1) };
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<&'static str, u32>> {
        // Counts are whole between any two statements.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Guard {
    pub(super) fn new(job: &'static str, health: Health) -> Self {
        Self { job, running: AtomicBool::new(false), health }
    }

    /// A run, unless the last one is still at work.
    pub(super) fn begin(self: &Arc<Self>) -> Option<Run> {
        let free = !self.running.swap(true, Ordering::AcqRel);
        free.then(|| Run { guard: Arc::clone(self), ended: false })
    }
}

impl Run {
    /// Ends the run with its result: a failure is logged and the job goes on with its next run.
    pub(super) fn end(mut self, result: &Result<(), Failure>) {
        self.ended = true;
        if let Err(failure) = result {
            tracing::warn!(job = self.guard.job, %failure, "a job failed; its next run tries again");
        }
        self.guard.health.note(self.guard.job, result.is_ok());
        metrics::job_run(self.guard.job, if result.is_ok() { "well" } else { "failed" });
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        if !self.ended {
            self.guard.health.note(self.guard.job, false);
        }
        self.guard.running.store(false, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_runs_once_at_a_time_and_its_failures_are_counted() {
        metrics::install();
        let health = Health::default();
        let guard = Arc::new(Guard::new("sweep", health.clone()));
        let run = guard.begin().unwrap();
        assert!(guard.begin().is_none());
        run.end(&Ok(()));
        for _ in 0..4 {
            guard.begin().unwrap().end(&Err(Failure::StoreUnavailable));
        }
        assert_eq!(health.failing(), None);
        drop(guard.begin().unwrap());
        assert_eq!(health.failing(), Some("sweep"), "a run that panicked failed too");
        assert!(metrics::render().contains("token_wallet_job_runs_total{job=\"sweep\",outcome=\"failed\"} 4"));
        guard.begin().unwrap().end(&Ok(()));
        assert_eq!(health.failing(), None);
    }
}
