"""The promises W1 to W3 checked on a window as a reader gets it: on its JSON alone, by other means than the code under test."""

from typing import Any

CALLS = {"tool_call": "tool_call_id"}
ENDED = ("output-available", "output-error", "output-denied")


def check_window(window: dict[str, Any]) -> None:
    """Raise AssertionError where a window breaks a promise that shows in itself."""
    messages = window["messages"]
    used = sum(message["token_count"] for message in messages)
    assert used == window["used_tokens"] == window["token_count"]
    assert (used > window["token_budget"]) == window["over_budget"], "W1: over budget, or a false flag"
    assert ("over_budget_reason" in window) == window["over_budget"]
    assert all(message["parts"] for message in messages)
    check_pairs(messages)
    check_segments(window)


def check_pairs(messages: list[dict[str, Any]]) -> None:
    """W2: every result stands behind its call, and a call without a result is still waiting."""
    waiting: list[tuple[int, str]] = []
    for place, message in enumerate(messages):
        for part in message["parts"]:
            kind, name = _link(part)
            mine = [each for each in waiting if each[1] == name]
            if kind == "result" and not mine:
                raise AssertionError(f"W2: the result of {name!r} at {place} stands without its call")
            if mine and kind in ("result", "ended", "goes on"):
                waiting.remove(mine[-1])
            if kind in ("call", "goes on"):
                waiting.append((place, name))


def unanswered(messages: list[dict[str, Any]]) -> list[int]:
    """The places of calls without any result that stand before a message which ends waiting."""
    open_calls: list[tuple[int, str]] = []
    for place, message in enumerate(messages):
        for part in message["parts"]:
            kind, name = _link(part)
            mine = [each for each in open_calls if each[1] == name]
            if mine and kind in ("result", "ended", "goes on"):
                open_calls.remove(mine[-1])
            if kind in ("call", "goes on"):
                open_calls.append((place, name))
    last = max((place for place, message in enumerate(messages) if _ends_waiting(message)), default=-1)
    return [place for place, _ in open_calls if place < last]


def _link(part: dict[str, Any]) -> tuple[str, str]:
    if part["type"] == "tool_call":
        return "call", part["tool_call_id"]
    if part["type"] == "tool_result":
        return "result", part["tool_call_id"]
    if part["type"].startswith("tool-"):
        return ("ended" if part["state"] in ENDED else "goes on"), part["toolCallId"]
    return "", ""


def _ends_waiting(message: dict[str, Any]) -> bool:
    if message["role"] in ("system", "developer") or message["seq"] is None:
        return False
    kinds = {_link(part)[0] or part["type"] for part in message["parts"]}
    return kinds != {"reasoning"} and not kinds & {"call", "result", "ended", "goes on"}


def check_segments(window: dict[str, Any]) -> None:
    """Segments follow each other without a hole from 1 to the newest seq, and say of each live seq that it is live."""
    reached = 0
    live: set[int] = set()
    for segment in window["segments"]:
        assert segment["from_seq"] == reached + 1 <= segment["to_seq"], window["segments"]
        reached = segment["to_seq"]
        if segment["type"] == "live":
            live.update(range(segment["from_seq"], segment["to_seq"] + 1))
    assert reached == window["last_seq"]
    assert live == {message["seq"] for message in window["messages"] if message["seq"] is not None}
