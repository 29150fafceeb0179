//! What happens to flows by the clock: expiry, resumption, removal.

use std::time::Duration;

use super::Linking;
use crate::domain::error::Failure;

/// A claimed code whose redeemer has not been heard of for this long was redeemed by nobody we know.
const ABANDONED_AFTER: Duration = Duration::from_mins(1);

/// A parked answer is left alone for this long: its own call is probably at it.
const LEFT_AFTER: Duration = Duration::from_secs(15);

/// An answer that has been parked for this long without becoming an account, because its profile cannot be read, is
/// given up.
const GIVEN_UP_AFTER: Duration = Duration::from_hours(1);

/// Ended flows stay this long: long enough to tell an outcome again, and to look into one.
const KEEP_ENDED: Duration = Duration::from_hours(24);

/// What replicas are to drop from memory stays in the log for this long; one that was away longer drops everything.
const KEEP_COHERENCE: Duration = Duration::from_mins(10);

/// Parked answers that one run takes on.
const BATCH: u32 = 100;

impl Linking {
    /// Fails flows that ran out of time, and removes what ended long ago.
    pub async fn tidy(&self) -> Result<(), Failure> {
        let now = self.0.clock.now();
        self.0.store.expire_flows(now).await?;
        self.0.store.abandon_claimed_flows(now.minus(ABANDONED_AFTER), &self.0.wallet.answered_flows(), now).await?;
        self.0.store.give_up_parked_flows(now.minus(GIVEN_UP_AFTER), now).await?;
        self.0.store.delete_flows(now.minus(KEEP_ENDED)).await?;
        self.0.store.tidy_coherence(now.minus(KEEP_COHERENCE)).await?;
        Ok(())
    }

    /// Finishes flows whose code was redeemed a while ago and whose account is not there yet. All at once, so that a
    /// provider that hangs keeps nobody else's flow waiting.
    pub async fn resume(&self) -> Result<(), Failure> {
        let before = self.0.clock.now().minus(LEFT_AFTER);
        let flows = self.0.store.parked_flows(before, BATCH).await?;
        let finish = async |flow| match self.finish(flow).await {
            Ok(_) => tracing::info!(%flow, "finished a link that was left in the middle"),
            Err(failure) => tracing::warn!(%flow, %failure, "a link left in the middle is not finished yet"),
        };
        futures_util::future::join_all(flows.into_iter().map(finish)).await;
        Ok(())
    }

    /// At the start of a store's only process: codes that the last one had claimed have no owner any more.
    pub async fn recover(&self) -> Result<(), Failure> {
        let now = self.0.clock.now();
        let abandoned = self
            .0
            .store
            .abandon_claimed_flows(now.plus(Duration::from_millis(1)), &self.0.wallet.answered_flows(), now)
            .await?;
        if abandoned > 0 {
            tracing::warn!(
                abandoned,
                "links were cut off while their code was being redeemed; they must be begun again"
            );
        }
        Ok(())
    }
}
