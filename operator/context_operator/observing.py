"""From Kubernetes' objects and the nodes' words to what the planner wants to know.

Pure: JSON and views in, `plan.Observed` and `plan.Desired` out.
"""

from collections.abc import Iterable, Mapping

from context_operator.plan import Desired, Observed, Pod
from context_operator.resources import names
from context_operator.resources.statefulset import restart_hash
from context_operator.spec import Cluster, Object
from context_operator.view import ClusterView, SelfView

NORMAL_WAITS = ("ContainerCreating", "PodInitializing")
TROUBLE_MAX = 300


def desired_of(cluster: Cluster, image: str, replace: int | None) -> Desired:
    """What the resource asks for."""
    spec = cluster.spec
    return Desired(
        replicas=spec.replicas,
        factor=spec.factor,
        restart_hash=restart_hash(cluster, image),
        mode=spec.rebalance.mode,
        rolls=spec.update_strategy.type == "RollingUpdate",
        paused=spec.paused,
        replace=replace,
    )


def observed_of(
    cluster: str,
    identity: Object,
    stateful_set: Object | None,
    pods: Iterable[Object],
    selves: Mapping[int, SelfView],
    view: ClusterView | None,
) -> Observed:
    """What is there."""
    data = identity.get("data") or {}
    members = () if view is None else ((node.number, names.ordinal_of(cluster, node.name)) for node in view.nodes)
    return Observed(
        cluster_id=data.get("clusterId", ""),
        is_bootstrapped=data.get(names.BOOTSTRAPPED) == "true",
        set_replicas=None if stateful_set is None else stateful_set["spec"].get("replicas", 1),
        pods=tuple(sorted((pod for pod in (pod_of(cluster, one, selves) for one in pods) if pod is not None), key=lambda pod: pod.ordinal)),
        view=view,
        ordinals={number: ordinal for number, ordinal in members if ordinal is not None},
    )


def pod_of(cluster: str, pod: Object, selves: Mapping[int, SelfView] = {}) -> Pod | None:
    """A pod of the cluster's set; None for another."""
    meta, status = pod["metadata"], pod.get("status") or {}
    ordinal = names.ordinal_of(cluster, meta["name"])
    if ordinal is None:
        return None
    own = selves.get(ordinal)
    conditions = {one["type"]: one for one in status.get("conditions") or []}
    return Pod(
        ordinal=ordinal,
        uid=meta["uid"],
        is_ready=conditions.get("Ready", {}).get("status") == "True",
        is_deleting="deletionTimestamp" in meta,
        restart_hash=(meta.get("annotations") or {}).get(names.RESTART_HASH, ""),
        state="" if own is None else own.state,
        cluster_id="" if own is None else own.cluster_id,
        trouble=_trouble(status, conditions),
    )


def _trouble(status: Object, conditions: Mapping[str, Object]) -> str:
    """Why a pod does not run, in Kubernetes' words; empty while it may just be starting."""
    for container in status.get("containerStatuses") or []:
        waiting = (container.get("state") or {}).get("waiting") or {}
        ended = (container.get("lastState") or {}).get("terminated") or (container.get("state") or {}).get("terminated") or {}
        if waiting.get("reason") and waiting["reason"] not in NORMAL_WAITS:
            said = (ended.get("message") or waiting.get("message") or "").strip()
            return f"{waiting['reason']}: {said[-TROUBLE_MAX:]}" if said else waiting["reason"]
    scheduled = conditions.get("PodScheduled", {})
    if scheduled.get("status") == "False" and scheduled.get("reason") == "Unschedulable":
        return f"Unschedulable: {scheduled.get('message', '')[:TROUBLE_MAX]}"
    return ""


def addresses_of(cluster: str, pods: Iterable[Object]) -> dict[int, str]:
    """By ordinal the address of each pod that may answer, those that are ready first."""
    found: list[tuple[bool, int, str]] = []
    for pod in pods:
        state = pod_of(cluster, pod)
        address = (pod.get("status") or {}).get("podIP")
        if state is not None and address:
            found.append((not state.is_ready or state.is_deleting, state.ordinal, f"[{address}]" if ":" in address else address))
    return {ordinal: address for _, ordinal, address in sorted(found)}


def image_of(cluster: Cluster, stateful_set: Object | None, default_image: str) -> str:
    """The image that the nodes should run. Without a wish it is the one they have: a newer operator changes nothing by itself."""
    if cluster.spec.image is not None:
        return cluster.spec.image
    if cluster.spec.version is not None:
        repository = default_image.partition("@")[0]
        head, slash, last = repository.rpartition("/")
        return f"{head}{slash}{last.partition(':')[0]}:{cluster.spec.version}"
    if stateful_set is not None:
        image: str = stateful_set["spec"]["template"]["spec"]["containers"][0]["image"]
        return image
    return default_image
