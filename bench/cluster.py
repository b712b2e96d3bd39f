"""Three nodes of ours beside three of etcd, of NATS JetStream and of pysyncobj: each write acknowledged by a majority that has synced it,
except by pysyncobj, which never syncs its journal.

All processes run on this machine, on one file system; rounds of all systems take turns, so that a machine whose speed drifts is
unfair to nobody. One closed-loop load (`bench/peers/load`, Go) writes the same payload over equally many connections to each: to the
nodes that lead, and to any node. etcd is asked by gRPC, its best way. Prints medians with the least and the most of the rounds; CPU is
that of the servers. pysyncobj comes after the others, since it is never idle. raftos is tried as well, and says how far it gets.

Of ours there are two clusters: one as it is by default, whose 32 Raft groups are led by all nodes, and one with a single group, as each of
the others has here: what many groups cost when so few connections share three nodes is between the two.

    bench/cluster.py [--rounds 8] [--seconds 2] [--connections 32 128] [single batch]

Needs Go, which builds the peers at their pinned versions (`bench/peers/go.mod`); those in Python come from their lock file.
"""

import argparse
import contextlib
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from cluster_systems import (
    BATCH,
    NODES,
    OURS,
    OURS_IN_ONE,
    PEERS,
    System,
    build_peers,
    build_python_peers,
    etcd,
    jetstream,
    ours,
    ours_in_one_group,
    pysyncobj,
    raftos_outcome,
)


@dataclass
class Rounds:
    """What the rounds of one system in one setting gave, in order."""

    rates: list[float] = field(default_factory=list)
    p50_ms: list[float] = field(default_factory=list)
    p99_ms: list[float] = field(default_factory=list)
    cpu_us: list[float] = field(default_factory=list)


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
    by_default, in_one = (middle(found[name, work, to_leader, connections].rates) for name in (OURS, OURS_IN_ONE))
    for system in systems:
        rounds = found[system.name, work, to_leader, connections]
        rate = middle(rounds.rates)
        if not rounds.rates:
            print(f"  {system.name:<9} no round succeeded")
            continue
        is_ours = system.name in (OURS, OURS_IN_ONE)
        ratio = "" if is_ours else f"ours are {by_default / rate:5.2f} ×, in one group {in_one / rate:5.2f} ×"
        print(
            f"  {system.name:<9} {rate:>9,.0f} {unit} [{min(rounds.rates):,.0f}, {max(rounds.rates):,.0f}]   "
            f"p50 {middle(rounds.p50_ms):6.2f} ms   p99 {middle(rounds.p99_ms):7.2f} ms   CPU {middle(rounds.cpu_us):6.0f} µs   {ratio}",
            flush=True,
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", nargs="*", choices=["single", "batch", []], help="which (both)")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--connections", type=int, nargs="+", default=[32, 128])
    options = parser.parse_args()
    build_peers()
    build_python_peers()
    kinds = [(work, connections) for work in options.work or ["single", "batch"] for connections in options.connections]
    with tempfile.TemporaryDirectory(prefix="bench-cluster-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        systems = [stack.enter_context(start(folder)) for start in (ours, ours_in_one_group, etcd, jetstream)]
        found: dict[tuple[str, str, bool, int], Rounds] = {}

        def measure(taking_part: list[System]) -> None:
            for work, connections in kinds:
                for _ in range(options.rounds):
                    for to_leader in (True, False):
                        for system in taking_part:
                            into = found.setdefault((system.name, work, to_leader, connections), Rounds())
                            one_round(system, work, to_leader, connections, options.seconds, into)

        def report_all(of: list[System]) -> None:
            for work, connections in kinds:
                for to_leader in (True, False):
                    report(found, of, work, to_leader, connections)

        measure(systems)
        report_all(systems)
        # It looks for work a thousand times a second, also when there is none: beside the others it would take their time.
        late = stack.enter_context(pysyncobj(folder))
        measure([late])
        report_all([late])
        print()
        for system in (*systems, late):
            print(f"  {system.name:<9} {syncs_per_write(system, options.seconds)}")
    print(f"  raftos    {raftos_outcome()}")
    print("\nThe system that this one replaces named 7,500 messages/s at a p99 of 148 ms as its best, on 24 cores and without syncing.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
