//! Creating calls that carry a `request_id`: whoever repeats one, because its answer was lost, gets the same answer and
//! makes nothing twice.
//!
//! A call is reserved before anything is made; what it makes and the note of its answer are one transaction, which
//! fails if the reservation is not the same any more. So it does not matter whether a commit was heard of, how long a
//! call takes, or where its process dies: one that was answered is answered the same, and one that was not made nothing.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;
use tracing::Instrument as _;
use zeroize::Zeroizing;

use crate::clock::Clock;
use crate::domain::error::Failure;
use crate::domain::request::{Answer, Asked, RequestKey};
use crate::store::{Note, Store};
use crate::vault::{Cell, Owner, Sealed, Vault};

/// How long a `request_id` makes nothing twice. Its answer may be told for less.
pub const KEPT: Duration = Duration::from_hours(24);

/// How long a call that is being answered is not begun anew: longer than any unary call may take.
const LEASE: Duration = Duration::from_secs(30);

/// How many calls are answered at once. They outlive their callers, whom the connections bound.
const AT_ONCE: usize = 64;

/// Remembers creating calls. Cheap to clone.
#[derive(Clone)]
pub struct Requests {
    store: Store,
    /// An answer may hold an API key.
    vault: Arc<Vault>,
    clock: Clock,
    tasks: TaskTracker,
    places: Arc<Semaphore>,
}

/// A call that is being answered, and by nobody else.
#[derive(Clone)]
pub struct Reservation {
    requests: Requests,
    key: RequestKey,
    asked: Sealed<Asked>,
}

impl Requests {
    /// Kept in `store`, sealed by `vault`. `tasks` runs calls that outlive their callers, so that whoever repeats one
    /// hears what came of it.
    pub fn new(store: Store, vault: Arc<Vault>, clock: Clock, tasks: TaskTracker) -> Self {
        Self { store, vault, clock, tasks, places: Arc::new(Semaphore::new(AT_ONCE)) }
    }

    /// Does `work`, which writes the note of its answer ([`Reservation::note`]) with what it makes; or answers what was
    /// answered before. Failures are not remembered.
    ///
    /// # Errors
    ///
    /// [`Failure::InvalidField`] for an id that cannot be one, [`Failure::RequestIdReused`] if it was used for another
    /// request than `asked`, [`Failure::RequestInProgress`] while another call with it is being answered,
    /// [`Failure::RequestAnswerGone`] if its answer is told no more, the store's, and those of `work`.
    pub async fn once<F>(
        &self,
        key: RequestKey,
        asked: [u8; 32],
        work: impl FnOnce(Reservation) -> F,
    ) -> Result<Zeroizing<Vec<u8>>, Failure>
    where
        F: Future<Output = Result<Zeroizing<Vec<u8>>, Failure>> + Send + 'static,
    {
        if !(1..=128).contains(&key.id.len()) || !key.id.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(Failure::field("request_id", "must be at most 128 visible ASCII characters, such as a UUID"));
        }
        let place = Arc::clone(&self.places).acquire_owned().await.map_err(|_| Failure::Internal)?;
        let (row, asked) = (row(&key), Asked(asked));
        let sealed = self.vault.seal(&asked, &owner(&row)).map_err(|error| {
            tracing::error!(method = key.method, %error, "could not seal a creating call");
            Failure::Internal
        })?;
        let reservation = Reservation { requests: self.clone(), key, asked: sealed };
        let work = work(reservation.clone());
        let task = async move {
            let _place = place;
            if let Some(answer) = reservation.begin(asked).await? {
                return Ok(answer);
            }
            let answer = work.await;
            if answer.is_err() {
                reservation.forget().await;
            }
            answer
        };
        self.tasks.spawn(task.in_current_span()).await.unwrap_or(Err(Failure::Internal))
    }
}

impl Reservation {
    /// The note of this answer, to be written in the transaction that makes what it tells of. It is told again for
    /// `told`, at most [`KEPT`].
    pub fn note(&self, answer: Zeroizing<Vec<u8>>, told: Duration) -> Result<Note, Failure> {
        let Requests { vault, clock, .. } = &self.requests;
        let answer = vault.seal(&Answer(answer), &owner(&row(&self.key))).map_err(|error| {
            tracing::error!(method = self.key.method, %error, "could not seal a creating call's answer");
            Failure::Internal
        })?;
        Ok(Note { key: self.key.clone(), asked: self.asked.clone(), answer, told_until: clock.now().plus(told) })
    }

    /// Reserves the call, or answers what it was answered before.
    async fn begin(&self, asked: Asked) -> Result<Option<Zeroizing<Vec<u8>>>, Failure> {
        let Self { requests: Requests { store, clock, .. }, key, asked: sealed } = self;
        let now = clock.now();
        let (lease_until, expires_at) = (now.plus(LEASE), now.plus(KEPT));
        if store.reserve_request(key, sealed, lease_until, now, expires_at).await? {
            return Ok(None);
        }
        // Forgotten at this moment: it failed, and may be made again.
        let before = store.request(key, now).await?.ok_or(Failure::RequestInProgress)?;
        if self.open(&before.asked)? != asked {
            return Err(Failure::RequestIdReused);
        }
        if let Some(answer) = &before.answer {
            return self.open(answer).map(|Answer(answer)| Some(answer));
        }
        match before.lease_until {
            None => Err(Failure::RequestAnswerGone),
            Some(until) if until > now => Err(Failure::RequestInProgress),
            // Whoever began it died, or takes too long.
            Some(_) => {
                let taken = store.take_over_request(key, &before.asked, sealed, lease_until, expires_at).await?;
                if taken { Ok(None) } else { Err(Failure::RequestInProgress) }
            }
        }
    }

    /// It failed, unless it was answered and its commit was not heard of.
    async fn forget(&self) {
        if let Err(error) = self.requests.store.forget_request(&self.key, &self.asked).await {
            tracing::warn!(method = self.key.method, %error, "a creating call that failed can be made again later only");
        }
    }

    fn open<T: Cell>(&self, sealed: &Sealed<T>) -> Result<T, Failure> {
        self.requests.vault.open_cell(sealed, &owner(&row(&self.key))).map_err(|error| {
            tracing::error!(method = self.key.method, %error, "the note of a creating call does not open");
            Failure::Internal
        })
    }
}

fn row(key: &RequestKey) -> String {
    format!("{} {} {}", key.client, key.method, key.id)
}

const fn owner(row: &str) -> Owner<'_> {
    Owner { row, account: "", user: "", provider: "", generation: 0 }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::clock::Timestamp;
    use crate::domain::ids::{ApiClientId, InstanceId};
    use crate::vault::RootKey;

    #[tokio::test]
    async fn no_more_calls_are_answered_at_once_than_there_are_places() {
        const NOW: Timestamp = Timestamp::from_millis(1_800_000_000_000);
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&format!("sqlite:{}", folder.path().join("wallet.db").display()), 4).await.unwrap();
        store.migrate().await.unwrap();
        let vault = Arc::new(Vault::create(&RootKey::generate(), InstanceId::new(NOW), NOW).unwrap().0);
        let requests = Requests::new(store, vault, Clock::moved(NOW).0, TaskTracker::new());
        let (under_way, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let gate = Arc::new(Semaphore::new(0));
        let client = ApiClientId::new(NOW);
        let calls = (0..AT_ONCE + 20).map(|n| {
            let (under_way, most, gate, requests) = (under_way.clone(), most.clone(), gate.clone(), requests.clone());
            let key = RequestKey { client, method: "Test", id: n.to_string() };
            async move {
                let work = |_| async move {
                    most.fetch_max(under_way.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    let passed = gate.acquire().await.map(drop);
                    under_way.fetch_sub(1, Ordering::SeqCst);
                    passed.map(|()| Zeroizing::new(Vec::new())).map_err(|_| Failure::Internal)
                };
                requests.once(key, [0; 32], work).await
            }
        });
        let opened = async {
            // All places are taken. Who finds one there when the gate opens, comes after one that left.
            while under_way.load(Ordering::SeqCst) < AT_ONCE {
                tokio::task::yield_now().await;
            }
            assert_eq!(requests.places.available_permits(), 0);
            gate.add_permits(1);
        };
        let (answers, ()) = tokio::join!(futures_util::future::join_all(calls), opened);
        assert!(answers.iter().all(Result::is_ok));
        assert_eq!(most.load(Ordering::SeqCst), AT_ONCE);
    }
}
