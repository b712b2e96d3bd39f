"""Policies by name: the system group is their source, every shard keeps a copy.

A PUT goes to the system group; then the leader of each shard puts the newer generation into that shard's own log, so that all replicas of
a shard agree at every index. Invariant: a shard never takes an older generation (the state machine refuses it).
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress

import msgspec

from context_node.contexts.commands import CopyPolicy, DeletePolicyCommand, PolicyRecord, PutPolicyCommand
from context_node.contexts.refusals import PolicyNotFound, Refusal
from context_node.contexts.replies import NamedPolicyView, Reply
from context_node.contexts.requests import PutPolicy
from context_node.contexts.strategies import parse_strategy
from context_node.runtime.shards import SYSTEM_SHARD, ShardDirectory, accepted
from context_node.runtime.writes import check_numbers, policy_config

COPY_INTERVAL_S = 0.5


class NamedPolicies:
    """The part of the service that serves `/v1/policies`."""

    def __init__(self, shards: ShardDirectory, now_ms: Callable[[], int]) -> None:
        self._shards = shards
        self._now_ms = now_ms

    async def put_policy(self, name: str, request: PutPolicy) -> NamedPolicyView:
        """Create or replace a policy; returns when every shard that is led here follows it. Raises `InvalidPolicy` for nonsense."""
        parse_strategy(request.strategy, request.config)
        check_numbers(request.token_budget, request.trigger_ratio, request.target_ratio, request.tokenizer)
        record = PolicyRecord(
            name,
            0,
            request.strategy,
            policy_config(request.config),
            request.token_budget,
            request.trigger_ratio,
            request.target_ratio,
            request.tokenizer,
            request.default,
            0,
            0,
        )
        system = self._shards.replica(SYSTEM_SHARD)
        accepted(await system.propose(PutPolicyCommand(self._now_ms(), record)))
        stored = system.machine.policies[name].record
        await self._copy(stored)
        return _view(stored)

    async def delete_policy(self, name: str) -> None:
        """Stop new references to a policy; contexts that follow it keep the copies of their shards."""
        system = self._shards.replica(SYSTEM_SHARD)
        accepted(await system.propose(DeletePolicyCommand(self._now_ms(), name)))
        await self._copy(system.machine.policies[name].record)

    async def get_policy(self, name: str) -> NamedPolicyView:
        """A policy. Raises `PolicyNotFound`, also for a deleted one."""
        system = self._shards.replica(SYSTEM_SHARD)
        await system.read_barrier()
        policy = system.machine.policies.get(name)
        if policy is None or policy.record.deleted:
            raise PolicyNotFound(f"There is no policy {name!r}.", name=name)
        return _view(policy.record)

    async def list_policies(self) -> list[NamedPolicyView]:
        """All policies that are not deleted, by name."""
        system = self._shards.replica(SYSTEM_SHARD)
        await system.read_barrier()
        return [_view(policy.record) for _, policy in sorted(system.machine.policies.items()) if not policy.record.deleted]

    async def reconcile(self) -> None:
        """Bring every shard up to the system group, after a stop between a PUT and its copies."""
        system = self._shards.replica(SYSTEM_SHARD)
        await system.read_barrier()
        for policy in list(system.machine.policies.values()):
            await self._copy(policy.record)

    async def run(self) -> None:
        """In a cluster: keep the shards that are led here up to this node's copy of the system group, until cancelled. Each shard's leader
        does so, whoever took the PUT."""
        while True:
            await asyncio.sleep(COPY_INTERVAL_S)
            system = self._shards.held(SYSTEM_SHARD)
            if system is None or system.failure is not None:
                continue
            for policy in list(system.machine.policies.values()):
                with suppress(Refusal):
                    await self._copy(policy.record)

    async def _copy(self, record: PolicyRecord) -> None:
        copies: list[asyncio.Future[Reply]] = []
        try:
            for replica in self._shards.replicas():
                if not replica.leads:
                    continue
                present = replica.machine.policies.get(record.name)
                if present is None or present.record.generation < record.generation:
                    copies.append(replica.propose(CopyPolicy(self._now_ms(), record)))
        finally:
            replies = await asyncio.gather(*copies, return_exceptions=True)
        for reply in replies:
            if isinstance(reply, BaseException):
                raise reply
            accepted(reply)


def _view(record: PolicyRecord) -> NamedPolicyView:
    return NamedPolicyView(
        name=record.name,
        generation=record.generation,
        strategy=record.strategy,
        config=msgspec.json.decode(record.config),
        token_budget=record.token_budget,
        trigger_ratio=record.trigger_ratio,
        target_ratio=record.target_ratio,
        tokenizer=record.tokenizer,
        default=record.default,
        created_at_ms=record.created_at_ms,
        updated_at_ms=record.updated_at_ms,
    )
