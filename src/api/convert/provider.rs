//! Providers.

use super::fields;
use crate::domain::error::Failure;
use crate::domain::provider::Slug;
use crate::domain::secret::ClientSecret;
use crate::proto::v1;
use crate::providers::{CustomEndpoints, NewProvider, Provider};

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

pub(in crate::api) fn provider(provider: Provider) -> v1::Provider {
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
            issuer: provider.endpoints.issuer.unwrap_or_default(),
            subject_pointer: provider.endpoints.subject_pointer,
        }),
        secrets: provider
            .secrets
            .iter()
            .map(|secret| v1::ProviderSecret {
                id: secret.id.to_string(),
                create_time: Some(fields::moment(secret.created_at)),
            })
            .collect(),
        create_time: Some(fields::moment(provider.created_at)),
    }
}

fn endpoints(endpoints: v1::ProviderEndpoints) -> CustomEndpoints {
    CustomEndpoints {
        authorization_url: endpoints.authorization_url,
        token_url: endpoints.token_url,
        userinfo_url: endpoints.userinfo_url,
        issuer: fields::optional(endpoints.issuer),
        subject_pointer: fields::optional(endpoints.subject_pointer),
    }
}
