"""What a cluster's status says: made anew from what was seen and decided at every pass.

Pure; the time comes in as text. Invariants: every condition is there from the first pass on; `lastTransitionTime` changes only with the
status; nothing is said that was not seen.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from context_operator import archive_health
from context_operator.plan import Desired, Observed, is_complete
from context_operator.resources import names
from context_operator.spec import Cluster, Object
from context_operator.steps import Decision
from context_operator.view import ClusterView, NodeView

QUORUM_RUNBOOK = "docs/runbooks.md#shards-without-a-leader"


@dataclass(frozen=True, slots=True)
class Pass:
    """One pass over a cluster. `trouble`: what kept it from its end. `blocked` and `moves_left` are the planner's of replicas;
    `drain_overdue`: a drain takes longer than it should."""

    decision: Decision
    image: str
    trouble: str = ""
    small_volume: str = ""
    """Why a volume does not become as large as it should."""
    moves_left: int = 0
    blocked: tuple[str, ...] = ()
    drain_overdue: bool = False


def status_of(cluster: Cluster, desired: Desired, observed: Observed, made: Pass, now: str) -> Object:
    """The whole `status`. `now` is RFC 3339 in UTC."""
    meta, view = cluster.metadata, observed.view
    pods = [pod for pod in observed.pods if not pod.is_deleting]
    ready = sum(pod.is_ready for pod in pods)
    status: Object = {
        "observedGeneration": meta.generation,
        "replicas": len(observed.pods),
        "readyReplicas": ready,
        "nodes": f"{ready}/{desired.replicas}",
        "selector": ",".join(f"{name}={value}" for name, value in names.selector(meta.name).items()),
        "image": made.image,
        "clusterId": observed.cluster_id,
        "endpoints": _endpoints(cluster),
        "operation": _operation(cluster, made, now),
        "rebalance": {"movesLeft": made.moves_left, "blocked": list(made.blocked[:16])},
        "conditions": _conditions(cluster, desired, observed, made, now),
    }
    if view is not None:
        members = [node for node in view.nodes if node.number in observed.ordinals]
        status["version"] = ", ".join(sorted({node.version for node in members if node.version}))
        status["members"] = [_member(node) for node in members]
        status["shards"] = {
            "summary": f"{view.shards_healthy}/{view.shards_total}",
            "total": view.shards_total,
            "healthy": view.shards_healthy,
            "leaderless": view.shards_leaderless,
            "underReplicated": view.shards_under_replicated,
            "replicationFactor": view.replication_factor,
        }
    return status


def _endpoints(cluster: Cluster) -> Object:
    meta, ref = cluster.metadata, cluster.spec.auth.api_keys_secret_ref
    scheme = "https" if cluster.spec.is_tls else "http"
    return {
        "client": f"{scheme}://{meta.name}.{meta.namespace}.svc:{names.CLIENT_PORT}",
        "apiKeySecret": ref.name if ref is not None else names.api_key(meta.name),
        **({"caConfigMap": names.authority(meta.name)} if cluster.spec.is_tls else {}),
    }


def _member(node: NodeView) -> Object:
    marks = (("draining", node.draining), ("cordoned", node.cordoned), ("slow disk", node.has_slow_disk))
    state = "ready" if node.is_ready else "starting" if node.is_alive else "away"
    return {
        "name": node.name,
        "number": node.number,
        "zone": node.zone,
        "state": ", ".join([state, *(mark for mark, is_set in marks if is_set)]),
        "version": node.version,
        "replicas": node.replicas,
        "leaders": node.leaders,
    }


def _operation(cluster: Cluster, made: Pass, now: str) -> Object | None:
    decision = made.decision
    if not decision.operation and not made.moves_left:
        return None
    kind = decision.operation or "Rebalance"
    before: Object = cluster.status.get("operation") or {}
    started = before.get("startedAt", now) if before.get("type") == kind else now
    return {
        "type": kind,
        "target": decision.target,
        "step": decision.sentence or f"{made.moves_left} replicas are not yet where they should be.",
        "startedAt": started,
    }


# --- conditions --------------------------------------------------------------------------------------------------------


def _conditions(cluster: Cluster, desired: Desired, observed: Observed, made: Pass, now: str) -> list[Object]:
    found = [
        ("Ready", *_ready(desired, observed, made)),
        ("Available", *_available(observed)),
        ("Progressing", *_progressing(made)),
        ("Degraded", *_degraded(observed, made)),
        ("Rebalancing", *_rebalancing(made)),
        ("ScaleAllowed", *_scale_allowed(desired, observed, made)),
        (archive_health.KIND, *archive_health.condition(cluster, observed)),
        ("StorageResized", not made.small_volume, "TooSmall" if made.small_volume else "AsWished", made.small_volume),
        ("Paused", desired.paused, "Paused" if desired.paused else "NotPaused", "spec.paused is true." if desired.paused else ""),
    ]
    return merged(cluster.status.get("conditions") or [], found, cluster.metadata.generation, now)


Found = tuple[str, bool | None, str, str]


def merged(before: Sequence[Object], found: Sequence[Found], generation: int, now: str) -> list[Object]:
    """Conditions as Kubernetes wants them: (type, status, reason, message), each with the time of its last change."""
    known = {one.get("type"): one for one in before}
    conditions = []
    for kind, value, reason, message in found:
        status = "Unknown" if value is None else str(value)
        old: dict[str, Any] = known.get(kind, {})
        since = old.get("lastTransitionTime", now) if old.get("status") == status else now
        conditions.append(
            {
                "type": kind,
                "status": status,
                "reason": reason,
                "message": message,
                "observedGeneration": generation,
                "lastTransitionTime": since,
            }
        )
    return conditions


def _ready(desired: Desired, observed: Observed, made: Pass) -> tuple[bool, str, str]:
    if not observed.is_bootstrapped:
        return (False, "NotReconciled", made.trouble) if made.trouble else (False, "Bootstrapping", made.decision.sentence)
    if made.trouble and is_complete(observed):
        return False, "NotReconciled", made.trouble
    if observed.set_replicas != desired.replicas:
        return False, made.decision.operation or "Scaling", made.decision.sentence
    if not is_complete(observed):
        return False, *_lack(observed)
    if len(observed.pods) != desired.replicas:
        return False, "Scaling", f"{len(observed.pods)} pods run, {desired.replicas} are wanted."
    return (
        True,
        "AllShardsHealthy",
        f"{desired.replicas} {'node' if desired.replicas == 1 else 'nodes'}, every shard has a leader and all its replicas.",
    )


def _lack(observed: Observed) -> tuple[str, str]:
    view = observed.view
    if view is None:
        return "NoAnswer", f"No node tells how the cluster stands.{_trouble(observed)}"
    if view.shards_leaderless:
        return "QuorumLost", _quorum_lost(view) + _trouble(observed)
    if away := [node.name for node in view.nodes if not node.is_alive and node.number in observed.ordinals]:
        return "NodesAway", f"{', '.join(away)} {'does' if len(away) == 1 else 'do'} not answer.{_trouble(observed)}"
    if unready := [pod for pod in observed.pods if not pod.is_ready]:
        trouble = next((f": {pod.trouble}" for pod in unready if pod.trouble), ".")
        return "PodsNotReady", f"Pod {unready[0].ordinal} is not ready{trouble}"
    return "UnderReplicated", f"{view.shards_total - view.shards_healthy} of {view.shards_total} shards lack a replica."


def _trouble(observed: Observed) -> str:
    """Why a pod does not run, in Kubernetes' words, as a sentence to go behind another."""
    return next((f" Pod {pod.ordinal}: {pod.trouble}" for pod in observed.pods if pod.trouble), "")


def _quorum_lost(view: ClusterView) -> str:
    return (
        f"{view.shards_leaderless} of {view.shards_total} shards have no majority: writes to them are refused, local reads go on. It ends "
        f"when enough of their nodes are back; nothing is forced. Runbook: {QUORUM_RUNBOOK}"
    )


def _available(observed: Observed) -> tuple[bool | None, str, str]:
    view = observed.view
    if view is None:
        state = None if observed.is_bootstrapped else False
        return state, "NoAnswer", "No node tells how the cluster stands."
    if view.shards_leaderless:
        return False, "QuorumLost", _quorum_lost(view)
    return True, "EveryShardLed", "Every shard has a leader."


def _progressing(made: Pass) -> tuple[bool, str, str]:
    decision = made.decision
    if decision.operation:
        return True, decision.operation, decision.sentence
    if made.moves_left:
        return True, "Rebalance", f"{made.moves_left} replicas are not yet where they should be."
    return False, "Idle", decision.sentence


def _degraded(observed: Observed, made: Pass) -> tuple[bool, str, str]:
    if made.trouble and (not observed.is_bootstrapped or is_complete(observed)):
        return True, "NotReconciled", made.trouble
    if made.decision.refusal is not None and made.decision.refusal[0] in ("ForeignVolumes", "DataMissing"):
        return True, *made.decision.refusal
    if not observed.is_bootstrapped or is_complete(observed):
        return False, "AsItShouldBe", ""
    reason, sentence = _lack(observed)
    # What is lost comes first, and what keeps it from being mended behind it.
    return True, reason, f"{sentence} {made.trouble}".strip()


def _rebalancing(made: Pass) -> tuple[bool, str, str]:
    if made.moves_left:
        held_up = f" {made.blocked[0]}" if made.blocked else ""
        return True, "Blocked" if made.blocked else "Moving", f"{made.moves_left} replicas are not yet where they should be.{held_up}"
    return False, "Balanced", ""


def _scale_allowed(desired: Desired, observed: Observed, made: Pass) -> tuple[bool, str, str]:
    if made.decision.refusal is not None and (made.decision.refused_operation or made.decision.operation) == "ScaleDown":
        return False, *made.decision.refusal
    if made.drain_overdue:
        held_up = made.blocked[0] if made.blocked else made.decision.sentence
        return False, "DrainOverdue", f"The drain takes longer than scaleDown.drainTimeout; it goes on. {held_up}"
    if not observed.is_bootstrapped or not is_complete(observed):
        return False, "UnderReplicated", "Pods are taken away only while every shard is complete."
    return (
        True,
        "EveryShardComplete",
        f"Down to {desired.factor} {'pod' if desired.factor == 1 else 'pods'}, one for each replica of a shard.",
    )
