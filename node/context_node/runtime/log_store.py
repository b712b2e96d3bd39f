"""The Raft log of all shards of a node: one SQLite database, one row and one fsync per batch.

Knows: batches of opaque records, which of them are still needed, each shard's checkpointed hard state, truncation point
and generation. Does not know: what an entry says, tasks, timers, messages. The file is `log_file.py`'s, what the node
remembers beside its shards `log_notes.py`'s.

Invariants
- What `commit` returned for, or `synced` without an error, is on the disk, whole, and `recover` finds it after any loss of power (P1, P2,
  P12).
- Opening rewrites and syncs what was found in the WAL and then commits once: what is recovered is durable before
  anybody acts on it (P9), also after an fsync that failed and left clean-looking pages in memory (P10).
- A batch that is not exactly what was written stops the start; nothing is skipped in silence.
- A batch is deleted only when all its entries are below their shard's truncation point or voided and no newest hard
  state is in it; the hard state that `truncate` writes is in the same transaction (P7).

Threads: everything runs on the owner's thread (the event loop) but `checkpoint`, `scrub` and `close`, which a worker may
run, and the sync between `seal` and `synced`. Rows are bound and committed on the event loop, because a worker would wait
for the interpreter's lock at each; only the disk is worth a thread, and one without Python.
"""

from collections import deque
from collections.abc import Sequence
from itertools import islice

import apsw

from context_node.raft import _core
from context_node.runtime.databases import StorageError
from context_node.runtime.log_codec import RECORDS_MAX, pack_batch, unpack_batch
from context_node.runtime.log_file import LOG_OPTIONS, LogOptions
from context_node.runtime.log_index import BatchCounts, ShardSpans, check_follows
from context_node.runtime.log_notes import LogNotes
from context_node.runtime.log_recovery import read_log, signed
from context_node.runtime.log_rows import (
    CommitReport,
    HardState,
    LogIdentity,
    LogSlice,
    LogStats,
    RecordCodec,
    RecoveredShard,
    ShardRow,
)

DELETES_PER_COMMIT = 32
"""Most dead batches deleted by one commit: bounds what a truncation adds to the commits after it."""


class LogStore:
    """See the module's docstring. Call `recover` once, first."""

    def __init__(self, path: str, identity_if_new: LogIdentity, codec: RecordCodec, options: LogOptions = LOG_OPTIONS) -> None:
        """Open the log at `path`, or create it as `identity_if_new`; the caller compares `notes.identity` with its own.

        Raises `StorageError`; `StorageFailed` also for a format that this version does not read.
        """
        self.path = path
        self.notes = LogNotes(path, identity_if_new, options)
        self._file = self.notes.file
        self._codec = codec
        self._options = options
        self._rows: dict[int, ShardRow] = {}
        self._spans: dict[int, ShardSpans] = {}
        self._counts = BatchCounts()
        self._dead: deque[int] = deque()
        self._next_batch = 0
        self._report = CommitReport(0, 0, 0)
        self._batches = self._records = self._record_bytes = 0

    # -- start -------------------------------------------------------------------------------------------------------

    def recover(self) -> dict[int, RecoveredShard]:
        """All shards as the disk knows them. Once, before anything else.

        Raises `StorageFailed` that names the batch if a row is damaged or entries are missing.
        """
        self._file.check_usable()
        if self._next_batch:
            raise RuntimeError("the log was recovered already")
        try:
            found = read_log(self._file.database, self.path, self._codec)
        except (apsw.Error, StorageError, TypeError, ValueError) as error:  # the last two: rows of impossible values
            raise self._file.fail("recover", error) from error
        self._rows, self._spans, self._counts = found.rows, found.spans, found.counts
        self._dead.extend(found.dead)
        self._next_batch = found.next_batch
        return found.shards

    def begin_cluster(self, cluster_id: str) -> None:
        """The id of the cluster that this store begins, with the next commit. Only a store that was in none may."""
        self._file.check_usable()
        if self._rows or self.notes.shards is not None:
            raise ValueError("a store that was in a cluster belongs to it")
        self.notes.note_cluster(cluster_id)

    def adopt_cluster(self, cluster_id: str, shards: int) -> None:
        """Belong to another cluster from now on, durably. Only a store without shards may. Raises `StorageError`."""
        self._file.check_usable()
        if self._rows:
            raise ValueError("a store that holds shards belongs to its cluster")
        self.notes.note_cluster(cluster_id)
        self.notes.note_shards(shards)
        self.commit()

    def reread(self, shard: int) -> RecoveredShard:
        """A shard as the disk knows it now, as `recover` gives it; for a replica that begins anew. Raises `StorageError`."""
        row, spans = self._row(shard), self._spans[shard]
        first = spans.first_index()
        slices = [] if first is None else self.read(shard, first, spans.last_index, 1 << 62)
        state = row.hard_state
        for one in slices:
            found = self._codec.hard_state(one.record)
            state = state if found is None else state.merged(HardState(*found))
        return RecoveredShard(
            row.replica_id, row.generation, state, row.truncated_index, row.truncated_term, [one.record for one in slices]
        )

    # -- writing: bound on the event loop, made durable by `seal` ----------------------------------------------------

    def append(self, records: Sequence[tuple[int, bytes]]) -> int:
        """Add one batch of (shard, record) to the open transaction; returns its number.

        A shard may stand there more than once, in order. Raises `ValueError` before anything changed if a shard is
        unknown, a record empty or its entries do not follow; `StorageError` otherwise.
        """
        self._file.check_usable()
        checked = self._checked(records)
        number = self._next_batch
        row = pack_batch(number, [(shard, self._rows[shard].replica_id, record) for shard, record in records])
        self._file.bind("INSERT INTO batches VALUES(?,?)", (number, row))
        self._next_batch += 1
        self._counts.add(number, len(records))
        record_bytes = 0
        for slot, ((shard, record), bounds) in enumerate(zip(records, checked, strict=True)):
            size = len(record)
            record_bytes += size
            if freed := self._spans[shard].append(number, slot, bounds, size):
                self._release(freed)
        before = self._report
        self._report = CommitReport(number, before.records + len(records), before.record_bytes + record_bytes)
        return number

    def truncate(self, shard: int, index: int, term: int, hard_state: tuple[int, int, int]) -> None:
        """Entries up to `index`, whose term is `term`, are no longer needed (P7), from the next commit on.

        `hard_state` is the newest the replica has, durable or not: it is written in the same transaction, because the
        records that held it may go. An index not above the last one only refreshes the hard state. The caller has
        *fsynced* the state database up to `index`. Raises `ValueError` for an index beyond the log's end or a hard
        state that goes back.
        """
        self._file.check_usable()
        row, spans = self._row(shard), self._spans[shard]
        state = HardState(*hard_state)
        if index > spans.last_index:
            raise ValueError(f"cannot truncate shard {shard} to {index}: its log ends at {spans.last_index}")
        if row.hard_state.merged(state) != state:
            raise ValueError(f"hard state {tuple(state)} of shard {shard} is older than {tuple(row.hard_state)}")
        if index <= row.truncated_index:
            index, term = row.truncated_index, row.truncated_term
        newest = self._next_batch - 1
        # At the log's end nothing counts any more of what came before. Only the row says so: the record that voided entries beyond the end
        # goes, while theirs may have to stay, in a batch that others need (P5).
        since = newest if index == spans.last_index else row.since_batch
        self._write_row(shard, ShardRow(row.replica_id, row.generation, state, index, term, since, newest))
        self._release(spans.truncate(index))

    def install(self, shard: int, replica_id: int, generation: str, hard_state: tuple[int, int, int], index: int, term: int) -> None:
        """Begin a replica, or replace what it has by a snapshot: one row switches all of it (P6), with the next commit.

        The state database `generation` holds everything up to entry `index` of `term` and is durable with its name;
        nothing that this shard appended before, hard states included, counts any more.
        """
        self._file.check_usable()
        newest = self._next_batch - 1
        row = ShardRow(replica_id, generation, HardState(*hard_state), index, term, newest, newest)
        self._write_row(shard, row)
        before = self._spans.get(shard)
        self._spans[shard] = ShardSpans(index)
        if before is not None:
            self._release(before.batches())

    def remove(self, shard: int) -> None:
        """Forget the replica of `shard`, from the next commit on. Unknown shards are ignored."""
        self._file.check_usable()
        if self._rows.pop(shard, None) is None:
            return
        self._file.bind("DELETE FROM shards WHERE shard=?", (shard,))
        self._release(self._spans.pop(shard).batches())

    def seal(self) -> int:
        """Write the open transaction out; what is returned is the file to sync (`Worker.sync`, `sync_file`), and how that went is told to
        `synced`. Until then the store has no other user. Raises `StorageError`, after which the store is poisoned (P10)."""
        self._file.check_usable()
        if self._file.has_open_transaction:
            self._delete_dead(DELETES_PER_COMMIT)
        return self._file.seal()

    def synced(self, error: BaseException | None = None) -> CommitReport:
        """The file that `seal` gave was synced: all that was written before is durable. With an `error` it may be or not, and the store is
        poisoned (P10): raises `StorageError`."""
        report, self._report = self._report, CommitReport(0, 0, 0)
        self._file.synced(error)
        self._batches += report.batch != 0
        self._records += report.records
        self._record_bytes += report.record_bytes
        return report

    def commit(self) -> CommitReport:
        """Commit and sync in this thread. Raises `StorageError`."""
        file = self.seal()
        if self._options.synchronous == "FULL":
            try:
                _core.sync_file(file)
            except Exception as error:
                return self.synced(error)
        return self.synced()

    # -- reading -----------------------------------------------------------------------------------------------------

    def read(self, shard: int, first: int, last: int, bytes_max: int) -> list[LogSlice]:
        """Entries [first, last] of `shard` from the disk, for a follower that lags; ascending, without gaps.

        Ends early once the records hold `bytes_max` bytes (the first is always given), and is empty when `first` is
        gone or not there yet. Raises `StorageError`.
        """
        self._file.check_usable()
        slices: list[LogSlice] = []
        size = 0
        for span in self._spans[shard].covering(first, last):
            if not slices and span.first > first:
                return []
            try:
                row = self._file.execute("SELECT records FROM batches WHERE batch=?", (span.batch,)).get
                record = unpack_batch(span.batch, row)[span.slot][2]
            except (apsw.Error, ValueError, TypeError) as error:
                raise self._file.fail(f"read batch {span.batch}", error) from error
            slices.append(LogSlice(max(first, span.first), min(last, span.last), record))
            size += len(record)
            if size >= bytes_max:
                break
        return slices

    def first_index(self, shard: int) -> int | None:
        """The oldest entry of `shard` that `read` can still give, None if there is none."""
        return self._spans[shard].first_index()

    def last_index(self, shard: int) -> int:
        """The newest entry of `shard`, or its truncation point."""
        return self._spans[shard].last_index

    def shard_bytes(self, shard: int) -> int:
        """Bytes of the records that `shard` still needs."""
        return self._spans[shard].live_bytes

    def oldest_needed(self) -> int | None:
        """The oldest batch that some shard still needs, None if no batch is needed."""
        return self._counts.oldest()

    @property
    def newest_batch(self) -> int:
        """The number of the newest batch, 0 before the first."""
        return max(0, self._next_batch - 1)

    def pinning_shards(self, through_batch: int | None = None) -> list[int]:
        """The shards whose oldest needed record is in a batch up to `through_batch` (default: the oldest needed one).

        The owner flushes and truncates these, idle ones too, when the log has grown too long or must forget a purge.
        """
        limit = self.oldest_needed() if through_batch is None else through_batch
        if limit is None:
            return []
        oldest = {shard: spans.oldest_batch() for shard, spans in self._spans.items()}
        return sorted(shard for shard, batch in oldest.items() if batch is not None and batch <= limit)

    # -- upkeep ------------------------------------------------------------------------------------------------------

    @property
    def wal_bytes(self) -> int:
        """Bytes written to the WAL since it was last carried over."""
        return self._file.wal_bytes

    @property
    def wants_checkpoint(self) -> bool:
        """Whether the WAL has reached the size from which `checkpoint` is due."""
        return self._file.wal_bytes >= self._options.wal_bytes_max

    def checkpoint(self) -> None:
        """Carry the WAL over into the database file, and begin it anew. Between commits; a worker may run it."""
        self._file.checkpoint()

    def scrub(self) -> None:
        """Take the bytes of deleted batches out of the files. Between commits; a worker may run it.

        Forgets only what is no longer needed. For a purge: note `newest_batch`, flush and truncate the `pinning_shards`
        up to it, commit, then scrub. Costs a rewrite of what is left, in memory: a log that is nearly empty by then.
        """
        self._file.scrub(lambda: self._delete_dead(1024))

    def stats(self) -> LogStats:
        """Counters for the metrics."""
        return LogStats(
            self._file.commits,
            self._batches,
            self._records,
            self._record_bytes,
            self._file.checkpoints,
            self._file.wal_bytes,
            len(self._dead),
        )

    def close(self) -> None:
        """Close the files; what is not committed is gone. May be repeated."""
        self._file.close()

    # -- helpers, in calling order -----------------------------------------------------------------------------------

    def _checked(self, records: Sequence[tuple[int, bytes]]) -> list[tuple[int, int, bool]]:
        if not 0 < len(records) <= RECORDS_MAX:
            raise ValueError(f"a batch holds 1 to {RECORDS_MAX} records, not {len(records)}")
        ends: dict[int, int] = {}
        checked = []
        for shard, record in records:
            bounds = self._codec.bounds(record)
            spans = self._spans.get(shard)
            if spans is None:
                raise ValueError(f"shard {shard} has no replica in this log")
            ends[shard] = check_follows(ends.get(shard, spans.last_index), bounds)
            if bounds[1] and bounds[0] <= self._rows[shard].truncated_index:
                raise ValueError(f"entries of shard {shard} from {bounds[0]} on would void truncated ones")
            checked.append(bounds)
        return checked

    def _row(self, shard: int) -> ShardRow:
        row = self._rows.get(shard)
        if row is None:
            raise ValueError(f"shard {shard} has no replica in this log")
        return row

    def _write_row(self, shard: int, row: ShardRow) -> None:
        state = row.hard_state
        values = (shard, signed(row.replica_id), row.generation, state.term, signed(state.vote), state.commit)
        points = (row.truncated_index, row.truncated_term, row.since_batch, row.flushed_batch)
        self._file.bind("INSERT OR REPLACE INTO shards VALUES(?,?,?,?,?,?,?,?,?,?)", values + points)
        self._rows[shard] = row

    def _release(self, batches: Sequence[int]) -> None:
        self._dead.extend(batch for batch in batches if self._counts.release(batch))

    def _delete_dead(self, batches_max: int) -> bool:
        """Whether there were any."""
        dead = [(batch,) for batch in islice(self._dead, batches_max)]
        if dead:
            self._file.bind_many("DELETE FROM batches WHERE batch=?", dead)
        for _ in dead:
            self._dead.popleft()
        return bool(dead)
