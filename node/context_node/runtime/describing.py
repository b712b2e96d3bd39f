"""What a node says of itself to those who look from outside: its replicas, how far each is, and which policies they follow.

Knows what a node holds. Does not know who asks, and changes nothing.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from context_node.runtime.calls import Follower, NodeStatus, ReplicaStatus
from context_node.runtime.replica import Replica
from context_node.runtime.shards import node_of

if TYPE_CHECKING:
    from context_node.runtime.cluster import Cluster
    from context_node.runtime.node import Node


def describe_node(node: "Node", cluster: "Cluster") -> NodeStatus:
    """This node and its replicas, as it sees them."""
    is_ready, reason = node.state.ready()
    boot = node.log.notes.boot if node.log is not None else 0
    replicas = tuple(describe_replica(replica) for replica in node.shards.all())
    system = cluster.membership.system_state()
    epoch, factor = (system.epoch, system.factor) if system is not None and system.members else (0, 0)
    version, revision = node.options.version, node.options.revision
    level, archive = cluster.membership.level(), node.archive_health()
    return NodeStatus(
        cluster.number, version, boot, is_ready, reason, replicas, epoch, factor, level, revision, cluster.has_slow_disk, archive
    )


def describe_replica(replica: Replica) -> ReplicaStatus:
    """A replica for those who look from outside. A group that ended by a defect tells nothing any more: only what its replica knows."""
    leader = term = commit = last_index = 0
    followers: tuple[Follower, ...] = ()
    if not replica.group.poisoned:
        status = replica.group.status()
        leader, term, commit, last_index = node_of(status.leader_id), status.term, status.commit, status.last_index
        followers = tuple(Follower(one.replica_id, one.match_index, one.state, one.recent_active) for one in status.progress)
    members = replica.members
    return ReplicaStatus(
        replica.shard,
        replica.group.replica_id,
        replica.leads,
        leader,
        term,
        replica.applied_index,
        commit,
        last_index,
        replica.log_bytes,
        members.voters,
        members.learners,
        members.joint,
        replica.failure,
        followers,
    )


def describe_policies(replicas: Iterable[Replica]) -> tuple[int, dict[str, int]]:
    """How many of these replicas work, and by name the oldest generation of a policy that one of them follows."""
    working = [replica for replica in replicas if replica.failure is None]
    names = {name for replica in working for name in replica.machine.policies}
    found = {}
    for name in sorted(names):
        held = [replica.machine.policies.get(name) for replica in working]
        found[name] = min(0 if policy is None or policy.record.deleted else policy.record.generation for policy in held)
    return len(working), found
