"""Three nodes archive under load while the one that leads most is killed again and again; a checker looks for holes in Postgres meanwhile.

At the end the rows are compared with the exports byte for byte, and every acknowledged message must be there once.

    bench/archive_chaos.py [--kills 50] [--seed 1] [--tail-keep 20]
"""

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from support.archive_run import ArchiveRun
from support.chaos_run import log_tails
from support.postgres import postgres_server


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="how often a node is killed (50)")
    parser.add_argument("--seed", type=int, default=1, help="where the randomness begins (1)")
    parser.add_argument(
        "--tail-keep", type=int, help="the nodes keep so many of a context's newest messages, and read the rest from Postgres"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="archive-chaos-") as folder, postgres_server() as postgres:
        run = ArchiveRun(Path(folder), postgres.dsn, seed=options.seed, tail_keep=options.tail_keep)
        try:
            report = asyncio.run(run.storm(options.kills, lambda text: print(text, file=sys.stderr, flush=True)))
        except AssertionError as error:
            print(f"{error}\n{log_tails(Path(folder))}", file=sys.stderr)
            return 1
    print(report)
    for violation in report.violations[:20]:
        print(f"  {violation}")
    return 1 if report.violations else 0


if __name__ == "__main__":
    sys.exit(main())
