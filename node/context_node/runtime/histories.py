"""A context's history as one, wherever its messages are: the newest in memory, those behind them in the database, and what was trimmed in
the archive.

Knows where each message has to be read. Does not know Postgres: `Cold` reads it. Invariants: what was trimmed is always read from the
archive, also what the window keeps of it, so that the boundary is one number; a page that needs no archive never waits for it.
"""

from collections.abc import Iterator
from typing import Protocol

from context_node.contexts.commands import Restored
from context_node.contexts.context import Context
from context_node.contexts.refusals import ArchiveUnavailable, Unavailable
from context_node.runtime.replica import Replica

ROWS_PER_READ = 100
"""So many messages are read from a database at once: of the largest ones this is 100 MiB, and a page of 1,000 would be ten times that."""

NO_ARCHIVE = (
    "Messages {first} to {last} of this context are in the archive, and this node has none; start it with the archive's settings. "
    "Newer messages, the window and writes need no archive."
)


class Cold(Protocol):
    """What reads the archive for a node. Raises `ArchiveUnavailable`."""

    async def read(self, context_id: str, incarnation: int, first: int, last: int, *, descending: bool = False) -> list[Restored]:
        """Messages [first, last] from the end that the direction says, in that order: at least one, and not all if they are large."""
        ...

    def forget(self, context_id: str) -> None:
        """The context was purged: nothing of it is kept in memory."""
        ...

    async def close(self) -> None:
        """End its connections."""
        ...


class Histories:
    """Reads histories of contexts on one node. `cold` is set where there is an archive."""

    def __init__(self) -> None:
        self.cold: Cold | None = None

    async def read(
        self, replica: Replica, context: Context, first: int, last: int, *, bytes_max: int, descending: bool = False
    ) -> list[tuple[int, bytes]]:
        """Messages [first, last] as (seq, body), beginning at the end that the direction says, until they are `bytes_max` bytes or
        more; at least one. Fewer if the context is purged meanwhile, which the caller can tell from `replica.context`."""
        rows: list[tuple[int, bytes]] = []
        size = 0
        present: Context | None = context
        while first <= last and size < bytes_max and present is not None and present.ordinal == context.ordinal:
            cold_seq = present.cold_seq
            if (last if descending else first) <= cold_seq:
                low, high = (
                    (max(first, last - ROWS_PER_READ + 1), last) if descending else (first, min(cold_seq, last, first + ROWS_PER_READ - 1))
                )
                cold = await self._cold(replica, present, low, high, descending=descending)
                piece: Iterator[tuple[int, bytes]] = ((one.seq, one.body) for one in cold)
                present = replica.context(context.id)
            elif descending:
                piece = hot_history(replica, present, max(first, cold_seq + 1), last, descending=True)
            else:
                piece = hot_history(replica, present, first, last)
            known = len(rows)
            for seq, body in piece:
                rows.append((seq, body))
                size += len(body)
                if size >= bytes_max:
                    break
            if len(rows) == known:
                break
            first, last = (first, rows[-1][0] - 1) if descending else (rows[-1][0] + 1, last)
        return rows

    async def restored(self, replica: Replica, context: Context, first: int, last: int) -> list[Restored]:
        """Messages [first, last] with what a window needs of them; none if the context is purged meanwhile. All that is hot must have been
        stored (`Replica.stored`)."""
        found: list[Restored] = []
        while first <= last:
            present = replica.context(context.id)
            if present is None or present.ordinal != context.ordinal:
                return []
            cold_seq = min(present.head.trimmed_seq, last)
            if first > cold_seq:
                return found + [Restored(*row) for row in replica.store.messages(context.ordinal, [(first, last)])]
            high = min(cold_seq, first + ROWS_PER_READ - 1)
            cold = await self._cold(replica, present, first, high)
            if not cold:
                return []
            found += cold
            first = cold[-1].seq + 1
        return found

    async def _cold(self, replica: Replica, context: Context, first: int, last: int, *, descending: bool = False) -> list[Restored]:
        if self.cold is None:
            raise ArchiveUnavailable(NO_ARCHIVE.format(first=first, last=last), first_seq=first, last_seq=last)
        try:
            found = await self.cold.read(context.id, context.head.incarnation, first, last, descending=descending)
        except ArchiveUnavailable:
            if replica.failure is None and not _is_there(replica, context):
                return []
            raise
        if replica.failure is not None:
            # It was closed meanwhile: what else there is of the history cannot be read from it.
            raise Unavailable(replica.failure, retry_after_s=1)
        # What was read of a context that was purged meanwhile must not come under another of its id.
        return found if _is_there(replica, context) else []


def _is_there(replica: Replica, context: Context) -> bool:
    """Whether the context of this id is still the same one."""
    present = replica.context(context.id)
    return present is not None and present.ordinal == context.ordinal


def hot_rows(replica: Replica, context: Context, first: int, last: int) -> Iterator[Restored]:
    """Messages [first, last], none of which is cold, with what a window needs of them."""
    tail_from = context.tail_from
    stored_last = min(last, tail_from - 1)
    while first <= stored_last:
        high = min(first + ROWS_PER_READ - 1, stored_last)
        for row in replica.store.messages(context.ordinal, [(first, high)]):
            yield Restored(*row)
        first = high + 1
    for seq in range(first, last + 1):
        _, body, info = context.tail[seq - tail_from]
        yield Restored(seq, body, info)


def hot_history(replica: Replica, context: Context, first: int, last: int, *, descending: bool = False) -> Iterator[tuple[int, bytes]]:
    """Messages [first, last], none of which is cold: the stored ones from the database, the newest from memory."""
    if first > last:
        return
    tail_from = context.tail_from
    fresh = [(seq, context.tail[seq - tail_from][1]) for seq in range(max(first, tail_from), last + 1)]
    stored_last = min(last, tail_from - 1)
    if descending:
        yield from reversed(fresh)
    while first <= stored_last:
        count = min(ROWS_PER_READ, stored_last - first + 1)
        low = stored_last - count + 1 if descending else first
        yield from replica.store.page(context.ordinal, low, low + count - 1, count, descending)
        if descending:
            stored_last = low - 1
        else:
            first = low + count
    if not descending:
        yield from fresh
