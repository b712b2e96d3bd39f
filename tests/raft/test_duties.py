"""What the caller owes (the docstring of `context_node.raft`), seen from a caller that does just that."""

from context_node.raft import ConfState, Role
from support.raft_cluster import Cluster
from support.raft_messages import message


def test_a_ready_without_a_record_needs_no_call_of_its_own() -> None:
    cluster = Cluster((1,))
    cluster.elect()
    group = cluster[1]
    group.propose(b"a")
    first = group.ready()
    assert first is not None and first.log_record
    group.read_index(b"r")
    second = group.ready()
    assert second is not None and not second.log_record
    assert group.persisted_number == first.number - 1
    group.persisted(first.number)
    assert group.persisted_number == second.number
    third = group.ready()
    assert third is not None and not third.log_record
    assert group.persisted_number == third.number


def test_messages_of_a_ready_without_a_record_leave_at_once_when_all_before_is_durable() -> None:
    cluster = Cluster()
    cluster.elect(1)
    cluster.tick(3)
    leader, follower = cluster.members[1], cluster.members[2]
    leader.group.tick()
    leader.group.tick()
    leader.turn()
    for to, sent in leader.outbox:
        if to == 2:
            follower.group.step(sent)
    (ready,) = follower.turn()
    assert ready.log_record == b"" and ready.messages and not ready.messages_after_persist


def test_there_is_no_work_where_nothing_happened() -> None:
    cluster = Cluster((1,))
    assert not cluster[1].has_ready() and cluster[1].ready() is None
    assert not cluster[1].tick()


def test_a_replica_that_waits_for_a_snapshot_knows_nobody_and_does_nothing() -> None:
    cluster = Cluster((1,))
    waiting = cluster.add(2)
    waiting.group.campaign()
    for _ in range(100):
        waiting.group.tick()
    assert waiting.group.ready() is None
    assert ConfState.decode(waiting.group.conf_state()) == ConfState()
    assert waiting.group.role == Role.FOLLOWER


def test_the_first_configuration_is_the_same_on_every_replica_without_a_message() -> None:
    cluster = Cluster((1, 2, 3))
    assert {cluster[i].conf_state() for i in (1, 2, 3)} == {ConfState(voters=(1, 2, 3)).encode()}
    assert {cluster[i].term_at(1) for i in (1, 2, 3)} == {1}


def test_a_status_shows_what_the_leader_knows_of_the_others() -> None:
    cluster = Cluster()
    cluster.elect(1)
    cluster.propose(b"a")
    cluster.tick(3)
    status = cluster[1].status()
    assert [p.replica_id for p in status.progress] == [1, 2, 3]
    assert {p.match_index for p in status.progress} == {status.last_index}
    assert all(p.state == "replicate" for p in status.progress)
    assert (status.voters, status.learners, status.joint) == ([1, 2, 3], [], False)
    assert cluster[2].status().progress == []


def test_a_sole_voter_whose_log_is_not_durable_yet_does_not_campaign() -> None:
    """raft-rs asserts that a log is durable when its replica wins, and a sole voter wins in the same call."""
    cluster = Cluster((1,))
    cluster.elect()
    cluster.add(2)
    group, member = cluster[1], cluster.members[1]
    group.propose_conf_change([(2, 2)])
    cluster.pump()
    group.propose(b"not durable yet")
    assert group.ready() is not None
    deposes = group.term + 1
    group.step(message(4, to=1, sender=2, term=deposes, reject=1))
    assert group.role == Role.FOLLOWER
    for _ in range(50):
        group.tick()
    group.campaign()
    assert group.role == Role.FOLLOWER and not group.poisoned
    while (ready := group.ready()) is not None:
        last = ready.number
    group.persisted(last)
    group.campaign()
    assert group.role == Role.LEADER
    member.settle()
