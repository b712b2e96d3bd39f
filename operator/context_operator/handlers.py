"""kopf's part: its watch streams wake the manager, and nothing else.

Only `on.event` handlers: daemons, timers and `on.delete` would put a finalizer onto the resources, and then a cluster could not be deleted
while the operator is away. What an event says is not trusted, only that there was one. kopf's streams are known to die in silence
(nolar/kopf#787, #957, #996, #1145, #1276); the manager looks by the clock as well.
"""

from typing import Any

import kopf

from context_operator.manager import Manager
from context_operator.resources import names
from context_operator.spec import GROUP, VERSION

WATCH_S = 120
"""A watch is asked for anew after this time, so that one that died in silence is not trusted for long."""


def registry_of(manager: Manager) -> kopf.OperatorRegistry:
    """Handlers for everything that may change what should be done."""
    registry = kopf.OperatorRegistry()
    ours = {"app.kubernetes.io/managed-by": names.MANAGER}

    @kopf.on.login(registry=registry)
    def login(**arguments: Any) -> kopf.ConnectionInfo | None:
        return kopf.login_with_service_account(**arguments) or kopf.login_with_kubeconfig(**arguments)

    @kopf.on.event(GROUP, VERSION, "contextclusters", registry=registry)
    async def cluster_changed(*, name: str, namespace: str | None, **_: Any) -> None:
        manager.wake(namespace or "", name)

    @kopf.on.event(GROUP, VERSION, "contextpolicies", registry=registry)
    async def policy_changed(*, namespace: str | None, spec: Any, **_: Any) -> None:
        manager.wake_for_policy(namespace or "", (spec.get("clusterRef") or {}).get("name", ""))

    @kopf.on.event("v1", "pods", labels=ours, registry=registry)
    async def pod_changed(*, namespace: str | None, labels: Any, **_: Any) -> None:
        manager.wake_known(namespace or "", labels.get("app.kubernetes.io/instance", ""))

    @kopf.on.event("apps", "v1", "statefulsets", labels=ours, registry=registry)
    async def set_changed(*, namespace: str | None, labels: Any, **_: Any) -> None:
        manager.wake_known(namespace or "", labels.get("app.kubernetes.io/instance", ""))

    return registry


def settings_of() -> kopf.OperatorSettings:
    """kopf without what it would write by itself, and without trust in long watches."""
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.scanning.disabled = True
    settings.watching.server_timeout = WATCH_S
    settings.watching.client_timeout = WATCH_S + 10
    settings.watching.connect_timeout = 10
    settings.networking.request_timeout = 30
    return settings
