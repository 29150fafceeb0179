//! Providers.

use super::fields;
use crate::clock::Timestamp;
use crate::domain::error::Failure;
use crate::domain::provider::{Health, Slug, Standing};
use crate::domain::secret::ClientSecret;
use crate::proto::v1;
use crate::providers::{CustomEndpoints, NewProvider, Provider};
use crate::store::{ProviderChange, ProviderSecretRow};

/// The paths of an update's mask.
const CHANGEABLE: &str = "display_name, additional_scopes, requests_per_second, max_in_flight, verdicts_frozen";

pub(in crate::api) fn new(request: v1::CreateProviderRequest) -> Result<NewProvider, Failure> {
    Ok(NewProvider {
        slug: Slug::parse(request.slug).map_err(|why| Failure::field("slug", why))?,
        catalog_entry: fields::optional(request.catalog_entry),
        client_id: request.client_id,
        client_secret: fields::optional(request.client_secret).map(ClientSecret::new),
        additional_scopes: fields::scopes("additional_scopes", request.additional_scopes)?,
        endpoints: request.endpoints.map(endpoints),
        display_name: fields::optional(request.display_name),
    })
}

/// What an update names.
pub(in crate::api) fn change(request: v1::UpdateProviderRequest) -> Result<ProviderChange, Failure> {
    let mut change = ProviderChange { revision: fields::revision(request.etag)?, ..ProviderChange::default() };
    let paths = request.update_mask.map(|mask| mask.paths).unwrap_or_default();
    if paths.is_empty() {
        return Err(Failure::field("update_mask", format!("must name what to change: {CHANGEABLE}")));
    }
    for path in paths {
        match path.as_str() {
            "display_name" => change.display_name = Some(request.display_name.clone()),
            "additional_scopes" => {
                change.additional_scopes =
                    Some(fields::scopes("additional_scopes", request.additional_scopes.clone())?);
            }
            "requests_per_second" => {
                change.requests_per_second = Some(fields::count("requests_per_second", request.requests_per_second)?);
            }
            "max_in_flight" => change.max_in_flight = Some(fields::count("max_in_flight", request.max_in_flight)?),
            "verdicts_frozen" if request.verdicts_frozen => {
                return Err(Failure::field("verdicts_frozen", "must be unset: a freeze can be ended, not begun"));
            }
            "verdicts_frozen" => change.unfreeze = true,
            _ => return Err(Failure::field("update_mask", format!("must name some of {CHANGEABLE}"))),
        }
    }
    Ok(change)
}

pub(in crate::api) fn provider(provider: Provider) -> v1::Provider {
    let now = provider.wire.clock.now();
    let base_scopes = provider.base_scopes();
    v1::Provider {
        id: provider.id.to_string(),
        slug: provider.slug.to_string(),
        catalog_entry: provider.entry.name.clone(),
        display_name: provider.display_name,
        client_id: provider.client_id,
        redirect_uri: provider.redirect_uri,
        base_scopes: base_scopes.into(),
        additional_scopes: provider.additional_scopes.into(),
        endpoints: Some(v1::ProviderEndpoints {
            authorization_url: provider.endpoints.authorization_url.into(),
            token_url: provider.endpoints.token_url.into(),
            userinfo_url: provider.endpoints.userinfo_url.into(),
            revocation_url: provider.endpoints.revocation_url.map(Into::into).unwrap_or_default(),
            issuer: provider.endpoints.issuer.unwrap_or_default(),
            subject_pointer: provider.endpoints.subject_pointer,
        }),
        secrets: provider.secrets.iter().map(secret).collect(),
        create_time: Some(fields::moment(provider.created_at)),
        health: Some(health(&provider.standing, now)),
        requests_per_second: i32::try_from(provider.limits.requests_per_second()).unwrap_or(i32::MAX),
        max_in_flight: i32::try_from(provider.limits.max_in_flight()).unwrap_or(i32::MAX),
        etag: provider.revision.to_string(),
    }
}

pub(in crate::api) fn secret(secret: &ProviderSecretRow) -> v1::ProviderSecret {
    v1::ProviderSecret {
        id: secret.id.to_string(),
        create_time: Some(fields::moment(secret.created_at)),
        last_used_time: secret.last_used_at.map(fields::moment),
    }
}

fn health(standing: &Standing, now: Timestamp) -> v1::ProviderHealth {
    let state = match standing.health(now) {
        Health::Ok => v1::ProviderState::Ok,
        Health::Paused => v1::ProviderState::Paused,
        Health::Frozen => v1::ProviderState::Frozen,
        Health::Misconfigured => v1::ProviderState::Misconfigured,
    };
    let lasting = |until: Option<Timestamp>| until.filter(|until| now < *until).map(fields::moment);
    v1::ProviderHealth {
        state: state.into(),
        pause_end_time: lasting(standing.paused_until),
        misconfigured_time: standing.misconfigured_at.map(fields::moment),
        freeze_end_time: lasting(standing.frozen_until),
    }
}

fn endpoints(endpoints: v1::ProviderEndpoints) -> CustomEndpoints {
    CustomEndpoints {
        authorization_url: endpoints.authorization_url,
        token_url: endpoints.token_url,
        userinfo_url: endpoints.userinfo_url,
        revocation_url: fields::optional(endpoints.revocation_url),
        issuer: fields::optional(endpoints.issuer),
        subject_pointer: fields::optional(endpoints.subject_pointer),
    }
}
