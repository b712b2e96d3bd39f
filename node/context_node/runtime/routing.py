"""The service of a node among others: every request goes to a node that can answer it, at most one step away.

Knows which calls write and which read: a write goes to the shard's leader; a read is answered here if this node holds the shard (after a
read index, H5), else by the leader. Does not know what the calls do. Invariants: a call that came from another node is answered here or
refused, never passed on again; a write whose answer was lost is never sent a second time.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, cast

from context_node.contexts.refusals import ContextNotFound
from context_node.contexts.replies import Appended, ContextView, NamedPolicyView, Put, RestoredUpTo, Rewritten
from context_node.contexts.requests import Append, Compact, ListContexts, PatchMetadata, PutContext, PutPolicy
from context_node.contexts.restoring import Restore
from context_node.runtime.cluster import Cluster, Handler
from context_node.runtime.following import Followed, RemoteSubscription
from context_node.runtime.not_here import NotHere
from context_node.runtime.reads import Listed, Page, WindowAnswer, merged_page
from context_node.runtime.service import Service
from context_node.runtime.shards import SYSTEM_SHARD, ShardDirectory, shard_of
from context_node.runtime.streams import Subscription

WRITES = ("append", "put_context", "patch_metadata", "delete_context", "purge_context", "compact", "pin", "restore_context")
READS = ("get_context", "page", "tail", "window")
EXPORT_MESSAGES = 500
"""So many messages of an export are asked for at once."""


class RoutedService:
    """See `Service` for what each method does; here it is decided where."""

    def __init__(self, local: Service, cluster: Cluster, shards: ShardDirectory, new_context_id: Callable[[PutContext, str], str]) -> None:
        self._local = local
        self._cluster = cluster
        self._shards = shards
        self._new_context_id = new_context_id
        self.ready = local.ready
        for name in (*WRITES, *READS):
            cluster.handlers[name] = self._led_here(getattr(local, name))
        cluster.handlers["list_shard"] = local.list_shard
        cluster.handlers["put_policy"] = self._led_by_system(local.put_policy)
        for name in ("delete_policy", "get_policy", "list_policies"):
            cluster.handlers[name] = self._led_by_system(getattr(local, name))
        self._followed = Followed(cluster, local.subscribe)
        cluster.handlers["follow"] = self._led_here(self._followed.open)

    def _led_here(self, method: Handler) -> Handler:
        async def answer(context_id: str, *arguments: Any) -> Any:
            self._cluster.leading(shard_of(context_id, self._shards.count))
            return await method(context_id, *arguments)

        return answer

    def _led_by_system(self, method: Handler) -> Handler:
        async def answer(*arguments: Any) -> Any:
            self._cluster.leading(SYSTEM_SHARD)
            return await method(*arguments)

        return answer

    async def _write(self, name: str, context_id: str, *arguments: Any) -> Any:
        shard = shard_of(context_id, self._shards.count)
        replica = self._shards.held(shard)
        if replica is not None and replica.leads:
            try:
                return await getattr(self._local, name)(context_id, *arguments)
            except NotHere:
                pass  # its leadership is being handed over; nothing was done
        return await self._cluster.call_leader(shard, name, (context_id, *arguments))

    async def _read(self, name: str, context_id: str, *arguments: Any, local: int | None) -> Any:
        shard = shard_of(context_id, self._shards.count)
        if self._holds(shard):
            return await getattr(self._local, name)(context_id, *arguments, local)
        # Where there is no replica to be local to, the leader has at least what any other has.
        return await self._cluster.call_leader(shard, name, (context_id, *arguments))

    # --- contexts ----------------------------------------------------------------------------------------------------

    async def append(self, context_id: str, request: Append) -> Appended:
        return cast(Appended, await self._write("append", context_id, request))

    async def put_context(self, context_id: str, request: PutContext) -> tuple[Put, ContextView]:
        return cast(tuple[Put, ContextView], await self._write("put_context", context_id, request))

    async def create_context(self, request: PutContext, owner: str) -> tuple[str, Put, ContextView]:
        context_id = self._new_context_id(request, owner)
        put, view = await self.put_context(context_id, request)
        return context_id, put, view

    async def patch_metadata(self, context_id: str, request: PatchMetadata) -> ContextView:
        return cast(ContextView, await self._write("patch_metadata", context_id, request))

    async def delete_context(self, context_id: str) -> None:
        await self._write("delete_context", context_id)

    async def purge_context(self, context_id: str) -> None:
        await self._write("purge_context", context_id)

    async def compact(self, context_id: str, request: Compact) -> Rewritten:
        return cast(Rewritten, await self._write("compact", context_id, request))

    async def pin(self, context_id: str, seq: int, pinned: bool) -> Rewritten:
        return cast(Rewritten, await self._write("pin", context_id, seq, pinned))

    async def restore_context(self, context_id: str, request: Restore) -> RestoredUpTo:
        return cast(RestoredUpTo, await self._write("restore_context", context_id, request))

    async def get_context(self, context_id: str, local: int | None = None) -> ContextView:
        return cast(ContextView, await self._read("get_context", context_id, local=local))

    async def page(self, context_id: str, from_seq: int | None, limit: int, descending: bool, local: int | None = None) -> Page:
        return cast(Page, await self._read("page", context_id, from_seq, limit, descending, local=local))

    async def tail(self, context_id: str, offset: int, limit: int, local: int | None = None) -> Page:
        return cast(Page, await self._read("tail", context_id, offset, limit, local=local))

    async def window(
        self, context_id: str, budget_tokens: int | None, if_version: int | None, etag: str | None, local: int | None = None
    ) -> WindowAnswer:
        return cast(WindowAnswer, await self._read("window", context_id, budget_tokens, if_version, etag, local=local))

    async def list_contexts(self, request: ListContexts) -> tuple[list[ContextView], str | None]:
        pages: list[list[Listed]] = []
        for shard in range(self._shards.count):
            if self._holds(shard):
                # A filter that matches little reads a whole shard; let others in between.
                await asyncio.sleep(0)
                pages.append(await self._local.list_shard(shard, request))
            else:
                pages.append(cast(list[Listed], await self._cluster.call_leader(shard, "list_shard", (shard, request))))
        return merged_page(pages, request)

    def _holds(self, shard: int) -> bool:
        """Whether a read of the shard can be answered here."""
        replica = self._shards.held(shard)
        return replica is not None and replica.failure is None and not replica.is_installing and bool(replica.applied_index)

    async def subscribe(self, context_id: str, cursor: int) -> Subscription | RemoteSubscription:
        shard = shard_of(context_id, self._shards.count)
        if self._holds(shard):
            return await self._local.subscribe(context_id, cursor)
        node, handle = await self._cluster.call_leader(shard, "follow", (context_id, cursor))
        return RemoteSubscription(self._cluster, node, handle)

    def export(self, context_id: str) -> AsyncIterator[bytes]:
        if self._holds(shard_of(context_id, self._shards.count)):
            return self._local.export(context_id)
        return self._export_from_leader(context_id)

    async def _export_from_leader(self, context_id: str) -> AsyncIterator[bytes]:
        """As `Reads.export`, page by page. A context that was purged meanwhile ends it, also if another has taken its id."""
        view = await self.get_context(context_id)
        first, last_seq = 1, view.last_seq
        while first <= last_seq:
            try:
                page = await self.page(context_id, first, min(EXPORT_MESSAGES, last_seq - first + 1), False)
                present = await self.get_context(context_id)
            except ContextNotFound:
                return
            if present.incarnation != view.incarnation:
                return
            if not page.messages:
                raise AssertionError(f"messages {first} to {last_seq} are not there")
            first += len(page.messages)
            yield b"".join([line for message in page.messages for line in (message, b"\n")])

    # --- policies ----------------------------------------------------------------------------------------------------

    async def put_policy(self, name: str, request: PutPolicy) -> NamedPolicyView:
        return cast(NamedPolicyView, await self._cluster.call_leader(SYSTEM_SHARD, "put_policy", (name, request)))

    async def delete_policy(self, name: str) -> None:
        await self._cluster.call_leader(SYSTEM_SHARD, "delete_policy", (name,))

    async def get_policy(self, name: str) -> NamedPolicyView:
        if self._holds(SYSTEM_SHARD):
            return await self._local.get_policy(name)
        return cast(NamedPolicyView, await self._cluster.call_leader(SYSTEM_SHARD, "get_policy", (name,)))

    async def list_policies(self) -> list[NamedPolicyView]:
        if self._holds(SYSTEM_SHARD):
            return await self._local.list_policies()
        return cast(list[NamedPolicyView], await self._cluster.call_leader(SYSTEM_SHARD, "list_policies", ()))

    def leader_of(self, context_id: str) -> str:
        return self._cluster.membership.name_of(self._cluster.leader_of(shard_of(context_id, self._shards.count)))
