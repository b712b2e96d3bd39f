"""Leaders: how they come, how they go, and that a vote is durable before it is told."""

import pytest

from context_node.raft import MessageKind, NotLeader, Role, peek_message
from support.raft_cluster import Cluster
from support.raft_messages import message


def test_a_group_of_one_leads_at_once() -> None:
    cluster = Cluster((1,))
    cluster[1].campaign()
    cluster.pump()
    assert cluster[1].is_leader
    assert cluster[1].role == Role.LEADER
    assert cluster[1].leader_id == 1
    assert cluster.members[1].state.index == 2, "its no-op is committed and applied"


def test_a_group_of_one_leads_by_itself_after_a_timeout() -> None:
    cluster = Cluster((1,))
    cluster.run_until(lambda: cluster[1].is_leader, ticks_max=20)


def test_three_replicas_elect_one_leader_whom_all_know() -> None:
    cluster = Cluster()
    leader = cluster.elect()
    cluster.tick(3)
    assert {cluster[i].leader_id for i in (1, 2, 3)} == {leader.replica_id}
    assert len({cluster[i].term for i in (1, 2, 3)}) == 1
    assert sum(cluster[i].is_leader for i in (1, 2, 3)) == 1


@pytest.mark.parametrize("voters", [2, 4, 5])
def test_every_size_of_group_elects(voters: int) -> None:
    cluster = Cluster(range(1, voters + 1))
    cluster.elect()
    cluster.propose(b"a")
    cluster.tick(3)
    assert all(cluster.values(i) == [b"a"] for i in range(1, voters + 1))


def test_half_of_four_replicas_elect_nobody() -> None:
    cluster = Cluster((1, 2, 3, 4))
    cluster.crash(3)
    cluster.crash(4)
    cluster.tick(100)
    assert cluster.leader() is None


def test_a_vote_is_durable_before_it_is_told() -> None:
    """P1: the vote's record and the message that tells it belong together, and the message waits."""
    cluster = Cluster()
    voter = cluster.members[2]
    voter.group.step(message(MessageKind.REQUEST_VOTE, to=2, sender=1, term=7, log_term=1, index=1))
    (ready,) = voter.turn()
    assert ready.hard_state == (7, 1, 1)
    assert ready.log_record and ready.must_sync
    assert ready.messages == []
    ((to, told),) = ready.messages_after_persist
    assert to == 1 and peek_message(told)[0] == MessageKind.REQUEST_VOTE_RESPONSE


def test_a_request_for_votes_waits_for_the_candidates_own_vote() -> None:
    """P1: the candidate's term and vote are durable before anybody is asked."""
    cluster = Cluster()
    candidate = cluster.members[1]
    candidate.group.step(message(MessageKind.TIMEOUT_NOW, to=1, sender=2, term=1))
    (ready,) = candidate.turn()
    assert ready.hard_state == (2, 1, 1)
    assert ready.messages == []
    kinds = {peek_message(told)[0] for _, told in ready.messages_after_persist}
    assert kinds == {MessageKind.REQUEST_VOTE}


def test_asking_whether_one_would_win_changes_nothing_durable() -> None:
    """P1: PreVote."""
    cluster = Cluster()
    cluster[1].campaign()
    (ready,) = cluster.members[1].turn()
    assert ready.log_record == b"" and ready.hard_state is None
    assert {peek_message(told)[0] for _, told in ready.messages} == {MessageKind.REQUEST_PRE_VOTE}
    assert cluster[1].term == 1


def test_a_vote_survives_a_crash_after_the_reply() -> None:
    cluster = Cluster()
    voter = cluster.members[2]
    voter.group.step(message(MessageKind.REQUEST_VOTE, to=2, sender=1, term=7, log_term=1, index=1))
    voter.settle()
    cluster.crash(2)
    cluster.restart(2)
    assert (voter.group.status().term, voter.group.status().vote) == (7, 1)
    voter.group.step(message(MessageKind.REQUEST_VOTE, to=2, sender=3, term=7, log_term=1, index=1))
    voter.settle()
    to, told = voter.outbox[-1]
    assert to == 3 and peek_message(told)[3] == 7
    assert voter.group.status().vote == 1, "one vote in one term"


def test_a_replica_that_was_cut_off_does_not_depose_the_leader() -> None:
    """PreVote and CheckQuorum: terms do not grow while nobody can win."""
    cluster = Cluster()
    leader = cluster.elect(1)
    term = leader.group.term
    cluster.isolate(3)
    cluster.tick(100)
    cluster.heal()
    cluster.tick(50)
    assert cluster[1].is_leader and cluster[1].term == term == cluster[3].term


def test_a_leader_without_a_quorum_steps_down() -> None:
    """CheckQuorum."""
    cluster = Cluster()
    cluster.elect(1)
    cluster.isolate(1)
    cluster.run_until(lambda: not cluster[1].is_leader, ticks_max=40)
    with pytest.raises(NotLeader):
        cluster[1].propose(b"too late")


def test_another_leader_takes_over_and_the_old_one_follows() -> None:
    cluster = Cluster()
    cluster.elect(1)
    cluster.propose(b"before")
    cluster.isolate(1)
    cluster[1].propose(b"never committed")
    cluster.run_until(lambda: any(cluster[i].is_leader for i in (2, 3)))
    cluster.run_until(lambda: not cluster[1].is_leader)
    cluster.propose(b"after")
    cluster.heal()
    cluster.run_until(lambda: cluster.values(1) == [b"before", b"after"])
    cluster.tick(5)
    assert cluster.values(2) == cluster.values(3) == [b"before", b"after"]


def test_leadership_is_transferred_to_the_replica_that_is_named() -> None:
    cluster = Cluster()
    cluster.elect(1)
    cluster.propose(b"a")
    assert cluster[1].transfer_leader(3)
    cluster.pump()
    assert cluster[3].is_leader and not cluster[1].is_leader
    cluster.propose(b"b")
    cluster.tick(3)
    assert cluster.values(1) == [b"a", b"b"]


def test_leadership_is_not_transferred_to_strangers_or_to_oneself() -> None:
    cluster = Cluster()
    cluster.elect(1)
    assert not cluster[1].transfer_leader(1)
    assert not cluster[1].transfer_leader(77)
    with pytest.raises(NotLeader) as refused:
        cluster[2].transfer_leader(3)
    assert refused.value.leader_id == 1
    assert refused.value.replica_id == 2


def test_a_transfer_to_a_silent_replica_ends_and_proposals_go_on() -> None:
    cluster = Cluster()
    cluster.elect(1)
    cluster.crash(3)
    cluster[1].propose(b"a")
    cluster.pump()
    assert cluster[1].transfer_leader(3)
    assert cluster[1].status().transferee == 3
    cluster.run_until(lambda: cluster[1].status().transferee == 0, ticks_max=40)
    cluster.propose(b"b")
    assert cluster.values(2)[-1] == b"b"


def test_a_replica_campaigns_only_when_committed_changes_of_members_are_applied() -> None:
    """P8: in every kind of campaign, timeouts and transfers alike."""
    cluster = Cluster()
    cluster.elect(1)
    cluster.add(4)
    follower = cluster.members[2]
    cluster[1].propose_conf_change([(2, 4)])
    # Replica 2 learns that the change is committed, but does not apply it.
    for _ in range(10):
        cluster.members[1].settle()
        for to, sent in list(cluster.members[1].outbox):
            cluster[to].step(sent)
        cluster.members[1].outbox.clear()
        for replica_id in (2, 3):
            member = cluster.members[replica_id]
            while (ready := member.group.ready()) is not None:
                member.disk.records.extend([ready.log_record] if ready.log_record else [])
                member.group.persisted(ready.number)
                for to, sent in ready.messages + ready.messages_after_persist:
                    if to == 1:
                        cluster[1].step(sent)
        cluster[1].tick()
    status = follower.group.status()
    assert status.commit > status.applied
    follower.group.step(message(MessageKind.TIMEOUT_NOW, to=2, sender=1, term=status.term))
    follower.group.campaign()
    for _ in range(30):
        follower.group.tick()
    assert follower.group.role == Role.FOLLOWER
    assert follower.group.term == status.term
