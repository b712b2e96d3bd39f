"""`contextstore import` and `export` against a real node."""

import gzip
import json
import signal
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.contextstore_process import COMMAND, RunningNode, clean_environment, run_command, running_node
from support.waiting import wait_until

LOOKUP = {"id": "call_1", "type": "function", "function": {"name": "find", "arguments": '{"title": "Stoner"}'}}


def conversation(number: int, turns: int = 3) -> dict[str, Any]:
    """One in OpenAI's form, with a tool call."""
    messages: list[dict[str, Any]] = [{"role": "system", "content": "Be brief."}]
    for turn in range(turns):
        messages += [
            {"role": "user", "content": f"Question {number}.{turn}"},
            {"role": "assistant", "content": None, "tool_calls": [LOOKUP]},
            {"role": "tool", "tool_call_id": "call_1", "name": "find", "content": "Shelf W 9"},
            {"role": "assistant", "content": f"Answer {number}.{turn}"},
        ]
    return {"id": f"chat-{number:03}", "messages": messages}


def write_lines(path: Path, conversations: list[dict[str, Any]]) -> str:
    text = "".join(json.dumps(one) + "\n" for one in conversations)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return str(path)


def get(node: RunningNode, path: str) -> Any:
    with urllib.request.urlopen(node.url + path, timeout=30) as response:
        return json.loads(response.read())


def send(node: RunningNode, method: str, path: str, body: Any = None) -> None:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(node.url + path, method=method, data=data, headers={"Content-Type": "application/json"})
    urllib.request.urlopen(request, timeout=30).close()


def metric(node: RunningNode, name: str) -> float:
    with urllib.request.urlopen(f"{node.url}/metrics", timeout=30) as response:
        return next(float(line.split()[1]) for line in response.read().decode().splitlines() if line.startswith(name + " "))


def imported(node: RunningNode, *arguments: str, stdin: bytes = b"") -> "subprocess.CompletedProcess[bytes]":
    return run_command("import", *arguments, "--url", node.url, stdin=stdin)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[RunningNode]:
    with running_node(tmp_path / "data", "--shards", "4") as running:
        yield running


def test_every_message_of_every_conversation_arrives_in_order(node: RunningNode, tmp_path: Path) -> None:
    """H2."""
    given = [conversation(number) for number in range(20)]
    result = imported(node, write_lines(tmp_path / "chats.jsonl.gz", given), "--batch", "5", "--token-budget", "3000")
    assert result.returncode == 0, result.stderr
    assert "Imported 20 contexts: 260 messages appended, 0 were there already" in result.stdout.decode()
    for one in given:
        page = get(node, f"/v1/contexts/{one['id']}/messages?limit=1000")
        assert [message["seq"] for message in page["messages"]] == list(range(1, 14))
        assert [message["role"] for message in page["messages"]] == [message["role"] for message in one["messages"]]
        assert page["messages"][1]["parts"] == [{"type": "text", "text": one["messages"][1]["content"]}]
    assert get(node, "/v1/contexts/chat-000")["token_budget"] == 3000


def test_h4_a_second_run_appends_nothing_and_writes_nothing(node: RunningNode, tmp_path: Path) -> None:
    """H4."""
    file = write_lines(tmp_path / "chats.jsonl", [conversation(number) for number in range(10)])
    imported(node, file)
    before = metric(node, "contextstore_entries_applied_total")
    result = imported(node, file)
    assert result.returncode == 0
    assert "0 messages appended, 130 were there already" in result.stdout.decode()
    assert metric(node, "contextstore_entries_applied_total") == before


def test_h4_an_import_that_was_killed_goes_on_where_it_was(node: RunningNode, tmp_path: Path) -> None:
    """H4, under a kill in the middle."""
    given = [conversation(number, turns=40) for number in range(30)]
    file = write_lines(tmp_path / "chats.jsonl", given)
    command = [*COMMAND, "import", file, "--url", node.url, "--batch", "3", "--concurrency", "3"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=clean_environment())
    wait_until(lambda: len(get(node, "/v1/contexts")["contexts"]) > 5, "some conversations", 60)
    process.send_signal(signal.SIGKILL)
    process.wait(30)
    result = imported(node, file)
    assert result.returncode == 0, result.stderr
    assert " 0 were there already" not in result.stdout.decode()
    for one in given:
        page = get(node, f"/v1/contexts/{one['id']}/messages?limit=1000")
        questions = [message["parts"][0]["text"] for message in page["messages"] if message["role"] == "user"]
        assert questions == [message["content"] for message in one["messages"] if message["role"] == "user"]
        assert page["last_seq"] == len(one["messages"])


def test_a_conversation_that_grew_in_the_file_gets_its_new_messages_only(node: RunningNode, tmp_path: Path) -> None:
    imported(node, write_lines(tmp_path / "one.jsonl", [conversation(1, turns=2)]))
    result = imported(node, write_lines(tmp_path / "two.jsonl", [conversation(1, turns=5)]))
    assert "12 messages appended, 9 were there already" in result.stdout.decode()


def test_a_conversation_that_went_on_in_the_store_is_left_alone(node: RunningNode, tmp_path: Path) -> None:
    file = write_lines(tmp_path / "one.jsonl", [conversation(1)])
    imported(node, file)
    send(node, "POST", "/v1/contexts/chat-001/messages", {"message": {"role": "user", "content": "And another thing"}})
    result = imported(node, file)
    assert result.returncode == 0
    assert get(node, "/v1/contexts/chat-001")["last_seq"] == 14


def test_wrong_lines_are_named_and_the_others_go_on(node: RunningNode, tmp_path: Path) -> None:
    wrong_role = {"id": "bad-role", "messages": [{"role": "User!", "content": "Hi"}]}
    wrong_id = {"id": "a/b", "messages": [{"role": "user", "content": "Hi"}]}
    lines = [conversation(1), wrong_role, wrong_id, conversation(2)]
    file = Path(write_lines(tmp_path / "chats.jsonl", lines))
    file.write_bytes(file.read_bytes() + b"{broken\n")
    result = imported(node, str(file))
    said = result.stderr.decode()
    assert result.returncode == 1
    assert "line 2 (bad-role): message 1: message" in said or "line 2 (bad-role): message 1: " in said
    assert "role" in next(line for line in said.splitlines() if line.startswith("line 2"))
    assert "line 3 (a/b): " in said
    assert "line 5: The line is not JSON" in said
    assert "3 lines failed" in said
    assert "Imported 2 contexts: 26 messages" in result.stdout.decode()


def test_another_conversation_under_the_same_id_is_refused_and_kept(node: RunningNode, tmp_path: Path) -> None:
    """H1."""
    imported(node, write_lines(tmp_path / "one.jsonl", [conversation(1)]))
    result = imported(node, write_lines(tmp_path / "two.jsonl", [{**conversation(2), "id": "chat-001"}]))
    assert result.returncode == 1
    assert "holds another conversation" in result.stderr.decode() and "--prefix" in result.stderr.decode()
    assert get(node, "/v1/contexts/chat-001")["last_seq"] == 13


def test_a_deleted_context_is_not_revived(node: RunningNode, tmp_path: Path) -> None:
    file = write_lines(tmp_path / "one.jsonl", [conversation(1)])
    imported(node, file)
    send(node, "DELETE", "/v1/contexts/chat-001")
    result = imported(node, file)
    assert result.returncode == 1 and "was deleted" in result.stderr.decode()
    assert get(node, "/v1/contexts/chat-001")["status"] == "tombstoned"


def test_one_id_on_two_lines_is_taken_in_turn(node: RunningNode, tmp_path: Path) -> None:
    result = imported(node, write_lines(tmp_path / "twice.jsonl", [conversation(1, turns=2), conversation(1, turns=4)] * 4))
    assert result.returncode == 0, result.stderr
    assert get(node, "/v1/contexts/chat-001")["last_seq"] == 17


def test_standard_input_and_a_prefix(node: RunningNode) -> None:
    result = imported(node, "-", "--prefix", "old:", stdin=json.dumps(conversation(1)).encode())
    assert result.returncode == 0, result.stderr
    assert get(node, "/v1/contexts/old:chat-001")["last_seq"] == 13


def test_a_batch_that_is_too_large_for_the_node_goes_in_halves(tmp_path: Path) -> None:
    with running_node(tmp_path / "data", "--shards", "1", "--batch-bytes-max", "64KiB", "--message-bytes-max", "64KiB") as node:
        messages = [{"role": "user", "content": f"{number} " + "x" * 10_000} for number in range(20)]
        result = imported(node, write_lines(tmp_path / "long.jsonl", [{"id": "long", "messages": messages}]))
        assert result.returncode == 0, result.stderr
        assert get(node, "/v1/contexts/long")["last_seq"] == 20


def exported_lines(content: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in content.splitlines()]


def without_times(line: dict[str, Any]) -> dict[str, Any]:
    messages = [{name: value for name, value in message.items() if name != "inserted_at"} for message in line["messages"]]
    return {**line, "messages": messages}


def test_export_and_import_into_an_empty_node_give_the_same_contexts(node: RunningNode, tmp_path: Path) -> None:
    imported(node, write_lines(tmp_path / "chats.jsonl", [conversation(number, turns=30) for number in range(12)]), "--token-budget", "700")
    policy = {"strategy": "clear_tool_results", "config": {"keep_last": 1}}
    send(node, "PUT", "/v1/contexts/chat-003", {"metadata": {"team": "blue"}, "policy": policy})
    first = run_command("export", "--url", node.url)
    assert first.returncode == 0, first.stderr
    assert [line["id"] for line in exported_lines(first.stdout)] == [f"chat-{number:03}" for number in range(12)]
    with running_node(tmp_path / "other", "--shards", "2") as other:
        assert imported(other, "-", stdin=first.stdout).returncode == 0
        second = run_command("export", "--url", other.url)
        used = [get(where, "/v1/contexts/chat-003")["used_tokens"] <= 700 for where in (node, other)]
    assert used == [True, True]
    assert [without_times(line) for line in exported_lines(second.stdout)] == [without_times(line) for line in exported_lines(first.stdout)]


def test_an_export_that_broke_off_goes_on_behind_its_last_whole_line(node: RunningNode, tmp_path: Path) -> None:
    imported(node, write_lines(tmp_path / "chats.jsonl", [conversation(number) for number in range(9)]))
    file = tmp_path / "out.jsonl"
    assert run_command("export", str(file), "--url", node.url).returncode == 0
    whole = file.read_bytes()
    for cut in (len(whole) // 2, whole.index(b"\n") + 1, 40, 0):
        file.write_bytes(whole[:cut])
        result = run_command("export", str(file), "--resume", "--url", node.url)
        assert result.returncode == 0, result.stderr
        assert file.read_bytes() == whole


def test_export_never_overwrites_a_file(node: RunningNode, tmp_path: Path) -> None:
    (tmp_path / "out.jsonl").write_text("precious\n")
    result = run_command("export", str(tmp_path / "out.jsonl"), "--url", node.url)
    assert result.returncode == 2 and "exists already" in result.stderr.decode()
    assert (tmp_path / "out.jsonl").read_text() == "precious\n"
    result = run_command("export", str(tmp_path / "out.jsonl"), "--resume", "--url", node.url)
    assert result.returncode == 2 and "is no export" in result.stderr.decode()


def test_export_takes_a_prefix_and_writes_gzip(node: RunningNode, tmp_path: Path) -> None:
    imported(node, write_lines(tmp_path / "chats.jsonl", [conversation(number) for number in range(12)]))
    file = tmp_path / "some.jsonl.gz"
    assert run_command("export", str(file), "--prefix", "chat-00", "--url", node.url).returncode == 0
    assert len(exported_lines(gzip.decompress(file.read_bytes()))) == 10
    assert run_command("export", str(file), "--resume", "--url", node.url).returncode == 2


def test_deleted_contexts_are_left_out_of_an_export(node: RunningNode, tmp_path: Path) -> None:
    imported(node, write_lines(tmp_path / "chats.jsonl", [conversation(1), conversation(2)]))
    send(node, "DELETE", "/v1/contexts/chat-001")
    assert [line["id"] for line in exported_lines(run_command("export", "--url", node.url).stdout)] == ["chat-002"]


def test_no_node_at_the_url_is_one_sentence_and_exit_code_2(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "chats.jsonl", [conversation(1)])
    for command in (("import", file), ("export",)):
        result = run_command(*command, "--url", "http://127.0.0.1:9")
        assert result.returncode == 2 and b"No node answers" in result.stderr and b"Traceback" not in result.stderr


def test_an_interrupted_import_says_how_to_go_on(node: RunningNode, tmp_path: Path) -> None:
    # More than is imported before the signal comes, however slow this test is beside the import.
    file = write_lines(tmp_path / "chats.jsonl", [conversation(number, turns=50) for number in range(2_000)])
    command = [*COMMAND, "import", file, "--url", node.url, "--batch", "1"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=clean_environment(),
        # A shell has what it runs in the background ignore the signal, and so this test's children as well.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    wait_until(lambda: get(node, "/v1/contexts")["contexts"], "the first conversation", 60)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"Run the same command again" in errors and b"Traceback" not in errors
