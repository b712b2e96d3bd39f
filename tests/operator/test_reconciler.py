"""The operator's passes over a cluster, through its own clients, against an emulated API server and emulated nodes.

What a real Kubernetes does with all this is tested by e2e; here every interruption is tried.
"""

import asyncio
import base64
import itertools
import json
from collections.abc import Awaitable, Callable
from typing import Any
from zlib import crc32

import pytest

from context_operator.manager import Manager
from context_operator.resources import names
from support.emulated_kubernetes import Refusal
from support.operator_passes import Operator, Run


async def whole_life(operator: Operator) -> None:
    """Begin, grow, shrink, change, give a volume up."""
    operator.wish(replicas=3)
    await operator.rest(3)
    operator.wish(replicas=5)
    await operator.rest(5)
    operator.wish(replicas=3)
    await operator.rest(3)
    before = {one["metadata"]["uid"] for one in operator.kubernetes.all("Pod")}
    operator.wish(replicas=3, limits={"partsMax": 7})
    await operator.until(lambda: not before & {one["metadata"]["uid"] for one in operator.kubernetes.all("Pod")}, "other pods")
    await operator.rest(3)
    number = operator.cluster.world.stores[1]
    operator.wish({names.REPLACE: "1"}, replicas=3, limits={"partsMax": 7})
    await operator.rest(3)
    assert operator.cluster.world.stores[1] != number
    assert {one["name"] for one in operator.status["members"]} == {"demo-0", "demo-1", "demo-2"}
    operator.wish(replicas=3, shards={"replicationFactor": 1})
    await operator.until(lambda: operator.status["shards"]["replicationFactor"] == 1, "one replica of each shard")
    await operator.rest(3)
    assert operator.cluster.begun == 1


def test_a_cluster_lives_and_every_condition_is_there_from_the_first_pass(run: Run) -> None:
    async def check(operator: Operator) -> None:
        operator.wish(replicas=3)
        await operator.one_pass()
        assert {one["type"] for one in operator.status["conditions"]} == {
            "Ready", "Available", "Progressing", "Degraded", "Rebalancing", "ScaleAllowed", "ArchiveHealthy", "StorageResized", "Paused",
        }  # fmt: skip
        assert operator.status["operation"]["type"] == "Bootstrap"
        await whole_life(operator)
        kinds = {one["metadata"]["name"]: one["kind"] for one in operator.kubernetes.objects.values()}
        assert kinds["demo-identity"] == "ConfigMap"
        assert {key[0] for key in operator.kubernetes.objects} >= {"StatefulSet", "Service", "ServiceAccount", "NetworkPolicy", "Secret"}
        told = [sentence for _, sentence in operator.events()]
        assert [sentence for sentence in told if not sentence[0].isupper() and not sentence.startswith(("demo", "3", "5"))] == []
        assert any("Pods 3, 4 are to be emptied." in sentence for sentence in told)

    run(check)


PLACES = (
    "identity", "secrets", "SetReplicas", "Begin", "NoteBegun", "Move", "MarkNodes", "RemoveNodes", "HandOver", "DeletePod", "GiveUpVolume",
    "SetReplication",
)  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
def test_an_operator_that_dies_at_any_place_goes_on(run: Run, place: str) -> None:
    """Each of the first three times that it comes there."""
    died: list[str] = []

    def dies(at: str) -> bool:
        if at != place or len(died) >= 3:
            return False
        died.append(at)
        return True

    async def check(operator: Operator) -> None:
        operator.crashes_at = dies
        await whole_life(operator)

    run(check)
    assert died, "it never came there"


@pytest.mark.parametrize("every", [5, 7, 11, 13])
def test_an_api_server_that_often_does_not_answer_only_makes_it_late(run: Run, every: int) -> None:
    """Some requests fail before they did anything."""
    count = itertools.count(1)

    def fails(_method: str, path: str) -> None:
        # Not always the same one: a pass has a regular number of requests.
        if crc32(f"{path} {next(count)}".encode()) % every == 0:
            raise Refusal(503, "the server is currently unable to handle the request")

    async def check(operator: Operator) -> None:
        operator.wish(replicas=3)
        operator.kubernetes.fails = fails
        await operator.until(lambda: operator.cluster.begun, "it has begun")
        operator.kubernetes.fails = lambda _method, _path: None
        await operator.rest(3)
        assert operator.cluster.begun == 1

    run(check)


def test_nothing_is_changed_while_no_node_answers(run: Run) -> None:
    async def check(operator: Operator) -> None:
        operator.wish(replicas=5)
        await operator.rest(5)
        operator.cluster.silent = set(range(5))
        operator.wish(replicas=3, limits={"partsMax": 9})
        before = {one["metadata"]["uid"] for one in operator.kubernetes.all("Pod")}
        for _ in range(5):
            await operator.one_pass()
        assert {one["metadata"]["uid"] for one in operator.kubernetes.all("Pod")} == before
        assert operator.condition("Available")["status"] == "Unknown"
        assert operator.condition("Ready")["reason"] in ("NoAnswer", "Scaling")
        operator.cluster.silent = set()
        await operator.rest(3)

    run(check)


def test_keys_that_are_none_stop_nothing_that_runs_and_are_not_repeated(run: Run) -> None:
    async def check(operator: Operator) -> None:
        def give(**entries: str) -> None:
            operator.kubernetes.put({"kind": "Secret", "metadata": {"name": "mine", "namespace": "apps"}, "stringData": entries})

        def keys() -> str:
            return base64.b64decode(operator.kubernetes.get("Secret", "apps", "demo-keys")["data"]["keys.jsonl"]).decode()

        operator.wish(replicas=1, auth={"apiKeysSecretRef": {"name": "mine"}})
        await operator.until(lambda: operator.condition("Degraded").get("reason") == "NotReconciled", "it says what is missing")
        assert "Secret mine" in operator.condition("Ready")["message"]
        give(app="cs_app_" + "k" * 30)
        await operator.rest(1)
        before = keys()
        give(app="hunter2")
        await operator.until(lambda: operator.condition("Degraded").get("reason") == "NotReconciled", "it says what is wrong")
        assert "Entry app is no key" in operator.condition("Degraded")["message"]
        assert "hunter2" not in json.dumps(operator.kubernetes.all("Event")) + json.dumps(operator.status)
        assert keys() == before
        give(app="cs_other_" + "k" * 30)
        await operator.rest(1)
        assert '"id": "other"' in keys()

    run(check)


def test_the_nodes_secret_is_never_drawn_anew_once_they_have_it(run: Run) -> None:
    async def check(operator: Operator) -> None:
        operator.wish(replicas=1)
        await operator.rest(1)
        entries = operator.kubernetes.get("Secret", "apps", "demo-cluster")["data"]
        operator.kubernetes.delete("Secret", "apps", "demo-cluster")
        await operator.until(lambda: "printenv" in operator.condition("Degraded").get("message", ""), "it says how to restore it")
        assert ("Secret", "apps", "demo-cluster") not in operator.kubernetes.objects
        only = {"cluster-secret": entries["cluster-secret"]}
        operator.kubernetes.put({"kind": "Secret", "metadata": {"name": "demo-cluster", "namespace": "apps"}, "data": only})
        await operator.rest(1)
        restored = operator.kubernetes.get("Secret", "apps", "demo-cluster")["data"]
        assert restored["cluster-secret"] == entries["cluster-secret"]
        assert base64.b64decode(restored["operator-key"]).startswith(b"cs_operator_")

    run(check)


def test_a_volume_without_an_identity_is_never_begun_anew(run: Run) -> None:
    async def check(operator: Operator) -> None:
        operator.wish(replicas=1)
        await operator.rest(1)
        known = operator.status["clusterId"]
        operator.kubernetes.delete("ConfigMap", "apps", "demo-identity")
        await operator.until(lambda: "Restore the ConfigMap" in operator.condition("Degraded").get("message", ""), "it says what to do")
        data = {"clusterId": known, "bootstrapped": "true"}
        operator.kubernetes.put({"kind": "ConfigMap", "metadata": {"name": "demo-identity", "namespace": "apps"}, "data": data})
        await operator.rest(1)
        assert operator.cluster.begun == 1

    run(check)


def test_a_deleted_cluster_is_let_go_and_a_paused_one_left_alone(run: Run) -> None:
    async def check(operator: Operator) -> None:
        operator.wish(replicas=1)
        await operator.rest(1)
        operator.wish(replicas=3, paused=True)
        for _ in range(3):
            await operator.one_pass()
        assert operator.condition("Paused")["status"] == "True"
        assert len(operator.kubernetes.all("Pod")) == 1
        operator.kubernetes.delete("ContextCluster", "apps", "demo")
        assert (await operator.reconciler.reconcile()).is_gone

    run(check)


def test_larger_volumes_are_asked_for_at_the_claims_and_restart_nothing(run: Run) -> None:
    async def check(operator: Operator) -> None:
        operator.wish(replicas=3, storage={"size": "1Gi"})
        await operator.rest(3)
        before = {one["metadata"]["uid"] for one in operator.kubernetes.all("Pod")}
        template = operator.kubernetes.get("StatefulSet", "apps", "demo")["spec"]["volumeClaimTemplates"]
        operator.wish(replicas=3, storage={"size": "2Gi"})
        await operator.rest(3)
        assert {one["spec"]["resources"]["requests"]["storage"] for one in operator.kubernetes.all("PersistentVolumeClaim")} == {"2Gi"}
        assert {one["metadata"]["uid"] for one in operator.kubernetes.all("Pod")} == before
        # Kubernetes lets nobody change it; a pod that comes later begins with the old size, and is grown at once.
        assert operator.kubernetes.get("StatefulSet", "apps", "demo")["spec"]["volumeClaimTemplates"] == template
        operator.wish(replicas=4, storage={"size": "2Gi"})
        await operator.rest(4)
        assert {one["spec"]["resources"]["requests"]["storage"] for one in operator.kubernetes.all("PersistentVolumeClaim")} == {"2Gi"}

    run(check)


def test_monitors_without_their_kinds_hold_nothing_up(run: Run) -> None:
    async def check(operator: Operator) -> None:
        operator.wish(replicas=1, monitoring={"podMonitor": True, "prometheusRule": True, "grafanaDashboard": True})
        await operator.rest(1)
        assert "demo-dashboard" in {one["metadata"]["name"] for one in operator.kubernetes.all("ConfigMap")}

    run(check)


def test_policies_follow_their_resources_and_others_are_left_alone(run: Run) -> None:
    async def check(operator: Operator) -> None:
        def policy(name: str, limit: int, default: bool = False) -> None:
            spec = {"clusterRef": {"name": "demo"}, "strategy": "last_n", "config": {"limit": limit}, "default": default}
            operator.kubernetes.put({"kind": "ContextPolicy", "metadata": {"name": name, "namespace": "apps"}, "spec": spec})
            operator.reconciler.policies_changed()

        def told(name: str) -> dict[str, Any]:
            found: dict[str, Any] = operator.kubernetes.get("ContextPolicy", "apps", name).get("status") or {}
            return {one["type"]: one for one in found.get("conditions", [])} | {"loaded": found.get("loaded")}

        operator.wish(replicas=3)
        await operator.rest(3)
        operator.cluster.policies["by-hand"] = {"strategy": "manual", "generation": 1}
        policy("good", 5)
        policy("bad", 0)
        await operator.until(lambda: told("good")["loaded"] == "3/3", "it is loaded")
        assert told("bad")["Accepted"]["status"] == "False"
        assert "at least 1" in told("bad")["Accepted"]["message"]
        assert set(operator.cluster.policies) == {"by-hand", "good"}
        policy("good", 5, default=True)
        policy("better", 5, default=True)
        await operator.until(lambda: told("better").get("Ready", {}).get("reason") == "AnotherDefault", "it says who is the default")
        assert "It is not the default: good is that too, and older." in told("better")["Ready"]["message"]
        assert told("good")["Ready"]["reason"] == "EveryNodeFollows"
        operator.kubernetes.delete("ContextPolicy", "apps", "better")
        operator.kubernetes.delete("ContextPolicy", "apps", "good")
        operator.reconciler.policies_changed()
        await operator.until(lambda: set(operator.cluster.policies) == {"by-hand"}, "it is gone")

    run(check)


def test_a_pass_over_a_cluster_at_rest_writes_nothing(run: Run) -> None:
    """Neither status nor objects: an API server has better things to do."""

    async def check(operator: Operator) -> None:
        operator.wish(replicas=3)
        await operator.rest(3)
        written: list[str] = []
        operator.kubernetes.fails = lambda method, path: written.append(f"{method} {path}") if method != "GET" else None
        for _ in range(5):
            await operator.one_pass()
        assert written == []
        assert operator.kubernetes.requests > 0

    run(check)


# --- the manager -------------------------------------------------------------------------------------------------------


async def soon(check: Callable[[], Awaitable[bool]] | Callable[[], bool], what: str) -> None:
    for _ in range(2000):
        found = check()
        if found if isinstance(found, bool) else await found:
            return
        await asyncio.sleep(0.01)
    raise AssertionError(what)


def test_one_clusters_trouble_holds_up_no_other_and_not_the_probe(run: Run) -> None:
    async def check(operator: Operator) -> None:
        kubernetes = operator.kubernetes
        operator.wish(replicas=1)
        # No CRD lets this through; an older operator may meet it all the same.
        kubernetes.put({"kind": "ContextCluster", "metadata": {"name": "broken", "namespace": "apps"}, "spec": {"replicas": "many"}})
        operator.around.clock = asyncio.get_running_loop().time
        manager = Manager(operator.around, None)
        looking = asyncio.create_task(manager.run())
        try:

            async def is_ready() -> bool:
                await operator.cluster.settle()
                manager.wake("apps", "demo")
                return operator.condition("Ready").get("status") == "True"

            await soon(is_ready, "the good cluster is ready")
            assert manager.oldest_pass_s() < 60
            assert manager.metrics.passes.labels("failed")._value.get() > 0
            # It was listed, without any event.
            kubernetes.delete("ContextCluster", "apps", "demo")
            manager.wake("apps", "demo")
            await soon(lambda: manager.metrics.clusters._value.get() == 1, "the deleted one is let go")
        finally:
            looking.cancel()
            await asyncio.gather(looking, return_exceptions=True)

    run(check)
