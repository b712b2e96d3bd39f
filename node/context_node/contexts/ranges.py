"""Which ranges of a window a hand may replace, and which range is nearest to one that it may not.

Knows SEMANTICS.md "Rewriting by hand". Invariants: a range that passes `check` splits no unit and no summary and holds no
waiting call; the range that a refusal names passes. A look costs a bounded number of passes over the window.
"""

from collections.abc import Sequence

import msgspec

from context_node.contexts.items import Item
from context_node.contexts.refusals import Unprocessable
from context_node.contexts.units import Links, Unit

_ROUNDS_MAX = 64
"""So often a range is grown or shrunk in search of one that works."""

_EDGES_MAX = 12
"""So many places to cut a range at are looked at."""

Range = tuple[int, int]


class _Span(msgspec.Struct, eq=False):
    """The seqs that a body unit stands for: all within `[first, last]`, each of `members` a stretch of them."""

    first: int
    last: int
    members: list[Range]
    unit: Unit

    def is_inside(self, first: int, last: int) -> bool:
        return first <= self.first and self.last <= last

    def is_split(self, first: int, last: int) -> bool:
        """Whether some of it is in the range and some is not."""
        if self.is_inside(first, last) or self.first > last or self.last < first:
            return False
        return any(low <= last and high >= first for low, high in self.members)


class Spans(msgspec.Struct, eq=False):
    """The body units of a window (all but head: that stays whatever is replaced) as spans of seqs; `last_seq` is the newest
    of the history."""

    spans: list[_Span]
    last_seq: int

    @classmethod
    def of(cls, items: Sequence[Item], links: Links, last_seq: int) -> "Spans":
        spans = []
        for unit in links.units:
            if not unit.head:
                members = [(items[place].seq, items[place].to_seq) for place in unit.places]
                first, last = min(low for low, _ in members), max(high for _, high in members)
                spans.append(_Span(first, last, members, unit))
        return cls(spans, last_seq)

    def places_inside(self, first: int, last: int) -> set[int]:
        """The positions of the items that a replacement of the range takes the place of."""
        return {place for span in self.spans if span.is_inside(first, last) for place in span.unit.places}

    def check_bounds(self, first: int, last: int) -> None:
        """The range must lie in the history. Raises `Unprocessable` with the nearest range that works."""
        if 1 <= first <= last <= self.last_seq:
            return
        low, high = (min(max(1, seq), self.last_seq) for seq in sorted((first, last)))
        nearest = self._nearest(low, high)
        raise Unprocessable(
            f"covers must be a range within the history, from 1 to {self.last_seq}, first not after last;"
            f" got [{first}, {last}]{_hint(nearest)}.",
            field="covers",
            nearest=nearest,
        )

    def check(self, first: int, last: int) -> None:
        """The range must split nothing and hold no waiting call. Raises `Unprocessable` with the nearest range that works."""
        problem = self._problem(first, last)
        if problem is not None:
            nearest = self._nearest(first, last)
            raise Unprocessable(f"covers [{first}, {last}] {problem}{_hint(nearest)}.", field="covers", nearest=nearest)

    def check_through(self, through: int) -> None:
        """What is not newer than `through` must be whole units. Raises `Unprocessable` with the nearest seq that works."""
        if not 0 <= through <= self.last_seq:
            raise Unprocessable(
                f"through_seq must be from 0 to {self.last_seq}, not {through}.",
                field="through_seq",
                nearest=self._nearest_through(min(max(through, 0), self.last_seq)),
            )
        if any(span.is_split(1, through) for span in self.spans):
            nearest = self._nearest_through(through)
            raise Unprocessable(
                f"through_seq {through} would split messages that belong together; use {nearest}.",
                field="through_seq",
                nearest=nearest,
            )

    def _problem(self, first: int, last: int) -> str | None:
        for span in self.spans:
            if span.is_split(first, last):
                is_summary = span.unit.summary and len(span.members) == 1
                what = "an earlier summary" if is_summary else "messages that belong together"
                return f"would split {what}: [{span.first}, {span.last}]"
            if span.unit.waiting and span.is_inside(first, last):
                return f"holds a call that still waits for its result: [{span.first}, {span.last}]"
        return None

    def _nearest(self, first: int, last: int) -> list[int] | None:
        """The range that works with the fewest seqs added or taken away: grown or shrunk at its ends, or else what is left of
        it between units that must stay."""
        found = [
            self._adjusted(first, last, grow_left=grow_left, grow_right=grow_right)
            for grow_left in (True, False)
            for grow_right in (True, False)
        ]
        working = [each for each in found if self._works(*each)] or [each for each in self._pieces(first, last) if self._works(*each)]
        if not working:
            return None
        # Of two that are as near the smaller: it can only leave in the window what a summary may hold already.
        low, high = min(working, key=lambda each: (abs(each[0] - first) + abs(each[1] - last), each[1] - each[0], each))
        return [low, high]

    def _works(self, first: int, last: int) -> bool:
        return 1 <= first <= last <= self.last_seq and self._problem(first, last) is None

    def _pieces(self, first: int, last: int) -> list[Range]:
        edges = {first, last + 1}
        for span in self.spans:
            for low, high in span.members:
                edges.update(edge for edge in (low, high + 1) if first < edge <= last)
            if len(edges) > _EDGES_MAX:
                break
        return [(low, high - 1) for low in edges for high in edges if low < high]

    def _adjusted(self, first: int, last: int, *, grow_left: bool, grow_right: bool) -> Range:
        """Move the ends until nothing is split: outwards to take units in, or inwards to leave them (always, if they wait)."""
        low, high = first, last
        for _ in range(_ROUNDS_MAX):
            before = (low, high)
            for span in self.spans:
                waits = span.unit.waiting
                if low > high or not (span.is_split(low, high) or (waits and span.is_inside(low, high))):
                    continue
                if span.first < low and span.last > high:
                    # Some of it is before the range, some inside, some after.
                    inner = [member for member in span.members if member[0] <= high and member[1] >= low]
                    if grow_left and grow_right and not waits:
                        low, high = span.first, span.last
                    elif grow_left:
                        high = min(start for start, _ in inner) - 1
                    else:
                        low = max(end for _, end in inner) + 1
                elif span.first < low:
                    low = span.first if grow_left and not waits else span.last + 1
                elif span.last > high:
                    high = span.last if grow_right and not waits else span.first - 1
                elif span.first - low < high - span.last:
                    low = span.last + 1
                else:
                    high = span.first - 1
            if (low, high) == before:
                break
        return low, high

    def _nearest_through(self, through: int) -> int:
        """The nearest seq at which no unit is split. 0 always works."""
        low = high = through
        for _ in range(_ROUNDS_MAX):
            touched = [span for span in self.spans if span.is_split(1, low)]
            if not touched:
                break
            low = min(span.first for span in touched) - 1
        else:
            low = 0
        for _ in range(_ROUNDS_MAX):
            touched = [span for span in self.spans if span.is_split(1, high)]
            if not touched:
                return low if through - low <= high - through else high
            high = max(span.last for span in touched)
        return low


def _hint(nearest: list[int] | None) -> str:
    return f"; the nearest range that works is [{nearest[0]}, {nearest[1]}]" if nearest else "; no range near it works"
