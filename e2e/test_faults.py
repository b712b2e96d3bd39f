"""What goes wrong, under load: nothing acknowledged is lost, and the cluster is whole again when the fault is over."""

import pytest

from conftest import Cluster
from faults import Faults
from kubernetes_cli import condition, kubectl, until


def nodes_of(cluster: Cluster) -> dict[str, str]:
    """By pod the machine that it runs on."""
    path = "jsonpath={range .items[*]}{.metadata.name}={.spec.nodeName} {end}"
    text = kubectl("-n", cluster.namespace, "get", "pods", "-l", f"app.kubernetes.io/instance={cluster.name}", "-o", path)
    return dict(one.split("=") for one in text.split())


def app_node(cluster: Cluster, name: str) -> str:
    return kubectl("-n", cluster.namespace, "get", "pod", name, "-o", "jsonpath={.spec.nodeName}")


def test_two_pods_at_once(cluster: Cluster) -> None:
    """The majority is gone for a moment: writes wait, and go on when it is back."""
    cluster.start_app("two")
    before = cluster.pods()
    victims = [f"{cluster.name}-0", f"{cluster.name}-1"]
    kubectl("-n", cluster.namespace, "delete", "pod", *victims, "--grace-period=0", "--force")
    until("both pods are others", lambda: all(cluster.pods().get(name) not in (None, before[name]) for name in victims))
    cluster.wait_ready(3)
    assert cluster.pods()[f"{cluster.name}-2"] == before[f"{cluster.name}-2"]
    cluster.stop_app("two")


def test_each_machine_is_drained_in_turn(cluster: Cluster) -> None:
    """kubectl drain, which asks the disruption budget."""
    cluster.start_app("drain")
    for machine in sorted(set(nodes_of(cluster).values())):
        try:
            kubectl(
                "drain", machine, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=180s",
                "--pod-selector=app.kubernetes.io/name=contextstore", timeout_s=200,
            )  # fmt: skip
            until("its pods run elsewhere", lambda machine=machine: machine not in nodes_of(cluster).values())
            cluster.wait_ready(3)
        finally:
            kubectl("uncordon", machine)
    cluster.stop_app("drain")


def test_the_api_server_is_away_for_two_minutes(cluster: Cluster, faults: Faults) -> None:
    cluster.start_app("api")
    before = cluster.pods()
    faults.hold_api_server(120)
    cluster.wait_ready(3)
    assert cluster.pods() == before
    cluster.stop_app("api")


@pytest.mark.parametrize("kind", ["power", "network"])
def test_a_machine_is_lost_and_comes_back(cluster: Cluster, faults: Faults, kind: str) -> None:
    cluster.start_app(f"lost-{kind}")
    spared = app_node(cluster, f"lost-{kind}")
    machine = next(node for node in nodes_of(cluster).values() if node != spared)
    (faults.cut_power if kind == "power" else faults.cut_network)(machine)
    try:
        until("the status says so", lambda: condition(cluster.get(), "Degraded").get("status") == "True")
    finally:
        (faults.boot if kind == "power" else faults.heal_network)(machine)
    cluster.wait_ready(3)
    cluster.stop_app(f"lost-{kind}")


def test_the_operator_dies_after_every_step(cluster: Cluster, operator: str) -> None:
    """It begins anew, with nothing remembered, after the first step of each kind: scaling up and down and a restart still end as wished."""
    kubectl("-n", operator, "set", "env", "deploy/ctx-operator", "CONTEXTSTORE_OPERATOR_CRASHES=/tmp")
    kubectl("-n", operator, "rollout", "status", "deploy/ctx-operator", "--timeout=60s")
    cluster.start_app("crash")
    kubectl("-n", cluster.namespace, "scale", f"ctxc/{cluster.name}", "--replicas=4")
    cluster.wait_ready(4)
    kubectl("-n", cluster.namespace, "scale", f"ctxc/{cluster.name}", "--replicas=3")
    cluster.wait_ready(3)
    kubectl("-n", cluster.namespace, "annotate", f"ctxc/{cluster.name}", "contextstore.dev/restartedAt=now", "--overwrite")
    before = set(cluster.pods().values())
    until("every pod is another one", lambda: not before & set(cluster.pods().values()))
    cluster.wait_ready(3)
    kubectl("-n", cluster.namespace, "annotate", f"ctxc/{cluster.name}", "contextstore.dev/replace=1", "--overwrite")
    number = next(one["number"] for one in cluster.get()["status"]["members"] if one["name"] == f"{cluster.name}-1")
    until("the old member is gone", lambda: all(one["number"] != number for one in cluster.get()["status"]["members"]))
    cluster.wait_ready(3)
    log = kubectl("-n", operator, "logs", "deploy/ctx-operator")
    for step in ("SetReplicas", "MarkNodes", "Move", "RemoveNodes", "DeletePod", "GiveUpVolume"):
        assert f"begins anew at {step}" in log
    cluster.stop_app("crash")
    kubectl("-n", operator, "set", "env", "deploy/ctx-operator", "CONTEXTSTORE_OPERATOR_CRASHES-")
    kubectl("-n", operator, "rollout", "status", "deploy/ctx-operator", "--timeout=60s")
