//! A provider: the catalog's entry and the operator's row as one.

use std::sync::Arc;

use super::catalog::{Entry, Pkce};
use super::endpoints::Endpoints;
use crate::clock::{Clock, Timestamp};
use crate::domain::ids::{ProviderId, ProviderSecretId};
use crate::domain::provider::Slug;
use crate::domain::scopes::Scopes;
use crate::domain::secret::ClientSecret;
use crate::outbound::Outbound;
use crate::store::ProviderSecretRow;
use crate::vault::{OpenError, Owner, Vault};

/// A provider as configured, ready to be called.
#[derive(Clone)]
pub struct Provider {
    /// Its id.
    pub id: ProviderId,
    /// Its name in every call.
    pub slug: Slug,
    /// Its catalog entry.
    pub entry: &'static Entry,
    /// Its name for people.
    pub display_name: String,
    /// Our client id there.
    pub client_id: String,
    /// What every link asks for because of this configuration.
    pub additional_scopes: Scopes,
    /// Where it is reached.
    pub endpoints: Endpoints,
    /// Where it sends the browser back to: `{public_url}/oauth/callback/{slug}`.
    pub redirect_uri: String,
    /// Our client secrets there, sealed, the newest first. None: a public client (RFC 6749 section 2.1).
    pub secrets: Vec<ProviderSecretRow>,
    /// When it was configured.
    pub created_at: Timestamp,
    /// What its calls go through.
    pub wire: Wire,
}

/// What a provider's calls go through. Cheap to clone.
#[derive(Clone)]
pub struct Wire {
    /// The HTTP client.
    pub outbound: Outbound,
    /// Opens client secrets.
    pub vault: Arc<Vault>,
    /// For dates in answers.
    pub clock: Clock,
}

impl Provider {
    /// What every link and sign-in asks for because of the catalog.
    pub fn base_scopes(&self) -> Scopes {
        self.entry.base_scopes()
    }

    /// What a link asks for in all: the catalog's, the configuration's, this flow's, and what a refresh token takes.
    pub fn link_scopes(&self, of_flow: &Scopes) -> Scopes {
        let base = self.base_scopes().union(&self.additional_scopes);
        base.union(of_flow).union(&self.entry.offline_scopes())
    }

    /// Whether an authorization carries a challenge (RFC 7636), so that its exchange needs the verifier.
    pub fn uses_pkce(&self) -> bool {
        self.entry.pkce == Pkce::Supported
    }

    /// The newest client secret, opened.
    pub(super) fn client_secret(&self) -> Result<Option<ClientSecret>, OpenError> {
        let newest = self.secrets.first();
        newest
            .map(|newest| self.wire.vault.open_cell(&newest.secret, &secret_owner(newest.id, self.id).owner()))
            .transpose()
    }
}

/// The ids that a client secret is bound to, as text.
pub(super) struct SecretOwner {
    secret: String,
    provider: String,
}

/// Whose a client secret is: of its own row and its provider.
pub(super) fn secret_owner(secret: ProviderSecretId, provider: ProviderId) -> SecretOwner {
    SecretOwner { secret: secret.to_string(), provider: provider.to_string() }
}

impl SecretOwner {
    pub(super) fn owner(&self) -> Owner<'_> {
        Owner { row: &self.secret, account: "", user: "", provider: &self.provider, generation: 0 }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use url::Url;

    use super::*;
    use crate::domain::ids::InstanceId;
    use crate::outbound::OutboundConfig;
    use crate::providers::catalog::tests::entry_with;
    use crate::vault::RootKey;

    pub(crate) const NOW: Timestamp = Timestamp::from_millis(1_700_000_000_000);

    /// A provider at `example.com` with a secret, and an entry with these lines; nothing of it is ever called.
    pub(crate) fn provider(secret: Option<&str>, entry_lines: &str) -> Provider {
        let (clock, _) = Clock::moved(NOW);
        let root = RootKey::generate();
        let (vault, _) = Vault::create(&root, InstanceId::new(NOW), NOW).unwrap();
        let wire = Wire { outbound: Outbound::new(&OutboundConfig::default()).unwrap(), vault: Arc::new(vault), clock };
        let (id, secret_id) = (ProviderId::new(NOW), ProviderSecretId::new(NOW));
        let seal = |text| {
            let secret = wire.vault.seal(&ClientSecret::new(text), &secret_owner(secret_id, id).owner()).unwrap();
            ProviderSecretRow { id: secret_id, secret, created_at: NOW }
        };
        let url = |path: &str| Url::parse(&format!("https://id.example.com/{path}")).unwrap();
        Provider {
            id,
            slug: Slug::parse("example").unwrap(),
            entry: entry_with(entry_lines),
            display_name: "Example".into(),
            client_id: "client 1".into(),
            additional_scopes: Scopes::parse(["files"]).unwrap(),
            endpoints: Endpoints {
                authorization_url: url("authorize?tenant=7"),
                token_url: url("token"),
                userinfo_url: url("me"),
                issuer: None,
                subject_pointer: "/sub".into(),
            },
            redirect_uri: "https://wallet.example.com/oauth/callback/example".into(),
            secrets: secret.map(seal).into_iter().collect(),
            created_at: NOW,
            wire,
        }
    }

    #[test]
    fn a_link_asks_for_all_that_is_wanted_once() {
        let scopes = provider(None, "").link_scopes(&Scopes::parse(["mail", "files"]).unwrap());
        assert_eq!(scopes.join(" "), "openid files mail offline_access");
    }

    #[test]
    fn a_secret_of_another_provider_does_not_open() {
        let mut provider = provider(Some("s"), "");
        assert!(matches!(provider.client_secret(), Ok(Some(_))));
        provider.id = ProviderId::new(NOW);
        assert!(provider.client_secret().is_err());
    }
}
