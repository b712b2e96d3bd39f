"""A node for developers that grows into a cluster under load, and shrinks again: 1 → 3 → 5 → 3 nodes.

Knows the machines and clients of `chaos_run` and the judges of `histories`. Does not know the inside of a node. Invariants as there: every
process that was started is gone at the end, and every answer of every client is judged.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from support.chaos_run import CLIENTS, REQUEST_TIMEOUT_S, ChaosRun, Machine
from support.histories import Violation

QUIET_S = 10.0


@dataclass
class Phase:
    """One change of the cluster. `moved`: replicas that came; `least`: how few could have. Latencies in seconds."""

    name: str
    seconds: float
    moved: int
    least: int
    p99_quiet: float
    p99_moving: float
    p99_after: float
    slowest: float

    def __str__(self) -> str:
        ratio = self.p99_moving / self.p99_quiet if self.p99_quiet else 0.0
        return (
            f"{self.name:<22} {self.seconds:6.1f} s   {self.moved:>3} replicas came (least {self.least})   "
            f"write p99 {1000 * self.p99_quiet:5.1f} ms before, {1000 * self.p99_moving:5.1f} meanwhile, "
            f"{1000 * self.p99_after:5.1f} after ({ratio:.2f} × before)   "
            f"slowest write, tries and all {self.slowest:.2f} s"
        )


@dataclass
class GrowReport:
    phases: list[Phase] = field(default_factory=list)
    operations: int = 0
    acknowledged: int = 0
    unknown: int = 0
    violations: list[Violation] = field(default_factory=list)


class GrowRun(ChaosRun):
    """See the module's docstring."""

    def __init__(self, folder: Path, *, seed: int) -> None:
        super().__init__(folder, nodes=1, seed=seed)
        self._folder = folder
        self._first = self.machines[0]
        self.grown = GrowReport()
        self._placed: dict[int, set[int]] = {}

    async def grow(self, tell: Callable[[str], None]) -> GrowReport:
        """All phases. Raises AssertionError if the cluster does not become what it should in time."""
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_S)) as session:
            self._session = session
            clients: list[asyncio.Task[None]] = []
            try:
                await self._first.start(is_dev=True)
                await self._answers(self._first)
                clients = [asyncio.create_task(self._client(number)) for number in range(CLIENTS)]
                await asyncio.sleep(QUIET_S)
                tell("a `contextstore dev` directory under load")
                await self._first.stop()
                await self._first.start()
                await self._answers(self._first)
                for name, change in (("1 → 3 nodes", self._to_three), ("3 → 5 nodes", self._to_five), ("5 → 3 nodes", self._back_to_three)):
                    phase = await self._phase(name, change)
                    self.grown.phases.append(phase)
                    tell(str(phase))
                self._stop.set()
                await asyncio.gather(*clients)
                await self._judge()
            finally:
                self._stop.set()
                for machine in self.machines:
                    await machine.kill()
                await asyncio.gather(*clients, return_exceptions=True)
        report = self.grown
        report.operations, report.acknowledged = self.report.operations, self.report.acknowledged
        report.unknown, report.violations = self.report.unknown, self.report.violations
        return report

    # --- phases ------------------------------------------------------------------------------------------------------

    async def _phase(self, name: str, change: Callable[[], Any]) -> Phase:
        quiet_from = time.monotonic_ns()
        await asyncio.sleep(QUIET_S)
        before = await self._placement()
        begin = time.monotonic_ns()
        least, goal = await change()
        await self._whole(goal)
        end = time.monotonic_ns()
        after = await self._placement()
        await asyncio.sleep(QUIET_S)
        moved = sum(len(after[shard] - before.get(shard, set())) for shard in after)
        return Phase(
            name,
            (end - begin) / 1e9,
            moved,
            least,
            self._p99(quiet_from, begin),
            self._p99(begin, end),
            self._p99(end, time.monotonic_ns()),
            self._slowest(begin, end),
        )

    async def _to_three(self) -> tuple[int, int]:
        await self._add(2)
        return 2 * await self._shards(), 3

    async def _to_five(self) -> tuple[int, int]:
        await self._add(2)
        replicas = 3 * await self._shards()
        # Balanced to within one: the two that come get as little as balance allows.
        return 2 * (replicas // 5) + max(0, replicas % 5 - 3), 5

    async def _back_to_three(self) -> tuple[int, int]:
        leaving = self.machines[3:]
        numbers = [await self._number_of(machine) for machine in leaving]
        view = await self._look_at_cluster()
        held = sum(one["node"] in numbers for shard in view["shards"] if not shard["is_system"] for one in shard["replicas"])
        for number in numbers:
            await self._ask("PATCH", f"/nodes/{number}", {"draining": True})
        return held, 3

    async def _add(self, count: int) -> None:
        for _ in range(count):
            machine = Machine(self._folder, f"n{len(self.machines) + 1}", self._first.peer_port, is_first=False)
            await machine.start()
            await self._answers(machine)
            self.machines.append(machine)

    # --- looking -----------------------------------------------------------------------------------------------------

    async def _answers(self, machine: Machine) -> None:
        until = time.monotonic() + 60
        while time.monotonic() < until:
            try:
                async with self._session.get(machine.url + "/health/ready") as answer:
                    if answer.status == 200:
                        return
            except (aiohttp.ClientError, TimeoutError, OSError):
                pass
            await asyncio.sleep(0.1)
        raise AssertionError(f"{machine.name} is not ready")

    async def _shards(self) -> int:
        return int((await self._look_at_cluster())["shards_total"])

    async def _placement(self) -> dict[int, set[int]]:
        view = await self._look_at_cluster()
        return {each["shard"]: {one["replica_id"] for one in each["replicas"]} for each in view["shards"] if not each["is_system"]}

    async def _whole(self, nodes: int) -> None:
        """Until every shard has its three voters on the nodes that stay, balanced to within one, and nothing else."""
        until = time.monotonic() + 180
        view: Any = None
        while time.monotonic() < until:
            view = await self._look_at_cluster()
            shards = [each for each in view["shards"] if not each["is_system"]]
            if all(
                len(each["replicas"]) == 3 and all(one["is_voter"] and one["is_caught_up"] for one in each["replicas"]) for each in shards
            ):
                counts = {node["number"]: 0 for node in view["nodes"] if not node["draining"]}
                for each in shards:
                    for one in each["replicas"]:
                        counts[one["node"]] = counts.get(one["node"], 0) + 1
                if len(counts) == nodes and max(counts.values()) - min(counts.values()) <= 1:
                    return
            await asyncio.sleep(0.25)
        raise AssertionError(f"not whole on {nodes} nodes: {view}")

    def _p99(self, begin: int, end: int) -> float:
        spans = self._spans(begin, end)
        return spans[int(len(spans) * 0.99)] if spans else 0.0

    def _slowest(self, begin: int, end: int) -> float:
        return max(self._spans(begin, end), default=0.0)

    def _spans(self, begin: int, end: int) -> list[float]:
        """How long the messages of that time took from their first try to their acknowledgement, in seconds, ascending."""
        return sorted((acknowledged - began) / 1e9 for began, acknowledged in self._took if begin <= began <= end)
