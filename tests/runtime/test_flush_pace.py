"""Effects are flushed evenly: no shard waits too long, and those that became busy together are not flushed together."""

from hypothesis import given, settings
from hypothesis import strategies as st

from context_node.runtime.flush_pace import FlushPace

AGE_S, ROUND_S = 5.0, 0.1


def pace() -> FlushPace:
    return FlushPace(AGE_S, 100_000)


class Shards:
    """Shards that get so many bytes a second each, and are looked at in rounds."""

    def __init__(self, rates: list[float]) -> None:
        self.rates = rates
        self.now = 100.0
        self.since: list[float | None] = [None] * len(rates)
        self.sizes = [0.0] * len(rates)
        self.pace = pace()
        self.flushed: list[list[int]] = []
        self.oldest_s = 0.0

    def round(self) -> None:
        self.now += ROUND_S
        for shard, rate in enumerate(self.rates):
            if rate:
                self.sizes[shard] += rate * ROUND_S
                if self.since[shard] is None:
                    self.since[shard] = self.now
        places = [shard for shard, since in enumerate(self.since) if since is not None]
        waiting = [(self.since[shard] or 0.0, int(self.sizes[shard])) for shard in places]
        due = [places[place] for place in self.pace.due(waiting, self.now)]
        for shard in due:
            self.oldest_s = max(self.oldest_s, self.now - (self.since[shard] or 0.0))
            self.since[shard], self.sizes[shard] = None, 0
        self.flushed.append(due)


def test_shards_that_became_busy_together_are_flushed_one_after_the_other() -> None:
    shards = Shards([10.0] * 32)
    for _ in range(200):
        shards.round()
    assert max(map(len, shards.flushed)) == 1
    # Each about once in AGE_S.
    assert 3 * 32 <= sum(map(len, shards.flushed)) <= 4 * 32
    assert shards.oldest_s <= AGE_S + ROUND_S


def test_hundreds_of_shards_are_flushed_a_few_at_a_time() -> None:
    shards = Shards([1.0] * 256)
    for _ in range(200):
        shards.round()
    assert max(map(len, shards.flushed)) <= 256 * ROUND_S / AGE_S + 1


def test_a_lone_shard_with_little_to_store_is_left_its_time() -> None:
    shards = Shards([10.0, 0.0, 0.0])
    for _ in range(152):
        shards.round()
    assert 2 <= sum(map(len, shards.flushed)) <= 3


def test_a_shard_that_gets_much_is_flushed_whenever_it_has_enough() -> None:
    shards = Shards([500_000.0])
    for _ in range(100):
        shards.round()
    assert 48 <= sum(map(len, shards.flushed)) <= 50


def test_shards_that_are_flushed_all_the_time_do_not_take_the_turns_of_the_others() -> None:
    shards = Shards([2_000_000.0] * 4 + [10.0] * 32)
    for _ in range(200):
        shards.round()
    assert max(sum(shard >= 4 for shard in due) for due in shards.flushed) <= 2


def test_what_is_too_large_is_flushed_at_once() -> None:
    assert pace().due([(99.9, 5), (100.0, 100_000)], 100.0) == [1]


def test_after_a_pause_nothing_is_in_arrears() -> None:
    one = pace()
    for passed_s in (1.0, 2.0, 3.0, 4.0):
        assert one.due([(0.0, 5)], passed_s) == []
    assert one.due([], 4.5) == []
    assert one.due([(5_000.0, 5), (5_000.0, 5)], 5_001.0) == []
    assert one.due([(5_000.0, 5), (5_000.0, 5)], 5_003.0) == [0]


@settings(max_examples=200, deadline=None)
@given(rates=st.lists(st.floats(0, 500_000), min_size=1, max_size=40), rounds=st.integers(1, 150))
def test_nothing_waits_longer_than_it_may(rates: list[float], rounds: int) -> None:
    shards = Shards(rates)
    for _ in range(rounds):
        shards.round()
        for since, size in zip(shards.since, shards.sizes, strict=True):
            assert since is None or (shards.now - since < AGE_S and size < 100_000)


def test_an_age_of_nothing_flushes_everything_at_once() -> None:
    assert FlushPace(0.0, 9).due([(2.0, 1), (1.0, 1)], 2.0) == [1, 0]
