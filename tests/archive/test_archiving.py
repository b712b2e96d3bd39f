"""Nodes as processes with a real Postgres behind them: history gets there whole, and its troubles never reach a write."""

import json
import re
import signal
import urllib.request
from contextlib import ExitStack
from pathlib import Path

from support.archive_calls import QUICK, append, archived, has_archived, history, metric, query
from support.cluster_calls import FAST, call
from support.clusters import free_port
from support.contextstore_process import run_command, running_node
from support.postgres import PostgresServer
from support.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]


def test_history_is_copied_byte_for_byte_and_a_purge_reaches_it(dsn: str, tmp_path: Path) -> None:
    with running_node(tmp_path / "data", *QUICK, "--archive-batch-messages", "7", CONTEXTSTORE_ARCHIVE_POSTGRES=dsn) as node:
        for number in range(40):
            append(node, f"talk-{number % 4}", *(f"message {number}.{part} \u0000 🙂" for part in range(1 + number % 3)))
        last = {name: len(history(node, name)) for name in (f"talk-{number}" for number in range(4))}
        wait_until(lambda: all(has_archived(node, name) == count for name, count in last.items()), "everything to be archived")
        for name in last:
            assert archived(dsn, name) == history(node, name)
        wait_until(lambda: metric(node, "archive_lag_messages") == 0, "no lag")
        assert metric(node, "archive_messages_total") == sum(last.values())
        assert metric(node, "archive_healthy") == 1
        with urllib.request.urlopen(f"{node.url}/metrics", timeout=30) as answer:
            told = set(re.findall(r"^# TYPE (contextstore_archive_\S+) ", answer.read().decode(), re.MULTILINE))
        assert told == set(re.findall(r"`(contextstore_archive_[a-z_]+)", (ROOT / "docs/archive.md").read_text()))
        assert call(f"{node.url}/v1/contexts/talk-0?purge=true", "DELETE")[0] == 204
        wait_until(lambda: archived(dsn, "talk-0") == [], "the purged context to be erased")
        assert query(dsn, "SELECT count(*) FROM contextstore.contexts WHERE context_id = 'talk-0'") == [(0,)]
        # The id is free again, and what comes now is another incarnation.
        append(node, "talk-0", "anew")
        wait_until(lambda: archived(dsn, "talk-0") == history(node, "talk-0"), "the new one to be archived")


def test_a_node_that_is_killed_again_and_again_leaves_no_hole(dsn: str, tmp_path: Path) -> None:
    for life in range(6):
        with running_node(tmp_path / "data", *QUICK, "--archive-batch-messages", "3", CONTEXTSTORE_ARCHIVE_POSTGRES=dsn) as node:
            for number in range(12):
                append(node, f"talk-{number % 3}", f"life {life} message {number}")
            node.send(signal.SIGKILL)
            node.wait_end()
            for number in range(3):
                seqs = [seq for (seq,) in query(dsn, SEQS, f"talk-{number}")] if life else []
                assert seqs == list(range(1, len(seqs) + 1)), "a hole"
    with running_node(tmp_path / "data", *QUICK, CONTEXTSTORE_ARCHIVE_POSTGRES=dsn) as node:
        for number in range(3):
            wait_until(lambda name=f"talk-{number}": archived(dsn, name) == history(node, name), "everything to be archived")
            assert len(archived(dsn, f"talk-{number}")) == 24


SEQS = "SELECT seq FROM contextstore.messages WHERE context_id = $1 ORDER BY seq"


def test_whoever_leads_goes_on_where_the_dead_leader_was(dsn: str, tmp_path: Path) -> None:
    """Three nodes, and the one that leads most is killed while it archives; it comes back, and another is killed."""
    secret = tmp_path / "secret"
    assert run_command("cluster", "init", str(secret)).returncode == 0
    first = free_port()
    environment = {"CONTEXTSTORE_ARCHIVE_POSTGRES": dsn}

    def words(name: str) -> list[str]:
        where = ["--peer-port", str(first)] if name == "n1" else ["--peer-port", "0", "--join", f"127.0.0.1:{first}"]
        return ["--cluster-secret-file", str(secret), "--node-name", name, *where, *FAST, *QUICK, "--archive-batch-messages", "5"]

    with ExitStack() as stack:
        nodes = {
            name: stack.enter_context(running_node(tmp_path / name, *words(name), command="serve", **environment))
            for name in ("n1", "n2", "n3")
        }

        def is_whole() -> bool:
            view = call(f"{nodes['n3'].url}/v1/cluster")[1]
            return bool(
                view["shards_healthy"] == 4 and all(sum(one["is_voter"] for one in shard["replicas"]) == 3 for shard in view["shards"])
            )

        wait_until(is_whole, "every shard to have three voters")
        for turn, victim in enumerate(("n1", "n2")):
            for number in range(30):
                append(nodes["n3"], f"talk-{number % 6}", f"turn {turn} message {number}")
            nodes[victim].send(signal.SIGKILL)
            nodes[victim].wait_end()
            for number in range(30):
                append(nodes["n3"], f"talk-{number % 6}", f"turn {turn} without {victim} message {number}")
            nodes[victim] = stack.enter_context(running_node(tmp_path / victim, *words(victim), command="serve", **environment))
            wait_until(is_whole, "every shard to be whole again")
        for number in range(6):
            wait_until(lambda name=f"talk-{number}": archived(dsn, name) == history(nodes["n3"], name), "everything to be archived")
            assert len(archived(dsn, f"talk-{number}")) == 20
        marks = query(dsn, "SELECT context_id, archived_seq FROM contextstore.contexts ORDER BY context_id")
        assert marks == [(f"talk-{number}", 20) for number in range(6)]


def test_a_uri_never_stands_in_a_log_or_in_the_list_of_settings(own: PostgresServer, tmp_path: Path) -> None:
    own.stop()
    with running_node(tmp_path / "data", *QUICK, CONTEXTSTORE_ARCHIVE_POSTGRES=own.dsn) as node:
        wait_until(lambda: metric(node, "archive_failures_total") > 0, "the trouble to be counted")
        told = json.dumps([node.errors, node.said])
        assert "a%20password" not in told
        assert "a password of a test" not in told
