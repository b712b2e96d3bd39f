"""A Raft cluster in one process under a seeded storm: model disks, a bad network, crashes, member changes.

Knows the duties of `context_node.raft` and carries them out over model storage: a log that keeps whole records in
order up to the last sync, and a state that is checkpointed now and then. Knows nothing of the real runtime.

After every event the invariants of Raft are checked against what an onlooker of all replicas saw:
one leader a term, one vote a term, one entry an index, committed only when durable on a majority, reads not stale.
"""

from ast import literal_eval
from collections import deque
from dataclasses import dataclass, field
from random import Random

from context_node.raft import (
    ConfState,
    EntryKind,
    Group,
    record_bounds,
    unpack_log_record,
)

Applied = dict[int, tuple[int, bytes]]
"""Index to (term, data) of everything applied since index 1: the whole state of the model state machine."""


@dataclass(slots=True)
class State:
    """The state machine with its place in the log."""

    index: int
    term: int
    members: bytes
    entries: Applied

    def copy(self) -> "State":
        return State(self.index, self.term, self.members, dict(self.entries))


@dataclass(slots=True)
class Disk:
    """What survives a crash: the checkpointed state, where the log begins, the hard state there, and the records."""

    state: State
    truncated: tuple[int, int]
    hard_state: tuple[int, int, int]
    records: list[bytes] = field(default_factory=list)

    def drop_records_to(self, index: int | None) -> None:
        """Drops the oldest records that end at or below `index` (None: all); their hard states are kept apart."""
        while self.records and (index is None or record_bounds(self.records[0])[1] <= index):
            hard_state, _, _ = unpack_log_record(self.records.pop(0))
            if hard_state is not None:
                self.hard_state = merged(self.hard_state, hard_state)


@dataclass(slots=True)
class Batch:
    """What one Ready asks to keep, and what waits for it."""

    number: int
    record: bytes
    installed: State | None
    messages: list[tuple[int, bytes]]


class Broken(AssertionError):
    """An invariant of Raft does not hold."""


class Cluster:
    """All replicas ever started, the network between them, and the onlooker's notes."""

    def __init__(self, seed: int, voters: int = 3, *, hasty: bool = False) -> None:
        """`hasty` plants the bug that every shell must not have: replies leave before what they promise is durable."""
        self.hasty = hasty
        self.random = Random(seed)
        self.replicas: dict[int, Replica] = {}
        self.network: list[tuple[int, bytes]] = []
        self.leaders: dict[int, int] = {}
        self.votes: dict[tuple[int, int], int] = {}
        self.committed: Applied = {}
        self.members_at: dict[int, bytes] = {}
        self.reads: dict[bytes, int] = {}
        self.answered_reads = 0
        self.next_id = voters + 1
        self.counter = 0
        members = ConfState(voters=tuple(range(1, voters + 1))).encode()
        self.members_at[1] = members
        for replica_id in range(1, voters + 1):
            start = State(1, 1, members, {})
            self.replicas[replica_id] = Replica(self, replica_id, Disk(start, (1, 1), (1, 0, 1)))

    def add_replica(self) -> int:
        """Starts a replica under an id never used before, which waits for a snapshot."""
        replica_id = self.next_id
        self.next_id += 1
        self.replicas[replica_id] = Replica(self, replica_id, Disk(State(0, 0, b"", {}), (0, 0), (0, 0, 0)))
        return replica_id

    def leader(self) -> "Replica | None":
        """The live leader of the highest term, if any."""
        leading = [r for r in self.replicas.values() if r.group is not None and r.group.is_leader]
        return max(leading, key=lambda r: r.group.term, default=None)  # type: ignore[union-attr]

    def entry_is_applied(self, index: int, term: int, data: bytes) -> None:
        """State-machine safety (I5)."""
        known = self.committed.setdefault(index, (term, data))
        if known != (term, data):
            raise Broken(f"entry {index} is {known} and {(term, data)}")

    def commit_is_seen(self, index: int, term: int, members: ConfState) -> None:
        """Leaders commit only what is durable on a majority of the configuration they count by (I9)."""
        for half in (members.voters, members.voters_outgoing):
            holders = [i for i in half if self.replicas[i].holds_durably(index, term)]
            if half and len(holders) <= len(half) // 2:
                raise Broken(f"entry {index} of term {term} is committed, durable only on {holders} of {half}")

    def leader_is_seen(self, term: int, replica_id: int) -> None:
        """Election safety (I1)."""
        if self.leaders.setdefault(term, replica_id) != replica_id:
            raise Broken(f"term {term} has leaders {self.leaders[term]} and {replica_id}")

    def vote_is_seen(self, replica_id: int, hard_state: tuple[int, int, int]) -> None:
        """One vote a replica and term (I2)."""
        term, vote, _ = hard_state
        if vote and self.votes.setdefault((replica_id, term), vote) != vote:
            raise Broken(f"replica {replica_id} voted twice in term {term}")


class Replica:
    """One replica: the shell around a `Group`, with model storage."""

    def __init__(self, cluster: Cluster, replica_id: int, disk: Disk) -> None:
        self.cluster = cluster
        self.replica_id = replica_id
        self.disk = disk
        self.starts = 0
        self.group: Group | None = None
        self.start()

    def start(self) -> None:
        """Recovers from the disk, as the package's contract says."""
        self.starts += 1
        self.state = self.disk.state.copy()
        self.pending: deque[Batch] = deque()
        self.durable_log: dict[int, int] = {}
        self.checked_commit = 0
        term, vote, commit = self.disk.hard_state
        self.group = Group(
            group_id=1,
            replica_id=self.replica_id,
            seed=self.starts,
            max_entry_bytes_per_message=200,
            max_inflight_messages=4,
            max_uncommitted_bytes=4096,
            max_committed_bytes_per_ready=300,
            term=term,
            vote=vote,
            commit=max(commit, self.state.index),
            snapshot_index=self.disk.truncated[0],
            snapshot_term=self.disk.truncated[1],
            conf_state=self.state.members,
            applied=self.state.index,
            records=self.disk.records,
        )
        for index in range(self.disk.truncated[0] + 1, self.group.last_index + 1):
            known = self.group.term_at(index)
            assert known is not None
            self.durable_log[index] = known

    def crash(self) -> None:
        """Forgets everything that is not durable; a prefix of the batches under way may have made it."""
        for _ in range(self.cluster.random.randint(0, len(self.pending))):
            self.keep(self.pending.popleft())
        self.group = None

    def holds_durably(self, index: int, term: int) -> bool:
        """Whether the entry is on this replica's disk, in the log or in the state."""
        if index <= self.disk.truncated[0]:
            return index == 1 or self.disk.state.entries.get(index, (0, b""))[0] == term
        return self.durable_log.get(index) == term

    def keep(self, batch: Batch) -> None:
        """One transaction: a snapshot's switch, or the record."""
        if batch.installed is not None:
            self.disk.state = batch.installed.copy()
            self.disk.truncated = (batch.installed.index, batch.installed.term)
            self.disk.drop_records_to(None)
            self.durable_log = {}
        if not batch.record:
            return
        self.disk.records.append(batch.record)
        hard_state, first, entries = unpack_log_record(batch.record)
        if hard_state is not None:
            self.cluster.vote_is_seen(self.replica_id, hard_state)
        if entries:
            self.durable_log = {i: t for i, t in self.durable_log.items() if i < first}
            self.durable_log.update((entry[0], entry[1]) for entry in entries)

    def sync(self) -> None:
        """The oldest batch becomes durable, and what waited for it happens."""
        if self.group is None or not self.pending:
            return
        batch = self.pending.popleft()
        self.keep(batch)
        if batch.installed is not None:
            self.state = batch.installed.copy()
        self.group.persisted(batch.number)
        self.cluster.network.extend(batch.messages)

    def turn(self) -> None:
        """Takes every Ready there is and does what it asks for."""
        group = self.group
        while group is not None and (ready := group.ready()) is not None:
            if group.is_leader:
                self.cluster.leader_is_seen(group.term, self.replica_id)
                self.check_commit(group)
            self.cluster.network.extend(ready.messages)
            installed = None
            if ready.snapshot is not None:
                index, term, members, data = ready.snapshot
                installed = State(index, term, members, read_state(data))
                if any(self.cluster.committed.get(i, e) != e for i, e in installed.entries.items()):
                    raise Broken("a snapshot differs from what is committed")
            waiting = ready.messages_after_persist
            if self.cluster.hasty:
                self.cluster.network.extend(waiting)
                waiting = []
            if ready.log_record or waiting or installed is not None:
                self.pending.append(Batch(ready.number, ready.log_record, installed, waiting))
            self.apply(group, ready.committed)
            for index, context in ready.read_states:
                self.cluster.answered_reads += 1
                if index < self.cluster.reads[context]:
                    raise Broken(f"a read at {index} misses entry {self.cluster.reads[context]}")

    def check_commit(self, group: Group) -> None:
        """A leader's own commits are of its own term; what it inherited was checked when it was committed."""
        term = group.term_at(group.commit)
        if term == group.term and group.commit > self.checked_commit:
            self.cluster.commit_is_seen(group.commit, term, ConfState.decode(group.conf_state()))
            self.checked_commit = group.commit

    def apply(self, group: Group, committed: list[tuple[int, int, int, bytes]]) -> None:
        for index, term, kind, data in committed:
            if index != self.state.index + 1:
                raise Broken(f"entry {index} applied after {self.state.index}")
            self.cluster.entry_is_applied(index, term, data)
            if kind != EntryKind.NORMAL:
                self.state.members = group.apply_conf_change(index)
                if self.cluster.members_at.setdefault(index, self.state.members) != self.state.members:
                    raise Broken(f"members differ after entry {index}")
            self.state.entries[index] = (term, data)
            self.state.index, self.state.term = index, term
        if committed:
            group.applied(self.state.index)

    def checkpoint(self) -> None:
        """Makes the state durable and truncates the log below it."""
        if self.group is None or self.state.index == 0:
            return
        self.disk.state = self.state.copy()
        index, term = self.state.index, self.state.term
        if index <= self.disk.truncated[0]:
            return
        self.disk.truncated = (index, term)
        self.durable_log = {i: t for i, t in self.durable_log.items() if i > index}
        self.disk.drop_records_to(index)
        self.group.compact(index)

    def offer_snapshot(self) -> None:
        """Offers the present state to followers that need what was truncated."""
        if self.group is not None:
            data = write_state(self.state.entries)
            self.group.set_snapshot(self.state.index, self.state.term, self.state.members, data)


def merged(older: tuple[int, int, int], newer: tuple[int, int, int]) -> tuple[int, int, int]:
    """The hard state of both: the later term with its vote, the greater commit."""
    term, vote, _ = max(older, newer)
    return term, vote, max(older[2], newer[2])


def write_state(entries: Applied) -> bytes:
    return repr(sorted(entries.items())).encode()


def read_state(data: bytes) -> Applied:
    return dict(literal_eval(data.decode()))
