"""The frames on a connection between two nodes, and the lanes in which they wait.

A frame is its length (u32, little-endian, of what follows the MAC), a MAC of 16 bytes, a byte for its kind, and a payload; requests and
replies begin theirs with a number (u64). The MAC is keyed for this direction of this connection and covers an implicit count of frames, so
that none can be forged, repeated, left out or moved. Knows bytes, bounds, and what may go wrong between nodes; does not know sockets, or
what payloads mean. Invariants: after a bad frame a reader gives nothing more; a lane gives its frames in order, control before bulk.
"""

import asyncio
import hmac
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from hashlib import blake2b

HEAD_BYTES = 4 + 16 + 1
NUMBER_BYTES = 8
FRAME_CHARGE_BYTES_MIN = 512
"""What a frame counts for in a queue at least, so that many small ones are bounded too."""

WRITE_HIGH_BYTES = 256 * 1024
"""Above so many unsent bytes in the socket's buffer, frames wait in the lanes, where control overtakes bulk."""

WRITE_LOW_BYTES = 64 * 1024


class PeerUnavailable(Exception):
    """Nothing was sent: no connection, queue full, or refused at the handshake. Safe to try elsewhere."""


class PeerLost(Exception):
    """The request was sent and no answer came (timeout, connection broke): its outcome is unknown."""


class PeerRefused(Exception):
    """The peer's handler refused the request; the message says why."""


class BadFrame(Exception):
    """What came is no frame that the peer sent next."""


@dataclass(frozen=True, slots=True)
class TransportLimits:
    """`frame_bytes_max` bounds a payload; `queue_bytes_max` what waits for one peer, both lanes. A side that sent nothing for
    `keepalive_s` pings; one that received nothing for `silence_s`, or no end of a frame for `frame_s`, closes. `requests_max`: handled at
    once for one connection; `handshakes_max`: under way when no more are taken in. Raises ValueError if a frame could never be queued."""

    frame_bytes_max: int = 64 << 20
    queue_bytes_max: int = 64 << 20
    handshake_timeout_s: float = 5.0
    reconnect_min_s: float = 0.05
    reconnect_max_s: float = 1.0
    keepalive_s: float = 1.0
    silence_s: float = 5.0
    frame_s: float = 30.0
    requests_max: int = 1024
    handshakes_max: int = 256

    def __post_init__(self) -> None:
        if not FRAME_CHARGE_BYTES_MIN <= self.frame_bytes_max <= self.queue_bytes_max or self.frame_bytes_max + HEAD_BYTES >= 1 << 32:
            raise ValueError(f"a frame has {FRAME_CHARGE_BYTES_MIN} bytes to 4 GiB, and fits into the queue")


@dataclass(slots=True)
class TransportCounters:
    """Since the start. Bytes are those on the wire, handshakes included. `dropped`: frames that found no connection or a full queue.
    `handshakes_refused` counts on both sides: what was refused here, and what others refused."""

    frames_in: int = 0
    frames_out: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    dropped: int = 0
    handshakes_refused: int = 0
    bad_frames: int = 0


class Kind(IntEnum):
    """What a frame is."""

    MESSAGE = 1
    REQUEST = 2
    REPLY = 3
    REFUSAL = 4
    PING = 5
    PONG = 6


_KINDS = {int(kind): kind for kind in Kind}


class FrameMac:
    """The MACs of one direction, in order."""

    def __init__(self, key: bytes) -> None:
        self._keyed = blake2b(key=key, digest_size=16)
        self._count = 0

    def next(self, kind: int, payload: bytes) -> bytes:
        mac = self._keyed.copy()
        mac.update(self._count.to_bytes(8, "little") + bytes((kind,)))
        mac.update(payload)
        self._count += 1
        return mac.digest()


class FrameReader:
    """Finds the frames in a stream of bytes."""

    def __init__(self, key: bytes, payload_bytes_max: int) -> None:
        self._mac = FrameMac(key)
        self._length_max = payload_bytes_max + 1
        self._buffer = bytearray()

    @property
    def is_partial(self) -> bool:
        """Whether a frame has begun to arrive and has not ended."""
        return bool(self._buffer)

    def feed(self, data: bytes) -> Iterator[tuple[Kind, bytes]]:
        """The frames that end in `data`. Raises BadFrame, behind the good frames before it."""
        buffer = self._buffer
        buffer += data
        at = 0
        while len(buffer) - at >= HEAD_BYTES:
            length = int.from_bytes(buffer[at : at + 4], "little")
            if not 1 <= length <= self._length_max:
                raise BadFrame(f"a length of {length} bytes")
            end = at + HEAD_BYTES - 1 + length
            if end > len(buffer):
                break
            kind = buffer[at + HEAD_BYTES - 1]
            payload = bytes(memoryview(buffer)[at + HEAD_BYTES : end])
            if not hmac.compare_digest(self._mac.next(kind, payload), buffer[at + 4 : at + 20]):
                raise BadFrame("a wrong MAC")
            if kind not in _KINDS:
                raise BadFrame(f"an unknown kind {kind}")
            at = end
            yield _KINDS[kind], payload
        del buffer[:at]


class Asked:
    """A request under way. Once its future is done it is not sent any more."""

    __slots__ = ("answer", "is_written")

    def __init__(self, answer: "asyncio.Future[bytes]") -> None:
        self.answer = answer
        self.is_written = False

    def fail(self, why: str) -> None:
        if not self.answer.done():
            self.answer.set_exception(PeerLost(why) if self.is_written else PeerUnavailable(why))


@dataclass(frozen=True, slots=True)
class Outgoing:
    kind: Kind
    payload: bytes
    asked: Asked | None

    @property
    def charge(self) -> int:
        return max(len(self.payload), FRAME_CHARGE_BYTES_MIN)


class Lanes:
    """Frames that wait to be written: control ahead of bulk, both within one bound."""

    def __init__(self, bytes_max: int) -> None:
        self._control: deque[Outgoing] = deque()
        self._bulk: deque[Outgoing] = deque()
        self._free = bytes_max

    def put(self, frame: Outgoing, bulk: bool) -> bool:
        """Whether there was room."""
        if frame.charge > self._free:
            return False
        self._free -= frame.charge
        (self._bulk if bulk else self._control).append(frame)
        return True

    def take(self) -> list[Outgoing]:
        """What is to be written next, together: control frames, or one bulk frame."""
        frames: list[Outgoing] = []
        size = 0
        while self._control and size < WRITE_HIGH_BYTES:
            frames.append(self._control.popleft())
            size += frames[-1].charge
        if not frames and self._bulk:
            frames.append(self._bulk.popleft())
            size = frames[-1].charge
        self._free += size
        return frames

    def __bool__(self) -> bool:
        return bool(self._control or self._bulk)
