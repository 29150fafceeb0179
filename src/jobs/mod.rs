//! The timetable: what runs by the clock.
//!
//! The scheduler says when; the work runs in our own tasks, one run of a job at a time.

mod guard;

use std::future::Future;
use std::sync::Arc;

use tokio_cron_scheduler::{Job, JobScheduler, JobSchedulerError};
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

/// The timetable does not start.
#[derive(Debug, thiserror::Error)]
#[error("the timetable does not start: {0}")]
pub struct JobsError(#[from] JobSchedulerError);

/// The running timetable.
pub struct Timetable {
    scheduler: JobScheduler,
    health: Health,
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
        let plan = Plan { scheduler: JobScheduler::new().await?, tasks, closing, health: Health::default() };
        let (sweeping, beating) = (wallet.clone(), wallet.clone());
        let (warning, counting, adopting) = (wallet.clone(), wallet.clone(), wallet.clone());
        let (tidying, resuming, revoking) = (linking.clone(), linking.clone(), wallet.clone());
        let (numbering, forgetting) = (events.clone(), events.clone());
        plan.add("sweep", EVERY_SECOND, move || {
            let wallet = sweeping.clone();
            // The sweeps themselves go on in tasks of their own, one a provider.
            async move {
                wallet.sweep().await?;
                Ok(wallet.recover().await?)
            }
        })
        .await?;
        plan.add("revoke", EVERY_SECOND, move || {
            let wallet = revoking.clone();
            async move { wallet.revoke().await }
        })
        .await?;
        plan.add("heartbeat", EVERY_FIVE_SECONDS, move || {
            let wallet = beating.clone();
            async move { Ok(wallet.beat().await?) }
        })
        .await?;
        plan.add("warnings", EVERY_TEN_SECONDS, move || {
            let wallet = warning.clone();
            async move { Ok(wallet.warn_of_ends().await?) }
        })
        .await?;
        let census = plan.runner("census", move || {
            let wallet = counting.clone();
            async move { wallet.census().await }
        });
        // Alerts look at what it counts.
        census();
        plan.schedule(EVERY_MINUTE, census).await?;
        plan.add("adopt", EVERY_MINUTE, move || {
            let wallet = adopting.clone();
            async move { wallet.adopt().await }
        })
        .await?;
        plan.add("resume", EVERY_FIVE_SECONDS, move || {
            let linking = resuming.clone();
            async move { linking.resume().await }
        })
        .await?;
        plan.add("tidy", EVERY_TEN_SECONDS, move || {
            let linking = tidying.clone();
            async move { linking.tidy().await }
        })
        .await?;
        plan.add("number", EVERY_SECOND, move || {
            let events = numbering.clone();
            async move { events.number().await }
        })
        .await?;
        plan.add("forget", EVERY_MINUTE, move || {
            let events = forgetting.clone();
            async move { events.forget().await }
        })
        .await?;
        plan.scheduler.start().await?;
        Ok(Self { scheduler: plan.scheduler, health: plan.health })
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

struct Plan<'a> {
    scheduler: JobScheduler,
    tasks: &'a TaskTracker,
    closing: &'a CancellationToken,
    health: Health,
}

impl Plan<'_> {
    async fn add<F, R>(&self, name: &'static str, when: &str, job: F) -> Result<(), JobsError>
    where
        F: Fn() -> R + Send + Sync + 'static,
        R: Future<Output = Result<(), Failure>> + Send + 'static,
    {
        self.schedule(when, self.runner(name, job)).await
    }

    async fn schedule(&self, when: &str, run: impl Fn() + Send + Sync + 'static) -> Result<(), JobsError> {
        self.scheduler.add(Job::new(when, move |_, _| run())?).await?;
        Ok(())
    }

    /// What runs a job, unless it runs.
    fn runner<F, R>(&self, name: &'static str, job: F) -> impl Fn() + Send + Sync + use<F, R>
    where
        F: Fn() -> R + Send + Sync + 'static,
        R: Future<Output = Result<(), Failure>> + Send + 'static,
    {
        let (tasks, closing) = (self.tasks.clone(), self.closing.clone());
        let guard = Arc::new(Guard::new(name, self.health.clone()));
        move || {
            // The scheduler may fire once more after its shutdown has returned.
            if closing.is_cancelled() {
                return;
            }
            if let Some(run) = guard.begin() {
                let work = job();
                tasks.spawn(async move { run.end(&work.await) });
            }
        }
    }
}
