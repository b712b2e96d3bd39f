"""The values that go in and out of the log store, and its tables.

Knows: names, types and the schema. Does not know: how or when anything is written.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

FORMAT_VERSION = 1

SCHEMA = """
CREATE TABLE meta(key TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE batches(batch INTEGER PRIMARY KEY, records BLOB NOT NULL);
CREATE TABLE shards(
    shard INTEGER PRIMARY KEY, replica_id INTEGER NOT NULL, generation TEXT NOT NULL,
    term INTEGER NOT NULL, vote INTEGER NOT NULL, commit_index INTEGER NOT NULL,
    truncated_index INTEGER NOT NULL, truncated_term INTEGER NOT NULL,
    since_batch INTEGER NOT NULL, flushed_batch INTEGER NOT NULL);
"""


class HardState(NamedTuple):
    """What a replica must never forget: term, vote (a replica id, 0 for none), commit index; all in [0, 2**64)."""

    term: int
    vote: int
    commit: int

    def merged(self, other: "HardState") -> "HardState":
        """The newer of two hard states of one replica. Raises `ValueError` for two votes in one term (I1).

        A hard state only ever grows: the term, the vote from none to one within a term, the commit index.
        """
        commit = max(self.commit, other.commit)
        if self.term != other.term:
            newer = max(self, other, key=lambda state: state.term)
            return HardState(newer.term, newer.vote, commit)
        if self.vote and other.vote and self.vote != other.vote:
            raise ValueError(f"two votes in term {self.term}: {self.vote} and {other.vote}")
        return HardState(self.term, self.vote or other.vote, commit)


@dataclass(frozen=True, slots=True)
class LogIdentity:
    """Whose log this is. `store_uuid` is drawn once per data directory, `created_ms` is Unix time in milliseconds."""

    store_uuid: str
    cluster_id: str
    created_ms: int


@dataclass(frozen=True, slots=True)
class RecordCodec:
    """What the log store must know of a record's bytes; both functions come with the Raft binding.

    `bounds(record)` is (first index, last index, has a hard state), 0, 0 without entries. `hard_state(record)` is
    (term, vote, commit) or None.
    """

    bounds: Callable[[bytes], tuple[int, int, bool]]
    hard_state: Callable[[bytes], tuple[int, int, int] | None]


@dataclass(frozen=True, slots=True)
class RecoveredShard:
    """A shard's replica as the disk knows it after a start.

    `generation` names its state database. `truncated_index`, `truncated_term`: the newest entry that is gone.
    `records` are those with entries that count, whole and in order: the first may begin at or below the truncated
    index, and a later record's first index voids what came before from there on. `hard_state` is the newest of all,
    whatever hard states these records hold.
    """

    replica_id: int
    generation: str
    hard_state: HardState
    truncated_index: int
    truncated_term: int
    records: list[bytes]


@dataclass(frozen=True, slots=True)
class LogSlice:
    """Entries [first, last] out of `record`; the record may hold more, which must not be used."""

    first: int
    last: int
    record: bytes


@dataclass(frozen=True, slots=True)
class CommitReport:
    """One committed transaction: its newest batch (0 if it held none), how many records and how many bytes of them."""

    batch: int
    records: int
    record_bytes: int


@dataclass(frozen=True, slots=True)
class LogStats:
    """Counters since the store was opened; every commit is one fsync. `wal_bytes` and `dead_batches` are of now."""

    commits: int
    batches: int
    records: int
    record_bytes: int
    checkpoints: int
    wal_bytes: int
    dead_batches: int


@dataclass(frozen=True, slots=True)
class ShardRow:
    """A shard's row: its checkpointed hard state and truncation point (P7) and the batches that both cover.

    Records in batches up to `since_batch` belong to an earlier life of the shard; hard states in batches up to
    `flushed_batch` are older than this row's.
    """

    replica_id: int
    generation: str
    hard_state: HardState
    truncated_index: int
    truncated_term: int
    since_batch: int
    flushed_batch: int
