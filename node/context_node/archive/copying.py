"""What a shard brings to the archive at a time: one batch, its marks, and what was purged.

Knows the archive's calls and the shard's log. Does not know when turns come, nor SQL. Invariants: nothing is marked before Postgres has
committed it; what the archive has by its own account is asked with every batch, so that marks that say more trim nothing (H6).
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import msgspec

from context_node.archive.backlog import Backlog
from context_node.archive.batches import BatchLimits, next_batch
from context_node.archive.errors import ArchiveError, Behind, Fenced
from context_node.archive.rows import ArchivedContext, ArchivedMessage
from context_node.contexts.commands import Archived, NoteArchived, UseArchive
from context_node.contexts.context import Context, archived_upto
from context_node.contexts.refusals import Refusal, Unprocessable
from context_node.runtime.databases import StorageError
from context_node.runtime.replica import Replica
from context_node.runtime.shards import SYSTEM_SHARD, accepted

logger = logging.getLogger("contextstore.archive")

LOST_AGAIN_MS = 60_000
"""So often the archive is asked for a context whose messages it had lost: somebody may have brought them back. For one at a time, since the
batch that it is in is written again without it."""

FENCED_MAX = 5
"""A leader that is fenced off so often in one term is not about to learn of its successor: it has none."""

_encode = msgspec.msgpack.Encoder().encode


class Archive(Protocol):
    """What `postgres.Postgres` does."""

    async def open(self, cluster_id: str) -> str: ...
    async def close(self) -> None: ...
    async def ping(self) -> None: ...
    async def write(self, shard: int, term: int, messages: list[ArchivedMessage], contexts: list[ArchivedContext]) -> None: ...
    async def write_policies(self, shard: int, term: int, policies: list[tuple[str, int, bytes]]) -> None: ...
    async def erase(self, shard: int, term: int, contexts: list[tuple[str, int]]) -> None: ...


@dataclass(slots=True)
class ArchiveCounters:
    """What metrics tell. `failures` by cause; `cause` is that of the last turn, empty if it went well."""

    messages: int = 0
    bytes: int = 0
    trimmed: int = 0
    batches: int = 0
    erased: int = 0
    failures: dict[str, int] = field(default_factory=dict)
    is_healthy: bool = False
    is_late: bool = False
    cause: str = "connecting"
    reason: str = "It has not been connected yet."


@dataclass(frozen=True, slots=True)
class Turn:
    """How a shard's turn went, or a batch of it: whether the archive took something, whether there is more, and what went wrong then."""

    has_written: bool = False
    has_more: bool = False
    error: Exception | None = None


@dataclass(slots=True)
class Led:
    """A shard that this node leads: the term, and what waits to be archived. `again`: contexts of which the archive lost a part that is hot
    still, by up to where it has them; `lost`: those of which it lost what is nowhere else, in the order in which it is asked for them
    again, and `missed_ms`, when it last did not have one (Unix milliseconds). `is_over`: it is to be looked through anew; `before`: what
    was known to wait until that is done."""

    term: int
    behind: Backlog
    is_scanned: bool = False
    is_over: bool = False
    before: Backlog | None = None
    again: dict[str, int] = field(default_factory=dict)
    lost: dict[str, None] = field(default_factory=dict)
    missed_ms: int = 0

    @property
    def waiting(self) -> Backlog:
        """What is told to wait: while it is looked for anew, what was known before."""
        return self.behind if self.before is None else self.before

    def came(self, context_id: str, bodies: Sequence[bytes]) -> None:
        """Messages were appended just now, or without any something else of the context has changed."""
        self.behind.came(context_id, bodies)
        if self.before is not None:
            self.before.came(context_id, bodies)

    def forget(self, context_id: str) -> None:
        """Nothing of a context is to be archived: all of it is, or it was purged and the next of its id is another one."""
        self.behind.drop(context_id)
        if self.before is not None:
            self.before.drop(context_id)
        self.again.pop(context_id, None)
        self.lost.pop(context_id, None)


class Copier:
    """Copies shards. `archive_id` is that of the archive that is connected."""

    def __init__(self, archive: Archive, counters: ArchiveCounters, limits: BatchLimits, now_ms: Callable[[], int]) -> None:
        self.archive_id = ""
        self.counters = counters
        self._archive, self._limits, self._now_ms = archive, limits, now_ms
        self._policies: tuple[int, str, list[tuple[str, int, bytes]]] = (0, "", [])
        """What was written of the system group, in which term, and to which archive."""
        self._fenced: dict[int, tuple[int, int]] = {}
        """By shard the term in which it was fenced off last, and how often."""

    async def turn(self, replica: Replica, led: Led) -> Turn:
        """Copy one batch of a shard, and erase what was purged. Raises `ArchiveError`. Afterwards `led.is_over` may say that what it was is
        not so any more."""
        try:
            if replica.machine.archive_id != self.archive_id:
                await self._use_archive(replica)
                # Whatever was found to wait was for another archive.
                led.is_over = True
                return Turn(has_more=True)
            if replica.shard == SYSTEM_SHARD:
                return await self._copy_policies(replica, led)
            copied = await self._copy(replica, led)
            has_erased = await self._erase(replica, led)
        except Fenced as error:
            # Whoever leads now does it. If it is this node after all, its term is a newer one soon.
            if self._note_fenced(replica, led) < FENCED_MAX:
                led.is_over = True
                return Turn(has_written=True)
            raise ArchiveError(
                "fenced",
                f"{error}, and this node leads it: was its data brought back from a copy, or does another cluster of the same id use this "
                "schema? Give another archive_schema",
            ) from error
        except (Refusal, StorageError) as error:
            logger.info("shard %d is archived later: %s", replica.shard, error)
            return Turn()
        return Turn(copied.has_written or has_erased, copied.has_more)

    def _note_fenced(self, replica: Replica, led: Led) -> int:
        """How often a shard was fenced off in this term."""
        term, times = self._fenced.get(replica.shard, (0, 0))
        self._fenced[replica.shard] = (led.term, times + 1 if term == led.term else 1)
        return self._fenced[replica.shard][1]

    async def _use_archive(self, replica: Replica) -> None:
        """Begin with this archive in a shard. Raises `ArchiveError` if messages that were trimmed are in another one only."""
        try:
            accepted(await replica.propose(UseArchive(self._now_ms(), self.archive_id)))
        except Unprocessable as refusal:
            raise ArchiveError("other_archive", f"shard {replica.shard}: {refusal.message}") from refusal

    async def _copy(self, replica: Replica, led: Led) -> Turn:
        # Also if the clock was set back.
        is_due = abs(self._now_ms() - led.missed_ms) >= LOST_AGAIN_MS
        asked = next(iter(led.lost), None) if is_due else None
        waiting = [context_id for context_id in led.behind if context_id not in led.lost or context_id == asked]
        batch = await next_batch(replica, waiting, self._limits, led.again, led.forget)
        if not batch.marks:
            return Turn()
        try:
            await self._archive.write(replica.shard, led.term, batch.messages, batch.contexts)
        except Behind as error:
            self._note_behind(replica, led, error, batch.contexts)
            return Turn(has_written=True, has_more=True)
        # Only now: what Postgres has not committed is not confirmed, and what is not confirmed is not trimmed (H6).
        accepted(await replica.propose(NoteArchived(self._now_ms(), tuple(batch.marks))))
        self.counters.batches += 1
        self.counters.messages += len(batch.messages)
        self.counters.bytes += batch.bytes
        self.counters.trimmed += batch.trimmed
        for mark in batch.marks:
            if mark.context_id in led.lost:
                del led.lost[mark.context_id]
                logger.info("the archive has the messages of %s again", mark.context_id)
            context = replica.context(mark.context_id)
            led.behind.copied(replica, context, mark.context_id, batch.sizes[mark.context_id])
            if mark.context_id in led.again:
                self._go_on_again(replica, led, context, mark)
        return Turn(has_written=True, has_more=batch.is_full(self._limits))

    def _note_behind(self, replica: Replica, led: Led, error: Behind, told: list[ArchivedContext]) -> None:
        """The archive has less than it had confirmed. What is hot still is copied again; of the rest nothing more is copied nor trimmed."""
        self.counters.failures[error.cause] = self.counters.failures.get(error.cause, 0) + 1
        if not error.held.keys() <= led.lost.keys():
            logger.error("%s", error)
        incarnations = {one.context_id: one.incarnation for one in told}
        for context_id, held in error.held.items():
            led.again.pop(context_id, None)
            context = replica.context(context_id)
            if context is None or context.head.incarnation != incarnations[context_id]:
                continue  # purged meanwhile, so that nothing of it is missed
            if held >= context.head.trimmed_seq:
                led.again[context_id] = held
                led.lost.pop(context_id, None)
                continue
            if context_id not in led.lost:
                logger.error("the archive lost messages of %s behind seq %d that were trimmed; bring them back", context_id, held)
            led.lost.pop(context_id, None)
            led.lost[context_id] = None
            led.missed_ms = self._now_ms()

    def _go_on_again(self, replica: Replica, led: Led, context: Context | None, mark: Archived) -> None:
        if context is None or mark.seq >= archived_upto(context.head, replica.machine.archive_epoch):
            del led.again[mark.context_id]
        else:
            led.again[mark.context_id] = mark.seq
            led.behind.came(mark.context_id, ())

    async def _erase(self, replica: Replica, led: Led) -> bool:
        """Whether there was something to erase."""
        purged = list(replica.machine.erasures)[: self._limits.messages]
        if purged:
            await self._archive.erase(replica.shard, led.term, purged)
            accepted(await replica.propose(NoteArchived(self._now_ms(), erased=tuple(purged))))
            self.counters.erased += len(purged)
        return bool(purged)

    async def _copy_policies(self, system: Replica, led: Led) -> Turn:
        """The named policies, all of them whenever any has changed: there are few."""
        rows = [(name, one.record.generation, _encode(one.record)) for name, one in sorted(system.machine.policies.items())]
        told = (led.term, self.archive_id, rows)
        if self._policies == told:
            return Turn()
        await self._archive.write_policies(SYSTEM_SHARD, led.term, rows)
        self._policies = told
        return Turn(has_written=True)
