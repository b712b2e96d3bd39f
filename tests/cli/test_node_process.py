"""A node as a process: what it says, how it stops, and what keeps it from starting."""

import http.client
import json
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from support.contextstore_process import COMMAND, RunningNode, clean_environment, run_command, running_node, running_process
from support.waiting import wait_until

MESSAGE = {"message": {"role": "user", "content": "Hi there"}}


def call(url: str, method: str = "GET", body: Any = None, key: str = "") -> tuple[int, Any]:
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    request = urllib.request.Request(url, method=method, headers=headers, data=None if body is None else json.dumps(body).encode())
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            status, content = response.status, response.read()
    except urllib.error.HTTPError as error:
        status, content = error.code, error.read()
    return status, json.loads(content) if content else None


def append(node: RunningNode, context: str = "hello") -> int:
    status, answer = call(f"{node.url}/v1/contexts/{context}/messages?create=true", "POST", MESSAGE)
    assert status == 201, answer
    return int(answer["seq"])


def test_dev_says_where_it_is_and_how_to_try_it_once_it_is_ready(tmp_path: Path) -> None:
    with running_node(tmp_path / "data") as node:
        wait_until(lambda: any("Ctrl-C" in line for line in [*node.said]), "the banner")
        banner = "".join(node.said)
        assert node.url in banner and str(tmp_path / "data") in banner and "0 contexts" in banner
        curl = next(line for line in banner.splitlines() if line.strip().startswith("curl -X POST"))
        assert f"{node.url}/v1/contexts/hello/messages?create=true" in curl
        assert call(f"{node.url}/health/ready")[0] == 200


def test_the_banner_counts_the_contexts_that_are_there(tmp_path: Path) -> None:
    with running_node(tmp_path) as node:
        append(node)
        assert node.stop() == 0
    with running_node(tmp_path) as node:
        wait_until(lambda: any("Ctrl-C" in line for line in [*node.said]), "the banner")
        assert "1 context\n" in "".join(node.said)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_the_node_with_exit_code_0_and_nothing_is_lost(tmp_path: Path, number: signal.Signals) -> None:
    with running_node(tmp_path) as node:
        assert append(node) == 1
        assert node.stop(number) == 0
        assert not any("Traceback" in line for line in node.errors)
    with running_node(tmp_path) as node:
        assert append(node) == 2


def test_h1_what_was_acknowledged_is_there_after_kill_9(tmp_path: Path) -> None:
    """H1."""
    with running_node(tmp_path) as node:
        assert [append(node) for _ in range(5)] == [1, 2, 3, 4, 5]
        node.stop(signal.SIGKILL)
    with running_node(tmp_path) as node:
        page = call(f"{node.url}/v1/contexts/hello/messages")[1]
        assert [message["seq"] for message in page["messages"]] == [1, 2, 3, 4, 5]


def test_s4_serve_fails_readiness_first_and_serves_on_while_it_drains(tmp_path: Path) -> None:
    """S4."""
    with running_node(tmp_path, "--drain-s", "60", command="serve") as node:
        append(node)
        node.send(signal.SIGTERM)
        wait_until(lambda: call(f"{node.url}/health/ready")[0] == 503, "readiness to fail")
        assert append(node) == 2, "a draining node still serves"
        assert call(f"{node.url}/health/live")[0] == 200
        assert node.process.poll() is None


def test_a_second_signal_exits_at_once(tmp_path: Path) -> None:
    with running_node(tmp_path, "--drain-s", "60", command="serve") as node:
        node.send(signal.SIGTERM)
        wait_until(lambda: call(f"{node.url}/health/ready")[0] == 503, "readiness to fail")
        assert node.stop(signal.SIGTERM) == 128 + signal.SIGTERM


def test_an_open_stream_does_not_hold_up_the_stop(tmp_path: Path) -> None:
    with running_node(tmp_path) as node:
        append(node)
        connection = http.client.HTTPConnection(node.url.removeprefix("http://"), timeout=60)
        connection.request("GET", "/v1/contexts/hello/stream", headers={"Accept": "text/event-stream"})
        response = connection.getresponse()
        assert b"id: 1" in response.readline() + response.readline() + response.readline()
        assert node.stop() == 0
        response.read()  # the stream ends instead of breaking
        connection.close()


def test_serve_logs_json_events(tmp_path: Path) -> None:
    with running_node(tmp_path, "--drain-s", "0", command="serve") as node:
        assert node.stop() == 0
        events = [json.loads(line)["event"] for line in node.errors]
    assert {"listening", "ready", "stopping", "stopped"} <= set(events)
    assert events.index("ready") < events.index("stopping") < events.index("stopped")


def one_sentence(result: "subprocess.CompletedProcess[bytes]") -> str:
    """What a start that cannot work says: exit code 2, no traceback."""
    text = result.stderr.decode()
    assert result.returncode == 2, text
    assert "Traceback" not in text
    assert b"ready" not in result.stdout
    errors = [line for line in text.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1, text
    return errors[0]


def test_a_port_in_use_is_one_sentence_and_exit_code_2(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        said = one_sentence(run_command("dev", "--port", str(port), "--data-dir", str(tmp_path)))
    assert str(port) in said and "in use" in said and "--port" in said


def test_a_data_directory_in_use_is_one_sentence_and_exit_code_2(tmp_path: Path) -> None:
    with running_node(tmp_path) as node:
        said = one_sentence(run_command("dev", "--port", "0", "--data-dir", str(tmp_path)))
        assert append(node) == 1, "the first node is not disturbed"
    assert "in use by another process" in said and str(tmp_path) in said


def test_another_number_of_shards_is_one_sentence_and_exit_code_2(tmp_path: Path) -> None:
    with running_node(tmp_path, "--shards", "4") as node:
        assert node.stop() == 0
    said = one_sentence(run_command("dev", "--port", "0", "--data-dir", str(tmp_path), "--shards", "8"))
    assert "4 shards, not 8" in said


def test_a_data_directory_that_is_a_file_is_one_sentence_and_exit_code_2(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    said = one_sentence(run_command("dev", "--port", "0", "--data-dir", str(tmp_path / "file")))
    assert "cannot be used" in said


def test_a_data_directory_that_cannot_be_made_is_one_sentence_and_exit_code_2() -> None:
    # Nobody may make files there, not even root, as whom tests run in containers.
    assert "cannot be" in one_sentence(run_command("dev", "--port", "0", "--data-dir", "/proc/contextstore"))


def test_a_damaged_log_is_one_sentence_and_exit_code_2(tmp_path: Path) -> None:
    (tmp_path / "log.db").write_bytes(b"this is no database " * 500)
    assert "cannot be used" in one_sentence(run_command("dev", "--port", "0", "--data-dir", str(tmp_path)))


def test_a_bad_setting_is_named_and_exit_code_2(tmp_path: Path) -> None:
    said = one_sentence(run_command("dev", "--data-dir", str(tmp_path), CONTEXTSTORE_PORT="many"))
    assert "CONTEXTSTORE_PORT" in said


def test_s5_a_public_address_without_keys_is_refused(tmp_path: Path) -> None:
    """S5."""
    said = one_sentence(run_command("serve", "--host", "0.0.0.0", "--port", "0", "--data-dir", str(tmp_path)))
    assert "API key" in said and "--open" in said


def test_s5_with_a_key_file_nobody_reads_without_a_key_and_a_revoked_key_stops_working(tmp_path: Path) -> None:
    """S5."""
    file = str(tmp_path / "keys.jsonl")
    key = run_command("keys", "create", "--name", "app", "--api-keys-file", file).stdout.decode().strip()
    with running_node(tmp_path / "data", "--api-keys-file", file, "--drain-s", "0", command="serve") as node:
        url = f"{node.url}/v1/contexts"
        assert call(url)[0] == 401
        assert call(url, key=key)[0] == 200
        run_command("keys", "revoke", key.split("_")[1], "--api-keys-file", file)
        wait_until(lambda: call(url, key=key)[0] == 401, "the revoked key to be refused")
        second = run_command("keys", "create", "--name", "other", "--api-keys-file", file).stdout.decode().strip()
        node.send(signal.SIGHUP)
        wait_until(lambda: call(url, key=second)[0] == 200, "the new key to work")


def test_a_key_file_that_breaks_keeps_the_keys_that_were_good(tmp_path: Path) -> None:
    file = tmp_path / "keys.jsonl"
    key = run_command("keys", "create", "--name", "app", "--api-keys-file", str(file)).stdout.decode().strip()
    with running_node(tmp_path / "data", "--api-keys-file", str(file), command="serve") as node:
        file.write_text("not a key\n")
        node.send(signal.SIGHUP)
        wait_until(lambda: any("keys_not_reloaded" in line for line in [*node.errors]), "the complaint")
        assert call(f"{node.url}/v1/contexts", key=key)[0] == 200


def test_metrics_tell_of_the_edge_and_of_the_engine(tmp_path: Path) -> None:
    with running_node(tmp_path) as node:
        append(node)
        with urllib.request.urlopen(f"{node.url}/metrics", timeout=30) as response:
            text = response.read().decode()
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert values["contextstore_ready"] == "1.0"
    assert float(values["contextstore_log_commits_total"]) > 0
    assert float(values["contextstore_shards"]) == 33
    assert any(name.startswith("contextstore_http_requests_total{") for name in values)


def test_requests_under_way_are_answered_when_a_node_stops(tmp_path: Path) -> None:
    """S4: every append that was answered is there afterwards, and none was cut off in the middle."""
    broken: list[BaseException] = []
    acknowledged: list[int] = []
    with running_node(tmp_path) as node:
        append(node)

        def load() -> None:
            try:
                while True:
                    acknowledged.append(append(node))
            except (urllib.error.URLError, ConnectionError, AssertionError):
                pass  # refused after the node closed
            except BaseException as error:
                broken.append(error)

        clients = [threading.Thread(target=load) for _ in range(4)]
        for client in clients:
            client.start()
        wait_until(lambda: len(acknowledged) > 20, "some appends")
        assert node.stop() == 0
        for client in clients:
            client.join(60)
    assert not broken
    with running_node(tmp_path) as node:
        assert call(f"{node.url}/v1/contexts/hello")[1]["last_seq"] >= max(acknowledged)


FAILING_LOG = """
import sys
from pathlib import Path
from context_node.cli import main
from context_node.runtime.worker import Worker

sync = Worker.sync

def failing_sync(self, file, outcome):
    def told(result, error):
        outcome(result, OSError(5, "the disk answers with an input/output error") if Path(sys.argv[1]).exists() else error)
    sync(self, file, told)

Worker.sync = failing_sync
main(["serve", "--port", "0", "--data-dir", sys.argv[2], "--drain-s", "30"])
"""


def test_a_disk_that_fails_ends_the_node_with_one_log_line_and_exit_code_1(tmp_path: Path) -> None:
    """H3: what could not be made durable is not acknowledged."""
    command = (sys.executable, "-c", FAILING_LOG, str(tmp_path / "broken"), str(tmp_path / "data"))
    with running_process(command) as node:
        append(node)
        (tmp_path / "broken").write_text("")
        status, answer = call(f"{node.url}/v1/contexts/hello/messages", "POST", MESSAGE)
        assert status == 503 and answer["error"] in ("outcome_unknown", "unavailable")
        assert node.wait_end() == 1
        critical = [line for line in node.errors if '"level":"critical"' in line]
        assert len(critical) == 1 and "input/output error" in critical[0]
        assert not any("Traceback" in line for line in node.errors)


def test_python_m_context_node_is_the_same_command() -> None:
    result = subprocess.run([*COMMAND, "--version"], capture_output=True, text=True, env=clean_environment(), check=True, timeout=60)
    assert result.stdout.startswith("contextstore ")


def test_a_node_that_began_without_any_key_takes_up_the_first(tmp_path: Path) -> None:
    """An empty file of keys is one to be watched too."""
    keys = tmp_path / "keys.jsonl"
    keys.touch()
    with running_node(tmp_path / "data", "--api-keys-file", str(keys)) as node:
        assert run_command("keys", "create", "--name", "app", "--api-keys-file", str(keys)).returncode == 0
        wait_until(lambda: any("keys_reloaded" in line for line in node.errors), "the first key to be taken up")
