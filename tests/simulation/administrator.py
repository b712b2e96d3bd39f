"""The administrator of a simulated cluster: who moves replicas, hands leaderships over, and replaces what a lost disk held.

Knows the steps that every node offers, and takes each on whichever node answers. Does not know faults of processes, disks and networks.
Invariant: a lost node counts as replaced only when no shard names it any more.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any

from context_node.contexts.refusals import Refusal
from context_node.runtime.shards import SYSTEM_SHARD
from simulation.judge import Judge
from simulation.world import World, settle

FACTOR = 3
STEP_S = 8.0


class Administrator:
    """See the module's docstring. `lost`: numbers of nodes whose disks are gone and whose replicas are still members."""

    def __init__(self, world: World, judge: Judge) -> None:
        self.world = world
        self.judge = judge
        self.lost: set[int] = set()
        self._random = random.Random(world.loop.random.getrandbits(64))

    async def step(self, work: Callable[[Any], Awaitable[Any]]) -> Any:
        """A step on any node; None if it was refused or not answered."""
        serving = [life for life in self.world.lives if life.is_serving and life.node is not None and life.node.admin is not None]
        if not serving:
            return None
        life = self._random.choice(serving)
        assert life.node is not None
        admin, loop = life.node.admin, self.world.loop
        answer: asyncio.Future[Any] = loop.create_future()

        async def handle() -> None:
            result: Any = None
            try:
                result = await work(admin)
            except Refusal as refusal:
                self.judge.mark(f"a step was refused: {refusal.code}")
            loop.call_soon(settle, answer, result, None, context=self.world.outside)

        life.run(handle())
        try:
            async with asyncio.timeout(STEP_S):
                return await answer
        except TimeoutError:
            return None

    async def look(self) -> Any:
        return await self.step(lambda admin: admin.look())

    async def learn(self, shard: int, node: int) -> None:
        await self.step(lambda admin: admin.add_learner(shard, node))

    async def change(self, shard: int, promote: tuple[int, ...], remove: tuple[int, ...]) -> None:
        await self.step(lambda admin: admin.change_members(shard, promote, remove))

    async def transfer(self) -> None:
        view = await self.look()
        if view is None:
            return
        shard = self._random.choice(view.shards)
        voters = [one.node for one in shard.replicas if one.is_voter]
        if voters:
            node = self._random.choice(voters)
            await self.step(lambda admin: admin.transfer_leader(shard.shard, node))

    async def move(self, *, and_back: bool = False) -> None:
        """One replica to a node that has none of the shard; `and_back`, then another one to where it was."""
        view = await self.look()
        if view is None or self.lost:
            return
        shard = self._random.choice(view.shards)
        there = {one.node for one in shard.replicas}
        free = [node.number for node in view.nodes if node.is_alive and node.number not in there]
        leaving = [one for one in shard.replicas if one.is_voter and one.node != shard.leader]
        if free and leaving:
            node, old = self._random.choice(free), self._random.choice(leaving)
            new = await self.exchange(shard.shard, node, old.replica_id)
            if and_back and new:
                await self.exchange(shard.shard, old.node, new)

    async def repeat(self) -> None:
        """A step whose aim is met already changes nothing."""
        view = await self.look()
        if view is None:
            return
        shard = self._random.choice(view.shards)
        if shard.replicas:
            one = self._random.choice(shard.replicas)
            await self.learn(shard.shard, one.node)
            if one.is_voter:
                await self.change(shard.shard, (one.replica_id,), ())

    async def exchange(self, shard: int, node: int, leaving: int) -> int:
        """The id of the replica that was to take the place of `leaving`; 0 if none came so far."""
        await self.learn(shard, node)
        for _ in range(10):
            view = await self.look()
            found = None if view is None else next((each for each in view.shards if each.shard == shard), None)
            learner = None if found is None else next((one for one in found.replicas if one.node == node and not one.is_voter), None)
            if learner is not None and learner.is_caught_up:
                await self.change(shard, (learner.replica_id,), (leaving,))
                self.judge.mark("a replica was moved")
                return int(learner.replica_id)
            await asyncio.sleep(0.1)
        return 0

    async def replace(self) -> None:
        """Bring every shard back to its voters: new replicas for those that are lost, and an end to what was half done."""
        view = await self.look()
        if view is None:
            return
        alive = [node.number for node in view.nodes if node.is_alive and node.number not in self.lost]
        for shard in view.shards:
            if shard.leader is None or shard.is_joint:
                continue
            for one in shard.replicas:
                if one.is_missing and not one.is_voter:
                    # A change that took long named a replica that another try has replaced: it can never catch up.
                    await self.change(shard.shard, (), (one.replica_id,))
            gone = [one for one in shard.replicas if one.node in self.lost]
            voters = [one for one in shard.replicas if one.is_voter and one not in gone]
            learners = [one for one in shard.replicas if not one.is_voter and one not in gone]
            promote = tuple(one.replica_id for one in learners if one.is_caught_up)[: max(0, FACTOR - len(voters))]
            surplus = [one.replica_id for one in learners if len(voters) >= FACTOR]
            there = {one.node for one in shard.replicas}
            free = [number for number in alive if number not in there]
            if promote or (gone and len(voters) >= FACTOR) or surplus:
                remove = tuple(one.replica_id for one in gone) if len(voters) + len(promote) >= FACTOR else ()
                await self.change(shard.shard, promote, (*remove, *surplus))
            elif len(voters) + len(learners) < FACTOR and free:
                await self.learn(shard.shard, self._random.choice(free))
        members = {one.node for shard in view.shards for one in shard.replicas}
        is_seen = len(view.shards) == 1 + sum(shard.shard != SYSTEM_SHARD for shard in view.shards) and all(
            shard.leader is not None for shard in view.shards
        )
        if is_seen and self.lost and not self.lost & members:
            self.judge.mark("a lost disk's replicas were all replaced")
            self.lost.clear()
