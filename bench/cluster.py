"""Three nodes of ours beside three of etcd and three of NATS JetStream: durable writes, each acknowledged by a majority that has synced it.

All nine processes run on this machine, on one file system; rounds of all systems take turns, so that a machine whose speed drifts is
unfair to nobody. One closed-loop load (`bench/peers/load`, Go) writes the same payload over equally many connections to each: to the
nodes that lead, and to any node. etcd is asked by gRPC, its best way. Prints medians with the least and the most of the rounds; CPU is
that of the servers.

    bench/cluster.py [--rounds 8] [--seconds 2] [--connections 32 128] [single batch]

Needs Go, which builds the peers at their pinned versions (`bench/peers/go.mod`).
"""

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from processes import free_port

ROOT = Path(__file__).resolve().parents[1]
PEERS = ROOT / "build" / "peers"
CONTEXTS = 96
BATCH = 10
TEXT = 2 * "A message of an ordinary length, as people and models write them to each other; it says little, but in words. "
NODES = 3
READY_S = 60.0


@dataclass
class System:
    """Servers under test: how a load reaches those that lead, or any, and the processes whose CPU counts."""

    name: str
    kind: str
    targets: list[str]
    leading: list[list[str]]
    everywhere: list[list[str]]
    bodies: dict[str, str]
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def cpu_s(self) -> float:
        total = 0
        for process in self.processes:
            rows = Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()
            total += int(rows[11]) + int(rows[12])
        return total / os.sysconf("SC_CLK_TCK")


@dataclass
class Rounds:
    """What the rounds of one system in one setting gave, in order."""

    rates: list[float] = field(default_factory=list)
    p50_ms: list[float] = field(default_factory=list)
    p99_ms: list[float] = field(default_factory=list)
    cpu_us: list[float] = field(default_factory=list)


def build_peers() -> None:
    """Build what is not built yet. Raises SystemExit where Go is missing."""
    if all((PEERS / name).exists() for name in ("etcd", "nats", "load")):
        return
    if shutil.which("go") is None:
        raise SystemExit("bench/cluster.py needs Go to build its peers: https://go.dev/doc/install")
    print("building etcd, NATS and the load (some minutes, once)", file=sys.stderr, flush=True)
    PEERS.mkdir(parents=True, exist_ok=True)
    for name in ("etcd", "nats", "load"):
        subprocess.run(["go", "build", "-o", str(PEERS / name), f"./{name}"], cwd=ROOT / "bench" / "peers", check=True)


def single() -> str:
    return json.dumps({"message": {"role": "user", "content": TEXT}})


def batch() -> str:
    return json.dumps({"messages": [{"role": "user", "content": TEXT}] * BATCH})


# --- the systems ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def started(
    commands: list[list[str]], folder: Path, name: str, environment: dict[str, str] | None = None
) -> Iterator[list[subprocess.Popen[bytes]]]:
    processes = []
    try:
        for number, command in enumerate(commands):
            with (folder / f"{name}{number}.log").open("wb") as log:
                processes.append(subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **(environment or {})}))
        yield processes
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def ask(url: str, body: object = None) -> tuple[Any, Any]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.load(answer), answer.headers


def until_ready(look: Any, what: str) -> Any:
    end = time.monotonic() + READY_S * 3
    while time.monotonic() < end:
        try:
            if found := look():
                return found
        except (OSError, urllib.error.URLError, ValueError, KeyError, subprocess.CalledProcessError):
            pass
        time.sleep(0.3)
    raise SystemExit(f"{what} was not ready in time")


@contextlib.contextmanager
def ours(folder: Path) -> Iterator[System]:
    ports, peers = [free_port() for _ in range(NODES)], [free_port() for _ in range(NODES)]
    command = str(Path(sys.executable).parent / "contextstore")
    commands = [
        [command, "serve", "--node-name", f"n{number}", "--data-dir", str(folder / f"ours{number}")]
        + ["--port", str(ports[number]), "--peer-port", str(peers[number])]
        + (["--join", f"127.0.0.1:{peers[0]}"] if number else [])
        for number in range(NODES)
    ]
    with started(commands, folder, "ours", {"CONTEXTSTORE_CLUSTER_SECRET": "a secret of a benchmark's nodes"}) as processes:
        url = f"http://127.0.0.1:{ports[0]}"

        def is_whole() -> bool:
            view, _ = ask(f"{url}/v1/cluster")
            return view["shards_healthy"] == view["shards_total"] and all(
                sum(one["is_voter"] for one in shard["replicas"]) == NODES for shard in view["shards"]
            )

        until_ready(is_whole, "our cluster")
        time.sleep(5)  # leaderships find their places
        leading: list[list[str]] = [[] for _ in range(NODES)]
        paths = [f"/v1/contexts/bench-{number}/messages?create=true" for number in range(CONTEXTS)]
        for path in paths:
            _, headers = ask(url + path, {"message": {"role": "user", "content": "first"}})
            leading[int(headers["X-Context-Leader"].removeprefix("n"))].append(path)
        targets = [f"127.0.0.1:{port}" for port in ports]
        yield System("ours", "http", targets, leading, [paths] * NODES, {"single": single(), "batch": batch()}, processes)


@contextlib.contextmanager
def etcd(folder: Path) -> Iterator[System]:
    clients, peers = [free_port() for _ in range(NODES)], [free_port() for _ in range(NODES)]
    members = ",".join(f"e{number}=http://127.0.0.1:{peers[number]}" for number in range(NODES))
    commands = []
    for number in range(NODES):
        client, peer = (f"http://127.0.0.1:{ports[number]}" for ports in (clients, peers))
        command = [str(PEERS / "etcd"), "--name", f"e{number}", "--data-dir", str(folder / f"etcd{number}"), "--log-level", "error"]
        command += ["--listen-client-urls", client, "--advertise-client-urls", client]
        command += ["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer]
        commands.append([*command, "--initial-cluster", members, "--initial-cluster-token", "bench", "--initial-cluster-state", "new"])
    with started(commands, folder, "etcd") as processes:

        def leader() -> list[int]:
            for number in range(NODES):
                status, _ = ask(f"http://127.0.0.1:{clients[number]}/v3/maintenance/status", {})
                if status["leader"] == status["header"]["member_id"]:
                    return [number]
            return []

        (leads,) = until_ready(leader, "etcd")
        keys = [f"bench/{number}" for number in range(CONTEXTS)]
        targets = [f"127.0.0.1:{port}" for port in clients]
        leading = [keys if number == leads else [] for number in range(NODES)]
        yield System("etcd", "etcd", targets, leading, [keys] * NODES, {"single": single(), "batch": single()}, processes)


@contextlib.contextmanager
def jetstream(folder: Path) -> Iterator[System]:
    clients, routes = [free_port() for _ in range(NODES)], [free_port() for _ in range(NODES)]
    commands = []
    for number in range(NODES):
        others = ", ".join(f'"nats://127.0.0.1:{port}"' for port in routes)
        config = folder / f"nats{number}.conf"
        config.write_text(
            f'server_name: "s{number}"\nlisten: "127.0.0.1:{clients[number]}"\n'
            f'jetstream {{ store_dir: "{folder}/nats{number}", sync_interval: always }}\n'
            f'cluster {{ name: "bench", listen: "127.0.0.1:{routes[number]}", routes: [{others}] }}\n'
        )
        commands.append([str(PEERS / "nats"), "-c", str(config)])
    with started(commands, folder, "nats") as processes:

        def leader() -> list[int]:
            made = subprocess.run([str(PEERS / "load"), "-create-stream", f"127.0.0.1:{clients[0]}"], capture_output=True, check=True)
            return [int(json.loads(made.stdout)["leader"].removeprefix("s"))]

        (leads,) = until_ready(leader, "NATS")
        keys = [f"bench.{number}" for number in range(CONTEXTS)]
        targets = [f"127.0.0.1:{port}" for port in clients]
        leading = [keys if number == leads else [] for number in range(NODES)]
        yield System("NATS R3", "nats", targets, leading, [keys] * NODES, {"single": single(), "batch": single()}, processes)


# --- rounds -----------------------------------------------------------------------------------------------------------------


def one_round(system: System, work: str, to_leader: bool, connections: int, seconds: float, into: Rounds) -> None:
    keys = system.leading if to_leader else system.everywhere
    asked = [place for place in range(NODES) if keys[place]]
    plan = {
        "kind": system.kind,
        "targets": [system.targets[place] for place in asked],
        "keys": [keys[place] for place in asked],
        "body": system.bodies[work],
        "batch": BATCH if work == "batch" and system.kind != "http" else 1,
        "connections": connections,
        "shared": 8,
        "seconds": seconds,
    }
    before = system.cpu_s()
    done = subprocess.run([str(PEERS / "load")], input=json.dumps(plan), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        print(f"{system.name}: a round failed: {done.stderr.strip()[:300]}", file=sys.stderr)
        return
    result = json.loads(done.stdout)
    factor = BATCH if work == "batch" else 1
    into.rates.append(factor * result["writes"] / result["seconds"])
    into.p50_ms.append(result["p50_ms"])
    into.p99_ms.append(result["p99_ms"])
    into.cpu_us.append(1e6 * (system.cpu_s() - before) / (factor * result["all_writes"]))


def syncs_per_write(system: System, seconds: float) -> str:
    """Counted by strace in a round of its own, which it slows."""
    if shutil.which("strace") is None:
        return "not counted (strace is not installed)"
    pids = [word for process in system.processes for word in ("-p", str(process.pid))]
    with tempfile.NamedTemporaryFile() as out:
        tracer = subprocess.Popen(
            ["strace", "-f", "-c", "-e", "trace=fsync,fdatasync,sync_file_range,msync", "-o", out.name, *pids], stderr=subprocess.DEVNULL
        )
        time.sleep(1)
        found = Rounds()
        one_round(system, "single", True, 32, seconds, found)
        tracer.terminate()
        tracer.wait()
        calls = sum(
            int(row.split()[3]) for row in Path(out.name).read_text().splitlines() if row.strip().endswith(("fsync", "fdatasync", "msync"))
        )
    writes = found.rates[0] * seconds if found.rates else 0
    return f"{calls / writes:.2f} syncs a write on all three nodes together" if writes else "not counted"


def middle(values: list[float]) -> float:
    return statistics.median(values) if values else 0.0


def report(found: dict[tuple[str, str, bool, int], Rounds], systems: list[System], work: str, to_leader: bool, connections: int) -> None:
    where = "to the nodes that lead" if to_leader else "to any node"
    unit = "messages/s" if work == "batch" else "writes/s"
    print(f"\n{'batches of 10' if work == 'batch' else 'single writes'} {where}, {connections} connections")
    first = middle(found[systems[0].name, work, to_leader, connections].rates)
    for system in systems:
        rounds = found[system.name, work, to_leader, connections]
        if not rounds.rates:
            print(f"  {system.name:<8} no round succeeded")
            continue
        rate = middle(rounds.rates)
        ratio = f"ours are {first / rate:5.2f} ×" if system is not systems[0] else ""
        print(
            f"  {system.name:<8} {rate:>9,.0f} {unit} [{min(rounds.rates):,.0f}, {max(rounds.rates):,.0f}]   "
            f"p50 {middle(rounds.p50_ms):6.2f} ms   p99 {middle(rounds.p99_ms):7.2f} ms   CPU {middle(rounds.cpu_us):6.0f} µs   {ratio}"
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", nargs="*", choices=["single", "batch", []], help="which (both)")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--connections", type=int, nargs="+", default=[32, 128])
    options = parser.parse_args()
    build_peers()
    with tempfile.TemporaryDirectory(prefix="bench-cluster-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        systems = [stack.enter_context(start(folder)) for start in (ours, etcd, jetstream)]
        found: dict[tuple[str, str, bool, int], Rounds] = {}
        for work in options.work or ["single", "batch"]:
            for connections in options.connections:
                for _ in range(options.rounds):
                    for to_leader in (True, False):
                        for system in systems:
                            into = found.setdefault((system.name, work, to_leader, connections), Rounds())
                            one_round(system, work, to_leader, connections, options.seconds, into)
                for to_leader in (True, False):
                    report(found, systems, work, to_leader, connections)
        print()
        for system in systems:
            print(f"  {system.name:<8} {syncs_per_write(system, options.seconds)}")
    print("\nThe system that this one replaces named 7,500 messages/s at a p99 of 148 ms as its best, on 24 cores and without syncing.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
