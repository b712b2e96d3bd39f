"""Faults on the real processes of a cluster, under load from clients whose every operation is judged.

Knows the command line, HTTP, signals and the judges in `histories`. Does not know the inside of a node. A client asks any node, as if
through a load balancer; a write that failed is tried again with the same message id, as an ordinary client does. Invariants: every
process that was started here is gone at the end; a run ends by itself.
"""

import asyncio
import itertools
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from support.contextstore_process import clean_environment
from support.histories import Append, LogOperation, Mark, Operation, Read, Rule, Seen, Tail, Violation, by_context, check_log
from support.netns import Hosts

SECRET = "a secret of the nodes of a chaos run"
TICK_S = 0.1
SHARDS = 8
CONTEXTS = 12
CLIENTS = 12
REQUEST_TIMEOUT_S = 5.0
TAIL = 5
SETTLE_S = 60.0
DISK_BYTES = 512 << 20
"""Of a node that has a host of its own: a file system in memory."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass(slots=True)
class Report:
    """What a run showed. `gaps_s`: for each kill of a leader, how long no append to its contexts was acknowledged."""

    operations: int = 0
    acknowledged: int = 0
    unknown: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    violations: list[Violation] = field(default_factory=list)
    gaps_s: list[float] = field(default_factory=list)
    compared: int = 0
    """Shards whose replicas hashed their whole state at the end, each at one log entry."""

    @property
    def is_clean(self) -> bool:
        return not self.violations

    def __str__(self) -> str:
        faults = ", ".join(f"{count} x {name}" for name, count in sorted(self.faults.items()))
        text = f"{self.operations:,} operations, {self.acknowledged:,} appends acknowledged, {self.unknown:,} without an answer; "
        text += f"faults: {faults}; "
        gaps = sorted(self.gaps_s)
        if gaps:
            text += f"gap after the death of a leader: median {gaps[len(gaps) // 2]:.2f} s, worst {gaps[-1]:.2f} s of {len(gaps)}; "
        return text + f"replicas of {self.compared} shards hashed whole at the end; {len(self.violations)} violations"


class Machine:
    """One node's process, and what it takes to start it again."""

    def __init__(self, folder: Path, name: str, first_peer_port: int, *, is_first: bool, hosts: Hosts | None = None, host: int = 0) -> None:
        self.folder = folder
        self.name = name
        self.port = free_port() if hosts is None else 4000
        self.peer_port = (first_peer_port if is_first else free_port()) if hosts is None else 4001
        self.data = name
        self.host = host
        self.address = "127.0.0.1" if hosts is None else hosts.address(host)
        self._inside = [] if hosts is None else hosts.inside(host)
        self._first = f"127.0.0.1:{first_peer_port}" if hosts is None else f"{hosts.address(0)}:4001"
        self._is_first = is_first
        self.settings: list[str] = []
        self.environment: dict[str, str] = {}
        self.process: asyncio.subprocess.Process | None = None

    @property
    def url(self) -> str:
        return f"http://{self.address}:{self.port}"

    @property
    def peer(self) -> str:
        return f"{self.address}:{self.peer_port}"

    async def start(self, join: str | None = None, *, is_dev: bool = False) -> None:
        data = self.folder / self.data
        if self._inside and not data.is_mount():
            self._mount(data)
        words = [*self._inside, sys.executable, "-m", "context_node", "dev" if is_dev else "serve", "--data-dir", str(data)]
        words += ["--node-name", self.name, "--port", str(self.port), "--shards", str(SHARDS), "--shard-log-bytes-max", "256KiB"]
        if not is_dev:
            words += ["--peer-port", str(self.peer_port), "--raft-tick-s", str(TICK_S), "--drain-s", "0"]
        if join is not None or not self._is_first:
            words += ["--join", join or self._first]
        if self._inside:
            words += ["--host", self.address, "--peer-host", self.address, "--open"]
        words += self.settings
        log = os.open(self.folder / f"{self.name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            environment = clean_environment(**({} if is_dev else {"CONTEXTSTORE_CLUSTER_SECRET": SECRET}), **self.environment)
            self.process = await asyncio.create_subprocess_exec(*words, stdout=log, stderr=log, env=environment)
        finally:
            os.close(log)

    def _mount(self, data: Path) -> None:
        data.mkdir(exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(data)], check=True)

    def unmount(self) -> None:
        """Let go of its disks, if they are its own."""
        for path in self.folder.glob(f"{self.name}*"):
            if path.is_mount():
                subprocess.run(["umount", "--lazy", str(path)], check=False)

    def send(self, number: signal.Signals) -> None:
        if self.process is not None and self.process.returncode is None:
            self.process.send_signal(number)

    async def kill(self) -> None:
        self.send(signal.SIGKILL)
        if self.process is not None:
            await self.process.wait()

    async def stop(self) -> None:
        self.send(signal.SIGTERM)
        if self.process is not None:
            await self.process.wait()


class ChaosRun:
    """One cluster, its clients and its faults. `run` does all of it."""

    def __init__(self, folder: Path, *, nodes: int, seed: int, hosts: Hosts | None = None) -> None:
        """`hosts`: where the nodes run, each on one of its own; this process must reach them all. Without, all are on the loopback, and
        nothing between them can be cut."""
        first = free_port()
        self.hosts = hosts
        self.machines = [Machine(folder, f"n{place + 1}", first, is_first=place == 0, hosts=hosts, host=place) for place in range(nodes)]
        self.report = Report()
        self._random = random.Random(seed)
        self._operations: list[LogOperation] = []
        self._acknowledged: list[tuple[int, str]] = []
        self._took: list[tuple[int, int]] = []
        """Of every acknowledged append when its first try began and when it was acknowledged."""
        self._stop = asyncio.Event()
        self._names = itertools.count(1)
        self._session: aiohttp.ClientSession
        self.faults: dict[str, Callable[[], Awaitable[None]]] = {
            "kill": self._kill,
            "kill a leader": self._kill_leader,
            "pause": self._pause,
            "pause a leader": self._pause_leader,
            "stop and start": self._stop_and_start,
            "kill a minority": self._kill_minority,
            "drain and undrain": self._drain,
            "lose a disk": self._lose_disk,
            "restart all": self._restart_all,
            "restart one by one": self._restart_one_by_one,
        }
        if hosts is not None:
            self.faults |= {
                "partition": self._partition,
                "isolate a leader": self._isolate_leader,
                "one way": self._one_way,
                "ring": self._ring,
                "full disk": self._full_disk,
            }

    async def run(self, faults: list[str], seconds_each: float, tell: Callable[[str], None] = lambda _text: None) -> Report:
        """Each kind of fault again and again for so many seconds. Raises AssertionError if the cluster does not come back by itself."""
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_S)) as session:
            self._session = session
            clients: list[asyncio.Task[None]] = []
            try:
                for machine in self.machines:
                    await machine.start()
                await self._settled()
                clients = [asyncio.create_task(self._client(number)) for number in range(CLIENTS)]
                for name in faults:
                    until = time.monotonic() + seconds_each
                    while time.monotonic() < until:
                        await asyncio.sleep(self._random.uniform(0.2, 1.0))
                        self.report.faults[name] += 1
                        await self.faults[name]()
                    await self._settled()
                    tell(f"{name}: {self.report.faults[name]} times, {len(self._operations):,} operations so far")
                self._stop.set()
                await asyncio.gather(*clients)
                await self._judge()
            finally:
                self._stop.set()
                for machine in self.machines:
                    await machine.kill()
                    machine.unmount()
                await asyncio.gather(*clients, return_exceptions=True)
        return self.report

    # --- clients -----------------------------------------------------------------------------------------------------

    async def _client(self, number: int) -> None:
        chosen = random.Random(number)
        while not self._stop.is_set():
            context = f"c{chosen.randrange(CONTEXTS)}"
            if chosen.random() < 0.5:
                await self._append(number, context, chosen)
            else:
                await self._look(number, context, chosen)

    async def _append(self, number: int, context: str, chosen: random.Random) -> None:
        name = f"m{next(self._names)}"
        body = {"message": {"role": "user", "content": f"message {name}", "id": name}}
        began = time.monotonic_ns()
        while not self._stop.is_set():
            machine = chosen.choice(self.machines)
            called = time.monotonic_ns()
            try:
                async with self._session.post(f"{machine.url}/v1/contexts/{context}/messages?create=true", json=body) as answer:
                    value = await answer.json()
                    status = answer.status
            except (aiohttp.ClientConnectorError, ConnectionRefusedError):
                await asyncio.sleep(0.02)
                continue  # nothing was sent
            except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
                self._note(number, called, None, Append(name, context), Mark.UNKNOWN)
                self.report.unknown += 1
                continue
            if status == 201:
                self._note(number, called, time.monotonic_ns(), Append(name, context), value["seq"])
                self._acknowledged.append((time.monotonic_ns(), context))
                self._took.append((began, time.monotonic_ns()))
                return
            code = str(value.get("error"))
            self.report.refused[code] += 1
            if code == "outcome_unknown":
                self._note(number, called, None, Append(name, context), Mark.UNKNOWN)
            await asyncio.sleep(0.02)
        # It was never acknowledged, and may still have been kept by a try that is noted as unknown.

    async def _look(self, number: int, context: str, chosen: random.Random) -> None:
        machine = chosen.choice(self.machines)
        called = time.monotonic_ns()
        whole = chosen.random() < 0.5
        path = f"/v1/contexts/{context}" if whole else f"/v1/contexts/{context}/tail?limit={TAIL}"
        try:
            async with self._session.get(machine.url + path) as answer:
                value = await answer.json()
                status = answer.status
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
            await asyncio.sleep(0.02)
            return
        if status == 404:
            self._note(number, called, time.monotonic_ns(), Read(context), 0)
        elif status == 200 and whole:
            self._note(number, called, time.monotonic_ns(), Read(context), value["last_seq"])
        elif status == 200:
            ids = tuple(one["id"] for one in value["messages"])
            self._note(number, called, time.monotonic_ns(), Tail(TAIL, context), Seen(ids, value["last_seq"]))
        else:
            self.report.refused[str(value.get("error"))] += 1
            await asyncio.sleep(0.02)

    def _note(self, client: int, called: int, returned: int | None, asked: object, output: object) -> None:
        self._operations.append(Operation(client, called, returned, asked, output))  # type: ignore[arg-type]

    # --- faults ------------------------------------------------------------------------------------------------------

    async def _kill(self) -> None:
        await self._kill_for_a_while([self._random.choice(self.machines)])

    async def _kill_minority(self) -> None:
        await self._kill_for_a_while(self._random.sample(self.machines, (len(self.machines) - 1) // 2))

    async def _kill_for_a_while(self, victims: list[Machine]) -> None:
        for victim in victims:
            await victim.kill()
        await asyncio.sleep(self._random.uniform(0.5, 4.0))
        for victim in victims:
            await victim.start(self._someone_else(victim).peer)
        await self._settled()

    async def _kill_leader(self) -> None:
        view = await self._look_at_cluster()
        shard = self._random.choice([each for each in view["shards"] if not each["is_system"] and each["leader"] is not None])
        name = next(node["name"] for node in view["nodes"] if node["number"] == shard["leader"])
        victim = next(machine for machine in self.machines if machine.name == name)
        before = time.monotonic_ns()
        await victim.kill()
        await asyncio.sleep(3.0)
        self.report.gaps_s.append(self._longest_gap_s(before, time.monotonic_ns()))
        await victim.start(self._someone_else(victim).peer)
        await self._settled()

    def _longest_gap_s(self, begin: int, end: int) -> float:
        """The longest time in which some context had no acknowledged append, of those that got any before and after."""
        worst = 0.0
        for context in {context for _, context in self._acknowledged}:
            times = [at for at, of in self._acknowledged[-20_000:] if of == context and begin - 500_000_000 <= at <= end]
            gaps = [after - before for before, after in itertools.pairwise(times) if after > begin]
            worst = max([worst, *(gap / 1e9 for gap in gaps)])
        return worst

    async def _pause(self) -> None:
        await self._pause_machine(self._random.choice(self.machines))

    async def _pause_leader(self) -> None:
        view = await self._look_at_cluster()
        most = max(view["nodes"], key=lambda node: node["leaders"])
        await self._pause_machine(next(machine for machine in self.machines if machine.name == most["name"]))

    async def _pause_machine(self, machine: Machine) -> None:
        machine.send(signal.SIGSTOP)
        await asyncio.sleep(self._random.uniform(0.3, 4.0))
        machine.send(signal.SIGCONT)
        await self._settled()

    async def _stop_and_start(self) -> None:
        victim = self._random.choice(self.machines)
        await victim.stop()
        await victim.start(self._someone_else(victim).peer)
        await self._settled()

    async def _restart_all(self) -> None:
        for machine in self.machines:
            await machine.kill()
        for machine in self.machines:
            await machine.start()
        await self._settled()

    async def _restart_one_by_one(self) -> None:
        for machine in self.machines:
            await machine.stop()
            await machine.start(self._someone_else(machine).peer)
            await self._settled()

    # --- faults of the network and of disks -----------------------------------------------------------------------------

    async def _cut(self, pairs: Iterable[tuple[int, int]]) -> None:
        """For long enough that elections end, and now and then that connections are given up."""
        assert self.hosts is not None
        self.hosts.cut(pairs)
        await asyncio.sleep(self._random.choice((1.0, 4.0, 12.0)) * self._random.uniform(0.5, 1.0))
        self.hosts.heal()
        await self._settled()

    async def _partition(self) -> None:
        numbers = list(range(len(self.machines)))
        self._random.shuffle(numbers)
        one, other = numbers[: len(numbers) // 2], numbers[len(numbers) // 2 :]
        await self._cut(pair for a in one for b in other for pair in ((a, b), (b, a)))

    async def _isolate_leader(self) -> None:
        view = await self._look_at_cluster()
        most = max(view["nodes"], key=lambda node: node["leaders"])
        lonely = next(machine.host for machine in self.machines if machine.name == most["name"])
        others = [machine.host for machine in self.machines if machine.host != lonely]
        await self._cut(pair for other in others for pair in ((lonely, other), (other, lonely)))

    async def _one_way(self) -> None:
        deaf = self._random.choice(self.machines).host
        others = [machine.host for machine in self.machines if machine.host != deaf]
        hears = self._random.random() < 0.5
        await self._cut([(deaf, other) if hears else (other, deaf) for other in others])

    async def _ring(self) -> None:
        count = len(self.machines)
        await self._cut((a, b) for a in range(count) for b in range(count) if (a - b) % count not in (0, 1, count - 1))

    async def _full_disk(self) -> None:
        """A node's disk, small and its own, is filled by something else and freed again."""
        victim = self._random.choice(self.machines)
        disk = victim.folder / victim.data
        assert disk.is_mount(), "only a disk of its own is filled"
        filler = disk / "something else"
        with suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(1 << 20))
        await asyncio.sleep(self._random.uniform(1.0, 5.0))
        filler.unlink()
        await self._settled()

    async def _drain(self) -> None:
        victim = self._random.choice(self.machines[1:])
        number = await self._number_of(victim)
        await self._ask("PATCH", f"/nodes/{number}", {"draining": True})
        await asyncio.sleep(self._random.uniform(0.5, 4.0))
        await self._ask("PATCH", f"/nodes/{number}", {"draining": False})
        await self._settled()

    async def _lose_disk(self) -> None:
        """A node loses its disk and is replaced by a stranger of the same name."""
        victim = self._random.choice(self.machines[1:])
        number = await self._number_of(victim)
        await victim.kill()
        victim.data = f"{victim.name}-{next(self._names)}"
        await victim.start(self._someone_else(victim).peer)
        await self._ask("PATCH", f"/nodes/{number}", {"draining": True})
        await self._settled(gone=number)
        await self._ask("PATCH", f"/nodes/{number}", {"removed": True})

    def _someone_else(self, machine: Machine) -> Machine:
        return self._random.choice([other for other in self.machines if other is not machine])

    # --- looking -----------------------------------------------------------------------------------------------------

    async def _ask(self, method: str, path: str = "", body: object = None) -> Any:
        """Ask any node that answers, for as long as a cluster may need to come back."""
        until = time.monotonic() + SETTLE_S
        last: object = None
        while time.monotonic() < until:
            machine = self._random.choice(self.machines)
            try:
                async with self._session.request(method, f"{machine.url}/v1/cluster{path}", json=body) as answer:
                    last = None if answer.status == 204 else await answer.json()
                    if answer.status in (200, 204):
                        return last
            except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
                last = error
            await asyncio.sleep(0.1)
        raise AssertionError(f"{method} {path} was not answered within {SETTLE_S:g} s: {last}")

    async def _look_at_cluster(self) -> Any:
        return await self._ask("GET")

    async def _number_of(self, machine: Machine) -> int:
        view = await self._look_at_cluster()
        return max(int(node["number"]) for node in view["nodes"] if node["name"] == machine.name)

    async def _settled(self, gone: int | None = None) -> None:
        """Wait until every node is there, every shard is whole and moves are over."""
        until = time.monotonic() + SETTLE_S
        view: Any = None
        while time.monotonic() < until:
            view = await self._look_at_cluster()
            wanted = min(3, len(self.machines))
            shards = [each for each in view["shards"] if not each["is_system"]]
            is_whole = all(sum(one["is_voter"] for one in each["replicas"]) == wanted == len(each["replicas"]) for each in shards)
            held = {one["node"] for each in view["shards"] for one in each["replicas"]}
            alive = [node for node in view["nodes"] if node["is_alive"]]
            if view["shards_healthy"] == SHARDS and is_whole and gone not in held and len(alive) >= len(self.machines):
                return
            await asyncio.sleep(0.1)
        raise AssertionError(f"the cluster did not settle within {SETTLE_S:g} s: {view}")

    async def _judge(self) -> None:
        self.report.operations = len(self._operations)
        self.report.acknowledged = len(self._acknowledged)
        for context, operations in by_context(self._operations).items():
            for machine in self.machines:
                history = await self._history(machine, context)
                self.report.violations += check_log(operations, history)
        self.report.compared, differing = await self._compare_replicas()
        self.report.violations += [Violation(Rule.REPLICAS, f"the replicas of shard {shard} differ: {found}") for shard, found in differing]

    async def _compare_replicas(self) -> tuple[int, list[tuple[int, Any]]]:
        """Have every shard's replicas hash their whole state at one entry: how many there are, and those that differ."""
        differing = []
        shards = (await self._look_at_cluster())["shards"]
        for shard in shards:
            found = await self._ask("POST", f"/shards/{shard['shard']}/compare")
            if not found["is_equal"] or any(one["digest"] is None for one in found["replicas"]):
                differing.append((shard["shard"], found))
        return len(shards), differing

    async def _history(self, machine: Machine, context: str) -> list[tuple[int, str]]:
        found: list[tuple[int, str]] = []
        while True:
            url = f"{machine.url}/v1/contexts/{context}/messages?limit=1000&from_seq={len(found) + 1}"
            async with self._session.get(url) as answer:
                value = await answer.json()
                if answer.status == 404:
                    return []
                assert answer.status == 200, value
            found += [(one["seq"], one["id"]) for one in value["messages"]]
            if len(found) >= value["last_seq"]:
                return found


def log_tails(folder: Path, lines: int = 5) -> str:
    """The last words of every node, for a failure."""
    return "\n".join(
        f"--- {path.name}\n" + "\n".join(path.read_text(errors="replace").splitlines()[-lines:]) for path in sorted(folder.glob("*.log"))
    )
