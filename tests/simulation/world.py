"""Nodes on simulated disks and a simulated network, in one event loop: how they live, die, pause and come back.

Knows `Node` and what it takes to start one. Does not know clients, faults by name, or rules. Invariants: a life has one process and one
disk; after a death the next life finds what that kind of death leaves on a disk; a store that was wiped never comes back.
"""

import asyncio
import gc
import random
from collections.abc import Callable
from contextvars import copy_context
from dataclasses import dataclass
from typing import Any

import msgspec

from context_node.archive.archiver import Archiver, ArchiverOptions
from context_node.archive.batches import BatchLimits
from context_node.archive.cold import ColdReads
from context_node.contexts.commands import Defaults, Rules
from context_node.contexts.revisions import NEWEST, NewerRevision
from context_node.raft import _core
from context_node.runtime.cluster import RAFT, ClusterOptions
from context_node.runtime.log_file import LogOptions
from context_node.runtime.node import Node, NodeOptions
from context_node.runtime.replica import Replica
from context_node.runtime.state_store import StateOptions
from context_node.runtime.upkeep import UpkeepLimits
from context_node.runtime.worker import Outcome, Worker
from simulation.archive import SimulatedArchive, SimulatedPostgres
from simulation.judge import Judge
from simulation.loop import OWNER, Process, SimulatedLoop
from simulation.network import Network, SimulatedTransport
from support.power_cut_vfs import PowerCutDisk

SHARDS = 2
SECRET = b"a secret of all simulated nodes"
TICK_S = 0.05
ELECTION_TICKS = 10
PORT = 1
UPKEEP = UpkeepLimits(
    flush_age_s=0.3,
    flush_bytes=8_000,
    wal_bytes_max=100_000,
    log_bytes_per_shard_max=30_000,
    log_bytes_max=400_000,
    hot_bytes_max=30_000,
    scrub_after_s=3.0,
    interval_s=0.2,
)
START_MS = 1_700_000_000_000
FIRST = max(1, NEWEST - 1)
"""The version that every run begins with."""


@dataclass
class DiskPace:
    """How long a job takes: uniformly up to twice `usual_s`, and now and then up to `slow_s`."""

    usual_s: float = 0.0005
    slow_share: float = 0.01
    slow_s: float = 0.1

    def set(self, other: "DiskPace") -> None:
        self.usual_s, self.slow_share, self.slow_s = other.usual_s, other.slow_share, other.slow_s


class SimulatedWorker(Worker):
    """A thread for the disk: a job runs whole, some time after it was submitted, and its outcome comes some time later. Between the two a
    process can die: what the job did is on the disk, and nobody was told."""

    def __init__(self, loop: asyncio.AbstractEventLoop, name: str, pace: DiskPace) -> None:
        owner = OWNER.get()
        assert owner is not None and isinstance(loop, SimulatedLoop)
        self._loop: SimulatedLoop = loop
        self._owner = owner
        self._pace = pace
        self._free_at = 0.0
        self.running = 0
        """Jobs that were submitted, and whose outcome nobody has heard."""

    def submit(self, job: Callable[[], Any], outcome: Outcome) -> None:
        if self.is_closed:
            raise RuntimeError("this worker was closed")
        begin = max(self._loop.time(), self._free_at) + self._span_s()
        told = self._free_at = begin + self._span_s()
        self.running += 1

        def work() -> None:
            result: Any = None
            error: BaseException | None = None
            try:
                result = job()
            except Exception as raised:
                error = raised
            self._owner.call_at(told, tell, result, error)

        def tell(result: Any, error: BaseException | None) -> None:
            self.running -= 1
            outcome(result, error)

        self._owner.call_at(begin, work)

    def sync(self, file: int, outcome: Outcome) -> None:
        def work() -> None:
            # The file may be closed by then.
            if self.is_closed:
                raise OSError("the worker was closed meanwhile")
            _core.sync_file(file)

        self.submit(work, outcome)

    def _span_s(self) -> float:
        random, pace = self._loop.random, self._pace
        if random.random() < pace.slow_share:
            return random.random() * pace.slow_s
        return random.random() * pace.usual_s

    def close(self) -> None:
        self.is_closed = True


class Life:
    """One machine: its disk, and the process that runs on it now, if any."""

    def __init__(self, world: "World", place: int, store: int = 0, files: dict[str, bytes] | None = None) -> None:
        self.world = world
        self.place = place
        self.name = f"n{place}" if not store else f"n{place}.{store}"
        self.host = self.name
        self.disk = PowerCutDisk(files)
        self.disk_pace = DiskPace()
        self.clock_rate = 1.0
        self.clock_jump_ms = 0
        self.process: Process | None = None
        self.node: Node | None = None
        self.is_ready = False
        self.workers: list[SimulatedWorker] = []
        self.excuse = ""
        """Why this process may end by itself: what was done to its disk."""
        self.ended_by: BaseException | None = None
        self.join: tuple[str, ...] = ()
        self.archiver: Archiver | None = None
        self.revision = FIRST
        """The version that runs here, by what it understands; two take part where the next one is planted."""

    @property
    def is_alive(self) -> bool:
        return self.process is not None and not self.process.is_dead

    @property
    def is_serving(self) -> bool:
        return self.is_alive and self.is_ready and self.process is not None and not self.process.is_paused

    @property
    def replicas(self) -> list[Replica]:
        if not self.is_alive or self.node is None or self.node.engine is None:
            return []
        return list(self.node.engine.replicas.values())

    def now_ms(self) -> int:
        return START_MS + self.clock_jump_ms + int(self.world.loop.time() * 1000 * self.clock_rate)

    def options(self) -> NodeOptions:
        cluster = ClusterOptions(
            host=self.host,
            port=PORT,
            secret=SECRET,
            join=self.join,
            tick_s=TICK_S,
            election_ticks=ELECTION_TICKS,
            report_s=0.25,
            slow_disk_s=0.1,
        )
        return NodeOptions(
            "data",
            name=self.name,
            shards=SHARDS,
            rules=Rules(),
            defaults=Defaults(),
            upkeep=UPKEEP,
            log=LogOptions(wal_bytes_max=100_000),
            state=StateOptions(exclusive=True),
            disk=self.disk,
            retry_full_disk_s=0.2,
            cluster=cluster,
            revision=self.revision,
            has_archive=self.world.archive is not None,
        )

    @property
    def is_registered(self) -> bool:
        """Whether the cluster has heard what runs here now."""
        return self.is_ready and self.node is not None and all(task.get_name() != "registration" for task in self.node._tasks)

    def start(self) -> Process:
        assert not self.is_alive
        self.is_ready, self.excuse, self.ended_by, self.workers = False, "", None, []
        process = self.process = Process(self.world.loop, self.name)
        self.world.lives_of[process] = self
        process.spawn(self._begin(process))
        return process

    async def _begin(self, process: Process) -> None:
        world = self.world
        seeded = random.Random(world.loop.random.getrandbits(64))

        def make_worker(loop: asyncio.AbstractEventLoop, name: str) -> Worker:
            worker = SimulatedWorker(loop, name, self.disk_pace)
            self.workers.append(worker)
            return worker

        def make_transport(*arguments: Any, **named: Any) -> SimulatedTransport:
            return SimulatedTransport(world.network, *arguments, **named)

        self.node = Node(
            self.options(),
            now_ms=self.now_ms,
            random_bytes=seeded.randbytes,
            on_fatal=lambda error: self._ended(process, error),
            make_worker=make_worker,
            make_transport=make_transport,
        )
        copying = self._archiver(self.node, process, seeded) if world.archive is not None else None
        try:
            await self.node.start()
        except Exception as error:
            # What a start finds is what was made durable: it has no reason to fail.
            self._ended(process, error)
            return
        self.is_ready = True
        if copying is not None:
            process.spawn(copying.run())

    def _archiver(self, node: Node, process: Process, seeded: random.Random) -> Archiver:
        archive = self.world.archive
        assert archive is not None

        def cluster_id() -> str:
            return node.log.notes.identity.cluster_id if node.log is not None else ""

        made = self.archiver = Archiver(
            node.shards,
            SimulatedArchive(archive, process),
            self.world.archiving,
            cluster_id=cluster_id,
            now_ms=self.now_ms,
            jitter=seeded.random,
        )
        node.observer = made.note
        node.histories.cold = ColdReads(SimulatedArchive(archive, process), cluster_id, cache_bytes=2_000)
        return made

    def _ended(self, process: Process, error: BaseException) -> None:
        """The node says that it must not go on: its process ends."""
        self.ended_by = error
        if not self.disk.has_power:
            self.lose_power()
            return
        self.world.judge.note_end(self, error)
        self.lose_process()

    def lose_process(self) -> None:
        """SIGKILL: what the kernel has been given survives."""
        self._die()
        self.disk = self.disk.after_process_kill()

    def lose_power(self) -> None:
        """What was not synced survives by chance."""
        self._die()
        self.disk = self.disk.after_power_cut(self.world.loop.random)

    def _die(self) -> None:
        if self.process is not None:
            self.process.kill()
        self.world.graveyard.append((self.node, self.disk))
        self.node = None
        self.is_ready = False

    def run(self, work: Any) -> "asyncio.Task[Any]":
        """Run a coroutine inside this life's process."""
        assert self.process is not None
        return self.process.spawn(work)


class World:
    """All of it."""

    def __init__(self, loop: SimulatedLoop, judge: Judge) -> None:
        self.loop = loop
        self.judge = judge
        self.archive: SimulatedPostgres | None = None
        self.archiving = ArchiverOptions()
        self.network = Network(loop)
        self.network.on_sent = self._sent
        self.lives: list[Life] = []
        self.lives_of: dict[Process, Life] = {}
        self.graveyard: list[Any] = []
        """What is dead is kept, so that no finalizer runs while the others live."""
        self.outside = copy_context()
        """Where clients live: in no process that could die."""
        loop.on_event = self._after
        judge.disk_of = self._disk_here

    def _disk_here(self) -> PowerCutDisk | None:
        owner = OWNER.get()
        life = None if owner is None else self.lives_of.get(owner)
        return None if life is None else life.disk

    def _sent(self, source: SimulatedTransport, _node: int, payload: bytes) -> None:
        if payload[:1] == RAFT:
            self.judge.sent(source, decode_raft(payload[1:]))

    def _after(self, process: Process | None) -> None:
        """After every event: the power may have gone in the middle of it, and the judge may have seen something."""
        life = None if process is None else self.lives_of.get(process)
        if life is not None and process is not None and life.process is process and not process.is_dead and not life.disk.has_power:
            self.judge.mark("power was lost in the middle of a disk operation")
            life.lose_power()
        if self.judge.violation is not None:
            raise self.judge.violation
        if self.loop.errors:
            error = self.loop.errors[0]
            if life is not None and isinstance(error.get("exception"), NewerRevision):
                self.judge.note_newer(life, error["exception"])
                self.loop.errors.clear()
                return
            raise Unexpected(f"{error.get('owner')}: {error.get('message')}: {error.get('exception')!r}") from error.get("exception")

    async def until(self, condition: Callable[[], bool], seconds: float, rule: str, sentence: Callable[[], str]) -> None:
        """Wait for something that must come to be."""
        end = self.loop.time() + seconds
        while not condition():
            if self.loop.time() > end:
                self.judge.fail(rule, f"not within {seconds:g} s: {sentence()}")
            await asyncio.sleep(0.05)

    def give_archive(self, random: random.Random) -> None:
        """Put a Postgres behind all nodes that are started from here on."""
        self.archive = SimulatedPostgres(self.loop, self.judge, random)
        self.judge.noted = self.archive.noted
        flush_s = random.choice((0.02, 0.3))
        limits = BatchLimits(random.choice((2, 7, 50)), random.choice((300, 1 << 20)), random.choice((None, 0, 2, 10)))
        self.archiving = ArchiverOptions(flush_s, limits)

    def retire(self, life: Life) -> None:
        """A store that never comes back."""
        self.graveyard.append((life, life.disk))

    def close(self) -> None:
        """The end of all processes. What their connections do when they go is of no account, and must not fail."""
        disks = [life.disk for life in self.lives] + [disk for _, disk in self.graveyard]
        for life in self.lives:
            if life.process is not None:
                life.process.kill()
            life.node = None
        for disk in disks:
            disk.has_power, disk.cut_at, disk.space_bytes, disk.failing_syncs = True, None, None, 0
        self.lives_of.clear()
        self.graveyard.clear()
        self.lives.clear()
        self.network.listening.clear()
        self.loop.drop_all()
        gc.collect()
        for disk in disks:
            disk.close()


def settle(answer: "asyncio.Future[Any]", result: Any, error: Exception | None) -> None:
    """Tell whoever waits, unless that is over."""
    if answer.done():
        return
    if error is None:
        answer.set_result(result)
    else:
        answer.set_exception(error)


class Unexpected(Exception):
    """Something was raised that nobody caught: a defect, but not one that a rule found."""


def decode_raft(payload: bytes) -> list[tuple[int, bytes]]:
    """The Raft messages of a frame, each with its shard."""
    return _messages.decode(payload)


_messages = msgspec.msgpack.Decoder(list[tuple[int, bytes]])
