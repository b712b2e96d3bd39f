"""An OpenAI chat message becomes canonical parts, and nothing that carries content is lost."""

from typing import Any

import pytest

from context_node.contexts.refusals import InvalidRequest
from context_node.http import openai_messages
from support.edge_api import edge_api
from support.fake_service import FakeService

CALL = {"id": "call_1", "type": "function", "function": {"name": "search", "arguments": '{"q":"x"}'}}


def parts_of(**fields: Any) -> list[dict[str, Any]]:
    given = {"role": "user", "content": None, "tool_calls": None, "tool_call_id": None, "refusal": None, "audio": None, "field": "message"}
    return openai_messages.parts_of(**{**given, **fields})


@pytest.mark.parametrize(
    ("fields", "parts"),
    [
        ({"content": "hi"}, [{"type": "text", "text": "hi"}]),
        ({"content": ""}, [{"type": "text", "text": ""}]),
        ({"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
         [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]),
        (
            {"content": [{"type": "image_url", "image_url": {"url": "https://x/y.png", "detail": "low"}}]},
            [{"type": "image_url", "image_url": {"url": "https://x/y.png", "detail": "low"}}],
        ),
        (
            {"content": [{"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}}]},
            [{"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}}],
        ),
        ({"content": [{"type": "file", "file": {"file_id": "f"}}]}, [{"type": "file", "file": {"file_id": "f"}}]),
        ({"content": [{"type": "refusal", "refusal": "no"}]}, [{"type": "text", "text": "no", "refusal": True}]),
        ({"refusal": "no"}, [{"type": "text", "text": "no", "refusal": True}]),
        ({"audio": {"id": "a1"}}, [{"id": "a1", "type": "audio"}]),
        ({"content": None, "tool_calls": [CALL]}, [{"type": "tool_call", "tool_call_id": "call_1", "name": "search", "input": {"q": "x"}}]),
        (
            {"content": "", "tool_calls": [CALL]},
            [{"type": "tool_call", "tool_call_id": "call_1", "name": "search", "input": {"q": "x"}}],
        ),
        (
            {"role": "tool", "tool_call_id": "call_1", "content": "42"},
            [{"type": "tool_result", "tool_call_id": "call_1", "output": "42"}],
        ),
        (
            {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": "42"}]},
            [{"type": "tool_result", "tool_call_id": "call_1", "output": [{"type": "text", "text": "42"}]}],
        ),
    ],
)  # fmt: skip
def test_each_shape_has_its_canonical_parts(fields: dict[str, Any], parts: list[dict[str, Any]]) -> None:
    assert parts_of(**fields) == parts


@pytest.mark.parametrize(
    "arguments", ["", "not json", "[1]", "7", '{"n":99999999999999999999}', "{" * 5000, '{"a":' + "[" * 40 + "]" * 40 + "}"]
)
def test_arguments_that_are_no_plain_object_stay_the_string_that_the_model_wrote(arguments: str) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}
    assert parts_of(role="assistant", tool_calls=[call])[0]["input"] == arguments


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({}, "message"),
        ({"content": []}, "message"),
        ({"content": [{"type": "video"}]}, "message.content[0].type"),
        ({"content": [{}]}, "message.content[0].type"),
        ({"content": [{"type": "image_url", "image_url": "https://x"}]}, "message.content[0].image_url"),
        ({"content": [{"type": "refusal"}]}, "message.content[0].refusal"),
        ({"role": "tool", "content": "x"}, "message.tool_call_id"),
        ({"role": "tool", "tool_call_id": "c"}, "message.content"),
        ({"tool_calls": [{"id": "c", "type": "function"}]}, "message.tool_calls[0].function"),
        ({"tool_calls": [{"id": "c", "type": "magic"}]}, "message.tool_calls[0].type"),
    ],
)
def test_what_cannot_be_understood_is_refused_by_name(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        parts_of(**fields)
    assert refusal.value.details["field"] == field


async def test_a_conversation_as_openai_writes_it_is_kept_in_parts() -> None:
    async with edge_api(FakeService()) as api:
        messages = [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": "look", "name": "ann"},
            {"role": "assistant", "content": None, "tool_calls": [CALL], "refusal": None, "annotations": []},
            {"role": "tool", "tool_call_id": "call_1", "content": "42"},
        ]
        answer = await api.call("POST", "/v1/contexts/c1/messages?create=true", {"messages": messages})
        assert answer.status == 201, answer.json
        kept = (await api.get("/v1/contexts/c1/messages")).json["messages"]
        assert [part["type"] for message in kept for part in message["parts"]] == ["text", "text", "tool_call", "tool_result"]
        assert kept[1]["metadata"] == {"name": "ann"}
        missing = {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": "{}"}}]}
        refused = await api.call("POST", "/v1/contexts/c1/messages", {"message": missing})
        assert (refused.status, refused.field) == (400, "message.parts[0].tool_call_id")
        old = {"role": "assistant", "function_call": {"name": "f"}}
        assert (await api.call("POST", "/v1/contexts/c1/messages", {"message": old})).field == "message.function_call"
