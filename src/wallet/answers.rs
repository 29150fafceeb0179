//! Answers until the store has them: sent to it at once, in the spool if it does not take them soon, never given up
//! while this process lives. They may be the only copy of what they brought.

use std::collections::HashSet;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::flights::{Flight, Landing};
use super::ledger::{FIRST_PAUSE, LAST_PAUSE, Ledger, attempt};
use super::pending::Pending;
use super::spool::{Slip, Spool, SpoolRecord};
use super::{Ids, Inner, Wallet, parked, spread};
use crate::clock::Timestamp;
use crate::domain::error::Failure;
use crate::domain::event::{Event, EventKind};
use crate::domain::grant::{Freshness, Grant};
use crate::domain::ids::FlowId;
use crate::domain::provider::TokenAnswer;
use crate::domain::spool::{Entry, ExchangeAnswer, RefreshAnswer};
use crate::failpoint::failpoint;
use crate::providers::Provider;
use crate::store::{Engine, GrantChange, Outcome, Recorded, Stale, Store, StoreError};
use crate::telemetry::metrics;
use crate::vault::{Sealed, VaultError};

/// An answer that the store has not taken by then is spooled.
const SPOOLED_AFTER: Duration = Duration::from_millis(150);

/// Who waits for a token that cannot be served before the store has it is told so by then.
const TOLD_AFTER: Duration = Duration::from_secs(3);

/// At shutdown, how long the last answers may take to get into the spool.
const FLUSH: Duration = Duration::from_secs(2);

/// What keeps answers until the store has them.
pub(super) struct Answers {
    ledger: Ledger,
    spool: Spool,
    pub(super) pending: Pending,
    /// How long a spooled token is served; `None` is for as long as the store takes.
    serve_for: Option<Duration>,
    /// Flows whose answer is here and not with the store.
    flows: Mutex<HashSet<FlowId>>,
    /// Holds a token for each answer that is in memory only.
    afloat: TaskTracker,
    /// Cancelled when everything that is still afloat must get into the spool.
    flushing: CancellationToken,
    /// Cancelled when nobody waits for the store any more.
    closing: CancellationToken,
}

/// Where an answer is now.
enum Safe<T> {
    /// In the store, or refused by it.
    Stored(T),
    /// In the spool; `None` if that cannot be written, so that it is in memory only.
    Spooled(Option<Slip>),
}

/// A flow is here for as long as this.
struct Here<'a> {
    flow: FlowId,
    answers: &'a Answers,
}

impl Answers {
    /// `serve_during_store_outage` counts where other processes write to the store too.
    pub(super) fn new(store: &Store, spool: Spool, serve_during_store_outage: Duration) -> Self {
        let closing = CancellationToken::new();
        Self {
            ledger: Ledger::new(store.clone(), closing.clone()),
            spool,
            pending: Pending::default(),
            serve_for: (store.engine() == Engine::Postgres).then_some(serve_during_store_outage),
            flows: Mutex::default(),
            afloat: TaskTracker::new(),
            flushing: CancellationToken::new(),
            closing,
        }
    }

    /// Waits for `storing`. If that takes too long, spools the answer and says so to `when_spooled`; one that is spooled
    /// already brings its slip.
    async fn until_stored<T>(
        &self,
        entry: &Entry,
        slip: Option<Slip>,
        storing: impl Future<Output = T>,
        when_spooled: impl FnOnce(),
    ) -> (T, Option<Slip>) {
        let mut storing = pin!(storing);
        let slip = if slip.is_some() {
            slip
        } else {
            match self.until_safe(entry, storing.as_mut()).await {
                Safe::Stored(stored) => return (stored, None),
                Safe::Spooled(slip) => slip,
            }
        };
        if slip.is_some() {
            when_spooled();
        }
        (storing.await, slip)
    }

    /// Waits until an answer that is in memory only is stored or spooled.
    async fn until_safe<T>(&self, entry: &Entry, mut storing: Pin<&mut impl Future<Output = T>>) -> Safe<T> {
        let _afloat = self.afloat.token();
        #[expect(clippy::disallowed_methods, reason = "how long it really took")]
        let answered_at = tokio::time::Instant::now();
        let stored = |stored| {
            metrics::answer_durable(answered_at.elapsed());
            Safe::Stored(stored)
        };
        tokio::select! {
            biased;
            done = &mut storing => return stored(done),
            () = tokio::time::sleep(SPOOLED_AFTER) => {}
            () = self.flushing.cancelled() => {}
        }
        let mut spooling = Box::pin(self.spool.append(entry));
        tokio::select! {
            done = &mut storing => {
                tokio::spawn(async { spooling.await.map(Slip::done) });
                stored(done)
            }
            spooled = &mut spooling => {
                if spooled.is_ok() {
                    metrics::answer_durable(answered_at.elapsed());
                }
                // Why not was logged where it failed.
                Safe::Spooled(spooled.ok())
            }
        }
    }

    /// What the store cannot take, now or later, stays in the spool for somebody to look at.
    async fn set_aside(&self, entry: &Entry, slip: Option<Slip>) {
        if slip.is_none() {
            // Logged where it fails.
            drop(self.spool.append(entry).await);
        }
    }

    /// Writes what is in memory only to the spool, and lets go.
    async fn close(&self) {
        self.flushing.cancel();
        self.afloat.close();
        if tokio::time::timeout(FLUSH, self.afloat.wait()).await.is_err() {
            tracing::error!(answers = self.afloat.len(), "stopped with answers that are neither stored nor spooled");
        }
        self.closing.cancel();
        self.spool.close().await;
    }

    fn here(&self, flow: FlowId) -> Here<'_> {
        self.flows().insert(flow);
        Here { flow, answers: self }
    }

    fn flows(&self) -> MutexGuard<'_, HashSet<FlowId>> {
        // The set is whole between any two statements.
        self.flows.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Here<'_> {
    fn drop(&mut self) {
        self.answers.flows().remove(&self.flow);
    }
}

impl Wallet {
    /// Goes on with what a former life left in the spool. Before anything else of this life: until the store has an
    /// answer, its grant is not refreshed and its flow is not given up by this process.
    pub fn replay(&self, leftovers: Vec<SpoolRecord>) {
        if !leftovers.is_empty() {
            tracing::warn!(answers = leftovers.len(), "storing answers that were left in the spool");
        }
        for SpoolRecord { entry, slip } in leftovers {
            let inner = Arc::clone(&self.0);
            match entry {
                Entry::Refresh(answer) => {
                    // Without a flight of its own it is another answer's of this grant.
                    let (_, flight) = inner.flights.board(answer.grant);
                    self.0.tasks.spawn(async move {
                        // Announced, if perhaps in vain: its provider is not known here.
                        let landing = inner.store_refresh(answer, true, Some(slip), flight.as_ref()).await;
                        if let Some(flight) = flight {
                            flight.land(landing);
                        }
                    });
                }
                Entry::Exchange(answer) => {
                    self.0.answers.flows().insert(answer.flow);
                    self.0.tasks.spawn(async move {
                        // Logged where it fails.
                        let _ = inner.park(answer, Some(slip)).await;
                    });
                }
            }
        }
    }

    /// The flows whose code was answered and whose answer is not in the store yet.
    pub fn answered_flows(&self) -> Vec<FlowId> {
        self.0.answers.flows().iter().copied().collect()
    }

    /// Whether the spool can be written.
    pub async fn spool_is_writable(&self) -> bool {
        let checked = tokio::time::timeout(FLUSH, self.0.answers.spool.check()).await;
        match checked {
            Ok(Ok(())) => true,
            Ok(Err(error)) => {
                tracing::error!(%error, "the spool cannot be written");
                false
            }
            Err(_) => {
                tracing::error!("the spool is not written in time");
                false
            }
        }
    }

    /// The end: what the store has not taken is in the spool afterwards.
    pub async fn close(&self) {
        self.0.answers.close().await;
    }
}

impl Inner {
    /// Stores what a refresh brought. Passengers of `flight` are told as soon as the new token can be served.
    pub(super) async fn keep(
        &self,
        flight: &Flight,
        provider: &Provider,
        grant: &Grant,
        answer: TokenAnswer,
        sent_at: Timestamp,
    ) -> Landing {
        let (idle, load) = (provider.entry.idle_life(), self.load(provider.id));
        let freshness = Freshness::of(&answer, true, idle, sent_at, load, spread());
        let answer = RefreshAnswer {
            grant: grant.id,
            account: grant.account,
            user: grant.user.clone(),
            provider: grant.provider,
            fence: grant.fence,
            sent_at,
            due_at: freshness.due_at,
            keep_alive_at: freshness.keep_alive_at,
            answer,
        };
        self.store_refresh(answer, provider.entry.refresh_kills_access_token, None, Some(flight)).await
    }

    /// With `kills` the other replicas are told that the access token before this one is good for nothing any more.
    async fn store_refresh(
        &self,
        answer: RefreshAnswer,
        kills: bool,
        slip: Option<Slip>,
        flight: Option<&Flight>,
    ) -> Landing {
        let (grant, fence, provider, user) = (answer.grant, answer.fence, answer.provider, answer.user.clone());
        let change = match self.change_of(&answer, kills) {
            Ok(change) => change,
            Err(error) => {
                tracing::error!(%grant, %error, "could not seal a refreshed token");
                return Landing::Failed(Failure::Internal);
            }
        };
        let answers = &self.answers;
        let tell = |landing| {
            if let Some(flight) = flight {
                flight.tell(landing);
            }
        };
        let serve_for = answers.serve_for;
        let when_spooled = || {
            failpoint!("refresh.spooled");
            if serve_for != Some(Duration::ZERO) {
                let until = serve_for.map(|span| self.clock.now().plus(span));
                answers.pending.insert(change.clone(), until);
                tell(Landing::Refreshed);
            }
        };
        let entry = Entry::Refresh(answer);
        let storing = answers.ledger.commit(change.clone());
        let mut stored = pin!(answers.until_stored(&entry, slip, storing, when_spooled));
        let in_time = tokio::time::timeout(TOLD_AFTER, &mut stored).await;
        let (stored, slip) = if let Ok(stored) = in_time {
            stored
        } else {
            tell(Landing::Failed(Failure::StoreUnavailable));
            stored.await
        };
        match stored {
            Ok(recorded) => {
                failpoint!("refresh.committed");
                // Memory first: until it has the token, what is pending lies over it.
                self.renew(&user, provider).await;
                answers.pending.remove(grant, fence);
                if let Some(slip) = slip {
                    slip.done();
                    tracing::info!(%grant, fence, ?recorded, "a spooled answer is out of the spool");
                }
                if recorded == Recorded::Superseded { Landing::Elsewhere } else { Landing::Refreshed }
            }
            Err(error) => {
                if !error.is_transient() {
                    tracing::error!(%grant, fence, %error, "a refreshed token cannot be stored; it stays in the spool");
                    answers.set_aside(&entry, slip).await;
                }
                Landing::Failed(error.into())
            }
        }
    }

    /// The change that stores a refresh's answer.
    fn change_of(&self, refresh: &RefreshAnswer, kills: bool) -> Result<GrantChange, VaultError> {
        let RefreshAnswer { grant, account, user, provider, fence, sent_at, due_at, keep_alive_at, answer } = refresh;
        let ids = Ids::new(*grant, *account, user, *provider);
        let refresh_token = answer.refresh_token.as_ref();
        let at = self.clock.now();
        let event = Event::new(EventKind::AccountRecovered, at, user.clone(), *provider);
        Ok(GrantChange {
            grant: *grant,
            account: *account,
            fence: *fence,
            outcome: Outcome::Refreshed {
                access_token: self.vault.seal(&answer.access_token, &ids.at(*fence))?,
                refresh_token: refresh_token.map(|token| self.vault.seal(token, &ids.at(*fence))).transpose()?,
                token_type: answer.token_type.clone(),
                scopes: answer.scopes.clone(),
                metadata: answer.metadata.clone(),
                freshness: Freshness {
                    issued_at: *sent_at,
                    lifetime: answer.lifetime,
                    due_at: *due_at,
                    keep_alive_at: *keep_alive_at,
                },
            },
            announce: kills.then(|| Stale::of(&event)),
            event: Some(event.account(*account).grant(*grant)),
            at,
        })
    }

    /// Parks the answer to a code with its flow.
    pub(super) async fn park(&self, answer: ExchangeAnswer, slip: Option<Slip>) -> Result<(), Failure> {
        let (answers, flow) = (&self.answers, answer.flow);
        let _here = answers.here(flow);
        let sealed = self.vault.seal(&answer.answer, &parked(&flow.to_string())).map_err(|error| {
            tracing::error!(%flow, %error, "could not seal a provider's answer");
            Failure::Internal
        })?;
        let entry = Entry::Exchange(answer);
        let storing = Box::pin(self.park_surely(flow, &sealed));
        let spooled = || {
            failpoint!("link.spooled");
        };
        let (stored, slip) = answers.until_stored(&entry, slip, storing, spooled).await;
        match stored {
            Ok(parked) => {
                if let Some(slip) = slip {
                    slip.done();
                    tracing::info!(%flow, parked, "a spooled answer is out of the spool");
                }
                if parked { Ok(()) } else { Err(Failure::FlowOutcomeUnknown) }
            }
            Err(error) => {
                if !error.is_transient() {
                    tracing::error!(%flow, %error, "the answer to a code cannot be parked; it stays in the spool");
                    answers.set_aside(&entry, slip).await;
                }
                Err(error.into())
            }
        }
    }

    /// Offers an answer to the store until it is taken; gives up only on a fault that time does not heal.
    async fn park_surely(&self, flow: FlowId, sealed: &Sealed<TokenAnswer>) -> Result<bool, StoreError> {
        let mut pause = FIRST_PAUSE;
        loop {
            match attempt(self.store.park_answer(flow, self.replica, sealed)).await {
                Err(error) if error.is_transient() && !self.answers.closing.is_cancelled() => {
                    tracing::warn!(%flow, %error, "the store does not take a provider's answer; trying again");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(LAST_PAUSE);
                }
                result => return result,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::domain::ids::InstanceId;
    use crate::domain::provider::Lifetime;
    use crate::domain::secret::{AccessToken, RefreshToken};
    use crate::vault::{RootKey, Vault};
    use crate::wallet::spool::Whose;

    const NOW: Timestamp = Timestamp::from_millis(1_800_000_000_000);

    struct Home {
        folder: tempfile::TempDir,
        store: Store,
        whose: Whose,
        vault: Arc<Vault>,
    }

    impl Home {
        async fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let store = Store::open(&format!("sqlite:{}", folder.path().join("t.db").display()), 1).await.unwrap();
            let instance = InstanceId::new(NOW);
            let vault = Arc::new(Vault::create(&RootKey::generate(), instance, NOW).unwrap().0);
            Self { folder, store, whose: Whose { instance, replica: None }, vault }
        }

        fn open(&self) -> (Answers, usize) {
            let (spool, leftovers) = Spool::open(self.folder.path(), self.whose, Arc::clone(&self.vault), NOW).unwrap();
            (Answers::new(&self.store, spool, Duration::ZERO), leftovers.len())
        }
    }

    fn entry() -> Entry {
        let answer = TokenAnswer {
            access_token: AccessToken::new("a".repeat(1_000)),
            refresh_token: Some(RefreshToken::new("r".repeat(1_000))),
            token_type: "Bearer".to_owned(),
            lifetime: Lifetime::Endless,
            scopes: None,
            metadata: [].into(),
        };
        Entry::Exchange(ExchangeAnswer { flow: FlowId::new(NOW), answer })
    }

    #[tokio::test]
    async fn s8_what_is_in_memory_only_at_the_end_is_in_the_spool_afterwards() {
        let home = Home::new().await;
        let (answers, _) = home.open();
        let answers = Arc::new(answers);
        for _ in 0..50 {
            let answers = Arc::clone(&answers);
            tokio::spawn(
                async move { answers.until_stored(&entry(), None, std::future::pending::<()>(), || {}).await },
            );
        }
        tokio::task::yield_now().await;
        // Well before any of them is spooled by itself.
        answers.close().await;
        assert_eq!(home.open().1, 50);
    }

    #[tokio::test]
    async fn s2_hundreds_of_answers_that_wait_are_all_spooled() {
        let home = Home::new().await;
        let (answers, _) = home.open();
        let (answers, spooled) = (Arc::new(answers), Arc::new(AtomicUsize::new(0)));
        for _ in 0..400 {
            let (answers, spooled) = (Arc::clone(&answers), Arc::clone(&spooled));
            tokio::spawn(async move {
                let count = || {
                    spooled.fetch_add(1, Ordering::SeqCst);
                };
                answers.until_stored(&entry(), None, std::future::pending::<()>(), count).await
            });
        }
        let all = async {
            while spooled.load(Ordering::SeqCst) < 400 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        // A tenth of a second, but for a machine that is busy with other tests.
        tokio::time::timeout(Duration::from_secs(3), all).await.unwrap();
        answers.close().await;
        assert_eq!(home.open().1, 400);
    }

    #[tokio::test]
    async fn an_answer_that_is_stored_in_time_or_while_it_is_spooled_does_not_stay_in_the_spool() {
        let home = Home::new().await;
        let (answers, _) = home.open();
        let (stored, slip) = answers.until_stored(&entry(), None, async { 1 }, || panic!("not spooled")).await;
        assert!((stored, slip.is_none()) == (1, true));
        for after in [150, 151, 152, 155] {
            let storing = async { tokio::time::sleep(Duration::from_millis(after)).await };
            if let ((), Some(slip)) = answers.until_stored(&entry(), None, storing, || {}).await {
                slip.done();
            }
        }
        // Whatever was on its way has got there, and what follows it too.
        tokio::task::yield_now().await;
        answers.spool.check().await.unwrap();
        answers.close().await;
        assert_eq!(home.open().1, 0);
    }
}
