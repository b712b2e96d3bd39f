"""Parts of a restore: for `contextstore restore` and nobody else.

Knows the packed body. Does not know what it means: the node behind checks all of it. The body is MessagePack since messages and records
come as the bytes that an archive holds.
"""

from typing import TYPE_CHECKING

import msgspec

from context_node.contexts.refusals import InvalidRequest
from context_node.contexts.restoring import Restore
from context_node.http.calls import Call, check_content_type, id_of, read_body
from context_node.http.queries import NoQuery, parse_query
from context_node.http.replies import Reply, json_reply
from context_node.http.schemas import RestoreAnswer

if TYPE_CHECKING:
    from context_node.http.edge import Edge

MSGPACK = "application/msgpack"
_PARTS = msgspec.msgpack.Decoder(Restore)
_ENCODE = msgspec.json.Encoder().encode


async def restore(edge: "Edge", call: Call) -> Reply:
    """POST /v1/contexts/{id}/restore"""
    context_id = id_of(call, edge.limits.id_bytes_max)
    parse_query(call.query, NoQuery)
    check_content_type(call, (MSGPACK,))
    data = await read_body(call, edge.limits.restore_bytes_max)
    try:
        request = _PARTS.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise InvalidRequest("The body is no part of a restore; this route is for `contextstore restore`.", field="body") from None
    answer = await edge.service.restore_context(context_id, request)
    leader = edge.service.leader_of(context_id)
    return json_reply(200, _ENCODE(RestoreAnswer(answer.last_seq, answer.is_whole)), (("X-Context-Leader", leader),))
