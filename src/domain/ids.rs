//! Ids: a type prefix and a `UUIDv7` in 26 Crockford base32 digits (the `TypeID` form), never reused.

use std::fmt;
use std::str::FromStr;
use std::sync::Mutex;

use uuid::{ContextV7, Uuid};

use crate::clock::Timestamp;

/// The text is not an id of the expected type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be an id of the form {0}_…")]
pub struct IdError(&'static str);

/// Crockford's digits in `TypeID` order: no i, l, o, u.
const DIGITS: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";

/// Counts within a millisecond, so that ids made one after the other sort so.
static COUNTER: Mutex<ContextV7> = Mutex::new(ContextV7::new());

fn new_uuid(now: Timestamp) -> Uuid {
    let millis = u64::try_from(now.millis()).unwrap_or(0);
    let nanos = u32::try_from(millis % 1000).unwrap_or(0) * 1_000_000;
    Uuid::new_v7(uuid::Timestamp::from_unix(&COUNTER, millis / 1000, nanos))
}

fn write_digits(uuid: Uuid, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let bits = uuid.as_u128();
    (0..26).rev().try_for_each(|digit| {
        let index = usize::try_from((bits >> (5 * digit)) & 31).unwrap_or(0);
        fmt::Write::write_char(f, char::from(DIGITS[index]))
    })
}

fn read_digits(text: &str) -> Option<Uuid> {
    if text.len() != 26 || text.as_bytes()[0] > b'7' {
        return None;
    }
    text.bytes()
        .try_fold(0_u128, |bits, digit| {
            let index = DIGITS.iter().position(|known| *known == digit)?;
            Some((bits << 5) | index as u128)
        })
        .map(Uuid::from_u128)
}

macro_rules! id {
    ($($(#[$doc:meta])* $name:ident = $prefix:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Uuid);

        impl $name {
            /// A new id that sorts by `now`.
            pub fn new(now: Timestamp) -> Self {
                Self(new_uuid(now))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(concat!($prefix, "_"))?;
                write_digits(self.0, f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                text.strip_prefix(concat!($prefix, "_")).and_then(read_digits).map(Self).ok_or(IdError($prefix))
            }
        }
    )*};
}

id! {
    /// One deployment's store.
    InstanceId = "ins";
    /// A configured provider.
    ProviderId = "prv";
    /// One of a provider's client secrets.
    ProviderSecretId = "psc";
    /// An external account: one account of one user at one provider.
    AccountId = "eac";
    /// What one consent gave us for an account.
    GrantId = "gra";
    /// One authorization in progress.
    FlowId = "flw";
    /// An entry of the redirect-URL allow-list.
    RedirectUrlId = "rdu";
    /// A service that calls us.
    ApiClientId = "acl";
    /// A key of such a service.
    ApiKeyId = "key";
    /// An event row.
    EventId = "evt";
    /// A running process, or one that may come back as the same.
    ReplicaId = "rep";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_reads_back_and_keeps_its_type() {
        let id = GrantId::new(Timestamp::from_millis(1_700_000_000_123));
        let text = id.to_string();
        assert_eq!(text.len(), 30);
        assert_eq!(text.parse(), Ok(id));
        assert!(text.parse::<AccountId>().is_err());
        assert!(text.to_uppercase().parse::<GrantId>().is_err());
        assert!("gra_8zzzzzzzzzzzzzzzzzzzzzzzzz".parse::<GrantId>().is_err());
    }

    #[test]
    fn the_published_typeid_example_decodes_to_its_uuid() {
        let uuid = read_digits("01h455vb4pex5vsknk084sn02q").map(|uuid| uuid.to_string());
        assert_eq!(uuid.as_deref(), Some("01890a5d-ac96-774b-bcce-b302099a8057"));
    }

    #[test]
    fn ids_sort_by_their_time_and_within_a_millisecond_by_their_making() {
        // Far in the future: the counter is shared, and other tests' times must not step before this one's.
        let at = Timestamp::from_millis(4_000_000_000_000);
        let ids: Vec<_> = (0..1_000).map(|_| FlowId::new(at).to_string()).collect();
        let late = FlowId::new(Timestamp::from_millis(4_000_000_000_001)).to_string();
        assert!(ids.is_sorted() && ids.last() < Some(&late));
    }
}
