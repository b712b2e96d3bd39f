"""Databases are checkpointed evenly: no WAL grows too long, and those that grew together are not checkpointed together."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from context_node.runtime.checkpoint_pace import CheckpointPace

MOST = 100_000


class Databases:
    """WALs that grow by so many bytes a round, and begin anew with their checkpoint."""

    def __init__(self, rates: list[int], phase: float = 0.0) -> None:
        self.rates = rates
        self.sizes = dict.fromkeys(range(len(rates)), 0)
        self.pace = CheckpointPace(MOST, phase)
        self.turns: list[list[int]] = []
        self.longest = 0

    def round(self) -> None:
        for shard, rate in enumerate(self.rates):
            self.sizes[shard] += rate
        self.longest = max(self.longest, *self.sizes.values())
        due = self.pace.due(self.sizes)
        for shard in due:
            self.sizes[shard] = 0
        self.turns.append(due)

    def run(self, rounds: int) -> "Databases":
        for _ in range(rounds):
            self.round()
        return self


@pytest.mark.parametrize("busy", [2, 5, 32])
@pytest.mark.parametrize("phase", [0.0, 0.4, 0.99])
def test_databases_that_grow_alike_have_their_turns_one_after_the_other(busy: int, phase: float) -> None:
    databases = Databases([300] * busy + [0] * (32 - busy), phase).run(3_000)
    assert max(map(len, databases.turns)) == 1
    assert databases.longest < MOST + 300
    # As often as each half of MOST came, and not more.
    assert sum(map(len, databases.turns)) <= busy * 300 * 3_000 / (MOST / 2) + 1
    assert all(any(shard in turn for turn in databases.turns) for shard in range(busy))


def test_nodes_with_the_same_databases_have_their_turns_at_other_moments() -> None:
    one, other = (Databases([300] * 32, phase).run(3_000) for phase in (0.0, 0.5))
    at_once = sum(1 for mine, theirs in zip(one.turns, other.turns, strict=True) if mine and theirs)
    assert at_once * 10 < sum(map(len, one.turns))


def test_a_lone_database_is_checkpointed_when_half_is_full() -> None:
    databases = Databases([0, 1_000, 0]).run(200)
    assert [turn for turn in databases.turns if turn] == [[1]] * 4 and databases.longest == MOST / 2


def test_what_is_full_does_not_wait_and_idle_time_is_not_saved_up() -> None:
    pace = CheckpointPace(MOST)
    sizes = dict.fromkeys(range(10), MOST // 2 - 1)
    for _ in range(100):
        assert pace.due(sizes) == []
    sizes = dict.fromkeys(range(10), MOST // 2)
    assert len(pace.due(sizes)) == 1
    assert pace.due(sizes) == [] and pace.due({}) == []
    assert sorted(pace.due({3: MOST, 4: MOST + 1, 5: 10})) == [3, 4]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 3_000), min_size=1, max_size=40), st.floats(0, 0.99), st.integers(0, 1 << 32))
def test_no_wal_gets_longer_than_it_may_however_unlike_they_grow(rates: list[int], phase: float, seed: int) -> None:
    dice = random.Random(seed)
    databases = Databases(rates, phase)
    for _ in range(300):
        databases.rates = [dice.randrange(2 * rate + 1) for rate in rates]
        databases.round()
        assert max(databases.sizes.values()) < MOST
