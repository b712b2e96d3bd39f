"""Policies by name: their records, which one a context follows, and the plan that comes of it.

Knows SEMANTICS.md "Policies by name". The system group numbers generations; a shard only ever takes a newer one. Invariant: a policy that
reached the log can be parsed by the revision that wrote it; one that this revision cannot parse acts as the default strategy, never as a fault.
"""

from dataclasses import dataclass

import msgspec

from context_node.contexts.commands import PolicyRecord, PolicySpec
from context_node.contexts.compaction import Strategy
from context_node.contexts.refusals import InvalidPolicy
from context_node.contexts.strategies import DEFAULT_STRATEGY, parse_strategy


@dataclass(slots=True, eq=False)
class Policy:
    """A policy as a shard knows it, with the number of contexts that follow it by reference."""

    record: PolicyRecord
    strategy: Strategy
    users: int = 0


class StoredPolicy(msgspec.Struct, frozen=True, array_like=True):
    """A policy as it is stored."""

    record: PolicyRecord
    users: int


policy_encoder = msgspec.msgpack.Encoder()
policy_decoder = msgspec.msgpack.Decoder(StoredPolicy)


def policy_of(record: PolicyRecord, users: int = 0) -> Policy:
    return Policy(record, strategy_of(record.strategy, record.config), users)


def strategy_of(name: str, config: bytes) -> Strategy:
    """The strategy that was validated at PUT."""
    try:
        return parse_strategy(name, msgspec.json.decode(config))
    except InvalidPolicy:
        return DEFAULT_STRATEGY


def strategy_for(spec: PolicySpec, policies: dict[str, Policy]) -> tuple[Strategy, int]:
    """The strategy a context follows, and the generation of the named policy it came from (0 for its own)."""
    if spec.ref is not None:
        policy = policies.get(spec.ref)
        return (policy.strategy, policy.record.generation) if policy is not None else (DEFAULT_STRATEGY, 0)
    if spec.strategy is None:
        return DEFAULT_STRATEGY, 0
    return strategy_of(spec.strategy, spec.config), 0


def default_policy(policies: dict[str, Policy]) -> Policy | None:
    """The policy marked `default`; of two the older wins."""
    marked = [policy for policy in policies.values() if policy.record.default and not policy.record.deleted]
    return min(marked, key=lambda policy: (policy.record.created_at_ms, policy.record.name), default=None)
