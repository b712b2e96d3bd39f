"""What reads give: contexts, windows, pages, lists, exports. All from what is applied, after a read barrier (H5).

Where a history's messages are is `histories`' affair. Messages leave as the bytes they were kept in. Invariant: reading changes nothing but
what is cached.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from heapq import merge
from typing import Any

import msgspec

from context_node.contexts.checks import check_whole
from context_node.contexts.commands import PolicySpec, Rules
from context_node.contexts.compaction import Plan, needs_compaction
from context_node.contexts.context import STATUSES, Context, Head, archived_upto, derived_target, read_head
from context_node.contexts.fitting import fit
from context_node.contexts.machine import Machine, not_found
from context_node.contexts.policies import Policy
from context_node.contexts.refusals import CursorAhead, Unavailable, VersionConflict
from context_node.contexts.render import REVISION, Rendered, render_window
from context_node.contexts.replies import ContextView, PolicyView
from context_node.contexts.requests import ListContexts
from context_node.contexts.window import Window
from context_node.runtime.cursors import decode_cursor, encode_cursor
from context_node.runtime.histories import Histories, hot_history
from context_node.runtime.replica import Replica
from context_node.runtime.shards import ShardDirectory
from context_node.runtime.streams import BYTES_PER_PULL, Subscription

PAGE_BYTES_MAX = 16 << 20
"""A page ends early above this many bytes of messages, but holds at least one."""

EXPORT_BYTES = 1 << 20
"""A chunk of an export ends above this many bytes."""

LOCAL_WAIT_S, LOCAL_LOOK_S = 2.0, 0.02
"""How long a local read waits for a version that this replica does not have yet, and how often it looks."""


@dataclass(frozen=True, slots=True)
class Page:
    """Some messages of a history as ready JSON, in the order asked for. `next_seq` is where the next page begins, None at the end."""

    messages: Sequence[bytes]
    last_seq: int
    next_seq: int | None


@dataclass(frozen=True, slots=True)
class WindowAnswer:
    """A window as ready JSON with its ETag; `body` is None where the caller has it already."""

    body: bytes | None
    etag: str
    version: int


class Listed(msgspec.Struct, frozen=True, array_like=True):
    """A context in a list, and when it was changed last, in the unit that lists are ordered by."""

    updated_at: int
    view: ContextView


class Reads:
    """The reading half of the service."""

    def __init__(self, shards: ShardDirectory, histories: Histories, rules: Rules, stream_lag_max: int) -> None:
        self._shards = shards
        self._histories = histories
        self._rules = rules
        self._stream_lag_max = stream_lag_max

    async def _context(self, context_id: str, local: int | None = None) -> tuple[Replica, Context]:
        """The context after all that was acknowledged (H5); with `local` as this replica has it, once it has that version at least. Raises
        `Unavailable` if it does not get it soon."""
        replica = self._shards.replica_of(context_id)
        if local is None:
            await replica.read_barrier()
        elif replica.failure is not None:
            raise Unavailable(replica.failure)
        context = replica.context(context_id)
        if local:
            loop = asyncio.get_running_loop()
            until = loop.time() + LOCAL_WAIT_S
            while (version := 0 if context is None else context.head.version) < local:
                if loop.time() >= until:
                    raise Unavailable(f"This replica is at version {version}, not yet at {local}; retry shortly.", version=version)
                await asyncio.sleep(LOCAL_LOOK_S)
                context = replica.context(context_id)
        if context is None:
            raise not_found(context_id)
        return replica, context

    async def get_context(self, context_id: str, local: int | None = None) -> ContextView:
        """A context's configuration and counters. `local`, here and below: None for a linearizable read, else the version that this
        replica must have at least (0: whatever it has), however far others are."""
        return view_of(*await self._context(context_id, local))

    async def window(
        self, context_id: str, budget_tokens: int | None, if_version: int | None, etag: str | None, local: int | None = None
    ) -> WindowAnswer:
        """The window, fitted to `budget_tokens` for this read if given. `etag` is what the caller has."""
        replica, context = await self._context(context_id, local)
        check_whole(context)
        head = context.head
        if if_version is not None and if_version != head.version:
            raise VersionConflict(
                f"The context is at version {head.version}, not {if_version}.", version=head.version, last_seq=head.last_seq
            )
        cached = context.rendered
        generation = _generation(replica, context)
        if cached is not None and cached[0] == generation and budget_tokens is None:
            tag, body = cached[1], cached[2]
        else:
            tag = window_etag(head, budget_tokens, generation)
            if etag is not None and _has_tag(etag, tag):
                return WindowAnswer(None, tag, head.version)
            body = self._render(replica, context, budget_tokens).body
            if budget_tokens is None:
                context.rendered = (generation, tag, body)
        if etag is not None and _has_tag(etag, tag):
            return WindowAnswer(None, tag, head.version)
        return WindowAnswer(body, tag, head.version)

    def _render(self, replica: Replica, context: Context, budget_tokens: int | None) -> Rendered:
        window, plan = self.window_now(replica, context, budget_tokens)
        return render_window(window, plan, version=context.head.version, last_seq=context.head.last_seq)

    def window_now(self, replica: Replica, context: Context, budget_tokens: int | None = None) -> tuple[Window, Plan]:
        """The window that a read gives now: the stored one, or one fitted to a smaller budget or to a policy that changed since."""
        plan = replica.machine.live_plan(context, self._rules.window_items_max)
        if budget_tokens is None and not replica.machine.follows_newer_policy(context):
            return context.window, plan
        if budget_tokens is not None:
            plan = Plan(budget_tokens, plan.trigger_ratio, plan.target_ratio, plan.strategy, plan.items_max)
        return fit(context.window.items, plan), plan

    async def page(self, context_id: str, from_seq: int | None, limit: int, descending: bool, local: int | None = None) -> Page:
        """Messages from `from_seq` on (negative counts from the end, None is the end that the direction starts at)."""
        replica, context = await self._context(context_id, local)
        last_seq = context.head.last_seq
        start = from_seq
        if start is None:
            start = last_seq if descending else 1
        elif start < 0:
            start = max(1, last_seq + 1 + start)
        if descending:
            start = min(start, last_seq)
            rows = await self._rows(replica, context, max(1, start - limit + 1), start, descending=True)
            return _page(rows, last_seq, 1)
        rows = await self._rows(replica, context, max(1, start), min(last_seq, max(1, start) + limit - 1))
        return _page(rows, last_seq, last_seq)

    async def _rows(
        self, replica: Replica, context: Context, first: int, last: int, *, descending: bool = False
    ) -> list[tuple[int, bytes]]:
        """The messages of one page. Raises `ContextNotFound` if the context is purged while the archive is asked."""
        rows = await self._histories.read(replica, context, first, last, bytes_max=PAGE_BYTES_MAX, descending=descending)
        if not rows and first <= last:
            raise not_found(context.id)
        return rows

    async def tail(self, context_id: str, offset: int, limit: int, local: int | None = None) -> Page:
        """The `limit` messages before the newest `offset` ones, oldest first."""
        replica, context = await self._context(context_id, local)
        last_seq = context.head.last_seq
        newest = last_seq - offset
        rows = await self._rows(replica, context, max(1, newest - limit + 1), newest, descending=True)
        page = _page(rows, last_seq, 1)
        return Page(list(reversed(page.messages)), last_seq, page.next_seq)

    def export(self, context_id: str) -> AsyncIterator[bytes]:
        """The whole history as JSON Lines, in chunks; what is appended meanwhile is not in it. A refusal comes instead of the first chunk,
        also where that would have to come from the archive."""
        return self._export(context_id)

    async def _export(self, context_id: str) -> AsyncIterator[bytes]:
        replica, context = await self._context(context_id)
        ordinal, last_seq, first = context.ordinal, context.head.last_seq, 1
        while first <= last_seq:
            if replica.failure is not None:
                raise Unavailable(replica.failure)
            present = replica.context(context_id)
            if present is None or present.ordinal != ordinal:
                return
            rows = await self._histories.read(replica, present, first, last_seq, bytes_max=EXPORT_BYTES)
            if not rows:
                # A purge while the archive was asked, or else a hole.
                if replica.context(context_id) is present:
                    raise AssertionError(f"messages {first} to {last_seq} are nowhere")
                return
            first = rows[-1][0] + 1
            yield b"".join([line for _, body in rows for line in (body, b"\n")])

    async def list_contexts(self, request: ListContexts) -> tuple[list[ContextView], str | None]:
        """One page of the contexts of all shards that this node holds."""
        pages = []
        for replica in self._shards.replicas():
            # A filter that matches little reads a whole shard; let others in between.
            await asyncio.sleep(0)
            pages.append(await self.list_shard(replica.shard, request))
        return merged_page(pages, request)

    async def list_shard(self, shard: int, request: ListContexts) -> "list[Listed]":
        """What one shard has for a page of the list: one more than the page holds, if there is more."""
        after = decode_cursor(request) if request.cursor is not None else None
        replica = self._shards.replica(shard)
        await replica.read_barrier()
        await replica.stored()
        return [Listed(row.updated_at, stored_view(replica, row)) for row in _list_rows(replica, request, after)]

    async def subscribe(self, context_id: str, cursor: int) -> Subscription:
        """Follow a context from after `cursor` (0 is the beginning, -1 the present end)."""
        replica, context = await self._context(context_id)
        check_whole(context)
        last_seq = context.head.last_seq
        if cursor > last_seq:
            raise CursorAhead(f"The cursor {cursor} is beyond the newest message, {last_seq}.", cursor=cursor, last_seq=last_seq)
        ordinal = context.ordinal

        def read(first: int, last: int) -> Iterable[tuple[int, bytes]] | None:
            present = replica.context(context_id)
            if present is None or present.ordinal != ordinal:
                return ()
            return hot_history(replica, present, first, last) if first > present.cold_seq else None

        async def read_cold(first: int, last: int) -> Iterable[tuple[int, bytes]]:
            present = replica.context(context_id)
            if present is None or present.ordinal != ordinal:
                return ()
            return await self._histories.read(replica, present, first, last, bytes_max=BYTES_PER_PULL)

        def state() -> bytes:
            present = replica.context(context_id)
            return b"{}" if present is None else self._state(replica, present)

        begin = last_seq if cursor < 0 else cursor
        subscription = Subscription(replica, context_id, begin, lag_max=self._stream_lag_max, read=read, read_cold=read_cold, state=state)
        subscription.start(last_seq)
        return subscription

    def _state(self, replica: Replica, context: Context) -> bytes:
        window, plan = self.window_now(replica, context)
        head = context.head
        return msgspec.json.encode(
            {
                "id": context.id,
                "incarnation": str(head.incarnation),
                "status": context.status,
                "version": head.version,
                "last_seq": head.last_seq,
                "token_budget": plan.budget,
                "used_tokens": window.tokens,
                "needs_compaction": needs_compaction(window, plan),
                "over_budget": window.tokens > plan.budget,
                "forced": window.forced,
                "stable_through_seq": window.rewritten_seq,
            }
        )


def _page(rows: Iterable[tuple[int, bytes]], last_seq: int, end: int) -> Page:
    """Take rows up to the page's limit of bytes; `end` is the last seq that there is in this direction."""
    messages: list[bytes] = []
    size = 0
    newest = end
    for seq, body in rows:
        newest = seq
        messages.append(body)
        size += len(body)
        if size >= PAGE_BYTES_MAX:
            break
    if not messages or newest == end:
        return Page(messages, last_seq, None)
    return Page(messages, last_seq, newest + 1 if end >= newest else newest - 1)


def window_etag(head: Head, budget_tokens: int | None, generation: int) -> str:
    """The tag of a window: whose it is, at which revision, for which query, drawn by which renderer."""
    said = f"{head.incarnation}.{head.revision}.{budget_tokens}.{generation}.{REVISION}"
    return f'"{blake2b(said.encode(), digest_size=12).hexdigest()}"'


def _generation(replica: Replica, context: Context) -> int:
    """The generation of the policy that the context follows by name; 0 if it follows none."""
    ref = context.head.config.policy.ref
    policy = replica.machine.policies.get(ref) if ref is not None else None
    return policy.record.generation if policy is not None else 0


def _has_tag(if_none_match: str, tag: str) -> bool:
    """RFC 9110 §13.1.2: weak comparison with any of a list, or `*`."""
    if if_none_match == tag:
        return True
    given = [each.strip().removeprefix("W/") for each in if_none_match.split(",")]
    return tag in given or given == ["*"]


def _list_rows(replica: Replica, request: ListContexts, after: tuple[int, str] | None) -> list[Any]:
    status = {"active": 0, "tombstoned": 1, "any": None}[request.status]
    position: Any = None
    if after is not None:
        position = after[1] if request.order == "id" else after
    return list(
        replica.store.list_contexts(
            prefix=request.prefix,
            status=status,
            metadata=request.metadata,
            order=request.order,
            after=position,
            limit=request.limit + 1,
        )
    )


def merged_page(pages: "Sequence[list[Listed]]", request: ListContexts) -> tuple[list[ContextView], str | None]:
    """One page out of those of several shards, and the cursor of the next."""
    by_id = request.order == "id"
    chosen: list[Listed] = []
    for one in merge(*pages, key=lambda one: (one.view.id,) if by_id else (-one.updated_at, one.view.id)):
        chosen.append(one)
        if len(chosen) > request.limit:
            break
    found = chosen[: request.limit]
    cursor = encode_cursor(request, (found[-1].updated_at, found[-1].view.id)) if len(chosen) > request.limit else None
    return [one.view for one in found], cursor


def stored_view(replica: Replica, row: Any) -> ContextView:
    """A context as GET shows it, from its stored record alone."""
    return _view(row.id, read_head(row.record), replica.machine)


def view_of(replica: Replica, context: Context) -> ContextView:
    """A context as GET shows it."""
    context.head.used_tokens = context.window.tokens
    return _view(context.id, context.head, replica.machine)


def _view(context_id: str, head: Head, machine: Machine) -> ContextView:
    config = head.config
    return ContextView(
        id=context_id,
        status=STATUSES[head.status],
        token_budget=config.token_budget,
        trigger_ratio=config.trigger_ratio,
        target_ratio=derived_target(config.trigger_ratio) if config.target_ratio is None else config.target_ratio,
        policy=_policy_view(config.policy, machine.policies),
        tokenizer=config.tokenizer,
        metadata=msgspec.json.decode(head.metadata),
        version=head.version,
        revision=head.revision,
        incarnation=str(head.incarnation),
        last_seq=head.last_seq,
        archived_seq=archived_upto(head, machine.archive_epoch),
        used_tokens=head.used_tokens,
        created_at_ms=head.created_at_ms,
        updated_at_ms=head.updated_at_ms,
        tombstoned_at_ms=head.tombstoned_at_ms,
    )


def _policy_view(spec: PolicySpec, policies: dict[str, Policy]) -> PolicyView:
    if spec.ref is not None:
        policy = policies.get(spec.ref)
        generation = policy.record.generation if policy is not None else None
        return PolicyView(ref=spec.ref, generation=generation, deleted=policy is None or policy.record.deleted)
    if spec.strategy is None:
        return PolicyView(strategy="last_n", config={})
    return PolicyView(strategy=spec.strategy, config=msgspec.json.decode(spec.config))
