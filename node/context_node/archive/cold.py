"""Reads of what was trimmed, from Postgres, with a small cache.

Knows `Postgres` and how `Histories` asks. Invariants: a read that cannot be answered says so within seconds and holds up nothing else;
what is archived never changes, so the cache is never wrong, and nothing of a purged context stays in it; a hole in the archive is an
error, never a shorter history.
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol

from context_node.archive.errors import ArchiveError
from context_node.contexts.commands import Restored, RestoredMessage
from context_node.contexts.refusals import ArchiveUnavailable, Unprocessable
from context_node.contexts.restore_checks import check_messages

logger = logging.getLogger("contextstore.archive")

CACHE_BYTES = 16 << 20
READ_BYTES = 4 << 20
"""So much at once: a page of the largest messages is read in several steps."""

WAITING_MAX = 64
"""So many readers wait for Postgres at most: while it does not answer they would fill the node's places for requests, and writes would
find none."""

RETRY_S = 1.0
"""After a failure readers are refused for so long without another try: each would wait for a timeout."""


class Readable(Protocol):
    """What of `postgres.Postgres` is used."""

    async def open(self, cluster_id: str, *, only_reads: bool = False) -> str: ...
    async def close(self) -> None: ...
    async def read(
        self, context_id: str, incarnation: int, first: int, last: int, *, bytes_max: int, descending: bool = False
    ) -> list[Restored]: ...


class ColdReads:
    """Implements `Cold`. `cluster_id` is asked when it connects."""

    def __init__(self, archive: Readable, cluster_id: Callable[[], str], *, cache_bytes: int = CACHE_BYTES) -> None:
        self.reads = 0
        self.messages = 0
        self.cached_messages = 0
        self.failures: dict[str, int] = {}
        self._archive, self._cluster_id = archive, cluster_id
        self._cache = Cache(cache_bytes)
        self._loop = asyncio.get_running_loop()
        self._opening = asyncio.Lock()
        self._waiting = 0
        self._is_open = False
        self._refusal = ""
        self._refused_until = 0.0
        self._purges = 0

    async def read(self, context_id: str, incarnation: int, first: int, last: int, *, descending: bool = False) -> list[Restored]:
        """Messages [first, last] from the end that the direction says, in that order: at least one. Raises `ArchiveUnavailable`."""
        kept = self._cache.get(context_id, incarnation, first, last, descending=descending)
        if kept:
            self.cached_messages += len(kept)
            return kept
        purges = self._purges
        try:
            found = await self._ask(context_id, incarnation, first, last, descending)
        except ArchiveError as error:
            self.failures[error.cause] = self.failures.get(error.cause, 0) + 1
            raise ArchiveUnavailable(
                f"Messages {first} to {last} of this context are in the archive, which cannot be read now ({error.cause}). Newer messages, "
                "the window and writes go on; try again later.",
                first_seq=first,
                last_seq=last,
                cause=error.cause,
                retry_after_s=5,
            ) from error
        self.reads += 1
        self.messages += len(found)
        if self._purges == purges:
            self._cache.put(context_id, incarnation, found)
        return found

    async def _ask(self, context_id: str, incarnation: int, first: int, last: int, descending: bool) -> list[Restored]:
        self._check_not_refused()
        if self._waiting >= WAITING_MAX:
            raise ArchiveError("busy", "too many reads wait for it")
        purges = self._purges
        self._waiting += 1
        try:
            await self._opened()
            found = await self._archive.read(context_id, incarnation, first, last, bytes_max=READ_BYTES, descending=descending)
        except ArchiveError as error:
            # What was refused without another try is no news, and does not put off the next.
            if not isinstance(error, _Refused):
                if self._is_open or self._refusal != error.cause:
                    logger.warning("the archive cannot be read: %s", error)
                self._is_open, self._refusal, self._refused_until = False, error.cause, self._loop.time() + RETRY_S
            raise
        finally:
            self._waiting -= 1
        self._refusal = ""
        problem = _problem(found, range(last, first - 1, -1) if descending else range(first, last + 1))
        if problem:
            if self._purges == purges:
                # Else it may be gone for good reason: whoever asked finds out.
                logger.error("messages of %s between %d and %d: %s", context_id, first, last, problem[1])
            raise ArchiveError(*problem)
        return found

    def _check_not_refused(self) -> None:
        if self._loop.time() < self._refused_until:
            raise _Refused(self._refusal, "it was asked a moment ago")

    async def _opened(self) -> None:
        async with self._opening:
            # Whoever waited here while another tried in vain does not try as well.
            self._check_not_refused()
            if not self._is_open:
                await self._archive.open(self._cluster_id(), only_reads=True)
                self._is_open = True

    def forget(self, context_id: str) -> None:
        """The context was purged: nothing of it stays here, nor does what is being read now."""
        self._purges += 1
        self._cache.forget(context_id)

    async def close(self) -> None:
        """End the connections."""
        await self._archive.close()


class _Refused(ArchiveError):
    """Refused because somebody else's try has just failed."""


def _problem(found: list[Restored], wanted: range) -> tuple[str, str] | None:
    """What keeps messages of the archive from being shown, as a cause and a sentence. Whoever can write to Postgres can write anything, and
    what is read from there may go into a window, and so into the log."""
    if not found or [one.seq for one in found] != list(wanted[: len(found)]):
        return "hole", "the archive lacks messages that it had confirmed"
    for one in found:
        try:
            check_messages(one.seq, [RestoredMessage(one.body, one.info)])
        except Unprocessable:
            return "damaged", f"message {one.seq} in the archive is not as it was written there"
    return None


class Cache:
    """Messages by context, those of whole contexts forgotten first that were read longest ago. `bytes_max` of bodies are kept."""

    def __init__(self, bytes_max: int) -> None:
        self.bytes = 0
        self._bytes_max = bytes_max
        self._held: OrderedDict[str, tuple[int, dict[int, Restored]]] = OrderedDict()

    def get(self, context_id: str, incarnation: int, first: int, last: int, *, descending: bool) -> list[Restored]:
        """What is there without a gap from the end that the direction says."""
        held = self._held.get(context_id)
        if held is None or held[0] != incarnation:
            return []
        self._held.move_to_end(context_id)
        found: list[Restored] = []
        for seq in range(last, first - 1, -1) if descending else range(first, last + 1):
            one = held[1].get(seq)
            if one is None:
                break
            found.append(one)
        return found

    def put(self, context_id: str, incarnation: int, messages: list[Restored]) -> None:
        held = self._held.get(context_id)
        if held is None or held[0] != incarnation:
            self.forget(context_id)
            held = self._held[context_id] = (incarnation, {})
        self._held.move_to_end(context_id)
        for one in messages:
            if one.seq not in held[1]:
                held[1][one.seq] = one
                self.bytes += len(one.body)
        while self.bytes > self._bytes_max and self._held:
            self.forget(next(iter(self._held)))

    def forget(self, context_id: str) -> None:
        _, gone = self._held.pop(context_id, (0, {}))
        self.bytes -= sum(len(one.body) for one in gone.values())
