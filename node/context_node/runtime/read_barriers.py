"""Reads of one shard that wait until it has applied all that was acknowledged before they came (H5).

Each needs a read index from the group's leader: reads of one turn share a question, whose answer may come before the entries up to it are
known here to be committed. Questions and answers get lost with connections and leaders: a question is asked again after a while, and a read
that waits for long is refused. Knows questions, indexes and futures, time in ticks. Does not know what is read. Invariant: every future is
answered.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from context_node.contexts.refusals import Unavailable
from context_node.raft import Group

RETRY_TICKS = 10
"""A read index that was asked for so long ago is asked for again, under a new context: leaders change and forget."""

WAIT_TICKS_MAX = 50
"""A read that got no index for so long is refused: there is no leader, or none that a majority hears."""


@dataclass(slots=True)
class Reader:
    """A read that waits for an index, since the tick `since`."""

    answer: "asyncio.Future[None]"
    since: int


class ReadBarriers:
    """Readers are unasked for, then asked for under a question, then ahead: their index is known, and not applied here yet."""

    def __init__(self, group: Group) -> None:
        self._group = group
        self._unasked: list[Reader] = []
        self._count = 0
        self._asked: dict[bytes, tuple[int, list[Reader]]] = {}
        self._ahead: list[tuple[int, Reader]] = []

    def __bool__(self) -> bool:
        """Whether anybody waits."""
        return bool(self._unasked or self._asked or self._ahead)

    @property
    def has_unasked(self) -> bool:
        """Whether there is a question to be asked."""
        return bool(self._unasked)

    def add(self, answer: "asyncio.Future[None]", tick: int) -> None:
        """A read comes; `ask` asks for it."""
        self._unasked.append(Reader(answer, tick))

    def ask(self, boot: bytes, tick: int) -> None:
        """Ask Raft for one read index on behalf of all that came since the last. Contexts are never used twice (CONSENSUS.md §2)."""
        if not self._unasked:
            return
        self._count += 1
        context = b"%s%x.%d" % (boot, self._group.replica_id, self._count)
        if self._group.read_index(context):
            self._asked[context] = (tick, self._unasked)
            self._unasked = []
        # Otherwise nobody can answer now: the next tick asks again.

    def answer(self, states: Sequence[tuple[int, bytes]], applied: int) -> None:
        """Raft's answers: let readers go whose index is applied, the others as soon as it is."""
        for index, context in states:
            for reader in self._asked.pop(context, (0, []))[1]:
                self._ahead.append((index, reader))
        self.let_go(applied)

    def let_go(self, applied: int) -> None:
        """Entries up to `applied` are applied here."""
        if not self._ahead:
            return
        waiting = []
        for index, reader in self._ahead:
            if index > applied:
                waiting.append((index, reader))
            elif not reader.answer.done():
                reader.answer.set_result(None)
        self._ahead = waiting

    def tick(self, tick: int) -> None:
        """Have what was lost asked for again, and refuse those that have waited for too long."""
        if not self:
            return
        for context, (asked, readers) in list(self._asked.items()):
            if tick - asked >= RETRY_TICKS:
                del self._asked[context]
                self._unasked += readers
        self._unasked = [reader for reader in self._unasked if _is_in_time(reader, tick)]
        self._ahead = [each for each in self._ahead if _is_in_time(each[1], tick)]

    def fail(self, reason: str) -> None:
        """Nobody is answered here any more."""
        asked = [reader for _, waiting in self._asked.values() for reader in waiting]
        for reader in (*self._unasked, *asked, *(reader for _, reader in self._ahead)):
            if not reader.answer.done():
                reader.answer.set_exception(Unavailable(reason))
        self._unasked.clear()
        self._asked.clear()
        self._ahead.clear()


def _is_in_time(reader: Reader, tick: int) -> bool:
    """Whether a read may go on waiting; one that may not is refused."""
    if tick - reader.since < WAIT_TICKS_MAX:
        return True
    if not reader.answer.done():
        reader.answer.set_exception(Unavailable("This shard has no leader now; try again shortly.", retry_after_s=1))
    return False
