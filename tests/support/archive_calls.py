"""How tests look at an archive and at the node that fills it: one question each.

Knows HTTP and the archive's documented tables from outside only. Does not know what a test checks.
"""

import asyncio
import re
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import asyncpg  # type: ignore[import-untyped]

from support.cluster_calls import call
from support.contextstore_process import RunningNode
from support.waiting import wait_until

QUICK = ("--archive-flush-s", "0.05")


def query(dsn: str, statement: str, *values: Any) -> list[Any]:
    """The rows of one statement, on a connection of its own."""

    async def ask() -> list[Any]:
        connection = await asyncpg.connect(dsn)
        try:
            return [tuple(row) for row in await connection.fetch(statement, *values)]
        finally:
            await connection.close()

    return asyncio.run(ask())


@contextmanager
def open_transaction(dsn: str, statement: str, *values: Any) -> Iterator[None]:
    """What a statement locks stays locked for as long as the block lasts; nothing of it stays."""
    with asyncio.Runner() as runner:
        connection = runner.run(asyncpg.connect(dsn))
        try:
            runner.run(connection.execute("BEGIN"))
            runner.run(connection.execute(statement, *values))
            yield
        finally:
            runner.run(connection.close())


def append(node: RunningNode, context_id: str, *texts: str) -> int:
    """The seq of the last message; tried until it is acknowledged, as clients do. A text's first 64 characters are its message's id."""
    messages = [{"role": "user", "content": text, "id": text[:64]} for text in texts]
    answers: list[Any] = []

    def is_kept() -> bool:
        answers.append(call(f"{node.url}/v1/contexts/{context_id}/messages?create=true", "POST", {"messages": messages}))
        return bool(answers[-1][0] == 201)

    wait_until(is_kept, "the append to be acknowledged")
    return int(answers[-1][1]["last_seq"])


def history(node: RunningNode, context_id: str) -> list[bytes]:
    """The messages as the export gives them, byte for byte."""
    with urllib.request.urlopen(f"{node.url}/v1/contexts/{context_id}/export", timeout=30) as answer:
        return [line for line in answer.read().splitlines() if line]


def archived(dsn: str, context_id: str) -> list[bytes]:
    """The messages as they are in Postgres."""
    rows = query(dsn, "SELECT seq, raw FROM contextstore.messages WHERE context_id = $1 ORDER BY incarnation, seq", context_id)
    return [raw.encode() for _, raw in rows]


def has_archived(node: RunningNode, context_id: str) -> int:
    """How far the node says that a context is archived."""
    return int(call(f"{node.url}/v1/contexts/{context_id}")[1]["archived_seq"])


def metric(node: RunningNode, name: str, **labels: str) -> float:
    """A metric without its prefix, the sum over all its labels, or over those that have these."""
    with urllib.request.urlopen(f"{node.url}/metrics", timeout=30) as answer:
        found = re.findall(rf"^contextstore_{name}(?:{{([^}}]*)}})? (\S+)$", answer.read().decode(), re.MULTILINE)
    wanted = [f'{label}="{value}"' for label, value in labels.items()]
    return sum(float(value) for given, value in found if all(one in given for one in wanted))
