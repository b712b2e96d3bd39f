"""Reading the log store after a start: from rows to replicas, failing closed.

Knows: the tables, how batches, truncation points and generations decide what still counts.
Does not know: how anything is written.

Invariant: nothing is skipped but what an owner gave up (a removed replica, an earlier life of a shard, truncated or
voided entries); everything else that does not fit raises `StorageFailed` with the batch's number.
"""

from dataclasses import dataclass, field

import apsw

from context_node.runtime.databases import StorageFailed
from context_node.runtime.log_codec import BatchDamaged, unpack_batch
from context_node.runtime.log_index import BatchCounts, ShardSpans, check_follows
from context_node.runtime.log_rows import HardState, RecordCodec, RecoveredShard, ShardRow

_SHARDS = (
    "SELECT shard, replica_id, generation, term, vote, commit_index, truncated_index, truncated_term, since_batch,"
    " flushed_batch FROM shards ORDER BY shard"
)


@dataclass(slots=True)
class FoundLog:
    """What a log holds: the index to go on with, and each shard for its replica."""

    rows: dict[int, ShardRow] = field(default_factory=dict)
    spans: dict[int, ShardSpans] = field(default_factory=dict)
    counts: BatchCounts = field(default_factory=BatchCounts)
    dead: list[int] = field(default_factory=list)
    next_batch: int = 1
    shards: dict[int, RecoveredShard] = field(default_factory=dict)


def signed(number: int) -> int:
    """A number in [0, 2**64) as the 64-bit integer with sign that SQLite keeps."""
    return number - (1 << 64) if number >= 1 << 63 else number


def unsigned(number: int) -> int:
    """The inverse of `signed`."""
    return number + (1 << 64) if number < 0 else number


def read_log(database: apsw.Connection, path: str, codec: RecordCodec) -> FoundLog:
    """Read everything. Raises `StorageFailed`, or `apsw.Error` for what the library finds."""
    found = FoundLog()
    records: dict[int, list[bytes]] = {}
    newest_state: dict[int, bytes] = {}
    for shard, replica_id, generation, term, vote, commit, *points in database.execute(_SHARDS):
        state = HardState(term, unsigned(vote), commit)
        found.rows[shard] = row = ShardRow(unsigned(replica_id), generation, state, *points)
        found.spans[shard] = ShardSpans(row.truncated_index)
        records[shard] = []
        found.next_batch = max(found.next_batch, row.since_batch + 1, row.flushed_batch + 1)
    for number, row_bytes in database.execute("SELECT batch, records FROM batches ORDER BY batch"):
        found.next_batch = max(found.next_batch, number + 1)
        try:
            _read_batch(found, number, row_bytes, codec, records, newest_state)
        except (BatchDamaged, ValueError) as error:
            raise StorageFailed(path, f"recover batch {number}", error) from error
    for shard, row in found.rows.items():
        state = row.hard_state
        if shard in newest_state:
            try:
                state = state.merged(HardState(*(codec.hard_state(newest_state[shard]) or state)))
            except ValueError as error:
                raise StorageFailed(path, f"recover shard {shard}", error) from error
        found.shards[shard] = RecoveredShard(
            row.replica_id, row.generation, state, row.truncated_index, row.truncated_term, records[shard]
        )
    return found


def _read_batch(
    found: FoundLog,
    number: int,
    row_bytes: bytes,
    codec: RecordCodec,
    records: dict[int, list[bytes]],
    newest_state: dict[int, bytes],
) -> None:
    freed: list[int] = []
    needed = 0
    for slot, (shard, replica_id, record) in enumerate(unpack_batch(number, row_bytes)):
        row = found.rows.get(shard)
        if row is None or number <= row.since_batch:
            continue  # removed, or replaced by a snapshot or a new replica: given up in a committed transaction
        if replica_id != row.replica_id:
            raise BatchDamaged(f"shard {shard} has replica {row.replica_id}, the record is of {replica_id}")
        first, last, has_state = codec.bounds(record)
        has_state = has_state and number > row.flushed_batch
        if last <= row.truncated_index and not has_state:
            continue  # truncated, and its hard state is in the row
        if has_state:
            newest_state[shard] = record
        bounds = (first, last, has_state) if last > row.truncated_index else (0, 0, True)
        check_follows(found.spans[shard].last_index, bounds)
        found.counts.add(number)
        needed += 1
        freed += found.spans[shard].append(number, slot, bounds, len(record))
        records[shard].append(record)
    if not needed:
        found.dead.append(number)
    found.dead.extend(batch for batch in freed if found.counts.release(batch))
