"""Which clusters there are, and when each is looked at: one task a cluster, woken by events and by the clock.

Knows names of objects. Does not know what a pass does. Invariants: passes over one cluster never overlap, and one cluster's trouble holds
up no other; every cluster is looked at again after `IDLE_S` at the latest, whatever became of the watch streams.
"""

import asyncio
import logging
from contextlib import suppress
from dataclasses import dataclass, field

import msgspec
from prometheus_client import CollectorRegistry, Counter, Gauge

from context_operator.kube import KubeError
from context_operator.reconciler import ClusterReconciler, Result, Surroundings
from context_operator.spec import policy_of
from context_operator.status import merged

logger = logging.getLogger("contextstore.operator")

SCAN_S = 30.0
"""How often all clusters are listed, should an event have been lost."""

FAILED_S, FAILED_S_MAX = 1.0, 30.0
PASS_TIMEOUT_S = 120.0
Key = tuple[str, str]
"""Namespace and name."""


class Metrics:
    """What the operator tells Prometheus of itself."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.passes = Counter("contextstore_operator_passes_total", "Passes over a cluster.", ["outcome"], registry=self.registry)
        self.clusters = Gauge("contextstore_operator_clusters", "Clusters looked after.", registry=self.registry)
        self.oldest = Gauge(
            "contextstore_operator_oldest_pass_seconds", "Age of the pass of the cluster that waits longest.", registry=self.registry
        )


@dataclass(slots=True, eq=False)
class _Kept:
    """A cluster that is looked after."""

    reconciler: ClusterReconciler
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    task: "asyncio.Task[None] | None" = None
    passed_at: float = 0.0
    failures: int = 0


class Manager:
    """All clusters of the namespaces that the operator looks after; None is every namespace."""

    def __init__(self, around: Surroundings, namespaces: tuple[str, ...] | None) -> None:
        self._around, self._namespaces = around, namespaces
        self._kept: dict[Key, _Kept] = {}
        self._scanned_at = around.clock()
        self.metrics = Metrics()
        self.metrics.oldest.set_function(self.oldest_pass_s)

    def wake(self, namespace: str, name: str) -> None:
        """Something about a cluster may have changed."""
        kept = self._kept.get((namespace, name))
        if kept is None:
            kept = self._keep(namespace, name)
        kept.wake.set()

    def wake_known(self, namespace: str, name: str) -> None:
        """As `wake`, for what belongs to a cluster; nothing happens for one that is not looked after."""
        if (namespace, name) in self._kept:
            self.wake(namespace, name)

    def wake_for_policy(self, namespace: str, cluster: str) -> None:
        """A policy of a cluster was changed."""
        if (kept := self._kept.get((namespace, cluster))) is not None:
            kept.reconciler.policies_changed()
            kept.wake.set()

    def oldest_pass_s(self) -> float:
        """How long ago the last pass of the cluster that waits longest came to an end, and the last list of all. What the liveness probe
        goes by: a pass that hangs shows here."""
        now = self._around.clock()
        return max([now - self._scanned_at, *(now - kept.passed_at for kept in self._kept.values())])

    async def run(self) -> None:
        """Look after everything, until cancelled."""
        try:
            while True:
                await self._scan()
                await asyncio.sleep(SCAN_S)
        finally:
            tasks = [kept.task for kept in self._kept.values() if kept.task is not None]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for kept in self._kept.values():
                await kept.reconciler.close()

    async def _scan(self) -> None:
        for namespace in self._namespaces or (None,):
            try:
                for value in await self._around.kube.list("ContextCluster", namespace):
                    meta = value["metadata"]
                    if (meta["namespace"], meta["name"]) not in self._kept:
                        self.wake(meta["namespace"], meta["name"])
                await self._tell_orphans(namespace)
            except KubeError as problem:
                # One namespace may be gone, or the API server away: a restart would help neither.
                logger.warning("clusters of %s cannot be listed: %s", namespace or "all namespaces", problem)
        self._scanned_at = self._around.clock()

    async def _tell_orphans(self, namespace: str | None) -> None:
        """Policies of clusters that there are not say so."""
        for value in await self._around.kube.list("ContextPolicy", namespace):
            try:
                policy = policy_of(value)
            except msgspec.ValidationError as problem:
                logger.warning("policy %s is left alone: %s", value["metadata"]["name"], problem)
                continue
            meta, cluster = policy.metadata, policy.spec.cluster_ref.name
            if (meta.namespace, cluster) in self._kept:
                continue
            sentence = f"There is no ContextCluster {cluster} in namespace {meta.namespace}."
            conditions = merged(
                policy.status.get("conditions") or [],
                [("Accepted", None, "ClusterNotFound", sentence), ("Ready", False, "ClusterNotFound", sentence)],
                meta.generation,
                self._around.now(),
            )
            status = {"observedGeneration": meta.generation, "loaded": "0/0", "nodes": [], "conditions": conditions}
            if any(policy.status.get(name) != told for name, told in status.items()):
                await self._around.kube.patch("ContextPolicy", meta.namespace, meta.name, {"status": status}, "status")

    def _keep(self, namespace: str, name: str) -> _Kept:
        kept = _Kept(ClusterReconciler(self._around, namespace, name), passed_at=self._around.clock())
        kept.task = asyncio.get_running_loop().create_task(self._look_after((namespace, name), kept), name=f"{namespace}/{name}")
        self._kept[namespace, name] = kept
        self.metrics.clusters.set(len(self._kept))
        return kept

    async def _look_after(self, key: Key, kept: _Kept) -> None:
        while True:
            kept.wake.clear()
            result = await self._one_pass(key, kept)
            if result.is_gone:
                await kept.reconciler.close()
                del self._kept[key]
                self.metrics.clusters.set(len(self._kept))
                return
            with suppress(TimeoutError):
                async with asyncio.timeout(result.pause_s):
                    await kept.wake.wait()

    async def _one_pass(self, key: Key, kept: _Kept) -> Result:
        try:
            async with asyncio.timeout(PASS_TIMEOUT_S):
                result = await kept.reconciler.reconcile()
        except KubeError as problem:
            # Nobody was asked, so nothing is wrong with the cluster or with us.
            if not kept.failures:
                logger.warning("%s/%s: %s", *key, problem)
            kept.passed_at = self._around.clock()
            outcome = "refused" if problem.status else "no_api_server"
        except TimeoutError:
            logger.error("%s/%s: a pass did not end within %g s", *key, PASS_TIMEOUT_S)
            outcome = "timed_out"
        except Exception:
            # It came to an end, if to a bad one: one cluster's trouble must not have the probe end all others' operator.
            logger.exception("%s/%s: a pass failed", *key)
            kept.passed_at = self._around.clock()
            outcome = "failed"
        else:
            kept.passed_at, kept.failures = self._around.clock(), 0
            self.metrics.passes.labels("ended").inc()
            return result
        self.metrics.passes.labels(outcome).inc()
        kept.failures += 1
        return Result(min(FAILED_S_MAX, FAILED_S * 2 ** min(kept.failures, 5)))
