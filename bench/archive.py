"""What an archive costs the writers, and whether it keeps up: three nodes of ours with Postgres beside them on the same cores and disk.

`peak`: most single appends and most messages in batches of 10 by a closed loop. `pair`: an open loop at half of the peak of single appends,
latencies from when each append was due. Both by turns of three kinds: a cluster with an archive; the same cluster while Postgres is
stopped, so the same processes with nothing but the archive's own work left out; a cluster without an archive. Two equal clusters differ by
a tenth and more for as long as they live, so the last kind needs several pairs of new ones (`--pairs`). The archive is let finish before
the next turn. `--control` leaves the archive out. `copy`: `--messages` messages, each with a number of its own, in batches of 10 as fast as
the nodes take them: how far the archive is behind at the end and until it has all; then every context's export beside its rows, byte for
byte. `cold` (with `--tail-keep`): a page of 100 of the oldest messages beside one of the newest. `restore`: the archive becomes a new
cluster of three nodes. Postgres syncs every commit; of `peak` and `pair` it is worn (`wear`).

    bench/archive.py [peak pair copy cold restore] [--rounds 8] [--seconds 10] [--pairs 2] [--control] [--rate 0] [--nice 0]
                     [--postgres-dir /dev/shm] [--messages 1000000] [--tail-keep 1000]

Each turn is told on standard error. Needs Go, which builds the load.
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg  # type: ignore[import-untyped]

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from archive_copy import cold_pages, compare_all, copy_messages, lag_messages, until_archived
from cluster_systems import BATCH, NODES, PEERS, System, build_peers, our_nodes, ours
from support.postgres import PostgresServer, postgres_server

SYNCED = ("shared_buffers=256MB", "max_wal_size=4GB", "min_wal_size=2GB")
"""Postgres as somebody might run it: defaults, but for what a small machine gives it; every commit is synced."""

WORN_WAL_BYTES = 960_000_000
"""Log that a server writes before it is measured, so that it has segments to use again."""

SETTLE_S = 6.0
"""Nodes keep effects in memory for up to 5 s before they store them. A cluster with an archive has stored its own by then; one
without goes on in the turn of the other, which with turns of 2.5 s and no pause made a ratio of 2.8 of one of 1.5."""

LEAD_S = 6.0
"""A turn is measured once it has gone on for so long, when as much is archived as comes: what comes first waits for the next round,
which begins every 5 s (`archive_flush_s`)."""

ON, STOPPED, OFF = "archive on", "Postgres stopped", "archive off"


@dataclass
class Side:
    """What the rounds of one kind gave in one setting. Times in ms, CPU in cores."""

    rates: list[float] = field(default_factory=list)
    p50_ms: list[float] = field(default_factory=list)
    p99_ms: list[float] = field(default_factory=list)
    all_ms: list[float] = field(default_factory=list)
    node_cores: list[float] = field(default_factory=list)
    postgres_cores: list[float] = field(default_factory=list)


@dataclass
class Pair:
    """A cluster with an archive and one without, and the Postgres of the first."""

    on: System
    off: System
    postgres: PostgresServer


# --- processes --------------------------------------------------------------------------------------------------------------


def tree(pid: int) -> Iterator[tuple[int, list[str]]]:
    """A process and its children: each with its number and what /proc/…/stat says behind its name."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            number, rest = int(path.parent.name), path.read_text().rsplit(")", 1)[1].split()
            if pid in (number, int(rest[1])):
                yield number, rest


def cpu_of_tree_s(pid: int) -> float:
    """CPU seconds of a server and its children, those that ended too."""
    total = sum(sum(map(int, rest[11:15] if number == pid else rest[11:13])) for number, rest in tree(pid))
    return total / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    """A server and its children do nothing meanwhile. Who asks them waits, and after a while tries again now and then."""
    held = []

    def stop(number: int) -> None:
        # A child may have ended since it was seen.
        with contextlib.suppress(ProcessLookupError):
            os.kill(number, signal.SIGSTOP)
            held.append(number)

    try:
        # First the server itself, so that it makes no more children.
        stop(pid)
        for number, _ in tree(pid):
            stop(number)
        yield
    finally:
        for number in held:
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGCONT)


@contextlib.contextmanager
def archiving(folder: Path, postgres: PostgresServer, *settings: str) -> Iterator[System]:
    """Three nodes with an archive."""
    folder.mkdir(parents=True)
    uri = folder / "uri"
    uri.write_text(postgres.dsn)
    with ours(folder, "--archive-postgres-file", str(uri), *settings) as system:
        until_archived(system)
        yield system


@contextlib.contextmanager
def without(folder: Path) -> Iterator[System]:
    """Three nodes without one."""
    folder.mkdir(parents=True)
    with ours(folder) as system:
        yield system


@contextlib.contextmanager
def both(folder: Path, is_control: bool, is_off_first: bool, niceness: int, where: str | None) -> Iterator[Pair]:
    """Two new clusters, of which no start is the first always; in a control neither has an archive."""
    with postgres_server(*SYNCED, where=where) as postgres, contextlib.ExitStack() as stack:
        # Its children inherit it.
        os.setpriority(os.PRIO_PROCESS, postgres.pid, niceness)
        asyncio.run(wear(postgres.dsn))

        def start_on() -> System:
            where = folder / "with"
            return stack.enter_context(without(where) if is_control else archiving(where, postgres))

        def start_off() -> System:
            return stack.enter_context(without(folder / "without"))

        if is_off_first:
            off, on = start_off(), start_on()
        else:
            on, off = start_on(), start_off()
        yield Pair(on, off, postgres)


async def wear(dsn: str) -> None:
    """Make a new server like one that has run for a while, which uses the segments of its log again (PostgreSQL, "WAL Configuration").
    A new one fills each with zeros first, and syncs that: 16 MiB more on the disk every few seconds, for as long as a benchmark lasts."""
    connection = await asyncpg.connect(dsn)
    try:
        for _ in range(WORN_WAL_BYTES // 16_000_000):
            await connection.execute("SELECT pg_logical_emit_message(false, 'wear', repeat('x', 16000000))")
        await connection.execute("CHECKPOINT")
    finally:
        await connection.close()


# --- rounds -----------------------------------------------------------------------------------------------------------------


def load(system: System, work: str, connections: int, seconds: float, rate: float = 0.0, **more: Any) -> dict[str, Any]:
    """One run of the load on the nodes that lead. `rate`: writes a second of an open loop. Raises SystemExit for a write that failed."""
    asked = [place for place in range(NODES) if system.leading[place]]
    plan = {
        "kind": "http",
        "targets": [system.targets[place] for place in asked],
        "keys": [system.leading[place] for place in asked],
        "body": system.bodies[work],
        "connections": connections,
        "seconds": seconds,
        "rate": rate,
        "times": True,
        **more,
    }
    done = subprocess.run([str(PEERS / "load")], input=json.dumps(plan), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"a write failed: {done.stderr.strip()[:300]}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def one_round(pair: Pair, kind: str, work: str, connections: int, seconds: float, rate: float, into: Side) -> None:
    system = pair.off if kind == OFF else pair.on
    with stopped(pair.postgres.pid) if kind == STOPPED else contextlib.nullcontext():
        load(system, work, connections, LEAD_S, rate)
        before, postgres_before = system.cpu_s(), cpu_of_tree_s(pair.postgres.pid)
        found = load(system, work, connections, seconds, rate)
        into.node_cores.append((system.cpu_s() - before) / found["seconds"])
        into.postgres_cores.append((cpu_of_tree_s(pair.postgres.pid) - postgres_before) / found["seconds"])
    into.rates.append((BATCH if work == "batch" else 1) * found["writes"] / found["seconds"])
    into.p50_ms.append(found["p50_ms"])
    into.p99_ms.append(found["p99_ms"])
    into.all_ms += found["times_ms"]
    if lag_messages(system):
        until_archived(system)
    # What is left of this turn is not the next one's to bear.
    time.sleep(SETTLE_S)


def new_sides() -> dict[str, Side]:
    return {kind: Side() for kind in (ON, STOPPED, OFF)}


def rounds(pair: Pair, work: str, options: argparse.Namespace, sides: dict[str, Side], rate: float = 0.0) -> None:
    """All kinds by turns in changing orders, so that each comes behind each other; the first turn of each is a warm-up."""
    orders = itertools.cycle(itertools.permutations(sides))
    for number in range(max(1, options.rounds // options.pairs) + 1):
        for kind in next(orders):
            side = sides[kind] if number else Side()
            one_round(pair, kind, work, options.connections, options.seconds, rate, side)
            what = f"turn {len(side.rates)}" if number else "warm-up"
            told = f"{work}, {what}: {kind} {side.rates[-1]:,.0f}/s, p50 {side.p50_ms[-1]:.1f} ms, p99 {side.p99_ms[-1]:.1f} ms"
            print(told, file=sys.stderr, flush=True)


def quantile(values: list[float], share: float) -> float:
    return sorted(values)[min(int(share * len(values)), len(values) - 1)]


def report(what: str, unit: str, sides: dict[str, Side]) -> None:
    print(f"\n{what}")
    for name, side in sides.items():
        print(
            f"  {name:<16} {statistics.median(side.rates):>7,.0f} {unit}   p50 {quantile(side.all_ms, 0.5):6.2f} ms   "
            f"p99 {quantile(side.all_ms, 0.99):6.2f} ms [rounds {' '.join(f'{one:.0f}' for one in side.p99_ms)}]   "
            f"nodes {statistics.median(side.node_cores):.2f} cores   Postgres {statistics.median(side.postgres_cores):.3f}"
        )
    for one, other in ((ON, STOPPED), (ON, OFF), (STOPPED, OFF)):
        compare(f"{one} / {other}", sides[one], sides[other])


def compare(what: str, one: Side, other: Side) -> None:
    ratios = [mine / others for mine, others in zip(one.p99_ms, other.p99_ms, strict=True)]
    quantiles = "   ".join(
        f"{name} {quantile(one.all_ms, share) / quantile(other.all_ms, share):.2f}"
        for name, share in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))
    )
    print(
        f"  {what:<30} rate {statistics.median(one.rates) / statistics.median(other.rates):.2f}   {quantiles}   "
        f"(p99's median of the rounds' own {statistics.median(ratios):.2f}, {min(ratios):.2f} to {max(ratios):.2f})",
        flush=True,
    )


# --- parts ------------------------------------------------------------------------------------------------------------------


def cost(folder: Path, parts: list[str], options: argparse.Namespace) -> None:
    """Over several pairs of clusters: leaders fall where they fall, so that of two equal clusters one is quicker all the time."""
    peak, batch, loaded = (new_sides() for _ in range(3))
    rate = options.rate
    for number in range(options.pairs):
        with both(folder / f"pair-{number}", options.control, bool(number % 2), options.nice, options.postgres_dir) as pair:
            if "peak" in parts or not rate:
                rounds(pair, "single", options, peak)
                rate = rate or statistics.median(peak[OFF].rates) / 2
            if "peak" in parts:
                rounds(pair, "batch", options, batch)
            if "pair" in parts:
                rounds(pair, "single", options, loaded, rate)
    if options.control:
        print("\nA control: neither cluster has an archive, and what differs is chance.")
    if peak[ON].rates:
        report(f"single appends as fast as they go, {options.connections} connections", "writes/s", peak)
    if batch[ON].rates:
        report(f"batches of {BATCH} as fast as they go, {options.connections} connections", "messages/s", batch)
    if loaded[ON].rates:
        why = "as asked for" if options.rate else "half of the peak without an archive"
        report(f"single appends, {rate:,.0f} due each second ({why})", "writes/s", loaded)


def restore(folder: Path, postgres: PostgresServer) -> bool:
    """The archive becomes a new cluster of three, which the command itself compares with it by counts and digests."""
    folder.mkdir(parents=True)
    with our_nodes(folder) as (ports, _):
        began = time.monotonic()
        words = ["restore", "--from-postgres", "--url", f"http://127.0.0.1:{ports[0]}", "--quiet"]
        environment = {**os.environ, "CONTEXTSTORE_ARCHIVE_POSTGRES": postgres.dsn}
        done = subprocess.run(
            [str(Path(sys.executable).parent / "contextstore"), *words], env=environment, capture_output=True, text=True, check=False
        )
        print(f"\nrestored into three new nodes in {time.monotonic() - began:.0f} s, checked by digest:")
        print("  " + (done.stdout + done.stderr).strip().replace("\n", "\n  "), flush=True)
    return done.returncode == 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=["peak", "pair", "copy", "cold", "restore", []], help="which (peak, pair, copy)")
    parser.add_argument("--rounds", type=int, default=8, help="turns of each kind in each setting (8)")
    parser.add_argument("--seconds", type=float, default=10.0, help="of one turn (10)")
    parser.add_argument("--pairs", type=int, default=2, help="the turns are over so many pairs of new clusters (2)")
    parser.add_argument("--control", action="store_true", help="no archive at all, to see how much two equal clusters differ here")
    parser.add_argument("--nice", type=int, default=0, help="Postgres' niceness, to see what sharing the cores with it costs (0)")
    parser.add_argument("--postgres-dir", help="where Postgres' files are, such as /dev/shm, to see what sharing the disk with it costs")
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--rate", type=float, default=0.0, help="of the open loop, writes a second (half of the peak that is measured)")
    parser.add_argument("--messages", type=int, default=1_000_000, help="to be copied and compared (1,000,000)")
    parser.add_argument(
        "--tail-keep", type=int, help="the nodes keep so many of a context's newest messages, and read the rest from Postgres"
    )
    options = parser.parse_args()
    parts = options.parts or ["peak", "pair", "copy", *(["cold"] if options.tail_keep is not None else [])]
    build_peers("load")
    # A timeout around it ends the servers too, as Ctrl-C does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    print(f"load average at the start: {', '.join(f'{one:.2f}' for one in os.getloadavg())} on {os.cpu_count()} cores", flush=True)
    with tempfile.TemporaryDirectory(prefix="bench-archive-") as name:
        folder = Path(name)
        if "peak" in parts or "pair" in parts:
            cost(folder, parts, options)
        if {"copy", "cold", "restore"} & set(parts):
            tail = [] if options.tail_keep is None else ["--archive-tail-keep", str(options.tail_keep)]
            with postgres_server(*SYNCED) as postgres:
                with archiving(folder / "copying", postgres, *tail) as system:
                    count = copy_messages(system, options, load, lambda: cpu_of_tree_s(postgres.pid))
                    is_equal = compare_all(system, postgres.dsn, count)
                    if "cold" in parts:
                        cold_pages(system)
                if not is_equal or ("restore" in parts and not restore(folder / "restored", postgres)):
                    return 1
    print(f"\nload average at the end: {', '.join(f'{one:.2f}' for one in os.getloadavg())}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
