"""The edge on a socket: listen, serve, and stop in order.

Knows aiohttp's low-level server, which hands every request to one function: the table of routes is ours, so aiohttp's router would only
cost. Does not know what is served. Invariants: after `stop` returns, no request is being worked on; readiness fails before anything else
does; at most `connections_max` connections are open, and none stays open without a request: before the first head `head_timeout_s` bounds
it, after an answer keep-alive does, which half a head does not prolong.
"""

import asyncio
import logging
import ssl
from itertools import takewhile
from typing import Any, cast

from aiohttp import web
from aiohttp.web_request import BaseRequest

from context_node.http.edge import Edge
from context_node.http.logs import event
from context_node.http.problems import encode_problem

logger = logging.getLogger("contextstore.http")
KEEPALIVE_S = 75.0
"""Longer than the idle timeout of usual load balancers (60 s), so that it is they who close."""
SHUTDOWN_TIMEOUT_S = 10.0
LINGER_S = 3.0
"""How long the rest of a refused body is read and dropped, so that its sender sees the answer instead of a reset."""
LINE_BYTES_MAX = 2 * 1024 * 1024
"""Longest request line. Generous, because a line above it can only be answered by closing, which resets the connection under a client that
is still sending: an id of a mebibyte shall get its 400."""
HEADER_BYTES_MAX = 16 * 1024
BACKLOG = 1024
SWEEPS_PER_TIMEOUT = 4
SWEEP_S_MAX = 1.0
STOP_REASON = "the node is stopping"


class Connection(web.RequestHandler):
    """aiohttp's connection, counted, and with our shape for what is refused before it is a request: bad HTTP, heads that are too long."""

    __slots__ = ("_listener",)

    def __init__(self, listener: "Listener", **options: Any) -> None:
        super().__init__(listener, **options)
        self._listener = listener

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if self._listener.admit(self):
            super().connection_made(transport)
        else:
            # Whether it would have been a probe cannot be told without reading, and reading is what there is no room for.
            self._force_close = True
            cast(asyncio.Transport, transport).abort()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._listener.forget(self)
        super().connection_lost(exc)

    def resume_reading(self, resume_parser: bool = True) -> None:
        """Every read of a body asks for this, and aiohttp then looks through its parser for what it may have held back: a tenth of its work
        for a small request. What was never paused holds nothing back."""
        if self._reading_paused or self._buffer_paused:
            super().resume_reading(resume_parser)

    def has_begun(self) -> bool:
        """Whether the head of a request, good or bad, has come."""
        return self._request_count > 0

    def handle_error(
        self, request: BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        if status == 500:
            event(logger, "connection_failed", logging.ERROR, exc_info=exc)
        code = "bad_http" if status == 400 else "internal_error"
        text = "This is not a valid HTTP request." if status == 400 else "Something went wrong on our side."
        why = (message or "").partition("\n")[0][:200]
        body = encode_problem(code, text, {"why": why} if why and status == 400 else {})
        response = web.Response(status=status, body=body, content_type="application/json")
        response.force_close()
        return response


class Listener(web.Server):
    """aiohttp's server, making our connections, within bounds.

    New connections are watched by one sweep, oldest first, that looks at each once, when its time for a head is over: a timer for each
    connection or a look at each request would cost more.
    """

    def __init__(self, edge: Edge, **options: Any) -> None:
        super().__init__(edge.handle, **options)
        self._options = options
        self._edge = edge
        self._open: set[Connection] = set()
        self._new: dict[Connection, float] = {}
        """When connections opened that were not looked at since, oldest first."""
        self._sweep_s = min(SWEEP_S_MAX, edge.limits.head_timeout_s / SWEEPS_PER_TIMEOUT)
        self._sweep_timer = asyncio.get_running_loop().call_later(self._sweep_s, self._sweep)

    def __call__(self) -> web.RequestHandler:
        return Connection(self, loop=asyncio.get_running_loop(), **self._options)

    def admit(self, connection: Connection) -> bool:
        """Whether there is room for one more; it then counts until it is forgotten."""
        metrics = self._edge.metrics
        if len(self._open) >= self._edge.limits.connections_max:
            metrics.refused_connections += 1
            return False
        self._open.add(connection)
        self._new[connection] = self._edge.parts.clock()
        metrics.connections += 1
        return True

    def forget(self, connection: Connection) -> None:
        """The connection is closed, or never was admitted."""
        if connection in self._open:
            self._open.remove(connection)
            self._new.pop(connection, None)
            self._edge.metrics.connections -= 1

    def stop_sweeping(self) -> None:
        self._sweep_timer.cancel()

    def _sweep(self) -> None:
        """Close the connections that never sent a whole head and had their time."""
        self._sweep_timer = asyncio.get_running_loop().call_later(self._sweep_s, self._sweep)
        opened_before = self._edge.parts.clock() - self._edge.limits.head_timeout_s
        for connection in [one for one, _ in takewhile(lambda entry: entry[1] <= opened_before, self._new.items())]:
            del self._new[connection]
            if not connection.has_begun():
                self._edge.metrics.late_heads += 1
                connection.force_close()


class HttpServer:
    """One edge on one address. `host` and `port` are what it really listens on."""

    def __init__(self, edge: Edge) -> None:
        self.edge = edge
        self.host = ""
        self.port = 0
        self._runner: web.ServerRunner | None = None
        self._listener: Listener | None = None
        self._scheme = "http"

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self._scheme}://{host}:{self.port}"

    async def start(self, host: str, port: int, tls: ssl.SSLContext | None = None) -> None:
        """Listen; port 0 takes a free one. Raises OSError if the address cannot be had."""
        self._scheme = "http" if tls is None else "https"
        options = {
            "access_log": None,
            "keepalive_timeout": KEEPALIVE_S,
            "lingering_time": LINGER_S,
            "max_line_size": LINE_BYTES_MAX,
            "max_field_size": HEADER_BYTES_MAX,
        }
        listener = Listener(self.edge, **options)
        runner = web.ServerRunner(listener, handle_signals=False, shutdown_timeout=SHUTDOWN_TIMEOUT_S)
        await runner.setup()
        try:
            await web.TCPSite(runner, host, port, backlog=BACKLOG, ssl_context=tls).start()
        except BaseException:
            listener.stop_sweeping()
            await runner.cleanup()
            raise
        self._runner, self._listener = runner, listener
        self.host, self.port = runner.addresses[0][:2]
        event(logger, "listening", url=self.url)

    async def stop(self, drain_s: float = 0.0) -> None:
        """Fail readiness, serve on for `drain_s` seconds, end the streams with a reason, finish what is being worked on, close."""
        self.edge.is_draining = True
        if drain_s > 0:
            await asyncio.sleep(drain_s)
        self.edge.close_streams(STOP_REASON)
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
        if self._listener is not None:
            self._listener.stop_sweeping()
            self._listener = None
        self.edge.close()
        event(logger, "stopped_listening")


async def serve(edge: Edge, host: str, port: int, tls: ssl.SSLContext | None = None) -> HttpServer:
    """Start serving; the caller stops the server."""
    server = HttpServer(edge)
    await server.start(host, port, tls)
    return server


__all__ = ["HttpServer", "serve"]
