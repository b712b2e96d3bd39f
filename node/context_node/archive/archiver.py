"""Who copies to the archive, and when: each shard's leader, in order, without gaps.

Knows replicas and the archive's calls. Does not know SQL. A batch is written, then its marks go through the shard's own log
(`NoteArchived`), so a new leader goes on exactly behind what was confirmed; what an old one wrote beyond that is met again and left as it
is. Invariants: nothing is marked before Postgres has committed it; the archive's trouble never reaches a write, it only makes the archive
late; a shard's trouble makes only that shard late.
"""

import asyncio
import logging
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from context_node.archive.backlog import Backlog
from context_node.archive.batches import BatchLimits
from context_node.archive.copying import Archive, ArchiveCounters, Copier, Led, Turn
from context_node.archive.errors import ArchiveError
from context_node.contexts.machine import Event
from context_node.runtime.archive_view import ArchiveView
from context_node.runtime.databases import StorageError
from context_node.runtime.replica import Replica
from context_node.runtime.shards import ShardDirectory

logger = logging.getLogger("contextstore.archive")

SCANNED_AT_ONCE = 200
"""Contexts of a shard that a new leader looks at before it lets others in."""

BACKOFF_MIN_S, BACKOFF_MAX_S = 0.5, 60.0

SPREAD, SPREAD_MAX_S = 0.8, 5.0
"""The turns of a round begin over this share of the flush interval, or of so many seconds."""

BATCHES_AT_ONCE = 4
"""So many batches a shard goes on for by itself if it has more. Only with still more behind them the node comes again at once, to all its
shards and without spreading their turns."""

SHARDS_OWN = frozenset({"differs", "fenced"})
"""Troubles with one shard's rows: whatever the others do, neither another connection nor waiting of the whole node helps."""

TOLD_MAX = 100
"""So many different troubles are remembered as told; Postgres may put numbers into its words."""

STOCK_S = 1.0
"""How often it is seen what waits while Postgres is not to be asked yet."""

PING_S = 10.0
"""After so long without a batch it is asked whether Postgres is there at all: that is better known before it is needed."""

LATE_ENDS = 0.75
"""The archive is late no more below this share of `lag_warn_bytes`: at the edge it must not warn again and again."""


@dataclass(frozen=True, slots=True)
class ArchiverOptions:
    """Every `flush_s` what has come is copied; `shards_at_once` write beside each other. With more than `lag_warn_bytes` waiting the
    archive counts as late, however well Postgres answers."""

    flush_s: float = 5.0
    limits: BatchLimits = field(default_factory=BatchLimits)
    lag_warn_bytes: int = 1 << 30
    shards_at_once: int = 4


@dataclass(slots=True)
class _Late:
    """A shard whose turn failed though others' went well, or its own batches before: when it is tried again, by the loop's clock, and how
    long it waits for that; and what was told of it."""

    again_at: float
    waited_s: float
    told: str


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
        self._led: dict[int, Led] = {}
        self._turns: dict[int, asyncio.Task[Turn]] = {}
        """Under way, by shard: one that waits for Postgres does not keep the others from their next."""
        self._late: dict[int, _Late] = {}
        self._free = asyncio.Semaphore(options.shards_at_once)
        self._loop = asyncio.get_running_loop()
        self._copier = Copier(archive, self.counters, options.limits, now_ms)
        self._is_open = False
        self._has_more = False
        self._told: set[str] = set()
        """What the log said since all was well: once is enough, also where shards have different troubles."""
        self._backoff_s = BACKOFF_MIN_S
        self._retry_at = self._ping_at = 0.0

    def note(self, replica: Replica, event: Event) -> None:
        """Something happened in a shard. Cheap: it is called for every message."""
        led = self._led.get(replica.shard)
        if led is None:
            return
        if event.kind == "purged":
            led.forget(event.context_id)
        else:
            led.came(event.context_id, event.bodies)

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

    @property
    def lost_contexts(self) -> int:
        """Contexts of which the archive lost messages that are nowhere else."""
        return sum(len(led.lost) for led in self._led.values())

    def _behind(self) -> Iterator[Backlog]:
        """What waits, by shard. Not of shards that another node leads by now, which tells of them itself."""
        for shard, led in self._led.items():
            replica = self._shards.held(shard)
            if replica is not None and is_led(replica):
                yield led.waiting

    def health(self) -> ArchiveView:
        """For administrators."""
        counters = self.counters
        cause, reason = counters.cause, counters.reason
        # First, since what it lacks waits for ever, and is late some day.
        if not cause and (lost := self.lost_contexts):
            cause = "hole"
            reason = f"The archive lost trimmed messages of {lost} contexts, which the log names: bring its rows back."
        if not cause and counters.is_late:
            cause = "late"
            reason = f"Messages come faster than Postgres takes them: more than {self._options.lag_warn_bytes} bytes wait."
        return ArchiveView(not cause, counters.is_late, cause, reason, self.lag_messages, self.lag_bytes, round(self.lag_s, 3))

    # --- the loop -------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until cancelled."""
        try:
            while True:
                began = self._loop.time()
                try:
                    self._has_more = await self._round()
                except Exception as error:
                    await self._fail(told(error))
                else:
                    if not self._has_more:
                        await asyncio.sleep(max(0.0, began + self._options.flush_s - self._loop.time()))
        finally:
            await self._end_turns()
            await self._archive.close()

    async def _fail(self, error: ArchiveError) -> None:
        self._count(error)
        # Whatever it was, a new connection is the best that can be tried.
        await self._end_turns()
        self._is_open = False
        pause_s = self._backoff_s * (0.5 + self._jitter() / 2)
        self._retry_at = self._loop.time() + pause_s
        self._backoff_s = min(2 * self._backoff_s, BACKOFF_MAX_S)
        await asyncio.sleep(min(pause_s, STOCK_S))

    def _count(self, error: ArchiveError) -> None:
        counters = self.counters
        counters.failures[error.cause] = counters.failures.get(error.cause, 0) + 1
        if str(error) not in self._told:
            if len(self._told) >= TOLD_MAX:
                self._told.clear()
            self._told.add(str(error))
            logger.warning("the archive is late: %s", error)
        counters.is_healthy, counters.cause, counters.reason = False, error.cause, str(error)

    async def _end_turns(self) -> None:
        for task in self._turns.values():
            task.cancel()
        await asyncio.gather(*self._turns.values(), return_exceptions=True)
        self._turns.clear()

    async def _round(self) -> bool:
        """A turn of every shard that is led here and is not in one still; whether to come again at once. Raises what went wrong in a turn,
        if nothing reached the archive in any of them and it is no trouble of a shard's own."""
        led = await self._take_stock()
        if (left_s := self._retry_at - self._loop.time()) > 0:
            await asyncio.sleep(min(left_s, STOCK_S))
            return True
        if not self._is_open:
            self._copier.archive_id = await self._archive.open(self._cluster_id())
            self._is_open = True
        self._begin_turns(led)
        if self._turns:
            await asyncio.wait(self._turns.values(), timeout=self._options.flush_s)
        done = {shard: self._turns.pop(shard) for shard, task in list(self._turns.items()) if task.done()}
        # Cancelled by the end of what it waited for: its shard is closing.
        ended = {shard: task.result() for shard, task in done.items() if not task.cancelled()}
        has_written = any(turn.has_written for turn in ended.values())
        errors = [turn.error for turn in ended.values() if turn.error is not None]
        shared = [error for error in errors if not (isinstance(error, ArchiveError) and error.cause in SHARDS_OWN)]
        if shared and not has_written:
            raise shared[0]
        await self._look_after_connection(has_written)
        self._note_late(ended)
        # What is over may be told when it comes again.
        self._told.intersection_update({late.told for late in self._late.values()})
        if not self._late:
            if not self.counters.is_healthy:
                logger.info("the archive is connected")
            self.counters.is_healthy, self.counters.cause, self.counters.reason = True, "", ""
        return any(turn.has_more for turn in ended.values())

    def _begin_turns(self, led: dict[int, Replica]) -> None:
        for shard in self._late.keys() - led.keys():
            del self._late[shard]
        now = self._loop.time()
        due = [shard for shard in led if shard not in self._turns and ((late := self._late.get(shard)) is None or late.again_at <= now)]
        # Not all at once: who writes meanwhile would wait behind every shard's batch, and their marks' entries, instead of one's.
        spread_s = 0.0 if self._has_more else SPREAD * min(self._options.flush_s, SPREAD_MAX_S)
        for place, shard in enumerate(due):
            turn = self._turn(led[shard], spread_s * place / len(due))
            self._turns[shard] = asyncio.create_task(turn, name=f"archive-{shard}")

    async def _look_after_connection(self, has_written: bool) -> None:
        if not has_written:
            if self._loop.time() <= self._ping_at:
                return
            await self._archive.ping()
        self._backoff_s = BACKOFF_MIN_S
        self._ping_at = self._loop.time() + PING_S

    def _note_late(self, turns: dict[int, Turn]) -> None:
        for shard, turn in turns.items():
            if turn.error is None:
                self._late.pop(shard, None)
                continue
            trouble = told(turn.error)
            self._count(trouble)
            before = self._late.get(shard)
            # One that gets on, if only a little, does not wait longer and longer.
            wait_s = BACKOFF_MIN_S if before is None or turn.has_written else min(2 * before.waited_s, BACKOFF_MAX_S)
            self._late[shard] = _Late(self._loop.time() + wait_s * (0.5 + self._jitter() / 2), wait_s, str(trouble))

    async def _take_stock(self) -> dict[int, Replica]:
        """The shards that are led here, and what of them waits: known however Postgres does, since it is its absence that fills disks."""
        # Before it has applied an entry of its own term, a new leader may not know which archive its shard uses.
        led = {one.shard: one for one in self._shards.all() if is_led(one) and one.applied_term == one.group.term}
        for shard in self._led.keys() - led.keys():
            del self._led[shard]
        for replica in led.values():
            if not is_led(replica):
                continue  # no more, while another was looked through
            term = replica.group.term
            known = self._led.get(replica.shard)
            if known is None or known.is_over or known.term != term:
                # Told until this is looked through: or nothing would seem to wait.
                before = None if known is None else known.waiting
                behind = Backlog(self._now_ms, self._options.limits.is_behind)
                known = self._led[replica.shard] = Led(term, behind, before=before)
            if not known.is_scanned:
                try:
                    await self._scan(replica, known)
                except StorageError as error:
                    logger.info("shard %d is archived later: %s", replica.shard, error)
        self._tell_if_late()
        return led

    async def _scan(self, replica: Replica, led: Led) -> None:
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
        led.is_scanned, led.before = True, None

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

    async def _turn(self, replica: Replica, after_s: float) -> Turn:
        await asyncio.sleep(after_s)
        has_written = has_more = False
        for _ in range(BATCHES_AT_ONCE):
            try:
                turn = await self._batch(replica)
            except Exception as error:
                return Turn(has_written, error=error)
            has_written, has_more = has_written or turn.has_written, turn.has_more
            # What is led anew is looked through first.
            if not has_more or (led := self._led.get(replica.shard)) is None or led.is_over:
                break
        return Turn(has_written, has_more)

    async def _batch(self, replica: Replica) -> Turn:
        async with self._free:
            led = self._led.get(replica.shard)
            if led is None or led.is_over or not led.is_scanned or not is_led(replica) or led.term != replica.group.term:
                # What is led has changed since stock was taken.
                return Turn()
            return await self._copier.turn(replica, led)


def is_led(replica: Replica) -> bool:
    """Whether this node leads the replica's shard."""
    return replica.leads


def told(error: BaseException) -> ArchiveError:
    """What stopped a turn, as an `ArchiveError`. Whatever it is, the node serves on: the archive is never what it depends on."""
    if isinstance(error, ArchiveError):
        return error
    # Where it happened and what it is, not its words: they may quote a URI or a message.
    where = "".join(traceback.format_tb(error.__traceback__))
    logger.error("the archive met something unexpected: %s\n%s", type(error).__name__, where)
    return ArchiveError("unexpected", f"unexpected {type(error).__name__}; see the log")
