"""The Kubernetes API: the only caller of it.

Knows the official client, which it uses for authentication, TLS and connections only: objects are JSON, as the builders make them. Every
call runs in a thread and has a timeout. Does not know what the objects are for. Invariants: what is applied is applied by server-side apply
under one field manager, so that others' fields stay; nothing is deleted but what is named.
"""

import asyncio
import builtins
import json
import logging
from collections.abc import Mapping
from typing import Any

from kubernetes import client, config
from kubernetes.client.exceptions import ApiException
from kubernetes.utils.quantity import parse_quantity
from urllib3.exceptions import HTTPError

from context_operator.spec import GROUP, VERSION, Object

logger = logging.getLogger("contextstore.operator")

FIELD_MANAGER = "contextstore-operator"
TIMEOUT_S = 15.0
CLUSTERS, POLICIES = f"/apis/{GROUP}/{VERSION}|contextclusters", f"/apis/{GROUP}/{VERSION}|contextpolicies"
KINDS: Mapping[str, str] = {
    "ConfigMap": "/api/v1|configmaps",
    "Secret": "/api/v1|secrets",
    "Service": "/api/v1|services",
    "ServiceAccount": "/api/v1|serviceaccounts",
    "PersistentVolumeClaim": "/api/v1|persistentvolumeclaims",
    "Pod": "/api/v1|pods",
    "Event": "/api/v1|events",
    "StatefulSet": "/apis/apps/v1|statefulsets",
    "PodDisruptionBudget": "/apis/policy/v1|poddisruptionbudgets",
    "NetworkPolicy": "/apis/networking.k8s.io/v1|networkpolicies",
    "PodMonitor": "/apis/monitoring.coreos.com/v1|podmonitors",
    "PrometheusRule": "/apis/monitoring.coreos.com/v1|prometheusrules",
    "Certificate": "/apis/cert-manager.io/v1|certificates",
    "ContextCluster": CLUSTERS,
    "ContextPolicy": POLICIES,
}
"""By kind the root of its API group and version, and its plural."""


class KubeError(Exception):
    """The API server refused or cannot be reached. `status` is HTTP's, 0 where there was no answer. The message is for people."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Kube:
    """The API server of the cluster that the operator runs in, or of the kubeconfig at hand."""

    def __init__(self, api: client.ApiClient) -> None:
        self._api = api

    @staticmethod
    def connect() -> "Kube":
        """Inside a pod by its service account, else by `KUBECONFIG`. Raises `KubeError`."""
        settings = client.Configuration()
        try:
            try:
                config.load_incluster_config(settings)  # type: ignore[no-untyped-call]
            except config.ConfigException:
                config.load_kube_config(client_configuration=settings)  # type: ignore[no-untyped-call]
        except config.ConfigException as error:
            raise KubeError(0, f"There is neither a service account nor a usable kubeconfig: {error}") from error
        # A connection that broke is tried again by the next pass, not behind our back: some calls must not be repeated blindly.
        settings.retries = False
        return Kube(client.ApiClient(settings))

    async def get(self, kind: str, namespace: str, name: str) -> Object | None:
        """An object; None if there is none."""
        try:
            found: Object = await self._call("GET", _path(kind, namespace, name))
        except KubeError as error:
            if error.status == 404:
                return None
            raise
        return found

    async def list(self, kind: str, namespace: str | None, labels: Mapping[str, str] | None = None) -> list[Object]:
        """All objects of a kind, of one namespace or of all."""
        query = [("labelSelector", ",".join(f"{name}={value}" for name, value in labels.items()))] if labels else []
        answer = await self._call("GET", _path(kind, namespace), query=query)
        items: list[Object] = answer["items"]
        return items

    async def create(self, body: Object) -> bool:
        """Create an object; False if one of its name is there already."""
        try:
            await self._call("POST", _path(body["kind"], body["metadata"]["namespace"]), body=body)
        except KubeError as error:
            if error.status == 409:
                return False
            raise
        return True

    async def apply(self, body: Object) -> Object:
        """Server-side apply; conflicts are ours to win, since nobody else writes these fields. Gives the object as it is then."""
        meta = body["metadata"]
        query = [("fieldManager", FIELD_MANAGER), ("force", "true")]
        path = _path(body["kind"], meta["namespace"], meta["name"])
        found: Object = await self._call("PATCH", path, query=query, body=body, content_type="application/apply-patch+yaml")
        return found

    async def patch(self, kind: str, namespace: str, name: str, body: Object, subresource: str = "") -> None:
        """JSON merge patch."""
        path = _path(kind, namespace, name) + (f"/{subresource}" if subresource else "")
        query = [("fieldManager", FIELD_MANAGER)]
        await self._call("PATCH", path, query=query, body=body, content_type="application/merge-patch+json")

    async def delete(self, kind: str, namespace: str, name: str, uid: str = "") -> None:
        """Delete an object, if it is there and (where given) still the one of this uid. Never by force."""
        body: Object = {"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": "Background"}
        if uid:
            body["preconditions"] = {"uid": uid}
        try:
            await self._call("DELETE", _path(kind, namespace, name), body=body)
        except KubeError as error:
            # 409: another one has its name by now.
            if error.status not in (404, 409):
                raise

    async def _call(
        self,
        method: str,
        path: str,
        *,
        query: builtins.list[tuple[str, str]] | None = None,
        body: Object | None = None,
        content_type: str = "application/json",
    ) -> Any:
        return await asyncio.to_thread(self._call_now, method, path, query or [], body, content_type)

    def _call_now(self, method: str, path: str, query: builtins.list[tuple[str, str]], body: Object | None, content_type: str) -> Any:
        headers = {"Accept": "application/json", "Content-Type": content_type}
        # The client encodes what is JSON by its type, and leaves YAML, of which JSON is a part, to its caller.
        content = body if body is None or content_type.endswith("json") else json.dumps(body)
        try:
            request = self._api.param_serialize(
                method, path, query_params=query, header_params=headers, body=content, auth_settings=["BearerToken"]
            )
            answer = self._api.call_api(*request, _request_timeout=TIMEOUT_S)
            data = answer.read()  # type: ignore[no-untyped-call]
        except ApiException as error:
            raise KubeError(error.status or 0, _message(error)) from error
        except (HTTPError, OSError) as error:
            raise KubeError(0, f"The API server cannot be reached: {error}") from error
        if answer.status >= 400:
            raise KubeError(answer.status, _told(data) or f"HTTP {answer.status}")
        return json.loads(data)


def same_quantity(one: str, other: str) -> bool:
    """Whether two quantities are equal, however they are written: `1Gi` and `1024Mi`."""
    try:
        return bool(parse_quantity(one) == parse_quantity(other))  # type: ignore[no-untyped-call]
    except ValueError:
        return one == other


def _path(kind: str, namespace: str | None, name: str = "") -> str:
    root, plural = KINDS[kind].split("|")
    middle = f"/namespaces/{namespace}" if namespace is not None else ""
    return f"{root}{middle}/{plural}" + (f"/{name}" if name else "")


def _message(error: ApiException) -> str:
    return _told(error.body) or f"{error.status} {error.reason}"


def _told(body: object) -> str:
    """The sentence of a `Status` object."""
    try:
        value = json.loads(body)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return ""
    return str(value.get("message", "")) if isinstance(value, dict) else ""
