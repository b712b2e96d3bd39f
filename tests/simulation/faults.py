"""What goes wrong in a simulation, and how it is put right again.

Knows lives, disks and the network. Does not know clients or rules. Invariants: a disk is lost only
while every other node is there and whole, and its replicas are replaced before the next one is lost; `heal` ends every fault.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any

from context_node.contexts.refusals import Refusal
from context_node.contexts.revisions import NEWEST
from context_node.runtime.databases import StorageError
from context_node.runtime.replica import Replica
from context_node.runtime.state_rows import CheckpointResult
from context_node.runtime.state_store import StateStore
from context_node.runtime.upkeep import Upkeep
from simulation.administrator import FACTOR, Administrator
from simulation.clients import LOGS, WILD
from simulation.judge import Judge
from simulation.network import Weather
from simulation.world import FIRST, DiskPace, Life, World


class Faults:
    """One nemesis, which does one thing after the other, and one repairman."""

    def __init__(self, world: World, judge: Judge) -> None:
        self.world = world
        self.judge = judge
        self.is_over = False
        self._random = random.Random(world.loop.random.getrandbits(64))
        self.administrator = Administrator(world, judge)
        self._stores = 0
        self._is_raised = False
        """Whether anybody has asked for it."""
        chosen = self._random
        kinds: dict[str, tuple[float, Callable[[], Awaitable[None]]]] = {
            "kill": (3, self._kill),
            "cut the power": (4, self._cut_power),
            "cut the power in a disk operation": (4, self._cut_power_within),
            "cut the power of all": (0.5, self._cut_power_of_all),
            "kill in a commit": (3, self._kill_in_commit),
            "pause": (2, self._pause),
            "stop": (1, self._stop),
            "partition": (2, self._partition),
            "isolate": (2, self._isolate),
            "cut one way": (2, self._cut_one_way),
            "ring": (0.7, self._ring),
            "bad weather": (3, self._bad_weather),
            "failing sync": (1, self._failing_sync),
            "full disk": (0.7, self._full_disk),
            "slow disk": (1, self._slow_disk),
            "clock jump": (0.5, self._clock_jump),
            "transfer": (2, self.administrator.transfer),
            "move": (4, self.administrator.move),
            "there and back": (2, self._there_and_back),
            "repeat a step": (1, self.administrator.repeat),
            "checkpoint": (3, self._checkpoint),
            "old reader": (2, self._old_reader),
            "lose a disk": (2, self._lose_disk),
        }
        if world.archive is not None:
            kinds["archive away"] = (3, self._archive_away)
            if world.archiving.limits.tail_keep is None:
                # What is trimmed is nowhere else, and the archive may not lose it.
                kinds["archive goes back"] = (1, self._archive_goes_back)
        # Each run has its own temper: some kinds often, others never.
        self._kinds = {name: (weight * chosen.choice((0, 0.5, 1, 1, 4)), act) for name, (weight, act) in kinds.items()}
        if NEWEST > FIRST:
            self._kinds["upgrade"] = (60, self._upgrade)
        self._pause_s = chosen.choice((0.05, 0.3, 1.5))
        self._pace = DiskPace(chosen.choice((0.0003, 0.002, 0.01)), chosen.choice((0.01, 0.2)), chosen.choice((0.05, 0.3)))
        self._down_s = chosen.choice((0.05, 0.5, 3.0))

    async def run(self) -> None:
        for life in self.world.lives:
            life.disk_pace.set(self._pace)
        names = list(self._kinds)
        weights = [self._kinds[name][0] + 1e-9 for name in names]
        while True:
            await asyncio.sleep(self._random.random() * 2 * self._pause_s)
            name = self._random.choices(names, weights)[0]
            if self.is_over:
                return
            self.judge.mark(f"fault: {name}")
            await self._kinds[name][1]()

    async def mend(self) -> None:
        """Start what is down after a while; replace replicas whose disks are gone; end what was half done."""
        while True:
            await asyncio.sleep(0.2 + self._random.random() * self._down_s)
            for life in self.world.lives:
                if not life.is_alive:
                    life.start()
            await self.administrator.replace()

    def heal(self) -> None:
        """From here on nothing goes wrong."""
        self.is_over = True
        if self.world.archive is not None:
            self.world.archive.heal()
        network = self.world.network
        network.heal()
        network.weather = Weather(tail_share=0.0)
        self._down_s = 0.1
        for life in self.world.lives:
            if self._is_raised and life.revision < NEWEST:
                # It may not have been turned away yet.
                life.revision = NEWEST
                if life.is_alive:
                    life.lose_process()
            life.disk.space_bytes, life.disk.failing_syncs, life.disk.cut_at = None, 0, None
            life.disk_pace.set(DiskPace(slow_share=0.0))
            if life.process is not None and life.process.is_paused:
                life.process.go_on()

    @property
    def is_mending(self) -> bool:
        return bool(self.administrator.lost)

    async def _archive_away(self) -> None:
        archive = self.world.archive
        assert archive is not None
        archive.is_away = True
        await asyncio.sleep(self._random.random() * 2)
        life = self._someone()
        if life is not None and life.is_serving and life.node is not None and self._random.random() < 0.5:
            # What is to be erased outlives its log entries and every process.
            for context_id in WILD:
                life.run(_purge(life.node.service, context_id))
            await asyncio.sleep(0.5)
            await self._checkpoint()
            await asyncio.sleep(0.3)
            await self._cut_power_of_all()
            await asyncio.sleep(self._random.random() * 2)
        archive.is_away = False

    async def _archive_goes_back(self) -> None:
        assert self.world.archive is not None
        self.world.archive.go_back(LOGS)

    async def _until(self, condition: Callable[[], bool], seconds: float) -> None:
        end = self.world.loop.time() + seconds
        for _ in range(100):
            if condition() or self.world.loop.time() >= end:
                return
            await asyncio.sleep(seconds / 100)

    # --- processes and disks ------------------------------------------------------------------------------------------

    def _someone(self) -> Life | None:
        alive = [life for life in self.world.lives if life.is_alive]
        return self._random.choice(alive) if alive else None

    async def _kill(self) -> None:
        if (life := self._someone()) is not None:
            life.lose_process()

    async def _cut_power(self) -> None:
        if (life := self._someone()) is not None:
            life.lose_power()

    async def _cut_power_within(self) -> None:
        if (life := self._someone()) is not None:
            life.disk.cut_at = life.disk.operations + self._random.randint(1, 30)
            await asyncio.sleep(0.5)
            life.disk.cut_at = None

    async def _cut_power_of_all(self) -> None:
        for life in self.world.lives:
            if life.is_alive:
                life.lose_power()

    async def _kill_in_commit(self) -> None:
        """At the moment when the disk did something that nobody was told of yet."""
        life = self._someone()
        await self._until(lambda: life is None or not life.is_alive or any(worker.running for worker in life.workers), 0.1)
        if life is not None and life.is_alive:
            self.judge.mark("a process was killed while its disk worked", any(worker.running for worker in life.workers))
            self._random.choice((life.lose_process, life.lose_power))()

    async def _pause(self) -> None:
        life = self._someone()
        if life is None or life.process is None:
            return
        process = life.process
        self.judge.mark("a leader was paused", any(replica.group.is_leader for replica in life.replicas if replica.failure is None))
        process.pause()
        await asyncio.sleep(self._random.choice((0.1, 0.6, 2.0, 6.0)) * self._random.random())
        process.go_on()

    async def _stop(self) -> None:
        """In order, as on SIGTERM."""
        if (life := self._someone()) is not None:
            await self._stop_in_order(life)

    async def _upgrade(self) -> None:
        """A node becomes the next version, or the one before again; now and then somebody thinks that it is time to end the upgrade."""
        behind = [life for life in self.world.lives if life.is_alive and life.revision < NEWEST]
        # Most go forward, or the upgrade would never come to an end.
        life = self._random.choice(behind) if behind and self._random.random() < 0.8 else self._someone()
        if life is None:
            return
        if self._random.random() < 0.5:
            await self._stop_in_order(life)
        if life.is_alive:
            life.lose_process()
        life.revision = NEWEST if life.revision < NEWEST else FIRST
        if self._random.random() < 0.4:
            self._is_raised = True
            await self.administrator.step(lambda admin: admin.raise_level(NEWEST))
            levels = [each.machine.cluster.level for other in self.world.lives for each in other.replicas if each.failure is None]
            self.judge.mark("the feature level was raised", max(levels, default=0) == NEWEST)

    async def _stop_in_order(self, life: Life) -> None:
        if not life.is_ready or life.node is None:
            return
        life.is_ready = False
        life.excuse = "it was stopped"
        node, process = life.node, life.process
        assert process is not None
        stopping = life.run(node.stop())
        await self._until(lambda: stopping.done() or process.is_dead, 10.0)
        self.judge.mark("a node stopped in order", stopping.done())
        if life.process is process and not process.is_dead:
            life.lose_process()

    async def _failing_sync(self) -> None:
        if (life := self._someone()) is not None:
            life.excuse = "its disk failed a sync"
            life.disk.failing_syncs = 1

    async def _full_disk(self) -> None:
        life = self._someone()
        if life is None:
            return
        life.excuse = "its disk was full"
        disk = life.disk
        disk.space_bytes = sum(len(inode.cached) for inode in disk.names.values()) + self._random.choice((0, 5_000, 20_000))
        await asyncio.sleep(self._random.random() * 2)
        disk.space_bytes = None
        if life.disk is not disk:
            life.disk.space_bytes = None

    async def _slow_disk(self) -> None:
        if (life := self._someone()) is not None:
            life.disk_pace.set(DiskPace(self._pace.usual_s, 0.5, self._random.choice((0.05, 0.4))))
            await asyncio.sleep(self._random.random() * 2)
            life.disk_pace.set(self._pace)

    async def _clock_jump(self) -> None:
        if (life := self._someone()) is not None:
            life.clock_jump_ms += self._random.choice((-3_600_000, -5, 5, 3_600_000))
            life.clock_rate = self._random.choice((0.8, 1.0, 1.2))

    async def _checkpoint(self) -> None:
        """Truncate logs, so that whoever is behind needs a snapshot."""
        for life in list(self.world.lives):
            if life.is_serving and life.node is not None and life.node.upkeep is not None:
                upkeep = life.node.upkeep
                for replica in life.replicas:
                    if replica.failure is None and not replica.is_installing:
                        keeps = self._random.random() < 0.3
                        life.run(_checkpoint(upkeep, replica, keeps))
                        if self._random.random() < 0.5:
                            # Another one while the first is under way, as a scrub may come beside the daily work.
                            life.run(_checkpoint(upkeep, replica, keeps, self._random.random() * 0.02))

    async def _old_reader(self) -> None:
        """Somebody reads an old moment of a node's databases: what they were told since is not carried over. The disk here has no shared
        memory, so nobody can really do that beside the owner."""
        life = self._someone()
        if life is None:
            return
        stores = [replica.store for replica in life.replicas if replica.failure is None]

        def checkpoint(store: StateStore) -> CheckpointResult:
            self.judge.mark("a checkpoint was not complete")
            return CheckpointResult(False, store.applied().index)

        for store in stores:
            vars(store)["checkpoint"] = partial(checkpoint, store)
        await self._checkpoint()
        await asyncio.sleep(self._random.random() * 2)
        for store in stores:
            vars(store).pop("checkpoint")

    async def _lose_disk(self) -> None:
        lives = self.world.lives
        if self.administrator.lost or not all(life.is_serving for life in lives) or len(lives) < 3 or not self._is_whole():
            return
        life = self._random.choice([life for life in lives if life.node is not None and life.node.cluster is not None])
        assert life.node is not None and life.node.cluster is not None
        self.administrator.lost.add(life.node.cluster.number)
        self.judge.removed.update(replica.group.replica_id for replica in life.replicas)
        life.lose_power()
        self._stores += 1
        stranger = Life(self.world, life.place, self._stores)
        stranger.host, stranger.revision = life.host, life.revision
        stranger.disk_pace.set(self._pace)
        stranger.join = tuple(f"{other.host}:1" for other in lives if other is not life)
        self.world.retire(life)
        lives[lives.index(life)] = stranger
        self.judge.mark("a disk was lost")

    def _is_whole(self) -> bool:
        """Whether each shard's voters are all there and none is behind, nor would be after a power cut: then losing any one loses nothing.
        A configuration counts from where it was applied (raft-rs): a member whose disk does not know yet that the newest is committed
        would begin again with the one before, and might need the lost one for its majority."""
        committed = {shard: index for shard, (index, _) in self.judge.committed.items()}
        held: dict[int, int] = {}
        for life in self.world.lives:
            for replica in life.replicas:
                is_here = replica.failure is None and not replica.members.joint and replica.group.commit >= committed.get(replica.shard, 0)
                if is_here and self.judge.durable_commit(life, replica) >= self.judge.newest_members(replica.shard):
                    held[replica.shard] = held.get(replica.shard, 0) + (replica.group.replica_id in replica.members.voters)
        return all(held.get(shard, 0) >= FACTOR for shard in committed)

    # --- network ------------------------------------------------------------------------------------------------------

    async def _for_a_while(self, cuts: set[tuple[str, str]]) -> None:
        network = self.world.network
        network.cuts |= cuts
        if self._random.random() < 0.5:
            network.break_cut_links()
        await asyncio.sleep(self._random.choice((0.3, 1.0, 4.0)) * self._random.random())
        network.cuts -= cuts

    async def _partition(self) -> None:
        hosts = [life.host for life in self.world.lives]
        self._random.shuffle(hosts)
        one, other = hosts[: len(hosts) // 2], hosts[len(hosts) // 2 :]
        await self._for_a_while({pair for a in one for b in other for pair in ((a, b), (b, a))})

    async def _isolate(self) -> None:
        leaders = [life for life in self.world.lives if any(each.failure is None and each.group.is_leader for each in life.replicas)]
        life = self._random.choice(leaders or self.world.lives)
        await self._for_a_while(
            {p for other in self.world.lives if other is not life for p in ((life.host, other.host), (other.host, life.host))}
        )

    async def _cut_one_way(self) -> None:
        life = self._random.choice(self.world.lives)
        others = [other.host for other in self.world.lives if other is not life]
        chosen = self._random.sample(others, self._random.randint(1, len(others)))
        outward = self._random.random() < 0.5
        await self._for_a_while({(life.host, other) if outward else (other, life.host) for other in chosen})

    async def _ring(self) -> None:
        """Each sees only its neighbours."""
        hosts = [life.host for life in self.world.lives]
        count = len(hosts)
        far = {(hosts[a], hosts[b]) for a in range(count) for b in range(count) if (a - b) % count not in (0, 1, count - 1)}
        await self._for_a_while(far)

    async def _there_and_back(self) -> None:
        """Where a replica was there comes to be another one, while the network brings old messages: they are of another's time (P11)."""
        self.world.network.weather = Weather(replay_share=0.5)
        await self.administrator.move(and_back=True)
        await asyncio.sleep(self._random.random())
        self.world.network.weather = Weather()

    async def _bad_weather(self) -> None:
        chosen, network = self._random, self.world.network
        network.weather = Weather(
            delay_s=chosen.choice((0.0005, 0.005, 0.03)),
            tail_share=chosen.choice((0.02, 0.2)),
            tail_s=chosen.choice((0.05, 0.5)),
            drop_share=chosen.choice((0.0, 0.05, 0.3)),
            repeat_share=chosen.choice((0.0, 0.2)),
            replay_share=chosen.choice((0.0, 0.1)),
            reorder=chosen.random() < 0.5,
            lost_reply_share=chosen.choice((0.0, 0.1)),
        )
        await asyncio.sleep(chosen.random() * 3)
        network.weather = Weather()


async def _purge(service: Any, context_id: str) -> None:
    with suppress(Refusal):
        await service.purge_context(context_id)


async def _checkpoint(upkeep: Upkeep, replica: Replica, keeps_for_others: bool, after_s: float = 0.0) -> None:
    await asyncio.sleep(after_s)
    try:
        await upkeep.checkpoint(replica, keeps_for_others=keeps_for_others)
    except StorageError as error:
        upkeep._on_error(error)
