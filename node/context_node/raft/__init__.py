"""Raft, as typed values: one `Group` is one replica of one Raft group. Pure: no thread, no clock, no I/O, no chance.

The algorithm is raft-rs behind the extension `_core` (`node/raft_core/`). PreVote and CheckQuorum are on, reads are
ReadIndex (no clock leases), election timeouts come from the caller's seed: the same seed and the same calls give the
same bytes. This package knows nothing of storage, transport or of what the entries mean.

What the caller owes, in this order
===================================

Start: `Group(...)` gets the applied state's own figures (`snapshot_index`, `snapshot_term`, `conf_state`,
`applied`), the hard state checkpointed beside the log (`term`, `vote`, `commit`, the latter raised to `applied`),
and every log record kept since, in the order in which they were written. What was recovered must be durable (one
fsynced commit) before anything is sent (P9).

Drive: call `tick()` at a steady pace, `step(bytes)` for what authenticated peers send, `propose()` and friends. A
group of one voter is led at once after `campaign()`.

Then, while `ready()` returns a `Ready` (it is already appended to the log in memory, so the next one may be taken at
once, P12):

1. `ready.messages`: may leave now.
2. `ready.log_record`: if not empty, one blob to make durable, in the order of `ready.number`; hard state and entries
   are one record, so they are kept or lost together. An entry at index i in a later record replaces everything from
   i on (P5).
3. `ready.snapshot`: if not None, the replica's state is replaced by it: install the state, reset the stored log and
   keep the record in one durable step. No other Ready comes before `persisted` says that it is done; it also counts
   as applied.
4. Only after the COMMIT returned: `persisted(ready.number)`; it stands for all earlier ones. A failed commit is
   never retried (P10): stop. A Ready without a record needs no call of its own: it counts as soon as all earlier ones are persisted.
5. Only then: `ready.messages_after_persist` (votes and acknowledgements: what they promise must be durable, P1, P2).
   Messages to the peers named in `ready.snapshot_targets` carry a snapshot's description; send its content beside
   it, and answer for it with `report_snapshot`.
6. `ready.committed`: apply in order. `data` empty and kind NORMAL: a leader's no-op, skip it. Kind CONF_CHANGE or
   CONF_CHANGE_V2: `apply_conf_change(index)` in its turn, and keep the configuration it answers with the effects of
   that entry. Every one must come there, also one that the state machine rejects (`refuse=True`).
7. `applied(index)` when the effects are in the state machine (in memory is enough; the log is truncated by what is
   durable).
8. `ready.read_states`: a read with this context may be answered once `applied` has reached its index.

Now and then: `compact(index)` below what the state has made durable; `set_snapshot` when `snapshot_requested` says
that a follower needs what was compacted away.

Traps that stay the caller's: a read's context must never be used twice, by any replica, and a read that gets no
answer within a deadline is asked again under a *new* context (leaders change and forget); an entry whose index is
committed with another term is lost, and its client is told "outcome unknown" (P13); a replica whose disk was lost
never comes back under its old id.
"""

from enum import IntEnum

from context_node.raft._core import (
    Group,
    Progress,
    Ready,
    Status,
    decode_conf_change,
    peek_message,
    record_bounds,
    unpack_log_record,
)
from context_node.raft.errors import (
    BadMessage,
    ConfChangeRefused,
    CorruptRecord,
    NotLeader,
    ProposalDropped,
    RaftError,
    ReplicaPanicked,
)
from context_node.raft.members import ConfState

__all__ = [
    "BadMessage",
    "ChangeKind",
    "ConfChangeRefused",
    "ConfState",
    "CorruptRecord",
    "EntryKind",
    "Group",
    "MessageKind",
    "NotLeader",
    "Progress",
    "ProposalDropped",
    "RaftError",
    "Ready",
    "ReplicaPanicked",
    "Role",
    "Status",
    "decode_conf_change",
    "peek_message",
    "record_bounds",
    "unpack_log_record",
]


class Role(IntEnum):
    """What a replica is at the moment: `Group.role`, `Status.role`, `Ready.soft_state`."""

    FOLLOWER = 0
    CANDIDATE = 1
    LEADER = 2
    PRE_CANDIDATE = 3


class EntryKind(IntEnum):
    """What an entry holds: the third field of `Ready.committed`."""

    NORMAL = 0
    CONF_CHANGE = 1
    CONF_CHANGE_V2 = 2


class ChangeKind(IntEnum):
    """What a configuration change does to one replica. A replica is a learner before it is a voter."""

    ADD_VOTER = 0
    REMOVE = 1
    ADD_LEARNER = 2


class MessageKind(IntEnum):
    """The first field of `peek_message`: for lanes and tests. Kinds that stay inside a replica are left out."""

    APPEND = 3
    APPEND_RESPONSE = 4
    REQUEST_VOTE = 5
    REQUEST_VOTE_RESPONSE = 6
    SNAPSHOT = 7
    HEARTBEAT = 8
    HEARTBEAT_RESPONSE = 9
    TIMEOUT_NOW = 14
    READ_INDEX = 15
    READ_INDEX_RESPONSE = 16
    REQUEST_PRE_VOTE = 17
    REQUEST_PRE_VOTE_RESPONSE = 18
