"""What users and machines do to a cluster, each with the harm that it must not have."""

import asyncio
import json
from typing import Any

import pytest

from context_node.api_keys import KeyFileError, read_keys
from context_operator.manager import Manager
from context_operator.resources import identity, names
from support.emulated_kubernetes import Refusal
from support.operator_passes import Operator, Run

KEPT = (("ConfigMap", "demo-identity"), ("Secret", "demo-cluster"), ("Secret", "demo-api-key"))
WAITING = {"containerStatuses": [{"state": {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}}]}
HANGING = {"containerStatuses": [{"state": {"running": {}}}]}
UNSCHEDULABLE = {
    "conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/2 nodes are available"}]
}


def image(spec: dict[str, Any]) -> str:
    found: str = spec["containers"][0]["image"]
    return found


def put(operator: Operator, kind: str, name: str, **more: Any) -> None:
    operator.kubernetes.put({"kind": kind, "metadata": {"name": name, "namespace": "apps", **more.pop("metadata", {})}, **more})


def lose_volume(operator: Operator, ordinal: int) -> None:
    """Behind the operator's back."""
    operator.kubernetes.delete("PersistentVolumeClaim", "apps", names.claim("demo", ordinal))
    operator.kubernetes.delete("Pod", "apps", names.pod("demo", ordinal))


def may_be_evicted(operator: Operator) -> int:
    found: int = operator.kubernetes.get("PodDisruptionBudget", "apps", "demo")["spec"]["maxUnavailable"]
    return found


def is_whole(operator: Operator) -> bool:
    return all(len([votes for votes in replicas.values() if votes]) == 3 for _, replicas in operator.cluster.world.shards.values())


async def passes(operator: Operator, count: int) -> None:
    for _ in range(count):
        await operator.one_pass()


# --- what is the user's ------------------------------------------------------------------------------------------------


def test_what_keeps_volumes_usable_follows_the_retention_policy(run: Run) -> None:
    """Either way, also long after the cluster was made."""

    async def check(operator: Operator) -> None:
        for policy in ("Delete", "Retain", "Delete"):
            operator.wish(replicas=1, storage={"retentionPolicy": {"whenDeleted": policy}})
            await operator.rest(1)
            await operator.one_pass()
            for kind, name in KEPT:
                owners = operator.kubernetes.get(kind, "apps", name)["metadata"].get("ownerReferences") or []
                assert len(owners) == int(policy == "Delete"), (policy, name)

    run(check)


def test_nothing_of_somebody_else_is_removed_or_taken_over(run: Run) -> None:
    async def check(operator: Operator) -> None:
        theirs = (("ConfigMap", "demo-dashboard"), ("NetworkPolicy", "demo"), ("Service", "demo"))
        for kind, name in theirs:
            put(operator, kind, name, spec={"theirs": True})
        operator.wish(replicas=1, networkPolicy={"enabled": False})
        await operator.until(lambda: operator.cluster.world.shards, "the cluster begins all the same")
        await operator.until(lambda: "Service demo is there already" in operator.condition("Ready").get("message", ""), "it says so")
        for kind, name in theirs:
            found = operator.kubernetes.get(kind, "apps", name)
            assert found["spec"] == {"theirs": True}
            assert "ownerReferences" not in found["metadata"]

    run(check)


# --- majorities --------------------------------------------------------------------------------------------------------


def test_pods_of_a_set_that_was_deleted_in_the_middle_of_a_drain_are_emptied_first(run: Run) -> None:
    async def check(operator: Operator) -> None:
        operator.wish(replicas=5)
        await operator.rest(5)
        operator.wish(replicas=3)
        await operator.until(lambda: operator.cluster.world.draining, "the drain has begun")
        operator.kubernetes.delete("StatefulSet", "apps", "demo")
        await operator.rest(3)
        assert is_whole(operator)

    run(check)


@pytest.mark.parametrize("trouble", ["paused", "bad keys", "refused service"])
def test_nothing_may_be_evicted_while_a_shard_lacks_a_replica_whatever_else_is_wrong(run: Run, trouble: str) -> None:
    async def check(operator: Operator) -> None:
        def fails(method: str, path: str) -> None:
            if method == "PATCH" and path.endswith("/services/demo"):
                raise Refusal(422, "the annotation is not allowed")

        put(operator, "Secret", "mine", stringData={"app": "cs_app_" + "k" * 30})
        spec: dict[str, Any] = {"replicas": 3, "auth": {"apiKeysSecretRef": {"name": "mine"}}}
        operator.wish(**spec)
        await operator.rest(3)
        await operator.one_pass()
        assert may_be_evicted(operator) == 1
        if trouble == "paused":
            spec["paused"] = True
        elif trouble == "bad keys":
            put(operator, "Secret", "mine", stringData={"app": "hunter2"})
        else:
            operator.kubernetes.fails = fails
            spec["service"] = {"annotations": {"a": "b"}}
        operator.wish(**spec)
        await passes(operator, 2)
        lose_volume(operator, 2)
        await operator.one_pass()
        assert may_be_evicted(operator) == 0
        if trouble != "paused":
            # And what was lost is rebuilt.
            await operator.until(lambda: is_whole(operator) and 4 in operator.cluster.world.shards[0][1], "the new member has replicas")
            says = "not allowed" if trouble == "refused service" else "no key"
            await operator.until(lambda: says in operator.condition("Ready")["message"], "it still says what is wrong")

    run(check)


def test_a_second_volume_to_be_given_up_waits_for_the_first_and_holds_up_nothing(run: Run) -> None:
    async def check(operator: Operator) -> None:
        operator.wish(replicas=3)
        await operator.rest(3)
        lose_volume(operator, 1)
        await operator.one_pass()
        operator.wish({names.REPLACE: "2"}, replicas=3)
        await operator.rest(3)
        assert is_whole(operator)
        assert {operator.cluster.world.stores[ordinal] for ordinal in range(3)} == {1, 4, 5}

    run(check)


def test_a_pod_that_is_not_there_cannot_be_replaced_and_holds_up_nothing(run: Run) -> None:
    async def check(operator: Operator) -> None:
        operator.wish(replicas=3)
        await operator.rest(3)
        before = {one["metadata"]["uid"] for one in operator.kubernetes.all("Pod")}
        for nonsense in ("99", "abc", "-1", "9" * 5000):
            operator.wish({names.REPLACE: nonsense}, replicas=3, limits={"partsMax": 7})
            await passes(operator, 3)
        await operator.until(lambda: not before & {one["metadata"]["uid"] for one in operator.kubernetes.all("Pod")}, "other pods")

    run(check)


# --- mistakes and the way back -----------------------------------------------------------------------------------------


def test_a_wrong_image_can_be_corrected_before_the_cluster_has_begun(run: Run) -> None:
    async def check(operator: Operator) -> None:
        operator.cluster.fails = lambda _ordinal, spec: WAITING if image(spec) == "typo:1" else None
        operator.wish(replicas=3, image="typo:1")
        await passes(operator, 10)
        assert "ImagePullBackOff" in operator.condition("Ready")["message"]
        operator.wish(replicas=3, image="good:1")
        await operator.rest(3)

    run(check)


def test_a_cluster_that_does_not_fit_can_be_made_smaller_before_it_has_begun(run: Run) -> None:
    async def check(operator: Operator) -> None:
        operator.cluster.fails = lambda ordinal, _spec: UNSCHEDULABLE if ordinal == 2 else None
        operator.wish(replicas=3)
        await passes(operator, 10)
        assert "Unschedulable" in operator.condition("Ready")["message"]
        operator.wish(replicas=1)
        await operator.rest(1)

    run(check)


def test_scaling_up_to_what_does_not_fit_can_be_taken_back(run: Run) -> None:
    async def check(operator: Operator) -> None:
        operator.cluster.fails = lambda ordinal, _spec: UNSCHEDULABLE if ordinal == 4 else None
        operator.wish(replicas=3)
        await operator.rest(3)
        operator.wish(replicas=5)
        await passes(operator, 20)
        operator.wish(replicas=3)
        await operator.rest(3)
        assert is_whole(operator)

    run(check)


@pytest.mark.parametrize("state", [WAITING, HANGING], ids=["does not start", "starts and hangs"])
def test_an_image_that_does_not_work_costs_one_pod_and_can_be_taken_back(run: Run, state: dict[str, Any]) -> None:
    async def check(operator: Operator) -> None:
        operator.cluster.fails = lambda _ordinal, spec: state if image(spec) == "nginx:1" else None
        operator.wish(replicas=3, image="good:1")
        await operator.rest(3)
        operator.wish(replicas=3, image="nginx:1")
        await passes(operator, 40)
        assert len(operator.cluster.world.broken) == 1
        operator.wish(replicas=3, image="good:1")
        await operator.rest(3)

    run(check)


def test_a_cluster_whose_data_is_lost_can_begin_anew_as_the_status_says(run: Run) -> None:
    async def check(operator: Operator) -> None:
        operator.wish(replicas=3)
        await operator.rest(3)
        for ordinal in range(3):
            lose_volume(operator, ordinal)
        operator.cluster.world.shards.clear()
        operator.cluster.world.numbers.clear()
        await operator.until(lambda: operator.condition("Degraded").get("reason") == "DataMissing", "it says that all is lost")
        assert "delete the identity ConfigMap" in operator.condition("Degraded")["message"]
        assert operator.cluster.begun == 1
        operator.kubernetes.delete("ConfigMap", "apps", "demo-identity")
        await operator.rest(3)
        assert operator.cluster.begun == 2

    run(check)


def test_an_identity_that_is_about_to_be_collected_is_not_used(run: Run) -> None:
    """Of a cluster of this name that was deleted a moment ago."""

    async def check(operator: Operator) -> None:
        owner = {"uid": "of-another-life", "kind": "ContextCluster", "name": "demo"}
        data = {"clusterId": "e" * 32, "bootstrapped": "true"}
        put(operator, "ConfigMap", "demo-identity", metadata={"ownerReferences": [owner]}, data=data)
        operator.wish(replicas=1)
        await passes(operator, 3)
        assert "waiting until it is gone" in operator.condition("Ready")["message"]
        assert not operator.kubernetes.all("StatefulSet")
        operator.kubernetes.delete("ConfigMap", "apps", "demo-identity")
        await operator.rest(1)
        assert operator.status["clusterId"] != "e" * 32

    run(check)


def test_what_kubernetes_refuses_at_the_very_beginning_stands_in_the_status(run: Run) -> None:
    async def check(operator: Operator) -> None:
        def fails(method: str, path: str) -> None:
            if method == "POST" and path.endswith("/secrets"):
                raise Refusal(403, "exceeded quota: secrets")

        operator.kubernetes.fails = fails
        operator.wish(replicas=1)
        await passes(operator, 3)
        assert "exceeded quota" in operator.condition("Ready")["message"]
        assert any("exceeded quota" in sentence for _, sentence in operator.events())

    run(check)


# --- two operators -----------------------------------------------------------------------------------------------------


def test_an_operator_whose_clock_is_late_takes_over_from_one_whose_clock_was_early(run: Run) -> None:
    async def check(operator: Operator) -> None:
        operator.wish(replicas=3)
        await operator.rest(3)
        operator.cluster.epoch = 10**15
        await operator.reconciler.close()
        operator.reconciler = type(operator.reconciler)(operator.around, "apps", "demo")
        operator.wish(replicas=5)
        await operator.rest(5)

    run(check)


def test_an_operator_that_has_a_successor_deletes_nothing(run: Run) -> None:
    async def check(operator: Operator) -> None:
        operator.wish(replicas=3)
        await operator.rest(3)
        before = {one["metadata"]["uid"] for one in operator.kubernetes.all("Pod")}
        operator.cluster.epoch = 10**15
        operator.wish({names.REPLACE: "1"}, replicas=3, limits={"partsMax": 7})
        await passes(operator, 20)
        assert {one["metadata"]["uid"] for one in operator.kubernetes.all("Pod")} == before
        assert "another administrator" in operator.condition("Ready")["message"]

    run(check)


# --- wishes that cannot be had -----------------------------------------------------------------------------------------


def test_pods_that_wait_for_their_user_hold_no_replica_up(run: Run) -> None:
    """updateStrategy OnDelete."""

    async def check(operator: Operator) -> None:
        operator.wish(replicas=3, updateStrategy={"type": "OnDelete"})
        await operator.rest(3)
        operator.wish(replicas=5, updateStrategy={"type": "OnDelete"}, limits={"partsMax": 7})
        world = operator.cluster.world
        await operator.until(lambda: len(world.numbers) == 5 and world.held(4) > 1 and world.held(5) > 1, "new nodes get replicas")

    run(check)


def test_that_nothing_may_be_moved_is_said_where_something_should_be(run: Run) -> None:
    async def check(operator: Operator) -> None:
        operator.wish(replicas=3, rebalance={"mode": "Disabled"})
        await operator.until(lambda: any("rebalance.mode Disabled" in sentence for _, sentence in operator.events()), "it says so")

    run(check)


def test_volumes_that_cannot_grow_leave_the_cluster_ready(run: Run) -> None:
    async def check(operator: Operator) -> None:
        def fails(method: str, path: str) -> None:
            if method == "PATCH" and "/persistentvolumeclaims/" in path:
                raise Refusal(403, "only dynamically provisioned pvc can be resized")

        operator.wish(replicas=1, storage={"size": "1Gi"})
        await operator.rest(1)
        operator.kubernetes.fails = fails
        operator.wish(replicas=1, storage={"size": "1024Mi"})
        await operator.rest(1)
        assert operator.condition("StorageResized")["status"] == "True", "that is the same"
        operator.wish(replicas=1, storage={"size": "2Gi"})
        await operator.until(lambda: operator.condition("StorageResized")["status"] == "False", "it says so")
        assert "can be resized" in operator.condition("StorageResized")["message"]
        await operator.rest(1)

    run(check)


def test_a_policy_that_cannot_be_put_now_holds_up_no_other_and_not_the_cluster(run: Run) -> None:
    async def check(operator: Operator) -> None:
        operator.wish(replicas=1)
        await operator.rest(1)
        operator.cluster.refused_policies.add("a-late-one")
        for name in ("a-late-one", "b"):
            spec = {"clusterRef": {"name": "demo"}, "strategy": "last_n", "config": {"limit": 5}}
            put(operator, "ContextPolicy", name, spec=spec)
        operator.reconciler.policies_changed()
        await operator.until(lambda: "b" in operator.cluster.policies, "the other is there")
        assert operator.condition("Ready")["status"] == "True"
        operator.cluster.refused_policies.clear()
        await operator.until(lambda: "a-late-one" in operator.cluster.policies, "it is tried again")

    run(check)


GOOD = {"id": "a", "name": "a", "scopes": ["read"], "hash": "sha256:" + "0" * 64, "created": "2030-01-01T00:00:00Z"}


@pytest.mark.parametrize(
    "change",
    [
        {"hash": "sha256:" + "A" * 64},
        {"hash": "md5:" + "0" * 32},
        {"scopes": ["root"]},
        {"scopes": "read"},
        {"id": 7},
        {"id": ["a"]},
        {"revoked": 3},
        {"more": 1},
        {"name": None},
    ],
    ids=json.dumps,
)
def test_a_key_line_that_nodes_refuse_never_reaches_them(tmp_path: Any, change: dict[str, Any]) -> None:
    """A node does not start with such a file, so it would be the next restart that finds out."""
    line = json.dumps({**GOOD, **change})
    with pytest.raises(identity.BadKeys, match="Line 1"):
        identity.key_lines({"keys.jsonl": line})
    path = tmp_path / "keys.jsonl"
    path.write_text(line)
    with pytest.raises(KeyFileError):
        read_keys(path)
    assert identity.key_lines({"keys.jsonl": json.dumps(GOOD)}) == [json.dumps(GOOD)]


def test_a_namespace_that_cannot_be_listed_hides_no_other(run: Run) -> None:
    async def check(operator: Operator) -> None:
        def fails(_method: str, path: str) -> None:
            if "/namespaces/gone/" in path:
                raise Refusal(403, "forbidden")

        operator.kubernetes.fails = fails
        operator.wish(replicas=1)
        operator.around.clock = asyncio.get_running_loop().time
        manager = Manager(operator.around, ("gone", "apps"))
        looking = asyncio.create_task(manager.run())
        try:
            for _ in range(1000):
                if operator.kubernetes.all("StatefulSet"):
                    return
                await asyncio.sleep(0.01)
            raise AssertionError("the cluster of the other namespace is not looked after")
        finally:
            looking.cancel()
            await asyncio.gather(looking, return_exceptions=True)

    run(check)
