"""Which shard a context belongs to, and the replicas that this node holds.

Knows SEMANTICS.md "Shards". Invariant: the mapping never changes in the life of a cluster.
"""

from functools import lru_cache
from hashlib import blake2b
from typing import TYPE_CHECKING, NewType

from context_node.contexts import refusals
from context_node.contexts.refusals import Refusal, Unavailable
from context_node.contexts.replies import Refused, Reply

if TYPE_CHECKING:
    from context_node.runtime.replica import Replica

ShardId = NewType("ShardId", int)

SYSTEM_SHARD = 65_535
"""The group that holds what is cluster-wide. Beside the shards of contexts, which count from 0."""


NODE_SHIFT = 40
"""A replica id is the number of its node, which no other store ever has, above so many random bits: so it says where the replica is, and
no id comes back on another disk."""


def replica_id_on(node: int, random_bytes: bytes) -> int:
    """A new replica id on a node; of `random_bytes` the first five count."""
    return node << NODE_SHIFT | max(1, int.from_bytes(random_bytes[:5], "big"))


def node_of(replica_id: int) -> int:
    """The number of the node that holds this replica."""
    return replica_id >> NODE_SHIFT


@lru_cache(maxsize=16_384)
def shard_of(context_id: str, count: int) -> ShardId:
    """The first 8 bytes, big-endian, of BLAKE2b with `digest_size=8` of the id, modulo the number of shards."""
    return ShardId(int.from_bytes(blake2b(context_id.encode(), digest_size=8).digest(), "big") % count)


class ShardDirectory:
    """The replicas of this node by shard. `open` puts a whole set in place; before that every request is refused as unavailable."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.closed_reason: str | None = "The node is starting."
        self._replicas: dict[int, Replica] = {}

    def open(self, replicas: "dict[int, Replica]") -> None:
        """Serve from these replicas from now on."""
        self._replicas = replicas
        self.closed_reason = None

    def close(self, reason: str) -> None:
        """Serve nothing from now on; `reason` is told to callers."""
        self.closed_reason = reason

    def replica_of(self, context_id: str) -> "Replica":
        """The replica that holds a context. Raises `Unavailable` while the node does not serve."""
        return self.replica(shard_of(context_id, self.count))

    def replica(self, shard: int) -> "Replica":
        """The replica of a shard. Raises `Unavailable` where there is none."""
        if self.closed_reason is not None:
            raise Unavailable(self.closed_reason, retry_after_s=1)
        replica = self._replicas.get(shard)
        if replica is None:
            raise Unavailable("This node does not hold that shard; try again shortly.", retry_after_s=1)
        return replica

    def held(self, shard: int) -> "Replica | None":
        """The replica of a shard, if this node has one and serves."""
        return self._replicas.get(shard) if self.closed_reason is None else None

    def replicas(self) -> "list[Replica]":
        """The replicas of shards of contexts that this node holds, in order."""
        if self.closed_reason is not None:
            raise Unavailable(self.closed_reason, retry_after_s=1)
        return [replica for shard, replica in sorted(self._replicas.items()) if shard != SYSTEM_SHARD]

    def all(self) -> "list[Replica]":
        """Every replica that is open, the system group's too; none while the node does not serve."""
        return list(self._replicas.values()) if self.closed_reason is None else []


_BY_CODE = {kind.code: kind for kind in vars(refusals).values() if isinstance(kind, type) and issubclass(kind, Refusal)}


def accepted(reply: Reply) -> Reply:
    """The reply if it is none of refusal; raises the `Refusal` that a refusing reply stands for."""
    if type(reply) is Refused:
        refusal = _BY_CODE.get(reply.code, Refusal)(reply.message)
        refusal.details = reply.details
        raise refusal
    return reply
