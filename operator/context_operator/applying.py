"""The Kubernetes objects of one cluster, kept as they should be.

Knows the builders of `resources/` and in which order their objects are applied. Does not know when, nor nodes. Keeps only what was applied
last, which may be forgotten: then it is applied once more. Invariants: what is the same is not sent again within `APPLY_AGAIN_S`; an
object that is refused holds up no other; nothing is changed or removed that belongs to somebody else, whatever it is called.
"""

import json
from collections.abc import Callable

from context_operator import plan
from context_operator.kube import Kube, KubeError, same_quantity
from context_operator.plan import Observed
from context_operator.resources import access, dashboard, monitors, names, services, statefulset
from context_operator.spec import Cluster, Object

APPLY_AGAIN_S = 60.0
"""What was applied is applied again after this time, should somebody have changed it."""

MONITORS = ("PodMonitor", "PrometheusRule")
"""Kinds of the Prometheus operator, which may not be installed: clusters do without them."""


class Foreign(Exception):
    """An object of the name that ours should have belongs to somebody else; the message says what to do."""


class Applier:
    """See the module's docstring. `clock` is monotonic."""

    def __init__(self, kube: Kube, namespace: str, name: str, clock: Callable[[], float]) -> None:
        self._kube, self._namespace, self._name, self._clock = kube, namespace, name, clock
        self._applied: dict[tuple[str, str], tuple[str, float]] = {}

    async def budget(self, cluster: Cluster, observed: Observed) -> list[str]:
        """How many pods may be evicted. Before everything else and whatever else is wrong, since it protects a majority."""
        wished = cluster.spec.pod_disruption_budget.enabled
        return await self._each([(wished, access.disruption_budget(cluster, plan.may_lose(observed)))])

    async def everything(self, cluster: Cluster, observed: Observed, stateful_set: Object | None, image: str) -> list[str]:
        """All objects but the budget and those of `credentials.py`; the StatefulSet only if it is there, with the pods that it has. Gives
        what could not be done, in sentences. Raises `KubeError` if the API server does not answer."""
        spec = cluster.spec
        wished: list[tuple[bool, Object]] = [
            (True, services.service_account(cluster)),
            (True, services.peers(cluster)),
            (True, services.client(cluster)),
            (spec.network_policy.enabled, access.network_policy(cluster)),
            (spec.monitoring.pod_monitor, monitors.pod_monitor(cluster)),
            (spec.monitoring.prometheus_rule, monitors.rules(cluster)),
            (spec.monitoring.grafana_dashboard, dashboard.config_map(cluster)),
        ]
        if stateful_set is not None and observed.set_replicas is not None:
            wished.append((True, self._stateful_set(cluster, observed.set_replicas, image, stateful_set)))
        return await self._each(wished)

    async def _each(self, wished: list[tuple[bool, Object]]) -> list[str]:
        refusals = []
        for is_wanted, body in wished:
            try:
                await (self.apply(body) if is_wanted else self._remove(body))
            except Foreign as problem:
                refusals.append(str(problem))
            except KubeError as problem:
                if problem.status == 0:
                    raise
                if problem.status != 404 or body["kind"] not in MONITORS:
                    refusals.append(f"Kubernetes refused {body['kind']} {body['metadata']['name']}: {problem}")
        return refusals

    async def stateful_set(self, cluster: Cluster, replicas: int, image: str, found: Object | None) -> None:
        """The StatefulSet with so many pods; `found` is the one that is there. Raises `KubeError`, `Foreign`."""
        await self.apply(self._stateful_set(cluster, replicas, image, found))

    @staticmethod
    def _stateful_set(cluster: Cluster, replicas: int, image: str, found: Object | None) -> Object:
        body = statefulset.stateful_set(cluster, statefulset.Chosen(replicas, image))
        if found is not None:
            # A set's claims cannot be changed; larger volumes are asked for at the claims themselves (`grow_volumes`).
            body["spec"]["volumeClaimTemplates"] = [
                {
                    "metadata": {"name": one["metadata"]["name"], "labels": one["metadata"].get("labels", {})},
                    "spec": _claim_spec(one["spec"]),
                }
                for one in found["spec"]["volumeClaimTemplates"]
            ]
        return body

    async def grow_volumes(self, cluster: Cluster, stateful_set: Object | None) -> str:
        """Ask for the volumes' size at the claims themselves. Gives why a class cannot grow them, if it cannot."""
        wanted = cluster.spec.storage.size
        if stateful_set is None or all(
            same_quantity(one["spec"]["resources"]["requests"]["storage"], wanted) for one in stateful_set["spec"]["volumeClaimTemplates"]
        ):
            return ""
        for claim in await self._kube.list("PersistentVolumeClaim", self._namespace, names.selector(self._name)):
            if not same_quantity(claim["spec"]["resources"]["requests"]["storage"], wanted):
                body = {"spec": {"resources": {"requests": {"storage": wanted}}}}
                try:
                    await self._kube.patch("PersistentVolumeClaim", self._namespace, claim["metadata"]["name"], body)
                except KubeError as problem:
                    if problem.status == 0:
                        raise
                    return f"Volume {claim['metadata']['name']} stays as large as it is: {problem}"
        return ""

    async def apply(self, body: Object) -> None:
        """Apply an object, unless the same was applied a moment ago. Raises `Foreign`, `KubeError`."""
        key = body["kind"], body["metadata"]["name"]
        text = json.dumps(body, sort_keys=True)
        before, at = self._applied.get(key, ("", 0.0))
        if before == text and self._clock() < at + APPLY_AGAIN_S:
            return
        if not before and not self._is_ours(await self._kube.get(*self._at(body))):
            raise Foreign(
                f"{body['kind']} {body['metadata']['name']} is there already and is not this cluster's: rename it, or the cluster."
            )
        await self._kube.apply(body)
        self._applied[key] = text, self._clock()

    async def _remove(self, body: Object) -> None:
        key = body["kind"], body["metadata"]["name"]
        if self._applied.get(key, ("", 0.0))[0] == "-":
            return
        found = await self._kube.get(*self._at(body))
        if found is not None and self._is_ours(found):
            await self._kube.delete(*self._at(body), found["metadata"]["uid"])
        self._applied[key] = "-", 0.0

    def _at(self, body: Object) -> tuple[str, str, str]:
        return body["kind"], self._namespace, body["metadata"]["name"]

    def _is_ours(self, found: Object | None) -> bool:
        """Whether an object is free to be made, or was made for this cluster."""
        if found is None:
            return True
        labels = found["metadata"].get("labels") or {}
        return labels.get("app.kubernetes.io/managed-by") == names.MANAGER and labels.get("app.kubernetes.io/instance") == self._name


async def keep_owner(kube: Kube, cluster: Cluster, found: Object, *, is_owned: bool) -> None:
    """Have an object that was made once go with the cluster, or stay, as `retentionPolicy` says now. Raises `KubeError`."""
    wanted = names.owners(cluster, is_owned=is_owned)
    if [one["uid"] for one in found["metadata"].get("ownerReferences") or []] != [one["uid"] for one in wanted]:
        body = {"metadata": {"ownerReferences": wanted or None}}
        await kube.patch(found["kind"], cluster.metadata.namespace, found["metadata"]["name"], body)


def _claim_spec(spec: Object) -> Object:
    """Of a claim's spec what we set, without what the API server has added."""
    return {name: spec[name] for name in ("accessModes", "resources", "storageClassName") if name in spec}
