"""Connections between nodes: real sockets, real loops, and a proxy in between that does what networks and strangers do."""

import asyncio
import os
import weakref
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any, ClassVar

import pytest

from context_node.runtime.frames import BadFrame, FrameMac, FrameReader, Kind
from context_node.runtime.transport import (
    PeerIdentity,
    PeerLost,
    PeerRefused,
    PeerUnavailable,
    Transport,
    TransportLimits,
)
from support.loops import Run
from support.waiting import until

SECRET = b"sixteen bytes or more"
CLUSTER = "c1" * 16
HOST = "127.0.0.1"
FAST = TransportLimits(reconnect_min_s=0.005, reconnect_max_s=0.02)
QUIET = TransportLimits(reconnect_min_s=0.005, reconnect_max_s=0.02, keepalive_s=60.0, silence_s=300.0)
"""Nothing is on the wire but what the test says."""


class Peer:
    """A transport and what it was told."""

    existing: ClassVar["weakref.WeakSet[Peer]"] = weakref.WeakSet()

    def __init__(
        self,
        stack: AsyncExitStack,
        number: int,
        *,
        cluster: str = CLUSTER,
        secret: bytes = SECRET,
        limits: TransportLimits = FAST,
        on_message: Callable[[PeerIdentity, bytes], None] | None = None,
        on_request: Callable[[PeerIdentity, bytes], Awaitable[bytes]] | None = None,
    ) -> None:
        self.existing.add(self)
        self.number = number
        self.store = f"{number:032x}"
        self.port = 0
        self.messages: list[bytes] = []
        self.senders: list[PeerIdentity] = []
        self.requests: list[bytes] = []
        self.changes: list[tuple[int, bool]] = []
        self._answer = on_request
        self.transport = Transport(
            PeerIdentity(cluster, number, self.store, f"node-{number}"),
            secret,
            random_bytes=os.urandom,
            limits=limits,
            on_message=on_message or self._take,
            on_request=self._on_request,
            on_peer=lambda node, connected: self.changes.append((node, connected)),
        )
        stack.push_async_callback(self._close)

    async def _close(self) -> None:
        await no_more_dialing()
        await self.transport.close()

    def _take(self, peer: PeerIdentity, payload: bytes) -> None:
        self.senders.append(peer)
        self.messages.append(payload)

    async def _on_request(self, peer: PeerIdentity, payload: bytes) -> bytes:
        self.requests.append(payload)
        return await self._answer(peer, payload) if self._answer is not None else b"re: " + payload

    async def listen(self, port: int = 0) -> "Peer":
        self.port = await self.transport.listen(HOST, port)
        return self

    async def dial(self, other: "Peer", port: int | None = None) -> None:
        """Be connected to the other, through a proxy's port if that is given."""
        self.transport.connect(other.number, HOST, port or other.port, other.store)
        await until(lambda: self.transport.is_connected(other.number), f"{self.number} is connected to {other.number}")

    async def ask(self, other: "Peer", payload: bytes, timeout_s: float = 30.0) -> bytes:
        return await self.transport.request(other.number, payload, timeout_s)

    @property
    def counters(self) -> Any:
        return self.transport.counters


async def no_more_dialing() -> None:
    """To be awaited before a listener closes: asyncio leaves a socket to the collector if its server closes in the turn after it was
    accepted, and warnings are errors here."""
    for peer in Peer.existing:
        for node in range(10):
            peer.transport.forget(node)
    for _ in range(10):
        await asyncio.sleep(0)


class Proxy:
    """Passes bytes on; `forth` is from the dialer. `change` may replace each chunk of one direction; `open` unset holds everything up."""

    def __init__(self, stack: AsyncExitStack, target: int) -> None:
        self._stack = stack
        self._target = target
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: list[asyncio.StreamWriter] = []
        self.port = 0
        self.open = asyncio.Event()
        self.open.set()
        self.chunks = {"forth": 0, "back": 0}
        self.change: dict[str, Callable[[bytes], bytes]] = {}

    async def start(self) -> "Proxy":
        server = await asyncio.start_server(self._pass, HOST, 0)
        self.port = server.sockets[0].getsockname()[1]
        self._stack.push_async_callback(self._close, server)
        return self

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._tasks.add(asyncio.current_task())
        there, back = await asyncio.open_connection(HOST, self._target)
        self._writers += [writer, back]
        gate = self.open
        try:
            await asyncio.gather(self._pump("forth", reader, back, gate), self._pump("back", there, writer, gate))
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            writer.transport.abort()
            back.transport.abort()

    async def _pump(self, way: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, gate: asyncio.Event) -> None:
        while True:
            await gate.wait()
            data = await reader.read(65536)
            await gate.wait()
            if not data:
                raise ConnectionResetError
            self.chunks[way] += 1
            writer.write(self.change.get(way, bytes)(data))
            await writer.drain()

    def black_hole(self) -> None:
        """What is connected now passes nothing any more, for ever, and does not end; what comes later passes."""
        self.open.clear()
        self.open = asyncio.Event()
        self.open.set()

    def cut(self) -> None:
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    def once(self, way: str, change: Callable[[bytes], bytes]) -> None:
        """Change the next chunk only."""

        def first(data: bytes) -> bytes:
            del self.change[way]
            return change(data)

        self.change[way] = first

    async def _close(self, server: asyncio.Server) -> None:
        await no_more_dialing()
        server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await server.wait_closed()


def flip(at: int) -> Callable[[bytes], bytes]:
    return lambda data: data[:at] + bytes((data[at] ^ 1,)) + data[at + 1 :]


async def pair(stack: AsyncExitStack, **options: Any) -> tuple[Peer, Peer]:
    """Node 1, which is connected to node 2. Options are for both."""
    one, two = Peer(stack, 1, **options), await Peer(stack, 2, **options).listen()
    await one.dial(two)
    return one, two


async def pair_through_proxy(stack: AsyncExitStack, limits: TransportLimits = QUIET, **options: Any) -> tuple[Peer, Peer, Proxy]:
    one, two = Peer(stack, 1, limits=limits), await Peer(stack, 2, **{"limits": limits, **options}).listen()
    proxy = await Proxy(stack, two.port).start()
    await one.dial(two, proxy.port)
    return one, two, proxy


# --- messages ----------------------------------------------------------------------------------------------------------


def test_messages_arrive_in_order_and_whole(run: Run) -> None:
    async def check(stack: AsyncExitStack) -> None:
        one, two = await pair(stack)
        said = [os.urandom(size) for size in (0, 1, 20_000_000, 3, 100_000, 20_000_001, 0)]
        for payload in said:
            assert one.transport.send(2, payload)
        await until(lambda: len(two.messages) == len(said), "all messages arrive")
        assert two.messages == said
        assert two.senders[0] == one.transport.identity
        assert one.counters.frames_out >= len(said) and two.counters.bytes_in >= 40_000_001

    run(check)


def test_many_messages_of_one_turn_leave_in_one_write(run: Run) -> None:
    async def check(stack: AsyncExitStack) -> None:
        one, two, proxy = await pair_through_proxy(stack)
        before = proxy.chunks["forth"]
        said = [f"message {number}".encode() for number in range(1000)]
        for payload in said:
            assert one.transport.send(2, payload)
        await until(lambda: len(two.messages) == len(said), "all messages arrive")
        assert two.messages == said
        assert proxy.chunks["forth"] - before <= 5, "a write each would come in hundreds of pieces"

    run(check)


def test_control_overtakes_bulk_that_waits_for_a_slow_reader(run: Run) -> None:
    async def check(stack: AsyncExitStack) -> None:
        one, two, proxy = await pair_through_proxy(stack)
        proxy.open.clear()
        sent = refused = 0
        # Full for this many polls in a row: the sockets on the way are full as well.
        while refused < 100:
            if one.transport.send(2, b"%d" % sent + bytes(1 << 20), bulk=True):
                sent, refused = sent + 1, 0
            else:
                refused += 1
                await asyncio.sleep(0.001)
        assert one.transport.send(2, b"first")
        assert one.transport.send(2, b"second")
        written = one.counters.frames_out
        assert written < sent and one.counters.dropped >= 100
        proxy.open.set()
        await until(lambda: len(two.messages) == sent + 2, "everything arrives", 30.0)
        assert two.messages.index(b"first") <= written
        assert two.messages.index(b"second") == two.messages.index(b"first") + 1
        bulk = [int(message.rstrip(b"\0")) for message in two.messages if len(message) > 1000]
        assert bulk == list(range(sent))

    run(check)


def test_a_full_queue_takes_nothing_more_and_loses_nothing_it_took(run: Run) -> None:
    async def check(stack: AsyncExitStack) -> None:
        limits = TransportLimits(frame_bytes_max=1 << 16, queue_bytes_max=1 << 20)
        one, two = await pair(stack, limits=limits)
        taken = [number for number in range(40) if one.transport.send(2, bytes((number,)) * (1 << 16), bulk=number % 2 == 0)]
        assert taken == list(range(16))
        assert one.counters.dropped == 24
        with pytest.raises(PeerUnavailable):
            await one.ask(two, b"no room for this either")
        await until(lambda: len(two.messages) == 16, "what was taken arrives")
        assert one.transport.send(2, b"room again")

    run(check)


def test_what_is_sent_to_nobody_is_dropped(run: Run) -> None:
    async def check(stack: AsyncExitStack) -> None:
        one = Peer(stack, 1)
        assert not one.transport.send(2, b"hello")
        assert not one.transport.is_connected(2)
        assert one.counters.dropped == 1
        one.transport.forget(2)

    run(check)


def test_a_message_that_is_not_taken_closes_the_connection_and_is_told(run: Run) -> None:
    async def check(stack: AsyncExitStack) -> None:
        told: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: told.append(context))
        taken: list[bytes] = []

        def take(_peer: PeerIdentity, payload: bytes) -> None:
            if payload == b"bad":
                raise RuntimeError("cannot take this")
            taken.append(payload)

        one, two = Peer(stack, 1), await Peer(stack, 2, on_message=take).listen()
        await one.dial(two)
        for payload in (b"good", b"bad", b"behind"):
            one.transport.send(2, payload)
        await until(lambda: (2, False) in one.changes, "the connection is closed")
        assert taken == [b"good"]
        assert [str(context["exception"]) for context in told] == ["cannot take this"]
        await until(lambda: one.transport.send(2, b"anew"), "it is connected again")
        await until(lambda: taken == [b"good", b"anew"], "messages flow again")

    run(check)


# --- requests ----------------------------------------------------------------------------------------------------------


def test_requests_get_their_own_replies(run: Run) -> None:
    async def check(stack: AsyncExitStack) -> None:
        slow = asyncio.Event()

        async def answer(peer: PeerIdentity, payload: bytes) -> bytes:
            if payload == b"slow":
                await slow.wait()
            else:
                slow.set()
            return payload * 2 + peer.name.encode()

        one, two = await pair(stack, on_request=answer)
        big = os.urandom(3_000_000)
        replies = await asyncio.gather(one.ask(two, b"slow"), one.ask(two, b"fast"), one.ask(two, big))
        assert replies == [b"slowslownode-1", b"fastfastnode-1", big * 2 + b"node-1"]

    run(check)


def test_what_a_handler_raises_refuses_the_request(run: Run) -> None:
    async def check(stack: AsyncExitStack) -> None:
        async def answer(_peer: PeerIdentity, payload: bytes) -> bytes:
            if payload == b"large":
                return bytes(1 << 16)
            raise KeyError if payload == b"bare" else RuntimeError("not on a Sunday")

        limits = TransportLimits(frame_bytes_max=1000)
        one, two = await pair(stack, on_request=answer, limits=limits)
        for payload, why in ((b"", "not on a Sunday"), (b"bare", "KeyError"), (b"large", "larger than a frame")):
            with pytest.raises(PeerRefused, match=why):
                await one.ask(two, payload)
        assert one.transport.is_connected(2)

    run(check)


def test_a_request_to_a_peer_that_never_connects_is_unavailable(run: Run) -> None:
    async def check(stack: AsyncExitStack) -> None:
        one, two = Peer(stack, 1), await Peer(stack, 2).listen()
        await two.transport.close()
        one.transport.connect(2, HOST, two.port, two.store)
        for node in (2, 3):
            with pytest.raises(PeerUnavailable):
                await one.transport.request(node, b"hello", 30.0)
        assert one.changes == []

    run(check)


def test_a_connection_that_breaks_loses_the_requests_under_way(run: Run) -> None:
    async def check(stack: AsyncExitStack) -> None:
        never = asyncio.Event()

        async def answer(_peer: PeerIdentity, _payload: bytes) -> bytes:
            await never.wait()
            return b""

        one, two, proxy = await pair_through_proxy(stack, on_request=answer)
        asking = asyncio.create_task(one.ask(two, b"hello"))
        await until(lambda: two.requests == [b"hello"], "the request is being handled")
        proxy.cut()
        with pytest.raises(PeerLost):
            await asking
        await until(lambda: one.changes == [(2, True), (2, False), (2, True)], "it is connected again")
        asking = asyncio.create_task(one.ask(two, b"again"))
        await until(lambda: len(two.requests) == 2, "the request is being handled")
        one.transport.forget(2)
        with pytest.raises(PeerLost, match="forgotten"):
            await asking

    run(check)


def test_a_late_reply_harms_nothing(run: Run) -> None:
    async def check(stack: AsyncExitStack) -> None:
        late = asyncio.Event()

        async def answer(_peer: PeerIdentity, payload: bytes) -> bytes:
            if payload == b"late":
                await late.wait()
            return payload

        one, two = await pair(stack, on_request=answer)
        with pytest.raises(PeerLost, match=r"0\.02 s"):
            await one.ask(two, b"late", 0.02)
        received = one.counters.frames_in
        late.set()
        await until(lambda: one.counters.frames_in > received, "the late reply arrives")
        assert await one.ask(two, b"next") == b"next"
        assert one.changes == [(2, True)] and one.messages == []

    run(check)


def test_a_request_that_was_never_written_is_unavailable_when_its_time_is_up(run: Run) -> None:
    async def check(stack: AsyncExitStack) -> None:
        one, two, proxy = await pair_through_proxy(stack)
        proxy.open.clear()
        sent = refused = 0
        while refused < 100:
            # One byte above 1 MiB, so that a small frame finds room when this does not.
            if one.transport.send(2, bytes((1 << 20) + 1), bulk=True):
                sent, refused = sent + 1, 0
            else:
                refused += 1
                await asyncio.sleep(0.001)
        with pytest.raises(PeerUnavailable):
            await one.ask(two, b"too late", 0.02)
        proxy.open.set()
        await until(lambda: len(two.messages) == sent, "the rest arrives", 30.0)
        assert await one.ask(two, b"in time") == b"re: in time"
        assert two.requests == [b"in time"]

    run(check)


def test_more_requests_than_are_handled_at_once_are_refused(run: Run) -> None:
    async def check(stack: AsyncExitStack) -> None:
        done = asyncio.Event()

        async def answer(_peer: PeerIdentity, payload: bytes) -> bytes:
            await done.wait()
            return payload

        one, two = await pair(stack, on_request=answer, limits=TransportLimits(requests_max=2))
        asking = [asyncio.create_task(one.ask(two, b"%d" % number)) for number in range(2)]
        await until(lambda: len(two.requests) == 2, "both are being handled")
        with pytest.raises(PeerRefused, match="busy"):
            await one.ask(two, b"2")
        done.set()
        assert await asyncio.gather(*asking) == [b"0", b"1"]
        assert await one.ask(two, b"3") == b"3"

    run(check)


def test_a_handler_runs_on_when_its_asker_goes_away(run: Run) -> None:
    async def check(stack: AsyncExitStack) -> None:
        go_on = asyncio.Event()
        finished: list[bytes] = []

        async def answer(_peer: PeerIdentity, payload: bytes) -> bytes:
            await go_on.wait()
            finished.append(payload)
            return payload

        one, two = await pair(stack, on_request=answer)
        asking = asyncio.create_task(one.ask(two, b"write this"))
        await until(lambda: len(two.requests) == 1, "the request is being handled")
        await one.transport.close()
        with pytest.raises(PeerLost):
            await asking
        go_on.set()
        await until(lambda: finished == [b"write this"], "the handler ends")

    run(check)


def test_an_address_can_be_asked_before_numbers_are_known(run: Run) -> None:
    async def check(stack: AsyncExitStack) -> None:
        one, two = Peer(stack, 0, cluster=""), await Peer(stack, 2).listen()
        assert await one.transport.request_address(HOST, two.port, b"take me in", 30.0) == b"re: take me in"
        one.transport.identity = PeerIdentity(CLUSTER, 7, one.store, "node-7")
        await one.dial(two)
        one.transport.send(2, b"hello")
        await until(lambda: two.senders == [one.transport.identity], "the new identity is told")
        await two.transport.close()
        with pytest.raises(PeerUnavailable):
            await one.transport.request_address(HOST, two.port, b"anyone?", 30.0)
        for host, port in ((HOST, 70_000), ("a..b", 1), (f"{'x' * 70}.invalid", 1)):
            with pytest.raises(PeerUnavailable):
                await one.transport.request_address(host, port, b"anyone?", 30.0)

    run(check)


# --- handshakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "why"),
    [({"secret": b"another secret, as long"}, "another secret"), ({"cluster": "c2" * 16}, "different clusters")],
)
def test_a_node_of_another_cluster_is_refused(run: Run, options: dict[str, Any], why: str) -> None:
    async def check(stack: AsyncExitStack) -> None:
        one, two = Peer(stack, 1, **options), await Peer(stack, 2).listen()
        with pytest.raises(PeerUnavailable, match=why):
            await one.transport.request_address(HOST, two.port, b"let me in", 30.0)
        one.transport.connect(2, HOST, two.port, "")
        await until(lambda: two.counters.handshakes_refused >= 3, "it is tried and refused again")
        assert not one.transport.is_connected(2)
        assert one.counters.handshakes_refused >= 2
        assert two.requests == [] and two.messages == [] and one.changes == []

    run(check)


def test_another_store_than_expected_is_refused(run: Run) -> None:
    async def check(stack: AsyncExitStack) -> None:
        one, two = Peer(stack, 1), await Peer(stack, 2).listen()
        one.transport.connect(2, HOST, two.port, "f" * 32)
        await until(lambda: two.counters.handshakes_refused >= 2, "it is tried and refused again")
        assert not one.transport.is_connected(2) and one.changes == []
        one.transport.connect(2, HOST, two.port, two.store)
        await until(lambda: one.changes == [(2, True)], "with the right store it connects")

    run(check)


async def exchange(port: int, data: bytes) -> bytes:
    """What a listener answers to these bytes before it closes."""
    reader, writer = await asyncio.open_connection(HOST, port)
    try:
        writer.write(data)
        return await reader.read()
    except ConnectionResetError:
        return b""
    finally:
        writer.transport.abort()


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: you\r\n\r\n",
        os.urandom(100_000),
        b"CTXP\x02" + bytes(100),
        b"CTXP\x01\xff\xff",
        b"CTXP\x01\x04\x00" + bytes(36),
    ],
    ids=["http", "noise", "version", "size", "no-proof"],
)
def test_s5_a_stranger_learns_nothing(run: Run, data: bytes) -> None:
    async def check(stack: AsyncExitStack) -> None:
        two = await Peer(stack, 2).listen()
        answer = await exchange(two.port, data)
        assert b"refused" in answer or len(data) > 65536, "a reset may overtake the answer if more was sent than was read"
        assert not any(secret in answer for secret in (b"node-2", two.store.encode(), CLUSTER.encode()))
        assert two.counters.handshakes_refused == 1 and two.counters.bad_frames == 0

    run(check)


def test_a_handshake_that_takes_too_long_is_ended(run: Run) -> None:
    async def check(stack: AsyncExitStack) -> None:
        limits = TransportLimits(handshake_timeout_s=0.02, handshakes_max=2)
        two = await Peer(stack, 2, limits=limits).listen()
        assert await exchange(two.port, b"CTXP") == b""
        assert two.counters.handshakes_refused == 1
        slow = await Peer(stack, 3, limits=TransportLimits(handshakes_max=2)).listen()
        writers = [(await asyncio.open_connection(HOST, slow.port))[1] for _ in range(3)]
        await until(lambda: slow.counters.handshakes_refused == 1, "the third is above the bound")
        for writer in writers:
            writer.transport.abort()

    run(check)


@pytest.mark.parametrize(("greeting", "why"), [(b"CTXP\x02", "version 2"), (b"220 mail ready\r\n", "does not speak"), (b"", "broke")])
def test_a_listener_that_is_no_node_is_unavailable(run: Run, greeting: bytes, why: str) -> None:
    async def check(stack: AsyncExitStack) -> None:
        async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(4096)
            writer.write(greeting)
            writer.close()

        server = await asyncio.start_server(greet, HOST, 0)
        one = Peer(stack, 1)
        with pytest.raises(PeerUnavailable, match=why):
            await one.transport.request_address(HOST, server.sockets[0].getsockname()[1], b"hello", 30.0)
        server.close()
        await server.wait_closed()

    run(check)


@pytest.mark.parametrize("at", [*range(7), 20, 100])
@pytest.mark.parametrize("way", ["forth", "back"])
def test_a_byte_that_is_changed_in_a_handshake_ends_it(run: Run, way: str, at: int) -> None:
    async def check(stack: AsyncExitStack) -> None:
        limits = TransportLimits(handshake_timeout_s=0.2)
        one, two = Peer(stack, 1, limits=limits), await Peer(stack, 2, limits=limits).listen()
        proxy = await Proxy(stack, two.port).start()
        proxy.once(way, flip(at))
        with pytest.raises(PeerUnavailable):
            await one.transport.request_address(HOST, proxy.port, b"hello", 30.0)
        assert two.requests == []
        # The time for a handshake is short here, for the bytes that make the other side wait: on a busy machine a good one may take longer.
        for _ in range(50):
            try:
                assert await one.transport.request_address(HOST, proxy.port, b"hello", 30.0) == b"re: hello"
                break
            except PeerUnavailable:
                continue
        assert two.requests == [b"hello"]

    run(check)


def test_a_recorded_conversation_cannot_be_played_again(run: Run) -> None:
    async def check(stack: AsyncExitStack) -> None:
        one, two = Peer(stack, 1), await Peer(stack, 2).listen()
        proxy = await Proxy(stack, two.port).start()
        recorded: list[bytes] = []

        def record(data: bytes) -> bytes:
            recorded.append(data)
            return data

        proxy.change["forth"] = record
        await one.transport.request_address(HOST, proxy.port, b"pay", 30.0)
        _, writer = await asyncio.open_connection(HOST, two.port)
        for data in recorded:
            writer.write(data)
        await until(lambda: two.counters.handshakes_refused == 1, "the replay is refused")
        writer.transport.abort()
        assert two.requests == [b"pay"]

    run(check)


def test_secrets_and_identities_are_checked() -> None:
    with pytest.raises(ValueError, match="at least 16 bytes"):
        Transport(
            PeerIdentity("", 0, "s", "n"),
            b"fifteen bytes..",
            random_bytes=os.urandom,
            on_message=lambda _peer, _payload: None,
            on_request=lambda _peer, _payload: asyncio.sleep(0, b""),
            on_peer=lambda _node, _connected: None,
        )
    for node, name in ((-1, "n"), (1 << 24, "n"), (0, "n" * 256)):
        with pytest.raises(ValueError, match=r"at most|in \[0"):
            PeerIdentity("", node, "s", name)
    with pytest.raises(ValueError, match="fits into the queue"):
        TransportLimits(frame_bytes_max=2000, queue_bytes_max=1000)


# --- frames ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [0, 2, 3, 4, 19, 20, 21, 25])
def test_a_byte_that_is_changed_on_its_way_is_never_delivered(run: Run, at: int) -> None:
    async def check(stack: AsyncExitStack) -> None:
        one, two, proxy = await pair_through_proxy(stack)
        proxy.once("forth", flip(at))
        one.transport.send(2, b"hello")
        # A longer length shows when what it makes of the next frames is checked.
        await until(lambda: two.counters.bad_frames == 1 or not one.transport.send(2, bytes(100_000)), "it is found")
        await until(lambda: two.counters.bad_frames == 1 and (2, False) in one.changes, "the connection is closed")
        assert two.messages == []
        await until(lambda: one.transport.is_connected(2), "it is connected again")
        assert await one.ask(two, b"hello") == b"re: hello"
        proxy.once("back", flip(at and at + 1))
        asking = asyncio.create_task(one.ask(two, b"answer me"))
        await until(lambda: len(two.requests) == 2, "it is asked")
        if at < 4:
            proxy.cut()
        with pytest.raises(PeerLost):
            await asking
        assert at < 4 or one.counters.bad_frames == 1

    run(check)


def test_a_frame_that_comes_twice_is_delivered_once(run: Run) -> None:
    async def check(stack: AsyncExitStack) -> None:
        one, two, proxy = await pair_through_proxy(stack)
        proxy.once("forth", lambda data: data * 2)
        one.transport.send(2, b"hello")
        await until(lambda: two.counters.bad_frames == 1, "the second is refused")
        assert two.messages == [b"hello"]

    run(check)


def test_a_frame_above_the_cap_closes_the_connection(run: Run) -> None:
    async def check(stack: AsyncExitStack) -> None:
        one, two = Peer(stack, 1), await Peer(stack, 2, limits=TransportLimits(frame_bytes_max=1000)).listen()
        await one.dial(two)
        assert one.transport.send(2, bytes(1000))
        assert one.transport.send(2, bytes(1100))
        await until(lambda: two.counters.bad_frames == 1 and (2, False) in one.changes, "the connection is closed")
        assert two.messages == [bytes(1000)]
        await two.dial(await one.listen())
        assert not two.transport.send(1, bytes(1001))
        with pytest.raises(PeerUnavailable):
            await two.ask(one, bytes(1001))
        assert await two.ask(one, bytes(990)) == b"re: " + bytes(990)

    run(check)


def test_frames_are_found_however_the_bytes_come_in_pieces() -> None:
    sealer, said = FrameMac(bytes(32)), [(Kind.MESSAGE, b""), (Kind.REQUEST, b"abc"), (Kind.PONG, bytes(300))]
    wire = b""
    for kind, payload in said:
        mac = sealer.next(kind, payload)
        wire += (len(payload) + 1).to_bytes(4, "little") + mac + bytes((kind,)) + payload
    for step in (1, 2, 21, 22, 400):
        reader = FrameReader(bytes(32), 300)
        got = [frame for at in range(0, len(wire), step) for frame in reader.feed(wire[at : at + step])]
        assert got == said and not reader.is_partial
    unknown = b"\x01\0\0\0" + FrameMac(bytes(32)).next(77, b"") + b"\x4d"
    with pytest.raises(BadFrame, match="unknown kind 77"):
        list(FrameReader(bytes(32), 300).feed(unknown))
    with pytest.raises(BadFrame, match="length"):
        list(FrameReader(bytes(32), 300).feed(bytes(21)))


# --- life --------------------------------------------------------------------------------------------------------------


def test_it_connects_again_after_the_listener_restarts_on_the_same_port(run: Run) -> None:
    async def check(stack: AsyncExitStack) -> None:
        one, two = await pair(stack)
        await two.transport.close()
        await until(lambda: one.changes == [(2, True), (2, False)], "the end is noticed")
        assert not one.transport.send(2, b"nobody there")
        second = await Peer(stack, 2).listen(two.port)
        await until(lambda: one.changes == [(2, True), (2, False), (2, True)], "it is connected again")
        assert await one.ask(second, b"hello") == b"re: hello"

    run(check)


def test_a_silent_connection_is_closed_and_a_new_one_works_beside_the_old(run: Run) -> None:
    async def check(stack: AsyncExitStack) -> None:
        watchful = TransportLimits(keepalive_s=0.02, silence_s=1.0, reconnect_min_s=0.005)
        one, two, proxy = await pair_through_proxy(stack, limits=watchful)
        seen = one.counters.frames_in
        await until(lambda: one.counters.frames_in > seen + 20, "pings keep an idle connection alive")
        assert one.changes == [(2, True)]
        proxy.black_hole()
        await until(lambda: one.changes == [(2, True), (2, False), (2, True)], "the silence is noticed")
        assert await one.ask(two, b"hello") == b"re: hello"

    run(check)


def test_a_frame_that_never_ends_closes_the_connection(run: Run) -> None:
    async def check(stack: AsyncExitStack) -> None:
        limits = TransportLimits(keepalive_s=0.02, silence_s=60.0, frame_s=0.2)
        one, two = Peer(stack, 1, limits=TransportLimits(keepalive_s=0.02, silence_s=60.0)), await Peer(stack, 2, limits=limits).listen()
        proxy = await Proxy(stack, two.port).start()
        await one.dial(two, proxy.port)
        proxy.once("forth", lambda data: data[:2] + b"\x01" + data[3:])
        await until(lambda: (2, False) in one.changes, "what swallows every ping is noticed")
        assert two.counters.bad_frames == 0

    run(check)


def test_connecting_is_idempotent_and_follows_a_new_address(run: Run) -> None:
    async def check(stack: AsyncExitStack) -> None:
        one, two = await pair(stack)
        three = await Peer(stack, 3).listen()
        for _ in range(3):
            one.transport.connect(2, HOST, two.port, two.store)
        assert one.transport.is_connected(2)
        one.transport.connect(2, HOST, three.port, "")
        assert not one.transport.is_connected(2)
        await until(lambda: one.changes == [(2, True), (2, False), (2, True)], "it is connected to the new address")
        one.transport.send(2, b"hello")
        await until(lambda: three.messages == [b"hello"], "the new one gets it")
        one.transport.forget(2)
        assert not one.transport.is_connected(2)
        await until(lambda: one.changes[-1] == (2, False), "the end is told")

    run(check)


def test_what_on_peer_raises_does_not_end_the_dialing(run: Run) -> None:
    async def check(stack: AsyncExitStack) -> None:
        told: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: told.append(context))

        def refuse(_node: int, _connected: bool) -> None:
            raise RuntimeError("not now")

        two = await Peer(stack, 2).listen()
        one = Transport(
            PeerIdentity(CLUSTER, 1, "1", "one"),
            SECRET,
            random_bytes=os.urandom,
            limits=FAST,
            on_message=lambda _peer, _payload: None,
            on_request=lambda _peer, payload: asyncio.sleep(0, payload),
            on_peer=refuse,
        )
        stack.push_async_callback(one.close)
        one.connect(2, HOST, two.port, two.store)
        await until(lambda: one.is_connected(2), "it is connected")
        assert await one.request(2, b"hello", 30.0) == b"re: hello"
        assert [str(context["exception"]) for context in told] == ["not now"]

    run(check)


def test_close_leaves_nothing(run: Run) -> None:
    async def check(stack: AsyncExitStack) -> None:
        never = asyncio.Event()
        cancelled: list[bytes] = []

        async def answer(_peer: PeerIdentity, payload: bytes) -> bytes:
            try:
                await never.wait()
            finally:
                cancelled.append(payload)
            return b""

        one, two = await pair(stack, on_request=answer)
        await two.dial(await one.listen())
        accepted: list[asyncio.StreamWriter] = []
        silent = await asyncio.start_server(lambda _reader, writer: accepted.append(writer), HOST, 0)
        silent_port = silent.sockets[0].getsockname()[1]
        one.transport.connect(3, HOST, silent_port, "")
        one.transport.connect(4, HOST, 1, "")
        stranger = (await asyncio.open_connection(HOST, one.port))[1]
        asking = [asyncio.create_task(one.ask(two, b"from one")), asyncio.create_task(two.ask(one, b"from two"))]
        asking.append(asyncio.create_task(one.transport.request_address(HOST, silent_port, b"hello", 30.0)))
        await until(lambda: one.requests and two.requests, "both are being handled")
        one.transport.send(2, bytes(10_000_000), bulk=True)
        await one.transport.close()
        outcomes = await asyncio.gather(*asking, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [PeerLost, PeerLost, PeerUnavailable]
        assert cancelled == [b"from two"]
        await two.transport.close()
        await one.transport.close()
        assert cancelled == [b"from two", b"from one"]
        for writer in (stranger, *accepted):
            writer.transport.abort()
        silent.close()
        await silent.wait_closed()
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert not one.transport.send(2, b"after the end")
        one.transport.connect(2, HOST, two.port, two.store)
        with pytest.raises(PeerUnavailable):
            await one.transport.request_address(HOST, two.port, b"after the end", 30.0)

    run(check)
