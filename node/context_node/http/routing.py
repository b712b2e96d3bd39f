"""Which handler answers a path, and everything else that is true of a route.

Knows paths, methods, scopes, and the types that a route takes and gives (for the OpenAPI document). Does not know what handlers do. Paths
are split before they are percent-decoded, so that an encoded slash stays inside its segment. Invariant: a path and method belong to one
route at most.
"""

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from aiohttp import web

from context_node.api_keys import Scope
from context_node.http.problems import MethodNotAllowed, RouteNotFound
from context_node.http.replies import Reply

Handler = Callable[..., Awaitable[Reply | web.StreamResponse]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One method on one path.

    `scope` is what a key needs (None: no key needed). `is_write` marks what changes state: a timeout leaves its outcome unknown.
    `is_stream` lifts the timeout. `is_exempt` lifts the bound on requests in flight: probes must answer under load.
    `answers` maps a status to the type of its JSON body (None: no body); `refusals` are the other documented statuses.
    """

    method: str
    path: str
    name: str
    summary: str
    handler: Handler
    scope: Scope | None
    query: type | None = None
    body: type | None = None
    answers: Mapping[int, type | None] = field(default_factory=dict)
    refusals: tuple[int, ...] = ()
    content_types: tuple[str, ...] = ("application/json",)
    request_content_types: tuple[str, ...] = ("application/json",)
    tag: str = ""
    is_write: bool = False
    is_keyed: bool = False
    is_stream: bool = False
    is_exempt: bool = False
    is_open_ended_query: bool = False
    description: str = ""


class _Node:
    __slots__ = ("below", "parameter", "routes")

    def __init__(self) -> None:
        self.below: dict[str, _Node] = {}
        self.parameter: _Node | None = None
        self.routes: dict[str, Route] = {}


class Router:
    """The table of routes as a tree of segments."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self.routes = tuple(routes)
        self._root = _Node()
        for route in self.routes:
            self._add(route)

    def _add(self, route: Route) -> None:
        node = self._root
        for segment in route.path.split("/")[1:]:
            if segment.startswith("{"):
                node.parameter = node.parameter or _Node()
                node = node.parameter
            else:
                node = node.below.setdefault(segment, _Node())
        if route.method in node.routes:
            raise ValueError(f"two routes for {route.method} {route.path}")
        node.routes[route.method] = route
        if route.method == "GET" and not route.is_stream:
            node.routes["HEAD"] = route

    def find(self, method: str, path: str) -> tuple[Route, tuple[str, ...]]:
        """The route and its path parameters, percent-decoded. `path` is as it came, without the query. Raises RouteNotFound,
        MethodNotAllowed."""
        node: _Node | None = self._root
        parameters: tuple[str, ...] = ()
        for segment in path.split("/")[1:]:
            below = node.below.get(segment) if node is not None else None
            if below is None and node is not None and node.parameter is not None:
                parameters += (unquote(segment, errors="surrogateescape") if "%" in segment else segment,)
                below = node.parameter
            if below is None:
                raise RouteNotFound("There is nothing at this path; GET /openapi.json lists every route.")
            node = below
        if node is None or not node.routes:
            raise RouteNotFound("There is nothing at this path; GET /openapi.json lists every route.")
        route = node.routes.get(method)
        if route is None:
            allow = ", ".join(sorted(node.routes))
            raise MethodNotAllowed(f"This path takes {allow}.", allow=allow)
        return route, parameters

    def methods_of(self, path: str) -> str:
        """The methods that a path takes, as `Allow` lists them. Raises RouteNotFound."""
        try:
            self.find("", path)
        except MethodNotAllowed as refusal:
            return str(refusal.details["allow"])
        raise RouteNotFound("There is nothing at this path.")


Parameters = tuple[str, ...]
Answers = Mapping[int, type[Any] | None]
