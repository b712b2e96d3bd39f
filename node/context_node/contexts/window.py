"""The window of one context: an ordered list of items, their cost, and the calls that still want a result.

Knows how an item joins at the end (pairing, markers, orphans; SEMANTICS.md "Pairs, units, turns"). Knows neither budgets nor policies.
Invariants: every result in the window stands behind its call; `tokens` and `head_tokens` are the sums over the items; between rewrites the list
only grows at its end (W4). Joining costs the same however long the history is.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from context_node.contexts.items import LIVE, MARKER, Item, edited, marker_item
from context_node.contexts.parts import CALL, CALL_AND_RESULT, RESULT
from context_node.contexts.units import OpenCall, link


@dataclass(slots=True)
class Window:
    """Items in order, with their totals. `rewritten_seq` is the newest seq at the last rewrite (`stable_through_seq`); `forced` tells that the
    last rewrite evicted only for W1's sake. `head_*` sum up the head of the window (W3)."""

    items: list[Item] = field(default_factory=list)
    tokens: int = 0
    head_tokens: int = 0
    head_count: int = 0
    open_calls: dict[str, list[OpenCall]] = field(default_factory=dict)
    waiting: int = 0
    has_linked_head: bool = False
    has_loose_reasoning: bool = False
    rewritten_seq: int = 0
    forced: bool = False

    def join(self, item: Item) -> tuple[int, ...]:
        """Add an item at the end, or where its late results belong. Returns the seqs of the calls whose markers it took the place of: where
        there are any, the window changed before its end."""
        if item.is_plain:
            if self.waiting and _ends_waiting(item):
                self._place_markers()
            self._push(item)
            if self.has_loose_reasoning and (self.has_linked_head or item.is_head_alone):
                self.retotal()
            return ()
        return self._join_linked(item)

    def _push(self, item: Item) -> None:
        self.items.append(item)
        self.tokens += item.tokens
        if item.is_head_alone:
            self.head_tokens += item.tokens
            self.head_count += 1
            if not item.is_plain:
                self.has_linked_head = True

    def _join_linked(self, item: Item) -> tuple[int, ...]:
        """Join an item with calls, results or reasoning. Each result goes to the latest earlier call of its id that has none: in place if the
        call still waits, to its marker's place if it is late, nowhere if there is no such call."""
        late: list[tuple[int, OpenCall]] = []
        orphans: list[int] = []
        answered: list[int] = []
        for place, mark in item.active_marks():
            if mark.kind == RESULT or (mark.kind == CALL_AND_RESULT and mark.call_id in self.open_calls):
                call = self._take_call(mark.call_id)
                if call is None:
                    orphans.append(place)
                elif call.marker is not None:
                    late.append((place, call))
                else:
                    answered.append(place)
        rest = self._without(item, [*orphans, *(place for place, _ in late)])
        if rest is not None:
            if self.waiting and _ends_waiting(rest):
                self._place_markers()
            self._open_calls_of(rest)
            self._push(rest)
            self.has_loose_reasoning = self.has_loose_reasoning or rest.is_reasoning_alone()
        for place, call in late:
            self._answer_late(item, place, call)
        if self.has_linked_head or late:
            self.retotal()
        return tuple(call.item.seq for _, call in late)

    def _take_call(self, call_id: str) -> OpenCall | None:
        calls = self.open_calls.get(call_id)
        if not calls:
            return None
        call = calls.pop()
        if not calls:
            del self.open_calls[call_id]
        if call.marker is None:
            self.waiting -= 1
        return call

    def _without(self, item: Item, places: list[int]) -> Item | None:
        """The item without the parts at `places`; None if nothing is left."""
        if not places:
            return item
        left = [place for place, _ in item.active_marks() if place not in places]
        return edited(item, skipped=places) if left else None

    def _open_calls_of(self, item: Item) -> None:
        for _, mark in item.active_marks():
            if mark.kind == CALL or (mark.kind == CALL_AND_RESULT and not mark.ended):
                self.open_calls.setdefault(mark.call_id, []).append(OpenCall(item, mark.call_id))
                self.waiting += 1

    def _place_markers(self) -> None:
        """Give every waiting call a marker at the end of the window, in the order of the calls."""
        waiting = [call for calls in self.open_calls.values() for call in calls if call.marker is None]
        places = {id(item): place for place, item in enumerate(self.items)}
        # Equal ids pair latest first, so that reading the window from its start finds the same pairs.
        waiting.sort(key=lambda call: places[id(call.item)])
        by_id: dict[str, list[OpenCall]] = {}
        for call in waiting:
            by_id.setdefault(call.call_id, []).append(call)
        for call in waiting:
            owner = by_id[call.call_id].pop()
            owner.marker = marker_item(owner.item.seq, owner.call_id)
            self._push(owner.marker)
        self.waiting = 0

    def _answer_late(self, item: Item, place: int, call: OpenCall) -> None:
        others = [other for other, _ in item.active_marks() if other != place]
        result = edited(item, skipped=others)
        position = next(index for index, other in enumerate(self.items) if other is call.marker)
        self.items[position] = result

    def retotal(self) -> None:
        """Sum up the totals and find the open calls anew, after items changed in the middle."""
        self.tokens = sum(item.tokens for item in self.items)
        links = link(self.items)
        head = [unit for unit in links.units if unit.head]
        self.head_tokens = sum(unit.tokens for unit in head)
        self.head_count = sum(len(unit.places) for unit in head)
        self.has_linked_head = any(not self.items[place].is_plain for unit in head for place in unit.places)
        self.has_loose_reasoning = any(not item.is_plain and item.is_reasoning_alone() for item in self.items)
        self.open_calls = links.open_calls
        self.waiting = sum(1 for calls in links.open_calls.values() for call in calls if call.marker is None)

    def replace_items(self, items: Iterable[Item]) -> None:
        """Put other items in place of all, as a rewrite does."""
        self.items = list(items)
        self.retotal()


def _ends_waiting(item: Item) -> bool:
    """Whether calls stop waiting when this item comes: it is neither result, call, reasoning alone nor system."""
    if item.role in ("system", "developer") or item.kind == MARKER:
        return False
    return not (item.has_results() or item.has_calls() or item.is_reasoning_alone())


def newest_seq(items: Iterable[Item]) -> int:
    """The newest seq that stands in the items, 0 if there is none."""
    return max((item.seq for item in items if item.kind == LIVE), default=0)
