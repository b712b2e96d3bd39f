"""Who belongs to the cluster: how a node becomes a member and stays one, and what the members have agreed on.

Knows the system group's state where this node holds it, and otherwise what others told. Does not know connections or shards. Invariants: a
store has one number for good; what is said of members is what the system group's log made it, or older, but for a peer address that the
member itself says is newer; a node that does not understand the feature level, or whose data is another cluster's, ends.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

import msgspec

from context_node.contexts.cluster import AdvanceEpoch, ClusterState, MarkNode, NodeRecord, RaiseLevel, RegisterNode, SetReplication
from context_node.contexts.refusals import Refusal, Unavailable, Unprocessable
from context_node.contexts.replies import NodeNumber
from context_node.runtime import calls
from context_node.runtime.calls import Member, Welcome
from context_node.runtime.not_here import NotHere
from context_node.runtime.replica import Replica
from context_node.runtime.shards import SYSTEM_SHARD, accepted
from context_node.runtime.transport import PeerIdentity, PeerLost, PeerRefused, PeerUnavailable

if TYPE_CHECKING:
    from context_node.runtime.cluster import Cluster
    from context_node.runtime.node import Node

logger = logging.getLogger("contextstore.cluster")
_node_lists = msgspec.msgpack.Decoder(tuple[NodeRecord, ...])
_encode = msgspec.msgpack.Encoder().encode


class StoreRemoved(RuntimeError):
    """The cluster has removed this node's store: it can never be a member again."""


def address(text: str) -> tuple[str, int]:
    """`host:port` (IPv6 in brackets) as its parts. Raises ValueError."""
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdigit():
        raise ValueError(f"{text!r} is not HOST:PORT")
    return host.strip("[]"), int(port)


class Membership:
    """See the module's docstring."""

    def __init__(self, cluster: "Cluster", node: "Node", now_ms: Callable[[], int]) -> None:
        self._cluster = cluster
        self._node = node
        self._now_ms = now_ms
        self._told_nodes: tuple[NodeRecord, ...] = ()
        self._told_level = 1
        """The greatest feature level that this node was ever told."""
        self._moved: dict[int, tuple[str, str]] = {}
        """By member the peer address that it says is its own now, and the one that was recorded of it when it said so."""
        cluster.handlers.update(
            join=self._take_in,
            nodes=self._nodes_call,
            mark_node=self._mark_node,
            set_replication=self._set_replication,
            raise_level=self._raise_level,
            advance_epoch=self._advance_epoch,
        )

    def begin(self, nodes: bytes) -> None:
        """A life of the node begins; `nodes` are the members that its disk kept."""
        self._told_nodes = _node_lists.decode(nodes) if nodes else ()

    def hear_level(self, level: int) -> None:
        """Another node says which feature level it knows."""
        self._told_level = max(self._told_level, level)

    def hear_address(self, store: str, said: str) -> None:
        """A member says where it is dialed now; a version that does not say gives nothing, and is where the log says. It is believed before
        the log says it: where a majority of the nodes came back at other addresses at once, the log cannot say it until they are dialed."""
        known = next((node for node in self.members() if node.store == store), None)
        if known is None or (before := self.peer_of(known)) == said:
            return
        if said:
            self._moved[known.number] = (said, known.peer)
        else:
            self._moved.pop(known.number, None)
        if (now := self.peer_of(known)) == before:
            return
        logger.info("%s is dialed at %s now, no longer at %s", known.name, now, before)
        if self._cluster.number:
            # Who is no member yet would be connected as nobody, and heard by nobody.
            self._cluster.connect_all()

    def peer_of(self, node: NodeRecord) -> str:
        """Where a member is dialed (`host:port`): what the log says, unless the member has said something else since."""
        said, recorded = self._moved.get(node.number, ("", ""))
        if said and recorded != node.peer:
            # The log has followed, with this address or a still newer one.
            del self._moved[node.number]
            said = ""
        return said or node.peer

    # --- being a member -----------------------------------------------------------------------------------------------

    async def be_taken_in(self) -> Welcome:
        """Ask the nodes of `join`, and the members that were known last, in turn, until one answers. The same store gets the same number
        each time. Raises RuntimeError if there is nobody to ask."""
        complaint = ""
        if not self._peers_to_ask():
            raise RuntimeError("This node holds no replicas and knows no other node of its cluster; start it with --join HOST:PORT.")
        while True:
            # Anew each time: meanwhile some may say that they have moved.
            for peer in self._peers_to_ask():
                try:
                    welcome = await self._ask_to_join(peer)
                except (PeerUnavailable, PeerLost, PeerRefused, Refusal, OSError) as error:
                    _check_refusal(error)
                    if str(error) != complaint:
                        complaint = str(error)
                        logger.warning("not taken in yet by %s: %s", peer, complaint)
                    continue
                self._told_nodes = welcome.nodes
                return welcome
            await asyncio.sleep(0.5)

    def _peers_to_ask(self) -> list[str]:
        store, advertised = self._cluster.transport.identity.store, self._cluster.advertised
        known = [self.peer_of(node) for node in self.members() if node.store != store]
        return [peer for peer in dict.fromkeys((*self._cluster.options.join, *known)) if peer != advertised]

    async def _ask_to_join(self, peer: str) -> Welcome:
        host, port = address(peer)
        data = await self._cluster.transport.request_address(host, port, calls.encode_question("join", (self._me(),)), 10.0)
        return cast(Welcome, calls.decode_answer("join", data))

    async def check_membership(self) -> None:
        """Ask whoever answers whether this store is a member still: one that was removed is heard by nobody. Raises `StoreRemoved`."""
        for peer in self._peers_to_ask():
            if await self._pass_on(peer) is not None:
                return

    async def _pass_on(self, peer: str) -> Welcome | None:
        """Ask to be registered by way of whoever listens there; None if that did not work. Raises what cannot be waited for."""
        try:
            return await self._ask_to_join(peer)
        except (PeerUnavailable, PeerLost, PeerRefused, Refusal, OSError) as error:
            _check_refusal(error)
            return None

    async def run_registration(self) -> None:
        """Have the system group know this node's addresses. Ends when it does."""
        rounds = 0
        while True:
            try:
                welcome = cast(Welcome, await self._cluster.call_leader(SYSTEM_SHARD, "join", (self._me(),)))
            except Refusal as refusal:
                _check_refusal(refusal)
                logger.info("not registered yet: %s", refusal.message)
                # The leader may be where this node cannot dial it, as it has moved too; whoever can passes it on. One is asked at a time:
                # addresses at which nobody is take long.
                peers = self._peers_to_ask()
                asked = await self._pass_on(peers[rounds % len(peers)]) if peers else None
                rounds += 1
                if asked is None:
                    await asyncio.sleep(0.5)
                    continue
                welcome = asked
            if welcome.number != self._cluster.number:
                raise RuntimeError(f"this node is number {self._cluster.number}, and the cluster has its store as {welcome.number}")
            return

    def _me(self) -> Member:
        store = self._cluster.transport.identity.store
        log, options, mine = self._node.log, self._cluster.options, self._node.options
        belongs_to = log.notes.identity.cluster_id if log is not None and log.notes.shards is not None else ""
        return Member(store, mine.name, self._cluster.advertised, options.client, options.zone, mine.revision, belongs_to)

    def keep(self) -> None:
        """Keep who the members are: a node that starts again may hold no replica that knows."""
        engine, log = self._node.engine, self._node.log
        nodes = _encode(tuple(self.members()))
        if engine is None or engine.is_failed or log is None:
            return
        if self.members() and log.notes.nodes != nodes:
            engine.with_log(lambda log: log.notes.note_nodes(nodes))
            self._cluster.news.set()
        if log.notes.level != (level := self.level()):
            engine.with_log(lambda log: log.notes.note_level(level))

    def level(self) -> int:
        """The feature level, as far as this node knows it; an older one than the newest is safe to go by."""
        system = self._system()
        return max(self._told_level, system.machine.cluster.level if system is not None else 1)

    def check_level(self) -> None:
        level, revision = self.level(), self._node.options.revision
        if level > revision:
            raise RuntimeError(f"The cluster is at feature level {level}, and this node understands {revision}; start a newer version.")

    async def ask_nodes(self) -> None:
        for member in self.members():
            if member.number != self._cluster.number and self._cluster.transport.is_connected(member.number):
                try:
                    self._told_nodes = cast("tuple[NodeRecord, ...]", await self._cluster.call(member.number, "nodes", (), 5.0))
                except Refusal:
                    continue
                return

    # --- who there is -------------------------------------------------------------------------------------------------

    def _system(self) -> Replica | None:
        return self._node.shards.held(SYSTEM_SHARD)

    def system_state(self) -> ClusterState | None:
        """What the system group knows, if this node holds a replica of it."""
        system = self._system()
        return None if system is None else system.machine.cluster

    def holds_system(self) -> bool:
        system = self._system()
        return system is not None and bool(system.machine.cluster.members)

    def members(self) -> list[NodeRecord]:
        """The members as far as this node knows them, by number."""
        system = self._system()
        if system is not None and system.machine.cluster.members:
            return system.machine.cluster.members
        return [node for node in self._told_nodes if not node.removed]

    def name_of(self, number: int) -> str:
        """A node's name; its number where the name is not known."""
        if number == self._cluster.number:
            return self._node.options.name
        return next((node.name for node in self.members() if node.number == number), f"node {number}")

    def has(self, peer: PeerIdentity) -> bool:
        """Whether a peer speaks for a node of this cluster: its number belongs to its store, and was not taken away."""
        if not peer.node or peer.cluster_id != self._cluster.transport.identity.cluster_id:
            return False
        system = self._system()
        known = system.machine.cluster.nodes.get(peer.node) if system is not None else None
        return known is None or (known.store == peer.store and not known.removed)

    # --- calls --------------------------------------------------------------------------------------------------------

    async def _take_in(self, member: Member) -> Welcome:
        cluster_id = self._cluster.transport.identity.cluster_id
        # One that is about to be taken in itself belongs to none yet, and cannot say who may.
        if cluster_id and member.cluster_id not in ("", cluster_id):
            raise Unprocessable(
                f"Node {member.name}'s data belongs to cluster {member.cluster_id}, and this is {cluster_id}; give it another directory.",
                cluster_id=cluster_id,
            )
        self.hear_address(member.store, member.peer)
        system = self._node.shards.held(SYSTEM_SHARD)
        if system is None or not system.leads:
            leader = self._cluster.leader_of(SYSTEM_SHARD)
            if not leader or leader == self._cluster.number:
                raise NotHere("The cluster has no leader now; try again shortly.", retry_after_s=1)
            return cast(Welcome, await self._cluster.call(leader, "join", (member,)))
        command = RegisterNode(self._now_ms(), member.store, member.name, member.peer, member.client, member.zone, member.revision)
        number = cast(NodeNumber, accepted(await system.propose(command))).number
        self._cluster.connect_all()
        nodes = tuple(system.machine.cluster.members)
        return Welcome(number, cluster_id, self._node.options.shards, nodes)

    async def _nodes_call(self) -> tuple[NodeRecord, ...]:
        if not self.holds_system():
            # Two that were only told would tell each other the same for ever.
            raise Unavailable("This node was only told who the members are; ask another.")
        return tuple(self.members())

    async def _mark_node(self, epoch: int, number: int, cordoned: bool | None, draining: bool | None, removed: bool | None) -> None:
        system = self._cluster.leading(SYSTEM_SHARD)
        accepted(await system.propose(MarkNode(self._now_ms(), epoch, number, cordoned, draining, removed)))
        self._cluster.news.set()

    async def _set_replication(self, epoch: int, factor: int) -> None:
        system = self._cluster.leading(SYSTEM_SHARD)
        accepted(await system.propose(SetReplication(self._now_ms(), epoch, factor)))
        self._cluster.news.set()

    async def _advance_epoch(self, epoch: int) -> None:
        system = self._cluster.leading(SYSTEM_SHARD)
        accepted(await system.propose(AdvanceEpoch(self._now_ms(), epoch)))

    async def _raise_level(self, epoch: int, level: int) -> None:
        system = self._cluster.leading(SYSTEM_SHARD)
        accepted(await system.propose(RaiseLevel(self._now_ms(), epoch, level)))
        self._cluster.tell_soon()


def _check_refusal(error: Exception) -> None:
    """What cannot be waited for ends the node: it is too old for the cluster's feature level, its data is another cluster's, or the cluster
    has removed its store."""
    if isinstance(error, Unprocessable) and "number" in error.details:
        raise StoreRemoved(error.message) from None
    if isinstance(error, Unprocessable) and ("level" in error.details or "cluster_id" in error.details):
        raise RuntimeError(error.message) from None
