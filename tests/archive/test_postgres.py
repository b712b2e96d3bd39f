"""Postgres as the archive: what is written stays as it is, older leaders write nothing, and each trouble has a name."""

import asyncio
import json
import ssl
from collections.abc import Awaitable, Callable
from typing import Any

import asyncpg
import msgspec
import pytest

from context_node.archive import schema
from context_node.archive.batches import BatchLimits
from context_node.archive.errors import ArchiveError, Behind, Fenced
from context_node.archive.postgres import ROWS_AT_ONCE, Postgres, PostgresOptions, told_as_archive_error, uri_trouble
from context_node.archive.rows import ArchivedContext, ArchivedMessage, fits_jsonb, joined_columns, message_row, told_of
from support.postgres import PostgresServer
from support.tcp_proxy import tcp_proxy
from support.waiting import until

CLUSTER = "c" * 32


def message(
    seq: int, text: str = "hello", context_id: str = "talk", incarnation: int = 7, role: str = "user", tokens: int = 3
) -> ArchivedMessage:
    parts = [{"type": "text", "text": text}]
    said = json.dumps({"seq": seq, "role": role, "parts": parts, "metadata": {}, "token_count": tokens}, ensure_ascii=False)
    raw = f'{said[:-1]},"inserted_at":"2030-01-01T00:00:{seq % 60:02}.123{seq % 1000:03}Z"}}'.encode()
    return message_row(context_id, incarnation, seq, raw, b"info %d" % seq, told_of(raw), None)


def mark(context_id: str, incarnation: int, seq: int, revision: int = 1) -> ArchivedContext:
    return ArchivedContext(
        context_id, incarnation, seq, 0, revision, "active", b'{"who":"me"}', 1_900_000_000_000, 1_900_000_000_001, b"record"
    )


async def read(postgres: Postgres, context_id: str, incarnation: int, first: int, last: int, **named: Any) -> list[tuple[int, bytes]]:
    rows = await postgres.read(context_id, incarnation, first, last, **{"bytes_max": 1 << 20, **named})
    assert all(row.info == b"info %d" % row.seq for row in rows)
    return [(row.seq, row.body) for row in rows]


def archive(dsn: str, name: str = "contextstore") -> Postgres:
    return Postgres(lambda: PostgresOptions(dsn, name))


def run(dsn: str, check: Callable[[Postgres], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(60):
            postgres = archive(dsn)
            await postgres.open(CLUSTER)
            try:
                await check(postgres)
            finally:
                await postgres.close()

    asyncio.run(bounded())


def watched(postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is expected of the rows that are written from now on, in order; "batch" where they go as a whole."""
    ways: list[str] = []
    put, add = postgres._put_messages, postgres._add

    async def watch(connection: Any, messages: Any) -> bool:
        ways.append("any")
        return await put(connection, messages)

    async def watch_batch(*batch: Any) -> bool:
        ways.append("batch")
        return await add(*batch)

    monkeypatch.setattr(postgres, "_put_messages", watch)
    monkeypatch.setattr(postgres, "_add", watch_batch)
    return ways


async def query(dsn: str, statement: str) -> list[Any]:
    connection = await asyncpg.connect(dsn)
    try:
        return [tuple(row) for row in await connection.fetch(statement)]
    finally:
        await connection.close()


async def until_told(dsn: str, statement: str, rows: list[Any]) -> None:
    """Ask until the answer is `rows`; `run` ends what takes too long."""
    while True:
        if await query(dsn, statement) == rows:
            return
        await asyncio.sleep(0.02)


def test_what_is_written_twice_is_there_once_byte_for_byte(dsn: str) -> None:
    async def check(postgres: Postgres) -> None:
        first, second = message(1, '  spaces \t and "quotes" 🙂 '), message(2)
        await postgres.write(3, 1, [first, second], [mark("talk", 7, 2)])
        # Another leader meets what the first wrote, and brings more.
        await postgres.write(3, 2, [second, message(3)], [mark("talk", 7, 3)])
        assert await read(postgres, "talk", 7, 1, 10) == [(1, first.raw), (2, second.raw), (3, message(3).raw)]
        assert await read(postgres, "talk", 7, 2, 3, bytes_max=1) == [(2, second.raw)]
        newest = [(3, message(3).raw), (2, second.raw)]
        assert await read(postgres, "talk", 7, 1, 3, bytes_max=len(second.raw) + 1, descending=True) == newest
        rows = await query(dsn, "SELECT seq, role, token_count, body->'parts'->0->>'text' FROM contextstore.messages ORDER BY seq")
        assert rows[0] == (1, "user", 3, '  spaces \t and "quotes" 🙂 ')
        assert await query(dsn, "SELECT context_id, shard, archived_seq FROM contextstore.contexts") == [("talk", 3, 3)]

    run(dsn, check)


def test_what_follows_a_good_batch_is_taken_for_new(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def check(postgres: Postgres) -> None:
        ways = watched(postgres, monkeypatch)
        texts = ["first", '  spaces \t and "quotes" 🙂 ', "a NUL \x00 which jsonb knows not", "back\\slash \\N \n line", ""]
        said = [message(place, text) for place, text in enumerate(texts, 1)]
        await postgres.write(3, 1, said[:1], [mark("talk", 7, 1)])
        await postgres.write(3, 1, said[1:], [mark("talk", 7, 5)])
        assert ways == ["any", "batch"]
        assert await read(postgres, "talk", 7, 1, 10) == [(one.seq, one.raw) for one in said]
        rows = await query(dsn, "SELECT body->'parts'->0->>'text' FROM contextstore.messages ORDER BY seq")
        assert [row[0] for row in rows] == [None if "\x00" in text else text for text in texts]

    run(dsn, check)


def test_what_was_taken_for_new_and_is_there_is_left_as_it_is(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An earlier batch whose COMMIT nobody heard of; or a restored archive that holds something else."""

    async def check(postgres: Postgres) -> None:
        ways = watched(postgres, monkeypatch)
        await postgres.write(3, 1, [message(1)], [mark("talk", 7, 1)])
        await postgres.write(3, 1, [message(1), message(2)], [mark("talk", 7, 2)])
        assert ways == ["any", "batch", "any"]
        assert [row[0] for row in await read(postgres, "talk", 7, 1, 10)] == [1, 2]
        # One that met something may be followed by one that does.
        await postgres.write(3, 1, [message(2), message(3)], [mark("talk", 7, 3)])
        await postgres.write(3, 1, [message(4)], [mark("talk", 7, 4)])
        await postgres.write(3, 1, [message(5)], [mark("talk", 7, 5)])
        assert ways[3:] == ["any", "any", "batch"]
        with pytest.raises(ArchiveError, match="another message 5") as found:
            await postgres.write(3, 1, [message(5, "not what is there"), message(6)], [mark("talk", 7, 6)])
        assert found.value.cause == "differs"
        assert [row[0] for row in await read(postgres, "talk", 7, 1, 10)] == [1, 2, 3, 4, 5], "nothing of it, and nothing lost"
        # Nobody is sure after a failure, nor in another term.
        await postgres.write(3, 1, [message(6)], [mark("talk", 7, 6)])
        await postgres.write(3, 2, [message(7)], [mark("talk", 7, 7)])
        assert ways[6:] == ["batch", "any", "any", "any"]
        assert [row[0] for row in await read(postgres, "talk", 7, 1, 10)] == list(range(1, 8))

    run(dsn, check)


def test_a_batch_in_one_statement_writes_what_step_by_step_does(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The two ways bring the same rows, in every column: several contexts, of which one has no new messages, and texts of every kind."""
    texts = ["", "a", "a\\x1eb", "\x1e", "{1,2}", "\x00", "\\u0000", "NULL", "null", "ümlaut \U0001f642", "'; --", "x" * 5_000, "\n\t"]

    async def check(postgres: Postgres) -> None:
        for way in ("steps", "batch"):
            await postgres.write(0, 1, [message(1, context_id=f"{way}-a")], [mark(f"{way}-a", 7, 1)])
            with monkeypatch.context() as patched:
                if way == "steps":
                    patched.setattr(postgres, "_likely_new", {})
                ways = watched(postgres, patched)
                said = [message(seq, text, f"{way}-a", role="a" * seq, tokens=seq**9) for seq, text in enumerate(texts, 2)]
                said += [message(1, "b", f"{way}-c", tokens=0)]
                marks = [mark(f"{way}-a", 7, len(texts) + 1), mark(f"{way}-b", 7, 0), mark(f"{way}-c", 7, 1)]
                await postgres.write(0, 1, said, marks)
                assert ways == (["batch"] if way == "batch" else ["any"])
        columns = "incarnation, seq, role, token_count, inserted_at, body::text, raw, node_data"
        asked = f"SELECT substr(context_id, 7), {columns} FROM contextstore.messages WHERE context_id LIKE '%s-%%' ORDER BY 1, 2, 3"
        steps, batch = [await query(dsn, asked % way) for way in ("steps", "batch")]
        assert batch == steps and len(batch) == len(texts) + 2
        assert [row[5].isoformat() for row in batch[:2]] == ["2030-01-01T00:00:01.123001+00:00", "2030-01-01T00:00:02.123002+00:00"]
        assert sum(row[6] is None for row in batch) == 1

    run(dsn, check)


def test_a_batch_that_is_not_in_order_is_not_joined() -> None:
    """It goes step by step then, each row as it is."""
    first, second = [message(seq) for seq in (1, 2, 3)], [message(seq, context_id="other") for seq in (5, 6)]
    marks = [mark("talk", 7, 3), mark("other", 7, 6)]
    assert (joined := joined_columns(first + second, marks)) is not None
    assert joined[0] == [0, 4] and joined[1][0].split("\x1e") == [one.raw.decode() for one in first] and joined[-1] == [None, None]
    separator = msgspec.structs.replace(first[1], raw=b'"\x1e"')
    role = msgspec.structs.replace(first[1], told=msgspec.structs.replace(first[1].told, role="a\x1eb"))
    for messages, contexts in (
        (second + first, marks),
        (first + second, marks[::-1]),
        (first + second, marks[:1]),
        (first[::2] + second, marks),
        ([first[0], first[0], first[2], *second], marks),
        (first[:2] + second, marks),
        (first, []),
        ([first[0], separator, first[2], *second], marks),
        ([first[0], role, first[2], *second], marks),
        ([*first, message(4)], [mark("talk", 7, 3)]),
        (first, [mark("talk", 8, 3)]),
        ([first[0], message(2, incarnation=6), first[2], *second], marks),
        ([first[0], message(2, context_id="other"), first[2]], [mark("talk", 7, 3), mark("other", 7, 2)]),
        ([msgspec.structs.replace(first[0], told=msgspec.structs.replace(first[0].told, role=""))], [mark("talk", 7, 1)]),
    ):
        assert joined_columns(messages, contexts) is None


def test_what_jsonb_cannot_hold_is_kept_as_text(dsn: str) -> None:
    async def check(postgres: Postgres) -> None:
        texts = ["a \x00 b", "a backslash before it: \\u0000", "\\\x00", "a pair \U0001f642"]
        given = [message(seq, text) for seq, text in enumerate(texts, 1)]
        assert [fits_jsonb(one.raw) for one in given] == [False, True, False, True]
        await postgres.write(0, 1, given, [mark("talk", 7, 4)])
        assert [raw for _, raw in await read(postgres, "talk", 7, 1, 4)] == [one.raw for one in given]
        rows = await query(dsn, "SELECT body IS NULL FROM contextstore.messages ORDER BY seq")
        assert rows == [(True,), (False,), (True,), (False,)]

    run(dsn, check)


def test_a_leader_that_was_replaced_writes_and_erases_nothing(dsn: str) -> None:
    async def check(postgres: Postgres) -> None:
        await postgres.write(0, 5, [message(1)], [mark("talk", 7, 1)])
        with pytest.raises(Fenced):
            await postgres.write(0, 4, [message(2)], [mark("talk", 7, 2)])
        with pytest.raises(Fenced):
            await postgres.erase(0, 4, [("talk", 7)])
        await postgres.write(1, 1, [message(1, context_id="other")], [mark("other", 7, 1)])
        assert len(await read(postgres, "talk", 7, 1, 10)) == 1

    run(dsn, check)


def test_an_open_transaction_of_an_old_leader_cannot_end_behind_a_newer_one(dsn: str) -> None:
    """It holds its shard's fence, so the newer one waits for it; and once the newer one has raised the fence, it is too late."""

    async def check(postgres: Postgres) -> None:
        async with postgres._fenced(0, 1):
            newer = asyncio.create_task(postgres.write(0, 2, [message(1)], [mark("talk", 7, 1)]))
            done, _ = await asyncio.wait({newer}, timeout=0.5)
            assert not done, "it wrote beside the older one"
        await newer
        with pytest.raises(Fenced):
            await postgres.write(0, 1, [message(2)], [])

    run(dsn, check)


def test_a_whole_batch_is_fenced_and_checked_as_its_parts_are(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What goes in one statement is refused, waits, and leaves nothing behind exactly as what goes step by step."""

    async def check(postgres: Postgres) -> None:
        ways = watched(postgres, monkeypatch)
        other = archive(dsn)
        await other.open(CLUSTER)
        everything = (
            "SELECT context_id, seq FROM contextstore.messages UNION ALL SELECT context_id, -archived_seq FROM contextstore.contexts"
        )
        await postgres.write(0, 1, [message(1)], [mark("talk", 7, 1)])
        before = sorted(await query(dsn, everything))
        # Less is there than the mark says.
        missing = msgspec.structs.replace(mark("talk", 7, 3), held=2)
        unknown = msgspec.structs.replace(mark("lost", 9, 5), held=4)
        with pytest.raises(Behind) as behind:
            await postgres.write(0, 1, [message(3)], [missing, unknown])
        assert behind.value.held == {"talk": 1, "lost": 0}
        assert sorted(await query(dsn, everything)) == before
        # It waits for whoever holds the fence, and then goes step by step.
        await postgres.write(0, 1, [message(2)], [mark("talk", 7, 2)])
        async with other._fenced(0, 1):
            waiting = asyncio.create_task(postgres.write(0, 1, [message(3)], [mark("talk", 7, 3)]))
            done, _ = await asyncio.wait({waiting}, timeout=0.5)
            assert not done, "it wrote beside the holder"
        await waiting
        assert [seq for seq, _ in await read(postgres, "talk", 7, 1, 10)] == [1, 2, 3]
        # A newer leader takes over while it waits.
        before = sorted(await query(dsn, everything))
        async with other._fenced(0, 2):
            waiting = asyncio.create_task(postgres.write(0, 1, [message(4)], [mark("talk", 7, 4)]))
            done, _ = await asyncio.wait({waiting}, timeout=0.5)
            assert not done
        with pytest.raises(Fenced):
            await waiting
        assert sorted(await query(dsn, everything)) == before
        assert ways == ["any", "batch", "any", "batch", "any", "batch"]
        await other.close()

    run(dsn, check)


def test_a_batch_that_was_given_up_is_too_late_for_what_came_after_it(dsn: str) -> None:
    """The server comes to it at last, when its context was erased meanwhile."""

    async def check(postgres: Postgres) -> None:
        await postgres.write(0, 1, [message(1)], [mark("talk", 7, 1)])
        locker = await asyncpg.connect(dsn)
        lock = locker.transaction()
        await lock.start()
        # As CREATE INDEX does. Whoever writes waits for it before anything else.
        await locker.execute("LOCK TABLE contextstore.messages IN SHARE MODE")
        waiting = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%fences%' AND query NOT LIKE '%pg_stat%' AND state = 'active'"
        given_up = asyncio.create_task(postgres.write(0, 1, [message(2)], [mark("talk", 7, 2)]))
        await until_told(dsn, waiting, [(1,)])
        given_up.cancel()
        await asyncio.wait({given_up})
        erasing = asyncio.create_task(postgres.erase(0, 1, [("talk", 7)]))
        deleting = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'DELETE%' AND wait_event_type = 'Lock'"
        await until_told(dsn, deleting, [(1,)])
        assert await query(dsn, waiting) == [(1,)], "the server goes on with what was given up"
        await lock.rollback()
        await locker.close()
        await erasing
        await until_told(dsn, waiting, [(0,)])
        assert await query(dsn, "SELECT context_id FROM contextstore.messages UNION SELECT context_id FROM contextstore.contexts") == []

    run(dsn, check)


def test_the_server_ends_what_takes_longer_than_anybody_waits(dsn: str) -> None:
    async def check(_: Postgres) -> None:
        hasty = Postgres(lambda: PostgresOptions(dsn, command_timeout_s=7.0))
        await hasty.open(CLUSTER)
        async with hasty._connection() as connection:
            assert await connection.fetchval("SHOW statement_timeout") == "7s"
        await hasty.close()

    run(dsn, check)


def test_a_large_batch_goes_in_parts_and_whole_once_its_rows_are_new(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def check(postgres: Postgres) -> None:
        ways, most = watched(postgres, monkeypatch), BatchLimits().messages
        for first in (1, most + 1):
            last = first + most - 1
            await postgres.write(0, 1, [message(seq) for seq in range(first, last + 1)], [mark("talk", 7, last)])
        assert ways == ["any"] * (most // ROWS_AT_ONCE) + ["batch"]
        assert await query(dsn, "SELECT count(*), max(seq) FROM contextstore.messages") == [(2 * most, 2 * most)]

    run(dsn, check)


def test_erasing_takes_one_incarnation_whole_and_no_other(dsn: str) -> None:
    async def check(postgres: Postgres) -> None:
        old, new = message(1), message(1, "again", incarnation=9)
        await postgres.write(0, 1, [old, new], [mark("talk", 7, 1), mark("talk", 9, 1)])
        await postgres.erase(0, 1, [("talk", 7), ("never there", 1)])
        assert await read(postgres, "talk", 7, 1, 1) == []
        assert await read(postgres, "talk", 9, 1, 1) == [(1, new.raw)]
        assert await query(dsn, "SELECT incarnation FROM contextstore.contexts") == [(9,)]

    run(dsn, check)


def test_several_nodes_that_start_together_make_the_schema_once(dsn: str) -> None:
    async def check(_postgres: Postgres) -> None:
        others = [archive(dsn, "another") for _ in range(4)]
        await asyncio.gather(*(other.open(CLUSTER) for other in others))
        for other in others:
            await other.open(CLUSTER)
            await other.close()
        assert await query(dsn, "SELECT value FROM another.meta WHERE key = 'version'") == [(str(len(schema.MIGRATIONS)),)]

    run(dsn, check)


def test_an_older_schema_is_brought_up_with_its_rows_and_once(dsn: str) -> None:
    """And what somebody else changed of it since stays."""

    async def check(_postgres: Postgres) -> None:
        targets = (
            "SELECT attname, attstattarget FROM pg_attribute WHERE attrelid = 'older.messages'::regclass AND attnum > 0"
            " AND attstattarget >= 0 ORDER BY attnum"
        )
        connection = await asyncpg.connect(dsn)
        for statement in (schema.MAKE_SCHEMA, schema.MAKE_META, schema.MIGRATIONS[0]):
            await connection.execute(statement.format(schema="older"))
        await connection.close()
        older = archive(dsn, "older")
        held = {"cluster_id": CLUSTER, "version": "1", "archive_id": "a" * 32}
        for key, value in held.items():
            await query(dsn, f"INSERT INTO older.meta VALUES ('{key}', '{value}')")
        await query(dsn, "INSERT INTO older.messages VALUES ('talk', 7, 1, 'user', 3, now(), '{}', '{}', '')")
        assert await query(dsn, targets) == []
        assert await older.open(CLUSTER) == "a" * 32
        assert await query(dsn, "SELECT value FROM older.meta WHERE key = 'version'") == [(str(len(schema.MIGRATIONS)),)]
        assert await query(dsn, "SELECT context_id, seq, raw FROM older.messages") == [("talk", 1, "{}")]
        found = dict(await query(dsn, targets))
        assert len(found) == 9 and found["seq"] == 10 and found["body"] == found["raw"] == 0
        await query(dsn, "ALTER TABLE older.messages ALTER COLUMN role SET STATISTICS 100")
        await older.open(CLUSTER)
        assert dict(await query(dsn, targets)) == {**found, "role": 100}
        await older.close()

    run(dsn, check)


def test_a_newer_schema_and_another_clusters_are_left_alone(dsn: str) -> None:
    async def check(_postgres: Postgres) -> None:
        with pytest.raises(ArchiveError, match=f"holds the archive of cluster {CLUSTER}") as refusal:
            await archive(dsn).open("d" * 32)
        assert refusal.value.cause == "foreign"
        await query(dsn, "UPDATE contextstore.meta SET value = '99' WHERE key = 'version'")
        with pytest.raises(ArchiveError, match="version 99") as refusal:
            await archive(dsn).open(CLUSTER)
        assert refusal.value.cause == "newer_schema"

    run(dsn, check)


def test_each_trouble_has_a_cause_and_no_message_holds_the_password(dsn: str) -> None:
    async def check(postgres: Postgres) -> None:
        async def cause(uri: str) -> str:
            with pytest.raises(ArchiveError) as refusal:
                await archive(uri).open(CLUSTER)
            assert "hunter2" not in str(refusal.value)
            return refusal.value.cause

        assert await cause(dsn.replace("a%20password%20of%20a%20test", "hunter2")) == "login"
        assert await cause(dsn.replace("/test_", "/no_such_test_")) == "login"
        assert await cause("postgresql://u:hunter2@127.0.0.1:1/postgres") == "unreachable"
        assert await cause("nonsense hunter2") == "login"
        await query(dsn, "CREATE ROLE reader LOGIN PASSWORD 'hunter2'")
        assert await cause(dsn.replace("contextstore:a%20password%20of%20a%20test", "reader:hunter2")) == "permission"
        await postgres.close()
        with pytest.raises(ArchiveError, match="not connected"):
            await read(postgres, "talk", 7, 1, 1)

    run(dsn, check)


@pytest.mark.parametrize(
    ("ended", "cause", "words"),
    [("pg_terminate_backend", "unreachable", "terminating connection"), ("pg_cancel_backend", "timeout", "canceling statement")],
)
def test_a_statement_that_the_server_ends_has_its_cause_in_postgres_own_words(dsn: str, ended: str, cause: str, words: str) -> None:
    async def check(postgres: Postgres) -> None:
        locker = await asyncpg.connect(dsn)
        try:
            async with locker.transaction():
                await locker.execute("LOCK TABLE contextstore.contexts IN ACCESS EXCLUSIVE MODE")
                waiting = asyncio.create_task(postgres.write(0, 1, [message(1)], [mark("talk", 7, 1)]))
                await until_told(dsn, "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'", [(1,)])
                await query(dsn, f"SELECT {ended}(pid) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
                with pytest.raises(ArchiveError, match=words) as refusal:
                    await waiting
                assert refusal.value.cause == cause
        finally:
            await locker.close()
        await postgres.write(0, 1, [message(1)], [mark("talk", 7, 1)])

    run(dsn, check)


def test_what_ends_in_asyncpg_itself_counts_as_no_connection() -> None:
    with pytest.raises(ArchiveError) as refusal, told_as_archive_error():
        raise asyncpg.InternalClientError("got result for unknown protocol state 3")
    assert refusal.value.cause == "unreachable"


def test_a_certificate_that_is_not_believed_is_no_trouble_of_the_uri() -> None:
    with pytest.raises(ArchiveError, match="self-signed") as refusal, told_as_archive_error(), uri_trouble():
        raise ssl.SSLCertVerificationError("certificate verify failed: self-signed certificate")
    assert refusal.value.cause == "unreachable"


def test_a_file_of_the_uri_that_is_missing_is_told_as_such(dsn: str) -> None:
    async def check() -> None:
        with pytest.raises(ArchiveError, match="may read each file that its URI names"):
            await archive(dsn.replace("sslmode=disable", "sslmode=verify-full&sslrootcert=/no/such/file")).open(CLUSTER)

    asyncio.run(check())


def test_a_server_that_does_not_answer_is_given_up_in_time(server: PostgresServer, dsn: str) -> None:
    async def check(_postgres: Postgres) -> None:
        with tcp_proxy(server.port) as wire:
            far = Postgres(lambda: PostgresOptions(dsn.replace(f":{server.port}/", f":{wire.port}/"), command_timeout_s=0.3))
            await far.open(CLUSTER)
            wire.hold()
            for _ in range(6):  # more often than the pool has connections
                with pytest.raises(ArchiveError) as refusal:
                    await far.write(0, 1, [message(1)], [mark("talk", 7, 1)])
                assert refusal.value.cause == "timeout"
            wire.let_go()
            await far.write(0, 1, [message(1)], [mark("talk", 7, 1)])
            assert await read(far, "talk", 7, 1, 9) == [(1, message(1).raw)]
            wire.hold()
            hanging = asyncio.create_task(far.write(0, 1, [message(2)], []))
            await until(lambda: wire.held > 0, "the write to be under way")
            hanging.cancel()
            await asyncio.gather(hanging, return_exceptions=True)
            await far.close()
            wire.let_go()

    run(dsn, check)


def test_the_lock_of_a_leader_that_vanished_goes_away(server: PostgresServer, dsn: str) -> None:
    """Its machine lost its power in a transaction, so that nobody tells the server."""

    async def check(postgres: Postgres) -> None:
        with tcp_proxy(server.port) as wire:
            far = Postgres(lambda: PostgresOptions(dsn.replace(f":{server.port}/", f":{wire.port}/"), command_timeout_s=1))
            await far.open(CLUSTER)
            with pytest.raises(ArchiveError, match="in time"):
                async with far._fenced(0, 1) as (connection, _):
                    wire.hold()
                    await connection.execute("SELECT 1")
            # What was said is still on its way; the server keeps the lock, and the next leader waits for it no longer than it must.
            await postgres.write(0, 2, [message(1)], [mark("talk", 7, 1)])
            assert wire.held > 0
            wire.let_go()
            await far.close()

    run(dsn, check)
