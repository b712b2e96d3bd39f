"""`contextstore restore`: a lost cluster comes back from its archive, exactly, whatever is killed meanwhile."""

import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from context_node.archive import schema
from support.archive_calls import query
from support.cluster_calls import FAST, call
from support.clusters import free_port
from support.contextstore_process import COMMAND, RunningNode, clean_environment, run_command, running_node
from support.filled_nodes import QUICK, ask, context_ids, fill, history, shown, text, wait_archived
from support.postgres import PostgresServer
from support.waiting import wait_until

RESTORE = ("restore", "--from-postgres", "--quiet")


def restore(node: RunningNode, dsn: str, *more: str) -> "subprocess.CompletedProcess[bytes]":
    return run_command(*RESTORE, "--url", node.url, *more, timeout_s=300, CONTEXTSTORE_ARCHIVE_POSTGRES=dsn)


@pytest.fixture(scope="module")
def lost(server: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> "Lost":
    """A cluster that is gone, and its archive."""
    query(server.dsn, "CREATE DATABASE lost")
    dsn = server.dsn.replace("/postgres?", "/lost?")
    with running_node(tmp_path_factory.mktemp("lost"), *QUICK, CONTEXTSTORE_ARCHIVE_POSTGRES=dsn) as node:
        fill(node)
        wait_archived(node, dsn)
        policies = ask(node, "/policies")["policies"]
        return Lost(dsn, {name: shown(node, name) for name in context_ids(node)}, policies)


class Lost:
    def __init__(self, dsn: str, contexts: dict[str, dict[str, Any]], policies: list[dict[str, Any]]) -> None:
        self.dsn, self.contexts, self.policies = dsn, contexts, policies


@pytest.fixture
def node(tmp_path: Path) -> Iterator[RunningNode]:
    with running_node(tmp_path / "new", *QUICK) as running:
        yield running


def check_equal(node: RunningNode, lost: Lost) -> None:
    assert context_ids(node) == list(lost.contexts)
    for name, before in lost.contexts.items():
        assert shown(node, name) == before, name


def test_everything_comes_back_as_it_was(lost: Lost, node: RunningNode) -> None:
    done = restore(node, lost.dsn)
    said = done.stdout.decode()
    assert done.returncode == 0, (said, done.stderr)
    check_equal(node, lost)
    told = re.search(r"Verified ([\d,]+) contexts, ([\d,]+) messages, ([\d,]+) bytes in \S+ s; blake2b of everything: ([0-9a-f]{64})", said)
    assert told is not None, said
    histories = [line for before in lost.contexts.values() for line in before["history"].splitlines()]
    assert [int(number.replace(",", "")) for number in told.groups()[:3]] == [
        len(lost.contexts),
        len(histories),
        sum(map(len, histories)),
    ]
    unnumbered = [
        {name: value for name, value in one.items() if name not in ("generation", "created_at", "updated_at")} for one in lost.policies
    ]
    for present, before in zip(ask(node, "/policies")["policies"], unnumbered, strict=True):
        assert {name: present[name] for name in before} == before
    assert lost.contexts["odd"]["history"].count(b"\\u0000") == 2
    assert lost.contexts["deleted"]["status"] == "tombstoned"
    assert lost.contexts["follower"]["policy"] == {"ref": "gone", "deleted": True}
    assert lost.contexts["long"]["window"].count(b'"covers"') == 1
    # Again, with --resume: there is nothing to do.
    again = restore(node, lost.dsn, "--resume")
    assert again.returncode == 0, again.stdout
    assert f"{len(lost.contexts)} contexts were there already" in again.stdout.decode()
    assert told[4] in again.stdout.decode()
    check_equal(node, lost)


def test_it_goes_on_as_the_old_one_would_have(lost: Lost, node: RunningNode) -> None:
    assert restore(node, lost.dsn, "--no-verify").returncode == 0
    # H4: what was appended stays known by its id.
    known = ask(node, "/contexts/long/messages", "POST", {"message": text("message 3 " + "x" * 111, id="m3")})
    assert known["seq"] == 4
    assert ask(node, "/contexts/long")["last_seq"] == 300
    assert ask(node, "/contexts/long/messages", "POST", {"message": text("new", id="m300")})["seq"] == 301
    assert ask(node, "/contexts/long")["version"] == lost.contexts["long"]["version"] + 1
    ask(node, "/contexts/long/messages/290/pin", "DELETE")
    ask(node, "/contexts/long/compact", "POST", {"rebuild": True})
    ask(node, "/contexts/deleted", "PUT", {})
    assert ask(node, "/contexts/deleted/messages", "POST", {"message": text("back")})["seq"] == 2
    # Its policy had changed after its last command: now it acts.
    ask(node, "/contexts/talk-1/messages", "POST", {"message": text("and now?")})


def test_a_cluster_that_is_not_empty_is_refused_and_a_conflict_is_listed(lost: Lost, node: RunningNode) -> None:
    ask(node, "/contexts/long/messages?create=true", "POST", {"message": text("another")})
    refused = restore(node, lost.dsn)
    assert refused.returncode == 2
    assert b"--resume" in refused.stderr
    assert context_ids(node) == ["long"]
    done = restore(node, lost.dsn, "--resume")
    assert done.returncode == 1
    assert b"long: Another context of this id is here" in done.stderr
    assert b"\n  long\n" in done.stdout
    assert b"  odd\n" not in done.stdout
    assert len(history(node, "long").splitlines()) == 1
    for name, before in lost.contexts.items():
        if name != "long":
            assert shown(node, name) == before
    # Once it is out of the way, the rest follows.
    ask(node, "/contexts/long?purge=true", "DELETE")
    assert restore(node, lost.dsn, "--resume").returncode == 0
    check_equal(node, lost)


@pytest.fixture
def big(dsn: str, tmp_path: Path) -> tuple[str, dict[str, bytes]]:
    """An archive that takes a while to restore."""
    messages = [text(f"message {number} " + "y" * 900, id=f"b{number}") for number in range(1000)]
    with running_node(tmp_path / "big", *QUICK, CONTEXTSTORE_ARCHIVE_POSTGRES=dsn) as node:
        for number in range(6):
            for _ in range(1 + number % 2):
                ask(node, f"/contexts/big-{number}/messages?create=true", "POST", {"messages": [{**one, "id": None} for one in messages]})
        wait_archived(node, dsn)
        return dsn, {name: history(node, name) for name in context_ids(node)}


def test_a_restore_that_is_killed_goes_on(big: tuple[str, dict[str, bytes]], node: RunningNode) -> None:
    dsn, before = big
    kills = 0
    for _ in range(40):
        words = [*COMMAND, *RESTORE, "--url", node.url, "--concurrency", "2", "--resume"]
        process = subprocess.Popen(
            words, env=clean_environment(CONTEXTSTORE_ARCHIVE_POSTGRES=dsn), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        sent = sum(len(history(node, name)) for name in context_ids(node))

        def has_moved(sent: int = sent, process: "subprocess.Popen[bytes]" = process) -> bool:
            return process.poll() is not None or sum(len(history(node, name)) for name in context_ids(node)) > sent

        wait_until(has_moved, "the restore to do something")
        if process.poll() is not None:
            said = process.communicate()[0]
            assert process.returncode == 0, said
            break
        process.kill()
        process.communicate()
        kills += 1
    assert kills >= 2
    assert {name: history(node, name) for name in context_ids(node)} == before


def test_a_node_that_is_killed_meanwhile_is_waited_for(big: tuple[str, dict[str, bytes]], tmp_path: Path) -> None:
    dsn, before = big
    words = (*QUICK, "--port", str(free_port()))
    with running_node(tmp_path / "new", *words) as first:
        url = first.url
        process = subprocess.Popen(
            [*COMMAND, *RESTORE, "--url", url, "--concurrency", "2"],
            env=clean_environment(CONTEXTSTORE_ARCHIVE_POSTGRES=dsn),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        wait_until(lambda: context_ids(first) != [], "the restore to do something")
        first.send(signal.SIGKILL)
        first.wait_end()
    time.sleep(0.2)
    with running_node(tmp_path / "new", *words) as second:
        said = process.communicate(timeout=120)[0]
        assert process.returncode == 0, said
        assert {name: history(second, name) for name in context_ids(second)} == before


def test_while_it_is_restored_a_context_says_so_and_writes_wait(dsn: str, lost: Lost, node: RunningNode) -> None:
    """An archive with a hole leaves a context unfinished: what is there can be seen, and a repaired archive makes it whole."""
    copy_of_archive(lost.dsn, dsn)
    hole = query(dsn, "DELETE FROM contextstore.messages WHERE context_id = 'long' AND seq = 280 RETURNING raw, node_data")
    done = restore(node, dsn)
    assert done.returncode == 1
    assert b"lacks message 280" in done.stderr
    view = ask(node, "/contexts/long")
    assert view["status"] == "restoring"
    assert "restored_from" in view["metadata"]
    assert "long" not in [one["id"] for one in ask(node, "/contexts?limit=1000")["contexts"]]
    assert "long" in context_ids(node)
    for method, path, body in (
        ("POST", "/messages", {"message": text("no")}),
        ("PUT", "", {"token_budget": 5}),
        ("DELETE", "", None),
        ("PATCH", "/metadata", {"metadata": {}}),
        ("PUT", "/messages/1/pin", None),
        ("POST", "/compact", {"rebuild": True}),
        ("GET", "/context", None),
    ):
        status, answer = call(f"{node.url}/v1/contexts/long{path}", method, body)
        assert (status, answer["error"]) == (503, "unavailable"), (method, path, answer)
    raw, data = hole[0]
    query(
        dsn,
        "INSERT INTO contextstore.messages SELECT context_id, incarnation, 280, role, token_count, inserted_at, NULL, $1, $2"
        " FROM contextstore.messages WHERE context_id = 'long' AND seq = 281",
        raw,
        data,
    )
    assert restore(node, dsn, "--resume").returncode == 0
    check_equal(node, lost)


def copy_of_archive(source: str, target: str) -> None:
    """All tables of an archive, in another database."""
    tables = ("meta", "messages", "contexts", "policies")
    query(target, "CREATE SCHEMA contextstore")
    for statement in (schema.MAKE_META, *schema.MIGRATIONS):
        for each in statement.format(schema="contextstore").split(";\n"):
            if each.strip():
                query(target, each)
    for table in tables:
        rows = query(source, f"SELECT * FROM contextstore.{table}")
        for row in rows:
            places = ", ".join(f"${place}" for place in range(1, len(row) + 1))
            query(target, f"INSERT INTO contextstore.{table} VALUES ({places})", *row)


def test_a_record_that_is_ahead_makes_the_window_anew(dsn: str, node: RunningNode, tmp_path: Path) -> None:
    """The cluster was lost in the middle of a burst: the context's record had reached the archive, its newest messages had not."""
    with running_node(tmp_path / "old", *QUICK, CONTEXTSTORE_ARCHIVE_POSTGRES=dsn) as old:
        for number in range(30):
            ask(old, "/contexts/burst/messages?create=true", "POST", {"message": text(f"message {number}", id=f"m{number}")})
        wait_archived(old, dsn)
        before = history(old, "burst").splitlines()
        version = ask(old, "/contexts/burst")["version"]
    query(dsn, "DELETE FROM contextstore.messages WHERE seq > 21")
    query(dsn, "UPDATE contextstore.contexts SET archived_seq = 20")
    done = restore(node, dsn)
    assert done.returncode == 0, (done.stdout, done.stderr)
    assert b"1 contexts end before their newest messages" in done.stdout
    assert history(node, "burst").splitlines() == before[:21]
    view = ask(node, "/contexts/burst")
    assert (view["status"], view["version"], view["last_seq"]) == ("active", version + 1, 21)
    assert [message["seq"] for message in ask(node, "/contexts/burst/context")["messages"]] == list(range(1, 22))
    assert restore(node, dsn, "--resume").returncode == 0
    assert ask(node, "/contexts/burst/messages", "POST", {"message": text("message 21", id="m21")})["seq"] == 22


def test_of_a_purged_context_only_the_newer_one_comes_back(dsn: str, lost: Lost, node: RunningNode) -> None:
    copy_of_archive(lost.dsn, dsn)
    query(
        dsn,
        "INSERT INTO contextstore.contexts SELECT context_id, 0, shard, 1, revision, status, metadata, created_at, updated_at,"
        " archived_at, node_data FROM contextstore.contexts WHERE context_id = 'odd'",
    )
    done = restore(node, dsn)
    assert done.returncode == 0, done.stderr
    assert b"1 contexts were left out" in done.stdout
    check_equal(node, lost)


def test_the_new_cluster_archives_into_a_schema_of_its_own(lost: Lost, dsn: str, tmp_path: Path) -> None:
    copy_of_archive(lost.dsn, dsn)
    with running_node(tmp_path / "new", *QUICK, "--archive-schema", "anew", CONTEXTSTORE_ARCHIVE_POSTGRES=dsn) as node:
        assert restore(node, dsn).returncode == 0
        wait_until(lambda: query(dsn, "SELECT count(*) FROM anew.contexts") == [(len(lost.contexts),)], "it to be archived again")
        for name in lost.contexts:
            wait_until(lambda name=name: query(dsn, SAME, name) == [(0,)], "the same messages to be there")
        check_equal(node, lost)


SAME = (
    "SELECT count(*) FROM (SELECT seq, raw FROM contextstore.messages WHERE context_id = $1 EXCEPT"
    " SELECT seq, raw FROM anew.messages WHERE context_id = $1) AS missing"
)


def test_what_cannot_begin_says_why(lost: Lost, dsn: str, node: RunningNode, tmp_path: Path) -> None:
    wrong = restore(node, lost.dsn.replace("a%20password%20of%20a%20test", "wrong"))
    assert wrong.returncode == 2
    assert b"password authentication failed" in wrong.stderr
    missing = restore(node, dsn)
    assert missing.returncode == 2
    assert b"there is no archive in schema contextstore" in missing.stderr
    nothing = run_command(*RESTORE, "--url", node.url)
    assert nothing.returncode == 2
    assert b"CONTEXTSTORE_ARCHIVE_POSTGRES" in nothing.stderr
    file = tmp_path / "uri"
    file.write_text(lost.dsn.replace("/lost?", "/nowhere?"))
    nowhere = run_command(*RESTORE, "--url", node.url, "--archive-postgres-file", str(file))
    assert nowhere.returncode == 2
    assert run_command("restore", "--url", node.url, CONTEXTSTORE_ARCHIVE_POSTGRES=dsn).returncode == 2
    for done in (wrong, missing, nowhere):
        assert b"wrong@" not in done.stderr + done.stdout
        assert b"a%20password" not in done.stderr + done.stdout


def test_an_empty_archive_is_an_empty_cluster(dsn: str, node: RunningNode, tmp_path: Path) -> None:
    with running_node(tmp_path / "old", *QUICK, CONTEXTSTORE_ARCHIVE_POSTGRES=dsn):
        wait_until(lambda: query(dsn, "SELECT to_regclass('contextstore.contexts') IS NOT NULL") == [(True,)], "the schema")
    done = restore(node, dsn)
    assert done.returncode == 0, done.stderr
    assert b"Restored 0 contexts" in done.stdout


def test_a_key_without_the_scope_admin_ends_it(lost: Lost, tmp_path: Path) -> None:
    keys = tmp_path / "keys.jsonl"
    made = run_command("keys", "create", "--name", "writer", "--scope", "read", "--scope", "write", "--api-keys-file", str(keys))
    assert made.returncode == 0, made.stderr
    with running_node(tmp_path / "new", *QUICK, "--api-keys-file", str(keys)) as node:
        done = run_command(
            *RESTORE, "--url", node.url, CONTEXTSTORE_ARCHIVE_POSTGRES=lost.dsn, CONTEXTSTORE_API_KEY=made.stdout.decode().strip()
        )
    assert done.returncode == 1
    assert b"admin" in done.stderr


def test_any_node_of_a_cluster_takes_it_and_replicas_agree(lost: Lost, tmp_path: Path) -> None:
    """Three nodes, asked through one that leads little; the replicas of every shard are the same afterwards (W5)."""
    secret = tmp_path / "secret"
    assert run_command("cluster", "init", str(secret)).returncode == 0
    first = free_port()

    def words(name: str) -> list[str]:
        where = ["--peer-port", str(first)] if name == "n1" else ["--peer-port", "0", "--join", f"127.0.0.1:{first}"]
        return ["--cluster-secret-file", str(secret), "--node-name", name, *where, *FAST]

    with ExitStack() as stack:
        nodes = [stack.enter_context(running_node(tmp_path / name, *words(name), command="serve")) for name in ("n1", "n2", "n3")]

        def is_whole() -> bool:
            view = call(f"{nodes[2].url}/v1/cluster")[1]
            return all(sum(one["is_voter"] for one in shard["replicas"]) == 3 for shard in view["shards"])

        wait_until(is_whole, "every shard to have three voters", 60.0)
        done = restore(nodes[2], lost.dsn)
        assert done.returncode == 0, (done.stdout, done.stderr)
        for node in nodes:
            check_equal(node, lost)
        for shard in range(4):
            wait_until(lambda shard=shard: is_equal(nodes[0], shard), "the replicas to be equal", 30.0)


def is_equal(node: RunningNode, shard: int) -> bool:
    return bool(ask(node, f"/cluster/shards/{shard}/compare", "POST")["is_equal"])


def test_what_is_damaged_is_listed_and_what_differs_is_found(lost: Lost, dsn: str, node: RunningNode) -> None:
    copy_of_archive(lost.dsn, dsn)
    query(dsn, "UPDATE contextstore.contexts SET node_data = substr(node_data, 1, 20) WHERE context_id = 'empty'")
    query(dsn, "UPDATE contextstore.messages SET node_data = '\\x92c40190c0' WHERE context_id = 'odd' AND seq = 2")
    query(dsn, "UPDATE contextstore.messages SET raw = replace(raw, 'user', 'tool') WHERE context_id = 'deleted'")
    done = restore(node, dsn)
    assert done.returncode == 1
    told = done.stderr.decode()
    assert "empty: Its record in the archive cannot be read" in told
    assert "odd: Message 2 is not as a node archives it" in told
    assert "deleted: Message 1 is not as a node archives it" in told
    assert done.stdout.decode().count("\n  ") == 3
    for name, before in lost.contexts.items():
        if name not in ("empty", "odd", "deleted"):
            assert shown(node, name) == before
    # And what changes in the archive afterwards is what the comparison is for.
    query(dsn, "UPDATE contextstore.messages SET raw = replace(raw, 'xx', 'xy') WHERE context_id = 'long' AND seq = 200")
    again = restore(node, dsn, "--resume")
    assert again.returncode == 1
    assert "long: Its history is not the archived one: 300 messages" in again.stderr.decode()
