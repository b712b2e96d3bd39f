"""Reading the log store after a start: from rows to replicas, failing closed.

Knows: the tables, how batches, truncation points and generations decide what still counts.
Does not know: how anything else is written than the count of starts.

Invariant: nothing is skipped but what an owner gave up (a removed replica, an earlier life of a shard, truncated or
voided entries); everything else that does not fit raises `StorageFailed` with the batch's number.
"""

from dataclasses import dataclass, field
from typing import Any

import apsw

from context_node.runtime.databases import StorageFailed
from context_node.runtime.log_codec import BatchDamaged, unpack_batch
from context_node.runtime.log_index import BatchCounts, ShardSpans, check_follows
from context_node.runtime.log_rows import FORMAT_VERSION, SCHEMA, HardState, LogIdentity, RecordCodec, RecoveredShard, ShardRow

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


def first_commit(database: apsw.Connection, path: str, identity_if_new: LogIdentity) -> tuple[int, LogIdentity, bool]:
    """The commit that makes the start durable once it is synced (P9): create the tables if there are none, count the start.

    Returns the number of this start, from 1, whose log it is, and whether it is new or the last life ended with every file scrubbed.
    Raises `StorageFailed` for another format.
    """
    database.execute("BEGIN IMMEDIATE")
    if database.execute("SELECT count(*) FROM sqlite_schema WHERE name='meta'").get == 0:
        database.execute(SCHEMA)
        new = {
            "format": FORMAT_VERSION,
            "store_uuid": identity_if_new.store_uuid,
            "cluster_id": identity_if_new.cluster_id,
            "created_ms": identity_if_new.created_ms,
            "boot": 0,
            "scrubbed": 0,
        }
        database.executemany("INSERT INTO meta VALUES(?,?)", new.items())
    database.execute("UPDATE meta SET value=value+1 WHERE key='boot'")
    meta: dict[str, Any] = {str(key): value for key, value in database.execute("SELECT key, value FROM meta")}
    if meta.get("format") != FORMAT_VERSION:
        raise StorageFailed(path, "open", f"log format {meta.get('format')} is not {FORMAT_VERSION}")
    # By the number of the start, which an older version counts as well but leaves the word where it is. What this life will leave is not
    # known before its end.
    is_scrubbed = meta.get("scrubbed") == meta["boot"] - 1
    database.execute("DELETE FROM meta WHERE key='scrubbed'")
    database.execute("COMMIT")
    return meta["boot"], LogIdentity(meta["store_uuid"], meta["cluster_id"], meta["created_ms"]), is_scrubbed


def read_log(database: apsw.Connection, path: str, codec: RecordCodec) -> FoundLog:
    """Read everything. Raises `StorageFailed`, or `apsw.Error` for what the library finds."""
    found = FoundLog()
    for shard, replica_id, generation, term, vote, commit, *points in database.execute(_SHARDS):
        state = HardState(term, unsigned(vote), commit)
        found.rows[shard] = row = ShardRow(unsigned(replica_id), generation, state, *points)
        found.spans[shard] = ShardSpans(row.truncated_index)
        found.next_batch = max(found.next_batch, row.since_batch + 1, row.flushed_batch + 1)
    stored: list[_Stored] = []
    numbers: list[int] = []
    for number, row_bytes in database.execute("SELECT batch, records FROM batches ORDER BY batch"):
        numbers.append(number)
        try:
            stored += _read_batch(found.rows, number, row_bytes, codec)
        except (BatchDamaged, ValueError) as error:
            raise StorageFailed(path, f"recover batch {number}", error) from error
    _mark_needed(stored, found.rows)
    _index(found, stored, path)
    needed = {record.batch for record in stored if record.needed}
    found.dead = [number for number in numbers if number not in needed]
    found.next_batch = max(found.next_batch, numbers[-1] + 1 if numbers else 1)
    for shard, row in found.rows.items():
        found.shards[shard] = _recovered(shard, row, stored, codec, path)
    return found


@dataclass(slots=True)
class _Stored:
    """A record that its shard has not given up. `first` to `last` are the entries that still count, or 0, 0."""

    batch: int
    slot: int
    shard: int
    first: int
    last: int
    has_state: bool
    data: bytes
    holds_newest_state: bool = False

    @property
    def needed(self) -> bool:
        return bool(self.last) or self.holds_newest_state


def _read_batch(rows: dict[int, ShardRow], number: int, row_bytes: bytes, codec: RecordCodec) -> list[_Stored]:
    stored: list[_Stored] = []
    for slot, (shard, replica_id, record) in enumerate(unpack_batch(number, row_bytes)):
        row = rows.get(shard)
        if row is None or number <= row.since_batch:
            continue  # removed, or replaced by a snapshot or a new replica: given up in a committed transaction
        if replica_id != row.replica_id:
            raise BatchDamaged(f"shard {shard} has replica {row.replica_id}, the record is of {replica_id}")
        first, last, has_state = codec.bounds(record)
        if last <= row.truncated_index:
            first = last = 0
        # A state that `truncate` has seen is older than the row's.
        has_state = has_state and number > row.flushed_batch
        stored.append(_Stored(number, slot, shard, first, last, has_state, record))
    return stored


def _mark_needed(stored: list[_Stored], rows: dict[int, ShardRow]) -> None:
    """Void what a later record of the shard replaced (P5), from the end, and find each shard's newest hard state.

    The batch of a voided record may be gone while another voided one is still here, so a gap means damage only between
    records that count.
    """
    first_valid: dict[int, int] = {}
    has_newest: set[int] = set()
    for record in reversed(stored):
        shard = record.shard
        if record.has_state and shard not in has_newest:
            has_newest.add(shard)
            record.holds_newest_state = True
        if record.last:
            limit = first_valid.get(shard, record.last + 1)
            first_valid[shard] = min(limit, record.first)
            last = min(record.last, limit - 1)
            if last < record.first or last <= rows[shard].truncated_index:
                record.first = record.last = 0
            else:
                record.last = last


def _index(found: FoundLog, stored: list[_Stored], path: str) -> None:
    for record in stored:
        if not record.needed:
            continue
        spans = found.spans[record.shard]
        bounds = (record.first, record.last, record.has_state)
        try:
            check_follows(spans.last_index, bounds)
        except ValueError as error:
            raise StorageFailed(path, f"recover batch {record.batch}, shard {record.shard}", error) from error
        found.counts.add(record.batch)
        spans.append(record.batch, record.slot, bounds, len(record.data))


def _recovered(shard: int, row: ShardRow, stored: list[_Stored], codec: RecordCodec, path: str) -> RecoveredShard:
    state = row.hard_state
    mine = [record for record in stored if record.shard == shard]
    for record in mine:
        newest = codec.hard_state(record.data) if record.holds_newest_state else None
        if newest is not None:
            try:
                state = state.merged(HardState(*newest))
            except ValueError as error:
                raise StorageFailed(path, f"recover shard {shard}", error) from error
    entries = [record.data for record in mine if record.last]
    return RecoveredShard(row.replica_id, row.generation, state, row.truncated_index, row.truncated_term, entries)
