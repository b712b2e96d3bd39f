"""`skip_parts`, revision 1: leave parts of some types out of older messages.

All that matches goes at once. Calls and results go in pairs or not at all, so a pair goes only where both its types match; reasoning
only from finished turns; floor and pinned units stay whole.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from context_node.contexts.items import LIVE, MARKER, Item, edited
from context_node.contexts.parts import CALL, CALL_AND_RESULT, REASONING, RESULT
from context_node.contexts.units import Analysis, Unit


@dataclass(frozen=True, slots=True)
class SkipParts:
    """`kinds` are prefixes of part types; `keep_last` counts the newest messages that stay whole, rounded out to units."""

    kinds: tuple[str, ...]
    keep_last: int

    def __call__(self, items: Sequence[Item], analysis: Analysis) -> list[Item] | None:
        """The items without the matching parts; a message with no part left is gone. None if nothing matches."""
        kept = self._kept_units(items, analysis)
        result: dict[int, Item | None] = {}
        for unit in analysis.units:
            if not (unit.floor or unit.summary or id(unit) in kept):
                self._skip_unit(items, unit, unit.turn < analysis.last_turn, result)
        if not result:
            return None
        return [new for place, item in enumerate(items) if (new := result.get(place, item)) is not None]

    def _kept_units(self, items: Sequence[Item], analysis: Analysis) -> set[int]:
        body = [place for place in range(len(items)) if not analysis.unit_of[place].head]
        newest = body[len(body) - self.keep_last :] if self.keep_last else []
        if self.keep_last >= len(body):
            newest = body
        return {id(analysis.unit_of[place]) for place in newest}

    def _skip_unit(self, items: Sequence[Item], unit: Unit, is_finished: bool, result: dict[int, Item | None]) -> None:
        pairs = self._skippable_calls(items, unit)
        for place in unit.places:
            item = items[place]
            if item.kind == MARKER:
                if pairs.get(item.call_id):
                    result[place] = None
                continue
            if item.kind != LIVE:
                continue
            active = list(item.active_marks())
            skip = []
            for part, mark in active:
                if not mark.type.startswith(self.kinds):
                    continue
                if mark.kind in (CALL, RESULT, CALL_AND_RESULT):
                    if pairs.get(mark.call_id):
                        skip.append(part)
                elif mark.kind != REASONING or is_finished:
                    skip.append(part)
            if skip:
                result[place] = None if len(skip) == len(active) else edited(item, skipped=skip)

    def _skippable_calls(self, items: Sequence[Item], unit: Unit) -> dict[str, bool]:
        """By call id, whether every call and result of that id in the unit matches. A marker goes with its call."""
        matches: dict[str, bool] = {}
        for place in unit.places:
            item = items[place]
            if item.kind == MARKER:
                continue
            for _, mark in item.active_marks():
                if mark.kind in (CALL, RESULT, CALL_AND_RESULT):
                    fits = item.kind == LIVE and mark.type.startswith(self.kinds)
                    matches[mark.call_id] = matches.get(mark.call_id, True) and fits
        return matches
