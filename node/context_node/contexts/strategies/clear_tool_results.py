"""`clear_tool_results`, revision 1: put a short placeholder in place of old tool results.

The newest results, errors, excluded tools, pinned units and the floor keep theirs (a result in the newest unit has not been read by the
model yet). One pass; left out whole if it gains too little, because each rewrite costs the provider's prompt cache.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from context_node.contexts.items import LIVE, MARKER, Item, cost, edited
from context_node.contexts.parts import CALL, CALL_AND_RESULT, RESULT, Mark
from context_node.contexts.units import Analysis


@dataclass(frozen=True, slots=True)
class ClearToolResults:
    """`keep_last` counts results, newest first; `exclude_tools` are names of calls; `clear_at_least` is in tokens."""

    keep_last: int
    exclude_tools: frozenset[str]
    clear_at_least: int

    def __call__(self, items: Sequence[Item], analysis: Analysis) -> list[Item] | None:
        """The items with old results cleared, or None if that would gain nothing or less than `clear_at_least`."""
        results = list(_results(items, analysis))
        older = results[: len(results) - self.keep_last] if self.keep_last else results
        chosen: dict[int, list[int]] = {}
        gain = 0
        for place, part, mark, name in older:
            saved = mark.tokens - cost(mark, True)
            if saved <= 0 or mark.error or name in self.exclude_tools or analysis.unit_of[place].floor:
                continue
            if part in items[place].cleared:
                continue
            chosen.setdefault(place, []).append(part)
            gain += saved
        if not chosen or gain < self.clear_at_least:
            return None
        return [edited(item, cleared=chosen[place]) if place in chosen else item for place, item in enumerate(items)]


def _results(items: Sequence[Item], analysis: Analysis) -> Iterator[tuple[int, int, Mark, str]]:
    """Every result in the live items: its place, its part's position, its mark and its call's name."""
    names: dict[tuple[int, str], str] = {}
    for place, item in enumerate(items):
        if item.is_plain or item.kind == MARKER:
            continue
        unit = id(analysis.unit_of[place])
        for part, mark in item.active_marks():
            if mark.kind == CALL:
                names[unit, mark.call_id] = mark.name
            elif item.kind == LIVE and mark.kind == RESULT:
                yield place, part, mark, names.get((unit, mark.call_id), "")
            elif item.kind == LIVE and mark.kind == CALL_AND_RESULT and mark.ended:
                yield place, part, mark, mark.name
