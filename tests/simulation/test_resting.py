"""Groups with nothing to do rest, and wake for whatever needs them."""

import asyncio
from collections import Counter

from context_node.runtime.cluster import RAFT
from context_node.runtime.shards import shard_of
from simulation.faults import Faults
from simulation.judge import Judge
from simulation.network import SimulatedTransport
from simulation.stories import leader_of, tell, write
from simulation.world import ELECTION_TICKS, SHARDS, TICK_S, Life, World
from support.running_nodes import history, texts_of

ELECTION_S = ELECTION_TICKS * TICK_S


def all_rest(world: World) -> bool:
    return all(replica.is_resting for life in world.lives if life.is_serving for replica in life.replicas)


async def at_rest(world: World) -> None:
    await world.until(lambda: all_rest(world), 20, "LIVENESS", lambda: "not all groups went to rest")


async def moved_on(world: World, shard: int, term: int) -> None:
    def has_moved() -> bool:
        try:
            return leader_of(world, shard)[1].group.term > term
        except AssertionError:
            return False

    await world.until(has_moved, 6 * ELECTION_S, "LIVENESS", lambda: f"shard {shard} got no other leader")


def test_an_idle_cluster_says_nothing_but_that_it_lives() -> None:
    async def story(world: World, _judge: Judge, _faults: Faults) -> None:
        await write(world, 20)
        await at_rest(world)
        said: Counter[bytes] = Counter()
        on_sent = world.network.on_sent

        def count(source: SimulatedTransport, node: int, payload: bytes) -> None:
            said[payload[:1]] += 1
            on_sent(source, node, payload)

        world.network.on_sent = count
        await asyncio.sleep(20)
        assert said[RAFT] == 0
        assert all_rest(world)
        # One sign of life every second tick and a report every quarter of a second, from each of three to two others.
        assert sum(said.values()) <= 6 * 20 * (1 / (2 * TICK_S) + 4) * 1.1

    tell(story)


def test_a_write_and_a_read_wake_what_they_need() -> None:
    async def story(world: World, _judge: Judge, _faults: Faults) -> None:
        await at_rest(world)
        for life in world.lives:
            await at_rest(world)
            await write(world, 5, life)
            await at_rest(world)
            node = life.node
            assert node is not None
            messages = await life.run(history(node.service, "c0"))  # type: ignore[arg-type]
            assert texts_of(messages)

    tell(story)


def test_s3_the_death_of_a_resting_leader_is_noticed() -> None:
    """By the broken connection, and by silence where none breaks: the process is paused, or its machine cut off."""

    async def dies(world: World, _judge: Judge, _faults: Faults) -> None:
        await at_rest(world)
        life, replica = leader_of(world, 0)
        life.lose_power()
        await moved_on(world, 0, replica.group.term)

    async def pauses(world: World, _judge: Judge, _faults: Faults) -> None:
        await at_rest(world)
        life, replica = leader_of(world, 0)
        assert life.process is not None
        life.process.pause()
        await moved_on(world, 0, replica.group.term)
        life.process.go_on()
        await asyncio.sleep(2 * ELECTION_S)
        await at_rest(world)
        assert sum(each.shard == 0 and each.group.is_leader for one in world.lives for each in one.replicas) == 1

    async def is_cut_off(world: World, _judge: Judge, _faults: Faults) -> None:
        await at_rest(world)
        life, replica = leader_of(world, 0)
        for other in world.lives:
            if other is not life:
                world.network.cuts |= {(life.host, other.host), (other.host, life.host)}
        await moved_on(world, 0, replica.group.term)
        world.network.heal()
        await asyncio.sleep(2 * ELECTION_S)
        await at_rest(world)

    for story in (dies, pauses, is_cut_off):
        for seed in (1, 2, 3):
            tell(story, seed)


def test_a_member_that_was_away_finds_a_resting_group_and_catches_up() -> None:
    async def story(world: World, _judge: Judge, _faults: Faults) -> None:
        follower = next(life for life in world.lives if life is not leader_of(world, shard_of("c1", SHARDS))[0])
        follower.lose_process()
        other = next(life for life in world.lives if life is not follower)
        await asyncio.sleep(3 * ELECTION_S)
        await write(world, 10, other)
        await asyncio.sleep(6 * ELECTION_S)
        follower.start()
        await world.until(lambda: follower.is_ready, 30, "START", lambda: "the member did not start")
        await at_rest(world)
        states = {(replica.shard, replica.applied_index, replica.group.commit) for life in world.lives for replica in life.replicas}
        assert len(states) == SHARDS + 1

    tell(story)


def test_a_member_that_comes_back_to_a_group_at_rest_is_heard() -> None:
    """Its votes are refused, as nobody missed the leader; but whoever refuses one wakes, and the leader speaks to all again."""

    def is_whole(world: World) -> bool:
        """Whether every replica knows a leader, and has applied what the others have."""
        replicas = [replica for life in world.lives for replica in life.replicas]
        states = {(replica.shard, replica.applied_index) for replica in replicas}
        return len(replicas) == 3 * len(states) == 3 * (SHARDS + 1) and all(replica.group.leader_id for replica in replicas)

    async def comes_back(world: World, life: Life) -> None:
        await write(world, 10)
        await at_rest(world)
        life.lose_process()
        await asyncio.sleep(3 * ELECTION_S)
        life.start()
        await world.until(lambda: is_whole(world), 30, "LIVENESS", lambda: "nobody speaks to the member that came back")

    async def first(world: World, _judge: Judge, _faults: Faults) -> None:
        await comes_back(world, world.lives[0])

    async def last(world: World, _judge: Judge, _faults: Faults) -> None:
        await comes_back(world, world.lives[2])

    for seed in (1, 2, 3):
        for story in (first, last):
            tell(story, seed)
