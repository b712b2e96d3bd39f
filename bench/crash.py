"""What a crash costs: kills of a real process under load, and power cuts of a whole node on a disk that drops what was not synced.

Prints how many writes were acknowledged and how many of them were lost or doubled (0 and 0, else exit 1), whether windows changed, how long
a restart takes, and the fsyncs per acknowledged batch. The same power cuts without syncs must lose something, or the test itself is broken.

    bench/crash.py --kills 100 --power-cuts 100 --seed 1
"""

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path

from tqdm import tqdm  # type: ignore[import-untyped]

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from support.crash_run import CrashRun, Tally
from support.node_lives import Figures, power_cuts, seeds_that_break

SEEDS_WITHOUT_SYNCS = 10


def kill_again_and_again(kills: int, seed: int) -> bool:
    """Whether nothing was lost, doubled or changed."""
    with tempfile.TemporaryDirectory(prefix="crash-") as directory, tqdm(total=kills, unit="kill", disable=None) as bar:

        def progress(tally: Tally) -> None:
            bar.update(tally.kills - bar.n)

        tally = asyncio.run(CrashRun(Path(directory) / "data", seed=seed, progress=progress).run(kills))
    print(f"kill -9: {tally}")
    return tally.is_clean


def cut_the_power(cuts: int, seed: int) -> bool:
    """Whether nothing was lost with syncs, and something was without them."""
    figures = Figures()
    with tqdm(total=cuts, unit="cut", disable=None) as bar:
        for each in range(seed * 100_000, (seed + 1) * 100_000):
            if figures.cuts >= cuts:
                break
            power_cuts(range(each, each + 1), figures)
            bar.update(figures.cuts - bar.n)
    print(f"power:   {figures}")
    broken = seeds_that_break(range(SEEDS_WITHOUT_SYNCS), log="OFF", state="OFF")
    print(f"power:   with synchronous=OFF {broken} of {SEEDS_WITHOUT_SYNCS} runs broke a promise, as they must")
    return figures.lost == figures.doubled == 0 and broken > SEEDS_WITHOUT_SYNCS // 2


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="kills of a real process, 0 for none (100)")
    parser.add_argument("--power-cuts", type=int, default=100, help="power cuts of a node on a simulated disk, 0 for none (100)")
    parser.add_argument("--seed", type=int, default=1, help="where the randomness begins (1)")
    options = parser.parse_args()
    is_clean = not options.power_cuts or cut_the_power(options.power_cuts, options.seed)
    return 0 if (not options.kills or kill_again_and_again(options.kills, options.seed)) and is_clean else 1


if __name__ == "__main__":
    sys.exit(main())
