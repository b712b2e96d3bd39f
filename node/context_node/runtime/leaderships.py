"""Which groups this node has begun and ceased to lead, and why: for the log and the metrics.

A leader that hands over does so on purpose; one that is replaced, or that heard no majority of its members for an election timeout, was cut
off or stood still. Knows what Raft says of roles. Does not know clocks or connections, and decides nothing.
"""

import logging
from dataclasses import dataclass, field
from enum import StrEnum

from context_node.raft import Role
from context_node.runtime.replica import Replica
from context_node.runtime.shards import SYSTEM_SHARD

NAMED_MAX = 8
"""So many shards are named in a line of the log; a node that loses a thousand leaderships writes no longer line than that."""


class Loss(StrEnum):
    """Why a group is led here no more."""

    HANDED_OVER = "handed_over"
    REPLACED = "replaced"
    UNHEARD = "unheard"
    REMOVED = "removed"


_TOLD = {
    Loss.HANDED_OVER: (logging.INFO, "handed over the leadership of %s"),
    Loss.REPLACED: (logging.WARNING, "lost the leadership of %s: another node began a later term"),
    Loss.UNHEARD: (logging.WARNING, "gave up the leadership of %s: no majority of its members was heard for an election timeout"),
    Loss.REMOVED: (logging.INFO, "gave up the leadership of %s: the replica here is no voter any more"),
}


@dataclass(slots=True)
class _Tenure:
    """A group that is led here since `term`, and the members that were asked to take it over, with the replica's tick of that."""

    term: int
    asked: dict[int, int] = field(default_factory=dict)


class Leaderships:
    """Counts since the start, and what was not told yet."""

    def __init__(self) -> None:
        self.gained = 0
        self.lost = dict.fromkeys(Loss, 0)
        self._led: dict[int, _Tenure] = {}
        self._untold: dict[Loss, list[int]] = {}

    def hands_over(self, replica: Replica, to: int) -> None:
        """This leader was asked to hand over to the member `to`."""
        if (tenure := self._led.get(replica.shard)) is not None:
            tenure.asked[to] = replica.ticks

    def note(self, replica: Replica, leader: int, role: int) -> None:
        """Raft says who leads this replica's group (0: nobody is known), and what the replica is."""
        if role == Role.LEADER:
            self.gained += 1
            self._led[replica.shard] = _Tenure(replica.group.term)
            return
        tenure = self._led.pop(replica.shard, None)
        if tenure is None:
            return
        loss = self._why(replica, tenure, leader)
        self.lost[loss] += 1
        self._untold.setdefault(loss, []).append(replica.shard)

    def _why(self, replica: Replica, tenure: _Tenure, leader: int) -> Loss:
        status = replica.group.status()
        if status.term == tenure.term:
            return Loss.UNHEARD if status.replica_id in replica.members.voters else Loss.REMOVED
        asked = max((tenure.asked[member] for member in (status.vote, leader) if member in tenure.asked), default=None)
        # Raft gives a transfer up after an election timeout; the one who was asked may take as long to stand.
        is_on_purpose = asked is not None and replica.ticks - asked <= 2 * replica.election_ticks
        return Loss.HANDED_OVER if is_on_purpose else Loss.REPLACED

    def forget(self, replica: Replica) -> None:
        """This replica is not driven any more."""
        self._led.pop(replica.shard, None)

    def tell(self, logger: logging.Logger) -> None:
        """Log what was lost since the last call, a line for each reason."""
        if not self._untold:
            return
        untold, self._untold = self._untold, {}
        for loss, shards in untold.items():
            level, text = _TOLD[loss]
            logger.log(level, text, _named(shards))


def _named(shards: list[int]) -> str:
    """As `shard 7`, `shards 7 and 12`, or `31 shards, among them 1, 2, …`."""
    names = ["system" if shard == SYSTEM_SHARD else str(shard) for shard in sorted(shards)[:NAMED_MAX]]
    if len(shards) > NAMED_MAX:
        return f"{len(shards)} shards, among them {', '.join(names)}"
    return f"shard {names[0]}" if len(names) == 1 else f"shards {', '.join(names[:-1])} and {names[-1]}"
