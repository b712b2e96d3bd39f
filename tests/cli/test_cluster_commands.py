"""A cluster as its people meet it: three processes, `contextstore cluster …`, and any HTTP client."""

import json
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from support.cluster_calls import FAST, call
from support.clusters import free_port
from support.contextstore_process import RunningNode, run_command, running_node
from support.waiting import wait_until


def append(node: RunningNode, text: str) -> int:
    """As a client with ordinary retries would; the id makes them safe."""
    body = {"message": {"role": "user", "content": text, "id": text}}
    answers: list[Any] = []

    def is_kept() -> bool:
        status, answer = call(f"{node.url}/v1/contexts/talk/messages?create=true", "POST", body)
        answers.append((status, answer))
        return status == 201

    wait_until(is_kept, "the append to be acknowledged")
    return int(answers[-1][1]["seq"])


def status(node: RunningNode) -> tuple[int, str]:
    result = run_command("cluster", "status", "--url", node.url)
    return result.returncode, result.stdout.decode() + result.stderr.decode()


@contextmanager
def three_nodes(folder: Path) -> Iterator[list[RunningNode]]:
    """Started as README says, the second and third joining the first; all shards fully replicated when the block begins."""
    secret = folder / "secret"
    assert run_command("cluster", "init", str(secret)).returncode == 0
    first = free_port()
    with ExitStack() as stack:
        nodes = []
        for name in ("n1", "n2", "n3"):
            where = ["--peer-port", str(first)] if name == "n1" else ["--peer-port", "0", "--join", f"127.0.0.1:{first}"]
            words = ["--cluster-secret-file", str(secret), "--node-name", name, *where, *FAST]
            nodes.append(stack.enter_context(running_node(folder / name, *words, command="serve")))
        wait_until(lambda: is_replicated(nodes[1]), "every shard to have three voters")
        yield nodes


def is_replicated(node: RunningNode) -> bool:
    view = call(f"{node.url}/v1/cluster")[1]
    return bool(view["shards_healthy"] == 4 and all(sum(one["is_voter"] for one in shard["replicas"]) == 3 for shard in view["shards"]))


def test_s3_three_commands_make_a_cluster_that_outlives_the_death_of_any_node(tmp_path: Path) -> None:
    with three_nodes(tmp_path) as nodes:
        code, text = status(nodes[2])
        assert code == 0, text
        assert "4 of 4 healthy" in text
        assert "\narchive: off\n" in text
        for number, node in enumerate(nodes, 1):
            assert append(node, f"by {number}") == number
            assert call(f"{node.url}/v1/contexts/talk")[1]["last_seq"] == number
        nodes[0].send(signal.SIGKILL)
        assert append(nodes[1], "after the death") == 4
        assert append(nodes[2], "after the death, too") == 5
        wait_until(lambda: "AWAY" in status(nodes[1])[1], "the dead node to be shown as away")
        code, text = status(nodes[1])
        assert code == 1
        assert "under-replicated" in text
        history = call(f"{nodes[2].url}/v1/contexts/talk/messages")[1]["messages"]
        assert [one["seq"] for one in history] == [1, 2, 3, 4, 5]


def test_h5_a_local_read_goes_on_without_a_majority_and_says_no_more_than_its_replica_has(tmp_path: Path) -> None:
    with three_nodes(tmp_path) as nodes:
        for number in range(3):
            append(nodes[2], f"message {number}")
        local = f"{nodes[2].url}/v1/contexts/talk"
        wait_until(lambda: call(f"{local}?consistency=local")[1].get("last_seq") == 3, "the third node to have it")
        for node in nodes[:2]:
            node.send(signal.SIGKILL)
        wait_until(lambda: call(local)[0] == 503, "linearizable reads to be refused")
        for path in ("", "/context", "/messages", "/tail"):
            assert call(f"{local}{path}")[0] == 503
            assert call(f"{local}{path}?consistency=local")[0] == 200, path
        assert len(call(f"{local}/messages?consistency=local")[1]["messages"]) == 3
        assert call(f"{local}?consistency=local&min_version=3")[0] == 200
        status, answer = call(f"{local}?consistency=local&min_version=4")
        assert (status, answer["error"]) == (503, "unavailable")
        assert "at version 3, not yet at 4" in answer["message"]


def test_s4_a_node_that_stops_hands_its_leaderships_over(tmp_path: Path) -> None:
    with three_nodes(tmp_path) as nodes:
        append(nodes[0], "first")
        assert nodes[0].stop() == 0
        status_code, answer = call(
            f"{nodes[1].url}/v1/contexts/talk/messages", "POST", {"message": {"role": "user", "content": "at once", "id": "x"}}
        )
        assert (status_code, answer["seq"]) == (201, 2)


def test_nodes_are_marked_by_name_and_mistakes_are_named(tmp_path: Path) -> None:
    with three_nodes(tmp_path) as nodes:
        url = ("--url", nodes[0].url)
        assert run_command("cluster", "cordon", "n3", *url).returncode == 0
        assert "cordoned" in status(nodes[0])[1]
        assert run_command("cluster", "uncordon", "n3", *url).returncode == 0
        wrong = run_command("cluster", "cordon", "n9", *url)
        assert wrong.returncode == 1
        assert b"There is no node n9. Nodes: n1 (1)" in wrong.stderr
        held = run_command("cluster", "remove", "n2", *url)
        assert held.returncode == 1
        assert b"drain it first" in held.stderr
        drained = run_command("cluster", "drain", "n3", *url)
        assert drained.returncode == 1
        assert b"no other node may take it" in drained.stderr
        assert sum(one["is_voter"] for one in call(f"{nodes[0].url}/v1/cluster")[1]["shards"][0]["replicas"]) == 3
        assert run_command("cluster", "undrain", "n3", *url).returncode == 0
        assert run_command("cluster", "rebalance", *url).returncode == 0
        view = json.loads(run_command("cluster", "status", "--json", *url).stdout)
        assert sum(node["leaders"] for node in view["nodes"]) == 4


def test_a_secret_is_never_overwritten(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    assert run_command("cluster", "init", str(secret)).returncode == 0
    assert secret.stat().st_mode & 0o777 == 0o600
    before = secret.read_bytes()
    again = run_command("cluster", "init", str(secret))
    assert again.returncode == 1
    assert secret.read_bytes() == before


def test_a_node_without_the_secret_may_not_join_and_says_what_it_needs(tmp_path: Path) -> None:
    result = run_command("serve", "--join", "127.0.0.1:4001", "--data-dir", str(tmp_path / "data"))
    assert result.returncode == 2
    assert b"--cluster-secret-file" in result.stderr


def test_a_node_alone_says_how_to_begin_a_cluster(tmp_path: Path) -> None:
    with running_node(tmp_path / "data", "--shards", "2") as node:
        result = run_command("cluster", "status", "--url", node.url)
        assert result.returncode == 1
        assert b"--cluster-secret-file" in result.stderr
