"""A `Reply` on its way into the socket: one head, one write.

Knows HTTP/1.1's head and aiohttp's contract for responses (`prepare`, `write_eof`, `keep_alive`, `status`). Does not know what the answer
means. Measured with an append: aiohttp's own Response fills and serializes a multidict for each answer, about a fifth of all the work of
a small request; here the head is joined from parts that are made once. Invariants: header names and values are ours or checked, so none
holds a line break; an answer without a body says so as RFC 9110 wants (no Content-Length with 204 and 304).
"""

from collections.abc import Callable
from http import HTTPStatus
from time import gmtime, strftime

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.web_request import BaseRequest

from context_node.http.replies import Reply

_STARTS: dict[tuple[int, str], bytes] = {}
_STARTS_MAX = 1000
DRAIN_ABOVE_BYTES = 64 * 1024


def start_of(status: int, content_type: str) -> bytes:
    """Status line and content type, made once for each pair."""
    start = _STARTS.get((status, content_type))
    if start is None:
        line = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n"
        if content_type:
            line += f"Content-Type: {content_type}\r\nX-Content-Type-Options: nosniff\r\n"
        start = line.encode("ascii")
        if len(_STARTS) < _STARTS_MAX:
            _STARTS[status, content_type] = start
    return start


class DateLine:
    """The `Date` and `Server` lines, made anew once a second. `now` gives seconds since the epoch."""

    def __init__(self, now: Callable[[], float], server: str) -> None:
        self._now = now
        self._server = server
        self._second = -1
        self._line = b""

    def line(self) -> bytes:
        second = int(self._now())
        if second != self._second:
            self._second = second
            date = strftime("%a, %d %b %Y %H:%M:%S GMT", gmtime(second))
            self._line = f"Date: {date}\r\nServer: {self._server}\r\n".encode("ascii")
        return self._line


class WireResponse(web.StreamResponse):
    """An answer whose bytes are ready. It replaces what the base class does, and shares only its type."""

    def __init__(self, reply: Reply, common: bytes) -> None:
        # The base class's __init__ makes what the methods below do without.
        self._reply = reply
        self._common = common
        self._keeps_alive = False
        self._request: BaseRequest | None = None

    @property
    def status(self) -> int:
        return self._reply.status

    @property
    def prepared(self) -> bool:
        return self._request is not None

    @property
    def keep_alive(self) -> bool | None:
        return self._keeps_alive

    @property
    def body_length(self) -> int:
        return len(self._reply.body)

    async def prepare(self, request: BaseRequest) -> AbstractStreamWriter | None:
        self._request = request
        self._keeps_alive = request.keep_alive
        return None

    async def write_eof(self, data: bytes = b"") -> None:
        request = self._request
        if request is None:
            raise RuntimeError("write_eof before prepare")
        transport = request.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError("the client is gone")
        body = self._reply.body
        transport.write(self._head(request) + (b"" if request.method == "HEAD" else body))
        if len(body) > DRAIN_ABOVE_BYTES:
            await request.writer.drain()

    def _head(self, request: BaseRequest) -> bytes:
        reply = self._reply
        lines = [start_of(reply.status, reply.content_type), self._common]
        for name, value in reply.headers:
            lines.append(f"{name}: {value}\r\n".encode("latin-1"))
        if reply.status != 204 and reply.status != 304:
            lines.append(b"Content-Length: %d\r\n" % len(reply.body))
        if not self._keeps_alive:
            lines.append(b"Connection: close\r\n")
        elif request.version.minor == 0:
            lines.append(b"Connection: keep-alive\r\n")
        lines.append(b"\r\n")
        return b"".join(lines)

    def __repr__(self) -> str:
        return f"<WireResponse {self._reply.status}, {len(self._reply.body)} bytes>"
