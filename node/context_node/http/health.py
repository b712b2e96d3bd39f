"""What machines and newcomers ask first: alive, ready, metrics, the OpenAPI document, its page.

Knows no context. These routes need no key and are answered under load too. `/metrics` tells rates and sizes, never ids.
"""

from typing import TYPE_CHECKING

import msgspec
from prometheus_client import CollectorRegistry

from context_node.http import metrics
from context_node.http.calls import Call
from context_node.http.replies import Reply, json_reply
from context_node.http.schemas import HealthAnswer

if TYPE_CHECKING:
    from context_node.http.edge import Edge

_ENCODE = msgspec.json.Encoder().encode


async def live(edge: "Edge", call: Call) -> Reply:
    """GET /health/live: the process answers."""
    return json_reply(200, _ENCODE(HealthAnswer("live", edge.parts.version)))


async def ready(edge: "Edge", call: Call) -> Reply:
    """GET /health/ready: the store is recovered and the node is not draining. Never about leadership or quorum."""
    is_ready, reason = edge.service.ready()
    if edge.is_draining:
        is_ready, reason = False, "the node is stopping"
    if is_ready:
        return json_reply(200, _ENCODE(HealthAnswer("ready", edge.parts.version)))
    return json_reply(503, _ENCODE(HealthAnswer("not_ready", edge.parts.version, reason)), (("Retry-After", "1"),))


class MetricsRoute:
    """GET /metrics, over one registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    async def __call__(self, edge: "Edge", call: Call) -> Reply:
        return Reply(200, metrics.exposition(self._registry), metrics.CONTENT_TYPE)


async def openapi(edge: "Edge", call: Call) -> Reply:
    """GET /openapi.json"""
    return edge.document("openapi")


async def docs(edge: "Edge", call: Call) -> Reply:
    """GET /docs"""
    return edge.document("docs")
