"""Who belongs to a Raft group, as a value.

Knows the parts of a configuration (voters, learners, and the second half of a joint one) and its bytes. Does not
know how it changes: `Group.propose_conf_change` and `Group.apply_conf_change` do.

Invariants (checked by `encode` and `decode`): ids are positive; a configuration with members has a voter; nobody is
voter and learner at once; `learners_next` are outgoing voters only; `auto_leave` only in a joint configuration. Two
replicas that agree on the members agree on the bytes.
"""

from dataclasses import dataclass

from context_node.raft import _core


@dataclass(frozen=True, slots=True)
class ConfState:
    """The configuration of a group: which replica ids vote, which only follow. Ids are in `[1, 2**64)`."""

    voters: tuple[int, ...] = ()
    learners: tuple[int, ...] = ()
    voters_outgoing: tuple[int, ...] = ()
    """The old half of a joint configuration: a majority of these is needed too. Empty outside a joint configuration."""
    learners_next: tuple[int, ...] = ()
    """Outgoing voters that become learners when the joint configuration is left."""
    auto_leave: bool = False
    """Whether the leader leaves the joint configuration by itself as soon as it is applied."""

    @property
    def joint(self) -> bool:
        """Whether two majorities are needed."""
        return bool(self.voters_outgoing)

    @property
    def members(self) -> frozenset[int]:
        """Every replica id of the configuration, whatever its part."""
        return frozenset((*self.voters, *self.learners, *self.voters_outgoing, *self.learners_next))

    def encode(self) -> bytes:
        """Its canonical bytes, as `Group` takes and gives them. Raises `ValueError` if an invariant is broken."""
        return _core.encode_conf_state(
            list(self.voters),
            list(self.learners),
            list(self.voters_outgoing),
            list(self.learners_next),
            self.auto_leave,
        )

    @classmethod
    def decode(cls, data: bytes) -> "ConfState":
        """The value of `data`; empty bytes are the empty configuration. Raises `ValueError` for anything else wrong."""
        voters, learners, outgoing, upcoming, auto_leave = _core.decode_conf_state(data)
        return cls(tuple(voters), tuple(learners), tuple(outgoing), tuple(upcoming), auto_leave)
