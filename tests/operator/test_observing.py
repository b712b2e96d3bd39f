"""What the operator makes of Kubernetes' objects: images that stay, pods in trouble, addresses, policies' status."""

from typing import Any

from context_operator.observing import addresses_of, image_of, observed_of, pod_of
from context_operator.policies import Taken, policy_status
from context_operator.resources import names
from context_operator.spec import cluster_of, policy_of
from context_operator.view import NodePolicies


def cluster(spec: dict[str, Any]) -> Any:
    return cluster_of({"metadata": {"name": "demo", "namespace": "apps"}, "spec": spec})


def pod(name: str, *, ready: bool = True, ip: str = "10.0.0.1", **status: Any) -> dict[str, Any]:
    conditions = [{"type": "Ready", "status": str(ready)}, *status.pop("conditions", [])]
    meta = {"name": name, "uid": name, "annotations": {names.RESTART_HASH: "h"}}
    return {"metadata": meta, "status": {"podIP": ip, "conditions": conditions, **status}}


def test_the_image_stays_until_the_user_names_another() -> None:
    present = {"spec": {"template": {"spec": {"containers": [{"image": "r/c:1"}]}}}}
    assert image_of(cluster({}), None, "r/c:2") == "r/c:2"
    assert image_of(cluster({}), present, "r/c:2") == "r/c:1"
    assert image_of(cluster({"image": "other:3"}), present, "r/c:2") == "other:3"
    assert image_of(cluster({"version": "4"}), present, "host:5000/r/c:2") == "host:5000/r/c:4"
    assert image_of(cluster({"version": "4"}), present, "r/c@sha256:00") == "r/c:4"


def test_a_pod_that_only_starts_is_in_no_trouble_and_one_that_cannot_run_says_why() -> None:
    def trouble(state: dict[str, Any], last: dict[str, Any] | None = None) -> str:
        found = pod_of("demo", pod("demo-0", ready=False, containerStatuses=[{"state": state, "lastState": last or {}}]))
        assert found is not None
        return found.trouble

    assert trouble({"waiting": {"reason": "ContainerCreating"}}) == ""
    assert trouble({"running": {}}) == ""
    assert trouble({"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}) == "ImagePullBackOff: no such image"
    ended = {"terminated": {"message": "the port is in use"}}
    assert trouble({"waiting": {"reason": "CrashLoopBackOff", "message": "back-off"}}, ended) == "CrashLoopBackOff: the port is in use"
    lonely = pod(
        "demo-0", ready=False, conditions=[{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "full"}]
    )
    found = pod_of("demo", lonely)
    assert found is not None
    assert found.trouble == "Unschedulable: full"


def test_pods_of_other_clusters_are_not_ours_and_ready_ones_are_asked_first() -> None:
    pods = [pod("demo-0", ready=False, ip="10.0.0.1"), pod("demo-1", ip="fd00::1"), pod("demo-2-0", ip="10.0.0.3"), pod("demo-x")]
    assert addresses_of("demo", pods) == {1: "[fd00::1]", 0: "10.0.0.1"}
    observed = observed_of("demo", {"data": {"clusterId": "c", "bootstrapped": "true"}}, {"spec": {"replicas": 2}}, pods, {}, None)
    assert [one.ordinal for one in observed.pods] == [0, 1]
    assert (observed.cluster_id, observed.is_bootstrapped, observed.set_replicas) == ("c", True, 2)


def test_a_policys_status_counts_the_nodes_that_follow_it() -> None:
    policy = policy_of(
        {
            "metadata": {"name": "p", "namespace": "apps", "generation": 4},
            "spec": {"clusterRef": {"name": "demo"}, "strategy": "manual"},
            "status": {"loadedGeneration": 3},
        }
    )
    told = [
        NodePolicies(1, "demo-0", True, 3, {"p": 7}),
        NodePolicies(2, "demo-1", True, 3, {"p": 6}),
        NodePolicies(3, "demo-2", False, 0, {}),
        NodePolicies(4, "demo-3", True, 0, {}),
    ]
    status = policy_status(policy, Taken(7, "2026-01-01T00:00:00Z"), told, "", "2026-01-01T00:00:00Z")
    assert (status["loaded"], status["loadedGeneration"]) == ("2/4", 3)
    assert [one["generation"] for one in status["nodes"]] == [4, 0, 0, 4]
    whole = policy_status(policy, Taken(7, "2026-01-01T00:00:00Z"), [told[0], told[3]], "", "2026-01-01T00:00:00Z")
    assert (whole["loaded"], whole["loadedGeneration"]) == ("2/2", 4)
    refused = policy_status(policy, "limit must be at least 1", told, "", "2026-01-01T00:00:00Z")
    accepted = refused["conditions"][0]
    assert (accepted["type"], accepted["status"], accepted["message"]) == ("Accepted", "False", "limit must be at least 1")
    assert refused["loaded"] == "0/4"
