"""A node's life: what it answers is the same before and after every kind of restart, and it starts only where it should."""

import asyncio
import json
from pathlib import Path
from typing import Any

import apsw
import msgspec
import pytest

from context_node.contexts.commands import PutPolicyCommand
from context_node.contexts.refusals import ContextNotFound, IdempotencyConflict, PolicyNotFound, Unavailable
from context_node.contexts.requests import Append, Compact, NewMessage, PatchMetadata, PolicyChoice, PutContext, PutPolicy
from context_node.runtime.databases import StorageFailed
from context_node.runtime.service import Service
from context_node.runtime.shards import SYSTEM_SHARD
from support.running_nodes import BY_HAND, EAGER, NodeLife, append, everything, history, life, list_ids, message, options, run, texts_of

CALL: dict[str, Any] = {"type": "tool_call", "tool_call_id": "t1", "name": "look", "input": {"q": "x"}}
RESULT: dict[str, Any] = {"type": "tool_result", "tool_call_id": "t1", "output": "found " * 10}


async def talk(service: Service) -> None:
    """Conversations of every kind: long, short, compacted, rewritten, pinned, tombstoned, with tools, with a policy by name."""
    await service.put_policy("short", PutPolicy("last_n", {"limit": 5}))
    await service.put_context("small", PutContext(token_budget=200, metadata={"a": 1}))
    await service.put_context("named", PutContext(token_budget=400, policy=PolicyChoice(ref="short")))
    await service.put_context("empty", PutContext())
    for number in range(60):
        role = "assistant" if number % 2 else "user"
        for context_id in ("small", "named", "plain"):
            await service.append(context_id, Append([message(f"{context_id} says {number} " * 3, role)], create=True))
    await service.append("tools", Append([message("look it up"), message("on it", "assistant")], batch=True, create=True))
    for role, part in (("assistant", CALL), ("tool", RESULT)):
        await service.append("tools", Append([NewMessage(role, [part])]))
    await service.append("plain", Append([message("keep me", pinned=True)], key="k1"))
    await service.compact("plain", Compact([message("so far", "assistant")], covers=(3, 10)))
    await service.pin("small", 2, True)
    await service.patch_metadata("small", PatchMetadata({"b": [1, 2], "a": None}))
    await append(service, "gone")
    await service.delete_context("gone")


def test_w5_everything_reads_the_same_after_a_restart(tmp_path: Path) -> None:
    """W5, H1: windows, ETags, pages and exports are equal byte for byte."""

    async def check() -> None:
        node = await life(tmp_path).start()
        await talk(node.service)
        before = await everything(node.service)
        assert set(before) == {"small", "named", "empty", "plain", "tools", "gone"}
        await node.restart()
        assert await everything(node.service) == before
        await node.stop()

    run(check())


def test_w5_everything_reads_the_same_after_a_replay_of_the_log(tmp_path: Path) -> None:
    """H3, W5: the node dies without having stored anything; all of it comes back from the log, and again."""

    async def check() -> None:
        node = await life(tmp_path, upkeep=BY_HAND).start()
        await talk(node.service)
        assert all(replica.stored_index < replica.applied_index for replica in node.replicas), "nothing was stored"
        ids = ["small", "named", "empty", "plain", "tools", "gone"]  # a list would flush
        before = await everything(node.service, ids)
        for _ in range(3):
            await node.restart(hard=True)
            assert await everything(node.service, ids) == before
        await node.stop()

    run(check())


def test_w5_everything_reads_the_same_after_leaving_memory(tmp_path: Path) -> None:
    """W5: a context that was read back from its database is the one that was stored, and goes on as if it had stayed."""

    async def check() -> None:
        node = await life(tmp_path / "a", upkeep=BY_HAND).start()
        twin = await life(tmp_path / "b", upkeep=BY_HAND).start()
        for one in (node, twin):
            await talk(one.service)
        before = await everything(node.service)
        for _ in range(3):
            node.forget_all()
            assert not any(replica.machine.contexts for replica in node.replicas)
            assert await everything(node.service) == before
        for number in range(40):
            for one in (node, twin):
                await one.service.append("small", Append([message(f"later {number}")]))
            node.flush_all()
            node.forget_all()
        windows = [(await one.service.window("small", None, None, None)).body for one in (node, twin)]
        assert windows[0] == windows[1]
        await node.stop()
        await twin.stop()

    run(check())


@pytest.mark.parametrize("hard", [False, True])
def test_h4_keys_and_message_ids_survive_restarts(tmp_path: Path, hard: bool) -> None:
    """H4: a retry after a restart appends nothing and gets the first answer; another content is a conflict."""

    async def check() -> None:
        node = await life(tmp_path, upkeep=EAGER if hard else BY_HAND).start()
        by_key = Append([message("one")], create=True, key="k")
        by_id = Append([message("two", id="m")], create=True)
        batch = Append([message("three", id="a"), message("four", id="b")], create=True, batch=True)
        first = [await node.service.append("c", request) for request in (by_key, by_id, batch)]
        await append(node.service, "c", "newer")
        for _ in range(2):
            await node.restart(hard=hard)
            assert [await node.service.append("c", request) for request in (by_key, by_id, batch)] == first
            for other in (Append([message("other")], key="k"), Append([message("other", id="m")])):
                with pytest.raises(IdempotencyConflict):
                    await node.service.append("c", other)
        assert texts_of(await history(node.service, "c")) == ["one", "two", "three", "four", "newer"]
        await node.stop()

    run(check())


def test_h4_a_created_context_answers_its_key_after_a_restart(tmp_path: Path) -> None:
    """H4: POST with a key creates one context, however often it is sent."""

    async def check() -> None:
        node = await life(tmp_path).start()
        request = PutContext(metadata={"a": 1}, key="new")
        first = await node.service.create_context(request, "owner")
        await node.restart()
        again = await node.service.create_context(request, "owner")
        assert (again[0], again[1]) == (first[0], first[1])
        assert await list_ids(node.service) == [first[0]]
        await node.stop()

    run(check())


def test_policies_by_name_survive_restarts_and_reach_every_shard(tmp_path: Path) -> None:
    """A PUT whose copies did not all happen before the node died is finished by the next start."""

    async def check() -> None:
        node = await life(tmp_path, upkeep=BY_HAND).start()
        put = await node.service.put_policy("p", PutPolicy("last_n", {"limit": 9}))
        system = node.engine.replicas[SYSTEM_SHARD]
        record = system.machine.policies["p"].record
        await node.service.put_policy("gone", PutPolicy("manual"))
        await node.service.delete_policy("gone")
        # As if the node had died between the system group's entry and its copies.
        changed = msgspec.structs.replace(record, strategy="manual", config=b"{}")
        await system.propose(PutPolicyCommand(node.clock(), changed))
        await node.restart(hard=True)
        view = await node.service.get_policy("p")
        assert (view.generation, view.strategy) == (put.generation + 1, "manual")
        for shard, replica in node.engine.replicas.items():
            if shard != SYSTEM_SHARD:
                assert replica.machine.policies["p"].record.generation == put.generation + 1
                assert replica.machine.policies["gone"].record.deleted
        with pytest.raises(PolicyNotFound):
            await node.service.get_policy("gone")
        assert [policy.name for policy in await node.service.list_policies()] == ["p"]
        await node.restart()
        assert await node.service.get_policy("p") == view
        await node.stop()

    run(check())


def test_a_stop_stores_everything_so_that_the_next_start_replays_nothing(tmp_path: Path) -> None:
    """After a graceful stop the log holds no entry that a database lacks; only the new leader's own one is applied."""

    async def check() -> None:
        node = await life(tmp_path, upkeep=BY_HAND).start()
        for number in range(50):
            await append(node.service, f"c{number % 9}")
        applied = {shard: replica.applied_index for shard, replica in node.engine.replicas.items()}
        await node.stop()
        await node.start()
        replayed = node.engine.counters.applied
        assert replayed == len(applied), "each group applied the empty entry of its new term and nothing else"
        assert {shard: replica.applied_index for shard, replica in node.engine.replicas.items()} == {
            shard: index + 1 for shard, index in applied.items()
        }
        await node.stop()

    run(check())


def test_what_is_asked_of_a_stopped_node_is_refused(tmp_path: Path) -> None:
    async def check() -> None:
        node = await life(tmp_path).start()
        await append(node.service, "c")
        assert node.service.ready() == (True, "")
        await node.stop()
        assert node.service.ready()[0] is False
        with pytest.raises(Unavailable):
            await append(node.service, "c")
        with pytest.raises(Unavailable):
            await node.service.window("c", None, None, None)

    run(check())


def test_a_second_node_on_the_same_directory_is_refused_and_harms_nothing(tmp_path: Path) -> None:
    async def check() -> None:
        node = await life(tmp_path).start()
        await append(node.service, "c", "one")
        second = life(tmp_path)
        with pytest.raises(StorageFailed) as refused:
            await second.start()
        assert isinstance(refused.value.cause, apsw.BusyError | apsw.LockedError), "says that somebody else holds it"
        await append(node.service, "c", "two")
        await node.restart(hard=True)
        assert texts_of(await history(node.service, "c")) == ["one", "two"]
        await node.stop()

    run(check())


def test_another_number_of_shards_is_refused_and_harms_nothing(tmp_path: Path) -> None:
    async def check() -> None:
        node = await life(tmp_path, shards=4).start()
        await append(node.service, "c", "one")
        await node.stop()
        with pytest.raises(StorageFailed, match="holds 4 shards, not 5; the number of shards never changes"):
            await NodeLife(options(tmp_path, shards=5)).start()
        await node.start()
        assert texts_of(await history(node.service, "c")) == ["one"]
        await node.stop()

    run(check())


def test_files_that_the_log_does_not_name_are_removed_at_the_start(tmp_path: Path) -> None:
    async def check() -> None:
        node = await life(tmp_path).start()
        await append(node.service, "c")
        kept = {path.name for path in (tmp_path / "state").iterdir()}
        await node.stop()
        leftovers = ["00001-deadbeef.db", "00001-deadbeef.db-wal", "00002-0badcafe.db.partial", "chunk.part"]
        for name in leftovers:
            (tmp_path / "state" / name).write_bytes(b"left over")
        await node.start()
        now = {path.name for path in (tmp_path / "state").iterdir()}
        assert not now & set(leftovers)
        assert {name for name in kept if name.endswith(".db")} <= now
        assert await list_ids(node.service) == ["c"]
        await node.stop()

    run(check())


def test_a_missing_state_database_stops_the_start_instead_of_serving_without_it(tmp_path: Path) -> None:
    """H1: the log below a checkpoint is gone, so an empty database in its place would be silent loss."""

    async def check() -> None:
        node = await life(tmp_path).start()
        for number in range(8):
            await append(node.service, f"c{number}")
        await node.stop()
        victim = next(path for path in (tmp_path / "state").iterdir() if path.name.startswith("00002") and path.suffix == ".db")
        content = victim.read_bytes()
        victim.unlink()
        for _ in range(2):
            with pytest.raises(StorageFailed, match="it is not there"):
                await node.start()
        victim.write_bytes(content)
        await node.start()
        assert await list_ids(node.service) == [f"c{number}" for number in range(8)]
        await node.stop()

    run(check())


def test_an_older_copy_of_a_state_database_stops_the_start(tmp_path: Path) -> None:
    """H1: a database from a backup beside a newer log lacks entries that the log no longer has."""

    async def check() -> None:
        node = await life(tmp_path).start()
        await append(node.service, "c", "one")
        await node.stop()
        path = next(path for path in (tmp_path / "state").iterdir() if path.name.startswith("00002") and path.suffix == ".db")
        old = path.read_bytes()
        await node.start()
        for number in range(9):
            await append(node.service, f"c{number}", "two")
        await node.stop()
        path.write_bytes(old)
        with pytest.raises(StorageFailed, match="it is an older copy"):
            await node.start()

    run(check())


def test_a_purged_context_is_unknown_at_once_and_its_id_is_free_for_another(tmp_path: Path) -> None:
    async def check() -> None:
        node = await life(tmp_path, upkeep=BY_HAND).start()
        for stored in (False, True):
            await node.service.append("c", Append([message("secret", id="m")], create=True, key="k"))
            old = await node.service.get_context("c")
            if stored:
                node.flush_all()
                node.forget_all()
            await node.service.purge_context("c")
            for ask in (
                node.service.get_context("c"),
                node.service.window("c", None, None, None),
                node.service.page("c", 1, 10, False),
                node.service.append("c", Append([message("x")])),
                node.service.purge_context("c"),
            ):
                with pytest.raises(ContextNotFound):
                    await ask
            assert await list_ids(node.service, status="any") == []
            first = await node.service.append("c", Append([message("another", id="m")], create=True, key="k"))
            assert first.first_seq == 1, "ids and keys of the old context are forgotten"
            new = await node.service.get_context("c")
            assert new.incarnation != old.incarnation
            await node.restart(hard=True)
            assert texts_of(await history(node.service, "c")) == ["another"]
            await node.service.purge_context("c")
        await node.stop()

    run(check())


def lose_the_log(data_dir: Path) -> None:
    for path in data_dir.glob("log.db*"):
        path.rename(path.with_name("elsewhere-" + path.name))


def test_h1_databases_without_their_log_are_refused_and_kept(tmp_path: Path) -> None:
    """H1: a lost log is not a new node; nothing is removed."""

    async def check() -> None:
        node = await life(tmp_path).start()
        await append(node.service, "kept", "hello")
        await node.stop()
        lose_the_log(tmp_path)
        before = sorted(path.name for path in (tmp_path / "state").iterdir())
        with pytest.raises(StorageFailed, match=r"log.db is missing"):
            await life(tmp_path).start()
        assert [name for name in before if name.endswith(".db")] == sorted(path.name for path in (tmp_path / "state").glob("*.db"))

    run(check())


def test_w6_an_append_that_arrives_while_a_rebuild_waits_stays_in_the_window(tmp_path: Path) -> None:
    """W6: what a rebuild says of the history is what it read, however long it waited for the database."""

    async def check() -> None:
        node = await life(tmp_path).start()
        for text in ("one", "two", "three"):
            await append(node.service, "a", text)
        replica = node.node.shards.replica_of("a")
        async with replica.storing:
            rebuild = asyncio.create_task(node.service.compact("a", Compact(rebuild=True)))
            await asyncio.sleep(0)
            await append(node.service, "a", "four")
        await rebuild
        window = json.loads((await node.service.window("a", None, None, None)).body or b"{}")
        assert [each["seq"] for each in window["messages"]] == [1, 2, 3, 4]
        await node.stop()

    run(check())
