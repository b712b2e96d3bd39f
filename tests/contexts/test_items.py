"""Items: what an edit costs, in whatever order it is made, and that the constants are as large as they say."""

import json
from itertools import permutations
from typing import Any

import pytest

from context_node import tokens
from context_node.contexts.items import (
    MARKER_TOKENS,
    MESSAGE_OVERHEAD_TOKENS,
    PLACEHOLDER_TEXT,
    PLACEHOLDER_TOKENS,
    Info,
    Item,
    edited,
    live_item,
    marker_item,
)
from context_node.contexts.parts import CALL, CALL_AND_RESULT, OTHER, REASONING, RESULT, TEXT, check_part, kind_of, mark_part
from context_node.contexts.refusals import InvalidRequest
from support.window_messages import Message, draft_of

CALL_IDS = [
    "call_Uox6HQUjKEYDgoCMN8xYNgiU",
    "call_4ZkQw9XbJr2TnV7yPq1LmE8d",
    "toolu_01UhG8eaHS82ZjOjrJH8KyeH",
    "toolu_vrtx_01ze0dDMtroCwxbzj30Gms0m",
    "28ee7a2b-7f53-41c5-b5f2-c100ebb2ae86",
    "call_c3aacb9b5c7941ad803c2b65f03754f6",
    "chatcmpl-tool-fcebd20ed4134c71b213f07c50f02e7e",
    "EH2SsPUW6",
    "functions.get_user_details:0",
]


def item_of(message: Message) -> Item:
    made = draft_of(message)
    return live_item(1, b'{"seq":1,%b}' % made.fields, Info(made.role, made.tokens, made.marks, 1))


class TestEdits:
    MESSAGE = Message("assistant", (("text", 7), ("reasoning", 11), ("ui", "a", "output-available", 300), ("result", "b", 200)))

    def test_w5_edits_give_the_same_item_in_whatever_order(self) -> None:
        edits: list[dict[str, Any]] = [
            {"skipped": [0]},
            {"cleared": [2]},
            {"cleared": [3]},
            {"counts": (8, 12, 310, 210)},
            {"pinned": True},
        ]
        made = []
        for order in permutations(edits):
            item = item_of(self.MESSAGE)
            for edit in order:
                item = edited(item, **edit)
            made.append((item.body, item.tokens, item.skipped, item.cleared, item.counts, item.marks, item.pinned, item.is_head_alone))
        at_once = edited(item_of(self.MESSAGE), skipped=[0], cleared=[2, 3], counts=(8, 12, 310, 210), pinned=True)
        assert set(made) == {made[0]} and made[0][:2] == (at_once.body, at_once.tokens)

    def test_tokens_are_the_parts_that_are_left_and_the_overhead(self) -> None:
        item = item_of(self.MESSAGE)
        assert item.tokens == 4 + 7 + 11 + 300 + 200
        assert edited(item, skipped=[1, 3]).tokens == 4 + 7 + 300
        assert edited(item, cleared=[3]).tokens == 4 + 7 + 11 + 300 + PLACEHOLDER_TOKENS
        assert edited(item, cleared=[2]).tokens == 4 + 7 + 11 + 200 + 1 + PLACEHOLDER_TOKENS

    def test_a_clients_count_has_no_overhead_besides(self) -> None:
        item = item_of(Message("user", (("text", 5), ("opaque", 5)), token_count=40))
        assert edited(item, skipped=[1]).tokens == 40
        assert edited(item, skipped=[0]).tokens == 0
        assert edited(item, counts=(6, 7)).tokens == MESSAGE_OVERHEAD_TOKENS + 13

    def test_the_body_says_what_the_item_costs_and_the_original_stays(self) -> None:
        item = item_of(self.MESSAGE)
        new = edited(item, skipped=[0], cleared=[3])
        body = json.loads(new.body)
        assert body["token_count"] == new.tokens and len(body["parts"]) == 3
        assert body["parts"][2]["output"] == PLACEHOLDER_TEXT
        assert new.original == item.body

    def test_a_pin_alone_leaves_the_bytes_as_they_are(self) -> None:
        item = item_of(self.MESSAGE)
        assert edited(item, pinned=True).body == item.body
        assert edited(edited(item, pinned=True), pinned=False).is_edited() is False


class TestConstants:
    @pytest.mark.parametrize("tokenizer", ["o200k_base", "cl100k_base"])
    @pytest.mark.parametrize("call_id", CALL_IDS)
    def test_w1_a_placeholder_costs_no_more_than_its_constant(self, call_id: str, tokenizer: str) -> None:
        forms = [
            {"type": "tool_result", "tool_call_id": call_id, "output": PLACEHOLDER_TEXT},
            {"type": "tool_result", "tool_use_id": call_id, "content": PLACEHOLDER_TEXT, "is_error": False},
            {
                "type": "tool-result",
                "toolCallId": call_id,
                "toolName": "get_reservation_details",
                "output": {"type": "text", "value": PLACEHOLDER_TEXT},
            },
        ]
        assert max(tokens.count_part(tokenizer, form) for form in forms) <= PLACEHOLDER_TOKENS

    @pytest.mark.parametrize("tokenizer", ["o200k_base", "cl100k_base"])
    @pytest.mark.parametrize("call_id", CALL_IDS)
    def test_w1_a_marker_costs_no_more_than_its_constant(self, call_id: str, tokenizer: str) -> None:
        message = json.loads(marker_item(1, call_id).body)
        assert message["token_count"] == MARKER_TOKENS
        assert tokens.count_part(tokenizer, message["parts"][0]) + MESSAGE_OVERHEAD_TOKENS <= MARKER_TOKENS


class TestParts:
    @pytest.mark.parametrize(
        ("part_type", "kind"),
        [
            ("text", TEXT),
            ("reasoning", REASONING),
            ("thinking", REASONING),
            ("redacted_thinking", REASONING),
            ("tool_call", CALL),
            ("tool-call", CALL),
            ("tool_use", CALL),
            ("tool_result", RESULT),
            ("tool-result", RESULT),
            ("tool-search", CALL_AND_RESULT),
            ("dynamic-tool", CALL_AND_RESULT),
            ("image_url", OTHER),
            ("data-tool", OTHER),
        ],
    )
    def test_kinds_follow_from_the_type(self, part_type: str, kind: int) -> None:
        assert kind_of(part_type) == kind

    @pytest.mark.parametrize(
        ("part", "call_id"),
        [
            ({"type": "tool_call", "tool_call_id": "a", "name": "n"}, "a"),
            ({"type": "tool-call", "toolCallId": "a", "toolName": "n"}, "a"),
            ({"type": "tool_use", "id": "a", "name": "n"}, "a"),
            ({"type": "tool_result", "tool_call_id": "a"}, "a"),
            ({"type": "tool_result", "tool_use_id": "a"}, "a"),
            ({"type": "tool-result", "toolCallId": "a"}, "a"),
            ({"type": "tool-n", "toolCallId": "a"}, "a"),
            ({"type": "dynamic-tool", "toolCallId": "a", "toolName": "n", "state": "input-available"}, "a"),
        ],
    )
    def test_ids_are_found_in_every_dialect(self, part: dict[str, Any], call_id: str) -> None:
        check_part(part)
        assert mark_part(part, 5).call_id == call_id

    @pytest.mark.parametrize(
        ("part", "field"),
        [
            ({}, "p.type"),
            ({"type": ""}, "p.type"),
            ({"type": 5}, "p.type"),
            ({"type": "text"}, "p.text"),
            ({"type": "text", "text": 5}, "p.text"),
            ({"type": "tool_call", "name": "n"}, "p.tool_call_id"),
            ({"type": "tool_call", "tool_call_id": "a"}, "p.name"),
            ({"type": "tool_result", "tool_call_id": ""}, "p.tool_call_id"),
            ({"type": "tool_result"}, "p.tool_call_id"),
            ({"type": "tool-result", "toolCallId": 5}, "p.toolCallId"),
            ({"type": "tool-n"}, "p.toolCallId"),
            ({"type": "tool-n", "toolCallId": "a", "state": 5}, "p.state"),
            ({"type": "dynamic-tool", "toolCallId": "a"}, "p.toolName"),
        ],
    )
    def test_s1_a_part_that_no_rule_could_understand_is_refused(self, part: dict[str, Any], field: str) -> None:
        with pytest.raises(InvalidRequest) as caught:
            check_part(part, "p")
        assert caught.value.details["field"] == field

    @pytest.mark.parametrize(
        ("part", "error"),
        [
            ({"type": "tool_result", "tool_use_id": "a", "is_error": True}, True),
            ({"type": "tool_result", "tool_use_id": "a", "isError": True}, True),
            ({"type": "tool-result", "toolCallId": "a", "output": {"type": "error-text", "value": "no"}}, True),
            ({"type": "tool-n", "toolCallId": "a", "state": "output-error"}, True),
            ({"type": "tool_result", "tool_use_id": "a", "output": "error"}, False),
        ],
    )
    def test_errors_are_known_by_their_flags(self, part: dict[str, Any], error: bool) -> None:
        assert mark_part(part, 5).error is error
