"""What the simulation found, told again as short stories."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from context_node.contexts.requests import Append
from context_node.raft import MessageKind, peek_message
from simulation.faults import Faults
from simulation.judge import Judge
from simulation.loop import SimulatedLoop, run_simulated
from simulation.network import SimulatedTransport
from simulation.run import _form, _is_whole, _picture
from simulation.world import World, _decode_raft
from support.running_nodes import message


def tell(story: Callable[[World, Judge, Faults], Coroutine[Any, Any, None]], seed: int = 1) -> None:
    """Form a cluster of three, and let the story happen to it."""
    loop = SimulatedLoop(seed)
    judge = Judge(loop)
    world = World(loop, judge)

    async def run() -> None:
        await _form(world, 3)
        await story(world, judge, Faults(world, judge))

    try:
        with judge.watching():
            run_simulated(loop, run())
    finally:
        world.close()


async def write(world: World, count: int) -> None:
    node = world.lives[0].node
    assert node is not None
    for number in range(count):
        await world.lives[0].run(node.service.append(f"c{number % 5}", Append([message(f"text {number}")], create=True)))


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
            if payload[:1] == b"R" and any(peek_message(each)[0] == MessageKind.SNAPSHOT for _, each in _decode_raft(payload[1:])):
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
        await world.until(lambda: _is_whole(world, judge, faults), 60, "LIVENESS", lambda: _picture(world))

    # Of a few seeds: which replicas need a snapshot depends on the chances of each.
    for seed in (1, 2, 3):
        tell(story, seed)
