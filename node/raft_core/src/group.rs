//! The Python class `Group`: argument checks, exceptions, and the wall that panics do not pass.
//!
//! Invariant: after a panic inside raft-rs nothing of that replica is used again; every later call
//! answers `ReplicaPanicked`. Other groups share no state with it.

use std::cell::RefCell;
use std::panic::{catch_unwind, AssertUnwindSafe};

use pyo3::prelude::*;
use pyo3::types::PyBytes;
use raft::eraftpb::HardState;
use raft::{Config, ReadOnlyOption};

use crate::failure::{Failure, Outcome};
use crate::members;
use crate::memory_log::Truncated;
use crate::ready::{self, Ready};
use crate::record;
use crate::replica::{Replica, Start};
use crate::status::{status_of, Status};

thread_local! {
    static PANIC: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Keeps a panic's message and place for the exception, and prints nothing.
pub fn note_panics() {
    std::panic::set_hook(Box::new(|info| {
        PANIC.with(|kept| *kept.borrow_mut() = info.to_string().replace('\n', " "));
    }));
}

fn guarded<T>(call: impl FnOnce() -> Outcome<T>) -> Outcome<T> {
    catch_unwind(AssertUnwindSafe(call))
        .unwrap_or_else(|_| Err(Failure::Panicked(PANIC.with(|kept| kept.borrow().clone()))))
}

/// One replica of one Raft group; see `_core.pyi`.
#[pyclass(module = "context_node.raft._core")]
pub struct Group {
    #[pyo3(get)]
    group_id: u64,
    #[pyo3(get)]
    replica_id: u64,
    replica: Replica,
    /// The message of the panic that ended this replica.
    poison: Option<String>,
}

impl Group {
    /// Runs one call on the replica and overrides the timeouts it may have drawn.
    fn call<T>(
        &mut self,
        py: Python<'_>,
        call: impl FnOnce(&mut Replica) -> Outcome<T>,
    ) -> PyResult<T> {
        let outcome = match &self.poison {
            Some(message) => Err(Failure::Panicked(message.clone())),
            None => guarded(|| {
                let outcome = call(&mut self.replica);
                self.replica.settle();
                outcome
            }),
        };
        outcome.map_err(|failure| {
            if let Failure::Panicked(message) = &failure {
                self.poison.get_or_insert_with(|| message.clone());
            }
            failure.into_error(py, self.group_id, self.replica_id)
        })
    }

    /// Reads from the replica; it cannot change it.
    fn look<T>(&self, py: Python<'_>, look: impl FnOnce(&Replica) -> T) -> PyResult<T> {
        match &self.poison {
            Some(message) => Err(Failure::Panicked(message.clone())),
            None => guarded(|| Ok(look(&self.replica))),
        }
        .map_err(|failure| failure.into_error(py, self.group_id, self.replica_id))
    }
}

#[pymethods]
impl Group {
    #[new]
    #[pyo3(signature = (
        *, group_id, replica_id, seed, election_ticks = 10, heartbeat_ticks = 2,
        max_entry_bytes_per_message = 1 << 20, max_inflight_messages = 256,
        max_uncommitted_bytes = 64 << 20, max_committed_bytes_per_ready = 16 << 20,
        term = 0, vote = 0, commit = 0, snapshot_index = 0, snapshot_term = 0,
        conf_state = None, applied = 0, records = Vec::new(),
    ))]
    #[allow(clippy::too_many_arguments)]
    fn new(
        py: Python<'_>,
        group_id: u64,
        replica_id: u64,
        seed: u64,
        election_ticks: usize,
        heartbeat_ticks: usize,
        max_entry_bytes_per_message: u64,
        max_inflight_messages: usize,
        max_uncommitted_bytes: u64,
        max_committed_bytes_per_ready: u64,
        term: u64,
        vote: u64,
        commit: u64,
        snapshot_index: u64,
        snapshot_term: u64,
        conf_state: Option<&[u8]>,
        applied: u64,
        records: Vec<Bound<'_, PyBytes>>,
    ) -> PyResult<Self> {
        let replica = guarded(|| {
            if max_uncommitted_bytes == 0 || max_inflight_messages > 1 << 16 {
                return Err(Failure::Invalid(
                    "max_uncommitted_bytes >= 1 and max_inflight_messages <= 65536".into(),
                ));
            }
            if election_ticks > 1 << 20 {
                return Err(Failure::Invalid("election_ticks <= 1048576".into()));
            }
            let numbers = [term, commit, snapshot_index, snapshot_term, applied];
            if numbers.iter().any(|number| *number >= 1 << 62) {
                return Err(Failure::Invalid("terms and indexes are below 2**62".into()));
            }
            let config = Config {
                id: replica_id,
                election_tick: election_ticks,
                heartbeat_tick: heartbeat_ticks,
                applied,
                max_size_per_msg: max_entry_bytes_per_message,
                max_inflight_msgs: max_inflight_messages,
                check_quorum: true,
                pre_vote: true,
                read_only_option: ReadOnlyOption::Safe,
                skip_bcast_commit: false,
                // Joining appends without a size limit is what raft-rs would do; `tidied` has one.
                batch_append: false,
                max_uncommitted_size: max_uncommitted_bytes,
                max_committed_size_per_ready: max_committed_bytes_per_ready,
                ..Config::default()
            };
            config
                .validate()
                .map_err(|error| Failure::Invalid(error.to_string()))?;
            let truncated = Truncated {
                index: snapshot_index,
                term: snapshot_term,
            };
            let mut hard_state = HardState::default();
            (hard_state.term, hard_state.vote, hard_state.commit) = (term, vote, commit);
            let kept = records.iter().map(|record| record.as_bytes());
            let entries = record::replay(kept, truncated, &mut hard_state)?;
            Replica::new(Start {
                group_id,
                seed,
                config,
                hard_state,
                conf_state: members::decode(conf_state.unwrap_or(b""))?,
                truncated,
                entries,
            })
        })
        .map_err(|failure| failure.into_error(py, group_id, replica_id))?;
        Ok(Group {
            group_id,
            replica_id,
            replica,
            poison: None,
        })
    }

    fn tick(&mut self, py: Python<'_>) -> PyResult<bool> {
        self.call(py, |replica| Ok(replica.tick()))
    }

    fn campaign(&mut self, py: Python<'_>) -> PyResult<()> {
        self.call(py, Replica::campaign)
    }

    fn step(&mut self, py: Python<'_>, message: &[u8]) -> PyResult<bool> {
        self.call(py, |replica| replica.step(message))
    }

    fn propose(&mut self, py: Python<'_>, data: &[u8]) -> PyResult<(u64, u64)> {
        self.call(py, |replica| replica.propose(data))
    }

    #[pyo3(signature = (changes, context = None, transition = "auto"))]
    fn propose_conf_change(
        &mut self,
        py: Python<'_>,
        changes: Vec<(u8, u64)>,
        context: Option<&[u8]>,
        transition: &str,
    ) -> PyResult<(u64, u64)> {
        let context = context.unwrap_or(b"");
        self.call(py, |replica| {
            replica.propose_conf_change(&changes, context, transition)
        })
    }

    fn read_index(&mut self, py: Python<'_>, context: &[u8]) -> PyResult<bool> {
        self.call(py, |replica| replica.read_index(context))
    }

    fn transfer_leader(&mut self, py: Python<'_>, to: u64) -> PyResult<bool> {
        self.call(py, |replica| replica.transfer_leader(to))
    }

    fn report_unreachable(&mut self, py: Python<'_>, replica_id: u64) -> PyResult<()> {
        self.call(py, |replica| {
            replica.node.report_unreachable(replica_id);
            Ok(())
        })
    }

    fn report_snapshot(&mut self, py: Python<'_>, replica_id: u64, ok: bool) -> PyResult<()> {
        self.call(py, |replica| {
            replica.report_snapshot(replica_id, ok);
            Ok(())
        })
    }

    fn has_ready(&self, py: Python<'_>) -> PyResult<bool> {
        self.look(py, Replica::has_ready)
    }

    fn ready(&mut self, py: Python<'_>) -> PyResult<Option<Ready>> {
        let Some(work) = self.call(py, |replica| Ok(replica.ready()))? else {
            return Ok(None);
        };
        let targets = ready::snapshot_targets(py, &work.messages, &work.messages_after_persist)?;
        let snapshot = work
            .snapshot
            .map(|snapshot| ready::snapshot_tuple(py, &snapshot));
        Ok(Some(Ready {
            number: work.number,
            must_sync: !work.log_record.is_empty(),
            log_record: PyBytes::new(py, &work.log_record).unbind(),
            first_index: work.extent.0,
            last_index: work.extent.1,
            hard_state: work.hard_state.as_ref().map(ready::hard_state_of),
            messages: ready::messages_list(py, work.messages)?,
            messages_after_persist: ready::messages_list(py, work.messages_after_persist)?,
            snapshot_targets: targets,
            committed: ready::committed_list(py, &work.committed)?.unbind(),
            read_states: ready::reads_list(py, work.read_states)?,
            snapshot: snapshot.transpose()?,
            soft_state: work.soft_state.as_ref().map(ready::soft_state_of),
        }))
    }

    fn persisted(&mut self, py: Python<'_>, number: u64) -> PyResult<()> {
        self.call(py, |replica| replica.persisted(number))
    }

    #[pyo3(signature = (index, *, refuse = false))]
    fn apply_conf_change<'py>(
        &mut self,
        py: Python<'py>,
        index: u64,
        refuse: bool,
    ) -> PyResult<Bound<'py, PyBytes>> {
        let state = self.call(py, |replica| replica.apply_conf_change(index, refuse))?;
        Ok(PyBytes::new(py, &members::encode(&state)))
    }

    fn applied(&mut self, py: Python<'_>, index: u64) -> PyResult<()> {
        self.call(py, |replica| replica.applied(index))
    }

    fn compact(&mut self, py: Python<'_>, index: u64) -> PyResult<()> {
        self.call(py, |replica| replica.compact(index))
    }

    fn set_snapshot(
        &mut self,
        py: Python<'_>,
        index: u64,
        term: u64,
        conf_state: &[u8],
        data: &[u8],
    ) -> PyResult<()> {
        self.call(py, |replica| {
            replica.set_snapshot(index, term, members::decode(conf_state)?, data)
        })
    }

    fn clear_snapshot(&mut self, py: Python<'_>) -> PyResult<()> {
        self.call(py, |replica| {
            replica.clear_snapshot();
            Ok(())
        })
    }

    /// The term of the entry at `index`, None if it is not held.
    fn term_at(&self, py: Python<'_>, index: u64) -> PyResult<Option<u64>> {
        self.look(py, |replica| {
            let log = &replica.node.raft.raft_log;
            let held = index >= log.first_index() - 1 && index <= log.last_index();
            held.then(|| log.term(index).ok()).flatten()
        })
    }

    fn status(&self, py: Python<'_>) -> PyResult<Status> {
        self.look(py, |replica| status_of(replica, self.group_id))
    }

    fn conf_state<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        let members = self.look(py, |replica| members::encode(&replica.members()))?;
        Ok(PyBytes::new(py, &members))
    }

    #[getter]
    fn is_leader(&self, py: Python<'_>) -> PyResult<bool> {
        self.look(py, Replica::is_leader)
    }

    #[getter]
    fn leader_id(&self, py: Python<'_>) -> PyResult<u64> {
        self.look(py, |replica| replica.node.raft.leader_id)
    }

    #[getter]
    fn role(&self, py: Python<'_>) -> PyResult<u8> {
        self.look(py, |replica| ready::role_number(replica.node.raft.state))
    }

    #[getter]
    fn term(&self, py: Python<'_>) -> PyResult<u64> {
        self.look(py, |replica| replica.node.raft.term)
    }

    #[getter]
    fn commit(&self, py: Python<'_>) -> PyResult<u64> {
        self.look(py, |replica| replica.node.raft.raft_log.committed)
    }

    #[getter]
    fn applied_index(&self, py: Python<'_>) -> PyResult<u64> {
        self.look(py, |replica| replica.node.raft.raft_log.applied())
    }

    #[getter]
    fn last_index(&self, py: Python<'_>) -> PyResult<u64> {
        self.look(py, |replica| replica.node.raft.raft_log.last_index())
    }

    #[getter]
    fn log_bytes(&self, py: Python<'_>) -> PyResult<u64> {
        self.look(py, |replica| replica.node.store().log_bytes())
    }

    #[getter]
    fn persisted_number(&self, py: Python<'_>) -> PyResult<u64> {
        self.look(py, Replica::persisted_number)
    }

    #[getter]
    fn snapshot_requested(&self, py: Python<'_>) -> PyResult<u64> {
        self.look(py, |replica| replica.node.store().wanted())
    }

    #[getter]
    fn poisoned(&self) -> bool {
        self.poison.is_some()
    }

    fn __repr__(&self) -> String {
        format!(
            "Group(group_id={}, replica_id={}, poisoned={})",
            self.group_id,
            self.replica_id,
            self.poison.is_some()
        )
    }
}
