"""What is copied to the archive, when, and by whom: for each shard by its leader, in order, without gaps.

Knows replicas and the archive's calls. Does not know SQL. A batch is written, then its marks go through the shard's own log
(`NoteArchived`), so a new leader goes on exactly behind what was confirmed; what an old one wrote beyond that is met again and left as it
is. Invariants: nothing is marked before Postgres has committed it; a context's messages are copied in order of seq; the archive's trouble
never reaches a write, it only makes the archive late.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec

from context_node.archive.postgres import ArchiveError, Fenced
from context_node.archive.rows import ArchivedContext, ArchivedMessage, context_row, message_row, told_of
from context_node.contexts.commands import Archived, NoteArchived
from context_node.contexts.context import Context, Head, IdRow, read_head
from context_node.contexts.machine import Event
from context_node.contexts.refusals import Refusal
from context_node.runtime.databases import StorageError
from context_node.runtime.histories import hot_rows
from context_node.runtime.replica import Replica
from context_node.runtime.shards import SYSTEM_SHARD, ShardDirectory, accepted

logger = logging.getLogger("contextstore.archive")

policy_record = msgspec.msgpack.Encoder()

SCANNED_AT_ONCE = 200
"""Contexts of a shard that a new leader looks at before it lets others in."""

TRIMMED_AT_ONCE = 10_000
"""So many messages leave the hot store with one batch at most: a setting that is new may concern millions."""

BACKOFF_MIN_S, BACKOFF_MAX_S = 0.5, 60.0


class Archive(Protocol):
    """What `postgres.Postgres` does."""

    async def open(self, cluster_id: str) -> None: ...
    async def close(self) -> None: ...
    async def write(self, shard: int, term: int, messages: list[ArchivedMessage], contexts: list[ArchivedContext]) -> None: ...
    async def write_policies(self, shard: int, term: int, policies: list[tuple[str, int, bytes]]) -> None: ...
    async def erase(self, shard: int, term: int, contexts: list[tuple[str, int]]) -> None: ...


@dataclass(frozen=True, slots=True)
class ArchiverOptions:
    """Every `flush_s` what has come is copied, in one transaction `batch_messages` at most, and no more once they are `batch_bytes`;
    `shards_at_once` write beside each other. With `tail_keep` only so many of a context's newest messages stay hot."""

    flush_s: float = 1.0
    batch_messages: int = 1_000
    batch_bytes: int = 8 << 20
    shards_at_once: int = 4
    tail_keep: int | None = None


@dataclass(slots=True)
class ArchiveCounters:
    """What metrics tell. `failures` by cause."""

    messages: int = 0
    bytes: int = 0
    trimmed: int = 0
    batches: int = 0
    erased: int = 0
    failures: dict[str, int] = field(default_factory=dict)
    is_healthy: bool = False
    reason: str = "It has not been connected yet."


@dataclass(slots=True)
class _Led:
    """A shard that this node leads: the term, and by context since when it differs from the archive, and by how many messages."""

    term: int
    behind: dict[str, tuple[float, int]] = field(default_factory=dict)
    is_scanned: bool = False


class Archiver:
    """The archiver of one node. `note` is told of every event; `run` copies until it is cancelled. `jitter` gives numbers in [0, 1)."""

    def __init__(
        self,
        shards: ShardDirectory,
        archive: Archive,
        options: ArchiverOptions,
        *,
        cluster_id: Callable[[], str],
        now_ms: Callable[[], int],
        jitter: Callable[[], float],
    ) -> None:
        self.counters = ArchiveCounters()
        self._shards, self._archive, self._options = shards, archive, options
        self._cluster_id, self._now_ms, self._jitter = cluster_id, now_ms, jitter
        self._led: dict[int, _Led] = {}
        self._loop = asyncio.get_running_loop()
        self._policies: tuple[int, list[tuple[str, int, bytes]]] = (0, [])
        """What was written of the system group, and in which term."""
        self._is_open = False
        self._backoff_s = BACKOFF_MIN_S

    def note(self, replica: Replica, event: Event) -> None:
        """Something happened in a shard. Cheap: it is called for every message."""
        led = self._led.get(replica.shard)
        if led is None:
            return
        if event.kind == "message":
            since, count = led.behind.get(event.context_id) or (self._loop.time(), 0)
            led.behind[event.context_id] = since, count + len(event.bodies)
        elif event.kind == "purged":
            led.behind.pop(event.context_id, None)
        else:
            led.behind.setdefault(event.context_id, (self._loop.time(), 0))

    @property
    def lag_messages(self) -> int:
        """Messages of the shards led here that the archive does not have yet."""
        return sum(count for led in self._led.values() for _, count in led.behind.values())

    @property
    def lag_s(self) -> float:
        """Age of the oldest of them, as far as this node has led its shard."""
        oldest = min((since for led in self._led.values() for since, _ in led.behind.values()), default=None)
        return 0.0 if oldest is None else self._loop.time() - oldest

    # --- the loop -------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until cancelled."""
        try:
            while True:
                try:
                    had_more = await self._round()
                except ArchiveError as error:
                    await self._fail(error)
                except Exception as error:
                    # Whatever it is, the node serves on: the archive is never what it depends on.
                    logger.exception("the archive met something unexpected")
                    await self._fail(ArchiveError("unexpected", f"unexpected {type(error).__name__}; see the log"))
                else:
                    if not had_more:
                        await asyncio.sleep(self._options.flush_s)
        finally:
            await self._archive.close()

    async def _fail(self, error: ArchiveError) -> None:
        counters = self.counters
        counters.failures[error.cause] = counters.failures.get(error.cause, 0) + 1
        if counters.is_healthy or counters.reason != str(error):
            logger.warning("the archive is late: %s", error)
        counters.is_healthy, counters.reason = False, str(error)
        # Whatever it was, a new connection is the best that can be tried.
        self._is_open = False
        await asyncio.sleep(self._backoff_s * (0.5 + self._jitter() / 2))
        self._backoff_s = min(2 * self._backoff_s, BACKOFF_MAX_S)

    async def _round(self) -> bool:
        """One turn of every shard that is led here; whether some have more. Raises `ArchiveError`."""
        if not self._is_open:
            await self._archive.open(self._cluster_id())
            self._is_open = True
        led = {replica.shard: replica for replica in self._shards.all() if replica.shard != SYSTEM_SHARD and self._is_led(replica)}
        for shard in self._led.keys() - led.keys():
            del self._led[shard]
        free = asyncio.Semaphore(self._options.shards_at_once)

        async def turn(replica: Replica) -> bool:
            async with free:
                return await self._turn(replica)

        results = await gathered([turn(replica) for replica in led.values()])
        system = self._shards.held(SYSTEM_SHARD)
        if system is not None and self._is_led(system):
            await self._copy_policies(system)
        self._backoff_s = BACKOFF_MIN_S
        if not self.counters.is_healthy:
            logger.info("the archive is connected")
        self.counters.is_healthy, self.counters.reason = True, ""
        return any(results)

    @staticmethod
    def _is_led(replica: Replica) -> bool:
        return replica.failure is None and replica.group.is_leader

    async def _copy_policies(self, system: Replica) -> None:
        """The named policies, all of them whenever any has changed: there are few."""
        term = system.group.status().term
        rows = [(name, one.record.generation, policy_record.encode(one.record)) for name, one in sorted(system.machine.policies.items())]
        if self._policies == (term, rows):
            return
        try:
            await self._archive.write_policies(SYSTEM_SHARD, term, rows)
        except Fenced:
            return
        self._policies = (term, rows)

    # --- one shard ------------------------------------------------------------------------------------------------------

    async def _turn(self, replica: Replica) -> bool:
        """Copy one batch of a shard, and erase what was purged; whether there is more."""
        term = replica.group.status().term
        led = self._led.get(replica.shard)
        if led is None or led.term != term:
            led = self._led[replica.shard] = _Led(term)
        try:
            if not led.is_scanned:
                await self._scan(replica, led)
            more = await self._copy(replica, led)
            await self._erase(replica, led)
        except Fenced:
            # Whoever leads now does it. If it is this node after all, its term is a newer one soon.
            self._led.pop(replica.shard, None)
            return False
        except (Refusal, StorageError) as error:
            logger.info("shard %d is archived later: %s", replica.shard, error)
            return False
        return more

    async def _scan(self, replica: Replica, led: _Led) -> None:
        """Find what is not archived: a leader that was none before does not know."""
        now, after = self._loop.time(), ""
        while True:
            rows = replica.store.list_contexts(after=after, limit=SCANNED_AT_ONCE)
            for row in rows:
                head = read_head(row.record)
                if self._is_behind(head) and row.id not in replica.machine.contexts:
                    led.behind.setdefault(row.id, (now, head.last_seq - head.archived_seq))
            if len(rows) < SCANNED_AT_ONCE:
                break
            after = rows[-1].id
            await asyncio.sleep(0)
        for context in list(replica.machine.contexts.values()):
            if self._is_behind(context.head):
                led.behind.setdefault(context.id, (now, context.head.last_seq - context.head.archived_seq))
        led.is_scanned = True

    def _is_behind(self, head: Head) -> bool:
        """Whether the archive lacks anything of a context, or the context has something to lose to it."""
        return (
            head.archived_seq < head.last_seq
            or head.archived_revision < head.revision
            or self._trim_to(head, head.archived_seq) > head.trimmed_seq
        )

    def _trim_to(self, head: Head, archived_seq: int) -> int:
        """Up to where messages may leave the hot store once the archive has them up to `archived_seq`."""
        keep = self._options.tail_keep
        return head.trimmed_seq if keep is None else max(head.trimmed_seq, min(archived_seq, head.last_seq - keep))

    async def _copy(self, replica: Replica, led: _Led) -> bool:
        batch = self._batch(replica, led)
        if not batch.marks:
            return False
        await self._archive.write(replica.shard, led.term, batch.messages, batch.contexts)
        # Only now: what Postgres has not committed is not confirmed, and what is not confirmed is not trimmed (H6).
        accepted(await replica.propose(NoteArchived(self._now_ms(), tuple(batch.marks))))
        self.counters.batches += 1
        self.counters.messages += len(batch.messages)
        self.counters.bytes += batch.bytes
        self.counters.trimmed += batch.trimmed
        for mark in batch.marks:
            self._settle(replica, led, mark.context_id)
        return batch.is_full(self._options)

    def _settle(self, replica: Replica, led: _Led, context_id: str) -> None:
        """A context has been copied up to its mark; more may have come meanwhile."""
        context = replica.context(context_id)
        if context is None or not self._is_behind(context.head):
            led.behind.pop(context_id, None)
        else:
            led.behind[context_id] = self._loop.time(), context.head.last_seq - context.head.archived_seq

    def _batch(self, replica: Replica, led: _Led) -> "_Batch":
        """What comes next, context by context, those first that have waited longest."""
        batch = _Batch()
        for context_id in list(led.behind):
            if batch.is_full(self._options):
                break
            context = replica.context(context_id)
            if context is None or not self._is_behind(context.head):
                led.behind.pop(context_id, None)
                continue
            head = context.head
            last = min(head.last_seq, head.archived_seq + self._options.batch_messages - len(batch.messages))
            copied = batch.take(replica, context, last, self._options.batch_bytes)
            trim_to = min(self._trim_to(head, copied), head.trimmed_seq + TRIMMED_AT_ONCE - batch.trimmed)
            batch.trimmed += trim_to - head.trimmed_seq
            batch.contexts.append(context_row(context, copied))
            batch.marks.append(Archived(context_id, head.incarnation, copied, head.revision, trim_to))
        return batch

    async def _erase(self, replica: Replica, led: _Led) -> None:
        purged = list(replica.machine.erasures)[: self._options.batch_messages]
        if purged:
            await self._archive.erase(replica.shard, led.term, purged)
            accepted(await replica.propose(NoteArchived(self._now_ms(), erased=tuple(purged))))
            self.counters.erased += len(purged)


@dataclass(slots=True)
class _Batch:
    """What goes to the archive in one transaction, and what is noted of it once it is there."""

    messages: list[ArchivedMessage] = field(default_factory=list)
    contexts: list[ArchivedContext] = field(default_factory=list)
    marks: list[Archived] = field(default_factory=list)
    bytes: int = 0
    trimmed: int = 0

    def is_full(self, options: ArchiverOptions) -> bool:
        return (
            len(self.messages) >= options.batch_messages
            or len(self.contexts) >= options.batch_messages
            or self.bytes >= options.batch_bytes
            or self.trimmed >= TRIMMED_AT_ONCE
        )

    def take(self, replica: Replica, context: Context, last: int, bytes_max: int) -> int:
        """Add a context's messages up to `last`, or fewer if they are large; up to where they were added."""
        head = context.head
        copied = head.archived_seq
        taken = []
        for one in hot_rows(replica, context, head.archived_seq + 1, last):
            taken.append((one, told_of(one.body)))
            copied = one.seq
            self.bytes += len(one.body)
            if self.bytes >= bytes_max:
                break
        remembered = _remembered(replica, context, [told.id for _, told in taken if told.id is not None])
        self.messages += [
            message_row(context.id, head.incarnation, one.seq, one.body, one.info, told, remembered.get(told.id) if told.id else None)
            for one, told in taken
        ]
        return copied


def _remembered(replica: Replica, context: Context, ids: list[str]) -> dict[str, IdRow]:
    """What message ids remember."""
    fresh = context.fresh_ids
    stored = replica.store.message_ids(context.ordinal, [one for one in ids if one not in fresh])
    return {**{row[0]: IdRow(*row[1:]) for row in stored}, **{one: fresh[one] for one in ids if one in fresh}}


async def gathered(work: list[Coroutine[Any, Any, bool]]) -> list[bool]:
    """The results of all; once all have ended, what the first of those raised that failed."""
    results = await asyncio.gather(*work, return_exceptions=True)
    for error in _errors(results):
        raise error
    return [bool(result) for result in results]


def _errors(results: list[Any]) -> Iterator[BaseException]:
    return (result for result in results if isinstance(result, BaseException))
