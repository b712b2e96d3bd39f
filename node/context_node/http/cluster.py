"""The cluster for administrators: look at it, and take one step at a time.

Knows the shapes of the steps. Does not know which are wise. Every step may be repeated; one with an `epoch` older than the newest seen is
refused, so that an administrator that was replaced cannot undo what its successor did.
"""

from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from context_node.contexts.refusals import InvalidRequest, Unprocessable
from context_node.http import codec
from context_node.http.calls import Call, check_content_type, read_body
from context_node.http.queries import NoQuery, parse_query
from context_node.http.replies import Reply, empty_reply, json_reply
from context_node.http.schemas import BeginBody, ClusterBody, LeaderBody, LearnerBody, MembersBody, NodeBody, NodePoliciesAnswer

if TYPE_CHECKING:
    from context_node.http.edge import Edge
    from context_node.http.service import Admin

T = TypeVar("T")
_ENCODE = msgspec.json.Encoder().encode
_CLUSTER, _NODE = msgspec.json.Decoder(ClusterBody), msgspec.json.Decoder(NodeBody)
_LEARNER, _MEMBERS, _LEADER = msgspec.json.Decoder(LearnerBody), msgspec.json.Decoder(MembersBody), msgspec.json.Decoder(LeaderBody)
_BEGIN = msgspec.json.Decoder(BeginBody)
BODY_BYTES_MAX = 64 * 1024


async def look(edge: "Edge", call: Call) -> Reply:
    """GET /v1/cluster"""
    parse_query(call.query, NoQuery)
    return json_reply(200, _ENCODE(await _admin(edge).look()))


async def look_at_self(edge: "Edge", call: Call) -> Reply:
    """GET /v1/cluster/self"""
    parse_query(call.query, NoQuery)
    return json_reply(200, _ENCODE(_admin(edge).describe_self()))


async def begin(edge: "Edge", call: Call) -> Reply:
    """POST /v1/cluster"""
    body = await _body(edge, call, _BEGIN)
    await _admin(edge).begin(body.cluster_id)
    return empty_reply(204)


async def policies(edge: "Edge", call: Call) -> Reply:
    """GET /v1/cluster/policies"""
    parse_query(call.query, NoQuery)
    return json_reply(200, _ENCODE(NodePoliciesAnswer(await _admin(edge).policies())))


async def change(edge: "Edge", call: Call) -> Reply:
    """PATCH /v1/cluster"""
    body = await _body(edge, call, _CLUSTER)
    admin = _admin(edge)
    if body.replication_factor is None and body.feature_level is None:
        raise InvalidRequest("Say what to change: replication_factor, feature_level or both.", field="replication_factor")
    if body.replication_factor is not None:
        await admin.set_replication(body.replication_factor, body.epoch)
    if body.feature_level is not None:
        await admin.raise_level(body.feature_level, body.epoch)
    return empty_reply(204)


async def change_node(edge: "Edge", call: Call) -> Reply:
    """PATCH /v1/cluster/nodes/{node}"""
    body = await _body(edge, call, _NODE)
    admin = _admin(edge)
    number = admin.number_of(call.parameters[0])
    await admin.mark_node(number, cordoned=body.cordoned, draining=body.draining, removed=body.removed, epoch=body.epoch)
    return empty_reply(204)


async def add_learner(edge: "Edge", call: Call) -> Reply:
    """POST /v1/cluster/shards/{shard}/learners"""
    body = await _body(edge, call, _LEARNER)
    await _admin(edge).add_learner(_shard(call), body.node, body.epoch)
    return empty_reply(204)


async def change_members(edge: "Edge", call: Call) -> Reply:
    """POST /v1/cluster/shards/{shard}/members"""
    body = await _body(edge, call, _MEMBERS)
    await _admin(edge).change_members(_shard(call), tuple(body.promote), tuple(body.remove), body.epoch)
    return empty_reply(204)


async def transfer_leader(edge: "Edge", call: Call) -> Reply:
    """POST /v1/cluster/shards/{shard}/leader"""
    body = await _body(edge, call, _LEADER)
    await _admin(edge).transfer_leader(_shard(call), body.node, body.epoch)
    return empty_reply(204)


async def compare(edge: "Edge", call: Call) -> Reply:
    """POST /v1/cluster/shards/{shard}/compare"""
    parse_query(call.query, NoQuery)
    return json_reply(200, _ENCODE(await _admin(edge).compare(_shard(call))))


def _admin(edge: "Edge") -> "Admin":
    if edge.parts.admin is None:
        raise Unprocessable("This node runs alone. Start it with --cluster-secret-file to make it the first of a cluster.")
    return edge.parts.admin


def _shard(call: Call) -> int:
    text = call.parameters[0]
    if not (text.isascii() and text.isdigit() and len(text) <= 6):
        raise InvalidRequest("The shard in the path must be a number.", field="shard")
    return int(text)


async def _body(edge: "Edge", call: Call, decoder: "msgspec.json.Decoder[T]") -> Any:
    parse_query(call.query, NoQuery)
    check_content_type(call, ("application/json",))
    return codec.decode(await read_body(call, BODY_BYTES_MAX), decoder, edge.limits.json_depth_max)
