"""What never leaves a window has limits of its own (S1, S2): one client must not make a context dear for all."""

from typing import Any

import pytest

from context_node.contexts import compaction
from context_node.contexts.commands import AppendMessages, Defaults, Rules, draft
from context_node.contexts.compaction import WINDOW_BYTES_MAX, Plan, Strategy
from context_node.contexts.fitting import STUCK_MAX, fit
from context_node.contexts.floor_limits import WAITING_CALLS_MAX
from context_node.contexts.machine import Machine
from context_node.contexts.replies import Appended, Refused, Reply
from context_node.contexts.requests import NewMessage

RULES = Rules()


def append(machine: Machine, index: int, *messages: NewMessage, rules: Rules = RULES) -> Reply:
    drafts = tuple(draft(message, [1] * len(message.parts)) for message in messages)
    return machine.apply(index, AppendMessages("a", index, rules, drafts, len(drafts) > 1, create=Defaults(token_budget=10_000_000)))[0]


def calls(first: int, count: int) -> NewMessage:
    return NewMessage(
        "assistant", [{"type": "tool_call", "tool_call_id": f"c{first + at}", "name": "f", "input": {}} for at in range(count)]
    )


def results(first: int, count: int) -> NewMessage:
    return NewMessage("tool", [{"type": "tool_result", "tool_call_id": f"c{first + at}", "output": "x"} for at in range(count)])


def text(role: str, words: str, **more: Any) -> NewMessage:
    return NewMessage(role, [{"type": "text", "text": words}], **more)


def test_s1_calls_beyond_the_limit_are_refused_until_results_come() -> None:
    machine = Machine()
    for at in range(4):
        assert isinstance(append(machine, at + 1, calls(at * 250, 250)), Appended)
    refused = append(machine, 5, calls(1_000, 1))
    assert isinstance(refused, Refused) and refused.code == "unprocessable" and refused.details == {"waiting": WAITING_CALLS_MAX}
    assert isinstance(append(machine, 6, results(0, 250)), Appended)
    assert isinstance(append(machine, 7, calls(1_000, 1)), Appended)


def test_s1_one_batch_cannot_bring_more_calls_than_may_wait() -> None:
    machine = Machine()
    assert isinstance(append(machine, 1, *(calls(at * 250, 250) for at in range(5))), Refused)
    assert not machine.contexts, "a refused append creates nothing"
    answered = [each for at in range(5) for each in (calls(at * 250, 250), results(at * 250, 250))]
    assert isinstance(append(machine, 2, *answered), Appended), "answered in the same batch, they do not wait"


def test_s1_system_messages_beyond_what_a_window_may_hold_are_refused() -> None:
    machine, rules = Machine(), Rules(window_items_max=1_200)
    assert isinstance(append(machine, 1, *[text("system", "x")] * 1_000, rules=rules), Appended)
    assert isinstance(append(machine, 2, *[text("system", "x")] * 300, rules=rules), Refused)
    assert isinstance(append(machine, 3, text("user", "still open"), rules=rules), Appended)


def test_w1_bytes_bound_a_window_whose_messages_say_that_they_cost_nothing() -> None:
    """A client's own token_count may be 0; its text still takes memory and time."""
    machine = Machine()
    for at in range(80):
        append(machine, at + 1, text("user" if at % 2 == 0 else "assistant", "x" * 900_000, token_count=0))
    window = machine.contexts["a"].window
    assert window.size_bytes <= WINDOW_BYTES_MAX
    assert window.size_bytes == sum(len(item.body) for item in window.items)
    assert window.items[-1].seq == 80


def test_s2_a_tiny_budget_over_thousands_of_items_looks_at_the_whole_window_a_few_times_only(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine()
    for at in range(3):
        append(machine, at + 1, *[text("system", "x")] * 700, *[text("user", "y")] * 300)
    looks: list[int] = []
    evict = compaction._evict_messages
    monkeypatch.setattr(compaction, "_evict_messages", lambda window, plan: looks.append(len(window.items)) or evict(window, plan))
    items = machine.contexts["a"].window.items
    fitted = fit(items, Plan(1, 0.7, 0.5, Strategy(), 10_000))
    assert [item.role for item in fitted.items].count("system") == 2_100
    assert len(fitted.items) == 2_101, "head and the newest unit: the floor"
    assert 1 <= len(looks) <= 4 * STUCK_MAX
