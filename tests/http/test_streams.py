"""Streams: replay from a cursor, then live, over WebSocket and Server-Sent Events."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import msgspec
import pytest

from context_node.http.limits import HttpLimits
from support.edge_api import Api, edge_api
from support.fake_service import FakeFrame, FakeService
from support.waiting import until

SSE = {"Accept": "text/event-stream"}
STREAM = "/v1/contexts/c1/stream"


async def prepared(api: Api, count: int = 2) -> None:
    for number in range(1, count + 1):
        await api.append("c1", f"m{number}")


@asynccontextmanager
async def websocket(api: Api, query: str = "", **options: Any) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
    async with api.session.ws_connect(api.server.url + STREAM + query, **options) as socket:
        yield socket


async def told(socket: aiohttp.ClientWebSocketResponse) -> dict[str, Any]:
    frame = msgspec.json.decode(await socket.receive_str())
    assert isinstance(frame, dict)
    return frame


@asynccontextmanager
async def events(api: Api, query: str = "", **headers: str) -> AsyncIterator[aiohttp.ClientResponse]:
    async with api.session.get(api.server.url + STREAM + query, headers={**SSE, **headers}) as response:
        yield response


async def next_event(response: aiohttp.ClientResponse) -> dict[str, str]:
    """The next block of fields; a comment is under the name ""."""
    block = await response.content.readuntil(b"\n\n")
    return dict(line.split(": ", 1) if not line.startswith(":") else ("", line[2:]) for line in block.decode().rstrip("\n").split("\n"))


async def test_a_websocket_replays_then_tells_the_state_then_goes_live() -> None:
    async with edge_api(FakeService()) as api:
        await prepared(api)
        async with websocket(api, "?cursor=1") as socket:
            replayed = await told(socket)
            assert (replayed["event"], replayed["seq"], replayed["data"]["parts"][0]["text"]) == ("message", 2, "m2")
            assert (await told(socket))["event"] == "context"
            await api.append("c1", "live")
            live = await told(socket)
            assert (live["seq"], live["data"]["parts"][0]["text"]) == (3, "live")


async def test_server_sent_events_replay_then_tell_the_state_then_go_live() -> None:
    async with edge_api(FakeService()) as api:
        await prepared(api)
        async with events(api, "?cursor=1") as response:
            assert response.headers["Content-Type"] == "text/event-stream"
            assert response.headers["Cache-Control"] == "no-store"
            assert "" in await next_event(response)
            replayed = await next_event(response)
            assert (replayed["id"], replayed["event"]) == ("2", "message")
            assert msgspec.json.decode(replayed["data"])["parts"][0]["text"] == "m2"
            state = await next_event(response)
            assert state["event"] == "context"
            assert "id" not in state, "a frame without a seq must not move the client's cursor"
            await api.append("c1", "live")
            assert (await next_event(response))["id"] == "3"


async def test_last_event_id_wins_over_the_cursor() -> None:
    async with edge_api(FakeService()) as api:
        await prepared(api, 3)
        async with events(api, "?cursor=0", **{"Last-Event-ID": "2"}) as response:
            await next_event(response)
            assert (await next_event(response))["id"] == "3"


async def test_streams_are_refused_before_they_begin() -> None:
    async with edge_api(FakeService()) as api:
        await prepared(api)
        for path, headers, status, code in (
            (STREAM, {}, 400, "invalid_request"),
            (STREAM, {"Accept": "*/*"}, 400, "invalid_request"),
            (STREAM + "?cursor=3", SSE, 409, "cursor_ahead"),
            (STREAM + "?cursor=-2", SSE, 400, "invalid_request"),
            (STREAM + "?cursor=x", SSE, 400, "invalid_request"),
            (STREAM + "?cursor=" + "9" * 40, SSE, 400, "invalid_request"),
            (STREAM, {**SSE, "Last-Event-ID": "x"}, 400, "invalid_request"),
            (STREAM, {**SSE, "Last-Event-ID": "9" * 100}, 400, "invalid_request"),
            ("/v1/contexts/nope/stream", SSE, 404, "context_not_found"),
            (STREAM, {"Upgrade": "websocket"}, 400, "invalid_request"),
            (STREAM, {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "7"}, 400, "invalid_request"),
        ):
            answer = await api.get(path, headers)
            assert (answer.status, answer.error) == (status, code), (path, headers)
        assert api.server.edge.metrics.streams == 0
        with pytest.raises(aiohttp.WSServerHandshakeError) as refusal:
            async with websocket(api, "?cursor=9"):
                pass
        assert refusal.value.status == 409


async def test_a_silent_stream_has_heartbeats() -> None:
    async with edge_api(FakeService(), limits=HttpLimits(heartbeat_s=0.05)) as api:
        await prepared(api, 1)
        async with websocket(api) as socket, events(api) as response:
            assert [(await told(socket))["event"] for _ in range(4)] == ["message", "context", "heartbeat", "heartbeat"]
            assert [(await next_event(response)).get("", "") for _ in range(5)][-2:] == ["heartbeat", "heartbeat"]


async def test_a_tombstone_is_told_and_a_purge_ends_the_stream() -> None:
    service = FakeService()
    async with edge_api(service) as api:
        await prepared(api, 1)
        async with websocket(api, "?cursor=1") as socket, events(api, "?cursor=1") as response:
            assert (await told(socket))["event"] == "context"
            await next_event(response)
            await next_event(response)
            await api.call("DELETE", "/v1/contexts/c1")
            assert (await told(socket))["event"] == "tombstoned"
            assert (await next_event(response))["event"] == "tombstoned"
            await api.call("DELETE", "/v1/contexts/c1?purge=true")
            assert (await told(socket))["event"] == "purged"
            assert (await socket.receive()).type is aiohttp.WSMsgType.CLOSE
            assert (socket.close_code, (await next_event(response))["event"]) == (1000, "purged")
            assert (await next_event(response))["event"] == "closing"
            assert await response.content.read() == b""
        await until(lambda: api.server.edge.metrics.streams == 0, "both streams to give their slots back")


async def test_a_gap_is_told_as_it_is() -> None:
    service = FakeService()
    async with edge_api(service) as api:
        await prepared(api, 1)
        async with websocket(api, "?cursor=1") as socket:
            await told(socket)
            service.kept["c1"].subscriptions[0].frames.put_nowait(FakeFrame("gap", None, b'{"from_seq":2,"to_seq":9}'))
            assert await told(socket) == {"event": "gap", "data": {"from_seq": 2, "to_seq": 9}}


async def test_a_reader_that_leaves_gives_its_slot_and_subscription_back() -> None:
    service = FakeService()
    async with edge_api(service, limits=HttpLimits(heartbeat_s=0.05)) as api:
        await prepared(api, 1)
        async with websocket(api) as socket:
            await told(socket)
            subscription = service.kept["c1"].subscriptions[0]
        await until(lambda: subscription.is_closed, "the subscription to be closed")
        async with events(api) as response:
            await next_event(response)
            response.close()
        await until(lambda: api.server.edge.metrics.streams == 0, "the slot to be free")
        assert service.kept["c1"].subscriptions == []


async def test_stopping_tells_every_stream_why() -> None:
    async with edge_api(FakeService()) as api:
        await prepared(api, 1)
        async with websocket(api, "?cursor=1") as socket, events(api, "?cursor=1") as response:
            await told(socket)
            await next_event(response)
            await next_event(response)
            stopping = asyncio.create_task(api.server.stop())
            closing = await socket.receive()
            assert (closing.type, socket.close_code, closing.extra) == (aiohttp.WSMsgType.CLOSE, 1001, "the node is stopping")
            assert await next_event(response) == {"event": "closing", "data": '{"reason":"the node is stopping"}'}
            await stopping
        assert api.server.edge.metrics.streams == 0


async def test_streams_above_the_bound_are_refused_early() -> None:
    """S2: the last place is given, the next reader is told when to come again."""
    async with edge_api(FakeService(), limits=HttpLimits(streams_max=1)) as api:
        await prepared(api, 1)
        async with websocket(api) as socket:
            await told(socket)
            refused = await api.get(STREAM, SSE)
            assert (refused.status, refused.error, refused.headers["Retry-After"]) == (503, "overloaded", "1")
        await until(lambda: api.server.edge.metrics.streams == 0, "the slot to be free")
        async with events(api) as response:
            assert response.status == 200


async def test_a_reader_that_does_not_read_loses_its_stream_and_slows_nobody() -> None:
    service = FakeService()
    limits = HttpLimits(stream_write_timeout_s=0.2, stream_buffer_bytes=4096)
    async with edge_api(service, limits=limits) as api:
        await prepared(api, 1)
        reader, writer = await asyncio.open_connection(api.server.host, api.server.port, limit=1024)
        writer.write(f"GET {STREAM} HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n\r\n".encode())
        await reader.readuntil(b"event: context\n")
        writer.transport.pause_reading()
        subscription = service.kept["c1"].subscriptions[0]
        for _ in range(100):
            subscription.frames.put_nowait(FakeFrame("message", 2, b'"' + b"x" * 200_000 + b'"'))
        async with websocket(api) as other:
            assert (await told(other))["event"] == "message"
            await until(lambda: subscription.is_closed, "the slow reader to be given up")
            assert subscription.frames.qsize() > 0, "it was not buffered for the reader"
            await api.append("c1", "live")
            assert [(await told(other))["event"] for _ in range(2)] == ["context", "message"]
        writer.transport.abort()


async def test_what_clients_send_on_a_stream_is_ignored_within_bounds() -> None:
    async with edge_api(FakeService()) as api:
        await prepared(api, 1)
        async with websocket(api, "?cursor=1") as socket:
            await told(socket)
            await socket.send_str("hello")
            await socket.ping()
            await api.append("c1", "live")
            assert (await told(socket))["seq"] == 2
            await socket.send_str("x" * 100_000)
            assert (await socket.receive()).type in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED)
        await until(lambda: api.server.edge.metrics.streams == 0, "the stream to be over")
