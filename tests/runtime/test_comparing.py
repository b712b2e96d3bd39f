"""Replicas hash their state behind the same entry: equal ones agree while writes go on, and one wrong byte on one disk is found. A node
that meets a command of a newer version stops that shard instead of skipping it."""

import asyncio
import itertools
from contextlib import suppress
from pathlib import Path

import apsw
import pytest

from context_node.contexts import revisions
from context_node.contexts.commands import Compare
from context_node.contexts.refusals import Refusal
from context_node.contexts.requests import Append
from context_node.runtime.admin import ClusterAdmin
from context_node.runtime.databases import StorageFailed
from context_node.runtime.shards import SYSTEM_SHARD
from support.clusters import TestCluster, until
from support.running_nodes import NodeLife, append, life, message, run

SHARDS = 4


def admin_of(node: NodeLife) -> ClusterAdmin:
    assert node.node.admin is not None
    return node.node.admin


def test_w5_replicas_agree_at_any_entry_while_writes_go_on(tmp_path: Path) -> None:
    async def check() -> None:
        cluster = await TestCluster(tmp_path).start(3)
        stop = asyncio.Event()

        async def talk(context_id: str) -> None:
            for number in itertools.count():
                if stop.is_set():
                    return
                text = f"{context_id} {number}"
                with suppress(Refusal):
                    await cluster.nodes[number % 3].service.append(context_id, Append([message(text, id=text)], create=True))

        talks = [asyncio.create_task(talk(f"c{number}")) for number in range(8)]
        seen = set()
        for place, shard in enumerate([*range(SHARDS), SYSTEM_SHARD] * 3):
            found = await admin_of(cluster.nodes[place % 3]).compare(shard)
            assert found.is_equal, found
            assert all(one.digest is not None for one in found.replicas), found
            assert len(found.replicas) == 3
            seen.add((shard, found.index, found.replicas[0].digest))
        stop.set()
        await asyncio.gather(*talks)
        assert len(seen) == 3 * (SHARDS + 1)
        await cluster.stop()

    run(check())


def test_w5_one_wrong_byte_on_one_disk_is_found_and_named(tmp_path: Path) -> None:
    async def check() -> None:
        cluster = await TestCluster(tmp_path).start(3)
        for number in range(12):
            await append(cluster.nodes[0].service, f"c{number}", "text")
        leading = await cluster.leader(0)
        other = next(node for node in cluster.nodes if node is not leading)
        replica = other.engine.replicas[0]
        assert (await admin_of(other).compare(0)).is_equal
        await replica.stored()
        replica.store._database.execute("UPDATE messages SET body=replace(body, 'text', 'tixt')")
        assert replica.store._database.changes()
        found = await admin_of(cluster.nodes[0]).compare(0)
        assert not found.is_equal
        digests = {one.node: one.digest for one in found.replicas}
        cluster_of = other.node.cluster
        assert cluster_of is not None
        wrong = digests.pop(cluster_of.number)
        assert len(set(digests.values())) == 1
        assert wrong not in digests.values()
        for shard in range(1, SHARDS):
            assert (await admin_of(cluster.nodes[0]).compare(shard)).is_equal
        await cluster.stop()

    run(check())


def test_a_dead_node_is_left_open_and_the_others_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("context_node.runtime.admin.COMPARE_TIMEOUT_S", 3.0)

    async def check() -> None:
        cluster = await TestCluster(tmp_path).start(3)
        await cluster.nodes[2].kill()
        await cluster.all_led()
        found = await until(lambda: admin_of(cluster.nodes[0]).compare(1))
        assert found.is_equal
        assert sorted(one.digest is None for one in found.replicas) == [False, False, True]
        await cluster.stop()

    run(check())


def test_a_command_of_a_newer_version_stops_the_shard_that_holds_it_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(revisions.SINCE, Compare, 2)  # type: ignore[misc, call-overload]

    async def check() -> None:
        cluster = await TestCluster(tmp_path).start(3)
        leading = await cluster.leader(0)
        with pytest.raises(AssertionError, match="above the feature level 1"):
            leading.engine.replicas[0].propose(Compare(1, "too early"))
        # A leader of the newer version that does not keep to the rule: the others must not guess.
        leading.engine.replicas[0].revision = 2
        leading.engine.replicas[0].level = lambda: 2
        with suppress(Refusal):
            await leading.engine.replicas[0].propose(Compare(1, "newer"))
        for node in cluster.nodes:
            if node is not leading:
                replica = node.engine.replicas[0]

                async def is_stopped() -> bool:
                    return replica.failure is not None  # noqa: B023

                await until(is_stopped)
                assert "newer version" in str(replica.failure)
                assert all(node.engine.replicas[shard].failure is None for shard in range(1, SHARDS))
        await cluster.stop()

    run(check())


def test_s4_a_directory_of_a_newer_version_is_refused_before_it_is_read(tmp_path: Path) -> None:
    async def check() -> None:
        newer = life(tmp_path / "n", revision=2)
        await newer.start()
        await append(newer.service, "c", "text")
        await newer.stop()
        with pytest.raises(StorageFailed, match="feature level 2, and this one understands 1"):
            await life(tmp_path / "n").start()

    run(check())


def test_s4_a_node_that_went_back_is_refused_after_the_level_was_raised(tmp_path: Path) -> None:
    """The node was away when the others ended the upgrade, so its disk does not know."""

    async def check() -> None:
        cluster = await TestCluster(tmp_path, revision=2).start(1)
        for _ in range(2):
            await cluster.add()
        await cluster.fill()
        assert {(await cluster.look()).feature_level} == {2}
        old = cluster.nodes[2]
        await old.restart(revision=2)
        await old.kill()

        # As if the level had been raised just now: nothing on its disk says so.
        log = old.options.data_dir + "/log.db"
        connection = apsw.Connection(log)
        connection.execute("DELETE FROM meta WHERE key='level'")
        connection.close()
        with suppress(RuntimeError):
            await old.restart(hard=True, revision=1)

        async def has_ended() -> bool:
            return any("feature level 2" in str(error) for error in old.fatal)

        await until(has_ended)
        await old.kill()
        old.fatal.clear()
        await cluster.stop()

    run(check())
