"""When a window is compacted, and how it is brought below its target: edits by the strategy first, eviction last.

Knows SEMANTICS.md "Ratios and eviction". Invariants: the floor never leaves (W2, W3), and a window that can fit its budget does (W1).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from context_node.contexts.items import Item
from context_node.contexts.units import Analysis, Unit, analyse
from context_node.contexts.window import Window


class Edit(Protocol):
    """One step of a strategy that makes items smaller. Returns the new items, or None if there was nothing to do."""

    def __call__(self, items: Sequence[Item], analysis: Analysis) -> list[Item] | None: ...


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

    def room(self, window: Window) -> int:
        """What head items leave of the budget, in tokens."""
        return max(0, self.budget - window.head_tokens)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What compaction did: whether the window changed at all, and whether only W1 forced it."""

    changed: bool
    forced: bool


NOTHING = Outcome(changed=False, forced=False)


def compact(window: Window, plan: Plan) -> Outcome:
    """Bring the window below its target if it is above its trigger; cheap if it is not."""
    if not is_due(window, plan):
        return NOTHING
    goal = _Goal.of(window, plan)
    changed = False
    for edit in plan.strategy.edits:
        items = edit(window.items, analyse(window.items, plan.budget))
        if items is not None:
            window.replace_items(items)
            changed = True
        if goal.is_met(window):
            break
    if not goal.is_met(window):
        changed = _evict(window, plan.budget, goal) or changed
    return Outcome(changed, changed and plan.strategy.manual)


def is_above_trigger(window: Window, plan: Plan) -> bool:
    """Whether the body costs more than the trigger's share of the room, or has more messages than a limit allows."""
    body = window.tokens - window.head_tokens
    if body > plan.trigger_ratio * plan.room(window) or len(window.items) > plan.items_max:
        return True
    limit = plan.strategy.limit
    return limit is not None and len(window.items) - window.head_count > limit and counted(window, plan.budget) > limit


def is_due(window: Window, plan: Plan) -> bool:
    """Whether compaction acts now. A manual strategy acts only above the budget, or above what a window may hold at all."""
    if plan.strategy.manual:
        return window.tokens > plan.budget or len(window.items) > plan.items_max
    return is_above_trigger(window, plan)


def needs_compaction(window: Window, plan: Plan) -> bool:
    """Whether the window is above its trigger and something besides the floor is left to evict."""
    return is_above_trigger(window, plan) and any(not unit.floor for unit in analyse(window.items, plan.budget).units)


def counted(window: Window, budget: int) -> int:
    """The messages that a `limit` counts: all but head and the last user message."""
    return _count(analyse(window.items, budget))


def _count(analysis: Analysis) -> int:
    return sum(len(unit.places) for unit in analysis.units if not unit.head and unit is not analysis.last_user)


@dataclass(frozen=True, slots=True)
class _Goal:
    """Where compaction ends: at most `tokens` in the body, `count` counted messages and `items` in all."""

    tokens: float
    count: int | None
    items: int
    budget: int

    @classmethod
    def of(cls, window: Window, plan: Plan) -> "_Goal":
        limit = plan.strategy.limit
        count = None
        if limit is not None:
            is_over = counted(window, plan.budget) > limit
            count = max(1, int(limit * plan.target_ratio / plan.trigger_ratio)) if is_over else limit
        items = plan.items_max
        if len(window.items) > items:
            items = max(1, int(items * plan.target_ratio / plan.trigger_ratio))
        return cls(plan.target_ratio * plan.room(window), count, items, plan.budget)

    def is_met(self, window: Window) -> bool:
        return (
            window.tokens - window.head_tokens <= self.tokens
            and len(window.items) <= self.items
            and (self.count is None or counted(window, self.budget) <= self.count)
        )


def _evict(window: Window, budget: int, goal: _Goal) -> bool:
    """Drop earlier turns whole, then summaries, then units of the last turn, oldest first, until the goal is met. Returns whether any went."""
    analysis = analyse(window.items, budget)
    body = window.tokens - window.head_tokens
    count = _count(analysis)
    total = len(window.items)
    gone: set[int] = set()
    for group in _eviction_order(analysis):
        if body <= goal.tokens and total <= goal.items and (goal.count is None or count <= goal.count):
            break
        for unit in group:
            gone.update(unit.places)
            body -= unit.tokens
            total -= len(unit.places)
            count -= 0 if unit is analysis.last_user else len(unit.places)
    if gone:
        window.replace_items(item for place, item in enumerate(window.items) if place not in gone)
    return bool(gone)


def _eviction_order(analysis: Analysis) -> list[list[Unit]]:
    """The units that may go, in groups that go together."""
    free = [unit for unit in analysis.units if not unit.floor]
    turns: dict[int, list[Unit]] = {}
    for unit in free:
        if not unit.summary and unit.turn < analysis.last_turn:
            turns.setdefault(unit.turn, []).append(unit)
    summaries = [[unit] for unit in free if unit.summary]
    last = [[unit] for unit in free if not unit.summary and unit.turn >= analysis.last_turn]
    return [*(turns[turn] for turn in sorted(turns)), *summaries, *last]


def over_budget_reason(window: Window, budget: int) -> str | None:
    """Why the window is above its budget: `head` (system and pinned messages alone), `waiting_calls`, `newest_unit`; None if it fits."""
    if window.tokens <= budget:
        return None
    if window.head_tokens > budget:
        return "head"
    waiting = sum(unit.tokens for unit in analyse(window.items, budget).units if unit.waiting and not unit.head)
    return "waiting_calls" if window.head_tokens + waiting > budget else "newest_unit"
