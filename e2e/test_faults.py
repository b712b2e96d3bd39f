"""What goes wrong, under load: nothing acknowledged is lost, and the cluster is whole again when the fault is over."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from faults import Faults
from kubernetes_cli import Failed, condition, kubectl, until
from store_cluster import Cluster


def drain(cluster: Cluster, machine: str, timeout: str = "180s") -> None:
    """kubectl drain of this cluster's pods."""
    selector = f"--pod-selector=app.kubernetes.io/instance={cluster.name}"
    kubectl("drain", machine, "--ignore-daemonsets", "--delete-emptydir-data", selector, f"--timeout={timeout}", timeout_s=200)


@contextmanager
def cordoned(*machines: str) -> Iterator[None]:
    """Nothing new is scheduled there."""
    try:
        for machine in machines:
            kubectl("cordon", machine)
        yield
    finally:
        for machine in machines:
            kubectl("uncordon", machine)


def needs_class(name: str) -> None:
    if name not in kubectl("get", "storageclass", "-o", "name"):
        pytest.skip(f"the cluster has no storage class {name!r}; the local Kubernetes has")


def strictly(name: str, key: str) -> list[dict[str, object]]:
    """A spread that the scheduler may not give up; without a wish it is only preferred. Machines that take no pods do not count."""
    selector = {"matchLabels": {"app.kubernetes.io/instance": name, "app.kubernetes.io/component": "node"}}
    rule = {"maxSkew": 1, "topologyKey": key, "whenUnsatisfiable": "DoNotSchedule", "nodeTaintsPolicy": "Honor", "labelSelector": selector}
    return [rule]


def healthy_machines() -> None:
    """Wait until every machine is ready and takes pods: what is made before keeps away from it for ever."""

    def are_healthy() -> bool:
        nodes = json.loads(kubectl("get", "nodes", "-o", "json"))["items"]
        workers = [one for one in nodes if "node-role.kubernetes.io/control-plane" not in one["metadata"].get("labels", {})]
        return all(condition(one, "Ready").get("status") == "True" and not one["spec"].get("taints") for one in workers)

    until("every machine is ready and takes pods", are_healthy)


def test_two_pods_at_once(cluster: Cluster) -> None:
    """The majority is gone for a moment: writes wait, and go on when it is back."""
    cluster.start_app("two")
    before = cluster.pods()
    victims = [cluster.pod(0), cluster.pod(1)]
    kubectl("-n", cluster.namespace, "delete", "pod", *victims, "--grace-period=0", "--force")
    until("both pods are others", lambda: all(cluster.pods().get(name) not in (None, before[name]) for name in victims))
    cluster.wait_ready(3)
    assert cluster.pods()[cluster.pod(2)] == before[cluster.pod(2)]
    cluster.stop_app("two")


def test_a_lost_majority_is_shown_and_never_forced(cluster: Cluster) -> None:
    """Two pods cannot come back: writes are refused, local reads go on, the status names the runbook; then all is well by itself."""
    cluster.ask("POST", "/contexts/lost/messages?create=true", {"message": {"role": "user", "content": "before", "id": "1"}})
    cluster.start_app("lost")
    machines = kubectl("get", "nodes", "-o", "jsonpath={.items[*].metadata.name}").split()
    with cordoned(*machines):
        kubectl("-n", cluster.namespace, "delete", "pod", cluster.pod(0), cluster.pod(1), "--grace-period=0", "--force")

        def is_told() -> bool:
            told = condition(cluster.get(), "Available")
            return told.get("status") == "False" and told["reason"] == "QuorumLost" and "docs/runbooks.md#" in told["message"]

        until("the status tells of the lost majority and names the runbook", is_told)
        status, answer = cluster.ask("POST", "/contexts/lost/messages", {"message": {"role": "user", "content": "during", "id": "2"}}, 2)
        assert status == 503, answer
        status, answer = cluster.ask("GET", "/contexts/lost/messages?consistency=local", None, 2)
        assert (status, len(answer["messages"])) == (200, 1)
    cluster.wait_ready(3)
    status, _ = cluster.ask("POST", "/contexts/lost/messages", {"message": {"role": "user", "content": "after", "id": "3"}}, 2)
    assert status == 201
    history = [one["id"] for one in cluster.ask("GET", "/contexts/lost/messages")[1]["messages"]]
    # What was refused may have been kept ("outcome unknown"), never twice.
    assert history in (["1", "3"], ["1", "2", "3"])
    cluster.stop_app("lost")


def test_each_machine_is_drained_in_turn(cluster: Cluster) -> None:
    """kubectl drain, which asks the disruption budget; volumes follow their pods."""
    cluster.start_app("drain")
    with cluster.one_away_at_most():
        for machine in sorted(set(cluster.machines().values())):
            try:
                drain(cluster, machine)
                until("its pods run elsewhere", lambda machine=machine: machine not in cluster.machines().values())
                cluster.wait_ready(3)
            finally:
                kubectl("uncordon", machine)
    cluster.stop_app("drain")


def test_machines_are_drained_whose_volumes_stay_in_their_zone(another: Callable[..., Cluster]) -> None:
    """A pod waits until its zone has a machine again. Meanwhile the budget lets nobody take a second one."""
    needs_class("zonal")
    healthy_machines()
    cluster = another(
        "zonal", storage={"storageClassName": "zonal"}, topologySpreadConstraints=strictly("zonal", "topology.kubernetes.io/zone")
    )
    cluster.wait_ready(3)
    machines = cluster.machines()
    assert len(set(machines.values())) == 3, "one pod in each zone"
    assert len({one["zone"] for one in cluster.get()["status"]["members"]} - {""}) == 3
    cluster.start_app("zones")
    with cluster.one_away_at_most():
        for name, machine in machines.items():
            other = next(one for one in machines.values() if one != machine)
            with cordoned(machine, other):
                drain(cluster, machine)
                cluster.wait_condition("Degraded", "True")
                with pytest.raises(Failed, match="disruption budget"):
                    drain(cluster, other, "5s")
                assert cluster.machines()[next(pod for pod, at in machines.items() if at == other)] == other
            cluster.wait_ready(3)
            assert cluster.machines()[name] == machine, "its volume is there"
    cluster.stop_app("zones")


def test_the_api_server_is_away_for_two_minutes(cluster: Cluster, faults: Faults) -> None:
    cluster.start_app("api")
    before = cluster.pods()
    faults.hold_api_server(120)
    cluster.wait_ready(3)
    assert cluster.pods() == before
    cluster.stop_app("api")


@pytest.mark.parametrize("kind", ["power", "network"])
def test_a_machine_is_lost_and_comes_back(cluster: Cluster, faults: Faults, kind: str) -> None:
    healthy_machines()
    machines = cluster.spread(3)
    cluster.start_app(f"lost-{kind}")
    spared = cluster.app_machine(f"lost-{kind}")
    machine = next(node for node in machines.values() if node != spared)
    (faults.cut_power if kind == "power" else faults.cut_network)(machine)
    try:
        cluster.wait_condition("Degraded", "True")
    finally:
        (faults.boot if kind == "power" else faults.heal_network)(machine)
    cluster.wait_ready(3)
    cluster.stop_app(f"lost-{kind}")


def test_a_machine_dies_for_good_with_its_volume(another: Callable[..., Cluster], faults: Faults) -> None:
    """Its disk was its own: the machine is deleted, the volume given up by an annotation, and the pod begins anew on another one."""
    needs_class("node-local")
    healthy_machines()
    cluster = another(
        "local", storage={"storageClassName": "node-local"}, topologySpreadConstraints=strictly("local", "kubernetes.io/hostname")
    )
    cluster.wait_ready(3)
    cluster.start_app("dead")
    spared, machines = cluster.app_machine("dead"), cluster.machines()
    assert len(set(machines.values())) == 3, "one pod on each machine, or two would die at once"
    name, machine = next((pod, node) for pod, node in machines.items() if node != spared)
    number = next(one["number"] for one in cluster.get()["status"]["members"] if one["name"] == name)
    faults.cut_power(machine)
    try:
        cluster.wait_condition("Degraded", "True")
        kubectl("delete", "node", machine)
        until("Kubernetes has let go of its pod", lambda: cluster.machines().get(name) != machine)
        cluster.annotate(f"replace={name.rpartition('-')[2]}")
        cluster.wait_ready(3)
        assert cluster.machines()[name] != machine
        assert all(one["number"] != number for one in cluster.get()["status"]["members"])
    finally:
        # It comes back as a new one: while Kubernetes still collects what was the old one's, kubelet could not begin.
        until("nothing of it is left", lambda: f"/{machine}\n" not in kubectl("get", "csinode", "-o", "name"))
        faults.boot(machine)
        until("the machine is back", lambda: "Ready" in kubectl("get", "node", machine, "--no-headers").split())
    cluster.stop_app("dead")


def test_the_operator_dies_after_every_step(cluster: Cluster, operator: str) -> None:
    """It begins anew, with nothing remembered, after the first step of each kind: scaling up and down and a restart still end as wished."""
    kubectl("-n", operator, "set", "env", "deploy/ctx-operator", "CONTEXTSTORE_OPERATOR_CRASHES=/tmp")
    kubectl("-n", operator, "rollout", "status", "deploy/ctx-operator", "--timeout=60s")
    cluster.start_app("crash")
    cluster.scale(4)
    cluster.wait_ready(4)
    cluster.scale(3)
    cluster.wait_ready(3)
    before = set(cluster.pods().values())
    cluster.annotate("restartedAt=now")
    until("every pod is another one", lambda: not before & set(cluster.pods().values()))
    cluster.wait_ready(3)
    number = next(one["number"] for one in cluster.get()["status"]["members"] if one["name"] == cluster.pod(1))
    cluster.annotate("replace=1")
    until("the old member is gone", lambda: all(one["number"] != number for one in cluster.get()["status"]["members"]))
    cluster.wait_ready(3)
    log = kubectl("-n", operator, "logs", "deploy/ctx-operator")
    for step in ("SetReplicas", "MarkNodes", "Move", "RemoveNodes", "DeletePod", "GiveUpVolume", "HandOver"):
        assert f"begins anew at {step}" in log
    cluster.stop_app("crash")
    kubectl("-n", operator, "set", "env", "deploy/ctx-operator", "CONTEXTSTORE_OPERATOR_CRASHES-")
    kubectl("-n", operator, "rollout", "status", "deploy/ctx-operator", "--timeout=60s")
