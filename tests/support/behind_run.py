"""A node that was down while very much was written: it catches up by snapshots while writes go on.

Knows the machines of `chaos_run` and HTTP. Does not know the inside of a node. Invariant: all that was started is gone at the end.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from support.chaos_run import ChaosRun, Machine

BATCH = 100
WRITERS = 8
CONTEXTS = 64
CATCH_UP_S = 300.0


@dataclass
class BehindReport:
    """Times in seconds, sizes in bytes. `replayed`: entries that came one by one, before, after and beside the snapshots."""

    missed: int = 0
    wrote_s: float = 0.0
    lacked_entries: int = 0
    replayed: int = 0
    snapshots: int = 0
    received_bytes: int = 0
    caught_up_s: float = 0.0
    written_meanwhile: int = 0
    compared: int = 0
    differing: int = 0

    def __str__(self) -> str:
        return (
            f"{self.missed:,} messages written in {self.wrote_s:.0f} s while a node of three was down, {self.lacked_entries:,} entries; "
            f"it caught up in {self.caught_up_s:.1f} s by {self.snapshots} snapshots of {self.received_bytes / 2**20:,.0f} MiB and "
            f"{self.replayed:,} entries, while {self.written_meanwhile:,} more messages were written; "
            f"{self.compared:,} shards hashed whole on all nodes, {self.differing} differ"
        )


class BehindRun(ChaosRun):
    """See the module's docstring."""

    def __init__(self, folder: Path, *, messages: int) -> None:
        super().__init__(folder, nodes=3, seed=1)
        self._wanted = messages
        self._written = 0
        self._is_over = False

    async def fall_behind(self, tell: Callable[[str], None]) -> BehindReport:
        """Raises AssertionError if the node does not catch up in time."""
        report = BehindReport()
        timeout = aiohttp.ClientTimeout(total=60)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            self._session = session
            writers: list[asyncio.Task[None]] = []
            try:
                for machine in self.machines:
                    await machine.start()
                await self._settled()
                writers = [asyncio.create_task(self._write(number)) for number in range(WRITERS)]
                await asyncio.sleep(2)
                victim = self.machines[2]
                before = {one["shard"]: one["applied"] for one in (await self._look_at_cluster())["shards"]}
                await victim.kill()
                begin, at = time.monotonic(), self._written
                tell(f"{victim.name} is down")
                while self._written - at < self._wanted:
                    await asyncio.sleep(2)
                    tell(f"{self._written - at:,} messages")
                report.missed, report.wrote_s = self._written - at, time.monotonic() - begin
                after = {one["shard"]: one["applied"] for one in (await self._look_at_cluster())["shards"]}
                report.lacked_entries = sum(after[shard] - before.get(shard, 0) for shard in after)
                begin, at = time.monotonic(), self._written
                await victim.start(self.machines[0].peer)
                await self._caught_up(victim)
                report.caught_up_s, report.written_meanwhile = time.monotonic() - begin, self._written - at
                metrics = await self._metrics(victim)
                report.snapshots = int(metrics["contextstore_snapshots_installed_total"])
                report.received_bytes = int(metrics["contextstore_snapshot_received_bytes_total"])
                report.replayed = int(metrics["contextstore_entries_applied_total"])
                self._is_over = True
                await asyncio.gather(*writers)
                await self._settled()
                report.compared, differing = await self._compare_replicas()
                report.differing = len(differing)
            finally:
                self._is_over = True
                for machine in self.machines:
                    await machine.kill()
                await asyncio.gather(*writers, return_exceptions=True)
        return report

    async def _write(self, writer: int) -> None:
        number = 0
        while not self._is_over:
            number += 1
            context = f"c{(number * WRITERS + writer) % CONTEXTS}"
            messages = [{"role": "user", "content": f"writer {writer} says {number} {place}"} for place in range(BATCH)]
            headers = {"Idempotency-Key": f"{writer}-{number}"}
            for machine in self.machines[: 2 if number % 2 else 1] * 20:
                url = f"{machine.url}/v1/contexts/{context}/messages?create=true"
                try:
                    async with self._session.post(url, json={"messages": messages}, headers=headers) as answer:
                        if answer.status == 201:
                            self._written += BATCH
                            break
                except (aiohttp.ClientError, TimeoutError, OSError):
                    pass
                await asyncio.sleep(0.05)

    async def _metrics(self, machine: Machine) -> dict[str, float]:
        async with self._session.get(f"{machine.url}/metrics") as answer:
            rows = [line.split() for line in (await answer.text()).splitlines() if line and not line.startswith("#") and "{" not in line]
        return {name: float(value) for name, value in rows}

    async def _caught_up(self, machine: Machine) -> None:
        until = time.monotonic() + CATCH_UP_S
        number = await self._number_of(machine)
        while time.monotonic() < until:
            view = await self._look_at_cluster()
            lags = [shard["applied"] - one["match_index"] for shard in view["shards"] for one in shard["replicas"] if one["node"] == number]
            if lags and max(lags) < 100 and view["shards_healthy"] == view["shards_total"]:
                return
            await asyncio.sleep(0.2)
        raise AssertionError(f"{machine.name} did not catch up within {CATCH_UP_S:g} s")
