"""Either end of a connection between two nodes: the handshake, then frames both ways.

Knows asyncio's protocols, and who the peer says it is; does not know addresses, other connections, or what payloads mean. Invariants:
frames leave whole, and control frames overtake the bulk frames that still wait; nothing is delivered before the handshake or after a bad
frame; every request that was taken ends in an answer or an error, which says whether the request may have been read.
"""

import asyncio
import logging
import math
from collections.abc import Callable
from typing import cast

from context_node.runtime.frames import (
    NUMBER_BYTES,
    WRITE_HIGH_BYTES,
    WRITE_LOW_BYTES,
    Asked,
    BadFrame,
    FrameMac,
    FrameReader,
    Kind,
    Lanes,
    Outgoing,
    PeerRefused,
    PeerUnavailable,
    TransportCounters,
    TransportLimits,
)
from context_node.runtime.handshake import Handshake, HandshakeRefused, PeerIdentity

logger = logging.getLogger("contextstore.transport")

TURN_BYTES = 1 << 20
"""So many bytes are sealed in one turn of the loop; the rest waits for the next."""


class Connection(asyncio.Protocol):
    """One end. `admit` is asked once there is a socket, and says why it is not wanted, nothing if it is. `settled` is done when the
    handshake has ended, well (then `peer` is set) or not; `lost` when the socket is gone. `why` says what closed it. It is in `registry`
    while its socket exists."""

    def __init__(
        self,
        handshake: Handshake,
        limits: TransportLimits,
        counters: TransportCounters,
        registry: "set[Connection]",
        *,
        admit: Callable[[], str],
        on_message: Callable[[PeerIdentity, bytes], None],
        on_request: Callable[["Connection", int, bytes], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self.settled: asyncio.Future[None] = self._loop.create_future()
        self.lost: asyncio.Future[None] = self._loop.create_future()
        self.peer: PeerIdentity | None = None
        self.why = ""
        self.is_closed = False
        self.handling = 0
        """Requests of the peer that are being handled."""
        self._handshake = handshake
        self._limits = limits
        self._counters = counters
        self._registry = registry
        self._admit = admit
        self._on_message = on_message
        self._on_request = on_request
        self._transport: asyncio.Transport
        self._reader: FrameReader | None = None
        self._mac: FrameMac | None = None
        self._lanes = Lanes(limits.queue_bytes_max + NUMBER_BYTES)
        self._asked: dict[int, Asked] = {}
        self._asked_count = 0
        self._timer: asyncio.TimerHandle | None = None
        self._flushing: asyncio.Handle | None = None
        self._is_paused = False
        # Ticks, not times: a process that stood still would take its own pause for the peer's silence.
        self._tick_s = limits.keepalive_s / 2
        self._unsent_ticks = self._unheard_ticks = self._unended_ticks = 0

    # --- what is sent ------------------------------------------------------------------------------------------------

    def put(self, kind: Kind, payload: bytes, bulk: bool, asked: Asked | None = None) -> bool:
        """Queue a frame. False if the connection is closed, or there is no room for it."""
        if self.is_closed or self._mac is None or len(payload) > self._limits.frame_bytes_max + NUMBER_BYTES:
            return False
        if not self._lanes.put(Outgoing(kind, payload, asked), bulk):
            return False
        self._schedule_flush()
        return True

    async def ask(self, payload: bytes, timeout_s: float, bulk: bool) -> bytes:
        """Send a request, wait for the answer. Raises PeerUnavailable, PeerLost, PeerRefused."""
        asked = Asked(self._loop.create_future())
        self._asked_count += 1
        number = self._asked_count
        if len(payload) > self._limits.frame_bytes_max or not self.put(Kind.REQUEST, _numbered(number, payload), bulk, asked):
            self._counters.dropped += 1
            raise PeerUnavailable(self.why or "the queue to the peer has no room for this request")
        self._asked[number] = asked
        timer = self._loop.call_later(timeout_s, asked.fail, f"no answer within {timeout_s:g} s")
        try:
            return await asked.answer
        finally:
            timer.cancel()
            self._asked.pop(number, None)

    def answer(self, kind: Kind, number: int, payload: bytes) -> None:
        """Answer a request of the peer, on the bulk lane if it is large. One that finds no room is dropped: the asker's timeout tells."""
        if len(payload) > self._limits.frame_bytes_max:
            kind, payload = Kind.REFUSAL, b"the answer is larger than a frame"
        if not self.put(kind, _numbered(number, payload), bulk=len(payload) >= WRITE_LOW_BYTES):
            self._counters.dropped += 1

    def _schedule_flush(self) -> None:
        # At the end of the turn, so that what is said in one turn leaves in one write.
        if self._flushing is None and not self._is_paused and not self.is_closed:
            self._flushing = self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = None
        assert self._mac is not None
        written = 0
        while not self._is_paused and not self.is_closed and written < TURN_BYTES and (frames := self._lanes.take()):
            parts: list[bytes] = []
            for frame in frames:
                if frame.asked is not None:
                    if frame.asked.answer.done():
                        continue
                    frame.asked.is_written = True
                mac = self._mac.next(frame.kind, frame.payload)
                parts += ((len(frame.payload) + 1).to_bytes(4, "little"), mac, bytes((frame.kind,)), frame.payload)
            self._counters.frames_out += len(parts) // 4
            data = b"".join(parts)
            written += len(data)
            self._write(data)
        if self._lanes:
            self._schedule_flush()

    def _write(self, data: bytes) -> None:
        if data:
            self._counters.bytes_out += len(data)
            self._unsent_ticks = 0
            self._transport.write(data)

    def pause_writing(self) -> None:
        self._is_paused = True

    def resume_writing(self) -> None:
        self._is_paused = False
        if self._lanes:
            self._schedule_flush()

    # --- what is received --------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if self.lost.done():
            self._transport.abort()
            return
        if not self.is_closed and (why := self._admit()):
            self._end(why)
        self._registry.add(self)
        if self.is_closed:
            self._transport.abort()
            return
        self._transport.set_write_buffer_limits(high=WRITE_HIGH_BYTES, low=WRITE_LOW_BYTES)
        self._timer = self._loop.call_later(self._limits.handshake_timeout_s, self._refuse, "the handshake took too long")
        self._write(self._handshake.start())

    def data_received(self, data: bytes) -> None:
        if self.is_closed:
            return
        self._counters.bytes_in += len(data)
        self._unheard_ticks = 0
        if self._reader is None:
            data = self._shake_hands(data)
        if self._reader is None or not data:
            return
        try:
            for kind, payload in self._reader.feed(data):
                self._receive(kind, payload)
        except BadFrame as error:
            self._counters.bad_frames += 1
            logger.warning("connection with %s closed: %s", self._name(), error)
            self.close(f"the peer sent {error}")
        except Exception as error:
            self._loop.call_exception_handler({"message": "a message of a peer was not taken", "exception": error, "protocol": self})
            self.close("a message was not taken")

    def _shake_hands(self, data: bytes) -> bytes:
        """Go on with the handshake. Returns what came behind it."""
        try:
            self._write(self._handshake.receive(data))
        except HandshakeRefused as refused:
            self._refuse(str(refused), refused.answer)
            return b""
        session = self._handshake.session
        if session is None:
            return b""
        self.peer = session.peer
        self._reader = FrameReader(session.receive_key, self._limits.frame_bytes_max + NUMBER_BYTES)
        self._mac = FrameMac(session.send_key)
        self._wait_a_tick()
        self.settled.set_result(None)
        return session.rest

    def _receive(self, kind: Kind, payload: bytes) -> None:
        # Closed by what the frame before this one called.
        if self.is_closed or self.peer is None:
            return
        self._counters.frames_in += 1
        self._unended_ticks = 0
        if kind == Kind.MESSAGE:
            self._on_message(self.peer, payload)
        elif kind == Kind.PING:
            self.put(Kind.PONG, b"", bulk=False)
        elif kind != Kind.PONG:
            if len(payload) < NUMBER_BYTES:
                raise BadFrame("a request or reply without a number")
            number, body = int.from_bytes(payload[:NUMBER_BYTES], "little"), payload[NUMBER_BYTES:]
            if kind == Kind.REQUEST:
                self._on_request(self, number, body)
                return
            asked = self._asked.pop(number, None)
            # None, or done: the answer is too late, and whoever asked was told so.
            if asked is None or asked.answer.done():
                return
            if kind == Kind.REPLY:
                asked.answer.set_result(body)
            else:
                asked.answer.set_exception(PeerRefused(body.decode(errors="replace")))

    # --- life --------------------------------------------------------------------------------------------------------

    def _wait_a_tick(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(self._tick_s, self._tick)

    def _tick(self) -> None:
        assert self._reader is not None
        self._wait_a_tick()
        self._unsent_ticks += 1
        self._unheard_ticks += 1
        self._unended_ticks = self._unended_ticks + 1 if self._reader.is_partial else 0
        if self._unheard_ticks > math.ceil(self._limits.silence_s / self._tick_s):
            self.close(f"the peer said nothing for {self._limits.silence_s:g} s")
        elif self._unended_ticks > math.ceil(self._limits.frame_s / self._tick_s):
            # A length that was changed on its way would otherwise swallow all that follows, unseen.
            self.close(f"a frame did not end for {self._limits.frame_s:g} s")
        elif self._unsent_ticks >= 2 and not self._is_paused:
            self.put(Kind.PING, b"", bulk=False)

    def close(self, why: str) -> None:
        """Break the connection. What is queued is not sent; requests under way fail at once."""
        if not self.is_closed:
            self._end(why)
            if self._timer is not None:
                self._timer.cancel()
            if self in self._registry:
                self._transport.abort()

    def forsake(self, why: str) -> None:
        """The dial was given up before it had its socket, which the event loop closes. uvloop does so without a word even where
        `connection_made` was called already, so that `lost` would never be done."""
        self.close(why)
        self.connection_lost(None)

    def _refuse(self, why: str, answer: bytes = b"") -> None:
        """End a handshake, with a last word. The timer goes on, for a peer that does not read it."""
        self._counters.handshakes_refused += 1
        logger.info("handshake with %s refused: %s", self._name(), why)
        self._end(why)
        if not answer:
            self._transport.abort()
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(self._limits.handshake_timeout_s, self._transport.abort)
        self._write(answer)
        self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.is_closed:
            self._end("the connection broke" + (f": {exc}" if exc else ""))
        if self._timer is not None:
            self._timer.cancel()
        self._registry.discard(self)
        if not self.lost.done():
            self.lost.set_result(None)

    def _end(self, why: str) -> None:
        self.is_closed = True
        self.why = why
        if self._flushing is not None:
            self._flushing.cancel()
        for asked in self._asked.values():
            asked.fail(why)
        if not self.settled.done():
            self.settled.set_result(None)

    def _name(self) -> str:
        return self.peer.name if self.peer is not None else str(self._transport.get_extra_info("peername"))


def _numbered(number: int, payload: bytes) -> bytes:
    return number.to_bytes(NUMBER_BYTES, "little") + payload
