"""Whoever can write to Postgres can write anything: nothing of it stops a shard, goes into a window unseen, or replaces what was
acknowledged (H1, S1)."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from context_node.archive.archiver import BACKOFF_MIN_S
from context_node.archive.cold import WAITING_MAX, ColdReads
from context_node.archive.errors import ArchiveError
from context_node.archive.postgres import Postgres, PostgresOptions
from context_node.archive.rows import ArchivedContext, message_row, told_of
from context_node.contexts.commands import Restored
from context_node.contexts.refusals import ArchiveUnavailable, ContextNotFound
from context_node.contexts.requests import Compact, PolicyChoice, PutContext
from support.archived_nodes import ArchivedNode, archived_node
from support.running_nodes import append, run
from support.waiting import until


async def execute(dsn: str, statement: str) -> Any:
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetch(statement)
    finally:
        await connection.close()


async def filled(node: ArchivedNode, count: int = 30) -> None:
    await node.service.put_context("talk", PutContext(policy=PolicyChoice("last_n", {"limit": 2})))
    for number in range(count):
        await append(node.service, "talk", f"message {number}")
    await node.archived()
    # What waits to be stored is read from memory.
    node.life.flush_all()


@pytest.mark.parametrize(
    "damage",
    [
        "raw = 'not json'",
        "raw = replace(raw, '\"seq\":3', '\"seq\":99')",
        "raw = '{\"seq\":3}'",
        r"node_data = '\x00'",
        r"node_data = '\x92c40100c0'",
        "node_data = ''",
    ],
    ids=["no JSON", "another seq", "members missing", "no node data", "broken costs", "empty node data"],
)
def test_s1_a_damaged_row_is_refused_and_stops_nothing(dsn: str, tmp_path: Path, damage: str) -> None:
    async def check() -> None:
        async with archived_node(tmp_path, dsn, tail_keep=5, cache_bytes=0) as node:
            await filled(node)
            await execute(dsn, f"UPDATE contextstore.messages SET {damage} WHERE seq = 3")
            for question in (
                node.service.page("talk", 1, 10, False),
                node.service.pin("talk", 3, True),
                node.service.compact("talk", Compact(rebuild=True)),
            ):
                with pytest.raises(ArchiveUnavailable, match="damaged"):
                    await question
            assert len((await node.service.page("talk", 20, 10, False)).messages) == 10
            await append(node.service, "talk", "goes on")
            assert all(replica.failure is None for replica in node.life.replicas)

    run(check())


def test_h1_another_message_in_the_archive_never_takes_the_place_of_an_acknowledged_one(dsn: str, tmp_path: Path) -> None:
    """As after a data directory was put back from a copy: the archive has what came later in another life."""

    async def check() -> None:
        async with archived_node(tmp_path, dsn, tail_keep=2) as node:
            await filled(node, 6)
            other = '{"seq":8,"role":"user","parts":[],"metadata":{},"token_count":4,"inserted_at":"2030-01-01T00:00:00.000Z"}'
            await execute(
                dsn,
                "INSERT INTO contextstore.messages SELECT context_id, incarnation, 8, role, 4, inserted_at, NULL,"
                f" '{other}', node_data FROM contextstore.messages WHERE seq = 6",
            )
            trimmed = node.trimmed_seq("talk")
            for number in range(6, 12):
                await append(node.service, "talk", f"message {number}")
            await until(lambda: node.archiver.counters.failures.get("differs"), "the difference to be noticed")
            # The others wait for nothing on its account.
            await until(lambda: node.archiver.counters.failures["differs"] > 2, "it to be tried again")
            assert node.archiver._is_open
            assert node.archiver._backoff_s == BACKOFF_MIN_S
            assert not node.archiver.health().is_healthy
            assert "another message 8" in node.archiver.health().reason
            assert node.trimmed_seq("talk") <= max(trimmed, 7)
            page = await node.service.page("talk", 7, 10, False)
            assert [b"message %d" % (number - 1) in body for number, body in enumerate(page.messages, 7)] == [True] * 6

    run(check())


def test_a_leader_that_stays_fenced_off_says_so(dsn: str, tmp_path: Path) -> None:
    async def check() -> None:
        async with archived_node(tmp_path, dsn, tail_keep=None) as node:
            await filled(node, 3)
            await execute(dsn, "UPDATE contextstore.fences SET term = 1000")
            await append(node.service, "talk", "one more")
            await until(lambda: node.archiver.counters.failures.get("fenced"), "the fence to be told")
            assert "this node leads it" in node.archiver.health().reason

    run(check())


def test_a_commit_counts_only_once_it_is_on_the_disk(dsn: str) -> None:
    async def check() -> None:
        name = dsn.rpartition("/")[2].partition("?")[0]
        await execute(dsn, f"ALTER DATABASE {name} SET synchronous_commit = off")
        postgres = Postgres(lambda: PostgresOptions(dsn))
        await postgres.open("c" * 32)
        async with postgres._fenced(0, 1) as (connection, _):
            assert await connection.fetchval("SHOW synchronous_commit") == "on"
        # What is set when the transaction ends, of a batch that goes step by step and of one that goes whole.
        for statement in (
            "CREATE TABLE at_commit(setting text)",
            "CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN INSERT INTO at_commit VALUES (current_setting('synchronous_commit')); RETURN NULL; END $$",
            "CREATE CONSTRAINT TRIGGER noted AFTER INSERT ON contextstore.messages DEFERRABLE INITIALLY DEFERRED"
            " FOR EACH ROW EXECUTE FUNCTION note()",
        ):
            await execute(dsn, statement)
        for seq in (1, 2):
            raw = b'{"role":"user","token_count":1,"inserted_at":"2030-01-01T00:00:00.123Z"}'
            await postgres.write(
                0,
                1,
                [message_row("talk", 7, seq, raw, b"", told_of(raw), None)],
                [ArchivedContext("talk", 7, seq, seq - 1, seq, "active", b"{}", 0, 0, b"")],
            )
        assert [row["setting"] for row in await execute(dsn, "SELECT setting FROM at_commit")] == ["on", "on"]
        await postgres.close()

    asyncio.run(check())


class Frozen:
    """A Postgres that takes connections and says no more."""

    def __init__(self) -> None:
        self.opened = 0
        self.asked = 0
        self.answer = asyncio.Event()

    async def open(self, _cluster_id: str, *, only_reads: bool = False) -> str:
        self.opened += 1
        await self.answer.wait()
        raise ArchiveError("timeout", "Postgres did not answer in time")

    async def close(self) -> None:
        pass

    async def read(self, *_arguments: Any, **_named: Any) -> list[Restored]:
        self.asked += 1
        return []


def in_time(check: Callable[[], Any]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(30):
            await check()

    asyncio.run(bounded())


def test_of_many_readers_one_tries_to_connect_and_so_many_wait_at_most() -> None:
    async def check() -> None:
        archive = Frozen()
        cold = ColdReads(archive, lambda: "c" * 32)
        readers = [asyncio.create_task(cold.read("talk", 1, 1, 10)) for _ in range(WAITING_MAX + 20)]
        await until(lambda: sum(one.done() for one in readers) == 20, "those beyond the bound to be refused")
        archive.answer.set()
        results = await asyncio.gather(*readers, return_exceptions=True)
        assert all(isinstance(result, ArchiveUnavailable) for result in results)
        assert archive.opened == 1
        assert cold.failures == {"busy": 20, "timeout": WAITING_MAX}

    in_time(check)


def test_a_context_purged_while_the_archive_is_asked_is_not_found(dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def check() -> None:
        async with archived_node(tmp_path, dsn, tail_keep=5, cache_bytes=0) as node:
            await filled(node)
            ask = node.cold._archive.read

            async def purge_first(*arguments: Any, **named: Any) -> Any:
                await node.service.purge_context("talk")
                await until(lambda: node.archiver.counters.erased == 1, "the purge to reach the archive")
                return await ask(*arguments, **named)

            monkeypatch.setattr(node.cold._archive, "read", purge_first)
            with pytest.raises(ContextNotFound):
                await node.service.page("talk", 1, 10, False)
            with pytest.raises(ContextNotFound):
                await node.service.page("talk", 1, 10, False)

    run(check())


@pytest.mark.parametrize("kind", ["pin", "rebuild", "stream", "export"])
def test_nothing_of_a_purged_context_comes_under_the_next_of_its_id(
    dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """It is purged and made again while its cold messages are on their way."""

    async def check() -> None:
        async with archived_node(tmp_path, dsn, tail_keep=5, cache_bytes=0) as node:
            await filled(node)
            ask, service = node.cold._archive.read, node.service

            async def replace_then(*arguments: Any, **named: Any) -> Any:
                found = await ask(*arguments, **named)
                monkeypatch.undo()
                await service.purge_context("talk")
                await service.put_context("talk", PutContext(policy=PolicyChoice("last_n", {"limit": 2})))
                for number in range(30):
                    await append(service, "talk", f"another's {number}")
                return found

            monkeypatch.setattr(node.cold._archive, "read", replace_then)
            if kind == "pin":
                await service.pin("talk", 3, True)
            elif kind == "rebuild":
                with pytest.raises(ContextNotFound):
                    await service.compact("talk", Compact(rebuild=True))
            elif kind == "export":
                assert b"message" not in b"".join([chunk async for chunk in service.export("talk")])
            else:
                subscription = await service.subscribe("talk", 0)
                frame = await subscription.next(20.0)
                assert frame is not None
                assert frame.event in ("purged", "compaction", "context")
                subscription.close()
            answer = await service.window("talk", None, None, None)
            assert b"message " not in answer.body

    run(check())
