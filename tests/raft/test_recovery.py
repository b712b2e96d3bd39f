"""Starting again: from packed records to the same log, or not at all."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from context_node.raft import ConfState, CorruptRecord, EntryKind, Group, record_bounds, unpack_log_record
from support.raft_cluster import Cluster

ONE = ConfState(voters=(1,)).encode()


def start(**overrides: object) -> Group:
    given_values: dict[str, object] = {
        "group_id": 9,
        "replica_id": 1,
        "seed": 1,
        "term": 1,
        "commit": 1,
        "snapshot_index": 1,
        "snapshot_term": 1,
        "applied": 1,
        "conf_state": ONE,
    }
    return Group(**(given_values | overrides))  # type: ignore[arg-type]


def records_of(*batches: list[bytes]) -> list[bytes]:
    """The records that a single voter writes for these batches, its election first."""
    group = start()
    group.campaign()
    records = []
    for batch in [[], *batches]:
        for data in batch:
            group.propose(data)
        while (ready := group.ready()) is not None:
            if ready.log_record:
                records.append(ready.log_record)
                group.persisted(ready.number)
            for index, *_ in ready.committed:
                group.applied(index)
    return records


def test_a_record_tells_what_is_in_it() -> None:
    election, first, second = records_of([b"a", b"b"], [b"c"])
    assert unpack_log_record(election) == ((2, 1, 1), 2, [(2, 2, EntryKind.NORMAL, b"", b"")])
    hard_state, index, entries = unpack_log_record(first)
    assert hard_state == (2, 1, 2)
    assert index == 3
    assert entries == [(3, 2, EntryKind.NORMAL, b"a", b""), (4, 2, EntryKind.NORMAL, b"b", b"")]
    assert record_bounds(first) == (3, 4, True)
    assert record_bounds(second) == (5, 5, True)


def test_a_replica_starts_again_with_the_same_log() -> None:
    records = records_of([b"a", b"b"], [b"c"])
    group = start(records=records)
    status = group.status()
    assert (status.term, status.vote, status.last_index) == (2, 1, 5)
    assert [group.term_at(i) for i in range(1, 7)] == [1, 2, 2, 2, 2, None]


def test_what_was_committed_but_not_applied_is_given_out_again() -> None:
    group = start(records=records_of([b"a", b"b"], [b"c"]), commit=4, applied=2)
    ready = group.ready()
    assert ready is not None
    assert [(index, data) for index, _, _, data in ready.committed] == [(3, b"a"), (4, b"b")]


def test_a_later_record_replaces_the_tail_of_an_earlier_one() -> None:
    """P5."""
    cluster = Cluster()
    cluster.elect(1)
    cluster.isolate(1)
    cluster[1].propose(b"lost")
    cluster[1].propose(b"lost too")
    cluster.members[1].settle()
    cluster.run_until(lambda: any(cluster[i].is_leader for i in (2, 3)))
    cluster.run_until(lambda: not cluster[1].is_leader)
    cluster.heal()
    cluster.run_until(lambda: cluster[1].term_at(cluster[1].last_index) == cluster[1].term)
    before = [cluster[1].term_at(i) for i in range(1, 10)]
    cluster.crash(1)
    cluster.restart(1)
    assert [cluster[1].term_at(i) for i in range(1, 10)] == before


def test_entries_up_to_the_truncation_point_are_skipped() -> None:
    records = records_of([b"a", b"b"], [b"c"])
    group = start(records=records, snapshot_index=3, snapshot_term=2, applied=3, commit=3)
    assert (group.status().first_index, group.status().last_index) == (4, 5)


def test_the_checkpointed_hard_state_counts_when_the_records_are_gone() -> None:
    group = start(term=7, vote=1, commit=5, snapshot_index=5, snapshot_term=6, applied=5)
    status = group.status()
    assert (status.term, status.vote, status.commit, status.last_index) == (7, 1, 5, 5)


def test_the_newest_hard_state_wins_wherever_it_stands() -> None:
    records = records_of([b"a"])
    assert start(records=records, term=9, vote=1).status().term == 9
    assert start(records=records, term=1, vote=0).status().term == 2


def test_two_votes_in_one_term_are_not_accepted() -> None:
    """I2."""
    with pytest.raises(CorruptRecord, match="two votes in term 2"):
        start(records=records_of([b"a"]), term=2, vote=3)


def test_a_gap_between_records_is_not_accepted() -> None:
    records = records_of([b"a"], [b"b"], [b"c"])
    with pytest.raises(CorruptRecord, match="starts at entry"):
        start(records=[records[0], records[2]])


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        ({"commit": 9}, "last index"),
        ({"applied": 2}, "applied"),
        ({"applied": 0}, "applied"),
        ({"snapshot_term": 0}, "snapshot_term"),
        ({"snapshot_term": 2}, "snapshot_term"),
        ({"replica_id": 0}, "id"),
        ({"election_ticks": 2, "heartbeat_ticks": 2}, "election"),
        ({"heartbeat_ticks": 0}, "heartbeat"),
        ({"max_inflight_messages": 0}, "inflight"),
        ({"max_uncommitted_bytes": 0}, "uncommitted"),
        ({"conf_state": b""}, "members"),
        ({"conf_state": b"\xff"}, "ends early"),
        ({"snapshot_index": 0, "snapshot_term": 0, "applied": 0, "commit": 0}, "snapshot_index"),
    ],
)
def test_figures_that_contradict_each_other_are_refused(overrides: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        start(**overrides)


@given(st.data())
def test_a_damaged_record_is_never_taken_for_whole(data: st.DataObject) -> None:
    (_, record) = records_of([b"some data", b"more of it"])
    place = data.draw(st.integers(0, len(record) - 1))
    damaged = bytearray(record)
    damaged[place] ^= data.draw(st.integers(1, 255))
    cut = record[: data.draw(st.integers(0, len(record) - 1))]
    for bad in (bytes(damaged), cut, record + b"\0"):
        with pytest.raises(CorruptRecord):
            unpack_log_record(bad)
        with pytest.raises(CorruptRecord):
            start(records=[bad])


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_no_record(noise: bytes) -> None:
    with pytest.raises(CorruptRecord):
        unpack_log_record(noise)
    try:
        record_bounds(noise)
    except CorruptRecord:
        pass


@given(st.lists(st.lists(st.binary(min_size=1, max_size=50), min_size=1, max_size=5), max_size=6))
def test_records_give_back_exactly_what_was_proposed(batches: list[list[bytes]]) -> None:
    records = records_of(*batches)
    found = [entry[3] for record in records[1:] for entry in unpack_log_record(record)[2]]
    assert found == [data for batch in batches for data in batch]
    group = start(records=records)
    group.campaign()
    applied = []
    while (ready := group.ready()) is not None:
        group.persisted(ready.number)
        applied += [data for _, _, _, data in ready.committed if data]
    assert applied == found


@pytest.mark.parametrize("crash_before_sync", [True, False])
def test_every_replica_crashes_at_once_and_nothing_acknowledged_is_lost(crash_before_sync: bool) -> None:
    """I12."""
    cluster = Cluster()
    leader = cluster.elect()
    cluster.propose(b"acknowledged")
    leader.group.propose(b"in flight")
    leader.turn()
    if not crash_before_sync:
        leader.sync()
    for replica_id in (1, 2, 3):
        cluster.crash(replica_id)
    for replica_id in (1, 2, 3):
        cluster.restart(replica_id)
    cluster.elect()
    cluster.propose(b"next")
    cluster.tick(3)
    assert cluster.values(1)[0] == b"acknowledged"
    assert cluster.values(1)[-1] == b"next"
    assert cluster.values(1) == cluster.values(2) == cluster.values(3)


def test_the_log_in_memory_is_charged_and_truncated() -> None:
    cluster = Cluster((1,))
    cluster.elect()
    group, member = cluster[1], cluster.members[1]
    empty = group.log_bytes
    for _ in range(10):
        group.propose(b"x" * 1000)
    cluster.pump()
    assert group.log_bytes > empty + 10_000
    member.compact()
    assert group.log_bytes == 0
    assert group.status().first_index == group.last_index + 1
    assert group.term_at(group.last_index) == 2, "the term just below the log stays known"
    cluster.propose(b"on")
    cluster.crash(1)
    cluster.restart(1)
    cluster.elect()
    assert cluster.values(1)[-1] == b"on"


def test_the_log_is_not_truncated_above_what_is_applied() -> None:
    cluster = Cluster((1,))
    cluster.elect()
    with pytest.raises(ValueError, match="above applied"):
        cluster[1].compact(cluster[1].applied_index + 1)


def test_a_caller_that_gets_the_order_wrong_is_told() -> None:
    cluster = Cluster((1,))
    cluster.elect()
    group = cluster[1]
    with pytest.raises(ValueError, match="not given out"):
        group.persisted(1000)
    with pytest.raises(ValueError, match="applied"):
        group.applied(group.commit + 1)
    with pytest.raises(ValueError, match="applied"):
        group.applied(group.applied_index - 1)
    group.propose(b"a")
    assert not group.poisoned
