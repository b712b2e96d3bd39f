"""A cluster of three to tell a story about: formed, healthy, and watched by the judge."""

from collections.abc import Callable, Coroutine
from typing import Any

from context_node.contexts.requests import Append
from context_node.runtime.replica import Replica
from simulation.faults import Faults
from simulation.judge import Judge
from simulation.loop import SimulatedLoop, run_simulated
from simulation.run import form
from simulation.watching import watching
from simulation.world import Life, World
from support.running_nodes import message


def tell(story: Callable[[World, Judge, Faults], Coroutine[Any, Any, None]], seed: int = 1) -> None:
    """Form a cluster of three, and let the story happen to it."""
    loop = SimulatedLoop(seed)
    judge = Judge(loop)
    world = World(loop, judge)

    async def run() -> None:
        await form(world, 3)
        await story(world, judge, Faults(world, judge))

    try:
        with watching(judge):
            run_simulated(loop, run())
    finally:
        world.close()


async def write(world: World, count: int, life: Life | None = None) -> None:
    """So many appends, over five contexts, on one node."""
    life = life or world.lives[0]
    node = life.node
    assert node is not None
    for number in range(count):
        await life.run(node.service.append(f"c{number % 5}", Append([message(f"text {number}")], create=True)))


def leader_of(world: World, shard: int) -> tuple[Life, Replica]:
    """Who leads a shard now, of those that live and are not paused."""
    found = [
        (life, replica)
        for life in world.lives
        if life.is_serving
        for replica in life.replicas
        if replica.shard == shard and replica.failure is None and replica.group.is_leader
    ]
    assert found, f"nobody leads shard {shard}"
    return max(found, key=lambda each: each[1].group.term)
