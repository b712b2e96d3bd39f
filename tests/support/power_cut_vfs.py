"""A disk in memory, under SQLite, whose power can be cut.

Knows: per file what the page cache shows and what has reached the platter, which writes are still on their way, which
names are durable. Does not know: what the files are for.

The model (after FoundationDB's AsyncFileNonDurable and the faults of LazyFS)
- A write is cut into 512-byte sectors. When power is lost each sector of each unsynced write is kept, dropped or left
  as garbage, independently, drawn from the seed; unsynced truncations are kept or dropped.
- `xSync` makes everything of that file durable. A name that appears or vanishes is durable after its directory was
  synced; until then it is kept or lost by a coin. The first sync of a new WAL or journal syncs the directory too, as
  SQLite's own VFS does (`UNIXFILE_DIRSYNC`).
- A sync that fails marks the pages clean, as Linux does: they stay readable and never reach the platter by themselves.
- There is no shared memory: connections must lock exclusively.

A disk is one power-on: `cut_at` names the operation at which the power goes, `after_power_cut` is the disk as the
next start finds it.
"""

import errno
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import apsw

from context_node.runtime.databases import DiskAccess

SECTOR_BYTES = 512

_numbers = itertools.count(1)


@dataclass(frozen=True)
class Write:
    """One sector, or part of one, on its way to the platter."""

    offset: int
    data: bytes

    def apply(self, content: bytearray) -> None:
        """Write it into `content`."""
        end = self.offset + len(self.data)
        if end > len(content):
            content.extend(bytes(end - len(content)))
        content[self.offset : end] = self.data


@dataclass(frozen=True)
class Truncation:
    """A change of length on its way to the platter."""

    length: int

    def apply(self, content: bytearray) -> None:
        """Cut or extend `content`."""
        if self.length <= len(content):
            del content[self.length :]
        else:
            content.extend(bytes(self.length - len(content)))


@dataclass
class Inode:
    """A file: what readers see, what the platter holds, and in between what is on its way."""

    cached: bytearray = field(default_factory=bytearray)
    platter: bytearray = field(default_factory=bytearray)
    pending: list[Write | Truncation] = field(default_factory=list)
    syncs_directory: bool = False


class PowerCutDisk(DiskAccess):
    """See the module's docstring. `close` when done with it: it unregisters the VFS.

    `cut_at`: the number of the operation (write, sync, truncation, deletion; from 1) at which power is lost, None for
    never. `space_bytes`: total length of all files beyond which a write finds the disk full, None for no limit.
    `failing_syncs`: how many of the next syncs fail; a negative number for all.
    """

    def __init__(self, files: dict[str, bytes] | None = None, cut_at: int | None = None) -> None:
        self.names: dict[str, Inode] = {}
        self.durable_names: dict[str, Inode] = {}
        self.cut_at = cut_at
        self.space_bytes: int | None = None
        self.failing_syncs = 0
        self.operations = 0
        self.syncs: dict[str, int] = {}
        self.has_power = True
        for name, content in (files or {}).items():
            self.names[name] = self.durable_names[name] = Inode(bytearray(content), bytearray(content))
        self.vfs = f"power-cut-{next(_numbers)}"
        self._registered = _Vfs(self, self.vfs)

    def close(self) -> None:
        """Take the VFS off SQLite's list."""
        self._registered.unregister()

    # -- DiskAccess ---------------------------------------------------------------------------------------------------

    def make_directory(self, path: str) -> None:
        """Nothing to do: names hold their directory."""
        self.step()

    def names_in(self, directory: str) -> list[str]:
        """The names that readers see now."""
        return [name[len(directory) + 1 :] for name in sorted(self.names) if name.startswith(directory + "/")]

    def exists(self, path: str) -> bool:
        return path in self.names

    def remove(self, path: str) -> None:
        self.delete(path, False)

    def rename(self, old: str, new: str) -> None:
        """The new name shows at once and is durable, as the old one's end is, after a sync of the directory."""
        self.step()
        self.names[new] = self.names.pop(old)

    def read_at(self, path: str, offset: int, size: int) -> bytes:
        return bytes(self.names[path].cached[offset : offset + size])

    def write_at(self, path: str, offset: int, data: bytes) -> None:
        """As a write of SQLite's, but for the error of a full disk."""
        try:
            self.write(self.names.setdefault(path, Inode()), offset, data)
        except apsw.FullError as error:
            raise OSError(errno.ENOSPC, "no space", path) from error

    def has_space(self, directory: str, size: int) -> bool:
        return self.space_bytes is None or sum(len(inode.cached) for inode in self.names.values()) + size <= self.space_bytes

    def sync_directory(self, directory: str) -> None:
        """Make all names durable: the model has one directory."""
        self.step()
        self.durable_names = dict(self.names)

    def sync_file(self, path: str) -> None:
        """As `xSync`, but for the error of a disk that fails."""
        try:
            self.sync(path, self.names[path])
        except apsw.IOError as error:
            if not self.has_power:
                raise
            raise OSError(errno.EIO, "the disk failed a sync", path) from error

    def lock(self, path: str) -> Callable[[], None]:
        """A disk in memory has one user."""
        return lambda: None

    # -- what can fail ------------------------------------------------------------------------------------------------

    def step(self) -> None:
        """Count one operation; without power every one fails."""
        self.operations += 1
        if self.cut_at is not None and self.operations >= self.cut_at:
            self.has_power = False
        if not self.has_power:
            raise _io_error(apsw.SQLITE_IOERR, "no power")

    def write(self, inode: Inode, offset: int, data: bytes) -> None:
        """Show `data` to readers at once; it is durable after a sync."""
        end = offset + len(data)
        if self.space_bytes is not None and end > len(inode.cached):
            used = sum(len(other.cached) for other in self.names.values())
            if used + end - len(inode.cached) > self.space_bytes:
                raise apsw.FullError("no space")
        if end > len(inode.cached):
            inode.cached.extend(bytes(end - len(inode.cached)))
        inode.cached[offset:end] = data
        at = offset
        while at < end:
            until = min(end, (at // SECTOR_BYTES + 1) * SECTOR_BYTES)
            inode.pending.append(Write(at, data[at - offset : until - offset]))
            at = until
        self.step()

    def truncate(self, inode: Inode, length: int) -> None:
        """Cut or extend a file."""
        truncation = Truncation(length)
        truncation.apply(inode.cached)
        inode.pending.append(truncation)
        self.step()

    def sync(self, name: str, inode: Inode) -> None:
        """Make a file durable, or fail as asked."""
        self.step()
        self.syncs[name] = self.syncs.get(name, 0) + 1
        if self.failing_syncs:
            self.failing_syncs -= 1
            inode.pending.clear()  # marked clean: what did not reach the platter never will by itself
            raise _io_error(apsw.SQLITE_IOERR_FSYNC, "the disk failed a sync")
        for change in inode.pending:
            change.apply(inode.platter)
        inode.pending.clear()
        if inode.syncs_directory:
            self.durable_names = dict(self.names)
            inode.syncs_directory = False

    def delete(self, name: str, sync_directory: bool) -> None:
        """Remove a name."""
        self.names.pop(name, None)
        self.step()
        if sync_directory:
            self.durable_names = dict(self.names)

    # -- the next start -----------------------------------------------------------------------------------------------

    def after_power_cut(self, rng: random.Random, cut_at: int | None = None) -> "PowerCutDisk":
        """The disk that the next start finds, by the dice of `rng`; this one stays without power."""
        self.has_power, self.cut_at = False, 0
        files: dict[str, bytes] = {}
        for name in sorted(self.names.keys() | self.durable_names.keys()):
            cached, durable = self.names.get(name), self.durable_names.get(name)
            inode = cached if durable is None or (cached is not durable and rng.random() < 0.5) else durable
            if inode is None or (durable is None and rng.random() < 0.5):
                continue
            files[name] = _what_reached_the_platter(inode, rng)
        return PowerCutDisk(files, cut_at)

    def after_process_kill(self) -> "PowerCutDisk":
        """The disk that the next start finds when only the process died: the page cache survives, clean or dirty."""
        self.has_power, self.cut_at = False, 0
        following = PowerCutDisk()
        following.names, following.durable_names = dict(self.names), dict(self.durable_names)
        return following


def _what_reached_the_platter(inode: Inode, rng: random.Random) -> bytes:
    content = bytearray(inode.platter)
    share = rng.choice((0.0, 0.5, 0.9, 1.0))  # from "nothing left the cache" to "almost everything did"
    for change in inode.pending:
        if rng.random() >= share:
            continue
        if isinstance(change, Write) and rng.random() < 0.02:
            change = Write(change.offset, rng.randbytes(len(change.data)))
        change.apply(content)
    return bytes(content)


def _io_error(code: int, text: str) -> apsw.IOError:
    error = apsw.IOError(text)
    setattr(error, "extendedresult", code)  # noqa: B010 - how apsw reads the exact code, missing in its types
    return error


class _Vfs(apsw.VFS):
    """SQLite's calls about names. Clock and randomness come from the platform's own VFS."""

    def __init__(self, disk: PowerCutDisk, name: str) -> None:
        self._disk = disk
        super().__init__(name, base="")

    def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> "_File":  # type: ignore[override]
        disk = self._disk
        path = name.filename() if isinstance(name, apsw.URIFilename) else name or f"temporary-{next(_numbers)}"
        inode = disk.names.get(path)
        if inode is None:
            if not flags[0] & apsw.SQLITE_OPEN_CREATE:
                raise apsw.CantOpenError(f"no file {path}")
            inode = disk.names[path] = Inode()
            inode.syncs_directory = bool(flags[0] & (apsw.SQLITE_OPEN_WAL | apsw.SQLITE_OPEN_MAIN_JOURNAL))
        flags[1] = flags[0]
        return _File(disk, path, inode, bool(flags[0] & apsw.SQLITE_OPEN_DELETEONCLOSE))

    def xDelete(self, filename: str, syncdir: bool) -> None:
        self._disk.delete(filename, syncdir)

    def xAccess(self, pathname: str, flags: int) -> bool:
        return pathname in self._disk.names

    def xFullPathname(self, name: str) -> str:
        return name


class _File:
    """SQLite's calls about one open file."""

    def __init__(self, disk: PowerCutDisk, name: str, inode: Inode, delete_on_close: bool) -> None:
        self._disk, self._name, self._inode = disk, name, inode
        self._delete_on_close = delete_on_close

    def xRead(self, amount: int, offset: int) -> bytes:
        return bytes(self._inode.cached[offset : offset + amount])

    def xWrite(self, data: bytes, offset: int) -> None:
        if not self._disk.has_power:
            self._disk.step()
        self._disk.write(self._inode, offset, bytes(data))

    def xTruncate(self, newsize: int) -> None:
        if not self._disk.has_power:
            self._disk.step()
        self._disk.truncate(self._inode, newsize)

    def xSync(self, flags: int) -> None:
        self._disk.sync(self._name, self._inode)

    def xFileSize(self) -> int:
        return len(self._inode.cached)

    def xClose(self) -> None:
        if self._delete_on_close:
            self._disk.names.pop(self._name, None)

    def xLock(self, level: int) -> None:
        pass

    def xUnlock(self, level: int) -> None:
        pass

    def xCheckReservedLock(self) -> bool:
        return False

    def xFileControl(self, op: int, ptr: int) -> bool:
        return False

    def xSectorSize(self) -> int:
        return SECTOR_BYTES

    def xDeviceCharacteristics(self) -> int:
        return apsw.SQLITE_IOCAP_POWERSAFE_OVERWRITE  # as SQLite's own VFS assumes of every disk
