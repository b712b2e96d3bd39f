"""The Kubernetes objects of one cluster, kept as they should be.

Knows the builders of `resources/` and in which order their objects are applied. Does not know when, nor nodes. Keeps only what was applied
last, which may be forgotten: then it is applied once more. Invariants: what is the same is not sent again within `APPLY_AGAIN_S`; an
object that this version of Kubernetes does not know holds up no other.
"""

import json
from collections.abc import Callable

from context_operator import plan
from context_operator.kube import Kube, KubeError
from context_operator.plan import Observed
from context_operator.resources import access, dashboard, monitors, names, services, settings, statefulset
from context_operator.spec import Cluster, Object

APPLY_AGAIN_S = 60.0
"""What was applied is applied again after this time, should somebody have changed it."""


class Applier:
    """See the module's docstring. Every method raises `KubeError`. `clock` is monotonic."""

    def __init__(self, kube: Kube, namespace: str, name: str, clock: Callable[[], float]) -> None:
        self._kube, self._namespace, self._name, self._clock = kube, namespace, name, clock
        self._applied: dict[tuple[str, str], tuple[str, float]] = {}

    async def everything(self, cluster: Cluster, observed: Observed, stateful_set: Object | None, image: str) -> None:
        """All objects but those of `credentials.py`; the StatefulSet only if it is there, with the pods that it has."""
        spec = cluster.spec
        for body in (
            services.service_account(cluster),
            settings.config_map(cluster),
            services.peers(cluster),
            services.client(cluster),
        ):
            await self.apply(body)
        optional = (
            (spec.network_policy.enabled, access.network_policy(cluster)),
            (spec.pod_disruption_budget.enabled, access.disruption_budget(cluster, plan.may_lose(observed))),
            (spec.monitoring.pod_monitor, monitors.pod_monitor(cluster)),
            (spec.monitoring.prometheus_rule, monitors.rules(cluster)),
            (spec.monitoring.grafana_dashboard, dashboard.config_map(cluster)),
        )
        for is_wanted, body in optional:
            try:
                await (self.apply(body) if is_wanted else self._remove(body))
            except KubeError as problem:
                # The Prometheus operator's kinds may not be installed, and the cluster does without them.
                if problem.status != 404 or body["kind"] not in ("PodMonitor", "PrometheusRule"):
                    raise
        if stateful_set is not None and observed.set_replicas is not None:
            await self.stateful_set(cluster, observed.set_replicas, image, stateful_set)

    async def stateful_set(self, cluster: Cluster, replicas: int, image: str, found: Object | None) -> None:
        """The StatefulSet with so many pods; `found` is the one that is there."""
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
        await self.apply(body)

    async def grow_volumes(self, cluster: Cluster, stateful_set: Object | None) -> None:
        """Ask for the volumes' size at the claims themselves. A class that cannot grow them refuses."""
        wanted = cluster.spec.storage.size
        if stateful_set is None or all(
            one["spec"]["resources"]["requests"]["storage"] == wanted for one in stateful_set["spec"]["volumeClaimTemplates"]
        ):
            return
        for claim in await self._kube.list("PersistentVolumeClaim", self._namespace, names.selector(self._name)):
            if claim["spec"]["resources"]["requests"]["storage"] != wanted:
                body = {"spec": {"resources": {"requests": {"storage": wanted}}}}
                await self._kube.patch("PersistentVolumeClaim", self._namespace, claim["metadata"]["name"], body)

    async def apply(self, body: Object) -> None:
        """Apply an object, unless the same was applied a moment ago."""
        key = body["kind"], body["metadata"]["name"]
        text = json.dumps(body, sort_keys=True)
        before, at = self._applied.get(key, ("", 0.0))
        if before == text and self._clock() < at + APPLY_AGAIN_S:
            return
        await self._kube.apply(body)
        self._applied[key] = text, self._clock()

    async def _remove(self, body: Object) -> None:
        key = body["kind"], body["metadata"]["name"]
        if self._applied.get(key, ("", 0.0))[0] != "-":
            await self._kube.delete(body["kind"], self._namespace, body["metadata"]["name"])
            self._applied[key] = "-", 0.0


def _claim_spec(spec: Object) -> Object:
    """Of a claim's spec what we set, without what the API server has added."""
    return {name: spec[name] for name in ("accessModes", "resources", "storageClassName") if name in spec}
