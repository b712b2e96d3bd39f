"""P1, P9, P10: what the log store committed outlives the loss of power, of the process and of single syncs."""

import random

import apsw
import pytest

from context_node.runtime.databases import DiskFull, StorageError, StorageFailed, Synchronous
from context_node.runtime.log_file import LogOptions
from context_node.runtime.log_store import LogStore
from support.log_model import CODEC, IDENTITY, Model, Replica, random_step, record, view_of
from support.power_cut_vfs import PowerCutDisk

pytestmark = pytest.mark.crash

PATH = "raft.db"
View = dict[int, Replica]


def open_log(disk: PowerCutDisk, synchronous: Synchronous = "FULL") -> LogStore:
    return LogStore(PATH, IDENTITY, CODEC, LogOptions(synchronous=synchronous, disk=disk, wal_bytes_max=64 * 1024))


def crash(store: LogStore | None) -> None:
    """Let go of a store whose disk is gone."""
    if store is not None:
        try:
            store.close()
        except StorageError:
            pass


def run_until_the_power_goes(disk: PowerCutDisk, rng: random.Random, synchronous: Synchronous) -> tuple[View, View]:
    """One life: work at random until the disk stops. Returns what was committed, and what the last commit would add."""
    committed: View = {}
    attempted: View = {}
    store: LogStore | None = None
    model = Model()
    try:
        store = open_log(disk, synchronous)
        assert store.recover() == {}
        for _ in range(60):
            for _ in range(rng.randint(1, 3)):
                random_step(store, model, rng)
            attempted = model.view()
            store.commit()
            committed = attempted
            if store.wants_checkpoint or rng.random() < 0.1:
                store.checkpoint()
            elif rng.random() < 0.03:
                store.scrub()
    except StorageError:
        pass
    crash(store)
    return committed, attempted


def recovered_after_power_cut(disk: PowerCutDisk, rng: random.Random) -> View:
    """Start on what reached the platter, and start once more after another cut at once: nothing may change (P9)."""
    second = disk.after_power_cut(rng)
    store = open_log(second)
    found = view_of(store.recover())
    third = second.after_power_cut(rng)
    crash(store)
    again = open_log(third)
    assert view_of(again.recover()) == found
    again.close()
    second.close()
    third.close()
    return found


@pytest.mark.parametrize("chunk", range(8))
def test_p1_every_committed_batch_outlives_a_power_cut(chunk: int) -> None:
    """P1, P9: 160 power cuts at random operations; all that was committed is there, in order, nothing else."""
    for seed in range(chunk * 20, chunk * 20 + 20):
        rng = random.Random(seed)
        disk = PowerCutDisk(cut_at=rng.randint(1, 700))
        committed, attempted = run_until_the_power_goes(disk, rng, "FULL")
        found = recovered_after_power_cut(disk, rng)
        disk.close()
        assert found in (committed, attempted), f"seed {seed}"


def test_without_syncs_the_same_run_loses_committed_batches() -> None:
    """The harness sees a loss where there is one: with synchronous=OFF most runs lose something or cannot start."""
    lost = 0
    for seed in range(40):
        rng = random.Random(seed)
        disk = PowerCutDisk(cut_at=rng.randint(100, 700))
        committed, attempted = run_until_the_power_goes(disk, rng, "OFF")
        try:
            found = recovered_after_power_cut(disk, rng)
        except (StorageError, apsw.Error):
            found = {}
        disk.close()
        lost += found not in (committed, attempted)
    print(f"\nsynchronous=OFF: {lost} of 40 runs lost committed batches")
    assert lost >= 20


def test_one_commit_is_one_sync() -> None:
    """A batch for any number of shards costs one fsync."""
    disk = PowerCutDisk()
    store = open_log(disk)
    store.recover()
    for shard in range(32):
        store.install(shard, shard + 1, "g", (1, 0, 0), 0, 0)
    store.commit()
    before = sum(disk.syncs.values())
    for index in range(1, 101):
        store.append([(shard, record(index, [index])) for shard in range(32)])
        store.commit()
    syncs = sum(disk.syncs.values()) - before
    print(f"\n{syncs / 100:.2f} fsyncs per commit of 32 shards")
    assert syncs == 100
    store.close()
    disk.close()


def test_p10_a_failed_sync_poisons_the_store_and_a_new_start_loses_nothing() -> None:
    """P10: after a failed fsync every call raises; committed batches outlive even a later power cut, although the
    pages that failed look clean."""
    for seed in range(40):
        rng = random.Random(seed)
        disk = PowerCutDisk()
        store = open_log(disk)
        store.recover()
        model = Model()
        for _ in range(rng.randint(1, 12)):
            random_step(store, model, rng)
            store.commit()
        committed = model.view()
        random_step(store, model, rng)
        disk.failing_syncs = 1
        with pytest.raises(StorageFailed):
            store.commit()
        for call in (store.commit, store.checkpoint, lambda store=store: store.append([(0, b"")])):
            with pytest.raises(StorageFailed):
                call()
        store.close()

        restarted = open_log(disk)
        found = view_of(restarted.recover())
        assert found in (committed, model.view()), f"seed {seed}"
        for _ in range(3):
            random_step(restarted, model := _as_model(found), rng)
            restarted.commit()
            found = model.view()
        assert recovered_after_power_cut(disk, rng) == found, f"seed {seed}"
        crash(restarted)
        disk.close()


def test_p10_a_failed_sync_of_a_checkpoint_poisons_the_store_and_loses_nothing() -> None:
    """P10: the WAL is kept, checked, written again and carried over by the next start."""
    rng = random.Random(7)
    disk = PowerCutDisk()
    store = open_log(disk)
    store.recover()
    model = Model()
    for _ in range(30):
        random_step(store, model, rng)
        store.commit()
    disk.failing_syncs = 1
    with pytest.raises(StorageFailed):
        store.checkpoint()
    with pytest.raises(StorageFailed):
        store.commit()
    store.close()
    restarted = open_log(disk)
    assert view_of(restarted.recover()) == model.view()
    restarted.checkpoint()
    assert recovered_after_power_cut(disk, rng) == model.view()
    crash(restarted)
    disk.close()


def test_a_full_disk_says_so_and_the_store_opens_again_with_everything_committed() -> None:
    """P10: ENOSPC is `DiskFull`; with space back, opening recovers exactly the committed batches."""
    for seed in range(20):
        rng = random.Random(seed)
        disk = PowerCutDisk()
        store = open_log(disk)
        store.recover()
        model = Model()
        for _ in range(5):
            random_step(store, model, rng)
            store.commit()
        disk.space_bytes = 150_000
        committed = model.view()
        with pytest.raises(DiskFull):
            for _ in range(1000):
                random_step(store, model, rng)
                attempted = model.view()
                store.commit()
                committed = attempted
        with pytest.raises(StorageFailed):
            store.commit()
        store.close()
        disk.space_bytes = None
        restarted = open_log(disk)
        assert view_of(restarted.recover()) == committed, f"seed {seed}"
        restarted.close()
        disk.close()


def _as_model(view: View) -> Model:
    from support.log_model import Shard

    model = Model()
    for shard, it in view.items():
        model.shards[shard] = Shard(it.replica_id, it.generation, it.hard_state, it.truncated, dict(it.entries))
    return model


def test_p9_a_power_cut_while_a_start_saves_the_log_again_loses_nothing() -> None:
    """P9: what the last life committed is never overwritten in place: a sector that is torn then has no other copy."""
    committed = tuple((at, at) for at in range(1, 101))
    for seed in range(150):
        rng = random.Random(seed)
        disk = PowerCutDisk()
        store = open_log(disk)
        store.recover()
        store.install(1, 7, "g", (1, 0, 0), 0, 0)
        store.commit()
        for index in range(1, 101):
            store.append([(1, record(index, [index]))])
            store.commit()
        second = disk.after_process_kill()
        crash(store)
        second.cut_at = rng.randint(1, 8)
        restarted: LogStore | None = None
        try:
            restarted = open_log(second)
            restarted.recover()
        except StorageError:
            pass
        third = second.after_power_cut(rng)
        crash(restarted)
        again = open_log(third)
        assert view_of(again.recover())[1].entries == committed, f"seed {seed}"
        again.close()
        for each in (disk, second, third):
            each.close()
