"""P6: a snapshot is a copy of one moment, is taken over whole or not at all, and gives what its source would have given."""

import asyncio
import random
from pathlib import Path

import apsw
import pytest

from context_node.contexts.refusals import Refusal, Unavailable
from context_node.contexts.requests import PutContext
from context_node.runtime.databases import StorageError
from context_node.runtime.log_rows import HardState, RecoveredShard
from context_node.runtime.node import Node
from context_node.runtime.shards import shard_of
from context_node.runtime.snapshots import Incoming, Manifest, Snapshot, SnapshotRefused
from context_node.runtime.state_store import StateOptions
from support.entry_tape import EntryTape
from support.node_lives import wild
from support.power_cut_vfs import PowerCutDisk
from support.running_nodes import BY_HAND, EAGER, NodeLife, append, everything, history, life, options, run, texts_of
from support.virtual_time import InlineWorker, run_virtually


async def fill(node: NodeLife, seed: int = 1, changes: int = 300) -> None:
    rng = random.Random(seed)
    for number in range(changes):
        await wild(node.service, rng)
        if number % 3 == 0:
            await append(node.service, f"plain-{number % 5}", f"plain {number} " + "word " * 30)


def received(node: Node, snapshot: Snapshot, seed: int = 1) -> Incoming:
    """Carry the chunks over, in any order and some of them twice."""
    incoming = node.holdings.incoming_snapshot(Manifest.decode(snapshot.manifest.encode()))
    rng = random.Random(seed)
    numbers = list(incoming.missing)
    rng.shuffle(numbers)
    for number in numbers + numbers[:2]:
        incoming.add(number, snapshot.chunk(number))
    assert incoming.missing == []
    return incoming


def test_p6_a_shard_moves_to_a_fresh_node_by_snapshots(tmp_path: Path) -> None:
    """P6, W5: every shard installed elsewhere has the same digest, gives the same bytes and takes writes."""

    async def check() -> None:
        source = await life(tmp_path / "a", upkeep=BY_HAND).start()
        await fill(source)
        source.flush_all()
        before = await everything(source.service)
        target = await life(tmp_path / "b", upkeep=EAGER).start()
        await append(target.service, "plain-0", "of the fresh node")
        for shard in range(4):
            snapshot = await source.node.holdings.take_snapshot(shard)
            replica = source.engine.replicas[shard]
            assert snapshot.manifest.index == replica.applied_index
            await target.node.holdings.install_snapshot(received(target.node, snapshot), replica.group.status().replica_id)
            snapshot.discard()
            assert target.engine.replicas[shard].store.digest() == replica.store.digest()
        assert await everything(target.service) == before
        for context_id, seen in before.items():
            last_seq = seen[0].last_seq
            await target.service.put_context(context_id, PutContext())
            assert (await append(target.service, context_id, "goes on")).last_seq == last_seq + 1
        after = await everything(target.service)
        for hard in (True, False):
            await target.restart(hard=hard)
            assert await everything(target.service) == after
        assert len([path for path in (tmp_path / "b" / "state").iterdir() if path.suffix == ".db"]) == 5, "old generations are removed"
        await source.stop()
        await target.stop()

    run(check())


def test_a_snapshot_under_load_is_the_state_at_its_index(tmp_path: Path) -> None:
    """The copy holds exactly the effects of the entries up to the index that it names, whatever goes on meanwhile."""

    async def check() -> None:
        tape = EntryTape()
        with tape.running():
            node = await life(tmp_path, upkeep=EAGER, shards=2).start()
            is_over = False

            async def write(seed: int) -> None:
                rng = random.Random(seed)
                while not is_over:
                    try:
                        await wild(node.service, rng)
                    except Refusal:
                        await asyncio.sleep(0.001)  # busy

            async with asyncio.TaskGroup() as tasks:
                for seed in range(6):
                    tasks.create_task(write(seed))
                snapshots = []
                for number in range(12):
                    snapshots.append(await node.node.holdings.take_snapshot(number % 2))
                is_over = True
            for snapshot in snapshots:
                incoming = received(node.node, snapshot)
                incoming.finish()
                store = node.node.holdings.open_state(
                    snapshot.manifest.shard, recovered(snapshot.manifest, Path(incoming.path).stem.rpartition("-")[2])
                )
                assert store.digest() == tape.digest(snapshot.manifest.shard, snapshot.manifest.index)
                store.close()
                incoming.discard()
                snapshot.discard()
            assert len({snapshot.manifest.index for snapshot in snapshots}) > 6
            await node.stop()

    run(check())


def test_what_a_snapshot_replaces_is_scrubbed(tmp_path: Path) -> None:
    """The snapshot may be behind a purge that this node never hears of."""

    async def check() -> None:
        marker = "find-me-" + "c01d44"
        source = await life(tmp_path / "a", upkeep=BY_HAND).start()
        await fill(source)
        source.flush_all()
        target = await life(tmp_path / "b", upkeep=BY_HAND).start()
        await append(target.service, "secret", marker)
        shard = next(shard for shard, replica in target.engine.replicas.items() if replica.context("secret") is not None)
        assert not target.upkeep.is_scrub_due
        snapshot = await source.node.holdings.take_snapshot(shard)
        replica_id = source.engine.replicas[shard].group.status().replica_id
        await target.node.holdings.install_snapshot(received(target.node, snapshot), replica_id)
        snapshot.discard()
        assert target.upkeep.is_scrub_due
        await target.upkeep.scrub()
        assert target.upkeep.is_scrubbed
        assert not [path for path in (tmp_path / "b").rglob("*") if path.is_file() and marker.encode() in path.read_bytes()]
        await source.stop()
        await target.stop()

    run(check())


def recovered(manifest: Manifest, generation: str) -> RecoveredShard:
    return RecoveredShard(1, generation, HardState(manifest.term, 0, manifest.index), manifest.index, manifest.term, [])


def test_a_damaged_or_foreign_snapshot_changes_nothing(tmp_path: Path) -> None:
    async def check() -> None:
        source = await life(tmp_path / "a").start()
        target = await life(tmp_path / "b").start()
        await fill(source, changes=60)
        await append(target.service, "mine", "still here")
        snapshot = await source.node.holdings.take_snapshot(1)
        manifest = snapshot.manifest
        incoming = target.node.holdings.incoming_snapshot(manifest)
        for damaged in (b"", snapshot.chunk(0)[:-1], snapshot.chunk(0)[:-1] + b"\x99"):
            with pytest.raises(SnapshotRefused, match="damaged"):
                incoming.add(0, damaged)
        with pytest.raises(SnapshotRefused, match="damaged"):
            incoming.add(len(manifest.checksums), snapshot.chunk(0))
        with pytest.raises(SnapshotRefused, match="missing"):
            await target.node.holdings.install_snapshot(incoming, 7)
        for lie in (
            {"index": manifest.index + 1},
            {"term": manifest.term + 1},
            {"conf_state": b"other"},
            {"shard": 2},
        ):
            fields = {name: getattr(manifest, name) for name in manifest.__struct_fields__} | lie
            false = target.node.holdings.incoming_snapshot(Manifest(**fields))
            for number in false.missing:
                false.add(number, snapshot.chunk(number))
            with pytest.raises(SnapshotRefused):
                await target.node.holdings.install_snapshot(false, 7)
            false.discard()
        for nonsense in (b"", b"\x93\x01", snapshot.manifest.encode()[:-3], Manifest(1, 0, 0, b"", 0, 0, ()).encode()):
            with pytest.raises(SnapshotRefused):
                Manifest.decode(nonsense)
        incoming.discard()
        assert texts_of(await history(target.service, "mine")) == ["still here"]
        await append(target.service, "mine", "and goes on")
        names = {path.name for path in (tmp_path / "b" / "state").iterdir()}
        assert not [name for name in names if "partial" in name], names
        await source.stop()
        await target.stop()

    run(check())


def test_h1_a_replica_takes_no_snapshot_older_than_what_it_has(tmp_path: Path) -> None:
    async def check() -> None:
        node = await life(tmp_path, shards=1).start()
        await append(node.service, "c", "one")
        snapshot = await node.node.holdings.take_snapshot(0)
        await append(node.service, "c", "two")
        with pytest.raises(SnapshotRefused, match="the snapshot at"):
            await node.node.holdings.install_snapshot(received(node.node, snapshot), node.replicas[0].group.status().replica_id)
        assert texts_of(await history(node.service, "c")) == ["one", "two"]
        await node.stop()

    run(check())


def test_a_replica_that_is_replaced_under_load_answers_everybody_and_harms_no_other(tmp_path: Path) -> None:
    """Those who wait get an answer; upkeep that was under way on the old database finishes or is left out; other shards go on."""

    async def check() -> None:
        source = await life(tmp_path / "a", shards=2).start()
        await fill(source, changes=100)
        target = await life(tmp_path / "b", shards=2, upkeep=EAGER).start()
        is_over = False
        answered: dict[str, int] = {}

        async def write(context_id: str) -> None:
            while not is_over:
                try:
                    answered[context_id] = (await append(target.service, context_id)).last_seq
                except Refusal as refusal:
                    assert refusal.code in ("unavailable", "outcome_unknown", "overloaded"), refusal
                    await asyncio.sleep(0.001)

        async with asyncio.TaskGroup() as tasks:
            for number in range(12):
                tasks.create_task(write(f"w{number}"))
            for shard in (0, 1):
                await asyncio.sleep(0.02)
                replica_id = source.engine.replicas[shard].group.status().replica_id
                snapshot = await source.node.holdings.take_snapshot(shard)
                await target.node.holdings.install_snapshot(received(target.node, snapshot), replica_id)
            await asyncio.sleep(0.05)
            is_over = True
        for context_id, last_seq in answered.items():
            assert len(await history(target.service, context_id)) == last_seq
        await target.restart(hard=True)
        for context_id, last_seq in answered.items():
            assert len(await history(target.service, context_id)) == last_seq
        await source.stop()
        await target.stop()

    run(check())


@pytest.mark.crash
def test_p6_a_power_cut_during_an_install_leaves_the_old_state_or_the_new_one() -> None:
    """P6: 60 cuts at any write or sync of it; never a mixture, never a node that does not start."""
    outcomes = {"old": 0, "new": 0, "installed": 0}

    async def one(seed: int, chunks: list[bytes], manifest: Manifest, replica_id: int) -> None:
        rng = random.Random(seed)
        disk = PowerCutDisk()
        target = on(disk, rng)
        await target.start()
        await append(target.service, "c0", "old")
        fresh = target.engine.replicas[manifest.shard]
        old_index = fresh.applied_index
        disk.cut_at = disk.operations + rng.randint(1, 45)
        is_installed = False
        try:
            incoming = target.node.holdings.incoming_snapshot(manifest)
            for number, chunk in enumerate(chunks):
                incoming.add(number, chunk)
            await target.node.holdings.install_snapshot(incoming, replica_id)
            is_installed = True
        except (StorageError, Unavailable, apsw.Error):
            assert not disk.has_power
        await target.kill()
        again = on(disk.after_power_cut(rng), rng)
        await again.start()
        replica = again.engine.replicas[manifest.shard]
        found = texts_of(await history(again.service, "c0"))
        if replica.group.status().replica_id == replica_id:
            assert found == ["new"] * 5 and replica.applied_index > manifest.index
            outcomes["new"] += 1
        else:
            assert not is_installed, "what was installed is kept"
            assert found == ["old"] and replica.applied_index > old_index
            outcomes["old"] += 1
        outcomes["installed"] += is_installed
        names = [name for name in again.options.disk.names_in("data/state") if name.endswith((".db", ".partial"))]
        assert len(names) == 2, "one generation each of the shard and the system group"
        await again.kill()

    def on(disk: PowerCutDisk, rng: random.Random) -> NodeLife:
        chosen = options("data", shards=1, disk=disk, state=StateOptions(exclusive=True), upkeep=BY_HAND)
        return NodeLife(chosen, random_bytes=rng.randbytes, make_worker=InlineWorker)

    async def check() -> None:
        source = on(PowerCutDisk(), random.Random(0))
        await source.start()
        for _ in range(5):
            await append(source.service, "c0", "new")
        snapshot = await source.node.holdings.take_snapshot(0)
        chunks = [snapshot.chunk(number) for number in range(len(snapshot.manifest.checksums))]
        replica_id = source.engine.replicas[0].group.status().replica_id
        for seed in range(60):
            await one(seed, chunks, snapshot.manifest, replica_id)
        await source.kill()

    run_virtually(check())
    print(f"\n{outcomes}")
    assert outcomes["old"] > 5 and outcomes["new"] > 5


def test_p6_what_a_replica_gathered_goes_with_it_at_whatever_moment_it_goes(tmp_path: Path) -> None:
    """Its records wait for the log while it is dropped: written behind its end they would be of nobody, or of the next of that shard."""

    async def check() -> None:
        shards = 24
        node = await life(tmp_path, upkeep=BY_HAND, shards=shards).start()
        ids = {shard_of(f"c{number}", shards): f"c{number}" for number in range(500)}
        for shard in range(shards - 1):
            replica = node.engine.replicas[shard]
            writing = asyncio.create_task(append(node.service, ids[shard], "on its way"))
            for _turn in range(shard):
                await asyncio.sleep(0)
            await node.node.holdings.drop_replica(shard, replica.group.replica_id)
            await asyncio.gather(writing, return_exceptions=True)
            assert not node.engine.is_failed, f"after {shard} turns"
        await append(node.service, ids[shards - 1], "the rest goes on")
        await node.stop()

    run(check())
