"""What to do next with a cluster on Kubernetes: from what is wanted and what is seen to one safe step.

Knows: pods by ordinal, members of the cluster with what they hold, how shards stand, and the order in which changes are safe.
Does not know: time, I/O, Kubernetes' objects, or what it decided before. `placement.py` decides which replica goes where; here is decided
when it may.

Invariants:
- Nothing is begun twice: `Begin` only while the identity says "not bootstrapped" and every pod waits without data.
- No pod is taken down while another is away or a shard lacks a replica, but one that is not ready anyway.
- No pod is taken away, and no volume given up, before the shards are complete without it.
- What is not known counts as not safe: without an answer of the cluster no step is taken that could cost a replica.
- The same input gives the same decision, so an operator that stops at any moment goes on where it was.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from context_operator.steps import (
    Begin,
    Decision,
    DeletePod,
    GiveUpVolume,
    HandOver,
    MarkNodes,
    Move,
    NoteBegun,
    RemoveNodes,
    SetReplicas,
    SetReplication,
    Wait,
)
from context_operator.view import ClusterView, NodeView, ShardView


@dataclass(frozen=True, slots=True)
class Desired:
    """What the custom resource asks for."""

    replicas: int
    factor: int
    restart_hash: str
    mode: str = "Auto"
    rolls: bool = True
    """Whether pods are restarted for a change."""
    paused: bool = False
    replace: int | None = None
    """The ordinal of a pod whose volume is to be given up."""


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod of the set. `state`: what its node said of itself (`SelfView.state`), empty if it did not answer or was not asked."""

    ordinal: int
    uid: str
    is_ready: bool
    is_deleting: bool = False
    restart_hash: str = ""
    state: str = ""
    cluster_id: str = ""
    trouble: str = ""
    """Why it does not run, as Kubernetes says; empty if nothing is wrong."""


@dataclass(frozen=True, slots=True)
class Observed:
    """What is there. `set_replicas` is None while there is no StatefulSet; `view` while no node answers."""

    cluster_id: str
    is_bootstrapped: bool
    set_replicas: int | None
    pods: tuple[Pod, ...]
    view: ClusterView | None
    ordinals: Mapping[int, int]
    """By member number the ordinal of its pod, where its name is one of this set's."""
    kept: int = 0
    """Pods that there would have to be for every volume and pod of the cluster to be in use; known only while there is no StatefulSet."""


def plan(desired: Desired, observed: Observed) -> Decision:
    """The next step."""
    if desired.paused:
        return Decision(Wait(), sentence="The cluster is paused; nothing is changed.")
    if observed.set_replicas is None:
        # Of a cluster that had begun any volume may hold what no other has: those that are too many are emptied before they go.
        replicas = max(desired.replicas, observed.kept) if observed.is_bootstrapped else desired.replicas
        return Decision(SetReplicas(replicas), "Bootstrap", sentence="Pods are made.")
    if (broken := _broken(desired, observed)) is not None:
        return broken
    if not observed.is_bootstrapped:
        return _begin(desired, observed)
    if observed.view is None:
        return _unanswered(desired, observed)
    return _Planner(desired, observed, observed.view).decide()


def may_lose(observed: Observed) -> int:
    """How many pods may be evicted now: one while every member is up and every shard complete, else none."""
    return int(observed.is_bootstrapped and is_complete(observed) and not any(pod.is_deleting for pod in observed.pods))


def is_complete(observed: Observed, without: Collection[int] = ()) -> bool:
    """Whether every pod is ready, every member answers, and every shard has a leader and all its replicas. The pods `without` do not
    count."""
    view = observed.view
    wanted = [ordinal for ordinal in range(observed.set_replicas or 0) if ordinal not in without]
    pods = [pod for pod in observed.pods if pod.ordinal in wanted]
    return (
        view is not None
        and observed.set_replicas is not None
        and len(pods) == len(wanted)
        and all(pod.is_ready and not pod.is_deleting for pod in pods)
        and all(node.is_alive and node.is_ready for node in view.nodes if node.number in observed.ordinals)
        and view.shards_healthy == view.shards_total
        and all(_is_whole(shard) for shard in view.shards)
    )


def _is_whole(shard: ShardView) -> bool:
    voters = [one for one in shard.replicas if one.is_voter]
    return shard.leader is not None and not shard.is_joint and all(one.is_caught_up for one in voters)


# --- the beginning -----------------------------------------------------------------------------------------------------


def _begin(desired: Desired, observed: Observed) -> Decision:
    pods = {pod.ordinal: pod for pod in observed.pods if pod.ordinal < (observed.set_replicas or 0)}
    members = [pod for pod in pods.values() if pod.cluster_id]
    foreign = [pod for pod in members if pod.cluster_id != observed.cluster_id]
    if foreign:
        sentence = (
            f"The volume of pod {foreign[0].ordinal} belongs to cluster {foreign[0].cluster_id}. Put that id into the identity ConfigMap "
            "to take the volumes up, or delete the volumes to begin anew."
        )
        return Decision(Wait(), "Bootstrap", sentence=sentence, refusal=("ForeignVolumes", sentence))
    if members:
        return Decision(NoteBegun(), "Bootstrap", sentence="The cluster has begun.")
    if desired.replicas != observed.set_replicas and _has_not_begun(desired, observed, pods):
        return Decision(SetReplicas(desired.replicas), "Bootstrap", sentence=f"{desired.replicas} pods are wanted.")
    missing = [ordinal for ordinal in range(observed.set_replicas or 0) if ordinal not in pods or pods[ordinal].state != "waiting"]
    if missing:
        trouble = next((pod.trouble for pod in pods.values() if pod.trouble), "")
        sentence = f"Waiting for {_pods(missing)} to run" + (f": {trouble}" if trouble else ".")
        return Decision(Wait(), "Bootstrap", _pods(missing), sentence)
    return Decision(Begin(0), "Bootstrap", "pod 0", "Pod 0 begins the cluster.")


def _has_not_begun(desired: Desired, observed: Observed, pods: Mapping[int, Pod]) -> bool:
    """Whether another number of pods costs nothing: more never do, fewer only if pod 0 waits, with which every cluster begins."""
    return desired.replicas > (observed.set_replicas or 0) or (0 in pods and pods[0].state == "waiting")


# --- without the cluster's word ----------------------------------------------------------------------------------------


def _broken(desired: Desired, observed: Observed) -> Decision | None:
    """A pod that does not run and is not what is wanted: it may be replaced whatever else is wrong, since it keeps nothing up."""
    nodes = observed.view.nodes if observed.view is not None else []
    up = {observed.ordinals[node.number] for node in nodes if node.is_alive and node.number in observed.ordinals}
    for pod in sorted(observed.pods, key=lambda pod: -pod.ordinal):
        is_down = not pod.is_ready and (pod.trouble or (observed.view is not None and pod.ordinal not in up))
        if desired.rolls and is_down and not pod.is_deleting and pod.restart_hash != desired.restart_hash:
            sentence = f"Pod {pod.ordinal} does not run ({pod.trouble or 'its node does not answer'}) and is made anew as it is wanted now."
            return Decision(DeletePod(pod.ordinal, pod.uid), "RollingUpdate", f"pod {pod.ordinal}", sentence)
    return None


def _unanswered(desired: Desired, observed: Observed) -> Decision:
    if observed.set_replicas is not None and desired.replicas > observed.set_replicas:
        return Decision(SetReplicas(desired.replicas), "ScaleUp", sentence=f"{desired.replicas} pods are wanted.")
    pods = [pod for pod in observed.pods if pod.ordinal < (observed.set_replicas or 0)]
    if pods and len(pods) == observed.set_replicas and all(pod.state == "waiting" for pod in pods):
        sentence = (
            "Every volume is empty, and the cluster has begun before: its data is lost or elsewhere. Give the volumes back, or delete the "
            "identity ConfigMap to begin anew without the data."
        )
        return Decision(Wait(), sentence=sentence, refusal=("DataMissing", sentence))
    return Decision(Wait(), sentence="No node tells how the cluster stands; nothing is changed until one does.")


# --- the rest ----------------------------------------------------------------------------------------------------------


class _Planner:
    def __init__(self, desired: Desired, observed: Observed, view: ClusterView) -> None:
        self._desired, self._observed, self._view = desired, observed, view
        self._pods = {pod.ordinal: pod for pod in observed.pods}
        self._size = observed.set_replicas or 0
        self._held = {node.number: 0 for node in view.nodes}
        for shard in view.shards:
            for one in shard.replicas:
                self._held[one.node] = self._held.get(one.node, 0) + 1
        self._nodes = {node.number: node for node in view.nodes}
        self._current = self._current_members()
        self._remark = ""

    def _current_members(self) -> dict[int, NodeView]:
        """By ordinal the member that its pod is now: of several with one name the newest."""
        current: dict[int, NodeView] = {}
        for node in sorted(self._view.nodes, key=lambda node: node.number):
            ordinal = self._observed.ordinals.get(node.number)
            if ordinal is not None:
                current[ordinal] = node
        return current

    def decide(self) -> Decision:
        """What is refused holds up nothing else: it is told beside what can be done, or alone where nothing can."""
        attempts = (self._grow, self._factor, self._superseded, self._undrain, self._replace, self._shrink, self._move_needed, self._roll)
        refused: Decision | None = None
        for attempt in attempts:
            decision = attempt()
            if decision is None:
                continue
            if decision.refusal is None:
                return self._beside(decision, refused)
            refused = refused or decision
        return refused or self._balance()

    @staticmethod
    def _beside(decision: Decision, refused: Decision | None) -> Decision:
        if refused is None:
            return decision
        return replace(decision, refusal=refused.refusal, refused_operation=refused.operation)

    def _grow(self) -> Decision | None:
        if self._desired.replicas <= self._size:
            return None
        return Decision(SetReplicas(self._desired.replicas), "ScaleUp", sentence=f"{self._desired.replicas} pods are wanted.")

    def _factor(self) -> Decision | None:
        if self._view.replication_factor == self._desired.factor:
            return None
        return Decision(
            SetReplication(self._desired.factor), "Rebalance", sentence=f"Every shard is to have {self._desired.factor} replicas."
        )

    # A volume that is given up, and the members that it leaves behind

    def _replace(self) -> Decision | None:
        ordinal = self._desired.replace
        if ordinal is None:
            return None
        if ordinal >= self._size:
            sentence = f"There is no pod {ordinal} to replace; pods are 0 to {self._size - 1}."
            return Decision(Wait(), refusal=("NoSuchPod", sentence), sentence=sentence)
        member = self._current.get(ordinal)
        lacking = [] if member is None else [shard.shard for shard in self._view.shards if not _stands_without(shard, member.number)]
        if lacking:
            sentence = (
                f"The volume of pod {ordinal} is not given up: {_shards(lacking)} would be left without a complete majority. It is tried "
                "again when the other replicas have caught up."
            )
            return Decision(Wait(), "Replace", f"pod {ordinal}", sentence, ("UnderReplicated", sentence))
        if transfers := self._transfers(ordinal):
            return Decision(HandOver(ordinal, transfers), "Replace", f"pod {ordinal}", f"Leaders leave pod {ordinal}.")
        return Decision(GiveUpVolume(ordinal), "Replace", f"pod {ordinal}", f"The volume of pod {ordinal} is given up.")

    def _superseded(self) -> Decision | None:
        """Members whose volume is gone: another one has come under the same name, or the pod was taken away."""
        gone = [node for node in self._view.nodes if self._is_gone(node)]
        if marked := tuple(node.number for node in gone if not node.draining):
            return Decision(
                MarkNodes(marked, True), "Replace", self._names(marked), f"The old replicas of {self._names(marked)} are replaced."
            )
        if empty := tuple(node.number for node in gone if not self._held.get(node.number)):
            return Decision(
                RemoveNodes(empty),
                "Replace",
                self._names(empty),
                f"{self._names(empty)} {_verb(empty, 'holds', 'hold')} nothing any more and {_verb(empty, 'is', 'are')} taken out.",
            )
        return None

    def _is_gone(self, node: NodeView) -> bool:
        ordinal = self._observed.ordinals.get(node.number)
        if ordinal is None or node.is_alive:
            return False
        newer = self._current[ordinal]
        if newer.number != node.number:
            return newer.is_alive
        # Only once its pod has gone too: until then it may come back with its volume.
        return ordinal >= self._size and ordinal not in self._pods

    # Fewer pods

    def _undrain(self) -> Decision | None:
        back = tuple(node.number for ordinal, node in self._current.items() if ordinal < self._desired.replicas and node.draining)
        if not back:
            return None
        return Decision(
            MarkNodes(back, False), "ScaleUp", self._names(back), f"{self._names(back)} {_verb(back, 'takes', 'take')} replicas again."
        )

    def _shrink(self) -> Decision | None:
        if self._desired.replicas >= self._size:
            return None
        leaving = {ordinal: node for ordinal, node in self._current.items() if ordinal >= self._desired.replicas}
        places = range(self._desired.replicas, self._size)
        target, subject = _pods(places), _pods(places).capitalize()
        begun = [node for node in leaving.values() if node.draining]
        if len(begun) < len(leaving):
            if self._desired.mode == "Disabled":
                sentence = f"{subject} cannot leave while rebalance.mode is Disabled: nothing may be moved."
                return Decision(Wait(), "ScaleDown", target, sentence, ("RebalanceDisabled", sentence))
            if not begun and not self._would_do_without(leaving):
                sentence = f"{subject} cannot leave yet: {self._lacks()}"
                return Decision(Wait(), "ScaleDown", target, sentence, ("UnderReplicated", sentence))
            numbers = tuple(sorted(node.number for node in leaving.values() if not node.draining))
            return Decision(MarkNodes(numbers, True), "ScaleDown", target, f"{subject} {_verb(places, 'is', 'are')} to be emptied.")
        held = sum(self._held.get(node.number, 0) for node in leaving.values())
        if held:
            left = f"{held} {'replica is' if held == 1 else 'replicas are'} still to leave {target}."
            return Decision(Move(balances=False), "ScaleDown", target, left)
        empty = f"{subject} {_verb(places, 'holds', 'hold')} nothing any more"
        if not self._shards_are_whole():
            waits = f"{empty}; waiting until every shard is complete."
            return Decision(Wait(), "ScaleDown", target, waits, ("UnderReplicated", waits))
        sentence = f"{empty} and {_verb(places, 'is', 'are')} taken away."
        return Decision(SetReplicas(self._desired.replicas), "ScaleDown", target, sentence)

    def _would_do_without(self, leaving: Mapping[int, NodeView]) -> bool:
        """Whether all is complete but for pods that were to come and are in no cluster yet."""
        strangers = {ordinal for ordinal in range(self._desired.replicas, self._size) if ordinal not in leaving}
        return is_complete(self._observed, strangers)

    # Replicas that have to move whatever else is wished

    def _move_needed(self) -> Decision | None:
        draining = [node for node in self._view.nodes if node.draining and self._held.get(node.number)]
        if draining and self._desired.mode != "Disabled":
            return Decision(Move(balances=False), "Replace", self._names(node.number for node in draining), "Replicas leave drained nodes.")
        wanted = self._wanted()
        ordinary = [shard for shard in self._view.shards if not shard.is_system]
        few = [shard.shard for shard in ordinary if sum(one.is_voter for one in shard.replicas) != wanted]
        unfinished = [
            shard.shard
            for shard in self._view.shards
            if shard.is_joint or (not shard.is_system and any(not o.is_voter for o in shard.replicas))
        ]
        if (few or unfinished) and self._desired.mode == "Disabled":
            sentence = f"Replicas should come to {_shards(few or unfinished)}, and rebalance.mode Disabled lets none be moved."
            return Decision(Wait(), "Rebalance", sentence=sentence, refusal=("RebalanceDisabled", sentence))
        if few or unfinished:
            return Decision(Move(balances=False), "Rebalance", sentence=f"Replicas come to {_shards(few or unfinished)}.")
        return None

    def _wanted(self) -> int:
        usable = sum(node.is_alive and not node.draining for node in self._view.nodes)
        held = max((sum(one.is_voter for one in shard.replicas) for shard in self._view.shards if not shard.is_system), default=0)
        # A node that is away for a moment is no reason to have fewer.
        return max(_largest_odd(min(self._desired.factor, usable)), min(held, self._desired.factor))

    # Pods that are not what is wanted

    def _roll(self) -> Decision | None:
        outdated = [pod for pod in self._observed.pods if pod.restart_hash != self._desired.restart_hash and pod.ordinal < self._size]
        away = [pod for pod in self._observed.pods if pod.is_deleting or not pod.is_ready]
        missing = [ordinal for ordinal in range(self._size) if ordinal not in self._pods]
        if not outdated:
            return None
        left = _pods(sorted(pod.ordinal for pod in outdated))
        if not self._desired.rolls:
            waits = _verb(outdated, "is not as wanted and waits", "are not as wanted and wait")
            self._remark = f"{left.capitalize()} {waits} to be deleted by you (updateStrategy OnDelete)."
            return None
        if missing or away:
            waiting = _pods([*missing, *(pod.ordinal for pod in away)])
            trouble = next((pod.trouble for pod in away if pod.trouble), "")
            sentence = f"Waiting for {waiting}" + (f": {trouble}" if trouble else " to be ready.")
            return Decision(Wait(), "RollingUpdate", left, sentence)
        if not is_complete(self._observed):
            return Decision(Wait(), "RollingUpdate", left, f"Waiting: {self._lacks()}")
        # The one that leads least goes first, of equals the last: its leaders then move only once.
        pod = min(outdated, key=lambda pod: (self._leads(pod.ordinal), -pod.ordinal))
        name = f"pod {pod.ordinal}"
        if transfers := self._transfers(pod.ordinal):
            return Decision(HandOver(pod.ordinal, transfers), "RollingUpdate", left, f"Leaders leave {name}, {len(transfers)} at once.")
        return Decision(DeletePod(pod.ordinal, pod.uid), "RollingUpdate", left, f"Pod {pod.ordinal} is made anew.")

    def _leads(self, ordinal: int) -> int:
        member = self._current.get(ordinal)
        return 0 if member is None else sum(shard.leader == member.number for shard in self._view.shards)

    def _transfers(self, ordinal: int) -> tuple[tuple[int, int], ...]:
        """Where a pod's leaders go: to replicas that have everything, on the nodes that lead least, rather up to date ones."""
        member = self._current.get(ordinal)
        if member is None:
            return ()
        led = {node.number: sum(shard.leader == node.number for shard in self._view.shards) for node in self._view.nodes}
        fresh = {
            node.number
            for place, node in self._current.items()
            if place in self._pods and self._pods[place].restart_hash == self._desired.restart_hash
        }
        transfers = []
        for shard in self._view.shards:
            if shard.leader != member.number:
                continue
            able = [
                one.node
                for one in shard.replicas
                if one.is_voter and one.is_caught_up and one.node != member.number and self._nodes[one.node].is_alive
            ]
            if able:
                best = min(able, key=lambda node: (node not in fresh, led[node], node))
                led[best] += 1
                transfers.append((shard.shard, best))
        return tuple(transfers[:HAND_OVERS_MAX])

    def _balance(self) -> Decision:
        # While a pod is away its leaders and replicas are not worth moving twice.
        if self._desired.mode != "Auto" or not is_complete(self._observed):
            lacks = "" if is_complete(self._observed) else self._lacks()
            return Decision(Wait(), sentence=lacks or self._remark)
        return Decision(Move(balances=True), sentence=self._remark)

    # Words

    def _shards_are_whole(self) -> bool:
        return self._view.shards_healthy == self._view.shards_total and all(_is_whole(shard) for shard in self._view.shards)

    def _lacks(self) -> str:
        view, pods = self._view, self._observed.pods
        if view.shards_leaderless:
            return f"{view.shards_leaderless} of {view.shards_total} shards have no leader."
        if away := [node.name for node in view.nodes if not node.is_alive and node.number in self._observed.ordinals]:
            return f"{', '.join(away)} {_verb(away, 'does', 'do')} not answer."
        absent = [ordinal for ordinal in range(self._size) if ordinal not in self._pods]
        if unready := [*absent, *(pod.ordinal for pod in pods if not pod.is_ready or pod.is_deleting)]:
            return f"{_pods(unready).capitalize()} {_verb(set(unready), 'is', 'are')} not ready."
        return f"{view.shards_total - view.shards_healthy or 'some'} of {view.shards_total} shards lack a replica."

    def _names(self, numbers: Iterable[int]) -> str:
        return ", ".join(dict.fromkeys(self._nodes[number].name for number in numbers if number in self._nodes))


HAND_OVERS_MAX = 8
"""Leaders handed over at once: each stops its shard's writes for a round trip or two."""


def _stands_without(shard: ShardView, number: int) -> bool:
    """Whether a shard has a leader and, without this member, a majority of voters that have everything."""
    voters = [one for one in shard.replicas if one.is_voter]
    if all(one.node != number for one in voters):
        return True
    others = [one for one in voters if one.node != number]
    return shard.leader is not None and all(one.is_caught_up for one in others) and 2 * len(others) > len(voters)


def _largest_odd(number: int) -> int:
    return max(0, number - 1 + number % 2)


def _pods(ordinals: Iterable[int]) -> str:
    listed = sorted(set(ordinals))
    return ("pod " if len(listed) == 1 else "pods ") + ", ".join(map(str, listed))


def _verb(subjects: Collection[object], one: str, many: str) -> str:
    return one if len(subjects) == 1 else many


def _shards(shards: Sequence[int]) -> str:
    listed = ", ".join(map(str, shards[:5])) + (f" and {len(shards) - 5} more" if len(shards) > 5 else "")
    return ("shard " if len(shards) == 1 else "shards ") + listed
