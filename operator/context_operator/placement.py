"""Which replica goes where: from the present state of a cluster to the steps that may be taken now.

Knows: nodes, zones, shards, voters, learners, leaders; what keeps a majority. The same planner serves the background balancer,
`contextstore cluster rebalance|drain` and the operator.
Does not know: time, I/O, Kubernetes, the nodes' API, or what it planned before: every plan is made from the state alone.

Invariants:
- At most one step a shard in a plan, and each is safe whatever becomes of the others.
- No step for a shard without a live leader and a live majority, in a joint change, or with a learner that is catching up
  (but a learner of a dead node is removed).
- A change of voters leaves a live majority, and no fewer live voters than are wanted or were there; it never removes the leader.
- A node never has two replicas of a shard; a dead node keeps its voters unless it is draining.
- Every step but a transfer lowers the cost of the best placement (`spread.py`), which leaders don't change. Between such steps every
  transfer brings a leader to a better place (`_leader_costs`) or evens leaders out. So planning and taking steps comes to an end.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from context_operator.spread import Demand, spread

SYSTEM_VOTERS_MAX = 5
TRANSFERS_MAX = 4
"""Leaders that move in one plan: each transfer stops its shard's writes for a round trip or two."""


@dataclass(frozen=True, slots=True)
class NodeInfo:
    number: int
    zone: str = ""
    alive: bool = True
    cordoned: bool = False
    """It takes nothing new; what it has may stay, except leaders."""
    draining: bool = False
    """Everything must leave it."""


@dataclass(frozen=True, slots=True)
class ReplicaInfo:
    replica_id: int
    node: int
    is_voter: bool
    is_caught_up: bool
    """A learner may be promoted, a voter may lead."""


@dataclass(frozen=True, slots=True)
class ShardInfo:
    shard: int
    leader: int | None
    """The node that leads."""
    replicas: tuple[ReplicaInfo, ...]
    is_joint: bool = False
    """A change of its members is under way."""


@dataclass(frozen=True, slots=True)
class ClusterInfo:
    nodes: tuple[NodeInfo, ...]
    """A replica on a node that is not listed counts as dead and draining."""
    shards: tuple[ShardInfo, ...]
    replication_factor: int
    system_shard: int
    """Its voters are on up to `SYSTEM_VOTERS_MAX` nodes, its learners on all others."""


@dataclass(frozen=True, slots=True)
class AddLearner:
    shard: int
    node: int


@dataclass(frozen=True, slots=True)
class Promote:
    """One joint change: these learners become voters and these voters leave. Either may be empty, not both."""

    shard: int
    replica_ids: tuple[int, ...]
    removes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Remove:
    """A learner leaves. Voters leave in `Promote` only."""

    shard: int
    replica_id: int


@dataclass(frozen=True, slots=True)
class TransferLeader:
    shard: int
    to_node: int


Step = AddLearner | Promote | Remove | TransferLeader


@dataclass(frozen=True, slots=True)
class Plan:
    steps: tuple[Step, ...]
    """May be taken now, all or some, in any order."""
    moves_left: int
    """Replicas that are not yet what they shall become, those on their way included. Leaders are not counted."""
    blocked: tuple[str, ...]
    """What can't be done, and why: sentences for people."""


def plan(cluster: ClusterInfo, moves_max: int) -> Plan:
    """The next steps. At most `moves_max` shards have a move of replicas under way at once, those begun earlier included."""
    view = _View(cluster)
    blocked = view.shortages()
    steps: list[Step] = []
    under_way = [shard.shard for shard in cluster.shards if view.is_moving(shard)]
    free_moves = moves_max - len(under_way)
    transfers = 0
    for shard in sorted(cluster.shards, key=view.urgency):
        match view.next_step(shard):
            case str(reason):
                blocked.append(reason)
            case TransferLeader() as step:
                if transfers < TRANSFERS_MAX:
                    transfers += 1
                    view.count_transfer(shard, step)
                    steps.append(step)
            case AddLearner() | Promote() | Remove() as step:
                if shard.shard in under_way:
                    steps.append(step)
                elif free_moves > 0:
                    free_moves -= 1
                    steps.append(step)
            case None:
                pass
    is_settled = not steps and not under_way
    busy = [*under_way, *(step.shard for step in steps)]
    steps += view.leader_steps(busy, is_settled)[: TRANSFERS_MAX - transfers]
    return Plan(tuple(steps), sum(view.moves_left(shard) for shard in cluster.shards), tuple(blocked))


def least_moves(cluster: ClusterInfo) -> int:
    """The fewest replicas of ordinary shards that must come to another node until all is placed and balanced.

    With every node usable and every shard complete that is the sum over the nodes of what each has above its share, the larger
    shares given to the nodes that have most: from a node with more to one with less some shard can always move directly.
    """
    view = _View(cluster)
    return sum(view.moves_left(shard) for shard in cluster.shards if shard.shard != cluster.system_shard)


class _View:
    """One state of a cluster with the placement it should come to."""

    def __init__(self, cluster: ClusterInfo) -> None:
        self._cluster = cluster
        self._nodes = {node.number: node for node in sorted(cluster.nodes, key=lambda node: node.number)}
        for replica in (replica for shard in cluster.shards for replica in shard.replicas):
            self._nodes.setdefault(replica.node, NodeInfo(replica.node, alive=False, draining=True))
        self._usable = [node for node in self._nodes.values() if node.alive and not node.draining]
        self._takers = [node.number for node in self._usable if not node.cordoned]
        self._ordinary = sorted((s for s in cluster.shards if s.shard != cluster.system_shard), key=lambda shard: shard.shard)
        self._system = [shard for shard in cluster.shards if shard.shard == cluster.system_shard]
        # Nobody's balance depends on the system shard: it is everywhere.
        self._targets = self._place(self._ordinary) | self._place(self._system)
        self._led = dict.fromkeys(self._nodes, 0)
        for shard in self._ordinary:
            if shard.leader in self._led:
                self._led[shard.leader] += 1

    # What is wanted

    def _factor(self, shard: ShardInfo) -> int:
        return SYSTEM_VOTERS_MAX if shard.shard == self._cluster.system_shard else self._cluster.replication_factor

    def _wanted(self, shard: ShardInfo) -> int:
        return _largest_odd(min(self._factor(shard), len(self._usable)))

    def _place(self, shards: Sequence[ShardInfo]) -> dict[int, tuple[int, ...]]:
        zones = {node.number: node.zone for node in self._nodes.values()}
        placed = spread([self._demand(shard) for shard in shards], zones)
        # A shard that no node may take stays as it is rather than nowhere.
        return {shard.shard: nodes or _nodes_of(_voters(shard)) for shard, nodes in zip(shards, placed, strict=True)}

    def _demand(self, shard: ShardInfo) -> Demand:
        costs = dict.fromkeys(self._takers, 2)
        for replica in shard.replicas:
            node = self._nodes[replica.node]
            if node.alive and not node.draining:
                costs[node.number] = 0 if replica.is_voter else 1
        fixed = tuple(v.node for v in _voters(shard) if not self._nodes[v.node].alive and not self._nodes[v.node].draining)
        staying = sum(not self._nodes[voter.node].draining for voter in _voters(shard))
        # Draining a node of three must not leave two voters: an ordinary shard gets smaller only where the replication factor was lowered.
        # Until another node can take them, voters stay on draining nodes, the living ones first. An even number tolerates no more than
        # the odd one below it, and may have come about by a leader's successor that joined before it leaves.
        leaving = sorted((v.node for v in _voters(shard) if self._nodes[v.node].draining), key=lambda n: (not self._nodes[n].alive, n))
        is_system = shard.shard == self._cluster.system_shard
        needed = _largest_odd(min(self._factor(shard), len(_voters(shard)))) if leaving and not is_system else 0
        for number in leaving[: max(0, needed - len(costs) - len(fixed))]:
            staying += 1
            if self._nodes[number].alive:
                costs[number] = 0
            else:
                fixed += (number,)
        size = max(self._wanted(shard), staying)
        if not fixed:
            # Dead nodes may come back, so they count here: their absence alone makes no replica surplus. A shard with a dead voter
            # isn't made smaller at all: what would remain tolerates less.
            kept_nodes = sum(not node.draining for node in self._nodes.values())
            size = min(size, _largest_odd(min(self._factor(shard), kept_nodes)))
        size = max(size, needed)
        if size == 1 and len(self._usable) < self._factor(shard) and 0 in costs.values():
            # A cluster that begins to grow: as soon as there are nodes enough each gets a replica, so none moves for balance before.
            costs = {node: cost for node, cost in costs.items() if cost < 2}
        reachable = len(costs) + len(fixed)
        return Demand(min(size, max(_largest_odd(reachable), min(staying, reachable))), costs, fixed)

    def _missing(self, shard: ShardInfo) -> list[int]:
        """Nodes that shall have a voter and have not even a learner."""
        return [node for node in self._targets[shard.shard] if node not in _nodes_of(shard.replicas)]

    def _missing_learners(self, shard: ShardInfo) -> list[int]:
        """Nodes that should have a learner only and have none: those without a voter of the system shard."""
        if shard.shard != self._cluster.system_shard:
            return []
        held = (*self._targets[shard.shard], *_nodes_of(_learners(shard)))
        return [node for node in self._takers if node not in held]

    def moves_left(self, shard: ShardInfo) -> int:
        voting = _nodes_of(_voters(shard))
        return sum(node not in voting for node in self._targets[shard.shard]) + len(self._missing_learners(shard))

    def _leavers(self, shard: ShardInfo) -> list[ReplicaInfo]:
        """Voters that shall go, the dead first: they are what the shard can spare best."""
        leavers = (voter for voter in _voters(shard) if voter.node not in self._targets[shard.shard])
        return sorted(leavers, key=lambda voter: (self._nodes[voter.node].alive, voter.node))

    def urgency(self, shard: ShardInfo) -> tuple[int, int, bool, int]:
        short = max(0, self._wanted(shard) - len(self._live(_voters(shard))))
        draining = sum(self._nodes[voter.node].draining for voter in self._leavers(shard))
        return (-short, -draining, shard.shard != self._cluster.system_shard, shard.shard)

    # What is

    def _live(self, replicas: Sequence[ReplicaInfo]) -> list[ReplicaInfo]:
        return [replica for replica in replicas if self._nodes[replica.node].alive]

    def _is_led(self, shard: ShardInfo) -> bool:
        return any(voter.node == shard.leader for voter in self._live(_voters(shard)))

    def _is_lost(self, shard: ShardInfo, learner: ReplicaInfo) -> bool:
        """A learner that won't catch up. One of the system shard may wait for its node: it is there for good, not for a move."""
        node = self._nodes[learner.node]
        return not node.alive and (node.draining or shard.shard != self._cluster.system_shard)

    def is_moving(self, shard: ShardInfo) -> bool:
        """Members of the shard are changing. A learner of an ordinary shard is a move that was begun; those of the system shard are
        there for good, so only one that is catching up is a move.
        """
        is_system = shard.shard == self._cluster.system_shard
        return shard.is_joint or (any(not r.is_caught_up for r in self._live(_learners(shard))) if is_system else bool(_learners(shard)))

    def shortages(self) -> list[str]:
        """Why shards have fewer live voters than the replication factor asks for."""
        sentences = []
        full = _largest_odd(self._cluster.replication_factor)
        wanted = _largest_odd(min(full, len(self._usable)))
        usable = len(self._usable)
        if self._ordinary and wanted < full:
            sentences.append(f"The replication factor is {full}, but only {usable} nodes are usable: shards get {wanted} voters.")
        short = sum(len(self._targets[shard.shard]) < wanted for shard in self._ordinary)
        if short:
            sentences.append(f"{short} shards can't get {wanted} voters: only {len(self._takers)} nodes take new replicas.")
        for node in self._nodes.values():
            if not node.alive and not node.draining:
                kept = sum(node.number in _nodes_of(_voters(shard)) for shard in self._cluster.shards)
                if kept:
                    sentences.append(f"Node {node.number} is dead: {kept} shards are short of a voter until it comes back or is drained.")
        for shard in self._system:
            if len(self._targets[shard.shard]) < self._wanted(shard):
                takers = len(self._takers)
                sentences.append(f"The system shard can't get {self._wanted(shard)} voters: only {takers} nodes take new replicas.")
        return sentences

    # What to do next

    def next_step(self, shard: ShardInfo) -> Step | str | None:
        """The step that brings the shard's replicas nearer to their places; or why there can be none; or nothing to do now."""
        voters, learners = _voters(shard), _learners(shard)
        if not self._is_led(shard):
            return f"Shard {shard.shard} has no leader."
        if not self._has_majority(voters):
            return f"Shard {shard.shard} has {len(self._live(voters))} live voters of {len(voters)}, which is no majority."
        if shard.is_joint:
            return None
        target, missing = self._targets[shard.shard], self._missing(shard)
        for learner in learners:
            if self._is_lost(shard, learner):
                return Remove(shard.shard, learner.replica_id)
        learners = self._live(learners)
        if any(not learner.is_caught_up for learner in learners):
            return None
        for learner in learners:
            if learner.node not in target and (shard.shard != self._cluster.system_shard or self._nodes[learner.node].draining):
                return Remove(shard.shard, learner.replica_id)
        if step := self._change_voters(shard, [learner for learner in learners if learner.node in target], not missing):
            return step
        for node in (*missing, *self._missing_learners(shard)):
            if node not in _nodes_of(shard.replicas):
                return AddLearner(shard.shard, node)
        return None

    def _change_voters(self, shard: ShardInfo, ready: Sequence[ReplicaInfo], is_last: bool) -> Step | str | None:
        """While learners are still to come (not `is_last`) only as many voters join as leave, so that their number stays odd."""
        leavers = self._leavers(shard)
        if not leavers and not (ready and is_last):
            return self._stuck(shard)
        followers = [voter for voter in leavers if voter.node != shard.leader]
        if not is_last:
            ready, followers = ready[: len(followers)], followers[: len(ready)]
            return self._promote(shard, ready, followers) if ready else None
        staying = [v for v in self._live(_voters(shard)) if v.node in self._targets[shard.shard] and v.is_caught_up]
        if len(followers) < len(leavers) and staying:
            best = min(staying, key=lambda v: (self._nodes[v.node].cordoned, self._led[v.node], v.node))
            return TransferLeader(shard.shard, best.node)
        return self._promote(shard, ready, followers) if ready or followers else None

    def _stuck(self, shard: ShardInfo) -> str | None:
        draining = [voter.node for voter in self._live(_voters(shard)) if self._nodes[voter.node].draining]
        if draining and all(node in self._targets[shard.shard] for node in draining):
            return f"Shard {shard.shard} can't leave node {draining[0]}: no other node may take it."
        return None

    def _promote(self, shard: ShardInfo, ready: Sequence[ReplicaInfo], leavers: Sequence[ReplicaInfo]) -> Promote | str | None:
        """The change with as many leavers as is safe."""
        voters = _voters(shard)
        live_min = min(self._wanted(shard), len(self._live(voters)))
        for count in range(len(leavers), -1, -1):
            removes = leavers[:count]
            after = [voter for voter in voters if voter not in removes] + list(ready)
            if (ready or removes) and self._has_majority(after) and len(self._live(after)) >= live_min:
                return Promote(shard.shard, tuple(r.replica_id for r in ready), tuple(r.replica_id for r in removes))
        nodes = ", ".join(str(leaver.node) for leaver in leavers)
        return f"Shard {shard.shard} can't leave node {nodes}: too few live voters would remain."

    def _has_majority(self, voters: Sequence[ReplicaInfo]) -> bool:
        return 2 * len(self._live(voters)) > len(voters)

    # Leaders

    def count_transfer(self, shard: ShardInfo, step: TransferLeader) -> None:
        if shard.leader is not None and shard.shard != self._cluster.system_shard:
            self._led[shard.leader] -= 1
            self._led[step.to_node] += 1

    def leader_steps(self, busy: Sequence[int], is_settled: bool) -> list[TransferLeader]:
        """Leaders leave nodes that are cordoned or draining at once; they are balanced when all replicas are placed."""
        steps: list[TransferLeader] = []
        for group in (self._system, self._ordinary):
            led = [shard for shard in group if self._is_led(shard)]
            zones = dict.fromkeys(self._nodes, "")
            for shard, nodes in zip(led, spread([Demand(1, self._leader_costs(shard)) for shard in led], zones), strict=True):
                if nodes[0] != shard.leader and shard.shard not in busy and self._has_majority(_voters(shard)):
                    steps.append(TransferLeader(shard.shard, nodes[0]))
        leaders = {shard.shard: shard.leader for shard in self._cluster.shards}
        must = [step for step in steps if not self._may_lead(leaders[step.shard])]
        return must + [step for step in steps if step not in must] if is_settled else must

    def _leader_costs(self, shard: ShardInfo) -> Mapping[int, int]:
        """Where the shard may be led from: by voters that stay if there are such that may lead, else by those that leave.

        But for the last change of its voters (`_change_voters`) a leader goes to one that stays, cordoned or not: it waits there.
        """
        able = [v.node for v in self._live(_voters(shard)) if self._may_lead(v.node) and (v.is_caught_up or v.node == shard.leader)]
        staying = [node for node in able if node in self._targets[shard.shard]]
        leading = [voter.node for voter in _voters(shard) if voter.node == shard.leader]
        is_waiting = shard.leader in self._targets[shard.shard] and not self._missing(shard)
        return {node: int(node != shard.leader) for node in staying or (leading if is_waiting else able) or leading}

    def _may_lead(self, node: int | None) -> bool:
        return node is not None and not self._nodes[node].draining and not self._nodes[node].cordoned


def _largest_odd(number: int) -> int:
    """The largest odd number up to `number`; 0 if there is none."""
    return max(0, number - 1 + number % 2)


def _voters(shard: ShardInfo) -> list[ReplicaInfo]:
    return [replica for replica in shard.replicas if replica.is_voter]


def _learners(shard: ShardInfo) -> list[ReplicaInfo]:
    return [replica for replica in shard.replicas if not replica.is_voter]


def _nodes_of(replicas: Sequence[ReplicaInfo]) -> tuple[int, ...]:
    return tuple(replica.node for replica in replicas)
