"""What changes contexts: from a validated request to a command in the log, and back to its reply.

The proposer's part of a write is here: count tokens, make drafts, digests and times, so that applying needs nothing but the log (W5).
Invariant: everything is validated before it is proposed (S1); the reply comes from applying, never from what was seen before.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from typing import Any, NamedTuple, cast

import msgspec
from msgspec.structs import replace

from context_node import tokens
from context_node.contexts import lookback
from context_node.contexts.checks import check_whole
from context_node.contexts.commands import (
    AppendMessages,
    Defaults,
    Draft,
    KeyUse,
    PatchMetadataCommand,
    PinMessage,
    PolicySpec,
    Purge,
    PurgeEverywhere,
    PutConfig,
    RebuildWindow,
    Recount,
    Restored,
    RewriteWindow,
    Rules,
    Tombstone,
    draft,
    encode_json,
)
from context_node.contexts.configuring import changed_config, first_config
from context_node.contexts.context import ACTIVE, Context
from context_node.contexts.items import HEAD_ROLES, LIVE, MARKER
from context_node.contexts.machine import not_found
from context_node.contexts.refusals import InvalidRequest, MessageNotFound, TooLarge, Unprocessable, VersionConflict
from context_node.contexts.replies import Appended, ContextView, Put, Reply, Rewritten
from context_node.contexts.requests import Append, Compact, NewMessage, PatchMetadata, PolicyChoice, PutContext
from context_node.contexts.strategies import parse_strategy
from context_node.runtime.cohort import Cohort
from context_node.runtime.histories import Histories
from context_node.runtime.names import derived_id, new_id
from context_node.runtime.reads import view_of
from context_node.runtime.replica import Replica
from context_node.runtime.shards import ShardDirectory, accepted

TOKEN_BUDGET_MAX = 10_000_000
PIN_TRIES = 3
POLICY_CONFIG_BYTES_MAX = 64 * 1024
REBUILD_ROWS = 16
REBUILD_BYTES_MAX = 16 << 20
"""A rebuild's command carries the messages that it read; so many bytes of them are enough, whatever the budget."""


class _Arrival(NamedTuple):
    """An append that waits for the end of the turn."""

    replica: Replica
    context_id: str
    request: Append
    tokenizer: str


class Writes:
    """The writing half of the service."""

    def __init__(
        self,
        shards: ShardDirectory,
        histories: Histories,
        rules: Rules,
        defaults: Defaults,
        now_ms: Callable[[], int],
        random_bytes: Callable[[int], bytes],
        counting_threads: int,
        *,
        has_archive: bool = False,
    ) -> None:
        self._has_archive = has_archive
        self._shards = shards
        self._histories = histories
        self._rules = rules
        self._defaults = defaults
        self._now_ms = now_ms
        self._random_bytes = random_bytes
        self._counting = asyncio.Semaphore(counting_threads)
        self._cohort: Cohort[_Arrival, Reply] = Cohort(self._begin_append)

    async def append(self, context_id: str, request: Append) -> Appended:
        """Append messages. Raises a `Refusal`; `OutcomeUnknown` if the node failed meanwhile."""
        replica = self._shards.replica_of(context_id)
        context = replica.machine.contexts.get(context_id) or replica.context(context_id)
        if context is None:
            if not request.create:
                # A missing context is an answer like any other: linearizable.
                await replica.read_barrier()
                context = replica.context(context_id)
                if context is None:
                    raise not_found(context_id)
            tokenizer = self._tokenizer_of_new(replica, context_id)
        else:
            tokenizer = context.head.config.tokenizer
        if _are_long(request.messages):
            drafts = await self.drafts(request.messages, tokenizer, request.key is not None)
            reply = await replica.propose(self._append_command(context_id, request, drafts))
        else:
            reply = await self._cohort.join(_Arrival(replica, context_id, request, tokenizer))
        return cast(Appended, accepted(reply))

    def _begin_append(self, arrival: "_Arrival", reply: "asyncio.Future[Reply]") -> None:
        request = arrival.request
        has_key = request.key is not None
        drafts = tuple([make_draft(message, arrival.tokenizer, has_key) for message in request.messages])
        arrival.replica.propose(self._append_command(arrival.context_id, request, drafts), reply)

    def _append_command(self, context_id: str, request: Append, drafts: tuple[Draft, ...]) -> AppendMessages:
        return AppendMessages(
            context_id,
            self._now_ms(),
            self._rules,
            drafts,
            request.batch,
            request.if_version,
            request.if_seq,
            self._defaults if request.create else None,
            _key_of_append(request, drafts),
        )

    def _tokenizer_of_new(self, replica: Replica, context_id: str) -> str:
        command = PutConfig(context_id, 0, self._rules, self._defaults)
        return first_config(command, replica.machine.policies).tokenizer

    async def drafts(self, messages: Sequence[NewMessage], tokenizer: str, has_key: bool = True) -> tuple[Draft, ...]:
        """Count and draft. Long texts are counted in a thread, a few at a time, so that one client cannot stall the others."""
        if not _are_long(messages):
            return tuple([make_draft(message, tokenizer, has_key) for message in messages])
        async with self._counting:
            return await asyncio.to_thread(lambda: tuple([make_draft(message, tokenizer, has_key) for message in messages]))

    async def put_context(self, context_id: str, request: PutContext) -> tuple[Put, ContextView]:
        """Create a context or change its configuration; an unchanged PUT writes nothing."""
        check_numbers(request.token_budget, request.trigger_ratio, request.target_ratio, request.tokenizer)
        replica = self._shards.replica_of(context_id)
        spec = policy_spec(request.policy)
        metadata = None if request.metadata is None else encode_json(request.metadata)
        command = PutConfig(
            context_id,
            self._now_ms(),
            self._rules,
            self._defaults,
            request.token_budget,
            request.trigger_ratio,
            request.target_ratio,
            spec,
            request.tokenizer,
            metadata,
            key=_key(request.key, encode_json(replace(request, key=None))),
        )
        await replica.read_barrier()
        context = replica.context(context_id)
        if context is not None and request.recount:
            command = replace(command, recounts=await self._recounts(context, request.tokenizer))
        if context is not None and _changes_nothing(context, command, replica):
            return Put(False, context.head.version, context.head.revision), view_of(replica, context)
        reply = cast(Put, accepted(await replica.propose(command)))
        context = replica.context(context_id)
        if context is None:
            raise not_found(context_id)
        return reply, view_of(replica, context)

    async def create_context(self, request: PutContext, owner: str) -> tuple[str, Put, ContextView]:
        """Create a context with a generated id: sortable by time, or derived from `owner` and the idempotency key if there is one."""
        context_id = self.new_context_id(request, owner)
        put, view = await self.put_context(context_id, request)
        return context_id, put, view

    def new_context_id(self, request: PutContext, owner: str) -> str:
        """The id that `create_context` gives."""
        if request.key is None:
            return new_id(self._now_ms(), self._random_bytes(10))
        return derived_id(owner, request.key)

    async def _recounts(self, context: Context, tokenizer: str | None) -> tuple[Recount, ...]:
        name = tokenizer or context.head.config.tokenizer
        items = [item for item in context.window.items if item.kind != MARKER]

        def count() -> tuple[Recount, ...]:
            return tuple(
                Recount(item.kind, item.seq, tuple(tokens.count_parts(name, msgspec.json.decode(item.original)["parts"]))) for item in items
            )

        async with self._counting:
            return await asyncio.to_thread(count)

    async def patch_metadata(self, context_id: str, request: PatchMetadata) -> ContextView:
        """Merge into the metadata (RFC 7396)."""
        replica = self._shards.replica_of(context_id)
        patch = encode_json(request.patch)
        command = PatchMetadataCommand(context_id, self._now_ms(), self._rules, patch, _key(request.key, b"patch" + patch))
        accepted(await replica.propose(command))
        return self._view(replica, context_id)

    def _view(self, replica: Replica, context_id: str) -> ContextView:
        context = replica.context(context_id)
        if context is None:
            raise not_found(context_id)
        return view_of(replica, context)

    async def delete_context(self, context_id: str) -> None:
        """Tombstone a context; done already is fine."""
        replica = self._shards.replica_of(context_id)
        accepted(await replica.propose(Tombstone(context_id, self._now_ms(), self._rules)))

    async def purge_context(self, context_id: str) -> None:
        """Erase a context for good. When this returns, no read gives it; its bytes leave the files soon after."""
        replica = self._shards.replica_of(context_id)
        context = replica.context(context_id)
        is_archived = self._has_archive or (context is not None and context.head.archived_seq > 0)
        kind = PurgeEverywhere if is_archived else Purge
        accepted(await replica.propose(kind(context_id, self._now_ms(), self._rules)))

    async def compact(self, context_id: str, request: Compact) -> Rewritten:
        """Rewrite the window by hand, or from history anew."""
        replica = self._shards.replica_of(context_id)
        await replica.read_barrier()
        context = replica.context(context_id)
        if context is None:
            raise not_found(context_id)
        check_whole(context)
        if request.rebuild:
            return await self._rebuild(replica, context, request)
        messages = request.replacement
        if request.covers is not None:
            # Within a range the head stays; what the replacement calls system stands for people's words.
            messages = [replace(message, role="user") if message.role in HEAD_ROLES else message for message in messages]
        drafts = await self.drafts(messages, context.head.config.tokenizer)
        said = [draft.digest for draft in drafts]
        key = _key(request.key, encode_json([request.covers, request.through_seq, request.if_version]) + b"".join(said))
        command = RewriteWindow(
            context_id, self._now_ms(), self._rules, drafts, request.covers, request.through_seq, request.if_version, key
        )
        return cast(Rewritten, accepted(await replica.propose(command)))

    async def _rebuild(self, replica: Replica, context: Context, request: Compact) -> Rewritten:
        await replica.stored()
        # After the wait: what the command says of the history must be what it was read from, and of the same context.
        present = replica.context(context.id)
        if present is None:
            raise not_found(context.id)
        head = present.head
        messages: list[Restored] = []
        spent = size = 0
        # Kept: while the archive is asked more may be appended.
        through_seq = last = head.last_seq
        while last >= 1 and spent <= head.config.token_budget and len(messages) < self._rules.window_items_max and size < REBUILD_BYTES_MAX:
            first = max(1, last - REBUILD_ROWS + 1)
            rows = await self._histories.restored(replica, present, first, last)
            if len(rows) < last - first + 1:
                raise not_found(context.id)
            messages[:0] = rows
            spent += sum(lookback.tokens_of(row.info) for row in rows)
            size += sum(len(row.body) for row in rows)
            last = first - 1
        key = _key(request.key, encode_json(["rebuild", request.if_version]))
        command = RebuildWindow(context.id, self._now_ms(), self._rules, tuple(messages), through_seq, request.if_version, key)
        return cast(Rewritten, accepted(await replica.propose(command)))

    async def pin(self, context_id: str, seq: int, pinned: bool) -> Rewritten:
        """Pin a message, or unpin it. A message that left the window comes back with its unit."""
        for _ in range(PIN_TRIES - 1):
            try:
                return await self._pin(context_id, seq, pinned)
            except VersionConflict:
                # It left the window between reading its unit and applying: read it again.
                continue
        return await self._pin(context_id, seq, pinned)

    async def _pin(self, context_id: str, seq: int, pinned: bool) -> Rewritten:
        replica = self._shards.replica_of(context_id)
        await replica.read_barrier()
        if pinned:
            await replica.stored()
        context = replica.context(context_id)
        if context is None:
            raise not_found(context_id)
        check_whole(context)
        if not 1 <= seq <= context.head.last_seq:
            raise MessageNotFound(
                f"There is no message {seq}; the newest is {context.head.last_seq}.", seq=seq, last_seq=context.head.last_seq
            )
        restored: tuple[Restored, ...] = ()
        if pinned and not any(item.kind == LIVE and item.seq == seq for item in context.window.items):
            first, last = max(1, seq - lookback.REACH), min(context.head.last_seq, seq + lookback.REACH)
            rows = await self._histories.restored(replica, context, first, last)
            restored = tuple(lookback.unit_of(rows, seq))
        command = PinMessage(context_id, self._now_ms(), self._rules, seq, pinned, restored)
        return cast(Rewritten, accepted(await replica.propose(command)))


def _are_long(messages: Sequence[NewMessage]) -> bool:
    """Whether counting them, all together, belongs in a thread."""
    characters = 0
    for message in messages:
        for part in message.parts:
            if part["type"] != "text" or type(text := part.get("text")) is not str:
                return tokens.needs_thread([part for message in messages for part in message.parts])
            characters += len(text)
    return characters > tokens.THREAD_CHARS_MIN


def make_draft(message: NewMessage, tokenizer: str, has_key: bool = True) -> Draft:
    """Count a message with the tokenizer and make it ready for the log. A client's `token_count` wins, spread over the parts."""
    counts = tokens.count_parts(tokenizer, message.parts)
    if message.token_count is not None:
        counts = tokens.distribute(message.token_count, counts)
    return draft(message, counts, tokens.count_outputs(tokenizer, message.parts), has_key or message.id is not None)


def _key_of_append(request: Append, drafts: Sequence[Draft]) -> KeyUse | None:
    if request.key is None:
        return None
    said = encode_json([request.batch, request.if_version, request.if_seq]) + b"".join(draft.digest for draft in drafts)
    return _key(request.key, said)


def _key(key: str | None, said: bytes) -> KeyUse | None:
    return None if key is None else KeyUse(key, blake2b(said, digest_size=16).digest())


def policy_spec(choice: PolicyChoice | None) -> PolicySpec | None:
    """A request's policy as it is replicated. Raises `InvalidPolicy` for nonsense, so that apply never meets any."""
    if choice is None:
        return None
    if choice.ref is not None:
        return PolicySpec(ref=choice.ref)
    if choice.strategy is None:
        raise InvalidRequest("policy needs either a strategy or a ref.", field="policy")
    parse_strategy(choice.strategy, choice.config, "policy.config")
    return PolicySpec(strategy=choice.strategy, config=policy_config(choice.config))


def policy_config(config: Mapping[str, Any]) -> bytes:
    """A policy's config as it is replicated. Raises `TooLarge`: each shard and each context that has it keeps a copy."""
    data = encode_json(config)
    if len(data) > POLICY_CONFIG_BYTES_MAX:
        raise TooLarge(f"A policy's config has at most {POLICY_CONFIG_BYTES_MAX} bytes; this one has {len(data)}.", field="config")
    return data


def check_numbers(budget: int | None, trigger: float | None, target: float | None, tokenizer: str | None) -> None:
    """Ranges that hold for contexts and policies alike."""
    if budget is not None and not 1 <= budget <= TOKEN_BUDGET_MAX:
        raise InvalidRequest(f"token_budget must be from 1 to {TOKEN_BUDGET_MAX:,}, not {budget}.", field="token_budget")
    for name, ratio in (("trigger_ratio", trigger), ("target_ratio", target)):
        if ratio is not None and not 0 < ratio <= 1:
            raise InvalidRequest(f"{name} must be above 0 and at most 1, not {ratio}.", field=name)
    if trigger is not None and target is not None and target >= trigger:
        raise Unprocessable(f"target_ratio ({target}) must be below trigger_ratio ({trigger}).", field="target_ratio")
    if tokenizer is not None and tokenizer not in tokens.TOKENIZERS:
        raise InvalidRequest(f"There is no tokenizer {tokenizer!r}; use one of {', '.join(tokens.TOKENIZERS)}.", field="tokenizer")


def _changes_nothing(context: Context, command: PutConfig, replica: Replica) -> bool:
    head = context.head
    if command.key is not None or command.recounts or head.status != ACTIVE:
        return False
    if command.metadata is not None and command.metadata != head.metadata:
        return False
    return changed_config(head.config, command, replica.machine.policies) == head.config
