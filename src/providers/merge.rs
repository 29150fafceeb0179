//! The catalog's entry and the operator's row as one.

use url::Url;

use super::catalog::Entry;
use super::endpoints::{CustomEndpoints, Endpoints};
use super::provider::{Provider, Wire};
use crate::domain::instance::InstanceKind;
use crate::store::ProviderRow;

/// Where this instance stands.
#[derive(Clone, Debug)]
pub(super) struct Site {
    /// What it may be used for.
    pub(super) kind: InstanceKind,
    /// What browsers reach it by.
    pub(super) public_url: Url,
    /// The base URL of the sandbox, if one runs.
    pub(super) sandbox: Option<Url>,
}

/// A stored provider that does not fit this program or this start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum MergeError {
    #[error("its catalog entry is not known")]
    Entry,
    #[error("its endpoints do not read")]
    Endpoints,
    #[error("no sandbox runs")]
    NoSandbox,
}

/// The catalog's entry and the operator's row as one. Pure.
pub(super) fn merge(
    entry: Option<&'static Entry>,
    row: ProviderRow,
    site: &Site,
    wire: &Wire,
) -> Result<Provider, MergeError> {
    let entry = entry.ok_or(MergeError::Entry)?;
    let endpoints = match row.endpoints {
        Some(own) => {
            let own = serde_json::from_value::<CustomEndpoints>(own).ok();
            own.and_then(|own| Endpoints::of_custom(own, entry)).ok_or(MergeError::Endpoints)?
        }
        None if entry.development_only && site.sandbox.is_none() => return Err(MergeError::NoSandbox),
        None => Endpoints::of_entry(entry, site.sandbox.as_ref()).ok_or(MergeError::Endpoints)?,
    };
    let public_url = site.public_url.as_str().trim_end_matches('/');
    Ok(Provider {
        redirect_uri: format!("{public_url}/oauth/callback/{}", row.slug),
        display_name: row.display_name.unwrap_or_else(|| entry.display_name.clone()),
        id: row.id,
        slug: row.slug,
        entry,
        client_id: row.client_id,
        additional_scopes: row.additional_scopes,
        endpoints,
        secrets: row.secrets,
        limits: row.limits,
        standing: row.standing,
        revision: row.revision,
        reading: 0,
        created_at: row.created_at,
        wire: wire.clone(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::ids::ProviderId;
    use crate::domain::provider::{Limits, Slug, Standing};
    use crate::domain::scopes::Scopes;
    use crate::providers::catalog::Catalog;
    use crate::providers::provider::tests::{NOW, provider};

    fn row(catalog_entry: &str, endpoints: Option<serde_json::Value>) -> ProviderRow {
        ProviderRow {
            id: ProviderId::new(NOW),
            slug: Slug::parse("mine").unwrap(),
            catalog_entry: catalog_entry.into(),
            display_name: None,
            client_id: "c".into(),
            additional_scopes: Scopes::default(),
            endpoints,
            created_at: NOW,
            secrets: Vec::new(),
            limits: Limits::default(),
            standing: Standing::default(),
            revision: 1,
        }
    }

    fn merged(row: ProviderRow, sandbox: Option<&str>) -> Result<Provider, MergeError> {
        let sandbox = sandbox.map(|url| Url::parse(url).unwrap());
        let public_url = Url::parse("https://wallet.example.com/base/").unwrap();
        let site = Site { kind: InstanceKind::Development, public_url, sandbox };
        merge(Catalog::embedded().entry(&row.catalog_entry), row, &site, &provider(None, "").wire)
    }

    #[test]
    fn a_row_takes_what_it_does_not_say_from_the_catalog() {
        let sandbox = merged(row("sandbox", None), Some("http://127.0.0.1:7/")).ok().unwrap();
        assert_eq!(sandbox.redirect_uri, "https://wallet.example.com/base/oauth/callback/mine");
        assert_eq!(sandbox.display_name, "Sandbox");
        assert_eq!(sandbox.endpoints.token_url.as_str(), "http://127.0.0.1:7/token");
        let own = ProviderRow { display_name: Some("Ours".into()), ..row("sandbox", None) };
        assert_eq!(merged(own, Some("http://127.0.0.1:7")).ok().unwrap().display_name, "Ours");
    }

    #[test]
    fn a_row_that_does_not_fit_says_why() {
        assert_eq!(merged(row("gone", None), None).err(), Some(MergeError::Entry));
        assert_eq!(merged(row("sandbox", None), None).err(), Some(MergeError::NoSandbox));
        for endpoints in [None, Some(serde_json::json!({})), Some(serde_json::json!("x"))] {
            assert_eq!(merged(row("oauth2", endpoints), None).err(), Some(MergeError::Endpoints));
        }
    }
}
