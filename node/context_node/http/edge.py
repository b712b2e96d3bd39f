"""What happens to every request, whatever its route: id, route, bounds, key, deadline, answer, counts.

Knows no handler and no context. It is one function around the handlers rather than a chain of middlewares: each layer of a chain costs an
await and a frame, and here the order can be read. Invariants: every answer has a request id and the error shape; a refusal costs no work
that could have been refused before; what is counted in flight is counted out again on every path.
"""

import asyncio
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from aiohttp import WSCloseCode, web
from aiohttp.web_request import BaseRequest

from context_node.contexts.refusals import OutcomeUnknown, Overloaded, Refusal, Unavailable
from context_node.http import auth, compression
from context_node.http.auth import Access, Tickets
from context_node.http.calls import Call
from context_node.http.deadlines import Deadlines
from context_node.http.limits import HttpLimits
from context_node.http.logs import event
from context_node.http.metrics import NO_ROUTE, HttpMetrics
from context_node.http.problems import InternalError, problem
from context_node.http.queries import StreamQuery, parse_query
from context_node.http.replies import Reply, empty_reply
from context_node.http.routing import Route, Router
from context_node.http.service import Admin, Service
from context_node.http.streams import Slot
from context_node.http.wire import DateLine, WireResponse

logger = logging.getLogger("contextstore.http")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}\Z")
OVERLOADED_RETRY_S = 1
KEY_REVOKED = "key revoked"


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What the edge is made of, passed in. `clock` is monotonic seconds, `now` seconds since the epoch, `boot_id` is unique to this
    start."""

    service: Service
    limits: HttpLimits
    router: Router
    access: Access
    tickets: Tickets
    metrics: HttpMetrics
    clock: Callable[[], float]
    now: Callable[[], float]
    boot_id: str
    version: str
    access_log: bool = False
    admin: Admin | None = None
    """None for a node that runs alone."""


class Edge:
    """The entry for every request. `documents` holds what is made once: the OpenAPI document and the page."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.service = parts.service
        self.limits = parts.limits
        self.metrics = parts.metrics
        self.documents: dict[str, Reply] = {}
        self.streams: set[Slot] = set()
        self.is_draining = False
        """Not ready any more, but still serving."""
        self.is_closing = False
        """Takes no new streams."""
        self._deadlines = Deadlines(parts.limits.request_timeout_s, parts.clock)
        self._dates = DateLine(parts.now, "contextstore")
        self._requests = 0
        self._cors = parts.access.cors_origins
        if parts.access.keyring is not None:
            parts.access.keyring.on_change(self.close_revoked_streams)

    async def handle(self, request: BaseRequest) -> web.StreamResponse:
        """Answer one request. Never raises anything but cancellation and a lost connection."""
        started = self.parts.clock()
        request_id = self._request_id(request)
        counts = self.metrics.of_route[NO_ROUTE]
        self.metrics.in_flight += 1
        try:
            path, _, query = request.raw_path.partition("?")
            if not path.startswith("/"):
                path = request.rel_url.raw_path  # absolute-form, as proxies send it
            if request.method == "OPTIONS" and self._is_preflight(request):
                answer: Reply | web.StreamResponse = self._preflight(request, path)
            else:
                route, parameters = self.parts.router.find(request.method, path)
                counts = self.metrics.of_route[route.path]
                answer = await self._answer(request, route, parameters, query, request_id)
        except Refusal as refusal:
            answer = problem(refusal)
        except ConnectionError:
            raise
        except Exception:
            event(logger, "request_failed", logging.ERROR, exc_info=True, request_id=request_id, method=request.method)
            answer = problem(InternalError("Something went wrong on our side; the node's log has more under this request's id."))
        finally:
            self.metrics.in_flight -= 1
        counts.observe(answer.status, self.parts.clock() - started)
        if self.parts.access_log:
            seconds = self.parts.clock() - started
            event(logger, "request", request_id=request_id, method=request.method, path=path, status=answer.status, seconds=seconds)
        if not isinstance(answer, Reply):
            return answer
        return await self._to_wire(request, answer, request_id)

    async def _answer(
        self, request: BaseRequest, route: Route, parameters: tuple[str, ...], query: str, request_id: str
    ) -> Reply | web.StreamResponse:
        limits = self.limits
        if self.metrics.in_flight - self.metrics.streams > limits.requests_in_flight_max and not route.is_exempt:
            self.metrics.refused_overload += 1
            raise Overloaded("The node has too many requests at once; retry shortly.", retry_after_s=OVERLOADED_RETRY_S)
        ticket_key = self._key_of_ticket(parameters, query) if route.is_stream and "ticket=" in query else None
        identity = self.parts.access.identify(request, route, ticket_key)
        call = Call(request, route, parameters, query, request_id, identity)
        if route.is_stream:
            return await route.handler(self, call)
        # Here, not in a wrapper: another coroutine around every request would cost as much as the timer that this saves.
        task = request.task
        self._deadlines.begin(task)
        try:
            answer = await route.handler(self, call)
        except asyncio.CancelledError:
            if self._deadlines.has_expired(task):
                raise self._too_slow(route) from None
            raise
        finally:
            self._deadlines.end(task)
        self.metrics.bytes_in += call.bytes_in
        return answer

    def _too_slow(self, route: Route) -> Refusal:
        timeout_s = self.limits.request_timeout_s
        if route.is_write:
            return OutcomeUnknown(
                "The write was not confirmed in time and may or may not have happened; retry it with the same idempotency key.",
                timeout_s=timeout_s,
            )
        return Unavailable("The answer was not ready in time; retry shortly.", timeout_s=timeout_s)

    def _key_of_ticket(self, parameters: tuple[str, ...], query: str) -> str | None:
        ticket = parse_query(query, StreamQuery).ticket
        return None if ticket is None else self.parts.tickets.key_of(ticket, parameters[0])

    async def _to_wire(self, request: BaseRequest, reply: Reply, request_id: str) -> WireResponse:
        limits = self.limits
        if len(reply.body) >= limits.compression_bytes_min and limits.compression:
            reply = await compression.compressed(reply, request.headers.get("Accept-Encoding", ""))
        self.metrics.bytes_out += len(reply.body)
        common = self._dates.line() + b"X-Request-Id: " + request_id.encode("ascii") + b"\r\n"
        if self._cors and "Origin" in request.headers:
            reply.headers += tuple(auth.cors_headers(request.headers["Origin"], self._cors).items())
        return WireResponse(reply, common)

    def document(self, name: str) -> Reply:
        """A document that was made at the start; a copy, since an answer gets headers of its own."""
        made = self.documents[name]
        return Reply(made.status, made.body, made.content_type, made.headers)

    def cors_headers(self, origin: str) -> Mapping[str, str]:
        return auth.cors_headers(origin, self._cors)

    def close(self) -> None:
        """Nothing is being worked on any more."""
        self._deadlines.close()

    def close_streams(self, reason: str) -> None:
        """End every stream with a reason, and take no new ones. Does not wait."""
        self.is_closing = True
        for stream in tuple(self.streams):
            stream.stop(reason)

    def close_revoked_streams(self) -> None:
        """End the streams whose key is not good any more; called when the keys changed. Does not wait."""
        for stream in tuple(self.streams):
            if not self.parts.access.still_allows(stream.identity, stream.scope):
                stream.stop(KEY_REVOKED, WSCloseCode.POLICY_VIOLATION)

    def _request_id(self, request: BaseRequest) -> str:
        """The client's own id for the request if it is a sane one, else a new one."""
        given = request.headers.get("X-Request-Id")
        if given is not None and _REQUEST_ID.match(given):
            return given
        self._requests += 1
        return f"{self.parts.boot_id}-{self._requests:x}"

    def _is_preflight(self, request: BaseRequest) -> bool:
        return bool(self._cors) and "Origin" in request.headers and "Access-Control-Request-Method" in request.headers

    def _preflight(self, request: BaseRequest, path: str) -> Reply:
        methods = self.parts.router.methods_of(path)
        if not auth.cors_headers(request.headers["Origin"], self._cors):
            return empty_reply(204)
        return empty_reply(204, (("Access-Control-Allow-Methods", methods), *auth.PREFLIGHT_HEADERS))
