//! What raft-rs reads as its storage: the log since the last truncation, in memory.
//!
//! Knows entries, the truncation point, the member configuration at start and the snapshot that may
//! be offered to followers. Knows nothing of disks: durability is the caller's, told by `persisted`.
//!
//! Invariants: indexes are contiguous from `truncated.index + 1`; terms never decrease; `log_bytes`
//! equals the sum over the entries held.

use std::collections::VecDeque;
use std::mem::size_of;
use std::sync::atomic::{AtomicU64, Ordering};

use protobuf::Message as _;
use raft::eraftpb::{ConfState, Entry, HardState, Snapshot};
use raft::{Error, GetEntriesContext, RaftState, Result, Storage, StorageError};

use crate::members;

/// The last entry that is no longer held.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Truncated {
    pub index: u64,
    pub term: u64,
}

pub struct MemoryLog {
    initial: RaftState,
    truncated: Truncated,
    entries: VecDeque<Entry>,
    log_bytes: u64,
    offered: Option<Snapshot>,
    /// 0, or the least index of the snapshot that a follower waits for. Set from `&self`.
    wanted: AtomicU64,
}

/// Memory that one entry is charged with.
fn entry_bytes(entry: &Entry) -> u64 {
    (size_of::<Entry>() + entry.data.len() + entry.context.len()) as u64
}

impl MemoryLog {
    pub fn new(
        hard_state: HardState,
        conf_state: ConfState,
        truncated: Truncated,
        entries: VecDeque<Entry>,
    ) -> Self {
        MemoryLog {
            initial: RaftState::new(hard_state, conf_state),
            truncated,
            log_bytes: entries.iter().map(entry_bytes).sum(),
            entries,
            offered: None,
            wanted: AtomicU64::new(0),
        }
    }

    pub fn first(&self) -> u64 {
        self.truncated.index + 1
    }

    pub fn last(&self) -> u64 {
        self.truncated.index + self.entries.len() as u64
    }

    pub fn truncated(&self) -> Truncated {
        self.truncated
    }

    pub fn log_bytes(&self) -> u64 {
        self.log_bytes
    }

    pub fn entry(&self, index: u64) -> Option<&Entry> {
        let offset = index.checked_sub(self.first())?;
        self.entries.get(offset as usize)
    }

    pub fn term_at(&self, index: u64) -> Option<u64> {
        if index == self.truncated.index {
            return Some(self.truncated.term);
        }
        self.entry(index).map(|entry| entry.term)
    }

    /// Appends `entries`, first dropping what they overwrite (P5).
    ///
    /// Panics on a gap or on an overwrite of truncated entries: raft-rs never asks for either.
    pub fn append(&mut self, entries: Vec<Entry>) {
        let Some(head) = entries.first() else { return };
        assert!(
            self.first() <= head.index && head.index <= self.last() + 1,
            "append at {} to a log that holds [{}, {}]",
            head.index,
            self.first(),
            self.last()
        );
        while self.last() >= head.index {
            let dropped = self.entries.pop_back().expect("last() counts the entries");
            self.log_bytes -= entry_bytes(&dropped);
        }
        self.log_bytes += entries.iter().map(entry_bytes).sum::<u64>();
        self.entries.extend(entries);
    }

    /// Forgets entries up to and including `index`, which must be held or already forgotten.
    pub fn truncate_to(&mut self, index: u64) {
        while self.truncated.index < index {
            let dropped = self.entries.pop_front().expect("index <= last");
            self.log_bytes -= entry_bytes(&dropped);
            self.truncated = Truncated {
                index: dropped.index,
                term: dropped.term,
            };
        }
        if self.entries.capacity() > 1024 && self.entries.len() < self.entries.capacity() / 4 {
            self.entries.shrink_to(self.entries.len() * 2);
        }
    }

    /// Starts over after an installed snapshot: no entry that was held counts any longer.
    pub fn reset_to(&mut self, truncated: Truncated) {
        self.truncated = truncated;
        self.entries.clear();
        self.log_bytes = 0;
        self.offered = None;
        self.wanted.store(0, Ordering::Relaxed);
    }

    /// Offers `snapshot` to followers that are too far behind; `None` withdraws the offer.
    pub fn offer(&mut self, snapshot: Option<Snapshot>) {
        if let Some(offered) = &snapshot {
            if offered.get_metadata().index >= self.wanted.load(Ordering::Relaxed) {
                self.wanted.store(0, Ordering::Relaxed);
            }
        }
        self.offered = snapshot;
    }

    /// 0, or the least index that a snapshot must have to help the follower that waits for one.
    pub fn wanted(&self) -> u64 {
        self.wanted.load(Ordering::Relaxed)
    }
}

impl Storage for MemoryLog {
    fn initial_state(&self) -> Result<RaftState> {
        Ok(self.initial.clone())
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _: GetEntriesContext,
    ) -> Result<Vec<Entry>> {
        if low < self.first() {
            return Err(Error::Store(StorageError::Compacted));
        }
        assert!(
            high <= self.last() + 1,
            "entries up to {high} of {}",
            self.last()
        );
        let limit = max_size.into().unwrap_or(u64::MAX);
        let from = (low - self.first()) as usize;
        let until = (high - self.first()) as usize;
        let mut taken = Vec::with_capacity((until - from).min(64));
        let mut bytes = 0u64;
        for entry in self.entries.range(from..until) {
            bytes += u64::from(entry.compute_size());
            if bytes > limit && !taken.is_empty() {
                break;
            }
            taken.push(entry.clone());
        }
        Ok(taken)
    }

    fn term(&self, index: u64) -> Result<u64> {
        if index < self.truncated.index {
            return Err(Error::Store(StorageError::Compacted));
        }
        self.term_at(index)
            .ok_or(Error::Store(StorageError::Unavailable))
    }

    fn first_index(&self) -> Result<u64> {
        Ok(self.first())
    }

    fn last_index(&self) -> Result<u64> {
        Ok(self.last())
    }

    fn snapshot(&self, request_index: u64, to: u64) -> Result<Snapshot> {
        let mut needed = request_index.max(self.truncated.index).max(1);
        if let Some(offered) = &self.offered {
            let metadata = offered.get_metadata();
            // A replica ignores a snapshot that does not know it, and would be sent the same one for ever.
            if !members::has(metadata.get_conf_state(), to) {
                needed = needed.max(metadata.index + 1);
            }
            if metadata.index >= needed {
                return Ok(offered.clone());
            }
        }
        self.wanted.fetch_max(needed, Ordering::Relaxed);
        Err(Error::Store(StorageError::SnapshotTemporarilyUnavailable))
    }
}
