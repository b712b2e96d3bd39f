"""Every trouble that an archive can have, under a real node: writes and reads go on as if there were none, and then nothing is missing."""

import os
import random
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from context_node.runtime.shards import shard_of
from support.archive_calls import QUICK, append, archived, has_archived, history, metric, open_transaction, query
from support.contextstore_process import RunningNode, running_node
from support.postgres import NOBODY, PostgresServer
from support.tcp_proxy import tcp_proxy
from support.waiting import wait_until

CATCH_UP_S = 90.0
DISK_BYTES = 48 << 20
PAGES = "x" * 20_000
"""Of the length that a message needs to take new pages of a table: what is short may still fit into an old one."""


def archiving_node(folder: Path, dsn: str, *settings: str) -> Any:
    return running_node(folder / "data", *QUICK, *settings, CONTEXTSTORE_ARCHIVE_POSTGRES=dsn)


def through(port: int, server: PostgresServer) -> str:
    """The server's URI by way of a proxy."""
    return server.dsn.replace(f":{server.port}/", f":{port}/")


def failures(node: RunningNode, cause: str) -> float:
    return metric(node, "archive_failures_total", cause=cause)


def talk(node: RunningNode, what: str, count: int = 10, context_id: str = "talk") -> None:
    """Messages that are acknowledged and can be read at once."""
    for number in range(count):
        append(node, context_id, f"{what} {number} {random.Random(what).randbytes(16).hex()}")
    assert history(node, context_id)[-1].find(f"{what} {count - 1} ".encode()) > 0


def is_whole(node: RunningNode, dsn: str, context_id: str = "talk") -> None:
    """Wait until the archive has all, and compare."""
    count = len(history(node, context_id))
    wait_until(lambda: has_archived(node, context_id) == count, f"{context_id} to be archived whole", CATCH_UP_S)
    assert archived(dsn, context_id) == history(node, context_id)
    marks = query(dsn, "SELECT archived_seq FROM contextstore.contexts WHERE context_id = $1", context_id)
    assert marks == [(count,)]


def endures(
    node: RunningNode, dsn: str, cause: str, begin: Callable[[], object], end: Callable[[], object], deadline_s: float = 30
) -> None:
    """The trouble begins, has its name in the metrics, and ends; meanwhile messages are acknowledged and read."""
    talk(node, "before")
    is_whole(node, dsn)
    begin()
    talk(node, "as it begins")
    append(node, "talk", PAGES)
    wait_until(lambda: failures(node, cause) > 0, f"the cause {cause} to be told", deadline_s)
    talk(node, "while it lasts")
    assert metric(node, "archive_healthy") == 0
    assert metric(node, "archive_lag_messages") >= 10
    assert has_archived(node, "talk") < len(history(node, "talk"))
    end()
    talk(node, "after")
    is_whole(node, dsn)
    wait_until(lambda: metric(node, "archive_healthy") == 1, "it to be healthy again")
    assert metric(node, "archive_lag_messages") == 0


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGQUIT], ids=["is stopped", "crashes"])
def test_postgres_stops_and_starts_again(own: PostgresServer, tmp_path: Path, how: signal.Signals) -> None:
    with archiving_node(tmp_path, own.dsn) as node:
        endures(node, own.dsn, "unreachable", lambda: own.stop(how), own.start)


def test_postgres_crashes_again_and_again_under_load(own: PostgresServer, tmp_path: Path) -> None:
    with archiving_node(tmp_path, own.dsn, "--archive-batch-messages", "5") as node:
        for turn in range(4):
            talk(node, f"turn {turn}", 25)
            own.stop(signal.SIGQUIT)
            own.start()
        is_whole(node, own.dsn)


def test_postgres_does_not_answer(own: PostgresServer, tmp_path: Path) -> None:
    """Not at all, which is found out by time alone: connections are made, and nothing comes back."""
    with tcp_proxy(own.port) as wire, archiving_node(tmp_path, through(wire.port, own)) as node:

        def begin() -> None:
            wire.cut_all()
            wire.hold()

        endures(node, own.dsn, "timeout", begin, wire.let_go)


def test_a_node_stops_in_order_though_postgres_does_not_answer(own: PostgresServer, tmp_path: Path) -> None:
    with tcp_proxy(own.port) as wire, archiving_node(tmp_path, through(wire.port, own)) as node:
        talk(node, "before")
        is_whole(node, own.dsn)
        wire.hold()
        talk(node, "while it hangs")
        wait_until(lambda: wire.held > 0, "the archiver to wait for Postgres")
        assert metric(node, "archive_lag_messages") == 10
        node.send(signal.SIGTERM)
        wait_until(lambda: node.process.poll() is not None, "the node to end", 20.0)
        assert node.wait_end() == 0, node.errors
        wire.let_go()
    with archiving_node(tmp_path, own.dsn) as node:
        is_whole(node, own.dsn)


def test_connections_are_cut_at_any_byte_of_a_batch_and_before_a_commit_is_heard_of(own: PostgresServer, tmp_path: Path) -> None:
    seed = random.randrange(1 << 32)
    chosen = random.Random(seed)
    with tcp_proxy(own.port) as wire, archiving_node(tmp_path, through(wire.port, own)) as node:
        talk(node, "before")
        is_whole(node, own.dsn)
        for turn in range(16):
            cuts = 1
            if turn % 4 == 0:
                # After a good batch the next goes in one statement, which ends with a Sync (PostgreSQL, "Message Formats"). It is cut
                # behind that, so that it counts and nobody hears so, or before; then it goes again, step by step and with a commit.
                append(node, "talk", f"{turn} alone")
                is_whole(node, own.dsn)
                cuts = 2
                first = (b"S\x00\x00\x00\x04", 300_000) if turn % 8 else (b"", 100_000)
                wire.lose_answers_to(first, (b"COMMIT", 200_000))
            else:
                # A batch is some 300 kB; what lies behind is its marks, its commit and the next one.
                wire.cut_after(chosen.randrange(320_000))
            before = wire.cuts
            append(node, "talk", *(f"{turn} {number} {PAGES[:5_000]}" for number in range(60)))
            count, until = len(history(node, "talk")), before + cuts
            wait_until(
                lambda now=until, all_of=count: wire.cuts >= now or has_archived(node, "talk") == all_of, f"a cut, seed {seed}", 60.0
            )
            if turn % 4 == 0:
                assert wire.cuts == until, "neither answer is heard"
                # The commit counted; that nobody heard so doubles nothing.
                wait_until(lambda all_of=count: len(archived(own.dsn, "talk")) == all_of, "the commit to have counted", 60.0)
            is_whole(node, own.dsn)
        assert wire.cuts >= 14, f"seed {seed}"
        assert failures(node, "unreachable") >= 14


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A file system of its own that Postgres may write to."""
    with tempfile.TemporaryDirectory(prefix="contextstore-disk-") as name:
        made = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES},uid={NOBODY},gid={NOBODY},mode=700", "tmpfs", name],
            capture_output=True,
            check=False,
        )
        if made.returncode:
            pytest.skip("mounting a tmpfs is not permitted here")
        try:
            yield Path(name)
        finally:
            subprocess.run(["umount", "-l", name], check=True)


@pytest.mark.needs_tmpfs
def test_the_disk_of_postgres_is_full(small_disk: Path, own: PostgresServer, tmp_path: Path) -> None:
    query(own.dsn, f"CREATE TABLESPACE small LOCATION '{small_disk}'")
    query(own.dsn, "CREATE DATABASE full_one TABLESPACE small")
    dsn = own.dsn.replace("/postgres?", "/full_one?")

    def fill() -> None:
        filler = os.open(small_disk / "something else", os.O_WRONLY | os.O_CREAT)
        with pytest.raises(OSError, match="No space"):
            while True:
                os.write(filler, bytes(1 << 12))
        os.close(filler)

    with archiving_node(tmp_path, dsn) as node:
        append(node, "talk", *(f"{number} {os.urandom(10_000).hex()}" for number in range(20)))
        endures(node, dsn, "disk_full", lambda: grow_until_full(node, fill), (small_disk / "something else").unlink)


def grow_until_full(node: RunningNode, fill: Callable[[], None]) -> None:
    """Postgres may have pages to spare: what takes those, and more."""
    fill()
    append(node, "talk", *(f"more {number} {os.urandom(10_000).hex()}" for number in range(60)))


def other_role(own: PostgresServer, password: str = "one of its own") -> str:
    """The URI of a role that has the one right that an archive needs; made if it is not there."""
    if not query(own.dsn, "SELECT FROM pg_roles WHERE rolname = 'archiver'"):
        query(own.dsn, f"CREATE ROLE archiver LOGIN PASSWORD '{password}'")
        query(own.dsn, "GRANT CREATE ON DATABASE postgres TO archiver")
    return own.dsn.replace("contextstore:a%20password%20of%20a%20test", f"archiver:{password.replace(' ', '%20')}")


def test_the_password_changes_and_the_new_one_needs_no_restart(own: PostgresServer, tmp_path: Path) -> None:
    file = tmp_path / "uri"
    file.write_text(other_role(own))
    with running_node(tmp_path / "data", *QUICK, "--archive-postgres-file", str(file)) as node:

        def begin() -> None:
            query(own.dsn, "ALTER ROLE archiver PASSWORD 'quite another'")
            query(own.dsn, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'contextstore'")

        endures(node, own.dsn, "login", begin, lambda: file.write_text(other_role(own, "quite another")))
        assert any("password authentication failed" in line for line in node.errors)
        assert not any("of%20its" in line or "of its own" in line or "another" in line for line in node.errors)


def test_a_right_is_lost_and_given_back(own: PostgresServer, tmp_path: Path) -> None:
    """And the right to make a schema is not needed any more once there is one."""
    dsn = other_role(own)

    def begin() -> None:
        query(own.dsn, "REVOKE CREATE ON DATABASE postgres FROM archiver")
        query(own.dsn, "REVOKE INSERT ON contextstore.messages FROM archiver")

    with archiving_node(tmp_path, dsn) as node:
        endures(node, own.dsn, "permission", begin, lambda: query(own.dsn, "GRANT INSERT ON contextstore.messages TO archiver"))


def test_the_database_is_read_only(own: PostgresServer, tmp_path: Path) -> None:
    def say(statement: str, then: str) -> None:
        query(own.dsn, statement)
        query(own.dsn, "SELECT pg_reload_conf()")
        wait_until(lambda: query(own.dsn, "SHOW default_transaction_read_only") == [(then,)], "the setting to be taken up")

    with archiving_node(tmp_path, own.dsn) as node:
        endures(
            node,
            own.dsn,
            "read_only",
            lambda: say("ALTER SYSTEM SET default_transaction_read_only = on", "on"),
            lambda: say("ALTER SYSTEM RESET default_transaction_read_only", "off"),
        )


def in_another_shard(context_id: str) -> str:
    names = (f"other-{number}" for number in range(100))
    return next(name for name in names if shard_of(name, 32) != shard_of(context_id, 32))


def test_what_one_shard_cannot_write_holds_up_no_other(dsn: str, tmp_path: Path) -> None:
    refuse = "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'never'; END $$"
    trigger = (
        "CREATE TRIGGER no BEFORE INSERT ON contextstore.messages FOR EACH ROW WHEN (NEW.context_id = 'talk') EXECUTE FUNCTION refuse()"
    )
    other = in_another_shard("talk")
    with archiving_node(tmp_path, dsn) as node:
        talk(node, "before")
        is_whole(node, dsn)
        query(dsn, refuse)
        query(dsn, trigger)
        talk(node, "what is refused")
        talk(node, "beside it", context_id=other)
        wait_until(lambda: failures(node, "refused") > 0, "the refusal to be told")
        while failures(node, "refused") < 4:
            append(node, other, f"{len(history(node, other))}")
            is_whole(node, dsn, other)
        assert metric(node, "archive_healthy") == 0
        assert has_archived(node, "talk") == 10
        query(dsn, "DROP TRIGGER no ON contextstore.messages")
        is_whole(node, dsn)
        wait_until(lambda: metric(node, "archive_healthy") == 1, "it to be healthy again")


def test_a_shard_that_waits_for_a_lock_holds_up_no_other(own: PostgresServer, tmp_path: Path) -> None:
    """As it does for the open transaction of a leader that was replaced, or for a lock of somebody who looks into the tables."""
    other = in_another_shard("talk")
    lock = "SELECT FROM contextstore.fences WHERE shard = $1 FOR UPDATE"
    with archiving_node(tmp_path, own.dsn) as node:
        talk(node, "before")
        is_whole(node, own.dsn)
        with open_transaction(own.dsn, lock, shard_of("talk", 32)):
            talk(node, "what waits")
            waits = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'contextstore' AND wait_event_type = 'Lock'"
            wait_until(lambda: query(own.dsn, waits) == [(1,)], "the shard to wait for the lock")
            for turn in range(10):
                append(node, other, f"turn {turn}")
                is_whole(node, own.dsn, other)
            assert has_archived(node, "talk") == 10
        is_whole(node, own.dsn)
