"""The file of the Raft log: its lock, one open transaction, its WAL, and what an error does to all of it.

Knows SQLite. Does not know what is written, but for the count of its checkpoints.

Invariants
- Any error of the file poisons it: `check_usable` raises from then on. Opening it again finds every committed transaction.
- While a commit is being synced, or a checkpoint runs, nobody else may use it; `check_usable` raises `StoreInUse` if somebody does. Whoever
  binds or reads asks it first.
- A lock is held from before the file is opened until it is closed: a second process on the same data directory is refused. The connection
  locks the file exclusively as well, so that there is no shared-memory index.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import apsw

from context_node.raft import _core
from context_node.runtime.databases import (
    REAL_DISK,
    WAL_FRAME_BYTES,
    DatabaseOptions,
    DiskAccess,
    StorageError,
    StorageFailed,
    StoreInUse,
    Synchronous,
    abandon,
    open_database,
    pages_written,
    storage_error,
    wal_file,
)


@dataclass(frozen=True, slots=True)
class LogOptions:
    """`cache_bytes`: page cache. `wal_bytes_max`: WAL size from which a checkpoint is due, in [1 MiB, 1 GiB].
    No batch is committed during a checkpoint, so it should be short: 4 MiB take 2 to 15 ms here.

    `synchronous` is FULL: each commit is synced, by the store and not by SQLite. Anything else exists for the test that shows the loss.
    """

    cache_bytes: int = 2 * 1024 * 1024
    wal_bytes_max: int = 4 * 1024 * 1024
    synchronous: Synchronous = "FULL"
    disk: DiskAccess = REAL_DISK


LOG_OPTIONS: Final = LogOptions()


class LogFile:
    """See the module's docstring. `commits`, `checkpoints`: how many there were since it was opened."""

    def __init__(self, path: str, options: LogOptions, first_commit: Callable[[apsw.Connection], None]) -> None:
        """Open the file, or create it; `first_commit` is run and then synced, before anybody acts on what is found (P9).

        Raises `StorageError`; `StorageFailed` also for what `first_commit` refuses.
        """
        self.path = path
        self.commits = self.checkpoints = 0
        self._options = options
        self._poison: StorageError | None = None
        self._busy = False
        self._open = False
        self._is_closed = False
        try:
            self.unlock = options.disk.lock(path)
        except (apsw.Error, OSError) as error:
            raise storage_error(path, "open", error) from error
        try:
            self.database = open_database(
                path,
                DatabaseOptions(
                    # At a commit the store syncs, at a checkpoint SQLite.
                    synchronous="NORMAL" if options.synchronous == "FULL" else options.synchronous,
                    cache_bytes=options.cache_bytes,
                    exclusive=True,
                    disk=options.disk,
                ),
            )
        except BaseException:
            self.unlock()
            raise
        self.execute = self.database.execute
        try:
            first_commit(self.database)
            self.commits += 1
            self._wal = wal_file(self.database)
            if options.synchronous == "FULL":
                _core.sync_file(self._wal)
        except (apsw.Error, OSError, StorageError) as error:
            abandon(self.database)
            self.unlock()
            raise storage_error(path, "open", error, self.database) from error
        self._wal_start = pages_written(self.database)

    def bind(self, sql: str, values: tuple[int | str | bytes, ...]) -> None:
        """Run a statement in the open transaction. Raises `StorageError`."""
        try:
            self._begin()
            self.execute(sql, values)
        except apsw.Error as error:
            raise self.fail("write", error) from error

    def bind_many(self, sql: str, rows: Sequence[tuple[int | str | bytes, ...]]) -> None:
        """Run a statement for each of these rows in the open transaction. Raises `StorageError`."""
        try:
            self._begin()
            self.database.executemany(sql, rows)
        except apsw.Error as error:
            raise self.fail("write", error) from error

    @property
    def has_open_transaction(self) -> bool:
        """Whether something was written that is not committed."""
        return self._open

    def seal(self) -> int:
        """Write the open transaction out; what is returned is the file to sync, and how that went is told to `synced`. Until then the file
        has no other user. Raises `StorageError`."""
        self.check_usable()
        if self._open:
            try:
                self.execute("COMMIT")
            except apsw.Error as error:
                raise self.fail("commit", error) from error
            self._open = False
            self.commits += 1
        self._busy = True
        return self._wal

    def synced(self, error: BaseException | None) -> None:
        """The file that `seal` gave was synced, or not: raises `StorageError` then."""
        self._busy = False
        if error is not None:
            raise self.fail("commit", error) from error

    @property
    def wal_bytes(self) -> int:
        """Bytes written to the WAL since it was last carried over; 0 once the file is poisoned."""
        return 0 if self._poison else (pages_written(self.database) - self._wal_start) * WAL_FRAME_BYTES

    def checkpoint(self) -> None:
        """Carry the WAL over into the database file, and begin it anew. Raises `StorageError`, `StoreInUse` in a transaction."""
        self._alone("checkpoint", lambda: self._carry_over(apsw.SQLITE_CHECKPOINT_PASSIVE))

    def scrub(self, delete_more: Callable[[], bool]) -> None:
        """Take the bytes of deleted rows out of the files: a rewrite of what is left, in memory. `delete_more` deletes some, each time in a
        transaction of its own, until it returns False. Raises `StorageError`, `StoreInUse` in a transaction."""

        def work() -> None:
            while delete_more():
                self.execute("COMMIT")
                self._open = False
                self.commits += 1
            self.execute("VACUUM")
            self._carry_over(apsw.SQLITE_CHECKPOINT_TRUNCATE)

        self._alone("scrub", work)

    def check_usable(self) -> None:
        """Raises `StoreInUse` while a commit or a checkpoint runs, `StorageFailed` once the file is poisoned or closed."""
        if self._busy:
            raise StoreInUse(f"{self.path} was used while its commit or checkpoint ran")
        if self._poison is not None:
            raise StorageFailed(self.path, "use", f"an earlier operation failed: {self._poison}") from self._poison

    def fail(self, operation: str, error: BaseException) -> StorageError:
        """Poison the file (P10) and name the failure."""
        failure = storage_error(self.path, operation, error, self.database)
        self._poison = self._poison or failure
        return failure

    def close(self) -> None:
        """Close it; what is not committed is gone. May be repeated. Raises `StorageError`."""
        if self._busy:
            raise StoreInUse(f"{self.path} was closed while its commit or checkpoint ran")
        if self._is_closed:
            return
        self._is_closed = True
        try:
            if self._poison is not None:
                abandon(self.database)
                return
            self._poison = StorageFailed(self.path, "use", "the store is closed")
            self.database.close()
        except apsw.Error as error:
            abandon(self.database)
            raise storage_error(self.path, "close", error) from error
        finally:
            self.unlock()

    # -- helpers -----------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        if not self._open:
            self.execute("BEGIN IMMEDIATE")
            self._open = True

    def _alone(self, operation: str, work: Callable[[], None]) -> None:
        self.check_usable()
        if self._open:
            raise StoreInUse(f"{operation} on {self.path} before the open transaction was committed")
        self._busy = True
        try:
            work()
        except apsw.Error as error:
            raise self.fail(operation, error) from error
        finally:
            self._busy = False

    def _carry_over(self, mode: int) -> None:
        frames, carried = self.database.wal_checkpoint(mode=mode)
        if frames == carried:
            self._wal_start = pages_written(self.database)
        self.checkpoints += 1
        # The first commit to a WAL that begins anew syncs its head by itself: better here than on the event loop.
        self.execute("INSERT OR REPLACE INTO meta VALUES('checkpoints', ?)", (self.checkpoints,))
