"""A wire that can be held and cut: a TCP proxy of a test between a client and a server of this machine.

Knows bytes, not what they say. Does not know the test. Invariants: nothing is lost, doubled or reordered but by a cut that the test asked
for; while it is held nothing passes either way, not even that one end has gone; all its sockets and its thread end with its block.
"""

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

CHUNK_BYTES = 1 << 16
DEADLINE_S = 30.0


@dataclass(slots=True, eq=False)
class _Pair:
    client: asyncio.StreamWriter
    server: asyncio.StreamWriter

    def cut(self) -> None:
        """What the client sent still gets to the server; the client hears nothing any more."""
        self.client.transport.abort()
        self.server.close()


class TcpProxy:
    """See the module's docstring. Its calls may come from any thread. `port` is where it listens."""

    def __init__(self, target_port: int) -> None:
        self.port = 0
        self.cuts = 0
        self.held = 0
        """Pieces, or ends of connections, that wait to be let through."""
        self._target_port = target_port
        self._left: int | None = None
        self._words: list[tuple[bytes, int]] = []
        self._pairs: set[_Pair] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._flows: asyncio.Event

    def hold(self) -> None:
        """Let nothing through until `let_go`. Connections are taken up, and hear nothing."""
        self._do(self._flows.clear)

    def let_go(self) -> None:
        self._do(self._flows.set)

    def cut_after(self, count: int) -> None:
        """Cut the connection that is in use when clients have sent so many bytes more."""
        self._left, self._words = count, []

    def lose_answers_to(self, *words: tuple[bytes, int]) -> None:
        """Cut the connection on which a client next says a word (an empty one: anything), once the server has been told and before the
        client hears of it; not before clients have sent so many bytes more. Then the same with the next word, on whichever connection."""
        self._left, self._words = None, list(words)

    def cut_all(self) -> None:
        """Cut what is connected."""

        def cut() -> None:
            for pair in list(self._pairs):
                pair.cut()

        self._do(cut)

    # --- inside its thread -----------------------------------------------------------------------------------------------

    def _do(self, what: Callable[[], object]) -> None:
        done = threading.Event()

        def act() -> None:
            what()
            done.set()

        self._loop.call_soon_threadsafe(act)
        assert done.wait(DEADLINE_S), "the proxy hangs"

    async def serve(self, ready: threading.Event, end: asyncio.Event) -> None:
        self._flows = asyncio.Event()
        self._flows.set()
        serving: set[asyncio.Task[Any]] = set()

        def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self._writers.add(writer)
            serving.add(asyncio.create_task(self._connected(reader, writer)))

        server = await asyncio.start_server(connected, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        ready.set()
        await end.wait()
        # asyncio leaves a socket to the collector if its server closes in the turn after it was accepted.
        for _ in range(3):
            await asyncio.sleep(0)
        server.close()
        # Also tasks of asyncio's own, of connections that it has yet to hand over.
        while left := asyncio.all_tasks() - {asyncio.current_task()}:
            for task in left & serving:
                task.cancel()
            await asyncio.wait(left)
        # Wherever its task was when it was cancelled, and whatever is still unsent.
        for writer in self._writers:
            writer.transport.abort()
        await asyncio.sleep(0)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            from_server, to_server = await asyncio.open_connection("127.0.0.1", self._target_port)
        except OSError:
            writer.transport.abort()
            return
        self._writers.add(to_server)
        pair = _Pair(writer, to_server)
        self._pairs.add(pair)
        pumps = [asyncio.create_task(self._pump(reader, to_server, pair)), asyncio.create_task(self._pump(from_server, writer, None))]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            self._pairs.discard(pair)
            to_server.close()
            writer.close()

    async def _pump(self, source: asyncio.StreamReader, target: asyncio.StreamWriter, asking: _Pair | None) -> None:
        with suppress(OSError):
            is_open = True
            while is_open:
                data = await source.read(CHUNK_BYTES)
                if not self._flows.is_set():
                    self.held += 1
                    await self._flows.wait()
                    self.held -= 1
                is_open = bool(data)
                if asking is not None and self._is_to_be_cut(data):
                    target.write(data[: self._left])
                    self._left = None
                    self.cuts += 1
                    asking.cut()
                    return
                target.write(data)
                await target.drain()

    def _is_to_be_cut(self, data: bytes) -> bool:
        if self._left is not None:
            if len(data) >= self._left:
                return True
            self._left -= len(data)
        if not self._words:
            return False
        word, behind = self._words[0][0], self._words[0][1] - len(data)
        self._words[0] = word, behind
        if behind > 0 or word not in data:
            return False
        del self._words[0]
        return True


@contextmanager
def tcp_proxy(target_port: int) -> Iterator[TcpProxy]:
    """A proxy in a thread of its own, gone at the end."""
    proxy = TcpProxy(target_port)
    ready, end = threading.Event(), asyncio.Event()
    thread = threading.Thread(target=proxy._loop.run_until_complete, args=(proxy.serve(ready, end),), daemon=True)
    thread.start()
    try:
        assert ready.wait(DEADLINE_S), "the proxy did not start"
        yield proxy
    finally:
        proxy._loop.call_soon_threadsafe(end.set)
        thread.join(DEADLINE_S)
        proxy._loop.close()
