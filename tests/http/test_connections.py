"""S2: connections that only wait are bounded in number and in time."""

import asyncio
from contextlib import suppress

import pytest

from context_node.cli.descriptors import CONNECTIONS_MIN, connections_within
from context_node.http import serve
from context_node.http.limits import HttpLimits
from support.edge_api import RAW_TIMEOUT_S, Api, edge_api, has_answers
from support.fake_service import FakeService
from support.waiting import until

REQUEST = b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n"
HALF = REQUEST[:20]


class Raw:
    """A connection that sends what it is told to, and no more."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def ask(self) -> bytes:
        self.writer.write(REQUEST)
        answer = b""
        async with asyncio.timeout(RAW_TIMEOUT_S):
            while not has_answers(answer, 1):
                chunk = await self.reader.read(65536)
                assert chunk, "closed without an answer"
                answer += chunk
        return answer

    async def all_until_closed(self) -> bytes:
        async with asyncio.timeout(RAW_TIMEOUT_S):
            try:
                return await self.reader.read()
            except ConnectionResetError:
                return b""
            finally:
                await self.leave()

    async def leave(self) -> None:
        self.writer.close()
        with suppress(ConnectionError):
            await self.writer.wait_closed()


async def connected(api: Api, sent: bytes = b"") -> Raw:
    reader, writer = await asyncio.open_connection(api.server.host, api.server.port)
    writer.write(sent)
    return Raw(reader, writer)


async def test_s2_a_connection_without_a_whole_head_is_closed() -> None:
    """S2: silent ones and those that stop midway; one that has asked stays."""
    async with edge_api(FakeService(), limits=HttpLimits(head_timeout_s=0.2)) as api:
        metrics = api.server.edge.metrics
        asking = await connected(api)
        await asking.ask()
        for sent in (b"", HALF):
            assert await (await connected(api, sent)).all_until_closed() == b""
        assert metrics.late_heads == 2
        await until(lambda: metrics.connections == 1, "only the one that asked to be open")
        assert (await asking.ask()).startswith(b"HTTP/1.1 200 ")
        await asking.leave()
        await until(lambda: metrics.connections == 0, "none to be open")


async def test_a_request_under_way_outlasts_the_time_for_a_head() -> None:
    service = FakeService()
    gate = asyncio.Event()

    async def wait() -> None:
        await gate.wait()

    service.before = wait
    async with edge_api(service, limits=HttpLimits(head_timeout_s=0.05)) as api:
        request = asyncio.create_task(api.append("c1"))
        await until(lambda: api.server.edge.metrics.in_flight == 1, "the request to be in flight")
        assert await (await connected(api)).all_until_closed() == b"", "a later connection had its time"
        gate.set()
        assert (await request).status == 201


async def test_half_a_head_after_an_answer_does_not_prolong_keep_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "KEEPALIVE_S", 0.2)
    async with edge_api(FakeService()) as api:
        connection = await connected(api)
        await connection.ask()
        connection.writer.write(HALF)
        assert await connection.all_until_closed() == b""


async def test_s2_connections_above_the_bound_are_closed_at_once() -> None:
    """S2: those that are open are served on, and a place that gets free is given again."""
    async with edge_api(FakeService(), limits=HttpLimits(connections_max=2)) as api:
        metrics = api.server.edge.metrics
        kept, leaving = await connected(api), await connected(api)
        await until(lambda: metrics.connections == 2, "both to be open")
        for sent in (b"", REQUEST):
            assert await (await connected(api, sent)).all_until_closed() == b""
        assert (metrics.connections, metrics.refused_connections) == (2, 2)
        await leaving.leave()
        await until(lambda: metrics.connections == 1, "a place to be free")
        exposed = (await api.get("/metrics")).body
        assert b"contextstore_http_connections 2.0" in exposed
        assert b"contextstore_http_refused_connections_total 2.0" in exposed
        assert (await kept.ask()).startswith(b"HTTP/1.1 200 ")
        await kept.leave()


def test_connections_leave_open_files_for_the_databases() -> None:
    assert connections_within(1024, shards=32) == 1024 - 256
    assert connections_within(1024, shards=1024) == CONNECTIONS_MIN
    assert connections_within(-1, shards=32) > 1_000_000, "no limit"
