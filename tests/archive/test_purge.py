"""A purge with an archive: no byte of the context is left, wherever it was looked for (SEMANTICS.md, "Life of a context")."""

import logging
from pathlib import Path

import asyncpg
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from context_node.archive.metrics import ArchiveMetrics
from context_node.contexts.requests import Append, PatchMetadata, PolicyChoice, PutContext
from context_node.runtime.metrics import NodeMetrics
from support.archived_nodes import ArchivedNode, archived_node
from support.postgres import PostgresServer
from support.running_nodes import append, message, run

SECRET = "the-secret-of-its-owner"


async def fill(node: ArchivedNode) -> None:
    """A context whose every member holds the secret: hot, cold, in the window, in keys and ids; and one that stays."""
    service, name = node.service, f"talk-{SECRET}"
    policy = PolicyChoice("last_n", {"limit": 3})
    await service.put_context(name, PutContext(policy=policy, metadata={"owner": SECRET}, key=f"put {SECRET}"))
    for number in range(40):
        one = message(f"{SECRET} says {number} " * 5, id=f"{SECRET}-{number}", metadata={"by": SECRET})
        await service.append(name, Append([one], key=f"{SECRET} {number}"))
    await service.patch_metadata(name, PatchMetadata({"more": SECRET}))
    await append(service, "other", "this stays")
    await node.archived()
    assert node.trimmed_seq(name)
    assert (await service.page(name, 1, 20, False)).messages


def files_with(folder: Path, text: bytes) -> list[str]:
    return [str(path.relative_to(folder)) for path in sorted(folder.rglob("*")) if path.is_file() and text in path.read_bytes()]


async def rows_with(dsn: str, text: str) -> list[str]:
    """Tables of which some row, written as text, holds `text` (also as bytes)."""
    connection = await asyncpg.connect(dsn)
    try:
        tables = [row[0] for row in await connection.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'contextstore'")]
        found = []
        for table in tables:
            statement = f"SELECT count(*) FROM contextstore.{table} AS one WHERE one::text LIKE $1 OR one::text LIKE $2"
            if await connection.fetchval(statement, f"%{text}%", f"%{text.encode().hex()}%"):
                found.append(table)
        return found
    finally:
        await connection.close()


@pytest.mark.parametrize("is_away", [False, True], ids=["at once", "postgres is away"])
def test_a_purge_leaves_no_byte_of_the_context(
    own: PostgresServer, tmp_path: Path, is_away: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)

    async def check() -> None:
        async with archived_node(tmp_path, own.dsn, tail_keep=5) as node:
            await fill(node)
            name = f"talk-{SECRET}"
            node.life.flush_all()
            assert files_with(tmp_path, SECRET.encode())
            assert set(await rows_with(own.dsn, SECRET)) == {"contexts", "messages"}
            if is_away:
                own.stop()
            await node.service.purge_context(name)
            if is_away:
                await node.life.upkeep.scrub()
                assert files_with(tmp_path, SECRET.encode()), "what is to be erased must be remembered"
                own.start()
            await node.archived()
            assert node.life.upkeep.is_scrub_due
            await node.life.upkeep.scrub()
            assert not node.life.upkeep.is_scrub_due
            assert files_with(tmp_path, SECRET.encode()) == []
            assert await rows_with(own.dsn, SECRET) == []
            await _vacuum(own.dsn)
            assert files_with(own.data / "base", SECRET.encode()) == []
            registry = CollectorRegistry()
            registry.register(NodeMetrics(node.life.node))
            registry.register(ArchiveMetrics(node.archiver, node.cold))
            assert SECRET not in generate_latest(registry).decode()
            assert node.cold._cache.bytes == 0
            assert (await node.service.page("other", 1, 10, False)).messages
        assert SECRET not in caplog.text

    run(check())


async def _vacuum(dsn: str) -> None:
    """What Postgres does by itself, sooner or later (docs/archive.md): until then its files may hold what no query finds."""
    connection = await asyncpg.connect(dsn)
    for statement in ("VACUUM FULL contextstore.messages", "VACUUM FULL contextstore.contexts", "CHECKPOINT"):
        await connection.execute(statement)
    await connection.close()
