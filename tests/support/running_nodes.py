"""Nodes inside the test's own process: started, asked, stopped in order or killed, and started again on what is left.

Knows `Node` and its service; a kill needs to know which connections it holds. Does not know what a test checks.
Invariant: after `kill` nothing was stored that was not stored before, and no thread of the node runs any more.
"""

import asyncio
import itertools
import os
import traceback
from collections.abc import Callable, Coroutine, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import msgspec
import uvloop

from context_node.contexts.refusals import ContextNotFound
from context_node.contexts.replies import Appended
from context_node.contexts.requests import Append, ListContexts, NewMessage
from context_node.runtime.databases import abandon
from context_node.runtime.engine import Engine
from context_node.runtime.node import Node, NodeOptions
from context_node.runtime.replica import Replica
from context_node.runtime.service import Service
from context_node.runtime.upkeep import Upkeep, UpkeepLimits
from context_node.runtime.worker import Worker

DEADLINE_S = 120.0

BY_HAND = UpkeepLimits(interval_s=1e6)
"""Upkeep happens only when a test asks for a round."""

EAGER = UpkeepLimits(flush_age_s=0.0, flush_bytes=2_000, log_bytes_per_shard_max=10_000, log_bytes_max=50_000, interval_s=0.001)
"""Everything that upkeep does happens all the time."""


def run(work: Coroutine[Any, Any, None], deadline_s: float = DEADLINE_S) -> None:
    """Run a test's coroutine on the event loop that the node runs on in production."""

    async def bounded() -> None:
        try:
            async with asyncio.timeout(deadline_s):
                await work
        except BaseException:
            # Told at once: whatever hangs below must not hide it.
            traceback.print_exc()
            # A node that is left running would keep the loop from closing, and the failure from being told.
            for each in list(_running):
                with suppress(Exception):
                    await each.kill()
            raise
        finally:
            _running.clear()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(bounded())


class Clock:
    """Unix milliseconds that pass by one with every look, so that equal calls see equal times."""

    def __init__(self, start_ms: int = 1_700_000_000_000) -> None:
        self.now_ms = start_ms

    def __call__(self) -> int:
        self.now_ms += 1
        return self.now_ms


_running: list["NodeLife"] = []
"""The lives that were begun in the test that runs now."""


@dataclass
class NodeLife:
    """A data directory and the node that lives on it now. Call `start` first."""

    options: NodeOptions
    clock: Callable[[], int] = field(default_factory=Clock)
    random_bytes: Callable[[int], bytes] = os.urandom
    make_worker: Callable[[asyncio.AbstractEventLoop, str], Worker] = Worker
    fatal: list[BaseException] = field(default_factory=list)
    node: Node = field(init=False)

    async def start(self) -> "NodeLife":
        """Raises what `Node.start` raises."""
        self.node = Node(
            self.options, now_ms=self.clock, random_bytes=self.random_bytes, on_fatal=self.fatal.append, make_worker=self.make_worker
        )
        self._forget()
        _running.append(self)
        await self.node.start()
        return self

    @property
    def service(self) -> Service:
        return cast(Service, self.node.service)

    @property
    def engine(self) -> Engine:
        assert self.node.engine is not None
        return self.node.engine

    @property
    def upkeep(self) -> Upkeep:
        assert self.node.upkeep is not None
        return self.node.upkeep

    @property
    def replicas(self) -> list[Replica]:
        return list(self.engine.replicas.values())

    async def stop(self) -> None:
        """In order, as on SIGTERM. Whatever was fatal meanwhile fails the test."""
        await self.node.stop()
        self._forget()
        assert not self.fatal, self.fatal

    async def kill(self) -> None:
        """Let go of everything without storing anything more. What a worker does at the moment it finishes, as a kernel would a write. Does
        nothing to a node that is dead already."""
        self._forget()
        if not self.node._upkeep_worker.is_closed:
            await kill(self.node)

    def _forget(self) -> None:
        _running[:] = [each for each in _running if each is not self]

    async def restart(self, *, hard: bool = False, **changes: Any) -> "NodeLife":
        """Stop, or kill if `hard`, and start again, with changed options if any are given."""
        await (self.kill() if hard else self.stop())
        self.options = replace(self.options, **changes)
        return await self.start()

    def forget_all(self) -> None:
        """Drop every context that has no unstored changes from memory, as a full cache does."""
        for replica in self.replicas:
            contexts, dirty = replica.machine.contexts, replica.machine.changes.contexts
            for context_id in [context_id for context_id in contexts if context_id not in dirty]:
                del contexts[context_id]

    def flush_all(self) -> None:
        for replica in self.replicas:
            self.upkeep.flush(replica)


async def kill(node: Node) -> None:
    """See `NodeLife.kill`."""
    engine, log = node.engine, node.log
    if engine is not None:
        # Outcomes that are on their way must find nobody.
        engine.failure = engine.failure or RuntimeError("killed")
    node.shards.close("killed")
    await node._end_tasks()
    if node.cluster is not None and node.moves is not None:
        await asyncio.gather(*node.moves.close(), return_exceptions=True)
        await node.cluster.stop()
    node._upkeep_worker.close()
    if engine is not None:
        engine.close()
        for replica in engine.replicas.values():
            replica.fail("killed")
            abandon(replica.store._database)
    if log is not None:
        abandon(log._file.database)
        log._file.unlock()
    node.engine = node.log = None


def options(data_dir: Path | str, **changes: Any) -> NodeOptions:
    """Options for a small node: four shards unless told otherwise."""
    return NodeOptions(str(data_dir), **{"shards": 4, **changes})


def life(data_dir: Path | str, **changes: Any) -> NodeLife:
    """A node's life on `data_dir`; `start` it."""
    return NodeLife(options(data_dir, **changes))


_texts = itertools.count(1)


def message(text: str | None = None, role: str = "user", **more: Any) -> NewMessage:
    """A message of one text part."""
    return NewMessage(role, [{"type": "text", "text": text if text is not None else f"message number {next(_texts)}"}], **more)


async def append(service: Service, context_id: str, *texts: str, **more: Any) -> Appended:
    """Append one message a text, in one batch, creating the context if there is none."""
    messages = [message(text) for text in texts or (None,)]
    return await service.append(context_id, Append(messages, **{"create": True, "batch": len(messages) > 1, **more}))


async def history(service: Service, context_id: str, limit: int = 1000) -> list[dict[str, Any]]:
    """All messages of a context, page by page, parsed."""
    found: list[dict[str, Any]] = []
    start: int | None = 1
    while start is not None:
        page = await service.page(context_id, start, limit, False)
        found += [msgspec.json.decode(body) for body in page.messages]
        start = page.next_seq
    return found


def texts_of(messages: Iterable[Mapping[str, Any]]) -> list[str]:
    return [one["parts"][0]["text"] for one in messages]


async def list_ids(service: Service, limit: int = 1000, **request: Any) -> list[str]:
    """The ids of all contexts that a list gives, page by page."""
    found: list[str] = []
    cursor: str | None = None
    while True:
        views, cursor = await service.list_contexts(ListContexts(limit=limit, cursor=cursor, **request))
        found += [view.id for view in views]
        if cursor is None:
            return found


async def everything(service: Service, ids: Iterable[str] | None = None) -> dict[str, Any]:
    """All that readers can see of some contexts (default: of all), as they see it: bytes where it is bytes."""
    seen: dict[str, Any] = {}
    for context_id in await list_ids(service, status="any") if ids is None else ids:
        try:
            view = await service.get_context(context_id)
        except ContextNotFound:
            seen[context_id] = None
            continue
        window = await service.window(context_id, None, None, None)
        small = await service.window(context_id, max(1, view.used_tokens // 2), None, None)
        pages = [(await service.page(context_id, start, 7, start < 0)) for start in (1, 5, -1)]
        tail = await service.tail(context_id, 2, 5)
        export = b"".join([chunk async for chunk in service.export(context_id)])
        seen[context_id] = (view, window, small, pages, tail, export)
    return seen
