//! One turn's work of a group, as plain Python values.

use protobuf::Message as _;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList, PyTuple};
use raft::eraftpb::{Entry, HardState, Message, MessageType, Snapshot};
use raft::{ReadState, SoftState, StateRole};

use crate::members;

/// See `_core.pyi` for what each field means and what the caller owes.
#[pyclass(frozen, module = "context_node.raft._core")]
pub struct Ready {
    #[pyo3(get)]
    pub number: u64,
    #[pyo3(get)]
    pub log_record: Py<PyBytes>,
    #[pyo3(get)]
    pub must_sync: bool,
    #[pyo3(get)]
    pub first_index: u64,
    #[pyo3(get)]
    pub last_index: u64,
    #[pyo3(get)]
    pub hard_state: Option<(u64, u64, u64)>,
    #[pyo3(get)]
    pub messages: Py<PyList>,
    #[pyo3(get)]
    pub messages_after_persist: Py<PyList>,
    #[pyo3(get)]
    pub snapshot_targets: Py<PyList>,
    #[pyo3(get)]
    pub committed: Py<PyList>,
    #[pyo3(get)]
    pub read_states: Py<PyList>,
    #[pyo3(get)]
    pub snapshot: Option<Py<PyTuple>>,
    #[pyo3(get)]
    pub soft_state: Option<(u64, u8)>,
}

#[pymethods]
impl Ready {
    fn __repr__(&self, py: Python<'_>) -> String {
        format!(
            "Ready(number={}, must_sync={}, entries=[{}, {}], committed={}, messages={}, after_persist={}, snapshot={})",
            self.number,
            self.must_sync,
            self.first_index,
            self.last_index,
            self.committed.bind(py).len(),
            self.messages.bind(py).len(),
            self.messages_after_persist.bind(py).len(),
            self.snapshot.is_some(),
        )
    }
}

pub fn role_number(role: StateRole) -> u8 {
    match role {
        StateRole::Follower => 0,
        StateRole::Candidate => 1,
        StateRole::Leader => 2,
        StateRole::PreCandidate => 3,
    }
}

pub fn soft_state_of(state: &SoftState) -> (u64, u8) {
    (state.leader_id, role_number(state.raft_state))
}

pub fn hard_state_of(state: &HardState) -> (u64, u64, u64) {
    (state.term, state.vote, state.commit)
}

/// `[(index, term, kind, data)]`
pub fn committed_list<'py>(py: Python<'py>, entries: &[Entry]) -> PyResult<Bound<'py, PyList>> {
    let list = PyList::empty(py);
    for entry in entries {
        let data = PyBytes::new(py, &entry.data);
        list.append((entry.index, entry.term, entry.get_entry_type() as u8, data))?;
    }
    Ok(list)
}

/// `[(index, context)]`
pub fn reads_list(py: Python<'_>, reads: Vec<ReadState>) -> PyResult<Py<PyList>> {
    let list = PyList::empty(py);
    for read in reads {
        list.append((read.index, PyBytes::new(py, &read.request_ctx)))?;
    }
    Ok(list.unbind())
}

/// `[(to, bytes)]`
pub fn messages_list(py: Python<'_>, messages: Vec<Message>) -> PyResult<Py<PyList>> {
    let list = PyList::empty(py);
    for message in messages {
        let size = message.compute_size() as usize;
        let packed = PyBytes::new_with(py, size, |buffer| {
            // compute_size() above cached the sizes of nested messages, which this relies on.
            let mut out = protobuf::CodedOutputStream::bytes(buffer);
            let written = message
                .write_to_with_cached_sizes(&mut out)
                .and_then(|()| out.flush());
            written.map_err(|error| pyo3::exceptions::PyRuntimeError::new_err(error.to_string()))
        })?;
        list.append((message.to, packed))?;
    }
    Ok(list.unbind())
}

/// `(index, term, member configuration, data)`
pub fn snapshot_tuple(py: Python<'_>, snapshot: &Snapshot) -> PyResult<Py<PyTuple>> {
    let metadata = snapshot.get_metadata();
    let members = members::encode(metadata.get_conf_state());
    let tuple = (
        metadata.index,
        metadata.term,
        PyBytes::new(py, &members),
        PyBytes::new(py, &snapshot.data),
    );
    Ok(tuple.into_pyobject(py)?.unbind())
}

/// Sorts by target and joins consecutive appends to one target while they stay within `bytes_max`.
///
/// raft-rs broadcasts in the order of a hash map, and one append per proposal. The sort is stable, so
/// what one target receives keeps its order. Two appends that continue each other say the same as one.
pub fn tidied(mut messages: Vec<Message>, bytes_max: u64) -> Vec<Message> {
    if messages.len() < 2 {
        return messages;
    }
    messages.sort_by_key(|message| message.to);
    let mut out: Vec<Message> = Vec::with_capacity(messages.len());
    let mut open_bytes = 0u64;
    for mut message in messages {
        let bytes: u64 = message
            .get_entries()
            .iter()
            .map(|entry| u64::from(entry.compute_size()))
            .sum();
        match out.last_mut() {
            Some(open) if continues(open, &message) && open_bytes + bytes <= bytes_max => {
                open.commit = message.commit;
                open.mut_entries().extend(message.take_entries());
                open_bytes += bytes;
            }
            _ => {
                open_bytes = bytes;
                out.push(message);
            }
        }
    }
    out
}

/// Whether `next` is an append that starts where the append `open` ends.
fn continues(open: &Message, next: &Message) -> bool {
    let last = match open.get_entries().last() {
        Some(last) => (last.index, last.term),
        None => return false,
    };
    open.get_msg_type() == MessageType::MsgAppend
        && next.get_msg_type() == MessageType::MsgAppend
        && open.to == next.to
        && open.term == next.term
        && last == (next.index, next.log_term)
}

/// `[(to, index)]` of the snapshots that leave with this Ready.
pub fn snapshot_targets(
    py: Python<'_>,
    now: &[Message],
    later: &[Message],
) -> PyResult<Py<PyList>> {
    let list = PyList::empty(py);
    for message in now.iter().chain(later) {
        if message.get_msg_type() == MessageType::MsgSnapshot {
            list.append((message.to, message.get_snapshot().get_metadata().index))?;
        }
    }
    Ok(list.unbind())
}
