"""What can go wrong in a Raft group, as one small tree.

Knows the kinds of refusal and failure and what each carries. Does not know when they occur: the extension `_core`
raises them (it looks the classes up here by name and builds them with positional arguments, so neither may change
alone).

Invariant: every error but `ReplicaPanicked` leaves the group as it was before the call.
"""


class RaftError(Exception):
    """Any refusal or failure of a Raft group. Wrong arguments are a `ValueError` instead: they are the caller's bug."""


class _ReplicaError(RaftError):
    """An error of one replica of one group."""

    def __init__(self, group_id: int, replica_id: int, detail: str) -> None:
        super().__init__(group_id, replica_id, detail)
        self.group_id = group_id
        self.replica_id = replica_id
        self.detail = detail

    def __str__(self) -> str:
        return f"group {self.group_id}, replica {self.replica_id}: {self.detail}"


class NotLeader(_ReplicaError):
    """Only the leader may do this. `leader_id` is the leader that this replica knows of, 0 if none."""

    def __init__(self, group_id: int, replica_id: int, leader_id: int) -> None:
        known = f"the leader is {leader_id}" if leader_id else "no leader is known"
        super().__init__(group_id, replica_id, f"this replica does not lead; {known}")
        self.leader_id = leader_id

    def __reduce__(self) -> tuple[type["NotLeader"], tuple[int, int, int]]:
        return type(self), (self.group_id, self.replica_id, self.leader_id)


class ProposalDropped(_ReplicaError):
    """The leader cannot take the proposal now (see `reason`); nothing was appended, so it may be tried again later."""

    @property
    def reason(self) -> str:
        """Why: too many uncommitted bytes, or leadership is on its way to another replica."""
        return self.detail


class BadMessage(_ReplicaError):
    """Bytes that no correct peer sends to this replica; nothing changed."""

    @property
    def reason(self) -> str:
        """What is wrong with them."""
        return self.detail


class ConfChangeRefused(_ReplicaError):
    """The rules forbid this change of members in the present configuration; nothing was appended."""

    @property
    def reason(self) -> str:
        """Which rule."""
        return self.detail


class ReplicaPanicked(_ReplicaError):
    """An invariant broke inside this replica. It is over: every later call raises this again; other groups go on."""

    @property
    def message(self) -> str:
        """The panic's text and place."""
        return self.detail


class CorruptRecord(RaftError):
    """Stored bytes that cannot be what was stored. Never repaired silently: the replica must not start from them."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
