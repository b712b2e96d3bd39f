"""The demo: it runs as it is, and its judges find what they are there to find."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from support.contextstore_process import clean_environment

ROOT = Path(__file__).resolve().parents[2]
Message = dict[str, Any]


@pytest.fixture(scope="module")
def demo() -> ModuleType:
    spec = importlib.util.spec_from_file_location("contextstore_demo", ROOT / "bench" / "demo.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def message(role: str, *parts: Message, tokens: int = 10) -> Message:
    return {"role": role, "parts": list(parts), "token_count": tokens}


def text(said: str) -> Message:
    return {"type": "text", "text": said}


def tool_call(call_id: str) -> Message:
    return {"type": "tool_call", "tool_call_id": call_id, "name": "find", "input": {}}


def tool_result(call_id: str) -> Message:
    return {"type": "tool_result", "tool_call_id": call_id, "output": "here"}


SYSTEM = message("system", text("Be brief."))
CALL, RESULT = message("assistant", tool_call("a")), message("tool", tool_result("a"))


def test_w1_a_window_over_its_budget_is_found_unless_it_says_so(demo: ModuleType) -> None:
    """W1."""
    seen = [demo.Seen([SYSTEM, CALL, RESULT]), demo.Seen([SYSTEM, CALL, RESULT], True), demo.Seen([SYSTEM])]
    tally = demo.judged(seen, 25, has_system=True, where="here")
    assert (tally.windows, tally.over_budget, tally.flagged) == (3, 1, 1)
    assert "30 tokens in a budget of 25" in tally.problems[0]


@pytest.mark.parametrize(
    ("messages", "split"),
    [
        ([CALL, RESULT], False),
        ([RESULT], True),
        ([CALL], True),
        ([RESULT, CALL], True),
        ([CALL, RESULT, CALL, RESULT], False),
        ([CALL, RESULT, RESULT], True),
        ([CALL, CALL, RESULT], True),
        ([SYSTEM], False),
    ],
)
def test_w2_a_call_without_its_result_is_found(demo: ModuleType, messages: list[Message], split: bool) -> None:
    """W2."""
    assert demo.judged([demo.Seen(messages)], 1000, has_system=False, where="here").split == split


def test_w3_a_lost_system_message_is_found(demo: ModuleType) -> None:
    """W3."""
    seen = [demo.Seen([SYSTEM, CALL, RESULT]), demo.Seen([CALL, RESULT])]
    assert demo.judged(seen, 1000, has_system=True, where="here").lost_system == 1
    assert demo.judged(seen, 1000, has_system=False, where="here").lost_system == 0


def test_the_cache_share_is_the_common_prefix_over_the_window_before(demo: ModuleType) -> None:
    first = [message("user", text("a"), tokens=30), message("user", text("b"), tokens=10)]
    second = [first[0], message("user", text("c"), tokens=50)]
    tally = demo.judged([demo.Seen(first), demo.Seen(second)], 100, has_system=False, where="here")
    assert tally.mean_cached == 0.75
    assert tally.mean_used == pytest.approx(0.6)


def test_the_naive_ways_do_what_their_names_say(demo: ModuleType) -> None:
    history = [message("user", text(str(number))) for number in range(30)]
    assert demo.keep_last(history, 20).messages == history[10:]
    assert demo.cut_oldest(history, 45).messages == history[26:]
    assert demo.cut_oldest(history, 5).messages == []


def test_the_demo_runs_and_our_windows_keep_their_promises_on_the_sample() -> None:
    """W1, W2, W3 over HTTP; the same command fails if they do not hold."""
    command = [sys.executable, str(ROOT / "bench" / "demo.py"), "--data", str(ROOT / "bench" / "sample_conversations.jsonl"), "--budgets"]
    result = subprocess.run([*command, "300", "900"], capture_output=True, text=True, env=clean_environment(), timeout=240, check=False)
    assert result.returncode == 0, result.stderr
    rows = [line.split("|") for line in result.stdout.splitlines() if line.count("|") == 8][1:]
    ours = [row for row in rows if row[1].strip() == "Context Store"]
    assert len(ours) == 2
    for row in ours:
        assert int(row[2]) == 48
        assert [int(cell) for cell in row[3:6]] == [0, 0, 0]
    naive = [row for row in rows if row[1].strip() != "Context Store"]
    assert any(int(row[4]) or int(row[5]) for row in naive), "the sample shows what goes wrong without a store"
