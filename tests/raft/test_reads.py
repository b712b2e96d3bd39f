"""Linearizable reads: answered by a leader that proved it still leads, or not at all."""

import pytest

from context_node.raft import BadMessage, MessageKind
from support.raft_cluster import Cluster
from support.raft_messages import entry, message


def test_a_single_voter_answers_at_once() -> None:
    cluster = Cluster((1,))
    cluster.elect()
    assert cluster[1].read_index(b"r1")
    (ready,) = cluster.members[1].turn()
    assert ready.read_states == [(2, b"r1")]


def test_a_leader_answers_after_it_heard_from_a_majority() -> None:
    cluster = Cluster()
    cluster.elect(1)
    index, _ = cluster.propose(b"a")[-1]
    assert cluster[1].read_index(b"r1")
    cluster.members[1].settle()
    assert cluster.members[1].reads == [], "nobody confirmed yet"
    cluster.pump()
    assert cluster.members[1].reads == [(index, b"r1")]


def test_a_follower_answers_with_the_leaders_index() -> None:
    cluster = Cluster()
    cluster.elect(1)
    cluster.tick(3)
    index, _ = cluster.propose(b"a")[-1]
    assert cluster[3].read_index(b"r1")
    cluster.pump()
    assert cluster.members[3].reads == [(index, b"r1")]
    assert cluster.values(3) == [b"a"], "and knows that it is committed"


def test_reads_of_one_turn_are_all_answered() -> None:
    cluster = Cluster()
    cluster.elect(1)
    cluster.tick(3)
    for i in range(20):
        assert cluster[1].read_index(b"leader %d" % i)
        assert cluster[2].read_index(b"follower %d" % i)
    cluster.pump()
    assert {context for _, context in cluster.members[1].reads} == {b"leader %d" % i for i in range(20)}
    assert {context for _, context in cluster.members[2].reads} == {b"follower %d" % i for i in range(20)}


def test_a_leader_that_was_deposed_does_not_answer() -> None:
    cluster = Cluster()
    cluster.elect(1)
    cluster.isolate(1)
    cluster.run_until(lambda: any(cluster[i].is_leader for i in (2, 3)))
    cluster.propose(b"new")
    cluster[1].read_index(b"stale")
    cluster.tick(50)
    cluster.heal()
    cluster.tick(50)
    assert cluster.members[1].reads == []


def test_a_leader_does_not_answer_before_it_committed_in_its_own_term() -> None:
    cluster = Cluster()
    cluster.elect(1)
    cluster.tick(3)
    cluster[1].transfer_leader(2)
    for _ in range(100):
        for member in cluster.up():
            member.settle()
            for to, sent in member.outbox:
                if not (cluster[2].is_leader and to != 2):
                    cluster[to].step(sent)
            member.outbox.clear()
    assert cluster[2].is_leader
    assert not cluster[2].read_index(b"r1"), "told at once that no answer will come"


def test_without_a_leader_a_read_is_refused_at_once() -> None:
    assert not Cluster()[2].read_index(b"r1")


def test_a_context_is_never_empty_and_never_waits_twice() -> None:
    cluster = Cluster()
    cluster.elect(1)
    with pytest.raises(ValueError, match="context"):
        cluster[1].read_index(b"")
    cluster[1].read_index(b"r1")
    with pytest.raises(ValueError, match="waiting"):
        cluster[1].read_index(b"r1")
    assert cluster[1].status().pending_reads == 1


@pytest.mark.parametrize("entries", [(), (entry(0, 0),), (entry(0, 0, b"a"), entry(0, 0, b"b"))])
def test_a_peers_read_without_its_context_is_refused(entries: tuple[bytes, ...]) -> None:
    """raft-rs would index an empty list."""
    cluster = Cluster()
    cluster.elect(1)
    for kind, term in ((MessageKind.READ_INDEX, 0), (MessageKind.READ_INDEX_RESPONSE, 2)):
        with pytest.raises(BadMessage, match="context"):
            cluster[1].step(message(kind, to=1, sender=2, term=term, index=1, entries=entries))
