"""The table of all routes: read it first to know what the node answers.

Knows, for each route: method, path, scope, types in and out, statuses. Both the router and the OpenAPI document are made from it.
"""

from typing import Any

from prometheus_client import CollectorRegistry

from context_node.api_keys import Scope
from context_node.http import cluster, contexts, health, messages, policies, queries, restores, schemas, streams, window
from context_node.http.routing import Route
from context_node.runtime.admin import ClusterView, SelfView, ShardComparison

READ_REFUSALS = (400, 401, 403, 404, 503)
WRITE_REFUSALS = (400, 401, 403, 404, 409, 413, 415, 422, 503)
CONTEXT = "/v1/contexts/{id}"


def all_routes(registry: CollectorRegistry) -> tuple[Route, ...]:
    """Every route, in the order in which the documentation shows them."""
    return (
        *context_routes(),
        *message_routes(),
        *window_routes(),
        *stream_routes(),
        *policy_routes(),
        *cluster_routes(),
        *health_routes(registry),
    )


def context_routes() -> tuple[Route, ...]:
    one = {200: schemas.ContextAnswer}
    return (
        Route(
            method="PUT", path=CONTEXT, name="putContext", tag="Contexts", scope=Scope.WRITE, is_write=True, is_keyed=True,
            summary="Create a context, or change its configuration",
            description="What is left out keeps its value; an unchanged PUT writes nothing. A tombstoned context is revived.",
            handler=contexts.put, body=schemas.ContextBody, answers={200: schemas.ContextAnswer, 201: schemas.ContextAnswer},
            refusals=WRITE_REFUSALS,
        ),
        Route(
            method="GET", path=CONTEXT, name="getContext", tag="Contexts", scope=Scope.READ,
            summary="Show a context", handler=contexts.get, query=queries.ReadQuery, answers=one, refusals=READ_REFUSALS,
        ),
        Route(
            method="DELETE", path=CONTEXT, name="deleteContext", tag="Contexts", scope=Scope.WRITE, is_write=True,
            summary="Tombstone a context, or purge it",
            description="A tombstoned context is still readable and refuses writes. `purge=true` erases history and window for good.",
            handler=contexts.delete, query=queries.DeleteQuery, answers={204: None}, refusals=READ_REFUSALS,
        ),
        Route(
            method="PATCH", path=CONTEXT + "/metadata", name="patchMetadata", tag="Contexts", scope=Scope.WRITE,
            is_write=True, is_keyed=True, summary="Change metadata by a JSON merge patch (RFC 7396)",
            description="As JSON the body is `{\"metadata\": patch}`; as `application/merge-patch+json` it is the patch itself.",
            handler=contexts.patch_metadata, body=schemas.PatchBody, request_content_types=contexts.PATCH_TYPES, answers=one,
            refusals=WRITE_REFUSALS,
        ),
        Route(
            method="GET", path="/v1/contexts", name="listContexts", tag="Contexts", scope=Scope.READ,
            summary="List contexts", description="`metadata.KEY=VALUE` keeps contexts whose metadata has that scalar at the top level.",
            handler=contexts.list_contexts, query=queries.ListQuery, is_open_ended_query=True, answers={200: schemas.ContextsAnswer},
            refusals=(400, 401, 403, 503),
        ),
        Route(
            method="POST", path="/v1/contexts", name="createContext", tag="Contexts", scope=Scope.WRITE, is_write=True, is_keyed=True,
            summary="Create a context with a generated id", handler=contexts.create, body=schemas.ContextBody,
            answers={201: schemas.ContextAnswer}, refusals=WRITE_REFUSALS,
        ),
        Route(
            method="POST", path=CONTEXT + "/fork", name="forkContext", tag="Contexts", scope=Scope.WRITE, is_write=True,
            summary="Branch a new context off (not available yet)", handler=contexts.fork, refusals=(400, 401, 403, 422),
        ),
        Route(
            method="POST", path=CONTEXT + "/restore", name="restoreContext", tag="Contexts", scope=Scope.ADMIN, is_write=True,
            summary="Take a part of an archived context (for `contextstore restore` only)",
            description="The body is packed as that command packs it, and changes with it. Parts may be repeated; the context takes "
            "nothing else until it is whole.",
            handler=restores.restore, body=dict, request_content_types=(restores.MSGPACK,), answers={200: schemas.RestoreAnswer},
            refusals=(400, 401, 403, 409, 413, 415, 422, 503),
        ),
    )  # fmt: skip


def message_routes() -> tuple[Route, ...]:
    pins = CONTEXT + "/messages/{seq}/pin"
    return (
        Route(
            method="POST", path=CONTEXT + "/messages", name="appendMessages", tag="Messages", scope=Scope.WRITE,
            is_write=True, is_keyed=True, summary="Append one message, or several atomically",
            description="201 means: in the fsynced log of a majority, and applied. Retry with an `Idempotency-Key` or message `id`s.",
            handler=messages.append, query=queries.AppendQuery, body=schemas.AppendBody, answers={201: schemas.AppendAnswer},
            refusals=WRITE_REFUSALS,
        ),
        Route(
            method="GET", path=CONTEXT + "/messages", name="getMessages", tag="Messages", scope=Scope.READ,
            summary="Page through the history", handler=messages.page, query=queries.PageQuery, answers={200: schemas.MessagesAnswer},
            refusals=READ_REFUSALS,
        ),
        Route(
            method="GET", path=CONTEXT + "/tail", name="getTail", tag="Messages", scope=Scope.READ,
            summary="Page backwards from the newest message", description="Chronological within a page.", handler=messages.tail,
            query=queries.TailQuery, answers={200: schemas.MessagesAnswer}, refusals=READ_REFUSALS,
        ),
        Route(
            method="GET", path=CONTEXT + "/export", name="exportContext", tag="Messages", scope=Scope.READ, is_stream=True,
            summary="The whole history as JSON Lines, streamed", handler=messages.export, answers={200: None},
            content_types=("application/x-ndjson",), refusals=READ_REFUSALS,
        ),
        Route(
            method="PUT", path=pins, name="pinMessage", tag="Messages", scope=Scope.WRITE, is_write=True,
            summary="Keep a message in the window", handler=messages.pin, answers={200: schemas.VersionAnswer},
            refusals=(400, 401, 403, 404, 409, 422, 503),
        ),
        Route(
            method="DELETE", path=pins, name="unpinMessage", tag="Messages", scope=Scope.WRITE, is_write=True,
            summary="Let a message leave the window again", handler=messages.unpin, answers={200: schemas.VersionAnswer},
            refusals=(400, 401, 403, 404, 409, 422, 503),
        ),
    )  # fmt: skip


def window_routes() -> tuple[Route, ...]:
    return (
        Route(
            method="GET", path=CONTEXT + "/context", name="getWindow", tag="Window", scope=Scope.READ,
            summary="The window: what the model gets",
            description="Send the `ETag` of the last answer as `If-None-Match`: 304 if the window is the same.",
            handler=window.get, query=queries.WindowQuery, answers={200: schemas.WindowAnswerBody, 304: None},
            refusals=(400, 401, 403, 404, 409, 422, 503),
        ),
        Route(
            method="POST", path=CONTEXT + "/compact", name="compactContext", tag="Window", scope=Scope.WRITE, is_write=True, is_keyed=True,
            summary="Rewrite the window by hand", handler=window.compact, body=schemas.CompactBody,
            answers={200: schemas.VersionAnswer}, refusals=WRITE_REFUSALS,
        ),
    )  # fmt: skip


def stream_routes() -> tuple[Route, ...]:
    return (
        Route(
            method="GET", path=CONTEXT + "/stream", name="streamContext", tag="Streams", scope=Scope.READ, is_stream=True,
            summary="Follow a context: replay from a cursor, then live",
            description="A WebSocket, or Server-Sent Events with `Accept: text/event-stream`. Events: message, context, compaction, "
            "tombstoned, purged, gap, heartbeat, closing. Browsers offer the subprotocols `contextstore.v1` and `contextstore.bearer.KEY`, "
            "or bring a ticket.",
            handler=streams.stream, query=queries.StreamQuery, answers={101: None, 200: None}, content_types=("text/event-stream",),
            refusals=(400, 401, 403, 404, 409, 503),
        ),
        Route(
            method="POST", path=CONTEXT + "/stream-ticket", name="createStreamTicket", tag="Streams", scope=Scope.READ,
            summary="A short-lived pass for one stream, for pages that can set no header", handler=streams.ticket,
            answers={201: schemas.TicketAnswer}, refusals=READ_REFUSALS,
        ),
    )  # fmt: skip


def policy_routes() -> tuple[Route, ...]:
    one = "/v1/policies/{name}"
    return (
        Route(
            method="PUT", path=one, name="putPolicy", tag="Policies", scope=Scope.ADMIN, is_write=True,
            summary="Create or replace a policy", handler=policies.put, body=schemas.NamedPolicyBody,
            answers={200: schemas.NamedPolicyAnswer}, refusals=(400, 401, 403, 409, 413, 415, 422, 503),
        ),
        Route(
            method="GET", path=one, name="getPolicy", tag="Policies", scope=Scope.READ, summary="Show a policy",
            handler=policies.get, answers={200: schemas.NamedPolicyAnswer}, refusals=READ_REFUSALS,
        ),
        Route(
            method="DELETE", path=one, name="deletePolicy", tag="Policies", scope=Scope.ADMIN, is_write=True,
            summary="Delete a policy", description="Contexts that use it keep their copy; new references are refused.",
            handler=policies.delete, answers={204: None}, refusals=READ_REFUSALS,
        ),
        Route(
            method="GET", path="/v1/policies", name="listPolicies", tag="Policies", scope=Scope.READ, summary="List policies",
            handler=policies.list_policies, answers={200: schemas.PoliciesAnswer}, refusals=(400, 401, 403, 503),
        ),
    )  # fmt: skip


def cluster_routes() -> tuple[Route, ...]:
    shard = "/v1/cluster/shards/{shard}"
    step: dict[str, Any] = {
        "tag": "Cluster",
        "scope": Scope.ADMIN,
        "is_write": True,
        "answers": {204: None},
        "refusals": (400, 401, 403, 413, 415, 422, 503),
    }
    return (
        Route(
            method="GET", path="/v1/cluster", name="getCluster", tag="Cluster", scope=Scope.ADMIN,
            summary="Show nodes and shards", description="Asks every node; one that does not answer within 2 s is shown as not alive.",
            handler=cluster.look, answers={200: ClusterView}, refusals=(400, 401, 403, 422, 503),
        ),
        Route(
            method="GET", path="/v1/cluster/self", name="getSelf", tag="Cluster", scope=Scope.ADMIN,
            summary="Show the node that is asked", description="Answers also while the node waits for a cluster.",
            handler=cluster.look_at_self, answers={200: SelfView}, refusals=(400, 401, 403, 422, 503),
        ),
        Route(
            method="GET", path="/v1/cluster/policies", name="getNodePolicies", tag="Cluster", scope=Scope.ADMIN,
            summary="Show which named policies each node follows",
            handler=cluster.policies, answers={200: schemas.NodePoliciesAnswer}, refusals=(400, 401, 403, 422, 503),
        ),
        Route(
            method="POST", path="/v1/cluster", name="beginCluster", summary="Have the node that is asked begin a cluster",
            description="For a node that was started with --join and waits. Do so once, on one node: the others are taken in by it. "
            "Repeating it with the same id does nothing.",
            handler=cluster.begin, body=schemas.BeginBody, **step,
        ),
        Route(
            method="PATCH", path="/v1/cluster", name="changeCluster", summary="Change the replication factor, raise the feature level",
            description="Raise the feature level when every node runs the new version; older ones are refused from then on.",
            handler=cluster.change, body=schemas.ClusterBody, **step,
        ),
        Route(
            method="PATCH", path="/v1/cluster/nodes/{node}", name="changeNode", summary="Cordon, drain or remove a node",
            description="`node` is a name or a number. Draining only says what is wished: the planner moves the replicas away.",
            handler=cluster.change_node, body=schemas.NodeBody, **step,
        ),
        Route(
            method="POST", path=shard + "/learners", name="addLearner", summary="Give a node a replica that follows",
            handler=cluster.add_learner, body=schemas.LearnerBody, **step,
        ),
        Route(
            method="POST", path=shard + "/members", name="changeMembers", summary="Make learners voters, take replicas out",
            description="One joint change. Refused for a learner that is far behind, and for the leader's own replica.",
            handler=cluster.change_members, body=schemas.MembersBody, **step,
        ),
        Route(
            method="POST", path=shard + "/leader", name="transferLeader", summary="Hand a shard's leadership over",
            handler=cluster.transfer_leader, body=schemas.LeaderBody, **step,
        ),
        Route(
            method="POST", path=shard + "/compare", name="compareReplicas", tag="Cluster", scope=Scope.ADMIN,
            summary="Compare the replicas of a shard",
            description="Each hashes its whole state right behind the same log entry, while writes go on.",
            handler=cluster.compare, answers={200: ShardComparison}, refusals=(400, 401, 403, 422, 503),
        ),
    )  # fmt: skip


def health_routes(registry: CollectorRegistry) -> tuple[Route, ...]:
    return (
        Route(
            method="GET", path="/health/live", name="getLive", tag="Node", scope=None, is_exempt=True, summary="The process answers",
            handler=health.live, answers={200: schemas.HealthAnswer},
        ),
        Route(
            method="GET", path="/health/ready", name="getReady", tag="Node", scope=None, is_exempt=True,
            summary="The node serves", handler=health.ready, answers={200: schemas.HealthAnswer, 503: schemas.HealthAnswer},
        ),
        Route(
            method="GET", path="/metrics", name="getMetrics", tag="Node", scope=None, is_exempt=True, summary="Metrics for Prometheus",
            handler=health.MetricsRoute(registry), answers={200: None}, content_types=("text/plain",),
        ),
        Route(
            method="GET", path="/openapi.json", name="getOpenapi", tag="Node", scope=None, is_exempt=True, summary="This document",
            handler=health.openapi, answers={200: dict},
        ),
        Route(
            method="GET", path="/docs", name="getDocs", tag="Node", scope=None, is_exempt=True, summary="This document, to read",
            handler=health.docs, answers={200: None}, content_types=("text/html",),
        ),
    )  # fmt: skip
