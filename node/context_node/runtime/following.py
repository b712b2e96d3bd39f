"""Following a context that another node holds: the stream is read there, and its frames are fetched from here.

Knows calls between nodes and subscriptions. Does not know HTTP. Invariants: one question is under way for a stream at a time, so frames
come in order, each once; an answer that is lost ends the stream with a refusal, and its reader goes on from its cursor; what nobody asks
after any more is closed.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable

from context_node.contexts.refusals import Overloaded, Refusal, Unavailable
from context_node.runtime.cluster import Cluster
from context_node.runtime.streams import BYTES_PER_PULL, Frame, Subscription

FOLLOWED_MAX = 10_000
"""Streams that this node reads for other nodes, at most."""

FORGOTTEN_S = 120.0
"""A stream that its node has not asked after for so long is closed: that node is gone."""

ASK_S = 20.0
"""A question waits so long for a frame; readers that are to hear something more often ask here."""


class Followed:
    """The streams that this node reads for others. `subscribe` is the node's own."""

    def __init__(self, cluster: Cluster, subscribe: Callable[[str, int], Awaitable[Subscription]]) -> None:
        self._cluster = cluster
        self._subscribe = subscribe
        self._open: dict[int, tuple[Subscription, float]] = {}
        self._handles = 0
        cluster.handlers["follow_next"] = self._next
        cluster.handlers["follow_close"] = self._close

    def __len__(self) -> int:
        return len(self._open)

    async def open(self, context_id: str, cursor: int) -> tuple[int, int]:
        """Begin to read a stream. Returns this node's number and the stream's handle."""
        self._forget()
        if len(self._open) >= FOLLOWED_MAX:
            raise Overloaded("The node has too many streams; retry shortly.", retry_after_s=1, streams_max=FOLLOWED_MAX)
        subscription = await self._subscribe(context_id, cursor)
        self._handles += 1
        self._open[self._handles] = (subscription, asyncio.get_running_loop().time())
        return self._cluster.number, self._handles

    async def _next(self, handle: int, timeout_s: float) -> tuple[list[Frame], int]:
        """What comes next, as soon as there is anything, and how often the reader has fallen too far behind."""
        if handle not in self._open:
            raise Unavailable("The node does not read that stream any more; connect again with your cursor.", retry_after_s=1)
        loop = asyncio.get_running_loop()
        subscription = self._open[handle][0]
        self._open[handle] = (subscription, loop.time())
        frames: list[Frame] = []
        size = 0
        frame = await subscription.next(min(timeout_s, ASK_S))
        while frame is not None:
            frames.append(frame)
            size += len(frame.data)
            frame = subscription.next_now() if size < BYTES_PER_PULL else None
        if handle in self._open:
            self._open[handle] = (subscription, loop.time())
        return frames, subscription.lagged

    async def _close(self, handle: int) -> None:
        subscription, _ = self._open.pop(handle, (None, 0.0))
        if subscription is not None:
            subscription.close()

    def _forget(self) -> None:
        """Close what nobody asks after. Streams are in the order in which they were opened, not asked after: all are looked at."""
        until = asyncio.get_running_loop().time() - FORGOTTEN_S
        for handle in [handle for handle, (_, asked) in self._open.items() if asked < until]:
            self._open.pop(handle)[0].close()


class RemoteSubscription:
    """One follower of a context of another node. Single consumer, as `Subscription`."""

    def __init__(self, cluster: Cluster, node: int, handle: int) -> None:
        self.lagged = 0
        self._cluster = cluster
        self._node = node
        self._handle = handle
        self._ready: deque[Frame] = deque()
        self._is_open = True
        self._closing: asyncio.Task[None] | None = None

    async def next(self, timeout_s: float) -> Frame | None:
        """The next frame; None if there was none for `timeout_s` seconds. Raises `Unavailable` if the other node is lost."""
        if not self._ready:
            timeout = min(timeout_s, ASK_S)
            frames, self.lagged = await self._cluster.call(self._node, "follow_next", (self._handle, timeout), timeout + 10.0)
            self._ready.extend(frames)
        return self._ready.popleft() if self._ready else None

    def close(self) -> None:
        """Stop following. May be repeated."""
        if self._is_open:
            self._is_open = False
            self._closing = asyncio.get_running_loop().create_task(self._close())

    async def _close(self) -> None:
        try:
            await self._cluster.call(self._node, "follow_close", (self._handle,), 5.0)
        except Refusal:
            pass  # it forgets the stream by itself
