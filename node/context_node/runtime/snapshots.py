"""Snapshots of a shard: a consistent copy of its database, described by a manifest, carried in chunks, installed as a new generation.

Knows files, checksums and what a copy says of itself. Does not know who carries the chunks, nor when a follower needs one: that is the
cluster's. Invariants
- index, term and configuration of a snapshot are read from the copied file, never from memory.
- What is received becomes a generation only if every chunk has its checksum and the database in it says what the manifest said.
- A generation is durable with its name before the log names it (P6); a file that the log does not name is removed at the next start.
"""

import os
from collections.abc import Sequence
from hashlib import blake2b

import apsw
import msgspec

from context_node.runtime.databases import DiskAccess, DiskFull, StorageError
from context_node.runtime.replica import Replica
from context_node.runtime.state_store import StateOptions, StateStore
from context_node.runtime.worker import Worker

CHUNK_BYTES = 1 << 20
CHUNKS_MAX = 1 << 20


class SnapshotRefused(Exception):
    """A chunk, a manifest or the database in them is not what it claims to be. Nothing of it was taken over."""


class Manifest(msgspec.Struct, frozen=True, array_like=True):
    """What a snapshot holds: everything up to log entry `index` of `term`, with the Raft configuration at that index.

    `size_bytes` of the file are cut into chunks of `chunk_bytes` (the last may be shorter), each with its BLAKE2b checksum.
    """

    shard: int
    index: int
    term: int
    conf_state: bytes
    size_bytes: int
    chunk_bytes: int
    checksums: tuple[bytes, ...]

    def encode(self) -> bytes:
        """For a peer, and for the data of a Raft snapshot."""
        return msgspec.msgpack.encode(self)

    @staticmethod
    def decode(data: bytes) -> "Manifest":
        """The inverse of `encode`. Raises `SnapshotRefused` for what cannot be a manifest."""
        try:
            manifest = _manifests.decode(data)
        except msgspec.MsgspecError as error:
            raise SnapshotRefused(f"not a manifest: {error}") from error
        chunks = -(-manifest.size_bytes // manifest.chunk_bytes) if manifest.chunk_bytes > 0 else -1
        if not 0 < chunks == len(manifest.checksums) <= CHUNKS_MAX or manifest.index < 1:
            raise SnapshotRefused("the manifest contradicts itself")
        return manifest


_manifests = msgspec.msgpack.Decoder(Manifest)


class Snapshot:
    """A copy of a shard on this node's disk, to be given away chunk by chunk and then discarded."""

    def __init__(self, manifest: Manifest, path: str, disk: DiskAccess) -> None:
        self.manifest = manifest
        self._path = path
        self._disk = disk

    def chunk(self, number: int) -> bytes:
        """The bytes of a chunk, from 0. Blocks: for a thread. Raises `OSError`."""
        size = self.manifest.chunk_bytes
        return self._disk.read_at(self._path, number * size, size)

    def discard(self) -> None:
        """Remove the copy. May be repeated."""
        if self._disk.exists(self._path):
            self._disk.remove(self._path)


async def take(replica: Replica, path: str, worker: Worker, disk: DiskAccess, chunk_bytes: int = CHUNK_BYTES) -> Snapshot:
    """Copy a replica's state to `path`. Writes go on meanwhile; what they change after the copy began is not in it.

    Raises `Unavailable` if what is applied cannot be stored, `StorageError` if the copy cannot be written.
    """
    await replica.stored()

    def copy() -> Manifest:
        applied = replica.store.backup(path)
        checksums: list[bytes] = []
        size = 0
        while chunk := disk.read_at(path, size, chunk_bytes):
            checksums.append(_checksum(chunk))
            size += len(chunk)
        return Manifest(replica.shard, applied.index, applied.term, applied.conf_state, size, chunk_bytes, tuple(checksums))

    manifest: Manifest = await worker.run(copy)
    return Snapshot(manifest, path, disk)


class Incoming:
    """A snapshot on its way in: takes chunks in any order, also twice, and becomes a database that the log may name.

    All methods block on the disk: for a thread. `path` is the database's name as a generation.
    """

    def __init__(self, manifest: Manifest, path: str, options: StateOptions) -> None:
        self.manifest = manifest
        self.path = path
        self.is_named = False
        """Whether the log may name it, by a commit whose outcome nobody has to know: it must stay then, and the next start decides."""
        self._options = options
        self._partial = path + ".partial"
        self._missing = set(range(len(manifest.checksums)))

    @property
    def missing(self) -> Sequence[int]:
        """The numbers of the chunks that are not there yet, ascending."""
        return sorted(self._missing)

    def add(self, number: int, chunk: bytes) -> None:
        """Take a chunk. Raises `SnapshotRefused` if it is not what the manifest says, `OSError` if it cannot be written."""
        manifest = self.manifest
        if not 0 <= number < len(manifest.checksums) or _checksum(chunk) != manifest.checksums[number]:
            raise SnapshotRefused(f"chunk {number} of the snapshot of shard {manifest.shard} is damaged")
        if number in self._missing:
            self._options.disk.write_at(self._partial, number * manifest.chunk_bytes, chunk)
            self._missing.discard(number)

    def finish(self) -> None:
        """Check what came as a whole and make it durable under its name (P6).

        Raises `SnapshotRefused` if it is incomplete or another state than announced, `OSError` or `StorageError` if the disk fails.
        """
        manifest, disk = self.manifest, self._options.disk
        if self._missing:
            raise SnapshotRefused(f"{len(self._missing)} chunks of the snapshot of shard {manifest.shard} are missing")
        try:
            store = StateStore(self._partial, manifest.shard, self._options)
        except StorageError as error:
            if isinstance(error, DiskFull) or isinstance(error.cause, apsw.IOError | OSError):
                raise
            raise SnapshotRefused(f"the snapshot of shard {manifest.shard} is no state of that shard: {error}") from error
        applied = store.applied()
        store.close()
        if (applied.index, applied.term, applied.conf_state) != (manifest.index, manifest.term, manifest.conf_state):
            raise SnapshotRefused(f"the snapshot of shard {manifest.shard} is at entry {applied.index}, not {manifest.index}")
        disk.sync_file(self._partial)
        disk.rename(self._partial, self.path)
        disk.sync_directory(os.path.dirname(self.path))

    def discard(self) -> None:
        """Remove what was received, unless the log may name it. May be repeated."""
        for path in (self._partial,) if self.is_named else (self._partial, self.path):
            remove_database(path, self._options.disk)


def remove_database(path: str, disk: DiskAccess) -> None:
    """Remove a database with the files beside it."""
    for name in (path, path + "-wal", path + "-shm", path + "-journal"):
        if disk.exists(name):
            disk.remove(name)


def _checksum(chunk: bytes) -> bytes:
    return blake2b(chunk, digest_size=16).digest()
