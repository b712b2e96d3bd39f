"""Comparing the replicas of a shard: each hashes its whole state right behind the same log entry.

Knows replicas, their databases and the worker that may read them. Does not know who wants to know. Invariant: a digest belongs to the state
at exactly the index that it names; where that state was gone before it could be hashed there is none, and the comparison is made again.
"""

from collections.abc import Callable, Coroutine
from typing import Any

from context_node.contexts.commands import Compare
from context_node.runtime.calls import Digest
from context_node.runtime.cluster import Cluster
from context_node.runtime.databases import StorageError
from context_node.runtime.replica import Replica
from context_node.runtime.shards import accepted
from context_node.runtime.worker import Worker

KEPT = 4
"""Digests of a shard that are kept for whoever asked for them."""


class Comparisons:
    """The digests that this node took. `spawn` runs something that ends with the node."""

    def __init__(
        self,
        cluster: Cluster,
        worker: Worker,
        held: Callable[[int], Replica | None],
        spawn: Callable[[Coroutine[Any, Any, None], str], None],
        now_ms: Callable[[], int],
    ) -> None:
        self._cluster = cluster
        self._worker = worker
        self._held = held
        self._spawn = spawn
        self._now_ms = now_ms
        self._taken: dict[int, dict[str, Digest | None]] = {}
        cluster.handlers["compare"] = self._compare
        cluster.handlers["digest"] = self._digest

    def note(self, replica: Replica, mark: str) -> None:
        """A `Compare` entry has just been applied."""
        if self._held(replica.shard) is not replica:
            return  # replayed by a start: who asked has gone
        taken = self._taken.setdefault(replica.shard, {})
        taken[mark] = None
        while len(taken) > KEPT:
            del taken[next(iter(taken))]
        if replica.storing.locked():
            taken[mark] = Digest(replica.applied_index, b"")
            return
        replica.flush()
        self._spawn(self._hash(replica, mark, replica.applied_index), "compare")

    async def _hash(self, replica: Replica, mark: str, index: int) -> None:
        digest = b""
        async with replica.storing:
            if replica.failure is None:
                try:
                    at, found = await self._worker.run(replica.store.digest)
                    digest = found if at == index else b""
                except StorageError:
                    pass  # the store says it to everyone who uses it next
        taken = self._taken.get(replica.shard, {})
        if mark in taken:
            taken[mark] = Digest(index, digest)

    async def _compare(self, shard: int, mark: str) -> None:
        accepted(await self._cluster.leading(shard).propose(Compare(self._now_ms(), mark)))

    async def _digest(self, shard: int, mark: str) -> Digest | None:
        return self._taken.get(shard, {}).get(mark)
