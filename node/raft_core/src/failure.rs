//! What can go wrong in a call, as a value; and its translation into a Python exception.
//!
//! The exception classes live in `context_node.raft.errors` (plain Python), so that code that only
//! catches them needs no extension module. They are looked up once, at the first failure.

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyModule;

/// Why a call was refused. Every variant leaves the group as it was, except `Panicked`.
#[derive(Debug)]
pub enum Failure {
    /// Only a leader may do this; carries the leader this replica knows of, 0 if none.
    NotLeader(u64),
    /// A leader that cannot take the proposal now.
    ProposalDropped(&'static str),
    /// Bytes of a peer that no correct peer sends to this replica.
    BadMessage(String),
    /// A change of members that the rules forbid in the present configuration.
    ConfChangeRefused(String),
    /// Stored bytes that cannot be what was stored.
    CorruptRecord(String),
    /// The caller broke its part of the contract.
    Invalid(String),
    /// raft-rs panicked, now or in an earlier call: this replica is over.
    Panicked(String),
}

pub type Outcome<T> = Result<T, Failure>;

static ERRORS: PyOnceLock<Py<PyModule>> = PyOnceLock::new();

fn error_class<'py>(py: Python<'py>, name: &str) -> PyResult<Bound<'py, PyAny>> {
    ERRORS
        .get_or_try_init(py, || {
            Ok::<_, PyErr>(PyModule::import(py, "context_node.raft.errors")?.unbind())
        })?
        .bind(py)
        .getattr(name)
}

impl Failure {
    /// Builds the exception for a failure that belongs to no group (packing, unpacking, peeking).
    pub fn into_plain_error(self, py: Python<'_>) -> PyErr {
        self.into_error(py, 0, 0)
    }

    /// Builds the exception that names the group and the replica.
    pub fn into_error(self, py: Python<'_>, group_id: u64, replica_id: u64) -> PyErr {
        let made = match self {
            Failure::Invalid(message) => return PyValueError::new_err(message),
            Failure::NotLeader(leader) => error_class(py, "NotLeader")
                .and_then(|class| class.call1((group_id, replica_id, leader))),
            Failure::ProposalDropped(reason) => error_class(py, "ProposalDropped")
                .and_then(|class| class.call1((group_id, replica_id, reason))),
            Failure::BadMessage(reason) => error_class(py, "BadMessage")
                .and_then(|class| class.call1((group_id, replica_id, reason))),
            Failure::ConfChangeRefused(reason) => error_class(py, "ConfChangeRefused")
                .and_then(|class| class.call1((group_id, replica_id, reason))),
            Failure::CorruptRecord(reason) => {
                error_class(py, "CorruptRecord").and_then(|class| class.call1((reason,)))
            }
            Failure::Panicked(message) => error_class(py, "ReplicaPanicked")
                .and_then(|class| class.call1((group_id, replica_id, message))),
        };
        match made {
            Ok(exception) => PyErr::from_value(exception),
            Err(error) => error,
        }
    }
}
