//! A provider: the catalog's entry and the operator's row as one.

use std::sync::Arc;

use super::catalog::{Entry, Pkce};
use super::endpoints::Endpoints;
use crate::clock::{Clock, Timestamp};
use crate::domain::ids::{ProviderId, ProviderSecretId};
use crate::domain::provider::{Limits, Slug, Standing};
use crate::domain::scopes::Scopes;
use crate::domain::secret::ClientSecret;
use crate::outbound::Outbound;
use crate::store::{ProviderSecretRow, USE_NOTED_EVERY};
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
    /// What it may be sent.
    pub limits: Limits,
    /// How we stood with it when its row was read.
    pub standing: Standing,
    /// Counts the changes of its configuration.
    pub revision: i64,
    /// When its row was read, as the gate counts; 0 for one that was read to be shown.
    pub(super) reading: u64,
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

    /// The client secrets in the order in which to try them: the one that the provider took last, then from the newest
    /// to the oldest. None: a public client.
    pub fn secrets_in_order(&self) -> impl Iterator<Item = &ProviderSecretRow> {
        // Of those taken at one moment the newest: `max_by_key` gives the last.
        let taken = self.secrets.iter().rev().filter(|secret| secret.last_used_at.is_some());
        let first = taken.max_by_key(|secret| secret.last_used_at);
        let others = self.secrets.iter().filter(move |secret| first.is_none_or(|first| first.id != secret.id));
        first.into_iter().chain(others)
    }

    /// Whether the row says already that this secret is the one in use.
    pub(super) fn is_noted(&self, secret: &ProviderSecretRow, now: Timestamp) -> bool {
        self.secrets_in_order().next().is_some_and(|first| first.id == secret.id)
            && secret.last_used_at.is_some_and(|used| now.since(used) < USE_NOTED_EVERY)
    }

    /// A client secret, opened.
    pub(super) fn open_secret(&self, secret: &ProviderSecretRow) -> Result<ClientSecret, OpenError> {
        self.wire.vault.open_cell(&secret.secret, &secret_owner(secret.id, self.id).owner())
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
            ProviderSecretRow { id: secret_id, secret, created_at: NOW, last_used_at: None }
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
                revocation_url: Some(url("revoke")),
                issuer: None,
                subject_pointer: "/sub".into(),
            },
            redirect_uri: "https://wallet.example.com/oauth/callback/example".into(),
            secrets: secret.map(seal).into_iter().collect(),
            limits: Limits::default(),
            standing: Standing::default(),
            revision: 1,
            reading: 0,
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
        let secret = provider.secrets[0].clone();
        assert!(provider.open_secret(&secret).is_ok());
        provider.id = ProviderId::new(NOW);
        assert!(provider.open_secret(&secret).is_err());
    }

    #[test]
    fn the_secret_that_worked_last_is_tried_first_then_from_the_newest_on() {
        let used = |secs: i64| (secs >= 0).then(|| NOW.plus(std::time::Duration::from_secs(secs.unsigned_abs())));
        // When each was used, the newest first; in which order they are tried; whether the first need not be noted.
        for (uses, order, noted) in [
            ([-1, -1, -1], [0, 1, 2], false),
            ([-1, -1, 5], [2, 0, 1], true),
            ([-1, 6, 5], [1, 0, 2], true),
            ([5, 5, 5], [0, 1, 2], true),
        ] {
            let mut provider = provider(Some("s"), "");
            let one = provider.secrets.remove(0);
            provider.secrets = uses
                .map(|secs| ProviderSecretRow {
                    id: ProviderSecretId::new(NOW),
                    last_used_at: used(secs),
                    ..one.clone()
                })
                .into();
            let tried: Vec<_> = provider.secrets_in_order().map(|secret| secret.id).collect();
            assert_eq!(tried, order.map(|index| provider.secrets[index].id), "{uses:?}");
            let is_noted = |index: usize, secs: u64| {
                provider.is_noted(&provider.secrets[index], NOW.plus(std::time::Duration::from_secs(secs)))
            };
            assert_eq!(is_noted(order[0], 60), noted, "{uses:?}");
            assert!(!is_noted(order[0], 3_606) && !is_noted(order[1], 60), "{uses:?}");
        }
    }
}
