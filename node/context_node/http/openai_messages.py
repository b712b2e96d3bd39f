"""An OpenAI chat message, turned into canonical parts.

Knows the shapes of the Chat Completions API (https://platform.openai.com/docs/api-reference/chat/create, "messages"). Does not know our
wire types: it takes the fields and gives parts. Invariants: nothing that carries content is dropped; what can't be understood is refused
by name.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from context_node.contexts.refusals import InvalidRequest
from context_node.http.codec import INTEGER_MAX, INTEGER_MIN

Part = dict[str, Any]

_CONTENT_TYPES = frozenset({"text", "refusal", "image_url", "input_audio", "file"})
_ARGUMENTS = msgspec.json.Decoder(dict[str, Any])


def parts_of(
    *,
    role: str,
    content: str | Sequence[Mapping[str, Any]] | None,
    tool_calls: Sequence[Mapping[str, Any]] | None,
    tool_call_id: str | None,
    refusal: str | None,
    audio: Mapping[str, Any] | None,
    field: str,
) -> list[Part]:
    """The canonical parts of a chat message. Raises `InvalidRequest` that names `field` with the path inside."""
    if tool_call_id is not None or role == "tool":
        return [_tool_result(content, tool_call_id, field)]
    parts = _content_parts(content, field)
    if refusal is not None:
        parts.append({"type": "text", "text": refusal, "refusal": True})
    if audio is not None:
        parts.append({**audio, "type": "audio"})
    for place, call in enumerate(tool_calls or ()):
        parts.append(_tool_call(call, f"{field}.tool_calls[{place}]"))
    if not parts and content == "":
        return [{"type": "text", "text": ""}]
    if not parts:
        raise InvalidRequest(f"{field} has no content: give content, tool_calls or parts.", field=field)
    return parts


def _content_parts(content: str | Sequence[Mapping[str, Any]] | None, field: str) -> list[Part]:
    if content is None:
        return []
    if isinstance(content, str):
        # An empty string beside tool calls is how some SDKs write "no content".
        return [{"type": "text", "text": content}] if content else []
    return [_content_part(part, f"{field}.content[{place}]") for place, part in enumerate(content)]


def _content_part(part: Mapping[str, Any], field: str) -> Part:
    part_type = part.get("type")
    if part_type not in _CONTENT_TYPES:
        raise InvalidRequest(
            f"{field}.type must be one of {', '.join(sorted(_CONTENT_TYPES))}; other kinds of part go into `parts`.", field=f"{field}.type"
        )
    if part_type == "refusal":
        text = part.get("refusal")
        if not isinstance(text, str):
            raise InvalidRequest(f"{field}.refusal must be a string.", field=f"{field}.refusal")
        return {"type": "text", "text": text, "refusal": True}
    if part_type != "text" and not isinstance(part.get(part_type), dict):
        raise InvalidRequest(f"{field}.{part_type} must be an object.", field=f"{field}.{part_type}")
    return dict(part)


def _tool_result(content: str | Sequence[Mapping[str, Any]] | None, tool_call_id: str | None, field: str) -> Part:
    if not tool_call_id:
        raise InvalidRequest(f"{field}.tool_call_id must name the call that a tool message answers.", field=f"{field}.tool_call_id")
    if content is None:
        raise InvalidRequest(f"{field}.content is required in a tool message.", field=f"{field}.content")
    output: Any = content if isinstance(content, str) else _content_parts(content, field)
    return {"type": "tool_result", "tool_call_id": tool_call_id, "output": output}


def _tool_call(call: Mapping[str, Any], field: str) -> Part:
    kind = call.get("type", "function")
    if kind not in ("function", "custom"):
        raise InvalidRequest(f"{field}.type must be function or custom.", field=f"{field}.type")
    target = call.get(kind)
    if not isinstance(target, dict):
        raise InvalidRequest(f"{field}.{kind} must be an object.", field=f"{field}.{kind}")
    given: Any = target.get("arguments", "") if kind == "function" else target.get("input", "")
    part: Part = {
        "type": "tool_call",
        "tool_call_id": call.get("id"),
        "name": target.get("name"),
        "input": _arguments(given) if kind == "function" else given,
    }
    if kind == "custom":
        part["custom"] = True
    extra = {name: value for name, value in call.items() if name not in ("id", "type", "index", kind)}
    return {**extra, **part}


def _arguments(given: Any) -> Any:
    """Arguments arrive as a string of JSON that a model wrote: an object if it is one, else the string as it is."""
    if not isinstance(given, str):
        return given
    try:
        decoded = _ARGUMENTS.decode(given)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return given
    return decoded if _is_plain(decoded) else given


def _is_plain(value: Any, depth: int = 0) -> bool:
    """Whether a decoded value keeps the rules of bodies: its depth and its integers were not checked with the body, being inside a
    string."""
    if depth > ARGUMENTS_DEPTH_MAX:
        return False
    if type(value) is int:
        return INTEGER_MIN <= value <= INTEGER_MAX
    if type(value) is dict:
        return all(_is_plain(one, depth + 1) for one in value.values())
    if type(value) is list:
        return all(_is_plain(one, depth + 1) for one in value)
    return True


ARGUMENTS_DEPTH_MAX = 32
