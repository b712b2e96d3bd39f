"""What applying commands changed and the database does not have yet.

Knows the rows to store. Knows nothing of databases: the runtime drains it. Invariant: whatever is here is a function of the log, and
storing it together with the applied index at which it was drained loses nothing and doubles nothing.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field

from context_node.contexts.context import Context, MessageRow

SEQ_BITS = 32
SEQ_MASK = (1 << SEQ_BITS) - 1


def rowid(ordinal: int, seq: int) -> int:
    """The key of a message in its shard: messages of one context stand together."""
    return ordinal << SEQ_BITS | seq


@dataclass(slots=True)
class Changes:
    """Rows by table. `messages`: (rowid, body, info); `rewrites`: (ordinal, version, record); `keys_below`: by ordinal, the
    lowest key number and time (ms) to keep; `purged`: ordinals; `contexts`: those whose record changed (their ids and keys
    are in `fresh_ids`, `fresh_keys`). `trimmed`: by ordinal, the ranges of seq whose messages go, before `messages` come."""

    messages: list[MessageRow] = field(default_factory=list)
    trimmed: dict[int, list[tuple[int, int]]] = field(default_factory=dict)
    rewrites: list[tuple[int, int, bytes]] = field(default_factory=list)
    keys_below: dict[int, tuple[int, int]] = field(default_factory=dict)
    purged: list[int] = field(default_factory=list)
    contexts: dict[str, Context] = field(default_factory=dict)
    policies: set[str] = field(default_factory=set)
    pending_bytes: int = 0

    def touch(self, context: Context) -> None:
        """The context's record changed."""
        self.contexts[context.id] = context

    def trim(self, gone: dict[int, list[tuple[int, int]]]) -> None:
        """Messages go, by ordinal the ranges of seq: those that are stored, and those that still wait here. A later trim of a context takes
        the place of an earlier one: it begins at the first message too, and what was brought back in between waits here."""
        self.trimmed.update(gone)
        self.messages = [row for row in self.messages if not _is_in(row[0] & SEQ_MASK, gone.get(row[0] >> SEQ_BITS))]

    def purge(self, context: Context) -> None:
        """The context is gone: nothing of it that waits here may be stored, and all that is stored goes."""
        self.contexts.pop(context.id, None)
        self.keys_below.pop(context.ordinal, None)
        self.trimmed.pop(context.ordinal, None)
        self.messages = [row for row in self.messages if row[0] >> SEQ_BITS != context.ordinal]
        self.rewrites = [row for row in self.rewrites if row[0] != context.ordinal]
        self.purged.append(context.ordinal)


def _is_in(seq: int, ranges: Sequence[tuple[int, int]] | None) -> bool:
    """Whether one of the ascending ranges has it."""
    if not ranges:
        return False
    place = bisect_right(ranges, (seq, SEQ_MASK))
    return place > 0 and seq <= ranges[place - 1][1]
