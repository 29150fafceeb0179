//! How we stand with providers: pauses that they ask for, and credentials that they refuse. Kept in their rows, so that
//! all replicas know.

use super::Store;
use super::coherence::{self, Stale};
use super::error::StoreError;
use super::events;
use super::sql::{args, statements};
use crate::clock::Timestamp;
use crate::domain::event::{Event, EventKind};
use crate::domain::ids::{GrantId, ProviderId};
use crate::domain::policy;

/// What a refusal of our credentials comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blame {
    /// It is the only grant that says so, and others could: nothing is certain yet.
    First,
    /// The provider is misconfigured from now on.
    Misconfigured,
    /// It was already.
    Already,
}

statements! {
    // What [`crate::domain::provider::Standing::credible`] does not believe is overwritten, here and below.
    PAUSE {
        "UPDATE providers SET paused_until = $2
         WHERE id = $1 AND deleted_at IS NULL AND (paused_until IS NULL OR paused_until < $2 OR paused_until > $3)"
    }
    // Certain if another grant said so too, or if there is no other that could.
    BLAME {
        "UPDATE providers SET blamed_by = $2, probe_at = $4,
            misconfigured_at = CASE WHEN blamed_by <> $2 OR NOT EXISTS (
                SELECT 1 FROM external_accounts a JOIN grants g ON g.account_id = a.id AND g.is_current
                WHERE a.provider_id = $1 AND a.state <> 'unlinked' AND g.id <> $2
                    AND g.state IN ('active', 'suspect') AND g.refresh_token IS NOT NULL) THEN $3 ELSE misconfigured_at END
         WHERE id = $1 AND deleted_at IS NULL AND misconfigured_at IS NULL
         RETURNING id, misconfigured_at"
    }
    CLAIM_PROBE {
        "UPDATE providers SET probe_at = $3
         WHERE id = $1 AND misconfigured_at IS NOT NULL AND (probe_at IS NULL OR probe_at <= $2 OR probe_at > $4)"
    }
    CURE {
        "UPDATE providers SET misconfigured_at = NULL, blamed_by = NULL, probe_at = NULL
         WHERE id = $1 AND misconfigured_at IS NOT NULL"
    }
    FORGIVE {
        "UPDATE providers SET blamed_by = NULL, probe_at = NULL
         WHERE id = $1 AND misconfigured_at IS NULL AND blamed_by IS NOT NULL"
    }
}

impl Store {
    /// The provider is to be sent nothing before `until`. Never shortens a pause, but one that a clock far ahead has
    /// written; true if it changed it.
    pub async fn pause_provider(&self, id: ProviderId, until: Timestamp, now: Timestamp) -> Result<bool, StoreError> {
        self.change_provider(&PAUSE, args![id, until, policy::latest(now, policy::LONGEST_PAUSE)], now).await
    }

    /// The provider refused our credentials when this grant was refreshed. An event tells when it becomes certain.
    pub async fn blame_provider(&self, id: ProviderId, grant: GrantId, now: Timestamp) -> Result<Blame, StoreError> {
        let mut tx = self.db.begin().await?;
        let Some(row) = tx.one(&BLAME, args![id, grant, now, now.plus(policy::PROBE_EVERY)]).await? else {
            return Ok(Blame::Already);
        };
        let certain = row.of("providers", "", "id")?.time_opt("misconfigured_at")?.is_some();
        if certain {
            let event = Event::of_provider(EventKind::ProviderMisconfigured, now, id).grant(grant);
            events::insert(&mut tx, &event).await?;
        }
        coherence::tell(&mut tx, &Stale::Providers, now).await?;
        tx.commit().await?;
        Ok(if certain { Blame::Misconfigured } else { Blame::First })
    }

    /// Takes the one try of refused credentials that may be made now; the next one is due at `next`. False if the
    /// provider is not misconfigured, or somebody else has taken it.
    pub async fn claim_probe(&self, id: ProviderId, now: Timestamp, next: Timestamp) -> Result<bool, StoreError> {
        self.change_provider(&CLAIM_PROBE, args![id, now, next, policy::latest(now, policy::PROBE_EVERY)], now).await
    }

    /// The provider took our credentials: nothing is held against them any more. True, and an event, if it was
    /// misconfigured.
    pub async fn absolve_provider(&self, id: ProviderId, now: Timestamp) -> Result<bool, StoreError> {
        let mut tx = self.db.begin().await?;
        let cured = tx.execute(&CURE, args![id]).await? == 1;
        if cured {
            events::insert(&mut tx, &Event::of_provider(EventKind::ProviderRecovered, now, id)).await?;
        } else if tx.execute(&FORGIVE, args![id]).await? == 0 {
            return Ok(false);
        }
        coherence::tell(&mut tx, &Stale::Providers, now).await?;
        tx.commit().await?;
        Ok(cured)
    }
}
