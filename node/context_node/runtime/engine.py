"""The replica loop: all shards of a node, one log, one fsync per batch.

A turn drains the Raft groups that have work: what must be durable is gathered into a batch, what is committed is applied and answered.
While batch k is being synced in the worker, batch k+1 gathers; so one fsync serves every shard that wrote meanwhile. This is where fsync
happens before a reply: `_write` hands the batch to the file and the file to the worker, `_committed` tells each group what is durable, and
only then do groups commit and replicas apply and answer.

Knows the order of persist, apply and reply (P1-P13). Knows no HTTP, no contexts. Invariants: at most one commit is under way; a group
hears `persisted` only after the sync of the COMMIT that holds its record (P12); after a failed commit nothing is acknowledged any more
(P10).
"""

import asyncio
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from context_node.contexts.refusals import Unavailable
from context_node.raft import BadMessage, MessageKind, Ready, Role, peek_message
from context_node.runtime.databases import DiskFull, StorageError
from context_node.runtime.leaderships import Leaderships
from context_node.runtime.log_store import LogStore
from context_node.runtime.quiescence import Rest, agrees, led_by, rest_of
from context_node.runtime.replica import Replica
from context_node.runtime.shards import node_of
from context_node.runtime.slow_disk import DiskWatch
from context_node.runtime.worker import Worker

GATHER_S = 0.005
"""The longest that a batch waits for company."""

QUIET_TURNS = 3
"""A batch is closed after so many turns of the event loop that brought it nothing: those who were just answered tend to ask again at
once, and a request takes about as many turns from its socket to the batch. A lone writer waits some microseconds for it; many share each
fsync (as with `commit_delay` in PostgreSQL, but by looking instead of by sleeping)."""


@dataclass(slots=True)
class EngineCounters:
    """Counts since the start; `batch_records` over `commits` is how well fsyncs are shared."""

    commits: int = 0
    batch_records: int = 0
    batch_bytes: int = 0
    applied: int = 0
    log_checkpoints: int = 0


class Engine:
    """Drives replicas. `on_failure(error)` is called once, when the log could not be written; the engine is dead then."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        log: LogStore,
        *,
        boot: bytes,
        worker: Worker,
        on_failure: Callable[[BaseException], None],
        send: Callable[[int, list[tuple[int, bytes]]], None] = lambda _node, _messages: None,
        on_snapshot: Callable[[Replica, Ready], None] = lambda _replica, _ready: None,
        slow_disk_s: float = 0.0,
    ) -> None:
        self.replicas: dict[int, Replica] = {}
        self.counters = EngineCounters()
        self.leaderships = Leaderships()
        self.disk = DiskWatch(slow_disk_s)
        self.failure: BaseException | None = None
        self._loop = loop
        self._log = log
        self._boot = boot
        self._on_failure = on_failure
        self._worker = worker
        self._queue: list[Replica] = []
        self._is_turn_due = False
        self._gathered: list[tuple[int, bytes]] = []
        self._promises: list[tuple[Replica, int]] = []
        self._is_log_busy = False
        self._is_syncing = False
        self._is_bound = False
        self._is_checkpoint_due = False
        self._is_closing = False
        self._is_closed = False
        self._seen = 0
        self._quiet_turns = 0
        self._opened = 0.0
        self._log_jobs: list[tuple[Callable[[], Any], Callable[[BaseException | None], None]]] = []
        self._send = send
        self._on_snapshot = on_snapshot
        self.has_new_leader = False
        """Set when a replica here has begun to lead; whoever looks takes it back."""
        self._outbox: dict[int, list[tuple[int, bytes]]] = {}
        self._idle: asyncio.Event = asyncio.Event()
        self._idle.set()

    @property
    def is_failed(self) -> bool:
        return self.failure is not None

    def add(self, replica: Replica) -> None:
        self.replicas[replica.shard] = replica
        self.queue(replica)

    def remove(self, replica: Replica, reason: str) -> None:
        """Stop driving a replica and forget what it gathered. Who asks it is told `reason` until `add` puts another in its place."""
        replica.fail(reason)
        self.leaderships.forget(replica)
        self._gathered = [(shard, record) for shard, record in self._gathered if shard != replica.shard]
        self._promises = [(other, number) for other, number in self._promises if other is not replica]

    def queue(self, replica: Replica) -> None:
        """This replica's group has something to do; it is drained at the end of this turn of the event loop."""
        replica.is_resting = False
        if not replica.is_queued:
            replica.is_queued = True
            self._queue.append(replica)
            if not self._is_turn_due:
                self._is_turn_due = True
                self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        self._is_turn_due = False
        queue, self._queue = self._queue, []
        for replica in queue:
            replica.is_queued = False
            self._drain(replica)
        self._post()
        self._commit()

    def tick(self, idle_ticks: int = 0) -> dict[int, list[Rest]]:
        """One step of time for every group that does not rest, but for those that lead alone and have nothing under way: they wait for
        nobody. Groups that are led here and idle for `idle_ticks` (0: never) go to rest: what to tell their members, by node."""
        rests: dict[int, list[Rest]] = {}
        for replica in list(self.replicas.values()):
            if replica.is_resting or (not replica.has_peers and replica.leads and not replica.is_waited_for):
                continue
            try:
                if not idle_ticks or replica.idle_ticks < idle_ticks or not self._goes_to_rest(replica, rests):
                    replica.tick()
            except Exception as error:
                replica.stop(error)
        return rests

    def _goes_to_rest(self, replica: Replica, rests: dict[int, list[Rest]]) -> bool:
        # Looked at again after as long a while: a look costs more than a tick.
        replica.idle_ticks = 0
        rest = rest_of(replica)
        if rest is None:
            return False
        replica.is_resting = True
        for member in replica.members.members:
            if member != rest.leader:
                rests.setdefault(node_of(member), []).append(rest)
        return True

    def rest(self, rests: Iterable[Rest]) -> list[int]:
        """Leaders say that their groups rest. Returns the shards whose replica here has it otherwise and stays awake."""
        awake = []
        for rest in rests:
            replica = self.replicas.get(rest.shard)
            if replica is not None and replica.failure is None and not replica.is_installing and agrees(replica, rest):
                replica.is_resting = True
            else:
                awake.append(rest.shard)
        return awake

    def wake(self, shards: Iterable[int]) -> None:
        """These groups are to have time again."""
        for shard in shards:
            replica = self.replicas.get(shard)
            if replica is not None and replica.is_resting:
                replica.is_resting = False
                replica.idle_ticks = 0

    def wake_led_by(self, node: int) -> None:
        """That node is not heard any more: the groups that it led need another leader."""
        self.wake([replica.shard for replica in led_by(self.replicas.values(), node)])

    def receive(self, node: int, messages: Iterable[tuple[int, bytes]]) -> None:
        """Raft messages of an authenticated node, each with its shard. Dropped is what is for a replica that is not here, or speaks for one
        of another node (P11)."""
        for shard, message in messages:
            replica = self.replicas.get(shard)
            if replica is None or replica.failure is not None or replica.is_installing:
                continue
            try:
                kind, sender, to, _term = peek_message(message)
                if replica.is_resting and kind == MessageKind.HEARTBEAT_RESPONSE:
                    continue  # a late one, of the time before the rest
                if node_of(sender) == node and to == replica.group.replica_id and replica.group.step(message):
                    self.queue(replica)
            except BadMessage as error:
                self._loop.call_exception_handler({"message": f"a peer sent nonsense for shard {shard}", "exception": error})
            except Exception as error:
                replica.stop(error)

    def hand_over(self, replica: Replica, to: int) -> bool:
        """Have a leader give its leadership to the member `to`. False: that is no voter, or on its way to lead already, or the leader has
        just stopped."""
        with suppress(Unavailable), replica.guarding():
            if replica.group.transfer_leader(to):
                self.leaderships.hands_over(replica, to)
                self.queue(replica)
                return True
        return False

    def lost(self, node: int) -> None:
        """Messages to this node were lost: leaders probe its replicas before they stream to them again."""
        for replica in self.replicas.values():
            if replica.has_peers and replica.leads:
                try:
                    for member in replica.members.members:
                        if node_of(member) == node:
                            replica.group.report_unreachable(member)
                except Exception as error:
                    replica.stop(error)

    def _post(self) -> None:
        """Hand what groups said in this turn to the transport, a batch for each node."""
        if self._outbox:
            outbox, self._outbox = self._outbox, {}
            for node, messages in outbox.items():
                self._send(node, messages)

    def _address(self, shard: int, messages: list[tuple[int, bytes]]) -> None:
        for to, message in messages:
            self._outbox.setdefault(node_of(to), []).append((shard, message))

    def _drain(self, replica: Replica, persisted: int | None = None) -> None:
        """Take the work of one group until it has no more, after telling it what is durable. A defect here stops this replica only."""
        if replica.failure is not None or self.is_failed or replica.is_installing:
            return
        group = replica.group
        try:
            if persisted is not None:
                group.persisted(persisted)
                while replica.held_messages and replica.held_messages[0][0] <= persisted:
                    self._address(replica.shard, replica.held_messages.pop(0)[1])
            replica.reads.ask(self._boot, replica.ticks)
            while (ready := group.ready()) is not None:
                if ready.soft_state is not None:
                    self._take_role(replica, *ready.soft_state)
                if replica.has_peers and not self._talk(replica, ready):
                    return
                if ready.log_record or ready.committed or ready.read_states:
                    replica.idle_ticks = 0
                if ready.log_record:
                    self._gathered.append((replica.shard, ready.log_record))
                    self._promises.append((replica, ready.number))
                    replica.newest_record = ready.number
                if ready.committed:
                    replica.apply(ready.committed, self._loop.time())
                    self.counters.applied += len(ready.committed)
                if ready.read_states:
                    replica.reads.answer(ready.read_states, replica.applied_index)
        except StorageError as error:
            self.fail(error)
        except Exception as error:
            replica.stop(error)

    def _take_role(self, replica: Replica, leader: int, role: int) -> None:
        self.leaderships.note(replica, leader, role)
        replica.note_role(role)
        self.has_new_leader |= role == Role.LEADER

    def _talk(self, replica: Replica, ready: Ready) -> bool:
        """What a Ready asks of other nodes. False: it replaces the replica's state, and nothing else may be done with it."""
        if ready.snapshot is not None:
            replica.is_installing = True
            self._on_snapshot(replica, ready)
            return False
        if targets := ready.snapshot_targets:
            replica.note_snapshot([to for to, _index in targets])
        self._address(replica.shard, ready.messages)
        if after := ready.messages_after_persist:
            # A Ready without a record counts as soon as all earlier ones do (P1, P2).
            number = ready.number if ready.log_record else replica.newest_record
            if number <= replica.group.persisted_number:
                self._address(replica.shard, after)
            else:
                replica.held_messages.append((number, after))
        return True

    def _commit(self) -> None:
        """Hand what was gathered to the disk, unless it is busy: then it goes with the next batch."""
        if self._is_log_busy or self.is_failed or self._is_closed:
            return
        if self._log_jobs and not self._is_bound:
            job, done = self._log_jobs.pop(0)
            self._occupy(job, lambda _result, error: self._job_done(done, error))
            return
        if not self._gathered and not self._is_bound:
            self._idle.set()
            return
        if not self._is_closing:
            self._is_closing = True
            self._seen, self._quiet_turns, self._opened = len(self._gathered), 0, self._loop.time()
            self._loop.call_soon(self._close_batch)

    def _close_batch(self) -> None:
        """Write the batch, unless the last turns brought it more and it is not yet late."""
        count = len(self._gathered)
        self._quiet_turns = 0 if count > self._seen else self._quiet_turns + 1
        self._seen = count
        if self._quiet_turns < QUIET_TURNS and self._loop.time() - self._opened < GATHER_S:
            self._loop.call_soon(self._close_batch)
            return
        self._is_closing = False
        if self._is_log_busy or self.is_failed or self._is_closed:
            return  # a job took the log meanwhile: the batch goes when it is done
        if self._gathered or self._is_bound:
            self._write()

    def _write(self) -> None:
        batch, self._gathered = self._gathered, []
        promises, self._promises = self._promises, []
        try:
            if batch:
                self._log.append(batch)
            self._is_bound = False
            self.disk.begin(self._loop.time())
            file = self._log.seal()
        except (StorageError, ValueError) as error:
            self.fail(error)
            return
        self.counters.commits += 1
        self.counters.batch_records += len(batch)
        self.counters.batch_bytes += sum([len(record) for _, record in batch])
        self._is_log_busy = self._is_syncing = True
        self._idle.clear()
        try:
            self._worker.sync(file, lambda _none, error: self._committed(promises, error))
        except (OSError, RuntimeError) as error:
            self._committed(promises, error)

    def _occupy(self, job: Callable[[], Any], outcome: Callable[[Any, BaseException | None], None]) -> None:
        self._is_log_busy = True
        self._idle.clear()
        self._worker.submit(job, outcome)

    def _committed(self, promises: list[tuple[Replica, int]], error: BaseException | None) -> None:
        """The batch is durable: start the next one, then let every group count what it persisted, apply and answer."""
        if not self._is_syncing:
            return  # closed meanwhile: the log was told that nobody knows
        self.disk.end(self._loop.time())
        self._is_log_busy = self._is_syncing = False
        try:
            self._log.synced(error)
        except StorageError as failure:
            self.fail(failure)
            return
        if self._log.wants_checkpoint and not self._is_checkpoint_due:
            # Before other jobs: under load there is always one, and the WAL must not grow meanwhile.
            self._is_checkpoint_due = True
            self._log_jobs.insert(0, (self._log.checkpoint, self._checkpointed))
        self._commit()
        for replica, number in promises:
            self._drain(replica, number)
        self._post()
        self._commit()

    def _checkpointed(self, error: BaseException | None) -> None:
        self._is_checkpoint_due = False
        self.counters.log_checkpoints += error is None

    def _job_done(self, done: Callable[[BaseException | None], None], error: BaseException | None) -> None:
        self._is_log_busy = False
        if error is not None and isinstance(error, StorageError):
            self.fail(error)
        done(error)
        self._commit()

    def with_log(self, change: Callable[[LogStore], None]) -> None:
        """Bind a change to the log (a truncation) into the next commit; run at once if the log is free."""
        if self.is_failed:
            return
        if self._is_log_busy:
            self._log_jobs.append((lambda: None, lambda _error: self.with_log(change)))
            return
        try:
            change(self._log)
        except StorageError as error:
            self.fail(error)
            return
        self._is_bound = True
        self._commit()

    async def log_job(self, job: Callable[[LogStore], Any]) -> None:
        """Run a job on the log in the worker, between two commits."""
        if self.is_failed:
            return
        finished: asyncio.Future[None] = self._loop.create_future()

        def done(error: BaseException | None) -> None:
            if finished.done():
                return
            if error is None:
                finished.set_result(None)
            else:
                finished.set_exception(error)

        self._log_jobs.append((lambda: job(self._log), done))
        self._commit()
        await finished

    async def settled(self) -> None:
        """Wait until no batch is gathering or being synced."""
        while not self.is_failed and (self._gathered or self._is_log_busy or self._queue or self._is_closing or self._is_bound):
            self._idle.clear()
            await self._idle.wait()

    def fail(self, error: BaseException) -> None:
        """The log cannot be written: refuse from here on (P10). On a full disk, what is applied can still be read."""
        if self.is_failed:
            return
        self.failure = error
        for replica in self.replicas.values():
            if isinstance(error, DiskFull):
                replica.refuse_writes("The disk is full; writes are refused until there is space.")
            else:
                replica.fail("The disk failed; this node stopped.")
        jobs, self._log_jobs = self._log_jobs, []
        for _, done in jobs:
            done(error)
        self._idle.set()
        self._on_failure(error)

    def close(self) -> None:
        """End the worker, after what it is doing. Does not flush: the node does that first if it can."""
        self._is_closed = True
        self._worker.close()
        if self._is_syncing:
            self._is_syncing = False
            with suppress(StorageError):
                # Over, but nobody will hear how.
                self._log.synced(OSError("the node was closed meanwhile"))
