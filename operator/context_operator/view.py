"""The cluster as `GET /v1/cluster` shows it, and what the planner needs of it.

Knows the fields that it reads and leaves the others alone, so that a node of a newer version may add some. Does not know who fetched it.
A contract test holds these types against the node's own.
"""

import msgspec

from context_operator.placement import ClusterInfo, NodeInfo, ReplicaInfo, ShardInfo


class ReplicaView(msgspec.Struct, frozen=True):
    replica_id: int
    node: int
    is_voter: bool
    is_caught_up: bool
    match_index: int
    is_missing: bool = False


class ShardView(msgspec.Struct, frozen=True):
    shard: int
    is_system: bool
    leader: int | None
    term: int
    applied: int
    is_joint: bool
    lag: int
    replicas: list[ReplicaView]


class ArchiveView(msgspec.Struct, frozen=True):
    is_healthy: bool
    is_late: bool
    cause: str
    reason: str
    lag_messages: int
    lag_bytes: int
    lag_s: float


class NodeView(msgspec.Struct, frozen=True):
    number: int
    name: str
    zone: str
    peer_address: str
    client_address: str
    is_alive: bool
    is_ready: bool
    version: str
    revision: int
    has_slow_disk: bool
    cordoned: bool
    draining: bool
    replicas: int
    leaders: int
    archive: ArchiveView | None = None


class ClusterView(msgspec.Struct, frozen=True):
    cluster_id: str
    node: int
    epoch: int
    feature_level: int
    replication_factor: int
    shards_total: int
    shards_healthy: int
    shards_leaderless: int
    shards_under_replicated: int
    nodes: list[NodeView]
    shards: list[ShardView]
    archive: ArchiveView | None = None

    def name_of(self, number: int) -> str:
        """A node's name; its number where there is no such node any more."""
        return next((node.name for node in self.nodes if node.number == number), f"node {number}")


class SelfView(msgspec.Struct, frozen=True):
    """`GET /v1/cluster/self`."""

    name: str
    number: int
    store: str
    cluster_id: str
    state: str
    replicas: int
    is_ready: bool
    reason: str
    version: str
    archive: ArchiveView | None = None


class NodePolicies(msgspec.Struct, frozen=True):
    """One node of `GET /v1/cluster/policies`."""

    node: int
    name: str
    is_alive: bool
    replicas: int
    policies: dict[str, int]


def view_of(value: object) -> ClusterView:
    """The view out of decoded JSON, or of an object with the same attributes. Raises `msgspec.ValidationError`."""
    return msgspec.convert(value, ClusterView, from_attributes=True)


def cluster_info(view: ClusterView) -> ClusterInfo:
    """What the planner needs."""
    return ClusterInfo(
        nodes=tuple(
            NodeInfo(node.number, node.zone, node.is_alive, node.cordoned or node.has_slow_disk, node.draining) for node in view.nodes
        ),
        shards=tuple(
            ShardInfo(
                shard.shard,
                shard.leader,
                tuple(ReplicaInfo(one.replica_id, one.node, one.is_voter, one.is_caught_up) for one in shard.replicas),
                shard.is_joint,
            )
            for shard in view.shards
        ),
        replication_factor=view.replication_factor,
        system_shard=next((shard.shard for shard in view.shards if shard.is_system), -1),
    )
