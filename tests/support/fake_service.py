"""A service in a dictionary, for tests of the edge that need to steer what happens behind it, and for measuring the edge alone.

Knows the calls of `http.service.Service`. It keeps the simplest semantics that make the answers true: seq, version, tombstones; the
window is the whole history. What it lacks is tested against the real node. `before` is awaited first in every call, so that a test can
delay or refuse.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from context_node.contexts.refusals import ContextNotFound, ContextTombstoned, CursorAhead, MessageNotFound, PolicyNotFound, VersionConflict
from context_node.contexts.replies import Appended, ContextView, NamedPolicyView, PolicyView, Put, RestoredUpTo, Rewritten
from context_node.contexts.requests import Append, Compact, ListContexts, PatchMetadata, PutContext, PutPolicy
from context_node.contexts.restoring import Restore

BORN_MS = 1_767_225_600_000


@dataclass(frozen=True, slots=True)
class FakePage:
    messages: list[bytes]
    last_seq: int


@dataclass(frozen=True, slots=True)
class FakeWindow:
    body: bytes | None
    etag: str
    version: int


@dataclass(frozen=True, slots=True)
class FakeFrame:
    event: str
    seq: int | None
    data: bytes


@dataclass(slots=True)
class Kept:
    """One context."""

    view: ContextView
    messages: list[bytes] = field(default_factory=list)
    subscriptions: list["FakeSubscription"] = field(default_factory=list)

    def change(self, **changes: Any) -> None:
        fields = {name: getattr(self.view, name) for name in self.view.__struct_fields__}
        self.view = ContextView(**{**fields, **changes})


class FakeSubscription:
    """Frames from a queue."""

    def __init__(self, kept: Kept, cursor: int) -> None:
        self.frames: asyncio.Queue[FakeFrame] = asyncio.Queue()
        self.is_closed = False
        self._kept = kept
        for seq, message in enumerate(kept.messages, 1):
            if seq > cursor:
                self.frames.put_nowait(FakeFrame("message", seq, message))
        self.frames.put_nowait(FakeFrame("context", None, b'{"version":%d}' % kept.view.version))
        kept.subscriptions.append(self)

    async def next(self, timeout_s: float) -> FakeFrame | None:
        try:
            async with asyncio.timeout(timeout_s):
                return await self.frames.get()
        except TimeoutError:
            return None

    def close(self) -> None:
        self.is_closed = True
        self._kept.subscriptions.remove(self)


async def _nothing() -> None:
    return None


class FakeService:
    """See the module. `is_ready` and `reason` are what `ready` tells."""

    def __init__(self) -> None:
        self.kept: dict[str, Kept] = {}
        self.policies: dict[str, NamedPolicyView] = {}
        self.before: Callable[[], Awaitable[None]] = _nothing
        self.calls: list[Any] = []
        self.is_ready = True
        self.reason = ""
        self.window_body: bytes | None = None

    def _of(self, context_id: str) -> Kept:
        kept = self.kept.get(context_id)
        if kept is None:
            raise ContextNotFound("There is no such context.", id=context_id)
        return kept

    def _active(self, context_id: str) -> Kept:
        kept = self._of(context_id)
        if kept.view.status != "active":
            raise ContextTombstoned("The context is deleted; PUT revives it.")
        return kept

    def _create(self, context_id: str, request: PutContext) -> Kept:
        kept = self.kept[context_id] = Kept(
            ContextView(
                context_id, "active", 8192, 0.7, 0.5, PolicyView("last_n", {}), "o200k_base", {}, 0, 1, "1", 0, 0, 0, BORN_MS, BORN_MS, None
            )
        )
        self._configure(kept, request)
        return kept

    def _configure(self, kept: Kept, request: PutContext) -> None:
        names = ("token_budget", "trigger_ratio", "target_ratio", "tokenizer", "metadata")
        kept.change(status="active", **{name: getattr(request, name) for name in names if getattr(request, name) is not None})

    async def append(self, context_id: str, request: Append) -> Appended:
        await self.before()
        if request.create and context_id not in self.kept:
            self._create(context_id, PutContext())
        kept = self._active(context_id)
        if request.if_version is not None and request.if_version != kept.view.version:
            raise VersionConflict("The version is another.", version=kept.view.version, last_seq=kept.view.last_seq)
        first = kept.view.last_seq + 1
        for seq, message in enumerate(request.messages, first):
            body = msgspec.json.encode(
                {
                    "seq": seq,
                    "role": message.role,
                    "parts": message.parts,
                    "metadata": message.metadata,
                    "token_count": message.token_count or 1,
                    "inserted_at": "2026-01-01T00:00:00.000Z",
                }
            )
            kept.messages.append(body)
            for subscription in kept.subscriptions:
                subscription.frames.put_nowait(FakeFrame("message", seq, body))
        last = len(kept.messages)
        kept.change(version=kept.view.version + 1, revision=kept.view.revision + 1, last_seq=last)
        return Appended(first, last, kept.view.version, len(request.messages))

    async def put_context(self, context_id: str, request: PutContext) -> tuple[Put, ContextView]:
        await self.before()
        kept = self.kept.get(context_id)
        is_new = kept is None
        if kept is None:
            kept = self._create(context_id, request)
        self._configure(kept, request)
        return Put(is_new, kept.view.version, kept.view.revision), kept.view

    async def create_context(self, request: PutContext, owner: str) -> tuple[str, Put, ContextView]:
        await self.before()
        context_id = f"c-{owner}-{request.key or len(self.kept)}"
        put, view = await self.put_context(context_id, request)
        return context_id, put, view

    async def restore_context(self, context_id: str, request: Restore) -> RestoredUpTo:
        await self.before()
        self.calls.append((context_id, request))
        return RestoredUpTo(request.first_seq + len(request.messages) - 1, request.end is not None)

    async def get_context(self, context_id: str, local: int | None = None) -> ContextView:
        await self.before()
        return self._of(context_id).view

    async def patch_metadata(self, context_id: str, request: PatchMetadata) -> ContextView:
        await self.before()
        kept = self._active(context_id)
        merged = {**kept.view.metadata, **request.patch}
        kept.change(metadata={name: value for name, value in merged.items() if value is not None})
        return kept.view

    async def delete_context(self, context_id: str) -> None:
        await self.before()
        kept = self._of(context_id)
        kept.change(status="tombstoned", tombstoned_at_ms=BORN_MS + 1)
        for subscription in kept.subscriptions:
            subscription.frames.put_nowait(FakeFrame("tombstoned", None, b"{}"))

    async def purge_context(self, context_id: str) -> None:
        await self.before()
        for subscription in self._of(context_id).subscriptions:
            subscription.frames.put_nowait(FakeFrame("purged", None, b"{}"))
        del self.kept[context_id]

    async def list_contexts(self, request: ListContexts) -> tuple[list[ContextView], str | None]:
        await self.before()
        self.calls.append(request)
        found = [kept.view for name, kept in sorted(self.kept.items()) if name.startswith(request.prefix) and name > (request.cursor or "")]
        page = found[: request.limit]
        return page, page[-1].id if len(found) > len(page) else None

    async def page(self, context_id: str, from_seq: int | None, limit: int, descending: bool, local: int | None = None) -> FakePage:
        await self.before()
        messages = self._of(context_id).messages
        start = (from_seq or 1) if (from_seq or 1) > 0 else len(messages) + 1 + (from_seq or 0)
        found = messages[max(0, start - 1) : max(0, start - 1) + limit]
        return FakePage(found[::-1] if descending else found, len(messages))

    async def tail(self, context_id: str, offset: int, limit: int, local: int | None = None) -> FakePage:
        await self.before()
        messages = self._of(context_id).messages
        end = max(0, len(messages) - offset)
        return FakePage(messages[max(0, end - limit) : end], len(messages))

    async def window(
        self, context_id: str, budget_tokens: int | None, if_version: int | None, etag: str | None, local: int | None = None
    ) -> FakeWindow:
        await self.before()
        kept = self._of(context_id)
        version = kept.view.version
        if if_version is not None and if_version != version:
            raise VersionConflict("The version is another.", version=version, last_seq=kept.view.last_seq)
        tag = f'"{context_id}-{version}"'
        if etag is not None and (tag in etag or etag == "*"):
            return FakeWindow(None, tag, version)
        body = self.window_body or (
            b'{"messages":[%b],"version":%d,"last_seq":%d,"token_budget":8192,"used_tokens":0,"token_count":0,"needs_compaction":false,'
            b'"over_budget":false,"segments":[],"prefix_hash":"","stable_through_seq":0}'
        ) % (b",".join(kept.messages), version, len(kept.messages))
        return FakeWindow(body, tag, version)

    async def compact(self, context_id: str, request: Compact) -> Rewritten:
        await self.before()
        self.calls.append(request)
        kept = self._active(context_id)
        kept.change(version=kept.view.version + 1)
        return Rewritten(kept.view.version)

    async def pin(self, context_id: str, seq: int, pinned: bool) -> Rewritten:
        await self.before()
        kept = self._active(context_id)
        if seq > len(kept.messages):
            raise MessageNotFound("There is no such message.", seq=seq)
        return Rewritten(kept.view.version)

    async def subscribe(self, context_id: str, cursor: int) -> FakeSubscription:
        await self.before()
        kept = self._of(context_id)
        if cursor > kept.view.last_seq:
            raise CursorAhead("The cursor is beyond the newest message.", last_seq=kept.view.last_seq)
        return FakeSubscription(kept, cursor)

    async def export(self, context_id: str) -> AsyncIterator[bytes]:
        await self.before()
        messages = list(self._of(context_id).messages)
        yield b""
        for message in messages:
            yield message + b"\n"

    async def put_policy(self, name: str, request: PutPolicy) -> NamedPolicyView:
        await self.before()
        known = self.policies.get(name)
        self.policies[name] = NamedPolicyView(
            name,
            1 if known is None else known.generation + 1,
            request.strategy,
            dict(request.config),
            request.token_budget,
            request.trigger_ratio,
            request.target_ratio,
            request.tokenizer,
            request.default,
            BORN_MS,
            BORN_MS,
        )
        return self.policies[name]

    async def get_policy(self, name: str) -> NamedPolicyView:
        await self.before()
        if name not in self.policies:
            raise PolicyNotFound("There is no such policy.", name=name)
        return self.policies[name]

    async def delete_policy(self, name: str) -> None:
        await self.get_policy(name)
        del self.policies[name]

    async def list_policies(self) -> list[NamedPolicyView]:
        await self.before()
        return list(self.policies.values())

    def ready(self) -> tuple[bool, str]:
        return self.is_ready, self.reason

    def leader_of(self, context_id: str) -> str:
        return "node-0"
