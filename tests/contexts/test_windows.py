"""What stands in a window, rule by rule (SEMANTICS.md "Windows")."""

from typing import Any

import pytest

from context_node.contexts.commands import Rules
from context_node.contexts.replies import Appended
from support.stored_shard import StoredShard
from support.window_messages import Message, assistant, call, reasoning, result, system, user

MARK = None
"""How a marker shows among the seqs of a window."""


@pytest.fixture
def shard() -> StoredShard:
    return StoredShard()


def fill(shard: StoredShard, *messages: Message, **config: Any) -> StoredShard:
    shard.put(**config)
    for message in messages:
        shard.append(message)
    return shard


def ui(call_id: str, state: str, tokens: int = 6) -> Message:
    return Message("assistant", (("ui", call_id, state, tokens),))


class TestPairs:
    def test_a_result_pairs_with_the_latest_call_of_its_id_that_has_none(self, shard: StoredShard) -> None:
        fill(shard, user(), call("a"), call("a"), result("a"), user(), token_budget=1_000)
        # The second call has the result, so the first gets the marker, directly before the user's message.
        assert shard.seqs() == [1, 2, 3, 4, MARK, 5]
        assert shard.window()["messages"][4]["parts"][0]["tool_call_id"] == "a"

    def test_w2_a_call_waits_through_results_calls_reasoning_and_system_messages(self, shard: StoredShard) -> None:
        fill(shard, user(), call("a"), call("b"), result("b"), reasoning(), system())
        assert shard.seqs() == [1, 2, 3, 4, 5, 6]
        shard.append(result("a"))
        shard.append(user())
        assert shard.seqs() == [1, 2, 3, 4, 5, 6, 7, 8]

    def test_w2_a_call_without_a_result_gets_a_marker_before_what_ends_its_waiting(self, shard: StoredShard) -> None:
        fill(shard, user(), call("a", "b"), user())
        window = shard.window()["messages"]
        assert [message["seq"] for message in window] == [1, 2, MARK, MARK, 3]
        assert [message["parts"][0]["tool_call_id"] for message in window[2:4]] == ["a", "b"]

    def test_a_late_result_takes_its_markers_place_and_is_a_rewrite(self, shard: StoredShard) -> None:
        fill(shard, user(), call("a"), user())
        _, event = shard.append(result("a"))
        assert event is not None and event.compacted
        assert shard.seqs() == [1, 2, 4, 3]
        assert shard.window()["stable_through_seq"] == 4

    def test_late_results_of_one_message_each_go_to_their_own_place(self, shard: StoredShard) -> None:
        fill(shard, call("a"), user(), call("b"), user())
        shard.append(Message("user", (("result", "a", 5), ("result", "b", 5), ("text", 5))))
        assert shard.seqs() == [1, 5, 2, 3, 5, 4, 5]
        assert [len(message["parts"]) for message in shard.window()["messages"] if message["seq"] == 5] == [1, 1, 1]

    def test_a_result_whose_call_is_not_in_the_window_goes_to_history_only(self, shard: StoredShard) -> None:
        fill(shard, user())
        reply, _ = shard.append(result("a"))
        assert isinstance(reply, Appended) and reply.last_seq == 2
        assert shard.seqs() == [1]
        assert shard.window()["segments"] == [
            {"type": "live", "from_seq": 1, "to_seq": 1},
            {"type": "gap", "from_seq": 2, "to_seq": 2},
        ]

    def test_only_the_orphaned_part_of_a_message_is_left_out(self, shard: StoredShard) -> None:
        fill(shard, user(), Message("user", (("result", "a", 5), ("text", 7))))
        message = shard.window()["messages"][1]
        assert [part["type"] for part in message["parts"]] == ["text"]
        assert message["token_count"] == 4 + 7

    def test_a_result_may_stand_in_the_message_of_its_call(self, shard: StoredShard) -> None:
        fill(shard, user(), Message("assistant", (("call", "a", 5), ("result", "a", 5), ("text", 5))), user())
        assert shard.seqs() == [1, 2, 3]

    def test_a_ui_part_goes_on_with_a_call_and_an_ended_one_answers_it(self, shard: StoredShard) -> None:
        fill(shard, user(), ui("a", "input-streaming"), ui("a", "input-available"), user(), token_budget=1_000)
        assert shard.seqs() == [1, 2, 3, MARK, 4]
        shard.append(ui("a", "output-available"))
        assert shard.seqs() == [1, 2, 3, 5, 4]

    @pytest.mark.parametrize("state", ["output-available", "output-error", "output-denied"])
    def test_a_ui_part_that_has_ended_answers_itself(self, shard: StoredShard, state: str) -> None:
        fill(shard, user(), ui("a", state), user())
        assert shard.seqs() == [1, 2, 3]

    def test_a_ui_part_that_goes_on_does_not_take_a_markers_place(self, shard: StoredShard) -> None:
        fill(shard, ui("a", "input-available"), user())
        shard.append(ui("a", "input-available"))
        assert shard.seqs() == [1, MARK, 2, 3]


class TestUnits:
    def test_w2_reasoning_alone_goes_with_the_next_message_of_its_role(self, shard: StoredShard) -> None:
        fill(shard, user(), reasoning(), assistant(), user(), assistant())
        shard.put(token_budget=30, trigger_ratio=0.9, target_ratio=0.8)
        assert shard.seqs() == [4, 5]

    def test_w2_a_pair_leaves_together(self, shard: StoredShard) -> None:
        fill(shard, user(10), call("a"), assistant(10), result("a"), assistant(10), token_budget=1_000)
        # All one turn, and its question is floor: the pair goes as one, and the marker of 2 with it.
        shard.put(token_budget=40, trigger_ratio=1.0, target_ratio=0.9)
        assert 2 not in shard.seqs() and 4 not in shard.seqs()

    def test_a_user_message_that_only_carries_results_starts_no_turn(self, shard: StoredShard) -> None:
        fill(shard, user(10), call("a"), Message("user", (("result", "a", 6),)), assistant(10), user(10), token_budget=1_000)
        shard.put(token_budget=45, trigger_ratio=0.9, target_ratio=0.8)
        assert shard.seqs() == [5]

    def test_a_turn_never_starts_inside_a_unit(self, shard: StoredShard) -> None:
        # The reasoning belongs to message 3, so message 2 stands inside their unit and in their turn.
        fill(shard, reasoning(10), user(10), assistant(10), user(10), assistant(10), token_budget=1_000)
        shard.put(token_budget=42, trigger_ratio=0.9, target_ratio=0.75)
        assert shard.seqs() == [4, 5]

    def test_earlier_turns_leave_whole_and_oldest_first(self, shard: StoredShard) -> None:
        fill(shard, user(10), assistant(10), user(10), assistant(10), user(10), assistant(10), token_budget=60)
        # 50 are above 0.7 · 60 and 30 the target: the first turn is enough, and goes whole.
        assert shard.seqs() == [3, 4, 5, 6]

    def test_summaries_leave_after_earlier_turns_and_before_the_last(self, shard: StoredShard) -> None:
        fill(shard, user(10), assistant(10), user(10), assistant(10), user(10), assistant(10), assistant(10), token_budget=1_000)
        shard.rewrite(assistant(10), covers=(3, 4))
        shard.put(token_budget=60, trigger_ratio=0.9, target_ratio=0.7)
        assert shard.seqs() == [None, 5, 6, 7]
        shard.put(token_budget=44)
        assert shard.seqs() == [5, 6, 7]


class TestFloor:
    def test_w3_system_and_pinned_messages_never_leave(self, shard: StoredShard) -> None:
        fill(shard, system(6), user(10, pinned=True), *[assistant(10) for _ in range(20)], token_budget=60)
        assert shard.seqs()[:2] == [1, 2]

    def test_w3_a_pin_holds_its_whole_unit(self, shard: StoredShard) -> None:
        fill(shard, user(10), call("a"), result("a", pinned=True), *[user(10) for _ in range(10)], token_budget=80)
        assert {2, 3} <= set(shard.seqs())
        assert shard.context("c").window.head_tokens == 20  # type: ignore[union-attr]

    def test_w2_a_waiting_call_stays(self, shard: StoredShard) -> None:
        fill(shard, user(10), call("a"), *[result("b") for _ in range(3)], *[system(20) for _ in range(5)], token_budget=100)
        assert 2 in shard.seqs()

    def test_the_last_user_message_stays_where_the_floor_with_it_fits(self, shard: StoredShard) -> None:
        fill(
            shard,
            user(20),
            *[message for n in range(8) for message in (call(f"x{n}", tokens=9), result(f"x{n}", tokens=9))],
            token_budget=90,
        )
        assert shard.seqs()[0] == 1
        shard.append(assistant(80))
        assert shard.seqs() == [18]

    def test_w1_a_message_above_the_budget_is_accepted_and_flagged(self, shard: StoredShard) -> None:
        fill(shard, user(10), assistant(200), token_budget=100)
        window = shard.window()
        assert (window["over_budget"], window["over_budget_reason"]) == (True, "newest_unit")
        assert shard.seqs() == [2]
        assert not window["needs_compaction"]

    @pytest.mark.parametrize(
        ("messages", "reason"),
        [
            ((system(120), user(10)), "head"),
            ((user(10), call("a", tokens=120), result("b")), "waiting_calls"),
            ((user(120),), "newest_unit"),
        ],
    )
    def test_w1_a_window_above_its_budget_says_why(self, shard: StoredShard, messages: tuple[Message, ...], reason: str) -> None:
        fill(shard, *messages, token_budget=100)
        assert shard.window()["over_budget_reason"] == reason

    def test_w1_dropping_to_the_floor_is_told_apart_from_a_compaction(self, shard: StoredShard) -> None:
        fill(shard, user(10), token_budget=100)
        _, event = shard.append(assistant(200))
        assert event is not None and event.compacted and event.over_budget

    def test_room_is_never_below_zero(self, shard: StoredShard) -> None:
        fill(shard, system(150), user(10), assistant(10), token_budget=100)
        assert shard.seqs() == [1, 3]


class TestRatios:
    def test_compaction_starts_above_the_trigger_and_not_at_it(self, shard: StoredShard) -> None:
        fill(shard, *[user(9) for _ in range(7)], token_budget=90)
        # 63 tokens are exactly 0.7 · 90, which floating point makes 62.99.
        assert shard.seqs() == [1, 2, 3, 4, 5, 6, 7]
        shard.append(user(9))
        assert shard.seqs() == [4, 5, 6, 7, 8]

    def test_the_target_is_derived_from_the_trigger_until_it_is_given(self, shard: StoredShard) -> None:
        fill(shard, trigger_ratio=0.35)
        assert shard.context("c").target_ratio() == pytest.approx(0.25)  # type: ignore[union-attr]
        shard.put(trigger_ratio=0.9)
        assert shard.context("c").target_ratio() == 0.5  # type: ignore[union-attr]

    def test_head_tokens_take_room_from_the_body(self, shard: StoredShard) -> None:
        fill(shard, system(50), *[user(10) for _ in range(4)], token_budget=100)
        assert shard.seqs() == [1, 4, 5]

    def test_lowering_the_budget_compacts_in_the_same_command(self, shard: StoredShard) -> None:
        fill(shard, *[user(10) for _ in range(8)], token_budget=1_000)
        version = shard.context("c").head.version  # type: ignore[union-attr]
        shard.put(token_budget=50)
        assert shard.seqs() == [7, 8]
        assert shard.window()["version"] == version + 1

    def test_a_window_holds_no_more_items_than_the_setting_says(self, shard: StoredShard) -> None:
        shard.put()
        for _ in range(15):
            shard.append(user(5), rules=Rules(window_items_max=14))
        assert shard.seqs() == list(range(6, 16))


class TestStability:
    def test_w4_the_prefix_is_the_first_append_until_something_is_rewritten(self, shard: StoredShard) -> None:
        shard.put(token_budget=100)
        shard.append(system(10), user(10))
        before = shard.window()
        assert before["stable_through_seq"] == 2
        shard.append(assistant(10))
        after = shard.window()
        assert (after["stable_through_seq"], after["prefix_hash"]) == (2, before["prefix_hash"])

    def test_w4_a_marker_placed_later_is_not_part_of_the_prefix(self, shard: StoredShard) -> None:
        shard.put(token_budget=1_000)
        shard.append(user(), call("a"))
        before = shard.window()
        shard.append(user())
        after = shard.window()
        assert shard.seqs() == [1, 2, MARK, 3]
        assert after["prefix_hash"] == before["prefix_hash"]

    def test_w4_a_rewrite_moves_the_prefix_to_the_newest_message(self, shard: StoredShard) -> None:
        fill(shard, *[user(10) for _ in range(8)], token_budget=100)
        assert shard.window()["stable_through_seq"] == 8

    def test_an_empty_window_has_a_hash_too(self, shard: StoredShard) -> None:
        shard.put()
        window = shard.window()
        assert (window["messages"], window["stable_through_seq"], len(window["prefix_hash"])) == ([], 0, 64)


class TestFitting:
    def test_a_smaller_budget_for_one_read_changes_nothing_that_is_stored(self, shard: StoredShard) -> None:
        fill(shard, system(10), *[user(10) for _ in range(9)], token_budget=1_000)
        before = shard.window_bytes()
        # As if appended one by one: 42 of the room of 60 are reached at the fifth, and again at the seventh and ninth.
        assert shard.seqs(budget=70) == [1, 8, 9, 10]
        assert shard.window_bytes() == before

    def test_fitting_keeps_markers_with_their_calls(self, shard: StoredShard) -> None:
        fill(shard, user(), call("a"), user(), assistant(), call("b"), user(), token_budget=2_000)
        assert shard.seqs(budget=2_000) == shard.seqs()
        assert shard.seqs(budget=260) == [3, 4, 5, MARK, 6]


class TestForced:
    def test_manual_waits_for_its_user_and_says_so(self, shard: StoredShard) -> None:
        fill(shard, *[user(10) for _ in range(9)], strategy="manual", token_budget=100)
        window = shard.window()
        assert (window["needs_compaction"], "forced" in window, len(window["messages"])) == (True, False, 9)

    def test_w1_manual_evicts_above_the_budget_and_says_forced(self, shard: StoredShard) -> None:
        fill(shard, *[user(10) for _ in range(10)], strategy="manual", token_budget=100)
        reply, event = shard.append(user(10))
        assert isinstance(reply, Appended) and reply.forced
        assert event is not None and event.forced
        assert shard.window()["forced"] and shard.seqs() == [7, 8, 9, 10, 11]
