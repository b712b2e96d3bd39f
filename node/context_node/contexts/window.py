"""The window of one context: an ordered list of items, their cost, and the calls that still want a result.

Knows how an item joins at the end (pairing, markers, orphans; SEMANTICS.md "Pairs, units, turns"). Knows neither budgets nor policies.
Invariants: every result in the window stands behind its call; `tokens` and `head_tokens` are the sums over the items; all but the stable
mark follows from the items alone, so that a window read back is the window that was stored (W5); between rewrites the list only grows at
its end (W4). Joining costs the same however long the history is.
"""

from collections.abc import Iterable, Set
from dataclasses import dataclass, field

from context_node.contexts.items import HEAD_ROLES, LIVE, MARKER, Item, edited, marker_item
from context_node.contexts.parts import RESULT
from context_node.contexts.units import Bond, OpenCall, OpenCalls, link, opens_call, take_answered, take_waiting


@dataclass(slots=True)
class Window:
    """Items in order, with their totals. `rewritten_seq` is the newest seq at the last rewrite (`stable_through_seq`) and
    `stable_count` how many items stood there then; `forced` tells that the last rewrite evicted only for W1's sake. `head_*`
    sum up the head of the window (W3); they are right after `settle`. `loose` is by role the reasoning that waits for its
    message; messages of reasoning alone have (or had) `reasoning_roles`. `size_bytes` is that of all bodies. `prefix_hash` is kept by
    `render` until the next rewrite."""

    items: list[Item] = field(default_factory=list)
    tokens: int = 0
    head_tokens: int = 0
    head_count: int = 0
    open_calls: OpenCalls = field(default_factory=dict)
    waiting: int = 0
    calls: int = 0
    loose: dict[str, tuple[Item, Bond]] = field(default_factory=dict)
    reasoning_roles: set[str] = field(default_factory=set)
    is_stale: bool = False
    rewritten_seq: int = 0
    stable_count: int = 0
    forced: bool = False
    size_bytes: int = 0
    prefix_hash: str = ""

    def join(self, item: Item) -> tuple[int, ...]:
        """Add an item at the end, or where its late results belong. Returns the seqs of the calls whose markers it took the
        place of: where there are any, the window changed before its end."""
        if not item.is_plain:
            return self._join_marker(item) if item.kind == MARKER else self._join_linked(item)
        self.join_plain(item)
        return ()

    def join_plain(self, item: Item) -> None:
        """Add an item that nothing links to others but reasoning before it; always at the end."""
        if self.waiting and item.role not in HEAD_ROLES:
            self._place_markers()
        if self.loose and item.role in self.loose:
            self._push_linked(item, [self.loose.pop(item.role)[1]])
            return
        self.items.append(item)
        self.tokens += item.tokens
        self.size_bytes += len(item.body)
        if item.is_head_alone:
            self.head_tokens += item.tokens
            self.head_count += 1

    def _push_linked(self, item: Item, bonds: Iterable[Bond]) -> Bond:
        """Add an item at the end that makes one unit of those `bonds`."""
        self.items.append(item)
        self.tokens += item.tokens
        self.size_bytes += len(item.body)
        mine = Bond(item.tokens, 1, item.is_head_alone)
        if mine.head:
            self._add_to_head(mine)
        for each in bonds:
            mine = self._bind(each.root(), mine)
        return mine

    def _bind(self, left: Bond, right: Bond) -> Bond:
        if left is right:
            return left
        if left.head != right.head:
            self._add_to_head(right if left.head else left)
        left.tokens += right.tokens
        left.count += right.count
        left.head = left.head or right.head
        right.into = left
        return left

    def _add_to_head(self, bond: Bond) -> None:
        self.head_tokens += bond.tokens
        self.head_count += bond.count

    def _join_marker(self, item: Item) -> tuple[int, ...]:
        """Join a marker of a stored window: to its call if that still waits, else not at all."""
        call = take_waiting(item.call_id, self.open_calls)
        if call is not None:
            call.marker = item
            self.waiting -= 1
            self._push_linked(item, [call.bond])
        return ()

    def _join_linked(self, item: Item) -> tuple[int, ...]:
        """Join an item with calls, results or reasoning, part by part. A result goes to the latest earlier call of its id that
        has none: in place if the call still waits, to its marker's place if it is late, nowhere if there is no such call."""
        late: list[tuple[int, OpenCall]] = []
        gone: list[int] = []
        opened: list[OpenCall] = []
        bonds: list[Bond] = []
        own = Bond(0, 0, False)
        for part, mark in item.active_marks():
            call = take_answered(mark, self.open_calls, item.kind)
            if call is None and mark.kind == RESULT:
                gone.append(part)
            elif call is not None and call.marker is not None:
                late.append((part, call))
                gone.append(part)
            elif call is not None:
                bonds.append(call.bond)
                self.waiting -= 1
            if opens_call(mark):
                opened.append(OpenCall(item, mark.call_id, part, self.calls, own))
                self.open_calls.setdefault(mark.call_id, []).append(opened[-1])
                self.calls += 1
                self.waiting += 1
        rest = _without(item, gone)
        if rest is not None:
            self._push_rest(rest, own, opened, bonds)
        if late:
            self._answer_late(item, late)
        return tuple([call.item.seq for _, call in late])

    def _push_rest(self, rest: Item, own: Bond, opened: list[OpenCall], bonds: list[Bond]) -> None:
        for call in opened:
            call.item = rest
        if self.waiting and _ends_waiting(rest):
            self._place_markers()
        if rest.role in self.loose:
            bonds.append(self.loose.pop(rest.role)[1])
        bond = self._push_linked(rest, [own, *bonds])
        if rest.is_reasoning_alone():
            self.loose[rest.role] = (rest, bond)
            self.reasoning_roles.add(rest.role)

    def end_waiting(self) -> None:
        """Let no call wait any longer: each that does gets its marker at the end."""
        if self.waiting:
            self._place_markers()

    def _place_markers(self) -> None:
        """Give every waiting call a marker at the end of the window, in the order of the calls."""
        waiting = [call for calls in self.open_calls.values() for call in calls if call.marker is None]
        waiting.sort(key=lambda call: call.number)
        by_id: dict[str, list[OpenCall]] = {}
        for call in waiting:
            by_id.setdefault(call.call_id, []).append(call)
        for call in waiting:
            # Equal ids pair latest first, so that reading the window from its start finds the same pairs.
            owner = by_id[call.call_id].pop()
            owner.marker = marker_item(owner.item.seq, owner.call_id)
            self._push_linked(owner.marker, [owner.bond])
        self.waiting = 0

    def _answer_late(self, item: Item, late: list[tuple[int, OpenCall]]) -> None:
        """Put each late result in the place of its call's marker."""
        for part, call in late:
            marker = call.marker
            assert marker is not None
            result = edited(item, skipped=[other for other, _ in item.active_marks() if other != part])
            self.items[self.items.index(marker)] = result
            self.size_bytes += len(result.body) - len(marker.body)
            more = result.tokens - marker.tokens
            self.tokens += more
            bond = call.bond.root()
            bond.tokens += more
            if bond.head:
                self.head_tokens += more
            elif result.is_head_alone:
                bond.head = True
                self._add_to_head(bond)
        # In its new place the result may be what some reasoning before it belongs to.
        self.is_stale = self.is_stale or item.role in self.reasoning_roles

    def settle(self) -> None:
        """Make the totals right where joining left them open; cheap where it did not."""
        if self.is_stale:
            self.retotal()

    def retotal(self) -> None:
        """Sum up the totals and find the open calls anew, after items changed in the middle."""
        self.tokens = sum([item.tokens for item in self.items])
        self.size_bytes = sum([len(item.body) for item in self.items])
        links = link(self.items)
        head = [unit for unit in links.units if unit.head]
        self.head_tokens = sum(unit.tokens for unit in head)
        self.head_count = sum(len(unit.places) for unit in head)
        self.open_calls = links.open_calls
        self.waiting = sum(1 for calls in links.open_calls.values() for call in calls if call.marker is None)
        self.calls = links.calls
        self.loose = links.loose
        self.reasoning_roles = {item.role for item in self.items if item.is_reasoning_alone()}
        self.is_stale = False

    def replace_items(self, items: Iterable[Item]) -> None:
        """Put other items in place of all, as a rewrite does."""
        self.items = list(items)
        self.retotal()

    def drop(self, gone: Set[int], tokens: int) -> None:
        """Take out whole units that are not head and do not wait: the items at the positions `gone`, which cost `tokens`."""
        if self.open_calls or self.loose:
            left = {id(self.items[place]) for place in gone}
            self.loose = {role: each for role, each in self.loose.items() if id(each[0]) not in left}
            kept = {call_id: [call for call in calls if id(call.item) not in left] for call_id, calls in self.open_calls.items()}
            self.open_calls = {call_id: calls for call_id, calls in kept.items() if calls}
        self.size_bytes -= sum([len(self.items[place].body) for place in gone])
        self.items = [item for place, item in enumerate(self.items) if place not in gone]
        self.tokens -= tokens

    def mark_stable(self, seq: int) -> None:
        """What stands now is the prefix that stays until the next rewrite; `seq` is the newest of the history."""
        self.rewritten_seq = seq
        self.stable_count = len(self.items)
        self.prefix_hash = ""


def _without(item: Item, gone: list[int]) -> Item | None:
    """The item without the parts at `gone`; None if nothing is left. A summary stands whole or not at all."""
    if not gone:
        return item
    if item.kind != LIVE or len(gone) == sum(1 for _ in item.active_marks()):
        return None
    return edited(item, skipped=gone)


def _ends_waiting(item: Item) -> bool:
    """Whether calls stop waiting when this item comes: it is neither result, call, reasoning alone nor system."""
    return item.role not in HEAD_ROLES and not item.has_links() and not item.is_reasoning_alone()
