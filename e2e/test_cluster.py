"""A cluster on a real Kubernetes, changed as a user would, under load: nothing acknowledged is lost, and reads never go back."""

import json
from typing import Any

import pytest

from conftest import Cluster
from kubernetes_cli import Failed, apply, condition, get, kubectl, until


@pytest.mark.core
def test_1_install_and_use(cluster: Cluster) -> None:
    """helm install, kubectl apply, an app pod by DNS name, and what `kubectl get` shows."""
    cluster.start_app("install")
    shown = kubectl("-n", cluster.namespace, "get", "ctxc", cluster.name)
    print(shown)
    head, row = shown.splitlines()
    assert head.split() == ["NAME", "READY", "NODES", "SHARDS", "OPERATION", "VERSION", "REASON", "AGE"]
    assert "3/3" in row
    assert "8/8" in row
    assert {one["type"] for one in cluster.get()["status"]["conditions"]} >= {
        "Ready",
        "Available",
        "Progressing",
        "Degraded",
        "ScaleAllowed",
    }
    policy: dict[str, Any] = {
        "apiVersion": "contextstore.dev/v1alpha1",
        "kind": "ContextPolicy",
        "metadata": {"name": "short"},
        "spec": {"clusterRef": {"name": cluster.name}, "strategy": "last_n", "config": {"limit": 20}},
    }
    bad = {**policy, "metadata": {"name": "bad"}, "spec": {**policy["spec"], "config": {"keep": 3}}}
    apply(policy, bad, namespace=cluster.namespace)
    until("every node follows the policy", lambda: get("ctxp", "short", cluster.namespace)["status"]["loaded"] == "3/3")
    told = until("the bad one is refused", lambda: condition(get("ctxp", "bad", cluster.namespace), "Accepted"))
    assert told["status"] == "False"
    assert "keep" in told["message"]
    cluster.stop_app("install")


@pytest.mark.core
def test_2_scale_up_and_down(cluster: Cluster) -> None:
    """S4: replicas move under load."""
    cluster.start_app("scale")
    kubectl("-n", cluster.namespace, "scale", f"ctxc/{cluster.name}", "--replicas=5")
    cluster.wait_ready(5)
    members = until("five members", lambda: len(found := cluster.get()["status"]["members"]) == 5 and found)
    assert {one["name"] for one in members} == {f"{cluster.name}-{place}" for place in range(5)}
    kubectl("-n", cluster.namespace, "scale", f"ctxc/{cluster.name}", "--replicas=3")
    cluster.wait_ready(3)
    until("three members", lambda: len(cluster.get()["status"]["members"]) == 3)
    with pytest.raises(Failed):
        kubectl("-n", cluster.namespace, "scale", f"ctxc/{cluster.name}", "--replicas=0")
    cluster.stop_app("scale")


def test_3_a_config_change_restarts_one_pod_at_a_time(cluster: Cluster) -> None:
    """S4. Never more than one is away: the operator's plan is tested for that; here clients notice nothing."""
    cluster.start_app("roll")
    before = cluster.pods()
    cluster.apply(limits={"partsMax": 300})
    until("every pod is another one", lambda: not set(before.values()) & set(cluster.pods().values()))
    cluster.wait_ready(3)
    cluster.stop_app("roll")


@pytest.mark.core
def test_4_a_killed_pod_and_a_killed_operator_cost_nothing(cluster: Cluster, operator: str) -> None:
    """H1, S3."""
    cluster.start_app("kill")
    before = cluster.pods()
    kubectl("-n", cluster.namespace, "delete", "pod", f"{cluster.name}-1", "--grace-period=0", "--force")
    until("the pod is another one", lambda: cluster.pods().get(f"{cluster.name}-1") not in (None, before[f"{cluster.name}-1"]))
    cluster.wait_ready(3)
    after = cluster.pods()
    kubectl("-n", operator, "delete", "pod", "-l", "app.kubernetes.io/name=contextstore-operator", "--grace-period=0", "--force")
    kubectl("-n", operator, "rollout", "status", "deploy/ctx-operator", "--timeout=60s")
    cluster.wait_ready(3)
    assert cluster.pods() == after
    cluster.stop_app("kill")


def test_5_a_lost_volume_is_replaced(cluster: Cluster) -> None:
    cluster.start_app("volume")
    number = next(one["number"] for one in cluster.get()["status"]["members"] if one["name"] == f"{cluster.name}-2")
    kubectl("-n", cluster.namespace, "annotate", f"ctxc/{cluster.name}", "contextstore.dev/replace=2")

    def is_replaced() -> bool:
        members = cluster.get()["status"]["members"]
        return len(members) == 3 and all(one["number"] != number for one in members)

    until("the old member is gone and a new one is there", is_replaced)
    cluster.wait_ready(3)
    assert "contextstore.dev/replace" not in cluster.get()["metadata"]["annotations"]
    cluster.stop_app("volume")


BAD: list[tuple[dict[str, Any], str]] = [
    ({"replicas": 2, "shards": {"replicationFactor": 3}}, "replicas must not be below"),
    ({"shards": {"replicationFactor": 2}}, "must be odd"),
    ({"shards": {"count": 0}}, "spec.shards.count"),
    ({"storage": {"size": "ten"}}, "spec.storage.size"),
    ({"storage": {"size": "1k"}}, "above 64M"),
    ({"defaults": {"targetRatio": 0.9}}, "must be below"),
    ({"config": {"port": "1"}}, "sets itself"),
    ({"config": {"Port": "1"}}, "small letters"),
    ({"rebalance": {"mode": "Sometimes"}}, "Unsupported value"),
    ({"image": "a", "version": "b"}, "not both"),
    ({"limits": {"messageBytesMax": 16777216}}, "batchBytesMax"),
    ({"podTemplate": {"terminationGracePeriodSeconds": 5}}, "terminationGracePeriodSeconds"),
    ({"replicas": 0}, "spec.replicas"),
    ({"replicas": 100}, "spec.replicas"),
    ({"replicas": "three"}, "spec.replicas"),
    ({"shards": {"replicationFactor": 11}}, "spec.shards.replicationFactor"),
    ({"shards": {"count": 2000}}, "spec.shards.count"),
    ({"storage": {"retentionPolicy": {"whenDeleted": "Perhaps"}}}, "Unsupported value"),
    ({"defaults": {"tokenBudget": 0}}, "spec.defaults.tokenBudget"),
    ({"defaults": {"tokenizer": "words"}}, "Unsupported value"),
    ({"defaults": {"triggerRatio": 2}}, "spec.defaults.triggerRatio"),
    ({"defaults": {"policyRef": {}}}, "Required value"),
    ({"auth": {"apiKeysSecretRef": {}}}, "Required value"),
    ({"version": "not a tag"}, "spec.version"),
    ({"rebalance": {"maxConcurrentMoves": 0}}, "maxConcurrentMoves"),
    ({"scaleDown": {"drainTimeout": "soon"}}, "drainTimeout"),
    ({"updateStrategy": {"type": "Recreate"}}, "Unsupported value"),
    ({"service": {"type": "ExternalName"}}, "Unsupported value"),
    ({"limits": {"partsMax": 0}}, "partsMax"),
    ({"replicaz": 3}, "unknown field"),
]


BAD_POLICIES: list[tuple[dict[str, Any], str]] = [
    ({"strategy": "last_n"}, "Required value"),
    ({"clusterRef": {"name": "demo"}}, "Required value"),
    ({"clusterRef": {"name": "demo"}, "strategy": "guess"}, "Unsupported value"),
    ({"clusterRef": {"name": "demo"}, "strategy": "manual", "targetRatio": 0.8}, "must be below triggerRatio"),
    ({"clusterRef": {"name": "demo"}, "strategy": "manual", "tokenBudget": -1}, "tokenBudget"),
    ({"clusterRef": {"name": "demo"}, "strategy": "manual", "config": 3}, "config"),
]


@pytest.mark.core
@pytest.mark.parametrize(
    ("kind", "spec", "says"),
    [
        pytest.param(kind, spec, says, id=f"{kind} {json.dumps(spec)}")
        for kind, bad in (("ContextCluster", BAD), ("ContextPolicy", BAD_POLICIES))
        for spec, says in bad
    ],
)
def test_6_a_bad_resource_is_refused_with_a_sentence(operator: str, kind: str, spec: dict[str, Any], says: str) -> None:
    body = {"apiVersion": "contextstore.dev/v1alpha1", "kind": kind, "metadata": {"name": "bad"}, "spec": spec}
    with pytest.raises(Failed, match=says):
        apply(body, namespace="default")


UNCHANGEABLE: list[tuple[dict[str, Any], str]] = [
    ({"shards": {"count": 9}}, "cannot be changed"),
    ({"storage": {"size": "500Mi"}}, "cannot shrink"),
    ({"storage": {"storageClassName": "zonal"}}, "cannot be changed"),
]


@pytest.mark.core
@pytest.mark.parametrize(("change", "says"), UNCHANGEABLE, ids=[json.dumps(change) for change, _ in UNCHANGEABLE])
def test_6_what_cannot_be_changed_is_refused_with_a_sentence(cluster: Cluster, change: dict[str, Any], says: str) -> None:
    with pytest.raises(Failed, match=says):
        kubectl("-n", cluster.namespace, "patch", f"ctxc/{cluster.name}", "--type=merge", "-p", json.dumps({"spec": change}))


def test_7_deletion_leaves_the_volumes_and_the_same_name_takes_them_up(cluster: Cluster) -> None:
    known = cluster.get()["status"]["clusterId"]
    kubectl("-n", cluster.namespace, "delete", "ctxc", cluster.name, "--timeout=60s")
    until("the pods are gone", lambda: not cluster.pods())
    claims = kubectl("-n", cluster.namespace, "get", "pvc", "-o", "name").split()
    assert len(claims) >= 3
    cluster.apply()
    cluster.wait_ready(3)
    assert cluster.get()["status"]["clusterId"] == known
    cluster.start_app("again")
    cluster.stop_app("again")
