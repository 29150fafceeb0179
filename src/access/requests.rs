//! Creating calls that carry a `request_id`: whoever repeats one, because its answer was lost, gets the same answer and
//! makes nothing twice.
//!
//! What was made and the note of it are not one transaction. If the process dies between the two, or the store does not
//! take the note, the call is made anew by whoever repeats it after half a minute.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::task::TaskTracker;
use tracing::Instrument as _;
use zeroize::Zeroizing;

use crate::clock::Clock;
use crate::domain::error::Failure;
use crate::domain::request::{Request, RequestKey};
use crate::store::Store;
use crate::vault::{Owner, Sealed, Vault};

/// How long a call is answered again.
const KEPT: Duration = Duration::from_hours(24);

/// How long a call that is being answered is not begun anew: longer than any unary call may take.
const LEASE: Duration = Duration::from_secs(30);

/// Remembers creating calls. Cheap to clone.
#[derive(Clone)]
pub struct Requests {
    /// Where they are kept.
    pub store: Store,
    /// Seals them: an answer may hold an API key.
    pub vault: Arc<Vault>,
    /// The time.
    pub clock: Clock,
    /// Runs calls that outlive their callers, so that whoever repeats one hears what came of it.
    pub tasks: TaskTracker,
}

impl Requests {
    /// Does `work` and remembers its answer, or answers what it answered before. Failures are not remembered.
    ///
    /// # Errors
    ///
    /// [`Failure::InvalidField`] for an id that cannot be one, [`Failure::RequestIdReused`] if it was used for another
    /// request than `asked`, [`Failure::RequestInProgress`] while another call with it is being answered, the store's,
    /// and those of `work`.
    pub async fn once(
        &self,
        key: RequestKey,
        asked: [u8; 32],
        work: impl Future<Output = Result<Zeroizing<Vec<u8>>, Failure>> + Send + 'static,
    ) -> Result<Zeroizing<Vec<u8>>, Failure> {
        if !(1..=128).contains(&key.id.len()) || !key.id.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(Failure::field("request_id", "must be at most 128 visible ASCII characters, such as a UUID"));
        }
        let requests = self.clone();
        let task = async move {
            match requests.begin(&key, asked).await? {
                Begun::Before(answer) => Ok(answer),
                Begun::Now(record) => {
                    let answer = work.await;
                    requests.note(&key, &record, asked, answer.as_deref()).await;
                    answer
                }
            }
        };
        self.tasks.spawn(task.in_current_span()).await.unwrap_or(Err(Failure::Internal))
    }

    async fn begin(&self, key: &RequestKey, asked: [u8; 32]) -> Result<Begun, Failure> {
        let now = self.clock.now();
        let (lease_until, expires_at) = (now.plus(LEASE), now.plus(KEPT));
        let record = self.seal(key, &Request { asked, answer: None })?;
        if self.store.reserve_request(key, &record, lease_until, now, expires_at).await? {
            return Ok(Begun::Now(record));
        }
        // Forgotten at this moment: it failed, and may be made again.
        let before = self.store.request(key, now).await?.ok_or(Failure::RequestInProgress)?;
        let known = self.open(key, &before.record)?;
        if known.asked != asked {
            return Err(Failure::RequestIdReused);
        }
        if let Some(answer) = known.answer {
            return Ok(Begun::Before(answer));
        }
        if before.lease_until.is_some_and(|until| until > now) {
            return Err(Failure::RequestInProgress);
        }
        // Whoever began it died, or could not tell.
        let taken = self.store.replace_request(key, &before.record, &record, Some(lease_until), expires_at).await?;
        if taken { Ok(Begun::Now(record)) } else { Err(Failure::RequestInProgress) }
    }

    /// The call is answered, whether or not this succeeds.
    async fn note(
        &self,
        key: &RequestKey,
        record: &Sealed<Request>,
        asked: [u8; 32],
        answer: Result<&Vec<u8>, &Failure>,
    ) {
        let noted = match answer {
            Ok(answer) => match self.seal(key, &Request { asked, answer: Some(Zeroizing::new(answer.clone())) }) {
                Ok(answered) => {
                    let expires_at = self.clock.now().plus(KEPT);
                    self.store.replace_request(key, record, &answered, None, expires_at).await.map(drop)
                }
                Err(_) => return,
            },
            Err(_) => self.store.forget_request(key, record).await,
        };
        if let Err(error) = noted {
            tracing::warn!(method = key.method, %error, "could not note a creating call: repeated, it is made anew");
        }
    }

    fn seal(&self, key: &RequestKey, request: &Request) -> Result<Sealed<Request>, Failure> {
        self.vault.seal(request, &owner(&row(key))).map_err(|error| {
            tracing::error!(method = key.method, %error, "could not seal a creating call");
            Failure::Internal
        })
    }

    fn open(&self, key: &RequestKey, record: &Sealed<Request>) -> Result<Request, Failure> {
        self.vault.open_cell(record, &owner(&row(key))).map_err(|error| {
            tracing::error!(method = key.method, %error, "the note of a creating call does not open");
            Failure::Internal
        })
    }
}

enum Begun {
    /// By this call.
    Now(Sealed<Request>),
    /// It was answered.
    Before(Zeroizing<Vec<u8>>),
}

fn row(key: &RequestKey) -> String {
    format!("{} {} {}", key.client, key.method, key.id)
}

const fn owner(row: &str) -> Owner<'_> {
    Owner { row, account: "", user: "", provider: "", generation: 0 }
}
