"""What the simulated loop and network promise to a simulation."""

import asyncio

import pytest

from context_node.runtime.frames import PeerLost, PeerUnavailable
from context_node.runtime.transport import PeerIdentity
from simulation.loop import Process, SimulatedLoop, run_simulated
from simulation.network import Network, SimulatedTransport


def test_a_dead_process_runs_nothing_more_not_even_its_finally() -> None:
    loop = SimulatedLoop(1)
    done: list[object] = []

    async def work() -> None:
        try:
            while True:
                done.append(loop.time())
                await asyncio.sleep(0.1)
        finally:
            done.append("cleaned up")

    async def watch() -> int:
        process = Process(loop, "p")
        process.spawn(work())
        await asyncio.sleep(0.55)
        process.kill()
        count = len(done)
        await asyncio.sleep(5)
        return count

    count = run_simulated(loop, watch())
    assert count == len(done) == 6
    loop.drop_all()


def test_a_paused_process_goes_on_later_with_its_timers_overdue() -> None:
    loop, done = SimulatedLoop(1), []

    async def work() -> None:
        for _ in range(3):
            await asyncio.sleep(0.1)
            done.append(round(loop.time() - begin, 1))

    async def watch() -> None:
        process = Process(loop, "p")
        process.spawn(work())
        await asyncio.sleep(0.15)
        process.pause()
        await asyncio.sleep(2)
        process.go_on()
        await asyncio.sleep(1)

    begin = loop.time()
    run_simulated(loop, watch())
    assert done == [0.1, 2.2, 2.3]


def test_everybody_waiting_for_ever_is_an_error() -> None:
    loop = SimulatedLoop(1)

    async def wait() -> None:
        await loop.create_future()

    with pytest.raises(AssertionError, match="waits for ever"):
        run_simulated(loop, wait())


class Pair:
    """Two transports in two processes."""

    def __init__(self) -> None:
        self.loop = SimulatedLoop(7)
        self.network = Network(self.loop)
        self.heard: list[bytes] = []
        self.peers: list[tuple[int, bool]] = []
        self.processes = [Process(self.loop, name) for name in "ab"]

    async def make(self, place: int) -> SimulatedTransport:
        async def answer(_peer: PeerIdentity, payload: bytes) -> bytes:
            return payload.upper()

        transport = SimulatedTransport(
            self.network,
            PeerIdentity("c", place + 1, f"store {place}", "ab"[place]),
            b"",
            random_bytes=bytes,
            on_message=lambda _peer, payload: self.heard.append(payload),
            on_request=answer,
            on_peer=lambda node, is_up: self.peers.append((node, is_up)),
        )
        await transport.listen("ab"[place], 1)
        return transport

    async def connected(self) -> SimulatedTransport:
        made = [await self.processes[place].spawn(self.make(place)) for place in (0, 1)]
        made[0].connect(2, "b", 1, "store 1")
        await asyncio.sleep(0.2)
        first: SimulatedTransport = made[0]
        return first


def test_messages_arrive_in_order_and_cuts_are_one_way() -> None:
    pair = Pair()

    async def check() -> None:
        a = await pair.connected()
        for number in range(20):
            assert a.send(2, b"%d" % number)
        await asyncio.sleep(1)
        assert pair.heard == [b"%d" % number for number in range(20)]
        assert await a.request(2, b"question", 1.0) == b"QUESTION"
        pair.network.cuts.add(("b", "a"))
        assert a.send(2, b"still goes out")
        with pytest.raises(PeerLost):
            await a.request(2, b"whose answer is lost", 1.0)
        pair.network.heal()
        pair.network.cuts.add(("a", "b"))
        a.send(2, b"never arrives")
        await asyncio.sleep(1)
        assert pair.heard[20:] == [b"still goes out"]

    run_simulated(pair.loop, check())


def test_a_death_breaks_connections_and_another_store_is_not_taken_for_the_same() -> None:
    pair = Pair()

    async def check() -> None:
        a = await pair.connected()
        pair.processes[1].kill()
        await asyncio.sleep(0.5)
        assert pair.peers == [(2, True), (2, False)]
        with pytest.raises(PeerUnavailable):
            await a.request(2, b"", 1.0)
        pair.processes[1] = Process(pair.loop, "b again")
        other = await pair.processes[1].spawn(pair.make(1))
        other.identity = PeerIdentity("c", 2, "an empty disk", "b")
        await asyncio.sleep(1)
        assert not a.is_connected(2)

    run_simulated(pair.loop, check())
