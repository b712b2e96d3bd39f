"""What the window rules do to real conversations: rewrites, prompt-cache share, questions lost, windows over budget.

Run: python bench/window_figures.py DATA [--strategy NAME --config JSON], where DATA holds conversations as JSON Lines, plain or
gzip: {"id", "messages"} with OpenAI chat messages. Messages are appended one by one to the pure state machine; a model call is
taken to come before every assistant message, and sees the window of that moment.
"""

import argparse
import gzip
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from context_node import tokens
from context_node.contexts.commands import AppendMessages, Defaults, Draft, PolicySpec, PutConfig, Rules, draft
from context_node.contexts.items import LIVE, Item
from context_node.contexts.machine import Machine
from context_node.contexts.requests import NewMessage

BUDGETS = (2_000, 4_000, 8_000)
RULES = Rules()
TOKENIZER = "o200k_base"


@dataclass(slots=True)
class Figures:
    """Sums over all conversations of one budget."""

    appends: int = 0
    rewrites: int = 0
    calls: int = 0
    questions_missing: int = 0
    followers: int = 0
    prefix_shares: float = 0.0
    flagged: int = 0
    over_unflagged: int = 0
    used_shares: float = 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--strategy", default="last_n")
    parser.add_argument("--config", default="{}")
    parser.add_argument("--budget", type=int, action="append", help="tokens; may be given again (default: 2000, 4000, 8000)")
    arguments = parser.parse_args()
    conversations = [[drafted(message) for message in messages] for messages in read(arguments.data)]
    policy = PolicySpec(arguments.strategy, arguments.config.encode())
    print(f"{len(conversations)} conversations, {sum(map(len, conversations))} messages, {arguments.strategy} {arguments.config}")
    print("budget  rewrites/100  common prefix  question missing  flagged  over unflagged  used")
    for budget in arguments.budget or BUDGETS:
        figures = Figures()
        for drafts in conversations:
            replay(drafts, budget, policy, figures)
        print(
            f"{budget:6,}  {100 * figures.rewrites / figures.appends:12.1f}  {figures.prefix_shares / figures.followers:13.3f}"
            f"  {100 * figures.questions_missing / figures.calls:15.1f}%  {figures.flagged:7}  {figures.over_unflagged:14}"
            f"  {100 * figures.used_shares / figures.calls:3.0f}%"
        )


def read(path: Path) -> list[list[dict[str, Any]]]:
    text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return [json.loads(line)["messages"] for line in text.splitlines() if line.strip()]


def drafted(message: dict[str, Any]) -> Draft:
    """An OpenAI chat message in canonical parts, counted as the node counts it."""
    parts: list[dict[str, Any]] = []
    content = message.get("content")
    if message["role"] == "tool":
        parts.append({"type": "tool_result", "tool_call_id": message["tool_call_id"], "output": content})
    elif content:
        parts.append({"type": "text", "text": content})
    for call in message.get("tool_calls") or ():
        asked = json.loads(call["function"]["arguments"])
        parts.append({"type": "tool_call", "tool_call_id": call["id"], "name": call["function"]["name"], "input": asked})
    new = NewMessage(message["role"], parts or [{"type": "text", "text": ""}])
    return draft(new, tokens.count_parts(TOKENIZER, new.parts))


def replay(drafts: Sequence[Draft], budget: int, policy: PolicySpec, figures: Figures) -> None:
    machine = Machine()
    machine.apply(1, PutConfig("c", 1, RULES, Defaults(token_budget=budget), policy=policy))
    window = machine.contexts["c"].window
    before: list[Item] = []
    for place, each in enumerate(drafts):
        window = machine.contexts["c"].window
        if each.role == "assistant" and place > 0:
            judge(window.items, before, budget, figures, drafts[:place])
            before = list(window.items)
        _reply, event = machine.apply(place + 2, AppendMessages("c", 1, RULES, (each,)))
        assert event is not None
        figures.appends += 1
        figures.rewrites += event.compacted
        figures.flagged += event.over_budget
        used = sum(item.tokens for item in machine.contexts["c"].window.items)
        figures.over_unflagged += used > budget and not event.over_budget


def judge(items: Sequence[Item], before: Sequence[Item], budget: int, figures: Figures, history: Sequence[Draft]) -> None:
    """One model call: what it sees, beside what the call before saw."""
    figures.calls += 1
    figures.used_shares += sum(item.tokens for item in items) / budget
    asked = max((seq for seq, each in enumerate(history, 1) if each.role == "user"), default=None)
    if asked is not None and not any(item.kind == LIVE and item.seq == asked for item in items):
        figures.questions_missing += 1
    if before:
        common = 0
        for old, new in zip(before, items, strict=False):
            if old.body != new.body:
                break
            common += old.tokens
        figures.followers += 1
        figures.prefix_shares += common / sum(item.tokens for item in before)


if __name__ == "__main__":
    main()
