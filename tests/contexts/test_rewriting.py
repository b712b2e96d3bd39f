"""Rewriting a window by hand, and pins (SEMANTICS.md "Rewriting by hand", "Pins")."""

from typing import Any

import pytest

from context_node.contexts.commands import PatchMetadataCommand, PinMessage, RebuildWindow, Tombstone
from context_node.contexts.replies import Refused, Reply, Rewritten
from support.stored_shard import StoredShard
from support.window_messages import RULES, Message, assistant, call, reasoning, result, system, user


@pytest.fixture
def shard() -> StoredShard:
    """A system prompt, two turns with a tool call each, and a question."""
    shard = StoredShard()
    shard.put(token_budget=1_000)
    conversation = [system(), user(), call("a"), result("a"), assistant(), user(), call("b"), result("b"), assistant(), user()]
    for message in conversation:
        shard.append(message)
    return shard


def refusal(reply: Reply, code: str = "unprocessable") -> dict[str, Any]:
    assert isinstance(reply, Refused) and reply.code == code, reply
    return reply.details


class TestRange:
    def test_w6_a_range_gives_way_and_what_came_later_stays(self, shard: StoredShard) -> None:
        assert shard.rewrite(assistant(7), covers=(2, 5)) == Rewritten(11)
        window = shard.window()
        assert shard.seqs() == [1, None, 6, 7, 8, 9, 10]
        assert window["messages"][1]["covers"] == [2, 5]
        assert window["segments"] == [
            {"type": "live", "from_seq": 1, "to_seq": 1},
            {"type": "summary", "from_seq": 2, "to_seq": 5},
            {"type": "live", "from_seq": 6, "to_seq": 10},
        ]

    def test_head_items_inside_a_range_stay_where_they_are(self, shard: StoredShard) -> None:
        shard.pin(2)
        shard.rewrite(assistant(7), covers=(1, 5))
        assert shard.seqs() == [1, 2, None, 6, 7, 8, 9, 10]
        assert [segment["type"] for segment in shard.window()["segments"]] == ["live", "summary", "live"]

    def test_a_live_message_inside_a_summary_is_told_apart(self, shard: StoredShard) -> None:
        shard.pin(5)
        shard.rewrite(assistant(7), covers=(2, 9))
        assert [(each["type"], each["from_seq"], each["to_seq"]) for each in shard.window()["segments"]] == [
            ("live", 1, 1),
            ("summary", 2, 4),
            ("live", 5, 5),
            ("summary", 6, 9),
            ("live", 10, 10),
        ]

    def test_system_messages_of_a_range_become_user_messages(self, shard: StoredShard) -> None:
        shard.rewrite(system(7), covers=(2, 5))
        context = shard.context("c")
        assert context is not None
        assert shard.window()["messages"][1]["role"] == "user"
        assert context.window.head_tokens == system().tokens

    def test_an_empty_replacement_takes_a_range_away(self, shard: StoredShard) -> None:
        shard.rewrite(covers=(2, 5))
        assert shard.seqs() == [1, 6, 7, 8, 9, 10]

    def test_w1_a_window_is_never_left_empty(self) -> None:
        shard = StoredShard()
        shard.put()
        shard.append(user())
        assert refusal(shard.rewrite(covers=(1, 1)))["field"] == "replacement"

    @pytest.mark.parametrize(
        ("covers", "nearest"),
        [
            ((2, 3), [2, 2]),
            ((4, 5), [5, 5]),
            ((3, 7), [3, 6]),
            ((5, 11), [5, 10]),
            ((0, 2), [1, 2]),
            ((6, 5), [5, 6]),
            ((11, 12), [10, 10]),
        ],
    )
    def test_w2_a_range_that_does_not_work_is_refused_with_the_nearest_that_does(
        self, shard: StoredShard, covers: tuple[int, int], nearest: list[int]
    ) -> None:
        details = refusal(shard.rewrite(assistant(), covers=covers))
        assert (details["field"], details["nearest"]) == ("covers", nearest)
        assert isinstance(shard.rewrite(assistant(), covers=(nearest[0], nearest[1])), Rewritten)

    def test_the_whole_of_a_unit_has_no_smaller_range_and_grows(self, shard: StoredShard) -> None:
        assert refusal(shard.rewrite(assistant(), covers=(3, 3)))["nearest"] == [3, 4]

    def test_a_range_in_an_empty_history_has_none_that_works(self) -> None:
        shard = StoredShard()
        shard.put()
        assert refusal(shard.rewrite(assistant(), covers=(1, 1)))["nearest"] is None

    def test_a_range_may_not_split_an_earlier_summary(self, shard: StoredShard) -> None:
        shard.rewrite(assistant(), covers=(2, 5))
        assert refusal(shard.rewrite(assistant(), covers=(4, 8)))["nearest"] in ([2, 8], [6, 8])
        assert isinstance(shard.rewrite(assistant(), covers=(2, 8)), Rewritten)

    def test_w2_a_range_may_not_hold_a_waiting_call(self, shard: StoredShard) -> None:
        shard.append(call("c"))
        assert refusal(shard.rewrite(assistant(), covers=(9, 11)))["nearest"] == [9, 10]

    def test_evicted_messages_count_as_covered(self, shard: StoredShard) -> None:
        shard.put(token_budget=60)
        assert shard.seqs() == [1, 10]
        assert isinstance(shard.rewrite(assistant(), covers=(2, 5)), Rewritten)
        assert shard.seqs() == [1, None, 10]

    def test_w6_a_range_holds_unless_a_hand_rewrote_it(self, shard: StoredShard) -> None:
        seen = 10
        shard.append(user())
        shard.put(token_budget=90)
        assert isinstance(shard.rewrite(assistant(), covers=(9, 9), if_version=seen), Rewritten)
        assert refusal(shard.rewrite(assistant(), covers=(9, 9), if_version=seen), "version_conflict")["last_seq"] == 11
        shard.pin(10)
        assert refusal(shard.rewrite(assistant(), covers=(10, 11), if_version=seen), "version_conflict")
        assert refusal(shard.rewrite(assistant(), covers=(11, 11), if_version=999), "version_conflict")

    def test_a_replacement_holds_both_ends_of_its_calls(self, shard: StoredShard) -> None:
        assert refusal(shard.rewrite(call("x"), covers=(2, 5)))["field"] == "replacement"
        assert refusal(shard.rewrite(result("x"), covers=(2, 5)))["field"] == "replacement"
        assert refusal(shard.rewrite(call("x"), assistant(), result("x"), covers=(2, 5)))["field"] == "replacement"
        assert isinstance(shard.rewrite(call("x"), result("x"), covers=(2, 5)), Rewritten)

    def test_a_replacement_does_not_answer_calls_outside_of_it(self) -> None:
        shard = StoredShard()
        shard.put()
        for message in (user(), call("a"), call("b"), result("b")):
            shard.append(message)
        ended = Message("assistant", (("ui", "a", "output-available", 5),))
        assert refusal(shard.rewrite(ended, covers=(3, 4)))["field"] == "replacement"

    def test_a_replacement_takes_no_markers_place(self) -> None:
        shard = StoredShard()
        shard.put()
        for message in (user(), call("a"), user(), assistant(), user()):
            shard.append(message)
        ended = Message("assistant", (("ui", "a", "output-available", 5),))
        assert isinstance(shard.rewrite(ended, covers=(4, 4)), Rewritten)
        assert shard.seqs() == [1, 2, None, 3, None, 5]
        shard.append(result("a"))
        assert shard.seqs() == [1, 2, 6, 3, None, 5]

    def test_a_result_above_the_budget_is_refused(self, shard: StoredShard) -> None:
        details = refusal(shard.rewrite(assistant(990), covers=(2, 5)))
        assert details["token_budget"] == 1_000 and details["tokens"] > 1_000

    def test_a_summary_leaves_when_room_is_needed(self, shard: StoredShard) -> None:
        shard.rewrite(assistant(50), covers=(2, 5))
        shard.put(token_budget=60)
        assert shard.seqs() == [1, 10]


class TestWhole:
    def test_it_replaces_all_but_the_head(self, shard: StoredShard) -> None:
        shard.rewrite(user(7), assistant(7))
        assert shard.seqs() == [1, None, None]
        assert shard.window()["messages"][1]["covers"] == [1, 10]

    def test_w6_through_seq_keeps_what_came_after_it(self, shard: StoredShard) -> None:
        shard.rewrite(user(7), through_seq=5)
        assert shard.seqs() == [1, None, 6, 7, 8, 9, 10]

    def test_a_through_seq_that_splits_is_refused_with_one_that_does_not(self, shard: StoredShard) -> None:
        assert refusal(shard.rewrite(user(7), through_seq=3))["nearest"] in (2, 4)
        assert refusal(shard.rewrite(user(7), through_seq=11))["nearest"] == 10

    def test_if_version_is_strict(self, shard: StoredShard) -> None:
        assert refusal(shard.rewrite(user(7), if_version=9), "version_conflict") == {"version": 10, "last_seq": 10}
        assert isinstance(shard.rewrite(user(7), if_version=10), Rewritten)

    def test_system_messages_of_the_replacement_replace_the_old_ones(self, shard: StoredShard) -> None:
        shard.rewrite(system(8), user(7))
        messages = shard.window()["messages"]
        assert [(message["seq"], message["role"]) for message in messages] == [(None, "system"), (None, "user")]
        shard.put(token_budget=20)
        shard.append(user(12))
        assert shard.window()["messages"][0]["role"] == "system", "W3"

    def test_w2_waiting_calls_stay_unless_the_replacement_brings_them(self, shard: StoredShard) -> None:
        shard.append(call("c"))
        shard.rewrite(user(7))
        assert shard.seqs() == [1, None, 11]
        shard.rewrite(user(7), call("c"))
        assert shard.seqs() == [1, None, None]
        shard.append(result("c"))
        shard.append(user())
        assert shard.seqs() == [1, None, None, 12, 13]

    def test_an_empty_replacement_is_allowed_if_a_head_remains(self, shard: StoredShard) -> None:
        assert isinstance(shard.rewrite(), Rewritten)
        assert shard.seqs() == [1]
        bare = StoredShard()
        bare.put()
        bare.append(user())
        refusal(bare.rewrite())

    def test_a_window_can_be_seeded_before_the_first_message(self) -> None:
        shard = StoredShard()
        shard.put()
        shard.rewrite(user(7))
        shard.append(user())
        assert shard.seqs() == [None, 1]
        assert shard.window()["messages"][0]["covers"] == [0, 0]
        assert shard.window()["segments"] == [{"type": "live", "from_seq": 1, "to_seq": 1}]


class TestRebuild:
    def test_evicted_messages_come_back(self, shard: StoredShard) -> None:
        shard.put(token_budget=60)
        shard.put(token_budget=1_000)
        assert shard.seqs() == [1, 10]
        assert shard.rebuild() == Rewritten(12)
        assert shard.seqs() == list(range(1, 11))
        assert shard.window()["stable_through_seq"] == 10

    def test_w6_what_came_after_the_read_stays(self, shard: StoredShard) -> None:
        shard.append(user())
        shard.append(call("w"))
        command = RebuildWindow("c", shard.at_ms, RULES, (), 10)
        assert shard.apply(command)[0] == Rewritten(13)
        assert shard.seqs() == [1, 11, 12]

    def test_w1_it_stays_within_the_budget_and_keeps_pins(self, shard: StoredShard) -> None:
        shard.pin(3)
        shard.put(token_budget=80)
        shard.rebuild()
        window = shard.window()
        assert not window["over_budget"] and {1, 3, 4, 10} <= set(shard.seqs())

    def test_w2_a_waiting_call_outside_the_read_stays(self, shard: StoredShard) -> None:
        shard.append(call("w"))
        shard.apply(RebuildWindow("c", shard.at_ms, RULES, (), 11))
        assert shard.seqs() == [1, 11]


class TestPins:
    def test_a_pin_is_a_rewrite_and_a_second_one_is_nothing(self, shard: StoredShard) -> None:
        assert shard.pin(5) == Rewritten(11)
        assert shard.pin(5) == Rewritten(11)
        assert shard.pin(5, pinned=False) == Rewritten(12)
        assert shard.pin(5, pinned=False) == Rewritten(12)

    def test_w3_a_pinned_unit_outlives_evictions(self, shard: StoredShard) -> None:
        shard.pin(4)
        shard.put(token_budget=80)
        assert {3, 4} <= set(shard.seqs())
        shard.pin(4, pinned=False)
        shard.append(assistant(40))
        assert not {3, 4} & set(shard.seqs())

    def test_pinning_an_evicted_message_puts_its_unit_back_at_its_seq(self, shard: StoredShard) -> None:
        shard.put(token_budget=90)
        assert shard.seqs() == [1, 10]
        shard.pin(8)
        assert shard.seqs() == [1, 7, 8, 10]

    def test_w2_an_evicted_call_without_a_result_comes_back_with_its_marker(self) -> None:
        shard = StoredShard()
        shard.put(token_budget=1_000)
        for message in (user(), call("a"), user(), assistant(), user()):
            shard.append(message)
        shard.put(token_budget=20)
        shard.put(token_budget=1_000)
        shard.pin(2)
        assert shard.seqs() == [2, None, 5]
        shard.append(result("a"))
        assert shard.seqs() == [2, 6, 5]

    def test_a_message_of_which_parts_were_skipped_comes_back_whole_with_its_unit(self) -> None:
        shard = StoredShard()
        shard.put(token_budget=1_000, strategy="skip_parts", config=b'{"kinds":["tool"]}')
        asked = Message("assistant", (("text", 6), ("call", "a", 10)))
        for message in (user(), asked, result("a", tokens=40), user()):
            shard.append(message)
        shard.put(token_budget=100)
        assert shard.seqs() == [1, 2, 4]
        shard.pin(3)
        assert shard.seqs() == [1, 2, 3, 4]
        assert [part["type"] for part in shard.window()["messages"][shard.seqs().index(2)]["parts"]] == ["text", "tool_call"]

    def test_a_message_of_orphans_alone_cannot_be_pinned(self) -> None:
        shard = StoredShard()
        shard.put()
        shard.append(user(), result("a"))
        refusal(shard.pin(2))

    def test_a_pin_whose_message_left_just_now_asks_for_another_try(self, shard: StoredShard) -> None:
        shard.put(token_budget=60)
        reply, _ = shard.apply(PinMessage("c", shard.at_ms, RULES, 3, True))
        refusal(reply, "version_conflict")

    def test_a_message_that_does_not_exist_cannot_be_pinned(self, shard: StoredShard) -> None:
        assert refusal(shard.pin(11), "message_not_found") == {"seq": 11, "last_seq": 10}

    def test_pins_of_a_reasoning_unit_count_as_head(self) -> None:
        shard = StoredShard()
        shard.put()
        shard.append(reasoning(10), assistant(10, pinned=True))
        context = shard.context("c")
        assert context is not None and context.window.head_tokens == 20


def test_only_so_many_ranges_are_remembered_and_older_versions_are_conflicts(shard: StoredShard) -> None:
    for _ in range(130):
        shard.pin(5)
        shard.pin(5, pinned=False)
    assert refusal(shard.rewrite(assistant(), covers=(2, 4), if_version=10), "version_conflict")
    assert isinstance(shard.rewrite(assistant(), covers=(2, 4), if_version=250), Rewritten)


def test_the_hands_choice_stands_until_the_next_append(shard: StoredShard) -> None:
    shard.put(token_budget=120)
    shard.rewrite(assistant(60), assistant(40))
    before = shard.window()
    assert before["used_tokens"] > 0.7 * 120
    shard.apply(PatchMetadataCommand("c", shard.at_ms, RULES, b'{"a":1}'))
    shard.apply(Tombstone("c", shard.at_ms, RULES))
    shard.put()
    assert shard.window() == before
    shard.append(user())
    assert shard.window()["used_tokens"] < 0.7 * 120
