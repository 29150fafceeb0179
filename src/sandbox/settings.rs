//! What can be changed while the sandbox runs: `GET` and `PUT /_sandbox/settings`.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::options::{Client, Options, Rotation};
use super::recorder::KEPT_REQUESTS;

/// The settings of a running sandbox. They start as the [`Options`] say and are not kept over a restart.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// How long the next access tokens live; on the wire `token_ttl_seconds`.
    #[serde(rename = "token_ttl_seconds", with = "seconds")]
    pub token_ttl: Duration,
    /// How long the next codes live; on the wire `code_ttl_seconds`.
    #[serde(rename = "code_ttl_seconds", with = "seconds")]
    pub code_ttl: Duration,
    /// How long the next refresh tokens live; on the wire `refresh_ttl_seconds`.
    #[serde(rename = "refresh_ttl_seconds", with = "seconds")]
    pub refresh_ttl: Duration,
    /// How long a consent gives refreshes, from its approval on, however they rotate; on the wire
    /// `consent_ttl_seconds`. None at first: without end.
    #[serde(rename = "consent_ttl_seconds", with = "maybe_seconds")]
    pub consent_ttl: Option<Duration>,
    /// What becomes of a refresh token that was redeemed; judged by the setting at the time of the request.
    pub rotation: Rotation,
    /// Whether a dead refresh token presented again ends its family.
    pub reuse_revokes_family: bool,
    /// Whether a refresh ends the grant's newest access token at once. False at first.
    pub refresh_ends_access: bool,
    /// Whether a revocation at `/revoke` ends all that its person ever gave the client, not only what descends from the
    /// same consent, and be it the revocation of an access token. False at first.
    pub revocation_ends_all: bool,
    /// The secrets that are accepted from each confidential client, by its id. At first the one of the [`Options`].
    pub client_secrets: BTreeMap<String, Vec<String>>,
    /// What is otherwise for a client's grants, by its id. Nothing at first.
    pub clients: BTreeMap<String, Manners>,
    /// What the shares of rules are drawn with. 0 at first.
    pub seed: u64,
    /// How many requests the log keeps; the oldest are dropped. [`KEPT_REQUESTS`] at first.
    pub log_limit: usize,
}

/// What a provider does otherwise for one client's grants. What is left out is as for all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Manners {
    /// As [`Settings::token_ttl`].
    #[serde(rename = "token_ttl_seconds", with = "maybe_seconds")]
    pub token_ttl: Option<Duration>,
    /// As [`Settings::rotation`].
    pub rotation: Option<Rotation>,
    /// As [`Settings::reuse_revokes_family`].
    pub reuse_revokes_family: Option<bool>,
}

impl Settings {
    pub(super) fn new(options: &Options) -> Self {
        Self {
            token_ttl: options.token_ttl,
            code_ttl: options.code_ttl,
            refresh_ttl: options.refresh_ttl,
            rotation: options.rotation,
            reuse_revokes_family: options.reuse_revokes_family,
            consent_ttl: None,
            refresh_ends_access: false,
            revocation_ends_all: false,
            client_secrets: options.clients.iter().filter_map(Client::accepted).collect(),
            clients: BTreeMap::new(),
            seed: 0,
            log_limit: KEPT_REQUESTS,
        }
    }

    /// These settings as they are for a client's grants.
    pub(super) fn of(&self, client_id: &str) -> Self {
        let mut own = self.clone();
        if let Some(manners) = self.clients.get(client_id) {
            own.token_ttl = manners.token_ttl.unwrap_or(own.token_ttl);
            own.rotation = manners.rotation.unwrap_or(own.rotation);
            own.reuse_revokes_family = manners.reuse_revokes_family.unwrap_or(own.reuse_revokes_family);
        }
        own
    }

    /// These settings with the given fields changed.
    pub(super) fn with(&self, changes: Map<String, Value>) -> serde_json::Result<Self> {
        let mut all = serde_json::to_value(self)?;
        if let Value::Object(fields) = &mut all {
            fields.extend(changes);
        }
        serde_json::from_value(all)
    }
}

/// Durations as whole seconds.
pub(super) mod seconds {
    use std::time::Duration;

    use serde::{Deserialize as _, Deserializer, Serializer};

    pub(in crate::sandbox) fn serialize<S: Serializer>(span: &Duration, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u64(span.as_secs())
    }

    pub(in crate::sandbox) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        u64::deserialize(from).map(Duration::from_secs)
    }
}

/// Durations as whole seconds, or none.
mod maybe_seconds {
    use std::time::Duration;

    use serde::{Deserialize as _, Deserializer, Serialize as _, Serializer};

    #[expect(clippy::ref_option, reason = "serde hands fields over by reference")]
    pub(super) fn serialize<S: Serializer>(span: &Option<Duration>, to: S) -> Result<S::Ok, S::Error> {
        span.map(|span| span.as_secs()).serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
        Ok(Option::<u64>::deserialize(from)?.map(Duration::from_secs))
    }
}
