//! Cursors: places in the log, opaque to callers. Any caller may use any: a place is no secret, and permits are asked
//! anew.

use data_encoding::BASE64URL_NOPAD;
use sha2::{Digest as _, Sha256};

use crate::domain::ids::InstanceId;

/// Bytes that tell a cursor from a made-up one, and from another wallet's.
const CHECK: usize = 8;

/// Writes and reads the cursors of one instance.
pub(super) struct Cursors(Sha256);

impl Cursors {
    pub(super) fn of(instance: InstanceId) -> Self {
        Self(Sha256::new().chain_update("events ").chain_update(instance.to_string()))
    }

    pub(super) fn write(&self, place: i64) -> String {
        let place = place.to_be_bytes();
        BASE64URL_NOPAD.encode(&[place.as_slice(), &self.check(place)].concat())
    }

    /// `None` for what this instance has not written.
    pub(super) fn read(&self, cursor: &str) -> Option<i64> {
        let bytes = BASE64URL_NOPAD.decode(cursor.as_bytes()).ok()?;
        let (place, check) = bytes.split_first_chunk::<8>()?;
        (check == self.check(*place)).then(|| i64::from_be_bytes(*place))
    }

    fn check(&self, place: [u8; 8]) -> [u8; CHECK] {
        let hash = self.0.clone().chain_update(place).finalize();
        let mut check = [0; CHECK];
        check.copy_from_slice(&hash[..CHECK]);
        check
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;

    #[test]
    fn a_cursor_reads_back_where_it_was_written_and_nowhere_else() {
        let [ours, other] = [1, 2].map(|at| Cursors::of(InstanceId::new(Timestamp::from_millis(at))));
        for place in [0, 1, 255, 1 << 40, i64::MAX] {
            let cursor = ours.write(place);
            assert_eq!((ours.read(&cursor), other.read(&cursor)), (Some(place), None));
            let mut changed = cursor.clone();
            let other = if cursor.starts_with('A') { "B" } else { "A" };
            changed.replace_range(..1, other);
            assert_eq!((ours.read(&changed), ours.read(&cursor[1..])), (None, None));
        }
        for made_up in ["", "0", "AAAAAAAAAAA", "\u{fc}", &"A".repeat(10_000)] {
            assert_eq!(ours.read(made_up), None);
        }
    }
}
