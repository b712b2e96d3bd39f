"""Promises of the product, checked from outside: one real process, real HTTP, real restarts. Each test names the promise it checks."""

import itertools
import json
import signal
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.contextstore_process import RunningNode, running_node

BUDGET = 400


@pytest.fixture
def node(tmp_path: Path) -> Iterator[RunningNode]:
    with running_node(tmp_path / "data", "--shards", "2") as running:
        yield running


def ask(node: RunningNode, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
    data = None if body is None else json.dumps(body).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(
        f"{node.url}/v1{path}", method=method, data=data, headers={"Content-Type": "application/json", **named}
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            status, content = response.status, response.read()
    except urllib.error.HTTPError as error:
        status, content = error.code, error.read()
    return status, json.loads(content) if content else None


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "parts": [{"type": "text", "text": text}]}


def turn(number: int) -> list[dict[str, Any]]:
    """A question, a tool call, its result, an answer; ids of calls are used again."""
    call_id = f"call_{number % 3}"
    return [
        user(f"Question {number}: where is my order?"),
        {"role": "assistant", "parts": [{"type": "tool_call", "tool_call_id": call_id, "name": "find", "input": {"order": number}}]},
        {"role": "tool", "parts": [{"type": "tool_result", "tool_call_id": call_id, "output": "on its way " * (5 + number % 7)}]},
        {"role": "assistant", "parts": [{"type": "text", "text": f"Order {number} is on its way."}]},
    ]


def windows_of_a_conversation(node: RunningNode, turns: int, context: str = "chat") -> list[dict[str, Any]]:
    """The window after every single append."""
    ask(node, "PUT", f"/contexts/{context}", {"token_budget": BUDGET})
    messages = [{"role": "system", "parts": [{"type": "text", "text": "Be brief and kind."}]}]
    messages += [message for number in range(turns) for message in turn(number)]
    windows = []
    for message in messages:
        assert ask(node, "POST", f"/contexts/{context}/messages", {"message": message})[0] == 201
        windows.append(ask(node, "GET", f"/contexts/{context}/context")[1])
    return windows


def test_w1_no_window_is_over_its_budget_without_saying_so(node: RunningNode) -> None:
    """W1."""
    for window in windows_of_a_conversation(node, 25):
        tokens = sum(message["token_count"] for message in window["messages"])
        assert tokens == window["used_tokens"]
        assert tokens <= BUDGET and not window["over_budget"]
    huge = user("word " * 2 * BUDGET)
    ask(node, "POST", "/contexts/chat/messages", {"message": huge})
    window = ask(node, "GET", "/contexts/chat/context")[1]
    assert window["over_budget"] and window["over_budget_reason"]
    assert window["messages"][-1]["parts"] == huge["parts"]


def test_w2_a_call_and_its_result_stay_together(node: RunningNode) -> None:
    """W2."""
    for window in windows_of_a_conversation(node, 25):
        open_calls: list[str] = []
        for message in window["messages"]:
            for part in message["parts"]:
                if part["type"] == "tool_call":
                    open_calls.append(part["tool_call_id"])
                elif part["type"] == "tool_result":
                    open_calls.remove(part["tool_call_id"])
        newest = window["messages"][-1]
        assert open_calls == [part["tool_call_id"] for part in newest["parts"] if part["type"] == "tool_call"]


def test_w3_system_and_pinned_messages_stay(node: RunningNode) -> None:
    """W3."""
    ask(node, "PUT", "/contexts/chat", {"token_budget": BUDGET})
    ask(node, "POST", "/contexts/chat/messages", {"message": {"role": "system", "parts": [{"type": "text", "text": "Be brief."}]}})
    ask(node, "POST", "/contexts/chat/messages", {"message": {**user("My name is Ada."), "pinned": True}})
    for number in range(25):
        ask(node, "POST", "/contexts/chat/messages", {"messages": turn(number)})
        window = ask(node, "GET", "/contexts/chat/context")[1]
        assert [message["seq"] for message in window["messages"][:2]] == [1, 2]
    assert window["segments"][1]["type"] == "gap", "something was evicted meanwhile"


def test_w4_between_compactions_a_window_changes_only_at_its_end(node: RunningNode) -> None:
    """W4."""
    windows = windows_of_a_conversation(node, 25)
    rewrites = 0
    for before, after in itertools.pairwise(windows):
        if before["stable_through_seq"] == after["stable_through_seq"]:
            assert after["messages"][: len(before["messages"])] == before["messages"]
            assert after["prefix_hash"] == before["prefix_hash"]
        else:
            rewrites += 1
    assert 0 < rewrites < len(windows) / 4


def test_w5_windows_are_the_same_bytes_after_kill_9(tmp_path: Path) -> None:
    """W5."""

    def window_bytes(node: RunningNode) -> bytes:
        with urllib.request.urlopen(f"{node.url}/v1/contexts/chat/context", timeout=30) as response:
            return bytes(response.read())

    with running_node(tmp_path, "--shards", "2") as node:
        windows_of_a_conversation(node, 12)
        before = window_bytes(node)
        node.stop(signal.SIGKILL)
    with running_node(tmp_path, "--shards", "2") as node:
        assert window_bytes(node) == before


def test_w6_compaction_never_touches_history_and_what_came_later_stays(node: RunningNode) -> None:
    """W6."""
    for number in range(3):
        ask(node, "POST", "/contexts/chat/messages?create=true", {"messages": turn(number)})
    history = ask(node, "GET", "/contexts/chat/messages")[1]["messages"]
    seen = ask(node, "GET", "/contexts/chat/context")[1]["version"]
    ask(node, "POST", "/contexts/chat/messages", {"message": user("One more thing")})
    summary = {"covers": [1, 8], "replacement": [user("Two orders are on their way.")], "if_version": seen}
    assert ask(node, "POST", "/contexts/chat/compact", summary)[0] == 200
    window = ask(node, "GET", "/contexts/chat/context")[1]
    assert [message["seq"] for message in window["messages"]] == [None, 9, 10, 11, 12, 13]
    assert ask(node, "GET", "/contexts/chat/messages")[1]["messages"][:12] == history


def test_h2_seqs_have_no_holes_however_batches_and_refusals_mix(node: RunningNode) -> None:
    """H2."""
    for number in range(12):
        ask(node, "POST", "/contexts/chat/messages?create=true", {"messages": turn(number)[: 1 + number % 4]})
        assert ask(node, "POST", "/contexts/chat/messages", {"if_version": 0, "message": user("too late")})[0] == 409
        assert ask(node, "POST", "/contexts/chat/messages", {"message": {"role": "user", "parts": [{"kind": "text"}]}})[0] == 400
    page = ask(node, "GET", "/contexts/chat/messages?limit=1000")[1]
    assert [message["seq"] for message in page["messages"]] == list(range(1, page["last_seq"] + 1))


def test_h4_a_retry_with_the_same_key_or_id_answers_what_the_first_try_answered(tmp_path: Path) -> None:
    """H4, also after a restart."""
    body, named = {"message": user("Hi")}, {"message": {**user("Hello"), "id": "m-1"}}
    with running_node(tmp_path, "--shards", "2") as node:
        first = ask(node, "POST", "/contexts/chat/messages?create=true", body, Idempotency_Key="k-1")
        second = ask(node, "POST", "/contexts/chat/messages", named)
        node.stop(signal.SIGKILL)
    with running_node(tmp_path, "--shards", "2") as node:
        assert ask(node, "POST", "/contexts/chat/messages", body, Idempotency_Key="k-1") == first
        assert ask(node, "POST", "/contexts/chat/messages", named) == second
        status, refusal = ask(node, "POST", "/contexts/chat/messages", {"message": user("Other")}, Idempotency_Key="k-1")
        assert (status, refusal["error"]) == (409, "idempotency_conflict")
        assert ask(node, "GET", "/contexts/chat")[1]["last_seq"] == 2


def test_h5_a_read_sees_every_append_that_was_answered_before_it(node: RunningNode) -> None:
    """H5."""
    for number in range(1, 60):
        ask(node, "POST", "/contexts/chat/messages?create=true", {"message": user(str(number))})
        assert ask(node, "GET", "/contexts/chat/tail?limit=1")[1]["messages"][0]["seq"] == number
        assert ask(node, "GET", "/contexts/chat")[1]["last_seq"] == number


def test_a_window_that_did_not_change_is_304(node: RunningNode) -> None:
    ask(node, "POST", "/contexts/chat/messages?create=true", {"message": user("Hi")})
    with urllib.request.urlopen(f"{node.url}/v1/contexts/chat/context", timeout=30) as response:
        tag = response.headers["ETag"]
    assert tag.startswith('"') and tag.endswith('"') and '"' not in tag[1:-1]
    assert ask(node, "GET", "/contexts/chat/context", If_None_Match=tag)[0] == 304
    ask(node, "POST", "/contexts/chat/messages", {"message": user("Again")})
    assert ask(node, "GET", "/contexts/chat/context", If_None_Match=tag)[0] == 200
