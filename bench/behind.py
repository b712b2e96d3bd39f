"""A node of three is down while very many messages are written; it starts again and catches up by snapshots while writes go on.

bench/behind.py [--messages 500000]
"""

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from support.behind_run import BehindRun
from support.chaos_run import log_tails


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=500_000, help="how many the node misses (500,000)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="behind-") as folder:
        run = BehindRun(Path(folder), messages=options.messages)
        try:
            report = asyncio.run(run.fall_behind(lambda text: print(text, file=sys.stderr, flush=True)))
        except AssertionError as error:
            print(f"{error}\n{log_tails(Path(folder))}", file=sys.stderr)
            return 1
    print(report)
    return 1 if report.differing or not report.snapshots else 0


if __name__ == "__main__":
    sys.exit(main())
