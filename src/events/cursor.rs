//! Cursors: places in the log, opaque to callers. Any caller may use any: a place is no secret, and permits are asked
//! anew.

use data_encoding::BASE64URL_NOPAD;
use sha2::{Digest as _, Sha256};

use crate::domain::ids::InstanceId;

/// Bytes that tell a cursor from a made-up one, and from another wallet's.
const CHECK: usize = 8;

/// Bytes of the hash of an event's id.
const MARK: usize = 8;

/// A place in the log: behind an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub(super) sequence: i64,
    /// Of the event at the place, zero if there was none: after a database was put back, or has lost what it wrote
    /// last, another event may come to have the number.
    mark: [u8; MARK],
}

/// Writes and reads the cursors of one instance.
pub(super) struct Cursors(Sha256);

impl Place {
    /// Behind the event of this number and id.
    pub(super) fn of(sequence: i64, id: Option<&str>) -> Self {
        Self { sequence, mark: id.map(mark).unwrap_or_default() }
    }

    /// Whether the log is still the one that the place was in, as far as can be told by the event that is there now.
    pub(super) fn is_behind(&self, id: Option<&str>) -> bool {
        self.mark == [0; MARK] || id.is_none_or(|id| mark(id) == self.mark)
    }
}

impl Cursors {
    pub(super) fn of(instance: InstanceId) -> Self {
        Self(Sha256::new().chain_update("events ").chain_update(instance.to_string()))
    }

    pub(super) fn write(&self, Place { sequence, mark }: Place) -> String {
        let sequence = sequence.to_be_bytes();
        BASE64URL_NOPAD.encode(&[sequence.as_slice(), &mark, &self.check(sequence, mark)].concat())
    }

    /// `None` for what this instance has not written.
    pub(super) fn read(&self, cursor: &str) -> Option<Place> {
        let bytes = BASE64URL_NOPAD.decode(cursor.as_bytes()).ok()?;
        let (sequence, rest) = bytes.split_first_chunk::<8>()?;
        let (mark, check) = rest.split_first_chunk::<MARK>()?;
        let place = Place { sequence: i64::from_be_bytes(*sequence), mark: *mark };
        (check == self.check(*sequence, *mark)).then_some(place)
    }

    fn check(&self, sequence: [u8; 8], mark: [u8; MARK]) -> [u8; CHECK] {
        first_bytes(self.0.clone().chain_update(sequence).chain_update(mark))
    }
}

fn mark(id: &str) -> [u8; MARK] {
    first_bytes(Sha256::new().chain_update("event ").chain_update(id))
}

fn first_bytes<const N: usize>(hash: Sha256) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&hash.finalize()[..N]);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;

    #[test]
    fn a_cursor_reads_back_where_it_was_written_and_nowhere_else() {
        let [ours, other] = [1, 2].map(|at| Cursors::of(InstanceId::new(Timestamp::from_millis(at))));
        for sequence in [0, 1, 255, 1 << 40, i64::MAX] {
            let place = Place::of(sequence, Some("evt_1"));
            let cursor = ours.write(place);
            assert_eq!((ours.read(&cursor), other.read(&cursor)), (Some(place), None));
            for at in [0, 12] {
                let mut changed = cursor.clone();
                let other = if cursor[at..].starts_with('A') { "B" } else { "A" };
                changed.replace_range(at..=at, other);
                assert_eq!(ours.read(&changed), None);
            }
            assert_eq!(ours.read(&cursor[1..]), None);
        }
        for made_up in ["", "0", "AAAAAAAAAAA", "\u{fc}", &"A".repeat(10_000)] {
            assert_eq!(ours.read(made_up), None);
        }
    }

    #[test]
    fn a_place_is_behind_its_own_event_only() {
        let place = Place::of(7, Some("evt_1"));
        assert!(place.is_behind(Some("evt_1")) && !place.is_behind(Some("evt_2")));
        assert!(place.is_behind(None), "it was removed for its age");
        assert!(Place::of(0, None).is_behind(Some("evt_2")), "there was none");
    }
}
