"""What goes to the archive in one transaction: the next messages of a shard, its contexts as they are now, and how far each may be trimmed.

Knows heads of contexts and where their messages are. Does not know who copies, nor when. Invariants: a context's messages come in order of
seq, beginning behind its mark; a batch's marks say nothing that its rows do not hold; a trim is proposed for what the batch or an earlier
one has confirmed, never beyond (H6).
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from context_node.archive.rows import ArchivedContext, ArchivedMessage, context_row, message_row, told_of
from context_node.contexts.commands import Archived
from context_node.contexts.context import Context, Head, IdRow, archived_upto
from context_node.runtime.histories import hot_rows
from context_node.runtime.replica import Replica

TRIMMED_AT_ONCE = 2_000
"""So many messages leave the hot store with one batch at most: a setting that is new may concern millions, and all wait while they go."""


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """`messages` at most in one transaction, and no more once they are `bytes`: they are encoded in one go, for which the event loop and
    all who write wait (some 2 µs a message here). With `tail_keep` only so many of a context's newest messages stay hot."""

    messages: int = 1_000
    bytes: int = 8 << 20
    tail_keep: int | None = None

    def is_behind(self, head: Head, archive_epoch: int) -> bool:
        """Whether the archive lacks anything of a context, or the context has something to lose to it."""
        return (
            head.archive_epoch != archive_epoch
            or head.archived_seq < head.last_seq
            or head.archived_revision < head.revision
            or self.trim_to(head, head.archived_seq) > head.trimmed_seq
        )

    def trim_to(self, head: Head, archived_seq: int) -> int:
        """Up to where messages may leave the hot store once the archive has them up to `archived_seq`."""
        keep = self.tail_keep
        return head.trimmed_seq if keep is None else max(head.trimmed_seq, min(archived_seq, head.last_seq - keep))


@dataclass(slots=True)
class Batch:
    """Rows for the archive, and what is noted of them once they are there. `sizes`: bytes by context."""

    messages: list[ArchivedMessage] = field(default_factory=list)
    contexts: list[ArchivedContext] = field(default_factory=list)
    marks: list[Archived] = field(default_factory=list)
    sizes: dict[str, int] = field(default_factory=dict)
    bytes: int = 0
    trimmed: int = 0

    def is_full(self, limits: BatchLimits) -> bool:
        return (
            len(self.messages) >= limits.messages
            or len(self.contexts) >= limits.messages
            or self.bytes >= limits.bytes
            or self.trimmed >= TRIMMED_AT_ONCE
        )

    def add(self, replica: Replica, context: Context, limits: BatchLimits, held: int) -> None:
        """What comes next of a context of which the archive has messages up to `held`."""
        head = context.head
        last = min(head.last_seq, held + limits.messages - len(self.messages))
        copied = self._take(replica, context, held, last, limits.bytes)
        trim_to = min(limits.trim_to(head, copied), head.trimmed_seq + TRIMMED_AT_ONCE - self.trimmed)
        self.trimmed += trim_to - head.trimmed_seq
        self.contexts.append(context_row(context, copied, held))
        self.marks.append(Archived(context.id, head.incarnation, copied, head.revision, trim_to))

    def _take(self, replica: Replica, context: Context, held: int, last: int, bytes_max: int) -> int:
        """Add messages behind `held` up to `last`, or fewer if they are large; up to where they were added."""
        head = context.head
        copied, before = held, self.bytes
        taken = []
        for one in hot_rows(replica, context, held + 1, last):
            taken.append((one, told_of(one.body)))
            copied = one.seq
            self.bytes += len(one.body)
            if self.bytes >= bytes_max:
                break
        self.sizes[context.id] = self.bytes - before
        remembered = _remembered(replica, context, [told.id for _, told in taken if told.id is not None])
        self.messages += [
            message_row(
                context.id, head.incarnation, one.seq, one.body, one.info, told, remembered.get(told.id) if told.id is not None else None
            )
            for one, told in taken
        ]
        return copied


async def next_batch(
    replica: Replica, waiting: Iterable[str], limits: BatchLimits, again: Mapping[str, int], on_idle: Callable[[str], None]
) -> Batch:
    """The next batch of a shard, of the contexts that wait in this order. `again`: of contexts that are copied again, up to where that was
    done. `on_idle` is told at once of a context that lacks nothing. Each context is taken as it is at one moment, and between two of them
    others may write."""
    batch = Batch()
    for context_id in waiting:
        if batch.is_full(limits):
            break
        # Asked anew each time: others were let in meanwhile.
        context, epoch = replica.context(context_id), replica.machine.archive_epoch
        if context is None or not (context_id in again or limits.is_behind(context.head, epoch)):
            on_idle(context_id)
        else:
            batch.add(replica, context, limits, again.get(context_id, archived_upto(context.head, epoch)))
            await asyncio.sleep(0)
    return batch


def _remembered(replica: Replica, context: Context, ids: list[str]) -> dict[str, IdRow]:
    """What message ids remember."""
    fresh = context.fresh_ids
    stored = replica.store.message_ids(context.ordinal, [one for one in ids if one not in fresh])
    return {**{row[0]: IdRow(*row[1:]) for row in stored}, **{one: fresh[one] for one in ids if one in fresh}}
