"""A node of a test with an archive behind it, in the test's own process.

Knows how node, archiver and reader are put together, as `cli/node_process.py` does for a process. Does not know what a test checks.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from context_node.archive.archiver import Archiver, ArchiverOptions
from context_node.archive.batches import BatchLimits
from context_node.archive.cold import ColdReads
from context_node.archive.postgres import Postgres, PostgresOptions
from support.running_nodes import NodeLife, life
from support.waiting import until


@dataclass
class ArchivedNode:
    """A node, what copies its history, and what reads it."""

    life: NodeLife
    archiver: Archiver
    cold: ColdReads
    limits: BatchLimits

    @property
    def service(self) -> Any:
        return self.life.service

    async def archived(self) -> None:
        """Return once the archive has everything, and everything that may be trimmed is."""
        await until(self._has_all, "everything to be archived and trimmed")

    def _has_all(self) -> bool:
        for replica in self.life.replicas:
            if replica.machine.archive_id != self.archiver._copier.archive_id or not replica.machine.archive_id:
                return False
            for row in replica.store.list_contexts(limit=1_000):
                context = replica.context(row.id)
                if context is not None and self.limits.is_behind(context.head, replica.machine.archive_epoch):
                    return False
            if (
                any(self.limits.is_behind(context.head, replica.machine.archive_epoch) for context in replica.machine.contexts.values())
                or replica.machine.erasures
            ):
                return False
        return True

    def trimmed_seq(self, context_id: str) -> int:
        context = self.life.node.shards.replica_of(context_id).context(context_id)
        return 0 if context is None else context.head.trimmed_seq


@asynccontextmanager
async def archived_node(
    data_dir: Path, dsn: str, *, tail_keep: int | None, cache_bytes: int = 1 << 20, clock: Callable[[], int] | None = None, **options: Any
) -> AsyncIterator[ArchivedNode]:
    """A node whose history is copied to `dsn` at once."""
    made = life(data_dir, has_archive=True)
    made.clock = clock or made.clock
    await made.start()
    node = made.node

    def connection() -> Postgres:
        return Postgres(lambda: PostgresOptions(dsn, connect_timeout_s=3.0, command_timeout_s=5.0))

    def cluster_id() -> str:
        assert node.log is not None
        return node.log.notes.identity.cluster_id

    limits = BatchLimits(tail_keep=tail_keep)
    archiver = Archiver(
        node.shards,
        connection(),
        ArchiverOptions(0.01, limits),
        cluster_id=cluster_id,
        now_ms=made.clock,
        jitter=lambda: 0.0,
    )
    cold = ColdReads(connection(), cluster_id, cache_bytes=cache_bytes)
    node.observer = archiver.note
    node.histories.cold = cold
    running = asyncio.create_task(archiver.run())
    try:
        yield ArchivedNode(made, archiver, cold, limits)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await made.stop()


async def shown(service: Any, context_id: str) -> bytes:
    """A context as a client sees it, but for what tells how far it is archived and which creation it is."""
    view = msgspec.structs.replace(await service.get_context(context_id), incarnation="", archived_seq=0)
    return msgspec.json.encode(view)
