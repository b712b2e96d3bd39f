"""The chart and the resources over time: upgrade, uninstall, install again, deletion in every order."""

from collections.abc import Callable

import pytest

from conftest import CHART, NAMESPACE, helm
from kubernetes_cli import apply, condition, get, kubectl, run, until
from store_cluster import Cluster


def test_the_charts_own_test_passes(operator: str) -> None:
    assert "Succeeded" in run("helm", "test", "ctx", "-n", operator, "--timeout", "2m", timeout_s=150)


@pytest.mark.parametrize(
    "values",
    [(), ("watchNamespaces={apps,default}", "dashboard.enabled=true"), ("crds.install=false", "image.pullSecrets={registry}")],
    ids=str,
)
def test_the_api_server_accepts_whatever_the_chart_renders(operator: str, values: tuple[str, ...]) -> None:
    settings = [one for value in values for one in ("--set", value)]
    rendered = run("helm", "template", "other", CHART, "-n", operator, *settings)
    kubectl("apply", "--dry-run=server", "--validate=strict", "-f", "-", stdin=rendered)


def test_an_upgrade_and_a_new_installation_of_the_operator_restart_no_pod(cluster: Cluster, operator: str, image: str) -> None:
    cluster.start_app("chart")
    before = cluster.pods()
    helm(image, "upgrade", "ctx", values=("operator.logLevel=debug", "operator.podAnnotations.changed=yes", "dashboard.enabled=true"))
    cluster.wait_ready(3)
    assert cluster.pods() == before
    run("helm", "uninstall", "ctx", "-n", operator, "--wait")
    assert "contextclusters.contextstore.dev" in kubectl("get", "crd", "-o", "name")
    assert cluster.pods() == before
    helm(image, "install", "ctx")
    cluster.scale(4)
    cluster.wait_ready(4)
    cluster.scale(3)
    cluster.wait_ready(3)
    assert cluster.pods() == before
    cluster.stop_app("chart")


def test_a_newer_operator_restarts_no_pod(cluster: Cluster, image: str, next_image: str) -> None:
    """Clusters without `image` keep the one that they have."""
    cluster.start_app("newer")
    before = cluster.pods()
    helm(next_image, "upgrade", "ctx")
    cluster.wait_ready(3)
    cluster.scale(4)
    cluster.wait_ready(4)
    assert {name: cluster.pods()[name] for name in before} == before
    cluster.scale(3)
    cluster.wait_ready(3)
    helm(image, "upgrade", "ctx")
    cluster.wait_ready(3)
    assert cluster.pods() == before
    cluster.stop_app("newer")


def test_a_namespaced_operator_needs_no_right_beyond_its_namespaces(cluster: Cluster, operator: str, image: str) -> None:
    kubectl("create", "namespace", "walled")
    run("helm", "uninstall", "ctx", "-n", operator, "--wait")
    try:
        helm(image, "install", "ctx", values=(f"watchNamespaces={{{NAMESPACE},walled}}",))
        roles = kubectl("get", "clusterroles,clusterrolebindings", "-o", "name")
        assert "ctx-operator" not in roles
        walled = Cluster("walled", "inside", image, {"replicas": 1, "shards": {"count": 2}, "storage": {"size": "1Gi"}})
        walled.apply()
        walled.wait_ready(1)
        outside = Cluster("default", "outside", image, {"replicas": 1, "shards": {"count": 2}, "storage": {"size": "1Gi"}})
        outside.apply()
        before = cluster.pods()
        cluster.scale(4)
        cluster.wait_ready(4)
        cluster.scale(3)
        cluster.wait_ready(3)
        assert cluster.pods() == before
        assert outside.pods() == {}
        kubectl("-n", "default", "delete", "ctxc", "outside", "--timeout=60s")
    finally:
        run("helm", "uninstall", "ctx", "-n", operator, "--wait")
        helm(image, "install", "ctx")
    kubectl("delete", "namespace", "walled", "--timeout=120s", timeout_s=150)


def test_two_clusters_share_a_namespace_and_one_goes_without_the_other(cluster: Cluster, another: Callable[..., Cluster]) -> None:
    before = cluster.pods()
    other = another(f"{cluster.name}-2", replicas=1, shards={"count": 2})
    other.wait_ready(1)
    assert other.get()["status"]["clusterId"] != cluster.get()["status"]["clusterId"]
    other.start_app("alone")
    other.stop_app("alone")
    kubectl("-n", cluster.namespace, "delete", "ctxc", other.name, "--timeout=60s")
    until("its volumes are gone", lambda: f"data-{other.name}-0" not in kubectl("-n", cluster.namespace, "get", "pvc", "-o", "name"))
    until("its identity is gone", lambda: f"{other.name}-identity" not in kubectl("-n", cluster.namespace, "get", "cm", "-o", "name"))
    assert cluster.pods() == before


def test_a_cluster_and_its_namespace_go_while_the_operator_is_away(operator: str, image: str, another: Callable[..., Cluster]) -> None:
    """Nothing carries a finalizer of ours, so nothing waits for anybody."""
    kubectl("create", "namespace", "passing")
    one = another("one", "passing", replicas=1, shards={"count": 2})
    two = another("two", "passing", replicas=1, shards={"count": 2})
    one.wait_ready(1)
    two.wait_ready(1)
    kubectl("-n", operator, "scale", "deploy/ctx-operator", "--replicas=0")
    try:
        until("the operator is away", lambda: "ctx-operator" not in kubectl("-n", operator, "get", "pods", "-o", "name"))
        one.delete()
        until("its volume is gone", lambda: "data-one-0" not in kubectl("-n", "passing", "get", "pvc", "-o", "name"))
        kubectl("delete", "namespace", "passing", "--timeout=120s", timeout_s=150)
    finally:
        kubectl("-n", operator, "scale", "deploy/ctx-operator", "--replicas=1")
        kubectl("-n", operator, "rollout", "status", "deploy/ctx-operator", "--timeout=60s")


def test_a_paused_cluster_is_reported_on_and_left_alone(cluster: Cluster) -> None:
    before = cluster.pods()
    cluster.apply(paused=True, limits={"partsMax": 299})
    cluster.wait_condition("Paused", "True")
    generation = cluster.get()["metadata"]["generation"]
    until("the change was seen", lambda: condition(cluster.get(), "Paused")["observedGeneration"] == generation)
    assert cluster.pods() == before
    template = get("statefulset", cluster.name, cluster.namespace)["spec"]["template"]["spec"]
    assert {"name": "CONTEXTSTORE_PARTS_MAX", "value": "299"} not in template["containers"][0]["env"]
    cluster.apply(paused=False)
    until("every pod is another one", lambda: not set(before.values()) & set(cluster.pods().values()))
    cluster.wait_ready(3)


def test_what_kubernetes_cannot_do_holds_up_nothing_else(another: Callable[..., Cluster]) -> None:
    """Volumes of a class that cannot grow, monitors without their kinds: the status says so, and the rest goes on."""
    cluster = another("limited")
    cluster.wait_ready(3)
    monitoring = {"podMonitor": True, "prometheusRule": True, "grafanaDashboard": True}
    cluster.apply(storage={"size": "2Gi", "retentionPolicy": {"whenDeleted": "Delete"}}, monitoring=monitoring)
    told = cluster.wait_condition("StorageResized", "False")
    assert "stays as large as it is" in told["message"]
    cluster.scale(4)
    cluster.wait_ready(4)
    cluster.scale(3)
    cluster.wait_ready(3)
    assert get("cm", f"{cluster.name}-dashboard", cluster.namespace)["metadata"]["labels"]["grafana_dashboard"] == "1"


def test_data_without_an_identity_is_never_begun_anew(another: Callable[..., Cluster]) -> None:
    """A restored namespace may lack what names the cluster. Nobody guesses; the status says what to do."""
    cluster = another("nameless", replicas=1, shards={"count": 2})
    cluster.wait_ready(1)
    known = cluster.get()["status"]["clusterId"]
    kubectl("-n", cluster.namespace, "delete", "cm", f"{cluster.name}-identity")
    told = cluster.wait_condition("Degraded", "True")
    assert "Restore the ConfigMap" in told["message"]
    restored = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": f"{cluster.name}-identity"},
        "data": {"clusterId": known, "bootstrapped": "true"},
    }
    apply(restored, namespace=cluster.namespace)
    cluster.wait_ready(1)
    assert cluster.get()["status"]["clusterId"] == known
