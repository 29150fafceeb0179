//! Frozen verdicts: when a provider refuses too many grants at once, it is the provider that is ill.

use super::Store;
use super::coherence::{self, Stale};
use super::error::StoreError;
use super::events;
use super::sql::{args, statements};
use crate::clock::Timestamp;
use crate::domain::event::{Event, EventKind};
use crate::domain::ids::ProviderId;
use crate::domain::policy;

statements! {
    SUSPECTED {
        "SELECT COUNT(*) AS suspected FROM grants WHERE provider_id = $1 AND suspect_at IS NOT NULL AND suspect_at > $2"
    }
    FREEZE {
        "UPDATE providers SET frozen_until = $2 WHERE id = $1 AND (frozen_until IS NULL OR frozen_until <= $3 OR frozen_until > $4)"
    }
    EXTEND { "UPDATE providers SET frozen_until = $2 WHERE id = $1 AND frozen_until < $2" }
    BACK_TO_SUSPECT {
        "UPDATE grants SET state = 'suspect', dead_at = NULL, due_at = $3, sweep_at = $3
         WHERE provider_id = $1 AND suspect_at IS NOT NULL AND state = 'dead' AND is_current AND dead_at > $2
            AND refresh_token IS NOT NULL
         RETURNING id, account_id, user_id"
    }
    ACCOUNT_RECOVERS {
        "UPDATE external_accounts SET state = 'active', state_reason = NULL
         WHERE id = $1 AND state = 'reauthorization_required'"
    }
}

/// What freezing a provider's verdicts changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frozen {
    /// They were not frozen before.
    pub began: bool,
    /// How many grants that had been ended are suspect again.
    pub back: usize,
}

impl Store {
    /// How many of a provider's grants turned suspect after `since` and have not recovered.
    pub async fn suspected(&self, provider: ProviderId, since: Timestamp) -> Result<u32, StoreError> {
        let row = self.db.one(&SUSPECTED, args![provider, since]).await?;
        let count: i64 = row.map_or(Ok(0), |row| row.get("suspected"))?;
        Ok(u32::try_from(count).unwrap_or(u32::MAX))
    }

    /// Until `until` no grant of the provider is ended, and those that were ended after `ended_after` are suspect again,
    /// to be asked about at `now`.
    pub async fn freeze_verdicts(
        &self,
        provider: ProviderId,
        until: Timestamp,
        ended_after: Timestamp,
        now: Timestamp,
    ) -> Result<Frozen, StoreError> {
        let mut tx = self.db.begin().await?;
        // One that a clock far ahead has written begins anew.
        let latest = policy::latest(now, policy::FREEZE);
        let began = tx.execute(&FREEZE, args![provider, until, now, latest]).await? == 1;
        if !began {
            tx.execute(&EXTEND, args![provider, until]).await?;
        }
        let rows = tx.all(&BACK_TO_SUSPECT, args![provider, ended_after, now]).await?;
        for row in &rows {
            let cells = row.of("grants", "", "id")?;
            let account = cells.parse("account_id")?;
            if tx.execute(&ACCOUNT_RECOVERS, args![account]).await? == 1 {
                let event = Event::new(EventKind::AccountRecovered, now, cells.user("user_id")?, provider);
                let event = event.account(account).grant(cells.parse("id")?).because("verdicts_frozen");
                events::insert(&mut tx, &event).await?;
            }
        }
        // Not the accounts that recover: what is not served is judged on a fresh read.
        coherence::tell(&mut tx, &Stale::Providers, now).await?;
        tx.commit().await?;
        Ok(Frozen { began, back: rows.len() })
    }
}
