"""A cluster begins once: nodes that wait for one are told by an administrator, and a store that was removed never comes back as itself."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from context_node.contexts.refusals import Unprocessable
from context_node.contexts.requests import PutPolicy
from context_node.runtime.admin import ClusterAdmin
from context_node.runtime.cluster import ClusterOptions
from context_node.runtime.databases import StorageFailed
from context_node.runtime.membership import StoreRemoved
from context_node.runtime.not_here import NotHere
from support.clusters import SECRET, TestCluster, free_port, until
from support.running_nodes import NodeLife, append, history, life, run, texts_of

FIRST, SECOND = "a" * 32, "b" * 32


def waiting_nodes(folder: Path, count: int, **changes: object) -> list[NodeLife]:
    """Nodes of which each would join any of them, as the pods of a set would."""
    ports = [free_port() for _ in range(count)]
    join = tuple(f"127.0.0.1:{port}" for port in ports)
    nodes = []
    for place, port in enumerate(ports):
        cluster = ClusterOptions(host="127.0.0.1", port=port, secret=SECRET, join=join, tick_s=0.02, report_s=0.05)
        nodes.append(life(folder / f"n{place}", name=f"n{place}", cluster=replace(cluster, **changes), shards=4))  # type: ignore[arg-type]
    return nodes


def admin_of(node: NodeLife) -> ClusterAdmin:
    assert node.node.admin is not None
    return node.node.admin


async def is_waiting(node: NodeLife) -> bool:
    return hasattr(node, "node") and admin_of(node).describe_self().state == "waiting"


def test_nodes_wait_until_one_of_them_is_told_to_begin(tmp_path: Path) -> None:
    async def check() -> None:
        nodes = waiting_nodes(tmp_path, 3)
        starts = [asyncio.create_task(node.start()) for node in nodes]
        for node in nodes:
            await until(lambda node=node: is_waiting(node))
        assert not any(start.done() for start in starts)
        await admin_of(nodes[0]).begin(FIRST)
        await asyncio.gather(*starts)
        views = [admin_of(node).describe_self() for node in nodes]
        assert {view.cluster_id for view in views} == {FIRST}
        assert views[0].number == 1
        assert {view.state for view in views} == {"member"}
        await append(nodes[2].service, "c", "kept")
        # Telling it again changes nothing; another id is refused by whoever belongs to this one.
        await admin_of(nodes[0]).begin(FIRST)
        for node in nodes:
            with pytest.raises(Unprocessable, match=FIRST):
                await admin_of(node).begin(SECOND)
        assert texts_of(await history(nodes[1].service, "c")) == ["kept"]
        for node in reversed(nodes):
            await node.stop()

    run(check())


def test_a_node_begins_no_cluster_of_another_id_than_it_was_given(tmp_path: Path) -> None:
    async def check() -> None:
        (node,) = waiting_nodes(tmp_path, 1, cluster_id=FIRST, join=("127.0.0.1:1",))
        start = asyncio.create_task(node.start())
        await until(lambda: is_waiting(node))
        with pytest.raises(Unprocessable, match=FIRST):
            await admin_of(node).begin(SECOND)
        await admin_of(node).begin(FIRST)
        await start
        await append(node.service, "c", "kept")
        with pytest.raises(StorageFailed, match=f"belongs to cluster {FIRST}"):
            assert node.options.cluster is not None
            await node.restart(cluster=replace(node.options.cluster, cluster_id=SECOND))
        assert node.options.cluster is not None
        node.options = replace(node.options, cluster=replace(node.options.cluster, cluster_id=FIRST))
        await node.start()
        assert texts_of(await history(node.service, "c")) == ["kept"]
        await node.stop()

    run(check())


def test_a_node_that_was_a_member_once_never_begins_a_second_cluster(tmp_path: Path) -> None:
    """Its replicas were moved away: it looks as empty as a new one, and is not."""

    async def check() -> None:
        cluster = await TestCluster(tmp_path).start(1)
        newcomer = await cluster.add()
        cluster_id = admin_of(newcomer).describe_self().cluster_id
        assert newcomer.replicas == []
        await newcomer.stop()
        await cluster.nodes[0].kill()
        start = asyncio.create_task(newcomer.start())

        async def asks_in_vain() -> bool:
            try:
                await admin_of(newcomer).begin(cluster_id)
            except NotHere:
                return False
            return newcomer.replicas == [] if newcomer.node.engine is not None else admin_of(newcomer).describe_self().number == 0

        await until(asks_in_vain)
        with pytest.raises(Unprocessable, match="already"):
            await admin_of(newcomer).begin(SECOND)
        start.cancel()
        await asyncio.gather(start, return_exceptions=True)
        await newcomer.kill()

    run(check())


def test_a_removed_store_ends_its_node_and_with_leave_to_renew_joins_as_another(tmp_path: Path) -> None:
    async def check() -> None:
        cluster = await TestCluster(tmp_path).start(1)
        newcomer = await cluster.add()
        before = admin_of(newcomer).describe_self()
        await newcomer.stop()
        await admin_of(cluster.nodes[0]).mark_node(before.number, removed=True)
        with pytest.raises(StoreRemoved):
            await newcomer.start()
        assert newcomer.options.cluster is not None
        newcomer.options = replace(newcomer.options, cluster=replace(newcomer.options.cluster, renews=True))
        await newcomer.start()
        after = admin_of(newcomer).describe_self()
        assert (after.store, after.number) != (before.store, before.number)
        assert after.number > before.number
        await cluster.stop()

    run(check())


def test_a_node_that_may_renew_ends_when_it_is_removed_while_it_runs(tmp_path: Path) -> None:
    async def check() -> None:
        cluster = await TestCluster(tmp_path).start(1)
        newcomer = await cluster.add()
        assert newcomer.options.cluster is not None
        await newcomer.restart(cluster=replace(newcomer.options.cluster, renews=True))
        before = admin_of(newcomer).describe_self()
        await admin_of(cluster.nodes[0]).mark_node(before.number, removed=True)

        async def has_ended() -> bool:
            return any(isinstance(error, StoreRemoved) for error in newcomer.fatal)

        await until(has_ended)
        newcomer.fatal.clear()
        await newcomer.restart()
        assert admin_of(newcomer).describe_self().store != before.store
        await cluster.stop()

    run(check())


def test_every_node_says_which_policies_it_follows(tmp_path: Path) -> None:
    async def check() -> None:
        cluster = await TestCluster(tmp_path).start(3)
        await cluster.nodes[1].service.put_policy("p", PutPolicy(strategy="last_n", config={"limit": 5}))

        async def all_follow() -> bool:
            told = await admin_of(cluster.nodes[2]).policies()
            return [one.policies.get("p") for one in told] == [1, 1, 1]

        await until(all_follow)
        assert [one.is_alive for one in await admin_of(cluster.nodes[0]).policies()] == [True] * 3
        await cluster.nodes[1].kill()
        assert [one.is_alive for one in await admin_of(cluster.nodes[0]).policies()].count(False) == 1
        await cluster.stop()

    run(check())
