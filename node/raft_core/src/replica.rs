//! One replica of one Raft group: raft-rs's RawNode plus what its contract leaves to its caller.
//!
//! Knows nothing of Python. Adds to raft-rs:
//! - election timeouts from a seeded generator (`settle`, after every call);
//! - which messages wait for durability: also those of a leader whose own vote is not durable yet
//!   (raft-rs lets a sole voter with learners send appends of a term that a crash would forget);
//! - a snapshot is installed before anything else moves (`installing`);
//! - every committed configuration entry passes through `apply_conf_change` before it counts as applied;
//! - a sole voter campaigns only with a durable log, and a leader that is no voter any longer steps
//!   down: raft-rs panics in both cases.

use std::collections::VecDeque;

use raft::eraftpb::{
    ConfChangeType, ConfState, Entry, HardState, Message, MessageType, Snapshot, SnapshotMetadata,
};
use raft::{Config, RawNode, ReadState, SnapshotStatus, SoftState, StateRole};
use slog::{o, Discard, Logger};

use crate::failure::{Failure, Outcome};
use crate::members;
use crate::memory_log::{MemoryLog, Truncated};
use crate::ready::tidied;
use crate::record;
use crate::timeouts::Timeouts;
use crate::wire;

/// Everything a replica starts from. `truncated`, `conf_state` and `applied` describe the applied
/// state; `hard_state` and `entries` the log above `truncated`.
pub struct Start {
    pub group_id: u64,
    pub seed: u64,
    pub config: Config,
    pub hard_state: HardState,
    pub conf_state: ConfState,
    pub truncated: Truncated,
    pub entries: VecDeque<Entry>,
}

/// One turn's work; see `_core.pyi`.
pub struct Work {
    pub number: u64,
    pub log_record: Vec<u8>,
    pub extent: (u64, u64),
    pub hard_state: Option<HardState>,
    pub messages: Vec<Message>,
    pub messages_after_persist: Vec<Message>,
    pub committed: Vec<Entry>,
    pub read_states: Vec<ReadState>,
    pub snapshot: Option<Snapshot>,
    pub soft_state: Option<SoftState>,
}

pub struct Replica {
    pub node: RawNode<MemoryLog>,
    timeouts: Timeouts,
    timeout: usize,
    settled: (u64, StateRole),
    append_bytes_max: u64,
    /// Number of the newest Ready, and of the newest one up to which everything is durable.
    last_ready: u64,
    persisted: u64,
    /// Readies with something to keep that is not durable yet.
    unkept: VecDeque<u64>,
    /// The newest Ready that changed term or vote: a leader's messages wait for it.
    vote_ready: u64,
    recorded: HardState,
    /// `(Ready number, index)` of the snapshot that is being installed.
    installing: Option<(u64, u64)>,
    /// The newest index given out as committed, and the configuration entries not yet applied.
    emitted: u64,
    changes_due: VecDeque<u64>,
}

fn invalid<T>(message: impl Into<String>) -> Outcome<T> {
    Err(Failure::Invalid(message.into()))
}

/// Refuses starting states that raft-rs would answer with a panic, or worse, accept.
fn check_start(start: &Start) -> Outcome<()> {
    let last = start.truncated.index + start.entries.len() as u64;
    let (applied, commit) = (start.config.applied, start.hard_state.commit);
    let Truncated { index, term } = start.truncated;
    if (index == 0) != (term == 0) {
        return invalid(format!(
            "snapshot_index {index} and snapshot_term {term}: both or neither are 0"
        ));
    }
    if index == 0 && !members::is_empty(&start.conf_state) {
        return invalid(
            "a group with members starts at snapshot_index >= 1, so that a \
             replica that joins later cannot replay the log from nothing",
        );
    }
    if index != 0 && members::is_empty(&start.conf_state) {
        return invalid("an applied state at snapshot_index >= 1 has members");
    }
    if !(index <= applied && applied <= commit && commit <= last) {
        return invalid(format!(
            "need snapshot_index {index} <= applied {applied} <= commit {commit} <= last index {last}"
        ));
    }
    if start.hard_state.term < term {
        return invalid(format!(
            "term {} is below snapshot_term {term}",
            start.hard_state.term
        ));
    }
    Ok(())
}

impl Replica {
    pub fn new(start: Start) -> Outcome<Self> {
        check_start(&start)?;
        let Start {
            group_id,
            seed,
            config,
            hard_state,
            conf_state,
            truncated,
            entries,
        } = start;
        let log = MemoryLog::new(hard_state.clone(), conf_state, truncated, entries);
        let logger = Logger::root(Discard, o!());
        let node = RawNode::new(&config, log, &logger)
            .map_err(|error| Failure::Invalid(error.to_string()))?;
        let mut timeouts = Timeouts::new(seed, group_id, config.id, config.election_tick);
        let timeout = timeouts.draw();
        let mut replica = Replica {
            settled: (node.raft.term, node.raft.state),
            node,
            timeouts,
            timeout,
            append_bytes_max: config.max_size_per_msg,
            last_ready: 0,
            persisted: 0,
            unkept: VecDeque::new(),
            vote_ready: 0,
            recorded: hard_state,
            installing: None,
            emitted: config.applied,
            changes_due: VecDeque::new(),
        };
        replica.settle();
        Ok(replica)
    }

    /// Replaces what raft-rs drew by the seeded timeout. To be called after every call into raft-rs.
    ///
    /// raft-rs draws anew only when it changes term or role, and so does the generator.
    pub fn settle(&mut self) {
        let raft = &mut self.node.raft;
        let now = (raft.term, raft.state);
        if now != self.settled {
            self.settled = now;
            self.timeout = self.timeouts.draw();
        }
        raft.set_randomized_election_timeout(self.timeout);
    }

    pub fn is_leader(&self) -> bool {
        self.node.raft.state == StateRole::Leader
    }

    pub fn persisted_number(&self) -> u64 {
        self.persisted
    }

    fn lead(&self) -> Outcome<()> {
        if self.is_leader() {
            Ok(())
        } else {
            Err(Failure::NotLeader(self.node.raft.leader_id))
        }
    }

    /// A sole voter wins in the same call, and raft-rs asserts that its log is durable by then.
    fn may_campaign(&self) -> bool {
        let raft = &self.node.raft;
        let durable = self.persisted == self.last_ready
            && raft.raft_log.unstable_entries().is_empty()
            && raft.raft_log.persisted == raft.raft_log.last_index();
        let waits_for_snapshot = self.installing.is_some() || self.node.snap().is_some();
        !waits_for_snapshot && (durable || !raft.prs().is_singleton())
    }

    pub fn tick(&mut self) -> bool {
        (self.is_leader() || self.may_campaign()) && self.node.tick()
    }

    pub fn campaign(&mut self) -> Outcome<()> {
        if !self.node.raft.promotable() || !self.may_campaign() {
            return Ok(());
        }
        self.node
            .campaign()
            .map_err(|error| Failure::Invalid(error.to_string()))
    }

    /// Takes a peer's message. False: it was stale or from a stranger, and changed nothing.
    pub fn step(&mut self, bytes: &[u8]) -> Outcome<bool> {
        let message = wire::parse(bytes).map_err(Failure::BadMessage)?;
        wire::check(&message, self.node.raft.id).map_err(Failure::BadMessage)?;
        let kind = message.get_msg_type();
        if kind == MessageType::MsgTimeoutNow && !self.may_campaign() {
            return Ok(false);
        }
        let acknowledges = kind == MessageType::MsgAppendResponse && !message.reject;
        if acknowledges && self.is_leader() && message.term == self.node.raft.term {
            let last = self.node.raft.raft_log.last_index();
            if message.index > last {
                return Err(Failure::BadMessage(format!(
                    "acknowledges entry {} of a log that ends at {last}",
                    message.index
                )));
            }
        }
        match self.node.step(message) {
            Ok(()) => Ok(true),
            Err(raft::Error::StepPeerNotFound) => Ok(false),
            Err(error) => Err(Failure::BadMessage(error.to_string())),
        }
    }

    /// Appends `data` to the leader's log; answers the index and term it got.
    pub fn propose(&mut self, data: &[u8]) -> Outcome<(u64, u64)> {
        self.lead()?;
        if data.is_empty() {
            return invalid("an empty entry is raft's own no-op");
        }
        self.dropped_unless(|node| node.propose(Vec::new(), data.to_vec()))
    }

    fn dropped_unless(
        &mut self,
        propose: impl FnOnce(&mut RawNode<MemoryLog>) -> raft::Result<()>,
    ) -> Outcome<(u64, u64)> {
        let transferring = self.node.raft.lead_transferee.is_some();
        match propose(&mut self.node) {
            Ok(()) => Ok((self.node.raft.raft_log.last_index(), self.node.raft.term)),
            Err(_) if transferring => {
                Err(Failure::ProposalDropped("leadership is being transferred"))
            }
            Err(_) => Err(Failure::ProposalDropped("too many uncommitted bytes")),
        }
    }

    /// Proposes a change of members. raft-rs would turn a forbidden one into a no-op entry silently.
    pub fn propose_conf_change(
        &mut self,
        changes: &[(u8, u64)],
        context: &[u8],
        transition: &str,
    ) -> Outcome<(u64, u64)> {
        self.lead()?;
        let change = members::change_of(changes, context, transition)?;
        let raft = &self.node.raft;
        if raft.has_pending_conf() {
            return Err(Failure::ConfChangeRefused(
                "another change, or the start of this term, is not applied yet".into(),
            ));
        }
        let conf = raft.prs().conf();
        for single in change.get_changes() {
            let promotes = single.get_change_type() == ConfChangeType::AddNode;
            let id = single.node_id;
            if promotes && !conf.learners().contains(&id) && !conf.voters().contains(id) {
                return Err(Failure::ConfChangeRefused(format!(
                    "replica {id} must be a learner before it is a voter"
                )));
            }
        }
        let mut changer = raft::Changer::new(raft.prs());
        let tried = if change.leave_joint() {
            changer.leave_joint()
        } else if let Some(auto_leave) = change.enter_joint() {
            changer.enter_joint(auto_leave, change.get_changes())
        } else {
            changer.simple(change.get_changes())
        };
        tried.map_err(|error| Failure::ConfChangeRefused(error.to_string()))?;
        self.dropped_unless(|node| node.propose_conf_change(Vec::new(), change))
    }

    /// Asks for a linearizable read index. False: no leader can answer now, so no answer will come.
    pub fn read_index(&mut self, context: &[u8]) -> Outcome<bool> {
        let raft = &self.node.raft;
        if context.is_empty() {
            return invalid("a read needs a context of its own");
        }
        if raft.read_only.pending_read_index.contains_key(context) {
            return invalid("this context is already waiting: contexts are never reused");
        }
        let answerable = match raft.state {
            StateRole::Leader => raft.commit_to_current_term(),
            _ => raft.leader_id != 0,
        };
        if answerable {
            self.node.read_index(context.to_vec());
        }
        Ok(answerable)
    }

    /// Starts handing leadership to `to`. False: it is no voter, or already on its way there.
    pub fn transfer_leader(&mut self, to: u64) -> Outcome<bool> {
        self.lead()?;
        let raft = &self.node.raft;
        if to == raft.id || !raft.prs().conf().voters().contains(to) {
            return Ok(false);
        }
        let before = raft.lead_transferee;
        self.node.transfer_leader(to);
        Ok(before != Some(to) && self.node.raft.lead_transferee == Some(to))
    }

    pub fn report_snapshot(&mut self, replica_id: u64, ok: bool) {
        let status = if ok {
            SnapshotStatus::Finish
        } else {
            SnapshotStatus::Failure
        };
        self.node.report_snapshot(replica_id, status);
    }

    pub fn has_ready(&self) -> bool {
        self.installing.is_none() && self.node.has_ready()
    }

    /// The next turn's work, appended to the log in memory; `None` if there is none or a snapshot is being installed.
    pub fn ready(&mut self) -> Option<Work> {
        if !self.has_ready() {
            return None;
        }
        let mut ready = self.node.ready();
        let number = ready.number();
        let hard_state = ready.hs().cloned();
        let snapshot = Some(ready.snapshot().clone()).filter(|snapshot| !snapshot.is_empty());
        let entries = ready.take_entries();
        let votes_anew = hard_state.as_ref().is_some_and(|state| {
            (state.term, state.vote) != (self.recorded.term, self.recorded.vote)
        });
        if votes_anew {
            self.vote_ready = number;
        }
        let log_record = self.pack_record(&entries, snapshot.is_some() || votes_anew);
        let extent = match (entries.first(), entries.last()) {
            (Some(first), Some(last)) => (first.index, last.index),
            _ => (0, 0),
        };

        let at_once = tidied(ready.take_messages(), self.append_bytes_max);
        let dependent = tidied(ready.take_persisted_messages(), self.append_bytes_max);
        let (messages, messages_after_persist) =
            self.held_back(at_once, dependent, log_record.is_empty());
        let work = Work {
            number,
            extent,
            hard_state,
            messages,
            messages_after_persist,
            committed: ready.take_committed_entries(),
            read_states: ready.take_read_states(),
            soft_state: ready.ss().map(|state| SoftState {
                leader_id: state.leader_id,
                raft_state: state.raft_state,
            }),
            snapshot,
            log_record,
        };
        self.store(&work, entries);
        // P12: the entries are readable in memory before raft-rs is told so.
        self.node.advance_append_async(ready);
        self.last_ready = number;
        if !work.log_record.is_empty() || work.snapshot.is_some() {
            self.unkept.push_back(number);
        }
        self.note_persisted();
        Some(work)
    }

    /// Packs what this Ready must keep; a hard state goes along only if it differs from the one kept last.
    fn pack_record(&mut self, entries: &[Entry], must_keep_state: bool) -> Vec<u8> {
        if entries.is_empty() && !must_keep_state {
            return Vec::new();
        }
        let now = self.node.raft.hard_state();
        let changed = now != self.recorded;
        let packed = record::pack(changed.then_some(&now), entries);
        self.recorded = now;
        packed
    }

    /// Decides which messages may leave now: `(now, after this and all earlier records are durable)`.
    fn held_back(
        &self,
        at_once: Vec<Message>,
        dependent: Vec<Message>,
        nothing_to_keep: bool,
    ) -> (Vec<Message>, Vec<Message>) {
        if self.vote_ready > self.persisted {
            // P1: nothing of this term leaves before this term and vote are durable.
            debug_assert!(at_once.is_empty() || dependent.is_empty());
            let mut all = at_once;
            all.extend(dependent);
            return (Vec::new(), all);
        }
        if nothing_to_keep && self.persisted == self.last_ready {
            let mut all = at_once;
            all.extend(dependent);
            return (all, Vec::new());
        }
        (at_once, dependent)
    }

    /// Puts a Ready's snapshot and entries where raft-rs reads them, and notes what the caller owes.
    fn store(&mut self, work: &Work, entries: Vec<Entry>) {
        if let Some(snapshot) = &work.snapshot {
            let SnapshotMetadata { index, term, .. } = *snapshot.get_metadata();
            self.node.mut_store().reset_to(Truncated { index, term });
            self.installing = Some((work.number, index));
            self.changes_due.retain(|due| *due > index);
        }
        self.node.mut_store().append(entries);
        for entry in &work.committed {
            if members::is_change(entry) {
                self.changes_due.push_back(entry.index);
            }
        }
        if let Some(last) = work.committed.last() {
            self.emitted = last.index;
        }
    }

    /// Records of all Readies up to `number` are durable, and a snapshot among them is installed.
    pub fn persisted(&mut self, number: u64) -> Outcome<()> {
        if number > self.last_ready {
            return invalid(format!(
                "Ready {number} was not given out yet, the newest is {}",
                self.last_ready
            ));
        }
        self.unkept.retain(|unkept| *unkept > number);
        self.note_persisted();
        Ok(())
    }

    /// Tells raft-rs how far everything is durable: up to the Ready before the first unkept one.
    fn note_persisted(&mut self) {
        let number = self
            .unkept
            .front()
            .map_or(self.last_ready, |unkept| *unkept - 1);
        if number <= self.persisted {
            return;
        }
        self.persisted = number;
        self.node.on_persist_ready(number);
        if let Some((_, index)) = self.installing.take_if(|(ready, _)| *ready <= number) {
            self.node.advance_apply_to(index);
            self.emitted = self.emitted.max(index);
        }
    }

    /// Applies the committed configuration entry at `index`; answers the members in force after it.
    pub fn apply_conf_change(&mut self, index: u64, refuse: bool) -> Outcome<ConfState> {
        let newest_snapshot = self
            .node
            .snap()
            .map_or(0, |snapshot| snapshot.get_metadata().index)
            .max(self.node.store().truncated().index);
        if index <= newest_snapshot {
            // A snapshot that came meanwhile already holds this change.
            self.changes_due.retain(|due| *due > index);
            return Ok(self.members());
        }
        match self.changes_due.front() {
            Some(due) if *due == index => {}
            Some(due) => return invalid(format!("entry {due} comes before entry {index}")),
            None => {
                return invalid(format!(
                    "entry {index} is no committed change that waits to be applied"
                ))
            }
        }
        let entry = self.node.store().entry(index);
        let Some(entry) = entry else {
            return invalid(format!("entry {index} is no longer in memory"));
        };
        let change = members::change_in(entry.get_entry_type(), &entry.data);
        if refuse && change.as_ref().is_ok_and(|change| change.leave_joint()) {
            return invalid(
                "leaving a joint configuration cannot be refused: it would last for ever",
            );
        }
        self.changes_due.pop_front();
        if let (Ok(change), false) = (change, refuse) {
            // An error here is the same on every replica: all are in the same configuration. The entry then changes nothing.
            let _ = self.node.apply_conf_change(&change);
            self.step_down_if_no_voter();
        }
        Ok(self.members())
    }

    fn step_down_if_no_voter(&mut self) {
        if self.is_leader() && !self.node.raft.promotable() {
            let term = self.node.raft.term;
            self.node.raft.become_follower(term, 0);
        }
    }

    pub fn members(&self) -> ConfState {
        members::canonical(&self.node.raft.prs().conf().to_conf_state())
    }

    /// The state machine holds all effects up to `index`.
    pub fn applied(&mut self, index: u64) -> Outcome<()> {
        let before = self.node.raft.raft_log.applied();
        if index < before || index > self.emitted {
            return invalid(format!(
                "applied {index} is not in [{before}, {}], from the last one to what was given out",
                self.emitted
            ));
        }
        if let Some(due) = self.changes_due.front().filter(|due| **due <= index) {
            return invalid(format!(
                "configuration entry {due} was not handed to apply_conf_change"
            ));
        }
        if index > before {
            let last = self.node.raft.raft_log.last_index();
            self.node.advance_apply_to(index);
            if self.is_leader() && self.node.raft.raft_log.last_index() > last {
                // raft-rs appends the entry that leaves a joint configuration, but sends it only with the next one.
                self.node.raft.bcast_append();
            }
        }
        Ok(())
    }

    /// Forgets entries up to `index`, which must be applied.
    pub fn compact(&mut self, index: u64) -> Outcome<()> {
        let applied = self.node.raft.raft_log.applied();
        if index > applied {
            return invalid(format!("compact {index} is above applied {applied}"));
        }
        if self.installing.is_none() && self.node.snap().is_none() {
            self.node.mut_store().truncate_to(index);
        }
        Ok(())
    }

    /// Offers a snapshot of the applied state at `index` to followers that are too far behind.
    pub fn set_snapshot(
        &mut self,
        index: u64,
        term: u64,
        conf_state: ConfState,
        data: &[u8],
    ) -> Outcome<()> {
        let log = self.node.store();
        let applied = self.node.raft.raft_log.applied();
        if index == 0 || index > applied || members::is_empty(&conf_state) {
            return invalid(format!(
                "a snapshot at {index} of a state applied to {applied}, with members, is expected"
            ));
        }
        if log.term_at(index).is_some_and(|known| known != term) || term == 0 {
            return invalid(format!("entry {index} has not term {term}"));
        }
        let mut snapshot = Snapshot::default();
        snapshot.mut_metadata().index = index;
        snapshot.mut_metadata().term = term;
        snapshot.mut_metadata().set_conf_state(conf_state);
        snapshot.set_data(bytes::Bytes::copy_from_slice(data));
        self.node.mut_store().offer(Some(snapshot));
        Ok(())
    }

    pub fn clear_snapshot(&mut self) {
        self.node.mut_store().offer(None);
    }
}
