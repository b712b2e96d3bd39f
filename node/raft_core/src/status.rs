//! What a replica tells about itself: for metrics, the admin API and decisions about members.

use pyo3::prelude::*;
use raft::ProgressState;

use crate::ready::role_number;
use crate::replica::Replica;

/// A leader's knowledge of one replica; see `_core.pyi`.
#[pyclass(frozen, get_all, module = "context_node.raft._core")]
#[derive(Clone)]
pub struct Progress {
    pub replica_id: u64,
    pub match_index: u64,
    pub next_index: u64,
    pub state: &'static str,
    pub recent_active: bool,
    pub paused: bool,
    pub pending_snapshot: u64,
}

/// See `_core.pyi`.
#[pyclass(frozen, get_all, module = "context_node.raft._core")]
pub struct Status {
    pub group_id: u64,
    pub replica_id: u64,
    pub role: u8,
    pub leader_id: u64,
    pub term: u64,
    pub vote: u64,
    pub commit: u64,
    pub applied: u64,
    pub persisted: u64,
    pub first_index: u64,
    pub last_index: u64,
    pub log_bytes: u64,
    pub uncommitted_bytes: u64,
    pub voters: Vec<u64>,
    pub learners: Vec<u64>,
    pub voters_outgoing: Vec<u64>,
    pub learners_next: Vec<u64>,
    pub joint: bool,
    pub transferee: u64,
    pub pending_change: bool,
    pub pending_reads: usize,
    pub snapshot_requested: u64,
    pub progress: Vec<Progress>,
}

#[pymethods]
impl Status {
    fn __repr__(&self) -> String {
        format!(
            "Status(group={}, replica={}, role={}, leader={}, term={}, commit={}, applied={}, log=[{}, {}])",
            self.group_id,
            self.replica_id,
            self.role,
            self.leader_id,
            self.term,
            self.commit,
            self.applied,
            self.first_index,
            self.last_index
        )
    }
}

pub fn status_of(replica: &Replica, group_id: u64) -> Status {
    let raft = &replica.node.raft;
    let log = &raft.raft_log;
    let members = replica.members();
    Status {
        group_id,
        replica_id: raft.id,
        role: role_number(raft.state),
        leader_id: raft.leader_id,
        term: raft.term,
        vote: raft.vote,
        commit: log.committed,
        applied: log.applied(),
        persisted: log.persisted,
        first_index: log.first_index(),
        last_index: log.last_index(),
        log_bytes: replica.node.store().log_bytes(),
        uncommitted_bytes: raft.uncommitted_size() as u64,
        joint: !members.get_voters_outgoing().is_empty(),
        voters: members.get_voters().to_vec(),
        learners: members.get_learners().to_vec(),
        voters_outgoing: members.get_voters_outgoing().to_vec(),
        learners_next: members.get_learners_next().to_vec(),
        transferee: raft.lead_transferee.unwrap_or(0),
        pending_change: raft.has_pending_conf(),
        pending_reads: raft.pending_read_count(),
        snapshot_requested: replica.node.store().wanted(),
        progress: progress_of(replica),
    }
}

/// Empty unless this replica leads; sorted by id.
fn progress_of(replica: &Replica) -> Vec<Progress> {
    if !replica.is_leader() {
        return Vec::new();
    }
    let mut all: Vec<Progress> = replica
        .node
        .raft
        .prs()
        .iter()
        .map(|(id, progress)| Progress {
            replica_id: *id,
            match_index: progress.matched,
            next_index: progress.next_idx,
            state: match progress.state {
                ProgressState::Probe => "probe",
                ProgressState::Replicate => "replicate",
                ProgressState::Snapshot => "snapshot",
            },
            recent_active: progress.recent_active,
            paused: progress.is_paused(),
            pending_snapshot: progress.pending_snapshot,
        })
        .collect();
    all.sort_by_key(|progress| progress.replica_id);
    all
}
