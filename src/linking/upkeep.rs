//! What happens to flows by the clock: expiry, resumption, removal.

use std::time::Duration;

use super::Linking;
use crate::clock::Timestamp;
use crate::domain::error::Failure;
use crate::domain::ids::FlowId;

/// A code that was claimed this long ago, and whose redeemer knows nothing of it, or is silent, was redeemed by nobody.
const ABANDONED_AFTER: Duration = Duration::from_mins(1);

/// A parked answer is left alone for this long: its own call is probably at it.
const LEFT_AFTER: Duration = Duration::from_secs(15);

/// An answer that has been parked for this long without becoming an account, because its profile cannot be read, is
/// given up. So long the store must have been there too, for it to be tried.
const GIVEN_UP_AFTER: Duration = Duration::from_hours(1);

/// Ended flows stay this long: long enough to tell an outcome again, and to look into one.
const KEEP_ENDED: Duration = Duration::from_hours(24);

/// What replicas are to drop from memory stays in the log for this long; one that was away longer drops everything.
const KEEP_COHERENCE: Duration = Duration::from_mins(10);

/// Parked answers that one run takes on.
const BATCH: u32 = 100;

impl Linking {
    /// Fails flows that ran out of time, and removes what ended or was answered long ago.
    pub async fn tidy(&self) -> Result<(), Failure> {
        let now = self.0.clock.now();
        self.0.store.expire_flows(now).await?;
        // If nobody can be taken to be silent now, it is those who were forgotten long ago.
        let heard_since = self.0.wallet.silence().unwrap_or(Timestamp::from_millis(0));
        self.abandon(now.minus(ABANDONED_AFTER), heard_since, now).await?;
        self.0.store.delete_flows(now.minus(KEEP_ENDED)).await?;
        self.0.store.tidy_coherence(now.minus(KEEP_COHERENCE)).await?;
        self.0.store.tidy_requests(now).await?;
        Ok(())
    }

    /// Finishes flows whose code was redeemed a while ago and whose account is not there yet. All at once, so that a
    /// provider that hangs keeps nobody else's flow waiting.
    pub async fn resume(&self) -> Result<(), Failure> {
        let before = self.0.clock.now().minus(LEFT_AFTER);
        let flows = self.0.store.parked_flows(before, BATCH).await?;
        let finish = async |flow| match self.finish(flow).await {
            Ok(_) => tracing::info!(%flow, "finished a link that was left in the middle"),
            Err(failure) => {
                tracing::warn!(%flow, %failure, "a link left in the middle is not finished yet");
                self.give_up(flow).await;
            }
        };
        futures_util::future::join_all(flows.into_iter().map(finish)).await;
        Ok(())
    }

    /// Gives up a parked answer that was just tried in vain, if that has gone on for long.
    async fn give_up(&self, flow: FlowId) {
        let now = self.0.clock.now();
        let long_ago = now.minus(GIVEN_UP_AFTER);
        if self.0.wallet.reachable_since().is_none_or(|since| since > long_ago) {
            return;
        }
        match self.0.store.give_up_parked_flow(flow, long_ago, now).await {
            Ok(true) => tracing::error!(%flow, "a link is given up: its account's profile cannot be read"),
            Ok(false) => {}
            Err(error) => tracing::warn!(%flow, %error, "could not give up a link"),
        }
    }

    /// At the start: codes that this replica's last life had claimed have no owner any more, but for those whose answer
    /// is here.
    pub async fn recover(&self) -> Result<(), Failure> {
        let now = self.0.clock.now();
        let abandoned = self.abandon(now.plus(Duration::from_millis(1)), Timestamp::from_millis(0), now).await?;
        if abandoned > 0 {
            tracing::warn!(
                abandoned,
                "links were cut off while their code was being redeemed; they must be begun again"
            );
        }
        Ok(())
    }

    async fn abandon(&self, claimed_before: Timestamp, heard_since: Timestamp, now: Timestamp) -> Result<u64, Failure> {
        let here = self.0.wallet.flows_here();
        Ok(self.0.store.abandon_claimed_flows(claimed_before, self.0.replica, &here, heard_since, now).await?)
    }
}
