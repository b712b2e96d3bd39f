"""Which batch of the log holds which entries of which shard, in memory and compactly.

Knows: for every record that is still needed its batch, its slot in the batch, its live range of entry indexes and its
size; how many needed records each batch holds. Does not know: SQLite, terms, what a record's bytes mean.

Invariants
- A shard's spans are in the order of their batches, and the live ranges of spans with entries ascend without a gap.
- A batch is dead, and may be deleted, exactly when none of its records is needed.
- About 33 bytes a record and 2 bytes a batch, so that a hundred thousand small batches cost a few MiB.
"""

from array import array
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

_COMPACT_AFTER: Final = 1024

NOTHING: Final[Sequence[int]] = ()

Bounds = tuple[int, int, bool]
"""(first index, last index, has a hard state) of a record; 0, 0 without entries."""


@dataclass(frozen=True, slots=True)
class Span:
    """Live entries [first, last] of a shard in slot `slot` of batch `batch`."""

    batch: int
    slot: int
    first: int
    last: int


def check_follows(last_index: int, bounds: Bounds) -> int:
    """The last index after a record with `bounds` follows entry `last_index`.

    Raises `ValueError` if the record is empty or would leave indexes out.
    """
    first, last, has_hard_state = bounds
    if not last:
        if not has_hard_state:
            raise ValueError("a record holds neither entries nor a hard state")
        return last_index
    if not 0 < first <= last or first > last_index + 1:
        raise ValueError(f"entries {first} to {last} do not follow entry {last_index}")
    return last


class BatchCounts:
    """How many needed records each batch holds, from the oldest needed batch on."""

    def __init__(self) -> None:
        self._base = 0
        self._counts = array("H")
        self._oldest = 0

    def add(self, batch: int, records: int = 1) -> None:
        """So many more needed records in `batch`, which is not older than the newest seen before."""
        if not self._counts:
            self._base = self._oldest = batch
        missing = batch + 1 - self._base - len(self._counts)
        if missing > 0:
            self._counts.extend([0] * missing)
        self._counts[batch - self._base] += records

    def release(self, batch: int) -> bool:
        """One needed record fewer in `batch`; True if that was the last one."""
        place = batch - self._base
        self._counts[place] -= 1
        return self._counts[place] == 0

    def oldest(self) -> int | None:
        """The oldest batch that holds a needed record, None if there is none."""
        end = self._base + len(self._counts)
        while self._oldest < end and self._counts[self._oldest - self._base] == 0:
            self._oldest += 1
        gone = self._oldest - self._base
        if gone > _COMPACT_AFTER and gone * 2 > len(self._counts):
            del self._counts[:gone]
            self._base = self._oldest
        return self._oldest if self._oldest < end else None


class ShardSpans:
    """The needed records of one shard. Methods that end a need return the batches of those records, oldest first."""

    def __init__(self, last_index: int) -> None:
        self.last_index = last_index
        self.live_bytes = 0
        self._head = 0
        self._places = array("q")  # batch << 16 | slot << 1 | has hard state
        self._firsts = array("q")
        self._lasts = array("q")
        self._sizes = array("q")

    def __len__(self) -> int:
        return len(self._places) - self._head

    def append(self, batch: int, slot: int, bounds: Bounds, size: int) -> Sequence[int]:
        """A record of `size` bytes in slot `slot` of `batch`; the caller has asked `check_follows` before.

        Entries from its first index on that came before are void (P5).
        """
        first, last, has_hard_state = bounds
        freed = self._cut_from(first) if last and first <= self.last_index else NOTHING
        if last:
            self.last_index = last
        self._places.append(batch << 16 | slot << 1 | has_hard_state)
        self._firsts.append(first)
        self._lasts.append(last)
        self._sizes.append(size)
        self.live_bytes += size
        return freed

    def truncate(self, index: int) -> list[int]:
        """Entries up to `index`, and every hard state so far, are no longer needed."""
        freed: list[int] = []
        head, end = self._head, len(self._places)
        while head < end and self._lasts[head] <= index:
            freed.append(self._places[head] >> 16)
            self.live_bytes -= self._sizes[head]
            head += 1
        self._head = head
        self.last_index = max(self.last_index, index)
        if head > _COMPACT_AFTER and head * 2 > end:
            for column in (self._places, self._firsts, self._lasts, self._sizes):
                del column[:head]
            self._head = 0
        return freed

    def batches(self) -> list[int]:
        """The batch of every needed record, oldest first; a batch stands there once per record."""
        return [place >> 16 for place in self._places[self._head :]]

    def oldest_batch(self) -> int | None:
        """The batch of the oldest needed record, None if no record is needed."""
        return self._places[self._head] >> 16 if len(self) else None

    def first_index(self) -> int | None:
        """The oldest entry that can still be read, None if there is none."""
        for at in range(self._head, len(self._places)):
            if self._lasts[at]:
                return self._firsts[at]
        return None

    def covering(self, first: int, last: int) -> Iterator[Span]:
        """The spans that hold entries of [first, last], ascending; their ranges are not clipped to it."""
        for at in range(self._find(first), len(self._places)):
            if not self._lasts[at]:
                continue
            if self._firsts[at] > last:
                return
            place = self._places[at]
            yield Span(place >> 16, (place & 0xFFFF) >> 1, self._firsts[at], self._lasts[at])

    def _cut_from(self, first: int) -> list[int]:
        """Void the entries from `first` on; a voided record that holds a hard state is still needed for that."""
        freed: list[int] = []
        kept: list[tuple[int, int, int, int]] = []
        while len(self) and (self._lasts[-1] >= first or not self._lasts[-1]):
            place, low, high, size = self._places.pop(), self._firsts.pop(), self._lasts.pop(), self._sizes.pop()
            if high and low < first:
                kept.append((place, low, first - 1, size))
                break
            if place & 1:
                kept.append((place, 0, 0, size))
            else:
                freed.append(place >> 16)
                self.live_bytes -= size
        for place, low, high, size in reversed(kept):
            self._places.append(place)
            self._firsts.append(low)
            self._lasts.append(high)
            self._sizes.append(size)
        freed.reverse()
        return freed

    def _find(self, index: int) -> int:
        """The first span whose entries reach `index`: a binary search that steps over spans without entries."""

        def reaches(at: int) -> int:
            while at > self._head and not self._lasts[at]:
                at -= 1
            return self._lasts[at]

        return bisect_left(range(len(self._places)), index, lo=self._head, key=reaches)
