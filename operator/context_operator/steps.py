"""What the operator can do next with a cluster, one safe step at a time, and what a pass decided.

Steps say what is to be done, never how: `reconciler.py` carries them out, `plan.py` chooses them.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to do but to look again."""


@dataclass(frozen=True, slots=True)
class Begin:
    """Have the node of a pod begin the cluster."""

    ordinal: int


@dataclass(frozen=True, slots=True)
class NoteBegun:
    """Write down that the cluster has begun, for good."""


@dataclass(frozen=True, slots=True)
class SetReplication:
    factor: int


@dataclass(frozen=True, slots=True)
class SetReplicas:
    """Give the StatefulSet another number of pods."""

    replicas: int


@dataclass(frozen=True, slots=True)
class MarkNodes:
    """Say of members that they shall be emptied, or shall take replicas again."""

    numbers: tuple[int, ...]
    draining: bool


@dataclass(frozen=True, slots=True)
class RemoveNodes:
    """Take members that hold nothing out of the cluster for good."""

    numbers: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Move:
    """Let `placement.py` take its next steps; only those that are needed unless `balances`."""

    balances: bool


@dataclass(frozen=True, slots=True)
class HandOver:
    """Move what a pod's node leads to others: by shard the node that shall lead it."""

    ordinal: int
    leaders: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class DeletePod:
    """Have a pod made anew."""

    ordinal: int
    uid: str


@dataclass(frozen=True, slots=True)
class GiveUpVolume:
    """Delete a pod's claim and then the pod."""

    ordinal: int


Step = Wait | Begin | NoteBegun | SetReplication | SetReplicas | MarkNodes | RemoveNodes | Move | HandOver | DeletePod | GiveUpVolume


@dataclass(frozen=True, slots=True)
class Decision:
    """The step; what it belongs to (`operation`, empty if nothing is under way) and whom it is about; a sentence on what is done or waited
    for; why something that is asked for is not done (`refusal`, a reason and a sentence)."""

    step: Step
    operation: str = ""
    target: str = ""
    sentence: str = ""
    refusal: tuple[str, str] | None = None
    refused_operation: str = ""
    """What `refusal` is about, which may be something else than what is done meanwhile."""
