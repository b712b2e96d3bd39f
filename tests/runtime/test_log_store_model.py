"""P1, P5, P6, P7: the log store against plain dictionaries, driven by hypothesis."""

import random
import shutil
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from context_node.runtime.log_file import LogOptions
from context_node.runtime.log_store import LogStore
from support.log_model import CODEC, IDENTITY, Model, entries_of, random_step, view_of


class LogStoreMachine(RuleBasedStateMachine):
    """Random batches, truncations, installs, removals, checkpoints, scrubs, losses of what was not committed."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp())
        self.model = Model()
        self.committed = self.model.view()
        self.store: LogStore | None = None

    @initialize()
    def start(self) -> None:
        self.open()

    def open(self) -> None:
        # No fsync here: power cuts have a test of their own.
        options = LogOptions(synchronous="OFF", wal_bytes_max=1 << 16)
        self.store = LogStore(str(self.directory / "raft.db"), IDENTITY, CODEC, options)
        found = view_of(self.store.recover())
        assert found == self.committed

    @rule(seed=st.integers(0, 1 << 32), steps=st.integers(1, 6))
    def work(self, seed: int, steps: int) -> None:
        assert self.store is not None
        rng = random.Random(seed)
        for _ in range(steps):
            random_step(self.store, self.model, rng, shards=4)

    @rule()
    def commit(self) -> None:
        assert self.store is not None
        self.store.commit()
        self.committed = self.model.view()

    @rule(scrub=st.booleans())
    def maintain(self, scrub: bool) -> None:
        assert self.store is not None
        self.commit()
        if scrub:
            self.store.scrub()
        else:
            self.store.checkpoint()

    @rule()
    def reopen(self) -> None:
        """What was not committed is gone, everything else is there."""
        assert self.store is not None
        self.store.close()
        self.model = model_of(self.committed)
        self.open()

    @rule(seed=st.integers(0, 1 << 32))
    def read(self, seed: int) -> None:
        """Any range of live entries can be read back."""
        assert self.store is not None
        rng = random.Random(seed)
        for shard, it in self.model.shards.items():
            if not it.entries:
                continue
            first = rng.choice(sorted(it.entries))
            last = rng.randint(first, it.last_index)
            found: dict[int, int] = {}
            while max(found, default=first - 1) < last:
                slices = self.store.read(shard, max(found, default=first - 1) + 1, last, rng.choice((1, 500, 1 << 20)))
                assert slices
                for part in slices:
                    entries = entries_of(part.record)
                    found |= {index: entries[index] for index in range(part.first, part.last + 1)}
            assert found == {index: it.entries[index] for index in range(first, last + 1)}

    @invariant()
    def what_is_needed_is_known(self) -> None:
        if self.store is None:
            return
        for shard, it in self.model.shards.items():
            assert self.store.last_index(shard) == it.last_index
        pins = self.store.pinning_shards()
        assert (self.store.oldest_needed() is None) == (not pins)
        with_entries = {shard for shard, it in self.model.shards.items() if it.entries}
        assert with_entries <= set(self.store.pinning_shards(through_batch=1 << 40))

    def teardown(self) -> None:
        if self.store is not None:
            self.store.close()
        shutil.rmtree(self.directory)


def model_of(view: dict[int, "object"]) -> Model:
    from support.log_model import Replica, Shard

    model = Model()
    for shard, it in view.items():
        assert isinstance(it, Replica)
        model.shards[shard] = Shard(it.replica_id, it.generation, it.hard_state, it.truncated, dict(it.entries))
    return model


TestLogStore = LogStoreMachine.TestCase
TestLogStore.settings = settings(max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
