"""Grow a `contextstore dev` directory into a cluster under load, and shrink it again: 1 → 3 → 5 → 3 nodes, every answer judged.

Prints for each phase how many replicas moved beside the least that could have, and how long writes took meanwhile beside before.

    bench/grow.py [--seed 1]
"""

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from support.chaos_run import log_tails
from support.grow_run import GrowRun


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1, help="where the randomness begins (1)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="grow-") as folder:
        try:
            report = asyncio.run(GrowRun(Path(folder), seed=options.seed).grow(lambda text: print(text, flush=True)))
        except AssertionError as error:
            print(f"{error}\n{log_tails(Path(folder))}", file=sys.stderr)
            return 1
    print(
        f"{report.operations:,} operations, {report.acknowledged:,} appends acknowledged, "
        f"{report.unknown:,} without an answer (tried again); {len(report.violations)} violations"
    )
    for violation in report.violations[:20]:
        print(f"  {violation}")
    return 1 if report.violations else 0


if __name__ == "__main__":
    sys.exit(main())
