"""What Kubernetes and the nodes of one cluster would do with the operator's steps, by their effects on pods, members and shards.

The real `placement.py` moves replicas in it. Knows no API server and no time; `emulated_kubernetes.py` puts HTTP around it. Invariants: no
step takes a living shard below its majority, nothing begins twice, and no member with replicas is removed, or an assertion fails.
"""

from dataclasses import dataclass, field

import msgspec

from context_operator import steps
from context_operator.balancer import _needing
from context_operator.placement import AddLearner, Promote, Remove, Step, TransferLeader
from context_operator.placement import plan as place
from context_operator.plan import Observed, Pod
from context_operator.view import ArchiveView, ClusterView, NodeView, ReplicaView, ShardView, cluster_info

ID = "a" * 32
SYSTEM = 1_000


@dataclass
class World:
    """What Kubernetes and the nodes would do. `stores`: by ordinal the member number of its volume, 0 while it is in no cluster."""

    size: int | None = None
    stores: dict[int, int] = field(default_factory=dict)
    pods: dict[int, str] = field(default_factory=dict)
    """By ordinal what the pod was started with."""
    broken: set[int] = field(default_factory=set)
    """Pods whose containers do not run."""
    begun: bool = False
    numbers: dict[int, int] = field(default_factory=dict)
    """By member its ordinal."""
    draining: set[int] = field(default_factory=set)
    removed: set[int] = field(default_factory=set)
    shards: dict[int, tuple[int, dict[int, bool]]] = field(default_factory=dict)
    """By shard its leader's member and its replicas: by member whether it votes."""
    factor: int = 3
    archives: dict[int, ArchiveView] = field(default_factory=dict)
    """By ordinal what a node tells of its archive."""

    def view(self) -> ClusterView | None:
        if not self.begun:
            return None
        alive = self.alive()
        nodes = [self._node(n, o) for n, o in self.numbers.items() if n not in self.removed]
        shards = []
        for number, (leader, replicas) in self.shards.items():
            shown = [ReplicaView(number * 100 + n, n, votes, n in alive, 1) for n, votes in replicas.items()]
            led = leader if leader in alive else None
            shards.append(ShardView(number, number == SYSTEM, led, 1, 1, False, 0, shown))
        ordinary = [shard for shard in shards if not shard.is_system]
        wanted = min(self.factor, (len([n for n in alive if n not in self.draining]) - 1) | 1)
        whole = sum(
            shard.leader is not None and sum(r.is_voter for r in shard.replicas) >= wanted and all(r.is_caught_up for r in shard.replicas)
            for shard in ordinary
        )
        led_by_none = sum(shard.leader is None for shard in ordinary)
        archive = self._archive()
        return ClusterView(ID, 1, 0, 1, self.factor, len(ordinary), whole, led_by_none, len(ordinary) - whole, nodes, shards, archive)

    def _node(self, member: int, ordinal: int) -> NodeView:
        is_alive, is_draining = member in self.alive(), member in self.draining
        archive = self.archives.get(ordinal) if is_alive else None
        held = self.held(member)
        return NodeView(member, f"c-{ordinal}", "", "", "", is_alive, is_alive, "1", 1, False, False, is_draining, held, 0, archive)

    def _archive(self) -> ArchiveView | None:
        told = list(self.archives.values())
        if not told:
            return None
        worst = min(told, key=lambda one: one.is_healthy)
        sums = {name: sum(getattr(one, name) for one in told) for name in ("lag_messages", "lag_bytes")}
        return msgspec.structs.replace(worst, lag_s=max(one.lag_s for one in told), **sums)

    def held(self, member: int) -> int:
        return sum(member in replicas for _, replicas in self.shards.values())

    def alive(self) -> set[int]:
        return {self.stores[o] for o in self.pods if self.stores.get(o)}

    def observed(self) -> Observed:
        pods = tuple(
            Pod(
                o,
                f"{o}",
                True,
                restart_hash=h,
                state="member" if self.stores.get(o) else "waiting",
                cluster_id=ID if self.stores.get(o) else "",
            )
            for o, h in sorted(self.pods.items())
        )
        return Observed(ID, self.begun, self.size, pods, self.view(), {n: o for n, o in self.numbers.items() if n not in self.removed})

    def settle(self, wanted_hash: str) -> None:
        """Kubernetes makes missing pods; nodes of the cluster take in those that wait."""
        for ordinal in range(self.size or 0):
            if ordinal in self.broken:
                self.pods.pop(ordinal, None)
                continue
            self.pods.setdefault(ordinal, wanted_hash)
            store = self.stores.get(ordinal, 0)
            if self.shards and (not store or store in self.removed):
                self.stores[ordinal] = self.join(ordinal)
        for ordinal in [o for o in self.pods if o >= (self.size or 0)]:
            del self.pods[ordinal]
        for number, (leader, replicas) in self.shards.items():
            living = [n for n, votes in replicas.items() if votes and n in self.alive()]
            if leader not in living and 2 * len(living) > sum(replicas.values()):
                self.shards[number] = living[0], replicas

    def join(self, ordinal: int) -> int:
        number = max(self.numbers, default=0) + 1
        self.numbers[number] = ordinal
        return number

    def take(self, step: steps.Step, moves_max: int, wanted_hash: str) -> None:
        match step:
            case steps.SetReplicas(count):
                self.size = count
            case steps.Begin(ordinal):
                self.begin(ordinal)
            case steps.NoteBegun():
                self.begun = True
            case steps.SetReplication(factor):
                self.factor = factor
            case steps.MarkNodes(numbers, draining):
                self.draining = self.draining | set(numbers) if draining else self.draining - set(numbers)
            case steps.RemoveNodes(numbers):
                assert not any(self.held(n) for n in numbers), "a member with replicas was removed"
                self.removed |= set(numbers)
            case steps.HandOver(_, leaders):
                for shard, node in leaders:
                    assert self.shards[shard][1].get(node)
                    self.shards[shard] = node, self.shards[shard][1]
            case steps.DeletePod(ordinal, _):
                del self.pods[ordinal]
                self.check_majorities()
            case steps.GiveUpVolume(ordinal):
                self.pods.pop(ordinal, None)
                self.stores.pop(ordinal, None)
                self.check_majorities()
            case steps.Move(balances):
                self.move(balances, moves_max)

    def begin(self, ordinal: int) -> None:
        assert not self.shards, "begun twice"
        self.stores[ordinal] = number = self.join(ordinal)
        self.shards = {n: (number, {number: True}) for n in (*range(6), SYSTEM)}

    def move(self, balances: bool, moves_max: int) -> None:
        view = self.view()
        assert view is not None
        needing = set(self.shards) if balances else _needing(view)
        steps = [step for step in place(cluster_info(view), moves_max).steps if step.shard in needing]
        assert sum(isinstance(step, AddLearner) for step in steps) <= moves_max
        for step in steps:
            self.carry_out(step)
        self.check_majorities()

    def carry_out(self, step: Step) -> None:
        """A step of the balancer."""
        leader, replicas = self.shards[step.shard]
        replicas = dict(replicas)
        match step:
            case AddLearner(_, node):
                replicas[node] = False
            case Promote(shard, ids, removes):
                replicas.update({one - shard * 100: True for one in ids})
                for one in removes:
                    del replicas[one - shard * 100]
            case Remove(shard, one):
                del replicas[one - shard * 100]
            case TransferLeader(_, node):
                assert replicas.get(node), "a leader without a vote"
                leader = node
        self.shards[step.shard] = leader, replicas

    def check_majorities(self) -> None:
        """No step leaves a shard of several voters without a living majority."""
        alive = self.alive()
        for _, replicas in self.shards.values():
            voters = [n for n, votes in replicas.items() if votes]
            assert len(voters) < 3 or 2 * sum(n in alive for n in voters) > len(voters)
