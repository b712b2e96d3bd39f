"""Rewriting a window by hand: a range, the whole, from history anew.

Knows SEMANTICS.md "Rewriting by hand". Functions look at a context and give the new items, or raise a `Refusal`; they change nothing.
Invariants: history is never touched (W6), no unit is split (W2), waiting calls and the head stay (W2, W3).
"""

from collections.abc import Callable, Sequence

from context_node.contexts.commands import Draft, Restored
from context_node.contexts.context import Context
from context_node.contexts.items import HEAD_ROLES, MARKER, Item, info_decoder, live_item, summary_item
from context_node.contexts.ranges import Spans
from context_node.contexts.refusals import Unprocessable, VersionConflict
from context_node.contexts.units import Links, is_undisturbed, link, opens_call
from context_node.contexts.window import Window


def check_version(context: Context, if_version: int | None) -> None:
    """`if_version` must be the present version. Raises `VersionConflict`."""
    version = context.head.version
    if if_version is not None and if_version != version:
        raise conflict(context, f"The context is at version {version}, not {if_version}; read the window again and retry.")


def conflict(context: Context, message: str) -> VersionConflict:
    return version_conflict(message, context.head.version, context.head.last_seq)


def version_conflict(message: str, version: int, last_seq: int) -> VersionConflict:
    """A conflict that tells the present version and newest seq."""
    return VersionConflict(message, version=version, last_seq=last_seq)


def replaced_range(context: Context, covers: tuple[int, int], drafts: Sequence[Draft], if_version: int | None, version: int) -> list[Item]:
    """The items with `drafts` in place of the messages `covers` (inclusive)."""
    first, last = covers
    items = context.window.items
    spans = Spans.of(items, link(items), context.head.last_seq)
    spans.check_bounds(first, last)
    is_from_the_future = if_version is not None and if_version > context.head.version
    if if_version is not None and (is_from_the_future or context.was_rewritten_since(if_version, first, last)):
        raise conflict(
            context,
            f"A message in [{first}, {last}] was rewritten after version {if_version}; read the window again and retry.",
        )
    spans.check(first, last)
    summaries = _summaries(drafts, covers, version, may_be_head=False)
    _check_self_contained(summaries, may_wait=False)
    covered = spans.places_inside(first, last)
    new = _with_replacement(items, covered, summaries, first)
    _check_undisturbed(items, new)
    return new


def _summaries(drafts: Sequence[Draft], covers: tuple[int, int], version: int, *, may_be_head: bool) -> list[Item]:
    summaries = []
    for place, draft in enumerate(drafts):
        role, fields = draft.role, draft.fields
        if role in HEAD_ROLES and not may_be_head:
            # The first match is the member itself: inside a JSON string its quotes would be escaped.
            fields = fields.replace(b'"role":"%b"' % role.encode(), b'"role":"user"', 1)
            role = "user"
        summaries.append(summary_item(covers, fields, role, draft.tokens, draft.marks, (version, place)))
    return summaries


def _check_self_contained(items: Sequence[Item], *, may_wait: bool) -> None:
    """A replacement holds the calls of its results, and (unless it ends the window) the results of its calls: joined one by
    one, its items stand as they were given, without a marker."""
    scratch = Window()
    for item in items:
        scratch.join(item)
    is_marked = any(call.marker is not None for calls in scratch.open_calls.values() for call in calls)
    if is_marked or (scratch.open_calls and not may_wait):
        raise Unprocessable(
            "replacement holds a tool call without its result; include the result, or put it in words.",
            field="replacement",
        )
    if [id(item) for item in scratch.items] != [id(item) for item in items]:
        raise Unprocessable(
            "replacement holds a tool result that does not follow its call; include the call, or put it in words.",
            field="replacement",
        )


def _with_replacement(items: Sequence[Item], covered: set[int], summaries: Sequence[Item], first_seq: int) -> list[Item]:
    position = min(covered, default=None)
    if position is None:
        later = (place for place, item in enumerate(items) if item.seq > first_seq and item.kind != MARKER)
        position = next(later, len(items))
    before = [item for place, item in enumerate(items[:position]) if place not in covered]
    after = [item for place, item in enumerate(items[position:], position) if place not in covered]
    return [*before, *summaries, *after]


def replaced_whole(context: Context, drafts: Sequence[Draft], through_seq: int | None, if_version: int | None, version: int) -> list[Item]:
    """The items with `drafts` in place of all, or of all that is not newer than `through_seq`. The head stays, and so do
    calls that wait, unless the replacement brings them."""
    check_version(context, if_version)
    last_seq = context.head.last_seq
    through = last_seq if through_seq is None else through_seq
    items = context.window.items
    links = link(items)
    spans = Spans.of(items, links, last_seq)
    spans.check_through(through)
    summaries = _summaries(drafts, (min(1, through), through), version, may_be_head=True)
    given = {mark.call_id for item in summaries for mark in item.marks if opens_call(mark)}
    waiting = {
        id(call.item) for call_id, calls in links.open_calls.items() for call in calls if call.marker is None and call_id not in given
    }
    kept_waiting = {id(links.unit_of[place]) for place, item in enumerate(items) if id(item) in waiting}
    covered = {place for place in spans.places_inside(0, through) if id(links.unit_of[place]) not in kept_waiting}
    keeps_later = any(item.seq > through and item.kind != MARKER for item in items)
    _check_self_contained(summaries, may_wait=not keeps_later)
    new = _with_new_head(items, links, covered, summaries, through)
    _check_undisturbed(items, new)
    return new


def _with_new_head(items: Sequence[Item], links: Links, covered: set[int], summaries: Sequence[Item], through: int) -> list[Item]:
    """Put system messages of a whole replacement where the old ones stood, and the rest where the first covered item stood."""
    heads = [item for item in summaries if item.role in HEAD_ROLES]
    rest = [item for item in summaries if item.role not in HEAD_ROLES]
    gone = set(covered)
    head_position = 0
    if heads:
        old = [
            place
            for place, item in enumerate(items)
            if item.role in HEAD_ROLES and not item.pinned and item.seq <= through and len(links.unit_of[place].places) == 1
        ]
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


def _check_undisturbed(old: Sequence[Item], new: Sequence[Item]) -> None:
    """A part of the replacement must not answer a call outside it, nor the other way round."""
    if not is_undisturbed(old, new):
        raise Unprocessable(
            "replacement uses the id of a tool call that stands outside of it; give its own calls other ids.", field="replacement"
        )


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


def restored_item(restored: Restored, *, pinned: bool = False) -> Item:
    """The item of a message that comes back from history."""
    return live_item(restored.seq, restored.body, info_decoder.decode(restored.info), pinned)


def rebuilt(context: Context, messages: Sequence[Restored], through_seq: int, compact: Callable[[Window], bool]) -> Window:
    """A window made anew: head and waiting units of the present one, `messages`, and what came after `through_seq`, joined
    in turn."""
    items = context.window.items
    fresh = {restored.seq for restored in messages}
    links: Links = link(items)
    pinned = {item.seq for item in items if item.pinned}
    kept = [
        item
        for item, unit in zip(items, links.unit_of, strict=True)
        if item.kind != MARKER and item.seq not in fresh and (item.seq > through_seq or unit.head or unit.waiting)
    ]
    added = [restored_item(restored, pinned=restored.seq in pinned) for restored in messages]
    window = Window()
    for item in sorted([*kept, *added], key=lambda item: (item.seq, item.kind)):
        window.join(item)
        compact(window)
    return window
