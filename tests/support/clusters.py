"""Several nodes of one cluster inside the test's process, talking over real sockets on the loopback.

Knows how nodes are started, joined, filled with replicas, killed, moved and started again. Does not know what a test checks. Invariant:
each node keeps its data directory and its peer port for all its lives, but for `wipe` and `move`.
"""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from context_node.contexts.refusals import Refusal
from context_node.runtime.admin import ClusterView
from context_node.runtime.cluster import ClusterOptions
from context_node.runtime.shards import SYSTEM_SHARD
from support.running_nodes import NodeLife, life

SECRET = b"a secret of all nodes of the test"
DEADLINE_S = 30.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def until(condition: Callable[[], Awaitable[Any]], deadline_s: float = DEADLINE_S) -> Any:
    """Wait for something true, and give it back. Refusals count as not yet."""
    loop = asyncio.get_running_loop()
    end = loop.time() + deadline_s
    last: object = None
    while loop.time() < end:
        try:
            last = await condition()
            if last:
                return last
        except Refusal as refusal:
            last = refusal
        await asyncio.sleep(0.02)
    raise AssertionError(f"not within {deadline_s} s; last seen: {last!r}")


class TestCluster:
    """Nodes by their place, 0 being the one that began the cluster."""

    __test__ = False

    def __init__(self, folder: Path, **changes: Any) -> None:
        self.folder = folder
        self.changes = changes
        self.nodes: list[NodeLife] = []
        self.ports: list[int] = []

    async def start(self, count: int) -> "TestCluster":
        """So many nodes, each shard with a voter on every one of them."""
        for _ in range(count):
            await self.add()
        await self.fill()
        return self

    async def add(self, name: str | None = None, folder: str | None = None) -> NodeLife:
        """One more node, without replicas."""
        place = len(self.nodes)
        port = free_port()
        cluster = ClusterOptions(
            host="127.0.0.1",
            port=port,
            secret=SECRET,
            join=tuple(f"127.0.0.1:{each}" for each in self.ports),
            tick_s=0.02,
            report_s=0.05,
        )
        name = name or f"n{place}"
        node = life(self.folder / (folder or name), **{"name": name, "cluster": cluster, **self.changes})
        self.nodes.append(node)
        self.ports.append(port)
        await node.start()
        return node

    @property
    def alive(self) -> list[NodeLife]:
        return [node for node in self.nodes if node.node.engine is not None]

    async def look(self) -> ClusterView:
        admin = self.alive[0].node.admin
        assert admin is not None
        return await admin.look()

    async def fill(self, factor: int | None = None) -> None:
        """Make every living node a voter of every shard, by the steps that an administrator has."""
        admin = self.alive[0].node.admin
        assert admin is not None
        numbers = [node.node.cluster.number for node in self.alive if node.node.cluster is not None][:factor]

        async def is_full() -> bool:
            view = await admin.look()
            done = True
            for shard in view.shards:
                there = {one.node for one in shard.replicas}
                for number in numbers:
                    if number not in there:
                        done = False
                        await admin.add_learner(shard.shard, number)
                ready = [one.replica_id for one in shard.replicas if not one.is_voter and one.is_caught_up]
                missing = sum(number not in {one.node for one in shard.replicas if one.is_voter} for number in numbers)
                if missing and len(ready) == missing:
                    await admin.change_members(shard.shard, tuple(ready), ())
                done &= not missing
            return done and await self.is_quiet()

        await until(is_full)

    async def is_quiet(self) -> bool:
        """Whether every shard has a leader that all its members have caught up with, and has been applied everywhere."""
        view = await self.look()
        applied = {shard.shard: shard.applied for shard in view.shards}
        replicas = [replica for node in self.alive for replica in node.engine.replicas.values()]
        return all(replica.applied_index >= applied[replica.shard] for replica in replicas) and all(
            shard.leader is not None
            and not shard.is_joint
            and all(one.match_index >= shard.applied for one in shard.replicas if one.is_voter)
            for shard in view.shards
        )

    async def leader(self, shard: int) -> NodeLife:
        """The living node that leads a shard, as soon as there is one."""

        async def found() -> NodeLife | None:
            for node in self.alive:
                replica = node.engine.replicas.get(shard)
                if replica is not None and replica.failure is None and replica.group.is_leader:
                    return node
            return None

        leading: NodeLife = await until(found)
        return leading

    async def all_led(self) -> None:
        """Wait until every shard has a leader among the living."""
        for shard in (*range(self.nodes[0].options.shards), SYSTEM_SHARD):
            await self.leader(shard)

    async def restart(self, node: NodeLife) -> None:
        """Start a node again that was stopped or killed. One that began the cluster does not join any."""
        await node.start()

    def wipe(self, node: NodeLife, folder: str) -> None:
        """Give a dead node an empty disk; it then joins by the others' addresses."""
        place = self.nodes.index(node)
        cluster = node.options.cluster
        assert cluster is not None
        others = tuple(f"127.0.0.1:{port}" for other, port in enumerate(self.ports) if other != place)
        node.options = replace(node.options, data_dir=str(self.folder / folder), cluster=replace(cluster, join=others))

    def move(self, node: NodeLife, *, join: tuple[int, ...] = ()) -> None:
        """Give a dead node another peer port, and nobody to ask but the nodes at places `join`, where they are dialed now."""
        place = self.nodes.index(node)
        self.ports[place] = free_port()
        cluster = node.options.cluster
        assert cluster is not None
        others = tuple(f"127.0.0.1:{self.ports[other]}" for other in join)
        node.options = replace(node.options, cluster=replace(cluster, port=self.ports[place], join=others))

    async def stop(self) -> None:
        """All that live, in order."""
        for node in self.alive:
            await node.stop()
