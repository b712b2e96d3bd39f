"""Following a context: replay from a cursor, then live, on one subscription.

A subscriber pulls: it keeps the seq it has seen, and `next` gives what comes after it, from memory or the database, so that a slow reader
costs no memory and a fast one no wait. Knows nothing of WebSockets or SSE. Invariants: messages come in order of seq, each once; what a
live reader misses by falling too far behind is told as one `gap`; a frame about the window comes after the messages that caused it.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

from context_node.contexts.commands import encode_json
from context_node.contexts.machine import Event
from context_node.contexts.refusals import Unavailable
from context_node.runtime.replica import Replica

MESSAGES_PER_PULL = 100
BYTES_PER_PULL = 1 << 20
"""A pull ends early above so many bytes, so that a follower holds at most this and one message more."""

NOTICES_MAX = 64


@dataclass(frozen=True, slots=True)
class Frame:
    """One thing told to a follower. `event` is message, context, compaction, tombstoned, purged or gap; `seq` belongs to messages; `data`
    is JSON."""

    event: str
    seq: int | None
    data: bytes


class Subscription:
    """One follower of one context. Single consumer: call `next` until it is closed, then `close`."""

    def __init__(
        self,
        replica: Replica,
        context_id: str,
        cursor: int,
        *,
        lag_max: int,
        read: Callable[[int, int], Iterable[tuple[int, bytes]] | None],
        read_cold: Callable[[int, int], Awaitable[Iterable[tuple[int, bytes]]]],
        state: Callable[[], bytes],
    ) -> None:
        """`read` gives messages of a range of seq at once, None if the first of them is in the archive; `read_cold` waits for those."""
        self._replica = replica
        self._context_id = context_id
        self._position = cursor
        self._lag_max = lag_max
        self._read = read
        self._read_cold = read_cold
        self._cold: tuple[int, int] | None = None
        """A range that is next and whose beginning is in the archive."""
        self._state = state
        self._is_live = False
        self._ready: deque[Frame] = deque()
        self._notices: deque[tuple[int, Frame]] = deque()
        self._wake = asyncio.Event()
        self._last_seq = cursor
        self._is_purged = False
        self._is_over = False
        self.lagged = 0
        self._error: Exception | None = None

    def start(self, last_seq: int) -> None:
        """Begin with the replay up to `last_seq`."""
        self._last_seq = last_seq
        self._replica.followed.setdefault(self._context_id, []).append(self)

    def tell(self, event: Event, last_seq: int) -> None:
        """The replica applied something. Called in the turn that applied it; costs no copy of any message."""
        if self._is_purged:
            return  # what happens to a new context of the same id is not for followers of the old one
        self._last_seq = max(self._last_seq, last_seq)
        if event.kind in ("tombstoned", "purged"):
            self._is_purged = event.kind == "purged"
            self._notices.append((self._last_seq, Frame(event.kind, None, encode_json({"id": self._context_id}))))
        elif event.compacted:
            self._notices.append((self._last_seq, Frame("compaction", None, self._state())))
        if len(self._notices) > NOTICES_MAX:
            # A missed rewrite shows in the next one: each tells the whole state of the window. Among ends alone the oldest goes.
            del self._notices[next((at for at, (_, frame) in enumerate(self._notices) if frame.event == "compaction"), 0)]
        self._wake.set()

    async def next(self, timeout_s: float) -> Frame | None:
        """The next frame; None if there was none for `timeout_s` seconds. After `purged` the subscription gives nothing any more."""
        while True:
            if self._error is not None:
                raise self._error
            if self._ready:
                return self._ready.popleft()
            if self._replica.failure is not None:
                raise Unavailable(self._replica.failure)
            if self._fill():
                continue
            if self._cold is not None:
                (first, upto), self._cold = self._cold, None
                self._take(await self._read_cold(first, upto), upto)
                continue
            if self._is_over:
                await asyncio.sleep(0)
                return None
            self._wake.clear()
            try:
                async with asyncio.timeout(timeout_s):
                    await self._wake.wait()
            except TimeoutError:
                return None

    def next_now(self) -> Frame | None:
        """The next frame if there is one already; what is in the archive is left to `next`."""
        if not self._ready and self._error is None and self._replica.failure is None:
            self._fill()
        return self._ready.popleft() if self._ready else None

    def _fill(self) -> bool:
        """Put what is next in order into `_ready`. Returns whether there is anything."""
        if self._notices and self._notices[0][0] <= self._position:
            frame = self._notices.popleft()[1]
            self._is_over = self._is_over or frame.event == "purged"
            self._ready.append(frame)
            return True
        if self._is_over:
            return False
        behind = self._last_seq - self._position
        if behind > 0:
            if self._is_live and behind > self._lag_max:
                self._skip()
                return True
            return self._pull()
        if not self._is_live:
            self._is_live = True
            self._ready.append(Frame("context", None, self._state()))
            return True
        return False

    def _skip(self) -> None:
        gap = {"from_seq": self._position + 1, "to_seq": self._last_seq}
        self._ready.append(Frame("gap", None, encode_json(gap)))
        self._position = self._last_seq
        self.lagged += 1

    def _pull(self) -> bool:
        upto = min(self._last_seq, self._position + MESSAGES_PER_PULL)
        if self._notices:
            upto = min(upto, max(self._notices[0][0], self._position + 1))
        rows = self._read(self._position + 1, upto)
        if rows is None:
            self._cold = (self._position + 1, upto)
            return False
        self._take(rows, upto)
        return True

    def _take(self, rows: Iterable[tuple[int, bytes]], upto: int) -> None:
        """Make frames of what was read for `upto` and before."""
        size = 0
        for seq, body in rows:
            self._ready.append(Frame("message", seq, body))
            size += len(body)
            if size >= BYTES_PER_PULL:
                self._position = seq
                return
        # A purge in between takes the rows away; its notice follows.
        self._position = upto

    def close(self) -> None:
        """Stop following. May be repeated."""
        followers = self._replica.followed.get(self._context_id)
        if followers is not None and self in followers:
            followers.remove(self)
            if not followers:
                del self._replica.followed[self._context_id]

    def fail(self, error: Exception) -> None:
        """End the subscription with this error."""
        self._error = error
        self.close()
        self._wake.set()

    def stop(self) -> None:
        """Wake the consumer because the replica stopped."""
        self._wake.set()


def tell_followers(replica: Replica, event: Event) -> None:
    """Hand an event to those who follow its context on this replica."""
    followers = replica.followed.get(event.context_id)
    if not followers:
        return
    context = replica.machine.contexts.get(event.context_id)
    last_seq = context.head.last_seq if context is not None else 0
    for follower in tuple(followers):
        try:
            follower.tell(event, last_seq)
        except Exception as error:
            # A follower's trouble is its own: the shard goes on, and the reader finds its stream ended.
            follower.fail(error)
