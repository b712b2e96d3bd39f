"""Short words for messages and commands in the tests of windows.

A part is a tuple: `("text", 5)`, `("reasoning", 5)`, `("call", "a", 5)`, `("result", "a", 5)`, `("failed", "a", 5)` (a result that
reports an error), `("ui", "a", "input-available", 5)`, `("opaque", 5)`; the last member is its cost in tokens. A message is a
role and parts; the 4 tokens of a message's own come on top.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from context_node.contexts.commands import Draft, Rules, draft
from context_node.contexts.requests import NewMessage

RULES = Rules()

Part = tuple[Any, ...]


@dataclass(frozen=True)
class Message:
    """A message as a test says it."""

    role: str
    parts: tuple[Part, ...]
    id: str | None = None
    pinned: bool = False
    token_count: int | None = None

    @property
    def tokens(self) -> int:
        if self.token_count is not None:
            return self.token_count
        return 4 + sum(int(part[-1]) for part in self.parts)


def part_json(part: Part) -> dict[str, Any]:
    """The JSON object of a part; results are long, so that a placeholder is shorter where its cost says so."""
    kind = part[0]
    if kind in ("text", "reasoning"):
        return {"type": kind, "text": kind}
    if kind == "call":
        return {"type": "tool_call", "tool_call_id": part[1], "name": f"tool_{part[1]}", "input": {}}
    if kind == "result":
        return {"type": "tool_result", "tool_call_id": part[1], "output": "found"}
    if kind == "failed":
        return {"type": "tool_result", "tool_call_id": part[1], "output": "no", "is_error": True}
    if kind == "ui":
        ended = {"output": "found"} if part[2] == "output-available" else {}
        return {"type": "tool-search", "toolCallId": part[1], "state": part[2], **ended}
    return {"type": "data-opaque", "value": 1}


def draft_of(message: Message) -> Draft:
    """The draft that the leader would make of a message. A client's count goes to the first part."""
    counts = [part[-1] for part in message.parts]
    if message.token_count is not None:
        counts = [message.token_count] + [0] * (len(counts) - 1)
    outputs = {place: part[-1] - 1 for place, part in enumerate(message.parts) if part[0] == "ui" and part[-1] > 0}
    new = NewMessage(
        message.role,
        [part_json(part) for part in message.parts],
        token_count=message.token_count,
        id=message.id,
        pinned=message.pinned,
    )
    return draft(new, counts, {**dict.fromkeys(range(len(counts)), 0), **outputs})


def drafts_of(messages: Sequence[Message]) -> tuple[Draft, ...]:
    return tuple(draft_of(message) for message in messages)


def system(tokens: int = 6, **more: Any) -> Message:
    return Message("system", (("text", tokens - 4),), **more)


def user(tokens: int = 10, **more: Any) -> Message:
    return Message("user", (("text", tokens - 4),), **more)


def assistant(tokens: int = 10, **more: Any) -> Message:
    return Message("assistant", (("text", tokens - 4),), **more)


def call(*ids: str, tokens: int = 6, **more: Any) -> Message:
    return Message("assistant", tuple(("call", each, tokens) for each in ids), **more)


def result(*ids: str, tokens: int = 6, **more: Any) -> Message:
    return Message("tool", tuple(("result", each, tokens) for each in ids), **more)


def reasoning(tokens: int = 10, **more: Any) -> Message:
    return Message("assistant", (("reasoning", tokens - 4),), **more)
