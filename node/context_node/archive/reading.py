"""Reading an archive as a whole, for a restore and for comparing: every context, every message, whoever wrote them.

Knows what stands there. Writes nothing, and does not know what is done with it. Invariants: memory is bounded, whatever the archive holds;
the list of contexts is one moment of it, in the order of the bytes of their ids.
"""

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import asyncpg  # type: ignore[import-untyped]
import msgspec

from context_node.archive import schema as sql
from context_node.archive.errors import ArchiveError
from context_node.archive.postgres import PostgresOptions, told_as_archive_error, uri_trouble
from context_node.archive.rows import MessageData, message_data
from context_node.archive.uris import usable
from context_node.contexts.commands import PolicyRecord
from context_node.contexts.context import IdRow

CONTEXTS_AT_ONCE: Final = 200
PAGE_MESSAGES: Final = 1_000
COMMAND_TIMEOUT_S: Final = 600.0
"""Sorting the ids of millions of contexts takes the server a while."""

AHEAD_MAX: Final = 100_000
"""Messages beyond a context's mark that are looked at: they are the rest of one batch."""

_policy = msgspec.msgpack.Decoder(PolicyRecord).decode


class ContextRow(NamedTuple):
    """A context: all messages up to `archived_seq` are there. `record` is None where it is large; see `Archive.record`."""

    id: str
    incarnation: int
    archived_seq: int
    record: bytes | None


class MessageRow(NamedTuple):
    """A message, byte for byte, with its stored info and what its id remembers."""

    seq: int
    raw: bytes
    info: bytes
    id_row: IdRow | None


class Stray(NamedTuple):
    """Messages of one context that no mark covers: how many, and the newest."""

    id: str
    incarnation: int
    messages: int
    newest_seq: int


@dataclass(frozen=True, slots=True)
class Totals:
    contexts: int
    messages: int


class ArchiveReader:
    """An archive that is only read. `open` before the rest, `close` at the end. Everything raises `ArchiveError`."""

    def __init__(self, options: PostgresOptions, connections: int) -> None:
        """`connections`: so many may read messages at once; one more lists contexts."""
        self.cluster_id = ""
        self._options = options
        self._connections = connections
        self._schema = '"' + options.schema.replace('"', '""') + '"'
        self._pool: asyncpg.Pool[Any] | None = None

    async def open(self) -> None:
        """Connect, and see that an archive is there that this version can read."""
        options = self._options
        dsn = usable(options.dsn)
        with told_as_archive_error(), uri_trouble():
            self._pool = await asyncpg.create_pool(
                dsn,
                min_size=0,
                max_size=self._connections + 1,
                timeout=options.connect_timeout_s,
                command_timeout=COMMAND_TIMEOUT_S,
                server_settings={"application_name": "contextstore", "idle_in_transaction_session_timeout": "0"},
            )
            # The pool connects with the first question.
            is_there = await self._value(sql.HELD, f"{self._schema}.meta")
        if not is_there:
            raise ArchiveError("missing", f"there is no archive in schema {options.schema} of this database")
        meta = dict(await self._rows(sql.META))
        self.cluster_id = meta.get("cluster_id", "")
        version = int(meta.get("version", 0))
        if version > len(sql.MIGRATIONS):
            raise ArchiveError(
                "newer_schema",
                f"schema {options.schema} is of version {version}, and this is version {len(sql.MIGRATIONS)}: use a newer one",
            )

    async def close(self) -> None:
        """End all connections."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.terminate()

    async def totals(self, prefix: str = "") -> Totals:
        """How much there is."""
        ((contexts, messages),) = await self._rows(sql.TOTALS, prefix)
        return Totals(contexts, messages)

    async def policies(self) -> list[PolicyRecord]:
        """Every named policy, deleted ones too."""
        try:
            return [_policy(data) for (data,) in await self._rows(sql.POLICIES)]
        except msgspec.MsgspecError as error:
            raise ArchiveError("damaged", f"a named policy cannot be read: {error}") from error

    async def contexts(self, prefix: str = "") -> AsyncGenerator[ContextRow, None]:
        """Every context, of an id the newest incarnation first. Close it (`aclosing`) if it is not read to its end."""
        with told_as_archive_error():
            async with self._held().acquire() as connection, connection.transaction(isolation="repeatable_read", readonly=True):
                statement = sql.CONTEXTS.format(schema=self._schema)
                async for row in connection.cursor(statement, prefix, prefetch=CONTEXTS_AT_ONCE):
                    yield ContextRow(*row)

    async def record(self, row: ContextRow) -> bytes:
        """What nodes stored of a context."""
        if row.record is not None:
            return row.record
        found = await self._value(sql.RECORD, row.id, row.incarnation)
        if found is None:
            raise ArchiveError("gone", f"context {row.id} was erased from the archive meanwhile")
        return bytes(found)

    async def mark(self, context_id: str, incarnation: int) -> int | None:
        """Up to where a context is archived now; None if it is not there."""
        found = await self._value(sql.MARK, context_id, incarnation)
        return None if found is None else int(found)

    async def stray(self, prefix: str = "") -> AsyncGenerator[Stray, None]:
        """Messages behind their context's mark, or of no context at all; by context. Looks through the whole table. Close it (`aclosing`)
        if it is not read to its end."""
        with told_as_archive_error():
            async with self._held().acquire() as connection, connection.transaction(readonly=True):
                async for row in connection.cursor(sql.STRAY.format(schema=self._schema), prefix, prefetch=CONTEXTS_AT_ONCE):
                    yield Stray(*row)

    async def newest_seq(self, context_id: str, incarnation: int) -> int:
        """The newest message of a context that is there now, also behind the mark; 0 if there is none."""
        return int(await self._value(sql.NEWEST_SEQ, context_id, incarnation))

    async def next_seq(self, context_id: str, incarnation: int, first: int) -> int | None:
        """The first message from `first` on; None if there is none."""
        found = await self._value(sql.NEXT_SEQ, context_id, incarnation, first)
        return None if found is None else int(found)

    async def whole_upto(self, row: ContextRow, last_seq: int) -> int:
        """Up to where messages are there without a hole, at most to `last_seq`: the mark, and what a batch left behind it."""
        whole = row.archived_seq
        for (seq,) in await self._rows(sql.SEQS_AFTER, row.id, row.incarnation, whole, last_seq, AHEAD_MAX):
            if seq != whole + 1:
                break
            whole = seq
        return whole

    async def newest_costs(self, row: ContextRow, last_seq: int, limit: int) -> list[tuple[int, int]]:
        """(seq, tokens) of the newest messages up to `last_seq`, newest first."""
        return [(seq, tokens) for seq, tokens in await self._rows(sql.NEWEST_COSTS, row.id, row.incarnation, last_seq, limit)]

    async def messages(self, context_id: str, incarnation: int, first: int, last: int, *, bytes_max: int) -> list[MessageRow]:
        """Messages [first, last] that are there, in order, of the first `PAGE_MESSAGES` places, until they are `bytes_max` bytes or
        more; at least one if there is any among those places."""
        upto = min(last, first + PAGE_MESSAGES - 1)
        rows = await self._rows(sql.READ, context_id, incarnation, first, upto, bytes_max)
        try:
            return [_message(seq, raw, message_data(data)) for seq, raw, data in rows]
        except msgspec.MsgspecError as error:
            raise ArchiveError("damaged", f"a message of {context_id} cannot be read: {error}") from error

    async def _rows(self, statement: str, *values: Any) -> list[Any]:
        with told_as_archive_error():
            async with self._held().acquire() as connection:
                return list(await connection.fetch(statement.format(schema=self._schema), *values))

    async def _value(self, statement: str, *values: Any) -> Any:
        rows = await self._rows(statement, *values)
        return rows[0][0] if rows else None

    def _held(self) -> "asyncpg.Pool[Any]":
        if self._pool is None:
            raise ArchiveError("closed", "the archive is not connected")
        return self._pool


def _message(seq: int, raw: str, data: MessageData) -> MessageRow:
    return MessageRow(seq, raw.encode(), data.info, data.id)
