"""An API server, a StatefulSet controller and the nodes of clusters, all emulated over real HTTP on loopback.

What the operator's reconciler talks to in tests, through its own clients.
Knows the verbs that the operator uses: get, list by labels, create, server-side apply (of one manager, so a merge), merge patch, status,
delete with a uid. Does not know other controllers, validation or watches: e2e has the real ones. Each node listens on an address of its own
in 127.0.0.0/8, at the port that the operator asks. Invariant: everything that was opened is closed with the `AsyncExitStack`.
"""

import base64
import copy
import itertools
import json
import random
import re
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import msgspec
from aiohttp import web

from context_operator.placement import AddLearner, Promote, Remove, TransferLeader
from context_operator.resources import names
from support.operated_cluster import World

Object = dict[str, Any]
Key = tuple[str, str, str]
PLURALS = {
    "configmaps": "ConfigMap",
    "secrets": "Secret",
    "services": "Service",
    "serviceaccounts": "ServiceAccount",
    "persistentvolumeclaims": "PersistentVolumeClaim",
    "pods": "Pod",
    "events": "Event",
    "statefulsets": "StatefulSet",
    "poddisruptionbudgets": "PodDisruptionBudget",
    "networkpolicies": "NetworkPolicy",
    "contextclusters": "ContextCluster",
    "contextpolicies": "ContextPolicy",
}
"""The kinds that are served. Others, such as monitors, are not installed."""

PATH = re.compile(r"/apis?/[a-z0-9./]*?v[a-z0-9]+/namespaces/([^/]+)/([a-z]+)(?:/([^/]+))?(/status)?")
LIST_ALL = re.compile(r"/apis?/[a-z0-9./]*?v[a-z0-9]+/([a-z]+)")


class Refusal(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class EmulatedKubernetes:
    """Objects by kind, namespace and name. `requests` counts; `fails` is asked before each request and may raise a `Refusal`."""

    def __init__(self) -> None:
        self.objects: dict[Key, Object] = {}
        self.requests = 0
        self.fails: Callable[[str, str], None] = lambda _method, _path: None
        self._numbers = itertools.count(1)

    # --- objects --------------------------------------------------------------------------------------------------------

    def get(self, kind: str, namespace: str, name: str) -> Object:
        found = self.objects.get((kind, namespace, name))
        if found is None:
            raise Refusal(404, f'{kind} "{name}" not found')
        return found

    def all(self, kind: str) -> list[Object]:
        return [one for (its, _, _), one in sorted(self.objects.items()) if its == kind]

    def put(self, body: Object) -> Object:
        """Make an object, or merge into the one that is there, as a user's or the operator's apply does."""
        body = with_data(body)
        meta = body["metadata"]
        key = body["kind"], meta["namespace"], meta["name"]
        old = self.objects.get(key)
        if old is None:
            meta.update(uid=f"uid-{next(self._numbers)}", generation=1)
            self.objects[key] = body
            return body
        before = json.dumps(old.get("spec"), sort_keys=True)
        merge(old, body)
        if json.dumps(old.get("spec"), sort_keys=True) != before:
            old["metadata"]["generation"] += 1
        return old

    def delete(self, kind: str, namespace: str, name: str, uid: str = "") -> None:
        found = self.get(kind, namespace, name)
        if uid and found["metadata"]["uid"] != uid:
            raise Refusal(409, "the uid is another one")
        del self.objects[kind, namespace, name]

    # --- over HTTP ------------------------------------------------------------------------------------------------------

    async def serve(self, stack: AsyncExitStack) -> str:
        """The URL of the API server."""
        return await _serve(stack, self._answer, "127.0.0.1", 0)

    async def _answer(self, request: web.Request) -> web.Response:
        self.requests += 1
        try:
            self.fails(request.method, request.path)
            return web.json_response(self._handle(request, await request.read()))
        except Refusal as refusal:
            return web.json_response({"kind": "Status", "message": str(refusal), "code": refusal.status}, status=refusal.status)

    def _handle(self, request: web.Request, content: bytes) -> Object:
        body = json.loads(content) if content else {}
        match = PATH.fullmatch(request.path)
        if match is None:
            everywhere = LIST_ALL.fullmatch(request.path)
            if everywhere is None or everywhere[1] not in PLURALS:
                raise Refusal(404, "the server could not find the requested resource")
            return {"items": self.all(PLURALS[everywhere[1]])}
        namespace, plural, name, status = match.groups()
        if plural not in PLURALS:
            raise Refusal(404, "the server could not find the requested resource")
        kind = PLURALS[plural]
        match request.method, name:
            case "GET", None:
                return {"items": [one for one in self.all(kind) if is_selected(one, namespace, request.query.get("labelSelector", ""))]}
            case "GET", _:
                return self.get(kind, namespace, name)
            case "POST", _:
                if (kind, namespace, body["metadata"]["name"]) in self.objects:
                    raise Refusal(409, "already exists")
                return self.put(body)
            case "PATCH", _ if "apply-patch" in request.content_type:
                return self.put(body)
            case "PATCH", _:
                found = self.get(kind, namespace, name)
                merge(found, {"status": body["status"]} if status else with_data(body))
                return found
            case "DELETE", _:
                self.delete(kind, namespace, name, body.get("preconditions", {}).get("uid", ""))
                return {"kind": "Status"}
        raise Refusal(405, "no such verb")


def with_data(body: Object) -> Object:
    """As the API server does with a Secret's `stringData`."""
    body = copy.deepcopy(body)
    if "stringData" in body:
        data = {name: base64.b64encode(text.encode()).decode() for name, text in body.pop("stringData").items()}
        body.setdefault("data", {}).update(data)
    return body


def merge(into: Object, change: Object) -> None:
    """RFC 7396."""
    for name, value in change.items():
        if value is None:
            into.pop(name, None)
        elif isinstance(value, dict) and isinstance(into.get(name), dict):
            merge(into[name], value)
        else:
            into[name] = copy.deepcopy(value)


def is_selected(one: Object, namespace: str, selector: str) -> bool:
    labels = one["metadata"].get("labels") or {}
    pairs = [pair.split("=") for pair in selector.split(",") if pair]
    return one["metadata"]["namespace"] == namespace and all(labels.get(name) == value for name, value in pairs)


class EmulatedCluster:
    """The pods and nodes of one ContextCluster. `settle` does what controllers and nodes do by themselves."""

    def __init__(self, kubernetes: EmulatedKubernetes, namespace: str, name: str, stack: AsyncExitStack) -> None:
        self.world = World()
        self.begun = 0
        self.silent: set[int] = set()
        """Pods whose nodes answer nobody."""
        self.policies: dict[str, Object] = {}
        self.refused_policies: set[str] = set()
        """Policies that the nodes cannot take now."""
        self.epoch = 0
        self.fails: Callable[[int, Object], Object | None] = lambda _ordinal, _spec: None
        """By ordinal and pod spec what Kubernetes tells of a pod that does not run; asked when the pod is made."""
        self._kubernetes, self._namespace, self._name, self._stack = kubernetes, namespace, name, stack
        self._addresses: dict[int, str] = {}
        self._block = f"127.{random.randint(1, 254)}.{random.randint(1, 254)}"

    async def settle(self) -> None:
        """Volumes and pods come and go as the StatefulSet says; nodes join."""
        kube, world = self._kubernetes, self.world
        stateful_set = kube.objects.get(("StatefulSet", self._namespace, self._name))
        if stateful_set is None:
            return
        world.size = stateful_set["spec"]["replicas"]
        template = stateful_set["spec"]["template"]
        wanted_hash = template["metadata"]["annotations"][names.RESTART_HASH]
        there = {ordinal: one for one in kube.all("Pod") if (ordinal := names.ordinal_of(self._name, one["metadata"]["name"])) is not None}
        for ordinal in [one for one in there if one >= world.size]:
            kube.delete("Pod", self._namespace, names.pod(self._name, ordinal))
        for ordinal in [one for one in {*world.pods, *world.broken, *world.stores} if one not in there]:
            # It was deleted; its volume may be gone too.
            world.pods.pop(ordinal, None)
            world.broken.discard(ordinal)
            if ("PersistentVolumeClaim", self._namespace, names.claim(self._name, ordinal)) not in kube.objects:
                world.stores.pop(ordinal, None)
        for ordinal in range(world.size):
            if ordinal not in there:
                await self._start(ordinal, template, stateful_set["spec"]["volumeClaimTemplates"][0])
        # `settle` of the world takes members in; a member's process is asked for its own view.
        world.settle(wanted_hash)

    async def _start(self, ordinal: int, template: Object, claim: Object) -> None:
        kube, meta = self._kubernetes, template["metadata"]
        if ("PersistentVolumeClaim", self._namespace, names.claim(self._name, ordinal)) not in kube.objects:
            labels = claim["metadata"]["labels"]
            body = {"name": names.claim(self._name, ordinal), "namespace": self._namespace, "labels": labels}
            kube.put({"kind": "PersistentVolumeClaim", "metadata": body, "spec": claim["spec"]})
        if ordinal not in self._addresses:
            self._addresses[ordinal] = f"{self._block}.{ordinal + 1}"
            await _serve(self._stack, lambda request: self._answer(ordinal, request), self._addresses[ordinal], names.CLIENT_PORT)
        about = {**copy.deepcopy(meta), "name": names.pod(self._name, ordinal), "namespace": self._namespace}
        trouble = self.fails(ordinal, template["spec"])
        status = trouble or {"podIP": self._addresses[ordinal], "conditions": [{"type": "Ready", "status": "True"}]}
        kube.put({"kind": "Pod", "metadata": about, "status": status})
        if trouble is not None:
            self.world.broken.add(ordinal)
            return
        self.world.pods[ordinal] = meta["annotations"][names.RESTART_HASH]

    # --- a node's admin API ---------------------------------------------------------------------------------------------

    async def _answer(self, ordinal: int, request: web.Request) -> web.Response:
        if ordinal in self.silent or ordinal not in self.world.pods:
            raise web.HTTPServiceUnavailable
        if not request.headers.get("Authorization", "").startswith("Bearer cs_operator_"):
            return web.json_response({"error": "unauthorized", "message": "Give a key."}, status=401)
        body = await request.json() if request.can_read_body else {}
        try:
            value = self._handle(ordinal, request.method, request.path.removeprefix("/v1"), body)
        except Refusal as refusal:
            return web.json_response({"error": "refused", "message": str(refusal)}, status=refusal.status)
        return web.json_response(msgspec.to_builtins(value))

    def _handle(self, ordinal: int, method: str, path: str, body: Object) -> object:
        world = self.world
        if (epoch := body.get("epoch", 0)) and "cluster_id" not in body:
            if epoch < self.epoch:
                raise Refusal(409, f"Epoch {epoch} is older than {self.epoch}: another administrator has taken over.")
            self.epoch = epoch
        match method, path.split("/")[1:]:
            case "GET", ["cluster", "self"]:
                member = world.stores.get(ordinal, 0)
                cluster_id = self._identity() if member else ""
                state = "member" if member else "waiting"
                return {
                    "name": names.pod(self._name, ordinal), "number": member, "store": "s", "cluster_id": cluster_id, "state": state,
                    "replicas": 0, "is_ready": True, "reason": "", "version": "1",
                }  # fmt: skip
            case "POST", ["cluster"]:
                if body["cluster_id"] != self._identity():
                    raise Refusal(409, "another cluster")
                if not world.shards:
                    self.begun += 1
                    world.begin(ordinal)
                return None
            case "GET", ["cluster"]:
                return self._view(ordinal)
            case "PATCH", ["cluster"]:
                world.factor = body["replication_factor"]
                return None
            case "PATCH", ["cluster", "nodes", number]:
                self._mark(int(number), body)
                return None
            case "POST", ["cluster", "shards", shard, what]:
                self._change(int(shard), what, body)
                return None
            case "GET", ["cluster", "policies"]:
                alive = world.alive()
                follows = {name: one["generation"] for name, one in self.policies.items()}
                nodes = [
                    {"node": n, "name": names.pod(self._name, o), "is_alive": n in alive, "replicas": 1, "policies": follows}
                    for n, o in world.numbers.items()
                    if n not in world.removed
                ]
                return {"nodes": nodes}
            case "PUT", ["policies", name]:
                if name in self.refused_policies:
                    raise Refusal(503, "This shard has no leader now; try again shortly.")
                if body["config"].get("limit", 1) < 1:
                    raise Refusal(400, "config.limit must be at least 1")
                before = self.policies.get(name, {"generation": 0})
                if {**before, **body} != before:
                    at = before.get("created_at") or f"2030-01-01T00:00:{len(self.policies):02}Z"
                    self.policies[name] = {**body, "generation": before["generation"] + 1, "created_at": at}
                return self.policies[name]
            case "DELETE", ["policies", name]:
                self.policies.pop(name, None)
                return None
        raise Refusal(404, f"{method} {path}")

    def _identity(self) -> str:
        found: str = self._kubernetes.get("ConfigMap", self._namespace, names.identity(self._name))["data"]["clusterId"]
        return found

    def _view(self, ordinal: int) -> object:
        world = self.world
        if not world.shards or not world.stores.get(ordinal):
            raise Refusal(503, "The node waits.")
        is_noted, world.begun = world.begun, True
        shown = world.view()
        world.begun = is_noted
        assert shown is not None
        nodes = [msgspec.structs.replace(node, name=node.name.replace("c-", f"{self._name}-")) for node in shown.nodes]
        return msgspec.structs.replace(shown, nodes=nodes, epoch=self.epoch)

    def _mark(self, number: int, wished: Object) -> None:
        world = self.world
        if wished.get("removed"):
            if world.held(number):
                raise Refusal(409, "The node still holds replicas.")
            world.removed.add(number)
        elif "draining" in wished:
            world.draining = world.draining | {number} if wished["draining"] else world.draining - {number}

    def _change(self, shard: int, what: str, body: Object) -> None:
        world = self.world
        match what:
            case "learners":
                world.carry_out(AddLearner(shard, body["node"]))
            case "leader":
                world.carry_out(TransferLeader(shard, body["node"]))
            case "members" if not body["promote"] and not world.shards[shard][1].get(body["remove"][0] - shard * 100):
                world.carry_out(Remove(shard, body["remove"][0]))
            case "members":
                world.carry_out(Promote(shard, tuple(body["promote"]), tuple(body["remove"])))
        world.check_majorities()


async def _serve(stack: AsyncExitStack, answer: Callable[[web.Request], Awaitable[web.Response]], host: str, port: int) -> str:
    runner = web.ServerRunner(web.Server(answer))  # type: ignore[arg-type]
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    await web.TCPSite(runner, host, port).start()
    return f"http://{host}:{runner.addresses[0][1]}"
