"""How this node opens SQLite files, and what a storage failure is called.

Knows: the pragmas of every database, which SQLite libraries are safe, how an apsw error becomes one of ours.
Does not know: tables, shards, Raft, contexts.

Invariants
- Every database is in WAL mode, is never checkpointed behind our back, and never waits for a lock: who may use a
  connection at what moment is decided by its store, so a lock that is held is an error and not a reason to wait.
- When `open_database` returns, the file's name is durable and so is every byte that was recovered from its WAL (P9).
- A library with the WAL-reset bug (SQLite 3.7.0 to 3.51.2) is refused. Commits and checkpoints of two connections at
  the same moment can corrupt a file there, and that is exactly how the state databases are used.
"""

import ctypes
import errno
import fcntl
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Literal

import apsw

SQLITE_VERSION_MIN: Final = (3, 51, 3)
"""First release without the WAL-reset bug (https://sqlite.org/wal.html)."""

PAGE_BYTES: Final = 4096
"""Page size of every database: the page size of the memory and of almost all file systems."""

WAL_FRAME_BYTES: Final = PAGE_BYTES + 24
"""What one changed page costs in the WAL (https://sqlite.org/fileformat2.html, section 4.1)."""

CACHE_BYTES_MIN: Final = 256 * 1024
"""Least page cache of a database, in bytes: below it the inner pages of its trees no longer stay."""

WAL_KEEP_BYTES: Final = 16 * 1024 * 1024
"""A WAL file that grew beyond this many bytes is cut back to it when it starts over."""

_REWRITE_CHUNK_BYTES: Final = 1 << 20

Synchronous = Literal["OFF", "NORMAL", "FULL"]


class StorageError(Exception):
    """A database could not do `operation` on the file `path`; `cause` is what the library said."""

    def __init__(self, path: str, operation: str, cause: BaseException | str) -> None:
        super().__init__(f"{operation} failed on {path}: {cause}")
        self.path = path
        self.operation = operation
        self.cause = cause


class DiskFull(StorageError):
    """No space was left. What was committed before is intact; it may work again when there is space."""


class StorageFailed(StorageError):
    """The disk or the file cannot be trusted (input/output error, corruption), or somebody else holds its lock."""


class StoreInUse(RuntimeError):
    """A caller broke the contract: the connection was used while its commit or checkpoint ran in a worker."""


class DiskAccess:
    """What the databases need of a file system besides SQLite's own calls. Tests replace it by one that loses power.

    `vfs` names the SQLite VFS, None is the operating system's. One without shared memory (every VFS written in Python)
    serves only connections that lock exclusively.
    """

    vfs: str | None = None

    def make_directory(self, path: str) -> None:
        """Create the directory, with its parents, if it is not there; its name is durable then. Raises `OSError`."""
        os.makedirs(path, exist_ok=True)
        self.sync_directory(os.path.dirname(os.path.abspath(path)))

    def names_in(self, directory: str) -> list[str]:
        """The names of the files in `directory`. Raises `OSError`."""
        return os.listdir(directory)

    def exists(self, path: str) -> bool:
        """Whether there is such a file."""
        return os.path.exists(path)

    def remove(self, path: str) -> None:
        """Remove a file. Raises `OSError`."""
        os.remove(path)

    def rename(self, old: str, new: str) -> None:
        """Give `old` the name `new`, in one step, also if that is taken; durable after `sync_directory`. Raises `OSError`."""
        os.replace(old, new)

    def read_at(self, path: str, offset: int, size: int) -> bytes:
        """At most `size` bytes from `offset`; fewer only at the end. Raises `OSError`."""
        with open(path, "rb") as file:
            file.seek(offset)
            return file.read(size)

    def write_at(self, path: str, offset: int, data: bytes) -> None:
        """Write at `offset`, creating the file if needed; durable after `sync_file`. Raises `OSError`."""
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        with open(descriptor, "wb") as file:
            file.seek(offset)
            file.write(data)

    def has_space(self, directory: str, size: int) -> bool:
        """Whether `size` bytes can be written and synced in `directory`. Blocks: for a thread."""
        path = os.path.join(directory, ".space-probe")
        try:
            with open(path, "wb") as probe:
                probe.write(bytes(size))
                probe.flush()
                os.fsync(probe.fileno())
            return True
        except OSError:
            return False
        finally:
            with suppress(OSError):
                os.unlink(path)

    def sync_directory(self, directory: str) -> None:
        """Make the names in `directory` durable. Raises `OSError`."""
        _sync(directory, os.O_RDONLY | os.O_DIRECTORY)

    def sync_file(self, path: str) -> None:
        """Make the content of `path` durable. Raises `OSError`."""
        _sync(path, os.O_RDWR)

    def rewrite(self, path: str) -> None:
        """Put a synced copy in the place of the file `path`; nothing if there is no such file. Nobody has it open. Raises `OSError`.

        After a failed fsync Linux marks the pages clean: who comes later reads bytes that the disk does not have, and
        its own fsync succeeds without writing them (Rebello et al., USENIX ATC 2020). Writing them again closes that. It must be
        a copy: if power is lost while a sector is written, the sector may hold neither the old bytes nor the new ones, and these
        bytes were acknowledged.
        """
        copy = path + ".copy"
        if self.exists(copy):
            self.remove(copy)
        if not self.exists(path):
            return
        size = 0
        while chunk := self.read_at(path, size, _REWRITE_CHUNK_BYTES):
            self.write_at(copy, size, chunk)
            size += len(chunk)
        if size:
            self.sync_file(copy)
            self.rename(copy, path)
            self.sync_directory(os.path.dirname(path) or ".")

    def lock(self, path: str) -> Callable[[], None]:
        """Take the lock of the file `path` for this process; what is returned gives it back, as the process's end does.

        Raises `apsw.BusyError` if it is taken, `OSError`.
        """
        descriptor = os.open(path + "-lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            if isinstance(error, BlockingIOError):
                raise apsw.BusyError(f"locked: another process holds {path}-lock") from error
            raise
        return lambda: os.close(descriptor)


REAL_DISK: Final = DiskAccess()


@dataclass(frozen=True, slots=True)
class CacheBudget:
    """The node-wide page cache, shared equally: `node_bytes` in [0, 2**40], `databases` in [1, 10**6]."""

    node_bytes: int
    databases: int

    @property
    def each_bytes(self) -> int:
        """Bytes of page cache for one database, at least `CACHE_BYTES_MIN`."""
        return max(CACHE_BYTES_MIN, self.node_bytes // max(1, self.databases))


@dataclass(frozen=True, slots=True)
class DatabaseOptions:
    """How one database is opened.

    `synchronous`: FULL syncs the WAL at every commit, NORMAL only at a checkpoint, OFF never (for a test).
    `cache_bytes`: page cache of this connection. `exclusive`: one connection for the file's lifetime and no
    shared-memory file; another process or connection is refused. `secure_delete`: freed bytes are overwritten by zeros.
    `statements`: prepared statements that are kept, in [0, 512].
    """

    synchronous: Synchronous
    cache_bytes: int = CACHE_BYTES_MIN
    exclusive: bool = False
    secure_delete: bool = False
    statements: int = 48
    disk: DiskAccess = REAL_DISK


def check_sqlite_version(version: str | None = None) -> None:
    """Refuse a library that can corrupt a WAL. `version` is "3.51.3"-like; None asks the one that is loaded.

    Raises `RuntimeError` with what was found and what is needed.
    """
    found = version if version is not None else apsw.sqlite_lib_version()
    if tuple(int(part) for part in found.split(".")[:3]) < SQLITE_VERSION_MIN:
        needed = ".".join(str(part) for part in SQLITE_VERSION_MIN)
        raise RuntimeError(
            f"SQLite {found} can corrupt its write-ahead log; {needed} or later is needed. "
            "Install the apsw wheel, which carries its own SQLite."
        )


def open_database(path: str, options: DatabaseOptions) -> apsw.Connection:
    """Open or create the database at `path`. The caller closes it.

    A lock keeps other processes out of the directory: the log store takes it (`DiskAccess.lock`) before any of this.
    Raises `RuntimeError` for an unsafe library, `StorageError` if the file cannot be opened, is not a database
    or is held by somebody else.
    """
    check_sqlite_version()
    connection: apsw.Connection | None = None
    try:
        # Under the lock, before SQLite opens it: what an earlier process left may only look durable.
        options.disk.rewrite(path + "-wal")
        connection = apsw.Connection(path, vfs=options.disk.vfs, statementcachesize=options.statements)
        _configure(connection, options)
        options.disk.sync_directory(os.path.dirname(path) or ".")
    except (apsw.Error, OSError) as error:
        failure = storage_error(path, "open", error, connection)
        if connection is not None:
            abandon(connection)
        raise failure from error
    return connection


def open_beside(path: str) -> apsw.Connection:
    """A further connection, for a worker thread, to a database that this process has open without `exclusive`.

    Raises `apsw.Error`.
    """
    connection = apsw.Connection(path, flags=apsw.SQLITE_OPEN_READWRITE, statementcachesize=4)
    connection.set_busy_timeout(0)
    connection.wal_autocheckpoint(0)
    connection.pragma("temp_store", "MEMORY")
    # A connection that has not read yet does not know that the database has a WAL: its checkpoint would do nothing.
    connection.execute("SELECT count(*) FROM sqlite_schema").fetchall()
    return connection


def abandon(connection: apsw.Connection) -> None:
    """Close a connection whose file is not trusted any more: no checkpoint, no error.

    The next start reads the WAL, whose every frame has a checksum, and writes it again before it is used.
    """
    try:
        connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        connection.close(force=True)
    except apsw.Error:
        pass  # what led here is the error to report


def storage_error(path: str, operation: str, error: BaseException, connection: apsw.Connection | None = None) -> StorageError:
    """The typed error for `error`, which apsw or the operating system raised during `operation` on `path`."""
    if isinstance(error, StorageError):
        return error
    if isinstance(error, apsw.FullError) or (isinstance(error, OSError) and _is_no_space(error.errno)):
        return DiskFull(path, operation, error)
    if isinstance(error, apsw.IOError) and connection is not None and _is_no_space(_system_errno(connection)):
        return DiskFull(path, operation, error)
    return StorageFailed(path, operation, error)


def wal_file(connection: apsw.Connection) -> int:
    """The address of the open WAL of a connection, for `sync_file` and `Worker.sync`; valid until the connection is closed.

    With it a COMMIT need not wait for the disk (`synchronous` NORMAL), and its owner syncs the same file in the same way afterwards.
    Raises `apsw.Error`.
    """
    address = ctypes.c_void_p()
    known = connection.file_control("main", apsw.SQLITE_FCNTL_JOURNAL_POINTER, ctypes.addressof(address))
    if not known or not address.value:
        raise apsw.CantOpenError("the database has no WAL")
    return address.value


def pages_written(connection: apsw.Connection) -> int:
    """Pages that `connection` has written since it was opened: in WAL mode, frames of the WAL."""
    return connection.status(apsw.SQLITE_DBSTATUS_CACHE_WRITE)[0]


def _configure(connection: apsw.Connection, options: DatabaseOptions) -> None:
    connection.set_busy_timeout(0)
    if options.exclusive:
        # Before the first access: only then does SQLite keep the WAL index on the heap.
        connection.pragma("locking_mode", "EXCLUSIVE")
    connection.pragma("page_size", PAGE_BYTES)
    mode = connection.pragma("journal_mode", "WAL")
    if mode != "wal":
        raise apsw.CantOpenError(f"the file system does not support WAL (journal mode is {mode})")
    connection.wal_autocheckpoint(0)
    connection.pragma("synchronous", options.synchronous)
    connection.pragma("journal_size_limit", WAL_KEEP_BYTES)
    connection.pragma("cache_size", -(max(options.cache_bytes, CACHE_BYTES_MIN) // 1024))
    connection.pragma("temp_store", "MEMORY")
    # A read error of a memory map is a signal that kills the process, and its pages count as the node's memory.
    connection.pragma("mmap_size", 0)
    connection.pragma("foreign_keys", False)
    connection.pragma("secure_delete", options.secure_delete)
    connection.pragma("trusted_schema", False)


def _sync(path: str, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_no_space(code: int | None) -> bool:
    return code in (errno.ENOSPC, errno.EDQUOT)


def _system_errno(connection: apsw.Connection) -> int:
    try:
        return connection.system_errno
    except apsw.Error:  # closed meanwhile: nothing more to learn
        return 0
