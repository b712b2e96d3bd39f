"""Histories of a cluster beside those of an archive: as digests, and message by message.

Knows exports and pages of an archive. Does not know why they are compared. Invariant: memory is bounded by a page of the archive and a
chunk of the export, whatever a history holds.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import TypeVar

from context_node.archive.reading import ArchiveReader
from context_node.cli.client import Client, GaveUp, context_path

T = TypeVar("T")

PAGE_BYTES = 1 << 20
ATTEMPTS_MAX = 4
RANGES_MAX = 20


@dataclass(frozen=True, slots=True)
class Summed:
    """A whole history: how many messages and bytes, and the digest of all of them, each followed by a newline."""

    messages: int
    size_bytes: int
    digest: bytes


async def summed_export(client: Client, context_id: str) -> Summed:
    """The history that the cluster gives. Raises `Refused`, `GaveUp`."""

    async def once() -> Summed:
        digest, count, size, end = blake2b(digest_size=32), 0, 0, b"\n"
        async with client.stream(context_path(context_id) + "/export") as content:
            async for chunk in content.iter_any():
                digest.update(chunk)
                count += chunk.count(b"\n")
                size += len(chunk)
                end = chunk[-1:]
        if end != b"\n":
            raise GaveUp("the export ended in the middle of a message")
        return Summed(count, size - count, digest.digest())

    return await repeated(client, once)


async def summed_rows(archive: ArchiveReader, context_id: str, incarnation: int, last_seq: int) -> Summed:
    """The history up to `last_seq` that the archive holds, as far as it has no hole. Raises `ArchiveError`."""
    digest, count, size = blake2b(digest_size=32), 0, 0
    while count < last_seq:
        page = await archive.messages(context_id, incarnation, count + 1, last_seq, bytes_max=PAGE_BYTES)
        if not page or page[0].seq != count + 1:
            break
        for message in page:
            if message.seq != count + 1:
                return Summed(count, size, digest.digest())
            digest.update(message.raw)
            digest.update(b"\n")
            count += 1
            size += len(message.raw)
    return Summed(count, size, digest.digest())


async def repeated(client: Client, work: Callable[[], Awaitable[T]]) -> T:
    """The result of a read that a lost connection may break off: tried again, each time from its beginning. Raises `GaveUp`."""
    for attempt in range(ATTEMPTS_MAX - 1):
        try:
            return await work()
        except GaveUp:
            await client.pause(attempt)
    return await work()


@dataclass(slots=True)
class Ranges:
    """Seqs, given in order, as ranges; the first `RANGES_MAX` of them, and how many seqs there are at all."""

    count: int = 0
    ranges: list[tuple[int, int]] = field(default_factory=list)

    def add(self, first: int, last: int) -> None:
        self.count += last - first + 1
        if self.ranges and self.ranges[-1][1] == first - 1:
            self.ranges[-1] = (self.ranges[-1][0], last)
        elif len(self.ranges) <= RANGES_MAX:
            self.ranges.append((first, last))

    def __str__(self) -> str:
        told = [f"{first}" if first == last else f"{first}-{last}" for first, last in self.ranges[:RANGES_MAX]]
        return ", ".join(told) + (", …" if len(self.ranges) > RANGES_MAX else "")


@dataclass(slots=True)
class Compared:
    """Two histories message by message: how many were looked at, which the archive lacks, which differ."""

    messages: int = 0
    size_bytes: int = 0
    missing: Ranges = field(default_factory=Ranges)
    differing: Ranges = field(default_factory=Ranges)


async def compared(client: Client, archive: ArchiveReader, context_id: str, incarnation: int, upto: int) -> Compared:
    """The cluster's messages up to `upto` beside the archive's. Raises `Refused`, `GaveUp`, `ArchiveError`."""

    async def once() -> Compared:
        result = Compared()
        if not upto:
            return result
        async with client.stream(context_path(context_id) + "/export") as content:
            rows = archived_bodies(archive, context_id, incarnation, upto)
            async for line in lines(content.iter_any()):
                if result.messages == upto:
                    continue  # newer ones; read to its end the connection can be used again
                result.messages += 1
                result.size_bytes += len(line)
                body = await anext(rows, None)
                if body is None:
                    result.missing.add(result.messages, result.messages)
                elif body != line:
                    result.differing.add(result.messages, result.messages)
        if result.messages == upto:
            return result
        raise GaveUp(f"the cluster gave {result.messages} messages of {upto}")

    return await repeated(client, once)


async def archived_bodies(archive: ArchiveReader, context_id: str, incarnation: int, upto: int) -> AsyncIterator[bytes | None]:
    """The messages from 1 to `upto`; None for each that is not there."""
    seq = 1
    while seq <= upto:
        page = await archive.messages(context_id, incarnation, seq, upto, bytes_max=PAGE_BYTES)
        for message in page:
            while seq < message.seq:
                yield None
                seq += 1
            yield message.raw
            seq += 1
        if not page:
            newest = await archive.next_seq(context_id, incarnation, seq)
            while seq < min(newest or upto + 1, upto + 1):
                yield None
                seq += 1


async def lines(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Whole lines, without their ends. Raises `GaveUp` for one that breaks off."""
    rest = b""
    async for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            yield line
    if rest:
        raise GaveUp("the export ended in the middle of a message")
