//! Gets that cure themselves: where only the user can help, the answer says where to send them.

use super::{LinkRequest, Linking, StartedLink};
use crate::access::permit::{Permit, ReadToken, StartLink};
use crate::domain::error::Failure;
use crate::wallet::{Handout, TokenRequest};

/// Why a get has no token, and what cures it.
pub struct Refused {
    /// Why.
    pub failure: Failure,
    /// A flow that ends with a grant that serves this get, if only a consent helps and one could be begun.
    pub consent: Option<StartedLink>,
}

impl From<Failure> for Refused {
    fn from(failure: Failure) -> Self {
        Self { failure, consent: None }
    }
}

impl Linking {
    /// A token as [`crate::wallet::Wallet::token`] gives it; or, where the user must consent first, a begun flow that
    /// ends at `redirect_url`: a link, or a reauthorization of the account that the get is about. `may_link` is for the
    /// same user and provider. If no flow can be begun, the get keeps its own reason; but the caller hears if it may not
    /// use that URL.
    pub async fn token_or_consent(
        &self,
        permit: &Permit<ReadToken>,
        may_link: &Permit<StartLink>,
        request: &TokenRequest,
        redirect_url: String,
    ) -> Result<Handout, Refused> {
        let failure = match self.0.wallet.token(permit, request).await {
            Ok(handout) => return Ok(handout),
            Err(failure) => failure,
        };
        let link = LinkRequest {
            redirect_url: Some(redirect_url),
            additional_scopes: request.need.scopes.clone(),
            ..LinkRequest::default()
        };
        let begun = match failure {
            Failure::AccountNotLinked => self.start(may_link, &link, |_| Ok(None)).await,
            Failure::ReauthorizationRequired | Failure::MissingScopes { .. } | Failure::NoRefreshToken => {
                self.reauthorize_wanted(permit, request, &link).await
            }
            failure => return Err(failure.into()),
        };
        match begun {
            Ok(consent) => Err(Refused { failure, consent: Some(consent) }),
            Err(Failure::RedirectUrlNotAllowed) => Err(Failure::RedirectUrlNotAllowed.into()),
            Err(why) => {
                tracing::info!(%failure, %why, "no flow is begun for a get that needs a consent");
                Err(failure.into())
            }
        }
    }

    async fn reauthorize_wanted(
        &self,
        permit: &Permit<ReadToken>,
        request: &TokenRequest,
        link: &LinkRequest,
    ) -> Result<StartedLink, Failure> {
        let account = self.0.wallet.account_of(permit, request).await?;
        self.reauthorize_for(permit.client(), account, link, |_| Ok(None)).await
    }
}
