"""The edge on a socket: listen, serve, and stop in order.

Knows aiohttp's low-level server, which hands every request to one function: the table of routes is ours, so aiohttp's router would only
cost. Does not know what is served. Invariants: after `stop` returns, no request is being worked on; readiness fails before anything else
does.
"""

import asyncio
import logging
from typing import Any

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
STOP_REASON = "the node is stopping"


class Connection(web.RequestHandler):
    """aiohttp's connection, with our shape for what is refused before it is a request: bad HTTP, heads that are too long."""

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
    """aiohttp's server, making our connections."""

    def __init__(self, edge: Edge, **options: Any) -> None:
        super().__init__(edge.handle, **options)
        self._options = options

    def __call__(self) -> web.RequestHandler:
        return Connection(self, loop=asyncio.get_running_loop(), **self._options)


class HttpServer:
    """One edge on one address. `host` and `port` are what it really listens on."""

    def __init__(self, edge: Edge) -> None:
        self.edge = edge
        self.host = ""
        self.port = 0
        self._runner: web.ServerRunner | None = None

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    async def start(self, host: str, port: int) -> None:
        """Listen; port 0 takes a free one. Raises OSError if the address cannot be had."""
        options = {
            "access_log": None,
            "keepalive_timeout": KEEPALIVE_S,
            "lingering_time": LINGER_S,
            "max_line_size": LINE_BYTES_MAX,
            "max_field_size": HEADER_BYTES_MAX,
        }
        runner = web.ServerRunner(Listener(self.edge, **options), handle_signals=False, shutdown_timeout=SHUTDOWN_TIMEOUT_S)
        await runner.setup()
        try:
            await web.TCPSite(runner, host, port, backlog=BACKLOG).start()
        except BaseException:
            await runner.cleanup()
            raise
        self._runner = runner
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
        self.edge.close()
        event(logger, "stopped_listening")


async def serve(edge: Edge, host: str, port: int) -> HttpServer:
    """Start serving; the caller stops the server."""
    server = HttpServer(edge)
    await server.start(host, port)
    return server


__all__ = ["HttpServer", "serve"]
