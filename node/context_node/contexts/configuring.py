"""A context's configuration: how it is resolved at creation, and how PUT and PATCH change it.

Knows SEMANTICS.md "Policies by name" (own, then the policy's, then the cluster's) and RFC 7396. Changes nothing; gives new values or
refuses.
"""

from typing import Any

import msgspec

from context_node.contexts.commands import PolicyRecord, PolicySpec, PutConfig, encode_json
from context_node.contexts.context import Config, derived_target
from context_node.contexts.policies import Policy, default_policy
from context_node.contexts.refusals import PolicyDeleted, PolicyNotFound, Unprocessable


def first_config(command: PutConfig, policies: dict[str, Policy]) -> Config:
    """The configuration of a new context. Raises `PolicyNotFound`, `PolicyDeleted`, `Unprocessable`."""
    defaults = command.defaults
    spec = command.policy
    if spec is None:
        spec = _default_spec(defaults.policy_ref, policies)
    policy = _named(spec, policies)
    record = policy.record if policy is not None else None
    trigger, target = _ratios(command, record)
    config = Config(
        token_budget=_first(command.token_budget, record and record.token_budget, defaults.token_budget),
        trigger_ratio=trigger,
        target_ratio=target,
        policy=spec,
        tokenizer=_first(command.tokenizer, record and record.tokenizer, defaults.tokenizer),
    )
    return _checked(config)


def _ratios(command: PutConfig, record: PolicyRecord | None) -> tuple[float, float | None]:
    """Trigger and target: both of the first that gives a trigger, but the nearest target that goes with it. A target of a
    policy or of the cluster that does not go with a nearer trigger is left out, so that it is derived; only the caller's own is
    ever refused."""
    trigger, target = command.trigger_ratio, command.target_ratio
    if trigger is not None:
        return trigger, target
    defaults = command.defaults
    policy_trigger = record.trigger_ratio if record is not None else None
    policy_target = record.target_ratio if record is not None else None
    trigger = defaults.trigger_ratio if policy_trigger is None else policy_trigger
    if target is not None:
        return trigger, target
    target = defaults.target_ratio if policy_target is None and policy_trigger is None else policy_target
    return trigger, target if target is not None and target < trigger else None


def _default_spec(ref: str | None, policies: dict[str, Policy]) -> PolicySpec:
    if ref is not None and ref in policies and not policies[ref].record.deleted:
        return PolicySpec(ref=ref)
    marked = default_policy(policies)
    return PolicySpec(ref=marked.record.name) if marked is not None else PolicySpec()


def _named(spec: PolicySpec, policies: dict[str, Policy]) -> Policy | None:
    if spec.ref is None:
        return None
    policy = policies.get(spec.ref)
    if policy is None:
        raise PolicyNotFound(f"There is no policy {spec.ref!r}; create it first.", name=spec.ref)
    if policy.record.deleted:
        raise PolicyDeleted(f"Policy {spec.ref!r} is deleted and takes no new contexts.", name=spec.ref)
    return policy


def _first(*values: Any) -> Any:
    return next(value for value in values if value is not None)


def changed_config(old: Config, command: PutConfig, policies: dict[str, Policy]) -> Config:
    """The configuration after a PUT: what the command leaves out keeps its value."""
    if command.policy is not None and command.policy != old.policy:
        _named(command.policy, policies)
    target = old.target_ratio if command.target_ratio is None else command.target_ratio
    config = Config(
        token_budget=old.token_budget if command.token_budget is None else command.token_budget,
        trigger_ratio=old.trigger_ratio if command.trigger_ratio is None else command.trigger_ratio,
        target_ratio=target,
        policy=old.policy if command.policy is None else command.policy,
        tokenizer=old.tokenizer if command.tokenizer is None else command.tokenizer,
    )
    return _checked(config)


def _checked(config: Config) -> Config:
    target = derived_target(config.trigger_ratio) if config.target_ratio is None else config.target_ratio
    if not 0 < target < config.trigger_ratio <= 1:
        raise Unprocessable(
            f"target_ratio ({target}) must be above 0 and below trigger_ratio ({config.trigger_ratio}), and that at most 1.",
            field="target_ratio",
        )
    return config


def merge_patch(target: bytes, patch: bytes) -> bytes:
    """RFC 7396 merge of two JSON objects, as compact JSON."""
    return encode_json(_merge(msgspec.json.decode(target), msgspec.json.decode(patch)))


def _merge(target: Any, patch: Any) -> Any:
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = _merge(result.get(name), value)
    return result
