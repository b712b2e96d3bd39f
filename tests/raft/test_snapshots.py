"""Snapshots: for followers that need what was truncated away."""

import pytest

from context_node.raft import BadMessage, ConfState, MessageKind, Role, peek_message
from support.raft_cluster import Cluster, Member
from support.raft_messages import message, snapshot

THREE = ConfState(voters=(1, 2, 3)).encode()


def lagging() -> Cluster:
    """A cluster whose replica 3 is back after the others truncated what it needs."""
    cluster = Cluster()
    cluster.elect(1)
    cluster.crash(3)
    cluster.propose(*(b"%d" % i for i in range(30)))
    cluster.tick(3)
    cluster.members[1].compact()
    cluster.members[2].compact()
    cluster.restart(3)
    return cluster


def test_a_leader_says_that_a_snapshot_is_wanted_and_which_index_it_needs() -> None:
    cluster = lagging()
    leader = cluster.members[1]
    cluster.run_until(lambda: leader.group.snapshot_requested)
    assert leader.group.snapshot_requested == leader.disk.start[0]
    assert leader.group.status().snapshot_requested == leader.disk.start[0]
    leader.offer_snapshot()
    assert leader.group.snapshot_requested == 0


def test_a_lagging_follower_gets_a_snapshot_and_then_the_log() -> None:
    cluster = lagging()
    leader = cluster.members[1]
    cluster.run_until(lambda: leader.group.snapshot_requested)
    leader.offer_snapshot()
    cluster.propose(b"meanwhile")
    cluster.run_until(lambda: cluster.values(3) == cluster.values(1))
    assert cluster.values(3)[-1] == b"meanwhile" and len(cluster.values(3)) == 31
    assert ConfState.decode(cluster[3].conf_state()) == ConfState(voters=(1, 2, 3))
    cluster.crash(3)
    cluster.restart(3)
    cluster.run_until(lambda: cluster.values(3) == cluster.values(1))


def heartbeat(leader: Member, follower: Member) -> None:
    """One exchange of heartbeats; what the leader does about it stays in its next Ready."""
    leader.group.tick()
    leader.group.tick()
    leader.settle()
    for sender, receiver in ((leader, follower), (follower, leader)):
        for to, sent in sender.outbox:
            if to == receiver.replica_id:
                receiver.group.step(sent)
        sender.outbox.clear()
        follower.settle()


def test_the_ready_tells_which_messages_carry_a_snapshot() -> None:
    cluster = lagging()
    leader = cluster.members[1]
    cluster.run_until(lambda: leader.group.snapshot_requested)
    leader.offer_snapshot()
    heartbeat(leader, cluster.members[3])
    (ready,) = leader.turn()
    ((to, sent),) = ready.messages
    assert (to, peek_message(sent)[0]) == (3, MessageKind.SNAPSHOT)
    assert ready.snapshot_targets == [(3, leader.state.index)]


def test_a_lost_snapshot_is_sent_again_once_it_is_reported() -> None:
    cluster = lagging()
    leader = cluster.members[1]
    cluster.run_until(lambda: leader.group.snapshot_requested)
    leader.offer_snapshot()
    heartbeat(leader, cluster.members[3])
    leader.settle()
    leader.outbox.clear()
    (progress,) = [p for p in leader.group.status().progress if p.replica_id == 3]
    assert (progress.state, progress.pending_snapshot, progress.paused) == ("snapshot", leader.state.index, True)
    cluster.tick(20)
    assert cluster.values(3) == [], "a leader waits to hear what became of it"
    leader.group.report_snapshot(3, False)
    cluster.run_until(lambda: cluster.values(3) == cluster.values(1))


def test_nothing_else_happens_while_a_snapshot_is_being_installed() -> None:
    """P6: no Ready, no campaign, no transfer, until it is durable; raft-rs would panic."""
    cluster = Cluster()
    follower = cluster.members[3]
    arrives = message(MessageKind.SNAPSHOT, to=3, sender=1, term=5, snapshot=snapshot(40, 4, THREE, b"[]"))
    assert follower.group.step(arrives)
    for _ in range(50):
        follower.group.tick()
    (ready,) = follower.turn()
    assert ready.snapshot == (40, 4, THREE, b"[]")
    assert ready.log_record and ready.must_sync and ready.committed == [] and ready.messages == []
    for _ in range(50):
        follower.group.tick()
    follower.group.campaign()
    follower.group.step(message(MessageKind.TIMEOUT_NOW, to=3, sender=1, term=5))
    assert follower.group.ready() is None and not follower.group.has_ready()
    assert follower.group.role == Role.FOLLOWER and not follower.group.poisoned
    follower.sync()
    assert (follower.group.applied_index, follower.group.commit) == (40, 40)
    ((to, answer),) = follower.outbox
    assert to == 1 and peek_message(answer)[0] == MessageKind.APPEND_RESPONSE
    follower.outbox.clear()
    for _ in range(50):
        follower.group.tick()
    follower.turn()
    assert follower.group.role == Role.PRE_CANDIDATE, "and now it may campaign again"


def test_a_crash_before_the_snapshot_is_durable_forgets_it_whole() -> None:
    cluster = Cluster()
    follower = cluster.members[3]
    follower.group.step(message(MessageKind.SNAPSHOT, to=3, sender=1, term=5, snapshot=snapshot(40, 4, THREE, b"[]")))
    follower.turn()
    cluster.crash(3)
    cluster.restart(3)
    assert (follower.group.last_index, follower.group.term, follower.group.applied_index) == (1, 1, 1)


def test_a_snapshot_that_is_not_newer_only_tells_what_is_committed() -> None:
    cluster = Cluster()
    cluster.elect(1)
    cluster.propose(b"a")
    cluster.tick(3)
    group = cluster[3]
    index, term = group.last_index, group.term
    group.step(message(MessageKind.SNAPSHOT, to=3, sender=1, term=term, snapshot=snapshot(index, term, THREE, b"[]")))
    readies = cluster.members[3].turn()
    assert all(ready.snapshot is None for ready in readies)
    assert cluster.values(3) == [b"a"]


def test_a_snapshot_that_was_withdrawn_is_not_sent() -> None:
    cluster = lagging()
    leader = cluster.members[1]
    leader.offer_snapshot()
    leader.group.clear_snapshot()
    cluster.run_until(lambda: leader.group.snapshot_requested)


def test_an_offered_snapshot_must_be_of_what_is_applied() -> None:
    cluster = Cluster()
    cluster.elect(1)
    group = cluster[1]
    applied, term = group.applied_index, group.term
    with pytest.raises(ValueError, match="snapshot"):
        group.set_snapshot(applied + 1, term, THREE, b"")
    with pytest.raises(ValueError, match="term"):
        group.set_snapshot(applied, term + 1, THREE, b"")
    with pytest.raises(ValueError, match="members"):
        group.set_snapshot(applied, term, b"", b"")


@pytest.mark.parametrize(
    ("index", "term", "members"),
    [
        (0, 4, THREE),
        (40, 0, THREE),
        (40, 6, THREE),
        (2**63, 4, THREE),
        (40, 4, b""),
        (40, 4, b"\x08\x03\x10\x03"),
        (40, 4, b"\x08\x00"),
    ],
)
def test_a_snapshot_that_makes_no_sense_is_refused(index: int, term: int, members: bytes) -> None:
    group = Cluster()[3]
    bad = message(MessageKind.SNAPSHOT, to=3, sender=1, term=5, snapshot=snapshot(index, term, members))
    with pytest.raises(BadMessage):
        group.step(bad)
    assert not group.poisoned and group.term == 1
