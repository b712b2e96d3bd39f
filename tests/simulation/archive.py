"""A simulated Postgres behind a simulated cluster, and what must hold of it.

It outlives all processes: a transaction of one that dies is rolled back, of one that hangs ended after a while, and the answer to a commit
can be lost. Knows the archiver's face of Postgres. Does not know nodes. Invariants that it judges: no context ever has a hole; what is
there never changes; nothing of what was erased comes back.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from random import Random

import msgspec

from context_node.archive.errors import ArchiveError, Behind, Fenced
from context_node.archive.rows import ArchivedContext, ArchivedMessage, message_data
from context_node.contexts.commands import NoteArchived, Restored
from context_node.contexts.shard_state import ShardState
from simulation.judge import Judge
from simulation.loop import Process, SimulatedLoop

IDLE_S = 2.0
"""A transaction that says nothing for so long is ended."""

LOCK_S = 5.0

Key = tuple[str, int]


class _Transaction:
    def __init__(self, process: Process, now_s: float) -> None:
        self.process = process
        self.heard_s = now_s
        self.is_over = False


class SimulatedPostgres:
    """The server. `lost_share`: how often a question or its answer is lost; `is_away`: nobody gets through."""

    def __init__(self, loop: SimulatedLoop, judge: Judge, random: Random) -> None:
        self.loop = loop
        self.judge = judge
        self.random = random
        self.is_away = False
        self.has_gone_back = False
        self.lost_share = random.choice((0.0, 0.02, 0.2))
        self.trip_s = random.choice((0.001, 0.02, 0.2))
        self.messages: dict[Key, dict[int, ArchivedMessage]] = {}
        self.contexts: dict[Key, ArchivedContext] = {}
        self.policies: dict[str, bytes] = {}
        self.confirmed: dict[Key, int] = {}
        """How far contexts have ever been there whole, also those that were erased since."""
        self.erased: set[Key] = set()
        self.fences: dict[int, int] = {}
        self.holders: dict[int, _Transaction] = {}

    def heal(self) -> None:
        self.is_away, self.lost_share, self.trip_s = False, 0.0, 0.001

    def put(self, messages: list[ArchivedMessage], contexts: list[ArchivedContext]) -> None:
        judge = self.judge
        for one in messages:
            key = (one.context_id, one.incarnation)
            judge.check(key not in self.erased, "PURGE", f"message {one.seq} of {key} comes back after it was erased")
            held = self.messages.setdefault(key, {}).setdefault(one.seq, one)
            judge.check(held.raw == one.raw, "ARCHIVE", f"message {one.seq} of {key} is archived twice and differs")
        again = [one for one in messages if one.seq <= self.confirmed.get((one.context_id, one.incarnation), 0)]
        judge.mark("messages were archived that it had before", bool(again))
        for context in contexts:
            key = (context.context_id, context.incarnation)
            judge.check(key not in self.erased, "PURGE", f"{key} comes back after it was erased")
            rows = self.messages.get(key, {})
            judge.check(sorted(rows) == list(range(1, len(rows) + 1)), "ARCHIVE", f"{key} has a hole: {sorted(rows)}")
            judge.check(context.seq <= len(rows), "ARCHIVE", f"{key} is said to be there up to {context.seq}, and is to {len(rows)}")
            self.confirmed[key] = max(self.confirmed.get(key, 0), len(rows))
            if key not in self.contexts or self.contexts[key].revision <= context.revision:
                self.contexts[key] = msgspec.structs.replace(context, seq=max(context.seq, self._has(key)))
        judge.mark("messages were archived", bool(messages))

    def _has(self, key: Key) -> int:
        held = self.contexts.get(key)
        return 0 if held is None else held.seq

    def less_than(self, contexts: list[ArchivedContext]) -> dict[str, int]:
        """The contexts of which it has less than is believed, with what it has."""
        found = ((one, self._has((one.context_id, one.incarnation))) for one in contexts)
        return {one.context_id: has for one, has in found if has < one.held}

    def go_back(self, names: Sequence[str]) -> None:
        """It is brought back from a backup: of some of these contexts it has less than it had confirmed."""
        self.has_gone_back = True
        for key in sorted(self.messages):
            if key[0] in names and self.random.random() < 0.7:
                upto = self.random.randint(0, self._has(key))
                self.messages[key] = {seq: row for seq, row in self.messages[key].items() if seq <= upto}
                if upto:
                    self.contexts[key] = msgspec.structs.replace(self.contexts[key], seq=upto)
                else:
                    self.contexts.pop(key, None)

    def erase(self, keys: list[Key]) -> None:
        for key in keys:
            self.judge.mark("a purged context was erased in the archive", key in self.messages)
            self.messages.pop(key, None)
            self.contexts.pop(key, None)
            self.erased.add(key)

    def noted(self, state: ShardState, command: NoteArchived) -> None:
        """H6, whenever a replica has applied marks: they do not pass what was ever there, and a trim does not pass them."""
        for mark in command.archived:
            context = state.contexts.get(mark.context_id)
            if context is None or context.head.incarnation != mark.incarnation:
                continue
            head = context.head
            known = self.confirmed.get((mark.context_id, mark.incarnation), 0)
            self.judge.check(head.archived_seq <= known, "H6", f"{mark} is noted, and the archive has messages up to {known}")
            self.judge.check(head.trimmed_seq <= head.archived_seq, "H6", f"{mark} trims to {head.trimmed_seq} of {head.archived_seq}")
            self.judge.mark("messages were trimmed", head.trimmed_seq > 0)
            self.judge.mark("a window kept messages that were trimmed", bool(context.held_ranges(head.trimmed_seq)))


class SimulatedArchive:
    """One process's connection: what `Archiver` and `ColdReads` ask of Postgres."""

    def __init__(self, server: SimulatedPostgres, process: Process) -> None:
        self._server = server
        self._process = process

    async def open(self, _cluster_id: str, *, only_reads: bool = False) -> str:
        await self._trip()
        return "simulated"

    async def close(self) -> None:
        pass

    async def ping(self) -> None:
        await self._trip()

    async def _trip(self) -> None:
        server = self._server
        await asyncio.sleep(server.random.random() * 2 * server.trip_s)
        if server.is_away or server.random.random() < server.lost_share:
            raise ArchiveError("unreachable", "Postgres cannot be reached")

    @asynccontextmanager
    async def _transaction(self, shard: int, term: int) -> AsyncIterator[None]:
        server, loop = self._server, self._server.loop
        await self._trip()
        until = loop.time() + LOCK_S
        while (holder := server.holders.get(shard)) is not None:
            if holder.process.is_dead or loop.time() - holder.heard_s > IDLE_S:
                server.judge.mark("a transaction of the dead was rolled back", holder.process.is_dead)
                server.judge.mark("a transaction that hung was ended", not holder.process.is_dead)
                holder.is_over = True
                del server.holders[shard]
                continue
            server.judge.mark("a leader waited for another's transaction")
            if loop.time() > until:
                raise ArchiveError("conflict", "the fence is held by another")
            await asyncio.sleep(0.01)
        mine = server.holders[shard] = _Transaction(self._process, loop.time())
        try:
            if server.fences.get(shard, 0) > term:
                server.judge.mark("a leader that was replaced was fenced off")
                raise Fenced(shard)
            await self._trip()
            mine.heard_s = loop.time()
            await self._trip()
            if mine.is_over:
                raise ArchiveError("timeout", "the transaction was ended")
            server.fences[shard] = term
            yield
        finally:
            if not mine.is_over:
                mine.is_over = True
                del server.holders[shard]
        if server.random.random() < server.lost_share:
            server.judge.mark("the answer to a commit of the archive was lost")
            raise ArchiveError("unreachable", "the connection was lost")

    async def write(self, shard: int, term: int, messages: list[ArchivedMessage], contexts: list[ArchivedContext]) -> None:
        async with self._transaction(shard, term):
            if behind := self._server.less_than(contexts):
                self._server.judge.mark("the archive had less than was believed")
                raise Behind(behind)
            self._server.put(messages, contexts)

    async def write_policies(self, shard: int, term: int, policies: list[tuple[str, int, bytes]]) -> None:
        async with self._transaction(shard, term):
            self._server.policies.update({name: data for name, _, data in policies})

    async def erase(self, shard: int, term: int, contexts: list[Key]) -> None:
        async with self._transaction(shard, term):
            self._server.erase(contexts)

    async def read(
        self, context_id: str, incarnation: int, first: int, last: int, *, bytes_max: int, descending: bool = False
    ) -> list[Restored]:
        await self._trip()
        rows = self._server.messages.get((context_id, incarnation), {})
        found: list[Restored] = []
        size = 0
        for seq in range(last, first - 1, -1) if descending else range(first, last + 1):
            if seq in rows and size < bytes_max:
                found.append(Restored(seq, rows[seq].raw, message_data(rows[seq].node_data).info))
                size += len(rows[seq].raw)
        self._server.judge.mark("trimmed messages were read from the archive", bool(found))
        return found
