"""The wiring of the edge: from a service and its settings to something that answers requests.

Knows every part of `http/`, and no more of the node than the `Service` it is given.
"""

import os
import time
from collections.abc import Callable, Iterable

import msgspec
from prometheus_client import CollectorRegistry

from context_node.http import docs_page, openapi
from context_node.http.auth import Access, KeyVerifier, Tickets
from context_node.http.edge import Edge, Parts
from context_node.http.limits import HttpLimits
from context_node.http.metrics import HttpMetrics
from context_node.http.replies import Reply, json_reply
from context_node.http.routes import all_routes
from context_node.http.routing import Router
from context_node.http.serve import HttpServer, serve
from context_node.http.service import Admin, Service

__all__ = ["HttpServer", "build_app", "serve"]


def build_app(
    service: Service,
    *,
    version: str,
    limits: HttpLimits | None = None,
    keyring: KeyVerifier | None = None,
    open_mode: bool = False,
    registry: CollectorRegistry | None = None,
    cors_origins: Iterable[str] = (),
    access_log: bool = False,
    admin: Admin | None = None,
    clock: Callable[[], float] = time.perf_counter,
    now: Callable[[], float] = time.time,
    random: Callable[[int], bytes] = os.urandom,
) -> Edge:
    """The edge of one node, ready for `serve`.

    Without `open_mode` a `keyring` is needed: a node that nobody can use, or that all can, is never made by leaving something out.
    Raises `ValueError` for neither.
    """
    if not open_mode and keyring is None:
        raise ValueError("give a keyring, or open_mode=True")
    limits = limits if limits is not None else HttpLimits()
    registry = registry if registry is not None else CollectorRegistry()
    routes = all_routes(registry)
    edge = Edge(
        Parts(
            service=service,
            limits=limits,
            router=Router(routes),
            access=Access(None if open_mode else keyring, frozenset(cors_origins)),
            tickets=Tickets(random(32), limits.ticket_ttl_s, now),
            metrics=HttpMetrics(registry, tuple(dict.fromkeys(route.path for route in routes))),
            clock=clock,
            now=now,
            boot_id=random(6).hex(),
            version=version,
            access_log=access_log,
            admin=admin,
        )
    )
    document = openapi.document(routes, version)
    edge.documents["openapi"] = json_reply(200, document, (("Cache-Control", "no-cache"),))
    html = docs_page.page(msgspec.json.decode(document))
    edge.documents["docs"] = Reply(
        200, html, "text/html; charset=utf-8", (("Content-Security-Policy", docs_page.SECURITY_POLICY), ("Cache-Control", "no-cache"))
    )
    return edge
