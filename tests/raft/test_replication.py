"""Entries: where they go, when they count, and what a leader refuses."""

import pytest

from context_node.raft import MessageKind, NotLeader, ProposalDropped, peek_message, unpack_log_record
from support.raft_cluster import Cluster


def test_a_proposal_is_committed_and_applied_everywhere_at_the_index_and_term_it_got() -> None:
    cluster = Cluster()
    cluster.elect()
    got = cluster.propose(b"a", b"b", b"c")
    cluster.tick(3)
    for member in cluster.up():
        assert [(i, t) for i, t, _ in member.state.values] == got
        assert cluster.values(member.replica_id) == [b"a", b"b", b"c"]


def test_a_follower_refuses_a_proposal_and_names_the_leader() -> None:
    cluster = Cluster()
    cluster.elect(2)
    cluster.tick(3)
    with pytest.raises(NotLeader) as refused:
        cluster[1].propose(b"x")
    assert (refused.value.group_id, refused.value.replica_id, refused.value.leader_id) == (9, 1, 2)
    cluster.members[1].turn()
    assert not cluster.members[1].outbox, "nothing is forwarded behind the caller's back"


def test_a_proposal_before_any_leader_is_refused() -> None:
    with pytest.raises(NotLeader) as refused:
        Cluster()[1].propose(b"x")
    assert refused.value.leader_id == 0


def test_an_empty_proposal_is_refused() -> None:
    """Empty entries are raft's own."""
    cluster = Cluster((1,))
    cluster.elect()
    with pytest.raises(ValueError, match="no-op"):
        cluster[1].propose(b"")


def test_nothing_is_committed_without_a_majority() -> None:
    cluster = Cluster()
    cluster.elect(1)
    cluster.crash(2)
    cluster.crash(3)
    cluster.propose(b"alone")
    assert cluster.values(1) == []


def test_a_leader_sends_entries_before_its_own_disk_has_them() -> None:
    """P3: sending needs no durability ..."""
    cluster = Cluster()
    cluster.elect(1)
    cluster.tick(3)
    index, _ = cluster[1].propose(b"a")
    (ready,) = cluster.members[1].turn()
    assert ready.last_index == index and ready.must_sync
    assert {to for to, sent in ready.messages if peek_message(sent)[0] == MessageKind.APPEND} == {2, 3}
    assert ready.messages_after_persist == []


def test_a_leaders_own_copy_counts_only_when_it_is_durable() -> None:
    """P3: ... but counting oneself does (I8)."""
    cluster = Cluster((1, 2))
    cluster.elect(1)
    leader, follower = cluster.members[1], cluster.members[2]
    index, _ = leader.group.propose(b"a")
    leader.turn()
    for _, sent in leader.outbox:
        follower.group.step(sent)
    follower.settle()
    for _, sent in follower.outbox:
        leader.group.step(sent)
    leader.turn()
    assert leader.group.commit == index - 1
    leader.sync()
    leader.turn()
    assert leader.group.commit == index
    assert leader.state.values[-1][2] == b"a"


def test_a_single_voter_commits_only_what_is_durable() -> None:
    cluster = Cluster((1,))
    cluster.elect()
    member = cluster.members[1]
    member.group.propose(b"a")
    member.turn()
    assert cluster.values(1) == []
    member.sync()
    member.turn()
    assert cluster.values(1) == [b"a"]


def test_a_follower_acknowledges_only_what_is_durable() -> None:
    """P2."""
    cluster = Cluster()
    cluster.elect(1)
    cluster.tick(3)
    leader, follower = cluster.members[1], cluster.members[2]
    leader.group.propose(b"a")
    leader.turn()
    for to, sent in leader.outbox:
        if to == 2:
            follower.group.step(sent)
    (ready,) = follower.turn()
    assert ready.messages == []
    assert [peek_message(sent)[0] for _, sent in ready.messages_after_persist] == [MessageKind.APPEND_RESPONSE]


def test_the_next_batch_gathers_while_one_is_being_synced() -> None:
    """P12: several Readies may be out at once; they are persisted in order."""
    cluster = Cluster((1,))
    cluster.elect()
    group = cluster[1]
    numbers = []
    for data in (b"a", b"b", b"c"):
        group.propose(data)
        ready = group.ready()
        assert ready is not None and ready.must_sync
        numbers.append(ready.number)
    group.persisted(numbers[1])
    ready = group.ready()
    assert ready is not None
    assert [data for _, _, _, data in ready.committed] == [b"a", b"b"]
    group.applied(ready.committed[-1][0])
    group.persisted(numbers[2])
    ready = group.ready()
    assert ready is not None and [data for _, _, _, data in ready.committed] == [b"c"]


def test_many_proposals_of_one_turn_travel_as_one_message_a_follower() -> None:
    cluster = Cluster()
    cluster.elect(1)
    cluster.tick(3)
    for i in range(50):
        cluster[1].propose(b"%d" % i)
    (ready,) = cluster.members[1].turn()
    assert sorted(to for to, _ in ready.messages) == [2, 3]
    cluster.pump()
    cluster.tick(3)
    assert cluster.values(3) == [b"%d" % i for i in range(50)]


def test_a_message_holds_no_more_entry_bytes_than_the_limit() -> None:
    cluster = Cluster(max_entry_bytes_per_message=1000)
    cluster.elect(1)
    cluster.crash(3)
    for _ in range(20):
        cluster.propose(b"x" * 300)
    cluster.restart(3)
    cluster.sent.clear()
    cluster.run_until(lambda: len(cluster.values(3)) == 20)
    sizes = [len(sent) for _, to, sent in cluster.sent if to == 3]
    assert 700 < max(sizes) < 1300


def test_uncommitted_bytes_are_bounded() -> None:
    cluster = Cluster(max_uncommitted_bytes=1000, max_entry_bytes_per_message=1000)
    cluster.elect(1)
    cluster.crash(2)
    cluster.crash(3)
    group = cluster[1]
    accepted = 0
    with pytest.raises(ProposalDropped) as dropped:
        for _ in range(100):
            group.propose(b"x" * 300)
            accepted += 1
    assert accepted == 3
    assert "uncommitted" in dropped.value.reason
    assert group.status().uncommitted_bytes == 900
    last = group.last_index
    cluster.restart(2)
    cluster.run_until(lambda: cluster.values(1) == [b"x" * 300] * 3)
    assert group.last_index == last
    group.propose(b"y")


def test_a_lagging_follower_catches_up_from_the_log() -> None:
    cluster = Cluster()
    cluster.elect(1)
    cluster.crash(3)
    cluster.propose(*(b"%d" % i for i in range(200)))
    cluster.restart(3)
    cluster.run_until(lambda: len(cluster.values(3)) == 200)
    assert cluster.values(3) == cluster.values(1)


def test_a_conflicting_tail_is_replaced_also_on_disk() -> None:
    """P5: an entry of a newer term at i discards everything from i on."""
    cluster = Cluster()
    cluster.elect(1)
    cluster.propose(b"kept")
    cluster.isolate(1)
    for data in (b"lost 1", b"lost 2", b"lost 3"):
        cluster[1].propose(data)
    cluster.members[1].settle()
    cluster.run_until(lambda: any(cluster[i].is_leader for i in (2, 3)))
    cluster.run_until(lambda: not cluster[1].is_leader)
    cluster.propose(b"won")
    cluster.heal()
    cluster.run_until(lambda: cluster.values(1) == [b"kept", b"won"])
    cluster.crash(1)
    cluster.restart(1)
    cluster.run_until(lambda: cluster.values(1) == [b"kept", b"won"])


def test_what_is_given_out_as_committed_is_bounded_in_bytes() -> None:
    cluster = Cluster((1,), max_committed_bytes_per_ready=1000)
    cluster.elect()
    member = cluster.members[1]
    for _ in range(10):
        member.group.propose(b"x" * 400)
    member.turn()
    member.sync()
    readies = member.turn()
    assert len(readies) > 3
    assert all(sum(len(data) for _, _, _, data in ready.committed) <= 1000 for ready in readies)
    assert len(cluster.values(1)) == 10


def test_a_commit_index_alone_needs_no_record() -> None:
    cluster = Cluster((1,))
    cluster.elect()
    member = cluster.members[1]
    member.group.propose(b"a")
    member.turn()
    member.sync()
    (ready,) = member.turn()
    assert ready.hard_state is not None and ready.log_record == b"" and not ready.must_sync
    member.group.propose(b"b")
    (ready,) = member.turn()
    hard_state, first, entries = unpack_log_record(ready.log_record)
    assert hard_state == (2, 1, 3), "it travels with the next record"
    assert first == 4 and [entry[3] for entry in entries] == [b"b"]
