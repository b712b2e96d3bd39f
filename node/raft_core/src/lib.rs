//! `context_node.raft._core`: raft-rs for Python, one object per replica of a group.
//!
//! No threads, no I/O, no clock, no randomness but the caller's seed. `_core.pyi` is the reference of
//! the Python side; `context_node/raft/__init__.py` states what its caller owes. Beside it stands
//! `file_sync`, which is no part of Raft and knows nothing of it.

// Generated protobuf types hold private caches: literals with `..Default::default()` are longer.
#![allow(clippy::field_reassign_with_default)]

mod failure;
mod file_sync;
mod group;
mod members;
mod memory_log;
mod ready;
mod record;
mod replica;
mod status;
mod timeouts;
mod wire;

use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList, PyTuple};
use raft::eraftpb::EntryType;

use failure::Failure;

type Change<'py> = (Vec<(u8, u64)>, Bound<'py, PyBytes>);
type Members = (Vec<u64>, Vec<u64>, Vec<u64>, Vec<u64>, bool);

/// Unpacks a record: `(hard state or None, first index, [(index, term, kind, data, context)])`.
#[pyfunction]
fn unpack_log_record<'py>(py: Python<'py>, record: &[u8]) -> PyResult<Bound<'py, PyTuple>> {
    let unpacked = record::unpack(record).map_err(|failure| failure.into_plain_error(py))?;
    let entries = PyList::empty(py);
    for entry in &unpacked.entries {
        let data = PyBytes::new(py, &entry.data);
        let context = PyBytes::new(py, &entry.context);
        let kind = entry.get_entry_type() as u8;
        entries.append((entry.index, entry.term, kind, data, context))?;
    }
    let first = unpacked.entries.first().map_or(0, |entry| entry.index);
    let hard_state = unpacked.hard_state.as_ref().map(ready::hard_state_of);
    (hard_state, first, entries).into_pyobject(py)
}

/// `(first index, last index, has a hard state)` of a record, its checksum not verified.
#[pyfunction]
fn record_bounds(py: Python<'_>, record: &[u8]) -> PyResult<(u64, u64, bool)> {
    record::bounds(record).map_err(|failure| failure.into_plain_error(py))
}

/// Canonical bytes of a member configuration.
#[pyfunction]
fn encode_conf_state<'py>(
    py: Python<'py>,
    voters: Vec<u64>,
    learners: Vec<u64>,
    voters_outgoing: Vec<u64>,
    learners_next: Vec<u64>,
    auto_leave: bool,
) -> PyResult<Bound<'py, PyBytes>> {
    let mut state = raft::eraftpb::ConfState::default();
    state.set_voters(voters);
    state.set_learners(learners);
    state.set_voters_outgoing(voters_outgoing);
    state.set_learners_next(learners_next);
    state.auto_leave = auto_leave;
    members::check(&state).map_err(|reason| Failure::Invalid(reason).into_plain_error(py))?;
    Ok(PyBytes::new(py, &members::encode(&state)))
}

/// `(voters, learners, voters outgoing, learners next, auto leave)`.
#[pyfunction]
fn decode_conf_state(py: Python<'_>, data: &[u8]) -> PyResult<Members> {
    let state = members::decode(data).map_err(|failure| failure.into_plain_error(py))?;
    Ok((
        state.get_voters().to_vec(),
        state.get_learners().to_vec(),
        state.get_voters_outgoing().to_vec(),
        state.get_learners_next().to_vec(),
        state.auto_leave,
    ))
}

/// `([(kind of change, replica id)], context)` of a committed configuration entry.
#[pyfunction]
fn decode_conf_change<'py>(py: Python<'py>, kind: u8, data: &[u8]) -> PyResult<Change<'py>> {
    let entry_type = match kind {
        1 => EntryType::EntryConfChange,
        2 => EntryType::EntryConfChangeV2,
        _ => {
            let reason = format!("entry kind {kind} is no configuration change");
            return Err(Failure::Invalid(reason).into_plain_error(py));
        }
    };
    let change =
        members::change_in(entry_type, data).map_err(|failure| failure.into_plain_error(py))?;
    let changes = change
        .get_changes()
        .iter()
        .map(|single| (single.get_change_type() as u8, single.node_id))
        .collect();
    Ok((changes, PyBytes::new(py, &change.context)))
}

/// `(message type, from, to, term)` of a peer's message, for routing and lanes; nothing else is checked.
#[pyfunction]
fn peek_message(py: Python<'_>, message: &[u8]) -> PyResult<(u8, u64, u64, u64)> {
    let parsed =
        wire::parse(message).map_err(|reason| Failure::BadMessage(reason).into_plain_error(py))?;
    let kind = parsed.get_msg_type() as u8;
    Ok((kind, parsed.from, parsed.to, parsed.term))
}

#[pymodule]
fn _core(module: &Bound<'_, PyModule>) -> PyResult<()> {
    group::note_panics();
    module.add_class::<group::Group>()?;
    module.add_class::<ready::Ready>()?;
    module.add_class::<status::Status>()?;
    module.add_class::<status::Progress>()?;
    module.add_function(wrap_pyfunction!(unpack_log_record, module)?)?;
    module.add_function(wrap_pyfunction!(record_bounds, module)?)?;
    module.add_function(wrap_pyfunction!(encode_conf_state, module)?)?;
    module.add_function(wrap_pyfunction!(decode_conf_state, module)?)?;
    module.add_function(wrap_pyfunction!(decode_conf_change, module)?)?;
    module.add_function(wrap_pyfunction!(peek_message, module)?)?;
    module.add_class::<file_sync::FileSync>()?;
    module.add_function(wrap_pyfunction!(file_sync::sync_file, module)?)?;
    Ok(())
}
