"""Groups that have nothing to do rest: nobody ticks them and nobody sends heartbeats for them, so that idle shards cost nothing.

A leader whose group has been idle for a while, and all of whose members have everything, tells them so and rests; a member that finds
the same term, leader and commit rests as well, any other says so and the leader wakes. Whatever comes (a proposal, a read, a change, any
message but a late heartbeat's answer) wakes a replica. While groups rest, nodes watch each other: each sends one small frame to every
other now and then, and a node that is silent for an election timeout, or whose connection broke, wakes the groups that it led.

Knows replicas and their groups, pure decisions. Does not know connections or clocks: time is in ticks. Invariant: safety never depends on
it; a replica that rests in error is only late (CONSENSUS.md, "Quiescence").
"""

from collections.abc import Iterable, Sequence

import msgspec

from context_node.raft import Status
from context_node.runtime.replica import Replica
from context_node.runtime.shards import node_of


class Rest(msgspec.Struct, frozen=True, array_like=True):
    """What a leader says when its group goes to rest. A member that has it otherwise must not."""

    shard: int
    leader: int
    term: int
    commit: int


def rest_of(replica: Replica) -> Rest | None:
    """What to tell the members if this is the leader of a group that may rest now; None if it is not."""
    if not replica.leads or not replica.is_at_peace:
        return None
    status = replica.group.status()
    if not _is_settled(status):
        return None
    return Rest(replica.shard, status.replica_id, status.term, status.commit)


def _is_settled(status: Status) -> bool:
    """Whether every member has everything, and nothing is under way."""
    if status.joint or status.transferee or status.pending_change or status.pending_reads or status.snapshot_requested:
        return False
    if not status.commit == status.applied == status.last_index == status.persisted:
        return False
    others = [one for one in status.progress if one.replica_id != status.replica_id]
    return all(one.state == "replicate" and one.match_index == status.last_index and one.recent_active for one in others)


def agrees(replica: Replica, rest: Rest) -> bool:
    """Whether a member may rest with its leader."""
    group = replica.group
    return (
        replica.is_at_peace
        and not group.is_leader
        and group.leader_id == rest.leader
        and group.term == rest.term
        and group.commit == group.applied_index == group.last_index == rest.commit
    )


class Watch:
    """Which nodes are heard. `silence_ticks`: a node that is not heard for so long is silent."""

    def __init__(self, silence_ticks: int) -> None:
        self._silence_ticks = silence_ticks
        self._ticks = 0
        self._heard: dict[int, int] = {}

    def heard(self, node: int) -> None:
        """A frame of that node came."""
        self._heard[node] = self._ticks

    def lost(self, node: int) -> None:
        """The connection to it broke: it has to be heard again before it counts."""
        self._heard.pop(node, None)

    def tick(self) -> list[int]:
        """The nodes that have just become silent."""
        self._ticks += 1
        silent = [node for node, at in self._heard.items() if self._ticks - at > self._silence_ticks]
        for node in silent:
            del self._heard[node]
        return silent


def led_by(replicas: Iterable[Replica], node: int) -> Sequence[Replica]:
    """The resting replicas whose leader is on that node."""
    resting = (replica for replica in replicas if replica.is_resting and replica.failure is None)
    return [replica for replica in resting if node_of(replica.group.leader_id) == node]
