"""Postgres as the archive: the only caller of it.

Knows SQL's errors and says them as an `ArchiveError` with a cause. Does not know what is copied when. Invariants: every transaction that
writes raises its shard's fence first, so that a leader that was replaced changes nothing any more; what is there already is left as it is;
a schema that is newer than this version is not touched.
"""

import asyncio
import ssl
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import asyncpg  # type: ignore[import-untyped]
import msgspec

from context_node.archive import schema as sql
from context_node.archive.errors import ArchiveError, Behind, Fenced
from context_node.archive.rows import (
    ArchivedContext,
    ArchivedMessage,
    context_columns,
    held_columns,
    joined_columns,
    message_columns,
    message_data,
)
from context_node.archive.uris import HOW, usable
from context_node.contexts.commands import Restored

CLOSE_S = 2.0

ROWS_AT_ONCE = 100
"""So many messages go in one statement of a batch that goes step by step: each statement lets others in."""

ADVISORY_LOCK = 0x636F6E74
"""`pg_advisory_xact_lock` of whoever migrates: of several nodes that start together one does."""


@dataclass(frozen=True, slots=True)
class PostgresOptions:
    """`dsn`: a libpq connection URI (its `sslmode` and `sslrootcert` say how far the server is trusted). `schema`: the archive's own.
    `pool_max`: connections at once. Times in seconds."""

    dsn: str
    schema: str = "contextstore"
    pool_max: int = 4
    connect_timeout_s: float = 10.0
    command_timeout_s: float = 60.0


async def _nothing_to_reset(_connection: Any) -> None:
    """What is set here is set for a transaction, or meant for whoever has the connection next as well, and one on which anything failed is
    dropped: asyncpg's own reset would ask the server once more for each batch."""


class Postgres:
    """The archive of one cluster. `open` before the rest, `close` at the end."""

    def __init__(self, options: Callable[[], PostgresOptions]) -> None:
        """`options` is asked at every `open`, so that a new password needs no restart. It may raise `ArchiveError`."""
        self._options = options
        self._schema = ""
        self._patience_ms = 0
        self._pool: asyncpg.Pool[Any] | None = None
        self._likely_new: dict[int, tuple[int, str]] = {}
        """By shard the term whose last batch went well and met nothing: what follows is hardly there either; and who raised the fence."""

    async def open(self, cluster_id: str, *, only_reads: bool = False) -> str:
        """Connect, and bring the schema up to this version; with `only_reads` see that it is this cluster's and change nothing. Gives the
        archive's id, which goes with its tables wherever they are copied. Raises `ArchiveError`; may be called again then."""
        await self.close()
        options = self._options()
        self._likely_new.clear()
        self._schema = '"' + options.schema.replace('"', '""') + '"'
        self._patience_ms = round(1000 * options.command_timeout_s)
        dsn = usable(options.dsn)
        with told_as_archive_error(), uri_trouble():
            pool = asyncpg.create_pool(
                dsn,
                min_size=0,
                max_size=options.pool_max,
                timeout=options.connect_timeout_s,
                command_timeout=options.command_timeout_s,
                server_settings={"application_name": "contextstore"},
                reset=_nothing_to_reset,
                init=self._limit_statements,
            )
            self._pool = await pool
            try:
                async with self._connection() as connection, connection.transaction():
                    if only_reads:
                        held = dict(await connection.fetch(sql.META.format(schema=self._schema)))
                        self._check_owner(held.get("cluster_id"), options.schema, cluster_id)
                        return str(held["archive_id"])
                    return await self._migrate(connection, options.schema, cluster_id)
            except BaseException:
                await self.close()
                raise

    async def _limit_statements(self, connection: Any) -> None:
        """That nobody waits for a statement any more the server does not know: it ends it by itself. Not a parameter of the start, which
        poolers refuse."""
        await connection.execute(f"SET statement_timeout = {self._patience_ms}")

    async def close(self) -> None:
        """End all connections; what is under way after `CLOSE_S` is broken off and rolled back."""
        pool, self._pool = self._pool, None
        if pool is None:
            return
        try:
            async with asyncio.timeout(CLOSE_S):
                await pool.close()
        except (TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
            pool.terminate()
            # Sockets end in the next turn of the loop.
            await asyncio.sleep(0)

    async def ping(self) -> None:
        """Return if Postgres answers. Raises `ArchiveError`."""
        with told_as_archive_error():
            async with self._connection() as connection:
                await connection.execute("SELECT 1")

    async def _migrate(self, connection: Any, schema: str, cluster_id: str) -> str:
        """Gives the archive's id."""
        if (encoding := await connection.fetchval("SHOW server_encoding")) != "UTF8":
            raise ArchiveError("encoding", f"the database is in {encoding} and cannot hold every message: make one with ENCODING 'UTF8'")
        await connection.execute("SELECT pg_advisory_xact_lock($1)", ADVISORY_LOCK)
        # Asked for first: `IF NOT EXISTS` needs the right to make what is there already, and nobody has to keep that.
        if not await connection.fetchval(sql.HAS_SCHEMA, schema):
            await connection.execute(sql.MAKE_SCHEMA.format(schema=self._schema))
        if not await connection.fetchval(sql.HAS_META, schema):
            await connection.execute(sql.MAKE_META.format(schema=self._schema))
        held = dict(await connection.fetch(sql.META.format(schema=self._schema)))
        self._check_owner(held.get("cluster_id", cluster_id), schema, cluster_id)
        version = int(held.get("version", 0))
        if version > len(sql.MIGRATIONS):
            raise ArchiveError(
                "newer_schema",
                f"schema {schema} is of version {version}, and this node knows {len(sql.MIGRATIONS)}: run a newer version",
            )
        for migration in sql.MIGRATIONS[version:]:
            await connection.execute(migration.format(schema=self._schema))
        archive_id: str = held.get("archive_id") or uuid.uuid4().hex
        if version < len(sql.MIGRATIONS):
            told = [("cluster_id", cluster_id), ("version", str(len(sql.MIGRATIONS))), ("archive_id", archive_id)]
            await connection.executemany(sql.PUT_META.format(schema=self._schema), told)
        return archive_id

    @staticmethod
    def _check_owner(owner: str | None, schema: str, cluster_id: str) -> None:
        if owner != cluster_id:
            raise ArchiveError(
                "foreign", f"schema {schema} holds the archive of cluster {owner}, not of {cluster_id}; give another archive_schema"
            )

    async def write(self, shard: int, term: int, messages: Sequence[ArchivedMessage], contexts: Sequence[ArchivedContext]) -> None:
        """Copy messages, and note how far contexts are, in one transaction. Raises `Fenced`, `Behind`, `ArchiveError`."""
        # What another leader wrote, or a batch of which nobody knows how it ended, may be there already. To expect it of every row costs
        # the server a look into the index and another record of its log for each, and every statement is another wait for the server and
        # for the event loop that others keep busy.
        expected, raised_by = self._likely_new.pop(shard, (None, ""))
        if expected != term or not await self._add(shard, term, raised_by, messages, contexts):
            await self._put(shard, term, messages, contexts)

    async def _add(
        self, shard: int, term: int, raised_by: str, messages: Sequence[ArchivedMessage], contexts: Sequence[ArchivedContext]
    ) -> bool:
        """Write a batch of which nothing is there, in one statement. False, and nothing was written, if it is not in order, rows are there
        after all, or another transaction raised the fence meanwhile."""
        if (joined := joined_columns(messages, contexts)) is None:
            return False
        columns = (shard, term, raised_by, *held_columns(contexts), *joined, *context_columns(contexts, shard)[2:])
        with told_as_archive_error():
            async with self._connection() as connection:
                try:
                    row = await connection.fetchrow(sql.ADD_BATCH.format(schema=self._schema), *columns)
                except asyncpg.UniqueViolationError:
                    return False
        if row is None:
            return False
        if row["behind"]:
            raise Behind(dict(zip(row["behind"], row["has"], strict=True)))
        self._likely_new[shard] = term, row["raised_by"]
        return True

    async def _put(self, shard: int, term: int, messages: Sequence[ArchivedMessage], contexts: Sequence[ArchivedContext]) -> None:
        """Write a batch step by step, whatever of it is there already."""
        has_met = False
        async with self._fenced(shard, term) as (connection, raised_by):
            if behind := await connection.fetch(sql.LESS_THAN.format(schema=self._schema), *held_columns(contexts)):
                raise Behind(dict(behind))
            for at in range(0, len(messages), ROWS_AT_ONCE):
                has_met |= await self._put_messages(connection, messages[at : at + ROWS_AT_ONCE])
            await connection.execute(sql.PUT_CONTEXTS.format(schema=self._schema), *context_columns(contexts, shard))
        if not has_met:
            self._likely_new[shard] = term, raised_by

    async def _put_messages(self, connection: Any, messages: Sequence[ArchivedMessage]) -> bool:
        """Insert what is not there; whether some of it is. That must be the same: an older leader's, before its mark was noted."""
        columns = message_columns(messages)
        done = await connection.execute(sql.PUT_MESSAGES.format(schema=self._schema), *columns)
        if done == f"INSERT 0 {len(messages)}":
            return False
        asked = (columns[0], columns[1], columns[2], columns[6])
        if (seq := await connection.fetchval(sql.DIFFERING.format(schema=self._schema), *asked)) is not None:
            raise ArchiveError(
                "differs",
                f"the archive has another message {seq} than a context of this cluster: was this node's data, or the archive, brought back "
                "from a copy? Nothing more of that shard is archived or trimmed; give another archive_schema",
            )
        return True

    async def write_policies(self, shard: int, term: int, policies: Sequence[tuple[str, int, bytes]]) -> None:
        """Copy named policies, given as (name, generation, packed record). Raises `Fenced`, `ArchiveError`."""
        async with self._fenced(shard, term) as (connection, _):
            await connection.executemany(sql.PUT_POLICY.format(schema=self._schema), policies)

    async def erase(self, shard: int, term: int, contexts: Sequence[tuple[str, int]]) -> None:
        """Erase contexts, given as (id, incarnation). Raises `Fenced`, `ArchiveError`."""
        async with self._fenced(shard, term) as (connection, _):
            for statement in sql.ERASE:
                await connection.execute(statement.format(schema=self._schema), [one[0] for one in contexts], [one[1] for one in contexts])

    async def read(
        self, context_id: str, incarnation: int, first: int, last: int, *, bytes_max: int, descending: bool = False
    ) -> list[Restored]:
        """Messages [first, last] from the end that the direction says, in that order, until they are `bytes_max` bytes or more; at least
        one if there is any. Raises `ArchiveError`."""
        statement = (sql.READ_DESCENDING if descending else sql.READ).format(schema=self._schema)
        with told_as_archive_error():
            async with self._connection() as connection:
                rows = await connection.fetch(statement, context_id, incarnation, first, last, bytes_max)
        return [Restored(seq, raw.encode(), _info_of(data)) for seq, raw, data in rows]

    @asynccontextmanager
    async def _fenced(self, shard: int, term: int) -> AsyncIterator[tuple[Any, str]]:
        """A connection in a transaction that has raised the fence, and its name as who did."""
        with told_as_archive_error():
            async with self._connection() as connection:
                transaction = connection.transaction()
                await transaction.start()
                raised_by = await connection.fetchval(sql.RAISE_FENCE.format(schema=self._schema), shard, term, self._patience_ms)
                if raised_by is None:
                    raise Fenced(shard)
                yield connection, raised_by
                await transaction.commit()

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[Any]:
        """A connection. One on which something went wrong is dropped at once, which rolls back: a server that does not answer would let
        whoever asks it to cancel or to roll back wait once more."""
        if self._pool is None:
            raise ArchiveError("closed", "the archive is not connected")
        async with self._pool.acquire(timeout=self._patience_ms / 1000) as connection:
            try:
                yield connection
            except BaseException:
                # One that has ended is with the pool again and says so, which is not what went wrong.
                with suppress(asyncpg.InterfaceError):
                    connection.terminate()
                raise


def _info_of(node_data: bytes) -> bytes:
    """What a window needs of a message; empty, which no message has, if that cannot be read."""
    try:
        return message_data(node_data).info
    except msgspec.DecodeError:
        return b""


@contextmanager
def uri_trouble() -> Iterator[None]:
    """What asyncpg says of a URI that it cannot read. Its words quote the URI, so nothing of them is told."""
    try:
        yield
    except ssl.SSLError:
        raise  # a ValueError too, when a certificate is not believed
    except ValueError:
        raise ArchiveError("login", f"the URI of the archive cannot be read; {HOW}") from None


class told_as_archive_error:
    """What asyncpg, the network and TLS raise, as an `ArchiveError`."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is None or isinstance(error, ArchiveError):
            return
        if isinstance(error, asyncpg.PostgresError):
            # Not its detail, which may quote what was to be written.
            raise ArchiveError(cause_of(error.sqlstate or ""), f"Postgres: {error.args[0] if error.args else 'no reason given'}") from error
        if isinstance(error, TimeoutError):
            raise ArchiveError("timeout", "Postgres did not answer in time") from error
        if isinstance(error, FileNotFoundError | PermissionError) and "Connect call" not in str(error):
            # Not a firewall. Neither the system nor ssl says which.
            files = "sslrootcert, sslcert, sslkey, sslcrl or a socket"
            what = f"Postgres cannot be reached: {error}; see that the node may read each file that its URI names ({files})"
            raise ArchiveError("unreachable", what) from error
        # asyncpg's own state does not always survive a server that ends in the middle of an answer.
        if isinstance(error, ssl.SSLError | OSError | asyncpg.InterfaceError | asyncpg.InternalClientError):
            raise ArchiveError("unreachable", f"Postgres cannot be reached: {error}") from error


CAUSES = (
    ("28", "login"), ("3D", "login"), ("42501", "permission"), ("53100", "disk_full"), ("53300", "too_many_connections"),
    ("57014", "timeout"), ("57", "stopped"), ("08", "unreachable"), ("25006", "read_only"), ("25P03", "timeout"),
    ("40", "conflict"), ("55P03", "conflict"),
)  # fmt: skip
"""By the beginning of an SQLSTATE (PostgreSQL, appendix A) one word."""


def cause_of(sqlstate: str) -> str:
    return next((cause for beginning, cause in CAUSES if sqlstate.startswith(beginning)), "refused")
