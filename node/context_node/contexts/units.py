"""Units and turns: what belongs together in a window, and what may leave it first.

Knows SEMANTICS.md "Pairs, units, turns". Works on a list of items and keeps nothing. Invariants: the units partition the items, and the
calls that `link` finds open are those that joining the same items one by one leaves open.
"""

from collections.abc import Sequence

import msgspec

from context_node.contexts.items import LIVE, MARKER, SUMMARY, Item
from context_node.contexts.parts import CALL, CALL_AND_RESULT, RESULT, Mark


class Bond(msgspec.Struct, eq=False):
    """What a unit that may still grow costs, shared by all that can make it grow: its tokens and items, and whether it is
    head. `into` is the bond that took this one in."""

    tokens: int
    count: int
    head: bool
    into: "Bond | None" = None

    def root(self) -> "Bond":
        """The bond that stands for the whole unit now."""
        bond = self
        while bond.into is not None:
            if bond.into.into is not None:
                bond.into = bond.into.into
            bond = bond.into
        return bond


class OpenCall(msgspec.Struct, eq=False):
    """A call without a result: the item and the position of the part that hold it, its number among the calls in the order of
    the window, its unit, and the marker that stands in for its result once it stopped waiting."""

    item: Item
    call_id: str
    part: int
    number: int
    bond: Bond
    marker: Item | None = None


OpenCalls = dict[str, list[OpenCall]]
"""By call id the calls without a result, oldest first. Those without a marker are newer than those with one."""


def take_answered(mark: Mark, open_calls: OpenCalls, kind_of_item: int) -> OpenCall | None:
    """The call that a part answers, taken out of `open_calls`: the latest of its id. None if it answers none.

    A UI part that has not ended goes on with a call that still waits; one that waits no more it leaves alone, since it
    brings no result that could take the marker's place. So does a part of a summary: that stands as it was given.
    """
    kind = mark.kind
    if kind != RESULT and kind != CALL_AND_RESULT:
        return None
    calls = open_calls.get(mark.call_id)
    if not calls:
        return None
    if calls[-1].marker is not None and (kind_of_item != LIVE or (kind == CALL_AND_RESULT and not mark.ended)):
        return None
    call = calls.pop()
    if not calls:
        del open_calls[mark.call_id]
    return call


def take_waiting(call_id: str, open_calls: OpenCalls) -> OpenCall | None:
    """The latest call of that id without a marker; it stays open. None if there is none."""
    for call in reversed(open_calls.get(call_id, ())):
        if call.marker is None:
            return call
    return None


def opens_call(mark: Mark) -> bool:
    """Whether the part is a call that wants a result."""
    return mark.kind == CALL or (mark.kind == CALL_AND_RESULT and not mark.ended)


class Unit(msgspec.Struct, eq=False):
    """A message with all that it is paired with. `places` are positions in the window, ascending; `turn` counts from 0;
    `floor` tells that it never leaves the window under the present budget."""

    places: list[int]
    tokens: int
    head: bool
    summary: bool
    waiting: bool = False
    turn: int = 0
    floor: bool = False


class Links(msgspec.Struct, eq=False):
    """The units in the order of their first item, which unit each position belongs to, the calls without a result, which
    position answers which (a marker too), how many calls there are, and by role the reasoning that still waits for a message."""

    units: list[Unit]
    unit_of: list[Unit]
    open_calls: OpenCalls
    pairs: list[tuple[int, int]]
    calls: int
    loose: dict[str, tuple[Item, Bond]]


def link(items: Sequence[Item]) -> Links:
    """Pair results with calls and reasoning with what it belongs to, in one pass over the items."""
    units: list[Unit] = []
    unit_of: list[Unit] = []
    places: dict[int, int] = {}
    reasoning: dict[str, int] = {}
    links = Links(units, unit_of, {}, [], 0, {})
    for place, item in enumerate(items):
        unit = Unit([place], item.tokens, item.is_head_alone, item.kind == SUMMARY)
        units.append(unit)
        unit_of.append(unit)
        if item.is_plain:
            if reasoning and item.role in reasoning:
                _merge(reasoning.pop(item.role), place, unit_of)
            continue
        places[id(item)] = place
        if item.kind == MARKER:
            call = take_waiting(item.call_id, links.open_calls)
            if call is not None:
                call.marker = item
                links.pairs.append((places[id(call.item)], place))
            continue
        if item.role in reasoning:
            _merge(reasoning.pop(item.role), place, unit_of)
        if item.is_reasoning_alone():
            reasoning[item.role] = place
        _pair(item, place, links, places)
    if places:
        _finish(items, links, places, reasoning)
    return links


_NO_BOND = Bond(0, 0, False)


def _pair(item: Item, place: int, links: Links, places: dict[int, int]) -> None:
    for part, mark in item.active_marks():
        call = take_answered(mark, links.open_calls, item.kind)
        if call is not None:
            links.pairs.append((places[id(call.item)], place))
        if opens_call(mark):
            opened = OpenCall(item, mark.call_id, part, links.calls, _NO_BOND)
            links.open_calls.setdefault(mark.call_id, []).append(opened)
            links.calls += 1


def _merge(left: int, right: int, unit_of: list[Unit]) -> None:
    """Make one unit of those at two positions; the smaller is emptied. The first of `places` is their least, the others are
    put in order at the end."""
    keep, gone = unit_of[left], unit_of[right]
    if keep is gone:
        return
    if len(gone.places) > len(keep.places):
        keep, gone = gone, keep
    for place in gone.places:
        unit_of[place] = keep
    joint = len(keep.places)
    keep.places.extend(gone.places)
    if keep.places[joint] < keep.places[0]:
        keep.places[0], keep.places[joint] = keep.places[joint], keep.places[0]
        keep.summary = gone.summary
    keep.tokens += gone.tokens
    keep.head = keep.head or gone.head
    gone.places = []


def _finish(items: Sequence[Item], links: Links, places: dict[int, int], reasoning: dict[str, int]) -> None:
    """Put the units together, and give what may still make one grow its bond."""
    unit_of = links.unit_of
    for caller, answer in links.pairs:
        _merge(caller, answer, unit_of)
    links.units = [unit for unit in links.units if unit.places]
    links.units.sort(key=lambda unit: unit.places[0])
    for unit in links.units:
        if len(unit.places) > 1:
            unit.places.sort()
    bonds: dict[int, Bond] = {}
    for calls in links.open_calls.values():
        for call in calls:
            unit = unit_of[places[id(call.item)]]
            call.bond = _bond(unit, bonds)
            if call.marker is None:
                unit.waiting = True
    links.loose = {role: (items[place], _bond(unit_of[place], bonds)) for role, place in reasoning.items()}


def _bond(unit: Unit, bonds: dict[int, Bond]) -> Bond:
    bond = bonds.get(id(unit))
    if bond is None:
        bond = bonds[id(unit)] = Bond(unit.tokens, len(unit.places), unit.head)
    return bond


def is_undisturbed(old: Sequence[Item], new: Sequence[Item]) -> bool:
    """Whether all that stands in both lists of items pairs in the new one as it did in the old one."""
    stays = {id(item) for item in old} & {id(item) for item in new}
    return _pairs(old, stays) == _pairs(new, stays)


def _pairs(items: Sequence[Item], among: set[int]) -> set[frozenset[int]]:
    pairs = {frozenset((id(items[caller]), id(items[answer]))) for caller, answer in link(items).pairs}
    return {pair for pair in pairs if pair & among}


class Analysis(msgspec.Struct, eq=False):
    """A window taken apart for eviction: its units with turns and floor set, which is the last turn, the unit of the last
    user message, and how many messages a `limit` counts: all but head and the last user message."""

    units: list[Unit]
    unit_of: list[Unit]
    last_turn: int
    last_user: Unit | None
    floor_tokens: int
    counted: int


def analyse(items: Sequence[Item], budget: int) -> Analysis:
    """Find turns and the floor. `budget` decides whether the last user message belongs to the floor."""
    links = link(items)
    last_turn, last_user = _number_turns(items, links.unit_of)
    newest = _newest_unit(items, links.unit_of)
    floor_tokens = counted = 0
    for unit in links.units:
        if unit.head or unit.waiting or unit is newest:
            unit.floor = True
            floor_tokens += unit.tokens
        if not unit.head:
            counted += len(unit.places)
    if last_user is not None and not last_user.head:
        counted -= 1
        if not last_user.floor and floor_tokens + last_user.tokens <= budget:
            last_user.floor = True
            floor_tokens += last_user.tokens
    return Analysis(links.units, links.unit_of, last_turn, last_user, floor_tokens, counted)


def _number_turns(items: Sequence[Item], unit_of: Sequence[Unit]) -> tuple[int, Unit | None]:
    """Number the units by turn. A turn starts at a user message that is no mere result and stands inside no earlier unit."""
    turn = 0
    reach = -1
    last_user: Unit | None = None
    for place, item in enumerate(items):
        unit = unit_of[place]
        if item.role == "user" and item.kind == LIVE and not item.is_results_alone():
            last_user = unit
            if reach < place and unit.places[0] == place:
                turn += 1
        if unit.places[0] == place:
            unit.turn = turn
            if unit.places[-1] > reach:
                reach = unit.places[-1]
    return turn, last_user


def _newest_unit(items: Sequence[Item], unit_of: Sequence[Unit]) -> Unit | None:
    """The unit of the newest item: by the last seq that it stands for, since a late result may stand before the end."""
    newest, newest_seq = -1, -1
    for place in range(len(items) - 1, -1, -1):
        item = items[place]
        if item.to_seq > newest_seq and item.kind != MARKER:
            newest, newest_seq = place, item.to_seq
    return unit_of[newest] if newest >= 0 else None
