"""Storms over whole clusters: whatever crashes, is lost, doubled or late, the invariants of Raft hold (I1-I10)."""

import pytest

from context_node.raft import ReplicaPanicked
from support.raft_simulation import Broken
from support.raft_storm import Storm


@pytest.mark.parametrize("seed", range(40))
def test_a_storm_breaks_no_invariant_and_the_calm_after_it_brings_agreement(seed: int) -> None:
    storm = Storm(seed, voters=1 + seed % 4)
    storm.run(4_000)
    storm.calm()


def test_the_storms_reach_what_they_are_for() -> None:
    storm = Storm(1)
    storm.run(30_000)
    storm.calm()
    reached = {name: storm.counts[name] for name in ("crashed", "changed", "transferred", "delivered", "snapshots")}
    assert all(reached.values()), reached
    assert storm.cluster.answered_reads > 0
    assert len(storm.cluster.committed) > 100


def test_a_shell_that_replies_before_its_disk_has_it_is_found_out() -> None:
    """P1, P2: the onlooker must notice the bug that it is there for."""
    found = 0
    for seed in range(30):
        storm = Storm(seed, hasty=True)
        try:
            storm.run(4_000)
        except (Broken, ReplicaPanicked):
            found += 1
    assert found >= 10


def test_the_same_seed_gives_the_same_storm() -> None:
    first, second = (Storm(7) for _ in range(2))
    first.run(5_000)
    second.run(5_000)
    assert first.counts == second.counts
    assert first.cluster.network == second.cluster.network
    assert first.cluster.committed == second.cluster.committed
