"""What of one shard is not archived yet: by context since when, how many messages, how many bytes.

Knows how it is counted while messages come, and found again by a leader that was none before. Does not know Postgres, nor what is copied
when. Invariants: counting a message costs a look-up and two additions; totals are kept, not summed; what a new leader finds depends on the
log alone, so that the age of the oldest message survives a change of leader. Bytes of a long backlog that was found, not counted, are
estimated from its first messages: to read all of it would cost the disk as much as to copy it.
"""

from collections.abc import Callable, Iterator, Sequence
from datetime import datetime

import msgspec

from context_node.contexts.context import Context, Head, archived_upto, read_head
from context_node.runtime.histories import hot_history
from context_node.runtime.replica import Replica
from context_node.runtime.state_rows import ContextRow

SAMPLED = 4
"""So many of a context's first messages that wait are read to tell the size of them all."""


NOTHING = (0, 0, 0)


class _Inserted(msgspec.Struct, frozen=True, gc=False):
    inserted_at: datetime


_inserted = msgspec.json.Decoder(_Inserted)


class Backlog:
    """Iterating gives the ids of contexts, those first whose turn is next. `messages` and `bytes` are totals. `is_behind` tells by its head
    whether a context waits, be it without a message: its configuration may be new, or it may have messages to lose."""

    def __init__(self, now_ms: Callable[[], int], is_behind: Callable[[Head, int], bool]) -> None:
        self.messages = self.bytes = 0
        self._now_ms = now_ms
        self._is_behind = is_behind
        self._waiting: dict[str, tuple[int, int, int]] = {}
        """By context: when its oldest message came (Unix milliseconds), messages, bytes."""

    def __iter__(self) -> Iterator[str]:
        return iter(self._waiting)

    def came(self, context_id: str, bodies: Sequence[bytes]) -> None:
        """Messages were appended just now, or without any something else of the context has changed."""
        since, messages, size = self._waiting.get(context_id, NOTHING)
        if not messages:
            since = self._now_ms()
        count, more = len(bodies), sum(map(len, bodies))
        self._waiting[context_id] = since, messages + count, size + more
        self.messages += count
        self.bytes += more

    def drop(self, context_id: str) -> None:
        """Nothing of a context waits any more."""
        _, messages, size = self._waiting.pop(context_id, (0, 0, 0))
        self.messages -= messages
        self.bytes -= size

    @property
    def oldest_ms(self) -> int | None:
        """When the oldest message came that waits; None if none does. Looks at every context that waits."""
        return min((since for since, messages, _ in self._waiting.values() if messages), default=None)

    def copied(self, replica: Replica, context: Context | None, context_id: str, size: int) -> None:
        """So many bytes of a context were archived, and its mark says so; more may have come meanwhile. It goes to the end of the queue,
        so that a long history holds up no other."""
        _, _, before = self._waiting.get(context_id, (0, 0, 0))
        self.drop(context_id)
        if context is None or not self._is_behind(context.head, replica.machine.archive_epoch):
            return
        archived = archived_upto(context.head, replica.machine.archive_epoch)
        count = context.head.last_seq - archived
        first = list(hot_history(replica, context, archived + 1, archived + min(1, count)))
        self._put(context_id, first, count, max(before - size, sum(len(body) for _, body in first)))

    def find(self, replica: Replica, context: Context) -> None:
        """A context that is in memory, as a new leader finds it."""
        head = context.head
        if self._is_behind(head, replica.machine.archive_epoch):
            archived = archived_upto(head, replica.machine.archive_epoch)
            first = list(hot_history(replica, context, archived + 1, min(head.last_seq, archived + SAMPLED)))
            self._estimate(context.id, first, head.last_seq - archived)

    def find_stored(self, replica: Replica, row: ContextRow) -> None:
        """A context that is on disk only."""
        head = read_head(row.record)
        if self._is_behind(head, replica.machine.archive_epoch):
            archived = archived_upto(head, replica.machine.archive_epoch)
            first = replica.store.page(row.ordinal, archived + 1, head.last_seq, SAMPLED)
            self._estimate(row.id, first, head.last_seq - archived)

    def _estimate(self, context_id: str, first: list[tuple[int, bytes]], count: int) -> None:
        self.drop(context_id)
        self._put(context_id, first, count, sum(len(body) for _, body in first) * count // max(1, len(first)))

    def _put(self, context_id: str, first: list[tuple[int, bytes]], count: int, size: int) -> None:
        since = _inserted_ms(first[0][1]) if first else self._now_ms()
        self._waiting[context_id] = since, count, size
        self.messages += count
        self.bytes += size


def _inserted_ms(body: bytes) -> int:
    return round(_inserted.decode(body).inserted_at.timestamp() * 1000)
