"""Policies by name: their records, which one a context follows, and the plan that comes of it.

Knows SEMANTICS.md "Policies by name". The system group numbers generations; a shard only ever takes a newer one. Invariant: a policy that
reached the log can be parsed by the revision that wrote it; one that this revision cannot parse acts as the default strategy, never as a
fault.
"""

from dataclasses import dataclass

import msgspec

from context_node.contexts.commands import PolicyRecord, PolicySpec
from context_node.contexts.compaction import Strategy
from context_node.contexts.refusals import InvalidPolicy, PolicyNotFound
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
    except (InvalidPolicy, msgspec.DecodeError):
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


def copy_policy(policies: dict[str, Policy], record: PolicyRecord) -> bool:
    """In a shard: take over a newer generation. Returns whether it was newer."""
    present = policies.get(record.name)
    if present is not None and present.record.generation >= record.generation:
        return False
    # A deleted policy without users is kept too: its generation keeps an older copy from coming back.
    policies[record.name] = policy_of(record, present.users if present is not None else 0)
    return True


def numbered_policy(present: Policy | None, record: PolicyRecord, clock_ms: int) -> Policy:
    """In the system group: the policy with the next generation; `present` itself if the PUT changes nothing."""
    old = present.record if present is not None else None
    created = old.created_at_ms if old is not None and not old.deleted else clock_ms
    generation = old.generation if old is not None else 0
    updated = old.updated_at_ms if old is not None else 0
    new = msgspec.structs.replace(record, generation=generation, created_at_ms=created, updated_at_ms=updated)
    if present is not None and new == old:
        return present
    return policy_of(msgspec.structs.replace(new, generation=generation + 1, updated_at_ms=clock_ms))


def deleted_policy(present: Policy | None, name: str, clock_ms: int) -> Policy:
    """In the system group: the policy closed to new references. Raises `PolicyNotFound`."""
    if present is None or present.record.deleted:
        raise PolicyNotFound(f"There is no policy {name!r}.", name=name)
    old = present.record
    return policy_of(msgspec.structs.replace(old, deleted=True, generation=old.generation + 1, updated_at_ms=clock_ms))
