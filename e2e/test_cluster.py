"""A cluster on a real Kubernetes, changed as a user would, under load: nothing acknowledged is lost, and reads never go back."""

from typing import Any

import msgspec
import pytest

from context_operator.placement import ClusterInfo, least_moves
from context_operator.view import ClusterView, cluster_info, view_of
from environments import NEXT_VERSION
from kubernetes_cli import Failed, apply, condition, get, kubectl, until
from store_cluster import Cluster


@pytest.mark.core
def test_1_install_and_use(cluster: Cluster) -> None:
    """helm install, kubectl apply, an app pod by DNS name, and what `kubectl get` shows."""
    cluster.start_app("install")
    shown = kubectl("-n", cluster.namespace, "get", "ctxc", cluster.name)
    print(shown)
    head, row = shown.splitlines()
    assert head.split() == ["NAME", "READY", "NODES", "SHARDS", "OPERATION", "VERSION", "REASON", "AGE"]
    assert "3/3" in row
    assert "32/32" in row
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


def view(cluster: Cluster) -> ClusterView:
    return view_of(cluster.ask("GET", "/cluster")[1])


def replicas_of(seen: ClusterView) -> set[tuple[int, int]]:
    return {(shard.shard, one.replica_id) for shard in seen.shards if not shard.is_system for one in shard.replicas}


def least(shards_of: ClusterView, nodes_of: ClusterView, leaving: int = 0) -> int:
    """The fewest replicas that must come to another node: from where they were to these nodes, without the last ones."""
    nodes = [msgspec.structs.replace(node, draining=node.number in numbers(nodes_of, leaving)) for node in nodes_of.nodes]
    wanted: ClusterInfo = cluster_info(msgspec.structs.replace(shards_of, nodes=nodes))
    return least_moves(wanted)


def numbers(seen: ClusterView, leaving: int) -> list[int]:
    last = sorted(seen.nodes, key=lambda node: node.name)[len(seen.nodes) - leaving :]
    return [node.number for node in last]


@pytest.mark.core
def test_2_scale_up_and_down(cluster: Cluster) -> None:
    """S4: replicas move under load, no more than must."""
    cluster.start_app("scale")
    before = view(cluster)
    cluster.scale(5)
    cluster.wait_ready(5)
    members = until("five members", lambda: len(found := cluster.get()["status"]["members"]) == 5 and found)
    assert {one["name"] for one in members} == {cluster.pod(place) for place in range(5)}
    # A cluster of five is complete before it is even.
    until("nothing moves any more", lambda: condition(cluster.get(), "Rebalancing")["status"] == "False")
    large = view(cluster)
    came, fewest = len(replicas_of(large) - replicas_of(before)), least(before, large)
    print(f"3 -> 5: {came} replicas came to another node, {fewest} is the least")
    assert 0 < fewest <= came <= fewest + 2
    cluster.scale(3)
    cluster.wait_ready(3)
    until("three members", lambda: len(cluster.get()["status"]["members"]) == 3)
    small = view(cluster)
    came, fewest = len(replicas_of(small) - replicas_of(large)), least(large, large, leaving=2)
    print(f"5 -> 3: {came} replicas came to another node, {fewest} is the least")
    assert 0 < fewest <= came <= fewest + 2
    claims = kubectl("-n", cluster.namespace, "get", "pvc", "-o", "name").split()
    assert len(claims) == 5, "volumes are kept unless retentionPolicy says otherwise"
    with pytest.raises(Failed):
        kubectl("-n", cluster.namespace, "scale", f"ctxc/{cluster.name}", "--replicas=0")
    cluster.stop_app("scale")


def test_3_a_config_change_restarts_one_pod_at_a_time(cluster: Cluster) -> None:
    """S4."""
    cluster.start_app("roll")
    before = cluster.pods()
    with cluster.one_away_at_most():
        cluster.apply(limits={"partsMax": 300})
        until("every pod is another one", lambda: not set(before.values()) & set(cluster.pods().values()))
        cluster.wait_ready(3)
    cluster.stop_app("roll")


def test_3_a_new_image_and_back_again_one_pod_at_a_time(cluster: Cluster, next_image: str) -> None:
    """S4: an upgrade, and the way back."""
    cluster.start_app("upgrade")
    with cluster.one_away_at_most():
        cluster.apply(image=next_image)
        until("every node runs the new version", lambda: cluster.get()["status"]["version"] == NEXT_VERSION)
        cluster.wait_ready(3)
        del cluster.spec["image"]
        cluster.apply(image=cluster.image)
        until("every node runs the old version", lambda: cluster.get()["status"]["version"] not in ("", NEXT_VERSION))
        cluster.wait_ready(3)
    cluster.stop_app("upgrade")


def test_3_an_image_that_does_not_start_stops_the_upgrade_at_the_first_pod(cluster: Cluster) -> None:
    """One pod is lost to it, the status says why, and taking it back ends it."""
    cluster.start_app("mistake")
    before = cluster.pods()
    with cluster.one_away_at_most():
        cluster.apply(image="localhost/there-is-no-such:image", imagePullPolicy="Never")
        until("a pod waits for it", lambda: "ErrImageNeverPull" in condition(cluster.get(), "Ready")["message"])
        assert len(set(before.values()) & set(cluster.pods().values())) == 2
        cluster.apply(image=cluster.image, imagePullPolicy="IfNotPresent")
        cluster.wait_ready(3)
    cluster.stop_app("mistake")


@pytest.mark.core
def test_4_a_killed_pod_and_a_killed_operator_cost_nothing(cluster: Cluster, operator: str) -> None:
    """H1, S3."""
    cluster.start_app("kill")
    before = cluster.pods()
    kubectl("-n", cluster.namespace, "delete", "pod", cluster.pod(1), "--grace-period=0", "--force")
    until("the pod is another one", lambda: cluster.pods().get(cluster.pod(1)) not in (None, before[cluster.pod(1)]))
    cluster.wait_ready(3)
    after = cluster.pods()
    kubectl("-n", operator, "delete", "pod", "-l", "app.kubernetes.io/name=contextstore-operator", "--grace-period=0", "--force")
    kubectl("-n", operator, "rollout", "status", "deploy/ctx-operator", "--timeout=60s")
    cluster.wait_ready(3)
    assert cluster.pods() == after
    cluster.stop_app("kill")


def test_5_a_volume_is_given_up_and_replaced(cluster: Cluster) -> None:
    cluster.start_app("volume")
    number = next(one["number"] for one in cluster.get()["status"]["members"] if one["name"] == cluster.pod(2))
    cluster.annotate("replace=2")

    def is_replaced() -> bool:
        members = cluster.get()["status"]["members"]
        return len(members) == 3 and all(one["number"] != number for one in members)

    until("the old member is gone and a new one is there", is_replaced)
    cluster.wait_ready(3)
    assert "contextstore.dev/replace" not in cluster.get()["metadata"]["annotations"]
    cluster.stop_app("volume")


def test_5_a_volume_that_somebody_deleted_is_replaced(cluster: Cluster) -> None:
    """Behind the operator's back: the claim and the pod go, the node comes back with an empty disk under its old name."""
    cluster.start_app("deleted")
    number = next(one["number"] for one in cluster.get()["status"]["members"] if one["name"] == cluster.pod(0))
    kubectl("-n", cluster.namespace, "delete", "pvc", f"data-{cluster.pod(0)}", "--wait=false")
    kubectl("-n", cluster.namespace, "delete", "pod", cluster.pod(0), "--grace-period=0", "--force")

    def is_replaced() -> bool:
        members = cluster.get()["status"]["members"]
        return len(members) == 3 and all(one["number"] != number for one in members)

    until("the old member is gone and a new one is there", is_replaced)
    cluster.wait_ready(3)
    cluster.stop_app("deleted")


def test_7_deletion_leaves_the_volumes_and_the_same_name_takes_them_up(cluster: Cluster) -> None:
    known = cluster.get()["status"]["clusterId"]
    cluster.ask("POST", "/contexts/kept/messages?create=true", {"message": {"role": "user", "content": "remember me"}})
    cluster.delete()
    claims = kubectl("-n", cluster.namespace, "get", "pvc", "-o", "name").split()
    assert len(claims) >= 3
    cluster.apply()
    cluster.wait_ready(3)
    assert cluster.get()["status"]["clusterId"] == known
    assert cluster.ask("GET", "/contexts/kept")[1]["last_seq"] == 1
    cluster.start_app("again")
    cluster.stop_app("again")
