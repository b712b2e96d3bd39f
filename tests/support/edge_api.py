"""An edge on a real socket, and a client that says exactly what it sends.

Knows how to start and stop both. The client does not normalise paths and does not raise on errors; `raw` sends bytes as they are.
"""

import asyncio
import io
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
import msgspec
from yarl import URL

from context_node.http.app import HttpServer, build_app, serve
from context_node.http.service import Service

RAW_TIMEOUT_S = 5.0
BYTES_SENT_AT_ONCE = 1 << 20
JSON = {"Content-Type": "application/json"}


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.body)

    @property
    def error(self) -> str:
        """The code of an error answer, after checking its shape."""
        problem = self.json
        assert set(problem) == {"error", "message", "details"}, problem
        assert self.headers["Content-Type"] == "application/json"
        assert problem["message"] and isinstance(problem["details"], dict)
        return str(problem["error"])

    @property
    def field(self) -> str:
        return str(self.json["details"].get("field"))


class Api:
    """One edge and one client."""

    def __init__(self, server: HttpServer, session: aiohttp.ClientSession) -> None:
        self.server = server
        self.session = session

    async def call(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None, *, data: bytes | None = None
    ) -> Answer:
        """Send one request: `body` as JSON, or `data` as it is."""
        sent = dict(headers or {})
        if body is not None:
            data = msgspec.json.encode(body)
            sent = {**JSON, **sent}
        url = URL(self.server.url + path, encoded=True)
        skip = ("Content-Type", "Accept-Encoding")
        payload = io.BytesIO(data) if data is not None and len(data) > BYTES_SENT_AT_ONCE else data
        async with self.session.request(method, url, data=payload, headers=sent, skip_auto_headers=skip) as response:
            return Answer(response.status, response.headers, await response.read())

    async def get(self, path: str, headers: Mapping[str, str] | None = None) -> Answer:
        return await self.call("GET", path, headers=headers)

    async def append(self, context_id: str, text: str = "hello", **fields: Any) -> Answer:
        message = {"role": "user", "parts": [{"type": "text", "text": text}]}
        return await self.call("POST", f"/v1/contexts/{context_id}/messages?create=true", {"message": message, **fields})

    async def raw(self, data: bytes, answers: int = 1) -> bytes:
        """Send bytes on a connection of their own; gives that many whole answers, or all that came until the server closed."""
        reader, writer = await asyncio.open_connection(self.server.host, self.server.port)
        received = b""
        try:
            writer.write(data)
            async with asyncio.timeout(RAW_TIMEOUT_S):
                while not has_answers(received, answers):
                    chunk = await reader.read(65536)
                    if not chunk:
                        break
                    received += chunk
        finally:
            writer.close()
        return received

    async def cut_off(self, data: bytes) -> None:
        """Send bytes on a connection of their own and leave."""
        _, writer = await asyncio.open_connection(self.server.host, self.server.port)
        writer.write(data)
        await writer.drain()
        writer.close()
        await writer.wait_closed()


def has_answers(received: bytes, answers: int) -> bool:
    """Whether these bytes hold so many final answers, each to its last byte."""
    while answers:
        head, separator, rest = received.partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 100 "):
            answers -= 1
        length = re.search(rb"(?i)content-length: (\d+)", head)
        size = int(length[1]) if length is not None else 0
        if not separator or len(rest) < size:
            return False
        received = rest[size:]
    return True


@asynccontextmanager
async def edge_api(service: Service, **options: Any) -> AsyncIterator[Api]:
    """An edge around `service` on a free port; open unless a keyring is given."""
    options.setdefault("open_mode", "keyring" not in options)
    server = await serve(build_app(service, version="0.0.0", **options), "127.0.0.1", 0)
    session = aiohttp.ClientSession(auto_decompress=False)
    try:
        yield Api(server, session)
    finally:
        await session.close()
        await server.stop()
