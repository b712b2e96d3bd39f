"""Bad resources are refused by the API server, each with a sentence; what gets through and is wrong all the same never reaches a shard."""

import json
from typing import Any

import pytest

from kubernetes_cli import Failed, apply, condition, get, kubectl, until
from store_cluster import Cluster

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
    ({"tls": {"mode": "Secret"}}, "needs tls.secretRef"),
    ({"tls": {"mode": "CertManager"}}, "needs tls.issuerRef"),
    ({"tls": {"mode": "Sometimes"}}, "Unsupported value"),
    ({"tls": {"mode": "SelfSigned", "hosts": ["not a name"]}}, "spec.tls.hosts"),
    ({"config": {"tls_ca_file": "/x"}}, "sets itself"),
    ({"archive": {"tailKeep": 100}}, "needs archive.postgres"),
    ({"archive": {"postgres": {"secretRef": {"name": "pg"}}, "tailKeep": -1}}, "spec.archive.tailKeep"),
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
    ({"tls": {"mode": "SelfSigned"}}, "cannot be switched on or off"),
]


BAD_NAMES = [("demo-peers", "must not end in -peers"), ("x" * 44, "43 characters at most"), ("9lives", "must begin with a letter")]


@pytest.mark.core
@pytest.mark.parametrize(("name", "says"), BAD_NAMES, ids=[name for name, _ in BAD_NAMES])
def test_6_a_name_that_objects_cannot_have_is_refused_with_a_sentence(operator: str, name: str, says: str) -> None:
    body = {"apiVersion": "contextstore.dev/v1alpha1", "kind": "ContextCluster", "metadata": {"name": name}, "spec": {}}
    with pytest.raises(Failed, match=says):
        apply(body, namespace="default")


@pytest.mark.core
@pytest.mark.parametrize(("change", "says"), UNCHANGEABLE, ids=[json.dumps(change) for change, _ in UNCHANGEABLE])
def test_6_what_cannot_be_changed_is_refused_with_a_sentence(cluster: Cluster, change: dict[str, Any], says: str) -> None:
    with pytest.raises(Failed, match=says):
        kubectl("-n", cluster.namespace, "patch", f"ctxc/{cluster.name}", "--type=merge", "-p", json.dumps({"spec": change}))


@pytest.mark.core
def test_6_an_invalid_policy_never_reaches_a_shard(cluster: Cluster) -> None:
    """What no schema can tell (the settings of a strategy) the nodes refuse; the good policy of that name stays in force everywhere."""
    policy: dict[str, Any] = {
        "apiVersion": "contextstore.dev/v1alpha1",
        "kind": "ContextPolicy",
        "metadata": {"name": "fickle"},
        "spec": {"clusterRef": {"name": cluster.name}, "strategy": "last_n", "config": {"limit": 20}},
    }
    apply(policy, namespace=cluster.namespace)
    until("every node follows the policy", lambda: get("ctxp", "fickle", cluster.namespace)["status"]["loaded"] == "3/3")
    before = cluster.ask("GET", "/cluster/policies")[1]
    apply({**policy, "spec": {**policy["spec"], "config": {"keep": 3}}}, namespace=cluster.namespace)

    def is_refused() -> bool:
        told = condition(get("ctxp", "fickle", cluster.namespace), "Accepted")
        return told.get("status") == "False" and "keep" in told["message"]

    until("it is refused, and the message says why", is_refused)
    assert cluster.ask("GET", "/cluster/policies")[1] == before
    assert cluster.ask("GET", "/policies/fickle")[1]["config"] == {"limit": 20}
    kubectl("-n", cluster.namespace, "delete", "ctxp", "fickle")
    until("it is gone from the nodes", lambda: cluster.ask("GET", "/policies/fickle")[0] == 404)
