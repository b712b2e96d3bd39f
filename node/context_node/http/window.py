"""The window: reading it, and rewriting it by hand.

Knows conditional requests (ETag) and the forms of a rewrite. Does not know how a window is made: it comes as ready bytes. Invariant: a
window is answered without decoding or encoding it.
"""

from typing import TYPE_CHECKING

import msgspec

from context_node.contexts.refusals import InvalidRequest, Unprocessable
from context_node.contexts.requests import Compact
from context_node.http import codec
from context_node.http.calls import Call, check_content_type, id_of, key_of, read_body
from context_node.http.contexts import check_min_version
from context_node.http.messages import new_messages
from context_node.http.problems import NotAvailable
from context_node.http.queries import NoQuery, WindowQuery, local_of, parse_query
from context_node.http.replies import Reply, empty_reply, json_reply
from context_node.http.schemas import CompactBody

if TYPE_CHECKING:
    from context_node.http.edge import Edge

_COMPACT = msgspec.json.Decoder(CompactBody)
_NO_QUERY = WindowQuery()
CACHE_CONTROL = ("Cache-Control", "no-cache")


async def get(edge: "Edge", call: Call) -> Reply:
    """GET /v1/contexts/{id}/context"""
    context_id = id_of(call, edge.limits.id_bytes_max)
    query = parse_query(call.query, WindowQuery) if call.query else _NO_QUERY
    if query.format != "parts":
        raise NotAvailable(f"The format {query.format} is not available in this version; use parts.", feature="format")
    if query.at_version is not None:
        raise NotAvailable("Reading a window as it was (at_version) is not available in this version.", feature="at_version")
    # What the client knows goes along, so that a window that has not changed need not be made.
    known = call.request.headers.get("If-None-Match")
    answer = await edge.service.window(context_id, query.budget_tokens, query.if_version, known, local_of(query))
    check_min_version(query.min_version, answer.version)
    headers = (
        ("ETag", answer.etag),
        CACHE_CONTROL,
        ("X-Context-Leader", edge.service.leader_of(context_id)),
    )
    if answer.body is None:
        return empty_reply(304, headers)
    return json_reply(200, answer.body, headers)


async def compact(edge: "Edge", call: Call) -> Reply:
    """POST /v1/contexts/{id}/compact"""
    limits = edge.limits
    context_id = id_of(call, limits.id_bytes_max)
    parse_query(call.query, NoQuery)
    check_content_type(call, ("application/json",))
    data = await read_body(call, limits.batch_bytes_max)
    body = codec.decode(data, _COMPACT, limits.json_depth_max)
    request = Compact(
        replacement=new_messages(body.replacement or (), "replacement", len(data), limits),
        covers=_covers(body),
        through_seq=body.through_seq,
        if_version=body.if_version,
        rebuild=body.rebuild is True,
        key=key_of(call),
    )
    answer = await edge.service.compact(context_id, request)
    return json_reply(200, b'{"version":%d}' % answer.version, (("X-Context-Leader", edge.service.leader_of(context_id)),))


def _covers(body: CompactBody) -> tuple[int, int] | None:
    """The range, after checking that the fields go together."""
    if body.dry_run:
        raise NotAvailable("A dry run is not available in this version.", feature="dry_run")
    if body.rebuild:
        for name in ("replacement", "covers", "through_seq"):
            if getattr(body, name) is not None:
                raise InvalidRequest(f"rebuild takes no {name}: it makes the window from history.", field=name)
        return None
    if body.replacement is None:
        raise InvalidRequest("replacement is required (or rebuild: true).", field="replacement")
    if body.covers is None:
        return None
    if body.through_seq is not None:
        raise InvalidRequest("Give either covers or through_seq, not both.", field="through_seq")
    first, last = body.covers
    if first > last:
        raise Unprocessable("covers must be [from_seq, to_seq] with from_seq <= to_seq.", field="covers")
    return first, last
