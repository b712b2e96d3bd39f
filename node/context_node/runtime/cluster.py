"""A node among others: what they say to each other, who leads which shard, and the calls that they answer for each other.

Knows the leaders (from its own replicas and from what others report), and the loop that gives groups their time; `membership` knows who the
others are. Does not know HTTP, nor who should hold what: that is an administrator's business, who calls `runtime/moving.py`. Invariants:
Raft messages are taken only from members of the same cluster, and only from replicas of the node that sends them (P11); a call is passed on
at most once.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import msgspec

from context_node.contexts.refusals import Refusal, Unavailable
from context_node.raft import MessageKind, peek_message
from context_node.runtime import calls
from context_node.runtime.calls import NodeStatus
from context_node.runtime.describing import describe_node, describe_policies
from context_node.runtime.membership import Membership, address
from context_node.runtime.not_here import NotHere
from context_node.runtime.pauses import Pauses
from context_node.runtime.proposals import outcome_unknown
from context_node.runtime.quiescence import Rest, Watch
from context_node.runtime.replica import Replica
from context_node.runtime.shards import node_of
from context_node.runtime.transport import PeerIdentity, PeerLost, PeerRefused, PeerUnavailable, Transport
from context_node.tls import Credentials

if TYPE_CHECKING:
    from context_node.runtime.node import Node

logger = logging.getLogger("contextstore.cluster")

RAFT, REPORT, REST, AWAKE, BEAT = b"R", b"L", b"Q", b"W", b"B"
"""The first byte of a one-way message: Raft messages by shard, a report of what a node leads, groups that go to rest, shards whose replica
at the sender does not agree, or nothing but a sign of life."""

BULK_BYTES = 16 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterOptions:
    """`host` and `port` are listened on for peers; `advertise` is what others dial (`host:port`, empty: the same). `secret` (at least 16
    bytes) is the cluster's. `join`: nodes to ask to be taken in; without any, an empty data directory begins a cluster of its own.
    An election starts after `election_ticks` to twice as many ticks of `tick_s` without a leader. A group that is idle for `idle_ticks`
    goes to rest; 0: none does. A node whose COMMITs take longer than `slow_disk_s` (0: never) hands over what it leads. `cluster_id`: the
    only cluster that the node may belong to or begin; empty: any. `renews`: a store that was removed from the cluster is emptied, and the
    node joins again as a new one. With `tls` nodes prove themselves by
    certificate too, beside the secret."""

    host: str
    port: int
    secret: bytes
    advertise: str = ""
    client: str = ""
    zone: str = ""
    join: tuple[str, ...] = ()
    tick_s: float = 0.1
    election_ticks: int = 10
    heartbeat_ticks: int = 2
    idle_ticks: int = 20
    slow_disk_s: float = 0.5
    report_s: float = 0.5
    call_timeout_s: float = 30.0
    leader_wait_s: float = 3.0
    cluster_id: str = ""
    renews: bool = False
    tls: Credentials | None = None


class Led(msgspec.Struct, frozen=True, array_like=True):
    """A shard that the reporting node leads: in which term, how far it has applied, and its members at that index."""

    shard: int
    term: int
    applied: int
    members: tuple[int, ...]


class Report(msgspec.Struct, frozen=True, array_like=True):
    """What a node leads, the feature level that it knows, whether its disk is slow, and where it is dialed (`host:port`; empty from
    versions that do not say)."""

    led: tuple[Led, ...]
    level: int = 1
    has_slow_disk: bool = False
    peer: str = ""


_raft_messages = msgspec.msgpack.Decoder(list[tuple[int, bytes]])
_reports = msgspec.msgpack.Decoder(Report)
_rests = msgspec.msgpack.Decoder(tuple[Rest, ...])
_shards = msgspec.msgpack.Decoder(tuple[int, ...])
_encode = msgspec.msgpack.Encoder().encode

Handler = Callable[..., Awaitable[Any]]


class Cluster:
    """The part of a node that knows of others. `start` before groups are driven, `stop` after they are not any more."""

    def __init__(
        self,
        node: "Node",
        options: ClusterOptions,
        random_bytes: Callable[[int], bytes],
        now_ms: Callable[[], int],
        make_transport: Callable[..., Transport] = Transport,
    ) -> None:
        self.options = options
        self.number = 0
        self._transport: Transport | None = None
        self.handlers: dict[str, Handler] = {
            "describe": self._describe_call,
            "leader": self._leader_call,
            "policies": self._policies_call,
        }
        self.membership = Membership(self, node, now_ms)
        self._node = node
        self._random_bytes = random_bytes
        self._now_ms = now_ms
        self._make_transport = make_transport
        self._watch = Watch(options.election_ticks)
        self.pauses = Pauses(options.tick_s * options.election_ticks)
        self._asked = 0
        self._told = b""
        self._tell_soon = asyncio.Event()
        """Set when this node has begun to lead something: the others are told at once, not at the next round."""
        self.advertised = ""
        self.news = asyncio.Event()
        """Set when something has changed that decides who should hold or lead what; whoever waits for it takes it back."""
        self.slow: dict[int, bool] = {}
        """By node whether it last reported that its disk is slow."""
        self._reported: dict[int, tuple[int, int]] = {}
        """By shard the newest term and the node that leads it, as its leader reported."""
        self.on_led: Callable[[int, Led], None] = lambda _node, _led: None

    # --- life --------------------------------------------------------------------------------------------------------

    async def start(self, store: str, cluster_id: str, number: int, nodes: bytes) -> None:
        """Listen for peers, under the identity of a data directory; `nodes` are the members that it kept. Raises RuntimeError if the
        address cannot be had. May be called again after `stop`."""
        self.number = number
        self.membership.begin(nodes)
        identity = PeerIdentity(cluster_id if number else "", number, store, self._node.options.name)
        transport = self._make_transport(
            identity,
            self.options.secret,
            random_bytes=self._random_bytes,
            on_message=self._on_message,
            on_request=self._on_request,
            on_peer=self._on_peer,
            tls=self.options.tls,
        )
        host, port = self.options.host, self.options.port
        try:
            port = await transport.listen(host, port)
        except OSError as error:
            why = error.strerror or str(error)
            raise RuntimeError(
                f"Cannot listen for other nodes on {host}:{port}: {why}. Give another --peer-host or --peer-port."
            ) from error
        self._transport = transport
        self.advertised = self.options.advertise or f"{host}:{port}"

    @property
    def transport(self) -> Transport:
        """The connections to other nodes, between `start` and `stop`. Raises `NotHere` at other times: whoever asks came while the node
        was starting or stopping, and nothing of what was asked was done."""
        if self._transport is None:
            raise NotHere("The node is not connected to the others now; try again shortly.", retry_after_s=1)
        return self._transport

    async def stop(self) -> None:
        """Close every connection. May be called at any time, also repeatedly."""
        transport, self._transport = self._transport, None
        if transport is not None:
            await transport.close()

    def become(self, number: int, cluster_id: str) -> None:
        """This node is a member now."""
        self.number = number
        old = self.transport.identity
        self.transport.identity = PeerIdentity(cluster_id, number, old.store, old.name)
        self.connect_all()

    async def run_ticks(self) -> None:
        """Give every group its time, at a steady pace; late ticks are not made up for, or a pause would start elections."""
        loop = asyncio.get_running_loop()
        due, ticks = loop.time(), 0
        while True:
            due = max(due + self.options.tick_s, loop.time())
            await asyncio.sleep(due - loop.time())
            self.pauses.note(loop.time() - due)
            ticks += 1
            engine = self._node.engine
            if engine is None or engine.is_failed:
                continue
            for node, rests in engine.tick(self.options.idle_ticks).items():
                self.transport.send(node, REST + _encode(tuple(rests)))
            # Three in the time after which a node counts as silent.
            if ticks % max(1, self.options.election_ticks // 3) == 0:
                for member in self.membership.members():
                    if member.number != self.number:
                        self.transport.send(member.number, BEAT)
            if engine.has_new_leader:
                engine.has_new_leader = False
                self._tell_soon.set()
                self.news.set()
            engine.leaderships.tell(logger)
            for node in self._watch.tick():
                engine.wake_led_by(node)

    async def run_reports(self) -> None:
        """Tell the others what is led here, and keep connected to whoever is a member."""
        rounds = 0
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self.options.report_s):
                    await self._tell_soon.wait()
            self._tell_soon.clear()
            rounds += 1
            self.connect_all()
            self.membership.keep()
            self.membership.check_level()
            report = REPORT + _encode(Report(tuple(self._led()), self.membership.level(), self.has_slow_disk, self.advertised))
            # Told again now and then: whoever has just connected knows nothing yet.
            if report != self._told or rounds % 4 == 0:
                self._told = report
                for member in self.membership.members():
                    if member.number != self.number:
                        self.transport.send(member.number, report)
            if rounds % 4 == 0 and not self.membership.holds_system():
                await self.membership.ask_nodes()
                if self.options.renews and rounds % 16 == 0:
                    await self.membership.check_membership()

    @property
    def has_slow_disk(self) -> bool:
        """Whether this node's disk is slow."""
        engine = self._node.engine
        return engine is not None and engine.disk.is_slow(asyncio.get_running_loop().time())

    def _led(self) -> Iterable[Led]:
        for replica in self._node.shards.all():
            # Before it has applied an entry of its own term, the members that a new leader knows may be old ones.
            if replica.leads and replica.applied_term == replica.group.term:
                yield Led(replica.shard, replica.group.term, replica.applied_index, tuple(sorted(replica.members.members)))

    # --- who there is ------------------------------------------------------------------------------------------------

    def tell_soon(self) -> None:
        """Have the others told at once what has changed here."""
        self._tell_soon.set()

    def connect_all(self) -> None:
        """Keep one connection to every other member, and to nobody else."""
        wanted = {node.number: node for node in self.membership.members() if node.number != self.number}
        for number, node in wanted.items():
            try:
                host, port = address(self.membership.peer_of(node))
            except ValueError:
                continue
            self.transport.connect(number, host, port, node.store)
        system = self.membership.system_state()
        if system is not None:
            for number, node in system.nodes.items():
                if node.removed:
                    self.transport.forget(number)

    def leader_of(self, shard: int) -> int:
        """The node that leads a shard, as far as is known here; 0 if nobody does."""
        replica = self._node.shards.held(shard)
        if replica is not None and replica.failure is None and (leader := replica.group.leader_id):
            return node_of(leader)
        return self._reported.get(shard, (0, 0))[1]

    # --- messages ----------------------------------------------------------------------------------------------------

    def send(self, node: int, messages: list[tuple[int, bytes]]) -> None:
        """Raft messages to a node. Those that carry much go behind those that keep the peace."""
        if self._transport is None:
            return
        small: list[tuple[int, bytes]] = []
        large: list[tuple[int, bytes]] = []
        for each in messages:
            is_large = len(each[1]) >= BULK_BYTES and peek_message(each[1])[0] == MessageKind.APPEND
            (large if is_large else small).append(each)
        is_sent = not small or self._transport.send(node, RAFT + _encode(small))
        for each in large:
            is_sent &= self._transport.send(node, RAFT + _encode([each]), bulk=True)
        if not is_sent:
            self._lost(node)

    def _lost(self, node: int) -> None:
        if self._node.engine is not None:
            self._node.engine.lost(node)
            self._node.engine.wake_led_by(node)

    def _on_message(self, peer: PeerIdentity, payload: bytes) -> None:
        # A connection that is being closed may still bring what was on its way.
        if self._transport is None or not self.membership.has(peer):
            return
        kind, body = payload[:1], payload[1:]
        engine = self._node.engine
        self._watch.heard(peer.node)
        if kind == RAFT and engine is not None:
            engine.receive(peer.node, _raft_messages.decode(body))
        elif kind == REST and engine is not None:
            if awake := engine.rest(_rests.decode(body)):
                self.transport.send(peer.node, AWAKE + _encode(tuple(awake)))
        elif kind == AWAKE and engine is not None:
            engine.wake(_shards.decode(body))
        elif kind == REPORT:
            report = _reports.decode(body)
            self.membership.hear_level(report.level)
            self.membership.hear_address(peer.store, report.peer)
            if self.slow.get(peer.node) != report.has_slow_disk:
                self.news.set()
            self.slow[peer.node] = report.has_slow_disk
            for led in report.led:
                known = self._reported.get(led.shard, (0, 0))
                if led.term > known[0]:
                    self.news.set()
                if led.term >= known[0]:
                    self._reported[led.shard] = (led.term, peer.node)
                    self.on_led(peer.node, led)

    def _on_peer(self, node: int, is_connected: bool) -> None:
        self.news.set()
        if is_connected:
            self._told = b""
            self._tell_soon.set()
        else:
            self._watch.lost(node)
            self._lost(node)

    # --- calls -------------------------------------------------------------------------------------------------------

    async def call(self, node: int, name: str, arguments: tuple[Any, ...], timeout_s: float | None = None) -> Any:
        """Ask another node. Raises the `Refusal` it gave; `Unavailable` if it was not reached; for a write whose answer was lost
        `OutcomeUnknown`."""
        timeout = self.options.call_timeout_s if timeout_s is None else timeout_s
        try:
            data = await self.transport.request(node, calls.encode_question(name, arguments), timeout, bulk=name == "snapshot_chunk")
        except PeerUnavailable as error:
            raise NotHere(
                f"Node {self.membership.name_of(node)} cannot be reached; try again shortly.", retry_after_s=1, why=str(error)
            ) from None
        except PeerRefused as error:
            raise Unavailable(
                f"Node {self.membership.name_of(node)} could not answer; try again shortly.", retry_after_s=1, why=str(error)
            ) from None
        except PeerLost:
            if calls.KINDS[name].is_write:
                raise outcome_unknown() from None
            raise Unavailable(f"Node {self.membership.name_of(node)} did not answer; try again shortly.", retry_after_s=1) from None
        return calls.decode_answer(name, data)

    async def call_or_do(self, node: int, name: str, arguments: tuple[Any, ...], timeout_s: float | None = None) -> Any:
        """Ask a node that may be this one. Raises as `call`."""
        if node == self.number:
            return await self.handlers[name](*arguments)
        return await self.call(node, name, arguments, timeout_s)

    def new_name(self) -> str:
        """A name that nobody else gives: 16 hexadecimal digits."""
        return self._random_bytes(8).hex()

    async def call_leader(self, shard: int, name: str, arguments: tuple[Any, ...]) -> Any:
        """Ask the node that leads a shard, here or elsewhere; waits a little for an election. Raises as `call`."""
        held = self._node.shards.held(shard)
        if held is not None and held.failure is not None and (held.is_only_voter or not held.has_peers):
            raise Unavailable(held.failure)  # nobody else will lead it
        loop = asyncio.get_running_loop()
        until = loop.time() + self.options.leader_wait_s
        told = 0
        while True:
            leader, told = told or self.leader_of(shard) or await self._ask_leader(shard), 0
            try:
                if leader == self.number and leader:
                    return await self.handlers[name](*arguments)
                if leader:
                    return await self.call(leader, name, arguments)
            except NotHere as refusal:
                # Nothing was done, so asking whoever leads now is safe: the one that the node names, or whom this node hears of.
                named = refusal.details.get("leader")
                told = named if isinstance(named, int) and named != leader else 0
            if loop.time() >= until:
                raise Unavailable("This shard has no leader now; try again shortly.", retry_after_s=1)
            await asyncio.sleep(0.005 if told else 0.05)

    async def _ask_leader(self, shard: int) -> int:
        """Who leads a shard, as another node knows: one that has just joined has not been told of any. 0 if nobody knows."""
        connected = [member.number for member in self.membership.members() if member.number != self.number]
        self._asked += 1
        for place in range(len(connected)):
            node = connected[(self._asked + place) % len(connected)]
            if self.transport.is_connected(node):
                try:
                    return cast(int, await self.call(node, "leader", (shard,), 1.0))
                except Refusal:
                    return 0
        return 0

    async def _on_request(self, peer: PeerIdentity, payload: bytes) -> bytes:
        try:
            name, arguments = calls.decode_question(payload)
        except (msgspec.MsgspecError, KeyError) as error:
            return calls.encode_refusal(Unavailable("This node does not know that call; it runs another version.", why=str(error)))
        if name != "join" and not self.membership.has(peer):
            return calls.encode_refusal(Unavailable("You are no member of this cluster."))
        try:
            return calls.encode_answer(await self.handlers[name](*arguments))
        except Refusal as refusal:
            return calls.encode_refusal(refusal)

    def leading(self, shard: int) -> Replica:
        """The replica of a shard, if it leads. Raises `NotHere`."""
        replica = self._node.shards.held(shard)
        if replica is None or not replica.leads:
            raise NotHere("This node does not lead that shard now; try again shortly.", retry_after_s=1, leader=self.leader_of(shard))
        return replica

    async def _leader_call(self, shard: int) -> int:
        return self.leader_of(shard)

    async def _policies_call(self) -> tuple[int, dict[str, int]]:
        return describe_policies(self._node.shards.replicas())

    async def _describe_call(self) -> NodeStatus:
        return self.describe()

    def describe(self) -> NodeStatus:
        """This node and its replicas, as it sees them."""
        return describe_node(self._node, self)
