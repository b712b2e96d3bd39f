"""H3, P7, P10: effects and applied index stay together, and what a checkpoint called durable outlives the power."""

import random

import pytest

from context_node.runtime.databases import DiskFull, StorageError, StorageFailed, Synchronous
from context_node.runtime.state_store import StateOptions, StateStore
from support.power_cut_vfs import PowerCutDisk
from support.state_changes import StateModel, contents_of

pytestmark = pytest.mark.crash

PATH = "shard-5.db"


def open_state(disk: PowerCutDisk, synchronous: Synchronous = "NORMAL") -> StateStore:
    return StateStore(PATH, 5, StateOptions(synchronous=synchronous, exclusive=True, disk=disk))


def crash(store: StateStore | None) -> None:
    """Let go of a store whose disk is gone."""
    if store is not None:
        try:
            store.close()
        except StorageError:
            pass


class Life:
    """One life of a store: what it contained at each applied index, and up to which it called itself durable."""

    def __init__(self, disk: PowerCutDisk, rng: random.Random, synchronous: Synchronous = "NORMAL") -> None:
        self.model = StateModel()
        self.history = {0: self.model.contents()}
        self.durable_index = 0
        store: StateStore | None = None
        try:
            store = open_state(disk, synchronous)
            for _ in range(60):
                changes = self.model.random_changes(rng)
                self.model.flush(changes)
                self.history[changes.applied.index] = self.model.contents()
                store.flush(changes)
                if rng.random() < 0.15:
                    result = store.checkpoint()
                    assert result.complete
                    self.durable_index = result.applied_index
                elif rng.random() < 0.03:
                    assert store.scrub()
                    self.durable_index = changes.applied.index
        except StorageError:
            pass
        crash(store)

    def is_kept_by(self, store: StateStore) -> bool:
        """Whether `store` is exactly at one of the applied indexes that may have survived."""
        index = store.applied().index
        return index >= self.durable_index and contents_of(store, self.model) == self.history[index]


@pytest.mark.parametrize("chunk", range(6))
def test_h3_after_a_power_cut_the_effects_are_those_of_the_applied_index(chunk: int) -> None:
    """H3, P7: 120 power cuts; nothing at or below a completed checkpoint is lost and no flush is there by half."""
    for seed in range(chunk * 20, chunk * 20 + 20):
        rng = random.Random(seed)
        disk = PowerCutDisk(cut_at=rng.randint(1, 1500))
        life = Life(disk, rng)
        second = disk.after_power_cut(rng)
        store = open_state(second)
        assert life.is_kept_by(store), f"seed {seed}"
        # What `applied` says right after opening is durable: another cut at once changes nothing (P9).
        index = store.applied().index
        third = second.after_power_cut(rng)
        crash(store)
        again = open_state(third)
        assert again.applied().index == index, f"seed {seed}"
        assert life.is_kept_by(again), f"seed {seed}"
        again.close()
        for each in (disk, second, third):
            each.close()


def test_without_syncs_a_power_cut_breaks_what_a_checkpoint_promised() -> None:
    """The harness sees a loss where there is one: the same run with synchronous=OFF must fail."""
    broken = 0
    for seed in range(30):
        rng = random.Random(seed)
        disk = PowerCutDisk(cut_at=rng.randint(300, 1500))
        life = Life(disk, rng, "OFF")
        try:
            store = open_state(disk.after_power_cut(rng))
            broken += not life.is_kept_by(store)
            store.close()
        except (StorageError, KeyError, TypeError, ValueError):
            broken += 1
    print(f"\nsynchronous=OFF: {broken} of 30 runs lost what a checkpoint had promised")
    assert broken >= 15


def test_p10_a_failed_sync_makes_the_checkpoint_fail_and_poisons_the_store() -> None:
    """P10: never retried; the next start writes the WAL again, so that a later cut loses nothing below it."""
    for seed in range(20):
        rng = random.Random(seed)
        disk = PowerCutDisk()
        store, model = open_state(disk), StateModel()
        for _ in range(20):
            changes = model.random_changes(rng)
            model.flush(changes)
            store.flush(changes)
        disk.failing_syncs = 1
        with pytest.raises(StorageFailed):
            store.checkpoint()
        with pytest.raises(StorageFailed):
            store.checkpoint()
        with pytest.raises(StorageFailed):
            store.flush(changes)
        store.close()
        restarted = open_state(disk)
        assert contents_of(restarted, model) == model.contents()
        after = disk.after_power_cut(rng)
        crash(restarted)
        again = open_state(after)
        assert contents_of(again, model) == model.contents(), f"seed {seed}"
        again.close()


def test_a_flush_on_a_full_disk_changes_nothing_and_works_when_there_is_space() -> None:
    """A full disk refuses the flush whole; the store stays usable and takes the same flush later."""
    rng = random.Random(3)
    disk = PowerCutDisk()
    store, model = open_state(disk), StateModel()
    disk.space_bytes = 200_000
    refused = 0
    while refused < 5:
        changes = model.random_changes(rng)
        try:
            store.flush(changes)
            model.flush(changes)
        except DiskFull:
            refused += 1
            assert contents_of(store, model) == model.contents()
            disk.space_bytes = None
            store.flush(changes)
            model.flush(changes)
            disk.space_bytes = sum(len(inode.cached) for inode in disk.names.values()) + 50_000
    disk.space_bytes = None
    assert store.checkpoint().complete
    assert contents_of(store, model) == model.contents()
    store.close()
    disk.close()
