"""What the simulation found, told again as short stories."""

import asyncio
from typing import Any

from context_node.raft import MessageKind, peek_message
from context_node.runtime.databases import DiskFull
from context_node.runtime.engine import Engine
from simulation.faults import Faults
from simulation.judge import Judge
from simulation.network import SimulatedTransport
from simulation.run import is_whole, picture
from simulation.stories import tell, write
from simulation.world import SHARDS, World, decode_raft


def test_a_snapshot_whose_announcement_was_lost_is_announced_again() -> None:
    """Raft waits for ever for a follower that was told of a snapshot; the word of it can be lost like any other."""

    async def story(world: World, judge: Judge, faults: Faults) -> None:
        victim = world.lives[2]
        victim.lose_process()
        await asyncio.sleep(2)
        await write(world, 60)
        await faults._checkpoint()
        await asyncio.sleep(1)
        lost = 0
        deliver = SimulatedTransport._deliver

        def lose_announcements(self: SimulatedTransport, link: Any, payload: bytes, bulk: bool) -> None:
            nonlocal lost
            if payload[:1] == b"R" and any(peek_message(each)[0] == MessageKind.SNAPSHOT for _, each in decode_raft(payload[1:])):
                lost += 1
                return
            deliver(self, link, payload, bulk)

        SimulatedTransport._deliver = lose_announcements  # type: ignore[method-assign]
        try:
            victim.start()
            await asyncio.sleep(3)
        finally:
            SimulatedTransport._deliver = deliver  # type: ignore[method-assign]
        assert lost
        await world.until(lambda: is_whole(world, judge, faults), 60, "LIVENESS", lambda: picture(world))

    # Of a few seeds: which replicas need a snapshot depends on the chances of each.
    for seed in (1, 2, 3):
        tell(story, seed)


def test_a_snapshot_stays_where_the_disk_fills_up_just_after_the_log_named_it() -> None:
    """The switch is committed, and before that is told another commit finds the disk full: the node starts over with what the log names."""

    async def story(world: World, judge: Judge, faults: Faults) -> None:
        victim = world.lives[2]
        victim.lose_process()
        await asyncio.sleep(2)
        await write(world, 60)
        await faults._checkpoint()
        await asyncio.sleep(1)
        finish = Engine.log_job
        failed: list[Engine] = []

        async def finish_and_fail(engine: Engine, job: Any) -> None:
            await finish(engine, job)
            if victim.node is not None and engine is victim.node.engine and not failed:
                failed.append(engine)
                victim.excuse = "its disk was filled"
                engine.fail(DiskFull("log.db", "commit", "no space"))

        Engine.log_job = finish_and_fail  # type: ignore[assignment]
        try:
            victim.start()
            await world.until(lambda: bool(failed), 60, "STORY", lambda: "no snapshot was installed")
        finally:
            Engine.log_job = finish  # type: ignore[method-assign]
        await world.until(lambda: is_whole(world, judge, faults), 60, "LIVENESS", lambda: picture(world))

    for seed in (1, 2, 3):
        tell(story, seed)


def test_a_configuration_counts_after_a_power_cut_of_all_although_one_disk_is_lost_in_it() -> None:
    """A configuration holds from where it was applied, and a quiet group's commit index may never have been written since: its members
    would begin again with the configuration before, and need the lost one for a majority."""

    async def story(world: World, judge: Judge, faults: Faults) -> None:
        await asyncio.sleep(2)
        await faults._lose_disk()
        lost = next(life for life in world.lives if "." in life.name)
        others = [life for life in world.lives if life is not lost]
        for life in others:
            life.lose_power()
        for life in others:
            life.start()

        def are_led() -> bool:
            leading = [replica.shard for life in others for replica in life.replicas if replica.failure is None and replica.group.is_leader]
            return len(set(leading)) == SHARDS + 1

        await world.until(are_led, 60, "LIVENESS", lambda: picture(world))

    for seed in (1, 2, 3):
        tell(story, seed)
