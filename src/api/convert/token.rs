//! Token requests and answers.

use super::fields;
use crate::access::permit::ReadToken;
use crate::domain::error::Failure;
use crate::domain::grant::Need;
use crate::domain::provider::Slug;
use crate::domain::secret::AccessToken;
use crate::linking::StartedLink;
use crate::proto::v1;
use crate::wallet::{Handout, TokenRequest};

/// What is asked for, and where a browser would go if only a consent helps.
pub(in crate::api) fn request(
    request: v1::GetAccessTokenRequest,
) -> Result<(ReadToken, Option<String>, TokenRequest), Failure> {
    let action = ReadToken { user: fields::user(request.user_id)?, provider: fields::provider(request.provider)? };
    let need = Need {
        min_ttl: fields::duration("min_ttl", request.min_ttl)?,
        scopes: fields::scopes("required_scopes", request.required_scopes)?,
    };
    let account = fields::optional_id("external_account_id", &request.external_account_id)?;
    let rejected = Some(request.rejected_access_token).filter(|token| !token.is_empty()).map(AccessToken::new);
    Ok((action, fields::optional(request.redirect_url), TokenRequest { account, need, rejected }))
}

pub(in crate::api) fn consent(begun: StartedLink) -> v1::AuthorizationRequired {
    v1::AuthorizationRequired {
        authorization_url: begun.authorization_url,
        flow_id: begun.flow.to_string(),
        expire_time: Some(fields::moment(begun.expires_at)),
    }
}

pub(in crate::api) fn answer(provider: &Slug, handout: Handout) -> v1::GetAccessTokenResponse {
    v1::GetAccessTokenResponse {
        access_token: handout.access_token.expose().to_owned(),
        token_type: handout.token_type,
        expire_time: handout.expires_at.map(fields::moment),
        scopes: handout.scopes.into(),
        external_account_id: handout.account.to_string(),
        provider: provider.to_string(),
        provider_account_id: handout.subject,
        provider_metadata: handout.metadata.into_iter().collect(),
    }
}
