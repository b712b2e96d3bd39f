"""One shard's state on disk: one SQLite database per replica and generation.

Knows: rows, and that they and the applied index change in one transaction. Does not know: what the packed columns say,
the Raft log, other shards.

Invariants
- The effects of log entries and the applied index share a transaction: after any crash the database holds exactly the
  effects of all entries up to its applied index (H3 with the log, which is replayed from there).
- A flush is not durable. It is after `checkpoint` said `complete` for its applied index; the log may be truncated up to
  there and no further (P7). What `applied` gives right after opening is durable: the WAL was written again (P9).
- After an error that leaves the disk in doubt the store is poisoned: every later call raises (P10). A full disk is no
  such error: the flush did nothing and may be tried again.

Threads: reads and `flush` run on the owner's thread (the event loop); `checkpoint`, `scrub`, `backup` and `digest` are
for a worker. Those open a second connection: with one connection every read of the shard would wait for a checkpoint's
fsync. WAL mode lets readers and the writer go on meanwhile; checkpoints at the moment of a commit are why older SQLite
libraries are refused. The second connection lives as long as the call: it holds no cache worth keeping. While `scrub` or
`checkpoint` run no flush should: they would not be complete, which their result tells. With `exclusive` (a disk without
shared memory) all run on the one connection and nobody else may use it meanwhile.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import apsw
import msgspec

from context_node.runtime import state_schema as sql
from context_node.runtime.databases import (
    CACHE_BYTES_MIN,
    PAGE_BYTES,
    REAL_DISK,
    WAL_FRAME_BYTES,
    DatabaseOptions,
    DiskAccess,
    DiskFull,
    StorageError,
    StorageFailed,
    Synchronous,
    abandon,
    open_beside,
    open_database,
    pages_written,
    storage_error,
)
from context_node.runtime.state_files import carry_over, read_applied, read_meta, sweep
from context_node.runtime.state_listing import Order, listing
from context_node.runtime.state_rows import (
    NOTHING_APPLIED,
    SEQ_BITS,
    SEQ_MAX,
    Applied,
    CheckpointResult,
    ContextRow,
    KeyRow,
    PolicyRow,
    StateChanges,
    StateCounts,
)

SWEEP_ROWS_PER_FLUSH: Final = 2_000
"""Most rows of deleted contexts that one flush removes: bounds how long a purge holds the event loop."""

_SCRUB_ROWS: Final = 20_000
_GONE: Final = "the store is closed"
_CONTEXT_BY_ID: Final = "SELECT ordinal, id, status, created_at, updated_at, metadata, record FROM contexts WHERE id=?"


@dataclass(frozen=True, slots=True)
class StateOptions:
    """`cache_bytes`: page cache. `synchronous` is NORMAL; OFF exists for the test that shows the loss. `exclusive`: see the module's
    docstring."""

    cache_bytes: int = CACHE_BYTES_MIN
    synchronous: Synchronous = "NORMAL"
    exclusive: bool = False
    disk: DiskAccess = REAL_DISK


class StateStore:
    """See the module's docstring."""

    def __init__(self, path: str, shard: int, options: StateOptions = StateOptions()) -> None:
        """Open the database of `shard` at `path`, or create it empty.

        Raises `StorageError`; `StorageFailed` also for another shard's file or a format that this version does not read.
        """
        self.path = path
        self.shard = shard
        self._options = options
        self._poison: StorageError | None = None
        self._flushes = 0
        self._counted: tuple[int, StateCounts] | None = None
        self._database = open_database(
            path,
            DatabaseOptions(
                synchronous=options.synchronous,
                cache_bytes=options.cache_bytes,
                exclusive=options.exclusive,
                secure_delete=True,
                disk=options.disk,
            ),
        )
        self._execute = self._database.execute
        try:
            self._applied = self._begin_life()
        except (apsw.Error, StorageError, KeyError, TypeError, ValueError) as error:  # the last three: impossible rows
            abandon(self._database)
            raise storage_error(path, "open", error, self._database) from error
        self._pages = self._wal_start = pages_written(self._database)

    # -- reading -----------------------------------------------------------------------------------------------------

    def applied(self) -> Applied:
        """How far the database is; `NOTHING_APPLIED` when new. From memory."""
        return self._applied

    def context_by_id(self, context_id: str) -> ContextRow | None:
        """The context of that id, None if there is none."""
        row = self._one(_CONTEXT_BY_ID, (context_id,))
        return ContextRow(*row) if row is not None else None

    def messages(self, ordinal: int, ranges: Iterable[tuple[int, int]]) -> list[tuple[int, bytes, bytes]]:
        """(seq, body, info) of the messages with seq in the given ranges, both ends included, in the order asked."""
        found: list[Any] = []
        for first, last in ranges:
            found += self._all(
                "SELECT place & 4294967295, body, info FROM messages WHERE place BETWEEN ? AND ? ORDER BY place",
                _places(ordinal, first, last),
            )
        return found

    def page(self, ordinal: int, first: int, last: int, limit: int, reverse: bool = False) -> list[tuple[int, bytes]]:
        """(seq, body) of at most `limit` messages with seq in [first, last], descending if `reverse`."""
        return self._all(
            "SELECT place & 4294967295, body FROM messages WHERE place BETWEEN ? AND ? ORDER BY place"
            + (" DESC LIMIT ?" if reverse else " LIMIT ?"),
            (*_places(ordinal, first, last), limit),
        )

    def message_ids(self, ordinal: int, ids: Iterable[str]) -> list[tuple[str, int, int, int, bytes]]:
        """(id, seq, version, estimate, digest) of those message ids that are known."""
        found: list[Any] = []
        for message_id in ids:
            found += self._all(
                "SELECT id, seq, version, estimate, digest FROM message_ids WHERE ordinal=? AND id=?",
                (ordinal, message_id),
            )
        return found

    def key(self, ordinal: int, key: str) -> KeyRow | None:
        """What an idempotency key remembers, None if it is unknown."""
        row = self._one("SELECT number, at, digest, reply FROM keys WHERE ordinal=? AND key=?", (ordinal, key))
        return KeyRow(*row) if row is not None else None

    def rewrites(self, ordinal: int, first: int, last: int) -> list[tuple[int, bytes]]:
        """(version, record) of the rewrites with version in [first, last], ascending."""
        return self._all(
            "SELECT version, record FROM rewrites WHERE ordinal=? AND version BETWEEN ? AND ? ORDER BY version",
            (ordinal, first, last),
        )

    def policies(self) -> list[PolicyRow]:
        """All named policies, by name."""
        rows = self._all("SELECT name, generation, deleted, record FROM policies ORDER BY name", ())
        return [PolicyRow(*row) for row in rows]

    def list_contexts(
        self,
        *,
        prefix: str = "",
        status: int | None = None,
        metadata: Mapping[str, str] | None = None,
        order: Order = "id",
        after: str | tuple[int, str] | None = None,
        limit: int,
    ) -> list[ContextRow]:
        """At most `limit` contexts in `order`, beginning after `after` (an id, or (updated_at, id) for "-updated_at").

        `metadata` compares top-level keys by the text of a scalar value. Filters that match little read much: the whole
        shard in the worst case, about 2 µs a context.
        """
        statement, values = listing(prefix=prefix, status=status, metadata=metadata or {}, order=order, after=after, limit=limit)
        return [ContextRow(*row) for row in self._all(statement, values)]

    def counts(self) -> StateCounts:
        """How much there is. Counted once per flush at most: about 50 ns a context."""
        if self._counted is None or self._counted[0] != self._flushes:
            by_status: dict[int, int] = dict(self._all("SELECT status, count(*) FROM contexts GROUP BY status", ()))
            pages = self._all("SELECT page_count FROM pragma_page_count", ())[0][0]
            self._counted = (self._flushes, StateCounts(by_status, pages * PAGE_BYTES))
        return self._counted[1]

    # -- writing -----------------------------------------------------------------------------------------------------

    def flush(self, changes: StateChanges) -> None:
        """Write `changes` in one transaction, without fsync.

        Raises `DiskFull` or `StorageFailed`; nothing of it is there then. Raises `ValueError` if the applied index would
        go back.
        """
        self._check_usable()
        if changes.applied.index < self._applied.index:
            raise ValueError(f"applied index {changes.applied.index} is below {self._applied.index}")
        try:
            with self._transaction(self._database):
                self._write(changes)
                sweep(self._database, SWEEP_ROWS_PER_FLUSH)
        except (apsw.FullError, apsw.IOError, apsw.CorruptError, apsw.BusyError, apsw.NotADBError) as error:
            raise self._fail("flush", error) from error
        self._applied = changes.applied
        self._flushes += 1
        self._pages = pages_written(self._database)

    @property
    def wal_bytes(self) -> int:
        """Bytes written to the WAL since the last complete checkpoint."""
        return (self._pages - self._wal_start) * WAL_FRAME_BYTES

    # -- for a worker ------------------------------------------------------------------------------------------------

    def checkpoint(self) -> CheckpointResult:
        """Make everything flushed so far durable, and let the WAL start over if nothing was flushed meanwhile."""
        self._check_usable()
        # Before the work: what is flushed after this line may or may not be carried over.
        applied_index, written = self._applied.index, self._pages
        with self._beside("checkpoint") as connection:
            complete = carry_over(connection, apsw.SQLITE_CHECKPOINT_PASSIVE)
        if complete:
            self._wal_start = written
        return CheckpointResult(complete, applied_index)

    def scrub(self) -> bool:
        """Take the bytes of deleted rows out of the files; they were overwritten as they were freed (`secure_delete`).

        False if a reader or a flush was in the way: try again.
        """
        self._check_usable()
        written = self._pages
        with self._beside("scrub") as connection:
            try:
                connection.pragma("secure_delete", True)
                left = True
                while left:
                    with self._transaction(connection):
                        left = sweep(connection, _SCRUB_ROWS)
            except apsw.BusyError:
                return False
            complete = carry_over(connection, apsw.SQLITE_CHECKPOINT_TRUNCATE)
        if complete:
            self._wal_start = written
        return complete

    def backup(self, path: str) -> Applied:
        """A consistent copy at `path`, durable with its name; returns how far the copy is, read from the copy.

        Flushes may go on. A file that stands there is replaced only by a whole one.
        """
        self._check_usable()
        partial, disk = path + ".partial", self._options.disk
        with self._beside("backup", poisons=False) as connection:
            for leftover in (partial, partial + "-journal", partial + "-wal"):
                if disk.exists(leftover):
                    disk.remove(leftover)
            copy = apsw.Connection(partial, vfs=disk.vfs)
            try:
                copy.pragma("locking_mode", "EXCLUSIVE")  # the copy is in WAL mode too and gets no index file so
                copy.pragma("journal_mode", "OFF")  # a copy that fails is thrown away
                copy.pragma("synchronous", "OFF")  # synced once, below
                with copy.backup("main", connection, "main") as backup:
                    # In one step: the copy is of one moment, and pages that change meanwhile do not start it over.
                    backup.step(-1)
                applied = read_applied(copy)
            finally:
                copy.close()
            disk.sync_file(partial)
            disk.rename(partial, path)
            disk.sync_directory(os.path.dirname(path) or ".")
        return applied

    def digest(self) -> tuple[int, bytes]:
        """(applied index, hash of all logical rows), equal on replicas that applied the same log."""
        self._check_usable()
        with self._beside("digest", poisons=False) as connection:
            connection.execute("BEGIN")
            try:
                applied = read_applied(connection)
                hashed = hashlib.blake2b(digest_size=32)
                encode = msgspec.msgpack.encode
                hashed.update(encode((applied.index, applied.clock_ms, applied.machine, applied.next_ordinal)))
                for statement in sql.DIGESTED:
                    for row in connection.execute(statement):
                        hashed.update(encode(row))
            finally:
                connection.execute("COMMIT")
        return applied.index, hashed.digest()

    def close(self) -> None:
        """Carry the WAL over and close. May be repeated. Raises `StorageError`."""
        if self._poison is not None:
            abandon(self._database)
            return
        self._poison = StorageFailed(self.path, "use", _GONE)
        try:
            self._database.close()
        except apsw.Error as error:
            abandon(self._database)
            raise storage_error(self.path, "close", error) from error

    # -- helpers, in calling order -----------------------------------------------------------------------------------

    def _begin_life(self) -> Applied:
        with self._transaction(self._database):
            if self._execute("SELECT count(*) FROM sqlite_schema WHERE name='meta'").get == 0:
                self._execute(sql.SCHEMA)
                self._database.executemany(sql.PUT_META, [("format", sql.FORMAT_VERSION), ("shard", self.shard)])
                self._put_applied(NOTHING_APPLIED)
        meta = read_meta(self._database)
        if meta["format"] != sql.FORMAT_VERSION:
            raise StorageFailed(self.path, "open", f"state format {meta['format']} is not {sql.FORMAT_VERSION}")
        if meta["shard"] != self.shard:
            raise StorageFailed(self.path, "open", f"it holds shard {meta['shard']}, not {self.shard}")
        return read_applied(self._database)

    def _one(self, statement: str, values: Sequence[Any]) -> Any:
        rows = self._all(statement, values)
        return rows[0] if rows else None

    def _all(self, statement: str, values: Sequence[Any]) -> list[Any]:
        if self._poison is not None:
            self._check_usable()
        try:
            return self._execute(statement, values).fetchall()
        except (apsw.Error, UnicodeDecodeError) as error:
            raise self._fail("read", error) from error

    def _write(self, changes: StateChanges) -> None:
        many = self._database.executemany
        if changes.deleted_contexts:
            ordinals = [(ordinal,) for ordinal in changes.deleted_contexts]
            many(sql.DELETE_CONTEXT, ordinals)
            many(sql.DIG_GRAVE, ordinals)
        for statement, rows in (
            (sql.PUT_CONTEXT, changes.contexts),
            (sql.TRIM, changes.trimmed),
            (sql.PUT_MESSAGE, changes.messages),
            (sql.PUT_MESSAGE_ID, changes.message_ids),
            (sql.PUT_KEY, changes.keys),
            (sql.DELETE_KEYS_BELOW, changes.keys_below),
            (sql.PUT_REWRITE, changes.rewrites),
            (sql.PUT_POLICY, changes.policies),
            (sql.DELETE_POLICY, [(name,) for name in changes.deleted_policies]),
        ):
            if rows:
                many(statement, rows)
        self._put_applied(changes.applied)

    def _put_applied(self, applied: Applied) -> None:
        rows = (
            ("applied_index", applied.index),
            ("applied_term", applied.term),
            ("conf_state", applied.conf_state),
            ("clock_ms", applied.clock_ms),
            ("machine", applied.machine),
            ("next_ordinal", applied.next_ordinal),
        )
        self._database.executemany(sql.PUT_META, rows)

    @contextmanager
    def _transaction(self, connection: apsw.Connection) -> Iterator[None]:
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:  # SQLite may have rolled back by itself
                connection.execute("ROLLBACK")
            raise

    @contextmanager
    def _beside(self, operation: str, poisons: bool = True) -> Iterator[apsw.Connection]:
        """A connection for a worker's job. The worker must not touch the owner's: apsw refuses that, to either thread."""
        connection: apsw.Connection | None = None
        try:
            if self._options.exclusive:
                yield self._database
            else:
                connection = open_beside(self.path)
                yield connection
        except (apsw.Error, OSError) as error:
            failure = storage_error(self.path, operation, error, connection)
            if poisons and not isinstance(failure, DiskFull):
                self._poison = self._poison or failure
            raise failure from error
        finally:
            if connection is not None:
                abandon(connection)

    def _check_usable(self) -> None:
        if self._poison is not None:
            raise StorageFailed(self.path, "use", f"an earlier operation failed: {self._poison}") from self._poison

    def _fail(self, operation: str, error: BaseException) -> StorageError:
        failure = storage_error(self.path, operation, error, self._database)
        if not isinstance(failure, DiskFull):
            self._poison = self._poison or failure
        return failure


def _places(ordinal: int, first: int, last: int) -> tuple[int, int]:
    return ordinal << SEQ_BITS | max(0, first), ordinal << SEQ_BITS | min(max(0, last), SEQ_MAX)
