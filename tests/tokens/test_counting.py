"""What text and parts cost (SEMANTICS.md, "Counting tokens")."""

import time

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from context_node.tokens import (
    SLICE_CHARS_MAX,
    THREAD_CHARS_MIN,
    TOKENIZERS,
    UnknownTokenizer,
    count_json,
    count_outputs,
    count_parts,
    count_text,
    distribute,
    needs_thread,
)
from context_node.tokens.encodings import encoding

O200K = "o200k_base"


def whole(name: str, text: str) -> int:
    """tiktoken's own count of the text in one piece."""
    return len(encoding(name).encode_ordinary(text))


def compact(part: object) -> str:
    return msgspec.json.encode(part).decode()


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(deadline=None)
@given(text=st.text(max_size=200))
def test_short_text_costs_what_tiktoken_says(name: str, text: str) -> None:
    assert count_text(name, text) == whole(name, text)


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=60, deadline=None)
@given(words=st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12), min_size=1, max_size=40))
@example(words=["it's", "naïve", "e\u0301té", "12345", "\n\n", "x\t", "日本語。", "don't", "a_b", '{"k":', "…", " "])
@example(words=["x", "'s"])
def test_long_text_with_words_costs_exactly_what_tiktoken_says(name: str, words: list[str]) -> None:
    text = " plain words stand between. ".join([*words, ""])
    text *= 1 + 3 * SLICE_CHARS_MAX // len(text)
    assert count_text(name, text) == whole(name, text)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_long_compact_json_costs_exactly_what_tiktoken_says(name: str) -> None:
    text = compact([{"id": place, "name": f"flight{place}", "ok": place % 3 == 0} for place in range(2000)])
    assert len(text) > 5 * SLICE_CHARS_MAX
    assert count_text(name, text) == whole(name, text)


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("piece", ["a", " ", "\n", "\t ", "!", "7", "\u00a0", "\u3000", "😀", "漢", "\u0301"])
def test_s1_hostile_text_neither_fails_nor_stalls(name: str, piece: str) -> None:
    """S1: tiktoken alone panics at a million blanks in a row, and slows down where it finds no word's end."""
    text = (piece * 2**20)[: 2**20] + "x"
    start = time.process_time()
    tokens = count_text(name, text)
    assert 0 < tokens <= len(text.encode())
    assert time.process_time() - start < 5.0


def test_a_cut_inside_a_run_costs_at_most_a_few_tokens_a_slice() -> None:
    text = "ab" * 100_000
    slices = len(text) // SLICE_CHARS_MAX + 1
    assert abs(count_text(O200K, text) - whole(O200K, text)) <= 2 * slices


def test_special_tokens_in_text_are_ordinary_characters() -> None:
    assert count_text(O200K, "<|endoftext|>") > 1


def test_lone_surrogates_are_counted_not_refused() -> None:
    assert count_text(O200K, "a\ud800b") == count_text(O200K, "a\ufffdb")
    part = {"type": "data-x", "v\udc00": ["\ud800"], "n": 1}
    assert count_parts(O200K, [part]) == [count_text(O200K, compact({"type": "data-x", "v\ufffd": ["\ufffd"], "n": 1}))]


def test_the_empty_text_costs_nothing() -> None:
    assert count_text(O200K, "") == 0
    assert count_parts(O200K, []) == []


def test_an_unknown_tokenizer_is_refused() -> None:
    for count in (lambda: count_text("p50k", "x"), lambda: count_parts("p50k", [{"type": "text", "text": "x"}])):
        with pytest.raises(UnknownTokenizer):
            count()


@pytest.mark.parametrize(
    "part",
    [
        {"type": "text", "text": "Where is my bag?", "providerOptions": {"x": 1}},
        {"type": "reasoning", "text": "Where is my bag?", "signature": "c2ln" * 50},
        {"type": "thinking", "thinking": "Where is my bag?", "signature": "c2ln" * 50},
    ],
    ids=["text", "reasoning", "thinking"],
)
def test_text_and_reasoning_cost_their_text(part: dict[str, object]) -> None:
    assert count_parts(O200K, [part]) == [count_text(O200K, "Where is my bag?")]


@pytest.mark.parametrize(
    "part",
    [
        {"type": "tool_call", "tool_call_id": "c1", "name": "find", "input": {"q": "bag", "n": 3}},
        {"type": "tool_result", "tool_call_id": "c1", "output": {"found": [1.5, None, True]}},
        {"type": "tool-find", "toolCallId": "c1", "state": "output-available", "output": "in Boston"},
        {"type": "redacted_thinking", "data": "c2VjcmV0"},
        {"type": "reasoning", "summary": []},
        {"type": "data-weather", "data": {"big": 2**62}},
        {"type": "step-start"},
        {"type": "text", "text": None},
    ],
    ids=lambda part: str(part["type"]),
)
def test_calls_results_and_opaque_parts_cost_their_compact_json(part: dict[str, object]) -> None:
    assert count_parts(O200K, [part]) == [count_text(O200K, compact(part))]


def test_each_part_is_counted_by_itself_in_order() -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "step-start"}, {"type": "text", "text": "two and three"}]
    assert count_parts(O200K, parts) == [count_parts(O200K, [part])[0] for part in parts]


def test_the_output_of_a_call_and_result_in_one_is_counted_alone() -> None:
    output = {"bags": ["red", "blue"]}
    parts = [
        {"type": "text", "text": "hi"},
        {"type": "tool-find", "toolCallId": "c", "state": "output-available", "input": {}, "output": output},
        {"type": "dynamic-tool", "toolCallId": "d", "toolName": "f", "state": "output-error", "errorText": "no such"},
        {"type": "tool-find", "toolCallId": "e", "state": "input-available", "input": {}},
        {"type": "tool-result", "toolCallId": "c", "output": output},
    ]
    assert count_outputs(O200K, parts) == {1: count_json(O200K, output), 2: count_json(O200K, "no such")}


def test_only_long_parts_need_a_thread() -> None:
    assert not needs_thread([{"type": "text", "text": "x" * 1000}])
    assert needs_thread([{"type": "text", "text": "x" * (THREAD_CHARS_MIN + 1)}])
    assert needs_thread([{"type": "text", "text": "x" * (THREAD_CHARS_MIN // 2)}] * 3)
    assert needs_thread([{"type": "tool_result", "output": {"rows": [["y" * 100] * 20] * 40}}])
    assert needs_thread([{"type": "tool_result", "output": list(range(THREAD_CHARS_MIN))}])


@given(total=st.integers(0, 10_000_000), weights=st.lists(st.integers(0, 1_000_000), min_size=1, max_size=256))
def test_distributed_shares_add_up_and_are_in_proportion(total: int, weights: list[int]) -> None:
    shares = distribute(total, weights)
    assert sum(shares) == total
    whole_weight = sum(weights)
    for share, weight in zip(shares, weights, strict=True):
        exact = total * weight / whole_weight if whole_weight else total / len(weights)
        assert exact - 1 < share < exact + 1


def test_distribution_is_by_largest_remainder_and_earlier_first() -> None:
    assert distribute(10, [1, 1, 1]) == [4, 3, 3]
    assert distribute(100, [33, 33, 34]) == [33, 33, 34]
    assert distribute(7, [0, 3, 1]) == [0, 5, 2]
    assert distribute(5, [0, 0]) == [3, 2]
    assert distribute(0, [4, 5]) == [0, 0]
    assert distribute(9, []) == []
    with pytest.raises(ValueError, match="negative"):
        distribute(-1, [1])
