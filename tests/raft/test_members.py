"""Changes of members: learner first, joint when several, one at a time, and what a removed leader does."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from context_node.raft import ChangeKind, ConfChangeRefused, ConfState, EntryKind, NotLeader, Role, decode_conf_change
from support.raft_cluster import Cluster

LEARN, VOTE, REMOVE = ChangeKind.ADD_LEARNER, ChangeKind.ADD_VOTER, ChangeKind.REMOVE


def members_of(cluster: Cluster, replica_id: int) -> ConfState:
    return ConfState.decode(cluster[replica_id].conf_state())


def change(cluster: Cluster, *changes: tuple[ChangeKind, int], **options: str) -> None:
    """Proposes through the leader and waits until it is applied there, a joint configuration left again."""
    leader = cluster.leader()
    assert leader is not None
    index, _ = leader.group.propose_conf_change(list(changes), **options)  # type: ignore[arg-type]
    cluster.run_until(lambda: leader.group.applied_index >= index and not leader.group.status().pending_change)


def catch_up(cluster: Cluster, replica_id: int) -> None:
    """Lets a new replica follow: the leader offers a snapshot and the rest comes from the log."""
    leader = cluster.leader()
    assert leader is not None
    cluster.run_until(lambda: leader.group.snapshot_requested)
    leader.offer_snapshot()
    cluster.run_until(lambda: cluster[replica_id].applied_index == leader.group.applied_index)


def join(cluster: Cluster, replica_id: int) -> None:
    cluster.add(replica_id)
    change(cluster, (LEARN, replica_id))
    catch_up(cluster, replica_id)
    change(cluster, (VOTE, replica_id))


def test_a_new_replica_learns_then_votes() -> None:
    cluster = Cluster((1,))
    cluster.elect()
    cluster.propose(b"a")
    cluster.add(2)
    change(cluster, (LEARN, 2))
    assert members_of(cluster, 1) == ConfState(voters=(1,), learners=(2,))
    cluster.propose(b"b")
    assert cluster.values(1) == [b"a", b"b"], "a learner is not needed for a majority"
    catch_up(cluster, 2)
    assert cluster.values(2) == [b"a", b"b"]
    change(cluster, (VOTE, 2))
    cluster.tick(3)
    assert members_of(cluster, 1) == members_of(cluster, 2) == ConfState(voters=(1, 2))
    cluster.crash(2)
    cluster.propose(b"c")
    assert cluster.values(1) == [b"a", b"b"], "a voter is"


def test_a_group_of_one_grows_to_three_and_survives_its_first_replica() -> None:
    cluster = Cluster((1,))
    cluster.elect()
    cluster.propose(b"a")
    join(cluster, 2)
    join(cluster, 3)
    cluster.crash(1)
    cluster.run_until(lambda: cluster.leader() is not None)
    cluster.propose(b"b")
    assert cluster.values(2) == [b"a", b"b"]


def test_a_replica_must_learn_before_it_votes() -> None:
    cluster = Cluster()
    cluster.elect(1)
    last = cluster[1].last_index
    with pytest.raises(ConfChangeRefused, match="learner before"):
        cluster[1].propose_conf_change([(VOTE, 4)])
    assert cluster[1].last_index == last, "nothing was appended"


def test_replacing_a_replica_is_one_joint_change_that_is_left_by_itself() -> None:
    cluster = Cluster()
    cluster.elect(1)
    cluster.add(4)
    change(cluster, (LEARN, 4))
    catch_up(cluster, 4)
    seen = []
    index, _ = cluster[1].propose_conf_change([(VOTE, 4), (REMOVE, 3)])
    for _ in range(100):
        for member in cluster.up():
            member.settle()
            seen.append(members_of(cluster, member.replica_id))
            for to, sent in member.outbox:
                cluster[to].step(sent)
            member.outbox.clear()
    assert ConfState(voters=(1, 2, 4), voters_outgoing=(1, 2, 3), auto_leave=True) in seen
    cluster.tick(5)
    assert members_of(cluster, 1) == members_of(cluster, 2) == members_of(cluster, 4) == ConfState(voters=(1, 2, 4))
    assert cluster[1].applied_index > index
    cluster.crash(3)
    cluster.crash(2)
    cluster.propose(b"a")
    assert cluster.values(4) == [b"a"]


def test_the_way_out_of_a_joint_configuration_needs_no_heartbeat() -> None:
    """raft-rs appends the entry that leaves but sends it only when somebody answers a heartbeat."""
    cluster = Cluster()
    cluster.elect(1)
    cluster.tick(3)
    cluster[1].propose_conf_change([(REMOVE, 3)], transition="implicit")
    cluster.pump()
    assert members_of(cluster, 1) == members_of(cluster, 2) == ConfState(voters=(1, 2))


def test_a_new_leader_leaves_the_joint_configuration_of_its_predecessor() -> None:
    cluster = Cluster((1, 2, 3, 4))
    cluster.elect(1)
    cluster.tick(3)
    index, _ = cluster[1].propose_conf_change([(REMOVE, 4)], transition="implicit")
    while cluster[2].applied_index < index:
        for member in cluster.up():
            member.settle()
            for to, sent in member.outbox:
                cluster[to].step(sent)
            member.outbox.clear()
    assert members_of(cluster, 2).joint
    cluster.crash(1)
    cluster.run_until(lambda: cluster.leader() is not None and not members_of(cluster, 2).joint)
    assert members_of(cluster, 2) == ConfState(voters=(1, 2, 3))


def test_an_explicit_joint_configuration_waits_to_be_left() -> None:
    cluster = Cluster()
    cluster.elect(1)
    change(cluster, (REMOVE, 3), transition="explicit")
    cluster.tick(20)
    assert members_of(cluster, 1).joint and not members_of(cluster, 1).auto_leave
    with pytest.raises(ConfChangeRefused):
        cluster[1].propose_conf_change([(REMOVE, 2)])
    change(cluster)
    assert members_of(cluster, 1) == ConfState(voters=(1, 2))


def test_both_majorities_are_needed_in_a_joint_configuration() -> None:
    cluster = Cluster((1, 2, 3))
    cluster.elect(1)
    change(cluster, (REMOVE, 2), (REMOVE, 3), transition="explicit")
    cluster.crash(2)
    cluster.crash(3)
    cluster.propose(b"x")
    assert cluster.values(1) == []
    cluster.restart(3)
    cluster.run_until(lambda: cluster.values(1) == [b"x"])


def test_one_change_at_a_time() -> None:
    """I11."""
    cluster = Cluster()
    cluster.elect(1)
    cluster[1].propose_conf_change([(LEARN, 4)])
    with pytest.raises(ConfChangeRefused, match="not applied"):
        cluster[1].propose_conf_change([(LEARN, 5)])


def test_no_change_before_the_leader_has_applied_something_of_its_own_term() -> None:
    """The single-server bug of 2015."""
    cluster = Cluster((1,))
    cluster[1].campaign()
    (ready,) = cluster.members[1].turn()
    cluster[1].propose(b"a")
    with pytest.raises(ConfChangeRefused):
        cluster.crash(1)
        cluster.restart(1)
        cluster.members[1].disk.records.append(ready.log_record)
        cluster.restart(1)
        cluster[1].campaign()
        cluster[1].propose_conf_change([(LEARN, 2)])


@pytest.mark.parametrize(
    "changes",
    [[(REMOVE, 1), (REMOVE, 2), (REMOVE, 3)], []],
    ids=["no voter left", "leave what is not joint"],
)
def test_a_change_that_makes_no_sense_is_refused_before_the_log(changes: list[tuple[ChangeKind, int]]) -> None:
    cluster = Cluster()
    cluster.elect(1)
    last = cluster[1].last_index
    with pytest.raises(ConfChangeRefused):
        cluster[1].propose_conf_change(changes)
    assert cluster[1].last_index == last


@pytest.mark.parametrize("changes", [[(LEARN, 0)], [(LEARN, 4), (REMOVE, 4)], [(9, 4)]])
def test_a_change_that_is_no_change_is_a_mistake_of_the_caller(changes: list[tuple[int, int]]) -> None:
    cluster = Cluster()
    cluster.elect(1)
    with pytest.raises(ValueError):
        cluster[1].propose_conf_change(changes)


def test_only_the_leader_changes_members() -> None:
    cluster = Cluster()
    cluster.elect(1)
    with pytest.raises(NotLeader):
        cluster[2].propose_conf_change([(LEARN, 4)])


def test_a_change_carries_its_context() -> None:
    cluster = Cluster((1,))
    cluster.elect()
    cluster[1].propose_conf_change([(LEARN, 2)], b"why")
    member = cluster.members[1]
    member.turn()
    member.sync()
    ready = member.group.ready()
    assert ready is not None
    ((index, _, kind, data),) = ready.committed
    assert kind == EntryKind.CONF_CHANGE_V2
    assert decode_conf_change(kind, data) == ([(LEARN, 2)], b"why")
    with pytest.raises(ValueError, match="apply_conf_change"):
        member.group.applied(index)
    member.group.apply_conf_change(index)
    member.group.applied(index)


def test_a_change_that_the_state_machine_rejects_changes_nothing_and_blocks_nothing() -> None:
    cluster = Cluster((1,))
    cluster.elect()
    group, member = cluster[1], cluster.members[1]
    index, _ = group.propose_conf_change([(LEARN, 2)])
    member.turn()
    member.sync()
    assert group.ready() is not None
    assert ConfState.decode(group.apply_conf_change(index, refuse=True)) == ConfState(voters=(1,))
    group.applied(index)
    group.propose_conf_change([(LEARN, 3)])


def test_committed_changes_are_applied_in_order_and_only_they() -> None:
    cluster = Cluster((1,))
    cluster.elect()
    group = cluster[1]
    group.propose(b"data")
    cluster.pump()
    with pytest.raises(ValueError, match="no committed change"):
        group.apply_conf_change(group.applied_index)


def test_a_removed_leader_steps_down_and_does_not_panic() -> None:
    """raft-rs leaves it leading, and panics at its next commit."""
    cluster = Cluster()
    cluster.elect(1)
    for i in range(3):
        cluster[1].propose(b"%d" % i)
    index, _ = cluster[1].propose_conf_change([(REMOVE, 1)])
    for i in range(3):
        cluster[1].propose(b"later %d" % i)
    cluster.run_until(lambda: cluster[1].applied_index >= index)
    assert cluster[1].role == Role.FOLLOWER and not cluster[1].poisoned
    cluster.run_until(lambda: cluster.leader() is not None)
    leader = cluster.leader()
    assert leader is not None and leader.replica_id in (2, 3)
    assert members_of(cluster, leader.replica_id) == ConfState(voters=(2, 3))
    cluster.tick(50)
    assert cluster[1].role == Role.FOLLOWER and not cluster[1].poisoned, "and never campaigns again"


def test_a_demoted_leader_steps_down() -> None:
    cluster = Cluster()
    cluster.elect(1)
    cluster[1].propose_conf_change([(LEARN, 1)])
    cluster[1].propose(b"after")
    cluster.run_until(lambda: cluster.leader() is not None and cluster.leader() is not cluster.members[1])
    cluster.tick(5)
    assert members_of(cluster, 2) == ConfState(voters=(2, 3), learners=(1,))
    assert cluster.values(1) == [b"after"], "it learns on"


def test_a_removed_replica_does_not_disturb_the_others() -> None:
    cluster = Cluster()
    cluster.elect(1)
    cluster.isolate(3)
    change(cluster, (REMOVE, 3))
    cluster.tick(60)
    term = cluster[1].term
    cluster.heal()
    cluster.tick(60)
    assert cluster[1].is_leader and cluster[1].term == term


def test_a_learner_never_campaigns() -> None:
    cluster = Cluster((1,))
    cluster.elect()
    cluster.add(2)
    change(cluster, (LEARN, 2))
    catch_up(cluster, 2)
    cluster.crash(1)
    cluster[2].campaign()
    cluster.tick(100)
    assert cluster[2].role == Role.FOLLOWER


def test_nothing_of_a_new_term_reaches_a_learner_before_the_sole_voters_vote_is_durable() -> None:
    """P1: a sole voter wins in one call; were its appends sent at once, a crash could use the same term twice."""
    cluster = Cluster((1,))
    cluster.elect()
    cluster.add(2)
    change(cluster, (LEARN, 2))
    catch_up(cluster, 2)
    cluster.members[1].checkpoint()
    cluster.crash(1)
    cluster.restart(1)
    member = cluster.members[1]
    member.group.campaign()
    assert member.group.is_leader
    member.group.propose(b"early")
    (first,) = member.turn()
    member.group.propose(b"still early")
    (second,) = member.turn()
    assert first.messages == [] and second.messages == []
    assert first.messages_after_persist
    member.sync()
    cluster.pump()
    cluster.tick(3)
    assert cluster.values(2) == [b"early", b"still early"]
    member.group.propose(b"now at once")
    (third,) = member.turn()
    assert third.messages


def test_the_members_survive_a_crash() -> None:
    cluster = Cluster((1,))
    cluster.elect()
    join(cluster, 2)
    cluster.crash(1)
    cluster.crash(2)
    cluster.restart(1)
    cluster.restart(2)
    cluster.elect()
    cluster.tick(3)
    assert members_of(cluster, 1) == members_of(cluster, 2) == ConfState(voters=(1, 2))


IDS = st.integers(1, 2**64 - 1)


@given(st.frozensets(IDS, max_size=5), st.frozensets(IDS, max_size=5), st.frozensets(IDS, max_size=5), st.booleans())
def test_a_configuration_has_one_encoding(
    voters: frozenset[int], outgoing: frozenset[int], learners: frozenset[int], auto_leave: bool
) -> None:
    value = ConfState(tuple(voters), tuple(learners), tuple(outgoing), (), auto_leave)
    sound = (voters or not (outgoing or learners)) and not learners & (voters | outgoing) and not (auto_leave and not outgoing)
    if not sound:
        with pytest.raises(ValueError):
            value.encode()
        return
    decoded = ConfState.decode(value.encode())
    assert decoded == ConfState(tuple(sorted(voters)), tuple(sorted(learners)), tuple(sorted(outgoing)), (), auto_leave)
    assert decoded.encode() == value.encode()
    assert decoded.members == voters | outgoing | learners
    assert decoded.joint == bool(outgoing)


@given(st.binary(max_size=60))
def test_arbitrary_bytes_as_a_configuration_never_crash(noise: bytes) -> None:
    try:
        ConfState.decode(noise)
    except ValueError:
        pass


@given(st.sampled_from([1, 2]), st.binary(max_size=60))
def test_arbitrary_bytes_as_a_change_never_crash(kind: int, noise: bytes) -> None:
    try:
        decode_conf_change(kind, noise)
    except ValueError:
        pass
