"""One cluster, one pass: observe, plan, apply, take one step, report.

Knows the order of effects. Does not know when a pass is due, nor which step is safe: `plan.py` decides that. Level-based: a pass trusts
nothing but what it reads, so it may end at any line and another begins from what is there. Invariants: the identity is created, never
replaced, and before any pod; a step is taken only after everything that it needs has been applied; the status is written when it changes.
"""

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from context_operator import archive_health, balancer, plan, policies, steps
from context_operator.applying import Applier, Foreign, keep_owner
from context_operator.credentials import CredentialKeeper, Known, Unusable
from context_operator.http_admin import AdminError
from context_operator.kube import Kube, KubeError
from context_operator.nodes import Admin, HttpNodes
from context_operator.observing import addresses_of, desired_of, image_of, observed_of
from context_operator.placement import Plan
from context_operator.plan import Desired, Observed
from context_operator.resources import identity, names
from context_operator.spec import Cluster, Object, cluster_of, seconds_of
from context_operator.status import Pass, status_of
from context_operator.steps import Decision

logger = logging.getLogger("contextstore.operator")

AGAIN_S, BUSY_S, IDLE_S = 0.3, 1.5, 15.0
"""Until the next pass: after a step, while something is waited for, and when nothing is to do. Events come before."""

FENCED = (steps.SetReplicas, steps.DeletePod, steps.GiveUpVolume, steps.HandOver)
"""Steps that end, or may end, in something that nodes take no part in."""

HAND_OVER_S = 20.0
"""A pod whose leaders do not leave in this time is made anew nevertheless: it hands over what it can when it stops."""


@dataclass(slots=True)
class Surroundings:
    """What a reconciler gets from its process. `epoch` grows with every start of an operator; `clock` is monotonic, `now` is RFC 3339."""

    kube: Kube
    default_image: str
    epoch: int
    clock: Callable[[], float]
    now: Callable[[], str]
    crash: Callable[[str], Awaitable[None]]
    """Called with the name of a place between two effects. Tests end the process there."""


@dataclass(slots=True)
class Result:
    """When to look again, and whether the object is gone."""

    pause_s: float
    is_gone: bool = False


@dataclass(slots=True)
class ClusterReconciler:
    """See the module's docstring. Keeps only what may be forgotten: connections, and what it said or applied last."""

    around: Surroundings
    namespace: str
    name: str
    nodes: HttpNodes | None = None
    _known: Known | None = None
    _said: tuple[str, str] = ("", "")
    _was_ready: bool | None = None
    _hands_over: tuple[str, float] | None = None
    _has_looked: bool = False
    """Whether the nodes have told which administrator took the last step: this one comes after it."""
    _policies: policies.PolicyKeeper | None = None
    _archive: archive_health.Turns = field(default_factory=archive_health.Turns)

    _applier: Applier = field(init=False)
    _credentials: CredentialKeeper = field(init=False)

    def __post_init__(self) -> None:
        around = self.around
        self._applier = Applier(around.kube, self.namespace, self.name, around.clock)
        self._credentials = CredentialKeeper(around.kube, around.now, self._applier.apply, around.crash)

    async def close(self) -> None:
        """Close the connections."""
        if self.nodes is not None:
            await self.nodes.close()

    async def reconcile(self) -> Result:
        """One pass. Raises `KubeError` if the API server could not be asked; everything else is reported in the status."""
        found = await self.around.kube.get("ContextCluster", self.namespace, self.name)
        if found is None or "deletionTimestamp" in found["metadata"]:
            # Nothing to clean up: owner references and the claims' retention policy do it.
            return Result(0.0, is_gone=True)
        cluster = cluster_of(found)
        stateful_set = await self.around.kube.get("StatefulSet", self.namespace, self.name)
        image = image_of(cluster, stateful_set, self.around.default_image)
        pods = await self.around.kube.list("Pod", self.namespace, names.selector(self.name))
        known, troubles, may_act = await self._prepare(cluster, stateful_set, pods)
        desired = desired_of(cluster, image, self._replace(cluster))
        observed, admin = await self._observe(known, stateful_set, pods)
        if may_act or desired.paused:
            decision = plan.plan(desired, observed)
        else:
            decision = Decision(steps.Wait(), sentence=troubles[0])
        made = Pass(decision, image)
        if stateful_set is not None:
            troubles += await self._applier.budget(cluster, observed)
        if may_act and not desired.paused:
            try:
                troubles += await self._applier.everything(cluster, observed, stateful_set, image)
                made = await self._take(cluster, observed, admin, made)
                await self._keep_policies(cluster, admin)
                made = replace(made, small_volume=await self._applier.grow_volumes(cluster, stateful_set))
            except AdminError as problem:
                logger.info("%s/%s: not done: %s", self.namespace, self.name, problem)
                # What nodes refuse while some of them are away is no news beside that.
                troubles += [str(problem)] if plan.is_complete(observed) else []
            except (Unusable, Foreign) as problem:
                troubles.append(str(problem))
            except KubeError as problem:
                troubles.append(self._refused(problem))
        made = replace(made, trouble=" ".join(troubles))
        await self._report(cluster, desired, observed, made)
        return Result(_pause(made))

    async def _prepare(self, cluster: Cluster, stateful_set: Object | None, pods: list[Object]) -> tuple[Object, list[str], bool]:
        """The identity; what is wrong, in sentences; and whether steps may be taken all the same. A paused cluster is only read."""
        known: Object = {"data": {}}
        try:
            if cluster.spec.paused:
                found = await self.around.kube.get("ConfigMap", self.namespace, names.identity(self.name))
                await self._meet_nodes(await self._credentials.read(cluster))
                return found or known, [], False
            known = await self._identity(cluster, stateful_set, pods)
            has_begun = (known.get("data") or {}).get(names.BOOTSTRAPPED) == "true"
            credentials, troubles = await self._credentials.keep(cluster, has_begun=has_begun)
            await self._meet_nodes(credentials)
            return known, troubles, True
        except (Unusable, Foreign) as problem:
            await self._meet_nodes(await self._credentials.read(cluster))
            return known, [str(problem)], False
        except KubeError as problem:
            return known, [self._refused(problem)], False

    @staticmethod
    def _refused(problem: KubeError) -> str:
        """Raises the problem itself where the API server said nothing."""
        if problem.status == 0:
            raise problem
        return f"Kubernetes refused: {problem}"

    # --- what there is --------------------------------------------------------------------------------------------------

    async def _observe(self, known: Object, stateful_set: Object | None, pods: list[Object]) -> tuple[Observed, Admin | None]:
        addresses = addresses_of(self.name, pods)
        has_begun = (known.get("data") or {}).get(names.BOOTSTRAPPED) == "true"
        admin, view, selves = None, None, {}
        if self.nodes is not None and addresses:
            await self.nodes.keep_only(addresses.values())
            if has_begun and (answer := await self.nodes.look(addresses)) is not None:
                admin, view = answer
                if not self._has_looked:
                    self._has_looked = True
                    self.nodes.speak_after(view.epoch)
            else:
                selves = await self.nodes.selves(addresses)
        kept = await self._kept(pods) if has_begun and stateful_set is None else 0
        return replace(observed_of(self.name, known, stateful_set, pods, selves, view), kept=kept), admin

    async def _kept(self, pods: list[Object]) -> int:
        """How many pods it takes for every volume and pod that is there."""
        claims = await self.around.kube.list("PersistentVolumeClaim", self.namespace, names.selector(self.name))
        held = [one["metadata"]["name"].removeprefix(f"{names.DATA_VOLUME}-") for one in claims]
        ordinals = [names.ordinal_of(self.name, name) for name in [*held, *(pod["metadata"]["name"] for pod in pods)]]
        return 1 + max((one for one in ordinals if one is not None), default=-1)

    def _replace(self, cluster: Cluster) -> int | None:
        wish = cluster.metadata.annotations.get(names.REPLACE)
        if wish is None:
            return None
        ordinal = wish.partition("/")[0]
        if not (ordinal.isascii() and ordinal.isdigit() and len(ordinal) < 4):
            logger.warning("%s/%s: annotation %s=%s names no pod; give its number", self.namespace, self.name, names.REPLACE, wish)
            return None
        return int(ordinal)

    # --- what is made once ----------------------------------------------------------------------------------------------

    async def _identity(self, cluster: Cluster, stateful_set: Object | None, pods: list[Object]) -> Object:
        """The cluster's identity; drawn now if it never had one. Raises `Unusable` if there is data that nobody knows the id of."""
        kube, name = self.around.kube, names.identity(self.name)
        known = await kube.get("ConfigMap", self.namespace, name)
        if known is not None:
            owners = [one["uid"] for one in known["metadata"].get("ownerReferences") or []]
            if owners and cluster.metadata.uid not in owners:
                raise Unusable(f"ConfigMap {name} belongs to a cluster of this name that was deleted; waiting until it is gone.")
            await keep_owner(kube, cluster, known, is_owned=identity.is_owned(cluster))
            return known
        claims = await kube.list("PersistentVolumeClaim", self.namespace, names.selector(self.name))
        if (claims or stateful_set is not None) and not await self._is_empty(cluster, stateful_set, pods):
            held = ", ".join(sorted(claim["metadata"]["name"] for claim in claims)) or "a StatefulSet"
            raise Unusable(
                f"ConfigMap {name} is missing and there may be data already ({held}). Restore the ConfigMap with the cluster's id "
                '(`clusterId`, `bootstrapped: "true"`), or delete the volumes to begin anew.'
            )
        # Pods that run already were told the id that they may have.
        drawn = cluster.status.get("clusterId") or secrets.token_hex(16)
        await kube.create(identity.identity(cluster, drawn, is_bootstrapped=False))
        await self.around.crash("identity")
        made = await kube.get("ConfigMap", self.namespace, name)
        if made is None:
            raise Unusable(f"ConfigMap {name} was deleted while the cluster was being made.")
        return made

    async def _is_empty(self, cluster: Cluster, stateful_set: Object | None, pods: list[Object]) -> bool:
        """Whether every pod of the set says that its volume holds nothing."""
        addresses = addresses_of(self.name, pods)
        if stateful_set is None or len(addresses) != stateful_set["spec"].get("replicas", 1):
            return False
        await self._meet_nodes(await self._credentials.read(cluster))
        assert self.nodes is not None
        selves = await self.nodes.selves(addresses)
        return len(selves) == len(addresses) and all(one.state == "waiting" for one in selves.values())

    async def _meet_nodes(self, known: Known) -> None:
        """Speak to the nodes by these credentials from now on."""
        if known != self._known:
            await self.close()
            host = names.host(self.name, self.namespace, 0)
            self._known, self.nodes = known, HttpNodes(known.operator_key, self.around.epoch, known.trust, host)
            self._has_looked = False

    # --- one step -------------------------------------------------------------------------------------------------------

    async def _take(self, cluster: Cluster, observed: Observed, admin: Admin | None, made: Pass) -> Pass:
        decision, kube = made.decision, self.around.kube
        moved: Plan | None = None
        if not isinstance(decision.step, steps.HandOver):
            self._hands_over = None
        if isinstance(decision.step, FENCED) and admin is not None and observed.view is not None:
            # Nodes refuse the steps of an operator that has a successor; of these Kubernetes knows nothing, so nodes are asked before.
            await admin.set_replication(observed.view.replication_factor)
        match decision.step:
            case steps.Wait():
                pass
            case steps.SetReplicas(replicas):
                found = await kube.get("StatefulSet", self.namespace, self.name)
                await self._applier.stateful_set(cluster, replicas, made.image, found)
            case steps.Begin(ordinal):
                assert self.nodes is not None
                pods = await kube.list("Pod", self.namespace, names.selector(self.name))
                await self.nodes.begin(addresses_of(self.name, pods)[ordinal], observed.cluster_id)
            case steps.NoteBegun():
                await kube.patch("ConfigMap", self.namespace, names.identity(self.name), {"data": {names.BOOTSTRAPPED: "true"}})
            case steps.SetReplication(factor) if admin is not None:
                await admin.set_replication(factor)
            case steps.MarkNodes(numbers, draining) if admin is not None:
                for number in numbers:
                    await admin.mark_node(str(number), draining=draining)
            case steps.RemoveNodes(numbers) if admin is not None:
                for number in numbers:
                    await admin.mark_node(str(number), removed=True)
            case steps.Move(balances) if admin is not None:
                moves_max = cluster.spec.rebalance.max_concurrent_moves
                _, moved = await balancer.turn(admin, moves_max, only_needed=not balances)
            case steps.HandOver() as step if admin is not None:
                await self._hand_over(step, observed, admin)
            case steps.DeletePod(ordinal, uid):
                await kube.delete("Pod", self.namespace, names.pod(self.name, ordinal), uid)
            case steps.GiveUpVolume(ordinal):
                await self._give_up_volume(cluster, ordinal)
        await self.around.crash(type(decision.step).__name__)
        if moved is None:
            return made
        is_balancing = isinstance(decision.step, steps.Move) and decision.step.balances
        left = moved.moves_left if is_balancing else 0
        return Pass(decision, made.image, moves_left=left, blocked=moved.blocked, drain_overdue=self._is_overdue(cluster, decision))

    async def _hand_over(self, step: steps.HandOver, observed: Observed, admin: Admin) -> None:
        uid = next((pod.uid for pod in observed.pods if pod.ordinal == step.ordinal), None)
        if uid is None:
            return
        if self._hands_over is None or self._hands_over[0] != uid:
            self._hands_over = uid, self.around.clock()
        if self.around.clock() > self._hands_over[1] + HAND_OVER_S:
            await self.around.kube.delete("Pod", self.namespace, names.pod(self.name, step.ordinal), uid)
            return
        results = await asyncio.gather(*(admin.transfer_leader(shard, node) for shard, node in step.leaders), return_exceptions=True)
        for result in results:
            if isinstance(result, AdminError):
                logger.info("%s/%s: a leader stays for now: %s", self.namespace, self.name, result)
            elif isinstance(result, BaseException):
                raise result

    async def _give_up_volume(self, cluster: Cluster, ordinal: int) -> None:
        """The claim that is meant is written down first: a new one of the same name must not go too, whenever this is interrupted."""
        kube, meta = self.around.kube, cluster.metadata
        claim = await kube.get("PersistentVolumeClaim", self.namespace, names.claim(self.name, ordinal))
        uid = claim["metadata"]["uid"] if claim is not None else "none"
        meant = meta.annotations[names.REPLACE].partition("/")[2]
        if not meant:
            await self._annotate(f"{ordinal}/{uid}")
        elif meant != uid:
            await self._annotate(None)
        else:
            await kube.delete("PersistentVolumeClaim", self.namespace, names.claim(self.name, ordinal), uid if claim is not None else "")
            pod = await kube.get("Pod", self.namespace, names.pod(self.name, ordinal))
            if pod is not None and "deletionTimestamp" not in pod["metadata"]:
                await kube.delete("Pod", self.namespace, names.pod(self.name, ordinal), pod["metadata"]["uid"])
            if claim is None:
                await self._annotate(None)

    async def _annotate(self, value: str | None) -> None:
        body = {"metadata": {"annotations": {names.REPLACE: value}}}
        await self.around.kube.patch("ContextCluster", self.namespace, self.name, body)

    def _is_overdue(self, cluster: Cluster, decision: Decision) -> bool:
        before = cluster.status.get("operation") or {}
        timeout_s = seconds_of(cluster.spec.scale_down.drain_timeout)
        if decision.operation != "ScaleDown" or before.get("type") != "ScaleDown" or not timeout_s:
            return False
        return _age_s(before.get("startedAt", ""), self.around.now()) > timeout_s

    async def _keep_policies(self, cluster: Cluster, admin: Admin | None) -> None:
        if self._policies is None:
            self._policies = policies.PolicyKeeper(self.around.kube, self.namespace, self.name, self.around.clock, self.around.now)
        await self._policies.keep(cluster, admin)

    def policies_changed(self) -> None:
        """Somebody has changed a policy: it is looked at in the next pass."""
        if self._policies is not None:
            self._policies.forget()

    # --- what is said ---------------------------------------------------------------------------------------------------

    async def _report(self, cluster: Cluster, desired: Desired, observed: Observed, made: Pass) -> None:
        status = status_of(cluster, desired, observed, made, self.around.now())
        changes = {name: status.get(name) for name in status if status.get(name) != cluster.status.get(name)}
        if changes.get("operation", "") is None and "operation" not in cluster.status:
            del changes["operation"]
        if changes:
            await self.around.kube.patch("ContextCluster", self.namespace, self.name, {"status": changes}, "status")
        await self._tell(cluster, status, made)

    async def _tell(self, cluster: Cluster, status: Object, made: Pass) -> None:
        """Events and log lines: a sentence when something begins, is refused, fails, or when all is well again."""
        decision = made.decision
        warning = made.trouble or (decision.refusal[1] if decision.refusal is not None else "")
        step = type(decision.step).__name__
        said = (decision.operation or step, warning or (decision.sentence if step not in ("Wait", "Move") else ""))
        if said[1] and said != self._said:
            await self._event(cluster, "Warning" if warning else "Normal", said[0] if not made.trouble else "NotReconciled", said[1])
        if said[1]:
            self._said = said
        ready = next(one for one in status["conditions"] if one["type"] == "Ready")
        is_ready = ready["status"] == "True"
        if self._was_ready is not None and is_ready != self._was_ready:
            await self._event(cluster, "Normal" if is_ready else "Warning", "Ready" if is_ready else ready["reason"], ready["message"])
        self._was_ready = is_ready
        if (turn := self._archive.turned(cluster.status.get("conditions") or [], status["conditions"])) is not None:
            await self._event(cluster, *turn)

    async def _event(self, cluster: Cluster, kind: str, reason: str, sentence: str) -> None:
        logger.info("%s/%s: %s: %s", self.namespace, self.name, reason, sentence)
        try:
            await self.around.kube.create(event_of(cluster, kind, reason, sentence, self.around.now()))
        except KubeError as problem:
            logger.warning("an event was not kept: %s", problem)


def event_of(cluster: Any, kind: str, reason: str, sentence: str, now: str, of: str = "ContextCluster") -> Object:
    """A Kubernetes Event about a resource."""
    meta = cluster.metadata
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": f"{meta.name}.{secrets.token_hex(8)}", "namespace": meta.namespace},
        "involvedObject": {
            "apiVersion": "contextstore.dev/v1alpha1",
            "kind": of,
            "name": meta.name,
            "namespace": meta.namespace,
            "uid": meta.uid,
        },
        "type": kind,
        "reason": reason,
        "message": sentence[:1024],
        "source": {"component": names.MANAGER},
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": 1,
    }


def _pause(made: Pass) -> float:
    step = made.decision.step
    if made.trouble:
        return BUSY_S * 2
    if isinstance(step, steps.Move) and step.balances and not made.moves_left:
        return IDLE_S
    if isinstance(step, steps.Wait):
        return BUSY_S if made.decision.operation or made.decision.sentence else IDLE_S
    return AGAIN_S


def _age_s(since: str, now: str) -> float:
    try:
        return (datetime.fromisoformat(now) - datetime.fromisoformat(since)).total_seconds()
    except ValueError:
        return 0.0
