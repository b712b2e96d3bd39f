"""The chart over time: upgrade, uninstall, install again. No data pod notices."""

from conftest import ROOT, Cluster
from kubernetes_cli import condition, kubectl, run, until


def helm(image: str, *command: str, values: tuple[str, ...] = ()) -> None:
    repository, _, tag = image.rpartition(":")
    settings = [one for value in (f"image.repository={repository}", f"image.tag={tag}", *values) for one in ("--set", value)]
    run("helm", *command, str(ROOT / "helm" / "contextstore"), "-n", "ctx", "--wait", "--timeout", "2m", *settings)


def test_the_charts_own_test_passes(operator: str) -> None:
    assert "Succeeded" in run("helm", "test", "ctx", "-n", operator, "--timeout", "2m", timeout_s=150)


def test_an_upgrade_and_a_new_installation_of_the_operator_restart_no_pod(cluster: Cluster, operator: str, image: str) -> None:
    cluster.start_app("chart")
    before = cluster.pods()
    helm(image, "upgrade", "ctx", values=("operator.logLevel=debug", "operator.podAnnotations.changed=yes"))
    cluster.wait_ready(3)
    assert cluster.pods() == before
    run("helm", "uninstall", "ctx", "-n", operator, "--wait")
    assert "contextclusters.contextstore.dev" in kubectl("get", "crd", "-o", "name")
    assert cluster.pods() == before
    helm(image, "install", "ctx")
    kubectl("-n", cluster.namespace, "scale", f"ctxc/{cluster.name}", "--replicas=4")
    cluster.wait_ready(4)
    kubectl("-n", cluster.namespace, "scale", f"ctxc/{cluster.name}", "--replicas=3")
    cluster.wait_ready(3)
    assert cluster.pods() == before
    cluster.stop_app("chart")


def test_two_clusters_share_a_namespace_and_one_can_go(cluster: Cluster, image: str) -> None:
    """Names that begin alike; the second keeps nothing when it is deleted."""
    before = cluster.pods()
    storage = {"size": "1Gi", "retentionPolicy": {"whenDeleted": "Delete"}}
    other = Cluster(cluster.namespace, f"{cluster.name}-2", image, {"replicas": 1, "shards": {"count": 2}, "storage": storage})
    other.apply()
    other.wait_ready(1)
    assert other.get()["status"]["clusterId"] != cluster.get()["status"]["clusterId"]
    other.start_app("alone")
    other.stop_app("alone")
    kubectl("-n", cluster.namespace, "delete", "ctxc", other.name, "--timeout=60s")
    until("its volumes are gone", lambda: f"data-{other.name}-0" not in kubectl("-n", cluster.namespace, "get", "pvc", "-o", "name"))
    until("its identity is gone", lambda: f"{other.name}-identity" not in kubectl("-n", cluster.namespace, "get", "cm", "-o", "name"))
    assert cluster.pods() == before


def test_what_kubernetes_cannot_do_holds_up_nothing_else(cluster: Cluster) -> None:
    """Volumes of a class that cannot grow, monitors without their kinds: the status says so, and the rest goes on."""
    before = cluster.spec
    cluster.apply(storage={"size": "2Gi"}, monitoring={"podMonitor": True, "prometheusRule": True})
    told = until("the status tells", lambda: (found := condition(cluster.get(), "Degraded")).get("reason") == "NotReconciled" and found)
    assert "volume" in told["message"] or "storage" in told["message"]
    kubectl("-n", cluster.namespace, "scale", f"ctxc/{cluster.name}", "--replicas=4")
    until("a pod has come", lambda: len(cluster.get()["status"]["members"]) == 4)
    kubectl("-n", cluster.namespace, "scale", f"ctxc/{cluster.name}", "--replicas=3")
    until("and has gone", lambda: len(cluster.get()["status"]["members"]) == 3)
    cluster.spec = before
