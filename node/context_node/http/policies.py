"""Policies by name: put, show, list, delete.

Knows their shape. What a strategy's config may hold is checked behind the service, before anything is written.
"""

from typing import TYPE_CHECKING

import msgspec

from context_node.contexts.replies import NamedPolicyView
from context_node.contexts.requests import PutPolicy
from context_node.http import codec
from context_node.http.calls import Call, check_content_type, id_of, read_body
from context_node.http.contexts import check_ratios, timestamp
from context_node.http.queries import NoQuery, parse_query
from context_node.http.replies import Reply, empty_reply, json_reply
from context_node.http.schemas import NamedPolicyAnswer, NamedPolicyBody, PoliciesAnswer

if TYPE_CHECKING:
    from context_node.http.edge import Edge

_POLICY = msgspec.json.Decoder(NamedPolicyBody)
_ENCODE = msgspec.json.Encoder().encode


async def put(edge: "Edge", call: Call) -> Reply:
    """PUT /v1/policies/{name}"""
    name = id_of(call, edge.limits.id_bytes_max, "policy name")
    parse_query(call.query, NoQuery)
    check_content_type(call, ("application/json",))
    data = await read_body(call, edge.limits.batch_bytes_max)
    body = codec.decode(data, _POLICY, edge.limits.json_depth_max)
    check_ratios(body.trigger_ratio, body.target_ratio)
    request = PutPolicy(
        strategy=body.strategy,
        config=body.config or {},
        token_budget=body.token_budget,
        trigger_ratio=body.trigger_ratio,
        target_ratio=body.target_ratio,
        tokenizer=body.tokenizer,
        default=body.default is True,
    )
    view = await edge.service.put_policy(name, request)
    return json_reply(200, _ENCODE(_answer(view)))


async def get(edge: "Edge", call: Call) -> Reply:
    """GET /v1/policies/{name}"""
    name = id_of(call, edge.limits.id_bytes_max, "policy name")
    parse_query(call.query, NoQuery)
    return json_reply(200, _ENCODE(_answer(await edge.service.get_policy(name))))


async def delete(edge: "Edge", call: Call) -> Reply:
    """DELETE /v1/policies/{name}"""
    name = id_of(call, edge.limits.id_bytes_max, "policy name")
    parse_query(call.query, NoQuery)
    await edge.service.delete_policy(name)
    return empty_reply(204)


async def list_policies(edge: "Edge", call: Call) -> Reply:
    """GET /v1/policies"""
    parse_query(call.query, NoQuery)
    return json_reply(200, _ENCODE(PoliciesAnswer([_answer(view) for view in await edge.service.list_policies()])))


def _answer(view: NamedPolicyView) -> NamedPolicyAnswer:
    return NamedPolicyAnswer(
        name=view.name,
        generation=view.generation,
        strategy=view.strategy,
        config=view.config,
        token_budget=view.token_budget,
        trigger_ratio=view.trigger_ratio,
        target_ratio=view.target_ratio,
        tokenizer=view.tokenizer,
        default=view.default,
        created_at=timestamp(view.created_at_ms),
        updated_at=timestamp(view.updated_at_ms),
    )
