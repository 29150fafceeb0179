//! What can be changed while the sandbox runs: `GET` and `PUT /_sandbox/settings`.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::options::{Options, Rotation};

/// The settings of a running sandbox. They start as the [`Options`] say and are not kept over a restart.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
    /// What becomes of a refresh token that was redeemed; judged by the setting at the time of the request.
    pub rotation: Rotation,
    /// Whether a dead refresh token presented again ends its family.
    pub reuse_revokes_family: bool,
}

impl Settings {
    pub(super) fn new(options: &Options) -> Self {
        Self {
            token_ttl: options.token_ttl,
            code_ttl: options.code_ttl,
            refresh_ttl: options.refresh_ttl,
            rotation: options.rotation,
            reuse_revokes_family: options.reuse_revokes_family,
        }
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
