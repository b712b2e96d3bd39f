"""What becomes of a node whose archive is not the one that it was: another database, an empty one, one from a backup. Nothing is trimmed
that it does not have, and nothing is hidden (H6)."""

import logging
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from context_node.archive.metrics import ArchiveMetrics
from context_node.contexts.refusals import ArchiveUnavailable
from support.archived_nodes import ArchivedNode, archived_node
from support.postgres import PostgresServer
from support.running_nodes import append, run
from support.waiting import until

COUNT = 30


async def rows(dsn: str, statement: str, *values: Any) -> list[Any]:
    connection = await asyncpg.connect(dsn)
    try:
        return [tuple(row) for row in await connection.fetch(statement, *values)]
    finally:
        await connection.close()


async def archived_seqs(dsn: str, context_id: str = "talk") -> list[int]:
    statement = "SELECT seq FROM contextstore.messages WHERE context_id = $1 ORDER BY seq"
    return [seq for (seq,) in await rows(dsn, statement, context_id)]


async def fill(node: ArchivedNode, context_id: str = "talk", count: int = COUNT) -> None:
    for number in range(count):
        await append(node.service, context_id, f"message {number} " + "x" * 400)
    await node.archived()


def healthy_metric(node: ArchivedNode) -> float:
    """What the alert looks at."""
    found = {metric.name: metric for metric in ArchiveMetrics(node.archiver, node.cold).collect()}
    return found["contextstore_archive_healthy"].samples[0].value


async def whole_history(node: ArchivedNode, context_id: str = "talk") -> int:
    return len((await node.service.page(context_id, 1, 1000, False)).messages)


@pytest.fixture
def other(server: PostgresServer, dsn: str) -> str:
    """Another empty database on the same server."""
    name = dsn.rpartition("/")[2].partition("?")[0]

    async def create() -> None:
        await rows(server.dsn, f"CREATE DATABASE {name}_other")

    run(create())
    return dsn.replace(f"/{name}?", f"/{name}_other?")


async def copy_archive(source: str, target: str) -> None:
    """As pg_dump and psql would, for the tables that matter here."""
    schema = "contextstore"
    for table in ("messages", "contexts", "meta"):
        there = await asyncpg.connect(source)
        here = await asyncpg.connect(target)
        found = await there.fetch(f"SELECT * FROM {schema}.{table}")
        await here.execute(f"DELETE FROM {schema}.{table}")
        if found:
            await here.copy_records_to_table(
                table, schema_name=schema, columns=list(found[0].keys()), records=[tuple(row) for row in found]
            )
        await there.close()
        await here.close()


def test_into_an_archive_that_is_new_everything_is_copied_anew(dsn: str, other: str, tmp_path: Path) -> None:
    async def check() -> None:
        async with archived_node(tmp_path, dsn, tail_keep=None) as node:
            await fill(node)
        async with archived_node(tmp_path, other, tail_keep=None) as node:
            await node.archived()
            assert await archived_seqs(other) == list(range(1, COUNT + 1))
            assert (await node.service.get_context("talk")).archived_seq == COUNT
        async with archived_node(tmp_path, other, tail_keep=5) as node:
            await node.archived()
            assert node.trimmed_seq("talk") > 0
            assert await whole_history(node) == COUNT

    run(check())


def test_h6_a_node_that_trimmed_takes_no_other_archive_until_that_has_what_was_trimmed(
    dsn: str, other: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def check() -> None:
        async with archived_node(tmp_path, dsn, tail_keep=5) as node:
            await fill(node)
            trimmed = node.trimmed_seq("talk")
            assert trimmed
        async with archived_node(tmp_path, other, tail_keep=5) as node:
            await until(lambda: node.archiver.counters.failures.get("other_archive"), "the other archive to be refused")
            assert "use that one, or copy it whole" in node.archiver.health().reason
            assert not node.archiver.health().is_healthy
            for number in range(10):
                await append(node.service, "talk", f"more {number}")
            assert node.trimmed_seq("talk") == trimmed
            with pytest.raises(ArchiveUnavailable):
                await whole_history(node)
            await copy_archive(dsn, other)
            # The archive moved as it was: its id came with it, at the next connection.
            await until(lambda: node.archiver.health().is_healthy, "the copied archive to be taken")
            await node.archived()
            assert await archived_seqs(other) == list(range(1, COUNT + 11))
            assert await whole_history(node) == COUNT + 10

    run(check())


def test_what_a_backup_does_not_have_is_copied_again_from_what_is_hot(dsn: str, tmp_path: Path) -> None:
    async def check() -> None:
        async with archived_node(tmp_path, dsn, tail_keep=None) as node:
            await fill(node)
            await rows(dsn, "DELETE FROM contextstore.messages WHERE seq > 12")
            await rows(dsn, "UPDATE contextstore.contexts SET archived_seq = 12")
            await append(node.service, "talk", "one more")
            await until(lambda: node.archiver.counters.failures.get("hole"), "the loss to be noticed")
            await node.archived()

            async def is_whole() -> bool:
                return await archived_seqs(dsn) == list(range(1, COUNT + 2))

            for _ in range(200):
                if await is_whole():
                    break
                await append(node.service, "another", "to have something to do")
                await node.archived()
            assert await is_whole()

    run(check())


def test_h6_where_trimmed_messages_were_lost_nothing_more_is_trimmed_and_others_go_on(
    dsn: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)

    async def check() -> None:
        async with archived_node(tmp_path, dsn, tail_keep=5) as node:
            await fill(node)
            await fill(node, "other")
            trimmed = node.trimmed_seq("talk")
            await rows(dsn, "DELETE FROM contextstore.messages WHERE context_id = 'talk' AND seq > 3")
            await rows(dsn, "UPDATE contextstore.contexts SET archived_seq = 3 WHERE context_id = 'talk'")
            for number in range(10):
                await append(node.service, "talk", f"more {number}")
                await append(node.service, "other", f"more {number}")
            await until(lambda: node.archiver.counters.failures.get("hole"), "the loss to be noticed")
            other = node.life.node.shards.replica_of("other")

            def has_all() -> bool:
                context = other.context("other")
                return context is not None and context.head.archived_seq == COUNT + 10

            await until(has_all, "the other context to go on")
            assert node.trimmed_seq("other") >= COUNT
            assert node.trimmed_seq("talk") == trimmed
            assert await archived_seqs(dsn) == [1, 2, 3]
            assert await archived_seqs(dsn, "other") == list(range(1, COUNT + 11))
            assert len((await node.service.page("talk", trimmed + 1, 1000, False)).messages) == COUNT + 10 - trimmed

    run(check())
    assert "lost messages of talk behind seq 3 that were trimmed" in caplog.text


def test_h6_what_was_lost_goes_on_once_it_is_brought_back_and_the_next_of_a_purged_id_at_once(dsn: str, tmp_path: Path) -> None:
    late_ms = [0]

    async def check() -> None:
        async with archived_node(tmp_path, dsn, tail_keep=5, clock=lambda: 1_900_000_000_000 + late_ms[0]) as node:
            names = ("talk", "other")
            for name in names:
                await fill(node, name)
            await rows(dsn, "CREATE TABLE backup AS SELECT * FROM contextstore.messages")
            await rows(dsn, "DELETE FROM contextstore.messages WHERE seq > 3")
            await rows(dsn, "UPDATE contextstore.contexts SET archived_seq = 3")
            for name in names:
                await append(node.service, name, "one more")
            await until(lambda: " 2 contexts" in node.archiver.health().reason, "the loss to be told")
            assert not node.archiver.health().is_healthy
            assert node.archiver.health().cause == "hole"
            assert healthy_metric(node) == 0
            await node.service.purge_context("other")
            await append(node.service, "other", "another life")
            shards = node.life.node.shards

            def archived_seq(name: str) -> int:
                context = shards.replica_of(name).context(name)
                return 0 if context is None else context.head.archived_seq

            await until(lambda: archived_seq("other") == 1, "the other life to be archived")
            assert node.archiver.health().cause == "hole", "of the first nothing is there yet"
            missed = node.archiver.counters.failures["hole"]
            late_ms[0] = 60_000
            await until(lambda: node.archiver.counters.failures["hole"] > missed, "it to be asked for again")
            assert archived_seq("talk") == COUNT
            await rows(dsn, "INSERT INTO contextstore.messages SELECT * FROM backup WHERE context_id = 'talk' AND seq > 3")
            await rows(dsn, f"UPDATE contextstore.contexts SET archived_seq = {COUNT} WHERE context_id = 'talk'")
            late_ms[0] = 120_000
            await until(lambda: archived_seq("talk") == COUNT + 1, "what was brought back to go on")
            await until(lambda: node.archiver.health().is_healthy, "all to be well")
            assert healthy_metric(node) == 1
            assert await archived_seqs(dsn) == list(range(1, COUNT + 2))
            assert await whole_history(node) == COUNT + 1

    run(check())
