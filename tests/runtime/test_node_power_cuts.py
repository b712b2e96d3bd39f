"""H1, H3, H4, W5 of a whole node whose power is cut: see `support.node_lives`. `bench/crash.py` runs the same for longer."""

import pytest

from context_node.runtime.databases import Synchronous
from support.node_lives import Figures, power_cuts, seeds_that_break

pytestmark = pytest.mark.crash


def test_h3_power_cuts_lose_nothing_acknowledged_and_double_nothing() -> None:
    """H1, H2, H3, H4, W5: every unsynced write may be kept, dropped or torn, at any write or sync, also during a start."""
    figures = Figures()
    power_cuts(range(1000, 1015), figures)
    print(f"\n{figures}")
    assert figures.cuts >= 45 and figures.cuts_in_starts >= 5
    assert figures.lost == figures.doubled == 0
    assert figures.acknowledged > 2_000 and figures.retried > 10 and figures.windows_compared > 500


@pytest.mark.parametrize(("log", "state"), [("OFF", "OFF"), ("OFF", "NORMAL"), ("NORMAL", "NORMAL"), ("FULL", "OFF")])
def test_without_syncs_power_cuts_break_the_promises(log: Synchronous, state: Synchronous) -> None:
    """The harness sees a loss where there is one: the same run with one sync less must fail, wherever the sync is missing."""
    broken = seeds_that_break(range(1000, 1006), log=log, state=state)
    print(f"\nsynchronous {log} for the log, {state} for the state: {broken} of 6 runs broke a promise")
    assert broken >= 3


def test_a_run_can_be_repeated_from_its_seed() -> None:
    """A failure that names its seed is found again."""
    first, second = Figures(), Figures()
    for figures in (first, second):
        power_cuts(range(7, 9), figures)
    assert first == second
