"""The Raft log of all shards: what it keeps, what it lets go, how it fails."""

from pathlib import Path

import apsw
import pytest

from context_node.raft._core import sync_file
from context_node.runtime.databases import StorageFailed, StoreInUse
from context_node.runtime.log_codec import BatchDamaged, pack_batch, unpack_batch
from context_node.runtime.log_rows import HardState, LogIdentity
from context_node.runtime.log_store import LogStore
from support.log_model import CODEC, IDENTITY, record, view_of


def open_log(tmp_path: Path) -> LogStore:
    return LogStore(str(tmp_path / "raft.db"), IDENTITY, CODEC)


def started(tmp_path: Path, shards: int = 3) -> LogStore:
    """A log with replicas 101, 102, … of shards 1, 2, …, all at index 0."""
    store = open_log(tmp_path)
    store.recover()
    for shard in range(1, shards + 1):
        store.install(shard, 100 + shard, "first", (1, 0, 0), 0, 0)
    store.commit()
    return store


def batches(store: LogStore) -> list[int]:
    """The numbers of the batches that are in the file."""
    return [number for (number,) in store._file.database.execute("SELECT batch FROM batches ORDER BY batch")]


def test_a_log_knows_whose_it_is_and_counts_its_starts(tmp_path: Path) -> None:
    first = open_log(tmp_path)
    assert (first.notes.boot, first.notes.identity) == (1, IDENTITY)
    first.close()
    second = LogStore(str(tmp_path / "raft.db"), LogIdentity("other", "other", 0), CODEC)
    assert (second.notes.boot, second.notes.identity) == (2, IDENTITY)
    second.close()


def test_a_second_node_on_the_same_log_is_refused(tmp_path: Path) -> None:
    store = open_log(tmp_path)
    with pytest.raises(StorageFailed, match="locked"):
        open_log(tmp_path)
    store.close()


def test_p12_the_hard_state_comes_back_with_its_entries(tmp_path: Path) -> None:
    store = started(tmp_path)
    store.append([(1, record(1, [11, 12], (2, 101, 0))), (2, record(1, [21]))])
    store.append([(1, record(3, [13], (2, 101, 2)))])
    assert store.commit().records == 3
    store.close()
    found = open_log(tmp_path).recover()
    assert found[1].hard_state == HardState(2, 101, 2)
    assert found[2].hard_state == HardState(1, 0, 0)
    assert view_of(found)[1].entries == ((1, 11), (2, 12), (3, 13))


def test_replica_ids_and_votes_use_all_64_bits(tmp_path: Path) -> None:
    store = started(tmp_path)
    store.install(9, (1 << 64) - 1, "g", (1, (1 << 64) - 1, 5), 5, 1)
    store.commit()
    store.close()
    found = open_log(tmp_path).recover()[9]
    assert (found.replica_id, found.hard_state.vote) == ((1 << 64) - 1, (1 << 64) - 1)


def test_p5_a_later_entry_voids_what_came_after_it_even_if_some_of_it_is_gone(tmp_path: Path) -> None:
    """P5: the batch of a voided record may be deleted while a later voided one stays; that is no gap."""
    store = started(tmp_path)
    store.append([(1, record(1, [1, 2]))])
    store.append([(1, record(3, [3])), (2, record(1, [21]))])
    store.append([(1, record(1, [10, 20, 30], (2, 0, 0)))])
    store.commit()
    store.commit()
    store.append([(3, record(1, [31]))])
    store.commit()
    assert batches(store) == [2, 3, 4]
    store.close()
    found = open_log(tmp_path).recover()
    assert view_of(found)[1].entries == ((1, 10), (2, 20), (3, 30))
    assert view_of(found)[2].entries == ((1, 21),)


def test_p7_a_batch_goes_when_no_shard_needs_it_any_more(tmp_path: Path) -> None:
    store = started(tmp_path)
    for index in range(1, 5):
        store.append([(shard, record(index, [index], (1, 0, index))) for shard in (1, 2)])
    store.commit()
    assert (store.oldest_needed(), store.pinning_shards(), batches(store)) == (1, [1, 2], [1, 2, 3, 4])
    store.truncate(1, 4, 1, (1, 0, 4))
    store.commit()
    assert (store.oldest_needed(), store.pinning_shards(), batches(store)) == (1, [2], [1, 2, 3, 4])
    store.truncate(2, 2, 1, (1, 0, 4))
    store.commit()
    assert (store.oldest_needed(), store.pinning_shards(), batches(store)) == (3, [2], [3, 4])
    assert store.pinning_shards(through_batch=4) == [2]
    store.close()
    found = open_log(tmp_path).recover()
    assert (found[1].truncated_index, found[1].hard_state, found[1].records) == (4, HardState(1, 0, 4), [])
    assert view_of(found)[2].entries == ((3, 3), (4, 4))


def test_an_idle_shard_that_pins_the_log_is_named_and_lets_go(tmp_path: Path) -> None:
    """An old vote of an idle shard holds a batch until its hard state is written to its row."""
    store = started(tmp_path)
    store.append([(3, record(0, [], (4, 103, 0)))])
    for index in range(1, 50):
        store.append([(1, record(index, [index]))])
    store.truncate(1, 49, 1, (1, 0, 49))
    store.commit()
    assert (store.oldest_needed(), store.pinning_shards()) == (1, [3])
    store.truncate(3, 0, 0, (4, 103, 0))
    store.commit()
    assert (store.oldest_needed(), store.pinning_shards()) == (None, [])
    store.commit()
    store.close()
    assert open_log(tmp_path).recover()[3].hard_state == HardState(4, 103, 0)


def test_p6_one_transaction_switches_generation_entries_and_hard_state(tmp_path: Path) -> None:
    store = started(tmp_path)
    store.append([(1, record(1, [1, 2, 3], (2, 101, 1)))])
    store.commit()
    store.install(1, 101, "second", (3, 0, 40), 40, 3)
    store.append([(1, record(41, [41]))])
    store.commit()
    store.close()
    found = open_log(tmp_path).recover()[1]
    assert (found.generation, found.hard_state) == ("second", HardState(3, 0, 40))
    assert view_of({1: found})[1].entries == ((41, 41),)


def test_a_removed_shard_is_forgotten_and_may_begin_anew(tmp_path: Path) -> None:
    store = started(tmp_path)
    store.append([(1, record(1, [1])), (2, record(1, [2]))])
    store.commit()
    store.remove(1)
    store.remove(77)
    store.commit()
    store.close()
    again = open_log(tmp_path)
    assert sorted(again.recover()) == [2, 3]
    again.install(1, 555, "anew", (1, 0, 0), 0, 0)
    again.append([(1, record(1, [9]))])
    again.commit()
    again.close()
    found = open_log(tmp_path).recover()
    assert (found[1].replica_id, view_of(found)[1].entries) == (555, ((1, 9),))


def test_entries_are_read_back_for_a_follower_that_lags(tmp_path: Path) -> None:
    store = started(tmp_path)
    for first in range(1, 41, 4):
        store.append([(2, record(first, [1, 1, 1, 1])), (1, record(first, list(range(first, first + 4))))])
    store.append([(1, record(39, [390], (2, 0, 0)))])
    store.truncate(1, 6, 1, (2, 0, 6))
    store.commit()
    assert (store.first_index(1), store.last_index(1)) == (5, 39)
    slices = store.read(1, 7, 100, bytes_max=1 << 20)
    assert [(it.first, it.last) for it in slices][:2] == [(7, 8), (9, 12)]
    assert [(it.first, it.last) for it in slices][-2:] == [(37, 38), (39, 39)]
    assert [(it.first, it.last) for it in store.read(1, 10, 11, bytes_max=1 << 20)] == [(10, 11)]
    assert len(store.read(1, 7, 100, bytes_max=1)) == 1
    assert store.read(1, 2, 100, bytes_max=1 << 20) == []
    assert store.read(1, 40, 50, bytes_max=1 << 20) == []
    store.close()


def test_what_a_caller_gets_wrong_changes_nothing(tmp_path: Path) -> None:
    store = started(tmp_path)
    store.append([(1, record(1, [1, 2]))])
    store.truncate(1, 1, 1, (3, 0, 1))
    for wrong in (
        [(9, record(1, [1]))],
        [(1, record(4, [4]))],
        [(1, record(1, [1]))],
        [(1, record(0, []))],
        [],
        [(1, record(3, [3])), (1, record(5, [5]))],
    ):
        with pytest.raises(ValueError):
            store.append(wrong)
    with pytest.raises(ValueError, match="ends at 2"):
        store.truncate(1, 3, 1, (3, 0, 3))
    with pytest.raises(ValueError, match="older"):
        store.truncate(1, 2, 1, (2, 0, 2))
    store.commit()
    store.close()
    found = open_log(tmp_path).recover()
    assert view_of(found)[1].entries == ((2, 2),)


@pytest.mark.parametrize("is_gone", [False, True])
def test_p5_voided_entries_stay_void_when_the_log_is_truncated_to_its_end(tmp_path: Path, is_gone: bool) -> None:
    """A follower's entry 2 was replaced by the end of its log, which is truncated to that end; another shard keeps the first batch. It came
    back after a restart, an entry of an older term behind those of a newer one."""
    store = started(tmp_path)
    store.append([(1, record(1, [1, 2], (1, 0, 0))), (2, record(1, [7]))])
    store.commit()
    store.append([(1, record(1, [11], (2, 0, 0)))])
    store.commit()
    store.truncate(1, 1, 2, (2, 0, 1))
    store.commit()
    if is_gone:
        store.append([(2, record(2, [8]))])  # takes the dead batch of the voiding record along
        store.commit()
    store.close()
    found = view_of(open_log(tmp_path).recover())
    assert found[1].entries == () and found[1].truncated == (1, 2)
    assert found[2].entries[0] == (1, 7)


def test_the_store_has_no_other_user_while_it_commits(tmp_path: Path) -> None:
    store = started(tmp_path)
    store.append([(1, record(1, [1]))])
    file = store.seal()
    for call in (lambda: store.append([(1, record(2, [2]))]), store.seal, store.checkpoint, store.close):
        with pytest.raises(StoreInUse):
            call()
    sync_file(file)
    assert store.synced().records == 1
    store.append([(1, record(2, [2]))])
    with pytest.raises(StoreInUse, match="open transaction"):
        store.checkpoint()
    store.close()
    assert view_of(open_log(tmp_path).recover())[1].entries == ((1, 1),)


def test_the_wal_stays_bounded_by_checkpoints(tmp_path: Path) -> None:
    store = started(tmp_path)
    for index in range(1, 400):
        store.append([(1, record(index, [index], padding=60_000))])
        if index % 50 == 0:
            store.truncate(1, index - 10, 1, (1, 0, index))
        store.commit()
        if store.wants_checkpoint:
            store.checkpoint()
    assert store.stats().checkpoints >= 1
    assert (tmp_path / "raft.db-wal").stat().st_size <= 20 << 20
    assert (tmp_path / "raft.db").stat().st_size <= 8 << 20
    store.close()


def test_a_scrub_takes_forgotten_bytes_out_of_the_files(tmp_path: Path) -> None:
    """A purge reaches the log: nothing of a truncated batch is left in database or WAL."""
    store = started(tmp_path)
    secret = int.from_bytes(b"s3cr3t!!", "little")
    for index in range(1, 30):
        store.append([(1, record(index, [secret])), (2, record(index, [index]))])
        store.commit()
    files = [tmp_path / "raft.db", tmp_path / "raft.db-wal"]
    assert any(b"s3cr3t!!" in file.read_bytes() for file in files)
    purged = store.newest_batch
    for shard in store.pinning_shards(through_batch=purged):
        store.truncate(shard, 29, 1, (1, 0, 29))
    store.commit()
    assert store.pinning_shards(through_batch=purged) == []
    store.scrub()
    assert not any(b"s3cr3t!!" in file.read_bytes() for file in files)
    store.append([(1, record(30, [30]))])
    store.commit()
    store.close()
    assert view_of(open_log(tmp_path).recover())[1].entries == ((30, 30),)


def test_a_log_knows_whether_its_last_life_left_something_to_scrub(tmp_path: Path) -> None:
    """Only the start right after a life that said so; a life that ended without a word may have left anything."""
    store = open_log(tmp_path)
    assert store.notes.was_scrubbed, "there was nothing before"
    store.recover()
    store.close()
    store = open_log(tmp_path)
    assert not store.notes.was_scrubbed
    store.notes.note_scrubbed()
    store.commit()
    store.close()
    store = open_log(tmp_path)
    assert store.notes.was_scrubbed
    store.notes.note_scrubbed()
    store.commit()
    store.close()
    with apsw.Connection(str(tmp_path / "raft.db")) as database:
        # An older version counts its starts, and knows nothing of the word.
        database.execute("UPDATE meta SET value=value+1 WHERE key='boot'")
    database.close()
    assert not open_log(tmp_path).notes.was_scrubbed


def test_a_damaged_batch_stops_the_start_and_is_named(tmp_path: Path) -> None:
    """Fail closed: a record that is not what was written is never skipped."""
    store = started(tmp_path)
    store.append([(1, record(1, [1]))])
    store.append([(1, record(2, [2]))])
    store.commit()
    store.close()
    database = apsw.Connection(str(tmp_path / "raft.db"))
    row = bytearray(database.execute("SELECT records FROM batches WHERE batch=2").get)
    row[-3] ^= 1
    database.execute("UPDATE batches SET records=? WHERE batch=2", (bytes(row),))
    database.close()
    damaged = open_log(tmp_path)
    with pytest.raises(StorageFailed, match="batch 2"):
        damaged.recover()
    damaged.close()


def test_a_missing_batch_stops_the_start(tmp_path: Path) -> None:
    store = started(tmp_path)
    for index in range(1, 4):
        store.append([(1, record(index, [index]))])
    store.commit()
    store.close()
    database = apsw.Connection(str(tmp_path / "raft.db"))
    database.execute("DELETE FROM batches WHERE batch=2")
    database.close()
    damaged = open_log(tmp_path)
    with pytest.raises(StorageFailed, match="batch 3, shard 1"):
        damaged.recover()
    damaged.close()


def test_i1_two_votes_in_one_term_stop_the_start(tmp_path: Path) -> None:
    store = started(tmp_path)
    store.install(1, 101, "g", (5, 7, 0), 0, 0)
    store.append([(1, record(0, [], (5, 8, 0)))])
    store.commit()
    store.close()
    damaged = open_log(tmp_path)
    with pytest.raises(StorageFailed, match="two votes in term 5"):
        damaged.recover()
    damaged.close()


def test_a_batch_is_unpacked_as_it_was_packed_and_nothing_else_passes() -> None:
    records = [(1, (1 << 64) - 1, b"one"), (4_294_967_295, 1, b""), (1, 5, b"x" * 70_000)]
    row = pack_batch(7, records)
    assert unpack_batch(7, row) == records
    for wrong in (row[:-1], row + b"x", row[:2], b"", bytes([row[0] ^ 1]) + row[1:]):
        with pytest.raises(BatchDamaged):
            unpack_batch(7, wrong)
    with pytest.raises(BatchDamaged):
        unpack_batch(8, row)
