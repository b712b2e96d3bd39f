"""The ContextPolicies of one cluster: put onto its nodes, told how far they are, and taken away again.

Knows the resources and the nodes' routes for policies. Does not know what a strategy means: the nodes check that before anything is
written, and what they say is what the status says. Invariant: only policies that came from a resource are ever deleted; the ConfigMap
NAME-policies keeps their names.
"""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import msgspec

from context_operator.http_admin import AdminError
from context_operator.kube import Kube, KubeError
from context_operator.nodes import Admin, policies_of
from context_operator.resources import identity, names
from context_operator.spec import Cluster, Object, Policy, policy_of
from context_operator.status import merged
from context_operator.view import NodePolicies

logger = logging.getLogger("contextstore.operator")

LOOK_AGAIN_S, BUSY_S = 30.0, 1.0


class PolicyKeeper:
    """See the module's docstring. Keeps only what may be forgotten."""

    def __init__(self, kube: Kube, namespace: str, cluster: str, clock: Callable[[], float], now: Callable[[], str]) -> None:
        self._kube, self._namespace, self._cluster = kube, namespace, cluster
        self._clock, self._now = clock, now
        self._due = 0.0

    def forget(self) -> None:
        """Something has changed: look at once."""
        self._due = 0.0

    async def keep(self, cluster: Cluster, admin: Admin | None) -> None:
        """Bring the nodes to what the resources say, and their status to what the nodes say. Does nothing if it has just been done.
        Raises `KubeError`, `AdminError`."""
        if admin is None or self._clock() < self._due:
            return
        policies = await self._policies()
        kept = await self._kube.get("ConfigMap", self._namespace, names.policies(self._cluster))
        known: dict[str, str] = (kept or {}).get("data") or {}
        # Written down before the nodes get it: a policy that is forgotten in between would never be deleted.
        wanted = {policy.metadata.name: "" for policy in policies}
        if set(wanted) - set(known):
            await self._kube.apply(identity.policy_list(cluster, {**known, **wanted}))
        answers = [(policy, await self._put(admin, policy)) for policy in policies]
        first = first_default(answers)
        for name in sorted(set(known) - set(wanted)):
            await self._delete(admin, name)
        if set(known) != set(wanted):
            await self._kube.apply(identity.policy_list(cluster, wanted))
        told = policies_of(await admin.node_policies()) if policies else []
        is_settled = True
        for policy, answer in answers:
            is_settled &= answer is not None and await self._tell(policy, answer, told, first)
        self._due = self._clock() + (LOOK_AGAIN_S if is_settled else BUSY_S)

    async def _policies(self) -> list[Policy]:
        found = []
        for value in await self._kube.list("ContextPolicy", self._namespace):
            try:
                policy = policy_of(value)
            except msgspec.ValidationError as problem:
                logger.warning("policy %s is left alone: %s", value["metadata"]["name"], problem)
                continue
            if policy.spec.cluster_ref.name == self._cluster and "deletionTimestamp" not in value["metadata"]:
                found.append(policy)
        return found

    async def _put(self, admin: Admin, policy: Policy) -> "Taken | str | None":
        """What the nodes made of it, or why they refuse it; None if they cannot now. Raises `AdminError` if they could not be asked."""
        try:
            answer: Any = await admin.put_policy(policy.metadata.name, policy.spec.body())
            return Taken(answer["generation"], answer["created_at"])
        except AdminError as problem:
            if 400 <= problem.status < 500 and problem.status != 429:
                return str(problem)
            if problem.status:
                logger.info("%s/%s: policy %s is put later: %s", self._namespace, self._cluster, policy.metadata.name, problem)
                return None
            raise

    async def _delete(self, admin: Admin, name: str) -> None:
        try:
            await admin.delete_policy(name)
        except AdminError as problem:
            if problem.status != 404:
                raise
        logger.info("%s/%s: policy %s is deleted", self._namespace, self._cluster, name)

    async def _tell(self, policy: Policy, answer: "Taken | str", told: list[NodePolicies], first: str) -> bool:
        """Write the status if it changed; whether there is nothing more to wait for."""
        status = policy_status(policy, answer, told, first, self._now())
        changes = {name: value for name, value in status.items() if value != policy.status.get(name)}
        if changes:
            try:
                await self._kube.patch("ContextPolicy", self._namespace, policy.metadata.name, {"status": changes}, "status")
            except KubeError as problem:
                if problem.status != 404:
                    raise
        return isinstance(answer, str) or all(one["generation"] for one in status["nodes"])


@dataclass(frozen=True, slots=True)
class Taken:
    """The nodes' generation of a policy, and when they first got it (RFC 3339)."""

    generation: int
    created_at: str


def first_default(answers: Iterable[tuple[Policy, Taken | str | None]]) -> str:
    """The name of the policy that is the default: of several the one that the nodes got first. Empty if none is."""
    marked = [(answer.created_at, policy.metadata.name) for policy, answer in answers if policy.spec.default and isinstance(answer, Taken)]
    return min(marked, default=("", ""))[1]


def policy_status(policy: Policy, answer: Taken | str, told: list[NodePolicies], first: str, now: str) -> Object:
    """`status` of a ContextPolicy. `answer`: what the nodes made of it, or why they refuse it; `told`: which generations they follow;
    `first`: the policy that is the default."""
    meta = policy.metadata
    nodes = []
    for one in told:
        follows = isinstance(answer, Taken) and one.is_alive and (one.policies.get(meta.name, 0) >= answer.generation or not one.replicas)
        message = "" if one.is_alive else "does not answer"
        nodes.append({"name": one.name, "generation": meta.generation if follows else 0, "message": message})
    loaded = sum(bool(one["generation"]) for one in nodes)
    is_accepted = isinstance(answer, Taken)
    outvoted = is_accepted and policy.spec.default and first != meta.name
    remark = f" It is not the default: {first} is that too, and older." if outvoted else ""
    refusal = "" if is_accepted else str(answer)
    everywhere = is_accepted and loaded == len(nodes)
    found: list[tuple[str, bool | None, str, str]] = [
        ("Accepted", is_accepted, "Valid" if is_accepted else "Invalid", refusal or "The nodes take it."),
        (
            "Ready",
            everywhere,
            ("AnotherDefault" if outvoted else "EveryNodeFollows") if everywhere else "Invalid" if refusal else "NodesMissing",
            refusal or f"{loaded} of {len(nodes)} nodes follow it.{remark}",
        ),
    ]
    return {
        "observedGeneration": meta.generation,
        "loaded": f"{loaded}/{len(nodes)}",
        "loadedGeneration": meta.generation if everywhere else policy.status.get("loadedGeneration", 0),
        "nodes": nodes,
        "conditions": merged(policy.status.get("conditions") or [], found, meta.generation, now),
    }
