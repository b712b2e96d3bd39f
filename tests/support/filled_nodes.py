"""Nodes with an archive behind them, filled with contexts of every kind, and how they are looked at from outside.

Knows HTTP and SQL. Does not know what a test checks.
"""

import json
import urllib.request
from pathlib import Path
from typing import Any

from support.archive_calls import query
from support.cluster_calls import call
from support.contextstore_process import RunningNode
from support.waiting import wait_until

QUICK = ("--archive-flush-s", "0.05", "--shards", "4", "--drain-s", "0")
TALKS = Path(__file__).resolve().parents[2] / "bench" / "sample_conversations.jsonl"


def ask(node: RunningNode, path: str, method: str = "GET", body: Any = None) -> Any:
    """The answer to a request that must succeed."""
    status, answer = call(f"{node.url}/v1{path}", method, body)
    assert status < 300, (method, path, status, answer)
    return answer


def history(node: RunningNode, context_id: str) -> bytes:
    with urllib.request.urlopen(f"{node.url}/v1/contexts/{context_id}/export", timeout=60) as answer:
        content: bytes = answer.read()
    return content


def window(node: RunningNode, context_id: str) -> bytes:
    with urllib.request.urlopen(f"{node.url}/v1/contexts/{context_id}/context", timeout=60) as answer:
        content: bytes = answer.read()
    return content


def context_ids(node: RunningNode) -> list[str]:
    return [view["id"] for view in ask(node, "/contexts?status=any&limit=1000")["contexts"]]


def shown(node: RunningNode, context_id: str) -> dict[str, Any]:
    """A context as a restore keeps it: what GET tells, its window and history byte for byte."""
    view = ask(node, f"/contexts/{context_id}")
    own = ("incarnation", "archived_seq")
    kept = {name: value for name, value in view.items() if name not in own}
    kept["policy"].pop("generation", None)
    return {**kept, "window": window(node, context_id), "history": history(node, context_id)}


def wait_archived(node: RunningNode, dsn: str) -> None:
    """Until the archive has all messages and the newest record of each context."""

    def is_whole() -> bool:
        if query(dsn, "SELECT to_regclass('contextstore.contexts') IS NULL") == [(True,)]:
            return False
        marks = {row[0]: row[1:] for row in query(dsn, "SELECT context_id, archived_seq, revision FROM contextstore.contexts")}
        views = ask(node, "/contexts?status=any&limit=1000")["contexts"]
        return all(marks.get(view["id"]) == (view["last_seq"], view["revision"]) for view in views)

    wait_until(is_whole, "everything to be archived", 60.0)


def text(words: str, **more: Any) -> dict[str, Any]:
    return {"role": "user", "parts": [{"type": "text", "text": words}], **more}


def fill(node: RunningNode, talks: int = 8) -> None:
    """Contexts of every kind."""
    ask(node, "/policies/short", "PUT", {"strategy": "last_n", "config": {"limit": 6}, "token_budget": 900})
    ask(node, "/policies/gone", "PUT", {"strategy": "manual"})
    ask(node, "/policies/usual", "PUT", {"strategy": "clear_tool_results", "config": {"keep_last": 1}, "default": True})
    for number, talk in enumerate(talks_of(talks)):
        name = f"talk-{number}"
        policy: dict[str, Any] = {"policy": {"ref": "short"}} if number % 4 == 1 else {}
        ask(node, f"/contexts/{name}", "PUT", {"token_budget": 1500 + 700 * number, "metadata": {"number": number}, **policy})
        for message in talk:
            ask(node, f"/contexts/{name}/messages", "POST", {"message": message})
    ask(node, "/contexts/empty", "PUT", {"metadata": {"nothing": True}})
    ask(
        node,
        "/contexts/odd/messages?create=true",
        "POST",
        {"messages": [text("a \u0000 b", id="nul"), text("🙂 \ud7ff", metadata={"\u0000": 1})]},
    )
    ask(node, "/contexts/deleted/messages?create=true", "POST", {"message": text("bye", id="bye")})
    ask(node, "/contexts/deleted", "DELETE")
    messages = [text(f"message {number} " + "x" * (number * 37 % 300), id=f"m{number}") for number in range(300)]
    for first in range(0, 300, 50):
        ask(node, "/contexts/long/messages?create=true", "POST", {"messages": messages[first : first + 50]})
    ask(node, "/contexts/long/compact", "POST", {"replacement": [{"role": "assistant", "content": "a summary"}], "covers": [1, 250]})
    ask(node, "/contexts/long/messages/17/pin", "PUT")
    ask(node, "/contexts/long/messages/290/pin", "PUT")
    ask(node, "/contexts/follower", "PUT", {"policy": {"ref": "gone"}})
    ask(node, "/contexts/follower/messages", "POST", {"message": text("hello")})
    ask(node, "/policies/gone", "DELETE")
    # A policy that changed since: contexts that follow it have yet to act on it.
    ask(node, "/policies/short", "PUT", {"strategy": "last_n", "config": {"limit": 5}, "token_budget": 900})


def talks_of(count: int) -> list[list[dict[str, Any]]]:
    """Conversations with tool calls: the samples of the demonstration, then made up ones with longer results."""
    samples = [json.loads(line)["messages"] for line in TALKS.read_text().splitlines()]
    return [*samples[: count // 2], *(made_up(number) for number in range(count - min(len(samples), count // 2)))]


def made_up(number: int) -> list[dict[str, Any]]:
    """A conversation in OpenAI's shape: a system prompt, and turns with calls and long results."""
    talk: list[dict[str, Any]] = [{"role": "system", "content": "You book flights. " * 20}]
    for turn in range(6):
        name = f"call_{turn}"
        called = {"id": name, "type": "function", "function": {"name": "search", "arguments": json.dumps({"turn": turn, "to": "SFO"})}}
        talk += [
            {"role": "user", "content": f"Question {turn} of {number}: " + "why? " * (10 * turn + number)},
            {"role": "assistant", "content": None, "tool_calls": [called]},
            {"role": "tool", "tool_call_id": name, "content": json.dumps({"flights": [f"HAT{place:03d}" for place in range(40 + number)]})},
            {"role": "assistant", "content": f"Answer {turn}. " * 12},
        ]
    return talk
