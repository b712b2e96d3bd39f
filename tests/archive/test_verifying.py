"""`contextstore verify-archive`: equal is equal, and whatever is not is found, told apart and named."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.archive_calls import query
from support.cluster_calls import call
from support.contextstore_process import RunningNode, run_command, running_node
from support.filled_nodes import QUICK, ask, context_ids, fill, history, text, wait_archived
from support.postgres import PostgresServer
from support.waiting import wait_until


def verify(node: RunningNode, dsn: str, *more: str) -> "subprocess.CompletedProcess[bytes]":
    return run_command("verify-archive", "--quiet", "--url", node.url, *more, CONTEXTSTORE_ARCHIVE_POSTGRES=dsn)


def table(done: "subprocess.CompletedProcess[bytes]") -> list[tuple[str, str, str]]:
    """What was found, as (kind, context, what)."""
    lines = done.stdout.decode().splitlines()
    assert lines[-1].startswith("Compared "), done.stderr
    kinds = ("missing", "differs", "left over", "not archived yet", "unreadable")
    found = []
    for line in lines[:-1]:
        kind = next(kind for kind in kinds if line.startswith(kind))
        name, _, what = line[len(kind) :].strip().partition("  ")
        found.append((kind, name, what.strip()))
    return found


@pytest.fixture
def node(dsn: str, tmp_path: Path) -> Iterator[RunningNode]:
    with running_node(tmp_path / "data", *QUICK, CONTEXTSTORE_ARCHIVE_POSTGRES=dsn) as running:
        yield running


def test_a_cluster_and_its_archive_are_equal(node: RunningNode, dsn: str) -> None:
    fill(node, talks=4)
    wait_archived(node, dsn)
    done = verify(node, dsn)
    assert done.returncode == 0, (done.stdout, done.stderr)
    assert table(done) == []
    messages = [line for name in context_ids(node) for line in history(node, name).splitlines()]
    said = f"Compared {len(context_ids(node))} contexts, {len(messages)} messages, {sum(map(len, messages)):,} bytes"
    assert said in done.stdout.decode()
    assert b"0 differences, 0 messages not archived yet" in done.stdout


def test_every_difference_is_found_and_named(node: RunningNode, dsn: str) -> None:
    for name in ("a", "b", "c", "d", "e", "x:1"):
        ask(node, f"/contexts/{name}/messages?create=true", "POST", {"messages": [text(f"{name} {number}") for number in range(60)]})
    wait_archived(node, dsn)
    for statement in (
        "DELETE FROM contextstore.messages WHERE context_id = 'a' AND seq IN (1, 7, 8, 9, 60)",
        "UPDATE contextstore.messages SET raw = replace(raw, 'b 4', 'b 5') WHERE context_id = 'b' AND seq BETWEEN 5 AND 6",
        "DELETE FROM contextstore.messages WHERE context_id = 'c'",
        "DELETE FROM contextstore.contexts WHERE context_id = 'c'",
        "INSERT INTO contextstore.messages SELECT context_id, incarnation, 61, role, token_count, inserted_at, body, raw, node_data"
        " FROM contextstore.messages WHERE context_id = 'd' AND seq = 60",
        "INSERT INTO contextstore.contexts SELECT 'never', 5, shard, 3, revision, status, metadata, created_at, updated_at, archived_at,"
        " node_data FROM contextstore.contexts WHERE context_id = 'd'",
        "INSERT INTO contextstore.contexts SELECT context_id, 0, shard, 3, revision, status, metadata, created_at, updated_at, archived_at,"
        " node_data FROM contextstore.contexts WHERE context_id = 'e'",
        "DELETE FROM contextstore.messages WHERE context_id = 'x:1' AND seq = 3",
        "INSERT INTO contextstore.messages SELECT 'stray', incarnation, seq, role, token_count, inserted_at, body, raw, node_data"
        " FROM contextstore.messages WHERE context_id = 'd' AND seq < 3",
        "UPDATE contextstore.messages SET incarnation = 8 WHERE context_id = 'stray'",
    ):
        query(dsn, statement)
    done = verify(node, dsn)
    assert done.returncode == 1
    assert table(done) == [
        ("missing", "a", "5 messages: 1, 7-9, 60"),
        ("differs", "b", "1 messages: 5"),
        ("missing", "c", "60 messages were confirmed, and its row is not there"),
        ("missing", "c", "60 messages: 1-60"),
        ("left over", "d", "messages up to 61, beyond the cluster's newest, 60"),
        ("left over", "e", "incarnation 0, 3 messages: not in the cluster"),
        ("left over", "never", "incarnation 5, 3 messages: not in the cluster"),
        ("left over", "stray", "incarnation 8, 2 messages without a context"),
        ("missing", "x:1", "1 messages: 3"),
    ]
    assert b"9 differences" in done.stdout
    assert table(verify(node, dsn, "--context-prefix", "x:")) == [("missing", "x:1", "1 messages: 3")]
    assert verify(node, dsn, "--context-prefix", "nobody").returncode == 0


def test_what_is_not_archived_yet_is_told_apart(server: PostgresServer, dsn: str, tmp_path: Path) -> None:
    with running_node(tmp_path / "data", *QUICK, CONTEXTSTORE_ARCHIVE_POSTGRES=dsn) as node:
        ask(node, "/contexts/a/messages?create=true", "POST", {"messages": [text("1"), text("2")]})
        wait_archived(node, dsn)
    with running_node(tmp_path / "data", *QUICK) as node:
        ask(node, "/contexts/a/messages", "POST", {"message": text("3")})
        ask(node, "/contexts/b/messages?create=true", "POST", {"message": text("1")})
        done = verify(node, dsn)
        assert done.returncode == 0
        assert table(done) == [
            ("not archived yet", "a", "1 messages, from 3 on"),
            ("not archived yet", "b", "1 messages, from 1 on"),
        ]
        assert verify(node, dsn, "--strict").returncode == 1


def test_it_looks_through_what_changes_meanwhile(node: RunningNode, dsn: str) -> None:
    """Purges and new contexts while it compares are no differences."""
    for number in range(40):
        ask(node, f"/contexts/c-{number:02d}/messages?create=true", "POST", {"messages": [text(f"{number} {each}") for each in range(5)]})
    wait_archived(node, dsn)
    for round_number in range(4):
        for number in range(round_number, 40, 4):
            assert call(f"{node.url}/v1/contexts/c-{number:02d}?purge=true", "DELETE")[0] == 204
            ask(node, f"/contexts/c-{number:02d}/messages?create=true", "POST", {"message": text("anew")})
        done = verify(node, dsn)
        assert done.returncode == 0, done.stdout
        assert all(kind == "not archived yet" for kind, _, _ in table(done))


def test_what_was_trimmed_is_compared_too(dsn: str, tmp_path: Path) -> None:
    with running_node(tmp_path / "data", *QUICK, "--archive-tail-keep", "5", CONTEXTSTORE_ARCHIVE_POSTGRES=dsn) as node:
        ask(node, "/contexts/a", "PUT", {"token_budget": 50})
        ask(node, "/contexts/a/messages", "POST", {"messages": [text(f"{each}") for each in range(200)]})
        wait_archived(node, dsn)
        done = verify(node, dsn)
        assert done.returncode == 0, done.stdout
        query(dsn, "DELETE FROM contextstore.messages WHERE seq = 100")

        def is_found() -> bool:
            found = table(verify(node, dsn))
            return ("missing", "a", "1 messages: 100") in found

        wait_until(is_found, "the hole to be found", 120.0)


def test_what_cannot_begin_says_why(node: RunningNode, dsn: str) -> None:
    wrong = verify(node, dsn.replace("a%20password%20of%20a%20test", "wrong"))
    assert wrong.returncode == 2
    assert b"password authentication failed" in wrong.stderr
    assert run_command("verify-archive", "--url", "http://127.0.0.1:1", CONTEXTSTORE_ARCHIVE_POSTGRES=dsn).returncode == 2
