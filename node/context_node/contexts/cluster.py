"""What the system group knows of the cluster: its nodes, how often a shard is kept, which commands all of them understand, and how old an
administrator's view may be.

Knows numbers, names and addresses as text. Does not know connections, nor who holds which shard: each shard's Raft configuration is the
only truth about that. Invariants: a node's number is given once and never to another store, so a replica id that carries it can never
come back on another disk; a store that was removed is never taken in again; `epoch` and `level` never go back, and no member understands
less than `level`.
"""

from collections.abc import Mapping

import msgspec

from context_node.contexts.refusals import Unprocessable
from context_node.contexts.replies import Done, NodeNumber, Reply

NODES_MAX = 1_000
"""Nodes that were ever taken in and not removed, revision 1."""

FACTOR_MAX = 9


class NodeRecord(msgspec.Struct, frozen=True, array_like=True):
    """A member. `number` from 1; `store` is the UUID of its disk; addresses are `host:port`, `client` may be empty. `draining`: all its
    replicas are to leave it; `cordoned`: it takes no new ones. `revision`: the newest of the state machine that it understands."""

    number: int
    store: str
    name: str
    peer: str
    client: str
    zone: str
    registered_at_ms: int
    cordoned: bool = False
    draining: bool = False
    removed: bool = False
    revision: int = 1


class RegisterNode1(msgspec.Struct, frozen=True, array_like=True, tag="node-register/1"):
    """As `RegisterNode`, of a node that understands revision 1. In logs of earlier versions only."""

    at_ms: int
    store: str
    name: str
    peer: str
    client: str
    zone: str


class RegisterNode(msgspec.Struct, frozen=True, array_like=True, tag="node-register/2"):
    """Take in the store, or its new name, addresses and revision. The reply is its number; the same for every repetition. Refused for a
    revision below the feature level."""

    at_ms: int
    store: str
    name: str
    peer: str
    client: str
    zone: str
    revision: int


class MarkNode(msgspec.Struct, frozen=True, array_like=True, tag="node-mark/1"):
    """Change what is wished of a node; None keeps. `epoch` of the administrator, 0 for none."""

    at_ms: int
    epoch: int
    number: int
    cordoned: bool | None = None
    draining: bool | None = None
    removed: bool | None = None


class SetReplication(msgspec.Struct, frozen=True, array_like=True, tag="replication-set/1"):
    """How many voters a shard should have, where there are nodes enough: odd, from 1 to 9."""

    at_ms: int
    epoch: int
    factor: int


class RaiseLevel(msgspec.Struct, frozen=True, array_like=True, tag="level-raise/1"):
    """From here on commands up to revision `level` may be proposed. Refused while a member understands less."""

    at_ms: int
    epoch: int
    level: int


class AdvanceEpoch(msgspec.Struct, frozen=True, array_like=True, tag="epoch-advance/1"):
    """An administrator of this epoch is about to take a step elsewhere: older ones are refused from here on."""

    at_ms: int
    epoch: int


class _Stored(msgspec.Struct, frozen=True, array_like=True):
    next_number: int
    epoch: int
    factor: int
    nodes: tuple[NodeRecord, ...]
    level: int = 1


_encode = msgspec.msgpack.Encoder().encode
_decoder = msgspec.msgpack.Decoder(_Stored)


class ClusterState:
    """The members as the system group's log made them. Without any, the group belongs to a node that was never in a cluster."""

    def __init__(self) -> None:
        self.epoch = 0
        self.factor = 3
        self.level = 1
        """The feature level: the greatest revision of which commands may be proposed."""
        self._nodes: dict[int, NodeRecord] = {}
        self._next_number = 1

    @property
    def nodes(self) -> Mapping[int, NodeRecord]:
        """By number, removed ones too."""
        return self._nodes

    @property
    def members(self) -> list[NodeRecord]:
        """Those that were not removed, by number."""
        return [node for _, node in sorted(self._nodes.items()) if not node.removed]

    def apply(self, command: RegisterNode1 | RegisterNode | MarkNode | SetReplication | RaiseLevel | AdvanceEpoch) -> Reply:
        """Carry out a command. Raises `Refusal`."""
        match command:
            case RegisterNode():
                return self._register(command, command.revision)
            case RegisterNode1():
                return self._register(command, 1)
            case MarkNode():
                return self._mark(command)
            case SetReplication():
                return self._set_replication(command)
            case RaiseLevel():
                return self._raise_level(command)
            case AdvanceEpoch():
                self._check_epoch(command.epoch)
                return Done()

    def _register(self, command: RegisterNode1 | RegisterNode, revision: int) -> Reply:
        if not self._nodes:
            # Who begins a cluster is all of it.
            self.level = revision
        if revision < self.level:
            raise Unprocessable(
                f"The cluster is at feature level {self.level}, and node {command.name} understands {revision}; start a newer version.",
                level=self.level,
            )
        known = next((node for node in self._nodes.values() if node.store == command.store), None)
        if known is not None:
            if known.removed:
                raise Unprocessable(
                    f"The store of node {known.name} was removed from this cluster; start the node with an empty data directory.",
                    number=known.number,
                )
            self._nodes[known.number] = msgspec.structs.replace(
                known, name=command.name, peer=command.peer, client=command.client, zone=command.zone, revision=revision
            )
            return NodeNumber(known.number)
        if len(self.members) >= NODES_MAX:
            raise Unprocessable(f"A cluster has at most {NODES_MAX} nodes; remove one first.", nodes=NODES_MAX)
        number = self._next_number
        self._next_number += 1
        self._nodes[number] = NodeRecord(
            number, command.store, command.name, command.peer, command.client, command.zone, command.at_ms, revision=revision
        )
        return NodeNumber(number)

    def _mark(self, command: MarkNode) -> Reply:
        self._check_epoch(command.epoch)
        node = self._nodes.get(command.number)
        if node is None:
            raise Unprocessable(f"There is no node {command.number} in this cluster.", number=command.number)
        if node.removed and command.removed is not True:
            raise Unprocessable(f"Node {node.name} was removed; it cannot come back under its number.", number=node.number)
        wished = {name: value for name in ("cordoned", "draining", "removed") if (value := getattr(command, name)) is not None}
        self._nodes[command.number] = msgspec.structs.replace(node, **wished)
        return Done()

    def _set_replication(self, command: SetReplication) -> Reply:
        self._check_epoch(command.epoch)
        if not 1 <= command.factor <= FACTOR_MAX or command.factor % 2 == 0:
            raise Unprocessable(f"The replication factor is an odd number from 1 to {FACTOR_MAX}, not {command.factor}.", field="factor")
        self.factor = command.factor
        return Done()

    def _raise_level(self, command: RaiseLevel) -> Reply:
        self._check_epoch(command.epoch)
        if command.level < self.level:
            raise Unprocessable(f"The feature level is {self.level} and never goes back.", level=self.level)
        behind = [node.name for node in self.members if node.revision < command.level]
        if behind:
            raise Unprocessable(
                f"Feature level {command.level} needs a newer version on {', '.join(behind)}; upgrade or remove them first.", nodes=behind
            )
        self.level = command.level
        return Done()

    def _check_epoch(self, epoch: int) -> None:
        if epoch and epoch < self.epoch:
            raise Unprocessable(f"A newer administrator is at work (epoch {self.epoch}); this one is at {epoch}.", epoch=self.epoch)
        self.epoch = max(self.epoch, epoch)

    def encode(self) -> bytes:
        """The bytes to store; empty where there is nothing."""
        if not self._nodes:
            return b""
        return _encode(
            _Stored(self._next_number, self.epoch, self.factor, tuple(node for _, node in sorted(self._nodes.items())), self.level)
        )

    @staticmethod
    def decode(data: bytes) -> "ClusterState":
        """The inverse of `encode`."""
        state = ClusterState()
        if data:
            stored = _decoder.decode(data)
            state._next_number, state.epoch, state.factor, state.level = stored.next_number, stored.epoch, stored.factor, stored.level
            state._nodes = {node.number: node for node in stored.nodes}
        return state
