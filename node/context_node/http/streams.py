"""Following a context live: WebSocket and Server-Sent Events on one route.

Knows the two wire forms, heartbeats, and how a stream ends. Does not know what a frame tells. A stream pulls from its subscription and
writes; a reader that does not read stops the pulling, and after a while loses the stream. Invariants: a stream holds one slot and one
subscription and gives both back on every path; `id:` stands only on frames with a seq; each stream is told why it ends, if it still
listens.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import msgspec
from aiohttp import WSCloseCode, WSMsgType, web
from aiohttp.web_request import BaseRequest

from context_node.api_keys import Identity, Scope
from context_node.contexts.refusals import InvalidRequest, Overloaded, Refusal, Unavailable
from context_node.http.auth import chosen_protocols
from context_node.http.calls import Call, id_of
from context_node.http.logs import event
from context_node.http.queries import NoQuery, StreamQuery, parse_query
from context_node.http.replies import Reply, json_reply
from context_node.http.schemas import SEQ_MAX, TicketAnswer
from context_node.http.service import Frame, Subscription

if TYPE_CHECKING:
    from context_node.http.edge import Edge

logger = logging.getLogger("contextstore.http")
RETRY_S = 1
LOOK_S = 2.0
"""How often an idle SSE stream looks whether its client is still there: aiohttp does not tell a handler that only waits."""
CLIENT_MESSAGE_BYTES_MAX = 4096
CLOSE_TIMEOUT_S = 2.0
HEARTBEAT = b'{"event":"heartbeat"}'

Send = Callable[[bytes], Awaitable[None]]


class Slot:
    """A place among the node's streams. `stop` ends the stream with a reason; closing gives the place back. `identity` was let in with
    `scope`, and must stay good for it."""

    def __init__(self, edge: "Edge", identity: Identity, scope: Scope | None) -> None:
        self._edge = edge
        self.identity = identity
        self.scope = scope
        self.task: asyncio.Task[None] | None = None
        self.stop_reason = ""
        self.close_code = WSCloseCode.OK

    def __enter__(self) -> "Slot":
        edge = self._edge
        if edge.is_closing:
            raise Unavailable("The node is stopping; connect again, another node will answer.", retry_after_s=RETRY_S)
        if len(edge.streams) >= edge.limits.streams_max:
            edge.metrics.refused_overload += 1
            raise Overloaded("The node has too many streams; retry shortly.", retry_after_s=RETRY_S, streams_max=edge.limits.streams_max)
        edge.streams.add(self)
        edge.metrics.streams += 1
        return self

    def __exit__(self, *_: object) -> None:
        self._edge.streams.discard(self)
        self._edge.metrics.streams -= 1

    def is_stopped(self) -> bool:
        return bool(self.stop_reason)

    def stop(self, reason: str, code: WSCloseCode = WSCloseCode.GOING_AWAY) -> None:
        """End the stream; it says `reason` to its reader. Does not wait."""
        if not self.stop_reason:
            self.stop_reason = reason
            self.close_code = code
            if self.task is not None:
                self.task.cancel()


async def stream(edge: "Edge", call: Call) -> web.StreamResponse:
    """GET /v1/contexts/{id}/stream"""
    request = call.request
    context_id = id_of(call, edge.limits.id_bytes_max)
    cursor = _cursor(request, parse_query(call.query, StreamQuery))
    is_websocket = request.headers.get("Upgrade", "").lower() == "websocket"
    if not is_websocket and "text/event-stream" not in request.headers.get("Accept", ""):
        raise InvalidRequest("Open a WebSocket here, or ask for Server-Sent Events by `Accept: text/event-stream`.", field="Accept")
    with Slot(edge, call.identity, call.route.scope) as slot:
        subscription = await edge.service.subscribe(context_id, cursor)
        try:
            follow = _follow_by_websocket if is_websocket else _follow_by_events
            return await follow(edge, call, context_id, slot, subscription)
        finally:
            subscription.close()


def _cursor(request: BaseRequest, query: StreamQuery) -> int:
    """The last seq seen. `Last-Event-ID` wins: a browser that reconnects sends it beside the URL's old cursor."""
    last = request.headers.get("Last-Event-ID")
    if last is None or last == "":
        return query.cursor
    if not (last.isascii() and last.isdigit() and len(last) <= 16 and int(last) <= SEQ_MAX):
        raise InvalidRequest("Last-Event-ID must be a seq: a whole number from 0 on.", field="Last-Event-ID")
    return int(last)


async def _follow_by_websocket(edge: "Edge", call: Call, context_id: str, slot: Slot, subscription: Subscription) -> web.StreamResponse:
    request = call.request
    socket = web.WebSocketResponse(
        protocols=chosen_protocols(request),
        heartbeat=edge.limits.heartbeat_s,
        max_msg_size=CLIENT_MESSAGE_BYTES_MAX,
        compress=False,
        timeout=CLOSE_TIMEOUT_S,
        writer_limit=edge.limits.stream_buffer_bytes,
    )
    if not socket.can_prepare(request).ok:
        raise InvalidRequest("This is not a valid WebSocket handshake.", field="Upgrade")
    _set_headers(edge, call, context_id, socket)
    await socket.prepare(request)

    async def send(data: bytes) -> None:
        await socket.send_frame(data, WSMsgType.TEXT)

    async def pump() -> None:
        reason = await _pump(edge, request, slot, subscription, send, websocket_frame, HEARTBEAT)
        await socket.close(code=slot.close_code, message=reason.encode()[:120])

    async with asyncio.TaskGroup() as tasks:
        slot.task = tasks.create_task(pump())
        # What clients send is read, so that pings and closing work, and is ignored.
        async for _ in socket:
            pass
        slot.task.cancel()
    return socket


async def _follow_by_events(edge: "Edge", call: Call, context_id: str, slot: Slot, subscription: Subscription) -> web.StreamResponse:
    request = call.request
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store", "X-Accel-Buffering": "no"})
    _set_headers(edge, call, context_id, response)
    await response.prepare(request)
    await response.write(b": stream of contextstore\n\n")

    async def pump() -> None:
        try:
            reason = await _pump(edge, request, slot, subscription, response.write, sse_frame, b": heartbeat\n\n")
            await response.write(b'event: closing\ndata: {"reason":%b}\n\n' % msgspec.json.encode(reason))
            await response.write_eof()
        except ConnectionError:
            pass  # the reader left first

    async with asyncio.TaskGroup() as tasks:
        slot.task = tasks.create_task(pump())
    return response


def _set_headers(edge: "Edge", call: Call, context_id: str, response: web.StreamResponse) -> None:
    response.headers["X-Request-Id"] = call.request_id
    response.headers["X-Context-Leader"] = edge.service.leader_of(context_id)
    if "Origin" in call.request.headers:
        response.headers.update(edge.cors_headers(call.request.headers["Origin"]))


async def _pump(
    edge: "Edge",
    request: BaseRequest,
    slot: Slot,
    subscription: Subscription,
    send: Send,
    encode: Callable[[Frame], bytes],
    heartbeat: bytes,
) -> str:
    """Write frames until the stream ends; returns why it ends. Raises CancelledError if the reader left."""
    try:
        if slot.stop_reason:
            return slot.stop_reason  # stopped before there was a task to cancel
        return await _pump_frames(edge, request, subscription, send, encode, heartbeat)
    except asyncio.CancelledError:
        if not slot.is_stopped():
            raise
        return slot.stop_reason
    except Refusal as refusal:
        return refusal.message
    except ConnectionError:
        return "the connection is gone"
    except TimeoutError:
        # It left its socket full for long: there is no way to tell it anything any more.
        if request.transport is not None:
            request.transport.abort()
        return "the reader is too slow"
    except Exception:
        event(logger, "stream_failed", logging.ERROR, exc_info=True)
        return "something went wrong on our side"


async def _pump_frames(
    edge: "Edge",
    request: BaseRequest,
    subscription: Subscription,
    send: Send,
    encode: Callable[[Frame], bytes],
    heartbeat: bytes,
) -> str:
    clock, metrics, limits = edge.parts.clock, edge.metrics, edge.limits
    last_sent = clock()
    while True:
        wait_s = max(0.0, last_sent + limits.heartbeat_s - clock())
        frame = await subscription.next(min(wait_s, LOOK_S))
        if frame is None:
            if request.transport is None or request.transport.is_closing():
                return "the connection is gone"
            if clock() < last_sent + limits.heartbeat_s:
                continue
        data = heartbeat if frame is None else encode(frame)
        async with asyncio.timeout(limits.stream_write_timeout_s):
            await send(data)
        last_sent = clock()
        metrics.bytes_out += len(data)
        metrics.stream_frames += 1
        if frame is not None and frame.event == "purged":
            return "the context was purged"


def websocket_frame(frame: Frame) -> bytes:
    """A frame as one JSON text: `{"event", "seq"?, "data"}`."""
    if frame.seq is None:
        return b'{"event":"%b","data":%b}' % (frame.event.encode(), frame.data)
    return b'{"event":"%b","seq":%d,"data":%b}' % (frame.event.encode(), frame.seq, frame.data)


def sse_frame(frame: Frame) -> bytes:
    """A frame as a server-sent event (https://html.spec.whatwg.org/multipage/server-sent-events.html)."""
    if frame.seq is None:
        return b"event: %b\ndata: %b\n\n" % (frame.event.encode(), frame.data)
    return b"id: %d\nevent: %b\ndata: %b\n\n" % (frame.seq, frame.event.encode(), frame.data)


async def ticket(edge: "Edge", call: Call) -> Reply:
    """POST /v1/contexts/{id}/stream-ticket: a pass for a page that can set no header."""
    context_id = id_of(call, edge.limits.id_bytes_max)
    parse_query(call.query, NoQuery)
    await edge.service.get_context(context_id)
    tickets = edge.parts.tickets
    return json_reply(201, msgspec.json.encode(TicketAnswer(tickets.issue(context_id, call.identity.key_id), tickets.ttl_s)))
