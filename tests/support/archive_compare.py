"""An export beside its rows, byte for byte, a part at a time, so that a context of any length fits.

Knows HTTP and the archive's documented tables. Does not know who wrote.
"""

from collections.abc import Callable
from typing import Any

import aiohttp

ROWS_AT_ONCE = 500
READ_BYTES = 16 << 20
"""A line is a message, which may be of some MiB; aiohttp reads twice so much ahead."""

ROWS = "SELECT seq, raw FROM contextstore.messages WHERE context_id = $1 ORDER BY incarnation, seq"


class Differs(Exception):
    """The archive is not what the export is; the message says where."""


async def compare_context(connection: Any, url: str, context_id: str, see: Callable[[int, bytes], None] = lambda _seq, _line: None) -> int:
    """How many messages a context has, all of them equal to its rows, without a gap and none twice. `see` is told of each. `connection`
    is one of asyncpg's, `url` a node's. Raises `Differs`."""
    at = 0
    async with (
        aiohttp.ClientSession(read_bufsize=READ_BYTES) as session,
        connection.transaction(),
        session.get(f"{url}/v1/contexts/{context_id}/export", timeout=aiohttp.ClientTimeout(total=600)) as answer,
    ):
        answer.raise_for_status()
        async for seq, raw in connection.cursor(ROWS, context_id, prefetch=ROWS_AT_ONCE):
            at += 1
            line = await answer.content.readline()
            if seq != at or line != raw.encode() + b"\n":
                raise Differs(f"row {seq} of {context_id} is not line {at} of its export")
            see(at, line)
        if await answer.content.readline():
            raise Differs(f"the export of {context_id} has more than the {at} messages that are archived")
    return at
