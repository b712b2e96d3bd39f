"""Types of the extension (`node/raft_core/`). Read `context_node.raft` first: it states what a caller owes, in order.

Every method may raise `ReplicaPanicked`; `ValueError` means that the caller broke its part. Indexes and terms are in
`[0, 2**62)`, replica ids in `[1, 2**64)`. Not safe for two threads at once.
"""

from collections.abc import Sequence
from typing import Literal, final

@final
class Group:
    """One replica of one Raft group."""

    group_id: int
    replica_id: int

    def __init__(
        self,
        *,
        group_id: int,
        replica_id: int,
        seed: int,
        election_ticks: int = 10,
        heartbeat_ticks: int = 2,
        max_entry_bytes_per_message: int = 1 << 20,
        max_inflight_messages: int = 256,
        max_uncommitted_bytes: int = 64 << 20,
        max_committed_bytes_per_ready: int = 16 << 20,
        term: int = 0,
        vote: int = 0,
        commit: int = 0,
        snapshot_index: int = 0,
        snapshot_term: int = 0,
        conf_state: bytes | None = None,
        applied: int = 0,
        records: Sequence[bytes] = (),
    ) -> None:
        """Starts from what is durable.

        A new group starts with `conf_state` naming its voters and `snapshot_index = snapshot_term = term = commit =
        applied = 1` on each of them; a replica that joins later starts with all of them 0 and waits for a snapshot.
        Otherwise `snapshot_index`/`snapshot_term` are where the log begins (entries up to there are gone),
        `conf_state` is the configuration at `applied`, and `snapshot_index <= applied <= commit <= last index`.
        `records`: the packed records of the log, oldest first; a hard state in them wins over `term` and `vote` if
        its term is later, and `commit` is the greatest of all.

        Times are in ticks: an election starts after `[election_ticks, 2 * election_ticks)` without a leader, drawn
        from `seed`. `max_uncommitted_bytes` bounds proposals that are not committed yet; one is always admitted.
        Raises `CorruptRecord` if the records cannot be what was stored, `ValueError` if the figures contradict each
        other.
        """

    def tick(self) -> bool:
        """One step of time. True: there may be work in `ready`."""

    def campaign(self) -> None:
        """Starts an election now; does nothing where that is not allowed (no voter, already leader, changes not
        applied)."""

    def step(self, message: bytes) -> bool:
        """Takes a message of an authenticated peer. False: stale or from a stranger, nothing changed. Raises
        `BadMessage`."""

    def propose(self, data: bytes) -> tuple[int, int]:
        """Appends `data` (not empty) to the leader's log: `(index, term)`. Never forwards. Raises `NotLeader`,
        `ProposalDropped`."""

    def propose_conf_change(
        self,
        changes: Sequence[tuple[int, int]],
        context: bytes | None = None,
        transition: Literal["auto", "implicit", "explicit"] = "auto",
    ) -> tuple[int, int]:
        """Proposes `[(ChangeKind, replica id)]`: `(index, term)`. No changes: leave a joint configuration that was
        entered explicitly.

        "auto": one change is made in one step, several through a joint configuration that is left by itself.
        "implicit": always joint, left by itself. "explicit": joint, left by a later call. Raises
        `ConfChangeRefused`, `NotLeader`, `ProposalDropped`.
        """

    def read_index(self, context: bytes) -> bool:
        """Asks for an index at which a read is linearizable; the answer comes in `Ready.read_states` under `context`.

        `context` is not empty and never used twice in the group. False: nobody can answer now, ask again later.
        True: an answer is likely, not certain; wait with a deadline.
        """

    def transfer_leader(self, to: int) -> bool:
        """Starts handing the leadership to voter `to`; proposals are dropped meanwhile. False: no voter, itself, or
        under way."""

    def report_unreachable(self, replica_id: int) -> None:
        """Messages to this peer were lost: probe it before streaming again."""

    def report_snapshot(self, replica_id: int, ok: bool) -> None:
        """The snapshot sent to this peer arrived, or failed."""

    def has_ready(self) -> bool:
        """Whether `ready` would return work."""

    def ready(self) -> Ready | None:
        """The next turn's work, or None if there is none or a snapshot is being installed."""

    def persisted(self, number: int) -> None:
        """The records of all Readies up to `number` are durable (COMMIT returned), a snapshot among them installed."""

    def apply_conf_change(self, index: int, *, refuse: bool = False) -> bytes:
        """Applies the committed configuration entry at `index`, in order; the bytes of the configuration now in force.

        `refuse`: the state machine rejects it; like an entry that does not fit the configuration, it then changes
        nothing. Leaving a joint configuration can't be rejected (`ValueError`): the group would never get out.
        """

    def applied(self, index: int) -> None:
        """The state machine holds all effects up to `index`, which was given out in a Ready."""

    def compact(self, index: int) -> None:
        """Forgets entries up to `index`, at most `applied_index`; the term of `index` stays known."""

    def set_snapshot(self, index: int, term: int, conf_state: bytes, data: bytes) -> None:
        """What may be sent to followers that are too far behind, until the next start; `data` is opaque.

        At most `applied_index`. One that does not name the follower, or is older than the log's start, is not sent:
        `snapshot_requested` then asks for a newer one.
        """

    def clear_snapshot(self) -> None:
        """The snapshot that was set is no longer there."""

    def term_at(self, index: int) -> int | None:
        """The term of the entry at `index`; None if it is not held."""

    def status(self) -> Status:
        """A picture of everything; not for the hot path."""

    def conf_state(self) -> bytes:
        """The configuration in force."""

    @property
    def is_leader(self) -> bool: ...
    @property
    def leader_id(self) -> int:
        """The leader that this replica knows of, 0 if none."""
    @property
    def role(self) -> int:
        """A `Role`."""
    @property
    def term(self) -> int: ...
    @property
    def commit(self) -> int: ...
    @property
    def applied_index(self) -> int: ...
    @property
    def last_index(self) -> int: ...
    @property
    def log_bytes(self) -> int:
        """Memory that the entries held are charged with."""
    @property
    def persisted_number(self) -> int:
        """The newest Ready that counts as durable."""
    @property
    def snapshot_requested(self) -> int:
        """0, or the least index a snapshot must have that a follower waits for; see `set_snapshot`."""
    @property
    def poisoned(self) -> bool:
        """Whether a panic ended this replica."""

@final
class Ready:
    """One turn's work."""

    @property
    def number(self) -> int:
        """Counts from 1 without gaps since the start."""
    @property
    def log_record(self) -> bytes:
        """What must become durable, packed; empty if nothing. A hard state is in it if it differs from the one kept
        last."""
    @property
    def must_sync(self) -> bool:
        """Whether `log_record` is not empty. A commit index alone need not be kept: it travels with the next record."""
    @property
    def first_index(self) -> int:
        """Of the entries in `log_record`; 0 if none."""
    @property
    def last_index(self) -> int: ...
    @property
    def hard_state(self) -> tuple[int, int, int] | None:
        """`(term, vote, commit)` if it changed."""
    @property
    def messages(self) -> list[tuple[int, bytes]]:
        """`(to, bytes)` that may leave now; in order for each target."""
    @property
    def messages_after_persist(self) -> list[tuple[int, bytes]]:
        """`(to, bytes)` that leave only after this and all earlier records are durable."""
    @property
    def snapshot_targets(self) -> list[tuple[int, int]]:
        """`(to, index)` of the messages that carry a snapshot."""
    @property
    def committed(self) -> list[tuple[int, int, int, bytes]]:
        """`(index, term, EntryKind, data)` to apply, in order."""
    @property
    def read_states(self) -> list[tuple[int, bytes]]:
        """`(index, context)` of reads that may be answered once that index is applied."""
    @property
    def snapshot(self) -> tuple[int, int, bytes, bytes] | None:
        """`(index, term, configuration, data)` to install now."""
    @property
    def soft_state(self) -> tuple[int, int] | None:
        """`(leader id, Role)` if it changed."""

@final
class Progress:
    """What a leader knows of one replica."""

    @property
    def replica_id(self) -> int: ...
    @property
    def match_index(self) -> int:
        """Its log is known to equal the leader's up to here, durably."""
    @property
    def next_index(self) -> int: ...
    @property
    def state(self) -> Literal["probe", "replicate", "snapshot"]: ...
    @property
    def recent_active(self) -> bool:
        """Whether it was heard of since the last check of the quorum."""
    @property
    def paused(self) -> bool: ...
    @property
    def pending_snapshot(self) -> int:
        """Index of the snapshot on its way to it, 0 if none."""

@final
class Status:
    """A picture of one replica."""

    @property
    def group_id(self) -> int: ...
    @property
    def replica_id(self) -> int: ...
    @property
    def role(self) -> int: ...
    @property
    def leader_id(self) -> int: ...
    @property
    def term(self) -> int: ...
    @property
    def vote(self) -> int: ...
    @property
    def commit(self) -> int: ...
    @property
    def applied(self) -> int: ...
    @property
    def persisted(self) -> int:
        """The last entry that is durable here."""
    @property
    def first_index(self) -> int: ...
    @property
    def last_index(self) -> int: ...
    @property
    def log_bytes(self) -> int: ...
    @property
    def uncommitted_bytes(self) -> int: ...
    @property
    def voters(self) -> list[int]: ...
    @property
    def learners(self) -> list[int]: ...
    @property
    def voters_outgoing(self) -> list[int]: ...
    @property
    def learners_next(self) -> list[int]: ...
    @property
    def joint(self) -> bool: ...
    @property
    def transferee(self) -> int:
        """The voter that leadership is being handed to, 0 if none."""
    @property
    def pending_change(self) -> bool:
        """Whether a change of members may be unapplied; another one is refused meanwhile."""
    @property
    def pending_reads(self) -> int: ...
    @property
    def snapshot_requested(self) -> int: ...
    @property
    def progress(self) -> list[Progress]:
        """Of every member, by id; empty unless this replica leads."""

def unpack_log_record(
    record: bytes,
) -> tuple[tuple[int, int, int] | None, int, list[tuple[int, int, int, bytes, bytes]]]:
    """`(hard state or None, first index or 0, [(index, term, EntryKind, data, context)])`. Raises `CorruptRecord`."""

def record_bounds(record: bytes) -> tuple[int, int, bool]:
    """`(first index, last index, has a hard state)`, indexes 0 without entries; cheap, the checksum is not verified."""

def encode_conf_state(
    voters: Sequence[int],
    learners: Sequence[int],
    voters_outgoing: Sequence[int],
    learners_next: Sequence[int],
    auto_leave: bool,
) -> bytes:
    """See `ConfState.encode`."""

def decode_conf_state(data: bytes) -> tuple[list[int], list[int], list[int], list[int], bool]:
    """See `ConfState.decode`."""

def decode_conf_change(kind: int, data: bytes) -> tuple[list[tuple[int, int]], bytes]:
    """`([(ChangeKind, replica id)], context)` of a committed entry of a configuration kind. Raises `ValueError`."""

def peek_message(message: bytes) -> tuple[int, int, int, int]:
    """`(MessageKind, from, to, term)` of a peer's message, for lanes and tests. Raises `BadMessage`."""

def sync_file(file: int) -> None:
    """Make durable what was written to an open SQLite file, as SQLite itself would: by its VFS. `file` is the address of its `sqlite3_file`
    (`SQLITE_FCNTL_JOURNAL_POINTER`, https://sqlite.org/c3ref/c_fcntl_begin_atomic_write.html), which must stay open. Raises `OSError`, or
    what a VFS in Python raised. Does not hold the interpreter's lock while it waits."""

@final
class FileSync:
    """A thread that does the same, and never asks for the interpreter's lock (with a VFS that does not either).

    `submit(file)` asks; when it is done `fileno()` becomes readable, and `take()` gives how it went, in the order of asking: None or an
    `OSError`. Files stay open until they are told of, or until `close`, which waits for what was asked and ends the thread; `submit` raises
    `RuntimeError` then."""

    def __init__(self) -> None: ...
    def fileno(self) -> int: ...
    def submit(self, file: int) -> None: ...
    def take(self) -> list[OSError | None]: ...
    def close(self) -> None: ...
