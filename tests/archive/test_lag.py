"""How much waits for the archive is known while Postgres is away, by whoever leads, and is told before the disk is full."""

import re
import signal
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from context_node.archive.backlog import Backlog
from context_node.runtime.archive_view import ArchiveView, total
from support.archive_calls import QUICK, append, history, metric
from support.cluster_calls import FAST, call
from support.clusters import free_port
from support.contextstore_process import RunningNode, run_command, running_node
from support.postgres import PostgresServer
from support.waiting import wait_until


def test_counting_keeps_totals_and_the_oldest_time() -> None:
    now = [1_000]
    backlog = Backlog(lambda: now[0], lambda _head, _epoch: True)
    backlog.came("a", [b"12", b"345"])
    now[0] = 2_000
    backlog.came("b", [b"1"])
    backlog.came("a", [b"1234"])
    assert (backlog.messages, backlog.bytes, backlog.oldest_ms, list(backlog)) == (4, 10, 1_000, ["a", "b"])
    backlog.drop("a")
    backlog.drop("never seen")
    assert (backlog.messages, backlog.bytes, backlog.oldest_ms) == (1, 1, 2_000)
    backlog.drop("b")
    assert (backlog.messages, backlog.bytes, backlog.oldest_ms) == (0, 0, None)
    # A configuration that waits has a turn, and no age; the first message behind it has its own.
    backlog.came("c", ())
    assert (list(backlog), backlog.messages, backlog.oldest_ms) == (["c"], 0, None)
    now[0] = 3_000
    backlog.came("c", [b"1"])
    assert (backlog.messages, backlog.oldest_ms) == (1, 3_000)


def test_of_several_nodes_the_total_names_the_trouble_that_most_waits_for() -> None:
    def view(cause: str, size: int, age_s: float, is_late: bool = False) -> ArchiveView:
        return ArchiveView(not cause, is_late, cause, cause and f"It is {cause}.", 1, size, age_s)

    assert total({"a": None, "b": None}) is None
    well = total({"a": view("", 5, 1.0), "b": view("", 7, 3.0)})
    assert well == ArchiveView(True, False, "", "", 2, 12, 3.0)
    ill = total({"a": view("", 100, 1.0), "b": view("login", 5, 9.0), "c": view("late", 50, 2.0, is_late=True), "d": None})
    assert ill == ArchiveView(False, True, "late", "It is late.", 3, 155, 9.0)
    mixed = total({"a": view("", 1, 1.0), "b": None})
    assert mixed is not None
    assert (mixed.is_healthy, mixed.cause) == (False, "not_everywhere")
    assert "no archive: b." in mixed.reason


def test_the_lag_survives_a_restart_while_postgres_is_away(own: PostgresServer, tmp_path: Path) -> None:
    own.stop()
    began = time.time()
    names = [f"talk-{number}" for number in range(3)]
    with running_node(tmp_path / "data", *QUICK, CONTEXTSTORE_ARCHIVE_POSTGRES=own.dsn) as node:
        for number in range(12):
            append(node, names[number % 3], f"message {number} {'x' * 50 * number}")
        size = sum(len(line) for name in names for line in history(node, name))
        wait_until(lambda: metric(node, "archive_lag_messages") == 12, "the lag to be counted")
        assert metric(node, "archive_lag_bytes") == size
        node.send(signal.SIGKILL)
        node.wait_end()
    with running_node(tmp_path / "data", *QUICK, CONTEXTSTORE_ARCHIVE_POSTGRES=own.dsn) as node:
        wait_until(lambda: metric(node, "archive_lag_messages") == 12, "the lag to be found again")
        # Four messages of each context, which is as many as are read to tell the size of all.
        assert metric(node, "archive_lag_bytes") == size
        age_s, passed_s = metric(node, "archive_lag_seconds"), time.time() - began
        assert 0 < passed_s - age_s < passed_s
        append(node, names[0], "one more")
        assert metric(node, "archive_lag_messages") == 13
        assert metric(node, "archive_lag_seconds") >= age_s
        own.start()
        wait_until(lambda: metric(node, "archive_lag_messages") == 0, "it to catch up", 60.0)
        assert (metric(node, "archive_lag_bytes"), metric(node, "archive_lag_seconds")) == (0, 0)


def warnings(node: RunningNode) -> int:
    return sum("more than archive_lag_warn_bytes" in line for line in node.errors)


def test_it_is_told_once_that_much_waits_and_again_when_it_rises_again(own: PostgresServer, tmp_path: Path) -> None:
    with running_node(tmp_path / "data", *QUICK, "--archive-lag-warn-bytes", "1MiB", CONTEXTSTORE_ARCHIVE_POSTGRES=own.dsn) as node:
        for turn in (1, 2):
            own.stop(signal.SIGQUIT)
            for number in range(5):
                assert metric(node, "archive_late") == 0
                append(node, f"talk-{turn}", *(f"{turn}.{number}.{part} {'x' * 30_000}" for part in range(8)))
            wait_until(lambda: metric(node, "archive_late") == 1, "the archive to count as late")
            own.start()
            wait_until(lambda: metric(node, "archive_late") == 0, "it to catch up", 60.0)
            assert warnings(node) == turn


def test_every_node_tells_how_its_archive_does_and_a_new_leader_knows_what_waits(own: PostgresServer, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    assert run_command("cluster", "init", str(secret)).returncode == 0
    first = free_port()
    own.stop()

    def words(name: str) -> list[str]:
        where = ["--peer-port", str(first)] if name == "n1" else ["--peer-port", "0", "--join", f"127.0.0.1:{first}"]
        return ["--cluster-secret-file", str(secret), "--node-name", name, *where, *FAST, *QUICK]

    with ExitStack() as stack:
        environment = {"n1": own.dsn, "n2": own.dsn, "n3": own.dsn}
        nodes = {
            name: stack.enter_context(running_node(tmp_path / name, *words(name), command="serve", CONTEXTSTORE_ARCHIVE_POSTGRES=dsn))
            for name, dsn in environment.items()
        }

        def view() -> Any:
            return call(f"{nodes['n3'].url}/v1/cluster")[1]

        def is_whole() -> bool:
            seen = view()
            return bool(
                seen["shards_healthy"] == 4 and all(sum(one["is_voter"] for one in shard["replicas"]) == 3 for shard in seen["shards"])
            )

        wait_until(is_whole, "every shard to have three voters")
        for number in range(24):
            append(nodes["n3"], f"talk-{number % 8}", f"message {number}")
        size = sum(len(line) for number in range(8) for line in history(nodes["n3"], f"talk-{number}"))
        told: Any = None

        def is_told() -> bool:
            # Leaders move to where they belong, and a shard counts nowhere until its new one has looked.
            nonlocal told
            told = view()["archive"]
            return bool(told["lag_messages"] == 24)

        wait_until(is_told, "all that waits to be told")
        assert (told["is_healthy"], told["is_late"], told["cause"], told["lag_bytes"]) == (False, False, "unreachable", size)
        assert told["lag_s"] > 0
        assert "password" not in told["reason"]
        wait_until(lambda: {one["archive"]["cause"] for one in view()["nodes"]} == {"unreachable"}, "every node to tell why")
        assert call(f"{nodes['n2'].url}/v1/cluster/self")[1]["archive"]["cause"] == "unreachable"
        nodes["n1"].send(signal.SIGKILL)
        nodes["n1"].wait_end()

        def is_taken_over() -> bool:
            seen = view()
            waits = seen["archive"]
            return (
                seen["shards_leaderless"] == 0
                and waits["lag_messages"] == 24
                and waits["lag_bytes"] == size
                and waits["lag_s"] > told["lag_s"]
            )

        wait_until(is_taken_over, "the new leaders to know what waits")
        assert [one["archive"] for one in view()["nodes"] if one["name"] == "n1"] == [None]

        def said() -> str:
            return run_command("cluster", "status", "--url", nodes["n3"].url).stdout.decode()

        wanted = re.compile(r"^archive: NOT HEALTHY, 24 messages .*: Postgres cannot be reached", re.MULTILINE)
        wait_until(lambda: wanted.search(said()), "the status to tell what waits, and why")
        own.start()
        wait_until(lambda: "archive: healthy, 0 messages" in said(), "it to catch up", 60.0)


def test_postgres_being_away_is_told_also_where_nobody_writes(own: PostgresServer, tmp_path: Path) -> None:
    with running_node(tmp_path / "data", *QUICK, CONTEXTSTORE_ARCHIVE_POSTGRES=own.dsn) as node:
        wait_until(lambda: metric(node, "archive_healthy") == 1, "the archive to be connected")
        own.stop(signal.SIGQUIT)
        wait_until(lambda: metric(node, "archive_healthy") == 0, "the trouble to be told", 30.0)
        own.start()
        wait_until(lambda: metric(node, "archive_healthy") == 1, "the archive to be connected again", 60.0)
