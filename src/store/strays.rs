//! Strays: what a consent gave and no account may have. It is kept until it is revoked, with an account of its own that
//! was never linked.

use std::collections::BTreeMap;

use super::error::StoreError;
use super::grants::lifetime_columns;
use super::sql::{args, statements, to_json};
use super::{Store, moves};
use crate::clock::Timestamp;
use crate::domain::flow::FlowFailure;
use crate::domain::ids::{AccountId, FlowId, GrantId, ProviderId};
use crate::domain::provider::Lifetime;
use crate::domain::secret::{AccessToken, RefreshToken};
use crate::domain::user::UserId;
use crate::vault::Sealed;

/// A grant that is nobody's. Its tokens are sealed under generation 0.
#[derive(Clone, Debug)]
pub struct Stray {
    /// Its id.
    pub grant: GrantId,
    /// The account it hangs on, a new one.
    pub account: AccountId,
    /// Who began the flow that brought it.
    pub user: UserId,
    /// Where.
    pub provider: ProviderId,
    /// The provider's own id of the account; empty if it is not known.
    pub subject: String,
    /// The per-user parts of the provider's URLs.
    pub params: BTreeMap<String, String>,
    /// The access token.
    pub access_token: Sealed<AccessToken>,
    /// The refresh token, if one came.
    pub refresh_token: Option<Sealed<RefreshToken>>,
    /// How the access token is sent.
    pub token_type: String,
    /// How long that lives.
    pub lifetime: Lifetime,
}

statements! {
    FAIL {
        "UPDATE flows SET state = 'failed', failure = $2, ended_at = $3, answer = NULL WHERE id = $1 AND state = 'exchanged'"
    }
    ADD_GRANT {
        "INSERT INTO grants (id, account_id, user_id, provider_id, state, is_current, access_token, access_generation,
            refresh_token, refresh_generation, token_type, scopes, requested_scopes, metadata, issued_at, lifetime,
            lifetime_assumed, ahead_until, attempts, fence, committed_fence, ending_at, ending_reason, revoke_at, created_at,
            params)
         VALUES ($1, $2, $3, $4, 'ending', FALSE, $5, 0, $6, $7, $8, '[]', '[]', '{}', $11, $9, $10, $11, 0, 0, 0, $11,
            'stray', $11, $11, $12) ON CONFLICT (id) DO NOTHING"
    }
}

impl Store {
    /// Keeps a stray to be revoked; once more is once. With `flow`, whose parked answer it was, that fails for this
    /// reason; false, and nothing kept, if it has no parked answer any more.
    pub async fn keep_stray(
        &self,
        stray: &Stray,
        flow: Option<(FlowId, FlowFailure)>,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let mut tx = self.db.begin().await?;
        if let Some((flow, failure)) = flow
            && tx.execute(&FAIL, args![flow, failure.as_str(), now]).await? == 0
        {
            return Ok(false);
        }
        let Stray { grant, account, user, provider, .. } = stray;
        moves::create_unlinked(&mut tx, *account, user, *provider, (&stray.subject, &stray.params), now).await?;
        let (lifetime, assumed) = lifetime_columns(stray.lifetime);
        let values = args![
            *grant,
            *account,
            user,
            *provider,
            &stray.access_token,
            stray.refresh_token.as_ref(),
            stray.refresh_token.as_ref().map(|_| 0),
            stray.token_type.as_str(),
            lifetime,
            assumed,
            now,
            to_json(&stray.params)?,
        ];
        tx.execute(&ADD_GRANT, values).await?;
        tx.commit().await?;
        Ok(true)
    }
}
