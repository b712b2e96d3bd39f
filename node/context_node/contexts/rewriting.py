"""Rewriting a window by hand: a range, the whole, from history anew; and pins.

Knows SEMANTICS.md "Rewriting by hand" and "Pins". Functions look at a context and give the new items, or raise a `Refusal`; they change
nothing. Invariants: history is never touched (W6), no unit is split (W2), waiting calls and the head stay (W2, W3).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from context_node.contexts.commands import Draft, Restored
from context_node.contexts.context import Context
from context_node.contexts.items import HEAD_ROLES, LIVE, MARKER, Item, edited, info_decoder, live_item, summary_item
from context_node.contexts.parts import CALL, CALL_AND_RESULT, RESULT
from context_node.contexts.refusals import Unprocessable, VersionConflict
from context_node.contexts.units import Links, Unit, link
from context_node.contexts.window import Window


@dataclass(frozen=True, slots=True)
class _Span:
    """Which seqs a unit stands for."""

    first: int
    last: int


def check_version(context: Context, if_version: int | None) -> None:
    """`if_version` must be the present version. Raises `VersionConflict`."""
    if if_version is not None and if_version != context.head.version:
        raise conflict(context, f"The context is at version {context.head.version}, not {if_version}; read the window again and retry.")


def conflict(context: Context, message: str) -> VersionConflict:
    return version_conflict(message, context.head.version, context.head.last_seq)


def version_conflict(message: str, version: int, last_seq: int) -> VersionConflict:
    """A conflict that tells the present version and newest seq."""
    return VersionConflict(message, version=version, last_seq=last_seq)


def replaced_range(context: Context, covers: tuple[int, int], drafts: Sequence[Draft], if_version: int | None, version: int) -> list[Item]:
    """The items with `drafts` in place of the messages `covers` (inclusive)."""
    first, last = covers
    last_seq = context.head.last_seq
    if first < 1 or first > last or last > last_seq:
        nearest = [max(1, first), min(last, last_seq)] if max(1, first) <= min(last, last_seq) else None
        raise Unprocessable(
            f"covers must be a range within the history, from 1 to {last_seq}, first not after last; got [{first}, {last}].",
            field="covers",
            nearest=nearest,
        )
    if if_version is not None and (if_version > context.head.version or context.was_rewritten_since(if_version, first, last)):
        raise conflict(context, f"A message in [{first}, {last}] was rewritten after version {if_version}; read the window again and retry.")
    items = context.window.items
    links = link(items)
    body = [unit for unit in links.units if not unit.head]
    _check_range(items, body, first, last, last_seq)
    covered = {place for unit in body if _is_inside(_span(items, unit), first, last) for place in unit.places}
    summaries = _summaries(drafts, covers, version)
    _check_self_contained(summaries, may_wait=False)
    return _with_replacement(items, covered, summaries, first)


def _span(items: Sequence[Item], unit: Unit) -> _Span:
    members = [items[place] for place in unit.places]
    return _Span(min(item.seq for item in members), max(item.to_seq for item in members))


def _is_inside(span: _Span, first: int, last: int) -> bool:
    return first <= span.first and span.last <= last


def _is_split(span: _Span, members: Sequence[Item], first: int, last: int) -> bool:
    """Whether some of a unit, or of a summary, is in the range and some is not."""
    if _is_inside(span, first, last):
        return False
    return any(item.seq <= last and item.to_seq >= first for item in members)


def _check_range(items: Sequence[Item], body: Sequence[Unit], first: int, last: int, last_seq: int) -> None:
    problem = _range_problem(items, body, first, last)
    if problem is None:
        return
    nearest = _nearest_range(items, body, first, last, last_seq)
    hint = f"; the nearest range that works is [{nearest[0]}, {nearest[1]}]" if nearest else "; no range near it works"
    raise Unprocessable(f"covers [{first}, {last}] {problem}{hint}.", field="covers", nearest=list(nearest) if nearest else None)


def _range_problem(items: Sequence[Item], body: Sequence[Unit], first: int, last: int) -> str | None:
    for unit in body:
        members = [items[place] for place in unit.places]
        span = _span(items, unit)
        if _is_split(span, members, first, last):
            what = "an earlier summary" if unit.summary and len(members) == 1 else "messages that belong together"
            return f"would split {what}: [{span.first}, {span.last}]"
        if unit.waiting and _is_inside(span, first, last):
            return f"holds a call that still waits for its result: [{span.first}, {span.last}]"
    return None


def _nearest_range(items: Sequence[Item], body: Sequence[Unit], first: int, last: int, last_seq: int) -> tuple[int, int] | None:
    """The range that works with the fewest seqs added or taken away: grown to whole units, or shrunk to them."""
    spans = [(_span(items, unit), [items[place] for place in unit.places], unit) for unit in body]
    candidates = []
    low, high = first, last
    for _ in range(len(spans) + 1):
        touched = [span for span, members, _unit in spans if _is_split(span, members, low, high)]
        if not touched:
            break
        low, high = min(low, *(span.first for span in touched)), max(high, *(span.last for span in touched))
    candidates.append((low, high))
    low, high = first, last
    for _ in range(2 * len(spans) + 2):
        bad = next(
            (
                span
                for span, members, unit in spans
                if _is_split(span, members, low, high) or (unit.waiting and _is_inside(span, low, high))
            ),
            None,
        )
        if bad is None or low > high:
            break
        if bad.first <= low:
            low = bad.last + 1
        else:
            high = bad.first - 1
    candidates.append((low, high))
    working = [
        (low, high) for low, high in candidates if 1 <= low <= high <= last_seq and _range_problem(items, body, low, high) is None
    ]
    return min(working, key=lambda found: abs(found[0] - first) + abs(found[1] - last), default=None)


def _summaries(drafts: Sequence[Draft], covers: tuple[int, int], version: int) -> list[Item]:
    return [summary_item(covers, draft.fields, draft.role, draft.tokens, draft.marks, (version, place)) for place, draft in enumerate(drafts)]


def _check_self_contained(items: Sequence[Item], *, may_wait: bool) -> None:
    """A replacement holds the calls of its results, and (unless it ends the window) the results of its calls."""
    scratch = Window()
    for item in items:
        results = sum(1 for _, mark in item.active_marks() if mark.kind == RESULT)
        before = len(scratch.items)
        open_before = sum(len(calls) for calls in scratch.open_calls.values())
        scratch.join(item)
        joined = scratch.items[before:]
        if results and (not joined or joined[-1].skipped or open_before < results):
            raise Unprocessable("replacement holds a tool result without its call before it; include the call, or put it in words.", field="replacement")
    if scratch.open_calls and not (may_wait and all(call.marker is None for calls in scratch.open_calls.values() for call in calls)):
        raise Unprocessable("replacement holds a tool call without its result; include the result, or put it in words.", field="replacement")


def _with_replacement(items: Sequence[Item], covered: set[int], summaries: Sequence[Item], first_seq: int) -> list[Item]:
    position = min(covered, default=None)
    if position is None:
        position = next((place for place, item in enumerate(items) if item.seq > first_seq and item.kind != MARKER), len(items))
    before = [item for place, item in enumerate(items[:position]) if place not in covered]
    after = [item for place, item in enumerate(items[position:], position) if place not in covered]
    return [*before, *summaries, *after]


def replaced_whole(context: Context, drafts: Sequence[Draft], through_seq: int | None, if_version: int | None, version: int) -> list[Item]:
    """The items with `drafts` in place of all, or of all that is not newer than `through_seq`; head and waiting calls stay."""
    check_version(context, if_version)
    last_seq = context.head.last_seq
    through = last_seq if through_seq is None else through_seq
    if not 0 <= through <= last_seq:
        raise Unprocessable(f"through_seq must be from 0 to {last_seq}, not {through}.", field="through_seq", nearest=min(max(through, 0), last_seq))
    items = context.window.items
    links = link(items)
    body = [unit for unit in links.units if not unit.head]
    _check_through(items, body, through)
    summaries = _summaries(drafts, (1, max(1, through)), version)
    given_calls = {mark.call_id for item in summaries for mark in item.marks if mark.kind in (CALL, CALL_AND_RESULT)}
    covered = {
        place
        for unit in body
        if _span(items, unit).last <= through and (not unit.waiting or _calls(items, unit) & given_calls)
        for place in unit.places
    }
    keeps_later = any(items[place].seq > through for place in range(len(items)) if items[place].kind != MARKER)
    _check_self_contained(summaries, may_wait=not keeps_later)
    return _with_new_head(items, links, covered, summaries, through)


def _calls(items: Sequence[Item], unit: Unit) -> set[str]:
    return {mark.call_id for place in unit.places for _, mark in items[place].active_marks() if mark.kind in (CALL, CALL_AND_RESULT)}


def _check_through(items: Sequence[Item], body: Sequence[Unit], through: int) -> None:
    split = [_span(items, unit) for unit in body if _is_split(_span(items, unit), [items[place] for place in unit.places], 1, through)]
    if split:
        low, high = min(span.first for span in split) - 1, max(span.last for span in split)
        raise Unprocessable(
            f"through_seq {through} would split messages that belong together; use {low} or {high}.", field="through_seq", nearest=high
        )


def _with_new_head(items: Sequence[Item], links: Links, covered: set[int], summaries: Sequence[Item], through: int) -> list[Item]:
    """Put system messages of a whole replacement where the old ones stood, and the rest where the first covered item stood."""
    heads = [item for item in summaries if item.role in HEAD_ROLES]
    rest = [item for item in summaries if item.role not in HEAD_ROLES]
    gone = set(covered)
    head_position = 0
    if heads:
        old = [place for place, item in enumerate(items) if item.role in HEAD_ROLES and not item.pinned and item.seq <= through]
        gone.update(old)
        head_position = old[0] if old else 0
    later = (place for place, item in enumerate(items) if item.seq > through and item.kind != MARKER)
    body_position = min(covered) if covered else next(later, len(items))
    body_position = max(body_position, head_position)
    result: list[Item] = []
    for place in range(len(items) + 1):
        if place == head_position:
            result.extend(heads)
        if place == body_position:
            result.extend(rest)
        if place < len(items) and place not in gone:
            result.append(items[place])
    return result


def check_result(context: Context, items: Sequence[Item]) -> None:
    """A rewrite must leave something, and no more than the budget. Raises `Unprocessable`."""
    tokens = sum(item.tokens for item in items)
    budget = context.head.config.token_budget
    if not items:
        raise Unprocessable("The replacement would leave the window empty; give at least one message.", field="replacement")
    if tokens > budget:
        raise Unprocessable(
            f"The window would hold {tokens} tokens, above its budget of {budget}; shorten the replacement or cover more.",
            tokens=tokens,
            token_budget=budget,
        )


def restored_item(restored: Restored) -> Item:
    """The item of a message that comes back from history."""
    return live_item(restored.seq, restored.body, info_decoder.decode(restored.info))


def rebuilt(context: Context, messages: Sequence[Restored], through_seq: int, compact: Callable[[Window], bool]) -> Window:
    """A window made anew: the head of the present one, then `messages`, then what came after `through_seq`; each joined in turn."""
    items = context.window.items
    fresh = {restored.seq: restored_item(restored) for restored in messages}
    links = link(items)
    pinned = {item.seq for item in items if item.pinned}
    kept = [
        item
        for place, item in enumerate(items)
        if item.kind != MARKER and item.seq not in fresh and (item.seq > through_seq or links.unit_of[place].head)
    ]
    added = [edited(item, pinned=True) if seq in pinned else item for seq, item in fresh.items()]
    window = Window()
    for item in sorted([*kept, *added], key=lambda item: (item.seq, item.kind)):
        window.join(item)
        compact(window)
    return window


def pinned_items(context: Context, seq: int, restored: Sequence[Restored]) -> list[Item] | None:
    """The items with the message `seq` pinned; None if it is already. A message that left the window comes back with its unit."""
    items = context.window.items
    present = [item for item in items if item.kind == LIVE and item.seq == seq]
    if present:
        if all(item.pinned for item in present):
            return None
        return [edited(item, pinned=True) if item.kind == LIVE and item.seq == seq else item for item in items]
    here = {item.seq for item in items if item.kind == LIVE}
    scratch = Window()
    for message in restored:
        item = restored_item(message)
        scratch.join(edited(item, pinned=True) if item.seq == seq else item)
    block = [item for item in scratch.items if item.seq not in here]
    if not any(item.seq == seq for item in block):
        raise Unprocessable(f"Message {seq} cannot stand in a window: it holds only results whose call is not in the history.", seq=seq)
    position = next((place for place, item in enumerate(items) if item.kind != MARKER and item.seq > block[0].seq), len(items))
    return [*items[:position], *block, *items[position:]]


def unpinned_items(context: Context, seq: int) -> list[Item] | None:
    """The items with the message `seq` no longer pinned; None if it is not."""
    items = context.window.items
    if not any(item.pinned and item.seq == seq and item.kind == LIVE for item in items):
        return None
    return [edited(item, pinned=False) if item.kind == LIVE and item.seq == seq else item for item in items]

