"""A broken invariant ends one replica: as an exception that names it, while the others go on."""

import pickle
import subprocess
import sys

import pytest

from context_node.raft import BadMessage, CorruptRecord, MessageKind, NotLeader, ProposalDropped, RaftError, ReplicaPanicked
from support.raft_cluster import Cluster
from support.raft_messages import message

FATAL = message(MessageKind.HEARTBEAT, to=2, sender=1, term=9, commit=1000)
"""Says that entries are committed which this replica lost: a follower whose log shrank must not go on."""


def test_a_panic_becomes_an_exception_that_names_the_replica() -> None:
    cluster = Cluster()
    with pytest.raises(ReplicaPanicked, match="out of range") as ended:
        cluster[2].step(FATAL)
    assert (ended.value.group_id, ended.value.replica_id) == (9, 2)
    assert "to_commit 1000" in ended.value.message
    assert cluster[2].poisoned


def test_nothing_of_a_replica_is_used_after_its_panic() -> None:
    group = Cluster()[2]
    with pytest.raises(ReplicaPanicked):
        group.step(FATAL)
    calls = (
        group.tick,
        group.campaign,
        group.has_ready,
        group.ready,
        group.status,
        group.conf_state,
        lambda: group.step(FATAL),
        lambda: group.propose(b"x"),
        lambda: group.propose_conf_change([(2, 4)]),
        lambda: group.read_index(b"r"),
        lambda: group.persisted(1),
        lambda: group.applied(1),
        lambda: group.compact(1),
        lambda: group.term,
        lambda: group.is_leader,
        lambda: group.last_index,
    )
    for call in calls:
        with pytest.raises(ReplicaPanicked, match="to_commit 1000"):
            call()


def test_other_replicas_go_on_after_a_panic() -> None:
    cluster = Cluster()
    cluster.elect(1)
    with pytest.raises(ReplicaPanicked):
        cluster[2].step(FATAL)
    cluster.crash(2)
    cluster.propose(b"still here")
    cluster.tick(3)
    assert cluster.values(1) == cluster.values(3) == [b"still here"]


def test_a_panic_prints_no_trace() -> None:
    script = (
        "from context_node.raft import *\n"
        "group = Group(group_id=1, replica_id=2, seed=1)\n"
        f"try: group.step({FATAL!r})\n"
        "except ReplicaPanicked: print('ended')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "ended\n"
    assert done.stderr.count("\n") <= 1


@pytest.mark.parametrize(
    "error",
    [
        NotLeader(1, 2, 3),
        ProposalDropped(1, 2, "why"),
        BadMessage(1, 2, "why"),
        ReplicaPanicked(1, 2, "why"),
        CorruptRecord("why"),
    ],
)
def test_errors_can_cross_processes(error: RaftError) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error) and str(copy) == str(error) and vars(copy) == vars(error)
