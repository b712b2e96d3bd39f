"""W5 through the runtime: what happens to a node between two requests changes nothing about its answers or its state."""

import random
from pathlib import Path
from typing import Any

import msgspec
import pytest

from context_node.contexts.replies import ContextView
from support.entry_tape import EntryTape
from support.node_lives import wild
from support.running_nodes import BY_HAND, NodeLife, everything, life, run

STEPS = 150
SHARDS = 2


class Time:
    """The same time for both nodes, however often they look."""

    def __init__(self) -> None:
        self.now_ms = 1_700_000_000_000

    def __call__(self) -> int:
        return self.now_ms


def without_incarnation(answer: Any) -> Any:
    """An answer, without what comes of the log's index: every restart adds the empty entry of a new term to it."""
    if isinstance(answer, tuple):
        return tuple(without_incarnation(each) for each in answer)
    return msgspec.structs.replace(answer, incarnation="") if isinstance(answer, ContextView) else answer


async def seen(node: NodeLife) -> dict[str, Any]:
    """All that readers see, without ETags and incarnations."""
    found = await everything(node.service)
    plain = {}
    for context_id, (view, window, small, pages, tail, export) in found.items():
        bodies = [(answer.body, answer.version) for answer in (window, small)]
        plain[context_id] = (without_incarnation(view), bodies, pages, tail, export)
    return plain


class Shaken:
    """A node that is disturbed between requests. Everything that it ever applies is on `tape`."""

    def __init__(self, directory: Path, time: Time, seed: int) -> None:
        self.tape = EntryTape()
        self.moves = 0
        self.disturbances = 0
        self._dice = random.Random(seed)
        self._directory = directory
        self._time = time
        self.node = self._fresh()

    def _fresh(self) -> NodeLife:
        node = life(self._directory / f"shaken-{self.moves}", upkeep=BY_HAND, shards=SHARDS)
        node.clock = self._time
        return node

    async def disturb(self) -> None:
        """Something that no client should be able to notice."""
        node = self.node
        self.disturbances += 1
        what = self._dice.choice(("restart", "kill", "forget", "flush", "checkpoint", "scrub", "move"))
        if what in ("restart", "kill"):
            await node.restart(hard=what == "kill")
        elif what == "forget":
            node.flush_all()
            node.forget_all()
        elif what == "flush":
            node.flush_all()
        elif what == "checkpoint":
            for replica in node.replicas:
                assert await node.upkeep.checkpoint(replica)
        elif what == "scrub":
            await node.upkeep.scrub()
        else:
            await self._move()
        for shard, replica in self.node.engine.replicas.items():
            replica.flush()
            assert replica.store.digest() == self.tape.digest(shard, replica.applied_index), f"shard {shard} after {what}"

    async def _move(self) -> None:
        """All shards go to a fresh node by snapshots, and that node goes on."""
        self.moves += 1
        old, new = self.node, await self._fresh().start()
        for shard, replica in old.engine.replicas.items():
            snapshot = await old.node.holdings.take_snapshot(shard)
            incoming = new.node.holdings.incoming_snapshot(snapshot.manifest)
            for number in incoming.missing:
                incoming.add(number, snapshot.chunk(number))
            await new.node.holdings.install_snapshot(incoming, replica.group.status().replica_id)
            snapshot.discard()
        await old.stop()
        self.node = new


@pytest.mark.parametrize("seed", range(6))
def test_w5_a_disturbed_node_answers_as_one_that_was_left_alone(tmp_path: Path, seed: int) -> None:
    """W5: restarted, killed, evicted, truncated, scrubbed and moved by snapshots at random between the same requests."""

    async def check() -> None:
        time = Time()
        calm = life(tmp_path / "calm", upkeep=BY_HAND, shards=SHARDS)
        calm.clock = time
        await calm.start()
        shaken = Shaken(tmp_path, time, seed + 1000)
        with shaken.tape.running():
            await shaken.node.start()
        moves, same_moves, dice = random.Random(seed), random.Random(seed), random.Random(seed)
        for step in range(STEPS):
            time.now_ms += 1_000 * dice.randint(0, 3)
            expected = await wild(calm.service, moves)
            with shaken.tape.running():
                found = await wild(shaken.node.service, same_moves)
                assert without_incarnation(found) == without_incarnation(expected), f"step {step}"
                if dice.random() < 0.12:
                    await shaken.disturb()
        with shaken.tape.running():
            assert await seen(shaken.node) == await seen(calm)
            await shaken.node.restart(hard=True)
            assert await seen(shaken.node) == await seen(calm)
            await shaken.node.stop()
        await calm.stop()
        assert shaken.disturbances >= 8

    run(check())
