"""URIs as people write them: what is wrong with one is said in a sentence that holds nothing of it."""

import asyncio
import logging
from pathlib import Path

import asyncpg
import pytest

from context_node.archive.errors import ArchiveError
from context_node.archive.postgres import Postgres, PostgresOptions
from context_node.archive.uris import NOT_ASKED, read_file, usable
from support.contextstore_process import run_command
from support.postgres import PostgresServer


@pytest.mark.parametrize(
    "given", ["", " \n", "jdbc:postgresql://host/db", "host=db user=me", "\N{ZERO WIDTH NO-BREAK SPACE}postgresql://host/db"]
)
def test_what_is_no_uri_is_told_with_how_one_is_written(given: str) -> None:
    with pytest.raises(ArchiveError, match="write postgresql://") as refusal:
        usable(given)
    assert refusal.value.cause == "login"


def test_parameters_of_libpq_alone_are_left_out_and_all_others_stay() -> None:
    assert (
        usable("postgres://u:p@host/db?channel_binding=require&sslmode=require&connect_timeout=10\n")
        == "postgres://u:p@host/db?sslmode=require"
    )
    assert usable("postgresql://u:p@a:1,b:2/db") == "postgresql://u:p@a:1,b:2/db"
    assert usable(f"postgresql://h/db?{'&'.join(f'{name}=1' for name in sorted(NOT_ASKED))}") == "postgresql://h/db"
    assert usable("postgresql:///db?host=%2Ftmp&options=-c%20geqo%3Doff") == "postgresql:///db?host=%2Ftmp&options=-c+geqo%3Doff"


@pytest.mark.parametrize("password", ["pass#secret", "pass/secret", "pass?secret", "pa:ss@sec/ret"])
def test_of_a_password_that_is_not_encoded_nothing_is_told(password: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)

    async def check() -> None:
        postgres = Postgres(lambda: PostgresOptions(f"postgresql://user:{password}@127.0.0.1:1/db", connect_timeout_s=1.0))
        with pytest.raises(ArchiveError) as refusal:
            await postgres.open("c" * 32)
        assert refusal.value.cause in ("login", "unreachable")
        assert "sec" not in str(refusal.value).replace("seconds", "")
        assert refusal.value.__cause__ is None or "secret" not in str(refusal.value.__cause__)

    asyncio.run(check())
    assert "secret" not in caplog.text


def test_a_command_says_it_in_one_sentence(tmp_path: Path) -> None:
    file = tmp_path / "uri"
    file.write_text("postgresql://user:pass#secret@127.0.0.1:1/db")
    for words in (("verify-archive",), ("restore", "--from-postgres")):
        done = run_command(*words, "--archive-postgres-file", str(file), "--url", "http://127.0.0.1:1")
        told = (done.stdout + done.stderr).decode()
        assert done.returncode == 2
        assert "Traceback" not in told
        assert "secret" not in told


def test_a_file_may_begin_with_a_mark_and_end_with_lines_and_must_be_text(tmp_path: Path) -> None:
    file = tmp_path / "uri"
    file.write_bytes(b"\xef\xbb\xbfpostgresql://host/db\r\n\n")
    assert usable(read_file(file)) == "postgresql://host/db"
    file.write_bytes(b"postgresql://\xff\xfe")
    with pytest.raises(ArchiveError, match="no text in UTF-8") as refusal:
        read_file(file)
    assert refusal.value.cause == "login"
    with pytest.raises(ArchiveError, match="cannot be read"):
        read_file(tmp_path / "missing")


def test_a_database_that_cannot_hold_every_text_is_refused_at_once(server: PostgresServer) -> None:
    async def check() -> None:
        connection = await asyncpg.connect(server.dsn)
        await connection.execute("CREATE DATABASE latin ENCODING 'LATIN1' TEMPLATE template0")
        await connection.close()
        postgres = Postgres(lambda: PostgresOptions(server.dsn.replace("/postgres?", "/latin?")))
        with pytest.raises(ArchiveError, match="ENCODING 'UTF8'") as refusal:
            await postgres.open("c" * 32)
        assert refusal.value.cause == "encoding"

    asyncio.run(check())
