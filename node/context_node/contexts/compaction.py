"""When a window is compacted, and how it is brought below its target: edits by the strategy first, eviction last.

Knows SEMANTICS.md "Ratios and eviction". Invariants: the floor never leaves (W2, W3), and a window that can fit its budget does (W1).
Without need it costs a few comparisons, whatever the window's size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from context_node.contexts.items import LIVE, Item
from context_node.contexts.units import Analysis, Unit, analyse
from context_node.contexts.window import Window


class Edit(Protocol):
    """One step of a strategy that makes items smaller. Returns the new items, or None if there was nothing to do."""

    def __call__(self, items: Sequence[Item], analysis: Analysis) -> list[Item] | None: ...


WINDOW_BYTES_MAX = 32 << 20
"""Above so many bytes of bodies eviction fires as with a limit, revision 1. Tokens bound a window's text, but an image costs few tokens,
and a client's own `token_count` may be 0."""


@dataclass(frozen=True, slots=True)
class Strategy:
    """What a policy does when a window is above its trigger: `edits` in order, until the target is met, then eviction.

    `limit` is a trigger of its own, in messages. A `manual` strategy waits for its user and evicts only above the budget.
    """

    edits: tuple[Edit, ...] = ()
    limit: int | None = None
    manual: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """The numbers that a window is held to. Tokens are whole numbers; 0 < `target_ratio` < `trigger_ratio` <= 1."""

    budget: int
    trigger_ratio: float
    target_ratio: float
    strategy: Strategy
    items_max: int
    bytes_max: int = WINDOW_BYTES_MAX

    def room(self, window: Window) -> int:
        """What head items leave of the budget, in tokens."""
        return max(0, self.budget - window.head_tokens)

    def shrunk(self, count: int) -> int:
        """To how many messages eviction cuts where `count` is the most: max(1, ⌊count·target/trigger⌋)."""
        return max(1, share(count, self.target_ratio / self.trigger_ratio))


def share(whole: int, ratio: float) -> int:
    """⌊whole·ratio⌋, such that a product that is a whole number in decimals is not missed by rounding (0.7 · 90 is 63)."""
    return int(whole * ratio + 1e-7)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What compaction did: whether the window changed at all, and whether only W1 forced it."""

    changed: bool
    forced: bool


NOTHING = Outcome(changed=False, forced=False)


def compact(window: Window, plan: Plan) -> Outcome:
    """Bring the window below its target if it is above its trigger; cheap if it is not."""
    window.settle()
    if not is_due(window, plan):
        return NOTHING
    if not plan.strategy.edits and _is_unlinked(window):
        changed = _evict_messages(window, plan)
        return Outcome(changed, changed and plan.strategy.manual)
    analysis = analyse(window.items, plan.budget)
    goal = _Goal.of(window, plan, analysis.counted)
    changed = False
    for edit in plan.strategy.edits:
        items = edit(window.items, analysis)
        if items is not None:
            window.replace_items(items)
            analysis = analyse(window.items, plan.budget)
            changed = True
        if goal.is_met(window, analysis):
            break
    if not goal.is_met(window, analysis):
        changed = _evict(window, analysis, goal) or changed
    return Outcome(changed, changed and plan.strategy.manual)


def _is_unlinked(window: Window) -> bool:
    for item in window.items:  # noqa: SIM110 - a loop costs half of all() here
        if item.kind != LIVE or not item.is_plain:
            return False
    return True


def is_above_trigger(window: Window, plan: Plan) -> bool:
    """Whether the body costs more than the trigger's share of the room, or has more messages than a limit allows."""
    room = plan.budget - window.head_tokens
    body = window.tokens - window.head_tokens
    if body > (share(room, plan.trigger_ratio) if room > 0 else 0):
        return True
    count = len(window.items)
    if count > plan.items_max or window.size_bytes > plan.bytes_max:
        return True
    limit = plan.strategy.limit
    if limit is None or count - window.head_count <= limit:
        return False
    # The last user message does not count: one above the limit, only a closer look can tell.
    return count - window.head_count > limit + 1 or analyse(window.items, plan.budget).counted > limit


def is_due(window: Window, plan: Plan) -> bool:
    """Whether compaction acts now. A manual strategy acts only above the budget, or above what a window may hold at all."""
    if plan.strategy.manual:
        return window.tokens > plan.budget or len(window.items) > plan.items_max or window.size_bytes > plan.bytes_max
    return is_above_trigger(window, plan)


def needs_compaction(window: Window, plan: Plan) -> bool:
    """Whether the window is above its trigger and something besides the floor is left to evict."""
    return is_above_trigger(window, plan) and any(not unit.floor for unit in analyse(window.items, plan.budget).units)


@dataclass(frozen=True, slots=True)
class _Goal:
    """Where compaction ends: at most `tokens` in the body, `count` counted messages, `items` and `size` bytes in all."""

    tokens: int
    count: int | None
    items: int
    size: int

    @classmethod
    def of(cls, window: Window, plan: Plan, counted: int) -> "_Goal":
        count = plan.strategy.limit
        if count is not None and counted > count:
            count = plan.shrunk(count)
        items = plan.items_max
        if len(window.items) > items:
            items = plan.shrunk(items)
        size = plan.bytes_max
        if window.size_bytes > size:
            size = plan.shrunk(size)
        return cls(share(plan.room(window), plan.target_ratio), count, items, size)

    def is_met(self, window: Window, analysis: Analysis) -> bool:
        return self.holds(window.tokens - window.head_tokens, analysis.counted, len(window.items), window.size_bytes)

    def holds(self, body: int, counted: int, total: int, size: int) -> bool:
        return body <= self.tokens and total <= self.items and size <= self.size and (self.count is None or counted <= self.count)


def _evict(window: Window, analysis: Analysis, goal: _Goal) -> bool:
    """Drop earlier turns whole, then summaries, then units of the last turn, oldest first, until the goal is met. Returns
    whether any went."""
    body = start = window.tokens - window.head_tokens
    counted = analysis.counted
    total = len(window.items)
    size = window.size_bytes
    gone: set[int] = set()
    for group in _eviction_order(analysis):
        if goal.holds(body, counted, total, size):
            break
        for unit in group:
            gone.update(unit.places)
            body -= unit.tokens
            total -= len(unit.places)
            size -= sum([len(window.items[place].body) for place in unit.places])
            counted -= len(unit.places) - (unit is analysis.last_user)
    if gone:
        window.drop(gone, start - body)
    return bool(gone)


def _evict_messages(window: Window, plan: Plan) -> bool:
    """What `_evict` does, for a window of messages that nothing links to each other: each is a unit of its own, a turn begins with every
    user message, and nobody has to look at more than what goes. Most windows are of this kind."""
    items = window.items
    seqs = [item.seq for item in items]
    newest = seqs.index(max(seqs))
    last_user = next((place for place in range(len(items) - 1, -1, -1) if items[place].role == "user"), -1)
    floor = {newest}
    counted = len(items) - window.head_count
    if last_user >= 0 and not items[last_user].is_head_alone:
        counted -= 1
        newest_tokens = 0 if items[newest].is_head_alone else items[newest].tokens
        if window.head_tokens + newest_tokens + items[last_user].tokens <= plan.budget:
            floor.add(last_user)
    goal = _Goal.of(window, plan, counted)
    body = start = window.tokens - window.head_tokens
    size = window.size_bytes
    # Of each kind so many may stay; the numbers are spelled out here, since this runs for every message that goes.
    tokens_max, size_max, over = goal.tokens, goal.size, max(0, len(items) - goal.items)
    over_counted = 0 if goal.count is None else counted - goal.count
    gone: set[int] = set()
    went = went_counted = 0
    is_boundary = True
    for place, item in enumerate(items):
        # Earlier turns go whole; of the last one, message by message.
        if item.role == "user" or place >= last_user:
            is_boundary = True
        if item.is_head_alone or place in floor:
            continue
        if is_boundary:
            if body <= tokens_max and size <= size_max and went >= over and went_counted >= over_counted:
                break
            is_boundary = False
        gone.add(place)
        went += 1
        went_counted += place != last_user
        body -= item.tokens
        size -= len(item.body)
    if gone:
        window.drop(gone, start - body)
    return bool(gone)


def _eviction_order(analysis: Analysis) -> list[list[Unit]]:
    """The units that may go, in groups that go together."""
    turns: dict[int, list[Unit]] = {}
    summaries: list[list[Unit]] = []
    last: list[list[Unit]] = []
    for unit in analysis.units:
        if unit.floor:
            continue
        if unit.summary:
            summaries.append([unit])
        elif unit.turn < analysis.last_turn:
            # Units come in the order of their first item, so turns come in order too.
            turns.setdefault(unit.turn, []).append(unit)
        else:
            last.append([unit])
    return [*turns.values(), *summaries, *last]


def over_budget_reason(window: Window, budget: int) -> str | None:
    """Why the window is above its budget: `head` (system and pinned messages alone), `waiting_calls`, `newest_unit`; None if
    it fits."""
    if window.tokens <= budget:
        return None
    if window.head_tokens > budget:
        return "head"
    units = analyse(window.items, budget).units
    waiting = sum(unit.tokens for unit in units if unit.waiting and not unit.head)
    return "waiting_calls" if window.head_tokens + waiting > budget else "newest_unit"
