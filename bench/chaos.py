"""Faults on the real processes of a cluster under load; every answer of every client is judged.

Prints, for each kind of fault, how often it happened, and at the end how many operations were checked and what was violated (nothing, else
exit 1). Appends carry message ids and are tried again on any node until one acknowledges them.

    bench/chaos.py --nodes 5 --seconds 180 --seed 1 [FAULT ...]
"""

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from support.chaos_run import ChaosRun, log_tails
from support.netns import NEEDED, Hosts, can_make_hosts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("faults", nargs="*", help="which (all)")
    parser.add_argument("--nodes", type=int, default=5, help="processes (5)")
    parser.add_argument("--seconds", type=float, default=30, help="how long each kind of fault goes on (30)")
    parser.add_argument("--seed", type=int, default=1, help="where the randomness begins (1)")
    parser.add_argument("--loopback", action="store_true", help="all nodes on the loopback: nothing between them can be cut")
    options = parser.parse_args()
    hosts: Hosts | None = None
    if options.loopback or not can_make_hosts():
        print(f"nodes on the loopback: no cuts, no full disks ({NEEDED})")
    else:
        hosts = Hosts(options.nodes)
    try:
        if hosts is not None:
            hosts.enter_router()
        return drive(options, parser, hosts)
    finally:
        if hosts is not None:
            hosts.close()


def drive(options: argparse.Namespace, parser: argparse.ArgumentParser, hosts: Hosts | None) -> int:
    """The run, from where every node can be reached."""
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:

        async def run() -> bool:
            chaos = ChaosRun(Path(folder), nodes=options.nodes, seed=options.seed, hosts=hosts)
            if unknown := set(options.faults) - set(chaos.faults):
                parser.error(f"unknown: {', '.join(sorted(unknown))}; there are: {', '.join(chaos.faults)}")
            report = await chaos.run(options.faults or list(chaos.faults), options.seconds, lambda text: print(text, flush=True))
            print(report)
            for violation in report.violations[:20]:
                print(f"  {violation}")
            return report.is_clean

        try:
            return 0 if asyncio.run(run()) else 1
        except AssertionError as error:
            print(f"{error}\n{log_tails(Path(folder))}", file=sys.stderr)
            return 1


if __name__ == "__main__":
    sys.exit(main())
