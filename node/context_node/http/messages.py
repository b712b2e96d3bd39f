"""Appending to a history, and reading it: append, page, tail, pin, export.

Knows how a message body becomes `NewMessage`s. Does not know what appending does. Invariant: what reaches the service keeps every limit.
"""

import logging
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
from aiohttp import web

from context_node.contexts.parts import check_part
from context_node.contexts.refusals import InvalidRequest, Refusal, TooLarge, Unprocessable
from context_node.contexts.requests import Append, NewMessage
from context_node.http import codec, openai_messages
from context_node.http.calls import Call, check_content_type, id_of, key_of, read_body
from context_node.http.limits import HttpLimits
from context_node.http.logs import event
from context_node.http.queries import AppendQuery, NoQuery, PageQuery, TailQuery, local_of, parse_query
from context_node.http.replies import Reply, json_reply
from context_node.http.schemas import SEQ_MAX, AppendBody, MessageBody
from context_node.http.service import Page

if TYPE_CHECKING:
    from context_node.http.edge import Edge

logger = logging.getLogger("contextstore.http")
_APPEND = msgspec.json.Decoder(AppendBody)
ROLES = frozenset({"user", "assistant", "system", "developer", "tool"})
ROLE_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyz_")
_NO_QUERY = AppendQuery()


async def append(edge: "Edge", call: Call) -> Reply:
    """POST /v1/contexts/{id}/messages"""
    limits = edge.limits
    context_id = id_of(call, limits.id_bytes_max)
    query = parse_query(call.query, AppendQuery) if call.query else _NO_QUERY
    check_content_type(call, ("application/json",))
    data = await read_body(call, limits.batch_bytes_max)
    body = codec.decode(data, _APPEND, limits.json_depth_max)
    request = Append(
        messages=_new_messages(body, len(data), limits),
        batch=body.messages is not None,
        if_version=body.if_version,
        if_seq=body.if_seq,
        create=query.create,
        key=key_of(call),
    )
    answer = await edge.service.append(context_id, request)
    text = b'{"seq":%d,"version":%d,"token_estimate":%d' % (answer.last_seq, answer.version, answer.token_estimate)
    if request.batch:
        text += b',"first_seq":%d,"last_seq":%d' % (answer.first_seq, answer.last_seq)
    if answer.forced:
        text += b',"forced":true'
    return json_reply(201, text + b"}", (("X-Context-Leader", edge.service.leader_of(context_id)),))


def _new_messages(body: AppendBody, body_bytes: int, limits: HttpLimits) -> Sequence[NewMessage]:
    if body.message is not None:
        if body.messages is not None:
            raise InvalidRequest("Give either message or messages, not both.", field="messages")
        return (new_message(body.message, "message", body_bytes, limits),)
    if body.messages is None:
        raise InvalidRequest("message is required (or messages, for a batch).", field="message")
    return new_messages(body.messages, "messages", body_bytes, limits)


def new_messages(bodies: Sequence[MessageBody], field: str, body_bytes: int, limits: HttpLimits) -> list[NewMessage]:
    """Several messages of one request. Raises `TooLarge`, `InvalidRequest`, and `Unprocessable` for an id that is given twice."""
    if len(bodies) > limits.batch_messages_max:
        raise TooLarge(f"A batch has at most {limits.batch_messages_max} messages; this one has {len(bodies)}.", field=field)
    messages = [new_message(one, f"{field}[{place}]", body_bytes, limits) for place, one in enumerate(bodies)]
    ids = [one.id for one in messages if one.id is not None]
    if len(set(ids)) != len(ids):
        twice = sorted({one for one in ids if ids.count(one) > 1}) if len(ids) <= 100 else []
        raise Unprocessable(f"{field} holds the same id twice.", field=field, ids=twice)
    return messages


def new_message(body: MessageBody, field: str, body_bytes: int, limits: HttpLimits) -> NewMessage:
    """One message, checked. `body_bytes` is the size of the request it came in: below a limit it spares measuring the message."""
    role = body.role
    if role not in ROLES and not ROLE_CHARACTERS.issuperset(role):
        raise InvalidRequest(f"{field}.role must be 1 to 32 characters of a-z and _.", field=f"{field}.role")
    parts, metadata = _parts_and_metadata(body, field)
    if not parts:
        raise InvalidRequest(f"{field}.parts must hold at least one part.", field=f"{field}.parts")
    if len(parts) > limits.parts_max:
        raise TooLarge(f"A message has at most {limits.parts_max} parts; {field} has {len(parts)}.", field=f"{field}.parts")
    for place, part in enumerate(parts):
        # The usual part passes here without a name being made for it.
        if part.get("type") != "text" or type(part.get("text")) is not str:
            check_part(part, f"{field}.parts[{place}]")
    if metadata and body_bytes > limits.metadata_bytes_max:
        check_metadata(metadata, f"{field}.metadata", limits.metadata_bytes_max)
    if body_bytes > limits.message_bytes_max:
        size = len(msgspec.json.encode((parts, metadata)))
        if size > limits.message_bytes_max:
            raise TooLarge(f"{field} has {size} bytes; a message has at most {limits.message_bytes_max}.", field=field)
    if body.id is not None and len(body.id.encode()) > limits.id_bytes_max:
        raise InvalidRequest(f"{field}.id has more than {limits.id_bytes_max} bytes.", field=f"{field}.id")
    return NewMessage(role, parts, metadata, body.token_count, body.id, body.pinned is True)


def _parts_and_metadata(body: MessageBody, field: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    metadata = body.metadata if body.metadata is not None else {}
    if body.parts is not None:
        for name in ("content", "tool_calls", "tool_call_id", "name", "refusal", "audio", "annotations"):
            if getattr(body, name) is not None:
                raise InvalidRequest(f"{field} has parts, so {field}.{name} cannot be given as well.", field=f"{field}.{name}")
        return body.parts, metadata
    parts = openai_messages.parts_of(
        role=body.role,
        content=body.content,
        tool_calls=body.tool_calls,
        tool_call_id=body.tool_call_id,
        refusal=body.refusal,
        audio=body.audio,
        field=field,
    )
    extra = {name: value for name in ("name", "annotations") if (value := getattr(body, name)) is not None}
    return parts, {**extra, **metadata}


def check_metadata(metadata: dict[str, Any], field: str, bytes_max: int) -> None:
    """Raises `TooLarge` if the metadata's compact JSON is above `bytes_max`."""
    size = len(msgspec.json.encode(metadata))
    if size > bytes_max:
        raise TooLarge(f"{field} has {size} bytes; it may have at most {bytes_max}.", field=field, bytes_max=bytes_max)


async def page(edge: "Edge", call: Call) -> Reply:
    """GET /v1/contexts/{id}/messages"""
    context_id = id_of(call, edge.limits.id_bytes_max)
    query = parse_query(call.query, PageQuery)
    limit, is_descending = _limit(query.limit, edge), query.direction == "desc"
    answer = await edge.service.page(context_id, query.from_seq, limit, is_descending, local_of(query))
    return _page_reply(edge, context_id, answer)


async def tail(edge: "Edge", call: Call) -> Reply:
    """GET /v1/contexts/{id}/tail"""
    context_id = id_of(call, edge.limits.id_bytes_max)
    query = parse_query(call.query, TailQuery)
    answer = await edge.service.tail(context_id, query.offset, _limit(query.limit, edge), local_of(query))
    return _page_reply(edge, context_id, answer)


def _limit(limit: int, edge: "Edge") -> int:
    if limit > edge.limits.page_messages_max:
        raise InvalidRequest(f"limit is at most {edge.limits.page_messages_max}.", field="limit")
    return limit


def _page_reply(edge: "Edge", context_id: str, answer: Page) -> Reply:
    # Messages are kept as JSON: a page is a join, never an encoding.
    body = b'{"messages":[%b],"last_seq":%d}' % (b",".join(answer.messages), answer.last_seq)
    return json_reply(200, body, (("X-Context-Leader", edge.service.leader_of(context_id)),))


async def pin(edge: "Edge", call: Call) -> Reply:
    """PUT /v1/contexts/{id}/messages/{seq}/pin"""
    return await _set_pin(edge, call, True)


async def unpin(edge: "Edge", call: Call) -> Reply:
    """DELETE /v1/contexts/{id}/messages/{seq}/pin"""
    return await _set_pin(edge, call, False)


async def _set_pin(edge: "Edge", call: Call, pinned: bool) -> Reply:
    context_id = id_of(call, edge.limits.id_bytes_max)
    parse_query(call.query, NoQuery)
    text = call.parameters[1]
    if not (text.isascii() and text.isdigit() and len(text) <= 16 and 1 <= int(text) <= SEQ_MAX):
        raise InvalidRequest("The seq in the path must be a whole number from 1 on.", field="seq")
    answer = await edge.service.pin(context_id, int(text), pinned)
    return json_reply(200, b'{"version":%d}' % answer.version, (("X-Context-Leader", edge.service.leader_of(context_id)),))


async def export(edge: "Edge", call: Call) -> web.StreamResponse:
    """GET /v1/contexts/{id}/export: the whole history as JSON Lines, chunk by chunk as it is read."""
    context_id = id_of(call, edge.limits.id_bytes_max)
    parse_query(call.query, NoQuery)
    chunks = edge.service.export(context_id)
    first = await anext(chunks, None)  # a refusal comes here, while the answer can still be one
    response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson", "X-Request-Id": call.request_id})
    response.headers["X-Context-Leader"] = edge.service.leader_of(context_id)
    await response.prepare(call.request)
    try:
        await _write_all(edge, response, first, chunks)
        await response.write_eof()
    except ConnectionError:
        pass  # the reader left
    except Exception as error:
        # The head is out, so the only honest answer left is a body that breaks off.
        if isinstance(error, Refusal):
            event(logger, "export_failed", logging.WARNING, context_id=context_id, reason=error.message)
        else:
            event(logger, "export_failed", logging.ERROR, exc_info=True, context_id=context_id)
        if call.request.transport is not None:
            call.request.transport.abort()
    return response


async def _write_all(edge: "Edge", response: web.StreamResponse, first: bytes | None, chunks: AsyncIterator[bytes]) -> None:
    chunk = first
    while chunk is not None:
        if chunk:
            edge.metrics.bytes_out += len(chunk)
            await response.write(chunk)
        chunk = await anext(chunks, None)
