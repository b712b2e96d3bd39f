"""A slow disk costs a node its leaderships, and nobody else anything: leaders are where disks are quick."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from context_node.raft._core import sync_file
from context_node.runtime.cluster import ClusterOptions
from context_node.runtime.slow_disk import HELD_S, DiskWatch
from support.clusters import TestCluster, until
from support.running_nodes import NodeLife, append, run


def test_some_slow_commits_are_nothing_and_many_are() -> None:
    watch, now = DiskWatch(0.1), 100.0
    for _ in range(50):
        watch.begin(now)
        watch.end(now + 0.005)
        now += 0.01
    watch.begin(now)
    watch.end(now + 0.3)
    assert not watch.is_slow(now)
    for _ in range(10):
        watch.begin(now)
        now += 0.3
        watch.end(now)
    assert watch.is_slow(now)
    for _ in range(20):
        watch.begin(now)
        watch.end(now)
    assert watch.is_slow(now + HELD_S - 0.1)
    assert not watch.is_slow(now + HELD_S + 0.1)


def test_a_commit_that_does_not_come_back_is_slow_before_it_is_done() -> None:
    watch = DiskWatch(0.1)
    watch.begin(5.0)
    assert not watch.is_slow(5.5)
    assert watch.is_slow(6.1)


def test_no_disk_is_slow_where_nobody_wants_to_know() -> None:
    watch = DiskWatch(0.0)
    for at in range(20):
        watch.begin(float(at * 10))
        assert not watch.is_slow(at * 10 + 9.0)
        watch.end(at * 10 + 9.0)


def slowed(node: NodeLife) -> Callable[[float], None]:
    """Make the node's syncs slow; the answer sets by how many seconds."""
    worker: Any = node.engine._worker
    pause = [0.0]

    def slow(file: int) -> None:
        time.sleep(pause[0])
        sync_file(file)

    worker.sync = lambda file, outcome: worker.submit(lambda: slow(file), outcome)
    return lambda seconds: pause.__setitem__(0, seconds)


def led_by(node: NodeLife) -> int:
    return sum(replica.group.is_leader for replica in node.replicas)


def test_s3_a_node_with_a_slow_disk_hands_over_what_it_leads_unless_all_are_slow(tmp_path: Path) -> None:
    async def check() -> None:
        cluster = await TestCluster(tmp_path).start(3)
        node = await cluster.leader(0)
        options = node.options.cluster
        assert isinstance(options, ClusterOptions)
        assert led_by(node) > 0
        for each in cluster.nodes:
            each.engine.disk._limit_s = 0.02
        pauses = {each.options.name: slowed(each) for each in cluster.nodes}
        for pause in pauses.values():
            pause(0.05)

        async def all_are_slow() -> bool:
            await append(node.service, "c", "text")
            slow = [each.node.cluster.slow for each in cluster.nodes if each.node.cluster is not None]
            return all(sum(known.values()) == 2 for known in slow)

        await until(all_are_slow)
        before = [led_by(each) for each in cluster.nodes]
        for _ in range(3):
            await append(node.service, "c", "text")
        assert [led_by(each) for each in cluster.nodes] == before, "nobody has a better disk"
        for each in cluster.nodes:
            each.engine.disk._slow_until = -1.0
            if each is not node:
                pauses[each.options.name](0.0)
                each.engine.disk.mean_s = 0.0

        async def is_handed_over() -> bool:
            await append(node.service, "c", "text")
            return led_by(node) == 0

        await until(is_handed_over)
        view = await cluster.look()
        assert [each.name for each in view.nodes if each.has_slow_disk] == [node.options.name]
        pauses[node.options.name](0.0)
        await cluster.stop()

    run(check())
