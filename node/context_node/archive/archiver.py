"""What is copied to the archive, when, and by whom: for each shard by its leader, in order, without gaps.

Knows replicas and the archive's calls. Does not know SQL. A batch is written, then its marks go through the shard's own log
(`NoteArchived`), so a new leader goes on exactly behind what was confirmed; what an old one wrote beyond that is met again and left as it
is. Invariants: nothing is marked before Postgres has committed it; a context's messages are copied in order of seq; the archive's trouble
never reaches a write, it only makes the archive late; a shard's trouble makes only that shard late.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from context_node.archive.postgres import ArchivedContext, ArchivedMessage, ArchiveError, Fenced
from context_node.contexts.commands import Archived, NoteArchived
from context_node.contexts.context import read_head
from context_node.contexts.machine import Event
from context_node.contexts.refusals import Refusal
from context_node.runtime.databases import StorageError
from context_node.runtime.reads import history
from context_node.runtime.replica import Replica
from context_node.runtime.shards import SYSTEM_SHARD, ShardDirectory, accepted

logger = logging.getLogger("contextstore.archive")

SCANNED_AT_ONCE = 200
"""Contexts of a shard that a new leader looks at before it lets others in."""

BATCH_BYTES = 8 << 20
BACKOFF_MIN_S, BACKOFF_MAX_S = 0.5, 60.0


class Archive(Protocol):
    """What `postgres.Postgres` does."""

    async def open(self, cluster_id: str) -> None: ...
    async def close(self) -> None: ...
    async def write(self, shard: int, term: int, messages: list[ArchivedMessage], contexts: list[ArchivedContext]) -> None: ...
    async def erase(self, shard: int, term: int, contexts: list[tuple[str, int]]) -> None: ...


@dataclass(frozen=True, slots=True)
class ArchiverOptions:
    """Every `flush_s` what has come is copied, `batch_messages` at most in one transaction; `shards_at_once` write beside each other."""

    flush_s: float = 1.0
    batch_messages: int = 1_000
    shards_at_once: int = 4


@dataclass(slots=True)
class ArchiveCounters:
    """What metrics tell. `failures` by cause."""

    messages: int = 0
    bytes: int = 0
    batches: int = 0
    erased: int = 0
    failures: dict[str, int] = field(default_factory=dict)
    is_healthy: bool = False
    reason: str = "It has not been connected yet."


@dataclass(frozen=True, slots=True)
class Turn:
    """How a shard's turn went: whether the archive took something, and whether there is more."""

    has_written: bool
    has_more: bool


@dataclass(slots=True)
class _Led:
    """A shard that this node leads: the term, and by context since when it has messages that are not archived, and how many."""

    term: int
    behind: dict[str, tuple[float, int]] = field(default_factory=dict)
    is_scanned: bool = False


@dataclass(slots=True)
class _Late:
    """A shard whose turn failed though others' went well: when it is tried again, by the loop's clock, and how long it waited for that."""

    again_at: float
    waited_s: float


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
        self._turns: dict[int, asyncio.Task[Turn]] = {}
        """Under way, by shard: one that waits for Postgres does not keep the others from their next."""
        self._late: dict[int, _Late] = {}
        self._free = asyncio.Semaphore(options.shards_at_once)
        self._loop = asyncio.get_running_loop()
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
                    has_more = await self._round()
                except Exception as error:
                    await self._fail(told(error))
                else:
                    if not has_more:
                        await asyncio.sleep(self._options.flush_s)
        finally:
            await self._end_turns()
            await self._archive.close()

    async def _fail(self, error: ArchiveError) -> None:
        self._count(error)
        # Whatever it was, a new connection is the best that can be tried.
        await self._end_turns()
        self._is_open = False
        await asyncio.sleep(self._backoff_s * (0.5 + self._jitter() / 2))
        self._backoff_s = min(2 * self._backoff_s, BACKOFF_MAX_S)

    def _count(self, error: ArchiveError) -> None:
        counters = self.counters
        counters.failures[error.cause] = counters.failures.get(error.cause, 0) + 1
        if counters.is_healthy or counters.reason != str(error):
            logger.warning("the archive is late: %s", error)
        counters.is_healthy, counters.reason = False, str(error)

    async def _end_turns(self) -> None:
        for task in self._turns.values():
            task.cancel()
        await asyncio.gather(*self._turns.values(), return_exceptions=True)
        self._turns.clear()

    async def _round(self) -> bool:
        """A turn of every shard that is led here and is not in one still; whether some have more. Raises what the turns raised, if not one
        that reached the archive went well."""
        if not self._is_open:
            await self._archive.open(self._cluster_id())
            self._is_open = True
        led = {replica.shard: replica for replica in self._shards.all() if replica.shard != SYSTEM_SHARD and self._is_led(replica)}
        for shard in self._led.keys() - led.keys():
            del self._led[shard]
        for shard in self._late.keys() - led.keys():
            del self._late[shard]
        now = self._loop.time()
        for shard, replica in led.items():
            late = self._late.get(shard)
            if shard not in self._turns and (late is None or late.again_at <= now):
                self._turns[shard] = asyncio.create_task(self._turn(replica), name=f"archive-{shard}")
        if self._turns:
            await asyncio.wait(self._turns.values(), timeout=self._options.flush_s)
        done = {shard: self._turns.pop(shard) for shard, task in list(self._turns.items()) if task.done()}
        # Cancelled by the end of what it waited for: its shard is closing.
        ended = {shard: task for shard, task in done.items() if not task.cancelled()}
        errors = {shard: error for shard, task in ended.items() if (error := task.exception()) is not None}
        results = {shard: task.result() for shard, task in ended.items() if shard not in errors}
        if errors and not any(result.has_written for result in results.values()):
            raise next(iter(errors.values()))
        self._backoff_s = BACKOFF_MIN_S
        self._note_late(errors, results)
        if not self._late:
            if not self.counters.is_healthy:
                logger.info("the archive is connected")
            self.counters.is_healthy, self.counters.reason = True, ""
        return any(result.has_more for result in results.values())

    def _note_late(self, errors: dict[int, BaseException], results: "dict[int, Turn]") -> None:
        for shard in results:
            self._late.pop(shard, None)
        for shard, error in errors.items():
            self._count(told(error))
            before = self._late.get(shard)
            wait_s = BACKOFF_MIN_S if before is None else min(2 * before.waited_s, BACKOFF_MAX_S)
            self._late[shard] = _Late(self._loop.time() + wait_s * (0.5 + self._jitter() / 2), wait_s)

    @staticmethod
    def _is_led(replica: Replica) -> bool:
        return replica.failure is None and replica.group.is_leader

    # --- one shard ------------------------------------------------------------------------------------------------------

    async def _turn(self, replica: Replica) -> Turn:
        """Copy one batch of a shard, and erase what was purged."""
        async with self._free:
            term = replica.group.status().term
            led = self._led.get(replica.shard)
            if led is None or led.term != term:
                led = self._led[replica.shard] = _Led(term)
            try:
                if not led.is_scanned:
                    await self._scan(replica, led)
                copied = await self._copy(replica, led)
                has_erased = await self._erase(replica, led)
            except Fenced:
                # Whoever leads now does it. If it is this node after all, its term is a newer one soon.
                self._led.pop(replica.shard, None)
                return Turn(has_written=True, has_more=False)
            except (Refusal, StorageError) as error:
                logger.info("shard %d is archived later: %s", replica.shard, error)
                return Turn(has_written=False, has_more=False)
            return Turn(copied.has_written or has_erased, copied.has_more)

    async def _scan(self, replica: Replica, led: _Led) -> None:
        """Find what is not archived: a leader that was none before does not know."""
        now, after = self._loop.time(), ""
        while True:
            rows = replica.store.list_contexts(after=after, limit=SCANNED_AT_ONCE)
            for row in rows:
                head = read_head(row.record)
                if head.archived_seq < head.last_seq and row.id not in replica.machine.contexts:
                    led.behind.setdefault(row.id, (now, head.last_seq - head.archived_seq))
            if len(rows) < SCANNED_AT_ONCE:
                break
            after = rows[-1].id
            await asyncio.sleep(0)
        for context in list(replica.machine.contexts.values()):
            if context.head.archived_seq < context.head.last_seq:
                led.behind.setdefault(context.id, (now, context.head.last_seq - context.head.archived_seq))
        led.is_scanned = True

    async def _copy(self, replica: Replica, led: _Led) -> Turn:
        messages, marks = self._batch(replica, led)
        if not marks:
            return Turn(has_written=False, has_more=False)
        await self._archive.write(replica.shard, led.term, messages, marks)
        noted = tuple(Archived(one.context_id, one.incarnation, one.seq) for one in marks)
        accepted(await replica.propose(NoteArchived(self._now_ms(), noted)))
        self.counters.batches += 1
        self.counters.messages += len(messages)
        self.counters.bytes += sum(len(one.raw) for one in messages)
        for mark in marks:
            self._settle(replica, led, mark.context_id)
        is_full = len(messages) >= self._options.batch_messages or sum(len(one.raw) for one in messages) >= BATCH_BYTES
        return Turn(has_written=True, has_more=is_full)

    def _settle(self, replica: Replica, led: _Led, context_id: str) -> None:
        """A context has been copied up to its mark; more may have come meanwhile."""
        context = replica.context(context_id)
        left = 0 if context is None else context.head.last_seq - context.head.archived_seq
        if left <= 0:
            led.behind.pop(context_id, None)
        else:
            led.behind[context_id] = self._loop.time(), left

    def _batch(self, replica: Replica, led: _Led) -> tuple[list[ArchivedMessage], list[ArchivedContext]]:
        """The next messages, context by context, those first that have waited longest."""
        messages: list[ArchivedMessage] = []
        marks: list[ArchivedContext] = []
        size = 0
        for context_id in list(led.behind):
            room = self._options.batch_messages - len(messages)
            if room <= 0 or size >= BATCH_BYTES:
                break
            context = replica.context(context_id)
            if context is None or context.head.archived_seq >= context.head.last_seq:
                led.behind.pop(context_id, None)
                continue
            head = context.head
            last = min(head.last_seq, head.archived_seq + room)
            copied = head.archived_seq
            for seq, body in history(replica, context, head.archived_seq + 1, last):
                messages.append(ArchivedMessage(context_id, head.incarnation, seq, bytes(body)))
                copied, size = seq, size + len(body)
                if size >= BATCH_BYTES:
                    break
            marks.append(ArchivedContext(context_id, head.incarnation, copied))
        return messages, marks

    async def _erase(self, replica: Replica, led: _Led) -> bool:
        """Whether there was something to erase."""
        purged = list(replica.machine.erasures)[: self._options.batch_messages]
        if purged:
            await self._archive.erase(replica.shard, led.term, purged)
            accepted(await replica.propose(NoteArchived(self._now_ms(), erased=tuple(purged))))
            self.counters.erased += len(purged)
        return bool(purged)


def told(error: BaseException) -> ArchiveError:
    """What stopped a turn, as an `ArchiveError`. Whatever it is, the node serves on: the archive is never what it depends on."""
    if isinstance(error, ArchiveError):
        return error
    logger.error("the archive met something unexpected", exc_info=error)
    return ArchiveError("unexpected", f"unexpected {type(error).__name__}; see the log")
