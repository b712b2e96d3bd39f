//! The packed record: what one Ready of one group asks the log store to keep, as one blob.
//!
//! Layout, version 1; varint = unsigned LEB128 as in protobuf:
//!
//! ```text
//! u8      version = 1
//! u8      flags: bit 0 = a hard state follows; the other bits are 0
//! u32 LE  CRC-32 (IEEE) of everything after it
//! varint  term, vote, commit                            only with bit 0
//! varint  count of entries
//! varint  index of the first entry                      only if count > 0; the others follow it by 1
//! count × { varint term; u8 kind; varint length; data; varint length; context }
//! ```
//!
//! Rules of recovery. Records are replayed in the order in which they were written. Entries at or
//! above a record's first index are replaced by it (P5: writing an entry truncates what follows).
//! Hard states merge without regard to order: the higher term wins with its vote; within one term a
//! vote is never taken back; commit is the maximum. Two votes in one term are corruption.
//!
//! A record says nothing of a snapshot: the log store drops the group's older records, or at least their
//! entries, in the transaction that switches to the snapshot (P6), and keeps its index and term itself.

use std::collections::VecDeque;

use bytes::Bytes;
use protobuf::ProtobufEnum as _;
use raft::eraftpb::{Entry, EntryType, HardState};

use crate::failure::{Failure, Outcome};
use crate::memory_log::Truncated;

const VERSION: u8 = 1;
const HAS_HARD_STATE: u8 = 1;
const HEADER_BYTES: usize = 6;
/// Indexes stay below this, so that adding to them cannot overflow.
const INDEX_MAX: u64 = 1 << 62;

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Packs a hard state (if it is to be kept) and contiguous entries.
pub fn pack(hard_state: Option<&HardState>, entries: &[Entry]) -> Vec<u8> {
    let body: usize = entries
        .iter()
        .map(|entry| entry.data.len() + entry.context.len() + 16)
        .sum();
    let mut out = Vec::with_capacity(HEADER_BYTES + 40 + body);
    out.extend_from_slice(&[VERSION, u8::from(hard_state.is_some()), 0, 0, 0, 0]);
    if let Some(state) = hard_state {
        for value in [state.term, state.vote, state.commit] {
            put_varint(&mut out, value);
        }
    }
    put_varint(&mut out, entries.len() as u64);
    if let Some(first) = entries.first() {
        put_varint(&mut out, first.index);
    }
    for entry in entries {
        put_varint(&mut out, entry.term);
        out.push(entry.get_entry_type() as u8);
        put_varint(&mut out, entry.data.len() as u64);
        out.extend_from_slice(&entry.data);
        put_varint(&mut out, entry.context.len() as u64);
        out.extend_from_slice(&entry.context);
    }
    let sum = crc32fast::hash(&out[HEADER_BYTES..]);
    out[2..HEADER_BYTES].copy_from_slice(&sum.to_le_bytes());
    out
}

fn corrupt<T>(reason: impl Into<String>) -> Outcome<T> {
    Err(Failure::CorruptRecord(reason.into()))
}

/// A reader that answers corruption instead of running past the end.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    /// Checks version and flags; `at` then stands at the body. Returns whether a hard state follows.
    fn open(bytes: &'a [u8]) -> Outcome<(Self, bool)> {
        if bytes.len() < HEADER_BYTES {
            return corrupt("record shorter than its header");
        }
        if bytes[0] != VERSION {
            return corrupt(format!("record version {} is not {VERSION}", bytes[0]));
        }
        if bytes[1] & !HAS_HARD_STATE != 0 {
            return corrupt("unknown flags in the record");
        }
        let at = HEADER_BYTES;
        Ok((Reader { bytes, at }, bytes[1] & HAS_HARD_STATE != 0))
    }

    fn check_sum(&self) -> Outcome<()> {
        let kept = u32::from_le_bytes(self.bytes[2..HEADER_BYTES].try_into().expect("4 bytes"));
        if crc32fast::hash(&self.bytes[HEADER_BYTES..]) != kept {
            return corrupt("record checksum does not match");
        }
        Ok(())
    }

    fn byte(&mut self) -> Outcome<u8> {
        let Some(&byte) = self.bytes.get(self.at) else {
            return corrupt("record ends early");
        };
        self.at += 1;
        Ok(byte)
    }

    fn varint(&mut self) -> Outcome<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let part = u64::from(byte & 0x7f);
            if shift == 63 && part > 1 {
                return corrupt("number too large in the record");
            }
            value |= part << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        corrupt("number too long in the record")
    }

    fn span(&mut self) -> Outcome<(usize, usize)> {
        let length = self.varint()?;
        let left = (self.bytes.len() - self.at) as u64;
        if length > left {
            return corrupt("record ends early");
        }
        let from = self.at;
        self.at += length as usize;
        Ok((from, self.at))
    }

    fn hard_state(&mut self) -> Outcome<HardState> {
        let mut state = HardState::default();
        state.term = self.varint()?;
        state.vote = self.varint()?;
        state.commit = self.varint()?;
        Ok(state)
    }

    /// `(count, index of the first)`; `(0, 0)` without entries.
    fn extent(&mut self) -> Outcome<(u64, u64)> {
        let count = self.varint()?;
        if count == 0 {
            return Ok((0, 0));
        }
        let first = self.varint()?;
        if first == 0 || first >= INDEX_MAX || count > self.bytes.len() as u64 {
            return corrupt("index or count out of range in the record");
        }
        Ok((count, first))
    }
}

/// What a record says, its checksum verified. Entry data share the record's one buffer.
pub struct Unpacked {
    pub hard_state: Option<HardState>,
    pub entries: Vec<Entry>,
}

pub fn unpack(record: &[u8]) -> Outcome<Unpacked> {
    let (mut reader, has_hard_state) = Reader::open(record)?;
    reader.check_sum()?;
    let hard_state = has_hard_state.then(|| reader.hard_state()).transpose()?;
    let (count, first) = reader.extent()?;
    let shared = Bytes::copy_from_slice(record);
    let mut entries = Vec::with_capacity(count as usize);
    for index in first..first + count {
        let mut entry = Entry::default();
        entry.index = index;
        entry.term = reader.varint()?;
        let kind = i32::from(reader.byte()?);
        let Some(kind) = EntryType::from_i32(kind) else {
            return corrupt("unknown kind of entry in the record");
        };
        entry.set_entry_type(kind);
        let (from, until) = reader.span()?;
        entry.data = shared.slice(from..until);
        let (from, until) = reader.span()?;
        entry.context = shared.slice(from..until);
        entries.push(entry);
    }
    if reader.at != record.len() {
        return corrupt("bytes after the last entry of the record");
    }
    Ok(Unpacked {
        hard_state,
        entries,
    })
}

/// `(first index, last index, has a hard state)`, `(0, 0, _)` without entries; the checksum is not verified.
pub fn bounds(record: &[u8]) -> Outcome<(u64, u64, bool)> {
    let (mut reader, has_hard_state) = Reader::open(record)?;
    if has_hard_state {
        reader.hard_state()?;
    }
    let (count, first) = reader.extent()?;
    Ok((first, (first + count).saturating_sub(1), has_hard_state))
}

/// Merges `newer` into `state`; see the module's rules.
pub fn merge_hard_state(state: &mut HardState, newer: &HardState) -> Outcome<()> {
    if newer.term > state.term {
        state.term = newer.term;
        state.vote = newer.vote;
    } else if newer.term == state.term && newer.vote != 0 {
        if state.vote != 0 && state.vote != newer.vote {
            return corrupt(format!(
                "two votes in term {}: for {} and for {}",
                state.term, state.vote, newer.vote
            ));
        }
        state.vote = newer.vote;
    }
    state.commit = state.commit.max(newer.commit);
    Ok(())
}

/// Replays `records` over what is known from elsewhere: the log above `truncated` and the hard state.
pub fn replay<'a>(
    records: impl Iterator<Item = &'a [u8]>,
    truncated: Truncated,
    hard_state: &mut HardState,
) -> Outcome<VecDeque<Entry>> {
    let mut log: VecDeque<Entry> = VecDeque::new();
    for (number, record) in records.enumerate() {
        let unpacked = unpack(record).map_err(|failure| match failure {
            Failure::CorruptRecord(reason) => {
                Failure::CorruptRecord(format!("record {number}: {reason}"))
            }
            other => other,
        })?;
        if let Some(newer) = &unpacked.hard_state {
            merge_hard_state(hard_state, newer)?;
        }
        extend(&mut log, unpacked.entries, truncated, number)?;
    }
    let mut term = truncated.term;
    for entry in &log {
        if entry.term < term || entry.term > hard_state.term {
            return corrupt(format!(
                "entry {} has term {} after term {term}, in a log of term {}",
                entry.index, entry.term, hard_state.term
            ));
        }
        term = entry.term;
    }
    Ok(log)
}

/// Adds the entries of one record to a log that starts right above `truncated`.
fn extend(
    log: &mut VecDeque<Entry>,
    entries: Vec<Entry>,
    truncated: Truncated,
    number: usize,
) -> Outcome<()> {
    let Some(first) = entries.first().map(|entry| entry.index) else {
        return Ok(());
    };
    let next = truncated.index + log.len() as u64 + 1;
    if first > next {
        return corrupt(format!(
            "record {number} starts at entry {first}, but the log before it ends at {}",
            next - 1
        ));
    }
    log.truncate(first.saturating_sub(truncated.index + 1) as usize);
    log.extend(
        entries
            .into_iter()
            .filter(|entry| entry.index > truncated.index),
    );
    Ok(())
}
