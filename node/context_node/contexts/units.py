"""Units and turns: what belongs together in a window, and what may leave it first.

Knows SEMANTICS.md "Pairs, units, turns". Works on a list of items and keeps nothing. Invariant: the units partition the items.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from context_node.contexts.items import LIVE, MARKER, SUMMARY, Item
from context_node.contexts.parts import CALL, CALL_AND_RESULT, RESULT


@dataclass(slots=True)
class OpenCall:
    """A call without a result: the item that holds it, and the marker that stands in for its result once it stopped waiting."""

    item: Item
    call_id: str
    marker: Item | None = None


@dataclass(slots=True)
class Unit:
    """A message with all that it is paired with. `places` are positions in the window, ascending; `turn` counts from 0; `floor` tells that
    it never leaves the window under the present budget."""

    places: list[int]
    tokens: int
    head: bool
    waiting: bool
    summary: bool
    turn: int = 0
    floor: bool = False


@dataclass(slots=True)
class Links:
    """The units in the order of their first item, which unit each position belongs to, and the calls without a result."""

    units: list[Unit]
    unit_of: list[Unit]
    open_calls: dict[str, list[OpenCall]] = field(default_factory=dict)


class _Groups:
    """Disjoint sets of positions (union by smallest member)."""

    def __init__(self, size: int) -> None:
        self.parent = list(range(size))

    def find(self, place: int) -> int:
        while self.parent[place] != place:
            self.parent[place] = self.parent[self.parent[place]]
            place = self.parent[place]
        return place

    def union(self, left: int, right: int) -> None:
        left, right = sorted((self.find(left), self.find(right)))
        self.parent[right] = left


def link(items: Sequence[Item]) -> Links:
    """Pair results with calls and reasoning with what it belongs to, in one pass over the items."""
    groups = _Groups(len(items))
    open_calls: dict[str, list[tuple[int, OpenCall]]] = {}
    reasoning: dict[str, int] = {}
    for place, item in enumerate(items):
        if item.role in reasoning and item.kind != MARKER:
            groups.union(reasoning.pop(item.role), place)
        if item.is_plain:
            continue
        if item.is_reasoning_alone():
            reasoning[item.role] = place
            continue
        _pair(item, place, groups, open_calls)
    units, unit_of = _collect(items, groups, open_calls)
    return Links(units, unit_of, {call_id: [call for _, call in calls] for call_id, calls in open_calls.items()})


def _pair(item: Item, place: int, groups: _Groups, open_calls: dict[str, list[tuple[int, OpenCall]]]) -> None:
    for _, mark in item.active_marks():
        if mark.kind in (RESULT, CALL_AND_RESULT):
            calls = open_calls.get(mark.call_id)
            if item.kind == MARKER and calls:
                unmarked = next((entry for entry in reversed(calls) if entry[1].marker is None), None)
                if unmarked is not None:
                    groups.union(unmarked[0], place)
                    unmarked[1].marker = item
                continue
            if calls:
                caller, _call = calls.pop()
                groups.union(caller, place)
                if not calls:
                    del open_calls[mark.call_id]
    for _, mark in item.active_marks():
        if mark.kind == CALL or (mark.kind == CALL_AND_RESULT and not mark.ended):
            open_calls.setdefault(mark.call_id, []).append((place, OpenCall(item, mark.call_id)))


def _collect(
    items: Sequence[Item], groups: _Groups, open_calls: dict[str, list[tuple[int, OpenCall]]]
) -> tuple[list[Unit], list[Unit]]:
    waiting = {groups.find(place) for calls in open_calls.values() for place, call in calls if call.marker is None}
    by_root: dict[int, Unit] = {}
    unit_of: list[Unit] = []
    for place, item in enumerate(items):
        root = groups.find(place)
        unit = by_root.get(root)
        if unit is None:
            # Roots are the smallest member, so units come in the order of their first item.
            unit = by_root[root] = Unit([], 0, False, root in waiting, item.kind == SUMMARY)
        unit.places.append(place)
        unit.tokens += item.tokens
        unit.head = unit.head or item.is_head_alone
        unit_of.append(unit)
    return list(by_root.values()), unit_of


@dataclass(slots=True)
class Analysis:
    """A window taken apart for eviction: its units with turns and floor set, and which is the last turn."""

    units: list[Unit]
    unit_of: list[Unit]
    last_turn: int
    last_user: Unit | None
    floor_tokens: int


def analyse(items: Sequence[Item], budget: int) -> Analysis:
    """Find turns and the floor. `budget` decides whether the last user message belongs to the floor."""
    links = link(items)
    last_turn, last_user = _number_turns(items, links)
    newest = _newest_unit(items, links)
    floor_tokens = 0
    for unit in links.units:
        unit.floor = unit.head or unit.waiting or unit is newest
        if unit.floor:
            floor_tokens += unit.tokens
    if last_user is not None and not last_user.floor and floor_tokens + last_user.tokens <= budget:
        last_user.floor = True
        floor_tokens += last_user.tokens
    return Analysis(links.units, links.unit_of, last_turn, last_user, floor_tokens)


def _number_turns(items: Sequence[Item], links: Links) -> tuple[int, Unit | None]:
    """Number the units by turn. A turn starts at a user message that is no mere result and stands inside no earlier unit."""
    turn = 0
    reach = -1
    last_user: Unit | None = None
    for place, item in enumerate(items):
        unit = links.unit_of[place]
        is_first = unit.places[0] == place
        if item.kind == LIVE and item.role == "user" and not item.is_results_alone():
            last_user = unit
            if is_first and reach < place:
                turn += 1
        if is_first:
            unit.turn = turn
            reach = max(reach, unit.places[-1])
    return turn, last_user


def _newest_unit(items: Sequence[Item], links: Links) -> Unit | None:
    """The unit of the newest message: by seq, since a late result may stand before the end. Without messages, the unit of the last item."""
    newest = max((place for place, item in enumerate(items) if item.kind == LIVE), key=lambda place: (items[place].seq, place), default=None)
    if newest is None:
        newest = len(items) - 1
    return links.unit_of[newest] if items else None
