"""The connections between the nodes of a cluster.

Each node dials each other one; on that connection go its one-way messages and its requests, and the replies come back. Knows nodes by their
numbers, where to dial them, and who is connected; does not know what is said, who is a member, or who should be dialed. Invariants: a frame
reaches a handler only from a peer that knows the cluster's secret, whole, once, and in the order of its lane; nothing here blocks or grows
without a bound; every task and socket belongs to the `Transport` and is gone when `close` returns.
"""

import asyncio
import logging
import ssl
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from context_node.runtime.connection import Connection
from context_node.runtime.frames import Kind, PeerLost, PeerRefused, PeerUnavailable, TransportCounters, TransportLimits
from context_node.runtime.handshake import NONCE_BYTES, Handshake, PeerIdentity, root_key
from context_node.tls import Credentials

__all__ = ["PeerIdentity", "PeerLost", "PeerRefused", "PeerUnavailable", "Transport", "TransportCounters", "TransportLimits"]

logger = logging.getLogger("contextstore.transport")

REFUSAL_CHARS_MAX = 4096


@dataclass(slots=True, eq=False)
class _Link:
    """A peer that is kept connected. `task` dials; `connection` is the newest that was established."""

    host: str
    port: int
    store: str
    task: "asyncio.Task[None] | None" = None
    connection: Connection | None = None


class Transport:
    """One node's connections. All callbacks run on the event loop that it is used from.

    `on_message(peer, payload)` gets one-way messages; if it raises, the loop's exception handler is told and the connection closed.
    `await on_request(peer, payload)` gives the reply; what it raises becomes `PeerRefused` at the asker. It runs on if the asker goes away,
    as its effects may be wanted, and is cancelled by `close`. `on_peer(node, connected)` tells of outgoing connections, until `close`.
    `identity` may be set anew; handshakes from then on use it. With `tls` every connection is TLS, both ends with a certificate; the
    handshake by secret comes all the same. Raises ValueError for a secret below 16 bytes.
    """

    def __init__(
        self,
        identity: PeerIdentity,
        secret: bytes,
        *,
        random_bytes: Callable[[int], bytes],
        limits: TransportLimits = TransportLimits(),  # noqa: B008 - it is frozen
        on_message: Callable[[PeerIdentity, bytes], None],
        on_request: Callable[[PeerIdentity, bytes], Awaitable[bytes]],
        on_peer: Callable[[int, bool], None],
        tls: Credentials | None = None,
    ) -> None:
        self.identity = identity
        self._tls = tls
        self.limits = limits
        self.counters = TransportCounters()
        self._root = root_key(secret)
        self._random_bytes = random_bytes
        self._on_message = on_message
        self._on_request = on_request
        self._on_peer = on_peer
        self._links: dict[int, _Link] = {}
        self._open: set[Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._is_closing = False

    # --- who is connected --------------------------------------------------------------------------------------------

    async def listen(self, host: str, port: int) -> int:
        """Take connections. Port 0 takes a free one, of the host's first address. Returns the port; raises OSError."""
        tls = self._tls_options(self._tls.for_peers if self._tls is not None else None)
        self._server = await asyncio.get_running_loop().create_server(lambda: self._new_connection(None), host, port, **tls)
        return int(self._server.sockets[0].getsockname()[1])

    def connect(self, node: int, host: str, port: int, store: str) -> None:
        """Keep one connection to a node until `forget`, dialing again with growing, jittered pauses. `store` is the disk that it must have,
        empty for any. May be repeated; another address or store ends the old connection."""
        link = self._links.get(node)
        if self._is_closing or (link is not None and (link.host, link.port, link.store) == (host, port, store)):
            return
        self.forget(node)
        link = self._links[node] = _Link(host, port, store)
        link.task = self._own(self._keep(node, link))

    def forget(self, node: int) -> None:
        """End the connection to a node, and dial it no more. Requests under way fail at once."""
        link = self._links.pop(node, None)
        if link is None:
            return
        if link.task is not None:
            link.task.cancel()
        if link.connection is not None:
            link.connection.close("the node was forgotten")

    def is_connected(self, node: int) -> bool:
        """Whether what is sent to the node now goes to a connection."""
        return self._connection(node) is not None

    def _connection(self, node: int) -> Connection | None:
        link = self._links.get(node)
        if link is None or link.connection is None or link.connection.is_closed:
            return None
        return link.connection

    # --- what is said ------------------------------------------------------------------------------------------------

    def send(self, node: int, payload: bytes, *, bulk: bool = False) -> bool:
        """Send a one-way message, behind all others if `bulk`. Never blocks. False: it was dropped, as the node is not connected, its queue
        is full, or the payload is above `frame_bytes_max`."""
        connection = self._connection(node)
        if connection is not None and len(payload) <= self.limits.frame_bytes_max and connection.put(Kind.MESSAGE, payload, bulk):
            return True
        self.counters.dropped += 1
        return False

    async def request(self, node: int, payload: bytes, timeout_s: float, *, bulk: bool = False) -> bytes:
        """Ask a node that is connected now. Raises PeerUnavailable, PeerLost, PeerRefused."""
        connection = self._connection(node)
        if connection is None:
            raise PeerUnavailable(f"node {node} is not connected")
        return await connection.ask(payload, timeout_s, bulk)

    async def request_address(self, host: str, port: int, payload: bytes, timeout_s: float) -> bytes:
        """Ask whoever listens there, on a connection of its own. `timeout_s` is for everything together. Raises as `request`."""
        loop = asyncio.get_running_loop()
        until = loop.time() + timeout_s
        try:
            async with asyncio.timeout_at(until):
                connection = await self._dial(host, port, "")
        except TimeoutError:
            raise PeerUnavailable(f"{host}:{port} could not be reached within {timeout_s:g} s") from None
        try:
            return await connection.ask(payload, until - loop.time(), False)
        finally:
            connection.close("the answer was had")

    # --- dialing -----------------------------------------------------------------------------------------------------

    async def _keep(self, node: int, link: _Link) -> None:
        loop = asyncio.get_running_loop()
        pause_s, complaint = self.limits.reconnect_min_s, ""
        while True:
            try:
                connection = await self._dial(link.host, link.port, link.store)
            except PeerUnavailable as error:
                if str(error) != complaint:
                    complaint = str(error)
                    logger.warning("node %d not connected: %s", node, complaint)
            else:
                began = loop.time()
                link.connection = connection
                self._tell(node, True)
                try:
                    # The socket's end, not the handshake's: shielded, as the connection completes it whatever becomes of this task.
                    await asyncio.shield(connection.lost)
                finally:
                    connection.close("not wanted any more")
                    self._tell(node, False)
                complaint = connection.why
                logger.warning("node %d not connected any more: %s", node, complaint)
                # A peer that takes connections only to drop them is no better than one that is away.
                if loop.time() - began >= self.limits.reconnect_max_s:
                    pause_s = self.limits.reconnect_min_s
            share = int.from_bytes(self._random_bytes(2), "little") / 65536
            await asyncio.sleep(pause_s * (0.5 + share / 2))
            pause_s = min(pause_s * 2, self.limits.reconnect_max_s)

    async def _dial(self, host: str, port: int, store: str) -> Connection:
        """A connection whose handshake went well. Raises PeerUnavailable."""
        if self._is_closing:
            raise PeerUnavailable("this node is closing its connections")
        connection = self._new_connection(store)
        try:
            async with asyncio.timeout(self.limits.handshake_timeout_s):
                tls = self._tls_options(self._tls.to_peers if self._tls is not None else None)
                await asyncio.get_running_loop().create_connection(lambda: connection, host, port, **tls)
        except (OSError, ValueError, OverflowError) as error:
            # The latter two: a name or port that no address can have.
            connection.forsake("not reached")
            raise PeerUnavailable(f"{host}:{port} was not reached: {str(error) or 'no answer'}") from None
        except BaseException:
            connection.forsake("not wanted any more")
            raise
        try:
            await asyncio.shield(connection.settled)
        except BaseException:
            connection.close("not wanted any more")
            raise
        if connection.is_closed:
            raise PeerUnavailable(f"{host}:{port}: {connection.why}")
        return connection

    def _tls_options(self, context: ssl.SSLContext | None) -> dict[str, Any]:
        return {} if context is None else {"ssl": context, "ssl_handshake_timeout": self.limits.handshake_timeout_s}

    def _tell(self, node: int, is_connected: bool) -> None:
        if self._is_closing:
            return
        try:
            self._on_peer(node, is_connected)
        except Exception as error:
            # The caller's trouble; the connection is as good as before.
            self._complain("a change of connections was not taken", error)

    # --- listening ---------------------------------------------------------------------------------------------------

    def _admit(self, is_incoming: bool) -> str:
        # Asked late: between the making of a connection and its socket a turn of the loop passes, in which `close` may begin.
        if self._is_closing:
            return "this node closes its connections"
        if is_incoming and sum(connection.peer is None for connection in self._open) >= self.limits.handshakes_max:
            self.counters.handshakes_refused += 1
            return "too many handshakes are under way"
        return ""

    def _new_connection(self, expects: str | None) -> Connection:
        return Connection(
            Handshake(self.identity, self._root, self._random_bytes(NONCE_BYTES), expects),
            self.limits,
            self.counters,
            self._open,
            admit=lambda: self._admit(expects is None),
            on_message=self._on_message,
            on_request=self._take_request,
        )

    def _take_request(self, connection: Connection, number: int, payload: bytes) -> None:
        if connection.handling >= self.limits.requests_max:
            connection.answer(Kind.REFUSAL, number, b"busy")
            return
        connection.handling += 1
        self._own(self._handle(connection, number, payload))

    async def _handle(self, connection: Connection, number: int, payload: bytes) -> None:
        assert connection.peer is not None
        try:
            kind, body = Kind.REPLY, await self._on_request(connection.peer, payload)
        except Exception as error:
            logger.warning("a request of %s failed: %s", connection.peer.name, type(error).__name__)
            kind, body = Kind.REFUSAL, (str(error) or type(error).__name__)[:REFUSAL_CHARS_MAX].encode(errors="replace")
        finally:
            connection.handling -= 1
        connection.answer(kind, number, body)

    # --- life --------------------------------------------------------------------------------------------------------

    def _own(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._disown)
        return task

    def _disown(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._complain("a task of the transport failed", error)

    def _complain(self, message: str, error: BaseException) -> None:
        asyncio.get_running_loop().call_exception_handler({"message": message, "exception": error})

    async def close(self) -> None:
        """Break every connection, cancel what handles requests (so it must not call this). What is queued is not sent. May be repeated."""
        self._is_closing = True
        if self._server is not None:
            self._server.close()
            # What it took last becomes a connection within two turns, and is to be waited for as well.
            for _ in range(3):
                await asyncio.sleep(0)
        for node in tuple(self._links):
            self.forget(node)
        while self._tasks or self._open:
            for task in self._tasks:
                task.cancel()
            for connection in tuple(self._open):
                connection.close("this node closes its connections")
            await asyncio.wait({*self._tasks, *(connection.lost for connection in self._open)})
        if self._server is not None:
            await self._server.wait_closed()
