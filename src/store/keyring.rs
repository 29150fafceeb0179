//! Whose store this is, and its keyring.

use super::Store;
use super::error::StoreError;
use super::sql::{Row, args, statements};
use crate::clock::Timestamp;
use crate::domain::ids::{InstanceId, ReplicaId};
use crate::domain::instance::InstanceKind;
use crate::vault::{DataKeyRecord, KeyState, KeyringRecord};

/// The one deployment that a store belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    /// Its id: sealed values are bound to it.
    pub id: InstanceId,
    /// What it may be used for.
    pub kind: InstanceKind,
    /// The replica that a restarted single process is (`SQLite`).
    pub replica: ReplicaId,
    /// When the store was made.
    pub created_at: Timestamp,
    /// Where the store was moved to, or is being moved to: no wallet may start on it.
    pub left_for: Option<String>,
}

statements! {
    INSTANCE { "SELECT id, kind, replica_id, created_at, left_for FROM instance" }
    CREATE_INSTANCE {
        "INSERT INTO instance (singleton, id, kind, replica_id, created_at) VALUES (1, $1, $2, $3, $4)
         ON CONFLICT DO NOTHING"
    }
    // One statement, so that ring and keys are of one moment.
    KEYRING {
        "SELECT r.root_key_fingerprint, r.canary, r.mac_key, r.mac,
                k.id AS k_id, k.state AS k_state, k.wrapped AS k_wrapped, k.created_at AS k_created_at
         FROM keyring r LEFT JOIN data_keys k ON TRUE ORDER BY k.id"
    }
    CREATE_KEYRING {
        "INSERT INTO keyring (singleton, root_key_fingerprint, canary, mac_key, mac) VALUES (1, $1, $2, $3, $4)
         ON CONFLICT DO NOTHING"
    }
    CREATE_DATA_KEY { "INSERT INTO data_keys (id, state, wrapped, created_at) VALUES ($1, $2, $3, $4)" }
    // Every table with a sealed column.
    SEALED_ROWS {
        "SELECT 1 AS sealed WHERE EXISTS (SELECT 1 FROM provider_secrets) OR EXISTS (SELECT 1 FROM external_accounts)
            OR EXISTS (SELECT 1 FROM grants) OR EXISTS (SELECT 1 FROM flows)"
    }
}

impl Store {
    /// Whose store this is; `None` before it is initialised.
    pub async fn instance(&self) -> Result<Option<Instance>, StoreError> {
        let Some(row) = self.db.one(&INSTANCE, &[]).await? else { return Ok(None) };
        let cells = row.of("instance", "", "id")?;
        Ok(Some(Instance {
            id: cells.parse("id")?,
            kind: cells.read("kind", InstanceKind::parse)?,
            replica: cells.parse("replica_id")?,
            created_at: cells.time("created_at")?,
            left_for: cells.get("left_for")?,
        }))
    }

    /// The keyring; `None` before the store is initialised.
    pub async fn keyring(&self) -> Result<Option<KeyringRecord>, StoreError> {
        let rows = self.db.all(&KEYRING, &[]).await?;
        let Some(ring) = rows.first() else { return Ok(None) };
        Ok(Some(KeyringRecord {
            root_key_fingerprint: ring.get("root_key_fingerprint")?,
            canary: ring.get("canary")?,
            mac_key: ring.get("mac_key")?,
            mac: ring.get("mac")?,
            keys: rows.iter().filter_map(|row| data_key(row).transpose()).collect::<Result<_, _>>()?,
        }))
    }

    /// Whether there is any row with a sealed value. With no keyring they cannot be opened, and none must be made.
    pub async fn has_rows(&self) -> Result<bool, StoreError> {
        Ok(self.db.one(&SEALED_ROWS, &[]).await?.is_some())
    }

    /// Writes whose store this is, and its keyring, once. False, and nothing written, if either stands already.
    pub async fn initialise(&self, instance: &Instance, keyring: &KeyringRecord) -> Result<bool, StoreError> {
        let mut tx = self.db.begin().await?;
        let values = args![instance.id, instance.kind.as_str(), instance.replica, instance.created_at];
        let made = tx.execute(&CREATE_INSTANCE, values).await?;
        let KeyringRecord { root_key_fingerprint, canary, mac_key, mac, keys } = keyring;
        let values = args![root_key_fingerprint.as_str(), &canary[..], &mac_key[..], &mac[..]];
        if made + tx.execute(&CREATE_KEYRING, values).await? < 2 {
            return Ok(false);
        }
        for key in keys {
            let values = args![key.id, key.state.as_str(), &key.wrapped[..], key.created_at];
            tx.execute(&CREATE_DATA_KEY, values).await?;
        }
        tx.commit().await?;
        Ok(true)
    }
}

/// The data key of a keyring's row; none if there is a ring without keys.
fn data_key(row: &Row) -> Result<Option<DataKeyRecord>, StoreError> {
    let Some(id) = row.get::<Option<i64>>("k_id")? else { return Ok(None) };
    let corrupt = |column| StoreError::Corrupt { table: "data_keys", column, id: id.to_string() };
    Ok(Some(DataKeyRecord {
        id: u32::try_from(id).map_err(|_| corrupt("id"))?,
        state: KeyState::parse(&row.get::<String>("k_state")?).ok_or_else(|| corrupt("state"))?,
        wrapped: row.get("k_wrapped")?,
        created_at: Timestamp::from_millis(row.get("k_created_at")?),
    }))
}
