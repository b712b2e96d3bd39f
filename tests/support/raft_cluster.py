"""Replicas of one Raft group in memory: a network, a disk and a state machine for each, all of them models.

Knows: when bytes travel, when a record counts as durable, what a crash forgets. Does not know Raft: it drives
`Group` as the docstring of `context_node.raft` demands and leaves every decision to it.

Rules of the model
- A record is durable only after `sync`; a crash forgets the others together with the messages that waited for them.
- The state machine is a list of what was applied. It is durable as of its last `checkpoint`; a crash replays from
there.
- Messages are delivered in the order of sending per pair; `cut` drops those of a pair, `held` keeps them back.
- Nothing here draws lots: a run is a function of the seed given to the groups and of the calls.
"""

import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from context_node.raft import ConfState, EntryKind, Group, Ready, record_bounds, unpack_log_record

Applied = tuple[int, int, bytes]
"""Index, term and data of an applied entry."""


@dataclass(frozen=True)
class State:
    """A state machine that remembers what was applied to it."""

    index: int = 0
    term: int = 0
    members: bytes = b""
    values: tuple[Applied, ...] = ()

    def encode(self) -> bytes:
        """What a snapshot carries."""
        return json.dumps([(i, t, data.hex()) for i, t, data in self.values]).encode()

    @staticmethod
    def decode(index: int, term: int, members: bytes, data: bytes) -> "State":
        """The state that a snapshot describes."""
        return State(index, term, members, tuple((i, t, bytes.fromhex(text)) for i, t, text in json.loads(data)))


@dataclass
class Disk:
    """What survives a crash of one replica."""

    state: State = field(default_factory=State)
    start: tuple[int, int] = (0, 0)
    """Index and term of the last entry that was truncated away."""
    hard_state: tuple[int, int, int] = (0, 0, 0)
    """The hard state as of the last truncation; newer ones are in the records."""
    records: list[bytes] = field(default_factory=list)

    def truncate(self, index: int, term: int) -> None:
        """Forgets records whose entries all stand at or below `index`."""
        self.start = (index, term)
        for record in self.records:
            self.hard_state = _newer(self.hard_state, unpack_log_record(record)[0])
        while self.records and record_bounds(self.records[0])[1] <= index:
            self.records.pop(0)


def _newer(old: tuple[int, int, int], new: tuple[int, int, int] | None) -> tuple[int, int, int]:
    return old if new is None else (new[0], new[1], max(old[2], new[2]))


class Member:
    """One replica with its disk and its state machine."""

    def __init__(self, replica_id: int, disk: Disk, **options: Any) -> None:
        self.replica_id = replica_id
        self.disk = disk
        self.options = options
        self.outbox: deque[tuple[int, bytes]] = deque()
        self.reads: list[tuple[int, bytes]] = []
        self.boot()

    def boot(self) -> None:
        """Starts from the disk, as after a crash."""
        disk = self.disk
        self.state = disk.state
        self.unsynced: list[Ready] = []
        self.outbox.clear()
        term, vote, commit = disk.hard_state
        self.group = Group(
            group_id=9,
            replica_id=self.replica_id,
            term=term,
            vote=vote,
            commit=max(commit, disk.state.index),
            snapshot_index=disk.start[0],
            snapshot_term=disk.start[1],
            conf_state=disk.state.members,
            applied=disk.state.index,
            records=disk.records,
            **self.options,
        )

    def turn(self) -> list[Ready]:
        """Takes all work there is: sends what may leave, remembers what must be synced, applies what is committed."""
        taken = []
        while (ready := self.group.ready()) is not None:
            taken.append(ready)
            self.outbox.extend(ready.messages)
            self.reads.extend(ready.read_states)
            if ready.log_record or ready.messages_after_persist:
                self.unsynced.append(ready)
            for entry in ready.committed:
                self._apply(*entry)
        return taken

    def sync(self) -> None:
        """One COMMIT: everything handed out becomes durable, then what waited for it leaves."""
        batch, self.unsynced = self.unsynced, []
        for ready in batch:
            if ready.snapshot is not None:
                self._install(*ready.snapshot)
            if ready.log_record:
                self.disk.records.append(ready.log_record)
        if batch:
            self.group.persisted(batch[-1].number)
        for ready in batch:
            self.outbox.extend(ready.messages_after_persist)

    def checkpoint(self) -> None:
        """Makes the state machine durable."""
        self.disk.state = self.state

    def compact(self) -> None:
        """Forgets the log up to what the state machine holds durably."""
        self.checkpoint()
        self.disk.truncate(self.state.index, self.state.term)
        self.group.compact(self.state.index)

    def offer_snapshot(self) -> None:
        """Makes the present state available to followers that are too far behind."""
        state = self.state
        self.group.set_snapshot(state.index, state.term, state.members, state.encode())

    def settle(self) -> None:
        """Turns and syncs until nothing is left to do."""
        while self.turn() or self.unsynced:
            self.sync()

    def _apply(self, index: int, term: int, kind: int, data: bytes) -> None:
        state = replace(self.state, index=index, term=term)
        if kind == EntryKind.NORMAL:
            self.state = replace(state, values=(*state.values, (index, term, data))) if data else state
        else:
            self.state = replace(state, members=self.group.apply_conf_change(index))
        self.group.applied(index)

    def _install(self, index: int, term: int, members: bytes, data: bytes) -> None:
        self.state = State.decode(index, term, members, data)
        self.disk.state = self.state
        self.disk.truncate(index, term)
        self.disk.records.clear()


class Cluster:
    """Members that exchange bytes. `seed` and the calls determine every byte; `trace()` is their hash."""

    def __init__(self, voters: Iterable[int] = (1, 2, 3), *, seed: int = 1, **options: Any) -> None:
        self.options = {"seed": seed, **options}
        self.members: dict[int, Member] = {}
        self.cut: set[tuple[int, int]] = set()
        self.wire: deque[tuple[int, int, bytes]] = deque()
        self.down: set[int] = set()
        self.sent: list[tuple[int, int, bytes]] = []
        self._trace = hashlib.sha256()
        voters = tuple(voters)
        first = State(1, 1, ConfState(voters=voters).encode())
        for replica_id in voters:
            self.add(replica_id, Disk(state=first, start=(1, 1), hard_state=(1, 0, 1)))

    def __getitem__(self, replica_id: int) -> Group:
        return self.members[replica_id].group

    def add(self, replica_id: int, disk: Disk | None = None) -> Member:
        """Starts a replica; without a disk it waits for a snapshot."""
        member = self.members[replica_id] = Member(replica_id, disk or Disk(), **self.options)
        return member

    def crash(self, replica_id: int) -> None:
        """Stops a replica; what was not synced is gone."""
        self.down.add(replica_id)
        self.members[replica_id].outbox.clear()

    def restart(self, replica_id: int) -> None:
        """Starts a crashed replica from its disk."""
        self.members[replica_id].boot()
        self.down.discard(replica_id)

    def isolate(self, replica_id: int) -> None:
        """Cuts a replica off in both directions."""
        for other in self.members:
            self.cut |= {(replica_id, other), (other, replica_id)}

    def heal(self) -> None:
        """Undoes every cut."""
        self.cut.clear()

    def up(self) -> list[Member]:
        """The members that run, by id."""
        return [self.members[i] for i in sorted(self.members) if i not in self.down]

    def pump(self, rounds_max: int = 1000) -> None:
        """Delivers and works until the network and all members are silent."""
        for _ in range(rounds_max):
            for member in self.up():
                member.settle()
                for to, message in member.outbox:
                    self._trace.update(b"%d>%d:" % (member.replica_id, to) + message)
                    self.sent.append((member.replica_id, to, message))
                    self.wire.append((member.replica_id, to, message))
                member.outbox.clear()
            if not self.wire:
                return
            while self.wire:
                sender, to, message = self.wire.popleft()
                if to in self.members and to not in self.down and (sender, to) not in self.cut:
                    self.members[to].group.step(message)
        raise AssertionError(f"still talking after {rounds_max} rounds")

    def tick(self, times: int = 1) -> None:
        """Lets time pass for everybody, with all that follows from it."""
        for _ in range(times):
            for member in self.up():
                member.group.tick()
            self.pump()

    def run_until(self, condition: Callable[[], object], ticks_max: int = 500) -> None:
        """Lets time pass until `condition` holds; fails after `ticks_max` ticks."""
        self.pump()
        for _ in range(ticks_max):
            if condition():
                return
            self.tick()
        raise AssertionError(f"not so within {ticks_max} ticks: {[m.group.status() for m in self.up()]}")

    def leader(self) -> Member | None:
        """The running leader of the newest term, if there is one."""
        leaders = [m for m in self.up() if m.group.is_leader]
        return max(leaders, key=lambda m: m.group.term, default=None)

    def elect(self, replica_id: int | None = None) -> Member:
        """Waits for a leader that has committed in its own term, and that everybody applied; `replica_id` campaigns
        first."""
        if replica_id is not None:
            self[replica_id].campaign()
        self.run_until(self._led)
        found = self.leader()
        assert found is not None
        assert replica_id in (None, found.replica_id)
        return found

    def _led(self) -> bool:
        found = self.leader()
        return found is not None and found.group.term_at(found.state.index) == found.group.term

    def propose(self, *data: bytes) -> list[tuple[int, int]]:
        """Proposes through the leader and lets everything settle."""
        found = self.leader()
        assert found is not None
        got = [found.group.propose(each) for each in data]
        self.pump()
        return got

    def values(self, replica_id: int) -> list[bytes]:
        """What one replica's state machine was given."""
        return [data for _, _, data in self.members[replica_id].state.values]

    def trace(self) -> str:
        """A hash over every byte sent so far and every replica's state."""
        whole = self._trace.copy()
        for member in self.up():
            whole.update(repr((member.replica_id, member.state, member.disk.records)).encode())
        return whole.hexdigest()
