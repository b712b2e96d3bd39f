"""The cluster as an administrator sees and changes it, from whichever node is asked.

Knows how to put the words of all nodes together, and which node takes each step. Does not know which steps are wise: that is the planner's
(`context_operator/placement.py`). Invariants: looking changes nothing; every step may be repeated, since it does nothing where its aim is
met; a node that does not answer is shown as away, never left out.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import cast

import msgspec

from context_node.contexts.refusals import Refusal, Unavailable, Unprocessable
from context_node.runtime.archive_view import ArchiveView, total
from context_node.runtime.calls import Digest, NodeStatus, ReplicaStatus
from context_node.runtime.cluster import Cluster
from context_node.runtime.moving import CAUGHT_UP_ENTRIES
from context_node.runtime.shards import SYSTEM_SHARD, node_of

LOOK_TIMEOUT_S = 2.0
COMPARE_TIMEOUT_S = 20.0


class ReplicaView(msgspec.Struct, frozen=True):
    """One replica of a shard, as its leader knows it; `match_index` and `is_caught_up` are 0 and false where no leader is known.
    `is_missing`: its node is ready and does not hold it."""

    replica_id: int
    node: int
    is_voter: bool
    is_caught_up: bool
    match_index: int
    is_missing: bool = False


class ShardView(msgspec.Struct, frozen=True):
    """One shard. `leader` is a node's number or null. `lag` is by how many entries the voter that is farthest behind lags."""

    shard: int
    is_system: bool
    leader: int | None
    term: int
    applied: int
    is_joint: bool
    lag: int
    replicas: list[ReplicaView]


class NodeView(msgspec.Struct, frozen=True):
    """One node. `is_alive`: it answered just now. `revision`: the newest of the state machine that it understands;
    `has_slow_disk`: it hands over what it leads, and takes nothing new. `archive` is null without one, and of a node that does not tell."""

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


class ReplicaDigest(msgspec.Struct, frozen=True):
    """The hash of one replica's state, 64 hexadecimal digits; null where the node did not answer in time."""

    node: int
    digest: str | None


class ShardComparison(msgspec.Struct, frozen=True):
    """The replicas of a shard, all at log index `index`. `is_equal`: those that answered have the same state."""

    shard: int
    index: int
    is_equal: bool
    replicas: list[ReplicaDigest]


class ClusterView(msgspec.Struct, frozen=True):
    """All of it. `node` is who was asked; `feature_level` is the greatest revision of which commands are proposed; `archive` is that of all
    nodes together."""

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


class SelfView(msgspec.Struct, frozen=True):
    """The node that was asked. `state`: `starting`; `waiting` to be taken in or told to begin a cluster, its store in none yet;
    `member`. `number` is 0 and `cluster_id` empty where it is none; `reason` says why it is not ready."""

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
    """The named policies that a node's replicas follow: by name the oldest generation among its shards, 0 where one has none. `is_alive`:
    it answered; a node without replicas follows nothing."""

    node: int
    name: str
    is_alive: bool
    replicas: int
    policies: dict[str, int]


class ClusterAdmin:
    """The steps, and the look at everything."""

    def __init__(self, cluster: Cluster, shards: int, describe_self: Callable[[], SelfView], begin_cluster: Callable[[str], None]) -> None:
        self._cluster = cluster
        self._shards = shards
        self._describe_self = describe_self
        self._begin_cluster = begin_cluster

    def describe_self(self) -> SelfView:
        """This node as it stands now, also while it waits for a cluster."""
        return self._describe_self()

    async def begin(self, cluster_id: str) -> None:
        """Have the node that is asked begin a cluster, if it waits for one. Returns before it has; asking again is safe."""
        self._begin_cluster(cluster_id)

    @property
    def leads(self) -> bool:
        """Whether this node leads the system group: of all administrators that run on nodes, only the one there acts."""
        return self._cluster.number != 0 and self._cluster.leader_of(SYSTEM_SHARD) == self._cluster.number

    async def changed(self, timeout_s: float) -> None:
        """Return when something that decides who should hold or lead what has changed, as far as this node knows, or after so long."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._cluster.news.wait()
        self._cluster.news.clear()

    async def look(self) -> ClusterView:
        """Ask every member how it is. Takes `LOOK_TIMEOUT_S` where one does not answer."""
        members = self._cluster.membership.members()
        statuses = await asyncio.gather(*(self._status(node.number) for node in members))
        alive = {status.number: status for status in statuses if status is not None}
        shards = [self._shard(shard, alive) for shard in (*range(self._shards), SYSTEM_SHARD)]
        ordinary = [shard for shard in shards if not shard.is_system]
        nodes = [
            NodeView(
                number=node.number,
                name=node.name,
                zone=node.zone,
                peer_address=node.peer,
                client_address=node.client,
                is_alive=node.number in alive,
                is_ready=node.number in alive and alive[node.number].is_ready,
                version=alive[node.number].version if node.number in alive else "",
                revision=alive[node.number].revision if node.number in alive else node.revision,
                has_slow_disk=node.number in alive and alive[node.number].has_slow_disk,
                cordoned=node.cordoned,
                draining=node.draining,
                replicas=sum(replica.node == node.number for shard in ordinary for replica in shard.replicas),
                leaders=sum(shard.leader == node.number for shard in ordinary),
                archive=alive[node.number].archive if node.number in alive else None,
            )
            for node in members
        ]
        factor = max((status.factor for status in alive.values()), default=0)
        wanted = _largest_odd(min(factor, sum(node.is_alive and not node.draining for node in nodes)))
        under = [shard for shard in ordinary if not _is_replicated(shard, wanted)]
        leaderless = [shard for shard in ordinary if shard.leader is None]
        return ClusterView(
            cluster_id=self._cluster.transport.identity.cluster_id,
            node=self._cluster.number,
            epoch=max((status.epoch for status in alive.values()), default=0),
            feature_level=self._cluster.membership.level(),
            replication_factor=factor,
            shards_total=len(ordinary),
            shards_healthy=len(ordinary) - len({shard.shard for shard in (*under, *leaderless)}),
            shards_leaderless=len(leaderless),
            shards_under_replicated=len(under),
            nodes=nodes,
            shards=shards,
            archive=total({node.name: node.archive for node in nodes if node.is_alive}),
        )

    async def _status(self, number: int) -> NodeStatus | None:
        if number == self._cluster.number:
            return self._cluster.describe()
        try:
            return cast(NodeStatus, await self._cluster.call(number, "describe", (), LOOK_TIMEOUT_S))
        except Refusal:
            return None

    def _shard(self, shard: int, alive: dict[int, NodeStatus]) -> ShardView:
        told = [replica for status in alive.values() for replica in status.replicas if replica.shard == shard]
        leaders = [replica for replica in told if replica.is_leader]
        is_system = shard == SYSTEM_SHARD
        if not leaders:
            known = max(told, key=lambda replica: (replica.applied, replica.term), default=None)
            replicas = [] if known is None else [_blind(one, known) for one in (*known.voters, *known.learners)]
            term, applied = (known.term, known.applied) if known is not None else (0, 0)
            return ShardView(shard, is_system, None, term, applied, False, 0, replicas)
        # Of two that both think so, the later term is right.
        leader = max(leaders, key=lambda replica: replica.term)
        progress = {one.replica_id: one for one in leader.followers}
        replicas = []
        for replica_id in (*leader.voters, *leader.learners):
            one = progress.get(replica_id)
            match = leader.last_index if replica_id == leader.replica_id else one.match_index if one is not None else 0
            is_heard = replica_id == leader.replica_id or (one is not None and one.is_active and node_of(replica_id) in alive)
            is_caught_up = is_heard and match + CAUGHT_UP_ENTRIES >= leader.last_index and match > 0
            status = alive.get(node_of(replica_id))
            is_missing = status is not None and status.is_ready and all(held.replica_id != replica_id for held in status.replicas)
            replicas.append(ReplicaView(replica_id, node_of(replica_id), replica_id in leader.voters, is_caught_up, match, is_missing))
        lag = max((leader.last_index - one.match_index for one in replicas if one.is_voter), default=0)
        return ShardView(
            shard,
            is_system,
            node_of(leader.replica_id),
            leader.term,
            leader.applied,
            leader.is_joint,
            lag,
            sorted(replicas, key=lambda one: one.node),
        )

    # --- steps -------------------------------------------------------------------------------------------------------

    # An `epoch` of 0 is nobody's and is not compared. One that is older than the newest seen is refused.

    async def add_learner(self, shard: int, node: int, epoch: int = 0) -> None:
        """Give a node a replica of a shard that follows and does not vote yet."""
        self._check_node(node)
        await self._advance(epoch)
        await self._cluster.call_leader(self._checked(shard), "add_learner", (shard, node))

    async def change_members(self, shard: int, promote: tuple[int, ...], remove: tuple[int, ...], epoch: int = 0) -> None:
        """Make learners voters and take replicas out, in one change."""
        await self._advance(epoch)
        await self._cluster.call_leader(self._checked(shard), "change_members", (shard, promote, remove))

    async def transfer_leader(self, shard: int, node: int, epoch: int = 0) -> None:
        """Hand a shard's leadership to its voter on a node."""
        self._check_node(node)
        await self._advance(epoch)
        await self._cluster.call_leader(self._checked(shard), "transfer_leader", (shard, node))

    async def mark_node(
        self, number: int, *, cordoned: bool | None = None, draining: bool | None = None, removed: bool | None = None, epoch: int = 0
    ) -> None:
        """Say what is wished of a node. A node that holds replicas is not removed: drain it first."""
        self._check_node(number)
        if removed:
            view = await self.look()
            held = [shard.shard for shard in view.shards if any(one.node == number for one in shard.replicas)]
            if held:
                raise Unprocessable(
                    f"Node {self._cluster.membership.name_of(number)} still belongs to {len(held)} shards; drain it first.",
                    number=number,
                    shards=held[:20],
                )
        await self._cluster.call_leader(SYSTEM_SHARD, "mark_node", (epoch, number, cordoned, draining, removed))

    async def set_replication(self, factor: int, epoch: int = 0) -> None:
        """How many voters a shard should have."""
        await self._cluster.call_leader(SYSTEM_SHARD, "set_replication", (epoch, factor))

    async def raise_level(self, level: int, epoch: int = 0) -> None:
        """Let commands up to this revision be proposed. Refused while a member does not understand them; there is no way back."""
        await self._cluster.call_leader(SYSTEM_SHARD, "raise_level", (epoch, level))

    async def policies(self) -> list[NodePolicies]:
        """Which named policies each node's replicas follow."""
        members = self._cluster.membership.members()
        told = await asyncio.gather(*(self._held_policies(node.number) for node in members))
        return [
            NodePolicies(node.number, node.name, False, 0, {}) if held is None else NodePolicies(node.number, node.name, True, *held)
            for node, held in zip(members, told, strict=True)
        ]

    async def _held_policies(self, number: int) -> tuple[int, dict[str, int]] | None:
        try:
            return cast("tuple[int, dict[str, int]]", await self._cluster.call_or_do(number, "policies", (), LOOK_TIMEOUT_S))
        except Refusal:
            return None

    async def compare(self, shard: int) -> ShardComparison:
        """Have all replicas of a shard hash their state at one entry. Raises `Unavailable` if none could."""
        self._checked(shard)
        view = await self.look()
        members = next(each for each in view.shards if each.shard == shard).replicas
        alive = {node.number for node in view.nodes if node.is_alive}
        loop = asyncio.get_running_loop()
        until = loop.time() + COMPARE_TIMEOUT_S
        while True:
            mark = self._cluster.new_name()
            await self._cluster.call_leader(shard, "compare", (shard, mark))
            found = await asyncio.gather(*(self._digest(one.node, shard, mark, until if one.node in alive else 0.0) for one in members))
            if all(one is None or one.digest for one in found) or loop.time() > until:
                break
        taken = [one for one in found if one is not None and one.digest]
        if not taken:
            raise Unavailable(f"No replica of shard {shard} answered with a digest; try again shortly.", retry_after_s=1)
        return ShardComparison(
            shard,
            taken[0].index,
            len({(one.index, one.digest) for one in taken}) == 1,
            [
                ReplicaDigest(member.node, one.digest.hex() if one is not None and one.digest else None)
                for member, one in zip(members, found, strict=True)
            ],
        )

    async def _digest(self, node: int, shard: int, mark: str, until: float) -> Digest | None:
        """What a node's replica found, as soon as it has; None if it did not in time."""
        loop = asyncio.get_running_loop()
        while loop.time() < until:
            try:
                found = cast(Digest | None, await self._cluster.call_or_do(node, "digest", (shard, mark), LOOK_TIMEOUT_S))
            except Refusal:
                found = None
            if found is not None:
                return found
            await asyncio.sleep(0.05)
        return None

    def number_of(self, name: str) -> int:
        """The number of the node with this name, or with this number. Raises `Unprocessable`."""
        members = self._cluster.membership.members()
        found = [node.number for node in members if node.name == name or str(node.number) == name]
        if len(found) != 1:
            names = ", ".join(f"{node.name} ({node.number})" for node in members)
            what = f"Several nodes are called {name}; give the number" if found else f"There is no node {name}"
            raise Unprocessable(f"{what}. Nodes: {names}.", name=name)
        return found[0]

    async def _advance(self, epoch: int) -> None:
        """Each shard's members are its own group's business, so the guard is a step of its own: it comes before, and from then on an older
        administrator begins nothing. What that one began a moment earlier is a safe step as well, only not a wanted one."""
        if epoch:
            await self._cluster.call_leader(SYSTEM_SHARD, "advance_epoch", (epoch,))

    def _check_node(self, number: int) -> None:
        if all(node.number != number for node in self._cluster.membership.members()):
            raise Unprocessable(f"There is no node {number} in this cluster.", number=number)

    def _checked(self, shard: int) -> int:
        if not (0 <= shard < self._shards or shard == SYSTEM_SHARD):
            raise Unprocessable(
                f"There is no shard {shard}; they are 0 to {self._shards - 1}, and {SYSTEM_SHARD} is the system group.", shard=shard
            )
        return shard


def _is_replicated(shard: ShardView, wanted: int) -> bool:
    voters = [one for one in shard.replicas if one.is_voter]
    return len(voters) >= wanted and all(one.is_caught_up for one in voters)


def _blind(replica_id: int, known: ReplicaStatus) -> ReplicaView:
    return ReplicaView(replica_id, node_of(replica_id), replica_id in known.voters, False, 0)


def _largest_odd(number: int) -> int:
    return number if number % 2 else max(0, number - 1)
