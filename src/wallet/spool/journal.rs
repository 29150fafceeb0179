//! The spool's file: records in slots of one size, written in place.
//!
//! A slot begins with a tag: that of a record's first slot, of a further one, or zeros. Behind the tags of its slots a
//! record is its length (u32), its sequence number (u64), the CRC-32 of both and of the payload (u32), all big-endian,
//! and the payload. The space of new slots is written once ahead, so that a full disk and the file's own metadata keep
//! no record waiting. A record is freed by zeroing the tag of its first slot, without sync: should it come back, storing
//! it again changes nothing.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;

/// Bytes of a slot.
const SLOT: usize = 2048;

/// What tells a record's first slot, its further ones, and the slot that checks are written to.
const FIRST: [u8; 4] = *b"TWS1";
const FURTHER: [u8; 4] = *b"TWS+";
const PROBE: [u8; 4] = *b"TWS?";
const FREE: [u8; 4] = [0; 4];

/// What tells the first slot of a record that is set aside.
const ASIDE: [u8; 4] = *b"TWS-";

/// Bytes of a slot behind its tag.
const BODY: usize = SLOT - FIRST.len();

/// Bytes of a record before its payload.
const HEADER: usize = 4 + 8 + 4;

/// Slots that the file grows by, and slots that it has at most: 64 MiB, some 20 000 answers.
const CHUNK: usize = 512;
const MOST: usize = 64 * CHUNK;

/// The file. Everything here blocks.
pub(super) struct Journal {
    file: File,
    /// By slot, whether it is taken.
    taken: Vec<bool>,
    /// Of the next record.
    sequence: u64,
}

/// The slots of a record.
pub(super) type Place = Range<usize>;

/// What a file holds.
#[derive(Default)]
pub(super) struct Found {
    /// Whole records, the oldest first.
    pub(super) records: Vec<(Place, Vec<u8>)>,
    /// How many are damaged. They stay where they are.
    pub(super) damaged: usize,
    /// How many are set aside. So do they.
    pub(super) aside: usize,
}

impl Journal {
    /// Opens the file, making it if it is not there, and reads what it holds.
    pub(super) fn open(path: &Path) -> io::Result<(Self, Found)> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
        let length = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
        let mut bytes = vec![0; length / SLOT * SLOT];
        file.read_exact_at(&mut bytes, 0)?;
        let mut journal = Self { file, taken: vec![false; bytes.len() / SLOT], sequence: 0 };
        let found = journal.scan(&bytes);
        if journal.taken.is_empty() {
            journal.grow()?;
        }
        journal.taken[0] = true;
        Ok((journal, found))
    }

    /// Finds the records and marks their slots as taken.
    fn scan(&mut self, bytes: &[u8]) -> Found {
        let (mut found, mut damaged, mut aside) = (Vec::new(), 0, 0);
        let tag = |slot: usize| bytes.get(slot * SLOT..slot * SLOT + FIRST.len());
        let mut slot = 1;
        while let Some(tagged) = tag(slot) {
            let mut end = slot + 1;
            // A further slot without a first one is what a freed record left behind.
            if tagged != FREE && tagged != FURTHER {
                if let Some((slots, sequence, payload)) = read(&bytes[slot * SLOT..]) {
                    end = slot + slots;
                    found.push((sequence, slot..end, payload));
                } else {
                    *(if tagged == ASIDE { &mut aside } else { &mut damaged }) += 1;
                    while tag(end).is_some_and(|tag| tag == FURTHER) {
                        end += 1;
                    }
                }
                self.taken[slot..end].fill(true);
            }
            slot = end;
        }
        found.sort_by_key(|(sequence, ..)| *sequence);
        self.sequence = found.last().map_or(0, |(sequence, ..)| sequence + 1);
        let records = found.into_iter().map(|(_, place, payload)| (place, payload)).collect();
        Found { records, damaged, aside }
    }

    /// Writes a record. It is lasting after the next [`Self::sync`].
    pub(super) fn write(&mut self, payload: &[u8]) -> io::Result<Place> {
        let bytes = record(self.sequence, payload)?;
        let place = self.room(bytes.len() / SLOT)?;
        if let Err(error) = self.file.write_all_at(&bytes, offset(place.start)) {
            self.free(place);
            return Err(error);
        }
        self.taken[place.clone()].fill(true);
        self.sequence += 1;
        Ok(place)
    }

    /// Makes all that was written lasting.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// Gives a record's slots to others.
    pub(super) fn free(&mut self, place: Place) {
        if let Err(error) = self.file.write_all_at(&FREE, offset(place.start)) {
            tracing::warn!(%error, "a spooled answer that is stored stays in the spool; it will be dropped at the next start");
        }
        self.taken[place].fill(false);
    }

    /// Marks a record as nobody's: it stays, and is not given to the next life.
    pub(super) fn set_aside(&self, place: &Place) {
        if let Err(error) = self.file.write_all_at(&ASIDE, offset(place.start)) {
            tracing::warn!(%error, "a spooled answer cannot be set aside; the next start will try");
        }
    }

    /// Writes where no record is, to see whether it can.
    pub(super) fn probe(&mut self) -> io::Result<()> {
        self.room(1)?;
        self.file.write_all_at(&PROBE, 0)
    }

    /// So many free slots in a row.
    fn room(&mut self, slots: usize) -> io::Result<Place> {
        loop {
            let mut from = 0;
            for slot in 0..self.taken.len() {
                if self.taken[slot] {
                    from = slot + 1;
                } else if slot + 1 - from == slots {
                    return Ok(from..slot + 1);
                }
            }
            self.grow()?;
        }
    }

    fn grow(&mut self) -> io::Result<()> {
        let slots = self.taken.len();
        if slots + CHUNK > MOST {
            return Err(io::Error::new(io::ErrorKind::StorageFull, "the spool has its largest size"));
        }
        self.file.write_all_at(&vec![0; CHUNK * SLOT], offset(slots))?;
        self.file.sync_all()?;
        self.taken.resize(slots + CHUNK, false);
        Ok(())
    }
}

/// Where a slot begins.
fn offset(slot: usize) -> u64 {
    (slot * SLOT) as u64
}

/// A record's slots.
fn record(sequence: u64, payload: &[u8]) -> io::Result<Vec<u8>> {
    let length = u32::try_from(payload.len()).map_err(io::Error::other)?;
    let mut content = Vec::with_capacity(HEADER + payload.len());
    content.extend(length.to_be_bytes());
    content.extend(sequence.to_be_bytes());
    content.extend(checksum(length, sequence, payload).to_be_bytes());
    content.extend(payload);
    let mut slots = Vec::with_capacity(content.len().div_ceil(BODY) * SLOT);
    for (index, body) in content.chunks(BODY).enumerate() {
        slots.extend(if index == 0 { FIRST } else { FURTHER });
        slots.extend(body);
        slots.resize((index + 1) * SLOT, 0);
    }
    Ok(slots)
}

/// The record that these slots begin with: how many of them it has, its sequence number, its payload.
fn read(bytes: &[u8]) -> Option<(usize, u64, Vec<u8>)> {
    let header = bytes.get(..SLOT)?.strip_prefix(&FIRST)?;
    let (length, header) = header.split_first_chunk()?;
    let (sequence, header) = header.split_first_chunk()?;
    let (told, _) = header.split_first_chunk()?;
    let (length, sequence) = (u32::from_be_bytes(*length), u64::from_be_bytes(*sequence));
    let size = HEADER.checked_add(usize::try_from(length).ok()?)?;
    let slots = size.div_ceil(BODY);
    let mut content = Vec::new();
    for (index, slot) in bytes.get(..slots.checked_mul(SLOT)?)?.chunks(SLOT).enumerate() {
        content.extend(slot.strip_prefix(if index == 0 { &FIRST } else { &FURTHER })?);
    }
    let payload = content.get(HEADER..size)?.to_vec();
    (checksum(length, sequence, &payload) == u32::from_be_bytes(*told)).then_some((slots, sequence, payload))
}

fn checksum(length: u32, sequence: u64, payload: &[u8]) -> u32 {
    let mut checksum = crc32fast::Hasher::new();
    checksum.update(&length.to_be_bytes());
    checksum.update(&sequence.to_be_bytes());
    checksum.update(payload);
    checksum.finalize()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    fn open(folder: &tempfile::TempDir) -> (Journal, Found) {
        Journal::open(&folder.path().join("answers")).unwrap()
    }

    fn payloads(found: &Found) -> Vec<Vec<u8>> {
        found.records.iter().map(|(_, payload)| payload.clone()).collect()
    }

    #[test]
    fn records_of_all_sizes_read_back_in_their_order_until_they_are_freed() {
        let folder = tempfile::tempdir().unwrap();
        let (mut journal, found) = open(&folder);
        assert!(found.records.is_empty());
        let edge = BODY - HEADER;
        let sizes = [0, 1, edge, edge + 1, edge + BODY, edge + BODY + 1, 100_000, 3];
        let written: Vec<_> = sizes.iter().map(|size| vec![0x5a; *size]).collect();
        let places: Vec<_> = written.iter().map(|payload| journal.write(payload).unwrap()).collect();
        assert_eq!(places.iter().map(Range::len).collect::<Vec<_>>(), [1, 1, 1, 2, 2, 3, 49, 1]);
        drop(journal);
        let (mut journal, found) = open(&folder);
        assert!(payloads(&found) == written && found.damaged == 0);
        // A record in the room of a larger one, whose further slots are left over.
        journal.free(places[6].clone());
        assert_eq!(journal.write(&[1; 2_500]).unwrap(), places[6].start..places[6].start + 2);
        journal.free(places[0].clone());
        drop(journal);
        let (_, found) = open(&folder);
        let expected: Vec<_> = [&written[1..6], &written[7..], &[vec![1; 2_500]]].concat();
        assert!(payloads(&found) == expected && found.damaged == 0);
    }

    #[test]
    fn what_is_set_aside_stays_and_is_counted_apart() {
        let folder = tempfile::tempdir().unwrap();
        let (mut journal, _) = open(&folder);
        let places = [1, 3_000, 5].map(|size| journal.write(&vec![7; size]).unwrap());
        journal.set_aside(&places[1]);
        drop(journal);
        let (mut journal, found) = open(&folder);
        assert_eq!((found.records.len(), found.damaged, found.aside), (2, 0, 1));
        journal.free(places[0].clone());
        assert_eq!(journal.write(&[8; 3_000]).unwrap().start, places[2].end, "it is not written over");
    }

    #[test]
    fn it_grows_by_chunks_up_to_its_largest_size() {
        let folder = tempfile::tempdir().unwrap();
        let (mut journal, _) = open(&folder);
        let length = |journal: &Journal| journal.file.metadata().unwrap().len();
        assert_eq!(length(&journal), (CHUNK * SLOT) as u64);
        let huge = vec![0; 20 * CHUNK * SLOT];
        for _ in 0..3 {
            journal.write(&huge).unwrap();
        }
        assert_eq!(journal.write(&huge).unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert_eq!(length(&journal), (MOST * SLOT) as u64);
        journal.probe().unwrap();
        while journal.write(&vec![0; 100_000]).is_ok() {}
        while journal.write(&[0]).is_ok() {}
        assert_eq!(journal.probe().unwrap_err().kind(), io::ErrorKind::StorageFull, "no room for any record");
    }

    #[test]
    fn s6_a_damaged_record_stays_and_the_rest_reads_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("answers");
        let (mut journal, _) = open(&folder);
        let written: Vec<_> = (0..5_u8).map(|number| vec![number; 3_000]).collect();
        let places: Vec<_> = written.iter().map(|payload| journal.write(payload).unwrap()).collect();
        drop(journal);
        let whole = std::fs::read(&path).unwrap();
        let (begin, end) = (places[2].start * SLOT, places[2].end * SLOT);
        let mut others = written.clone();
        others.remove(2);
        // Any bit of the record: its tags, its header, its payload; every 97th, so that all bytes of a kind are met.
        let used = begin + FIRST.len() + HEADER + 3_000 + FURTHER.len();
        let flips = (begin * 8..(begin + 32) * 8).chain((begin * 8..used * 8).step_by(97));
        for bit in flips {
            let mut bytes = whole.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            std::fs::write(&path, &bytes).unwrap();
            let (mut journal, found) = open(&folder);
            assert!(payloads(&found) == others, "bit {bit}");
            assert!(found.damaged >= 1, "bit {bit}");
            assert!(!places[2].contains(&journal.write(&[0]).unwrap().start), "bit {bit}: it is not written over");
        }
        // Torn: only the beginning, or only the end, of it got to the disk.
        for torn in [begin + SLOT..end, begin + 512..end, begin + FIRST.len()..begin + SLOT] {
            let mut bytes = whole.clone();
            bytes[torn.clone()].fill(0);
            std::fs::write(&path, &bytes).unwrap();
            let (_, found) = open(&folder);
            assert!((payloads(&found) == others, found.damaged) == (true, 1), "{torn:?}");
        }
        // Cut off, with what follows.
        std::fs::write(&path, &whole[..end - SLOT]).unwrap();
        let (mut journal, found) = open(&folder);
        assert!((payloads(&found) == written[..2], found.damaged) == (true, 1));
        journal.write(&[7; 5_000]).unwrap();
    }

    /// With these slots, on a disk that is full.
    pub(in crate::wallet::spool) fn full(taken: &[bool]) -> Journal {
        let file = OpenOptions::new().read(true).write(true).open("/dev/full").unwrap();
        Journal { file, taken: taken.to_vec(), sequence: 0 }
    }

    #[test]
    fn s6_a_disk_that_is_full_refuses_and_forgets() {
        let mut journal = full(&[true, false, false]);
        assert_eq!(journal.write(&[1]).unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert_eq!(journal.taken, [true, false, false], "the room is free for the next try");
        assert_eq!(journal.probe().unwrap_err().kind(), io::ErrorKind::StorageFull);
        let mut journal = full(&[true]);
        assert_eq!(journal.write(&[1]).unwrap_err().kind(), io::ErrorKind::StorageFull, "no room to grow into");
        assert_eq!(journal.taken.len(), 1);
    }
}
