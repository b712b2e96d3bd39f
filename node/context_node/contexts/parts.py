"""What a part is to the window: a call, a result, reasoning, text, or something opaque.

Knows the part shapes of PRODUCT.md ("Parts"). Knows neither messages nor windows. A `Mark` is all that later rules need of a part, so
that applying a command never parses message bodies on its usual path. Invariant: marks follow from the part alone.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from context_node.contexts.refusals import InvalidRequest

TEXT, REASONING, CALL, RESULT, CALL_AND_RESULT, OTHER = range(6)
"""The kinds of part. `CALL_AND_RESULT` is a UI part such as `tool-search {toolCallId, state}` that carries both once it has ended."""

REASONING_TYPES = frozenset({"reasoning", "thinking", "redacted_thinking"})
ENDED_STATES = frozenset({"output-available", "output-error", "output-denied"})
ERROR_STATES = frozenset({"output-error", "output-denied"})
ERROR_OUTPUTS = frozenset({"error-text", "error-json"})

_CALL_FIELDS = {"tool_call": ("tool_call_id", "name"), "tool-call": ("toolCallId", "toolName"), "tool_use": ("id", "name")}
_RESULT_FIELDS = {"tool_result": ("tool_call_id", "tool_use_id"), "tool-result": ("toolCallId",)}


class Mark(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """A part as the window rules see it.

    `tokens` is the part's cost; `call_id` and `name` belong to calls and results (a result's name is empty); `ended` tells whether a
    `CALL_AND_RESULT` part has its result; `error` whether a result reports an error; `output_tokens` is the share of a
    `CALL_AND_RESULT` part that is its output.
    """

    kind: int
    type: str
    tokens: int
    call_id: str = ""
    name: str = ""
    ended: bool = False
    error: bool = False
    output_tokens: int = 0


def kind_of(part_type: str) -> int:
    """The kind of a part by its `type` alone."""
    if part_type == "text":
        return TEXT
    if part_type in _CALL_FIELDS:
        return CALL
    if part_type in _RESULT_FIELDS:
        return RESULT
    if part_type in REASONING_TYPES:
        return REASONING
    if part_type == "dynamic-tool" or part_type.startswith("tool-"):
        return CALL_AND_RESULT
    return OTHER


def check_part(part: Mapping[str, Any], field: str = "part") -> None:
    """Refuse a part that the window rules could not understand; everything else about a part is its owner's business.

    Checked are `type`, the text of a text part, and the ids and names of calls and results. Raises `InvalidRequest` that names `field`.
    """
    part_type = part.get("type")
    if not isinstance(part_type, str) or not part_type:
        raise InvalidRequest(f"{field}.type must be a non-empty string.", field=f"{field}.type")
    if part_type == "text":
        if not isinstance(part.get("text"), str):
            raise InvalidRequest(f"{field}.text must be a string.", field=f"{field}.text")
        return
    kind = kind_of(part_type)
    if kind == CALL:
        id_field, name_field = _CALL_FIELDS[part_type]
        _need_string(part, id_field, field)
        _need_string(part, name_field, field)
    elif kind == RESULT:
        fields = _RESULT_FIELDS[part_type]
        present = next((name for name in fields if name in part), fields[0])
        _need_string(part, present, field)
    elif kind == CALL_AND_RESULT:
        _need_string(part, "toolCallId", field)
        if "state" in part:
            _need_string(part, "state", field)
        if part_type == "dynamic-tool":
            _need_string(part, "toolName", field)


def _need_string(part: Mapping[str, Any], name: str, field: str) -> None:
    value = part.get(name)
    if not isinstance(value, str) or not value:
        raise InvalidRequest(f"{field}.{name} must be a non-empty string in a part of type {part['type']!r}.", field=f"{field}.{name}")


def mark_part(part: Mapping[str, Any], tokens: int, output_tokens: int = 0) -> Mark:
    """The mark of a part that `check_part` accepted. `tokens` is its cost, `output_tokens` the cost of its output alone where it is a
    call and result in one."""
    part_type: str = part["type"]
    if part_type == "text":
        return Mark(TEXT, "text", tokens)
    kind = kind_of(part_type)
    if kind == CALL:
        id_field, name_field = _CALL_FIELDS[part_type]
        return Mark(CALL, part_type, tokens, part[id_field], part[name_field])
    if kind == RESULT:
        call_id = next(part[name] for name in _RESULT_FIELDS[part_type] if name in part)
        return Mark(RESULT, part_type, tokens, call_id, error=_is_error(part))
    if kind == CALL_AND_RESULT:
        state = part.get("state")
        name = part["toolName"] if part_type == "dynamic-tool" else part_type[len("tool-") :]
        ended = state in ENDED_STATES
        return Mark(kind, part_type, tokens, part["toolCallId"], name, ended, state in ERROR_STATES, min(output_tokens, tokens))
    return Mark(kind, part_type, tokens)


def _is_error(part: Mapping[str, Any]) -> bool:
    if part.get("is_error") is True or part.get("isError") is True:
        return True
    output = part.get("output")
    return isinstance(output, dict) and output.get("type") in ERROR_OUTPUTS


OUTPUT_FIELDS = ("output", "content", "result")
"""Where a result keeps what a placeholder may take the place of."""
