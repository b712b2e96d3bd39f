"""Contexts themselves: create, change, show, list, delete; and their metadata.

Knows how a configuration body becomes a `PutContext` and how a context is shown. Does not know what the configuration does.
"""

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import msgspec

from context_node.contexts.refusals import InvalidRequest, Unavailable
from context_node.contexts.replies import ContextView
from context_node.contexts.requests import ListContexts, PatchMetadata, PolicyChoice, PutContext
from context_node.http import codec
from context_node.http.calls import Call, check_content_type, id_of, key_of, read_body
from context_node.http.messages import check_metadata
from context_node.http.problems import NotAvailable
from context_node.http.queries import DeleteQuery, NoQuery, ReadQuery, local_of, parse_list_query, parse_query
from context_node.http.replies import Reply, empty_reply, json_reply
from context_node.http.schemas import (
    ContextAnswer,
    ContextBody,
    ContextsAnswer,
    PatchBody,
    PolicyAnswer,
    PolicyBody,
)

if TYPE_CHECKING:
    from context_node.http.edge import Edge

_CONTEXT = msgspec.json.Decoder(ContextBody)
_PATCH = msgspec.json.Decoder(PatchBody)
_OBJECT = msgspec.json.Decoder(dict[str, Any])
_ENCODE = msgspec.json.Encoder().encode
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MERGE_PATCH = "application/merge-patch+json"
PATCH_TYPES = ("application/json", MERGE_PATCH)


async def put(edge: "Edge", call: Call) -> Reply:
    """PUT /v1/contexts/{id}"""
    context_id = id_of(call, edge.limits.id_bytes_max)
    parse_query(call.query, NoQuery)
    request = await _put_request(edge, call)
    done, view = await edge.service.put_context(context_id, request)
    headers = [("X-Context-Leader", edge.service.leader_of(context_id))]
    if done.created:
        headers.append(("Location", f"/v1/contexts/{context_id}"))
    return json_reply(201 if done.created else 200, context_json(view), headers)


async def create(edge: "Edge", call: Call) -> Reply:
    """POST /v1/contexts: the id is generated, sorts by time, and follows from key and caller if an idempotency key is given."""
    parse_query(call.query, NoQuery)
    request = await _put_request(edge, call)
    context_id, _, view = await edge.service.create_context(request, call.identity.key_id)
    headers = (("X-Context-Leader", edge.service.leader_of(context_id)), ("Location", f"/v1/contexts/{context_id}"))
    return json_reply(201, context_json(view), headers)


async def _put_request(edge: "Edge", call: Call) -> PutContext:
    check_content_type(call, ("application/json",))
    data = await read_body(call, edge.limits.batch_bytes_max)
    body = codec.decode(data, _CONTEXT, edge.limits.json_depth_max) if data.strip() else ContextBody()
    if body.metadata is not None:
        check_metadata(body.metadata, "metadata", edge.limits.metadata_bytes_max)
    check_ratios(body.trigger_ratio, body.target_ratio)
    return PutContext(
        token_budget=body.token_budget,
        trigger_ratio=body.trigger_ratio,
        target_ratio=body.target_ratio,
        policy=_policy_choice(body.policy) if body.policy is not None else None,
        tokenizer=body.tokenizer,
        metadata=body.metadata,
        recount=body.recount is True,
        key=key_of(call),
    )


def check_ratios(trigger_ratio: float | None, target_ratio: float | None) -> None:
    """0 < target < trigger <= 1, as far as it can be told without the context."""
    if target_ratio is not None and target_ratio >= (trigger_ratio if trigger_ratio is not None else 1.0):
        raise InvalidRequest("target_ratio must be below trigger_ratio.", field="target_ratio")


def _policy_choice(body: PolicyBody) -> PolicyChoice:
    if (body.strategy is None) == (body.ref is None):
        raise InvalidRequest("policy needs either a strategy or a ref.", field="policy")
    if body.ref is not None:
        if body.config is not None:
            raise InvalidRequest("policy.config goes with a strategy; a ref has its own.", field="policy.config")
        return PolicyChoice(ref=body.ref)
    return PolicyChoice(strategy=body.strategy, config=body.config or {})


async def get(edge: "Edge", call: Call) -> Reply:
    """GET /v1/contexts/{id}"""
    context_id = id_of(call, edge.limits.id_bytes_max)
    query = parse_query(call.query, ReadQuery)
    view = await edge.service.get_context(context_id, local_of(query))
    check_min_version(query.min_version, view.version)
    return json_reply(200, context_json(view), (("X-Context-Leader", edge.service.leader_of(context_id)),))


def check_min_version(min_version: int | None, version: int) -> None:
    """Of a linearizable read there is nothing to wait for: a version that is not there was never acknowledged."""
    if min_version is not None and version < min_version:
        raise Unavailable(f"The context is at version {version}, not yet at {min_version}; retry shortly.", version=version)


async def patch_metadata(edge: "Edge", call: Call) -> Reply:
    """PATCH /v1/contexts/{id}/metadata"""
    context_id = id_of(call, edge.limits.id_bytes_max)
    parse_query(call.query, NoQuery)
    content_type = check_content_type(call, PATCH_TYPES)
    data = await read_body(call, edge.limits.batch_bytes_max)
    if content_type == MERGE_PATCH:
        patch = codec.decode(data, _OBJECT, edge.limits.json_depth_max)
    else:
        patch = codec.decode(data, _PATCH, edge.limits.json_depth_max).metadata
    # What it leaves is checked where the metadata is; a patch above twice the limit cannot be meant.
    check_metadata(patch, "metadata", 2 * edge.limits.metadata_bytes_max)
    view = await edge.service.patch_metadata(context_id, PatchMetadata(patch, key_of(call)))
    return json_reply(200, context_json(view), (("X-Context-Leader", edge.service.leader_of(context_id)),))


async def delete(edge: "Edge", call: Call) -> Reply:
    """DELETE /v1/contexts/{id}"""
    context_id = id_of(call, edge.limits.id_bytes_max)
    query = parse_query(call.query, DeleteQuery)
    if query.purge:
        await edge.service.purge_context(context_id)
    else:
        await edge.service.delete_context(context_id)
    return empty_reply(204, (("X-Context-Leader", edge.service.leader_of(context_id)),))


async def list_contexts(edge: "Edge", call: Call) -> Reply:
    """GET /v1/contexts"""
    query, metadata = parse_list_query(call.query)
    if query.limit > edge.limits.page_messages_max:
        raise InvalidRequest(f"limit is at most {edge.limits.page_messages_max}.", field="limit")
    request = ListContexts(query.prefix, query.status, metadata, query.order, query.limit, query.cursor)
    views, next_cursor = await edge.service.list_contexts(request)
    return json_reply(200, _ENCODE(ContextsAnswer([context_answer(view) for view in views], next_cursor)))


async def fork(edge: "Edge", call: Call) -> Reply:
    """POST /v1/contexts/{id}/fork: comes in a later version."""
    id_of(call, edge.limits.id_bytes_max)
    raise NotAvailable("Forking a context is not available in this version.", feature="fork")


def context_json(view: ContextView) -> bytes:
    return _ENCODE(context_answer(view))


def context_answer(view: ContextView) -> ContextAnswer:
    """A context as clients see it."""
    policy = view.policy
    return ContextAnswer(
        id=view.id,
        status=view.status,
        token_budget=view.token_budget,
        trigger_ratio=view.trigger_ratio,
        target_ratio=view.target_ratio,
        policy=PolicyAnswer(
            strategy=msgspec.UNSET if policy.strategy is None else policy.strategy,
            config=msgspec.UNSET if policy.config is None else policy.config,
            ref=msgspec.UNSET if policy.ref is None else policy.ref,
            generation=msgspec.UNSET if policy.generation is None else policy.generation,
            deleted=True if policy.deleted else msgspec.UNSET,
        ),
        tokenizer=view.tokenizer,
        metadata=view.metadata,
        version=view.version,
        revision=view.revision,
        incarnation=view.incarnation,
        last_seq=view.last_seq,
        archived_seq=view.archived_seq,
        used_tokens=view.used_tokens,
        created_at=timestamp(view.created_at_ms),
        updated_at=timestamp(view.updated_at_ms),
        tombstoned_at=None if view.tombstoned_at_ms is None else timestamp(view.tombstoned_at_ms),
    )


def timestamp(time_ms: int) -> str:
    """Milliseconds since the epoch as RFC 3339 in UTC, `2026-01-02T03:04:05.006Z`."""
    return (_EPOCH + timedelta(milliseconds=time_ms)).isoformat(timespec="milliseconds").replace("+00:00", "Z")
