"""What each built-in strategy does to a window, and that nonsense is refused before it can reach the log (S1)."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from context_node.contexts.items import PLACEHOLDER_TEXT, PLACEHOLDER_TOKENS
from context_node.contexts.refusals import InvalidPolicy
from context_node.contexts.strategies import STRATEGY_NAMES, parse_strategy
from support.stored_shard import StoredShard
from support.window_messages import Message, assistant, call, reasoning, result, system, user


@pytest.fixture
def shard() -> StoredShard:
    return StoredShard()


def fill(shard: StoredShard, *messages: Message, **config: Any) -> StoredShard:
    shard.put(**config)
    for message in messages:
        shard.append(message)
    return shard


def types(shard: StoredShard) -> list[list[str]]:
    return [[part["type"] for part in message["parts"]] for message in shard.window()["messages"]]


class TestLastN:
    def test_above_its_limit_it_cuts_to_the_limits_share_and_not_by_one(self, shard: StoredShard) -> None:
        fill(shard, *[user(5) for _ in range(8)], strategy="last_n", config=b'{"limit":7}')
        # Seven, and the last user message does not count.
        assert len(shard.seqs()) == 8
        shard.append(user(5))
        assert shard.seqs() == [4, 5, 6, 7, 8, 9]

    def test_head_and_last_user_message_do_not_count(self, shard: StoredShard) -> None:
        fill(shard, system(), user(5, pinned=True), user(5), *[assistant(5) for _ in range(3)], strategy="last_n", config=b'{"limit":3}')
        assert shard.seqs() == [1, 2, 3, 4, 5, 6]
        shard.append(assistant(5))
        assert shard.seqs() == [1, 2, 3, 6, 7]

    def test_a_limit_of_one_keeps_one(self, shard: StoredShard) -> None:
        fill(shard, user(5), assistant(5), assistant(5), strategy="last_n", config=b'{"limit":1}')
        assert shard.seqs() == [1, 3]


class TestSkipParts:
    CONFIG = b'{"kinds":["tool","reasoning"]}'

    def test_a_message_that_keeps_a_part_stays_and_one_without_is_gone(self, shard: StoredShard) -> None:
        asked = Message("assistant", (("text", 6), ("call", "a", 10)))
        fill(shard, user(10), asked, result("a", tokens=40), user(10), token_budget=1_000, strategy="skip_parts", config=self.CONFIG)
        shard.put(token_budget=100)
        assert shard.seqs() == [1, 2, 4] and types(shard)[1] == ["text"]
        assert shard.window()["used_tokens"] == 10 + 10 + 10

    def test_w2_calls_and_results_go_in_pairs_or_not_at_all(self, shard: StoredShard) -> None:
        fill(
            shard,
            user(10),
            call("a"),
            result("a", tokens=40),
            user(10),
            token_budget=1_000,
            strategy="skip_parts",
            config=b'{"kinds":["tool_result"]}',
        )
        shard.put(token_budget=90)
        # Only the result's type matches, so the pair stays whole, and leaves whole when eviction comes.
        assert shard.seqs() == [4]

    def test_reasoning_goes_only_from_finished_turns(self, shard: StoredShard) -> None:
        fill(
            shard,
            user(10),
            Message("assistant", (("reasoning", 30), ("text", 6))),
            user(10),
            Message("assistant", (("reasoning", 30), ("text", 6))),
            assistant(10),
            token_budget=1_000,
            strategy="skip_parts",
            config=self.CONFIG,
        )
        shard.put(token_budget=150, target_ratio=0.69)
        assert types(shard) == [["text"], ["text"], ["text"], ["reasoning", "text"], ["text"]]

    def test_a_marker_goes_with_its_call(self, shard: StoredShard) -> None:
        fill(shard, user(10), call("a"), user(10), assistant(10), token_budget=1_000, strategy="skip_parts", config=self.CONFIG)
        shard.put(token_budget=100)
        assert shard.seqs() == [1, 3, 4]

    def test_the_floor_and_pinned_units_stay_whole(self, shard: StoredShard) -> None:
        fill(
            shard,
            user(10),
            call("p"),
            result("p", tokens=20, pinned=True),
            user(10),
            call("n"),
            result("n", tokens=60),
            token_budget=1_000,
            strategy="skip_parts",
            config=self.CONFIG,
        )
        shard.put(token_budget=120)
        assert {2, 3, 5, 6} <= set(shard.seqs())

    def test_keep_last_counts_messages_and_rounds_out_to_units(self, shard: StoredShard) -> None:
        messages = [user(10), call("a"), result("a", tokens=20), call("b"), result("b", tokens=20), assistant(10)]
        fill(shard, *messages, user(10), token_budget=1_000, strategy="skip_parts", config=b'{"skip_kinds":["tool"],"keep_last":3}')
        shard.put(token_budget=130, target_ratio=0.6)
        assert shard.seqs() == [1, 4, 5, 6, 7]

    def test_its_limit_is_a_trigger_of_its_own(self, shard: StoredShard) -> None:
        fill(
            shard, *[user(5) for _ in range(4)], reasoning(10), user(5), strategy="skip_parts", config=b'{"kinds":["reasoning"],"limit":4}'
        )
        assert len(shard.seqs()) <= 5 and 5 not in shard.seqs()


class TestClearToolResults:
    def messages(self) -> list[Message]:
        pairs = [message for name in "abcde" for message in (call(name), result(name, tokens=200))]
        return [user(10), *pairs, assistant(10), user(10)]

    def cleared(self, shard: StoredShard) -> list[int]:
        return [
            message["seq"]
            for message in shard.window()["messages"]
            if any(part.get("output") == PLACEHOLDER_TEXT for part in message["parts"])
        ]

    def test_old_results_become_placeholders_and_the_newest_stay(self, shard: StoredShard) -> None:
        fill(shard, *self.messages(), token_budget=10_000, strategy="clear_tool_results")
        shard.put(token_budget=1_500, target_ratio=0.6)
        assert self.cleared(shard) == [3, 5]
        assert shard.window()["messages"][2]["token_count"] == 4 + PLACEHOLDER_TOKENS
        assert len(shard.seqs()) == 13

    def test_excluded_tools_errors_and_pinned_units_stay(self, shard: StoredShard) -> None:
        messages = self.messages()
        messages[4] = Message("tool", (("failed", "b", 200),))
        messages[6] = result("c", tokens=200, pinned=True)
        config = b'{"keep_last":0,"exclude_tools":["tool_a"]}'
        fill(shard, *messages, token_budget=10_000, strategy="clear_tool_results", config=config)
        shard.put(token_budget=1_450, target_ratio=0.69)
        assert self.cleared(shard) == [9, 11]

    def test_a_result_smaller_than_the_placeholder_stays(self, shard: StoredShard) -> None:
        messages = [user(10), call("a"), result("a", tokens=PLACEHOLDER_TOKENS), assistant(300), user(10)]
        fill(shard, *messages, token_budget=10_000, strategy="clear_tool_results", config=b'{"keep_last":0}')
        shard.put(token_budget=500)
        assert self.cleared(shard) == []

    def test_a_pass_that_gains_too_little_is_left_out(self, shard: StoredShard) -> None:
        fill(shard, *self.messages(), token_budget=10_000, strategy="clear_tool_results", config=b'{"clear_at_least":257}')
        shard.put(token_budget=1_500, target_ratio=0.6)
        assert self.cleared(shard) == []
        again = StoredShard()
        fill(again, *self.messages(), token_budget=10_000, strategy="clear_tool_results", config=b'{"clear_at_least":256}')
        again.put(token_budget=1_500, target_ratio=0.6)
        assert self.cleared(again) == [3, 5]

    def test_a_ui_part_loses_its_output_and_keeps_its_call(self, shard: StoredShard) -> None:
        part = Message("assistant", (("ui", "a", "output-available", 300),))
        fill(shard, user(10), part, assistant(10), user(10), token_budget=10_000, strategy="clear_tool_results", config=b'{"keep_last":0}')
        shard.put(token_budget=400)
        message = shard.window()["messages"][1]
        assert message["parts"][0] == {"type": "tool-search", "toolCallId": "a", "state": "output-available", "output": PLACEHOLDER_TEXT}
        assert message["token_count"] == 4 + 1 + PLACEHOLDER_TOKENS

    def test_w5_what_was_cleared_or_skipped_reads_back_as_it_was(self, shard: StoredShard) -> None:
        config = (
            b'{"strategies":[{"strategy":"clear_tool_results","config":{"keep_last":1}},'
            b'{"strategy":"skip_parts","config":{"kinds":["reasoning","data-"]}}]}'
        )
        thinking = Message("assistant", (("reasoning", 30), ("text", 6), ("opaque", 30)))
        fill(shard, *self.messages()[:-1], thinking, user(10), token_budget=10_000, strategy="pipeline", config=config)
        shard.put(token_budget=1_100, target_ratio=0.56)
        assert self.cleared(shard) == [3, 5, 7, 9] and ["text"] in types(shard)
        before = shard.window_bytes()
        shard.restart()
        assert shard.window_bytes() == before

    def test_history_keeps_what_a_window_cleared(self, shard: StoredShard) -> None:
        fill(shard, *self.messages(), token_budget=10_000, strategy="clear_tool_results")
        shard.put(token_budget=1_500, target_ratio=0.6)
        shard.flush()
        assert PLACEHOLDER_TEXT.encode() not in b"".join(body for body, _ in shard.messages.values())


class TestPipeline:
    CONFIG = (
        b'{"strategies":[{"strategy":"clear_tool_results","config":{"keep_last":0}},'
        b'{"strategy":"skip_parts","config":{"kinds":["reasoning"]}}]}'
    )

    def test_it_stops_as_soon_as_the_target_is_met(self, shard: StoredShard) -> None:
        thinking = Message("assistant", (("reasoning", 30), ("text", 6)))
        messages = [user(10), call("a"), result("a", tokens=300), thinking, user(10)]
        fill(shard, *messages, token_budget=10_000, strategy="pipeline", config=self.CONFIG)
        shard.put(token_budget=450)
        assert types(shard)[3] == ["reasoning", "text"]
        shard.put(token_budget=200, target_ratio=0.6)
        assert types(shard)[3] == ["text"]

    def test_eviction_is_always_last(self, shard: StoredShard) -> None:
        fill(shard, *[user(10) for _ in range(9)], token_budget=10_000, strategy="pipeline", config=self.CONFIG)
        shard.put(token_budget=60)
        assert shard.seqs() == [7, 8, 9]


class TestParsing:
    @pytest.mark.parametrize(
        ("name", "config", "field"),
        [
            ("last_m", {}, "strategy"),
            ("summarize", {}, "strategy"),
            ("last_n", {"limit": 0}, "config.limit"),
            ("last_n", {"limit": -1}, "config.limit"),
            ("last_n", {"limit": 1_000_001}, "config.limit"),
            ("last_n", {"limit": "20"}, "config.limit"),
            ("last_n", {"limit": 1.5}, "config.limit"),
            ("last_n", {"limits": 20}, "config"),
            ("skip_parts", {}, "config.kinds"),
            ("skip_parts", {"kinds": []}, "config.kinds"),
            ("skip_parts", {"kinds": [""]}, "config.kinds"),
            ("skip_parts", {"kinds": "tool"}, "config.kinds"),
            ("skip_parts", {"kinds": ["a"], "skip_kinds": ["a"]}, "config.kinds"),
            ("skip_parts", {"kinds": ["a"], "keep_last": -1}, "config.keep_last"),
            ("clear_tool_results", {"keep_last": -1}, "config.keep_last"),
            ("clear_tool_results", {"clear_at_least": -1}, "config.clear_at_least"),
            ("clear_tool_results", {"exclude_tools": [1]}, "config.exclude_tools[0]"),
            ("clear_tool_results", {"limit": 3}, "config"),
            ("manual", {"limit": 3}, "config"),
            ("pipeline", {}, "config"),
            ("pipeline", {"strategies": []}, "config.strategies"),
            ("pipeline", {"strategies": [{"strategy": "last_n"}] * 17}, "config.strategies"),
            ("pipeline", {"strategies": [{"strategy": "manual"}]}, "config.strategies[0].strategy"),
            ("pipeline", {"strategies": [{"strategy": "pipeline", "config": {"strategies": []}}]}, "config.strategies[0].strategy"),
            ("pipeline", {"strategies": [{"strategy": "last_n", "config": {"limit": 0}}]}, "config.strategies[0].config.limit"),
        ],
    )
    def test_s1_nonsense_is_refused_with_the_path_of_what_is_wrong(self, name: str, config: dict[str, Any], field: str) -> None:
        with pytest.raises(InvalidPolicy) as caught:
            parse_strategy(name, config)
        assert caught.value.details["field"] == field, caught.value.message

    JSON = st.recursive(
        st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
        max_leaves=12,
    )
    FIELDS = st.sampled_from(
        ["limit", "kinds", "skip_kinds", "keep_last", "exclude_tools", "clear_at_least", "strategies", "strategy", "config"]
    )

    @given(
        name=st.sampled_from([*STRATEGY_NAMES, "summarize", "", "x"]),
        config=st.dictionaries(
            FIELDS | st.text(max_size=5), JSON | st.lists(st.dictionaries(FIELDS, JSON, max_size=3), max_size=3), max_size=4
        ),
    )
    def test_s1_parsing_gives_a_strategy_or_says_what_is_wrong(self, name: str, config: dict[str, Any]) -> None:
        try:
            parse_strategy(name, config)
        except InvalidPolicy as refusal:
            assert refusal.message and refusal.details["field"]
