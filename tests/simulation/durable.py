"""What each disk is known to hold of each replica's log: a second bookkeeping, kept from what the log stores are told.

Knows the records of the log and when a COMMIT returned. Does not know engines, clocks or the network. Invariant: what is in a `DiskModel`
was committed with fsync; what a COMMIT under way would add is apart in `in_flight` until it is known what became of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from zlib import crc32

from context_node.raft import unpack_log_record
from context_node.runtime.log_rows import RecoveredShard

Change = tuple[Any, ...]
"""("append", shard, record), ("truncate", shard, index, term, hard state), ("remove", shard) or
("install", shard, replica, generation, hard state, index, term)."""


@dataclass
class ShardModel:
    """One replica's durable log. `entries` has (term, checksum) by index, above `base`."""

    replica_id: int
    generation: str
    term: int
    vote: int
    commit: int
    base: int
    base_term: int
    entries: dict[int, tuple[int, int]] = field(default_factory=dict)

    @property
    def last(self) -> int:
        return max(self.entries, default=self.base)

    def term_at(self, index: int) -> int | None:
        if index == self.base:
            return self.base_term
        found = self.entries.get(index)
        return None if found is None else found[0]

    def copy(self) -> "ShardModel":
        return ShardModel(
            self.replica_id, self.generation, self.term, self.vote, self.commit, self.base, self.base_term, dict(self.entries)
        )

    def take(self, record: bytes) -> None:
        """Add a record of the log, as recovery would read it."""
        state, first, entries = unpack_log_record(record)
        if state is not None and state[0] >= self.term:
            self.term, self.vote, self.commit = state[0], state[1], max(self.commit, state[2])
        if first:
            for index in [index for index in self.entries if index >= first]:
                del self.entries[index]
            for index, term, kind, data, _context in entries:
                if index > self.base:
                    self.entries[index] = (term, crc32(data, kind))


Shards = dict[int, ShardModel]


def changed(shards: Shards, changes: Sequence[Change]) -> Shards:
    """The shards after these changes; what is not changed is shared."""
    after = dict(shards)
    own: set[int] = set()
    for change in changes:
        kind, shard = change[0], change[1]
        if kind == "install":
            _, _, replica_id, generation, state, index, term = change
            after[shard] = ShardModel(replica_id, generation, state[0], state[1], state[2], index, term)
            own.add(shard)
            continue
        if kind == "remove":
            after.pop(shard, None)
            continue
        if shard not in after:
            continue
        if shard not in own:
            after[shard] = after[shard].copy()
            own.add(shard)
        model = after[shard]
        if kind == "append":
            model.take(change[2])
        else:
            _, _, index, term, state = change
            model.term, model.vote, model.commit = state
            if index > model.base:
                model.base, model.base_term = index, term
                model.entries = {at: entry for at, entry in model.entries.items() if at > index}
    return after


def recovered_model(found: RecoveredShard) -> ShardModel:
    """What a start found of a shard."""
    state = found.hard_state
    model = ShardModel(
        found.replica_id, found.generation, state.term, state.vote, state.commit, found.truncated_index, found.truncated_term
    )
    for record in found.records:
        model.take(record)
    return model


def differences(model: Shards, found: Shards) -> list[str]:
    """How what was found differs from what must be there; empty if it does not."""
    said = []
    for shard in sorted(model.keys() | found.keys()):
        one, other = model.get(shard), found.get(shard)
        if one is None or other is None:
            said.append(f"shard {shard} is {'not ' if other is None else ''}there")
            continue
        for name in ("replica_id", "generation", "term", "vote", "base", "base_term", "entries"):
            if getattr(one, name) != getattr(other, name):
                said.append(f"shard {shard}: {name} is {getattr(other, name)}, was {getattr(one, name)}")
    return said


@dataclass
class DiskModel:
    """One store through all its lives."""

    name: str
    shards: Shards = field(default_factory=dict)
    in_flight: list[Change] = field(default_factory=list)
    votes: dict[tuple[int, int], int] = field(default_factory=dict)
    """By (replica, term) the vote that became durable."""
    state_index: dict[str, int] = field(default_factory=dict)
    """By path up to where a state database was fsynced."""
