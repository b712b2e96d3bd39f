"""`make bench`: the node beside a bare endpoint, in one run, as ratios.

The peer (`bare.py`) is what aiohttp, uvloop and orjson can do at best: it parses and echoes the JSON that an append carries, and serves
the bytes of a window ready-made. Rounds are short and alternate between the two, so that a drift of the machine hits both; the figure is
the median of the rounds' ratios. wrk is the load. Usage: `run.py [append window batch history] [--seconds 1] [--rounds 20]`; without
names, all of them.
"""

import argparse
import asyncio
import shutil
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import loads
from processes import Server, bare_server, node_server

GOALS = {"append 32": 0.40, "append 128": 0.45, "window 32": 0.50, "batch 32": 3.0}


@dataclass(frozen=True, slots=True)
class Ratio:
    """One comparison: rates per second of ours and of the peer, and the ratio's median, least and most over the rounds."""

    name: str
    ours: float
    peer: float
    median: float
    least: float
    most: float
    what: str

    def line(self) -> str:
        goal = GOALS.get(self.name)
        mark = "" if goal is None else f"   goal >= {goal:.2f}"
        return (
            f"{self.name:<22} {self.ours:>10,.0f}/s {self.peer:>10,.0f}/s   {self.median:5.2f}  "
            f"[{self.least:.2f}, {self.most:.2f}]{mark}   {self.what}"
        )


def compare(name: str, what: str, ours: loads.Load, peer: loads.Load, rounds: int, seconds: int) -> Ratio:
    """Alternate the two loads; the first round of each is a warm-up and does not count."""
    pairs = []
    for round_ in range(rounds + 1):
        pair = (ours.run(seconds), peer.run(seconds))
        if round_:
            pairs.append(pair)
    ratios = [mine / theirs for mine, theirs in pairs]
    mine, theirs = (statistics.median(side) for side in zip(*pairs, strict=True))
    return Ratio(name, mine, theirs, statistics.median(ratios), min(ratios), max(ratios), what)


def bench_append(node: Server, bare: Server, options: argparse.Namespace) -> None:
    for connections in (32, 128):
        ours = loads.appends(node.url, connections)
        peer = loads.echoes(bare.url, connections)
        report(compare(f"append {connections}", "durable appends / bare echoes", ours, peer, options.rounds, options.seconds))


def bench_window(node: Server, bare: Server, options: argparse.Namespace) -> None:
    path, body = asyncio.run(loads.window_of_4000_tokens(node.url))
    asyncio.run(loads.give_bytes(bare.url, body))
    ours = loads.reads(node.url, path, 32)
    peer = loads.reads(bare.url, "/bytes", 32)
    what = f"windows of 4,000 tokens ({len(body):,} bytes) / the same bytes ready-made"
    report(compare("window 32", what, ours, peer, options.rounds, options.seconds))


def bench_batch(node: Server, bare: Server, options: argparse.Namespace) -> None:
    ours = loads.appends(node.url, 32, batch=10)
    peer = loads.appends(node.url, 32)
    report(compare("batch 32", "messages/s in batches of 10 / messages/s one by one", ours, peer, options.rounds, options.seconds))


def bench_history(node: Server, bare: Server, options: argparse.Namespace) -> None:
    """Time per request, long history / short history: one context of 100,000 messages beside one of 100."""
    long, short = asyncio.run(loads.histories(node.url, 100_000, 100))
    for verb, make in (("append", loads.appends_to), ("window", loads.window_after_append)):
        # Rates invert into times: the short one's rate over the long one's is the long one's cost over the short one's.
        ratio = compare(f"history {verb}", "", make(node.url, short), make(node.url, long), options.rounds, options.seconds)
        spread = f"[{ratio.least:.2f}, {ratio.most:.2f}]"
        print(f"history {verb:<14} cost at 100,000 messages / cost at 100: {ratio.median:.2f}  {spread}   goal <= 1.15")


def report(ratio: Ratio) -> None:
    print(ratio.line(), flush=True)


BENCHES = {"append": bench_append, "window": bench_window, "batch": bench_batch, "history": bench_history}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[[], *BENCHES], help="which to run (all)")
    parser.add_argument("--seconds", type=int, default=1, help="length of one round of one side")
    parser.add_argument("--rounds", type=int, default=20, help="counted rounds of each side")
    options = parser.parse_args()
    if shutil.which("wrk") is None:
        print("bench needs the load generator wrk: apt-get install wrk", file=sys.stderr)
        return 2
    with (
        tempfile.TemporaryDirectory(prefix="contextstore-bench-") as folder,
        node_server(Path(folder) / "data") as node,
        bare_server() as bare,
    ):
        print(f"{'':<22} {'ours':>12} {'peer':>12}   ratio  [least, most] of {options.rounds} rounds of {options.seconds} s")
        for name in options.names or BENCHES:
            BENCHES[name](node, bare, options)
        print(node.cost_line())
    return 0


if __name__ == "__main__":
    sys.exit(main())
