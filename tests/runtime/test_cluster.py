"""Three nodes are one service: any of them answers, a minority may die, be wiped or fall far behind, and nothing acknowledged is lost."""

import asyncio
import itertools
import os
from collections.abc import Awaitable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from context_node.contexts.refusals import Refusal, Unavailable, Unprocessable
from context_node.contexts.requests import Append, PolicyChoice, PutContext, PutPolicy
from context_node.raft import MessageKind, peek_message
from context_node.runtime.cluster import RAFT, Cluster, Led
from context_node.runtime.databases import DiskFull, StorageFailed
from context_node.runtime.read_barriers import Reader
from context_node.runtime.shards import node_of, replica_id_on, shard_of
from context_node.runtime.transport import PeerIdentity
from context_node.runtime.upkeep import UpkeepLimits
from support.clusters import TestCluster, until
from support.running_nodes import NodeLife, append, everything, history, life, list_ids, message, run, texts_of

SHARDS = 4


def cluster_of(node: NodeLife) -> Cluster:
    assert node.node.cluster is not None
    return node.node.cluster


async def persistent_append(cluster: TestCluster, context_id: str, text: str, place: int = 0) -> None:
    """As a client with ordinary retries would, asking whichever node is up: the message's id makes them safe."""
    tries = itertools.count(place)

    async def done() -> bool:
        node = cluster.alive[next(tries) % len(cluster.alive)]
        await node.service.append(context_id, Append([message(text, id=text)], create=True))
        return True

    await until(done)


def test_any_node_answers_and_sees_what_any_other_acknowledged(tmp_path: Path) -> None:
    """H5: reads are linearizable on every node, whoever leads."""

    async def check() -> None:
        cluster = await TestCluster(tmp_path).start(3)
        for number in range(60):
            writer, reader = cluster.nodes[number % 3], cluster.nodes[(number + 1) % 3]
            reply = await append(writer.service, f"c{number % 7}", f"text {number}")
            assert (await reader.service.get_context(f"c{number % 7}")).last_seq == reply.last_seq
        seen = [await everything(node.service) for node in cluster.nodes]
        assert seen[0] == seen[1] == seen[2]
        assert set(await list_ids(cluster.nodes[2].service)) == {f"c{number}" for number in range(7)}
        await cluster.stop()

    run(check())


def test_s3_the_death_of_any_node_costs_no_data_and_no_availability(tmp_path: Path) -> None:
    """S3, H1: each node in turn is killed under load and started again."""

    async def check() -> None:
        cluster = await TestCluster(tmp_path).start(3)
        said: dict[str, list[str]] = {f"c{number}": [] for number in range(6)}
        stop = asyncio.Event()

        async def talk(context_id: str) -> None:
            number = 0
            while not stop.is_set():
                number += 1
                node = cluster.alive[number % len(cluster.alive)]
                text = f"{context_id} {number}"
                try:
                    await node.service.append(context_id, Append([message(text, id=text)], create=True))
                except Refusal:
                    await persistent_append(cluster, context_id, text)
                said[context_id].append(text)

        talks = [asyncio.create_task(talk(context_id)) for context_id in said]
        for victim in cluster.nodes:
            before = sum(map(len, said.values()))
            await until(lambda before=before: more_than(said, before + 20))
            await victim.kill()
            before = sum(map(len, said.values()))
            await until(lambda before=before: more_than(said, before + 20))
            await cluster.restart(victim)
            await cluster.all_led()
        stop.set()
        await asyncio.gather(*talks)
        await until(cluster.is_quiet)
        for node in cluster.nodes:
            for context_id, texts in said.items():
                assert texts_of(await history(node.service, context_id)) == texts
        await cluster.stop()

    run(check())


async def more_than(said: dict[str, list[str]], count: int) -> bool:
    return sum(map(len, said.values())) > count


def test_without_a_majority_writes_are_refused_and_nothing_is_invented(tmp_path: Path) -> None:
    async def check() -> None:
        cluster = await TestCluster(tmp_path).start(3)
        await append(cluster.nodes[0].service, "c", "kept")
        for victim in cluster.nodes[1:]:
            await victim.kill()
        last = cluster.nodes[0].service

        async def refuses() -> bool:
            try:
                async with asyncio.timeout(10):
                    await append(last, "c", "too much")
            except (Refusal, TimeoutError):
                return True
            return False

        assert await refuses()
        with pytest.raises(Unavailable):
            await last.get_context("c")
        for victim in cluster.nodes[1:]:
            await cluster.restart(victim)
        await cluster.all_led()
        await persistent_append(cluster, "c", "again")
        texts = texts_of(await history(cluster.nodes[2].service, "c"))
        assert texts[0] == "kept"
        assert texts[-1] == "again"
        assert texts.count("too much") <= 1
        await cluster.stop()

    run(check())


def test_a_node_that_is_far_behind_catches_up_by_snapshot(tmp_path: Path) -> None:
    async def check() -> None:
        cluster = await TestCluster(tmp_path).start(3)
        for number in range(20):
            await append(cluster.nodes[0].service, f"c{number}", "before")
        victim = cluster.nodes[2]
        await victim.kill()
        await cluster.all_led()
        for number in range(200):
            await persistent_append(cluster, f"c{number % 20}", f"while away {number}")
        for node in cluster.alive:
            for replica in node.replicas:
                assert await node.upkeep.checkpoint(replica, keeps_for_others=False)
        await cluster.restart(victim)
        behind = [replica.applied_index for replica in victim.replicas]
        await until(cluster.is_quiet)
        assert all(replica.applied_index > index for replica, index in zip(victim.replicas, behind, strict=True))
        seen = [await everything(node.service) for node in cluster.nodes]
        assert seen[0] == seen[1] == seen[2]
        # What was installed is on the disk: it is there after another kill.
        await victim.kill()
        await cluster.restart(victim)
        await until(cluster.is_quiet)
        assert await everything(victim.service) == seen[0]
        await cluster.stop()

    run(check())


async def replace_node(cluster: TestCluster, old: int, new: int) -> None:
    """Put a node in the place of one that is gone, in every shard, and take that one out."""
    admin = cluster.nodes[0].node.admin
    assert admin is not None
    for shard in (await admin.look()).shards:
        await admin.add_learner(shard.shard, new)

    async def is_replaced() -> bool:
        view = await admin.look()
        for shard in view.shards:
            there = [one for one in shard.replicas if one.node == new]
            gone = [one for one in shard.replicas if one.node == old]
            if gone and there and there[0].is_caught_up:
                await admin.change_members(shard.shard, (there[0].replica_id,), (gone[0].replica_id,))
        return not any(one.node == old for shard in view.shards for one in shard.replicas)

    await until(is_replaced)
    await admin.mark_node(old, removed=True)


@dataclass(frozen=True)
class Heard:
    """A Raft message that arrived: from which disk, in whose name, and what it was."""

    store: str
    sender: int
    kind: int


VOTES = (MessageKind.REQUEST_VOTE, MessageKind.REQUEST_VOTE_RESPONSE)


def test_p11_a_wiped_node_votes_and_never_under_its_old_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every Raft message that reaches any node is written down, with the disk that it came from. Elections before the disk is lost need the
    node's votes, and so do those after it was replaced."""
    heard: list[Heard] = []
    on_message = Cluster._on_message

    def listen(self: Cluster, peer: PeerIdentity, payload: bytes) -> None:
        if payload[:1] == RAFT:
            for _shard, message in msgspec.msgpack.decode(payload[1:], type=list[tuple[int, bytes]]):
                kind, sender, _to, _term = peek_message(message)
                heard.append(Heard(peer.store, sender, kind))
        on_message(self, peer, payload)

    monkeypatch.setattr(Cluster, "_on_message", listen)

    async def check() -> None:
        cluster = await TestCluster(tmp_path).start(3)
        first, victim, third = cluster.nodes
        await append(first.service, "c", "kept")

        async def elect_without(node: NodeLife) -> None:
            """Two of three: whoever is elected has the other's vote."""
            await node.kill()
            await cluster.all_led()
            await cluster.restart(node)
            await cluster.all_led()
            await until(cluster.is_quiet)

        for node in (first, third, first):
            await elect_without(node)
        old_number, old_store = cluster_of(victim).number, cluster_of(victim).transport.identity.store
        old_ids = {replica.group.replica_id for replica in victim.replicas}
        voted = {each.sender for each in heard if each.store == old_store and each.kind in VOTES}
        assert voted and voted <= old_ids
        await victim.kill()
        await cluster.all_led()
        cluster.wipe(victim, "empty")
        heard.clear()
        await victim.start()
        new_store = cluster_of(victim).transport.identity.store
        assert new_store != old_store
        await replace_node(cluster, old_number, cluster_of(victim).number)
        await until(cluster.is_quiet)
        new_ids = {replica.group.replica_id for replica in victim.replicas}
        for node in (third, first, third):
            await elect_without(node)
        assert old_ids.isdisjoint(each.sender for each in heard)
        assert not any(each.store == old_store for each in heard)
        voted = {each.sender for each in heard if each.store == new_store and each.kind in VOTES}
        assert voted and voted <= new_ids
        assert texts_of(await history(victim.service, "c")) == ["kept"]
        await cluster.stop()

    run(check())


def test_an_emptied_disk_comes_back_as_a_stranger(tmp_path: Path) -> None:
    """I2: the same name on an empty disk gets another number, and none of its replica ids is one that it had."""

    async def check() -> None:
        cluster = await TestCluster(tmp_path).start(3)
        await append(cluster.nodes[0].service, "c", "kept")
        victim = cluster.nodes[1]
        old_number = cluster_of(victim).number
        old_ids = {replica.group.replica_id for replica in victim.replicas}
        await victim.kill()
        await cluster.all_led()
        cluster.wipe(victim, "empty")
        await victim.start()
        assert cluster_of(victim).number > old_number
        assert victim.replicas == []
        assert (await victim.service.get_context("c")).last_seq == 1
        number = cluster_of(victim).number
        await replace_node(cluster, old_number, number)
        await until(cluster.is_quiet)
        assert old_ids.isdisjoint(replica.group.replica_id for node in cluster.nodes for replica in node.replicas)
        assert texts_of(await history(victim.service, "c")) == ["kept"]
        await cluster.stop()

    run(check())


def test_s4_a_shard_moves_to_another_node_under_load_and_leaves_no_files_behind(tmp_path: Path) -> None:
    async def check() -> None:
        cluster = await TestCluster(tmp_path).start(3)
        newcomer = await cluster.add()
        source, number = cluster.nodes[2], cluster_of(newcomer).number
        admin = cluster.nodes[0].node.admin
        assert admin is not None
        context_id = "c"
        shard = shard_of(context_id, SHARDS)
        said: list[str] = []
        stop = asyncio.Event()

        async def talk() -> None:
            while not stop.is_set():
                text = f"text {len(said)}"
                await persistent_append(cluster, context_id, text, len(said))
                said.append(text)

        talking = asyncio.create_task(talk())
        if await cluster.leader(shard) is source:
            await admin.transfer_leader(shard, cluster_of(cluster.nodes[0]).number)
        await admin.add_learner(shard, number)
        source_id = source.engine.replicas[shard].group.replica_id

        async def is_moved() -> bool:
            view = next(each for each in (await admin.look()).shards if each.shard == shard)
            new = next(one for one in view.replicas if one.node == number)
            if not new.is_voter and new.is_caught_up:
                await admin.change_members(shard, (new.replica_id,), (source_id,))
            return new.is_voter

        await until(is_moved)

        async def is_gone() -> bool:
            files = os.listdir(os.path.join(source.options.data_dir, "state"))
            return shard not in source.engine.replicas and not any(name.startswith(f"{shard:05d}-") for name in files)

        await until(is_gone)
        stop.set()
        await talking
        # A node that does not hold the shard passes everything on.
        assert texts_of(await history(source.service, context_id)) == said
        assert texts_of(await history(newcomer.service, context_id)) == said
        await source.restart()
        assert shard not in source.engine.replicas
        assert texts_of(await history(source.service, context_id)) == said
        await cluster.stop()

    run(check())


def test_steps_may_be_repeated_and_refuse_what_would_harm(tmp_path: Path) -> None:
    async def check() -> None:
        cluster = await TestCluster(tmp_path).start(3)
        admin = cluster.nodes[1].node.admin
        assert admin is not None
        leader = cluster_of(await cluster.leader(0)).number
        view = next(each for each in (await admin.look()).shards if each.shard == 0)
        own = next(one.replica_id for one in view.replicas if one.node == leader)
        await admin.add_learner(0, leader)
        with pytest.raises(Unprocessable, match="hand its leadership over"):
            await admin.change_members(0, (), (own,))
        with pytest.raises(Unprocessable, match="no node 77"):
            await admin.add_learner(0, 77)
        with pytest.raises(Unprocessable, match="no shard 9"):
            await admin.transfer_leader(9, leader)
        other = next(one.node for one in view.replicas if one.node != leader)
        for _ in range(2):
            await admin.transfer_leader(0, other)
        assert cluster_of(await cluster.leader(0)).number == other
        await admin.set_replication(5, epoch=7)
        with pytest.raises(Unprocessable, match="newer administrator"):
            await admin.set_replication(3, epoch=6)
        for step in (admin.add_learner(0, other, epoch=6), admin.change_members(0, (), (), epoch=6), admin.transfer_leader(0, leader, 6)):
            with pytest.raises(Unprocessable, match="newer administrator"):
                await step
        assert cluster_of(await cluster.leader(0)).number == other
        await admin.transfer_leader(0, leader, epoch=8)
        with pytest.raises(Unprocessable, match="newer administrator"):
            await admin.raise_level(1, epoch=7)
        with pytest.raises(Unprocessable, match="drain it first"):
            await admin.mark_node(leader, removed=True)
        await cluster.stop()

    run(check())


def test_a_policy_reaches_every_shard_whoever_leads_it(tmp_path: Path) -> None:
    async def check() -> None:
        cluster = await TestCluster(tmp_path).start(3)
        admin = cluster.nodes[0].node.admin
        assert admin is not None
        for shard in range(SHARDS):
            await admin.transfer_leader(shard, cluster_of(cluster.nodes[shard % 3]).number)
        await cluster.nodes[2].service.put_policy("short", PutPolicy("last_n", {"limit": 3}))

        async def is_everywhere() -> bool:
            return all(replica.machine.policies.keys() == {"short"} for node in cluster.nodes for replica in node.replicas)

        await until(is_everywhere)
        for number in range(8):
            await cluster.nodes[number % 3].service.put_context(f"c{number}", PutContext(policy=PolicyChoice(ref="short")))
        await cluster.stop()

    run(check())


def test_the_whole_cluster_stops_and_starts_with_everything(tmp_path: Path) -> None:
    async def check() -> None:
        cluster = await TestCluster(tmp_path).start(3)
        for number in range(30):
            await append(cluster.nodes[number % 3].service, f"c{number % 5}", f"text {number}")
        seen = await everything(cluster.nodes[0].service)
        nodes = list(cluster.nodes)
        await cluster.stop()
        await asyncio.gather(*(node.start() for node in nodes))
        await cluster.all_led()
        for node in nodes:
            assert await everything(node.service) == seen
        await cluster.stop()

    run(check())


def test_one_node_grows_into_a_cluster_and_its_directory_is_not_served_alone_any_more(tmp_path: Path) -> None:
    async def check() -> None:
        alone = await life(tmp_path / "n0").start()
        await append(alone.service, "c", "from before")
        await alone.stop()
        cluster = await TestCluster(tmp_path).start(3)
        assert texts_of(await history(cluster.nodes[2].service, "c")) == ["from before"]
        await cluster.stop()
        with pytest.raises(StorageFailed, match="belongs to a cluster"):
            await life(tmp_path / "n0").start()

    run(check())


def test_replica_ids_say_where_they_are(tmp_path: Path) -> None:
    async def check() -> None:
        cluster = await TestCluster(tmp_path).start(3)
        for node in cluster.nodes:
            ids: list[Any] = [replica.group.replica_id for replica in node.replicas]
            assert {node_of(one) for one in ids} == {cluster_of(node).number}
        await cluster.stop()

    run(check())


def bytes_of(folder: str) -> bytes:
    """All that the files of a folder hold."""
    return b"".join(path.read_bytes() for path in sorted(Path(folder).rglob("*")) if path.is_file())


def test_a_purge_takes_the_bytes_out_of_every_nodes_files(tmp_path: Path) -> None:
    async def check() -> None:
        cluster = await TestCluster(tmp_path).start(3)
        phrase = "nobody shall read this again"
        for number in range(5):
            await append(cluster.nodes[0].service, "c", f"{phrase} {number}")
        await until(cluster.is_quiet)
        for node in cluster.nodes:
            await node.upkeep.scrub()
            assert not node.upkeep.is_scrub_due
            assert phrase.encode() in bytes_of(node.options.data_dir)
        await cluster.nodes[1].service.purge_context("c")
        await until(cluster.is_quiet)
        for node in cluster.nodes:
            assert node.upkeep.is_scrub_due
            await node.upkeep.scrub()
            assert phrase.encode() not in bytes_of(node.options.data_dir)
        await cluster.stop()

    run(check())


def test_a_member_may_not_be_started_with_another_number_of_shards(tmp_path: Path) -> None:
    """Ids are hashed onto the shards: with another number a node would look for contexts where they are not."""

    async def check() -> None:
        cluster = await TestCluster(tmp_path).start(3)
        node = cluster.nodes[2]
        await node.stop()
        with pytest.raises(StorageFailed, match="holds 4 shards, not 8"):
            await life(node.options.data_dir, cluster=node.options.cluster, name="n2", shards=8).start()
        await cluster.stop()

    run(check())


def test_a_leader_that_has_just_started_does_not_speak_of_members(tmp_path: Path) -> None:
    """Its state may be seconds old: by its word a replica that was added meanwhile would be dropped (found by a chaos run)."""

    async def check() -> None:
        cluster = await TestCluster(tmp_path).start(3)
        leader = await cluster.leader(0)
        replica = leader.engine.replicas[0]
        assert any(led.shard == 0 for led in cluster_of(leader)._led())
        replica.applied_term -= 1
        assert not any(led.shard == 0 for led in cluster_of(leader)._led())
        replica.applied_term += 1
        await cluster.stop()

    run(check())


def test_a_blank_replica_outlives_a_restart_until_its_leader_has_spoken(tmp_path: Path) -> None:
    """H1: dropped too early, the learner could never catch up, and the shard's moves would wait for it for ever."""

    async def check() -> None:
        cluster = await TestCluster(tmp_path).start(3)
        newcomer = await cluster.add()
        number = cluster_of(newcomer).number
        replica_id = replica_id_on(number, b"12345")
        assert newcomer.node.moves is not None
        await newcomer.node.moves.create_replica(0, replica_id)
        await newcomer.kill()
        await newcomer.start()
        leader = cluster_of(await cluster.leader(0)).number
        old = Led(0, 99, 99, ())
        newcomer.node.moves._heard_of(leader, old)
        await asyncio.sleep(0)
        assert newcomer.engine.replicas[0].group.replica_id == replica_id
        await cluster.stop()

    run(check())


def test_a_node_that_starts_again_knows_the_others_although_no_replica_tells_it(tmp_path: Path) -> None:
    """S3: with no member known it would dial nobody, and what it holds could never answer (found by a chaos run)."""

    async def check() -> None:
        cluster = await TestCluster(tmp_path).start(3)
        newcomer = await cluster.add()
        number = cluster_of(newcomer).number
        admin = cluster.nodes[0].node.admin
        assert admin is not None

        async def is_kept() -> bool:
            return newcomer.node.log is not None and bool(newcomer.node.log.notes.nodes)

        await until(is_kept)
        assert newcomer.node.moves is not None
        await newcomer.node.moves.create_replica(0, replica_id_on(number, b"12345"))
        await newcomer.kill()
        assert newcomer.options.cluster is not None
        newcomer.options = replace(newcomer.options, cluster=replace(newcomer.options.cluster, join=()))
        await newcomer.start()
        await append(newcomer.service, "c", "by way of those it knew")
        await cluster.stop()

    run(check())


@pytest.mark.parametrize("moved", [(1, 2), (0, 1), (0, 1, 2)])
def test_s3_a_majority_that_comes_back_at_other_addresses_is_a_cluster_again(tmp_path: Path, moved: tuple[int, ...]) -> None:
    """The log cannot say where they are now before they have been dialed there, and they are not dialed by what the log says."""

    async def check() -> None:
        cluster = await TestCluster(tmp_path).start(3)
        await append(cluster.nodes[0].service, "c", "before")
        for place in moved:
            await cluster.nodes[place].kill()
        for place in moved:
            # Where all have moved, somebody has to be told of one.
            cluster.move(cluster.nodes[place], join=(0,) if len(moved) == 3 and place else ())
        for place in moved:
            await cluster.nodes[place].start()
        await cluster.all_led()
        for place, node in enumerate(cluster.nodes):
            await persistent_append(cluster, "c", f"after {place}", place)

            async def shows(node: NodeLife = node, text: str = f"after {place}") -> bool:
                return texts_of(await history(node.service, "c"))[-1] == text

            await until(shows)

        async def is_known() -> bool:
            kept = {one.number: one.peer_address for one in (await cluster.look()).nodes}
            return kept == {cluster_of(node).number: f"127.0.0.1:{port}" for node, port in zip(cluster.nodes, cluster.ports, strict=True)}

        await until(is_known)
        await cluster.stop()

    run(check())


def test_s3_a_member_that_waits_to_be_taken_in_again_is_no_stranger_to_those_of_whom_it_hears_meanwhile(tmp_path: Path) -> None:
    """It holds no replica and waits for a majority; a node that has moved asks it the way, and it must not dial that one as nobody."""

    async def check() -> None:
        cluster = await TestCluster(tmp_path).start(3)
        waiting = await cluster.add()

        async def is_kept() -> bool:
            return waiting.node.log is not None and bool(waiting.node.log.notes.nodes)

        await until(is_kept)
        await append(cluster.nodes[0].service, "c", "before")
        for node in cluster.nodes:
            await node.kill()
        for node in cluster.nodes[:3]:
            # Whoever comes first asks the one that waits, and the others find it.
            cluster.move(node, join=(3,) if node is cluster.nodes[1] else (1,))
        starting = asyncio.create_task(waiting.start())
        await cluster.nodes[1].start()
        moved = f"127.0.0.1:{cluster.ports[1]}"

        async def has_heard() -> bool:
            membership = cluster_of(waiting).membership
            return moved in [membership.peer_of(one) for one in membership.members()]

        await until(has_heard)
        await cluster.nodes[0].start()
        await cluster.nodes[2].start()
        await starting
        await until(lambda: step(append(waiting.service, "c", "by way of the one that waited")))
        await cluster.stop()

    run(check())


def test_h5_a_follower_that_is_a_little_behind_waits_instead_of_refusing(tmp_path: Path) -> None:
    """H5: under load a follower hears up to where it must have applied before it hears of those entries' commit."""

    async def check() -> None:
        cluster = await TestCluster(tmp_path).start(3)
        shard = shard_of("c", SHARDS)
        leader = await cluster.leader(shard)
        followers = [node for node in cluster.nodes if node is not leader]
        stop = asyncio.Event()
        acknowledged = 0

        async def write() -> None:
            nonlocal acknowledged
            while not stop.is_set():
                acknowledged = (await append(leader.service, "c", "text")).last_seq

        async def read(node: NodeLife) -> None:
            for _ in range(200):
                before = acknowledged
                assert (await node.service.get_context("c")).last_seq >= before

        await append(leader.service, "c", "first")
        writes = [asyncio.create_task(write()) for _ in range(8)]
        await asyncio.gather(*(read(node) for node in followers for _ in range(3)))
        stop.set()
        await asyncio.gather(*writes)
        await cluster.stop()

    run(check())


def test_h5_a_read_waits_until_the_index_that_it_was_told_is_applied(tmp_path: Path) -> None:
    """H5: answered before, it would go back in time; refused, it would be refused whenever others write."""

    async def check() -> None:
        cluster = await TestCluster(tmp_path).start(3)
        leader = await cluster.leader(0)
        replica = next(node for node in cluster.nodes if node is not leader).engine.replicas[0]
        reader = Reader(asyncio.get_running_loop().create_future(), replica.ticks)
        replica.reads._asked[b"asked"] = (replica.ticks, [reader])
        replica.reads.answer([(replica.applied_index + 1, b"asked")], replica.applied_index)
        assert not reader.answer.done()
        context_id = next(each for each in map(str, range(100)) if shard_of(each, SHARDS) == 0)
        await append(leader.service, context_id, "the entry that it waits for")
        await reader.answer
        await cluster.stop()

    run(check())


def test_s2_what_is_kept_for_others_never_fills_the_log_so_that_writes_are_refused(tmp_path: Path) -> None:
    """S2: entries that followers might still need are kept within the node's share for its log, however large they are."""

    async def check() -> None:
        limits = UpkeepLimits(interval_s=0.02, log_bytes_max=400_000, log_bytes_per_shard_max=400_000)
        cluster = await TestCluster(tmp_path, upkeep=limits).start(3)
        text = "a long message " * 2_000
        for number in range(120):
            await persistent_append(cluster, f"c{number % 8}", f"{number} {text}", number)

        async def is_bounded() -> bool:
            replicas = [replica for node in cluster.nodes for replica in node.replicas]
            sizes = [sum(replica.group.log_bytes for replica in node.replicas) for node in cluster.nodes]
            return max(sizes) <= 2 * limits.log_bytes_max and not any(replica.is_behind for replica in replicas)

        await until(is_bounded)
        await append(cluster.nodes[0].service, "c0", "and on")
        await cluster.stop()

    run(check())


def test_a_member_whose_disk_was_full_starts_over_and_talks_to_the_others_again(tmp_path: Path) -> None:
    async def check() -> None:
        cluster = await TestCluster(tmp_path, retry_full_disk_s=0.05).start(3)
        node = cluster.nodes[1]
        node.engine.fail(DiskFull(str(tmp_path), "commit", "made full by the test"))

        async def is_back() -> bool:
            return node.node.restarts == 1 and node.node.state.is_ready

        await until(is_back)
        await until(cluster.is_quiet)
        await persistent_append(cluster, "c", "after it", 1)
        assert not node.fatal
        await cluster.stop()

    run(check())


def test_a_node_that_has_left_the_others_refuses_what_it_cannot_pass_on(tmp_path: Path) -> None:
    """A request that comes while a node stops is refused as unavailable: nothing was done, and another node may be asked."""

    async def check() -> None:
        cluster = await TestCluster(tmp_path).start(3)
        leader = await cluster.leader(shard_of("c", SHARDS))
        leaving = next(node for node in cluster.nodes if node is not leader)
        cluster_of(leaving).options = replace(cluster_of(leaving).options, leader_wait_s=0.1)
        # As far as `Node.stop` gets before it closes its stores.
        await leaving.node._end_tasks()
        await leaving.node._leave()
        with pytest.raises(Unavailable):
            await append(leaving.service, "c", "too late")
        await append(leader.service, "c", "in time")
        assert texts_of(await history(leader.service, "c")) == ["in time"]
        await cluster.stop()

    run(check())


def test_a_member_without_replicas_that_starts_again_is_the_member_that_it_was(tmp_path: Path) -> None:
    """Also the one that began the cluster and joins nobody, and with files that were to be removed when it died: it neither begins another
    cluster nor refuses to start."""

    async def check() -> None:
        cluster = await TestCluster(tmp_path).start(4)
        first, number = cluster.nodes[0], cluster_of(cluster.nodes[0]).number
        await append(first.service, "c", "kept")
        files = {path: path.read_bytes() for path in (tmp_path / "n0" / "state").glob("*.db")}
        admin = cluster.nodes[1].node.admin
        assert admin is not None
        for shard in (await admin.look()).shards:
            if shard.leader == number:
                await until(lambda shard=shard: step(admin.transfer_leader(shard.shard, number + 1)))
            mine = next(one.replica_id for one in shard.replicas if one.node == number)
            await until(lambda shard=shard, mine=mine: step(admin.change_members(shard.shard, (), (mine,))))

        async def holds_nothing() -> bool:
            return not first.replicas

        await until(holds_nothing)
        # A replica is gone for good with the next commit; killed before, the node would rightly come back with it.
        await first.engine.log_job(lambda log: None)
        cluster_id = cluster_of(first).transport.identity.cluster_id
        await first.kill()
        for path, content in files.items():
            path.write_bytes(content)
        await cluster.restart(first)
        assert cluster_of(first).number == number
        assert cluster_of(first).transport.identity.cluster_id == cluster_id
        assert not first.replicas
        assert texts_of(await history(first.service, "c")) == ["kept"]
        await first.kill()
        with pytest.raises(StorageFailed, match="belongs to a cluster"):
            await life(tmp_path / "n0", name="n0").start()
        await cluster.stop()

    run(check())


async def step(work: Awaitable[Any]) -> bool:
    await work
    return True


def test_a_member_does_not_join_another_cluster(tmp_path: Path) -> None:
    async def check() -> None:
        one, other = await TestCluster(tmp_path / "one").start(1), await TestCluster(tmp_path / "other").start(1)
        member = await one.add("member")
        await member.kill()
        join = (f"127.0.0.1:{other.ports[0]}",)
        assert member.options.cluster is not None
        member.options = replace(member.options, cluster=replace(member.options.cluster, join=join))
        # It knows the members of its own cluster as well; they do not answer.
        await one.nodes[0].stop()
        with pytest.raises(RuntimeError, match="data belongs to cluster"):
            await member.start()
        assert [node.name for node in cluster_of(other.nodes[0]).membership.members()] == ["n0"], "nobody was registered"
        await other.stop()

    run(check())


def test_a_taken_peer_port_is_named(tmp_path: Path) -> None:
    async def check() -> None:
        cluster = await TestCluster(tmp_path).start(1)
        other = life(tmp_path / "other", cluster=cluster.nodes[0].options.cluster)
        with pytest.raises(RuntimeError, match="--peer-port"):
            await other.start()
        await other.stop()
        await cluster.stop()

    run(check())
