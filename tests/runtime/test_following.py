"""Any node answers, also for shards that it does not hold: streams, exports and policies come from a node that does."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest

from context_node.contexts.refusals import ContextNotFound, CursorAhead, PolicyNotFound, Refusal, Unavailable
from context_node.contexts.requests import PutPolicy
from context_node.runtime import following
from context_node.runtime.following import Followed, RemoteSubscription
from context_node.runtime.routing import RoutedService
from context_node.runtime.shards import shard_of
from context_node.runtime.streams import Frame
from support.clusters import TestCluster, until
from support.running_nodes import NodeLife, append, run

SHARDS = 4


async def with_an_outsider(folder: Path) -> tuple[TestCluster, NodeLife]:
    """Three nodes that hold everything, and a fourth that holds nothing."""
    cluster = TestCluster(folder)
    for _ in range(4):
        await cluster.add()
    await cluster.fill(3)
    outsider = cluster.nodes[3]
    assert not outsider.engine.replicas
    return cluster, outsider


def followed_by(node: NodeLife) -> Followed:
    return cast(RoutedService, node.service)._followed


async def frames_of(subscription: Any, count: int) -> list[Frame]:
    found: list[Frame] = []
    while len(found) < count:
        frame = await subscription.next(10.0)
        assert frame is not None, f"nothing came after {found}"
        found.append(frame)
    return found


async def collected(chunks: AsyncIterator[bytes]) -> bytes:
    return b"".join([chunk async for chunk in chunks])


def test_a_stream_from_a_node_without_the_shard_is_the_stream_of_one_that_has_it(tmp_path: Path) -> None:
    async def check() -> None:
        cluster, outsider = await with_an_outsider(tmp_path)
        for number in range(250):
            await append(cluster.nodes[number % 3].service, "c", f"text {number}")
        theirs = await outsider.service.subscribe("c", 0)
        assert isinstance(theirs, RemoteSubscription)
        holder = await cluster.leader(shard_of("c", SHARDS))
        ours = await holder.service.subscribe("c", 0)
        assert await frames_of(theirs, 251) == await frames_of(ours, 251)
        waiting = asyncio.create_task(theirs.next(10.0))
        await append(outsider.service, "c", "live")
        frame = await waiting
        assert frame is not None
        assert (frame.event, frame.seq) == ("message", 251)
        assert await theirs.next(0.01) is None
        await outsider.service.purge_context("c")
        assert (await frames_of(theirs, 1))[0].event == "purged"
        assert len(followed_by(holder)) == 1
        theirs.close()
        theirs.close()

        async def is_closed() -> bool:
            return len(followed_by(holder)) == 0

        await until(is_closed)
        with pytest.raises(ContextNotFound):
            await outsider.service.subscribe("nobody", 0)
        await append(outsider.service, "d", "text")
        with pytest.raises(CursorAhead):
            await outsider.service.subscribe("d", 9)
        ours.close()
        await cluster.stop()

    run(check())


def test_the_death_of_the_node_that_reads_ends_the_stream_and_its_cursor_goes_on_elsewhere(tmp_path: Path) -> None:
    async def check() -> None:
        cluster, outsider = await with_an_outsider(tmp_path)
        await append(outsider.service, "c", "first")
        theirs = await outsider.service.subscribe("c", 0)
        assert [frame.event for frame in await frames_of(theirs, 2)] == ["message", "context"]
        holder = await cluster.leader(shard_of("c", SHARDS))
        waiting = asyncio.create_task(theirs.next(10.0))
        await asyncio.sleep(0)
        await holder.kill()
        with pytest.raises(Unavailable):
            await waiting
        theirs.close()

        async def appended() -> bool:
            await append(outsider.service, "c", "second")
            return True

        await until(appended)
        again = await until(lambda: outsider.service.subscribe("c", 1))
        assert (await frames_of(again, 1))[0].seq == 2
        again.close()
        await cluster.stop()

    run(check())


def test_a_stream_that_nobody_asks_after_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def check() -> None:
        cluster, outsider = await with_an_outsider(tmp_path)
        await append(outsider.service, "c", "first")
        lost = await outsider.service.subscribe("c", 0)
        monkeypatch.setattr(following, "FORGOTTEN_S", -1.0)
        other = await outsider.service.subscribe("c", 0)
        holder = await cluster.leader(shard_of("c", SHARDS))
        assert len(followed_by(holder)) == 1
        with pytest.raises(Unavailable, match="connect again"):
            await lost.next(1.0)
        monkeypatch.setattr(following, "FOLLOWED_MAX", 0)
        with pytest.raises(Refusal, match="too many streams"):
            await outsider.service.subscribe("c", 0)
        lost.close()
        other.close()
        await cluster.stop()

    run(check())


def test_an_export_from_a_node_without_the_shard_has_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("context_node.runtime.routing.EXPORT_MESSAGES", 7)

    async def check() -> None:
        cluster, outsider = await with_an_outsider(tmp_path)
        for number in range(30):
            await append(outsider.service, "c", f"text {number}")
        holder = await cluster.leader(shard_of("c", SHARDS))
        expected = await collected(holder.service.export("c"))
        assert expected.count(b"\n") == 30
        assert await collected(outsider.service.export("c")) == expected
        with pytest.raises(ContextNotFound):
            await collected(outsider.service.export("nobody"))
        # A purge in the middle ends it, also when another context takes the id.
        chunks = outsider.service.export("c")
        assert (await anext(chunks)).count(b"\n") == 7
        await outsider.service.purge_context("c")
        for number in range(30):
            await append(outsider.service, "c", f"other {number}")
        assert await collected(chunks) == b""
        await cluster.stop()

    run(check())


def test_policies_are_read_through_a_node_without_the_system_group(tmp_path: Path) -> None:
    async def check() -> None:
        cluster, outsider = await with_an_outsider(tmp_path)
        await outsider.service.put_policy("p", PutPolicy("last_n", {"limit": 3}))
        assert (await outsider.service.get_policy("p")).config == {"limit": 3}
        assert [policy.name for policy in await outsider.service.list_policies()] == ["p"]
        await outsider.service.delete_policy("p")
        with pytest.raises(PolicyNotFound):
            await outsider.service.get_policy("p")
        assert await outsider.service.list_policies() == []
        await cluster.stop()

    run(check())
