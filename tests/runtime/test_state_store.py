"""One shard's state on disk: what a flush writes, a read finds, a checkpoint promises, a purge leaves."""

import json
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from context_node.runtime.databases import StorageFailed
from context_node.runtime.state_listing import prefix_end
from context_node.runtime.state_rows import NOTHING_APPLIED, ORDINAL_MAX, Applied, KeyRow, StateChanges, place
from context_node.runtime.state_store import SWEEP_ROWS_PER_FLUSH, StateOptions, StateStore
from support.state_changes import StateModel, contents_of

SHARD = 3


def open_state(tmp_path: Path, name: str = "state.db") -> StateStore:
    return StateStore(str(tmp_path / name), SHARD)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[StateStore]:
    store = open_state(tmp_path)
    yield store
    store.close()


def changes(index: int) -> StateChanges:
    return StateChanges(Applied(index, 1, b"members", index, b"machine"))


def context(ordinal: int, context_id: str, *, status: int = 0, at: int = 0, metadata: object = None) -> tuple:  # type: ignore[type-arg]
    return (ordinal, context_id, status, 1, at, json.dumps(metadata or {}), b"record")


def test_a_new_database_has_applied_nothing(store: StateStore) -> None:
    assert store.applied() == NOTHING_APPLIED
    assert store.context_by_id("missing") is None
    assert store.key(1, "missing") is None
    assert store.list_contexts(limit=10) == []
    assert store.counts().contexts == {}


def test_what_is_flushed_is_found_before_and_after_opening_again(tmp_path: Path) -> None:
    """Random flushes against plain dictionaries, opened again now and then."""
    rng = random.Random(11)
    store, model = open_state(tmp_path), StateModel()
    for number in range(120):
        following = model.random_changes(rng)
        store.flush(following)
        model.flush(following)
        if number % 50 == 0:
            store.close()
            store = open_state(tmp_path)
        if number % 20 == 19:
            assert contents_of(store, model) == model.contents()
    store.close()


def test_another_shards_file_is_refused(tmp_path: Path) -> None:
    open_state(tmp_path).close()
    with pytest.raises(StorageFailed, match="holds shard 3, not 4"):
        StateStore(str(tmp_path / "state.db"), 4)


def test_the_applied_index_never_goes_back(store: StateStore) -> None:
    store.flush(changes(5))
    with pytest.raises(ValueError, match="below 5"):
        store.flush(changes(4))


def test_a_flush_that_cannot_be_written_leaves_nothing_behind(store: StateStore) -> None:
    """Two contexts of one id are a defect of the caller; the transaction is undone whole."""
    wrong = changes(1)
    wrong.contexts = [context(1, "same"), context(2, "same")]
    with pytest.raises(Exception, match="UNIQUE"):
        store.flush(wrong)
    assert store.applied() == NOTHING_APPLIED
    assert store.list_contexts(limit=10) == []
    store.flush(changes(1))


def test_messages_come_by_ranges_and_by_pages(store: StateStore) -> None:
    flush = changes(1)
    for ordinal in (1, 2, ORDINAL_MAX):
        flush.messages += [(place(ordinal, seq), b"%d-%d" % (ordinal, seq), b"info") for seq in range(1, 21)]
    store.flush(flush)
    assert [seq for seq, _, _ in store.messages(2, [(19, 30), (3, 4)])] == [19, 20, 3, 4]
    assert store.messages(ORDINAL_MAX, [(20, 20)]) == [(20, b"%d-20" % ORDINAL_MAX, b"info")]
    assert [seq for seq, _ in store.page(1, 5, 100, 3)] == [5, 6, 7]
    assert store.page(1, 1, 18, 2, reverse=True) == [(18, b"1-18"), (17, b"1-17")]
    assert store.page(7, 0, 1 << 40, 5) == []


@pytest.mark.parametrize(("ordinal", "seq"), [(0, 1), (ORDINAL_MAX + 1, 1), (1, -1), (1, 1 << 32)])
def test_a_message_has_no_place_outside_the_ranges(ordinal: int, seq: int) -> None:
    with pytest.raises(ValueError, match="no place"):
        place(ordinal, seq)


def test_old_keys_go_by_number_and_by_time(store: StateStore) -> None:
    flush = changes(1)
    flush.keys = [(1, f"key-{n}", n, 1000 + n, b"digest", b"reply") for n in range(10)]
    flush.keys += [(2, "other", 1, 5, b"digest", b"reply")]
    flush.keys_below = [(1, 2, 0)]
    store.flush(flush)

    def left() -> list[int]:
        return [n for n in range(10) if store.key(1, f"key-{n}") is not None]

    assert left() == list(range(2, 10))
    following = changes(2)
    following.keys_below = [(1, 0, 1006)]
    store.flush(following)
    assert left() == [6, 7, 8, 9]
    final = changes(3)
    final.keys_below = [(1, 0, 10_000)]
    store.flush(final)
    assert left() == []
    assert store.key(2, "other") == KeyRow(1, 5, b"digest", b"reply")


def listed(store: StateStore, **query: object) -> list[str]:
    return [row.id for row in store.list_contexts(**{"limit": 100, **query})]  # type: ignore[arg-type]


def test_a_list_follows_its_filters_and_order(store: StateStore) -> None:
    flush = changes(1)
    flush.contexts = [
        context(1, "b", at=5),
        context(2, "a/1", at=9, status=1),
        context(3, "a/2", at=7),
        context(4, "a", at=9),
        context(5, "é", at=9),
        context(6, "a0", at=1),
    ]
    store.flush(flush)
    assert listed(store) == ["a", "a/1", "a/2", "a0", "b", "é"]
    assert listed(store, prefix="a/") == ["a/1", "a/2"]
    assert listed(store, status=0) == ["a", "a/2", "a0", "b", "é"]
    assert listed(store, order="-updated_at") == ["a", "a/1", "é", "a/2", "b", "a0"]
    assert listed(store, order="-updated_at", status=0, prefix="a") == ["a", "a/2", "a0"]
    assert listed(store, after="a/1", limit=2) == ["a/2", "a0"]
    assert listed(store, order="-updated_at", after=(9, "a/1")) == ["é", "a/2", "b", "a0"]
    assert store.counts().contexts == {0: 5, 1: 1}


@pytest.mark.parametrize("order", ["id", "-updated_at"])
def test_pages_of_a_list_give_every_context_once(store: StateStore, order: str) -> None:
    flush = changes(1)
    flush.contexts = [context(n, f"id-{n * 7919 % 100:02d}", at=n % 5) for n in range(1, 100)]
    store.flush(flush)
    seen: list[str] = []
    after: str | tuple[int, str] | None = None
    while rows := store.list_contexts(order=order, after=after, limit=7):  # type: ignore[arg-type]
        seen += [row.id for row in rows]
        after = rows[-1].id if order == "id" else (rows[-1].updated_at, rows[-1].id)
    assert seen == listed(store, order=order, limit=1000)
    assert len(set(seen)) == 99


@pytest.mark.parametrize(
    ("value", "asked", "matches"),
    [
        ("text", "text", True),
        ("text", "Text", False),
        ("", "", True),
        (1, "1", True),
        (1, "1.0", True),
        (1.5, "1.5", True),
        (1, "2", False),
        ("1", "1", True),
        ("1", "1.0", False),
        (True, "true", True),
        (True, "1", False),
        (False, "false", True),
        (False, "0", False),
        (None, "null", True),
        ("null", "null", True),
        ({"a": 1}, '{"a":1}', False),
        ([1], "[1]", False),
        (1 << 60, str(1 << 60), True),
        (1 << 60, str((1 << 60) + 1), False),
        (1, "9" * 500, False),
        (1, "[" * 300, False),
        ("ünï ' \" \\", "ünï ' \" \\", True),
    ],
)
def test_metadata_is_compared_by_the_text_of_a_scalar(store: StateStore, value: object, asked: str, matches: bool) -> None:
    flush = changes(1)
    flush.contexts = [context(1, "it", metadata={'k"e.y\\$': value, "other": "x"})]
    store.flush(flush)
    assert listed(store, metadata={'k"e.y\\$': asked}) == (["it"] if matches else [])
    assert listed(store, metadata={'k"e.y\\$': asked, "other": "y"}) == []
    assert listed(store, metadata={"missing": asked}) == []


def test_prefixes_end_where_the_next_text_begins() -> None:
    assert prefix_end("a") == "b"
    assert prefix_end("a\U0010ffff") == "b"
    assert prefix_end("\ud7ff") == "\ue000"
    assert prefix_end("\U0010ffff") is None
    assert prefix_end("") is None


def test_policies_are_kept_by_name(store: StateStore) -> None:
    flush = changes(1)
    flush.policies = [("b", 1, 0, b"one"), ("a", 1, 0, b"two")]
    store.flush(flush)
    following = changes(2)
    following.policies = [("b", 2, 1, b"three")]
    following.deleted_policies = ["a", "missing"]
    store.flush(following)
    assert [tuple(row) for row in store.policies()] == [("b", 2, 1, b"three")]


def test_p7_a_checkpoint_tells_up_to_where_the_state_is_durable(store: StateStore) -> None:
    for index in range(1, 6):
        flush = changes(index)
        flush.contexts = [context(index, f"c{index}")]
        store.flush(flush)
    assert store.wal_bytes > 0
    result = store.checkpoint()
    assert (result.complete, result.applied_index) == (True, 5)
    assert store.wal_bytes == 0


def test_a_checkpoint_that_a_reader_holds_up_is_not_complete(store: StateStore, tmp_path: Path) -> None:
    """The log must not be truncated then."""
    from context_node.runtime.databases import open_beside

    store.flush(changes(1))
    reader = open_beside(str(tmp_path / "state.db"))
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM contexts").fetchall()
    store.flush(changes(2))
    assert not store.checkpoint().complete
    assert not store.scrub()
    reader.execute("COMMIT")
    assert store.checkpoint().complete
    reader.close()


def test_reads_and_flushes_go_on_while_a_worker_checkpoints(tmp_path: Path) -> None:
    """Two connections, commits and checkpoints at the same moments; nothing is lost and neither side fails."""
    store = StateStore(str(tmp_path / "state.db"), SHARD, StateOptions(cache_bytes=1 << 20))
    stop, failures, results = threading.Event(), [], []

    def work() -> None:
        try:
            while not stop.is_set():
                results.append(store.checkpoint())
                store.digest()
        except Exception as error:
            failures.append(error)

    worker = threading.Thread(target=work)
    worker.start()
    for index in range(1, 301):
        flush = changes(index)
        flush.contexts = [context(1, "c", at=index)]
        flush.messages = [(place(1, index * 10 + n), b"x" * 500, b"") for n in range(10)]
        store.flush(flush)
        assert len(store.page(1, index * 10, index * 10 + 9, 100)) == 10
    stop.set()
    worker.join()
    assert failures == []
    assert store.checkpoint().complete
    store.close()
    again = StateStore(str(tmp_path / "state.db"), SHARD)
    assert again.applied().index == 300
    assert len(again.messages(1, [(0, 1 << 31)])) == 3000
    again.close()


def test_a_deleted_context_is_gone_at_once_and_its_rows_follow_in_steps(store: StateStore) -> None:
    flush = changes(1)
    count = SWEEP_ROWS_PER_FLUSH * 2
    flush.contexts = [context(1, "long"), context(2, "other")]
    flush.messages = [(place(o, seq), b"x", b"") for o in (1, 2) for seq in range(1, count + 1)]
    flush.message_ids = [(1, f"m{n}", n, n, 1, b"") for n in range(50)]
    flush.rewrites = [(1, 1, b"r")]
    store.flush(flush)
    deletion = changes(2)
    deletion.deleted_contexts = [1]
    deletion.contexts = [context(3, "long")]
    store.flush(deletion)
    again = store.context_by_id("long")
    assert again is not None and again.ordinal == 3
    left = store._database.execute("SELECT count(*) FROM messages WHERE place>>32=1").get
    assert left == count - SWEEP_ROWS_PER_FLUSH
    for index in range(3, 6):
        store.flush(changes(index))
    for table in ("message_ids", "rewrites", "graves"):
        assert store._database.execute(f"SELECT count(*) FROM {table}").get == 0
    assert len(store.messages(1, [(0, 1 << 31)])) == 0
    assert len(store.messages(2, [(0, 1 << 31)])) == count


def test_a_scrub_takes_purged_bytes_out_of_the_files(store: StateStore, tmp_path: Path) -> None:
    """SEMANTICS, life of a context: after purge, sweep and checkpoint no file holds a byte of it."""
    flush = changes(1)
    flush.contexts = [context(1, "secret-id", metadata={"who": "secret-user"}), context(2, "public")]
    for ordinal in (1, 2):
        text = b"secret-text " * 200 if ordinal == 1 else b"public-text " * 200
        flush.messages += [(place(ordinal, seq), text, b"i") for seq in range(1, 8000)]
    flush.keys = [(1, "secret-key", 1, 1, b"d", b"secret-reply")]
    store.flush(flush)
    assert store.checkpoint().complete
    deletion = changes(2)
    deletion.deleted_contexts = [1]
    store.flush(deletion)
    assert store.scrub()
    for file in tmp_path.iterdir():
        content = file.read_bytes()
        for word in (b"secret-id", b"secret-user", b"secret-text", b"secret-key", b"secret-reply"):
            assert word not in content, f"{word!r} in {file.name}"
    assert len(store.page(2, 0, 1 << 31, 10_000)) == 7999


def test_a_backup_is_a_whole_copy_and_says_how_far_it_is(store: StateStore, tmp_path: Path) -> None:
    rng = random.Random(5)
    model = StateModel()
    for _ in range(40):
        following = model.random_changes(rng)
        store.flush(following)
        model.flush(following)
    target = str(tmp_path / "copy.db")
    applied = store.backup(target)
    assert applied == store.applied()
    later = model.random_changes(rng)
    store.flush(later)
    copy = StateStore(target, SHARD)
    assert contents_of(copy, model) == model.contents()
    copy.flush(later)
    assert copy.digest() == store.digest()
    copy.close()
    assert sorted(path.name for path in tmp_path.iterdir() if "copy" in path.name) == ["copy.db"]


def test_a_backup_that_cannot_be_written_does_not_stop_the_shard(store: StateStore, tmp_path: Path) -> None:
    with pytest.raises(StorageFailed):
        store.backup(str(tmp_path / "missing" / "copy.db"))
    store.flush(changes(1))


def test_digests_are_equal_for_equal_rows_however_they_came(tmp_path: Path) -> None:
    """Two replicas flush at other moments and sweep at other times; their digests agree at the same index."""
    rng = random.Random(23)
    model = StateModel()
    one, other = open_state(tmp_path, "one.db"), open_state(tmp_path, "other.db")
    for _ in range(60):
        following = model.random_changes(rng)
        model.flush(following)
        one.flush(following)
        other.flush(following)
        if rng.random() < 0.2:
            other.scrub()
    assert one.digest() == other.digest()
    last = StateChanges(Applied(model.applied.index + 1, 9, b"members", model.applied.clock_ms, b"m"))
    one.flush(last)
    last.messages = [(place(model.next_ordinal, 1), b"one more", b"")]
    other.flush(last)
    assert one.digest()[0] == other.digest()[0]
    assert one.digest() != other.digest()
    one.close()
    other.close()
