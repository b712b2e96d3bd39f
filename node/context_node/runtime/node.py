"""A node: its data directory, its life from start to stop, and what happens when a disk fills up.

Knows the order of starting, stopping and starting over; `holdings` knows the replicas and their files, `entering` which cluster it belongs
to. Invariants: what a start finds is durable before it serves (P9); an engine whose log failed is thrown away with its memory and rebuilt
from the disk (P10).

Layout: `log.db` is the Raft log of all shards; `state/SHARD-GENERATION.db` the state of each; files that the log does not name are
leftovers.
"""

import asyncio
import os
import sys
import zlib
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field, replace

from context_node.contexts.commands import Defaults, Rules
from context_node.contexts.machine import Event
from context_node.contexts.revisions import NEWEST
from context_node.runtime.admin import ClusterAdmin
from context_node.runtime.archive_view import ArchiveView
from context_node.runtime.cluster import Cluster, ClusterOptions
from context_node.runtime.comparing import Comparisons
from context_node.runtime.databases import REAL_DISK, DiskAccess, DiskFull, StorageError, StorageFailed
from context_node.runtime.engine import Engine
from context_node.runtime.entering import Entry
from context_node.runtime.histories import Histories
from context_node.runtime.holdings import Holdings
from context_node.runtime.log_file import LogOptions
from context_node.runtime.log_rows import LogIdentity
from context_node.runtime.log_store import LogStore
from context_node.runtime.membership import StoreRemoved
from context_node.runtime.moving import Moves
from context_node.runtime.named_policies import NamedPolicies
from context_node.runtime.reads import Reads
from context_node.runtime.record_codec import RECORD_CODEC
from context_node.runtime.replica import Replica
from context_node.runtime.restores import Restores
from context_node.runtime.routing import RoutedService
from context_node.runtime.service import NodeState, Service
from context_node.runtime.shards import ShardDirectory
from context_node.runtime.state_store import StateOptions
from context_node.runtime.streams import tell_followers
from context_node.runtime.transport import Transport
from context_node.runtime.upkeep import Upkeep, UpkeepLimits
from context_node.runtime.worker import Worker
from context_node.runtime.writes import Writes

BELONGS = "this data directory belongs to a cluster; start it with the cluster's secret, as `contextstore serve --help` tells"

PROBE_BYTES = 8 << 20
"""So much must fit on the disk again before a node that ran out of space starts over."""


@dataclass(frozen=True, slots=True)
class NodeOptions:
    """`shards` is fixed for the life of the data directory; `switch_interval_s` is the interpreter's (`sys.setswitchinterval`).

    `disk` is where all files are, also those of `log` and `state`; `state_cache_bytes` is shared by all state databases. `revision` is the
    newest of the state machine that this node understands (`contexts/revisions.py`); less than `NEWEST` only in tests. With `has_archive`
    a purge reaches the archive too.
    """

    data_dir: str
    name: str = "node-0"
    shards: int = 32
    rules: Rules = field(default_factory=Rules)
    defaults: Defaults = field(default_factory=Defaults)
    upkeep: UpkeepLimits = field(default_factory=UpkeepLimits)
    log: LogOptions = field(default_factory=LogOptions)
    state: StateOptions = field(default_factory=StateOptions)
    disk: DiskAccess = REAL_DISK
    state_cache_bytes: int = 64 << 20
    queued_bytes_per_shard_max: int = 8 << 20
    stream_lag_max: int = 1_000
    counting_threads: int = 2
    retry_full_disk_s: float = 1.0
    cluster: ClusterOptions | None = None
    version: str = ""
    revision: int = NEWEST
    switch_interval_s: float | None = None
    has_archive: bool = False


class Node:
    """One process's part of the service. `start`, use `service`, `stop`. `on_fatal` is called when the node must not go on."""

    def __init__(
        self,
        options: NodeOptions,
        *,
        now_ms: Callable[[], int],
        random_bytes: Callable[[int], bytes],
        on_fatal: Callable[[BaseException], None],
        make_worker: Callable[[asyncio.AbstractEventLoop, str], Worker] = Worker,
        make_transport: Callable[..., Transport] = Transport,
    ) -> None:
        self.options = options
        self.state = NodeState(options.name)
        self.shards = ShardDirectory(options.shards)
        self.engine: Engine | None = None
        self.upkeep: Upkeep | None = None
        self.log: LogStore | None = None
        self.restarts = 0
        self.observer: Callable[[Replica, Event], None] | None = None
        """Told of every event of every replica, before those who follow the context. It must be quick and must not raise."""
        self.archive_health: Callable[[], ArchiveView | None] = lambda: None
        """How the archive does; None without one."""
        self._now_ms = now_ms
        self._random_bytes = random_bytes
        self._on_fatal = on_fatal
        self._make_worker = make_worker
        self._loop = asyncio.get_running_loop()
        self._upkeep_worker = make_worker(self._loop, "checkpoint")
        self.holdings = Holdings(self, self._loop, random_bytes, self._upkeep_worker)
        self._is_starting_over = False
        self._entry = Entry(self, self._loop)
        self._tasks: dict[asyncio.Task[None], None] = {}
        self._policies = NamedPolicies(self.shards, now_ms)
        self.histories = Histories()
        reads = Reads(self.shards, self.histories, options.rules, options.stream_lag_max)
        writes = Writes(
            self.shards,
            self.histories,
            options.rules,
            options.defaults,
            now_ms,
            random_bytes,
            options.counting_threads,
            has_archive=options.has_archive,
        )
        restores = Restores(self.shards, options.rules, now_ms)
        local = Service(reads, writes, restores, self._policies, self.state)
        self.service: Service | RoutedService = local
        self.cluster: Cluster | None = None
        self.admin: ClusterAdmin | None = None
        self.moves: Moves | None = None
        self.comparisons: Comparisons | None = None
        if options.cluster is not None:
            self.cluster = Cluster(self, options.cluster, random_bytes, now_ms, make_transport)
            self.moves = Moves(self, self.cluster, random_bytes)
            self.comparisons = Comparisons(self.cluster, self._upkeep_worker, self.shards.held, self._spawn, now_ms)
            self.admin = ClusterAdmin(self.cluster, options.shards, self._entry.describe, self._entry.begin_cluster)
            self.service = RoutedService(local, self.cluster, self.shards, writes.new_context_id)

    # --- life --------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Recover what the disk holds and serve. Raises `StorageError` for a disk that cannot be trusted or is in use."""
        if self.options.switch_interval_s is not None:
            sys.setswitchinterval(self.options.switch_interval_s)
        try:
            await self._open()
        except StoreRemoved:
            if self.options.cluster is None or not self.options.cluster.renews:
                raise
            await self._open()

    async def _open(self) -> None:
        disk = self.options.disk
        disk.make_directory(self.options.data_dir)
        disk.make_directory(self.holdings.state_dir)
        log = self._open_log()
        if log.notes.is_removed and self.cluster is not None and self.cluster.options.renews:
            log.close()
            self.holdings.empty()
            log = self._open_log()
        self.log = log
        try:
            recovered = log.recover()
            self._entry.check_cluster(log, bool(recovered))
            if not recovered and log.notes.shards is None:
                self.holdings.check_nothing_is_there()
                if self.cluster is None or not self.cluster.options.join:
                    recovered = self.holdings.bootstrap(log)
            elif not recovered and self.cluster is None:
                # A member whose replicas were all moved away is a member still.
                raise StorageFailed(self.options.data_dir, "start", BELONGS)
            self._entry.check_shards(log, recovered)
            self._entry.check_level(log)
            self.holdings.remove_leftovers(recovered)
            if self.cluster is not None:
                recovered = await self._entry.enter(self.cluster, log, recovered)
            engine = self._make_engine(log)
            self.engine = engine
            for shard, found in recovered.items():
                store = self.holdings.open_state(shard, found)
                try:
                    engine.add(self.holdings.replica(shard, found, store, engine))
                except BaseException:
                    store.close()
                    raise
        except BaseException:
            # A start that fails leaves nobody listening and no file open.
            self._close_stores()
            await self._leave()
            raise
        replicas = engine.replicas
        phase = zlib.crc32(log.notes.identity.store_uuid.encode()) / (1 << 32)
        self.upkeep = Upkeep(engine, self.options.upkeep, self._upkeep_worker, self._loop, self.state_failed, phase)
        if not log.notes.was_scrubbed:
            # The last life may have ended between a purge and its scrub.
            self.upkeep.note_purge()
        await self._caught_up(engine, replicas)
        if self.cluster is None and any(not replica.is_only_voter for replica in replicas.values()):
            self._close_stores()
            raise StorageFailed(self.options.data_dir, "start", BELONGS)
        self.shards.open(replicas)
        self._spawn(self.upkeep.run(), "upkeep")
        if self.cluster is None:
            await self._policies.reconcile()
        else:
            self._join_in(self.cluster)
        self.state.open()

    def _open_log(self) -> LogStore:
        begun = self._random_bytes(16).hex(), self._random_bytes(16).hex()
        identity = LogIdentity(*begun, self._now_ms())
        return LogStore(
            os.path.join(self.options.data_dir, "log.db"), identity, RECORD_CODEC, replace(self.options.log, disk=self.options.disk)
        )

    def _make_engine(self, log: LogStore) -> Engine:
        worker = self._make_worker(self._loop, "commit")
        cluster, moves = self.cluster, self.moves
        if cluster is None or moves is None:
            return Engine(self._loop, log, boot=self._random_bytes(8), worker=worker, on_failure=self._log_failed)
        return Engine(
            self._loop,
            log,
            boot=self._random_bytes(8),
            worker=worker,
            on_failure=self._log_failed,
            send=cluster.send,
            on_snapshot=moves.install,
            slow_disk_s=cluster.options.slow_disk_s,
        )

    def _join_in(self, cluster: Cluster) -> None:
        """From here on this node does its part."""
        cluster.connect_all()
        self._spawn(cluster.run_ticks(), "ticks")
        self._spawn(cluster.run_reports(), "reports")
        self._spawn(cluster.membership.run_registration(), "registration")
        if self.moves is not None:
            self._spawn(self.moves.run_snapshots(), "snapshots")
            self._spawn(self.moves.run_disk_watch(), "disk watch")
        self._spawn(self._policies.run(), "policies")

    async def _caught_up(self, engine: Engine, replicas: dict[int, Replica]) -> None:
        """Wait until every group of one voter leads and has applied its log. Effects of a long replay are stored as they come.

        Whether it is one can only be told at the end: what is replayed may change the members.
        """
        while waiting := [replica for replica in replicas.values() if replica.is_only_voter and not replica.is_caught_up]:
            if engine.is_failed:
                raise engine.failure or AssertionError("an engine fails with a reason")
            stopped = next((replica.failure for replica in replicas.values() if replica.failure is not None), None)
            if stopped is not None:
                raise StorageFailed(self.options.data_dir, "start", stopped)
            for replica in waiting:
                if not replica.leads:
                    replica.group.campaign()
                    engine.queue(replica)
            for replica in replicas.values():
                if replica.machine.changes.pending_bytes > self.options.upkeep.flush_bytes:
                    replica.flush()
            await asyncio.sleep(0.001)

    def on_event(self, replica: Replica, event: Event) -> None:
        if event.kind == "purged" or event.kind == "erased":
            # On every replica, whoever was asked: the bytes leave all files; of an erasure in the archive that is the context's name.
            self.note_purge()
            if event.kind == "erased":
                return
            if self.histories.cold is not None:
                self.histories.cold.forget(event.context_id)
        if self.observer is not None:
            self.observer(replica, event)
        tell_followers(replica, event)

    def note_purge(self) -> None:
        """Files may hold bytes of a purged context, or of one that is purged where this node does not hear of it."""
        if self.upkeep is not None:
            self.upkeep.note_purge()

    def _spawn(self, work: Coroutine[None, None, None], name: str) -> None:
        task: asyncio.Task[None] = self._loop.create_task(work, name=name)
        self._tasks[task] = None
        task.add_done_callback(self._task_done)

    def _task_done(self, task: "asyncio.Task[None]") -> None:
        self._tasks.pop(task, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            if isinstance(error, StoreRemoved) and self.engine is not None and not self.engine.is_failed:
                # The next start has to know: the replicas that may still be on the disk belong to nobody.
                self.engine.with_log(lambda log: log.notes.note_removed())
            self._on_fatal(error)

    async def stop(self) -> None:
        """Store everything and close. Requests should have ended; new ones are refused."""
        self.state.close("The node is stopping.")
        if self.moves is not None and self.engine is not None and not self.engine.is_failed:
            await self.moves.hand_over()
        self.shards.close("The node is stopping; try another.")
        await self._end_tasks()
        engine = self.engine
        if engine is not None and not engine.is_failed:
            await engine.settled()
            # Peers are heard until the end, and may still create replicas here or have them dropped.
            for replica in list(engine.replicas.values()):
                if replica.failure is None and self.upkeep is not None:
                    with suppress(StorageError):
                        await self.upkeep.checkpoint(replica)
            await engine.settled()
        await self._leave()
        if self.histories.cold is not None:
            await self.histories.cold.close()
        self._close_stores(lambda: self.upkeep is not None and self.upkeep.is_scrubbed)
        self._upkeep_worker.close()

    async def _end_tasks(self) -> None:
        tasks = [task for task in self._tasks if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self.moves is not None:
            await asyncio.gather(*self.moves.close(), return_exceptions=True)
        # A checkpoint that a cancelled task had begun still runs in the worker; nobody may close or flush under it.
        await self._upkeep_worker.run(lambda: None)

    async def _leave(self) -> None:
        """Say no more to other nodes. They are heard until what is under way is settled: a majority may be needed for it."""
        if self.cluster is not None:
            await self.cluster.stop()

    def _close_stores(self, is_scrubbed: Callable[[], bool] = lambda: False) -> None:
        """`is_scrubbed` is asked last: whether no file holds bytes of a purged context."""
        engine, log = self.engine, self.log
        if engine is not None:
            engine.close()
            for replica in engine.replicas.values():
                replica.fail("The node is stopping.")
                # What a close cannot carry over stays in the WAL, and the log has it too.
                with suppress(StorageError):
                    replica.store.close()
        if log is not None:
            with suppress(StorageError):
                if is_scrubbed():
                    log.notes.note_scrubbed()
                    log.commit()
            with suppress(StorageError):
                log.close()
        self.engine = self.log = None

    # --- trouble -----------------------------------------------------------------------------------------------------

    def _log_failed(self, error: BaseException) -> None:
        """The log could not be written. A full disk is waited for; anything else ends the node (P10)."""
        if isinstance(error, DiskFull):
            self.state.close("The disk is full; writes are refused until there is space.")
            if not self._is_starting_over:
                self._is_starting_over = True
                self._spawn(self._start_over(), "start over")
        else:
            self.state.close("The disk failed.")
            self._on_fatal(error)

    def state_failed(self, error: StorageError) -> None:
        """A state database could not be written: the log has what it lacks, but memory must not grow without end."""
        if self.engine is not None:
            self.engine.fail(error)

    async def _start_over(self) -> None:
        """When there is space again, forget what is in memory and recover from the disk, as a restart would."""
        while True:
            await asyncio.sleep(self.options.retry_full_disk_s)
            if not await asyncio.to_thread(self.options.disk.has_space, self.options.data_dir, PROBE_BYTES):
                continue
            self.shards.close("The node is starting over after its disk was full.")
            await self._end_tasks()
            await self._leave()
            self._close_stores()
            try:
                await self._open()
            except DiskFull:
                await self._leave()
                self._close_stores()
                continue
            self.restarts += 1
            self._is_starting_over = False
            return
