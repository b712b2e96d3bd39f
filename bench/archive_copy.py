"""Very many messages through three nodes into Postgres: how far the archive is behind, until when it has all, and whether it is the same.

Knows the cluster's HTTP and the archive's documented tables. Does not know how the nodes were started.
"""

import argparse
import asyncio
import http.client
import json
import random
import resource
import time
import urllib.request
from collections.abc import Callable
from typing import Any

import asyncpg  # type: ignore[import-untyped]

from cluster_systems import BATCH, CONTEXTS, TEXT, System
from support.archive_compare import Differs, compare_context

ARCHIVED_S = 600.0
NUMBER = "##########"
"""Where the load puts a number that no other message has."""

PAGE = 100
PAGES = 300


def metrics(target: str) -> dict[str, float]:
    """Those without labels."""
    with urllib.request.urlopen(f"http://{target}/metrics", timeout=30) as answer:
        rows = [line.split() for line in answer.read().decode().splitlines() if line and not line.startswith("#") and "{" not in line]
    return {name: float(value) for name, value in rows}


def lag_messages(system: System) -> int:
    """Messages that are not archived, as the nodes say; 0 without an archive."""
    return round(sum(metrics(target).get("contextstore_archive_lag_messages", 0.0) for target in system.targets))


def until_archived(system: System) -> float:
    """Seconds until the nodes say that all is archived, and that they reach the archive. Raises SystemExit if that takes too long."""
    began = time.monotonic()
    while time.monotonic() - began < ARCHIVED_S:
        told = [metrics(target) for target in system.targets]
        if all(one["contextstore_archive_healthy"] == 1 and one["contextstore_archive_lag_messages"] == 0 for one in told):
            return time.monotonic() - began
        time.sleep(0.05)
    raise SystemExit(f"the archive did not have all within {ARCHIVED_S:g} s")


def copy_messages(
    system: System, options: argparse.Namespace, load: Callable[..., dict[str, Any]], postgres_cpu_s: Callable[[], float]
) -> int:
    """Write the messages, wait until all are archived, print how that went; how many of them have a number."""
    system.bodies["numbered"] = json.dumps({"messages": [{"role": "user", "content": f"{NUMBER} {TEXT}"}] * BATCH})
    nodes, postgres = system.cpu_s(), postgres_cpu_s()
    writes = max(1, options.messages // BATCH - options.connections)
    # With keys, as whoever wants each message once writes them: a leader that is replaced meanwhile ends no benchmark.
    found = load(system, "numbered", options.connections, 3600.0, writes=writes, keyed=True)
    behind = lag_messages(system)
    waited = until_archived(system)
    count = BATCH * int(found["all_writes"])
    nodes, postgres = system.cpu_s() - nodes, postgres_cpu_s() - postgres
    told = [metrics(target) for target in system.targets]
    batches = sum(one["contextstore_archive_batches_total"] for one in told)
    took = found["seconds"]
    print(
        f"\n{count:,} messages in batches of {BATCH} over {options.connections} connections in {took:.0f} s: "
        f"{count / took:,.0f} messages/s, p50 {found['p50_ms']:.1f} ms, p99 {found['p99_ms']:.1f} ms, {found['retried']:,} tried again\n"
        f"  the archive was {behind:,} messages behind at the end, and had all {waited:.1f} s later: "
        f"{count / (took + waited):,.0f} messages/s, {batches:,.0f} transactions\n"
        f"  CPU: nodes {1e6 * nodes / count:.0f} µs a message, Postgres {1e6 * postgres / count:.0f} µs",
        flush=True,
    )
    return count


def compare_all(system: System, dsn: str, count: int) -> bool:
    """Every context's export beside its rows, and every number once; whether they are equal."""
    began = time.monotonic()
    try:
        rows, contexts = asyncio.run(_compared(f"http://{system.targets[0]}", dsn, count))
    except Differs as error:
        print(f"  NOT EQUAL: {error}")
        return False
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"  {rows:,} rows of {contexts} contexts equal their exports byte for byte, no gap, none twice; each of {count:,} numbers once "
        f"(compared in {time.monotonic() - began:.0f} s, {peak:.0f} MiB)",
        flush=True,
    )
    return True


async def _compared(url: str, dsn: str, count: int) -> tuple[int, int]:
    seen = bytearray(count)

    def see(_seq: int, line: bytes) -> None:
        at = line.find(b'"text":"') + 8
        number = line[at : at + len(NUMBER)]
        # One message of each context came before, and has none.
        if number.isdigit():
            seen[int(number)] += 1

    connection = await asyncpg.connect(dsn)
    try:
        rows = 0
        names = [f"bench-{number}" for number in range(CONTEXTS)]
        for name in names:
            rows += await compare_context(connection, url, name, see)
        there, doubled = await connection.fetchrow(
            "SELECT count(*), count(*) - count(DISTINCT (context_id, seq)) FROM contextstore.messages"
        )
    finally:
        await connection.close()
    if there != rows or doubled:
        raise Differs(f"{there:,} rows are there, of which {doubled:,} are doubled; the exports have {rows:,}")
    if wrong := sum(one != 1 for one in seen):
        raise Differs(f"{wrong:,} of {count:,} messages are not there once")
    return rows, len(names)


def cold_pages(system: System) -> None:
    """A page of the oldest messages beside one of the newest, by turns, one at a time, each from the node that leads."""
    places = [(target, path) for target, paths in zip(system.targets, system.leading, strict=True) for path in paths]
    times: dict[str, list[float]] = {"cold": [], "hot": []}
    chosen = random.Random(1)
    connections = {target: http.client.HTTPConnection(target, timeout=60) for target in system.targets}
    for number in range(PAGES + 20):
        target, path = chosen.choice(places)
        path = path.partition("?")[0]
        for kind, first in (("cold", chosen.randrange(1, 2000)), ("hot", -PAGE)):
            began = time.perf_counter()
            connections[target].request("GET", f"{path}?from_seq={first}&limit={PAGE}")
            answer = connections[target].getresponse()
            body = answer.read()
            took = 1000 * (time.perf_counter() - began)
            if answer.status != 200:
                raise SystemExit(f"a {kind} page was answered {answer.status}: {body[:300]!r}")
            if number >= 20:  # those before warm up
                times[kind].append(took)
    told = "   ".join(
        f"{kind} p50 {sorted(each)[len(each) // 2]:.2f} ms, p99 {sorted(each)[int(0.99 * len(each))]:.2f} ms"
        for kind, each in times.items()
    )
    print(f"  a page of {PAGE} messages, {PAGES} of each by turns: {told}", flush=True)
