"""What keeps memory, log and databases bounded while nobody waits for it.

Flush (state databases, behind the writes), checkpoint (so that the state is fsynced), truncate (the log below it), forget cold contexts,
and take the bytes of purged contexts out of every file. Invariants: a log is truncated only below an index that the state database has
fsynced (P7); contexts with changes that are not stored stay in memory.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from context_node.contexts.context import Context
from context_node.contexts.refusals import Unavailable
from context_node.runtime.checkpoint_pace import CheckpointPace
from context_node.runtime.databases import StorageError
from context_node.runtime.engine import Engine
from context_node.runtime.flush_pace import FlushPace
from context_node.runtime.log_store import LogStore
from context_node.runtime.replica import Replica
from context_node.runtime.worker import Worker

IDLE_ROUNDS = 5
"""A node where nothing changes is looked at after so many intervals: waking up costs it more than the look does."""

SCRUB_S = 0.01
"""A round scrubs shards for so long, or one. Who writes meanwhile waits behind it at the disk."""

SCRUB_ROUNDS = 32
"""With many shards so many a round that a scrub has about as many rounds: the log, rewritten at its end while nobody commits, holds what
came since each shard's turn."""


@dataclass(frozen=True, slots=True)
class UpkeepLimits:
    """`flush_age_s`: the longest an effect waits in memory; `flush_bytes`: so much in one shard is flushed at once;
    `wal_bytes_max`: so much in the WAL of one shard's database is checkpointed at once;
    `log_bytes_per_shard_max` and `log_bytes_max`: Raft log kept in memory before state is checkpointed and the log truncated;
    `hot_bytes_max`: estimated memory of loaded contexts; `scrub_after_s`: how soon after a purge its bytes leave the files."""

    flush_age_s: float = 5.0
    flush_bytes: int = 4 << 20
    wal_bytes_max: int = 4 << 20
    dirty_bytes_max: int = 128 << 20
    log_bytes_per_shard_max: int = 4 << 20
    log_bytes_max: int = 64 << 20
    hot_bytes_max: int = 128 << 20
    scrub_after_s: float = 60.0
    interval_s: float = 0.1


def context_bytes(context: Context) -> int:
    """Roughly what a loaded context costs in memory: its window's text, and objects around it."""
    return 2_000 + context.window.size_bytes + 700 * len(context.window.items)


class Upkeep:
    """One task per node. `on_error` is told of a state database that fails; the node decides what becomes of it. `phase` is
    `CheckpointPace`'s."""

    def __init__(
        self,
        engine: Engine,
        limits: UpkeepLimits,
        worker: Worker,
        loop: asyncio.AbstractEventLoop,
        on_error: Callable[[StorageError], None],
        phase: float = 0.0,
    ) -> None:
        self.checkpoints = 0
        self.flushes = 0
        self.evicted = 0
        self.scrubs = 0
        self.hot_contexts = 0
        self.hot_bytes = 0
        self.dirty_bytes = 0
        self._engine = engine
        self._limits = limits
        self._worker = worker
        self._loop = loop
        self._on_error = on_error
        self._flush_pace = FlushPace(limits.flush_age_s, limits.flush_bytes)
        self._checkpoint_pace = CheckpointPace(limits.wal_bytes_max, phase)
        self._purged_at: float | None = None
        self._to_scrub: deque[int] | None = None
        """The shards that are left of the scrub that is under way."""
        # Held by whoever goes on with it: of two, one would find no shard left and scrub the log before the other has truncated it.
        self._scrubbing = asyncio.Lock()
        self._at_once = 0
        self._is_complete = True
        self._has_skipped = False
        """Whether the last scrub left out what had failed: not worth another try in this life, but the next one has to."""
        self._rounds = 0
        self._has_changes = False
        self._is_idle = False
        self._progress_seen = (0, 0, 0, 0)
        self._loaded_seen = ((0, 0, 0, 0), 0)

    def note_purge(self) -> None:
        """A context was purged: its bytes are to leave the files soon."""
        if self._purged_at is None:
            self._purged_at = self._loop.time()

    @property
    def is_scrub_due(self) -> bool:
        """Whether bytes of a purged context are still to leave the files."""
        return self._purged_at is not None or self._to_scrub is not None

    @property
    def is_scrubbed(self) -> bool:
        """Whether no file holds bytes of a purged context, for all that this life knows."""
        return not (self.is_scrub_due or self._has_skipped or self._engine.is_failed)

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(self._limits.interval_s * (IDLE_ROUNDS if self._is_idle and self._to_scrub is None else 1))
            try:
                await self.round()
            except StorageError as error:
                self._on_error(error)

    async def round(self) -> None:
        """One look at every shard; does what is due and yields between shards."""
        self._rounds += 1
        progress = self._progress()
        # Where nothing moved and everything is stored there is nothing to do; with many idle shards a look at each costs most.
        self._is_idle = progress == self._progress_seen and not self._has_changes
        if not self._is_idle:
            self._progress_seen = progress
            await self._flush_due()
            await self._checkpoint_due()
            await self._truncate_due()
        if (self._is_idle or self._rounds % IDLE_ROUNDS == 0) and (loaded := (progress, self._loaded())) != self._loaded_seen:
            self._loaded_seen = loaded
            self._forget_cold()
        if not self._scrubbing.locked():
            await self._scrub_if_due()

    def _progress(self) -> tuple[int, int, int, int]:
        """Changes with everything that rounds look at: how far all replicas are."""
        applied = stored = durable = last = 0
        self._has_changes = False
        for replica in self._engine.replicas.values():
            applied += replica.applied_index
            stored += replica.stored_index
            durable += replica.durable_index
            if replica.failure is not None or replica.group.poisoned:
                continue  # nothing of it is stored any more
            last += replica.group.last_index
            self._has_changes |= replica.stored_index < replica.applied_index or replica.durable_index < replica.members_index
        return applied, stored, durable, last

    def _loaded(self) -> int:
        return sum(len(replica.machine.contexts) for replica in self._engine.replicas.values())

    async def _flush_due(self) -> None:
        now = self._loop.time()
        replicas = list(self._engine.replicas.values())
        waiting = [one for one in replicas if one.failure is None and one.has_changes and not one.storing.locked()]
        sizes = [one.machine.changes.pending_bytes for one in waiting]
        self.dirty_bytes = sum(sizes)
        since = [now if one.dirty_since is None else one.dirty_since for one in waiting]
        due = self._flush_pace.due(list(zip(since, sizes, strict=True)), now)
        if sum(one.machine.changes.pending_bytes for one in replicas) > self._limits.dirty_bytes_max:
            due = list(range(len(waiting)))
        for place in due:
            replica = waiting[place]
            # Looked at again: others were let in meanwhile.
            if replica.failure is None and not replica.storing.locked():
                self.dirty_bytes -= sizes[place]
                self.flush(replica)
                # A flush holds the event loop for its rows; let requests in before the next.
                await asyncio.sleep(0)

    def flush(self, replica: Replica) -> None:
        """Write a replica's changes to its database now."""
        if replica.has_changes:
            self.flushes += 1
            replica.flush()

    async def _checkpoint_due(self) -> None:
        waiting = {shard: one.store.wal_bytes for shard, one in self._engine.replicas.items() if one.failure is None}
        for shard in self._checkpoint_pace.due(waiting):
            replica = self._engine.replicas.get(shard)
            if replica is not None and replica.failure is None:
                await self._make_durable(replica)

    async def _truncate_due(self) -> None:
        limits = self._limits
        replicas = [replica for replica in self._engine.replicas.values() if replica.failure is None]
        sizes = sorted(((replica.group.log_bytes, replica.shard, replica) for replica in replicas), reverse=True)
        total = self._watch_log()
        for size, _, replica in sizes:
            if replica.failure is not None:
                continue  # since the checkpoint of another
            kept_max = self._kept_max(total)
            is_long = size > limits.log_bytes_per_shard_max and replica.would_shrink(kept_max, replica.applied_index)
            has_new_members = replica.durable_index < replica.members_index
            if is_long or total > limits.log_bytes_max or has_new_members:
                if has_new_members or not replica.would_shrink(kept_max, replica.durable_index):
                    await self.checkpoint(replica)
                else:
                    self._truncate(replica, keeps_for_others=True)
                total = self._watch_log()

    def _watch_log(self) -> int:
        """The log's bytes in memory. While it is twice as long as it should be, the disk does not keep up: writes are refused (S2)."""
        replicas = self._engine.replicas.values()
        total = sum(replica.log_bytes for replica in replicas)
        is_behind = total > 2 * self._limits.log_bytes_max
        for replica in replicas:
            replica.is_behind = is_behind
        return total

    async def checkpoint(self, replica: Replica, *, keeps_for_others: bool = True) -> bool:
        """Make a replica's state durable and truncate its log below, but for what other members still need. Returns whether the checkpoint
        was complete."""
        async with replica.storing:
            if replica.failure is not None:
                return False
            self.flush(replica)
        if not await self._make_durable(replica):
            return False
        if replica.failure is None:
            self._truncate(replica, keeps_for_others)
        return True

    async def _make_durable(self, replica: Replica) -> bool:
        """Checkpoint what is stored of a replica; whether that was complete."""
        stored = (replica.stored_index, replica.stored_term)
        result = await self._worker.run(replica.store.checkpoint)
        self.checkpoints += 1
        if result.complete:
            replica.durable_index, replica.durable_term = stored
        return bool(result.complete)

    def _truncate(self, replica: Replica, keeps_for_others: bool) -> None:
        with suppress(Unavailable), replica.guarding():
            index, term = replica.durable_index, replica.durable_term
            total = sum(one.log_bytes for one in self._engine.replicas.values())
            if keeps_for_others and (kept := replica.truncation_index(self._kept_max(total))) < index:
                known = replica.group.term_at(kept)
                if known is None:
                    return
                index, term = kept, known
            self._engine.with_log(lambda log: _truncate_log(log, replica, index, term))
            replica.group.compact(index)

    def _kept_max(self, total: int) -> int:
        """How long a replica's log may be for the sake of members that are behind. One that has just got a snapshot needs all that came
        since, or it would need the next one for ever; but all replicas together must stay within the node's share for its log, or writes
        would be refused for what is only kept for others."""
        limits = self._limits
        if total <= limits.log_bytes_max * 3 // 4:
            return limits.log_bytes_max // 2
        return min(limits.log_bytes_per_shard_max, limits.log_bytes_max // max(1, len(self._engine.replicas)))

    def _forget_cold(self) -> None:
        """Drop the contexts that nobody used for longest while too much is in memory."""
        replicas = list(self._engine.replicas.values())
        costs = {replica.shard: sum(map(context_bytes, replica.machine.contexts.values())) for replica in replicas}
        self.hot_bytes = sum(costs.values())
        self.hot_contexts = sum(len(replica.machine.contexts) for replica in replicas)
        if self.hot_bytes <= self._limits.hot_bytes_max:
            return
        keep = self._limits.hot_bytes_max * 8 // 10 // max(1, len(replicas))
        for replica in replicas:
            self._forget(replica, costs[replica.shard] - keep)

    def _forget(self, replica: Replica, excess: int) -> None:
        """A clock: the order of the dict is the ring, and what was used since it was last looked at gets another round."""
        contexts = replica.machine.contexts
        dirty = replica.machine.changes.contexts
        for _ in range(2):
            for context_id in list(contexts):
                if excess <= 0:
                    return
                context = contexts[context_id]
                if context.is_recent:
                    context.is_recent = False
                    contexts[context_id] = contexts.pop(context_id)
                elif context_id not in dirty and context_id not in replica.followed:
                    del contexts[context_id]
                    excess -= context_bytes(context)
                    self.evicted += 1

    async def scrub(self) -> None:
        """Take the bytes of purged contexts out of every database, log and WAL (SEMANTICS.md, "Life of a context"), all at once."""
        async with self._scrubbing:
            self._begin_scrub()
            while self._to_scrub is not None:
                await self._scrub_some(SCRUB_S)

    async def _scrub_if_due(self) -> None:
        async with self._scrubbing:
            if self._to_scrub is None and self._purged_at is not None and self._loop.time() - self._purged_at >= self._limits.scrub_after_s:
                self._begin_scrub()
            if self._to_scrub is not None:
                await self._scrub_some(SCRUB_S)

    def _begin_scrub(self) -> None:
        self._purged_at = None
        self._to_scrub = deque(self._engine.replicas)
        self._at_once = len(self._to_scrub) // SCRUB_ROUNDS
        self._has_skipped = False
        self._is_complete = True

    async def _scrub_some(self, most_s: float) -> None:
        """Go on with the scrub for so long, one shard at least: all of them in one go would hold up whoever writes for as long."""
        until, least = self._loop.time() + most_s, self._at_once
        while self._to_scrub:
            try:
                await self._scrub_state(self._to_scrub.popleft())
            except StorageError:
                self._has_skipped = True
                raise
            least -= 1
            if least <= 0 and self._loop.time() >= until:
                return
        await self._scrub_log()

    async def _scrub_state(self, shard: int) -> None:
        # Who it is now: a replica that was replaced since the scrub began is another one, with files of its own.
        replica = self._engine.replicas.get(shard)
        if replica is None:
            return
        if replica.failure is None:
            self._is_complete &= await self.checkpoint(replica, keeps_for_others=False)
        async with replica.storing:
            if replica.failure is None:
                self._is_complete &= await self._worker.run(replica.store.scrub)
            else:
                self._has_skipped = True

    async def _scrub_log(self) -> None:
        await self._engine.log_job(lambda log: log.scrub())
        self._has_skipped |= self._engine.is_failed
        self._to_scrub = None
        self.scrubs += 1
        if not self._is_complete:
            # A flush or a reader was in the way somewhere: once more, later.
            self.note_purge()


def _truncate_log(log: LogStore, replica: Replica, index: int, term: int) -> None:
    if replica.failure is not None or replica.group.poisoned:
        return  # replaced meanwhile: the log's row is another replica's
    # Read here, not before: this may run after the next commits, and the row replaces every hard state up to now. Of the commit index only
    # what is durable: entries beyond it may not come with this transaction.
    status = replica.group.status()
    log.truncate(replica.shard, index, term, (status.term, status.vote, max(min(status.commit, status.persisted), index)))
