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

from context_node.archive.backlog import Backlog
from context_node.archive.postgres import ArchivedContext, ArchivedMessage, ArchiveError, Fenced
from context_node.contexts.commands import Archived, NoteArchived
from context_node.contexts.machine import Event
from context_node.contexts.refusals import Refusal
from context_node.runtime.archive_view import ArchiveView
from context_node.runtime.databases import StorageError
from context_node.runtime.reads import history
from context_node.runtime.replica import Replica
from context_node.runtime.shards import SYSTEM_SHARD, ShardDirectory, accepted

logger = logging.getLogger("contextstore.archive")

SCANNED_AT_ONCE = 200
"""Contexts of a shard that a new leader looks at before it lets others in."""

BATCH_BYTES = 8 << 20
BACKOFF_MIN_S, BACKOFF_MAX_S = 0.5, 60.0

STOCK_S = 1.0
"""How often it is seen what waits while Postgres is not to be asked yet."""

PING_S = 10.0
"""After so long without a batch it is asked whether Postgres is there at all: that is better known before it is needed."""

LATE_ENDS = 0.75
"""The archive is late no more below this share of `lag_warn_bytes`: at the edge it must not warn again and again."""


class Archive(Protocol):
    """What `postgres.Postgres` does."""

    async def open(self, cluster_id: str) -> None: ...
    async def close(self) -> None: ...
    async def ping(self) -> None: ...
    async def write(self, shard: int, term: int, messages: list[ArchivedMessage], contexts: list[ArchivedContext]) -> None: ...
    async def erase(self, shard: int, term: int, contexts: list[tuple[str, int]]) -> None: ...


@dataclass(frozen=True, slots=True)
class ArchiverOptions:
    """Every `flush_s` what has come is copied, `batch_messages` at most in one transaction; `shards_at_once` write beside each other. With
    more than `lag_warn_bytes` waiting the archive counts as late, however well Postgres answers."""

    flush_s: float = 1.0
    batch_messages: int = 1_000
    lag_warn_bytes: int = 1 << 30
    shards_at_once: int = 4


@dataclass(slots=True)
class ArchiveCounters:
    """What metrics tell. `failures` by cause; `cause` is that of the last turn, empty if it went well."""

    messages: int = 0
    bytes: int = 0
    batches: int = 0
    erased: int = 0
    failures: dict[str, int] = field(default_factory=dict)
    is_healthy: bool = False
    is_late: bool = False
    cause: str = "connecting"
    reason: str = "It has not been connected yet."


@dataclass(slots=True)
class _Led:
    """A shard that this node leads: the term, and what waits to be archived."""

    term: int
    behind: Backlog
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
        self._is_open = False
        self._backoff_s = BACKOFF_MIN_S
        self._retry_at = self._ping_at = 0.0

    def note(self, replica: Replica, event: Event) -> None:
        """Something happened in a shard. Cheap: it is called for every message."""
        led = self._led.get(replica.shard)
        if led is None:
            return
        if event.kind == "message":
            led.behind.came(event.context_id, event.bodies)
        elif event.kind == "purged":
            led.behind.drop(event.context_id)

    @property
    def lag_messages(self) -> int:
        """Messages of the shards led here that the archive does not have yet."""
        return sum(behind.messages for behind in self._behind())

    @property
    def lag_bytes(self) -> int:
        """Bytes of those messages."""
        return sum(behind.bytes for behind in self._behind())

    @property
    def lag_s(self) -> float:
        """Age of the oldest of them, whoever led its shard when it came."""
        oldest = min((since for behind in self._behind() if (since := behind.oldest_ms) is not None), default=None)
        return 0.0 if oldest is None else max(0.0, (self._now_ms() - oldest) / 1000)

    def _behind(self) -> Iterator[Backlog]:
        """What waits, by shard. Not of shards that another node leads by now, which tells of them itself."""
        for shard, led in self._led.items():
            replica = self._shards.held(shard)
            if replica is not None and self._is_led(replica):
                yield led.behind

    def health(self) -> ArchiveView:
        """For administrators."""
        counters = self.counters
        cause, reason = counters.cause, counters.reason
        if not cause and counters.is_late:
            cause = "late"
            reason = f"Messages come faster than Postgres takes them: more than {self._options.lag_warn_bytes} bytes wait."
        return ArchiveView(not cause, counters.is_late, cause, reason, self.lag_messages, self.lag_bytes, round(self.lag_s, 3))

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
        counters.is_healthy, counters.cause, counters.reason = False, error.cause, str(error)
        # Whatever it was, a new connection is the best that can be tried.
        self._is_open = False
        pause_s = self._backoff_s * (0.5 + self._jitter() / 2)
        self._retry_at = self._loop.time() + pause_s
        self._backoff_s = min(2 * self._backoff_s, BACKOFF_MAX_S)
        await asyncio.sleep(min(pause_s, STOCK_S))

    async def _round(self) -> bool:
        """One turn of every shard that is led here; whether some have more. Raises `ArchiveError`."""
        led = await self._take_stock()
        if (left_s := self._retry_at - self._loop.time()) > 0:
            await asyncio.sleep(min(left_s, STOCK_S))
            return True
        if not self._is_open:
            await self._archive.open(self._cluster_id())
            self._is_open = True
        free = asyncio.Semaphore(self._options.shards_at_once)

        async def turn(replica: Replica) -> bool:
            async with free:
                return await self._turn(replica)

        batches = self.counters.batches
        results = await gathered([turn(replica) for replica in led])
        if self.counters.batches == batches and self._loop.time() > self._ping_at:
            await self._archive.ping()
            batches -= 1
        if self.counters.batches > batches:
            self._ping_at = self._loop.time() + PING_S
        self._backoff_s = BACKOFF_MIN_S
        if not self.counters.is_healthy:
            logger.info("the archive is connected")
        self.counters.is_healthy, self.counters.cause, self.counters.reason = True, "", ""
        return any(results)

    async def _take_stock(self) -> list[Replica]:
        """The shards that are led here, and what of them waits: known however Postgres does, since it is its absence that fills disks."""
        led = {replica.shard: replica for replica in self._shards.all() if replica.shard != SYSTEM_SHARD and self._is_led(replica)}
        for shard in self._led.keys() - led.keys():
            del self._led[shard]
        for replica in led.values():
            term = replica.group.status().term
            known = self._led.get(replica.shard)
            if known is None or known.term != term:
                known = self._led[replica.shard] = _Led(term, Backlog(self._now_ms))
            if not known.is_scanned:
                try:
                    await self._scan(replica, known)
                except StorageError as error:
                    logger.info("shard %d is archived later: %s", replica.shard, error)
        self._tell_if_late()
        return list(led.values())

    def _tell_if_late(self) -> None:
        counters, waiting, most = self.counters, self.lag_bytes, self._options.lag_warn_bytes
        if not counters.is_late and waiting > most:
            logger.warning(
                "the archive is late: %d bytes wait, more than archive_lag_warn_bytes; until they are copied disks fill", waiting
            )
            counters.is_late = True
        elif counters.is_late and waiting <= LATE_ENDS * most:
            logger.info("the archive is not late any more: %d bytes wait", waiting)
            counters.is_late = False

    @staticmethod
    def _is_led(replica: Replica) -> bool:
        return replica.failure is None and replica.group.is_leader

    # --- one shard ------------------------------------------------------------------------------------------------------

    async def _turn(self, replica: Replica) -> bool:
        """Copy one batch of a shard, and erase what was purged; whether there is more."""
        led = self._led.get(replica.shard)
        if led is None or not led.is_scanned or led.term != replica.group.status().term:
            # What is led has changed since stock was taken.
            return False
        try:
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
        # First those in memory: one that is not stored yet when its turn comes is noted, and one that is stored by then is on a page.
        contexts = replica.machine.contexts
        for place, context_id in enumerate(list(contexts), 1):
            if (context := contexts.get(context_id)) is not None:
                led.behind.find(replica, context)
            if place % SCANNED_AT_ONCE == 0:
                await asyncio.sleep(0)
        after = ""
        while rows := replica.store.list_contexts(after=after, limit=SCANNED_AT_ONCE):
            for row in rows:
                if (context := contexts.get(row.id)) is not None:
                    led.behind.find(replica, context)
                elif row.ordinal not in replica.machine.changes.purged:
                    led.behind.find_stored(replica, row)
            after = rows[-1].id
            await asyncio.sleep(0)
        led.is_scanned = True

    async def _copy(self, replica: Replica, led: _Led) -> bool:
        messages, marks = self._batch(replica, led)
        if not marks:
            return False
        await self._archive.write(replica.shard, led.term, messages, marks)
        noted = tuple(Archived(one.context_id, one.incarnation, one.seq) for one in marks)
        accepted(await replica.propose(NoteArchived(self._now_ms(), noted)))
        self.counters.batches += 1
        self.counters.messages += len(messages)
        self.counters.bytes += sum(len(one.raw) for one in messages)
        sizes: dict[str, int] = {}
        for message in messages:
            sizes[message.context_id] = sizes.get(message.context_id, 0) + len(message.raw)
        for mark in marks:
            led.behind.copied(replica, replica.context(mark.context_id), mark.context_id, sizes.get(mark.context_id, 0))
        return len(messages) >= self._options.batch_messages or sum(len(one.raw) for one in messages) >= BATCH_BYTES

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
                led.behind.drop(context_id)
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

    async def _erase(self, replica: Replica, led: _Led) -> None:
        purged = list(replica.machine.erasures)[: self._options.batch_messages]
        if purged:
            await self._archive.erase(replica.shard, led.term, purged)
            accepted(await replica.propose(NoteArchived(self._now_ms(), erased=tuple(purged))))
            self.counters.erased += len(purged)


async def gathered(work: list[Coroutine[Any, Any, bool]]) -> list[bool]:
    """The results of all; once all have ended, what the first of those raised that failed."""
    results = await asyncio.gather(*work, return_exceptions=True)
    for error in _errors(results):
        raise error
    return [bool(result) for result in results]


def _errors(results: list[Any]) -> Iterator[BaseException]:
    return (result for result in results if isinstance(result, BaseException))
