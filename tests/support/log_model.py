"""What a log store must remember, as plain dictionaries, with records simple enough to read back in a test.

A record here is first index, hard state and one number per entry, packed; `CODEC` tells the store what it needs of it.
"""

import random
import struct
from dataclasses import dataclass, field
from typing import NamedTuple

from context_node.runtime.log_rows import LogIdentity, RecordCodec, RecoveredShard
from context_node.runtime.log_store import LogStore

IDENTITY = LogIdentity(store_uuid="store-1", cluster_id="cluster-1", created_ms=1_700_000_000_000)

_HEAD = struct.Struct("<QI?QQQ")

HardTuple = tuple[int, int, int]


def record(first: int, entries: list[int], hard_state: HardTuple | None = None, padding: int = 0) -> bytes:
    """A record with `entries` from index `first` on."""
    head = _HEAD.pack(first if entries else 0, len(entries), hard_state is not None, *(hard_state or (0, 0, 0)))
    return head + struct.pack(f"<{len(entries)}Q", *entries) + b"p" * padding


def bounds(packed: bytes) -> tuple[int, int, bool]:
    """See `RecordCodec`."""
    first, count, has_state, *_ = _HEAD.unpack_from(packed)
    return (first, first + count - 1, has_state) if count else (0, 0, has_state)


def hard_state(packed: bytes) -> HardTuple | None:
    """See `RecordCodec`."""
    _, _, has_state, term, vote, commit = _HEAD.unpack_from(packed)
    return (term, vote, commit) if has_state else None


def entries_of(packed: bytes) -> dict[int, int]:
    """The entries of a record by index."""
    first, count, *_ = _HEAD.unpack_from(packed)
    values = struct.unpack_from(f"<{count}Q", packed, _HEAD.size)
    return dict(enumerate(values, start=first))


CODEC = RecordCodec(bounds=bounds, hard_state=hard_state)


class Replica(NamedTuple):
    """One shard as an observer sees it."""

    replica_id: int
    generation: str
    hard_state: HardTuple
    truncated: tuple[int, int]
    entries: tuple[tuple[int, int], ...]


@dataclass
class Shard:
    """One shard in the model."""

    replica_id: int
    generation: str
    hard_state: HardTuple
    truncated: tuple[int, int]
    entries: dict[int, int] = field(default_factory=dict)

    @property
    def last_index(self) -> int:
        return max(self.entries, default=self.truncated[0])

    def append(self, packed: bytes) -> None:
        """Take a record: later entries void earlier ones from their first index on."""
        new = entries_of(packed)
        if new:
            self.entries = {index: value for index, value in self.entries.items() if index < min(new)} | new
        self.hard_state = hard_state(packed) or self.hard_state

    def truncate(self, index: int, term: int, state: HardTuple) -> None:
        """Forget entries up to `index`."""
        self.hard_state = state
        if index > self.truncated[0]:
            self.truncated = (index, term)
            self.entries = {at: value for at, value in self.entries.items() if at > index}


class Model:
    """All shards."""

    def __init__(self) -> None:
        self.shards: dict[int, Shard] = {}

    def view(self) -> dict[int, Replica]:
        """A comparable copy of everything."""
        return {
            shard: Replica(it.replica_id, it.generation, it.hard_state, it.truncated, tuple(sorted(it.entries.items())))
            for shard, it in self.shards.items()
        }


def view_of(recovered: dict[int, RecoveredShard]) -> dict[int, Replica]:
    """What a store recovered, read as a replica would read it: later records void earlier entries (P5)."""
    model = Model()
    for shard, found in recovered.items():
        it = Shard(found.replica_id, found.generation, (0, 0, 0), (found.truncated_index, found.truncated_term))
        for packed in found.records:
            first = bounds(packed)[0]
            assert not first or first <= it.last_index + 1, "a gap between records"
            it.append(packed)
            it.entries = {index: value for index, value in it.entries.items() if index > found.truncated_index}
        it.hard_state = (found.hard_state.term, found.hard_state.vote, found.hard_state.commit)
        model.shards[shard] = it
    return model.view()


def next_hard_state(shard: Shard, rng: random.Random) -> HardTuple:
    """A hard state that may follow: it only grows."""
    term, vote, commit = shard.hard_state
    if rng.random() < 0.2:
        term, vote = term + 1, rng.choice((0, shard.replica_id))
    vote = vote or rng.choice((0, shard.replica_id))
    return term, vote, rng.randint(commit, max(commit, shard.last_index))


def random_step(store: LogStore, model: Model, rng: random.Random, shards: int = 6) -> None:
    """Do one random thing to the store and to the model: append, truncate, install, remove."""
    shard = rng.randrange(shards)
    it = model.shards.get(shard)
    if it is None or rng.random() < 0.04:
        index = (it.last_index if it else 0) + rng.randint(0, 5)
        new = Shard(rng.getrandbits(64) | 1, f"generation-{rng.getrandbits(32)}", (rng.randint(1, 3), 0, index), (index, 1))
        store.install(shard, new.replica_id, new.generation, new.hard_state, *new.truncated)
        model.shards[shard] = new
    elif rng.random() < 0.02:
        store.remove(shard)
        del model.shards[shard]
    elif rng.random() < 0.15:
        index = rng.randint(it.truncated[0], it.last_index)
        term, vote, commit = it.hard_state
        state = (term, vote, max(commit, index))
        store.truncate(shard, index, 1, state)
        it.truncate(index, 1, state)
    else:
        _append(store, model, rng)


def _append(store: LogStore, model: Model, rng: random.Random) -> None:
    records: list[tuple[int, bytes]] = []
    for _ in range(rng.randint(1, 5)):
        shard = rng.choice(sorted(model.shards))
        it = model.shards[shard]
        back = rng.randint(0, 3) if rng.random() < 0.2 else 0
        first = max(it.truncated[0] + 1, it.last_index + 1 - back)
        values = [rng.getrandbits(32) for _ in range(rng.randint(0, 4))]
        state = next_hard_state(it, rng) if not values or rng.random() < 0.5 else None
        packed = record(first, values, state, padding=rng.choice((0, 100, 1000, 6000)))
        it.append(packed)
        records.append((shard, packed))
    store.append(records)
