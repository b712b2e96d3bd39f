"""A network that delays, drops, repeats and reorders, and that can be cut in either direction.

Knows what `Transport` promises to a node: whom it is connected to, one-way messages, requests with an answer or `PeerLost`. Does not know
what is said. Invariants: nothing arrives at a process that is dead, at another store than was dialed, or over a path that is cut; a request
under way fails when either end dies or the connection breaks.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from context_node.runtime.frames import PeerLost, PeerRefused, PeerUnavailable
from context_node.runtime.transport import PeerIdentity, Transport
from simulation.loop import OWNER, Process, SimulatedLoop

RECONNECT_S = 0.05
KEPT = 200
"""So many messages of each target may be said again."""


@dataclass
class Weather:
    """What the network does by itself; shares in [0, 1]. Times in seconds."""

    delay_s: float = 0.0005
    tail_share: float = 0.02
    tail_s: float = 0.05
    drop_share: float = 0.0
    repeat_share: float = 0.0
    replay_share: float = 0.0
    reorder: bool = False
    lost_reply_share: float = 0.0


@dataclass(eq=False)
class _Link:
    """A connection that `source` keeps to a node, or tries to."""

    source: "SimulatedTransport"
    node: int
    host: str
    port: int
    store: str
    target: "SimulatedTransport | None" = None
    as_seen: PeerIdentity | None = None
    is_over: bool = False
    waiting: dict["asyncio.Future[bytes]", None] = field(default_factory=dict)
    """In order: a set of futures has another order in every run."""
    last_arrival: float = 0.0
    last_bulk_arrival: float = 0.0
    said: list[bytes] = field(default_factory=list)

    @property
    def is_up(self) -> bool:
        return self.target is not None and not self.target.is_closed and not self.target.process.is_dead


class Network:
    """All of it. `cuts` holds pairs of host names whose messages vanish, in that direction."""

    def __init__(self, loop: SimulatedLoop) -> None:
        self.loop = loop
        self.weather = Weather()
        self.cuts: set[tuple[str, str]] = set()
        self.listening: dict[tuple[str, int], SimulatedTransport] = {}
        self.on_sent: Callable[[SimulatedTransport, int, bytes], None] = lambda _source, _node, _payload: None
        self.delivered = 0
        self.dropped = 0
        self.repeated = 0
        self.replayed = 0

    def heal(self) -> None:
        self.cuts.clear()

    def break_cut_links(self) -> None:
        """What is cut long enough is noticed at both ends."""
        for transport in list(self.listening.values()):
            for link in list(transport._known.values()):
                if link.target is not None and not (self.passes(transport.host, link.host) and self.passes(link.host, transport.host)):
                    transport._later(self.loop.random.random(), transport._lose, link, link.target)

    def passes(self, source: str, target: str) -> bool:
        return (source, target) not in self.cuts

    def delay_s(self) -> float:
        random, weather = self.loop.random, self.weather
        delay = weather.delay_s * (0.2 + random.random())
        if random.random() < weather.tail_share:
            delay += random.random() * weather.tail_s
        return delay


class SimulatedTransport(Transport):
    """What a node gets instead of sockets; see `Transport` for each method's promise."""

    def __init__(
        self,
        network: Network,
        identity: PeerIdentity,
        secret: bytes,
        *,
        random_bytes: Callable[[int], bytes],
        on_message: Callable[[PeerIdentity, bytes], None],
        on_request: Callable[[PeerIdentity, bytes], Awaitable[bytes]],
        on_peer: Callable[[int, bool], None],
        tls: None = None,
    ) -> None:
        owner = OWNER.get()
        assert owner is not None
        self.network = network
        self.identity = identity
        self.process: Process = owner
        self.is_closed = False
        self.host = ""
        self.port = 0
        self._message, self._request, self._peer = on_message, on_request, on_peer
        self._known: dict[int, _Link] = {}
        self.running: dict[asyncio.Task[Any], None] = {}
        """Calls that this node answers just now."""

    # --- connections --------------------------------------------------------------------------------------------------

    async def listen(self, host: str, port: int) -> int:
        self.host, self.port = host, port
        self.network.listening[host, port] = self
        self.process.on_death.append(self._break_all)
        return port

    def connect(self, node: int, host: str, port: int, store: str) -> None:
        link = self._known.get(node)
        if self.is_closed or (link is not None and (link.host, link.port, link.store) == (host, port, store)):
            return
        self.forget(node)
        link = self._known[node] = _Link(self, node, host, port, store)
        self._dial_link(link)

    def forget(self, node: int) -> None:
        link = self._known.pop(node, None)
        if link is not None:
            link.is_over = True
            self._fail_all(link)

    def is_connected(self, node: int) -> bool:
        link = self._known.get(node)
        return link is not None and link.is_up

    def _dial_link(self, link: _Link) -> None:
        if link.is_over or self.is_closed or self.process.is_dead:
            return
        target = self._reach(link.host, link.port, link.store)
        if target is None:
            self._later(RECONNECT_S * (0.5 + self.network.loop.random.random()), self._dial_link, link)
            return
        link.target, link.as_seen = target, self.identity
        target.process.on_death.append(lambda: self._notice_death(link, target))
        self._peer(link.node, True)

    def _reach(self, host: str, port: int, store: str) -> "SimulatedTransport | None":
        network = self.network
        target = network.listening.get((host, port))
        if target is None or target.is_closed or target.process.is_dead or target.process.is_paused:
            return None
        if not network.passes(self.host, host) or not network.passes(host, self.host):
            return None
        theirs, ours = target.identity.cluster_id, self.identity.cluster_id
        is_strange = bool(theirs and ours and theirs != ours) or bool(store and target.identity.store != store)
        return None if is_strange else target

    def _notice_death(self, link: _Link, target: "SimulatedTransport") -> None:
        """The kernel of a dead process's machine says so, unless the path is cut."""
        if link.target is target:
            self._later(self.network.delay_s(), self._lose, link, target)

    def _lose(self, link: _Link, target: "SimulatedTransport") -> None:
        if link.is_over or link.target is not target:
            return
        link.target = None
        self._fail_all(link)
        self._peer(link.node, False)
        self._later(RECONNECT_S, self._dial_link, link)

    def _break_all(self) -> None:
        for link in self._known.values():
            link.is_over = True

    def _fail_all(self, link: _Link) -> None:
        for answer in list(link.waiting):
            if not answer.done():
                answer.set_exception(PeerLost("the connection broke"))
        link.waiting.clear()

    def _later(self, delay_s: float, callback: Callable[..., Any], *arguments: Any) -> None:
        self.process.call_at(self.network.loop.time() + delay_s, callback, *arguments)

    # --- messages -----------------------------------------------------------------------------------------------------

    def send(self, node: int, payload: bytes, *, bulk: bool = False) -> bool:
        network, random = self.network, self.network.loop.random
        network.on_sent(self, node, payload)
        link = self._known.get(node)
        if link is None or not link.is_up:
            return False
        if not network.passes(self.host, link.host) or random.random() < network.weather.drop_share:
            network.dropped += 1
            return True
        self._deliver(link, payload, bulk)
        if random.random() < network.weather.repeat_share:
            network.repeated += 1
            self._deliver(link, payload, bulk)
        if link.said and random.random() < network.weather.replay_share:
            network.replayed += 1
            self._deliver(link, link.said[int(random.random() * len(link.said))], bulk)
        link.said.append(payload)
        if len(link.said) > KEPT:
            del link.said[0]
        return True

    def _deliver(self, link: _Link, payload: bytes, bulk: bool) -> None:
        network, target = self.network, link.target
        assert target is not None
        when = network.loop.time() + network.delay_s()
        if not network.weather.reorder:
            if bulk:
                when = link.last_bulk_arrival = max(when, link.last_bulk_arrival)
            else:
                when = link.last_arrival = max(when, link.last_arrival)
        target.process.call_at(when, target._take, link, payload)

    def _take(self, link: _Link, payload: bytes) -> None:
        if self.is_closed or link.is_over or link.target is not self or not self.network.passes(link.source.host, self.host):
            return
        assert link.as_seen is not None
        self.network.delivered += 1
        self._message(link.as_seen, payload)

    # --- requests -----------------------------------------------------------------------------------------------------

    async def request(self, node: int, payload: bytes, timeout_s: float, *, bulk: bool = False) -> bytes:
        link = self._known.get(node)
        if link is None or not link.is_up:
            raise PeerUnavailable(f"node {node} is not connected")
        return await self._ask(link, payload, timeout_s)

    async def request_address(self, host: str, port: int, payload: bytes, timeout_s: float) -> bytes:
        await asyncio.sleep(self.network.delay_s())
        target = self._reach(host, port, "")
        if target is None:
            raise PeerUnavailable(f"{host}:{port} was not reached")
        link = _Link(self, 0, host, port, "", target, self.identity)
        target.process.on_death.append(lambda: self._notice_death(link, target))
        try:
            return await self._ask(link, payload, timeout_s)
        finally:
            link.is_over = True

    async def _ask(self, link: _Link, payload: bytes, timeout_s: float) -> bytes:
        network, target = self.network, link.target
        assert target is not None
        answer: asyncio.Future[bytes] = network.loop.create_future()
        link.waiting[answer] = None
        if network.passes(self.host, target.host):
            target.process.call_at(network.loop.time() + network.delay_s(), target._take_question, link, payload, answer)
        try:
            async with asyncio.timeout(timeout_s):
                return await answer
        except TimeoutError:
            raise PeerLost("no answer in time") from None
        finally:
            link.waiting.pop(answer, None)

    def _take_question(self, link: _Link, payload: bytes, answer: "asyncio.Future[bytes]") -> None:
        if self.is_closed or not self.network.passes(link.source.host, self.host):
            return
        task = self.network.loop.create_task(self._answer(link, payload, answer), context=self.process.context.copy())
        self.running[task] = None
        task.add_done_callback(lambda task: self.running.pop(task, None))

    async def _answer(self, link: _Link, payload: bytes, answer: "asyncio.Future[bytes]") -> None:
        assert link.as_seen is not None
        error: PeerRefused | None = None
        body = b""
        try:
            body = await self._request(link.as_seen, payload)
        except Exception as raised:
            error = PeerRefused(f"{type(raised).__name__}: {raised}")
        source, network = link.source, self.network
        if not network.passes(self.host, source.host) or network.loop.random.random() < network.weather.lost_reply_share:
            return

        def arrive() -> None:
            if answer.done() or link.is_over:
                return
            if error is None:
                answer.set_result(body)
            else:
                answer.set_exception(error)

        source.process.call_at(network.loop.time() + network.delay_s(), arrive)

    async def close(self) -> None:
        self.is_closed = True
        if self.network.listening.get((self.host, self.port)) is self:
            del self.network.listening[self.host, self.port]
        for node in list(self._known):
            self.forget(node)
        for task in list(self.running):
            task.cancel()
        for other in list(self.network.listening.values()):
            for link in other._known.values():
                if link.target is self:
                    other._later(self.network.delay_s(), other._lose, link, self)
        await asyncio.gather(*self.running, return_exceptions=True)
