"""What a cluster costs that nobody asks anything: three nodes, many contexts in many shards, and the CPU of each node over a while.

    bench/idle.py [--shards 256] [--contexts 10000] [--seconds 30] [--rounds 3]

Prints for each round the share of one core that each node used. Contexts are written first, through the first node, and then left alone for
long enough that groups rest and everything is stored.
"""

import argparse
import http.client
import json
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from cluster_systems import System, ours

WRITERS = 8
LEFT_ALONE_S = 20.0


def fill(address: str, contexts: int) -> None:
    """One message for each of so many contexts."""
    body = json.dumps({"message": {"role": "user", "content": "a context that nobody comes back to"}})

    def write(first: int) -> None:
        connection = http.client.HTTPConnection(address, timeout=30)
        for number in range(first, contexts, WRITERS):
            connection.request("POST", f"/v1/contexts/idle-{number}/messages?create=true", body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            said = answer.read()
            if answer.status != 201:
                raise SystemExit(f"a context was not written: {answer.status} {said[:200]!r}")

    writers = [threading.Thread(target=write, args=(first,)) for first in range(WRITERS)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()


def cpu_s(system: System) -> list[float]:
    """What each node has used so far."""
    return [System("", "", [], [], [], {}, [process]).cpu_s() for process in system.processes]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=256)
    parser.add_argument("--contexts", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-idle-") as folder, ours(Path(folder), "--shards", str(options.shards)) as system:
        fill(system.targets[0], options.contexts)
        time.sleep(LEFT_ALONE_S)
        shares: list[float] = []
        for _ in range(options.rounds):
            before = cpu_s(system)
            time.sleep(options.seconds)
            used = [(after - earlier) / options.seconds for after, earlier in zip(cpu_s(system), before, strict=True)]
            shares += used
            print("of one core: " + ", ".join(f"{share:.2%}" for share in used), flush=True)
        print(f"{options.contexts:,} idle contexts in {options.shards} shards: {statistics.median(shares):.2%} of one core a node (median)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
