"""The operator's passes over one emulated cluster, one after the other, with a clock that only passes move."""

import json
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from typing import Any

from kubernetes import client

from context_operator.kube import Kube, KubeError
from context_operator.reconciler import ClusterReconciler, Surroundings
from context_operator.resources import names
from support.emulated_kubernetes import EmulatedCluster, EmulatedKubernetes

TURNS_MAX = 400


class Crash(Exception):
    """The operator's process ended here."""


class Operator:
    """A reconciler of the cluster apps/demo, which may crash at any place and then remembers nothing."""

    def __init__(self, kubernetes: EmulatedKubernetes, url: str, stack: AsyncExitStack) -> None:
        self.kubernetes, self.stack = kubernetes, stack
        self.cluster = EmulatedCluster(kubernetes, "apps", "demo", stack)
        self.seconds = 0.0
        self.crashes_at: Callable[[str], bool] = lambda _place: False
        settings = client.Configuration(host=url)
        settings.retries = False
        self.around = Surroundings(Kube(client.ApiClient(settings)), "image:1", 1, lambda: self.seconds, self.now, self.crash)
        self.reconciler = ClusterReconciler(self.around, "apps", "demo")

    def now(self) -> str:
        return f"{datetime(2030, 1, 1, tzinfo=UTC) + timedelta(seconds=self.seconds):%Y-%m-%dT%H:%M:%SZ}"

    async def crash(self, place: str) -> None:
        if self.crashes_at(place):
            raise Crash(place)

    def wish(self, annotations: dict[str, Any] | None = None, **spec: Any) -> None:
        """What a user applies; defaults as the CRD sets them."""
        meta: dict[str, Any] = {"name": "demo", "namespace": "apps", "annotations": annotations or {}}
        self.kubernetes.put({"apiVersion": "contextstore.dev/v1alpha1", "kind": "ContextCluster", "metadata": meta, "spec": spec})

    @property
    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = self.kubernetes.get("ContextCluster", "apps", "demo").get("status") or {}
        return found

    def condition(self, kind: str) -> dict[str, Any]:
        return next((one for one in self.status.get("conditions", []) if one["type"] == kind), {})

    async def one_pass(self) -> None:
        await self.cluster.settle()
        try:
            await self.reconciler.reconcile()
        except Crash:
            await self.reconciler.close()
            self.reconciler = ClusterReconciler(self.around, "apps", "demo")
        except KubeError:
            pass
        self.seconds += 1.5
        await self.cluster.settle()

    async def until(self, check: Callable[[], Any], what: str) -> None:
        for _ in range(TURNS_MAX):
            await self.one_pass()
            if check():
                return
        raise AssertionError(f"not after {TURNS_MAX} passes: {what}; the status is {json.dumps(self.status, indent=1)}")

    def is_at_rest(self, replicas: int) -> bool:
        generation = self.kubernetes.get("ContextCluster", "apps", "demo")["metadata"]["generation"]
        return (
            self.condition("Ready").get("status") == "True"
            and self.condition("Ready")["observedGeneration"] == generation
            and not self.status.get("operation")
            and self.status["nodes"] == f"{replicas}/{replicas}"
            and names.REPLACE not in self.kubernetes.get("ContextCluster", "apps", "demo")["metadata"]["annotations"]
        )

    async def rest(self, replicas: int) -> None:
        await self.until(lambda: self.is_at_rest(replicas), f"{replicas} nodes and nothing to do")

    def events(self) -> list[tuple[str, str]]:
        return [(one["reason"], one["message"]) for one in self.kubernetes.all("Event")]


Run = Callable[[Callable[[Operator], Coroutine[Any, Any, None]]], None]
