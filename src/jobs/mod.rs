//! The timetable: what runs by the clock.
//!
//! The scheduler says when; the work runs in our own tasks, one run of a job at a time.

mod guard;

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio_cron_scheduler::{Job as Scheduled, JobScheduler, JobSchedulerError};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::domain::error::Failure;
use crate::events::Events;
use crate::linking::Linking;
use crate::wallet::Wallet;

use guard::Guard;
pub use guard::Health;

/// Six fields, seconds first. Cron expressions only: the scheduler's repeated jobs stop for ever after a stall.
const EVERY_SECOND: &str = "* * * * * *";
const EVERY_FIVE_SECONDS: &str = "*/5 * * * * *";
const EVERY_TEN_SECONDS: &str = "*/10 * * * * *";
const EVERY_MINUTE: &str = "30 * * * * *";

/// It runs once at the start, too.
const CENSUS: &str = "census";

/// The timetable does not start.
#[derive(Debug, thiserror::Error)]
#[error("the timetable does not start: {0}")]
pub struct JobsError(#[from] JobSchedulerError);

/// How often a turn looks whether what its jobs began is over.
const LOOK: Duration = Duration::from_millis(1);

/// The running timetable.
pub struct Timetable {
    scheduler: JobScheduler,
    jobs: Jobs,
    tasks: TaskTracker,
    health: Health,
}

/// What runs by the clock.
struct Job {
    name: &'static str,
    when: &'static str,
    work: Arc<dyn Fn() -> BoxFuture<'static, Result<(), Failure>> + Send + Sync>,
}

/// All jobs. What keeps the log and counts comes after the rest in a turn, and after all that the rest has begun.
struct Jobs {
    first: Vec<Job>,
    last: Vec<Job>,
}

impl Timetable {
    /// Starts the jobs. Once `closing` is cancelled none starts any more; what runs, runs in `tasks`.
    pub async fn start(
        wallet: &Wallet,
        linking: &Linking,
        events: &Events,
        tasks: &TaskTracker,
        closing: &CancellationToken,
    ) -> Result<Self, JobsError> {
        let (scheduler, health) = (JobScheduler::new().await?, Health::default());
        let jobs = Jobs::of(wallet, linking, events);
        for job in jobs.first.iter().chain(&jobs.last) {
            let run = job.runner(&health, tasks, closing);
            if job.name == CENSUS {
                // Alerts look at what it counts.
                run();
            }
            scheduler.add(Scheduled::new(job.when, move |_, _| run())?).await?;
        }
        scheduler.start().await?;
        Ok(Self { scheduler, jobs, tasks: tasks.clone(), health })
    }

    /// Runs each job once, beside the clock, and waits until nothing is under way.
    ///
    /// # Errors
    ///
    /// The first job that failed; those after it did not run.
    pub async fn turn(&self) -> Result<(), Failure> {
        for job in &self.jobs.first {
            (job.work)().await?;
        }
        while !self.tasks.is_empty() {
            tokio::time::sleep(LOOK).await;
        }
        for job in &self.jobs.last {
            (job.work)().await?;
        }
        Ok(())
    }

    /// How the jobs fare.
    pub fn health(&self) -> Health {
        self.health.clone()
    }

    /// Stops the clock. Jobs that run go on in their tasks.
    pub async fn stop(mut self) {
        if let Err(error) = self.scheduler.shutdown().await {
            tracing::warn!(%error, "the timetable did not stop cleanly");
        }
    }
}

impl Jobs {
    fn of(wallet: &Wallet, linking: &Linking, events: &Events) -> Self {
        let first = vec![
            // The sweeps themselves go on in tasks of their own, one a provider.
            Job::new("sweep", EVERY_SECOND, wallet, |wallet| async move {
                wallet.sweep().await?;
                Ok(wallet.recover().await?)
            }),
            Job::new("revoke", EVERY_SECOND, wallet, |wallet| async move { wallet.revoke().await }),
            Job::new("heartbeat", EVERY_FIVE_SECONDS, wallet, |wallet| async move { Ok(wallet.beat().await?) }),
            Job::new("warnings", EVERY_TEN_SECONDS, wallet, |wallet| async move { Ok(wallet.warn_of_ends().await?) }),
            Job::new("adopt", EVERY_MINUTE, wallet, |wallet| async move { wallet.adopt().await }),
            Job::new("resume", EVERY_FIVE_SECONDS, linking, |linking| async move { linking.resume().await }),
            Job::new("tidy", EVERY_TEN_SECONDS, linking, |linking| async move { linking.tidy().await }),
        ];
        let last = vec![
            Job::new("number", EVERY_SECOND, events, |events| async move { events.number().await }),
            Job::new("forget", EVERY_MINUTE, events, |events| async move { events.forget().await }),
            Job::new(CENSUS, EVERY_MINUTE, wallet, |wallet| async move { wallet.census().await }),
        ];
        Self { first, last }
    }
}

impl Job {
    fn new<T, F, R>(name: &'static str, when: &'static str, room: &T, work: F) -> Self
    where
        T: Clone + Send + Sync + 'static,
        F: Fn(T) -> R + Send + Sync + 'static,
        R: Future<Output = Result<(), Failure>> + Send + 'static,
    {
        let room = room.clone();
        Self { name, when, work: Arc::new(move || work(room.clone()).boxed()) }
    }

    /// What runs it, unless it runs.
    fn runner(
        &self,
        health: &Health,
        tasks: &TaskTracker,
        closing: &CancellationToken,
    ) -> impl Fn() + Send + Sync + use<> {
        let (tasks, closing, work) = (tasks.clone(), closing.clone(), Arc::clone(&self.work));
        let guard = Arc::new(Guard::new(self.name, health.clone()));
        move || {
            // The scheduler may fire once more after its shutdown has returned.
            if closing.is_cancelled() {
                return;
            }
            if let Some(run) = guard.begin() {
                let work = work();
                tasks.spawn(async move { run.end(&work.await) });
            }
        }
    }
}
